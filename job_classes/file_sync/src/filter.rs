//! Which files and directories a run is about, in rclone's words.
//!
//! Rules are globs, in order; the first one that matches a path decides, and what none matches is included. Rules for directories are derived from those for files, so
//! that whole trees are passed over without being listed. `--include` means that all else is excluded; lists of files override every other rule.

mod glob;
mod rules;
mod syntax;

use std::collections::HashSet;
use std::io::Read as _;
use std::time::SystemTime;

pub use self::glob::GlobError;
use self::rules::{Rules, Verdict};
use crate::options::{Age, SizeSuffix};

/// Longest list of rules or files that is read.
const LIST_BYTES_MAX: u64 = 1 << 30;
/// Bytes of a bad line that an error repeats.
const SHOWN_BYTES_MAX: usize = 200;

/// What filters are set, as rclone's flags say it. Names ending in `from` are files with one entry a line, `-` the standard input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterOptions {
    /// Deletes at the destination what the filters exclude.
    pub delete_excluded: bool,
    /// Rules on names.
    pub rules: RuleOptions,
    /// Excludes directories that hold a file of such a name.
    pub exclude_if_present: Vec<String>,
    /// The very files that a run is about.
    pub files: Vec<String>,
    /// The same from files of names; lines are trimmed, `#` and `;` begin comments.
    pub files_from: Vec<String>,
    /// The same with lines as they are.
    pub files_from_raw: Vec<String>,
    /// Only files that are older.
    pub min_age: Age,
    /// Only files that are younger.
    pub max_age: Age,
    /// Only files of at least this size.
    pub min_size: SizeSuffix,
    /// Only files of at most this size.
    pub max_size: SizeSuffix,
    /// Rules do not tell upper from lower case.
    pub ignore_case: bool,
}

/// Rules on names. They are read in this order: include, exclude, filter, each from the command line first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleOptions {
    /// `+ glob`, `- glob`, or `!`, which forgets all rules before it.
    pub filter: Vec<String>,
    /// Files of such rules.
    pub filter_from: Vec<String>,
    /// Globs to exclude.
    pub exclude: Vec<String>,
    /// Files of such globs.
    pub exclude_from: Vec<String>,
    /// Globs to include; all else is excluded.
    pub include: Vec<String>,
    /// Files of such globs.
    pub include_from: Vec<String>,
}

/// Why filters cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A glob.
    #[error(transparent)]
    Glob(#[from] GlobError),
    /// A rule that begins neither with `+ ` nor with `- `, nor is `!`.
    #[error("malformed rule {0:?}: expected `+ glob`, `- glob` or `!`")]
    Rule(String),
    /// A file of rules or of names.
    #[error("failed to read {file}: {why}")]
    List {
        /// The file.
        file: String,
        /// What happened.
        why: String,
    },
    /// Lists of files stand alone.
    #[error("--files-from overrides all other filters, so it must be used alone")]
    ListNotAlone,
    /// Nothing can be both.
    #[error("--min-age {0} is larger than --max-age {1}: nothing would be left")]
    Ages(Age, Age),
}

/// Decides what a run is about.
#[derive(Clone, Debug)]
pub struct Filter {
    rules: Rules,
    listed: Option<Listed>,
    markers: Vec<String>,
    newer_than: Option<SystemTime>,
    older_than: Option<SystemTime>,
    min_size: u64,
    max_size: u64,
    is_mixed: bool,
}

/// The files of `--files-from`, and the directories above them.
#[derive(Clone, Debug, Default)]
struct Listed {
    files: HashSet<Box<str>>,
    directories: HashSet<Box<str>>,
}

impl FilterOptions {
    /// Whether any of its lists comes from the standard input.
    pub fn reads_standard_input(&self) -> bool {
        let rules = &self.rules;
        let lists = [&rules.filter_from, &rules.exclude_from, &rules.include_from, &self.files_from, &self.files_from_raw];
        lists.iter().any(|list| list.iter().any(|file| file == "-"))
    }

