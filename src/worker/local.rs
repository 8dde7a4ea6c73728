//! What the class `core` may ask of its worker.

use std::path::Path;

use super::shared::{DATA_BYTES_MAX, DATA_KEYS_MAX, Shared};
use super::tasks::TaskState as RowState;
use crate::cluster::{BoxFuture, NodeInfo, TaskEntry, TaskState};
use crate::error::{Error, ErrorCode, Result};
use crate::job::{Function, LocalNode};
use crate::types::{ClassName, Meta, NodeId, NodeStatus, Payload, TaskId, WantedStatus};

impl LocalNode for Shared {
    fn id(&self) -> &NodeId {
        &self.id
    }

    fn info(&self) -> NodeInfo {
        let state = self.lock();
        NodeInfo {
            id: self.id.clone(),
            status: state.tasks.status(),
            owner: state.adoption.holder().map(|holder| holder.owner.clone()),
            remote: state.current.as_ref().map(|channel| channel.link().remote().to_owned()),
            listen: self.listen.clone(),
            meta: state.meta.clone(),
            latency_ms: None,
            tasks: u32::try_from(state.tasks.len()).unwrap_or(u32::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            classes: self.enabled_classes(),
            stats: state.stats.clone(),
            incarnation: Some(self.incarnation),
            latency: None,
            clock_skew_ms: None,
            proxies: Vec::new(),
        }
    }

    fn status(&self) -> NodeStatus {
        self.lock().tasks.status()
    }

    fn set_status(&self, wanted: WantedStatus) -> Result<NodeStatus> {
        Shared::set_status(self, wanted)?;
        Ok(self.lock().tasks.status())
    }

    fn tasks(&self, class: Option<&ClassName>) -> Vec<TaskEntry> {
        let state = self.lock();
        let stopping = state.tasks.status() == NodeStatus::Stopping;
        let rows = state.tasks.iter().filter(|(name, _, _)| class.is_none_or(|class| class == *name));
        rows.map(|(name, id, row)| TaskEntry {
            class: name.clone(),
            id: id.clone(),
            started: row.started_ms,
            state: match row.state {
                RowState::Starting => TaskState::Starting,
                RowState::Running if stopping => TaskState::Stopping,
                RowState::Running => TaskState::Running,
            },
        })
        .collect()
    }

    fn stop_task(&self, class: &ClassName, id: &TaskId) -> Result<()> {
        let mut state = self.lock();
        let key = (class.clone(), id.clone());
        if let Some(kill) = state.starting.remove(&key) {
            // If it has been started at this moment, the missing entry tells that it is to end.
            let _ = kill.send(());
            return Ok(());
        }
        match state.running.get_mut(&key) {
            Some(running) => {
                running.kill();
                Ok(())
            }
            None => {
                let what = format!("class {class} of worker {} has no task {id}; see `task list`", self.id);
                Err(Error::new(ErrorCode::TaskNotFound, what))
            }
        }
    }

    fn meta(&self) -> Meta {
        self.lock().meta.clone()
    }

    fn update_meta(&self, changes: &Meta) -> Result<Meta> {
        let mut state = self.lock();
        let mut meta = state.meta.clone();
        meta.update(changes)?;
        state.meta = meta.clone();
        drop(state);
        self.publish();
        Ok(meta)
    }

    fn remove_meta(&self, names: &[String]) -> Meta {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut state = self.lock();
        state.meta.remove(&names);
        let meta = state.meta.clone();
        drop(state);
        self.publish();
        meta
    }

    fn data(&self, key: &str) -> Option<serde_json::Value> {
        self.lock().data.get(key).cloned()
    }

    fn put_data(&self, key: String, value: serde_json::Value) -> Result<()> {
        let size = |value: &serde_json::Value| value.to_string().len();
        let mut state = self.lock();
        let before = state.data.get(&key).map_or(0, |old| size(old) + key.len());
        let bytes = state.data_bytes - before + key.len() + size(&value);
        if bytes > DATA_BYTES_MAX || (before == 0 && state.data.len() >= DATA_KEYS_MAX) {
            let what = format!("the key/value store of worker {} is full ({DATA_KEYS_MAX} keys, {DATA_BYTES_MAX} bytes)", self.id);
            return Err(Error::new(ErrorCode::PayloadTooLarge, what));
        }
        state.data_bytes = bytes;
        state.data.insert(key, value);
        Ok(())
    }

    fn delete_data(&self, key: &str) {
        let mut state = self.lock();
        if let Some(old) = state.data.remove(key) {
            state.data_bytes -= key.len() + old.to_string().len();
        }
    }

    fn function(&self, name: &str) -> Option<Function> {
        self.classes.function(name)
    }

    fn functions(&self) -> Vec<String> {
        self.classes.function_names()
    }

    fn file_root(&self) -> &Path {
        &self.file_root
    }

    fn is_granted(&self, class: &ClassName) -> bool {
        self.config.grants.contains(class.as_str())
    }

    fn emit(&self, class: &ClassName, task: Option<&TaskId>, payload: Payload) -> Result<u64> {
        Shared::emit(self, class, task, payload)
    }

    fn until_fewer_events(&self, class: &ClassName, than: u64) -> BoxFuture<'_, ()> {
        let class = class.clone();
        Box::pin(self.until(move |state| {
            let marks = state.journal.marks(&class);
            marks.appended - marks.acknowledged < than
        }))
    }
}
