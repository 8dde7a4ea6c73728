//! What a store honours of conditions: tried, never assumed.
//!
//! One key is created twice, both times on condition that nothing has it; written over on condition of a tag that it does not have; removed on the
//! same condition. A store that lets any of this pass does not honour it, whatever it says.

use super::errors::bounded;
use super::{ObjectTree, Storage};
use crate::path::EntryPath;
use crate::remote::local::staging::probe_name;
use crate::storage::{Abilities, ErrorKind, StorageError};

/// A tag that no object has: stores answer with hexadecimal digits.
const WRONG_TAG: &str = "\"no such tag\"";

impl ObjectTree {
    /// Finds out, once, what the store honours; the answer is in [`Storage::abilities`] from then on.
    pub(crate) async fn probe(&self) -> Result<&Abilities, StorageError> {
        let _only_one = self.probing.lock().await;
        if self.probed.get().is_none() {
            let name = probe_name();
            let path = EntryPath::parse(&name).map_err(|error| StorageError::new(ErrorKind::InvalidName, error.to_string()))?;
            let honoured = self.try_conditions(&path).await;
            // Whatever happened, the key is not to stay.
            let removed = self.clone().remove_object(path, crate::storage::Condition::Always).await;
            let (conditional_writes, conditional_deletes) = honoured?;
            removed?;
            tracing::debug!(conditional_writes, conditional_deletes, "probed an object store");
            let _ = self.probed.set(Abilities { conditional_writes, conditional_deletes, ..self.unprobed.clone() });
        }
        Ok(self.abilities())
    }

    /// Whether writes, and whether deletes, honour conditions.
    async fn try_conditions(&self, path: &EntryPath) -> Result<(bool, bool), StorageError> {
        let key = self.key(path)?;
        let limit = self.timeouts.control;
        let create = || bounded(limit, "probe", path.as_str(), async { self.operator.write_with(&key, "probe").if_not_exists(true).await });
        let replace =
            || bounded(limit, "probe", path.as_str(), async { self.operator.write_with(&key, "other").if_match(WRONG_TAG).await });
        let delete = || bounded(limit, "probe", path.as_str(), async { self.operator.delete_with(&key).if_match(WRONG_TAG).await });
        let creates = match create().await {
            Ok(_) => is_refused(create().await.map(drop))?,
            // Some stores refuse the header itself.
            Err(error) if is_not_understood(&error) => false,
            Err(error) => return Err(error),
        };
        let writes = creates && is_refused(replace().await.map(drop))?;
        let deletes = writes && is_refused(delete().await)?;
        Ok((writes, deletes))
    }
}

/// Whether a condition that is not met was honoured.
fn is_refused(result: Result<(), StorageError>) -> Result<bool, StorageError> {
    match result {
        Ok(()) => Ok(false),
        Err(error) if error.kind == ErrorKind::ConditionFailed => Ok(true),
        Err(error) if is_not_understood(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_not_understood(error: &StorageError) -> bool {
    matches!(error.kind, ErrorKind::Unsupported | ErrorKind::Failed)
}
