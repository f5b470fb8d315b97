//! The engine `server`: somebody else's engine server, with rayreel's queue in front.
//!
//! ```text
//!  talk ──▶ Server ──▶ adapter: what is said     http: how it is said
//!                 ├──▶ job: followed to its end, and its file copied out
//!                 ├──▶ left: what is inside the server, and how that ends
//!                 └──▶ child: the server's process, if it is ours
//! ```
//! These servers keep their jobs in memory and most can't stop one. So none is handed in while another
//! one is known to be inside, its file is copied out as soon as it is done, and its name there means
//! nothing beyond this attempt, but for waiting until it is gone. What happens to a job that nobody
//! wants any more is the setting `cancel`; a server that is ours and in doubt is killed and started
//! again.

mod adapter;
mod avi;
mod child;
mod http;
mod job;
mod left;
mod port;
mod result;
mod settings;

use std::io;
use std::time::Duration;

use rayreel_domain::wire::engine::Load;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::Model;
use crate::settings::Wrong;
use crate::talk::{Engine, Failure, Job, Made, Ready};
use adapter::{Adapter, Call, Fault};
use child::{Child, Places};
use http::{Broken, Client};
use job::Ended;
use left::Inside;
use settings::{At, Cancel, Settings};

/// Our servers listen here.
const HOST: &str = "127.0.0.1";

/// Longest answer about a job, in bytes, without the file that may come with it.
const MAX_ANSWER: u64 = 1 << 20;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the answer to a request with its pictures may take.
const SUBMIT: Duration = Duration::from_secs(120);
/// How long a submit that was under way when it was cancelled may still take: its job has to be known
/// to be stopped.
const LATE: Duration = Duration::from_secs(3);
/// Between two looks at a job: the first, and the longest.
const POLL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Between two tries of what may be tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// How often a server is started on another port if somebody has taken the one that was free.
const PORTS: u32 = 3;
/// Between two words in the log that a server is not ready yet: the first, and the longest. The worker
/// takes an engine that says nothing while it loads for hung.
const NOT_READY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// A directory that goes when this engine has ended, however it does.
const SCRATCH: &str = "RAYREEL_SCRATCH";
/// When a server has ended.
const TASK: &str = "in the middle of the task";

/// Checks settings where no server is at hand.
pub(crate) fn check(settings: &Map<String, Value>) -> Result<(), Wrong> {
    Settings::read(settings).map(drop)
}

/// Do the settings go with the model?
pub(crate) fn check_model(settings: &Map<String, Value>, model: &Model<'_>) -> Result<(), Wrong> {
    let settings = Settings::read(settings)?;
    // Whoever kills the server waits for none of its jobs.
    if settings.cancel == Cancel::Restart || settings.wait <= model.max_run / 2 {
        return Ok(());
    }
    let (wait, max_run) = (settings.wait.as_secs_f64(), model.max_run.as_secs_f64());
    Err(Wrong::value(
        "wait_seconds",
        format!(
            "{wait} is more than half of `max_run_seconds`, {max_run}: a task runs while it waits for \
             an earlier job, and the rest must do for its own; set one of them"
        ),
    ))
}

/// The address of a server that is not ours.
pub(crate) fn url(settings: &Map<String, Value>) -> Option<String> {
    match Settings::read(settings).ok()?.at {
        At::Url(url) => Some(url.to_string()),
        At::Child(_) => None,
    }
}

/// Header, and the variable that has its value.
pub(crate) fn headers(settings: &Map<String, Value>) -> Vec<(String, String)> {
    let headers = Settings::read(settings).map(|settings| settings.headers).unwrap_or_default();
    headers.into_iter().map(|(name, variable)| (name.to_string(), variable)).collect()
}

/// The engine, which has no server before `load`.
#[derive(Default)]
pub(crate) struct Server(Option<Loaded>);

