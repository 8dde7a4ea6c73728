//! The proxies of this control node, by the id of their worker.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, PoisonError, RwLock};

use super::proxy::Proxy;
use crate::types::NodeId;

/// Workers that one control node knows, connected or not. One that never returns stays until it is forgotten.
const PROXIES_MAX: usize = 131_072;

/// A map of ours, not of names of actors: looked up at each call.
#[derive(Default)]
pub(super) struct Directory {
    proxies: RwLock<BTreeMap<NodeId, Arc<Proxy>>>,
}

impl Directory {
    pub(super) fn find(&self, node: &NodeId) -> Option<Arc<Proxy>> {
        self.proxies.read().unwrap_or_else(PoisonError::into_inner).get(node).cloned()
    }

    /// The proxy of a worker, made if there is none, or only one that has died. None if there are too many.
    pub(super) fn find_or_insert(&self, node: &NodeId, make: impl FnOnce() -> Arc<Proxy>) -> Option<Arc<Proxy>> {
        if let Some(proxy) = self.find(node).filter(|proxy| !proxy.has_ended()) {
            return Some(proxy);
        }
        let mut proxies = self.proxies.write().unwrap_or_else(PoisonError::into_inner);
        let full = proxies.len() >= PROXIES_MAX;
        match proxies.entry(node.clone()) {
            Entry::Occupied(entry) if !entry.get().has_ended() => Some(Arc::clone(entry.get())),
            Entry::Occupied(mut entry) => {
                entry.insert(make());
                Some(Arc::clone(entry.get()))
            }
            Entry::Vacant(_) if full => None,
            Entry::Vacant(entry) => Some(Arc::clone(entry.insert(make()))),
        }
    }

    pub(super) fn remove(&self, node: &NodeId) -> Option<Arc<Proxy>> {
        self.proxies.write().unwrap_or_else(PoisonError::into_inner).remove(node)
    }

    /// Removes a proxy, unless another one has taken its place.
    pub(super) fn remove_this(&self, proxy: &Arc<Proxy>) {
        let mut proxies = self.proxies.write().unwrap_or_else(PoisonError::into_inner);
        if proxies.get(&proxy.id).is_some_and(|found| Arc::ptr_eq(found, proxy)) {
            proxies.remove(&proxy.id);
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<Proxy>> {
        self.proxies.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
