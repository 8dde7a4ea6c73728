//! The proxies of this control node, by the id of their worker.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::proxy::Proxy;
use crate::types::NodeId;

/// Workers that one control node knows, connected or not. One that never returns stays until it is forgotten.
const PROXIES_MAX: usize = 131_072;

/// A map of ours, not of names of actors: looked up at each call.
#[derive(Default)]
pub(super) struct Directory {
    proxies: RwLock<Proxies>,
}

#[derive(Default)]
struct Proxies {
    known: BTreeMap<NodeId, Arc<Proxy>>,
    /// The control node has ended: one that was made now would never be told to end.
    is_closed: bool,
}

impl Directory {
    fn read(&self) -> RwLockReadGuard<'_, Proxies> {
        self.proxies.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Proxies> {
        self.proxies.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, node: &NodeId) -> Option<Arc<Proxy>> {
        self.read().known.get(node).cloned()
    }

    /// The proxy of a worker, made if there is none, or only one that has died. None if there are too many, or the control node has ended.
    pub(super) fn find_or_insert(&self, node: &NodeId, make: impl FnOnce() -> Arc<Proxy>) -> Option<Arc<Proxy>> {
        {
            let proxies = self.read();
            if let Some(proxy) = proxies.known.get(node).filter(|proxy| !proxies.is_closed && !proxy.has_ended()) {
                return Some(Arc::clone(proxy));
            }
        }
        let mut proxies = self.write();
        if proxies.is_closed {
            return None;
        }
        let full = proxies.known.len() >= PROXIES_MAX;
        match proxies.known.entry(node.clone()) {
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
        self.write().known.remove(node)
    }

    /// Removes a proxy, unless another one has taken its place.
    pub(super) fn remove_this(&self, proxy: &Arc<Proxy>) {
        let mut proxies = self.write();
        if proxies.known.get(&proxy.id).is_some_and(|found| Arc::ptr_eq(found, proxy)) {
            proxies.known.remove(&proxy.id);
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<Proxy>> {
        self.read().known.values().cloned().collect()
    }

    /// From now on no proxy is made; returns those that there are.
    pub(super) fn close(&self) -> Vec<Arc<Proxy>> {
        let mut proxies = self.write();
        proxies.is_closed = true;
        proxies.known.values().cloned().collect()
    }
}
