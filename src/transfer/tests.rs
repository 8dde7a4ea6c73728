//! Both ends over one pipe in memory, which can be cut, and can damage what it carries.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rustix::fs::FlockOperation;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::path::RESERVED_PREFIX;
use super::wire::{Frame, Modified, Offer};
use super::*;

const ID: TransferId = TransferId(7);

/// Smaller than a chunk, so that both sides work at the same time.
const PIPE_BYTES: usize = 64 * 1024;

/// A worker's root, a directory of the client, and one outside of both.
struct Site {
    dir: TempDir,
    root: FileRoot,
}

impl Site {
    fn new() -> Self {
        // Memory, where there is some: the tests sync a lot.
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.expect("a directory");
        let root = FileRoot::open(dir.path().join("root")).expect("a root");
        fs::create_dir(dir.path().join("local")).expect("made");
        Self { dir, root }
    }

    fn local(&self, name: &str) -> PathBuf {
        self.dir.path().join("local").join(name)
    }

    fn remote(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn local_file(&self, content: &[u8]) -> PathBuf {
        let path = self.local("file");
        fs::write(&path, content).expect("written");
        path
    }

    async fn send(&self, local: &Path, remote: &str) -> (Result<Sent>, Result<Outcome>) {
        let (near, far) = duplex(PIPE_BYTES);
        both(send_file(near, local, &rel(remote), ID, |_| ()), handle(far, &self.root)).await
    }

    async fn fetch(&self, remote: &str, local: &Path) -> (Result<Fetched>, Result<Outcome>) {
        let (near, far) = duplex(PIPE_BYTES);
        both(fetch_file(near, &rel(remote), local, ID, |_| ()), handle(far, &self.root)).await
    }

    /// Sends a local file through a pipe that ends after so many bytes in all.
    async fn send_cut(&self, remote: &str, bytes: u64) -> Result<Sent> {
        let (near, far) = duplex(PIPE_BYTES);
        let near = Wired::cut_after(near, bytes);
        both(send_file(near, &self.local("file"), &rel(remote), ID, |_| ()), handle(far, &self.root)).await.0
    }
}

/// Both futures to their ends.
async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    tokio::join!(a, b)
}

fn rel(path: &str) -> RelPath {
    RelPath::parse(path).expect("a valid path")
}

