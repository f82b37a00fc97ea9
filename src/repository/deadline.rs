//! A store that does not answer in time.

use std::future::Future;
use std::time::Duration;

use super::{ErrorKind, RepositoryError, Result};

/// What `asked` answers, or [`ErrorKind::Timeout`] after `deadline`.
pub(crate) async fn within<T>(deadline: Duration, asked: impl Future<Output = Result<T>>) -> Result<T> {
    let answered = tokio::time::timeout(deadline, asked).await;
    answered.unwrap_or_else(|elapsed| Err(RepositoryError::new(ErrorKind::Timeout, elapsed)))
}