impl Engine for Server {
    async fn load(&mut self, load: Load) -> Result<Ready, Failure> {
        let loaded = self.0.insert(Loaded::new(load)?);
        loaded.start()?;
        loaded.ready(|| {}).await?;
        Ok(Ready {
            engine: format!("server ({})", loaded.settings.adapter),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    async fn generate(&mut self, job: &Job<'_>) -> Result<Made, Failure> {
        match &mut self.0 {
            Some(loaded) => loaded.generate(job).await,
            None => Err(Failure::failed("no server is loaded")),
        }
    }

    async fn leave(&mut self) {
        if let Some(mut loaded) = self.0.take()
            && let Some(child) = loaded.child.take()
        {
            child.leave().await;
        }
    }
}

/// The task waits for the server.
fn starts(job: &Job<'_>) {
    job.progress("start", 0, 1);
}

/// The server could not be loaded now; nothing is wrong with what it was told.
fn passing(message: impl Into<String>) -> Failure {
    Failure { retryable: true, ..Failure::load_failed(message) }
}

/// Where a server may write: the worker removes what is left there of an engine that was killed.
fn scratch() -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("rayreel-server-");
    match std::env::var_os(SCRATCH) {
        Some(directory) => builder.tempdir_in(directory),
        None => builder.tempdir(),
    }
}

/// A model at a server.
struct Loaded {
    load: Load,
    settings: Settings,
    adapter: Box<dyn Adapter>,
    headers: HeaderMap,
    /// Whatever a server of ours writes without being told where.
    scratch: TempDir,
    /// None until the server is started, if it is ours.
    client: Option<Client>,
    child: Option<Child>,
    health: Health,
    inside: Inside,
}

/// What is known of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// Nothing since it was started, or since it was away.
    Unknown,
    /// It has said that it can take work, and nothing has gone wrong since.
    Well,
    /// Something has gone wrong since. It may be for ever, as when it has lost its accelerator.
    Suspect,
}

impl Loaded {
    fn new(load: Load) -> Result<Loaded, Failure> {
        let failed = |message: String| Failure::load_failed(message);
        let settings = Settings::read(&load.settings).map_err(|wrong| failed(wrong.to_string()))?;
        let adapter = adapter::named(&settings.adapter)
            .ok_or_else(|| failed(format!("there is no adapter `{}`", settings.adapter)))?;
        let mut headers = HeaderMap::new();
        for (name, variable) in &settings.headers {
            let value = std::env::var(variable).map_err(|_| {
                failed(format!("the worker's environment has no {variable}, for the header {name}"))
            })?;
            let mut value = HeaderValue::from_str(value.trim())
                .map_err(|_| failed(format!("{variable} can't be the value of a header")))?;
            value.set_sensitive(true);
            headers.insert(name.clone(), value);
        }
        let scratch = scratch().map_err(|error| {
            passing(format!("a directory for the server could not be made: {error}"))
        })?;
        Ok(Loaded {
            load,
            inside: Inside::recall(&settings),
            settings,
            adapter,
            headers,
            scratch,
            client: None,
            child: None,
            health: Health::Unknown,
        })
    }

    /// Starts the server if it is ours. It loads its model while nobody waits.
    fn start(&mut self) -> Result<(), Failure> {
        self.health = Health::Unknown;
        let url = match &self.settings.at {
            At::Url(url) => url.clone(),
            At::Child(launch) => {
                let port = child::free_port(HOST)
                    .map_err(|error| passing(format!("no port is free: {error}")))?
                    .to_string();
                let places = Places {
                    host: HOST,
                    port: &port,
                    model: &self.load.model,
                    checkpoint: self.load.checkpoint.as_deref(),
                    scratch: self.scratch.path(),
                };
                self.child = Some(Child::start(launch, &places)?);
                let url = format!("http://{HOST}:{port}").parse::<Url>();
                url.map_err(|error| passing(error.to_string()))?
            }
        };
        let client = Client::new(url, self.headers.clone());
        self.client =
            Some(client.map_err(|why| passing(format!("no connection is possible: {why}")))?);
        Ok(())
    }

    /// Kills a server that is ours, and starts it again.
    async fn restart(&mut self, why: &str) {
        let Some(child) = self.child.take() else {
            return;
        };
        eprintln!("rayreel: {why}; the server is killed and started again");
        child.kill().await;
        self.inside.ended();
        if let Err(failure) = self.start() {
            // The next task tries again, and tells.
            eprintln!("rayreel: {}", failure.message);
        }
    }

    fn client(&self) -> Result<&Client, Failure> {
        self.client.as_ref().ok_or_else(|| Failure::failed("the server is not started"))
    }

    /// How the server is asked whether it can take work.
    fn health_call(&self) -> Call {
        let path = self.settings.health.clone();
        let path = path.unwrap_or_else(|| self.adapter.health().to_owned());
        Call { method: adapter::Method::Get, path, body: adapter::Body::Nothing }
    }

    /// Whether the server could take work just now.
    async fn answers(&self) -> bool {
        let Ok(client) = self.client() else {
            return false;
        };
        let time = ANSWER.min(self.settings.hung);
        let answer = client.call(&self.health_call(), MAX_ANSWER, time).await;
        answer.is_ok_and(|answer| answer.is_success())
    }