fn content(length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("listed");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("listed").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

/// Bytes in the only temporary of the directory; `None` if there is none.
fn partial(directory: &Path) -> Option<u64> {
    let all = names(directory);
    let mut found = all.iter().filter(|name| name.starts_with(RESERVED_PREFIX));
    let first = found.next()?;
    assert_eq!(found.next(), None, "one transfer has one temporary");
    Some(fs::metadata(directory.join(first)).expect("there").len())
}

#[track_caller]
fn code<T: std::fmt::Debug>(result: &Result<T>) -> &ErrorCode {
    result.as_ref().expect_err("must fail").code()
}

/// A stream that ends after a number of bytes in both directions together, or damages one that is written.
struct Wired<S> {
    stream: Option<S>,
    left: u64,
    seen: Arc<AtomicU64>,
    written: u64,
    flip: Option<u64>,
}

impl<S> Wired<S> {
    fn new(stream: S) -> Self {
        Self { stream: Some(stream), left: u64::MAX, seen: Arc::default(), written: 0, flip: None }
    }

    fn cut_after(stream: S, bytes: u64) -> Self {
        Self { left: bytes, ..Self::new(stream) }
    }

    fn flip_at(stream: S, position: u64) -> Self {
        Self { flip: Some(position), ..Self::new(stream) }
    }

    fn count(&mut self, bytes: usize) {
        self.left -= bytes as u64;
        self.seen.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.left == 0 {
            self.stream = None;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wired<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.remaining());
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(())) };
        let mut part = buf.take(room);
        let polled = Pin::new(stream).poll_read(cx, &mut part);
        let read = part.filled().len();
        buf.advance(read);
        self.count(read);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wired<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let mut bytes = buf[..room].to_vec();
        let inside = self.flip.and_then(|at| at.checked_sub(self.written)).and_then(|at| bytes.get_mut(at as usize));
        if let Some(byte) = inside {
            *byte ^= 0x10;
        }
        let Some(stream) = &mut self.stream else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let polled = Pin::new(stream).poll_write(cx, &bytes);
        if let Poll::Ready(Ok(written)) = polled {
            self.written += written as u64;
            self.count(written);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().map_or(Poll::Ready(Ok(())), |stream| Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().map_or(Poll::Ready(Ok(())), |stream| Pin::new(stream).poll_shutdown(cx))
    }
}

#[tokio::test]
async fn files_of_every_size_arrive_in_a_directory_that_is_made() {
    let place = Site::new();
    for size in [0, 1, 500, 4096, 512 * 1024, 2 * 1024 * 1024, 20 * 1024 * 1024 + 3] {
        let bytes = content(size);
        let local = place.local_file(&bytes);
        let remote = format!("made/for/{size}/copy");
        let expected = Transferred { bytes: size as u64, xxh3: Checksum::of(&bytes), resumed_from: 0 };

        let (sent, received) = place.send(&local, &remote).await;
        assert_eq!(sent.expect("sent"), expected);
        assert_eq!(received.expect("received"), Outcome::Received { path: rel(&remote), file: expected });
        // The copy, not the source (checklist A14-15).
        assert!(fs::read(place.remote(&remote)).expect("there") == bytes, "{size}");
        assert_eq!(names(&place.remote(&format!("made/for/{size}"))), ["copy"]);

        let back = place.local("back");
        let (fetched, served) = place.fetch(&remote, &back).await;
        assert_eq!(fetched.expect("fetched"), expected);
        assert_eq!(served.expect("served"), Outcome::Served { path: rel(&remote), file: expected });
        assert!(fs::read(back).expect("there") == bytes, "{size}");
        assert_eq!(names(&place.dir.path().join("local")), ["back", "file"]);
    }
}

#[tokio::test]
async fn mode_and_time_are_carried() {
    let place = Site::new();
    let local = place.local_file(b"#!/bin/sh\n");
    fs::set_permissions(&local, fs::Permissions::from_mode(0o4751)).expect("set");
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    fs::File::options().append(true).open(&local).and_then(|file| file.set_modified(time)).expect("set");

    place.send(&local, "copy").await.0.expect("sent");
    let back = place.local("back");
    place.fetch("copy", &back).await.0.expect("fetched");

    for path in [place.remote("copy"), back] {
        let found = fs::metadata(path).expect("there");
        assert_eq!(found.mode() & 0o7777, 0o751);
        assert_eq!(found.modified().expect("known"), time);
    }
}

#[tokio::test]
async fn progress_grows_from_the_start_to_the_total() {
    let place = Site::new();
    let total = 3 * 1024 * 1024 + 1;
    let local = place.local_file(&content(total as usize));
    let last = Cell::new(None);
    let watch = |now: Progress| {
        assert_eq!(now.total, total);
        assert!(last.get().is_none_or(|before| before < now.offset));
        last.set(Some(now.offset));
    };

    let (near, far) = duplex(PIPE_BYTES);
    let (sent, _) = both(send_file(near, &local, &rel("copy"), ID, watch), handle(far, &place.root)).await;
    sent.expect("sent");
    assert_eq!(last.take(), Some(total));

    let (near, far) = duplex(PIPE_BYTES);
    let back = place.local("back");
    let (fetched, _) = both(fetch_file(near, &rel("copy"), &back, ID, watch), handle(far, &place.root)).await;
    fetched.expect("fetched");
    assert_eq!(last.take(), Some(total));
}

#[tokio::test]
async fn existing_file_is_replaced_in_one_step() {
    let place = Site::new();
    fs::write(place.remote("copy"), "old").expect("written");
    let old = fs::File::open(place.remote("copy")).expect("open");
    let local = place.local_file(&content(70_000));

    assert!(place.send_cut("copy", 50_000).await.is_err());
    assert_eq!(fs::read(place.remote("copy")).expect("there"), b"old");

    assert!(place.send(&local, "copy").await.0.expect("sent").resumed_from > 0);
    assert_eq!(fs::read(place.remote("copy")).expect("there"), content(70_000));
    assert_eq!(io::read_to_string(old).expect("still the old one"), "old");
}

#[tokio::test]
async fn only_regular_files_are_transferred() {
    let place = Site::new();
    let file = place.local_file(b"x");
    let fifo = |path: &Path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
    };
    fs::create_dir(place.local("dir")).expect("made");
    fs::create_dir(place.remote("dir")).expect("made");
    fs::write(place.remote("dir/inner"), "x").expect("written");
    fs::create_dir(place.remote("empty")).expect("made");
    fifo(&place.local("fifo"));
    fifo(&place.remote("fifo"));
    fs::write(place.remote("file"), "x").expect("written");
    symlink("file", place.remote("link")).expect("linked");

    for local in ["dir", "fifo", "missing"] {
        assert_eq!(code(&place.send(&place.local(local), "copy").await.0), &ErrorCode::InvalidFile, "{local}");
    }
    for remote in ["dir", "empty", "fifo", "link"] {
        let (sent, received) = place.send(&file, remote).await;
        assert_eq!(code(&sent), &ErrorCode::InvalidFile, "{remote}");
        assert_eq!(code(&received), &ErrorCode::InvalidFile, "{remote}");
    }
    for remote in ["dir", "fifo", "missing", "dir/missing", "missing/file", "file/below"] {
        let (fetched, served) = place.fetch(remote, &place.local("back")).await;
        assert_eq!(code(&fetched), &ErrorCode::InvalidFile, "{remote}");
        assert_eq!(code(&served), &ErrorCode::InvalidFile, "{remote}");
    }
    for local in ["dir", "fifo", ".."] {
        assert_eq!(code(&place.fetch("file", &place.local(local)).await.0), &ErrorCode::InvalidFile, "{local}");
    }
    assert_eq!(names(place.root.path()), ["dir", "empty", "fifo", "file", "link"]);
    assert_eq!(names(&place.dir.path().join("local")), ["dir", "fifo", "file"]);
}