    /// The same filters with the content of the files that they name, so that they mean the same where these files are not.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn inlined(self, read: &mut dyn FnMut(&str) -> std::io::Result<Vec<u8>>) -> Result<Self, FilterError> {
        let mut inlined = self;
        let rules = &mut inlined.rules;
        let has_includes = !rules.include.is_empty() || !rules.include_from.is_empty();
        let is_listed = !inlined.files_from.is_empty() || !inlined.files_from_raw.is_empty();
        for (list, files) in [
            (&mut rules.filter, &mut rules.filter_from),
            (&mut rules.exclude, &mut rules.exclude_from),
            (&mut rules.include, &mut rules.include_from),
        ] {
            for file in std::mem::take(files) {
                list.extend(lines(&text(&file, read)?, false).map(str::to_owned));
            }
        }
        for (files, is_raw) in [(&mut inlined.files_from, false), (&mut inlined.files_from_raw, true)] {
            for file in std::mem::take(files) {
                inlined.files.extend(lines(&text(&file, read)?, is_raw).map(str::to_owned));
            }
        }
        // A list without a line includes nothing, and must not become none, which includes everything.
        if has_includes && rules.include.is_empty() {
            rules.filter.push("- /**".to_owned());
        }
        if is_listed && inlined.files.is_empty() {
            inlined.files.push(String::new());
        }
        Ok(inlined)
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self::everything()
    }
}

impl Filter {
    /// The filter that includes everything.
    pub fn everything() -> Self {
        Self {
            rules: Rules::new(false),
            listed: None,
            markers: Vec::new(),
            newer_than: None,
            older_than: None,
            min_size: 0,
            max_size: u64::MAX,
            is_mixed: false,
        }
    }

    /// The filter that includes these files and nothing else: what a run is about whose source is a single file.
    pub fn only<'a>(files: impl IntoIterator<Item = &'a str>) -> Self {
        let mut listed = Listed::default();
        files.into_iter().for_each(|file| listed.add(file));
        Self { listed: Some(listed), ..Self::everything() }
    }

    /// Reads the files that the options name, and builds the filter. Ages count from `now`.
    ///
    /// # Errors
    /// As of [`Filter::build`].
    pub fn load(options: &FilterOptions, now: SystemTime) -> Result<Self, FilterError> {
        Self::build(options, now, &mut read_list)
    }

    /// Builds the filter; `read` gives the content of the files that the options name.
    ///
    /// # Errors
    /// Whatever cannot be meant: bad globs and rules, unreadable files, lists of files together with other filters.
    pub fn build(
        options: &FilterOptions,
        now: SystemTime,
        read: &mut dyn FnMut(&str) -> std::io::Result<Vec<u8>>,
    ) -> Result<Self, FilterError> {
        let mut filter = Self {
            rules: Rules::new(options.ignore_case),
            markers: options.exclude_if_present.clone(),
            newer_than: options.max_age.before(now),
            older_than: options.min_age.before(now),
            min_size: options.min_size.bytes().unwrap_or(0),
            max_size: options.max_size.bytes().unwrap_or(u64::MAX),
            ..Self::everything()
        };
        if let (Some(newer_than), Some(older_than)) = (filter.newer_than, filter.older_than)
            && older_than < newer_than
        {
            return Err(FilterError::Ages(options.min_age, options.max_age));
        }
        filter.add_rules(&options.rules, read)?;
        let is_alone = filter.is_inactive() && options.min_size.bytes().is_none() && options.max_size.bytes().is_none();
        if !options.files.is_empty() {
            if !is_alone {
                return Err(FilterError::ListNotAlone);
            }
            options.files.iter().for_each(|file| filter.listed.get_or_insert_default().add(file));
        }
        for (files, is_raw) in [(&options.files_from, false), (&options.files_from_raw, true)] {
            for file in files {
                if !is_alone {
                    return Err(FilterError::ListNotAlone);
                }
                let listed = filter.listed.get_or_insert_default();
                lines(&text(file, read)?, is_raw).for_each(|line| listed.add(line));
            }
        }
        Ok(filter)
    }

    fn add_rules(&mut self, options: &RuleOptions, read: &mut dyn FnMut(&str) -> std::io::Result<Vec<u8>>) -> Result<(), FilterError> {
        let kinds =
            [(Verdict::Include, &options.include, &options.include_from), (Verdict::Exclude, &options.exclude, &options.exclude_from)];
        for (verdict, globs, files) in kinds {
            for glob in globs {
                self.rules.add(verdict, glob)?;
            }
            for file in files {
                lines(&text(file, read)?, false).try_for_each(|line| self.rules.add(verdict, line))?;
            }
        }
        for rule in &options.filter {
            self.add_rule(rule)?;
        }
        for file in &options.filter_from {
            lines(&text(file, read)?, false).try_for_each(|line| self.add_rule(line))?;
        }
        let includes = !options.include.is_empty() || !options.include_from.is_empty();
        if includes {
            self.rules.add(Verdict::Exclude, "/**")?;
        }
        self.is_mixed = includes && !(options.exclude.is_empty() && options.exclude_from.is_empty());
        Ok(())
    }

    fn add_rule(&mut self, rule: &str) -> Result<(), FilterError> {
        match self.rules.add_line(rule)? {
            true => Ok(()),
            false => Err(FilterError::Rule(rule[..rule.floor_char_boundary(SHOWN_BYTES_MAX)].to_owned())),
        }
    }

    /// Whether it includes everything.
    pub fn is_inactive(&self) -> bool {
        self.rules.is_empty()
            && self.listed.is_none()
            && self.markers.is_empty()
            && !self.depends_on_times()
            && (self.min_size, self.max_size) == (0, u64::MAX)
    }

    /// Whether `--include` and `--exclude` are both used: includes are read first, which is seldom what was meant.
    pub fn is_mixed(&self) -> bool {
        self.is_mixed
    }

    /// Whether it asks for the times of files.
    pub fn depends_on_times(&self) -> bool {
        self.newer_than.is_some() || self.older_than.is_some()
    }

    /// Names of files whose presence excludes their directory.
    pub fn markers(&self) -> &[String] {
        &self.markers
    }

    /// Whether a file of this path, size and time is included. A time that is not known passes.
    pub fn includes_file(&self, path: &str, size: u64, modified: Option<SystemTime>) -> bool {
        if let Some(listed) = &self.listed {
            return listed.files.contains(path);
        }
        let is_new = modified.zip(self.newer_than).is_none_or(|(modified, limit)| modified >= limit);
        let is_old = modified.zip(self.older_than).is_none_or(|(modified, limit)| modified <= limit);
        (self.min_size..=self.max_size).contains(&size) && is_new && is_old && self.rules.includes_file(path)
    }

    /// Whether a directory is entered; its markers are not known here.
    pub fn includes_directory(&self, path: &str) -> bool {
        match &self.listed {
            Some(listed) => listed.directories.contains(path),
            None => !self.rules.decide_on_directories() || self.rules.includes_directory(&format!("{path}/")),
        }
    }
}

