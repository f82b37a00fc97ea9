//! Deadlines for calls of a backend.

use std::future::Future;
use std::time::Duration;

use super::{ErrorKind, RepositoryError, Result};

/// Returns the outcome of `asked`, or [`ErrorKind::Timeout`] if it is not complete after `deadline`. `asked`
/// is dropped then.
pub(crate) async fn within<T>(deadline: Duration, asked: impl Future<Output = Result<T>>) -> Result<T> {
    let answered = tokio::time::timeout(deadline, asked).await;
    answered.unwrap_or_else(|elapsed| Err(RepositoryError::new(ErrorKind::Timeout, elapsed)))
}