#[tokio::test]
async fn file_where_a_directory_is_needed_is_a_write_error() {
    let place = Site::new();
    let local = place.local_file(b"x");
    fs::write(place.remote("file"), "x").expect("written");

    for remote in ["file/copy", "file/deeper/copy"] {
        let (sent, received) = place.send(&local, remote).await;
        let error = sent.expect_err("must fail");
        assert_eq!(error.code(), &ErrorCode::WriteError);
        assert!(error.message().contains("is not a directory"), "{error}");
        assert_eq!(code(&received), &ErrorCode::WriteError);
    }
    for path in [place.local("file/back"), place.local("missing/back")] {
        assert_eq!(code(&place.fetch("file", &path).await.0), &ErrorCode::WriteError);
    }
}

#[tokio::test]
async fn nothing_outside_of_the_root_can_be_named() {
    let place = Site::new();
    let local = place.local_file(b"new");
    let outside = place.dir.path().join("outside");
    fs::create_dir(&outside).expect("made");
    fs::write(outside.join("secret"), "secret").expect("written");
    symlink(&outside, place.remote("absolute")).expect("linked");
    symlink("../outside", place.remote("relative")).expect("linked");
    symlink("../outside/secret", place.remote("leaf")).expect("linked");
    symlink("../outside/missing", place.remote("dangling")).expect("linked");
    symlink("/proc/self/root", place.remote("magic")).expect("linked");
    symlink("loop", place.remote("loop")).expect("linked");

    let inside = ["absolute/secret", "relative/secret", "relative/new/secret", "leaf", "dangling", "magic/etc/passwd", "loop"];
    for remote in inside {
        let (sent, received) = place.send(&local, remote).await;
        assert_eq!(code(&sent), &ErrorCode::InvalidPath, "{remote}");
        assert_eq!(code(&received), &ErrorCode::InvalidPath, "{remote}");
        let (fetched, served) = place.fetch(remote, &place.local("back")).await;
        assert_eq!(code(&fetched), &ErrorCode::InvalidPath, "{remote}");
        assert_eq!(code(&served), &ErrorCode::InvalidPath, "{remote}");
    }
    // A client that does not check its paths.
    for path in ["../outside/secret", "/etc/passwd", "a/../../outside/secret", "", ".", "a\0b"] {
        let offer = Offer { size: 3, mode: 0o644, modified: None };
        let openings = [
            Message::Send { version: VERSION, id: ID, path: path.into(), offer },
            Message::Fetch { version: VERSION, id: ID, path: path.into() },
        ];
        for opening in openings {
            let (near, far) = duplex(PIPE_BYTES);
            let mut wire = Wire::new(near);
            let client = async {
                wire.writer.message(&opening).await.expect("sent");
                let told = wire.reader.message().await;
                drop(wire);
                told
            };
            let (told, outcome) = tokio::join!(client, handle(far, &place.root));
            assert_eq!(code(&told.map_err(Failure::into_error)), &ErrorCode::InvalidPath, "{path:?}");
            assert_eq!(code(&outcome), &ErrorCode::InvalidPath, "{path:?}");
        }
    }
    assert_eq!(names(&outside), ["secret"]);
    assert_eq!(fs::read(outside.join("secret")).expect("there"), b"secret");
    assert!(!place.local("back").exists());
}

