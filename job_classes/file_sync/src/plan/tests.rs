//! What each task plans, and that carrying it out does what the task says.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::filter::{FilterOptions, RuleOptions};
use crate::listing::Side;
use crate::operation::{Operation, Planned, Seen};
use crate::options::DeleteMode;
use crate::test_tree::{Like, Tree, at, path};

fn request(task: Task, source: Tree, destination: Tree, change: impl FnOnce(&mut Options)) -> PlanRequest {
    let mut options = Options::default();
    change(&mut options);
    let filter = Arc::new(Filter::load(&options.filter, at(0)).expect("a filter"));
    let place = |fs: &str, tree: Tree| Root { fs: fs.to_owned(), storage: Arc::new(tree), excluded: Vec::new() };
    PlanRequest {
        task,
        source: Some(place("/src", source)),
        destination: place("/dst", destination),
        backup_fs: options.backup_dir.clone(),
        folds_names: false,
        deleted: 0,
        options,
        filter,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime")
}

fn steps(request: PlanRequest) -> Vec<Step> {
    runtime().block_on(async {
        let mut planner = Planner::start(request);
        let mut steps = Vec::new();
        while let Some(step) = planner.next().await {
            steps.push(step);
        }
        assert!(planner.counts().is_complete());
        steps
    })
}

/// Steps in few words; those of one phase in order.
fn told(request: PlanRequest) -> Vec<String> {
    let steps = steps(request);
    let mut told = Vec::new();
    for phase in steps.split(|step| *step == Step::Barrier) {
        let is_ordered = phase.iter().any(|step| matches!(step, Step::RemoveDirectory { .. } | Step::SetDirectoryTimes { .. }));
        let mut texts: Vec<_> = phase.iter().map(text).collect();
        if !is_ordered {
            texts.sort();
        }
        told.extend(texts);
        told.push("|".to_owned());
    }
    told.pop();
    told
}

fn operation_text(operation: &Operation) -> String {
    match operation {
        Operation::CopyFile { src_remote, dst_remote, .. } if src_remote == dst_remote => format!("copy {src_remote}"),
        Operation::CopyFile { src_remote, dst_remote, .. } => format!("copy {src_remote} to {dst_remote}"),
        Operation::MoveFile { src_fs, src_remote, dst_fs, dst_remote, .. } => {
            format!("move {src_fs}:{src_remote} to {dst_fs}:{dst_remote}")
        }
        Operation::DeleteFile { fs, remote, .. } => format!("delete {fs}:{remote}"),
    }
}

fn text(step: &Step) -> String {
    match step {
        Step::MakeDirectory { path, .. } => format!("mkdir {path}"),
        Step::Transfer { operation, backup: None } => operation_text(operation),
        Step::Transfer { operation, backup: Some(backup) } => format!("{}, then {}", operation_text(backup), operation_text(operation)),
        Step::Delete { operation, .. } => operation_text(operation),
        Step::UpdateTimes { path, .. } => format!("touch {path}"),
        Step::RemoveDirectory { side, path } => format!("rmdir {side:?}:{path}"),
        Step::SetDirectoryTimes { path, .. } => format!("touch {path}/"),
        Step::Barrier => "|".to_owned(),
        Step::Problem(problem) => format!("problem {:?} {}", problem.kind, problem.path),
        Step::Notice(notice) => format!("notice {:?} {}", notice.kind, notice.path),
    }
}

fn disk() -> Tree {
    Tree::new(Like::Disk)
}

fn sources() -> Tree {
    disk().file("changed", "new", 5).file("new", "1", 5).file("same", "1", 5).file("touched", "1", 6).directory("d", 9).file("d/in", "1", 5)
}

fn destinations() -> Tree {
    disk().file("changed", "older", 4).file("same", "1", 5).file("touched", "1", 5).file("extra", "1", 5).file("old/deep/x", "1", 5)
}

#[test]
fn copy_takes_what_is_missing_or_differs_and_deletes_nothing() {
    let told = told(request(Task::Copy, sources(), destinations(), |_| {}));
    assert_eq!(told, ["copy changed", "copy d/in", "copy new", "touch touched", "|", "touch d/"]);
}

#[test]
fn an_operation_says_what_was_seen_on_both_sides() {
    let steps = steps(request(Task::Copy, sources(), destinations(), |_| {}));
    let planned: BTreeMap<_, _> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Transfer { operation: operation @ Operation::CopyFile { src_fs, dst_fs, src_remote, .. }, .. } => {
                assert_eq!((src_fs.as_str(), dst_fs.as_str()), ("/src", "/dst"));
                Some((src_remote.as_str(), operation.planned().expect("what the plan saw")))
            }
            _ => None,
        })
        .collect();
    let Planned { size, tag, destination } = planned["changed"];
    assert_eq!(*size, 3);
    assert!(tag.as_deref().is_some_and(|tag| tag.starts_with("5-3-")), "{tag:?}");
    assert!(matches!(destination, Some(Seen::Tag(tag)) if tag.starts_with("4-5-")), "{destination:?}");
    assert_eq!(planned["new"].destination, Some(Seen::Nothing));
}

