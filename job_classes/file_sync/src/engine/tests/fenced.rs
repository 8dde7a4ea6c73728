//! What a revoked attempt does, at every step: nothing.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::{Bench, tree, unfenced};
use crate::attempt::{Attempt, RunId};
use crate::engine::{Effect, EngineOptions, Failure};
use crate::fence::{ClaimError, Fence, FenceStrength, changed_remotes, prepare, retire, revoke};
use crate::operation::{Operation, Planned, Seen};

/// More steps than any operation has.
const STEPS_MAX: usize = 40;

fn attempt(number: u32) -> Attempt {
    Attempt { run: RunId::from_random([7; 20]), batch: 3, attempt: number }
}

impl Bench {
    async fn prepare(&self) {
        for name in ["source", "target"] {
            let remote = self.engine.remotes().open(&self.root(name)).expect("opened");
            assert_eq!(prepare(&remote, attempt(0).run).await.expect("prepared"), FenceStrength::Staged);
        }
    }

    async fn claim(&self, operation: &Operation, number: u32) -> Result<Arc<Fence>, ClaimError> {
        let changed = changed_remotes([operation]);
        Fence::claim(attempt(number), self.engine.remotes(), changed).await.map(Arc::new)
    }

    async fn revoke(&self, number: u32) {
        for name in ["source", "target"] {
            let remote = self.engine.remotes().open(&self.root(name)).expect("opened");
            revoke(&remote, attempt(number)).await.expect("revoked");
        }
    }

    async fn retire(&self) -> Vec<String> {
        let mut kept = Vec::new();
        for name in ["source", "target"] {
            let remote = self.engine.remotes().open(&self.root(name)).expect("opened");
            kept.extend(retire(&remote, attempt(0).run).await.expect("ended"));
        }
        kept
    }
}

/// Everything below a directory, with content.
fn snapshot(directory: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    tree(directory).into_iter().map(|path| (path.clone(), fs::read(directory.join(path)).ok())).collect()
}

/// The operations that are stopped, in an order of rising complexity; each with the files it needs.
fn operations(bench: &Bench) -> Vec<Operation> {
    bench.write("source/new/dir/f", b"from the source");
    bench.write("source/over", b"from the source");
    bench.write("target/over", b"old");
    bench.write("source/moved/f", b"from the source");
    bench.write("target/gone", b"to be deleted");
    let tag = bench.planned("target/over", None).and_then(|planned| planned.tag).expect("a tag");
    vec![
        bench.copy("new/dir/f", bench.planned("source/new/dir/f", Some(Seen::Nothing))),
        bench.copy("over", bench.planned("source/over", Some(Seen::Tag(tag)))),
        bench.move_file("moved/f", bench.planned("source/moved/f", Some(Seen::Nothing))),
        bench.delete("gone", bench.planned("target/gone", None)),
    ]
}

#[test]
fn a_revoked_attempt_changes_nothing_whatever_it_was_about_to_do() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut stopped = 0;
    for kind in 0..4 {
        for at in 0..STEPS_MAX {
            let bench = Rc::new(Bench::new(EngineOptions::default()));
            let operation = operations(&bench).swap_remove(kind);
            runtime.block_on(bench.prepare());
            let fence = runtime.block_on(bench.claim(&operation, 0)).expect("claimed");
            let (step, after) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(None)));
            let result = {
                let (bench, step, after, operation) = (bench.clone(), step.clone(), after.clone(), operation.clone());
                bench.clone().carry_out(&operation.clone(), &fence, move || {
                    if step.replace(step.get() + 1) == at {
                        after.set(Some(others_go_on(&bench, &operation)));
                    }
                })
            };
            let Some(before) = after.take() else {
                assert!(result.is_ok(), "not stopped at all: {result:?}");
                break;
            };
            stopped += 1;
            assert_eq!(snapshot(bench.directory.path()), before, "operation {kind}, stopped at {at}: {result:?}");
            assert!(at + 1 < STEPS_MAX, "an operation has an end");
            assert!(runtime.block_on(bench.retire()).is_empty(), "nothing of others was taken");
            let left: Vec<_> = tree(bench.directory.path()).into_iter().filter(|path| path.contains(".nkcluster")).collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
    assert!(stopped >= 15, "only {stopped} steps were stopped at");
}

