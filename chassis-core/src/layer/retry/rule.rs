//! What the retries of one policy are compiled to.
use std::sync::Arc;

use super::{Budget, BudgetConfig, RetryConfig};
use crate::site::Site;

/// The retries of one policy: their numbers, and the budget they share.
#[derive(Clone)]
pub struct Retries {
    /// What is in force.
    pub config: Arc<RetryConfig>,
    /// The numbers of the budget; `None` for no bound.
    pub bounds: Option<BudgetConfig>,
    /// One for all retries of a service, across versions.
    pub budget: Arc<Budget>,
    pub(crate) site: Arc<Site>,
}
