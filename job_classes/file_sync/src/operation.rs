//! What is to be done with one file, as it stands in a batch.
//!
//! The names and keys are those of rclone's remote control, so that a real rclone can carry a batch out and its batches can be carried out here. `_nkcluster` is
//! ours: what the plan saw, which fences the effect. rclone ignores it.

use serde::{Deserialize, Serialize};

/// One input of a batch. File systems (`…Fs`) are in rclone's syntax; remotes are paths below them. Paths are texts here, since a batch may come from anybody: whoever
/// carries it out reads them with [`EntryPath::parse`](crate::EntryPath::parse).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "_path")]
pub enum Operation {
    /// Copies one file.
    #[serde(rename = "operations/copyfile", rename_all = "camelCase")]
    CopyFile {
        /// Root of the source.
        src_fs: String,
        /// The file below it.
        src_remote: String,
        /// Root of the destination.
        dst_fs: String,
        /// The file below it.
        dst_remote: String,
        /// What the plan saw.
        #[serde(rename = "_nkcluster", default, skip_serializing_if = "Option::is_none")]
        planned: Option<Planned>,
    },
    /// Moves one file: a copy, verified, and then the end of its source.
    #[serde(rename = "operations/movefile", rename_all = "camelCase")]
    MoveFile {
        /// Root of the source.
        src_fs: String,
        /// The file below it.
        src_remote: String,
        /// Root of the destination.
        dst_fs: String,
        /// The file below it.
        dst_remote: String,
        /// What the plan saw.
        #[serde(rename = "_nkcluster", default, skip_serializing_if = "Option::is_none")]
        planned: Option<Planned>,
    },
    /// Deletes one file.
    #[serde(rename = "operations/deletefile", rename_all = "camelCase")]
    DeleteFile {
        /// Root of the remote.
        fs: String,
        /// The file below it.
        remote: String,
        /// What the plan saw.
        #[serde(rename = "_nkcluster", default, skip_serializing_if = "Option::is_none")]
        planned: Option<Planned>,
    },
}

impl Operation {
    /// What the plan saw, if it said so.
    pub fn planned(&self) -> Option<&Planned> {
        match self {
            Self::CopyFile { planned, .. } | Self::MoveFile { planned, .. } | Self::DeleteFile { planned, .. } => planned.as_ref(),
        }
    }

    /// The file that it is about, below the root of its source.
    pub fn file(&self) -> &str {
        match self {
            Self::CopyFile { src_remote, .. } | Self::MoveFile { src_remote, .. } => src_remote,
            Self::DeleteFile { remote, .. } => remote,
        }
    }

    /// Bytes that it moves, as far as the plan knows; 0 for deletes.
    pub fn size(&self) -> u64 {
        match self {
            Self::CopyFile { planned, .. } | Self::MoveFile { planned, .. } => planned.as_ref().map_or(0, |planned| planned.size),
            Self::DeleteFile { .. } => 0,
        }
    }
}

/// What the plan saw of the files of one [`Operation`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Bytes of the source of a copy or move, or of the file to be deleted.
    pub size: u64,
    /// [`Entry::tag`](crate::Entry::tag) of the source, or of the file to be deleted: if it is another one now, a move keeps its source and a delete is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Box<str>>,
    /// What was at the destination of a copy or move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Seen>,
}

/// What was seen at a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// Nothing.
    Nothing,
    /// A file with this [`Entry::tag`](crate::Entry::tag).
    Tag(Box<str>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_written_as_rclone_writes_it() {
        let text = r#"{"_path":"operations/copyfile","srcFs":"/a","srcRemote":"x","dstFs":"/b","dstRemote":"y"}"#;
        let operation: Operation = serde_json::from_str(text).expect("rclone's own");
        assert_eq!(serde_json::to_string(&operation).expect("text"), text);
        let text = r#"{"_path":"operations/deletefile","fs":"/a","remote":"x","_nkcluster":{"size":3,"destination":{"tag":"t"}}}"#;
        let operation: Operation = serde_json::from_str(text).expect("ours");
        assert_eq!(operation.planned().and_then(|planned| planned.destination.clone()), Some(Seen::Tag("t".into())));
        assert_eq!(serde_json::to_string(&operation).expect("text"), text);
    }
}
