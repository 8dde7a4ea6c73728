//! What stands in the files of a queue: batches, their results, and the log of a claim.
//!
//! A batch is a call of rclone's `job/batch`, written as rclone writes it: keys in order, indented by tabs. `_nkcluster` is ours, and rclone ignores it. Whoever reads
//! a file takes it for what a stranger wrote: too long, truncated, or something else altogether is a [`FormatError`].

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::operation::Operation;
use crate::queue::name::{FAMILY, WorkerId};

/// Longest file of a batch, a result or a log record. A batch of a thousand files has about half a megabyte.
pub const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most inputs of one batch.
pub const INPUTS_MAX: usize = 1 << 20;
/// Characters of a message that are kept.
const MESSAGE_CHARS_MAX: usize = 2_000;
/// What rclone answers for an input that failed without a status of its own.
pub const STATUS_FAILED: u16 = 500;
/// Status of an input that fails again whenever it is tried.
pub(crate) const STATUS_FINAL: u16 = 422;

/// Why the content of a file is not what its name says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It is longer than [`FILE_BYTES_MAX`].
    #[error("it has more than {FILE_BYTES_MAX} bytes")]
    TooLong,
    /// It is no JSON, or JSON of another shape.
    #[error("{0}")]
    Json(String),
    /// It is a call of something else.
    #[error("it is a call of {0:?}, not of job/batch")]
    NotABatch(String),
    /// It has more than [`INPUTS_MAX`] inputs.
    #[error("it has {0} inputs, more than {INPUTS_MAX}")]
    TooManyInputs(usize),
    /// The result has another number of entries than the batch has inputs.
    #[error("it has {found} results for {expected} inputs")]
    OtherCount {
        /// Entries of the result.
        found: usize,
        /// Inputs of the batch.
        expected: usize,
    },
}

/// Operations that one worker carries out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Options of rclone that differ from their defaults, as in its `_config`.
    pub config: Map<String, Value>,
    /// Filter options of rclone that differ from their defaults, as in its `_filter`.
    pub filter: Map<String, Value>,
    /// What is to be done.
    pub inputs: Vec<Operation>,
    /// What only we say of a batch.
    pub note: BatchNote,
}

/// What a batch of ours says in `_nkcluster`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchNote {
    /// Numbers that it may give to batches which are split off; itself counted.
    #[serde(default = "family")]
    pub width: u64,
    /// The name under which it was offered first; in records, whose own names have only the number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The one worker that may take it, where claims cannot be made exclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
}

impl Default for BatchNote {
    fn default() -> Self {
        Self { width: FAMILY, job: None, worker: None }
    }
}

const fn family() -> u64 {
    FAMILY
}

#[derive(Serialize, Deserialize)]
struct WrittenBatch<'a> {
    #[serde(rename = "_config", default, skip_serializing_if = "Map::is_empty")]
    config: Map<String, Value>,
    #[serde(rename = "_filter", default, skip_serializing_if = "Map::is_empty")]
    filter: Map<String, Value>,
    #[serde(rename = "_nkcluster", default, skip_serializing_if = "Option::is_none")]
    note: Option<BatchNote>,
    #[serde(rename = "_path")]
    path: String,
    inputs: std::borrow::Cow<'a, [Operation]>,
}

impl Batch {
    /// The file of the batch.
    pub fn to_json(&self) -> Vec<u8> {
        indented(&WrittenBatch {
            config: self.config.clone(),
            filter: self.filter.clone(),
            note: Some(self.note.clone()),
            path: "job/batch".to_owned(),
            inputs: self.inputs.as_slice().into(),
        })
    }

    /// Reads the file of a batch, ours or rclone's.
    ///
    /// # Errors
    /// Whatever is no batch. An input that is none of the three operations of a cluster makes the whole no batch.
    pub fn from_json(bytes: &[u8]) -> Result<Self, FormatError> {
        let WrittenBatch { config, filter, note, path, inputs } = parse(bytes)?;
        if path != "job/batch" {
            return Err(FormatError::NotABatch(shortened(&path, 100)));
        }
        if inputs.len() > INPUTS_MAX {
            return Err(FormatError::TooManyInputs(inputs.len()));
        }
        Ok(Self { config, filter, inputs: inputs.into_owned(), note: note.unwrap_or_default() })
    }

    /// Bytes that it moves, as far as the plan knows.
    pub fn size(&self) -> u64 {
        self.inputs.iter().map(Operation::size).fold(0, u64::saturating_add)
    }
}

/// Why an input, or a whole batch, failed; in the shape of rclone's errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed and why, for people.
    pub error: String,
    /// Status of HTTP, as rclone gives it.
    #[serde(default = "status_failed")]
    pub status: u16,
    /// The input that failed.
    #[serde(default)]
    pub input: Value,
    /// The operation that failed, such as `operations/copyfile`.
    #[serde(default)]
    pub path: String,
}