#[test]
fn sync_deletes_at_the_time_it_was_told() {
    let plan = |mode| told(request(Task::Sync, sources(), destinations(), |options| options.delete_mode = mode));
    let deletes = ["delete /dst:extra", "delete /dst:old/deep/x"];
    let transfers = ["copy changed", "copy d/in", "copy new"];
    let directories = ["rmdir Destination:old/deep", "rmdir Destination:old", "touch d/"];
    let after = [&transfers[..], &["touch touched", "|"], &deletes, &["|"], &directories].concat();
    assert_eq!(plan(DeleteMode::After), after);
    let during = [&transfers[..], &deletes, &["touch touched", "|"], &directories].concat();
    assert_eq!(plan(DeleteMode::During), during);
    let before = [&deletes[..], &["|"], &directories[..2], &["|"], &transfers, &["touch touched", "|", "touch d/"]].concat();
    assert_eq!(plan(DeleteMode::Before), before);
}

#[test]
fn move_ends_its_sources_even_those_that_are_there_already() {
    let told = told(request(Task::Move, sources(), destinations(), |options| options.delete_empty_src_dirs = true));
    let expected = [
        "delete /src:same",
        "delete /src:touched",
        "move /src:changed to /dst:changed",
        "move /src:d/in to /dst:d/in",
        "move /src:new to /dst:new",
        "touch touched",
        "|",
        "rmdir Source:d",
        "touch d/",
    ];
    assert_eq!(told, expected);
    let kept = self::told(request(Task::Move, disk().file("a", "1", 5), disk().file("a", "22", 9), |options| options.update = true));
    assert_eq!(kept, ["|"], "a move that leaves what is newer keeps its source");
}

#[test]
fn delete_takes_all_that_the_filter_includes_and_no_directories() {
    let mut request = request(Task::Delete, disk(), destinations(), |options| {
        options.filter.rules = RuleOptions { exclude: vec!["same".to_owned()], ..RuleOptions::default() };
    });
    request.source = None;
    assert_eq!(told(request), ["delete /dst:changed", "delete /dst:extra", "delete /dst:old/deep/x", "delete /dst:touched"]);
}

#[test]
fn excluded_files_stay_unless_they_are_to_be_deleted() {
    let plan = |delete_excluded| {
        told(request(Task::Sync, disk().file("a", "1", 5), disk().file("a", "1", 5).file("x.tmp", "", 5), |options| {
            let rules = RuleOptions { exclude: vec!["*.tmp".to_owned()], ..RuleOptions::default() };
            options.filter = FilterOptions { rules, delete_excluded, ..FilterOptions::default() };
        }))
    };
    assert_eq!(plan(false), ["|"]);
    assert_eq!(plan(true), ["|", "delete /dst:x.tmp", "|"]);
}

#[test]
fn no_more_is_deleted_than_allowed_and_one_more_is_a_problem() {
    for mode in [DeleteMode::After, DeleteMode::During, DeleteMode::Before] {
        let destination = disk().file("a", "", 1).file("b", "", 1).file("c", "", 1);
        let plan = |most| {
            let destination = destination.clone();
            steps(request(Task::Sync, disk(), destination, |options| (options.delete_mode, options.max_delete) = (mode, Some(most))))
        };
        let count = |steps: &[Step]| {
            let deletes = steps.iter().filter(|step| matches!(step, Step::Delete { .. })).count();
            let problems =
                steps.iter().filter(|step| matches!(step, Step::Problem(problem) if problem.kind == ProblemKind::MaxDelete)).count();
            (deletes, problems)
        };
        assert_eq!(count(&plan(3)), (3, 0), "{mode:?}");
        let (deletes, problems) = count(&plan(1));
        assert!(deletes <= 1 && problems == 1, "{mode:?}: {deletes} {problems}");
    }
}

