//! A live section of the settings.
use std::{fmt, sync::Arc};

use super::{Common, Policies};
use crate::{Live, context::Context};

/// The accepted value of a section, in the version that fits: clones share it.
///
/// It reads the same version that calls use: a section is never newer or older than the other settings.
///
/// ```
/// # use chassis_core::LiveSection;
/// # struct Shop { discount: u8 }
/// # async fn load() {}
/// async fn handler(shop: LiveSection<Shop>) {
///     let before = shop.get(); // the version of the call
///     load().await;
///     assert_eq!(shop.get().discount, before.discount); // the same one, whatever was put in force meanwhile
/// }
/// ```
pub struct LiveSection<T> {
    policies: Live<Policies>,
    /// Tells the calls of this process from those of another one in the same program.
    common: Arc<Common>,
    name: Arc<str>,
    /// Used if a later version has no such section, which is only possible if settings are applied by hand.
    first: Arc<T>,
}

// === impl LiveSection ===

impl<T: Send + Sync + 'static> LiveSection<T> {
    pub(crate) fn new(policies: Live<Policies>, common: &Arc<Common>, name: &str) -> Option<Self> {
        let first = policies.with(|policies| policies.sections().named(name))?;
        Some(LiveSection { policies, common: common.clone(), name: name.into(), first })
    }

    /// The value for the work that is being done:
    ///
    /// - within a handler, the stream of its answer, and a [layer](crate::Stage) of one's own: that of the version of
    ///   the call, as all rules of the call are. It stays the same to the end of the call. A spawned task has it in
    ///   `Context::current().scope(…)`, see [`Context`];
    /// - elsewhere: the newest. Take it once for each piece of work: two takes may straddle a swap.
    pub fn get(&self) -> Arc<T> {
        let of_call = Context::with(|context| {
            let policy = context.settings.policy()?;
            // A handler may hold the settings of another service of the same program.
            Arc::ptr_eq(&policy.common, &self.common).then(|| policy.sections.named(&self.name)).flatten()
        });
        of_call.flatten().unwrap_or_else(|| self.newest())
    }

    /// The newest value, also within a handler: for calls that last long.
    pub fn newest(&self) -> Arc<T> {
        let now = self.policies.with(|policies| policies.sections().named(&self.name));
        now.unwrap_or_else(|| self.first.clone())
    }
}

impl<T> Clone for LiveSection<T> {
    fn clone(&self) -> Self {
        LiveSection {
            policies: self.policies.clone(),
            common: self.common.clone(),
            name: self.name.clone(),
            first: self.first.clone(),
        }
    }
}

impl<T> fmt::Debug for LiveSection<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSection").field("name", &self.name).finish_non_exhaustive()
    }
}
