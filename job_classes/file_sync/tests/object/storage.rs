use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream::StreamExt;
use nkcluster_file_sync::{
    Condition, Entry, EntryKind, EntryPath, ErrorKind, FenceStrength, Remote, RemoteConfig, Storage, StorageError, WriteOptions, strength,
};

use crate::server::Server;

fn open(text: &str) -> Remote {
    Remote::open(text, &RemoteConfig::default()).expect("opened")
}

fn path(text: &str) -> EntryPath {
    EntryPath::parse(text).expect("a path")
}

fn options(condition: Condition) -> WriteOptions {
    WriteOptions { condition, modified: None, mode: None, size: None }
}

async fn write(storage: &Arc<dyn Storage>, name: &str, content: &'static [u8], options: WriteOptions) -> Result<Entry, StorageError> {
    let mut writer = storage.write(&path(name), options).await?;
    writer.write(Bytes::from_static(content)).await?;
    writer.finish().await
}

async fn read(storage: &Arc<dyn Storage>, name: &str, range: std::ops::Range<u64>) -> Vec<u8> {
    let content = storage.read(&path(name), range).await.expect("opened");
    content.map(|bytes| bytes.expect("read")).collect::<Vec<_>>().await.concat()
}

#[tokio::test]
async fn an_object_is_written_told_listed_read_copied_and_removed() {
    let server = Server::start().await;
    let remote = open(&server.remote("some/prefix"));
    let storage = remote.storage();
    let time = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    let written =
        write(storage, "a/f", b"content", WriteOptions { modified: Some(time), ..options(Condition::Always) }).await.expect("written");
    write(storage, "a/g/h", b"", options(Condition::Always)).await.expect("written");
    write(storage, "a-b", b"x", options(Condition::Always)).await.expect("written");

    let told = storage.stat(&path("a/f")).await.expect("looked").expect("there");
    assert_eq!((told.size, told.modified, &told.kind), (7, Some(time), &EntryKind::File));
    assert_eq!(told.tag, written.tag);
    assert_eq!(storage.stat(&path("a/x")).await.expect("looked"), None);

    let list = |directory: &str| {
        storage.list(&EntryPath::parse(directory).expect("a path")).map(|entry| entry.expect("listed")).collect::<Vec<_>>()
    };
    let mut entries = list("").await;
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let names: Vec<_> = entries.iter().map(|entry| (entry.path.as_str(), entry.kind == EntryKind::Directory)).collect();
    assert_eq!(names, [("a", true), ("a-b", false)]);
    let mut entries = list("a").await;
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let names: Vec<_> = entries.iter().map(|entry| (entry.path.as_str(), entry.size, entry.modified.is_some())).collect();
    assert_eq!(names, [("a/f", 7, false), ("a/g", 0, false)]);
    // This server tells no tags in a listing; others do.
    assert!(entries[0].tag.is_none() || entries[0].tag == written.tag);
    assert!(list("nothing").await.is_empty());

    assert_eq!(read(storage, "a/f", 0..7).await, b"content");
    assert_eq!(read(storage, "a/f", 2..5).await, b"nte");
    assert!(read(storage, "a/f", 3..3).await.is_empty());

    let copied = storage.copy(&path("a/f"), &path("b/f"), options(Condition::Always)).await.expect("copied");
    assert_eq!((copied.size, copied.modified), (7, Some(time)));
    storage.remove(&path("a/f"), Condition::Always).await.expect("removed");
    assert_eq!(storage.stat(&path("a/f")).await.expect("looked"), None);
    assert_eq!(
        storage.remove(&path("b/f"), Condition::Tag("\"other\"".into())).await.expect_err("another").kind,
        ErrorKind::ConditionFailed
    );
    assert!(server.on_disk("some/prefix/b/f").exists());
    let refused = open(&server.remote("")).storage().stat(&path(" white")).await.expect_err("refused");
    assert_eq!(refused.kind, ErrorKind::InvalidName);
}

