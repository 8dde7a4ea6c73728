//! How a worker comes to have a batch.
//!
//! Where files can be renamed, the batch is moved to `processing` first, as rclone does it, so that its workers and ours respect each other. Then, and everywhere, the
//! first record of its log decides: an offer that was written twice is claimed once.

use bytes::Bytes;

use crate::attempt::{Attempt, RunId};
use crate::queue::batch::{Batch, FILE_BYTES_MAX, FormatError, LogRecord};
use crate::queue::fault::{Fault, has};
use crate::queue::name::{JobName, WorkerId};
use crate::queue::pacing::random;
use crate::queue::run::counted_path;
use crate::queue::store::{Content, SharedStore, StoreError, create_or_same, marker_of};

/// Times that a record is tried to be written before it is left to whoever waits for the lease.
const TRIES_MAX: u32 = 4;

/// What a try to have a batch has come to.
#[derive(Debug)]
pub(super) enum Claim {
    /// It is ours.
    Ours(Attempt, Batch),
    /// It is ours, and nobody can read it.
    Broken(String),
    /// Somebody else has it, or is to have it, or it is over.
    Others,
    /// A job of rclone, where nobody could have it alone.
    Foreign,
}

/// Tries to have a batch.
pub(super) async fn claim(store: &SharedStore, job: &JobName, worker: &WorkerId) -> Result<Claim, StoreError> {
    let honours = store.honours();
    let Some(attempt) = job.attempt() else {
        return match honours.renames {
            true => claim_as_rclone(store, job, worker).await,
            false => Ok(Claim::Foreign),
        };
    };
    // Where claims are not exclusive, each batch says whose it is.
    if !honours.creates_once {
        let content = store.read(&job.pending(), FILE_BYTES_MAX).await?;
        let is_ours = matches!(&content, Content::Bytes(bytes) if Batch::from_json(bytes).is_ok_and(|batch| batch.note.worker.as_ref() == Some(worker)));
        if !is_ours {
            return Ok(Claim::Others);
        }
    }
    let processing = job.processing(worker);
    if honours.renames && !store.rename(&job.pending(), &processing).await? {
        return Ok(Claim::Others);
    }
    let nonce = format!("{:016x}{:016x}", random(), random());
    let record = Bytes::from(LogRecord::Claimed { worker: worker.clone(), nonce }.to_json());
    let log = job.log(0);
    let is_first = again(|| create_or_same(&**store, &log, record.clone())).await?;
    let is_over = store.read(&counted_path(attempt.run, attempt.batch), 0).await? != Content::Missing;
    if (!is_first && !has(Fault::NoRecord)) || is_over {
        // It was offered twice, or it was taken back before we had it. Whoever has it keeps it under a name of its own.
        if honours.renames {
            store.delete(&processing).await?;
        }
        return Ok(Claim::Others);
    }
    let content = match honours.renames {
        true => store.read(&processing, FILE_BYTES_MAX).await?,
        false => {
            let content = store.read(&job.pending(), FILE_BYTES_MAX).await?;
            if let Content::Bytes(bytes) = &content {
                store.replace(&processing, bytes.clone()).await?;
                store.delete(&job.pending()).await?;
            }
            content
        }
    };
    Ok(match content {
        Content::Bytes(bytes) => match Batch::from_json(&bytes) {
            Ok(batch) => Claim::Ours(attempt, batch),
            Err(error) => Claim::Broken(error.to_string()),
        },
        Content::TooLong => Claim::Broken(FormatError::TooLong.to_string()),
        // It was taken from us already.
        Content::Missing => Claim::Others,
    })
}

/// Has a job of rclone, which knows of no records.
async fn claim_as_rclone(store: &SharedStore, job: &JobName, worker: &WorkerId) -> Result<Claim, StoreError> {
    let processing = job.processing(worker);
    if !store.rename(&job.pending(), &processing).await? {
        return Ok(Claim::Others);
    }
    // rclone draws twenty characters for each job, in the shape of a run id. It offers a job again under the same name, so the attempt is drawn here.
    let drawn: String = job.as_str().chars().skip(job.as_str().len() - 20).collect();
    let run = drawn.parse().unwrap_or_else(|_| {
        let hash = marker_of(&job.as_str()).to_le_bytes();
        RunId::from_random(std::array::from_fn(|at| hash[at % hash.len()]))
    });
    let attempt = Attempt { run, batch: 0, attempt: rand::random() };
    Ok(match store.read(&processing, FILE_BYTES_MAX).await? {
        Content::Bytes(bytes) => match Batch::from_json(&bytes) {
            Ok(batch) => Claim::Ours(attempt, batch),
            Err(error) => Claim::Broken(error.to_string()),
        },
        Content::TooLong => Claim::Broken(FormatError::TooLong.to_string()),
        Content::Missing => Claim::Others,
    })
}

/// Tries something a few times.
pub(super) async fn again<T, F: Future<Output = Result<T, StoreError>>>(mut work: impl FnMut() -> F) -> Result<T, StoreError> {
    let mut wait = crate::queue::pacing::SHORTEST;
    for _ in 1..TRIES_MAX {
        match work().await {
            Err(error) if error.is_temporary => tokio::time::sleep(wait).await,
            done => return done,
        }
        wait *= 4;
    }
    work().await
}
