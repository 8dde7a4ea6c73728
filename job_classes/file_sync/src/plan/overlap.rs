//! Source, destination and backups must not lie within each other.

use super::Task;
use crate::filter::Filter;
use crate::path::EntryPath;

/// Where a tree is, for comparing it with another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Which storage: the same text for the same disk, or the same endpoint and bucket.
    pub storage: String,
    /// The root within it, without `/` at either end; of a disk with all links followed.
    pub root: EntryPath,
}

/// How two locations lie to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Neither is within the other.
    Apart,
    /// They are the same.
    Same,
    /// The first is within the second, at this path.
    Inside(EntryPath),
    /// The second is within the first, at this path.
    Around(EntryPath),
}

/// Why a run cannot begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverlapError {
    /// There is nothing to do, and a move would lose everything.
    #[error("source and destination are the same")]
    Same,
    /// The copy would copy itself.
    #[error("the destination is inside the source, at {0:?}; exclude it by a filter, such as `- /{0}/**`")]
    DestinationInside(EntryPath),
    /// Deletes at the destination, or a move, would reach the source.
    #[error("the source is inside the destination, at {0:?}; exclude it by a filter, such as `- /{0}/**`")]
    SourceInside(EntryPath),
    /// Backups would be copied or deleted.
    #[error("--backup-dir overlaps with the {0}")]
    Backup(&'static str),
}

/// How two locations lie to each other.
pub fn relation(one: &Location, other: &Location) -> Relation {
    if one.storage != other.storage {
        return Relation::Apart;
    }
    let below = |path: &str| EntryPath::parse(path).ok();
    match (one.root.below(&other.root), other.root.below(&one.root)) {
        (Some(""), _) | (_, Some("")) => Relation::Same,
        (Some(path), _) => below(path).map_or(Relation::Apart, Relation::Inside),
        (_, Some(path)) => below(path).map_or(Relation::Apart, Relation::Around),
        _ => Relation::Apart,
    }
}

impl Task {
    /// Refuses what would copy itself or destroy its source. What the filter excludes may overlap.
    ///
    /// # Errors
    /// How they overlap.
    pub fn check_overlap(
        self,
        source: &Location,
        destination: &Location,
        backup: Option<&Location>,
        filter: &Filter,
    ) -> Result<(), OverlapError> {
        let is_included = |path: &EntryPath| {
            let mut whole_path = Some(path.clone());
            std::iter::from_fn(|| whole_path.take().inspect(|path| whole_path = path.parent()))
                .take_while(|path| !path.is_root())
                .all(|path| filter.includes_directory(path.as_str()))
        };
        match relation(source, destination) {
            Relation::Same => return Err(OverlapError::Same),
            Relation::Around(path) if is_included(&path) => return Err(OverlapError::DestinationInside(path)),
            // Copying out of a part of the destination harms nothing.
            Relation::Inside(path) if self != Self::Copy && is_included(&path) => return Err(OverlapError::SourceInside(path)),
            _ => {}
        }
        let Some(backup) = backup else { return Ok(()) };
        for (place, name) in [(destination, "destination"), (source, "source")] {
            match relation(backup, place) {
                Relation::Apart => {}
                Relation::Inside(path) if !is_included(&path) => {}
                Relation::Around(_) if name == "source" => {}
                _ => return Err(OverlapError::Backup(name)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::filter::{FilterOptions, RuleOptions};

    fn disk(root: &str) -> Location {
        Location { storage: "disk".to_owned(), root: EntryPath::parse(root).expect("a path") }
    }

    fn excluding(rule: &str) -> Filter {
        let rules = RuleOptions { exclude: vec![rule.to_owned()], ..RuleOptions::default() };
        Filter::load(&FilterOptions { rules, ..FilterOptions::default() }, SystemTime::UNIX_EPOCH).expect("a filter")
    }

    #[test]
    fn locations_lie_apart_or_within_each_other() {
        assert_eq!(relation(&disk("a/b"), &disk("a/bc")), Relation::Apart);
        assert_eq!(relation(&disk("a"), &disk("a")), Relation::Same);
        assert_eq!(relation(&disk("a/b/c"), &disk("a")), Relation::Inside(EntryPath::parse("b/c").expect("a path")));
        assert_eq!(relation(&disk(""), &disk("a")), Relation::Around(EntryPath::parse("a").expect("a path")));
        let bucket = Location { storage: "bucket".to_owned(), ..disk("a") };
        assert_eq!(relation(&bucket, &disk("a")), Relation::Apart);
    }

    #[test]
    fn what_would_copy_itself_or_destroy_its_source_is_refused_unless_it_is_excluded() {
        let everything = Filter::everything();
        let check = |task: Task, source, destination, filter: &Filter| task.check_overlap(&disk(source), &disk(destination), None, filter);
        for task in [Task::Copy, Task::Sync, Task::Move] {
            assert_eq!(check(task, "a", "a", &everything), Err(OverlapError::Same));
            assert!(matches!(check(task, "a", "a/b", &everything), Err(OverlapError::DestinationInside(_))), "{task:?}");
            assert_eq!(check(task, "a", "a/b/c", &excluding("/b/")), Ok(()));
            assert_eq!(check(task, "a", "b", &everything), Ok(()));
        }
        assert_eq!(check(Task::Copy, "a/b", "a", &everything), Ok(()));
        assert!(matches!(check(Task::Sync, "a/b", "a", &everything), Err(OverlapError::SourceInside(_))));
    }

    #[test]
    fn backups_lie_outside_of_both_or_are_excluded() {
        let check = |backup, filter: &Filter| Task::Sync.check_overlap(&disk("s"), &disk("d"), Some(&disk(backup)), filter);
        let everything = Filter::everything();
        assert_eq!(check("d/old", &everything), Err(OverlapError::Backup("destination")));
        assert_eq!(check("d", &everything), Err(OverlapError::Backup("destination")));
        assert_eq!(check("s/old", &everything), Err(OverlapError::Backup("source")));
        assert_eq!(check("old", &everything), Ok(()));
        assert_eq!(check("d/old", &excluding("/old/")), Ok(()));
    }
}
