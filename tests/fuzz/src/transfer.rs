//! A transfer of files, from the side of a client that plays by no rule.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use nkcluster::error::ErrorCode;
use nkcluster::transfer::{self, Checksum, FileRoot, Outcome, RESERVED_PREFIX};
use serde_bytes::Bytes;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{Builder, Runtime};

use crate::input::{Input, text};
use crate::seeded::seeded_crash;

/// Lies beside the root, where no client reaches it.
const OUTSIDE: &str = "outside-of-the-root";
const INSIDE: &[u8] = b"inside of the root";
/// Attempts of one input, each over what the one before has left.
const ATTEMPTS_MAX: usize = 3;
const KIND_MESSAGE: u8 = 0;
const KIND_DATA: u8 = 1;

/// Whatever a client says, nothing outside of the root is read or written; what was received is in place, whole, with the checksum that was told; and unless the
/// stream broke, nothing unfinished stays behind.
pub fn transfer(data: &[u8]) {
    ROOM.with(|room| {
        room.tidy();
        let mut input = Input::new(data);
        let (mut received, mut is_executable, mut attempts) = (false, false, 0);
        for _ in 0..ATTEMPTS_MAX {
            attempts += 1;
            let said = conversation(&mut input);
            let unfinished = room.unfinished();
            let (result, heard) = room.serve(&said);
            assert!(!heard.windows(OUTSIDE.len()).any(|window| window == OUTSIDE.as_bytes()), "what lies outside was read");
            let mut is_cut = false;
            match result {
                Ok(Outcome::Received { path, file }) => {
                    let place = room.root.path().join(path.as_path());
                    let content = fs::read(&place).unwrap_or_else(|error| panic!("{path}: {error}"));
                    assert_eq!((content.len() as u64, Checksum::of(&content)), (file.bytes, file.xxh3), "{path}");
                    received |= file.bytes > 0;
                    let mode = fs::metadata(&place).map(|found| found.permissions().mode()).unwrap_or(0);
                    is_executable |= mode & 0o111 != 0;
                }
                Ok(Outcome::Served { .. }) => {}
                Err(error) => is_cut = *error.code() == ErrorCode::ConnectionFailed,
            }
            // What a broken stream leaves is for a retry, and only a retry takes it.
            assert!(is_cut || room.unfinished() <= unfinished, "an unfinished file stays behind");
            room.check_outside();
            if input.is_empty() {
                break;
            }
        }
        seeded_crash!("transfer", received, is_executable, attempts > 1,);
    });
}

/// What a client says in one attempt.
fn conversation(input: &mut Input<'_>) -> Vec<u8> {
    let mut said = Vec::new();
    let mut content = Vec::new();
    while !input.is_empty() {
        match input.below(12) {
            0 => said.extend_from_slice(input.bytes()),
            1 => frame(&mut said, KIND_MESSAGE, input.bytes()),
            2 => frame(&mut said, KIND_DATA, input.bytes()),
            3 => {
                let length = 1 + usize::from(input.u16());
                let bytes = vec![input.byte(); length];
                content.extend_from_slice(&bytes);
                frame(&mut said, KIND_DATA, &bytes);
            }
            4 | 5 => {
                let version = if input.below(16) == 15 { 2 } else { 1 };
                let id = [input.byte() % 2; 16];
                let path = text(input.bytes());
                let offer = Offer {
                    size: [0, 1, 1_000, u64::from(input.u16()), u64::MAX][input.below(5)],
                    mode: input.u32(),
                    modified: (input.below(2) == 1)
                        .then(|| Modified { seconds: i64::from(input.u32()) << input.below(32), nanos: input.u32() }),
                };
                message(&mut said, &Message::Send { version, id: Bytes::new(&id), path: &path, offer });
            }
            6 => {
                let path = text(input.bytes());
                message(&mut said, &Message::Fetch { version: 1, id: Bytes::new(&[0; 16]), path: &path });
            }
            7 => message(&mut said, &Message::Start { offset: [0, u64::from(input.u16())][input.below(2)] }),
            8 => {
                // Of a resumed file the input cannot know the beginning but by its length.
                let kept = usize::from(input.byte());
                let mut whole = vec![b'k'; kept];
                whole.extend_from_slice(&content);
                message(&mut said, &Message::End { size: whole.len() as u64, xxh3: &checksum(&whole) });
            }
            9 => message(
                &mut said,
                &Message::Resume { offset: u64::from(input.byte()), xxh3: &checksum(&INSIDE[..input.below(INSIDE.len())]) },
            ),
            10 => message(&mut said, &Message::Wait),
            _ => break,
        }
    }
    said
}

