//! What can be named, and what not.

use super::*;

#[tokio::test]
async fn only_regular_files_are_transferred() {
    let site = Site::new();
    let file = site.local_file(b"x");
    let fifo = |path: &Path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
    };
    fs::create_dir(site.local("dir")).expect("made");
    fs::create_dir(site.remote("dir")).expect("made");
    fs::write(site.remote("dir/inner"), "x").expect("written");
    fs::create_dir(site.remote("empty")).expect("made");
    fifo(&site.local("fifo"));
    fifo(&site.remote("fifo"));
    fs::write(site.remote("file"), "x").expect("written");
    symlink("file", site.remote("link")).expect("linked");

    for local in ["dir", "fifo", "missing"] {
        assert_eq!(code(&site.send(&site.local(local), "copy").await.0), &ErrorCode::InvalidFile, "{local}");
    }
    for remote in ["dir", "empty", "fifo", "link"] {
        let (sent, received) = site.send(&file, remote).await;
        assert_eq!(code(&sent), &ErrorCode::InvalidFile, "{remote}");
        assert_eq!(code(&received), &ErrorCode::InvalidFile, "{remote}");
    }
    for remote in ["dir", "fifo", "missing", "dir/missing", "missing/file", "file/below"] {
        let (fetched, served) = site.fetch(remote, &site.local("back")).await;
        assert_eq!(code(&fetched), &ErrorCode::InvalidFile, "{remote}");
        assert_eq!(code(&served), &ErrorCode::InvalidFile, "{remote}");
    }
    for local in ["dir", "fifo", ".."] {
        assert_eq!(code(&site.fetch("file", &site.local(local)).await.0), &ErrorCode::InvalidFile, "{local}");
    }
    assert_eq!(names(site.root.path()), ["dir", "empty", "fifo", "file", "link"]);
    assert_eq!(names(&site.dir.path().join("local")), ["dir", "fifo", "file"]);
}

#[tokio::test]
async fn file_where_a_directory_is_needed_is_a_write_error() {
    let site = Site::new();
    let local = site.local_file(b"x");
    fs::write(site.remote("file"), "x").expect("written");

    for remote in ["file/copy", "file/deeper/copy"] {
        let (sent, received) = site.send(&local, remote).await;
        let error = sent.expect_err("must fail");
        assert_eq!(error.code(), &ErrorCode::WriteError);
        assert!(error.message().contains("is not a directory"), "{error}");
        assert_eq!(code(&received), &ErrorCode::WriteError);
    }
    for path in [site.local("file/back"), site.local("missing/back")] {
        assert_eq!(code(&site.fetch("file", &path).await.0), &ErrorCode::WriteError);
    }
}

#[tokio::test]
async fn nothing_outside_of_the_root_can_be_named() {
    let site = Site::new();
    let local = site.local_file(b"new");
    let outside = site.dir.path().join("outside");
    fs::create_dir(&outside).expect("made");
    fs::write(outside.join("secret"), "secret").expect("written");
    symlink(&outside, site.remote("absolute")).expect("linked");
    symlink("../outside", site.remote("relative")).expect("linked");
    symlink("../outside/secret", site.remote("leaf")).expect("linked");
    symlink("../outside/missing", site.remote("dangling")).expect("linked");
    symlink("/proc/self/root", site.remote("magic")).expect("linked");
    symlink("loop", site.remote("loop")).expect("linked");

    let inside = ["absolute/secret", "relative/secret", "relative/new/secret", "leaf", "dangling", "magic/etc/passwd", "loop"];
    for remote in inside {
        let (sent, received) = site.send(&local, remote).await;
        assert_eq!(code(&sent), &ErrorCode::InvalidPath, "{remote}");
        assert_eq!(code(&received), &ErrorCode::InvalidPath, "{remote}");
        let (fetched, served) = site.fetch(remote, &site.local("back")).await;
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
            let (told, outcome) = tokio::join!(client, handle(far, &site.root));
            assert_eq!(code(&told.map_err(Failure::into_error)), &ErrorCode::InvalidPath, "{path:?}");
            assert_eq!(code(&outcome), &ErrorCode::InvalidPath, "{path:?}");
        }
    }
    assert_eq!(names(&outside), ["secret"]);
    assert_eq!(fs::read(outside.join("secret")).expect("there"), b"secret");
    assert!(!site.local("back").exists());
}

#[tokio::test]
async fn links_that_stay_inside_are_followed() {
    let site = Site::new();
    let local = site.local_file(b"new");
    fs::create_dir_all(site.remote("a/real")).expect("made");
    fs::create_dir(site.remote("b")).expect("made");
    symlink("../a/real", site.remote("b/link")).expect("linked");
    symlink("a/real/copy", site.remote("leaf")).expect("linked");

    site.send(&local, "b/link/copy").await.0.expect("sent");
    site.send(&local, "b/link/made/copy").await.0.expect("sent");
    assert_eq!(fs::read(site.remote("a/real/made/copy")).expect("there"), b"new");
    let back = site.local("back");
    site.fetch("leaf", &back).await.0.expect("fetched");
    assert_eq!(fs::read(&back).expect("there"), b"new");

    // A local link leads to its target, as everywhere on that machine.
    let target = site.local("target");
    fs::write(&target, "old").expect("written");
    symlink("target", site.local("link")).expect("linked");
    site.fetch("leaf", &site.local("link")).await.0.expect("fetched");
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

#[test]
fn directories_are_confined_like_files() {
    let site = Site::new();
    fs::create_dir(site.remote("dir")).expect("made");
    fs::write(site.remote("dir/file"), "four").expect("written");
    symlink("dir", site.remote("inside")).expect("linked");
    symlink("..", site.remote("outside")).expect("linked");
    let path = |text| RelPath::parse(text).expect("valid");

    for dir in [None, Some(path("dir")), Some(path("inside"))] {
        site.root.open_dir(dir.as_ref()).expect("opened");
        assert!(site.root.metadata(dir.as_ref()).expect("there").is_dir());
    }
    assert_eq!(site.root.metadata(Some(&path("inside/file"))).expect("there").len(), 4);
    for (text, code) in
        [("outside", ErrorCode::InvalidPath), ("outside/remote", ErrorCode::InvalidPath), ("missing", ErrorCode::InvalidFile)]
    {
        assert_eq!(site.root.open_dir(Some(&path(text))).expect_err("refused").code(), &code, "{text}");
        assert_eq!(site.root.metadata(Some(&path(text))).expect_err("refused").code(), &code, "{text}");
    }
    assert_eq!(site.root.open_dir(Some(&path("dir/file"))).expect_err("refused").code(), &ErrorCode::InvalidFile);
}