#[test]
fn nothing_is_deleted_after_a_failure_unless_errors_are_ignored() {
    let plan = |ignore_errors| {
        let source = disk().file("bad/x", "", 1).broken("bad");
        told(request(Task::Sync, source, destinations(), |options| options.ignore_errors = ignore_errors))
    };
    assert_eq!(plan(false), ["problem Unreadable(Denied) bad", "|", "problem DeletesSuppressed "]);
    let ignoring = plan(true);
    assert!(ignoring.contains(&"delete /dst:extra".to_owned()), "{ignoring:?}");
    for mode in [DeleteMode::During, DeleteMode::Before] {
        // One directory after the other, so that what fails comes before what is deleted.
        let source = disk().file("a/x", "", 1).broken("a").directory("b", 1);
        let destination = disk().file("a/x", "", 1).file("b/extra", "", 1);
        let told = told(request(Task::Sync, source, destination, |options| (options.delete_mode, options.checkers) = (mode, 1)));
        assert!(told.contains(&"problem DeletesSuppressed ".to_owned()), "{mode:?}: {told:?}");
        assert!(!told.iter().any(|text| text.starts_with("delete")), "{mode:?}: {told:?}");
    }
}

#[test]
fn a_storage_that_does_not_list_in_order_as_it_says_leads_to_no_deletes() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let tree = |like| names.iter().fold(Tree::new(like), |tree, name| tree.file(name, "", 1));
    let told = told(request(Task::Sync, tree(Like::Unordered).pretending_order(), tree(Like::Disk), |_| {}));
    assert!(told.iter().any(|text| text.starts_with("problem Unreadable")), "{told:?}");
    assert!(!told.iter().any(|text| text.starts_with("delete")), "{told:?}");
}

#[test]
fn failures_that_pass_are_asked_again_and_others_are_not() {
    let planned = |failing: u32, like| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let source = Tree::new(like).file("a", "1", 5).file("b", "1", 5).failing(failing);
            let request = request(Task::Copy, source, disk().file("a", "1", 5), |options| options.checkers = 1);
            let mut planner = Planner::start(request);
            let mut told = Vec::new();
            while let Some(step) = planner.next().await {
                told.push(text(&step));
            }
            told
        })
    };
    for like in [Like::Disk, Like::Unordered, Like::Objects] {
        assert_eq!(planned(9, like), ["copy b", "|"], "{like:?}");
        assert!(planned(1000, like)[0].starts_with("problem Unreadable(Temporary)"), "{like:?}");
    }
}

#[test]
fn delete_leaves_links_unless_they_are_asked_for() {
    let plan = |links| {
        let mut request = request(Task::Delete, disk(), disk().link("l", "x").file("a", "", 1), |options| options.links = links);
        request.source = None;
        told(request)
    };
    assert_eq!(plan(false), ["delete /dst:a"]);
    assert_eq!(plan(true), ["delete /dst:a", "delete /dst:l"]);
}

#[test]
fn a_failure_of_a_transfer_suppresses_the_deletes_after_it() {
    let told = runtime().block_on(async {
        let mut planner = Planner::start(request(Task::Sync, sources(), destinations(), |_| {}));
        let mut told = Vec::new();
        while let Some(step) = planner.next().await {
            if matches!(step, Step::Transfer { .. }) {
                planner.tell_failure();
            }
            told.push(text(&step));
        }
        told
    });
    assert!(told.contains(&"problem DeletesSuppressed ".to_owned()), "{told:?}");
    assert!(!told.iter().any(|text| text.starts_with("delete") || text.starts_with("rmdir")), "{told:?}");
}

#[test]
fn what_is_replaced_or_deleted_goes_to_the_backups_first() {
    let plan = |change: fn(&mut Options)| {
        told(request(Task::Sync, disk().file("a.txt", "1", 5), disk().file("a.txt", "22", 5).file("b", "", 5), change))
    };
    assert_eq!(
        plan(|options| options.backup_dir = Some("/old".to_owned())),
        ["move /dst:a.txt to /old:a.txt, then copy a.txt", "|", "move /dst:b to /old:b", "|"]
    );
    let both = plan(|options| {
        options.suffix = Some("~".to_owned());
        options.suffix_keep_extension = true;
    });
    assert_eq!(both, ["move /dst:a.txt to /dst:a~.txt, then copy a.txt", "|", "move /dst:b to /dst:b~", "|"]);
}