fn frame(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    out.extend_from_slice(body);
}

fn message(out: &mut Vec<u8>, message: &Message<'_>) {
    let body = rmp_serde::to_vec_named(message).unwrap_or_else(|error| panic!("numbers and texts encode: {error}"));
    frame(out, KIND_MESSAGE, &body);
}

fn checksum(content: &[u8]) -> serde_bytes::ByteArray<16> {
    serde_bytes::ByteArray::new(Checksum::of(content).as_u128().to_be_bytes())
}

/// The messages as they travel (`src/transfer/wire.rs`), written down a second time because a client may be any program.
#[derive(serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Message<'a> {
    Send { version: u16, id: &'a Bytes, path: &'a str, offer: Offer },
    Fetch { version: u16, id: &'a Bytes, path: &'a str },
    Resume { offset: u64, xxh3: &'a serde_bytes::ByteArray<16> },
    Start { offset: u64 },
    End { size: u64, xxh3: &'a serde_bytes::ByteArray<16> },
    Wait,
}

#[derive(serde::Serialize)]
struct Offer {
    size: u64,
    mode: u32,
    modified: Option<Modified>,
}

#[derive(serde::Serialize)]
struct Modified {
    seconds: i64,
    nanos: u32,
}

/// A root with a few files, and something beside it.
struct Room {
    runtime: Runtime,
    directory: TempDir,
    root: FileRoot,
}

thread_local! {
    static ROOM: Room = Room::open();
}

impl Room {
    fn open() -> Self {
        // In memory where there is such a place: every received file is synced.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a place for files");
        let root = FileRoot::open(directory.path().join("root")).expect("a new directory can be opened");
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime without sockets needs nothing of the system");
        Self { runtime, directory, root }
    }

    /// Everything as it was before.
    fn tidy(&self) {
        let root = self.root.path();
        for entry in fs::read_dir(root).expect("our own directory") {
            let entry = entry.expect("our own directory");
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if is_directory { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
            removed.expect("our own file");
        }
        fs::write(self.directory.path().join("secret"), OUTSIDE).expect("our own file");
        fs::write(root.join("a"), INSIDE).expect("our own file");
        fs::create_dir(root.join("d")).expect("our own directory");
        symlink("a", root.join("in")).expect("our own directory");
        symlink("../secret", root.join("out")).expect("our own directory");
        symlink("..", root.join("up")).expect("our own directory");
    }

    fn serve(&self, said: &[u8]) -> (nkcluster::Result<Outcome>, Vec<u8>) {
        self.runtime.block_on(async {
            let (near, far) = tokio::io::duplex(256 * 1024);
            let (mut listening, mut speaking) = tokio::io::split(near);
            let speak = async {
                // The other side may have given up already.
                let _ = speaking.write_all(said).await;
                let _ = speaking.shutdown().await;
            };
            let mut heard = Vec::new();
            let (result, (), _) = tokio::join!(transfer::handle(far, &self.root), speak, listening.read_to_end(&mut heard));
            (result, heard)
        })
    }

    /// Number of temporaries in the root and the directories that were made there.
    fn unfinished(&self) -> usize {
        let mut directories = vec![self.root.path().to_owned()];
        let mut count = 0;
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("our own directory") {
                let entry = entry.expect("our own directory");
                count += usize::from(entry.file_name().to_string_lossy().starts_with(RESERVED_PREFIX));
                // Links are not followed: this is what the entry itself is.
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    directories.push(entry.path());
                }
            }
        }
        count
    }

    fn check_outside(&self) {
        let mut names: Vec<_> = fs::read_dir(self.directory.path())
            .expect("our own directory")
            .map(|entry| entry.expect("our own directory").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["root", "secret"], "something was made outside");
        assert_eq!(
            fs::read(self.directory.path().join("secret")).expect("our own file"),
            OUTSIDE.as_bytes(),
            "something outside was written"
        );
    }
}
