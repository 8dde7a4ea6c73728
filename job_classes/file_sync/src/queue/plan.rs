//! Operations become batches.

use serde_json::{Map, Value};

use crate::operation::Operation;
use crate::queue::batch::{Batch, BatchNote};

/// Collects operations until they are a batch: enough files, or enough bytes.
#[derive(Debug)]
pub(crate) struct Plan {
    files: usize,
    bytes: u64,
    config: Map<String, Value>,
    filter: Map<String, Value>,
    inputs: Vec<Operation>,
    size: u64,
}

impl Plan {
    pub(crate) fn new(files: usize, bytes: u64, config: Map<String, Value>, filter: Map<String, Value>) -> Self {
        Self { files: files.max(1), bytes, config, filter, inputs: Vec::new(), size: 0 }
    }

    /// Adds an operation; returns the batch that is full with it.
    pub(crate) fn add(&mut self, operation: Operation) -> Option<Batch> {
        self.size = self.size.saturating_add(operation.size());
        self.inputs.push(operation);
        (self.inputs.len() >= self.files || self.size >= self.bytes).then(|| self.batch())
    }

    /// The rest, if there is any.
    pub(crate) fn flush(&mut self) -> Option<Batch> {
        (!self.inputs.is_empty()).then(|| self.batch())
    }

    /// Operations that are in no batch yet.
    pub(crate) fn waiting(&self) -> usize {
        self.inputs.len()
    }

    fn batch(&mut self) -> Batch {
        self.size = 0;
        let inputs = std::mem::take(&mut self.inputs);
        Batch { config: self.config.clone(), filter: self.filter.clone(), inputs, note: BatchNote::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Planned;

    fn copy(size: u64) -> Operation {
        let planned = Some(Planned { size, tag: None, destination: None });
        let (src_fs, src_remote) = ("/a".to_owned(), "x".to_owned());
        Operation::CopyFile { dst_fs: src_fs.clone(), dst_remote: src_remote.clone(), src_fs, src_remote, planned }
    }

    #[test]
    fn a_batch_is_full_at_so_many_files_or_bytes_and_the_rest_is_flushed() {
        let mut plan = Plan::new(3, 100, Map::new(), Map::new());
        let full: Vec<_> = [1, 1, 1, 99, 1, 500, 7].map(|size| plan.add(copy(size)).map(|batch| batch.inputs.len())).into();
        assert_eq!(full, [None, None, Some(3), None, Some(2), Some(1), None]);
        assert_eq!((plan.waiting(), plan.flush().map(|batch| batch.size())), (1, Some(7)));
        assert!(plan.flush().is_none());
    }
}
