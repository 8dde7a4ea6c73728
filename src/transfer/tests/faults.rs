//! Cuts, damage, changes, full disks: what stays behind, and what a retry makes of it.

use super::pipe::Wired;
use super::*;

impl Site {
    /// Sends a local file through a pipe that ends after so many bytes in all.
    async fn send_cut(&self, remote: &str, bytes: u64) -> Result<Sent> {
        let (near, far) = duplex(PIPE_BYTES);
        let near = Wired::cut_after(near, bytes);
        both(send_file(near, &self.local("file"), &rel(remote), ID, |_| ()), handle(far, &self.root)).await.0
    }
}

/// Bytes that cross the wire, in both directions, when nothing goes wrong.
async fn wire_bytes(site: &Site, length: usize, sending: bool) -> u64 {
    let local = site.local_file(&content(length));
    let (near, far) = duplex(PIPE_BYTES);
    let near = Wired::new(near);
    let seen = near.seen.clone();
    if sending {
        let (sent, _) = both(send_file(near, &local, &rel("whole"), ID, |_| ()), handle(far, &site.root)).await;
        sent.expect("sent");
    } else {
        fs::copy(&local, site.remote("whole")).expect("copied");
        let (fetched, _) = both(fetch_file(near, &rel("whole"), &site.local("whole"), ID, |_| ()), handle(far, &site.root)).await;
        fetched.expect("fetched");
    }
    seen.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn send_that_is_cut_anywhere_is_resumed_where_it_stopped() {
    let site = Site::new();
    let bytes = content(3_000);
    let all = wire_bytes(&site, bytes.len(), true).await;
    let local = site.local_file(&bytes);
    let mut resumed = 0;
    for cut in (1..all).step_by(7) {
        fs::create_dir(site.remote("d")).expect("made");
        let error = site.send_cut("d/copy", cut).await.expect_err("cut");
        assert_eq!(error.code(), &ErrorCode::ConnectionFailed, "{cut}: {error}");
        let have = partial(&site.remote("d"));
        if site.remote("d/copy").exists() {
            assert_eq!(have, None, "{cut}");
            assert!(error.may_have_run(), "{cut}");
            assert_eq!(fs::read(site.remote("d/copy")).expect("there"), bytes);
        }

        let sent = site.send(&local, "d/copy").await.0.expect("sent");
        assert_eq!(sent.resumed_from, have.unwrap_or(0), "{cut}");
        assert_eq!(fs::read(site.remote("d/copy")).expect("there"), bytes, "{cut}");
        assert_eq!(names(&site.remote("d")), ["copy"], "{cut}");
        resumed += u32::from(sent.resumed_from > 0);
        fs::remove_dir_all(site.remote("d")).expect("removed");
    }
    assert!(resumed > 400, "{resumed} of the cuts left something to resume");
}

#[tokio::test(start_paused = true)]
async fn fetch_that_is_cut_anywhere_is_resumed_where_it_stopped() {
    let site = Site::new();
    let bytes = content(3_000);
    let all = wire_bytes(&site, bytes.len(), false).await;
    let mut resumed = 0;
    for cut in (1..all).step_by(7) {
        let back = site.local("d/back");
        fs::create_dir(site.local("d")).expect("made");
        let (near, far) = duplex(PIPE_BYTES);
        let near = Wired::cut_after(near, cut);
        let (first, served) = both(fetch_file(near, &rel("whole"), &back, ID, |_| ()), handle(far, &site.root)).await;
        assert_eq!(code(&served), &ErrorCode::ConnectionFailed, "{cut}");
        let have = partial(&site.local("d"));
        match first {
            // Only the worker's knowledge of it was cut off.
            Ok(_) => assert_eq!(have, None, "{cut}"),
            Err(error) => {
                assert_eq!(error.code(), &ErrorCode::ConnectionFailed, "{cut}: {error}");
                assert!(!back.exists(), "{cut}");
            }
        }

        let fetched = site.fetch("whole", &back).await.0.expect("fetched");
        assert_eq!(fetched.resumed_from, have.unwrap_or(0), "{cut}");
        assert_eq!(fs::read(&back).expect("there"), bytes, "{cut}");
        assert_eq!(names(&site.local("d")), ["back"], "{cut}");
        resumed += u32::from(fetched.resumed_from > 0);
        fs::remove_dir_all(site.local("d")).expect("removed");
    }
    assert!(resumed > 400, "{resumed} of the cuts left something to resume");
}

#[tokio::test(start_paused = true)]
async fn link_that_breaks_every_100_kilobytes_still_moves_a_file() {
    let site = Site::new();
    let bytes = content(2 * 1024 * 1024);
    site.local_file(&bytes);
    let mut attempts = 0;
    while site.send_cut("copy", 100_000).await.is_err() {
        attempts += 1;
        assert!(attempts < 30, "every attempt gets further");
    }
    assert!(attempts >= 20);
    assert!(fs::read(site.remote("copy")).expect("there") == bytes);
}

#[tokio::test(start_paused = true)]
async fn prefix_of_another_content_is_not_resumed() {
    let site = Site::new();
    site.local_file(&content(3_000));
    assert!(site.send_cut("copy", 2_000).await.is_err());
    assert!(partial(site.root.path()).is_some_and(|bytes| bytes > 1_000));

    for other in [vec![9; 3_000], vec![9; 10], vec![]] {
        let local = site.local_file(&other);
        assert!(site.send_cut("other", 1).await.is_err());
        let sent = site.send(&local, "copy").await.0.expect("sent");
        assert_eq!(sent.resumed_from, 0);
        assert_eq!(fs::read(site.remote("copy")).expect("there"), other);
        site.local_file(&content(3_000));
        assert!(site.send_cut("copy", 2_000).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn damage_anywhere_never_makes_a_wrong_file() {
    let site = Site::new();
    let bytes = content(1_500);
    let local = site.local_file(&bytes);
    let mut mismatches = 0;
    for position in 0..1_800 {
        let (near, far) = duplex(PIPE_BYTES);
        let near = Wired::flip_at(near, position);
        let remote = rel("copy");
        let both = async { both(send_file(near, &local, &remote, ID, |_| ()), handle(far, &site.root)).await };
        // A damaged length makes both wait for the other: that is for the caller's silence timeout.
        if let Ok((sent, received)) = timeout(Duration::from_secs(60), both).await
            && let Err(error) = received
            && error.code() == &ErrorCode::ChecksumMismatch
        {
            mismatches += 1;
            assert_eq!(code(&sent), &ErrorCode::ChecksumMismatch, "{position}");
            assert_eq!(names(site.root.path()), Vec::<String>::new(), "{position}");
        }
        for name in names(site.root.path()) {
            let path = site.remote(&name);
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
            let site = Site::new();
            let local = site.local_file(&content(4 * 1024 * 1024));
            let source = if sending { local.clone() } else { site.remote("copy") };
            let watch = |now: Progress| {
                if now.offset == 0 {
                    change(&source);
                }
            };
            let (near, far) = duplex(PIPE_BYTES);
            let error = if sending {
                let (sent, received) = both(send_file(near, &local, &rel("copy"), ID, watch), handle(far, &site.root)).await;
                assert_eq!(code(&received), &ErrorCode::InvalidFile);
                assert_eq!(names(site.root.path()), Vec::<String>::new());
                sent.expect_err("changed")
            } else {
                fs::rename(&local, &source).expect("moved");
                let (fetched, served) = both(fetch_file(near, &rel("copy"), &local, ID, watch), handle(far, &site.root)).await;
                assert_eq!(code(&served), &ErrorCode::InvalidFile);
                assert_eq!(names(&site.dir.path().join("local")), Vec::<String>::new());
                fetched.expect_err("changed")
            };
            assert_eq!(error.code(), &ErrorCode::InvalidFile, "{how}");
            assert!(error.message().contains(how), "{how}: {error}");
        }
    }
}

#[tokio::test]
async fn file_that_hides_its_length_is_refused() {
    let site = Site::new();
    let (sent, _) = site.send(Path::new("/proc/self/status"), "copy").await;
    assert_eq!(code(&sent), &ErrorCode::InvalidFile);
    assert_eq!(names(site.root.path()), Vec::<String>::new());
}

#[tokio::test]
async fn dropped_transfer_leaves_only_what_a_retry_resumes() {
    let site = Site::new();
    let bytes = content(4 * 1024 * 1024);
    let local = site.local_file(&bytes);
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
        _ = async { both(send_file(near, &local, &remote, ID, watch), handle(far, &site.root)).await } => {
            panic!("it was dropped before its end")
        }
    }
    assert!(!site.remote("copy").exists());

    let sent = site.send(&local, "copy").await.0.expect("sent");
    assert!(sent.resumed_from >= 512 * 1024, "{}", sent.resumed_from);
    assert!(fs::read(site.remote("copy")).expect("there") == bytes);
    assert_eq!(names(site.root.path()), ["copy"]);
}

#[tokio::test(start_paused = true)]
async fn stale_temporaries_are_removed_and_young_or_locked_ones_are_not() {
    let site = Site::new();
    let local = site.local_file(&content(3_000));
    let age = |name: &str, hours: i64| {
        let file = fs::File::create(site.remote(&format!("{RESERVED_PREFIX}{name}"))).expect("made");
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
    fs::write(site.remote("foreign"), "x").expect("written");

    site.send(&local, "copy").await.0.expect("sent");

    let young = format!("{RESERVED_PREFIX}young");
    let locked = format!("{RESERVED_PREFIX}locked");
    assert_eq!(names(site.root.path()), [locked.as_str(), young.as_str(), "copy", "foreign"]);
}

#[tokio::test(start_paused = true)]
async fn two_attempts_of_one_transfer_exclude_each_other() {
    let site = Site::new();
    let local = site.local_file(&content(3_000));
    let remote = rel("copy");
    let (near, mut stuck) = duplex(PIPE_BYTES);
    let client = send_file(stuck_client(near), &local, &remote, ID, |_| ());
    let mut first = Box::pin(async { tokio::join!(client, handle(&mut stuck, &site.root)) });
    // The first attempt gets as far as its pipe lets it, then hangs.
    assert!(timeout(Duration::from_secs(1), &mut first).await.is_err());
    assert!(partial(site.root.path()).is_some());

    let (second, received) = site.send(&local, "copy").await;
    assert_eq!(code(&second), &ErrorCode::Busy);
    assert_eq!(code(&received), &ErrorCode::Busy);

    drop(first);
    drop(stuck);
    site.send(&local, "copy").await.0.expect("sent");
    assert_eq!(fs::read(site.remote("copy")).expect("there"), content(3_000));
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
    let site = Site::new();
    let mountpoint = site.remote("small");
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
    let local = site.local_file(&content(4 * 1024 * 1024));

    let (sent, received) = site.send(&local, "small/copy").await;

    let error = sent.expect_err("full");
    assert_eq!(error.code(), &ErrorCode::WriteError);
    assert!(error.message().contains("No space left"), "{error}");
    assert_eq!(code(&received), &ErrorCode::WriteError);
    assert_eq!(names(&mountpoint), Vec::<String>::new());
}

#[tokio::test]
async fn existing_file_is_replaced_in_one_step() {
    let site = Site::new();
    fs::write(site.remote("copy"), "old").expect("written");
    let old = fs::File::open(site.remote("copy")).expect("open");
    let local = site.local_file(&content(70_000));

    assert!(site.send_cut("copy", 50_000).await.is_err());
    assert_eq!(fs::read(site.remote("copy")).expect("there"), b"old");

    assert!(site.send(&local, "copy").await.0.expect("sent").resumed_from > 0);
    assert_eq!(fs::read(site.remote("copy")).expect("there"), content(70_000));
    assert_eq!(io::read_to_string(old).expect("still the old one"), "old");
}
