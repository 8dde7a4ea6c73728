//! Globs, as rclone reads them: `*`, `**`, `?`, `[…]`, `{a,b}`, `{{regexp}}`, and `/` in front for the root.
//!
//! A glob becomes a regular expression in the syntax of Go first, since parts of it pass through as they are: escapes, classes and what stands within `{{` and `}}`.
//! [`syntax`](super::syntax) then says the same in ours.

/// Why a glob cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// Three stars or more in a row.
    #[error("too many stars in {0:?}")]
    TooManyStars(String),
    /// `[` or `]` alone.
    #[error("mismatched '[' and ']' in {0:?}")]
    Brackets(String),
    /// `{` or `}` alone.
    #[error("mismatched '{{' and '}}' in {0:?}")]
    Braces(String),
    /// `{{` without `}}`.
    #[error("mismatched '{{{{' and '}}}}' in {0:?}")]
    Regexp(String),
    /// What comes of it is no regular expression.
    #[error("bad pattern {glob:?}: {why}")]
    Pattern {
        /// The glob.
        glob: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Where in a glob one is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Glob,
    /// So many `[` deep.
    Brackets(u32),
    Regexp,
    /// After `}}`, which more `}` move to the right.
    RegexpEnd,
}

/// The regular expression, in Go's syntax, that a path must match.
pub(super) fn go_regexp(glob: &str, ignore_case: bool) -> Result<String, GlobError> {
    let mut re = String::from(if ignore_case { "(?i)" } else { "" });
    let pattern = match glob.strip_prefix('/') {
        Some(rest) => {
            re.push('^');
            rest
        }
        None => {
            re.push_str("(^|/)");
            glob
        }
    };
    let (mut within, mut stars, mut braces, mut is_escaped, mut last) = (Within::Glob, 0, 0u32, false, '\0');
    for c in pattern.chars() {
        let previous = std::mem::replace(&mut last, c);
        if std::mem::take(&mut is_escaped) {
            re.push(c);
            continue;
        }
        if within == Within::RegexpEnd {
            if c == '}' {
                re.pop();
                re.push_str("})");
                continue;
            }
            within = Within::Glob;
        }
        if within == Within::Regexp {
            if c == '}' && previous == '}' {
                within = Within::RegexpEnd;
                re.pop();
                re.push(')');
            } else {
                re.push(c);
            }
            continue;
        }
        if c != '*' {
            push_stars(&mut re, &mut stars, glob)?;
        }
        if let Within::Brackets(depth) = within {
            re.push(c);
            within = match (c, depth) {
                ('[', _) => Within::Brackets(depth + 1),
                (']', 1) => Within::Glob,
                (']', _) => Within::Brackets(depth - 1),
                _ => within,
            };
            continue;
        }
        match c {
            '\\' => {
                re.push(c);
                is_escaped = true;
            }
            '*' => stars += 1,
            '?' => re.push_str("[^/]"),
            '[' => {
                re.push(c);
                within = Within::Brackets(1);
            }
            ']' => return Err(GlobError::Brackets(glob.to_owned())),
            // The first of the two has written the parenthesis around the expression.
            '{' if braces > 0 && previous == '{' => {
                within = Within::Regexp;
                braces -= 1;
            }
            '{' => {
                braces += 1;
                re.push('(');
            }
            '}' => {
                braces = braces.checked_sub(1).ok_or_else(|| GlobError::Braces(glob.to_owned()))?;
                re.push(')');
            }
            ',' if braces > 0 => re.push('|'),
            '.' | '+' | '(' | ')' | '|' | '^' | '$' => re.extend(['\\', c]),
            _ => re.push(c),
        }
    }
    push_stars(&mut re, &mut stars, glob)?;
    match within {
        Within::Brackets(_) => Err(GlobError::Brackets(glob.to_owned())),
        _ if braces > 0 => Err(GlobError::Braces(glob.to_owned())),
        Within::Regexp => Err(GlobError::Regexp(glob.to_owned())),
        Within::Glob | Within::RegexpEnd => {
            re.push('$');
            Ok(re)
        }
    }
}

fn push_stars(re: &mut String, stars: &mut u32, glob: &str) -> Result<(), GlobError> {
    match std::mem::take(stars) {
        0 => {}
        1 => re.push_str("[^/]*"),
        2 => re.push_str(".*"),
        _ => return Err(GlobError::TooManyStars(glob.to_owned())),
    }
    Ok(())
}

