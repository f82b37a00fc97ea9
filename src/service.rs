//! The work of the two services, independent of any protocol: rules, and orchestration between the domain and
//! the repository.

mod caller;
mod caller_slots;
mod change_watcher;
mod error;
mod event_pruner;
mod import;
mod key_pruner;
mod key_request;
mod key_store;
mod usage;
mod validator;

pub use caller::{Actor, Caller, Permission};
pub(crate) use caller_slots::{CallerSlot, CallerSlots};
pub use change_watcher::{ChangeWatcher, News};
pub use error::{Precondition, ServiceError};
pub use event_pruner::EventPruner;
pub use import::ImportedKey;
pub use key_pruner::KeyPruner;
pub use key_request::{
    ClientRequestId, Expiry, IssuedKey, KeyRecord, KeyUpdate, ListRequest, ListedPage, ListedRecord, NewKey,
    RotateRequest, RotatedKey,
};
pub use key_store::KeyStoreService;
pub use usage::UsageRecorder;
pub use validator::{Freshness, Lookups, Validation, ValidatorService};
