//! Whether a file system takes names for the same that differ by case.

use std::fs::File;
use std::path::Path;

use super::staging::STAGING_PREFIX;

/// Asks the file system of a directory, or of the nearest one above it that exists, by a file that is gone when this returns. Those that fold case, as on most Macs, fold
/// Unicode forms as well. Where no file can be made the answer is no: whatever is wrong will be told by the first copy.
pub(crate) fn folds_names(path: &Path) -> bool {
    let Some(existing) = path.ancestors().find(|directory| directory.is_dir()) else { return false };
    let name = format!("{STAGING_PREFIX}folding-{:016x}", rand::random::<u64>());
    let made = existing.join(&name);
    if File::options().write(true).create_new(true).open(&made).is_err() {
        return false;
    }
    let folds = existing.join(name.to_uppercase()).symlink_metadata().is_ok();
    if let Err(error) = std::fs::remove_file(&made) {
        tracing::warn!(path = %made.display(), %error, "an empty file of a probe stays; it may be removed");
    }
    folds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_leaves_nothing_and_needs_no_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let left = || std::fs::read_dir(dir.path()).expect("readable").count();
        std::fs::write(dir.path().join("lower"), "").expect("written");
        let expected = dir.path().join("LOWER").exists();
        assert_eq!(folds_names(dir.path()), expected);
        assert_eq!(folds_names(&dir.path().join("not/yet/there")), expected);
        assert_eq!(left(), 1);
        assert!(!folds_names(Path::new("/proc/self")), "nothing can be made there");
    }
}