#[test]
fn a_file_that_is_a_directory_on_the_other_side_is_a_problem() {
    let source = || disk().file("a", "", 1).file("b/x", "", 1);
    let destination = || disk().file("a/x", "", 1).file("b", "", 1);
    let after = told(request(Task::Sync, source(), destination(), |_| {}));
    assert_eq!(after, ["problem WrongKind a", "problem WrongKind b", "|"]);
    let before = told(request(Task::Sync, source(), destination(), |options| options.delete_mode = DeleteMode::Before));
    assert_eq!(before[..5], ["delete /dst:a/x", "delete /dst:b", "|", "rmdir Destination:a", "|"], "{before:?}");
}

#[test]
fn links_are_told_and_skipped_or_copied_as_links() {
    let source = || disk().link("l", "x").link("m", "x").special("pipe");
    let destination = || disk().link("m", "x").link("gone", "x");
    assert_eq!(
        told(request(Task::Sync, source(), destination(), |_| {})),
        ["notice LinkSkipped l", "notice LinkSkipped m", "notice SpecialSkipped pipe", "|"]
    );
    assert_eq!(
        told(request(Task::Sync, source(), destination(), |options| options.links = true)),
        ["copy l", "notice SpecialSkipped pipe", "|", "delete /dst:gone", "|"]
    );
    let to_objects = told(request(Task::Copy, source(), Tree::new(Like::Objects), |options| options.links = true));
    assert_eq!(to_objects, ["notice LinkSkipped l", "notice LinkSkipped m", "notice SpecialSkipped pipe", "|"]);
}

#[test]
fn empty_directories_are_made_only_when_asked_for() {
    let source = || disk().directory("e/f", 7).file("g/x", "", 1);
    assert_eq!(told(request(Task::Copy, source(), disk(), |_| {}))[..2], ["copy g/x", "|"]);
    let made = told(request(Task::Copy, source(), disk(), |options| options.create_empty_src_dirs = true));
    assert_eq!(made, ["copy g/x", "mkdir e", "mkdir e/f", "mkdir g", "|", "touch g/", "touch e/f/", "touch e/"]);
    let to_objects = told(request(Task::Copy, source(), Tree::new(Like::Objects), |options| options.create_empty_src_dirs = true));
    assert_eq!(to_objects, ["copy g/x", "|"]);
}

#[test]
fn a_directory_gets_its_time_only_if_it_has_another_one_in_the_end() {
    let source = || disk().directory("d", 7).file("d/x", "1", 5);
    let same = told(request(Task::Sync, source(), source(), |_| {}));
    assert_eq!(same, ["|"]);
    let other = told(request(Task::Sync, source(), disk().directory("d", 8).file("d/x", "1", 5), |_| {}));
    assert_eq!(other, ["|", "touch d/"]);
    let changed = told(request(Task::Sync, source(), disk().directory("d", 7).file("d/x", "1", 5).file("d/y", "", 1), |_| {}));
    assert_eq!(changed, ["|", "delete /dst:d/y", "|", "touch d/"]);
    let never = told(request(Task::Copy, source(), disk(), |options| options.no_update_dir_modtime = true));
    assert_eq!(never, ["copy d/x", "|"]);
}

#[test]
fn objects_are_asked_one_by_one_for_what_a_listing_lacks() {
    let objects = || Tree::new(Like::Objects).file("same", "1", 5).file("changed", "1", 5).file("touched", "1", 5);
    let files = || disk().file("same", "1", 5).file("changed", "2", 6).file("touched", "1", 6);
    // To objects a time is only set by writing; from objects the hash tells that the content is the same.
    assert_eq!(told(request(Task::Copy, files(), objects(), |_| {})), ["copy changed", "copy touched", "|"]);
    assert_eq!(told(request(Task::Copy, objects(), files(), |_| {})), ["copy changed", "touch touched", "|"]);
    assert_eq!(told(request(Task::Copy, files(), objects(), |options| options.checksum = true)), ["copy changed", "|"]);
}

#[test]
fn what_a_very_large_directory_does_not_keep_is_asked_for_again() {
    let objects = |content| (0..40).fold(Tree::new(Like::Objects), |tree, number| tree.file(&format!("f{number:02}"), content, 5));
    let steps = steps(request(Task::Copy, objects("1"), objects("2"), |options| options.checksum = true));
    let tagged = steps.iter().filter_map(|step| match step {
        Step::Transfer { operation, .. } => operation.planned(),
        _ => None,
    });
    let complete = tagged.filter(|planned| planned.tag.is_some() && matches!(planned.destination, Some(Seen::Tag(_))));
    assert_eq!(complete.count(), 40);
    let same = told(request(Task::Copy, objects("1"), objects("1"), |options| options.checksum = true));
    assert_eq!(same, ["|"]);
}