const fn status_failed() -> u16 {
    STATUS_FAILED
}

impl Failure {
    /// The failure of one input.
    pub fn of(operation: &Operation, error: impl Into<String>) -> Self {
        let mut input = serde_json::to_value(operation).unwrap_or_default();
        let path = input.as_object_mut().and_then(|input| input.remove("_path"));
        let path = path.and_then(|path| path.as_str().map(str::to_owned)).unwrap_or_default();
        Self { error: shortened(&error.into(), MESSAGE_CHARS_MAX), status: STATUS_FAILED, input, path }
    }

    /// The same, told to be of a kind that another try does not mend.
    #[must_use]
    pub fn as_final(self) -> Self {
        Self { status: STATUS_FINAL, ..self }
    }

    /// Whether another try may succeed; of what rclone tells it is always thought so.
    pub fn is_retryable(&self) -> bool {
        self.status != STATUS_FINAL
    }

    /// The failure of a whole batch.
    pub fn of_batch(error: impl Into<String>) -> Self {
        let error = shortened(&error.into(), MESSAGE_CHARS_MAX);
        Self { error, status: STATUS_FAILED, input: Value::Object(Map::new()), path: "job/batch".to_owned() }
    }

    /// The file that it is about, for people; empty for a whole batch.
    pub fn file(&self) -> &str {
        ["srcRemote", "remote"].iter().find_map(|key| self.input.get(key)?.as_str()).unwrap_or_default()
    }
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum BatchResult {
    /// What became of each input, in their order; none is success.
    Inputs(Vec<Option<Failure>>),
    /// The batch failed as a whole.
    Failed(Failure),
}

impl BatchResult {
    /// The file of the result.
    pub fn to_json(&self) -> Vec<u8> {
        let entry = |failure: &Option<Failure>| match failure {
            None => Value::Object(Map::new()),
            Some(failure) => serde_json::to_value(failure).unwrap_or_default(),
        };
        match self {
            Self::Inputs(results) => indented(&serde_json::json!({ "results": results.iter().map(entry).collect::<Vec<_>>() })),
            Self::Failed(failure) => indented(failure),
        }
    }

    /// Reads the result of a batch with `expected` inputs.
    ///
    /// # Errors
    /// Whatever is no result, and a result of another number of inputs.
    pub fn from_json(bytes: &[u8], expected: usize) -> Result<Self, FormatError> {
        #[derive(Deserialize)]
        struct Written {
            results: Option<Vec<Map<String, Value>>>,
            error: Option<String>,
        }
        let failure = |map: Map<String, Value>| -> Result<Option<Failure>, FormatError> {
            // Success of rclone may say more than nothing; only an error makes a failure.
            if !map.contains_key("error") {
                return Ok(None);
            }
            let failure: Failure = serde_json::from_value(Value::Object(map)).map_err(|error| FormatError::Json(error.to_string()))?;
            Ok(Some(Failure { error: shortened(&failure.error, MESSAGE_CHARS_MAX), ..failure }))
        };
        let Written { results, error } = parse(bytes)?;
        match (results, error) {
            (Some(results), None) if results.len() == expected => {
                Ok(Self::Inputs(results.into_iter().map(failure).collect::<Result<_, _>>()?))
            }
            (Some(results), None) => Err(FormatError::OtherCount { found: results.len(), expected }),
            (_, Some(_)) => Ok(Self::Failed(parse(bytes)?)),
            (None, None) => Err(FormatError::Json("neither `results` nor `error`".to_owned())),
        }
    }
}

/// One record of the log of an attempt, `claims/<job>.<n>`. Records are created, never changed, and whoever creates record n has the word: the claim is record 0, then
/// follow splits of its holder, and the seal of the controller ends it. So a worker that was given up cannot split, and a split that was recorded cannot be lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub(crate) enum LogRecord {
    /// A worker has it.
    Claimed {
        worker: WorkerId,
        /// Drawn at random for each claim, so that a worker knows its own record again.
        nonce: String,
    },
    /// The holder keeps some of its inputs, and the others become a batch of their own.
    Split(Split),
    /// A controller has taken it away.
    Sealed { controller: u32 },
}

/// A batch that was split off another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Split {
    /// What the holder keeps.
    pub(crate) kept: Vec<Operation>,
    /// Numbers that the holder may give away from now on.
    pub(crate) kept_width: u64,
    /// The number of the other batch.
    pub(crate) child: u64,
    /// Numbers of the child.
    pub(crate) child_width: u64,
    /// What it has to do.
    pub(crate) inputs: Vec<Operation>,
}

