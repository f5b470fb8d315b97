//! Delivers an attempt's files: announce, put each where the server says, commit.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use rayreel_domain::task::{Failure, Output};
use rayreel_domain::wire::worker::{
    Commit, Done, PartTarget, PartTargets, Parts, Progress, UploadTargets, Uploads,
};
use rayreel_domain::{Code, Fence};
use reqwest::Body;
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use crate::api::{self, Server};
use crate::backoff::Outage;
use crate::keeper::{Hold, Identity};
use crate::outputs::{Found, hex};

/// How often files are announced and put afresh after a definite refusal: a signed address may
/// have expired in an outage, and a file may have been damaged on its way.
pub(crate) const ROUNDS: u32 = 3;
/// Bytes that are read and sent at a time.
const CHUNK: u64 = 1 << 18;
/// A call at whose end the store puts a long file together.
const PARTS_CALL: Duration = Duration::from_secs(90);
/// A transfer that is slower than this, in bytes a second, is tried again.
const SLOWEST: u64 = 100_000;

/// What an attempt has made.
#[derive(Debug)]
pub(crate) struct Product {
    pub(crate) files: Vec<Found>,
    pub(crate) metrics: BTreeMap<String, f64>,
    pub(crate) test_pattern: bool,
}

impl Product {
    fn manifest(&self) -> Vec<Output> {
        self.files.iter().map(|found| found.output.clone()).collect()
    }
}

/// One attempt's way to the server.
pub(crate) struct Delivery<'a> {
    pub(crate) server: &'a Server,
    pub(crate) identity: &'a Identity,
    pub(crate) fence: Fence,
    /// How long to go on without an answer.
    pub(crate) patience: Duration,
}

impl Delivery<'_> {
    /// Announces the files and puts them.
    pub(crate) async fn upload(&self, product: &Product, hold: &Hold) -> Result<(), api::Error> {
        let announcement = Uploads {
            worker: self.identity.worker.clone(),
            incarnation: self.identity.incarnation,
            fence: self.fence,
            manifest: product.manifest(),
        };
        let answer: UploadTargets =
            self.server.insist("uploads", &announcement, self.patience).await?;
        let named = answer.targets.iter().map(|target| target.index);
        if !named.eq(product.files.iter().map(|found| found.output.index)) {
            return Err(api::Error::Refused {
                status: 200,
                code: None,
                message: "the server named other files than were announced".into(),
            });
        }
        let steps = product.files.len() as u32;
        for (step, (found, target)) in (0..).zip(product.files.iter().zip(&answer.targets)) {
            hold.progress(Progress { stage: "upload".into(), step, steps });
            match target.part_bytes {
                Some(part) if part > 0 => self.put_in_parts(found, part).await?,
                _ => self.put(found, 0..found.output.bytes, &target.url, &target.headers).await?,
            }
        }
        Ok(())
    }

    /// Puts those parts of a file that the server misses, until it misses none.
    async fn put_in_parts(&self, found: &Found, part: u64) -> Result<(), api::Error> {
        let bytes = found.output.bytes;
        let file = Arc::clone(&found.file);
        let hashed = tokio::task::spawn_blocking(move || part_sums(&file, bytes, part)).await;
        let sha256 = hashed.map_err(io::Error::other).flatten().map_err(|error| {
            // It was read before: the disk has just failed.
            api::Error::Unreachable(format!("the file can't be read again: {error}"))
        })?;
        let mut question = Parts {
            worker: self.identity.worker.clone(),
            incarnation: self.identity.incarnation,
            fence: self.fence,
            output: found.output.clone(),
            sha256,
            upload: None,
        };
        let (mut done, mut refused) = (None, 0);
        loop {
            let answer: PartTargets =
                self.server.insist_slowly("parts", &question, PARTS_CALL, self.patience).await?;
            if answer.parts.is_empty() {
                return Ok(());
            }
            question.upload = answer.upload;
            for PartTarget { part: number, url, headers } in &answer.parts {
                let begin = u64::from(*number) * part;
                if begin >= bytes || done.is_some_and(|done| *number <= done) {
                    return Err(api::bad_target("it misses a part that is there, or that is none"));
                }
                let end = bytes.min(begin + part);
                match self.put(found, begin..end, url, headers).await {
                    // The address has expired, perhaps; with another one, what is there counts.
                    Err(api::Error::Refused { .. }) if refused < ROUNDS => {
                        refused += 1;
                        break;
                    }
                    put => put?,
                }
                (done, refused) = (Some(*number), 0);
            }
        }
    }

    /// Puts a file, or a part of one, until it is there or refused.
    async fn put(
        &self,
        found: &Found,
        range: Range<u64>,
        url: &str,
        headers: &BTreeMap<String, String>,
    ) -> Result<(), api::Error> {
        let bytes = range.end - range.start;
        let limit = Duration::from_secs(60 + bytes / SLOWEST);
        let mut outage = Outage::new("put");
        loop {
            let body = body(Arc::clone(&found.file), range.clone());
            match self.server.put(url, headers, bytes, body, limit).await {
                // The answer to an earlier try was lost: what lies there has this checksum, or it
                // would not lie under this name.
                Err(api::Error::Refused { status: 412, .. }) => return Ok(()),
                Err(error) if error.is_passing() => {
                    let wait = outage.failed(&error);
                    if outage.lasts() + wait > self.patience {
                        return Err(error);
                    }
                    sleep(wait).await;
                }
                answer => {
                    outage.over();
                    return answer;
                }
            }
        }
    }

    /// Says that the task has succeeded.
    pub(crate) async fn commit(&self, product: &Product) -> Result<(), api::Error> {
        let commit = Commit {
            worker: self.identity.worker.clone(),
            incarnation: self.identity.incarnation,
            fence: self.fence,
            manifest: product.manifest(),
            metrics: product.metrics.clone(),
            test_pattern: product.test_pattern,
        };
        self.server.insist::<_, Done>("commit", &commit, self.patience).await.map(drop)
    }
}