#[test]
fn immutable_files_that_differ_are_problems() {
    let told = told(request(Task::Copy, sources(), destinations(), |options| options.immutable = true));
    assert_eq!(told[..4], ["copy d/in", "copy new", "problem Immutable changed", "problem Immutable touched"]);
}

#[test]
fn a_file_that_cannot_be_compared_is_a_problem_of_its_own() {
    let source = Tree::new(Like::Objects).file("a", "1", 5).file("b", "1", 5);
    let mut destination = Tree::new(Like::Objects).file("a", "1", 5).file("b", "1", 5);
    // It is listed, and then refuses to tell its time.
    destination = destination.broken("unrelated");
    let fine = told(request(Task::Copy, source.clone(), destination, |_| {}));
    assert_eq!(fine, ["|"]);
    let checked = told(request(Task::Copy, source, disk().file("a", "2", 6).directory("b", 1), |options| options.checksum = true));
    assert_eq!(checked, ["copy a", "problem WrongKind b", "|"]);
}

#[test]
fn foreign_forms_of_one_name_are_told_and_clashes_are_problems() {
    let source = || disk().file("caf\u{e9}", "", 1).file("cafe\u{301}", "", 1).file("A", "", 1).file("a", "", 1);
    let apart = told(request(Task::Copy, source(), disk(), |_| {}));
    assert_eq!(apart.iter().filter(|text| text.starts_with("copy")).count(), 4);
    assert!(apart.iter().any(|text| text.starts_with("notice SameLook")), "{apart:?}");
    let mut folding = request(Task::Copy, source(), disk().file("a", "other", 1), |_| {});
    folding.folds_names = true;
    let folded = told(folding);
    assert_eq!(folded.iter().filter(|text| text.starts_with("problem Clash")).count(), 2, "{folded:?}");
    assert!(folded.contains(&"copy A to a".to_owned()), "{folded:?}");
}

#[test]
fn a_plan_of_many_steps_waits_for_whoever_takes_them() {
    let source = (0..5000).fold(disk(), |tree, number| tree.file(&format!("f{number:04}"), "", 1));
    runtime().block_on(async {
        let mut planner = Planner::start(request(Task::Copy, source, disk(), |_| {}));
        let counts = planner.counts();
        let mut taken = 0;
        while let Some(step) = planner.next().await {
            taken += u64::from(matches!(step, Step::Transfer { .. }));
            let waiting = counts.transfers() - taken.min(counts.transfers());
            assert!(waiting <= STEPS_WAITING_MAX as u64 + 512, "{waiting} steps wait");
        }
        assert_eq!((taken, counts.listed()), (5000, 5000));
    });
}

#[test]
fn check_tells_each_difference_by_its_sign() {
    let combined = |change: fn(&mut Options), source: Tree, destination: Tree| {
        runtime().block_on(async {
            let mut checking = check(request(Task::Copy, source, destination, change));
            let mut findings = Vec::new();
            while let Some(finding) = checking.next().await {
                findings.push(finding.to_string());
            }
            findings.sort();
            findings
        })
    };
    let source = || {
        disk().file("a", "1", 1).file("b", "1", 1).file("c", "1", 1).file("d/e", "1", 1).file("f", "22", 1).file("g/h", "", 1).broken("g")
    };
    let destination = || disk().file("a", "1", 9).file("b", "2", 1).file("x/y", "", 1).file("f", "1", 1);
    assert_eq!(combined(|_| {}, source(), destination()), ["! g", "* b", "* f", "+ c", "+ d/e", "- x/y", "= a"]);
    assert_eq!(combined(|options| options.one_way = true, source(), destination()), ["! g", "* b", "* f", "+ c", "+ d/e", "= a"]);
    assert_eq!(combined(|options| options.size_only = true, source(), destination())[1], "* f");
    let objects = Tree::new(Like::Objects).file("a", "1", 1).file("b", "2", 1);
    assert_eq!(combined(|_| {}, disk().file("a", "1", 1).file("b", "1", 1), objects), ["* b", "= a"]);
}

