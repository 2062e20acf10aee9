//! `chassis-bench memory`.

/// Runs it.
pub fn run(mut args: lexopt::Parser) -> crate::Result {
    match args.next()? {
        Some(other) => Err(other.unexpected().into()),
        None => Err("nothing to do".into()),
    }
}
