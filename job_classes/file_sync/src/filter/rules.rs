//! Ordered rules, of which the first that matches decides.

use std::collections::HashSet;

use regex::Regex;

use super::glob::{GlobError, directory_globs, go_regexp};
use super::syntax;

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verdict {
    Include,
    Exclude,
}

/// Rules for files, and the rules for directories that follow from them.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    ignore_case: bool,
    files: RuleList,
    directories: RuleList,
}

#[derive(Clone, Debug, Default)]
struct RuleList {
    rules: Vec<(Verdict, Regex)>,
    known: HashSet<(Verdict, String)>,
}

impl Rules {
    pub(super) fn new(ignore_case: bool) -> Self {
        Self { ignore_case, files: RuleList::default(), directories: RuleList::default() }
    }

    /// Reads `+ glob`, `- glob` or `!`; whether it was one of them.
    pub(super) fn add_line(&mut self, line: &str) -> Result<bool, GlobError> {
        match line.as_bytes() {
            b"!" => {
                self.files = RuleList::default();
                self.directories = RuleList::default();
            }
            [b'+', b' ', ..] => self.add(Verdict::Include, &line[2..])?,
            [b'-', b' ', ..] => self.add(Verdict::Exclude, &line[2..])?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Adds a rule for files, for directories, or both.
    pub(super) fn add(&mut self, verdict: Verdict, glob: &str) -> Result<(), GlobError> {
        let is_include = verdict == Verdict::Include;
        let mut glob = glob.to_owned();
        let mut for_directories = glob.ends_with('/');
        let mut for_files = !for_directories;
        if for_directories && !is_include {
            // Whoever excludes a directory excludes all that is in it.
            glob.push_str("**");
        }
        if glob.contains("**") {
            (for_directories, for_files) = (true, true);
        }
        if for_files {
            self.files.add(verdict, &glob, self.ignore_case)?;
            // What is included must be reached. What is excluded says nothing of the directories around it, unless it is everything.
            if is_include || glob == "*" {
                // The root itself is always entered.
                for directory in directory_globs(&glob).iter().filter(|directory| *directory != "/") {
                    self.directories.add(verdict, directory, self.ignore_case)?;
                }
            }
        }
        if for_directories {
            self.directories.add(verdict, &glob, self.ignore_case)?;
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.rules.is_empty() && self.directories.rules.is_empty()
    }

    pub(super) fn includes_file(&self, path: &str) -> bool {
        self.files.includes(path)
    }

    /// `path` ends in `/`.
    pub(super) fn includes_directory(&self, path: &str) -> bool {
        self.directories.includes(path)
    }

    pub(super) fn decide_on_directories(&self) -> bool {
        !self.directories.rules.is_empty()
    }
}

impl RuleList {
    fn add(&mut self, verdict: Verdict, glob: &str, ignore_case: bool) -> Result<(), GlobError> {
        let expression = go_regexp(glob, ignore_case)?;
        if !self.known.insert((verdict, expression.clone())) {
            return Ok(());
        }
        let bad = |why: String| GlobError::Pattern { glob: glob.to_owned(), why };
        let ours = syntax::from_go(&expression).map_err(|why| bad(why.to_owned()))?;
        let regex = Regex::new(&ours).map_err(|why| bad(why.to_string()))?;
        self.rules.push((verdict, regex));
        Ok(())
    }

    fn includes(&self, path: &str) -> bool {
        let decided = self.rules.iter().find(|(_, regex)| regex.is_match(path));
        decided.is_none_or(|(verdict, _)| *verdict == Verdict::Include)
    }
}
