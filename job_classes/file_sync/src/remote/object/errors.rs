//! Errors of OpenDAL as errors of a storage, and an end to every wait.

use std::time::Duration;

use crate::storage::{ErrorKind, StorageError};

/// Characters of a service's message that an error repeats.
const MESSAGE_CHARS_MAX: usize = 300;

/// What failed, on which object; the sentence is `cannot write "a/b": …`.
pub(super) fn failed(doing: &str, name: &str, error: &opendal::Error) -> StorageError {
    let message: String = error.message().chars().take(MESSAGE_CHARS_MAX).collect();
    let why = match error.kind() {
        opendal::ErrorKind::PermissionDenied => format!("refused: {message}"),
        kind => format!("{kind}: {message}"),
    };
    StorageError::new(kind_of(error), format!("cannot {doing} {name:?}: {why}"))
}

fn kind_of(error: &opendal::Error) -> ErrorKind {
    match error.kind() {
        opendal::ErrorKind::NotFound => ErrorKind::NotFound,
        opendal::ErrorKind::ConditionNotMatch | opendal::ErrorKind::AlreadyExists => ErrorKind::ConditionFailed,
        opendal::ErrorKind::PermissionDenied => ErrorKind::Denied,
        opendal::ErrorKind::Unsupported => ErrorKind::Unsupported,
        opendal::ErrorKind::IsADirectory | opendal::ErrorKind::NotADirectory => ErrorKind::WrongKind,
        // A bucket that does not exist is a matter of configuration to OpenDAL.
        opendal::ErrorKind::ConfigInvalid if error.message().contains("NoSuchBucket") => ErrorKind::NotFound,
        opendal::ErrorKind::RateLimited | opendal::ErrorKind::Conflict => ErrorKind::Temporary,
        _ if error.is_temporary() => ErrorKind::Temporary,
        _ => ErrorKind::Failed,
    }
}

/// Waits no longer than `limit`, whatever the remote does.
pub(super) async fn bounded<T>(
    limit: Duration,
    doing: &str,
    name: &str,
    work: impl Future<Output = opendal::Result<T>>,
) -> Result<T, StorageError> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(|error| failed(doing, name, &error)),
        Err(_) => Err(timed_out(doing, name)),
    }
}

pub(super) fn timed_out(doing: &str, name: &str) -> StorageError {
    StorageError::new(ErrorKind::Temporary, format!("cannot {doing} {name:?}: the remote stopped answering"))
}
