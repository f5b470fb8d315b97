//! Delivers an attempt's files: announce, put each where the server says, commit.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use rayreel_domain::task::{Failure, Output};
use rayreel_domain::wire::worker::{Commit, Done, Progress, UploadTarget, UploadTargets, Uploads};
use rayreel_domain::{Code, Fence};
use reqwest::Body;
use tokio::time::sleep;

use crate::api::{self, Server};
use crate::backoff::Outage;
use crate::keeper::{Hold, Identity};
use crate::outputs::Found;

/// How often files are announced and put afresh after a definite refusal: a signed address may
/// have expired in an outage, and a file may have been damaged on its way.
pub(crate) const ROUNDS: u32 = 3;
/// Bytes that are read and sent at a time.
const CHUNK: u64 = 1 << 18;
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
            self.put(found, target).await?;
        }
        Ok(())
    }

    /// Puts one file, until it is there or refused.
    async fn put(&self, found: &Found, target: &UploadTarget) -> Result<(), api::Error> {
        let bytes = found.output.bytes;
        let limit = Duration::from_secs(60 + bytes / SLOWEST);
        let mut outage = Outage::new("put");
        loop {
            let body = body(Arc::clone(&found.file), bytes);
            match self.server.put(target, bytes, body, limit).await {
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

/// A file as a request's body. Reads by position: a try that was given up may still be reading.
fn body(file: Arc<File>, bytes: u64) -> Body {
    let chunks = stream::try_unfold(0, move |at| {
        let file = Arc::clone(&file);
        async move {
            let length = CHUNK.min(bytes - at);
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
