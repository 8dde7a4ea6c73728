use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use super::{Bench, tree, unfenced};
use crate::attempt::{Attempt, RunId};
use crate::engine::{Effect, EngineOptions, Failure, Links, Verify};
use crate::fence::{Fence, changed_remotes, prepare, retire};
use crate::operation::{Operation, Seen};

#[tokio::test]
async fn a_copy_has_content_time_and_mode_of_its_source() {
    let bench = Bench::new(EngineOptions { verify: Verify::ReadBack, ..EngineOptions::default() });
    for (name, size) in [("empty", 0), ("small", 4096), ("edge", 128 * 1024), ("large", 3 * 1024 * 1024 + 17)] {
        let content: Vec<u8> = (0..size).map(|at: usize| (at * 31 % 251) as u8).collect();
        bench.write(&format!("source/a/b/{name}"), &content);
        let source = fs::File::options().write(true).open(bench.path(&format!("source/a/b/{name}"))).expect("opened");
        source.set_modified(std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789)).expect("set");
        source.set_permissions(fs::Permissions::from_mode(0o640)).expect("set");
        let done = bench.execute(&bench.copy(&format!("a/b/{name}"), None), &unfenced()).await.expect("copied");
        assert_eq!((done.effect, done.bytes), (Effect::Copied, size as u64));
        assert_eq!(bench.read(&format!("target/a/b/{name}")), Some(content));
        let copy = fs::metadata(bench.path(&format!("target/a/b/{name}"))).expect("there");
        assert_eq!((copy.mtime(), copy.mtime_nsec(), copy.mode() & 0o7777), (1_000_000_000, 123_456_789, 0o640));
    }
    let report = bench.stats.report();
    assert_eq!((report.transfers, report.bytes, report.errors), (4, 4096 + 128 * 1024 + 3 * 1024 * 1024 + 17, 0));
    assert_eq!(tree(&bench.path("target")).len(), 6, "nothing but the copies and their directories");
}

#[tokio::test]
async fn a_sparse_file_keeps_its_content() {
    let bench = Bench::new(EngineOptions::default());
    let path = bench.path("source/sparse");
    let file = fs::File::create(&path).expect("made");
    std::os::unix::fs::FileExt::write_all_at(&file, b"begin", 0).expect("written");
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 5 << 20).expect("written");
    file.set_len(9 << 20).expect("set");
    bench.execute(&bench.copy("sparse", None), &unfenced()).await.expect("copied");
    assert!(bench.read("target/sparse") == bench.read("source/sparse"), "the same content");
    let blocks = |path: &str| fs::metadata(bench.path(path)).expect("there").blocks();
    assert!(blocks("target/sparse") <= blocks("source/sparse") + 64);
}

#[tokio::test]
async fn many_files_have_their_results_in_order() {
    let bench = Bench::new(EngineOptions { tries: 1, ..EngineOptions::default() });
    let mut operations = Vec::new();
    for number in 0..500 {
        let path = format!("d{}/f{number}", number % 7);
        if number % 50 != 49 {
            bench.write(&format!("source/{path}"), format!("content {number}").as_bytes());
        }
        let planned = bench.read(&format!("source/{path}")).and_then(|_| bench.planned(&format!("source/{path}"), Some(Seen::Nothing)));
        operations.push(bench.copy(&path, planned));
    }
    let results = bench.engine.execute_all(operations.into(), &unfenced(), &bench.stats, &bench.cancel).await;
    assert_eq!(results.len(), 500);
    for (number, result) in results.iter().enumerate() {
        match number % 50 {
            49 => assert_eq!(result.as_ref().expect_err("missing").kind, Failure::SourceMissing),
            _ => assert_eq!(result.as_ref().expect("copied").effect, Effect::Copied),
        }
        let copy = bench.read(&format!("target/d{}/f{number}", number % 7));
        assert_eq!(copy, (number % 50 != 49).then(|| format!("content {number}").into_bytes()));
    }
    let report = bench.stats.report();
    assert_eq!((report.transfers, report.errors), (490, 10));
}

