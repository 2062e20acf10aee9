//! Why a service could not start, or could not stop in order.
use chassis_core::BoxError;

/// Why a service could not start, or could not stop in order.
///
/// `Debug` prints the message and its causes for people, because a `main` that returns this error prints it so.
#[derive(thiserror::Error)]
#[non_exhaustive]
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
    /// A hook of the program failed.
    #[error("the {0} hook failed")]
    Hook(&'static str, #[source] BoxError),
    /// A required part could not be set up.
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