/// Carries steps out on plain maps of contents and times.
fn carry_out(steps: &[Step], source: &mut BTreeMap<String, (String, u64)>, destination: &mut BTreeMap<String, (String, u64)>) {
    for step in steps {
        match step {
            Step::Transfer { operation: Operation::CopyFile { src_remote, dst_remote, planned, .. }, .. } => {
                let is_there = destination.contains_key(dst_remote);
                let seen = planned.as_ref().and_then(|planned| planned.destination.as_ref());
                assert_eq!(matches!(seen, Some(Seen::Tag(_))), is_there, "{dst_remote}");
                destination.insert(dst_remote.clone(), source[src_remote].clone());
            }
            Step::Transfer { operation: Operation::MoveFile { src_remote, dst_remote, .. }, .. } => {
                let moved = source.remove(src_remote).expect("a source");
                destination.insert(dst_remote.clone(), moved);
            }
            Step::Delete { side, operation: Operation::DeleteFile { remote, .. } } => {
                let place = if *side == Side::Source { &mut *source } else { &mut *destination };
                place.remove(remote).expect("something to delete");
            }
            Step::UpdateTimes { path, modified } => {
                let seconds = modified.duration_since(at(0)).expect("after").as_secs();
                destination.get_mut(path.as_str()).expect("a file").1 = seconds;
            }
            _ => {}
        }
    }
}

/// Files of which two of the same size and time have the same content, without which no comparison by size and time can be right.
fn file_maps() -> impl Strategy<Value = BTreeMap<String, (String, u64)>> {
    let files = prop::collection::btree_map("([ab]/){0,2}[a-e]f", ("[xy]{0,2}", 0..2u64), 0..12);
    files.prop_map(|mut files| {
        for (content, seconds) in files.values_mut() {
            *seconds = *seconds * 100 + content.bytes().fold(0, |sum, byte| sum * 3 + u64::from(byte - b'w'));
        }
        files
    })
}

fn tree(like: Like, files: &BTreeMap<String, (String, u64)>) -> Tree {
    files.iter().fold(Tree::new(like), |tree, (name, (content, seconds))| tree.file(name, content, *seconds))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn after_a_sync_both_sides_are_the_same_and_a_second_one_does_nothing(
        source in file_maps(), destination in file_maps(), likes in (0..3usize, 0..3usize), mode in 0..3usize,
    ) {
        let kinds = [Like::Disk, Like::Unordered, Like::Objects];
        let mode = [DeleteMode::After, DeleteMode::During, DeleteMode::Before][mode];
        let plan = |source: &_, destination: &_| {
            let (source, destination) = (tree(kinds[likes.0], source), tree(kinds[likes.1], destination));
            steps(request(Task::Sync, source, destination, |options| options.delete_mode = mode))
        };
        let (mut here, mut there) = (source.clone(), destination.clone());
        carry_out(&plan(&here, &there), &mut here, &mut there);
        prop_assert_eq!(&here, &source);
        prop_assert_eq!(&there, &source);
        let again = plan(&here, &there);
        let effects: Vec<_> = again.iter().filter(|step| matches!(step, Step::Transfer { .. } | Step::Delete { .. } | Step::UpdateTimes { .. })).collect();
        prop_assert!(effects.is_empty(), "{:?}", effects);
    }

    #[test]
    fn after_a_move_everything_is_at_the_destination(source in file_maps(), destination in file_maps()) {
        let (mut here, mut there) = (source.clone(), destination.clone());
        let plan = steps(request(Task::Move, tree(Like::Disk, &here), tree(Like::Disk, &there), |_| {}));
        carry_out(&plan, &mut here, &mut there);
        prop_assert!(here.is_empty());
        let mut expected = destination;
        expected.extend(source);
        prop_assert_eq!(there, expected);
    }
}

#[test]
fn directories_come_and_go_in_an_order_that_can_be_carried_out() {
    let source = disk().directory("a/b/c", 1).directory("a.d", 1);
    let made: Vec<_> = steps(request(Task::Copy, source.clone(), disk(), |options| options.create_empty_src_dirs = true))
        .into_iter()
        .filter_map(|step| if let Step::MakeDirectory { path, .. } = step { Some(path) } else { None })
        .collect();
    let position = |name: &str| made.iter().position(|made| *made == path(name)).expect("made");
    assert!(position("a") < position("a/b") && position("a/b") < position("a/b/c"));
    let removed = told(request(Task::Sync, disk(), source, |_| {}));
    let place = |name: &str| removed.iter().position(|text| *text == format!("rmdir Destination:{name}")).expect("removed");
    assert!(place("a/b/c") < place("a/b") && place("a/b") < place("a"));
}
