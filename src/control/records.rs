//! What outlives the proxy of a worker, and its control node.
//!
//! The owner of a worker keeps a small record of it, and sends each change to the two control nodes that would own it next. So a worker that is away stays known
//! when its owner dies, `nodes` shows it as `not_connected`, and the next owner dials it. A worker that was forgotten leaves a mark in the same place, so that
//! a record which comes late does not bring it back; the worker itself does.
//!
//! The same records are in the state directory, a few seconds late: written as a whole beside the old file, and renamed. While the disk is full the old file
//! stays, and the next write is tried as if something had changed.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, BufWriter};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io};

use super::messages::{PeerRequest, Record};
use super::shared::Shared;
use crate::types::NodeId;

/// Control nodes beside the owner that keep a record.
const COPIES: usize = 2;
/// How long one of them may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Records of one control node.
const RECORDS_MAX: usize = 131_072;

/// Records that are copied at once to be written.
const PART: usize = 256;

/// Name of the file in the state directory.
const NAME: &str = "workers.records";
/// Largest file that is read.
const BYTES_MAX: u64 = 512 * 1024 * 1024;

/// The records of a control node, its own and those of others.
#[derive(Default)]
pub(super) struct Records {
    records: Mutex<BTreeMap<NodeId, Record>>,
    /// Whether the file is older than the records.
    is_stale: AtomicBool,
    /// Whether the last write failed: that is told once.
    has_failed: AtomicBool,
}

impl Records {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, worker: &NodeId) -> Option<Record> {
        self.lock().get(worker).cloned()
    }

    /// Those of workers that a test wants, but for those that were forgotten.
    pub(super) fn of(&self, wants: impl Fn(&NodeId) -> bool) -> Vec<Record> {
        self.lock().values().filter(|record| !record.forgotten && wants(&record.worker)).cloned().collect()
    }

    /// Keeps a record if it is newer than what is known; whether it is.
    fn keep(&self, record: Record) -> bool {
        let mut records = self.lock();
        let is_full = records.len() >= RECORDS_MAX;
        match records.get_mut(&record.worker) {
            Some(known) if known.version >= record.version => return false,
            Some(known) => *known = record,
            None if is_full => {
                tracing::warn!(worker = %record.worker, "too many workers are known; forget those that will not return");
                return false;
            }
            None => drop(records.insert(record.worker.clone(), record)),
        }
        self.is_stale.store(true, Ordering::Release);
        true
    }

    /// All of them, part by part: a copy of the whole would be as large as they are, and nobody may wait for a disk.
    fn parts(&self) -> impl Iterator<Item = Vec<Record>> + '_ {
        let mut last = None::<NodeId>;
        std::iter::from_fn(move || {
            let from = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let part: Vec<Record> =
                self.lock().range::<NodeId, _>((from, Bound::Unbounded)).take(PART).map(|(_, record)| record.clone()).collect();
            last = Some(part.last()?.worker.clone());
            Some(part)
        })
    }

    /// Leaves a mark that the worker was forgotten; whether it was known.
    pub(super) fn forget(&self, worker: &NodeId) -> bool {
        let mut records = self.lock();
        let Some(record) = records.get_mut(worker).filter(|record| !record.forgotten) else { return false };
        *record = Record {
            worker: worker.clone(),
            incarnation: None,
            describe: None,
            found_at: None,
            marks: Vec::new(),
            forgotten: true,
            version: record.version + 1,
        };
        self.is_stale.store(true, Ordering::Release);
        true
    }
}

/// Reads what an earlier life of this node has written. What of it cannot be read is told, and begun anew: workers that dial come back anyway.
pub(super) async fn load(shared: &Arc<Shared>) {
    let (path, keeper) = (shared.config.state_dir.join(NAME), Arc::clone(shared));
    let read = tokio::task::spawn_blocking(move || read(&path, |record| _ = keeper.records.keep(record)).map_err(|error| (path, error)));
    match read.await {
        Ok(Ok(())) => {}
        Ok(Err((path, error))) => {
            let known = shared.records.lock().len();
            tracing::warn!(path = %path.display(), known, %error, "the records of workers cannot be read to their end; the others are begun anew");
        }
        Err(error) => tracing::error!(%error, "the records of workers were not read"),
    }
    shared.records.is_stale.store(false, Ordering::Release);
}

