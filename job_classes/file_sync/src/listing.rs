//! Two trees walked in lock step.
//!
//! ```text
//!   list one directory of each side ─► filter ─► in order of names ─► merge ─► visitor: only source, only destination, both
//!            ▲                                                                     │
//!            └──────────────────────── directories to descend into ◄───────────────┘
//! ```
//!
//! Some directories, `--checkers` of them, are in work at the same time. A storage that lists in order is read as a stream; of any other a directory is first packed
//! into an [`Arena`](arena::Arena) and sorted there, with nothing allocated per entry. So the memory of a walk does not depend on the size of the tree: it is that of
//! the directories in work, of which only one at a time may be very large, and of the names of the directories which still wait.

mod arena;
mod cursor;
mod item;
mod names;
mod retry;
mod scope;
mod walk;

#[cfg(test)]
pub(crate) use self::item::Tag;
pub(crate) use self::item::{Item, ItemKind};
pub(crate) use self::names::ForeignForms;
pub(crate) use self::retry::retried;
pub use self::scope::Scope;
pub use self::walk::Side;
pub(crate) use self::walk::{Descend, Visitor, Walk, WalkedDirectory, walk};

/// Names that begin so are ours: where attempts stage what they write. No walk tells them.
pub(crate) const OWN_NAME_PREFIX: &str = ".nkcluster-";

#[cfg(test)]
mod tests;