    /// Waits until the server can take work. Calls `alive` whenever there is hope. A server that ends or
    /// takes too long may do better another time.
    async fn ready(&mut self, mut alive: impl FnMut()) -> Result<(), Failure> {
        let call = self.health_call();
        let begun = Instant::now();
        let mut ports = 1;
        let mut pause = POLL.0;
        let (mut word, mut between) = (NOT_READY.0, NOT_READY.0);
        loop {
            let client = self.client()?.clone();
            let asked = client.call(&call, MAX_ANSWER, ANSWER);
            let said = match self.unless_ended(asked).await {
                Ok(Ok(answer)) if answer.is_success() => match self.port_of_another() {
                    None => break,
                    Some(port) => format!(
                        "on port {port} answers a process that does not descend from the one that \
                         `run` has started"
                    ),
                },
                Ok(Ok(answer)) => format!("{} answers with status {}", call.path, answer.status),
                Ok(Err(broken)) => broken.text(),
                Err(_) => {
                    let child = self.child.as_ref();
                    let ended = child.map(|child| (child.ended(), child.last_words()));
                    let (how, words) = ended.unwrap_or_default();
                    if ports < PORTS && words.to_lowercase().contains("address already in use") {
                        ports += 1;
                        self.start()?;
                        continue;
                    }
                    self.child = None;
                    let how = how.unwrap_or_else(|| "ended".to_owned());
                    let message =
                        format!("the server {how} while it loaded; its last words:\n{words}");
                    return Err(passing(message));
                }
            };
            let elapsed = begun.elapsed();
            if elapsed >= word {
                eprintln!("rayreel: not ready after {} s: {said}", elapsed.as_secs());
                between = (between * 2).min(NOT_READY.1);
                word = elapsed + between;
            }
            if elapsed >= self.settings.ready {
                let seconds = self.settings.ready.as_secs_f64();
                let message = format!("the server was not ready after {seconds} s: {said}");
                if let Some(child) = self.child.take() {
                    child.kill().await;
                }
                return Err(passing(message));
            }
            alive();
            sleep(pause).await;
            pause = (pause * 3 / 2).min(POLL.1);
        }
        self.health = Health::Well;
        Ok(())
    }

    /// The port of a server of ours, if it is somebody else who listens there.
    fn port_of_another(&self) -> Option<u16> {
        let port = self.client.as_ref()?.port();
        port.filter(|port| self.child.is_some() && port::is_foreign(*port))
    }

    /// Does something for as long as the server lives, if it is ours.
    async fn unless_ended<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let Some(child) = &self.child else {
            return Ok(work.await);
        };
        tokio::select! {
            biased;
            done = work => Ok(done),
            how = child.end() => Err(Failure::failed(format!("the server {how} {TASK}"))),
        }
    }

    async fn generate(&mut self, job: &Job<'_>) -> Result<Made, Failure> {
        let began = Instant::now();
        let wish = &job.generate.request;
        let name = format!("rayreel-{}", uuid::Uuid::new_v4().simple());
        let call = self.adapter.submit(&name, wish)?;
        self.prepare_unless_stopped(job).await?;
        let mut submitted = self.submit(job, &name, &call).await;
        if submitted.is_err() && self.is_gone() && !job.is_stopped() {
            // It had ended before, or just then: whatever it has heard is gone with it.
            eprintln!("rayreel: the server has ended; it is started again for the same task");
            self.prepare_unless_stopped(job).await?;
            submitted = self.submit(job, &name, &call).await;
        }
        let handle = submitted?;
        let prepared = Instant::now();

        let followed = tokio::select! {
            biased;
            () = job.stopped() => None,
            ended = self.follow(job, &handle) => Some(ended),
        };
        let Some(ended) = followed else {
            self.cancel(&handle).await;
            return Err(Failure::cancelled());
        };
        let completed = match ended {
            Ok(completed) => completed,
            Err(Ended::Job(failure)) => {
                self.health = Health::Suspect;
                self.forget(&handle).await;
                return Err(failure);
            }
            Err(Ended::Server(failure)) => {
                self.health = Health::Suspect;
                // Whatever it still does, it shall not do it beside the next task.
                self.restart("the server is in doubt").await;
                return Err(failure);
            }
        };
        let generated = Instant::now();
        let fetched = tokio::select! {
            biased;
            () = job.stopped() => Err(Failure::cancelled()),
            fetched = self.fetch(job, &handle, completed) => fetched,
        };
        self.forget(&handle).await;
        if fetched.is_err() {
            self.health = Health::Suspect;
        }
        let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let metrics = [
            ("prepare_ms", millis(prepared - began)),
            ("generate_ms", millis(generated - prepared)),
            ("fetch_ms", millis(generated.elapsed())),
        ];
        let metrics = metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(Made { files: vec![fetched?], metrics })
    }

