//! The rules of the domain: what a key is and when it may be used. Time and randomness are parameters.
//!
//! All other modules depend on this one. It does not depend on gRPC, storage or configuration.

mod api_key;
mod change;
mod change_id;
mod clock;
mod entropy;
mod filter;
mod invalid_field;
mod key_format;
mod key_hash;
mod key_id;
mod key_prefix;
mod metadata;
mod moment;
mod request_digest;
mod revision;
mod rotation;
mod scope;
mod secret_key;
mod text;
mod timestamp;
mod verdict;
mod visible_text;

#[cfg(test)]
pub(crate) use api_key::tests::key as sample_key;
pub use api_key::{ApiKey, ImmutableField, KeyState, Revocation};
pub use change::{ChangeContext, ChangeKind, ChangedField, KeyEvent};
pub use change_id::ChangeId;
pub use clock::{Clock, ManualClock, SystemClock};
pub use entropy::{Entropy, EntropyError, SystemEntropy};
pub use filter::{KeyFilter, StateSet};
pub use invalid_field::{InvalidField, InvalidFields, Violations};
pub use key_format::{ForeignPattern, KeyFormat};
pub use key_hash::KeyHash;
pub use key_id::KeyId;
pub use key_prefix::KeyPrefix;
pub use metadata::Metadata;
pub use moment::{BootClock, ManualStopwatch, Moment, Stopwatch};
pub use request_digest::RequestDigest;
pub use revision::Revision;
pub use rotation::{KeyIdentity, MAX_OVERLAP, Rotation, RotationRefused};
pub use scope::{RESERVED_SCOPE_PREFIX, Scope, ScopeMatch, ScopeSet};
pub use secret_key::SecretKey;
pub use text::{BoundedText, Description, KeyName, OwnerId, RevokeReason};
pub use timestamp::Timestamp;
pub use verdict::{Denial, Verdict, judge};
