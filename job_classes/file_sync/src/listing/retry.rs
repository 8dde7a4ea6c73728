//! Questions to storages that are asked again while they may be answered later.

use std::time::Duration;

use crate::storage::StorageError;

/// Pause before the second try; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Asks up to `tries` times, as long as the failure may pass.
pub(crate) async fn retried<T, F>(tries: u32, mut ask: impl FnMut() -> F) -> Result<T, StorageError>
where
    F: Future<Output = Result<T, StorageError>>,
{
    let mut pause = FIRST_PAUSE;
    for _ in 1..tries {
        match ask().await {
            Err(error) if error.kind.is_temporary() => tokio::time::sleep(pause).await,
            answer => return answer,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    ask().await
}
