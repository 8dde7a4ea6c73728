//! A store in memory whose clients are slow, sleep and fail, for simulations. All times are those of a clock that tests move.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Content, Honours, Listed, QueueStore, StoreError, marker_of};
use crate::queue::pacing::random;

/// Files that several clients share.
#[derive(Debug)]
pub(crate) struct Memory {
    files: Mutex<BTreeMap<String, Bytes>>,
    honours: Honours,
    /// One of so many results is damaged when it is written; 0 for none.
    damages: Mutex<u64>,
    damaged: Mutex<BTreeSet<String>>,
}

impl Memory {
    pub(crate) fn new(honours: Honours) -> Arc<Self> {
        Arc::new(Self { files: Mutex::default(), honours, damages: Mutex::default(), damaged: Mutex::default() })
    }

    pub(crate) fn client(self: &Arc<Self>) -> Arc<Client> {
        Arc::new(Client { memory: Arc::clone(self), asleep: watch::Sender::new(false), fails: Mutex::new(0), calls: Mutex::new(0) })
    }

    pub(crate) fn damage_one_of(&self, results: u64) {
        *self.damages.lock().expect("a lock") = results;
    }

    /// The results that were damaged.
    pub(crate) fn damaged(&self) -> BTreeSet<String> {
        self.damaged.lock().expect("a lock").clone()
    }

    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let files = self.files.lock().expect("a lock");
        files.keys().filter(|path| path.starts_with(prefix)).cloned().collect()
    }

    pub(crate) fn put(&self, path: &str, content: &[u8]) {
        self.files.lock().expect("a lock").insert(path.to_owned(), Bytes::copy_from_slice(content));
    }

    fn written(&self, path: &str, content: Bytes) -> Bytes {
        let damages = *self.damages.lock().expect("a lock");
        if damages == 0 || !path.starts_with("queue/done/") || !random().is_multiple_of(damages) {
            return content;
        }
        self.damaged.lock().expect("a lock").insert(path.to_owned());
        content.slice(..content.len() / 2)
    }
}

/// One node's way to the files.
#[derive(Debug)]
pub(crate) struct Client {
    memory: Arc<Memory>,
    asleep: watch::Sender<bool>,
    /// One of so many calls fails; 0 for none.
    fails: Mutex<u64>,
    calls: Mutex<u64>,
}

impl Client {
    /// The node sleeps: nothing that it does reaches the outside.
    pub(crate) fn sleep(&self, asleep: bool) {
        self.asleep.send_replace(asleep);
    }

    pub(crate) fn fail_one_of(&self, calls: u64) {
        *self.fails.lock().expect("a lock") = calls;
    }

    pub(crate) fn calls(&self) -> u64 {
        *self.calls.lock().expect("a lock")
    }

    /// Time passes on the way, and a node that sleeps is stuck on it.
    pub(crate) async fn way(&self) {
        tokio::time::sleep(Duration::from_micros(100 + random() % 20_000)).await;
        let _ = self.asleep.subscribe().wait_for(|asleep| !asleep).await;
    }

    /// Whether something goes wrong.
    pub(crate) fn is_unlucky(&self) -> bool {
        let fails = *self.fails.lock().expect("a lock");
        fails != 0 && random().is_multiple_of(fails)
    }

    /// A call that may fail before it is done, or when it is done and nobody learns of it.
    fn call<'a, T: Send + 'a>(
        &'a self,
        work: impl FnOnce(&Memory, &mut BTreeMap<String, Bytes>) -> T + Send + 'a,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        Box::pin(async move {
            let failed = || Err(StoreError::new(true, "a failure of the simulation"));
            self.way().await;
            *self.calls.lock().expect("a lock") += 1;
            if self.is_unlucky() {
                return failed();
            }
            let done = work(&self.memory, &mut self.memory.files.lock().expect("a lock"));
            self.way().await;
            if self.is_unlucky() { failed() } else { Ok(done) }
        })
    }
}

impl QueueStore for Client {
    fn honours(&self) -> Honours {
        self.memory.honours
    }

    fn list<'a>(&'a self, directory: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        self.call(move |_, files| {
            let below = files.iter().filter_map(|(path, content)| Some((path.strip_prefix(directory)?.strip_prefix('/')?, content)));
            let listed = below.filter(|(name, _)| !name.contains('/'));
            listed.map(|(name, content)| Listed { name: name.to_owned(), marker: marker_of(content) }).collect()
        })
    }

    fn read<'a>(&'a self, path: &'a str, bytes_max: u64) -> BoxFuture<'a, Result<Content, StoreError>> {
        self.call(move |_, files| match files.get(path) {
            None => Content::Missing,
            Some(content) if content.len() as u64 > bytes_max => Content::TooLong,
            Some(content) => Content::Bytes(content.clone()),
        })
    }

    fn create<'a>(&'a self, path: &'a str, content: Bytes) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.call(move |memory, files| {
            let is_free = !files.contains_key(path);
            if is_free {
                files.insert(path.to_owned(), memory.written(path, content));
            }
            is_free
        })
    }

    fn replace<'a>(&'a self, path: &'a str, content: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        self.call(move |_, files| drop(files.insert(path.to_owned(), content)))
    }

    fn rename<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.call(move |_, files| {
            if files.contains_key(to) {
                return false;
            }
            let Some(content) = files.remove(from) else { return false };
            files.insert(to.to_owned(), content);
            true
        })
    }

    fn delete<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.call(move |_, files| drop(files.remove(path)))
    }
}