impl LogRecord {
    pub(crate) fn to_json(&self) -> Vec<u8> {
        indented(self)
    }

    pub(crate) fn from_json(bytes: &[u8]) -> Result<Self, FormatError> {
        parse(bytes)
    }
}

/// Reads any file of a queue.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FormatError> {
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FormatError::TooLong);
    }
    serde_json::from_slice(bytes).map_err(|error| FormatError::Json(shortened(&error.to_string(), 300)))
}

/// Writes JSON as Go's `MarshalIndent` does with a tab.
pub(crate) fn indented(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, serde_json::ser::PrettyFormatter::with_indent(b"\t"));
    value.serialize(&mut serializer).expect("maps with text keys, written to memory");
    bytes
}

fn shortened(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn copy(name: &str) -> Operation {
        let (src_fs, dst_fs) = ("/a".to_owned(), "/b".to_owned());
        Operation::CopyFile { src_fs, src_remote: name.to_owned(), dst_fs, dst_remote: name.to_owned(), planned: None }
    }

    #[test]
    fn a_batch_is_written_as_rclone_writes_it() {
        let mut batch = Batch { inputs: vec![copy("x")], ..Batch::default() };
        batch.config.insert("Transfers".into(), 8.into());
        let text = String::from_utf8(batch.to_json()).expect("text");
        let start = "{\n\t\"_config\": {\n\t\t\"Transfers\": 8\n\t},\n\t\"_nkcluster\": {\n\t\t\"width\": 1048576\n\t},\n\t\"_path\": \"job/batch\",\n\t\"inputs\": [\n\t\t{\n";
        assert!(text.starts_with(start), "{text}");
        assert_eq!(Batch::from_json(text.as_bytes()), Ok(batch));
    }

    #[test]
    fn a_batch_of_rclone_is_read() {
        let text = br#"{"_config":{"CheckSum":true},"_filter":{"MinAge":"1h"},"_path":"job/batch","inputs":[
            {"_path":"operations/movefile","dstFs":"s3:b","dstRemote":"x","srcFs":"/a","srcRemote":"x"},
            {"_path":"operations/deletefile","fs":"s3:b","remote":"y","_group":"g"}]}"#;
        let batch = Batch::from_json(text).expect("a batch");
        assert_eq!((batch.inputs.len(), batch.note.width, batch.size()), (2, FAMILY, 0));
        assert_eq!(batch.config["CheckSum"], true);
    }

    #[test]
    fn what_is_no_batch_is_an_error_that_says_why() {
        let cut = &Batch { inputs: vec![copy("x")], ..Batch::default() }.to_json()[..60];
        for bytes in [&b""[..], b"{}", b"[]", b"null", b"\xff\xfe", b"{\"_path\":\"job/batch\"}", cut] {
            assert!(matches!(Batch::from_json(bytes), Err(FormatError::Json(_))), "{bytes:?}");
        }
        let other = br#"{"_path":"core/quit","inputs":[]}"#;
        assert_eq!(Batch::from_json(other), Err(FormatError::NotABatch("core/quit".into())));
        let unknown = br#"{"_path":"job/batch","inputs":[{"_path":"core/command","command":"rm"}]}"#;
        assert!(Batch::from_json(unknown).is_err());
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        assert!(Batch::from_json(&deep).is_err());
    }

    #[test]
    fn results_are_read_and_written_in_the_shape_of_rclone() {
        let result = BatchResult::Inputs(vec![None, Some(Failure::of(&copy("x"), "no space"))]);
        let text = result.to_json();
        let value: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(value["results"][0], serde_json::json!({}));
        assert_eq!((&value["results"][1]["status"], &value["results"][1]["input"]["srcRemote"]), (&500.into(), &"x".into()));
        assert_eq!(BatchResult::from_json(&text, 2), Ok(result));
        assert_eq!(BatchResult::from_json(&text, 3), Err(FormatError::OtherCount { found: 2, expected: 3 }));
        let failed = BatchResult::Failed(Failure::of_batch("didn't find section"));
        assert_eq!(BatchResult::from_json(&failed.to_json(), 7), Ok(failed));
        for bytes in [&b"{}"[..], b"", b"{\"results\":[1]}", b"{\"results\":{}}"] {
            assert!(BatchResult::from_json(bytes, 1).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..400) {
            let whole = Batch { inputs: vec![copy("x"), copy("y")], ..Batch::default() }.to_json();
            let mut mixed = whole[..cut.min(whole.len())].to_vec();
            mixed.extend(&bytes);
            let _ = (Batch::from_json(&mixed), BatchResult::from_json(&mixed, 1), LogRecord::from_json(&mixed));
            let _ = (Batch::from_json(&bytes), BatchResult::from_json(&bytes, 1), LogRecord::from_json(&bytes));
        }
    }
}