/// Writes the records, if they have changed since.
pub(super) async fn save(shared: &Arc<Shared>) {
    save_with(shared, |path, records| write(path, records.parts())).await;
}

async fn save_with(shared: &Arc<Shared>, write: impl FnOnce(&Path, &Records) -> io::Result<()> + Send + 'static) {
    if !shared.records.is_stale.swap(false, Ordering::AcqRel) {
        return;
    }
    let path = shared.config.state_dir.join(NAME);
    let (to, writer) = (path.clone(), Arc::clone(shared));
    let written = match tokio::task::spawn_blocking(move || write(&to, &writer.records)).await {
        Ok(written) => written,
        Err(error) => {
            shared.records.is_stale.store(true, Ordering::Release);
            return tracing::error!(%error, "the records of workers were not written");
        }
    };
    let had_failed = shared.records.has_failed.swap(written.is_err(), Ordering::Relaxed);
    match written {
        Ok(()) if had_failed => tracing::info!(path = %path.display(), "the records of workers are written again"),
        Ok(()) => {}
        Err(error) => {
            shared.records.is_stale.store(true, Ordering::Release);
            // Once: the disk may be full for days.
            if !had_failed {
                let path = path.display();
                tracing::warn!(%path, %error, "the records of workers cannot be written; after a restart those that only listen are unknown here");
            }
        }
    }
}

/// Hands over one record after the other, as far as they can be read.
fn read(path: &Path, mut keep: impl FnMut(Record)) -> io::Result<()> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(facts) if facts.len() > BYTES_MAX => return Err(io::Error::other(format!("it has {} bytes", facts.len()))),
        Ok(_) => {}
    }
    let mut file = BufReader::new(fs::File::open(path)?);
    while !file.fill_buf()?.is_empty() {
        keep(rmp_serde::from_read(&mut file).map_err(io::Error::other)?);
    }
    Ok(())
}

/// Writes them beside the old file, and puts them in its place.
fn write(path: &Path, parts: impl Iterator<Item = Vec<Record>>) -> io::Result<()> {
    let new = path.with_extension("new");
    write_to(&new, parts).and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        // On a full disk every byte counts; it may not be there.
        let _ = fs::remove_file(&new);
    })
}

/// One record after the other.
fn write_to(path: &Path, parts: impl Iterator<Item = Vec<Record>>) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // Addresses may have passwords.
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut file = BufWriter::new(file);
    for record in parts.flatten() {
        rmp_serde::encode::write_named(&mut file, &record).map_err(io::Error::other)?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Who keeps the record of a worker beside its owner: those that would own it next.
pub(super) fn copies(shared: &Shared, worker: &NodeId) -> Vec<NodeId> {
    let view = shared.view();
    // A control node hosts its own worker, whoever the ring names: that one comes first then.
    let next = view.ring.successors(view.ring.partition(worker.as_str()), COPIES);
    view.ring.owner(worker.as_str()).into_iter().chain(next).filter(|node| **node != view.me).take(COPIES).cloned().collect()
}

/// The owner knows something new of a worker: it is kept here, and by these others. The version of `record` is set here.
pub(super) fn share(shared: &Arc<Shared>, copies: &[NodeId], mut record: Record) {
    record.version = shared.records.find(&record.worker).map_or(0, |known| known.version) + 1;
    if !shared.records.keep(record.clone()) {
        return;
    }
    for node in copies {
        send(shared, node.clone(), record.clone());
    }
}

/// Tells one control node.
pub(super) fn send(shared: &Arc<Shared>, to: NodeId, record: Record) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let request = PeerRequest::Record(Box::new(record));
        if let Err(error) = shared.peers.ask(&shared.view(), &to, &request, PATIENCE).await {
            tracing::debug!(%to, %error, "a record was not taken");
        }
    });
}

