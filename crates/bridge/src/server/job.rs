//! A job that the server has taken: followed to its end, and its file copied out.

use std::path::Path;

use rayreel_domain::wire::engine::{EngineErrorCode, OutputFile};
use tokio::time::{Instant, sleep};

use super::adapter::{Answer, Call, Completed, Fault, State};
use super::http::{Broken, NoFile};
use super::{AGAIN, ANSWER, Loaded, MAX_ANSWER, POLL, avi, result};
use crate::talk::{Failure, Job};

/// How often a file is fetched if that breaks off.
const FETCHES: u32 = 3;

/// Why a job is not completed.
pub(super) enum Ended {
    /// The job has ended; the server lives on.
    Job(Failure),
    /// The server is gone, hung, or speaks in tongues.
    Server(Failure),
}

impl Loaded {
    /// Watches the job to its end, and passes on how far it is.
    pub(super) async fn follow(&self, job: &Job<'_>, handle: &str) -> Result<Completed, Ended> {
        job.progress("denoise", 0, 100);
        let mut most = 0.0;
        let passed_on = self.watch(handle, |percent| {
            most = f64::max(most, percent.unwrap_or(0.0));
            job.progress("denoise", most as u32, 100);
        });
        passed_on.await
    }

    /// Asks after a job until it has ended. Calls `runs` each time that it has not.
    pub(super) async fn watch(
        &self,
        handle: &str,
        mut runs: impl FnMut(Option<f64>),
    ) -> Result<Completed, Ended> {
        let call = self.adapter.poll(handle);
        // A file may come along as base64.
        let file = if self.adapter.content(handle).is_none() { self.settings.max_bytes } else { 0 };
        let limit = MAX_ANSWER + file.div_ceil(3) * 4;
        let client = self.client().map_err(Ended::Server)?;
        let mut heard = Instant::now();
        let mut pause = POLL.0;
        loop {
            sleep(pause).await;
            pause = (pause * 3 / 2).min(POLL.1);
            let time = ANSWER.min(self.settings.hung);
            let asked = client.call_slowly(&call, limit, time, || runs(None));
            let asked = self.unless_ended(asked).await.map_err(Ended::Server)?;
            let why = match asked.map(|answer| self.adapter.polled(answer)) {
                Ok(Ok(state)) => {
                    heard = Instant::now();
                    match state {
                        State::Running(percent) => runs(percent),
                        State::Completed(completed) => return Ok(completed),
                        State::Failed(failure) => return Err(Ended::Job(failure)),
                        State::Cancelled if self.is_still_at(handle).await => runs(None),
                        State::Cancelled => {
                            let message = "somebody has stopped the job at the server";
                            return Err(Ended::Job(Failure::failed(message)));
                        }
                        State::Unknown => {
                            let message = "the server does not know the job any more: it seems to \
                                           have been started anew";
                            return Err(Ended::Job(Failure::failed(message)));
                        }
                    }
                    continue;
                }
                // A proxy whose server is slow to answer; one that starts anew; a key that is being
                // replaced. It has taken the job, so it is not the request that is wrong.
                Ok(Err(Fault::Failure(Failure { message: why, .. }) | Fault::Busy(why))) => why,
                Err(broken @ Broken::TooLong(_)) => {
                    let failure =
                        |message| Failure { retryable: false, ..Failure::failed(message) };
                    // Only the file of a job that is done can be so long.
                    return Err(if file > 0 {
                        Ended::Job(failure(format!("{} (`max_bytes`)", broken.text())))
                    } else {
                        Ended::Server(failure(broken.text()))
                    });
                }
                Err(broken) => broken.text(),
            };
            if heard.elapsed() >= self.settings.hung {
                let seconds = self.settings.hung.as_secs_f64();
                let message = format!("the server told nothing of the job for {seconds} s: {why}");
                return Err(Ended::Server(Failure::failed(message)));
            }
        }
    }

    /// Whether the server computes a job that it calls cancelled. Where it gives no answer, it may.
    async fn is_still_at(&self, handle: &str) -> bool {
        let (Some(call), Ok(client)) = (self.adapter.at_work(), self.client()) else {
            return false;
        };
        let time = ANSWER.min(self.settings.hung);
        match self.unless_ended(client.call(&call, MAX_ANSWER, time)).await {
            Ok(Ok(answer)) => self.adapter.is_at(handle, &answer),
            // The next poll tells what has become of the server.
            _ => true,
        }
    }

    /// Copies the job's file out.
    pub(super) async fn fetch(
        &self,
        job: &Job<'_>,
        handle: &str,
        completed: Completed,
    ) -> Result<OutputFile, Failure> {
        job.progress("encode", 0, 1);
        let format = job.generate.request.format;
        let name = result::file_name(format);
        let path = Path::new(&job.generate.output_dir).join(&name);
        let disk = |error| Failure::failed(format!("the result can't be written: {error}"));
        match (completed, self.adapter.content(handle)) {
            (Completed { file: Some(avi), avi: true }, _) => {
                avi::to_mp4(avi, &path, job).await?;
            }
            (Completed { file: Some(file), .. }, _) => {
                tokio::fs::write(&path, file).await.map_err(disk)?;
            }
            (Completed { file: None, .. }, Some(call)) => self.download(job, &call, &path).await?,
            (Completed { file: None, .. }, None) => {
                return Err(Failure::failed("the server's completed job has no file"));
            }
        }
        let directory = Path::new(&job.generate.output_dir);
        result::inspect(directory, &name, &job.generate.request).map_err(|why| Failure {
            retryable: false,
            ..Failure::failed(format!("the server {why}"))
        })
    }

    /// Fetches a file, again if that breaks off.
    async fn download(&self, job: &Job<'_>, call: &Call, path: &Path) -> Result<(), Failure> {
        let disk = |error| Failure::failed(format!("the result can't be written: {error}"));
        let mut tries = 1;
        loop {
            let limit = self.settings.max_bytes;
            let arrives = || {
                job.progress("encode", 0, 1);
            };
            let fetched = self.client()?.download(call, path, limit, ANSWER, arrives);
            let broken = match self.unless_ended(fetched).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(NoFile::Disk(error))) => return Err(disk(error)),
                Ok(Err(NoFile::Answer(answer))) => return Err(no_file(&answer)),
                Ok(Err(NoFile::Broken(broken @ Broken::TooLong(_)))) => {
                    let message = format!("{} (`max_bytes`)", broken.text());
                    return Err(Failure { retryable: false, ..Failure::failed(message) });
                }
                Ok(Err(NoFile::Broken(broken))) => broken,
                Err(crash) => return Err(crash),
            };
            match tokio::fs::remove_file(path).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(disk(error));
                }
                _ if tries >= FETCHES => {
                    let message = format!("the result could not be fetched: {}", broken.text());
                    return Err(Failure::failed(message));
                }
                _ => tries += 1,
            }
            sleep(AGAIN).await;
        }
    }
}

/// What it means that there is an answer instead of a file.
fn no_file(answer: &Answer) -> Failure {
    match answer.fault() {
        Fault::Busy(why) => Failure::failed(why),
        // It is not the request that is wrong now.
        Fault::Failure(failure) => Failure {
            code: EngineErrorCode::Failed,
            message: format!("the result could not be fetched: {}", failure.message),
            ..failure
        },
    }
}