#[tokio::test]
async fn links_that_stay_inside_are_followed() {
    let place = Site::new();
    let local = place.local_file(b"new");
    fs::create_dir_all(place.remote("a/real")).expect("made");
    fs::create_dir(place.remote("b")).expect("made");
    symlink("../a/real", place.remote("b/link")).expect("linked");
    symlink("a/real/copy", place.remote("leaf")).expect("linked");

    place.send(&local, "b/link/copy").await.0.expect("sent");
    place.send(&local, "b/link/made/copy").await.0.expect("sent");
    assert_eq!(fs::read(place.remote("a/real/made/copy")).expect("there"), b"new");
    let back = place.local("back");
    place.fetch("leaf", &back).await.0.expect("fetched");
    assert_eq!(fs::read(&back).expect("there"), b"new");

    // A local link leads to its target, as everywhere on that machine.
    let target = place.local("target");
    fs::write(&target, "old").expect("written");
    symlink("target", place.local("link")).expect("linked");
    place.fetch("leaf", &place.local("link")).await.0.expect("fetched");
    assert_eq!(fs::read(&target).expect("there"), b"new");
}

#[test]
fn root_is_made_for_its_owner_only_and_must_be_a_directory() {
    let dir = TempDir::new().expect("a directory");
    let root = FileRoot::open(dir.path().join("state/files")).expect("made");
    assert_eq!(fs::metadata(root.path()).expect("there").mode() & 0o777, 0o700);

    fs::write(dir.path().join("file"), "x").expect("written");
    assert_eq!(code(&FileRoot::open(dir.path().join("file"))), &ErrorCode::InvalidConfig);
}

