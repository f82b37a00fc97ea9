//! How calls are served: credentials, ids, limits, health, faults of the store, and the end.

mod credentials;
mod drain;
mod faults;
pub(crate) mod faulty;
mod floods;
mod limits;
mod observability;
mod ops;
mod streams;
mod tls;

use std::time::Duration;

/// Waits for something.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let patience = tokio::time::timeout(Duration::from_mins(1), async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    patience.await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}