/// The attempt is revoked, the next one does the work, and then people change what was done.
fn others_go_on(bench: &Bench, operation: &Operation) -> BTreeMap<String, Option<Vec<u8>>> {
    let runtime = tokio::runtime::Handle::try_current();
    assert!(runtime.is_err(), "the stopped attempt holds no runtime");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(bench.revoke(0));
    let fence = runtime.block_on(bench.claim(operation, 1)).expect("claimed");
    let next = runtime.block_on(bench.execute(operation, &fence));
    assert!(next.is_ok(), "the next attempt succeeds: {next:?}");
    for path in ["target/new/dir/f", "target/over", "target/moved/f", "source/moved/f", "target/gone"] {
        let _ = fs::remove_file(bench.path(path));
    }
    let _ = fs::remove_dir(bench.path("target/new/dir"));
    let _ = fs::remove_dir(bench.path("target/new"));
    bench.write("target/over", b"written by somebody since");
    bench.write("source/moved/f", b"written by somebody since");
    bench.write("target/gone", b"written by somebody since");
    snapshot(bench.directory.path())
}

#[tokio::test]
async fn a_claim_after_the_revocation_fails() {
    let bench = Bench::new(EngineOptions::default());
    let operation = operations(&bench).swap_remove(2);
    assert!(matches!(bench.claim(&operation, 0).await, Err(ClaimError::Revoked(_))), "not prepared");
    bench.prepare().await;
    bench.revoke(0).await;
    assert!(matches!(bench.claim(&operation, 0).await, Err(ClaimError::Revoked(_))));
    let fence = bench.claim(&operation, 1).await.expect("claimed");
    assert!(matches!(bench.claim(&operation, 1).await, Err(ClaimError::Revoked(_))), "an attempt is claimed once");
    bench.revoke(1).await;
    bench.revoke(1).await;
    let error = bench.execute(&operation, &fence).await.expect_err("revoked");
    assert_eq!(error.kind, Failure::Revoked);
    assert!(bench.retire().await.is_empty());
    assert!(matches!(bench.claim(&operation, 2).await, Err(ClaimError::Revoked(_))), "the run is over");
}

#[tokio::test]
async fn a_fenced_engine_does_what_an_unfenced_one_does() {
    let bench = Bench::new(EngineOptions::default());
    let operations = operations(&bench);
    bench.prepare().await;
    let fence = Fence::claim(attempt(0), bench.engine.remotes(), changed_remotes(&operations)).await.expect("claimed");
    assert_eq!(fence.strength(), FenceStrength::Staged);
    let fence = Arc::new(fence);
    let results = bench.engine.execute_all(operations.clone().into(), &fence, &bench.stats, &bench.cancel).await;
    let effects: Vec<Effect> = results.into_iter().map(|result| result.expect("done").effect).collect();
    assert_eq!(effects, [Effect::Copied, Effect::Copied, Effect::MovedWithin, Effect::Deleted]);
    // The same batch again, as the next attempt: everything is done already.
    let fence = Arc::new(
        Fence::claim(Attempt { attempt: 1, ..attempt(0) }, bench.engine.remotes(), changed_remotes(&operations)).await.expect("claimed"),
    );
    let results = bench.engine.execute_all(operations.into(), &fence, &bench.stats, &bench.cancel).await;
    let effects: Vec<Effect> = results.into_iter().map(|result| result.expect("done").effect).collect();
    assert_eq!(effects, [Effect::AlreadyThere, Effect::AlreadyThere, Effect::AlreadyThere, Effect::AlreadyGone]);
    fence.release(bench.engine.remotes()).await.expect("released");
    assert!(bench.retire().await.is_empty());
    assert_eq!(tree(&bench.path("target")), ["moved", "moved/f", "new", "new/dir", "new/dir/f", "over"]);
}

