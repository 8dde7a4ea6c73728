//! Golden tables of what is included.

use std::time::Duration;

use super::*;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn build(options: &FilterOptions, files: &[(&str, &str)]) -> Result<Filter, FilterError> {
    Filter::build(options, NOW + Duration::from_secs(1_000_000), &mut |file| {
        let found = files.iter().find(|(name, _)| *name == file);
        found.map(|(_, text)| text.as_bytes().to_vec()).ok_or_else(|| std::io::Error::other("no such file"))
    })
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn with_rules(rules: &[&str]) -> Filter {
    let rules = RuleOptions { filter: texts(rules), ..RuleOptions::default() };
    build(&FilterOptions { rules, ..FilterOptions::default() }, &[]).expect("a filter")
}

/// Checks files, and directories where the path ends in `/`.
#[track_caller]
fn assert_included(filter: &Filter, cases: &[(&str, bool)]) {
    for (path, expected) in cases {
        let included = match path.strip_suffix('/') {
            Some(directory) => filter.includes_directory(directory),
            None => filter.includes_file(path, 0, None),
        };
        assert_eq!(included, *expected, "{path}");
    }
}

#[test]
fn without_filters_everything_is_included() {
    let filter = build(&FilterOptions::default(), &[]).expect("a filter");
    assert!(filter.is_inactive());
    assert_included(&filter, &[("a", true), ("a/b", true), ("a/", true)]);
}

#[test]
fn the_first_rule_that_matches_decides() {
    let filter = with_rules(&["- secret*.jpg", "+ *.jpg", "+ *.png", "+ file2.avi", "- /dir/Trash/**", "+ /dir/**", "- *"]);
    assert_included(
        &filter,
        &[
            ("secret17.jpg", false),
            ("sub/secret17.jpg", false),
            ("file1.jpg", true),
            ("sub/file1.png", true),
            ("file1.avi", false),
            ("file2.avi", true),
            ("dir/x", true),
            ("dir/Trash/x", false),
            ("dir/Trash/x.jpg", true),
        ],
    );
}

#[test]
fn a_directory_is_entered_only_if_something_in_it_can_be_included() {
    let filter = with_rules(&["+ /a/b/*.txt", "- *"]);
    assert_included(&filter, &[("a/", true), ("a/b/", true), ("a/b/c/", false), ("x/", false), ("a/b/1.txt", true), ("a/1.txt", false)]);
    assert_included(&with_rules(&["- dir/"]), &[("dir/", false), ("x/dir/", false), ("dir/a", false), ("dirt/", true)]);
    assert_included(&with_rules(&["+ *.txt", "- *"]), &[("any/", true), ("any/x.txt", true), ("any/x", false)]);
}

#[test]
fn an_exclamation_mark_forgets_what_was_before() {
    assert_included(&with_rules(&["- a", "!", "- b"]), &[("a", true), ("b", false)]);
}

#[test]
fn include_excludes_all_else_and_from_files_come_after() {
    let rules =
        RuleOptions { include: texts(&["*.c"]), include_from: texts(&["list"]), exclude: texts(&["x.c", "y.o"]), ..RuleOptions::default() };
    let filter =
        build(&FilterOptions { rules, ..FilterOptions::default() }, &[("list", "# comment\n\n  *.h \r\n; more\n")]).expect("a filter");
    assert!(filter.is_mixed());
    assert_included(&filter, &[("x.c", true), ("a.h", true), ("y.o", false), ("z", false)]);
}

#[test]
fn case_is_told_apart_unless_it_is_ignored() {
    let rules = RuleOptions { exclude: texts(&["*.JPG"]), ..RuleOptions::default() };
    let options = FilterOptions { rules, ..FilterOptions::default() };
    assert_included(&build(&options, &[]).expect("a filter"), &[("a.jpg", true), ("a.JPG", false)]);
    let options = FilterOptions { ignore_case: true, ..options };
    assert_included(&build(&options, &[]).expect("a filter"), &[("a.jpg", false), ("a.JPG", false)]);
}

#[test]
fn a_list_of_files_is_exactly_that() {
    let options = FilterOptions { files_from: texts(&["list"]), files_from_raw: texts(&["raw"]), ..FilterOptions::default() };
    let filter = build(&options, &[("list", "# no\n /a/b/c.txt \nd\n"), ("raw", "# yes\n e \n")]).expect("a filter");
    assert_included(
        &filter,
        &[("a/b/c.txt", true), ("d", true), ("# yes", true), (" e ", true), ("e", false), ("a/", true), ("a/b/", true), ("a/x/", false)],
    );
    let options = FilterOptions { min_size: SizeSuffix::from_bytes(1), ..options };
    assert!(matches!(build(&options, &[]), Err(FilterError::ListNotAlone)));
}

#[test]
fn a_single_file_is_reached_and_nothing_else() {
    assert_included(&Filter::only(["a/b.txt"]), &[("a/", true), ("a/b.txt", true), ("a/c.txt", false), ("b/", false), ("b.txt", false)]);
    assert_included(&Filter::only([]), &[("a", false), ("a/", false)]);
}

#[test]
fn sizes_and_ages_have_inclusive_limits() {
    let options = FilterOptions {
        min_size: SizeSuffix::from_bytes(10),
        max_size: SizeSuffix::from_bytes(20),
        min_age: "1d".parse().expect("an age"),
        max_age: "2d".parse().expect("an age"),
        ..FilterOptions::default()
    };
    let filter = build(&options, &[]).expect("a filter");
    let at = |age_s: u64| Some(NOW + Duration::from_secs(1_000_000 - age_s));
    for (size, age_s, expected) in [(10, 86_400, true), (20, 172_800, true), (9, 100_000, false), (21, 100_000, false)] {
        assert_eq!(filter.includes_file("a", size, at(age_s)), expected, "{size} {age_s}");
    }
    assert!(!filter.includes_file("a", 15, at(86_399)) && !filter.includes_file("a", 15, at(172_801)));
    assert!(filter.includes_file("a", 15, None) && filter.includes_directory("d"));
    let options = FilterOptions { min_age: "3d".parse().expect("an age"), ..options };
    assert!(matches!(build(&options, &[]), Err(FilterError::Ages(..))));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for rule in ["a", "+a", "-", "", "? x", "+ a[", "- {{(}}"] {
        let rules = RuleOptions { filter: texts(&[rule]), ..RuleOptions::default() };
        assert!(build(&FilterOptions { rules, ..FilterOptions::default() }, &[]).is_err(), "{rule}");
    }
    let rules = RuleOptions { exclude_from: texts(&["missing"]), ..RuleOptions::default() };
    let error = build(&FilterOptions { rules, ..FilterOptions::default() }, &[]).expect_err("no file");
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn filters_with_the_content_of_their_files_mean_the_same_where_these_are_not() {
    let files: &[(&str, &str)] =
        &[("rules", "# comment\n- *.tmp\n+ keep/**"), ("globs", "*.h\n\n*.c"), ("names", "dir/a.c \n/b.h"), ("nothing", "# none\n")];
    let rules = |filter: &[&str], include: &[&str], exclude: &[&str]| RuleOptions {
        filter_from: texts(filter),
        include_from: texts(include),
        exclude_from: texts(exclude),
        exclude: texts(&["*.o"]),
        ..RuleOptions::default()
    };
    let of = |rules: RuleOptions| FilterOptions { rules, ..FilterOptions::default() };
    let named = |names: &str| FilterOptions { files_from: texts(&[names]), ..FilterOptions::default() };
    let all = [
        of(rules(&["rules"], &[], &["globs"])),
        of(rules(&["rules"], &["globs"], &[])),
        of(rules(&[], &["nothing"], &["nothing"])),
        named("names"),
        named("nothing"),
    ];
    let mut read = |name: &str| {
        let (_, content) = files.iter().find(|(known, _)| *known == name).expect("one of ours");
        Ok(content.as_bytes().to_vec())
    };
    for options in all {
        let original = Filter::build(&options, SystemTime::UNIX_EPOCH, &mut read).expect("a filter");
        let inlined = options.clone().inlined(&mut read).expect("readable");
        let inlined = Filter::build(&inlined, SystemTime::UNIX_EPOCH, &mut |name| panic!("{name} is read again")).expect("a filter");
        for path in ["a.tmp", "keep/a", "dir/a.c", "b.h", "x.o", "y"] {
            let includes = [&original, &inlined].map(|filter| filter.includes_file(path, 1, None));
            assert_eq!(includes[0], includes[1], "{path:?} with {options:?}");
        }
    }
}
