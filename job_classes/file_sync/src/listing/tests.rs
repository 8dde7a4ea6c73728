//! Whatever the trees and the order of listings, a walk meets what set comparison says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures_util::future::{BoxFuture, FutureExt};
use proptest::prelude::*;

use super::*;
use crate::entry::EntryKind;
use crate::filter::{Filter, FilterOptions, RuleOptions};
use crate::storage::{Storage, StorageError};
use crate::test_tree::{Like, Tree, path};

/// Notes everything.
#[derive(Default)]
struct Notes(Mutex<Seen>);

#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// By path: at the source, at the destination.
    pairs: BTreeMap<String, (bool, bool)>,
    failures: Vec<(Side, String)>,
    clashes: BTreeSet<String>,
}

impl Visitor for Notes {
    type State = WalkedDirectory;

    fn begin(&self, directory: &WalkedDirectory) -> WalkedDirectory {
        directory.clone()
    }

    fn visit(&self, directory: &mut WalkedDirectory, source: Option<Item<'_>>, destination: Option<Item<'_>>) -> Descend {
        let item = source.or(destination).expect("one of the two");
        let path = directory.path.join(item.name).expect("a path").to_string();
        let key = if item.is_directory() { format!("{path}/") } else { path };
        let again = self.0.lock().expect("no panic").pairs.insert(key.clone(), (source.is_some(), destination.is_some()));
        assert_eq!(again, None, "{key} was told twice");
        match (source, destination) {
            _ if !item.is_directory() => Descend::No,
            (Some(_), Some(_)) => Descend::Both,
            (Some(_), None) => Descend::Source,
            _ => Descend::Destination,
        }
    }

    fn clashes(&self, directory: &mut WalkedDirectory, source: Item<'_>) {
        let path = directory.path.join(source.name).expect("a path").to_string();
        self.0.lock().expect("no panic").clashes.insert(path);
    }

    fn failed(&self, _: &mut WalkedDirectory, side: Side, error: StorageError) {
        self.0.lock().expect("no panic").failures.push((side, error.what));
    }

    fn deliver<'a>(&'a self, _: &'a mut WalkedDirectory, _: bool) -> BoxFuture<'a, bool> {
        std::future::ready(true).boxed()
    }
}

fn plan(source: Tree, destination: Tree) -> Walk {
    let side = |tree: Tree| Some((Arc::new(tree) as Arc<dyn Storage>, Scope::default()));
    Walk { source: side(source), destination: side(destination), checkers: 3, max_depth: None, folds: false, tries: 1 }
}

fn seen(plan: Walk) -> Seen {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let notes = Arc::new(Notes::default());
    runtime.block_on(walk(Arc::new(plan), notes.clone()));
    std::mem::take(&mut notes.0.lock().expect("no panic"))
}

fn pairs(plan: Walk) -> Vec<(String, bool, bool)> {
    seen(plan).pairs.into_iter().map(|(path, (source, destination))| (path, source, destination)).collect()
}

fn tree(like: Like, files: &BTreeSet<String>) -> Tree {
    files.iter().fold(Tree::new(like), |tree, file| tree.file(file, "x", 1))
}

/// Every file and, with `/` at the end, every directory above one.
fn all(files: &BTreeSet<String>) -> BTreeSet<String> {
    let directories = files.iter().flat_map(|file| file.match_indices('/').map(|(at, _)| file[..=at].to_owned()));
    files.iter().cloned().chain(directories).collect()
}