/// Bytes that cross the wire, in both directions, when nothing goes wrong.
async fn wire_bytes(place: &Site, length: usize, sending: bool) -> u64 {
    let local = place.local_file(&content(length));
    let (near, far) = duplex(PIPE_BYTES);
    let near = Wired::new(near);
    let seen = near.seen.clone();
    if sending {
        let (sent, _) = both(send_file(near, &local, &rel("whole"), ID, |_| ()), handle(far, &place.root)).await;
        sent.expect("sent");
    } else {
        fs::copy(&local, place.remote("whole")).expect("copied");
        let (fetched, _) = both(fetch_file(near, &rel("whole"), &place.local("whole"), ID, |_| ()), handle(far, &place.root)).await;
        fetched.expect("fetched");
    }
    seen.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn send_that_is_cut_anywhere_is_resumed_where_it_stopped() {
    let place = Site::new();
    let bytes = content(3_000);
    let all = wire_bytes(&place, bytes.len(), true).await;
    let local = place.local_file(&bytes);
    let mut resumed = 0;
    for cut in (1..all).step_by(7) {
        fs::create_dir(place.remote("d")).expect("made");
        let error = place.send_cut("d/copy", cut).await.expect_err("cut");
        assert_eq!(error.code(), &ErrorCode::ConnectionFailed, "{cut}: {error}");
        let have = partial(&place.remote("d"));
        if place.remote("d/copy").exists() {
            assert_eq!(have, None, "{cut}");
            assert!(error.may_have_run(), "{cut}");
            assert_eq!(fs::read(place.remote("d/copy")).expect("there"), bytes);
        }

        let sent = place.send(&local, "d/copy").await.0.expect("sent");
        assert_eq!(sent.resumed_from, have.unwrap_or(0), "{cut}");
        assert_eq!(fs::read(place.remote("d/copy")).expect("there"), bytes, "{cut}");
        assert_eq!(names(&place.remote("d")), ["copy"], "{cut}");
        resumed += u32::from(sent.resumed_from > 0);
        fs::remove_dir_all(place.remote("d")).expect("removed");
    }
    assert!(resumed > 400, "{resumed} of the cuts left something to resume");
}

#[tokio::test(start_paused = true)]
async fn fetch_that_is_cut_anywhere_is_resumed_where_it_stopped() {
    let place = Site::new();
    let bytes = content(3_000);
    let all = wire_bytes(&place, bytes.len(), false).await;
    let mut resumed = 0;
    for cut in (1..all).step_by(7) {
        let back = place.local("d/back");
        fs::create_dir(place.local("d")).expect("made");
        let (near, far) = duplex(PIPE_BYTES);
        let near = Wired::cut_after(near, cut);
        let (first, served) = both(fetch_file(near, &rel("whole"), &back, ID, |_| ()), handle(far, &place.root)).await;
        assert_eq!(code(&served), &ErrorCode::ConnectionFailed, "{cut}");
        let have = partial(&place.local("d"));
        match first {
            // Only the worker's knowledge of it was cut off.
            Ok(_) => assert_eq!(have, None, "{cut}"),
            Err(error) => {
                assert_eq!(error.code(), &ErrorCode::ConnectionFailed, "{cut}: {error}");
                assert!(!back.exists(), "{cut}");
            }
        }

        let fetched = place.fetch("whole", &back).await.0.expect("fetched");
        assert_eq!(fetched.resumed_from, have.unwrap_or(0), "{cut}");
        assert_eq!(fs::read(&back).expect("there"), bytes, "{cut}");
        assert_eq!(names(&place.local("d")), ["back"], "{cut}");
        resumed += u32::from(fetched.resumed_from > 0);
        fs::remove_dir_all(place.local("d")).expect("removed");
    }
    assert!(resumed > 400, "{resumed} of the cuts left something to resume");
}

#[tokio::test(start_paused = true)]
async fn link_that_breaks_every_100_kilobytes_still_moves_a_file() {
    let place = Site::new();
    let bytes = content(2 * 1024 * 1024);
    place.local_file(&bytes);
    let mut attempts = 0;
    while place.send_cut("copy", 100_000).await.is_err() {
        attempts += 1;
        assert!(attempts < 30, "every attempt gets further");
    }
    assert!(attempts >= 20);
    assert!(fs::read(place.remote("copy")).expect("there") == bytes);
}

#[tokio::test(start_paused = true)]
async fn prefix_of_another_content_is_not_resumed() {
    let place = Site::new();
    place.local_file(&content(3_000));
    assert!(place.send_cut("copy", 2_000).await.is_err());
    assert!(partial(place.root.path()).is_some_and(|bytes| bytes > 1_000));

    for other in [vec![9; 3_000], vec![9; 10], vec![]] {
        let local = place.local_file(&other);
        assert!(place.send_cut("other", 1).await.is_err());
        let sent = place.send(&local, "copy").await.0.expect("sent");
        assert_eq!(sent.resumed_from, 0);
        assert_eq!(fs::read(place.remote("copy")).expect("there"), other);
        place.local_file(&content(3_000));
        assert!(place.send_cut("copy", 2_000).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn damage_anywhere_never_makes_a_wrong_file() {
    let place = Site::new();
    let bytes = content(1_500);
    let local = place.local_file(&bytes);
    let mut mismatches = 0;
    for position in 0..1_800 {
        let (near, far) = duplex(PIPE_BYTES);
        let near = Wired::flip_at(near, position);
        let remote = rel("copy");
        let both = async { both(send_file(near, &local, &remote, ID, |_| ()), handle(far, &place.root)).await };
        // A damaged length makes both wait for the other: that is for the caller's silence timeout.
        if let Ok((sent, received)) = timeout(Duration::from_secs(60), both).await
            && let Err(error) = received
            && error.code() == &ErrorCode::ChecksumMismatch
        {
            mismatches += 1;
            assert_eq!(code(&sent), &ErrorCode::ChecksumMismatch, "{position}");
            assert_eq!(names(place.root.path()), Vec::<String>::new(), "{position}");
        }
        for name in names(place.root.path()) {
            let path = place.remote(&name);
            if !name.starts_with(RESERVED_PREFIX) {
                assert_eq!(fs::read(&path).expect("there"), bytes, "{position}");
            }
            fs::remove_file(path).expect("removed");
        }
    }
    // Every byte of the data, those of the trailer's size and checksum, and none else.
    assert!((1_500..1_600).contains(&mismatches), "{mismatches}");
}

#[tokio::test]
async fn source_that_changes_meanwhile_is_told_to_both_and_leaves_nothing() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("written to", |path| {
            io::Write::write_all(&mut fs::File::options().append(true).open(path).expect("open"), b"more").expect("written");
        }),
        ("became shorter", |path| fs::File::options().write(true).open(path).and_then(|f| f.set_len(10)).expect("cut")),
        ("written to", |path| {
            let file = fs::File::options().write(true).open(path).expect("open");
            file.set_modified(SystemTime::UNIX_EPOCH).expect("set");
        }),
        ("replaced", |path| {
            let other = path.with_extension("new");
            fs::copy(path, &other).and_then(|_| fs::rename(&other, path)).expect("renamed");
        }),
        ("removed", |path| fs::remove_file(path).expect("removed")),
    ];
    for (how, change) in changes {
        for sending in [true, false] {
            let place = Site::new();
            let local = place.local_file(&content(4 * 1024 * 1024));
            let source = if sending { local.clone() } else { place.remote("copy") };
            let watch = |now: Progress| {
                if now.offset == 0 {
                    change(&source);
                }
            };
            let (near, far) = duplex(PIPE_BYTES);
            let error = if sending {
                let (sent, received) = both(send_file(near, &local, &rel("copy"), ID, watch), handle(far, &place.root)).await;
                assert_eq!(code(&received), &ErrorCode::InvalidFile);
                assert_eq!(names(place.root.path()), Vec::<String>::new());
                sent.expect_err("changed")
            } else {
                fs::rename(&local, &source).expect("moved");
                let (fetched, served) = both(fetch_file(near, &rel("copy"), &local, ID, watch), handle(far, &place.root)).await;
                assert_eq!(code(&served), &ErrorCode::InvalidFile);
                assert_eq!(names(&place.dir.path().join("local")), Vec::<String>::new());
                fetched.expect_err("changed")
            };
            assert_eq!(error.code(), &ErrorCode::InvalidFile, "{how}");
            assert!(error.message().contains(how), "{how}: {error}");
        }
    }
}

#[tokio::test]
async fn file_that_hides_its_length_is_refused() {
    let place = Site::new();
    let (sent, _) = place.send(Path::new("/proc/self/status"), "copy").await;
    assert_eq!(code(&sent), &ErrorCode::InvalidFile);
    assert_eq!(names(place.root.path()), Vec::<String>::new());
}

#[tokio::test]
async fn dropped_transfer_leaves_only_what_a_retry_resumes() {
    let place = Site::new();
    let bytes = content(4 * 1024 * 1024);
    let local = place.local_file(&bytes);
    let half = Notify::new();
    let watch = |now: Progress| {
        if now.offset >= now.total / 2 {
            half.notify_one();
        }
    };
    let (near, far) = duplex(PIPE_BYTES);
    let remote = rel("copy");
    tokio::select! {
        biased;
        () = half.notified() => {}
        _ = async { both(send_file(near, &local, &remote, ID, watch), handle(far, &place.root)).await } => {
            panic!("it was dropped before its end")
        }
    }
    assert!(!place.remote("copy").exists());

    let sent = place.send(&local, "copy").await.0.expect("sent");
    assert!(sent.resumed_from >= 512 * 1024, "{}", sent.resumed_from);
    assert!(fs::read(place.remote("copy")).expect("there") == bytes);
    assert_eq!(names(place.root.path()), ["copy"]);
}

#[tokio::test(start_paused = true)]
async fn stale_temporaries_are_removed_and_young_or_locked_ones_are_not() {
    let place = Site::new();
    let local = place.local_file(&content(3_000));
    let age = |name: &str, hours: i64| {
        let file = fs::File::create(place.remote(&format!("{RESERVED_PREFIX}{name}"))).expect("made");
        let now = SystemTime::now();
        let distance = Duration::from_secs(hours.unsigned_abs() * 3600);
        file.set_modified(if hours < 0 { now - distance } else { now + distance }).expect("set");
        file
    };
    age("old", -25);
    age("future", 25);
    age("young", -23);
    let locked = age("locked", -25);
    rustix::fs::flock(&locked, FlockOperation::LockExclusive).expect("locked");
    fs::write(place.remote("foreign"), "x").expect("written");

    place.send(&local, "copy").await.0.expect("sent");

    let young = format!("{RESERVED_PREFIX}young");
    let locked = format!("{RESERVED_PREFIX}locked");
    assert_eq!(names(place.root.path()), [locked.as_str(), young.as_str(), "copy", "foreign"]);
}

#[tokio::test(start_paused = true)]
async fn two_attempts_of_one_transfer_exclude_each_other() {
    let place = Site::new();
    let local = place.local_file(&content(3_000));
    let remote = rel("copy");
    let (near, mut stuck) = duplex(PIPE_BYTES);
    let client = send_file(stuck_client(near), &local, &remote, ID, |_| ());
    let mut first = Box::pin(async { tokio::join!(client, handle(&mut stuck, &place.root)) });
    // The first attempt gets as far as its pipe lets it, then hangs.
    assert!(timeout(Duration::from_secs(1), &mut first).await.is_err());
    assert!(partial(place.root.path()).is_some());

    let (second, received) = place.send(&local, "copy").await;
    assert_eq!(code(&second), &ErrorCode::Busy);
    assert_eq!(code(&received), &ErrorCode::Busy);

    drop(first);
    drop(stuck);
    place.send(&local, "copy").await.0.expect("sent");
    assert_eq!(fs::read(place.remote("copy")).expect("there"), content(3_000));
}

/// A pipe that loses everything after the first kilobyte without a word.
fn stuck_client(stream: DuplexStream) -> impl AsyncRead + AsyncWrite + Unpin {
    let (near, mut far) = duplex(1);
    tokio::spawn(async move {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (mut from_client, mut to_client) = tokio::io::split(&mut far);
        let back = tokio::io::copy(&mut reader, &mut to_client);
        let forth = async {
            let _ = tokio::io::copy(&mut (&mut from_client).take(1_000), &mut writer).await;
            std::future::pending::<()>().await;
        };
        let _ = tokio::join!(back, forth);
    });
    near
}

#[tokio::test]
async fn full_disk_is_a_write_error_that_frees_what_it_took() {
    let place = Site::new();
    let mountpoint = place.remote("small");
    fs::create_dir(&mountpoint).expect("made");
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "nkcluster-test"]).arg(&mountpoint).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("NKCLUSTER_TEST_ALL").is_none(), "cannot mount a small file system");
        eprintln!("skipped: mounting a small file system needs root");
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(mountpoint.clone());
    let local = place.local_file(&content(4 * 1024 * 1024));

    let (sent, received) = place.send(&local, "small/copy").await;

    let error = sent.expect_err("full");
    assert_eq!(error.code(), &ErrorCode::WriteError);
    assert!(error.message().contains("No space left"), "{error}");
    assert_eq!(code(&received), &ErrorCode::WriteError);
    assert_eq!(names(&mountpoint), Vec::<String>::new());
}

