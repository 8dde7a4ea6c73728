//! The same filters, asked of a real rclone: both must tell the same files and directories, and refuse the same rules.
//!
//! Skipped where no `rclone` is installed, unless `NKCLUSTER_TEST_ALL` is set.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use futures_util::future::{BoxFuture, FutureExt};
use proptest::prelude::*;

use super::*;
use crate::listing::{Descend, Item, Scope, Side, Visitor, Walk, WalkedDirectory, walk};
use crate::storage::StorageError;
use crate::test_tree::{Like, Tree, at, has_rclone};

/// Runs of rclone for each property.
const CASES: u32 = 30;

/// Names of files and directories; each directory holds all of the former.
const FILES: [&str; 14] = ["a", "b", "ab", "abc", "a.txt", "b.TXT", "B", "é", "É.x", "a b", "x+y", "1", "[a]", "{b}"];
const DIRECTORIES: [&str; 9] = ["a", "b", "ab", "a/b", "a/a", "a/b/a", "b/ab", "B", "c.d"];

/// Paths of all files; a directory and a file of one name do not meet, as files in directories get a suffix.
fn files() -> Vec<String> {
    let below = DIRECTORIES.iter().flat_map(|directory| FILES.iter().map(move |file| format!("{directory}/{file}~")));
    FILES.iter().map(|file| format!("{file}~")).chain(below).chain(["a/plain.txt", "top.txt", "b/ab/top.txt"].map(str::to_owned)).collect()
}

/// The same tree on disk, for all cases. Files have as many bytes as their names.
fn directory() -> &'static std::path::Path {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        for file in files() {
            let path = directory.path().join(&file);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("a directory");
            std::fs::write(path, &file).expect("a file");
        }
        directory
    });
    directory.path()
}

/// Notes whatever it meets, directories with `/` at the end.
struct Notes(Mutex<BTreeSet<String>>);

impl Visitor for Notes {
    type State = WalkedDirectory;

    fn begin(&self, directory: &WalkedDirectory) -> WalkedDirectory {
        directory.clone()
    }

    fn visit(&self, directory: &mut WalkedDirectory, source: Option<Item<'_>>, _: Option<Item<'_>>) -> Descend {
        let item = source.expect("there is only a source");
        let path = directory.path.join(item.name).expect("a path");
        let (text, descend) = if item.is_directory() { (format!("{path}/"), Descend::Source) } else { (path.to_string(), Descend::No) };
        self.0.lock().expect("no panic").insert(text);
        descend
    }

    fn clashes(&self, _: &mut WalkedDirectory, _: Item<'_>) {}

    fn failed(&self, _: &mut WalkedDirectory, side: Side, error: StorageError) {
        panic!("{side:?}: {error}");
    }

    fn deliver<'a>(&'a self, _: &'a mut WalkedDirectory, _: bool) -> BoxFuture<'a, bool> {
        std::future::ready(true).boxed()
    }
}

/// What we tell; none if we refuse the options.
fn ours(options: &FilterOptions) -> Option<BTreeSet<String>> {
    let filter = Arc::new(Filter::load(options, at(0)).ok()?);
    let tree = files().iter().fold(Tree::new(Like::Disk), |tree, file| tree.file(file, file, 1));
    let scope = Scope { filter, ..Scope::default() };
    let plan = Walk { source: Some((Arc::new(tree), scope)), destination: None, checkers: 2, max_depth: None, folds: false, tries: 1 };
    let notes = Arc::new(Notes(Mutex::default()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(walk(Arc::new(plan), notes.clone()));
    Some(std::mem::take(&mut notes.0.lock().expect("no panic")))
}

/// What rclone tells, or why it refuses the options.
fn theirs(options: &FilterOptions) -> Result<BTreeSet<String>, String> {
    let mut command = Command::new("rclone");
    command.args(["lsf", "-R", "--config", "/dev/null"]).arg(directory());
    let FilterOptions { rules, .. } = options;
    let lists = [
        ("--filter", &rules.filter),
        ("--filter-from", &rules.filter_from),
        ("--include", &rules.include),
        ("--include-from", &rules.include_from),
        ("--exclude", &rules.exclude),
        ("--exclude-from", &rules.exclude_from),
        ("--exclude-if-present", &options.exclude_if_present),
        ("--files-from", &options.files_from),
        ("--files-from-raw", &options.files_from_raw),
    ];
    for (flag, values) in lists {
        for value in values {
            command.arg(format!("{flag}={value}"));
        }
    }
    if options.ignore_case {
        command.arg("--ignore-case");
    }
    for (flag, size) in [("--min-size", options.min_size), ("--max-size", options.max_size)] {
        if size != SizeSuffix::OFF {
            command.arg(format!("{flag}={size}"));
        }
    }
    let output = command.output().expect("rclone starts");
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(why.contains("filter") || why.contains("glob") || why.contains("rule"), "rclone failed: {why}");
        return Err(why);
    }
    Ok(String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect())
}

#[track_caller]
fn assert_same(options: &FilterOptions) {
    let (ours, theirs) = (ours(options), theirs(options));
    if let (Some(ours), Ok(theirs)) = (&ours, &theirs) {
        let more: Vec<_> = ours.difference(theirs).collect();
        let less: Vec<_> = theirs.difference(ours).collect();
        assert!(more.is_empty() && less.is_empty(), "too much: {more:?}; missing: {less:?}; {options:#?}");
    }
    assert_eq!(ours.is_some(), theirs.is_ok(), "whether it is refused; {theirs:?} {options:#?}");
}

/// Globs of pieces that mean something; some are wrong.
fn glob() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a",
        "b",
        "ab",
        "B",
        "é",
        "~",
        "a~",
        "b~",
        ".",
        "+",
        "1",
        "*",
        "*",
        "**",
        "?",
        "/",
        "/",
        "[ab]",
        "[^a]",
        "[a-c]",
        "[[:alpha:]]",
        "{a,b}",
        "{a,b/a}",
        "{*.txt,b*}",
        "{{[ab]+}}",
        "{{a{1,2}}}",
        "{{.*b}}",
        r"\[",
        r"\*",
        r"\d",
        "*.txt",
        "plain",
        "x+y",
        "(",
        "$",
        "[",
        "}",
        "]",
        "{",
    ]);
    let ends = (prop::bool::weighted(0.4), prop::bool::weighted(0.2));
    (prop::collection::vec(piece, 1..5), ends).prop_map(|(pieces, (is_anchored, is_directory))| {
        let (start, end) = (if is_anchored { "/" } else { "" }, if is_directory { "/" } else { "" });
        format!("{start}{}{end}", pieces.concat())
    })
}