#[tokio::test]
async fn a_copy_writes_over_what_the_plan_saw_and_nothing_else() {
    let bench = Bench::new(EngineOptions::default());
    bench.write("source/f", b"new content");
    bench.write("target/f", b"old");
    let seen = bench.planned("target/f", None).and_then(|planned| planned.tag).expect("a tag");
    let nothing = bench.copy("f", bench.planned("source/f", Some(Seen::Nothing)));
    assert_eq!(bench.execute(&nothing, &unfenced()).await.expect_err("there").kind, Failure::DestinationChanged);
    assert_eq!(bench.read("target/f"), Some(b"old".to_vec()));
    let as_seen = bench.copy("f", bench.planned("source/f", Some(Seen::Tag(seen))));
    assert_eq!(bench.execute(&as_seen, &unfenced()).await.expect("copied").effect, Effect::Copied);
    assert_eq!(bench.read("target/f"), Some(b"new content".to_vec()));
    let again = bench.execute(&as_seen, &unfenced()).await.expect("already there");
    assert_eq!(again.effect, Effect::AlreadyThere);
    assert_eq!(tree(&bench.path("target")), ["f"]);
}

#[tokio::test]
async fn no_link_leads_a_write_out_of_the_root() {
    let bench = Bench::new(EngineOptions { tries: 1, ..EngineOptions::default() });
    bench.write("source/out/f", b"x");
    bench.write("outside/keep", b"keep");
    symlink(bench.path("outside"), bench.path("target/out")).expect("linked");
    let error = bench.execute(&bench.copy("out/f", None), &unfenced()).await.expect_err("refused");
    assert_eq!(error.kind, Failure::Denied);
    let delete = bench.delete("out/keep", None);
    assert!(bench.execute(&delete, &unfenced()).await.is_err());
    assert_eq!(tree(&bench.path("outside")), ["keep"]);
    for path in ["../x", "/x", "a/../../x", ""] {
        let operation = Operation::DeleteFile { fs: bench.root("target"), remote: path.to_owned(), planned: None };
        assert_eq!(bench.execute(&operation, &unfenced()).await.expect_err("refused").kind, Failure::Invalid, "{path:?}");
    }
}

#[tokio::test]
async fn a_link_is_refused_or_copied_as_a_link() {
    let refusing = Bench::new(EngineOptions::default());
    symlink("/somewhere", refusing.path("source/link")).expect("linked");
    let error = refusing.execute(&refusing.copy("link", None), &unfenced()).await.expect_err("refused");
    assert_eq!(error.kind, Failure::SourceKind);

    let keeping = Bench::new(EngineOptions { links: Links::Keep, ..EngineOptions::default() });
    symlink("/somewhere", keeping.path("source/link")).expect("linked");
    keeping.execute(&keeping.copy("link", None), &unfenced()).await.expect("copied");
    assert_eq!(fs::read_link(keeping.path("target/link")).expect("a link").to_str(), Some("/somewhere"));
}

#[tokio::test]
async fn a_move_renames_and_keeps_a_source_that_changed() {
    let bench = Bench::new(EngineOptions::default());
    bench.write("source/f", b"content");
    let planned = bench.planned("source/f", Some(Seen::Nothing));
    bench.write("source/f", b"changed content");
    let operation = bench.move_file("f", planned);
    assert_eq!(bench.execute(&operation, &unfenced()).await.expect_err("changed").kind, Failure::SourceChanged);
    assert!(bench.read("source/f").is_some() && bench.read("target/f").is_none());

    let operation = bench.move_file("f", bench.planned("source/f", Some(Seen::Nothing)));
    assert_eq!(bench.execute(&operation, &unfenced()).await.expect("moved").effect, Effect::MovedWithin);
    assert!(bench.read("source/f").is_none() && bench.read("target/f").is_some());
    assert_eq!(bench.execute(&operation, &unfenced()).await.expect("moved before").effect, Effect::AlreadyThere);
    let report = bench.stats.report();
    assert_eq!((report.renames, report.server_side_moves, report.server_side_move_bytes), (1, 1, 15));
}

