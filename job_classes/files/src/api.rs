//! What the class is asked and what it tells.

use nkcluster::transfer::Checksum;
use serde::{Deserialize, Serialize};

/// Most entries of one page of a listing.
pub const LIST_MAX: u32 = 1000;

/// A short question about the file root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What a path names. Links that stay below the root are followed.
    Stat {
        /// Relative to the file root.
        path: String,
    },
    /// One page of a directory, in the order of the bytes of the names.
    List {
        /// Relative to the file root.
        path: String,
        /// Only what comes behind this name: `next` of the page before.
        #[serde(default)]
        after: Option<String>,
        /// Most entries, 1 to [`LIST_MAX`]; default [`LIST_MAX`].
        #[serde(default)]
        limit: Option<u32>,
    },
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reply {
    /// To `list`.
    List(Listing),
    /// To `stat`.
    Stat(Stat),
}

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Bytes.
    pub size: u64,
    /// When it was written to, milliseconds since 1970.
    pub mtime_ms: i64,
    /// What it is.
    pub kind: Kind,
}

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; only in listings.
    Symlink,
    /// A device, pipe or socket.
    Other,
}

/// One page of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// In the order of the bytes of their names.
    pub entries: Vec<Entry>,
    /// `after` of the next page; none if this is the last.
    pub next: Option<String>,
}

/// An entry of a directory. Links are not followed here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name; with replacement characters where it is not UTF-8.
    pub name: String,
    /// The bytes of the name in hexadecimal, only if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<String>,
    /// What it is, and how large.
    #[serde(flatten)]
    pub stat: Stat,
}

/// What a task does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Spec {
    /// Hashes every regular file of a tree, or one file. Symbolic links, devices, pipes, sockets and unfinished transfers are left out.
    Hash {
        /// Relative to the file root.
        path: String,
    },
}

/// First reply of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The path in its clean form; `.` is the root.
    pub path: String,
}

/// What can be told to a running task. All are answered with its [`Progress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// How far is it?
    Progress,
    /// Rest after the present step, until `resume`.
    Pause,
    /// Go on.
    Resume,
    /// End soon, with the reason `normal` and without a summary.
    Cancel,
}

/// How far a task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Files that were hashed.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Whether it rests.
    pub paused: bool,
}

/// What a task tells the control node. `task` is its id: several may walk at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A file was read.
    Hashed {
        /// Id of the task.
        task: String,
        /// Relative to the path of the task, with `/` between the parts; the name of the file, if the task has only one.
        path: String,
        /// The bytes of the path in hexadecimal, only if it is not UTF-8.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        raw: Option<String>,
        /// Length of the file.
        bytes: u64,
        /// Its checksum, 32 hexadecimal digits.
        #[serde(with = "digits")]
        xxh3: Checksum,
    },
    /// A file or directory could not be read; the task goes on.
    Failed {
        /// Id of the task.
        task: String,
        /// As above.
        path: String,
        /// As above.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        raw: Option<String>,
        /// Why.
        error: String,
    },
    /// After every 256 files, and before the end of a task that was cancelled.
    Progress {
        /// Id of the task.
        task: String,
        /// Files that were hashed so far.
        files: u64,
        /// Bytes of these files.
        bytes: u64,
    },
    /// The last one, only if everything was walked.
    Summary {
        /// Id of the task.
        task: String,
        /// Files that were hashed.
        files: u64,
        /// Bytes of these files.
        bytes: u64,
        /// Events `failed`.
        errors: u64,
    },
}

/// Text for people also in MessagePack, as an event is shown as JSON.
mod digits {
    use nkcluster::transfer::Checksum;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(checksum: &Checksum, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(checksum)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Checksum, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The bytes of a name or path as text, and in hexadecimal if the text is not exact.
pub(crate) fn shown(bytes: &[u8]) -> (String, Option<String>) {
    let text = String::from_utf8_lossy(bytes);
    let exact = text.as_bytes() == bytes;
    (text.into_owned(), (!exact).then(|| hexadecimal(bytes)))
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use nkcluster::types::Payload;

    use super::*;

    #[test]
    fn json_is_what_the_documentation_says() {
        let event = Event::Hashed { task: "t".into(), path: "a/b".into(), raw: None, bytes: 3, xxh3: Checksum::from_u128(0xab) };
        let json = Payload::encode(&event).expect("encoded").to_json().expect("json");
        let expected = serde_json::json!({"hashed": {"task": "t", "path": "a/b", "bytes": 3, "xxh3": "000000000000000000000000000000ab"}});
        assert_eq!(json, expected);
        let command = Payload::from_json(r#""pause""#).expect("payload").decode::<Command>().expect("command");
        assert_eq!(command, Command::Pause);
        let spec = Payload::from_json(r#"{"hash":{"path":"tour"}}"#).expect("payload").decode::<Spec>().expect("spec");
        assert_eq!(spec, Spec::Hash { path: "tour".into() });
    }

    #[test]
    fn replies_of_both_requests_are_told_apart() {
        let stat = Stat { size: 1, mtime_ms: -2, kind: Kind::Other };
        let entry = Entry { name: "n".into(), raw: None, stat };
        for reply in [Reply::Stat(stat), Reply::List(Listing { entries: vec![entry], next: None })] {
            let payload = Payload::encode(&reply).expect("encoded");
            assert_eq!(payload.decode::<Reply>().expect("decoded"), reply);
        }
    }

    #[test]
    fn only_names_that_are_not_text_are_told_in_hexadecimal() {
        assert_eq!(shown("ü".as_bytes()), ("ü".to_owned(), None));
        assert_eq!(shown(b"a\xff"), ("a\u{fffd}".to_owned(), Some("61ff".to_owned())));
        // A name with a real replacement character is exact.
        assert_eq!(shown("\u{fffd}".as_bytes()).1, None);
    }
}
