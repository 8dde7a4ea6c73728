//! Values that only the configuration has.

use std::fmt;

use crate::types::ClassName;

/// What a node is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Control node, and worker too.
    Control,
    /// Worker only.
    Worker,
}

impl Role {
    /// `control` or `worker`.
    pub fn name(self) -> &'static str {
        match self {
            Role::Control => "control",
            Role::Worker => "worker",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// What a part of a divided cluster does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Every part goes on with the workers that it reaches.
    Serve,
    /// Only a part with more than half of the known control nodes goes on.
    Majority,
}

/// A choice of job classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClassList {
    /// Every class in the program, `*`.
    All,
    /// These.
    Only(Vec<ClassName>),
}

impl ClassList {
    /// Whether the class is chosen.
    pub fn contains(&self, class: &str) -> bool {
        match self {
            ClassList::All => true,
            ClassList::Only(names) => names.iter().any(|name| name.as_str() == class),
        }
    }

    /// Whether no class can be chosen.
    pub fn is_empty(&self) -> bool {
        matches!(self, ClassList::Only(names) if names.is_empty())
    }
}