#[test]
fn a_file_that_took_the_place_of_a_deleted_one_survives_the_delete_and_its_revocation() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for is_revoked in [false, true] {
        let bench = Rc::new(Bench::new(EngineOptions::default()));
        bench.write("target/f", b"old");
        let operation = bench.delete("f", bench.planned("target/f", None));
        runtime.block_on(bench.prepare());
        let fence = runtime.block_on(bench.claim(&operation, 0)).expect("claimed");
        let (inner, mut step) = (bench.clone(), 0);
        let result = bench.carry_out(&operation, &fence, move || {
            step += 1;
            match step {
                // Before it is taken away, and before it is looked at there.
                1 => inner.write("target/f", b"new content"),
                2 if is_revoked => {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                    runtime.block_on(inner.revoke(0));
                }
                _ => {}
            }
        });
        assert!(result.is_err());
        let kept = runtime.block_on(bench.retire());
        let content = match is_revoked {
            false => bench.read("target/f"),
            true => bench.read(&format!("target/{}", kept[0])),
        };
        assert_eq!(content, Some(b"new content".to_vec()), "revoked: {is_revoked}, kept: {kept:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_racing_attempts_each_file_has_one_whole_content() {
    let bench = Arc::new(Bench::new(EngineOptions::default()));
    let mut operations = Vec::new();
    for number in 0..200 {
        bench.write(&format!("source/d{}/f{number}", number % 5), format!("content {number}").repeat(100).as_bytes());
        let path = format!("d{}/f{number}", number % 5);
        operations.push(bench.copy(&path, bench.planned(&format!("source/{path}"), Some(Seen::Nothing))));
    }
    bench.prepare().await;
    let operations: Arc<[Operation]> = operations.into();
    let first = Arc::new(Fence::claim(attempt(0), bench.engine.remotes(), changed_remotes(&*operations)).await.expect("claimed"));
    let late = {
        let (bench, operations) = (bench.clone(), operations.clone());
        tokio::spawn(async move { bench.engine.execute_all(operations, &first, &bench.stats, &bench.cancel).await })
    };
    bench.revoke(0).await;
    let second = Arc::new(Fence::claim(attempt(1), bench.engine.remotes(), changed_remotes(&*operations)).await.expect("claimed"));
    let results = bench.engine.execute_all(operations.clone(), &second, &bench.stats, &bench.cancel).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    for result in late.await.expect("ended") {
        assert!(result.as_ref().map_or_else(|error| error.kind == Failure::Revoked, |done| done.effect == Effect::Copied), "{result:?}");
    }
    for number in 0..200 {
        let copy = bench.read(&format!("target/d{}/f{number}", number % 5));
        assert_eq!(copy, Some(format!("content {number}").repeat(100).into_bytes()));
    }
    assert!(bench.retire().await.is_empty());
    assert_eq!(tree(&bench.path("target")).len(), 205);
}

#[tokio::test]
async fn an_operation_on_a_tree_that_was_not_claimed_is_refused() {
    let bench = Bench::new(EngineOptions::default());
    bench.write("source/f", b"x");
    bench.prepare().await;
    let fence = Arc::new(Fence::claim(attempt(0), bench.engine.remotes(), []).await.expect("claimed"));
    let planned = Some(Planned { size: 1, tag: None, destination: None });
    assert_eq!(bench.execute(&bench.copy("f", planned), &fence).await.expect_err("refused").kind, Failure::Invalid);
    fence.void();
    let unfenced = unfenced();
    unfenced.void();
    assert_eq!(bench.execute(&bench.copy("f", None), &unfenced).await.expect_err("void").kind, Failure::Revoked);
    assert!(bench.read("target/f").is_none());
}