    /// Is there no server where one of ours should be?
    fn is_gone(&self) -> bool {
        matches!(self.settings.at, At::Child(_)) && self.child.is_none()
    }

    async fn prepare_unless_stopped(&mut self, job: &Job<'_>) -> Result<(), Failure> {
        tokio::select! {
            biased;
            () = job.stopped() => return Err(Failure::cancelled()),
            prepared = self.prepare(job) => prepared?,
        }
        Ok(())
    }

    /// Has the server ready and empty.
    async fn prepare(&mut self, job: &Job<'_>) -> Result<(), Failure> {
        if let Some(how) = self.child.as_ref().and_then(Child::ended) {
            eprintln!("rayreel: the server {how} while nobody had asked for anything");
            self.child = None;
        }
        if self.health == Health::Suspect && !self.answers().await {
            // Somebody else's may be mended by its owner, which is waited for.
            self.restart("the server is not well").await;
        }
        loop {
            if self.is_gone() {
                self.start()?;
            }
            if self.health != Health::Well {
                self.ready(|| starts(job)).await?;
            }
            let Some(handle) = self.inside.handle().map(str::to_owned) else {
                return Ok(());
            };
            // It may have had to start the server anew.
            self.outwait(job, &handle).await?;
        }
    }

    /// Whether a server of ours has ended, of which its broken connections tell first.
    async fn ends_now(&self) -> bool {
        match &self.child {
            Some(child) => timeout(AGAIN, child.end()).await.is_ok(),
            None => false,
        }
    }

    /// The server may have taken a job, or not.
    async fn in_doubt(&mut self) {
        self.health = Health::Suspect;
        self.restart("it is not known whether the server has taken a job").await;
        if self.child.is_none() {
            self.inside.lost();
        }
    }

    /// Hands the job in, once.
    async fn submit(&mut self, job: &Job<'_>, name: &str, call: &Call) -> Result<String, Failure> {
        self.inside.enters(name, &*self.adapter)?;
        let mut begun = Instant::now();
        let late = async {
            job.stopped().await;
            sleep(LATE).await;
        };
        let mut late = std::pin::pin!(late);
        loop {
            let client = self.client()?;
            let asked = tokio::select! {
                biased;
                asked = self.unless_ended(client.call(call, MAX_ANSWER, SUBMIT)) => asked,
                () = &mut late => Ok(Err(Broken::Lost("it was cancelled".to_owned()))),
            };
            let why = match asked {
                Ok(Ok(answer)) => match self.adapter.submitted(name, &answer) {
                    Ok(handle) => {
                        self.inside.taken(&handle);
                        return Ok(handle);
                    }
                    Err(Fault::Failure(failure)) => {
                        match answer.status {
                            // Perhaps there is a job now. One that can be asked after is waited for.
                            500.. if self.inside.handle().is_some() => {
                                self.health = Health::Suspect;
                            }
                            200..300 | 500.. => self.in_doubt().await,
                            _ => self.inside.ended(),
                        }
                        return Err(failure);
                    }
                    Err(Fault::Busy(why)) => why,
                },
                // Nobody has heard it: it may be said again, once there is somebody.
                Ok(Err(Broken::Unheard(_))) if self.child.is_none() => {
                    let away = Instant::now();
                    self.health = Health::Unknown;
                    let back = tokio::select! {
                        biased;
                        () = job.stopped() => Err(Failure::cancelled()),
                        back = self.ready(|| starts(job)) => back,
                    };
                    if back.is_err() {
                        self.inside.ended();
                    }
                    back?;
                    begun += away.elapsed();
                    "the server can't be reached, but says that it is ready".to_owned()
                }
                Ok(Err(broken @ Broken::Unheard(_))) => broken.text(),
                Ok(Err(broken)) if self.ends_now().await => {
                    self.child = None;
                    self.inside.ended();
                    return Err(Failure::failed(broken.text()));
                }
                Ok(Err(broken)) => {
                    self.in_doubt().await;
                    return Err(Failure::failed(broken.text()));
                }
                Err(crash) => {
                    self.child = None;
                    self.inside.ended();
                    return Err(crash);
                }
            };
            if job.is_stopped() {
                self.inside.ended();
                return Err(Failure::cancelled());
            }
            if begun.elapsed() >= self.settings.hung {
                self.health = Health::Suspect;
                self.inside.ended();
                return Err(Failure::failed(why));
            }
            job.progress("wait", 0, 1);
            sleep(AGAIN).await;
        }
    }
}