/// Another control node knows something of a worker.
pub(super) fn learn(shared: &Arc<Shared>, record: Record) {
    let worker = record.worker.clone();
    if shared.records.keep(record) && shared.owns(&worker) && shared.directory.find(&worker).is_none() {
        super::placement::wanted(shared, &worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: u64) -> Record {
        Record {
            worker: NodeId::new("w1").expect("valid"),
            incarnation: None,
            describe: None,
            found_at: None,
            marks: Vec::new(),
            forgotten: false,
            version,
        }
    }

    #[test]
    fn the_newer_record_stays_and_a_late_one_brings_nobody_back() {
        let (records, worker) = (Records::default(), record(1).worker);
        assert!(records.keep(record(2)));
        assert!(!records.keep(record(1)) && !records.keep(record(2)));
        assert!(records.forget(&worker) && !records.forget(&worker));
        assert!(!records.keep(record(3)), "under way when it was forgotten");
        assert!(records.of(|_| true).is_empty());
        assert!(records.keep(record(4)), "the worker has come again");
        assert_eq!(records.of(|_| true), [record(4)]);
    }

    /// The records of a file, as far as they can be read, and how that ended.
    fn read_all(path: &Path) -> (Vec<Record>, io::Result<()>) {
        let mut found = Vec::new();
        let end = read(path, |record| found.push(record));
        (found, end)
    }

    #[test]
    fn records_return_from_their_file_which_nobody_else_reads() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(NAME);
        let (none, end) = read_all(&path);
        assert!(none.is_empty() && end.is_ok(), "no file is no record");
        let many: Vec<Record> =
            (0..PART + 2).map(|number| Record { worker: NodeId::new(format!("w{number:04}")).expect("valid"), ..record(1) }).collect();
        let records = Records::default();
        for record in &many {
            assert!(records.keep(record.clone()));
        }
        write(&path, records.parts()).expect("written");
        let (found, end) = read_all(&path);
        assert!(found == many && end.is_ok());
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn of_a_file_that_is_damaged_what_comes_before_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(NAME);
        let two = [record(1), Record { worker: NodeId::new("w2").expect("valid"), ..record(1) }];
        write(&path, [two.to_vec()].into_iter()).expect("written");
        let whole = fs::read(&path).expect("read");
        fs::write(&path, &whole[..whole.len() - 1]).expect("written");
        let (found, end) = read_all(&path);
        assert!(found == two[..1] && end.is_err());
        fs::write(&path, b"nonsense").expect("written");
        let (found, end) = read_all(&path);
        assert!(found.is_empty() && end.is_err());
    }

    #[tokio::test]
    async fn a_write_that_panics_is_tried_again_with_the_next() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = crate::config::Config { state_dir: dir.path().to_owned(), ..crate::config::Config::control() };
        let shared = crate::control::proxy::tests::control_with(config);
        assert!(shared.records.keep(record(1)));
        save_with(&shared, |_, _| panic!("no disk is like this")).await;
        assert!(!dir.path().join(NAME).exists());
        // Nothing has changed since.
        save(&shared).await;
        assert_eq!(read_all(&dir.path().join(NAME)).0, [record(1)]);
        save_with(&shared, |_, _| panic!("what is written is not written again")).await;
        assert!(!shared.records.is_stale.load(Ordering::Acquire));
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(NAME);
        write(&path, [vec![record(1)]].into_iter()).expect("written");
        let old = fs::read(&path).expect("read");
        // A directory in its place, so that the last step fails.
        let taken = dir.path().join("taken");
        fs::create_dir_all(taken.join("inside")).expect("made");
        assert!(write(&taken, [vec![record(2)]].into_iter()).is_err());
        assert!(!taken.with_extension("new").exists());
        assert_eq!(fs::read(&path).expect("read"), old);
    }
}