#[tokio::test]
async fn another_version_is_refused_by_name() {
    let place = Site::new();
    let (near, far) = duplex(PIPE_BYTES);
    let mut wire = Wire::new(near);
    let client = async {
        wire.writer.message(&Message::Fetch { version: 99, id: ID, path: "x".into() }).await.expect("sent");
        let told = wire.reader.message().await;
        drop(wire);
        told
    };
    let (told, outcome) = tokio::join!(client, handle(far, &place.root));
    assert_eq!(code(&told.map_err(Failure::into_error)), &ErrorCode::UnsupportedVersion);
    assert_eq!(code(&outcome), &ErrorCode::UnsupportedVersion);
}

#[tokio::test(start_paused = true)]
async fn long_work_is_announced_every_five_seconds() {
    let (near, mut far) = duplex(PIPE_BYTES);
    let mut wire = Wire::new(near);
    wire.writer.wait_for(tokio::time::sleep(Duration::from_secs(12))).await;
    wire.writer.message(&Message::Start { offset: 0 }).await.expect("sent");
    drop(wire);
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).await.expect("read");
    assert_eq!(bytes.windows(5).filter(|window| window == b"\xa4wait").count(), 2);

    // The reader passes over them.
    let (mut near, far) = duplex(PIPE_BYTES);
    near.write_all(&bytes).await.expect("written");
    let frame = Wire::new(far).reader.frame(&mut Vec::new()).await.expect("a frame");
    assert!(matches!(frame, Frame::Message(Message::Start { offset: 0 })));
}