/// Is this a refusal that announcing the files again may change?
pub(crate) fn may_help(error: &api::Error) -> bool {
    matches!(error, api::Error::Refused { .. }) && !blames_engine(error)
}

/// The server does not accept what the engine says of its files.
fn blames_engine(error: &api::Error) -> bool {
    error.code() == Some(Code::InvalidValue)
}

/// The failure of an attempt whose files could not be delivered.
pub(crate) fn undelivered(error: &api::Error) -> Failure {
    let code = if blames_engine(error) { Code::OutputInvalid } else { Code::UploadFailed };
    let message = format!("the files were made, but could not be delivered: {error}");
    Failure { retryable: true, ..Failure::new(code, message) }
}

/// The checksums of a file's parts; blocks.
fn part_sums(file: &File, bytes: u64, part: u64) -> io::Result<Vec<String>> {
    let mut chunk = vec![0; CHUNK as usize];
    let mut sums = Vec::new();
    let mut at = 0;
    while at < bytes {
        let end = bytes.min(at + part);
        let mut hash = Sha256::new();
        while at < end {
            let chunk = &mut chunk[..CHUNK.min(end - at) as usize];
            file.read_exact_at(chunk, at)?;
            hash.update(&*chunk);
            at += chunk.len() as u64;
        }
        sums.push(hex(&hash.finalize()));
    }
    Ok(sums)
}

/// A file, or a part of one, as a request's body. Reads by position: a try that was given up may still be reading.
fn body(file: Arc<File>, range: Range<u64>) -> Body {
    let chunks = stream::try_unfold(range.start, move |at| {
        let file = Arc::clone(&file);
        async move {
            let length = CHUNK.min(range.end - at);
            if length == 0 {
                return Ok(None);
            }
            let read = move || {
                let mut chunk = vec![0; length as usize];
                file.read_exact_at(&mut chunk, at).map(|()| chunk)
            };
            let chunk = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
            Ok::<_, io::Error>(Some((chunk, at + length)))
        }
    });
    Body::wrap_stream(chunks)
}
