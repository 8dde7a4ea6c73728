//! Names of backups.

use crate::options::Options;
use crate::path::{EntryPath, PathError};

/// Extensions which belong to the one before them.
const SECOND_EXTENSIONS: [&str; 1] = [".tar"];

/// Where the backup of a file is kept, below the root of backups.
pub(super) fn backup_path(path: &EntryPath, options: &Options) -> Result<EntryPath, PathError> {
    let Some(suffix) = &options.suffix else { return Ok(path.clone()) };
    let name = path.name();
    let kept = if options.suffix_keep_extension { extension_bytes(name) } else { 0 };
    let (stem, extension) = path.as_str().split_at(path.as_str().len() - kept);
    EntryPath::parse(&format!("{stem}{suffix}{extension}"))
}

fn extension_bytes(name: &str) -> usize {
    let Some(at) = name.rfind('.') else { return 0 };
    let before = &name[..at];
    let second = SECOND_EXTENSIONS.iter().find(|extension| before.ends_with(**extension)).map_or(0, |extension| extension.len());
    name.len() - at + second
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_stands_at_the_end_or_before_the_extension() {
        let backup = |path: &str, keeps: bool| {
            let options = Options { suffix: Some("-old".to_owned()), suffix_keep_extension: keeps, ..Options::default() };
            backup_path(&EntryPath::parse(path).expect("a path"), &options).expect("a path").to_string()
        };
        assert_eq!(backup("d.x/a.txt", false), "d.x/a.txt-old");
        assert_eq!(backup("d.x/a.txt", true), "d.x/a-old.txt");
        assert_eq!(backup("d.x/a.tar.gz", true), "d.x/a-old.tar.gz");
        assert_eq!(backup("d.x/a", true), "d.x/a-old");
        assert_eq!(backup_path(&EntryPath::root(), &Options::default()), Ok(EntryPath::root()));
    }
}
