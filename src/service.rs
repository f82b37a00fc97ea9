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

pub(crate) use caller::{Actor, Caller, Permission};
pub(crate) use caller_slots::{CallerSlot, CallerSlots};
pub(crate) use change_watcher::{ChangeWatcher, News};
pub(crate) use error::{Precondition, ServiceError};
pub(crate) use event_pruner::EventPruner;
pub(crate) use import::ImportedKey;
pub(crate) use key_pruner::KeyPruner;
pub(crate) use key_request::{
    ClientRequestId, Expiry, IssuedKey, KeyRecord, KeyUpdate, ListRequest, ListedPage, ListedRecord, NewKey,
    RotateRequest, RotatedKey,
};
pub(crate) use key_store::{KeyStoreService, check_future};
pub(crate) use usage::UsageRecorder;
pub(crate) use validator::{Freshness, Lookups, Validation, ValidatorService};
