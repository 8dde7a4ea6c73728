//! The proxies of this control node, by the id of their worker.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, PoisonError, RwLock};

use super::proxy::Proxy;
use crate::types::NodeId;

/// A map of ours, not of names of actors: looked up at each call.
#[derive(Default)]
pub(super) struct Directory {
    proxies: RwLock<BTreeMap<NodeId, Arc<Proxy>>>,
}

impl Directory {
    pub(super) fn find(&self, node: &NodeId) -> Option<Arc<Proxy>> {
        self.proxies.read().unwrap_or_else(PoisonError::into_inner).get(node).cloned()
    }

    /// The proxy of a worker, made if there is none.
    pub(super) fn find_or_insert(&self, node: &NodeId, make: impl FnOnce() -> Arc<Proxy>) -> Arc<Proxy> {
        if let Some(proxy) = self.find(node) {
            return proxy;
        }
        match self.proxies.write().unwrap_or_else(PoisonError::into_inner).entry(node.clone()) {
            Entry::Occupied(entry) => Arc::clone(entry.get()),
            Entry::Vacant(entry) => Arc::clone(entry.insert(make())),
        }
    }

    pub(super) fn remove(&self, node: &NodeId) -> Option<Arc<Proxy>> {
        self.proxies.write().unwrap_or_else(PoisonError::into_inner).remove(node)
    }

    pub(super) fn all(&self) -> Vec<Arc<Proxy>> {
        self.proxies.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
