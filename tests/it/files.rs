//! Files through the cluster: whole, or resumed, or not at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nkcluster::cluster::Cluster;
use nkcluster::job::Classes;
use nkcluster::transfer::{Checksum, FileCalls as _, Progress, RelPath, Sent, TransferId};
use nkcluster::transport::memory::Flow;
use nkcluster::types::{NodeStatus, Transport};
use nkcluster::{Error, ErrorCode};

use crate::harness::{MemoryCluster, SocketCluster, TIMEOUT, connect_options, kind, node_id, soon};

const MIB: usize = 1 << 20;

fn content(bytes: usize) -> Vec<u8> {
    (0_u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).take(bytes).collect()
}

fn rel(path: &str) -> RelPath {
    RelPath::parse(path).expect("a path")
}

/// A file of this machine.
fn local(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, content).expect("written");
    path
}

/// What stands in a directory.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("readable").file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().expect("text")).collect();
    names.sort();
    names
}

async fn send(cluster: &Cluster, local: &Path, remote: &str) -> nkcluster::Result<Sent> {
    cluster.send_file(&node_id("w1"), local, &rel(remote), TransferId::random(), TIMEOUT, |_| ()).await
}

async fn fetch(cluster: &Cluster, remote: &str, local: &Path) -> nkcluster::Result<Sent> {
    cluster.fetch_file(&node_id("w1"), &rel(remote), local, TransferId::random(), TIMEOUT, |_| ()).await
}

fn failed<T: std::fmt::Debug>(result: nkcluster::Result<T>) -> Error {
    result.expect_err("failed")
}

/// There, back, and what is on the disks.
async fn there_and_back(cluster: &Cluster, dir: &Path, root: &Path, way: &str) {
    for bytes in [0, 1, 500, 64 * 1024, 2 * MIB + 3] {
        let content = content(bytes);
        let remote = format!("{way}/made/{bytes}");
        let file = local(dir, "original", &content);
        let last = std::sync::Mutex::new(None);
        let progress = |progress: Progress| *last.lock().expect("not poisoned") = Some(progress);
        let sent = cluster.send_file(&node_id("w1"), &file, &rel(&remote), TransferId::random(), TIMEOUT, progress).await;
        let expected = Sent { bytes: bytes as u64, xxh3: Checksum::of(&content), resumed_from: 0 };
        assert_eq!(sent.expect("sent"), expected, "{remote}");
        let total = bytes as u64;
        assert_eq!(last.into_inner().expect("not poisoned"), Some(Progress { offset: total, total }));
        assert!(fs::read(root.join(&remote)).expect("the copy is there") == content, "{remote} differs");
        let back = dir.join("back");
        assert_eq!(fetch(cluster, &remote, &back).await.expect("fetched"), expected, "{remote}");
        assert!(fs::read(&back).expect("it is back") == content, "{remote} came back different");
    }
    assert_eq!(names(&root.join(way).join("made")).len(), 5, "nothing but the files");
}

#[tokio::test]
async fn files_go_there_and_back_in_process_and_over_every_transport() {
    let c = SocketCluster::start(Classes::new()).await;
    let _worker = c.worker("w1", Transport::Tls, Classes::new()).await;
    let (dir, root) = (c.dir.path(), c.dir.path().join("w1/files"));
    there_and_back(&c.cluster, dir, &root, "in-process").await;
    for transport in [Transport::Tcp, Transport::Tls, Transport::Quic] {
        let admin = Cluster::connect(connect_options(vec![c.at(transport)])).await.expect("connects");
        there_and_back(&admin, dir, &root, transport.name()).await;
    }
}

#[tokio::test]
async fn no_path_leads_out_of_the_root() {
    let c = MemoryCluster::start(Classes::new()).await;
    let _worker = c.worker("w1", Classes::new()).await;
    let (root, outside) = (c.dir.path().join("w1/files"), c.dir.path().join("outside"));
    let file = local(c.dir.path(), "file", b"content");
    send(&c.cluster, &file, "inside").await.expect("sent");
    fs::create_dir(&outside).expect("made");
    fs::write(outside.join("secret"), b"secret").expect("written");
    std::os::unix::fs::symlink(&outside, root.join("link")).expect("linked");
    std::os::unix::fs::symlink(outside.join("secret"), root.join("alias")).expect("linked");
    for path in ["../outside/new", "/etc/passwd", "a/../../b", ""] {
        assert_eq!(failed(RelPath::parse(path)).code(), &ErrorCode::InvalidPath, "{path}");
    }
    let error = failed(send(&c.cluster, &file, "link/new").await);
    assert_eq!(error.code(), &ErrorCode::InvalidPath, "{error}");
    for path in ["link/secret", "alias"] {
        let error = failed(fetch(&c.cluster, path, &c.dir.path().join("stolen")).await);
        assert_eq!(error.code(), &ErrorCode::InvalidPath, "{error}");
    }
    // What would be written through a link does not arrive at its target.
    let _ = send(&c.cluster, &file, "alias").await;
    assert_eq!(fs::read(outside.join("secret")).expect("there"), b"secret");
    assert_eq!(names(&outside), ["secret"]);
    assert!(!c.dir.path().join("stolen").exists());
}