#[test]
fn ids_and_checksums_return_from_their_text() {
    let id = TransferId::derived([b"a".as_slice(), b"bc"]);
    assert_ne!(id, TransferId::derived([b"ab".as_slice(), b"c"]));
    assert_ne!(TransferId::random(), TransferId::random());
    assert_eq!(id.to_string().parse::<TransferId>().expect("parses"), id);
    assert_eq!(Checksum::of(b"").to_string(), "99aa06d3014798d86001c324468d497f");
    let json = serde_json::to_string(&Checksum::of(b"x")).expect("encodes");
    assert_eq!(serde_json::from_str::<Checksum>(&json).expect("decodes"), Checksum::of(b"x"));
    for wrong in ["", "+9aa06d3014798d86001c324468d497f", "99aa06d3014798d86001c324468d497", "é"] {
        assert_eq!(code(&wrong.parse::<Checksum>()), &ErrorCode::SyntaxError);
    }
}

/// What a hostile or broken client may send after its opening.
fn hostile_frames() -> impl Strategy<Value = Vec<u8>> {
    let junk = proptest::collection::vec(any::<u8>(), 0..64);
    let frame = (0..3_u8, 0..80_u32, junk).prop_map(|(kind, length, body)| {
        let mut frame = vec![kind];
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&body);
        frame
    });
    proptest::collection::vec(frame, 0..6).prop_map(|frames| frames.concat())
}