/// Paths in which a name is never both a file and a directory: files end in `f`.
fn files() -> impl Strategy<Value = BTreeSet<String>> {
    prop::collection::btree_set("([a-c][ .-]?/){0,3}[a-dé][0-3]?f", 0..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_walk_is_set_comparison(source in files(), destination in files(), likes in (0..3usize, 0..3usize)) {
        let kinds = [Like::Disk, Like::Unordered, Like::Objects];
        let plan = plan(tree(kinds[likes.0], &source), tree(kinds[likes.1], &destination));
        let (here, there) = (all(&source), all(&destination));
        let expected: BTreeMap<_, _> =
            here.union(&there).map(|path| (path.clone(), (here.contains(path), there.contains(path)))).collect();
        prop_assert_eq!(seen(plan), Seen { pairs: expected, ..Seen::default() });
    }
}

#[test]
fn own_and_excluded_directories_are_never_told() {
    let source = Tree::new(Like::Disk).file("a", "", 1).file(".nkcluster-xyz/1.0/part", "", 1).file("work/queue/pending/x", "", 1);
    let mut plan = plan(source, Tree::new(Like::Disk).file("d/.nkcluster-abc/x", "", 1));
    plan.source.as_mut().expect("a source").1.excluded.push(path("work/queue"));
    let told: Vec<_> = pairs(plan).into_iter().map(|(path, ..)| path).collect();
    assert_eq!(told, ["a", "d/", "work/"]);
}

#[test]
fn a_filter_prunes_and_markers_exclude_their_directories() {
    let source = Tree::new(Like::Disk).file("a.c", "", 1).file("a.o", "", 1).file("d/b.c", "", 1).file("e/.no", "", 1).file("e/b.c", "", 1);
    let rules = RuleOptions { exclude: vec!["*.o".to_owned()], ..RuleOptions::default() };
    let options = FilterOptions { rules, exclude_if_present: vec![".no".to_owned()], ..FilterOptions::default() };
    let filter = Arc::new(Filter::load(&options, crate::test_tree::at(0)).expect("a filter"));
    // What cannot be listed is not listed, since the filter keeps the walk out.
    let mut plan = plan(source.broken("e"), Tree::new(Like::Unordered));
    plan.source.as_mut().expect("a source").1.filter = filter;
    let told = seen(plan);
    assert_eq!(told.pairs.into_keys().collect::<Vec<_>>(), ["a.c", "d/", "d/b.c"]);
    assert_eq!(told.failures, []);
}

#[test]
fn files_of_an_age_are_asked_for_their_times_where_listings_lack_them() {
    let options = FilterOptions { min_age: "50s".parse().expect("an age"), ..FilterOptions::default() };
    let filter = Arc::new(Filter::load(&options, crate::test_tree::at(100)).expect("a filter"));
    let mut plan = plan(Tree::new(Like::Objects).file("old", "", 40).file("new", "", 60), Tree::new(Like::Disk));
    plan.source.as_mut().expect("a source").1.filter = filter;
    assert_eq!(pairs(plan), [("old".to_owned(), true, false)]);
}

#[test]
fn what_cannot_be_read_at_the_source_is_told_and_nothing_below_counts_as_missing() {
    for like in [Like::Disk, Like::Unordered] {
        let source = Tree::new(like).file("d/x", "", 1).file("e/x", "", 1).file("e/y", "", 1).broken("d").broken("e/x");
        let destination = Tree::new(like).file("d/x", "", 1).file("d/more", "", 1).file("e/x", "", 1).file("e/y", "", 1).file("f", "", 1);
        let told = seen(plan(source, destination));
        let known: Vec<_> = told.pairs.iter().map(|(path, sides)| (path.as_str(), *sides)).collect();
        assert_eq!(known, [("d/", (true, true)), ("e/", (true, true)), ("e/y", (true, true)), ("f", (false, true))], "{like:?}");
        assert_eq!(told.failures.len(), 2);
        assert!(told.failures.iter().all(|(side, _)| *side == Side::Source), "{told:?}");
    }
}

#[test]
fn a_destination_that_cannot_be_read_is_told_and_nothing_below_counts_as_new() {
    let source = Tree::new(Like::Disk).file("d/x", "", 1).file("y", "", 1);
    let told = seen(plan(source, Tree::new(Like::Disk).file("d/x", "", 1).broken("d")));
    assert_eq!(told.pairs.into_keys().collect::<Vec<_>>(), ["d/", "y"]);
    assert_eq!(told.failures.len(), 1);
    let missing_root = seen(plan(Tree::new(Like::Disk).broken(""), Tree::new(Like::Disk).file("y", "", 1)));
    assert_eq!((missing_root.pairs.len(), missing_root.failures.len()), (0, 1));
}

#[test]
fn depth_is_counted_from_the_root() {
    let mut plan = plan(Tree::new(Like::Disk).file("a/b/c", "", 1), Tree::new(Like::Disk));
    plan.max_depth = Some(2);
    assert_eq!(pairs(plan), [("a/".to_owned(), true, false), ("a/b/".to_owned(), true, false)]);
}

#[test]
fn where_names_fold_they_pair_and_those_of_the_source_that_are_one_clash() {
    let source =
        Tree::new(Like::Disk).file("README", "", 1).file("readme", "", 1).file("caf\u{e9}", "", 1).file("B", "", 1).file("a", "", 1);
    let destination = Tree::new(Like::Disk).file("Readme", "", 1).file("cafe\u{301}", "", 1).file("c", "", 1);
    let mut plan = plan(source, destination);
    plan.folds = true;
    let told = seen(plan);
    let sides: Vec<_> = told.pairs.iter().map(|(path, sides)| (path.as_str(), *sides)).collect();
    let expected =
        [("B", (true, false)), ("README", (true, true)), ("a", (true, false)), ("c", (false, true)), ("caf\u{e9}", (true, true))];
    assert_eq!(sides, expected);
    assert_eq!(told.clashes, BTreeSet::from(["readme".to_owned()]));
}

#[test]
fn links_and_special_files_are_told_as_such() {
    struct Kinds(Mutex<Vec<(String, EntryKind)>>);
    impl Visitor for Kinds {
        type State = ();
        fn begin(&self, _: &WalkedDirectory) {}
        fn visit(&self, (): &mut (), source: Option<Item<'_>>, _: Option<Item<'_>>) -> Descend {
            let item = source.expect("only a source");
            self.0.lock().expect("no panic").push((item.name.to_owned(), item.to_entry(path(item.name)).0.kind));
            Descend::No
        }
        fn clashes(&self, (): &mut (), _: Item<'_>) {}
        fn failed(&self, (): &mut (), _: Side, _: StorageError) {}
        fn deliver<'a>(&'a self, (): &'a mut (), _: bool) -> BoxFuture<'a, bool> {
            std::future::ready(true).boxed()
        }
    }
    for like in [Like::Disk, Like::Unordered] {
        let kinds = Arc::new(Kinds(Mutex::default()));
        let mut plan = plan(Tree::new(like).link("l", "to/there").special("pipe"), Tree::new(like));
        plan.destination = None;
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(walk(Arc::new(plan), kinds.clone()));
        let told = std::mem::take(&mut *kinds.0.lock().expect("no panic"));
        assert_eq!(told, [("l".to_owned(), EntryKind::Link("to/there".into())), ("pipe".to_owned(), EntryKind::Other)]);
    }
}
