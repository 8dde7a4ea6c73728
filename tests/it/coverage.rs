//! The chapter `coverage`: every row of the checklist has tests or says what it waits for, and every test that it names exists and runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Sections of the checklist with the number of their rows.
const SECTIONS: &[(&str, usize)] = &[
    ("N1.", 26),
    ("N2.", 20),
    ("N3.", 17),
    ("N4.", 8),
    ("N5.", 8),
    ("N6.", 14),
    ("N7.", 19),
    ("N8.", 16),
    ("N9.", 11),
    ("R", 35),
    ("A13-", 25),
    ("A14-", 25),
];

/// Rows that are not simply counted.
const OTHERS: &[&str] = &["A10", "A11"];

/// Crates and test targets with the file where their modules begin.
const ROOTS: &[(&str, &str)] = &[
    ("nkcluster", "src/lib.rs"),
    ("nkcluster_programs", "src/bin/programs.rs"),
    ("nkcluster_files", "job_classes/files/src/lib.rs"),
    ("nkcluster_file_sync", "job_classes/file_sync/src/lib.rs"),
    ("object", "job_classes/file_sync/tests/object/main.rs"),
    ("queue", "job_classes/file_sync/tests/queue/main.rs"),
    ("workers", "job_classes/file_sync/tests/workers/main.rs"),
    ("it", "tests/it/main.rs"),
    ("daemon", "tests/daemon/main.rs"),
    ("cli", "tests/cli/main.rs"),
    ("system", "tests/system/main.rs"),
    ("examples", "tests/examples/main.rs"),
    ("corpus", "tests/fuzz/corpus.rs"),
    ("cluster", "job_classes/files/tests/cluster.rs"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Every row that must be spoken of.
fn checklist() -> Vec<String> {
    let counted = SECTIONS.iter().flat_map(|(section, rows)| (1..=*rows).map(move |row| format!("{section}{row}")));
    counted.chain(OTHERS.iter().map(|row| (*row).to_owned())).collect()
}

/// The cells of the table that has this head.
fn table<'a>(text: &'a str, head: &str) -> Vec<Vec<&'a str>> {
    let mut rows = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        is_inside = line == head || (is_inside && line.starts_with('|'));
        if is_inside && line != head && !line.starts_with("|---") {
            rows.push(line.trim_matches('|').split('|').map(str::trim).collect());
        }
    }
    rows
}

/// Why a test of this full name is not one that runs; nothing if it is.
fn fault(name: &str) -> Option<String> {
    let mut path: Vec<&str> = name.split("::").collect();
    let Some(function) = path.pop().filter(|_| !path.is_empty()) else {
        return Some("it is no full name".to_owned());
    };
    let Some((_, file)) = ROOTS.iter().find(|(target, _)| *target == path[0]) else {
        return Some(format!("there is no target {}", path[0]));
    };
    let mut file = root().join(file);
    // Modules of a root lie beside it, those of any other file in a directory of its name.
    let mut directory = file.parent().map(Path::to_owned).unwrap_or_default();
    let mut code = read(&file).unwrap_or_default();
    for module in &path[1..] {
        let next = directory.join(format!("{module}.rs"));
        if code.contains(&format!("mod {module};")) && next.is_file() {
            code = read(&next).unwrap_or_default();
            file = next;
        } else if let Some((_, inside)) = code.split_once(&format!("mod {module} {{\n")) {
            code = inside.to_owned();
        } else {
            return Some(format!("{} has no module {module}", shown(&file)));
        }
        directory = directory.join(module);
    }
    let Some((before, _)) = code.split_once(&format!("fn {function}(")) else {
        return Some(format!("{} has no such function", shown(&file)));
    };
    // The attributes of the function are the lines above its own.
    let above = before.rfind('\n').map_or("", |end| &before[..end]);
    let attributes: Vec<&str> =
        above.lines().rev().map(str::trim).take_while(|line| line.starts_with("#[") || line.starts_with("//")).collect();
    if !attributes.iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test")) {
        return Some(format!("in {} it is no test", shown(&file)));
    }
    if attributes.iter().any(|line| line.contains("ignore")) {
        return Some(format!("in {} it is ignored", shown(&file)));
    }
    None
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).map(PathBuf::from).unwrap_or_default().display().to_string()
}

fn chapter() -> String {
    read(&root().join("src/docs/coverage.md")).expect("the chapter is there")
}

#[test]
fn every_test_that_is_named_exists_and_runs() {
    let text = chapter();
    let mut wrong = Vec::new();
    let mut count = 0;
    for row in table(&text, "| row | tests |") {
        let names: Vec<&str> = row[1].split(", ").map(|name| name.trim_matches('`')).collect();
        for name in names {
            count += 1;
            wrong.extend(fault(name).map(|fault| format!("{}: {name}: {fault}", row[0])));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 200, "{count} tests: the tables are not read");
}

#[test]
fn every_row_of_the_checklist_has_tests_or_waits_for_an_issue() {
    let text = chapter();
    let known = checklist();
    let mut said: BTreeMap<&str, usize> = BTreeMap::new();
    for row in table(&text, "| row | tests |") {
        assert!(row.len() == 2 && !row[1].is_empty(), "{row:?}");
        assert!(said.insert(row[0], 0).is_none(), "{} has two rows", row[0]);
    }
    for row in table(&text, "| row | issue | what is missing |") {
        assert!(row.len() == 3 && ["3", "4", "5", "later"].contains(&row[1]) && !row[2].is_empty(), "{row:?}");
        said.insert(row[0], 0);
    }
    let missing: Vec<&String> = known.iter().filter(|row| !said.contains_key(row.as_str())).collect();
    assert!(missing.is_empty(), "rows that nobody speaks of: {missing:?}");
    let unknown: Vec<&&str> = said.keys().filter(|row| !known.iter().any(|known| known == *row)).collect();
    assert!(unknown.is_empty(), "there are no such rows: {unknown:?}");
}

#[test]
fn a_name_that_is_wrong_in_any_part_is_refused() {
    assert_eq!(fault("it::coverage::a_name_that_is_wrong_in_any_part_is_refused"), None);
    assert_eq!(fault("nkcluster::proto::frame::tests::golden_bytes_of_version_1"), None, "in a module within its file");
    for (name, why) in [
        ("a_name_that_is_wrong_in_any_part_is_refused", "no full name"),
        ("nowhere::coverage::fault", "no target"),
        ("it::cover::fault", "no module"),
        ("it::coverage::no_such_test", "no such function"),
        ("it::coverage::fault", "no test"),
    ] {
        let fault = fault(name).unwrap_or_default();
        assert!(fault.contains(why), "{name}: {fault}");
    }
}