#[tokio::test]
async fn a_file_is_never_moved_to_itself() {
    let bench = Bench::new(EngineOptions::default());
    bench.write("source/d/f", b"content");
    symlink(bench.path("source"), bench.path("link")).expect("linked");
    let run = RunId::from_random([6; 20]);
    for (from, to) in [("source", "source"), ("source", "link"), ("source/d", "link/d")] {
        let remote = from.strip_prefix("source").filter(|rest| !rest.is_empty()).map_or("d/f", |_| "f");
        let operation = Operation::MoveFile {
            src_fs: bench.root(from),
            src_remote: remote.into(),
            dst_fs: bench.root(to),
            dst_remote: remote.into(),
            planned: None,
        };
        assert_eq!(bench.execute(&operation, &unfenced()).await.expect_err("refused").kind, Failure::Invalid);
        prepare(&bench.engine.remotes().open(&bench.root(from)).expect("opened"), run).await.expect("prepared");
        prepare(&bench.engine.remotes().open(&bench.root(to)).expect("opened"), run).await.expect("prepared");
        let fence = Fence::claim(Attempt { run, batch: 0, attempt: 0 }, bench.engine.remotes(), changed_remotes([&operation])).await;
        let fence = std::sync::Arc::new(fence.expect("one directory by two names is claimed once"));
        assert_eq!(bench.execute(&operation, &fence).await.expect_err("refused").kind, Failure::Invalid);
        retire(&bench.engine.remotes().open(&bench.root(from)).expect("opened"), run).await.expect("ended");
        assert_eq!(bench.read("source/d/f"), Some(b"content".to_vec()));
    }
}

#[tokio::test]
async fn a_delete_takes_what_the_plan_saw_and_nothing_else() {
    let bench = Bench::new(EngineOptions::default());
    bench.write("target/f", b"content");
    let planned = bench.planned("target/f", None);
    bench.write("target/f", b"other content");
    assert_eq!(bench.execute(&bench.delete("f", planned), &unfenced()).await.expect_err("changed").kind, Failure::SourceChanged);
    let operation = bench.delete("f", bench.planned("target/f", None));
    assert_eq!(bench.execute(&operation, &unfenced()).await.expect("deleted").effect, Effect::Deleted);
    assert_eq!(bench.execute(&operation, &unfenced()).await.expect("gone").effect, Effect::AlreadyGone);
    fs::create_dir(bench.path("target/d")).expect("made");
    assert_eq!(bench.execute(&bench.delete("d", None), &unfenced()).await.expect_err("a directory").kind, Failure::SourceKind);
}

#[tokio::test]
async fn names_that_are_no_text_are_copied_as_they_are() {
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::new(EngineOptions::default());
    let name = std::ffi::OsStr::from_bytes(b"gr\xf6\xdf-\xe2\x80\x9b");
    fs::write(bench.path("source").join(name), b"x").expect("written");
    bench.execute(&bench.copy("gr‛F6‛DF-‛‛", None), &unfenced()).await.expect("copied");
    assert_eq!(fs::read(bench.path("target").join(name)).expect("there"), b"x");
}

#[tokio::test]
async fn a_cancelled_engine_begins_nothing() {
    let bench = Bench::new(EngineOptions::default());
    bench.write("source/f", b"x");
    bench.cancel.cancel();
    let error = bench.execute(&bench.copy("f", None), &unfenced()).await.expect_err("cancelled");
    assert_eq!(error.kind, Failure::Cancelled);
    assert!(tree(&bench.path("target")).is_empty());
}

#[tokio::test]
async fn a_directory_in_the_way_is_an_error() {
    let bench = Bench::new(EngineOptions { tries: 1, ..EngineOptions::default() });
    bench.write("source/f", b"x");
    bench.write("target/f/inside", b"y");
    assert!(bench.execute(&bench.copy("f", None), &unfenced()).await.is_err());
    bench.write("source/d/f", b"x");
    bench.write("target/d", b"a file");
    assert!(bench.execute(&bench.copy("d/f", None), &unfenced()).await.is_err());
    assert_eq!(tree(&bench.path("target")), ["d", "f", "f/inside"]);
}