fn globs(most: usize) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(glob(), 0..most)
}

fn rules() -> impl Strategy<Value = Vec<String>> {
    let rule = (prop::bool::ANY, glob()).prop_map(|(is_include, glob)| format!("{} {glob}", if is_include { '+' } else { '-' }));
    let rule = prop_oneof![12 => rule, 1 => Just("!".to_owned()), 3 => Just("- *".to_owned()), 1 => Just("- /**".to_owned())];
    prop::collection::vec(rule, 1..7)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn rules_mean_what_they_mean_to_rclone(filter in rules(), ignore_case in any::<bool>()) {
        if has_rclone() {
            let rules = RuleOptions { filter, ..RuleOptions::default() };
            assert_same(&FilterOptions { rules, ignore_case, ..FilterOptions::default() });
        }
    }

    #[test]
    fn includes_and_excludes_mean_what_they_mean_to_rclone(include in globs(4), exclude in globs(4), smallest in 0..9u64, largest in 5..30u64) {
        if has_rclone() {
            let rules = RuleOptions { include, exclude, ..RuleOptions::default() };
            let (min_size, max_size) = (SizeSuffix::from_bytes(smallest), SizeSuffix::from_bytes(largest));
            assert_same(&FilterOptions { rules, min_size, max_size, ..FilterOptions::default() });
        }
    }
}

#[test]
fn lists_and_markers_mean_what_they_mean_to_rclone() {
    if !has_rclone() {
        return;
    }
    let lists = tempfile::tempdir().expect("a directory");
    let list = |name: &str, text: &str| {
        let path = lists.path().join(name);
        std::fs::write(&path, text).expect("a list");
        vec![path.to_str().expect("text").to_owned()]
    };
    let names = "# none\n/a/plain.txt\n  b/ab/top.txt  \nmissing\na//b/a~\n; none\n\na/b/\n";
    let rules = "# first\n- /a/b/**\n\n+ *.txt\r\n  + {a,b}~\n- *\n";
    let cases = [
        FilterOptions { files_from: list("names", names), ..FilterOptions::default() },
        FilterOptions {
            files_from_raw: list("raw", "a b~\n# a\n b~\ntop.txt\n"),
            files_from: list("names", names),
            ..FilterOptions::default()
        },
        FilterOptions { rules: RuleOptions { filter_from: list("rules", rules), ..RuleOptions::default() }, ..FilterOptions::default() },
        FilterOptions {
            rules: RuleOptions {
                include_from: list("in", "a~\n/b/\n*.txt\n"),
                exclude_from: list("ex", "plain*\n"),
                ..RuleOptions::default()
            },
            ..FilterOptions::default()
        },
        FilterOptions { exclude_if_present: vec!["plain.txt".to_owned()], ..FilterOptions::default() },
        FilterOptions { exclude_if_present: vec!["none".to_owned(), "abc~".to_owned()], ..FilterOptions::default() },
        FilterOptions {
            files_from: list("names", names),
            rules: RuleOptions { exclude: vec!["a".to_owned()], ..RuleOptions::default() },
            ..FilterOptions::default()
        },
    ];
    for options in &cases {
        assert_same(options);
    }
}
