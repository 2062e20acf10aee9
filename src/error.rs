//! Why a service could not be started, or not be stopped in order.
use chassis_core::BoxError;

/// Why a service could not be started, or not be stopped in order.
///
/// What `Debug` prints is for people: a `main` that returns it shows the message and its causes.
#[derive(thiserror::Error)]
pub enum StartError {
    /// The settings can't be used; the text shows each line that is wrong.
    #[error("the settings can't be used\n{0}")]
    Settings(String),
    /// A listener could not be bound.
    #[error("`listen.{name}`: can't listen at {address}")]
    Listen {
        /// Its name in the settings.
        name: String,
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// A hook of the user's failed.
    #[error("the {0} hook failed")]
    Hook(&'static str, #[source] BoxError),
    /// Something else that is needed could not be set up.
    #[error("{0}")]
    Setup(String, #[source] BoxError),
}

impl std::fmt::Debug for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")?;
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