fn run_handle(opening: Option<&Message>, junk: &[u8]) -> (Result<Outcome>, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let place = Site::new();
        let (near, far) = duplex(PIPE_BYTES);
        let client = async {
            let (mut reader, mut writer) = tokio::io::split(near);
            let write = async {
                let mut bytes = Vec::new();
                if let Some(opening) = opening {
                    let (hidden, mut shown) = duplex(PIPE_BYTES);
                    Wire::new(hidden).writer.message(opening).await.expect("encoded");
                    shown.read_to_end(&mut bytes).await.expect("read");
                }
                bytes.extend_from_slice(junk);
                let _ = writer.write_all(&bytes).await;
                let _ = writer.shutdown().await;
            };
            let mut heard = Vec::new();
            let _ = tokio::join!(write, reader.read_to_end(&mut heard));
        };
        let (outcome, ()) = tokio::join!(handle(far, &place.root), client);
        (outcome, names(place.root.path()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_end_in_an_error_and_no_file(junk in proptest::collection::vec(any::<u8>(), 0..512)) {
        let (outcome, names) = run_handle(None, &junk);
        prop_assert!(outcome.is_err());
        prop_assert_eq!(names, Vec::<String>::new());
    }

    #[test]
    fn any_bytes_after_an_opening_end_in_an_error_and_no_file(
        size in prop_oneof![0..100_u64, Just(u64::MAX)],
        seconds: i64,
        nanos: u32,
        mode: u32,
        junk in hostile_frames(),
        fetch: bool,
    ) {
        let offer = Offer { size, mode, modified: Some(Modified { seconds, nanos }) };
        let send = Message::Send { version: VERSION, id: ID, path: "f".into(), offer };
        let opening = if fetch { Message::Fetch { version: VERSION, id: ID, path: "f".into() } } else { send };
        let (outcome, names) = run_handle(Some(&opening), &junk);
        prop_assert!(outcome.is_err());
        prop_assert!(names.iter().all(|name| name.starts_with(RESERVED_PREFIX)));
    }
}