/// The directories that a walk must enter so that it can meet what a glob matches, as globs that end in `/`. The innermost comes first.
pub(super) fn directory_globs(glob: &str) -> Vec<String> {
    if is_too_hard(glob) {
        return vec!["/**".to_owned()];
    }
    let mut rest = String::with_capacity(glob.len());
    for c in glob.chars().filter(|c| *c != '\0') {
        if c != '/' || !rest.ends_with('/') {
            rest.push(c);
        }
    }
    let mut globs: Vec<String> = Vec::new();
    loop {
        let (slash, stars) = (rest.rfind('/'), rest.rfind("**"));
        let (at, kept) = match (slash, stars) {
            (None, None) if globs.is_empty() => return vec!["/**".to_owned()],
            (None, None) => return globs,
            (slash, stars) if stars > slash => (stars.unwrap_or(0), "**"),
            (slash, _) => (slash.unwrap_or(0), ""),
        };
        rest.truncate(at);
        let found = format!("{rest}{kept}/");
        if globs.last() != Some(&found) {
            globs.push(found);
        }
    }
}

/// Whether the directories cannot be told from the glob: braces that hold `/`, `**` or other braces, and regular expressions.
fn is_too_hard(glob: &str) -> bool {
    if glob.contains("{{") || glob.contains("}}") {
        return true;
    }
    let mut open = None;
    for (at, c) in glob.char_indices() {
        match (c, open) {
            ('{', Some(_)) => return true,
            ('{', None) => open = Some(at + 1),
            ('}', Some(from)) => {
                let inner = &glob[from..at];
                if inner.contains('/') || inner.contains("**") {
                    return true;
                }
                open = None;
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_become_the_expressions_of_rclone() {
        let cases = [
            ("", "(^|/)$"),
            ("a,b", "(^|/)a,b$"),
            ("/report", "^report$"),
            ("re?ort", "(^|/)re[^/]ort$"),
            ("x[[:digit:]]y", "(^|/)x[[:digit:]]y$"),
            ("(a).+|^$", r"(^|/)\(a\)\.\+\|\^\$$"),
            ("*.log", r"(^|/)[^/]*\.log$"),
            ("a{b,{c,d}}e", "(^|/)a(b|(c|d))e$"),
            ("{a,b/{c,d}/**}", "(^|/)(a|b/(c|d)/.*)$"),
            ("old**new", "(^|/)old.*new$"),
            (r"[\[\]]", r"(^|/)[\[\]]$"),
            (r"a\*b\\", r"(^|/)a\*b\\$"),
            ("a{{.*}}b", "(^|/)a(.*)b$"),
            (r"\{{{x+}}", r"(^|/)\{(x+)$"),
            (r"/{{\d{8}}}", r"^(\d{8})$"),
            (r"/{{\}}}", r"^(\})$"),
        ];
        for (glob, expected) in cases {
            assert_eq!(go_regexp(glob, false).as_deref(), Ok(expected), "{glob}");
            assert_eq!(go_regexp(glob, true), Ok(format!("(?i){expected}")), "{glob}");
        }
        for glob in ["***", "a***b", "ab]c", "ab[c", "[[]", "ab{x{cd", "ab{}}cd", "ab}c", "ab{c", "a{{.*}"] {
            assert!(go_regexp(glob, false).is_err(), "{glob}");
        }
    }

    #[test]
    fn the_directories_of_a_glob_are_those_that_can_hold_a_match() {
        let cases: [(&str, &[&str]); 19] = [
            ("*", &["/**"]),
            ("/*", &["/"]),
            ("*.log", &["/**"]),
            ("//x", &["/"]),
            ("/a//b/*.log", &["/a/b/", "/a/", "/"]),
            ("a/*.log", &["a/"]),
            ("*/*/*.log", &["*/*/", "*/"]),
            ("a/b/", &["a/b/", "a/"]),
            ("/a/{b,c}/*.{x,y}", &["/a/{b,c}/", "/a/", "/"]),
            ("a/{b,{c,d}}/*", &["/**"]),
            ("a/{b,c**}/d/", &["/**"]),
            ("/a/{b,c/d}/e", &["/**"]),
            ("/a/{{.*}}/e", &["/**"]),
            ("**", &["**/"]),
            ("a**", &["a**/"]),
            ("a**b/c**d", &["a**b/c**/", "a**b/", "a**/"]),
            ("/var/**/x", &["/var/**/", "/var/", "/"]),
            ("/a**", &["/a**/", "/"]),
            ("", &["/**"]),
        ];
        for (glob, expected) in cases {
            assert_eq!(directory_globs(glob), expected, "{glob}");
        }
    }
}
