//! Randomness, as a parameter.

use std::fmt::Debug;

/// A source of unpredictable random bytes.
pub trait Entropy: Send + Sync + Debug {
    /// Fills `bytes` with random bytes.
    ///
    /// # Errors
    /// The source failed. The content of `bytes` must not be used then.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError>;
}

/// The operating system's random number generator failed.
#[derive(Debug, thiserror::Error)]
#[error("the operating system returned no random bytes")]
pub struct EntropyError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// The operating system's generator (`getrandom(2)` on Linux).
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        #[expect(clippy::disallowed_methods, reason = "the one place that draws random bytes")]
        getrandom::fill(bytes).map_err(|error| EntropyError(error.to_string().into()))
    }
}