#[tokio::test]
async fn what_is_no_file_is_refused_by_name() {
    let c = MemoryCluster::start(Classes::new()).await;
    let _worker = c.worker("w1", Classes::new()).await;
    let back = c.dir.path().join("back");
    let file = local(c.dir.path(), "file", b"content");
    send(&c.cluster, &file, "directory/file").await.expect("sent");
    assert_eq!(kind(&failed(send(&c.cluster, &c.dir.path().join("missing"), "copy").await)), ("invalid_file", false));
    assert_eq!(kind(&failed(send(&c.cluster, c.dir.path(), "copy").await)), ("invalid_file", false));
    assert_eq!(failed(send(&c.cluster, &file, "directory").await).code(), &ErrorCode::InvalidFile);
    assert_eq!(failed(fetch(&c.cluster, "missing", &back).await).code(), &ErrorCode::InvalidFile);
    assert_eq!(failed(fetch(&c.cluster, "directory", &back).await).code(), &ErrorCode::InvalidFile);
    assert!(!back.exists());
    let nobody = c.cluster.send_file(&node_id("w9"), &file, &rel("copy"), TransferId::random(), TIMEOUT, |_| ()).await;
    assert_eq!(kind(&failed(nobody)), ("not_found", false));
}

#[tokio::test]
async fn a_transfer_that_is_cut_is_resumed_and_never_half_there() {
    // Pings that are far apart: on a busy machine a peer may be silent for a moment, and only the cuts are to end links here.
    let slow = |config: &mut nkcluster::config::Config| config.ping_time = Duration::from_secs(60);
    let c = MemoryCluster::start_with(Classes::new(), slow).await;
    let _worker = c.worker_with("w1", Classes::new(), slow).await;
    let admin = c.admin().await;
    let root = c.dir.path().join("w1/files");
    let (old, new) = (content(100), content(8 * MIB));
    let file = local(c.dir.path(), "file", &new);
    // Which handle, and which of the links on the way is cut.
    for (way, cluster, ends) in [("own", &c.cluster, ("w1", "c1")), ("admin", &admin, ("w1", "c1")), ("hop", &admin, ("admin", "c1"))] {
        let remote = format!("{way}/copy");
        let copy = root.join(&remote);
        send(cluster, &local(c.dir.path(), "old", &old), &remote).await.expect("sent");
        let (id, was_cut) = (TransferId::random(), AtomicBool::new(false));
        let cut = |progress: Progress| {
            assert!(fs::read(&copy).expect("the old one is there") == old, "the final name has half a file");
            if progress.offset > 4 * MIB as u64 && !was_cut.swap(true, Ordering::SeqCst) {
                assert_eq!(c.net.cut(ends.0, ends.1), 1);
            }
        };
        let (w1, path) = (node_id("w1"), rel(&remote));
        let sending = cluster.send_file(&w1, &file, &path, id, TIMEOUT, cut);
        let error = failed(soon("the transfer that is cut", sending).await);
        assert_eq!(error.code(), &ErrorCode::ConnectionFailed, "{error}");
        assert!(fs::read(&copy).expect("the old one is there") == old);
        c.wait_status("w1", NodeStatus::Ready).await;
        let resumed = cluster.send_file(&w1, &file, &path, id, TIMEOUT, |_| ()).await.expect("sent");
        assert!(resumed.resumed_from >= MIB as u64, "{way}: {resumed:?}");
        assert!(fs::read(&copy).expect("there") == new, "the copy differs");
        assert_eq!(names(&root.join(way)), ["copy"], "the temporary is gone");

        // And back.
        let back = c.dir.path().join(way).join("back");
        fs::create_dir(c.dir.path().join(way)).expect("made");
        let (id, was_cut) = (TransferId::random(), AtomicBool::new(false));
        let cut = |progress: Progress| {
            assert!(!back.exists(), "the final name has half a file");
            if progress.offset > 4 * MIB as u64 && !was_cut.swap(true, Ordering::SeqCst) {
                assert_eq!(c.net.cut(ends.0, ends.1), 1);
            }
        };
        let fetching = cluster.fetch_file(&w1, &path, &back, id, TIMEOUT, cut);
        let error = failed(soon("the transfer that is cut", fetching).await);
        assert_eq!(error.code(), &ErrorCode::ConnectionFailed, "{error}");
        assert!(!back.exists());
        c.wait_status("w1", NodeStatus::Ready).await;
        let resumed = cluster.fetch_file(&w1, &path, &back, id, TIMEOUT, |_| ()).await.expect("fetched");
        assert!(resumed.resumed_from >= 4 * MIB as u64, "{way}: {resumed:?}");
        assert!(fs::read(&back).expect("there") == new, "the copy differs");
        assert_eq!(names(&c.dir.path().join(way)), ["back"], "the temporary is gone");
    }
}

