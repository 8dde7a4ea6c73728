//! Secrets in files of their own.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::Config;
use super::error::Problem;
use crate::types::Secret;

/// Most bytes of a secret.
const SECRET_BYTES_MAX: usize = 4096;

/// Permission bits by which every user of the machine may read or write.
pub(super) const MODE_OTHERS: u32 = 0o006;

/// Reads a secret, without the newline at its end.
///
/// A file that every user may read or change is refused, unless `allow_readable_secrets` makes that a warning, as Kubernetes mounts its secrets with mode 0644.
pub(super) fn read(path: &Path, config: &mut Config) -> Result<Secret, Problem> {
    let failed = |error: std::io::Error| Problem::new(format!("cannot read the file: {error}"));
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o777;
    if metadata.is_file() && mode & MODE_OTHERS != 0 {
        if !config.allow_readable_secrets {
            return Err(Problem::new(format!(
                "every user may read or change it (mode {mode:03o}); run `chmod 600`, or set allow_readable_secrets"
            )));
        }
        config.notes.push(format!("{}: every user may read or change this secret (mode {mode:03o})", path.display()));
    }
    // With its full size at once, so that no copy stays behind where it grew.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 1));
    file.take(SECRET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > SECRET_BYTES_MAX {
        return Err(Problem::new(format!("the secret has more than {SECRET_BYTES_MAX} bytes")));
    }
    let text = str::from_utf8(&bytes).map_err(|_| Problem::new("the secret is not UTF-8 text"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(Problem::new("the file is empty"));
    }
    if text.chars().any(char::is_control) {
        return Err(Problem::new("the secret must be one line of text"));
    }
    Ok(Secret::from(text))
}
