//! Named pickers for `balance`.
use std::{collections::BTreeMap, fmt, sync::Arc};

use super::PickerFactory;

/// Pickers by name, from the settings or from the program.
#[derive(Clone, Default)]
pub struct Pickers(pub BTreeMap<String, Arc<dyn PickerFactory>>);

// === impl Pickers ===

/// Equal if the pickers are identical, not only of one kind.
impl PartialEq for Pickers {
    fn eq(&self, other: &Self) -> bool {
        let place = |picker: &Arc<dyn PickerFactory>| Arc::as_ptr(picker).cast::<()>();
        self.0.len() == other.0.len()
            && self.0.iter().all(|(name, picker)| other.0.get(name).map(place) == Some(place(picker)))
    }
}

impl fmt::Debug for Pickers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