impl Listed {
    fn add(&mut self, line: &str) {
        let file = line.trim_matches('/');
        self.files.insert(file.into());
        let mut components: Vec<&str> = file.split('/').filter(|component| !matches!(*component, "" | ".")).collect();
        components.pop();
        while !components.is_empty() && self.directories.insert(components.join("/").into()) {
            components.pop();
        }
    }
}

/// Reads a list of rules or names of this machine; `-` is the standard input.
pub fn read_list(file: &str) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match file {
        "-" => std::io::stdin().lock().take(LIST_BYTES_MAX).read_to_end(&mut bytes)?,
        _ => std::fs::File::open(file)?.take(LIST_BYTES_MAX).read_to_end(&mut bytes)?,
    };
    Ok(bytes)
}

fn text(file: &str, read: &mut dyn FnMut(&str) -> std::io::Result<Vec<u8>>) -> Result<String, FilterError> {
    let failed = |why: String| FilterError::List { file: file.to_owned(), why };
    String::from_utf8(read(file).map_err(|error| failed(error.to_string()))?).map_err(|_| failed("it is no UTF-8".to_owned()))
}

/// The lines of a list. Unless they are raw, they are trimmed, and comments and empty ones are left out.
fn lines(text: &str, is_raw: bool) -> impl Iterator<Item = &str> {
    let cleaned = move |line: &'_ str| if is_raw { false } else { line.is_empty() || line.starts_with(['#', ';']) };
    text.lines().map(move |line| if is_raw { line } else { line.trim() }).filter(move |line| !cleaned(line))
}

#[cfg(test)]
mod against_rclone;
#[cfg(test)]
mod tests;
