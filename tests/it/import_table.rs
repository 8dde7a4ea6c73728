//! The import order of the library (`src/docs/architecture.md`), which no compiler keeps.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the library with those that it may name, beside itself. `types` and `error` are one layer.
const TABLE: &[(&str, &[&str])] = &[
    ("types", &["error"]),
    ("error", &["types"]),
    ("config", &["types", "error"]),
    ("proto", &["types", "error"]),
    ("ring", &["types", "error"]),
    // What a listener and a dialler bring along is read from the configuration.
    ("transport", &["types", "error", "proto", "config"]),
    ("connection", &["types", "error", "proto", "config", "transport"]),
    ("cluster", &["types", "error", "proto", "config", "transport", "connection"]),
    ("transfer", &["types", "error", "connection", "cluster"]),
    ("job", &["types", "error", "proto", "config", "connection", "cluster", "transfer"]),
    ("control", &["types", "error", "proto", "config", "transport", "connection", "cluster", "job", "ring"]),
    ("worker", &["types", "error", "proto", "config", "transport", "connection", "cluster", "job"]),
    ("node", &["types", "error", "proto", "config", "transport", "connection", "cluster", "job", "control", "worker", "ring"]),
    // Documentation refers to everything.
    ("docs", &[]),
];

/// What is pure may not even name these.
const IMPURE: &[&str] = &["tokio", "std::net::TcpStream", "std::fs", "rand::", "SystemTime::now", "Instant::now"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("readable").path()) {
        // The programs are a package of their own.
        if entry.is_dir() && !entry.ends_with("src/bin") {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
    found.sort();
}

/// The code of a file without its comments, where a link to another module is no import, and without its unit tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("text");
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Modules that are named by `crate::module` or in `use crate::{module, …}`.
fn named(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate::` and `other_crate::` are something else.
        if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => drop(modules.insert(word(rest))),
            Some(list) => {
                let (mut depth, mut start) = (0, true);
                for (index, letter) in list.char_indices() {
                    match letter {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        _ if start && !letter.is_whitespace() => {
                            modules.insert(word(&list[index..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    modules
}

fn word(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// The files of the library, with the module that each belongs to.
fn modules() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    let with_module = found.into_iter().map(|path| {
        let below = path.strip_prefix(&root).expect("below the root").to_str().expect("text");
        (word(below), path.clone())
    });
    with_module.filter(|(module, _)| module != "lib").collect()
}

#[test]
fn no_module_imports_one_above_it() {
    let files = modules();
    assert!(files.len() > 80, "the sources are not where they were: {}", files.len());
    let names: Vec<&str> = TABLE.iter().map(|(module, _)| *module).collect();
    let mut wrong = Vec::new();
    for (module, path) in &files {
        let Some((_, allowed)) = TABLE.iter().find(|(name, _)| name == module) else {
            wrong.push(format!("{}: the table does not know the module {module}", path.display()));
            continue;
        };
        for import in named(&code(path)) {
            // Items of the root, such as `crate::Error`, are those of `error`.
            if names.contains(&import.as_str()) && import != *module && !allowed.contains(&import.as_str()) {
                wrong.push(format!("{}: {module} must not import {import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_has_no_circle_but_that_of_types_and_error() {
    for (index, (module, allowed)) in TABLE.iter().enumerate() {
        for import in *allowed {
            let at = TABLE.iter().position(|(name, _)| name == import).expect("a module of the table");
            assert!(at < index || (*module == "types" && *import == "error"), "{module} stands before {import}");
        }
    }
}

#[test]
fn what_is_pure_stays_pure() {
    let mut wrong = Vec::new();
    for (module, path) in modules().iter().filter(|(module, _)| ["types", "proto", "ring", "error"].contains(&module.as_str())) {
        let is_test = path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests");
        let code = code(path);
        for word in IMPURE.iter().filter(|word| !is_test && code.contains(**word)) {
            wrong.push(format!("{}: {module} names {word}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_found_in_every_form() {
    let code = "use crate::error::Error;\nuse crate::{proto::head, types::{NodeId, TaskId},\n    Result};\nfn f(_: crate::job::X) {} my_crate::node::y();";
    let found: Vec<String> = named(code).into_iter().collect();
    assert_eq!(found, ["Result", "error", "job", "proto", "types"]);
}