#[tokio::test]
async fn what_a_store_honours_is_found_out() {
    let server = Server::start().await;
    let remote = open(&server.remote(""));
    assert!(!remote.storage().abilities().conditional_writes, "not before it was probed");
    assert!(remote.probe_conditions().await.expect("probed").conditional_writes);
    assert!(remote.storage().abilities().conditional_writes);
    server.requests();
    remote.probe_conditions().await.expect("probed");
    assert!(server.requests().is_empty(), "probed once");
    // This server honours no condition on deletes.
    assert_eq!(strength(&remote).await.expect("known"), FenceStrength::ConditionalWrites);
    let left: Vec<_> = std::fs::read_dir(server.on_disk("")).expect("listed").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_found_out_and_looked_at_instead() {
    let server = Server::start_open().await;
    server.faults.ignores_conditions.store(true, std::sync::atomic::Ordering::SeqCst);
    let remote = open(&server.remote(""));
    let abilities = remote.probe_conditions().await.expect("probed");
    assert!(!abilities.conditional_writes && !abilities.conditional_deletes);
    assert_eq!(strength(&remote).await.expect("known"), FenceStrength::Advisory);
    let storage = remote.storage();
    let entry = write(storage, "f", b"first", options(Condition::Absent)).await.expect("written");
    let refused = write(storage, "f", b"second", options(Condition::Absent)).await.expect_err("there");
    assert_eq!(refused.kind, ErrorKind::ConditionFailed);
    write(storage, "f", b"third", options(Condition::Tag(entry.tag.clone().expect("a tag")))).await.expect("as it was");
    assert_eq!(
        storage.remove(&path("f"), Condition::Tag(entry.tag.expect("a tag"))).await.expect_err("changed").kind,
        ErrorKind::ConditionFailed
    );
    assert_eq!(read(storage, "f", 0..5).await, b"third");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_conditional_creates_one_succeeds() {
    let server = Server::start().await;
    let remote = open(&server.remote(""));
    remote.probe_conditions().await.expect("probed");
    for round in 0..5 {
        let name = format!("claim-{round}");
        let creates = (0..32).map(|_| {
            let (storage, name) = (remote.storage().clone(), name.clone());
            tokio::spawn(async move { write(&storage, &name, b"mine", options(Condition::Absent)).await.map_err(|error| error.kind) })
        });
        let mut winners = 0;
        for create in creates.collect::<Vec<_>>() {
            match create.await.expect("ended") {
                Ok(_) => winners += 1,
                Err(kind) => assert_eq!(kind, ErrorKind::ConditionFailed),
            }
        }
        assert_eq!(winners, 1, "round {round}");
    }
}

#[tokio::test]
async fn a_condition_holds_at_the_end_of_an_upload_in_parts() {
    let server = Server::start().await;
    let remote = open(&server.remote(""));
    remote.probe_conditions().await.expect("probed");
    let storage = remote.storage();
    let size = 17 << 20;
    let mut writer = storage.write(&path("f"), WriteOptions { size: Some(size), ..options(Condition::Absent) }).await.expect("begun");
    for _ in 0..17 {
        writer.write(Bytes::from(vec![1; 1 << 20])).await.expect("written");
    }
    write(storage, "f", b"faster", options(Condition::Absent)).await.expect("nothing is there yet");
    assert_eq!(writer.finish().await.expect_err("too late").kind, ErrorKind::ConditionFailed);
    assert_eq!(read(storage, "f", 0..6).await, b"faster");
}

/// A process that ends with its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn rclone_that_ignores_conditions_is_found_out() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(directory.path().join("bucket")).expect("made");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let mut command = std::process::Command::new("rclone");
    command.args(["serve", "s3", "--addr", &format!("127.0.0.1:{port}")]).arg(directory.path());
    let spawned = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn();
    let _rclone = match spawned {
        Ok(child) => Killed(child),
        Err(error) => {
            assert!(std::env::var_os("NKCLUSTER_TEST_ALL").is_none(), "no rclone: {error}");
            eprintln!("skipped: no rclone: {error}");
            return;
        }
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "rclone does not serve");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let remote = open(&format!(":s3,provider=Rclone,endpoint=\"http://127.0.0.1:{port}\":bucket"));
    let abilities = remote.probe_conditions().await.expect("probed");
    assert!(!abilities.conditional_writes, "rclone 1.75 ignores If-None-Match");
    let time = UNIX_EPOCH + Duration::new(1_700_000_000, 500_000_000);
    write(remote.storage(), "d/f", b"content", WriteOptions { modified: Some(time), ..options(Condition::Absent) }).await.expect("written");
    let told = remote.storage().stat(&path("d/f")).await.expect("looked").expect("there");
    assert_eq!((told.size, told.modified), (7, Some(time)), "rclone reads the time as we write it");
    let on_disk = std::fs::metadata(directory.path().join("bucket/d/f")).expect("there").modified().expect("a time");
    assert_eq!(on_disk, time, "and gives it to the file");
}
