//! The identity of a backend's data.

use uuid::Uuid;

use super::Result;
use crate::domain::Entropy;

/// Identifies one installation among those that share a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendIdentity(pub Uuid);

impl BackendIdentity {
    /// Draws the identity of a new installation.
    pub(super) fn draw(entropy: &dyn Entropy) -> Result<Self> {
        let mut random = [0; 16];
        entropy.fill(&mut random)?;
        Ok(Self(uuid::Builder::from_random_bytes(random).into_uuid()))
    }
}