#[tokio::test]
async fn a_worker_that_dies_meanwhile_ends_its_transfers() {
    let c = MemoryCluster::start(Classes::new()).await;
    let worker = c.worker("w1", Classes::new()).await;
    let file = local(c.dir.path(), "file", &content(8 * MIB));
    let admin = c.admin().await;
    let (at_own, at_admin) = (TransferId::random(), TransferId::random());
    let dead = AtomicBool::new(false);
    // Dead without a word: its link stays open, and nothing comes.
    let die = |progress: Progress| {
        if progress.offset > MIB as u64 && !dead.swap(true, Ordering::SeqCst) {
            c.net.set_flow("w1", "c1", Flow::Frozen);
            c.net.set_flow("c1", "w1", Flow::Frozen);
        }
    };
    let (w1, own_copy, admin_copy) = (node_id("w1"), rel("own"), rel("admin"));
    let both = async {
        tokio::join!(
            c.cluster.send_file(&w1, &file, &own_copy, at_own, TIMEOUT, die),
            admin.send_file(&w1, &file, &admin_copy, at_admin, TIMEOUT, die),
        )
    };
    let (own, by_admin) = soon("both transfers", both).await;
    // The one that brought the death was under way; the other may have come too late to begin.
    for error in [failed(own), failed(by_admin)] {
        assert!(matches!(error.code(), ErrorCode::ConnectionFailed | ErrorCode::NotConnected), "{error:?}");
    }
    assert_eq!(kind(&failed(send(&c.cluster, &file, "another").await)), ("not_connected", false));
    drop(worker);
    let root = c.dir.path().join("w1/files");
    assert!(names(&root).iter().all(|name| name.starts_with(".nkcluster-partial-")), "{:?}", names(&root));
}

#[tokio::test]
async fn a_transfer_that_does_not_move_ends_after_its_silence() {
    // Pings that are far apart: nothing else would notice.
    let slow = |config: &mut nkcluster::config::Config| config.ping_time = Duration::from_secs(60);
    let c = MemoryCluster::start_with(Classes::new(), slow).await;
    let _worker = c.worker_with("w1", Classes::new(), slow).await;
    let file = local(c.dir.path(), "file", &content(8 * MIB));
    let stalled = AtomicBool::new(false);
    let stall = |progress: Progress| {
        if progress.offset > MIB as u64 && !stalled.swap(true, Ordering::SeqCst) {
            c.net.set_flow("w1", "c1", Flow::Frozen);
        }
    };
    let silence = Duration::from_millis(300);
    let id = TransferId::random();
    let (w1, copy) = (node_id("w1"), rel("copy"));
    let error = failed(soon("the transfer", c.cluster.send_file(&w1, &file, &copy, id, silence, stall)).await);
    assert_eq!(kind(&error), ("timeout", true));
    assert!(!c.dir.path().join("w1/files/copy").exists());
    c.net.set_flow("w1", "c1", Flow::Open);
    let resumed = c.cluster.send_file(&w1, &file, &copy, id, TIMEOUT, |_| ()).await.expect("sent");
    assert!(resumed.resumed_from > 0);
    assert!(fs::read(c.dir.path().join("w1/files/copy")).expect("there") == content(8 * MIB));
}
