//! A server that does what a test says, on a port of its own that survives its restarts.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use rayreel_domain::Fence;
use rayreel_domain::task::Failure;
use rayreel_domain::wire::worker::{
    Assignment, Beat, BeatAnswer, Beaten, Claim, Claimed, Commit, Control, Controlled, Deregister,
    Done, Fail, Register, Registered, Release, UploadTarget, UploadTargets, Uploads,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{oneshot, watch};

pub(crate) const TOKEN: &str = "the-worker-token";
/// Longer than anything here takes; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// One call as it arrived.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    Register(Register),
    Claim(Claim),
    Beat(Beat),
    Control(Control),
    Uploads(Uploads),
    Put { path: String, bytes: Vec<u8>, bearer: Option<String>, signed: Option<String> },
    Commit(Commit),
    Fail(Fail),
    Release(Release),
    Deregister(Deregister),
    Input,
}

impl Call {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Register(_) => "register",
            Self::Claim(_) => "claim",
            Self::Beat(_) => "beat",
            Self::Control(_) => "control",
            Self::Uploads(_) => "uploads",
            Self::Put { .. } => "put",
            Self::Commit(_) => "commit",
            Self::Fail(_) => "fail",
            Self::Release(_) => "release",
            Self::Deregister(_) => "deregister",
            Self::Input => "input",
        }
    }
}

/// What happens to a call instead of its usual answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// It takes effect, but the connection breaks before the answer.
    Lost,
    /// It is refused with this status and code.
    Refused(u16, &'static str),
}

/// What a test sets, and what it looks at.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) calls: Vec<Call>,
    /// Answers to claims that are still to come.
    pub(crate) next: VecDeque<Claimed>,
    /// What a claim was answered, by its number.
    claimed: HashMap<u64, Claimed>,
    pub(crate) faults: HashMap<&'static str, VecDeque<Fault>>,
    pub(crate) beaten: Beaten,
    pub(crate) controlled: Controlled,
    pub(crate) beat_ms: u64,
    pub(crate) token: String,
    pub(crate) inputs: HashMap<Fence, Vec<u8>>,
    pub(crate) last_inputs: HashMap<Fence, Vec<u8>>,
    /// Upload targets are given as absolute addresses.
    pub(crate) signed_targets: bool,
}

impl Script {
    pub(crate) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Call> {
        self.calls.iter().filter(move |call| call.name() == name)
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.named(name).count()
    }

    pub(crate) fn claims(&self) -> Vec<&Claim> {
        self.calls
            .iter()
            .filter_map(|c| if let Call::Claim(c) = c { Some(c) } else { None })
            .collect()
    }

    pub(crate) fn failures(&self) -> Vec<&Failure> {
        self.calls
            .iter()
            .filter_map(|call| if let Call::Fail(fail) = call { Some(&fail.failure) } else { None })
            .collect()
    }

    pub(crate) fn commits(&self) -> Vec<&Commit> {
        self.calls
            .iter()
            .filter_map(|call| if let Call::Commit(commit) = call { Some(commit) } else { None })
            .collect()
    }

    /// The files that have arrived, in order.
    pub(crate) fn files(&self) -> Vec<&[u8]> {
        self.calls
            .iter()
            .filter_map(
                |c| {
                    if let Call::Put { bytes, .. } = c { Some(bytes.as_slice()) } else { None }
                },
            )
            .collect()
    }
}

struct Shared {
    script: Mutex<Script>,
    changed: Condvar,
    /// Wakes calls that hang.
    bell: watch::Sender<()>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub(crate) struct Peer {
    shared: Arc<Shared>,
    pub(crate) address: SocketAddr,
    /// Bound, but not listening: keeps the port from others while the server is down.
    _reserved: TcpSocket,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Peer {
    pub(crate) fn start() -> Self {
        let script = Script {
            calls: Vec::new(),
            next: VecDeque::new(),
            claimed: HashMap::new(),
            faults: HashMap::new(),
            beaten: Beaten::Continue,
            controlled: Controlled::default(),
            beat_ms: 20,
            token: TOKEN.into(),
            inputs: HashMap::new(),
            last_inputs: HashMap::new(),
            signed_targets: false,
        };
        let reserved = bind("127.0.0.1:0".parse().unwrap());
        let mut peer = Self {
            shared: Arc::new(Shared {
                script: Mutex::new(script),
                changed: Condvar::new(),
                bell: watch::channel(()).0,
            }),
            address: reserved.local_addr().unwrap(),
            _reserved: reserved,
            running: None,
        };
        peer.restart();
        peer
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Breaks every connection and answers no more.
    pub(crate) fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }

    pub(crate) fn restart(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let (address, shared) = (self.address, Arc::clone(&self.shared));
        let (stop, stopped) = oneshot::channel();
        let (up, is_up) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener: TcpListener = bind(address).listen(64).unwrap();
                up.send(()).unwrap();
                tokio::select! {
                    _ = stopped => {}
                    served = axum::serve(listener, routes(shared)) => served.unwrap(),
                }
            });
        });
        is_up.recv().unwrap();
        self.running = Some((stop, thread));
    }

    /// Changes what the server does from now on.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.lock());
        self.shared.bell.send_replace(());
    }

    pub(crate) fn see<T>(&self, look: impl FnOnce(&Script) -> T) -> T {
        look(&self.shared.lock())
    }

    /// Answers the next claim with a task.
    pub(crate) fn assign(&self, assignment: Assignment) {
        self.set(|script| script.next.push_back(Claimed::Task(Box::new(assignment))));
    }

    pub(crate) fn fault(&self, call: &'static str, fault: Fault) {
        self.set(|script| script.faults.entry(call).or_default().push_back(fault));
    }

    /// Waits until a look at the calls gives something.
    pub(crate) fn wait<T>(&self, what: &str, mut look: impl FnMut(&Script) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        let mut script = self.shared.lock();
        loop {
            if let Some(seen) = look(&script) {
                return seen;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let calls: Vec<_> = script.calls.iter().filter(|c| c.name() != "beat").collect();
                panic!("waited in vain for {what}; calls but for beats: {calls:#?}");
            }
            script = self.shared.changed.wait_timeout(script, left).unwrap().0;
        }
    }

    pub(crate) fn wait_for(&self, name: &str, count: usize) {
        self.wait(&format!("{count} × {name}"), |script| {
            (script.count(name) >= count).then_some(())
        });
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/worker/{call}", post(answer))
        .route("/v1/worker/inputs/{task}/{attempt}/{nonce}", get(input))
        .route("/v1/worker/inputs/{task}/{attempt}/{nonce}/last", get(input))
        .route("/files/{*path}", put(file))
        .with_state(shared)
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Path(call): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(refused) = unauthorized(&shared, &headers) {
        return refused;
    }
    assert_eq!(headers["content-type"], "application/json");
    match call.as_str() {
        "register" => {
            let beat_ms = shared.lock().beat_ms;
            let registered = Registered { incarnation: 7, lease_ms: 30_000, beat_ms };
            note(&shared, "register", Call::Register(read(&body)), &registered)
        }
        "claim" => claim(&shared, read(&body)).await,
        "beat" => {
            let answer = BeatAnswer { answer: shared.lock().beaten };
            note(&shared, "beat", Call::Beat(read(&body)), &answer)
        }
        "control" => control(&shared, read(&body)).await,
        "uploads" => {
            let uploads: Uploads = read(&body);
            let answer = UploadTargets { targets: targets(&shared, &uploads, &headers) };
            note(&shared, "uploads", Call::Uploads(uploads), &answer)
        }
        "commit" => note(&shared, "commit", Call::Commit(read(&body)), &Done { ok: true }),
        "fail" => note(&shared, "fail", Call::Fail(read(&body)), &Done { ok: true }),
        "release" => note(&shared, "release", Call::Release(read(&body)), &Done { ok: true }),
        "deregister" => {
            note(&shared, "deregister", Call::Deregister(read(&body)), &Done { ok: true })
        }
        other => panic!("there is no call `{other}`"),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> T {
    serde_json::from_slice(body).unwrap_or_else(|error| {
        panic!("{error} in {}", String::from_utf8_lossy(body));
    })
}

fn unauthorized(shared: &Shared, headers: &HeaderMap) -> Option<Response> {
    let right = format!("Bearer {}", shared.lock().token);
    let given = headers.get("authorization").map(|value| value.to_str().unwrap());
    (given != Some(&right)).then(|| refusal(401, "unauthorized"))
}

fn refusal(status: u16, code: &str) -> Response {
    let body = json!({"error": {
        "code": code, "message": "scripted", "param": null, "type": "t", "request_id": "r",
    }});
    (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response()
}

/// Notes a call, unless that is done already, and answers it, unless a fault is due.
fn note(
    shared: &Shared,
    name: &'static str,
    call: impl Into<Option<Call>>,
    answer: &impl Serialize,
) -> Response {
    let mut script = shared.lock();
    script.calls.extend(call.into());
    let fault = script.faults.get_mut(name).and_then(VecDeque::pop_front);
    drop(script);
    shared.changed.notify_all();
    match fault {
        None => serde_json::to_string(answer).unwrap().into_response(),
        Some(Fault::Refused(status, code)) => refusal(status, code),
        Some(Fault::Lost) => {
            let broken = futures_util::stream::once(async {
                Err::<Vec<u8>, _>(std::io::Error::other("the connection breaks"))
            });
            Body::from_stream(broken).into_response()
        }
    }
}

async fn claim(shared: &Shared, claim: Claim) -> Response {
    let mut bell = shared.bell.subscribe();
    let seq = claim.seq;
    let mut call = Some(Call::Claim(claim));
    let claimed = loop {
        bell.borrow_and_update();
        {
            let mut script = shared.lock();
            if let Some(again) = script.claimed.get(&seq) {
                break again.clone();
            }
            if let Some(next) = script.next.pop_front() {
                script.claimed.insert(seq, next.clone());
                break next;
            }
            // Seen while it waits.
            script.calls.extend(call.take());
        }
        shared.changed.notify_all();
        bell.changed().await.unwrap();
    };
    note(shared, "claim", call, &claimed)
}

async fn control(shared: &Shared, control: Control) -> Response {
    let mut bell = shared.bell.subscribe();
    let answer = loop {
        bell.borrow_and_update();
        let now = shared.lock().controlled.clone();
        let concerns = |fence| control.holding.contains(fence);
        if now.drain || now.cancelled.iter().any(concerns) || now.lost.iter().any(concerns) {
            break now;
        }
        bell.changed().await.unwrap();
    };
    note(shared, "control", Call::Control(control), &answer)
}

fn targets(shared: &Shared, uploads: &Uploads, headers: &HeaderMap) -> Vec<UploadTarget> {
    let signed = shared.lock().signed_targets;
    let target = |index: u32| {
        let path = format!("/files/{}/{index}", uploads.fence.folder());
        let host = headers["host"].to_str().unwrap();
        let url = if signed { format!("http://{host}{path}") } else { path };
        let headers = BTreeMap::from([("x-signed".to_owned(), format!("signature-{index}"))]);
        UploadTarget { index, url, headers, part_bytes: None }
    };
    uploads.manifest.iter().map(|output| target(output.index)).collect()
}

async fn file(
    State(shared): State<Arc<Shared>>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(header("content-length"), Some(body.len().to_string()), "never chunked");
    let call = Call::Put {
        path,
        bytes: body.to_vec(),
        bearer: header("authorization"),
        signed: header("x-signed"),
    };
    note(&shared, "put", call, &Done { ok: true })
}

async fn input(
    State(shared): State<Arc<Shared>>,
    Path((task, attempt, nonce)): Path<(String, u32, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = unauthorized(&shared, &headers) {
        return refused;
    }
    let fence = Fence { task: task.parse().unwrap(), attempt, nonce: nonce.parse().unwrap() };
    let image = {
        let script = shared.lock();
        let last = uri.path().ends_with("/last");
        let inputs = if last { &script.last_inputs } else { &script.inputs };
        inputs.get(&fence).cloned()
    };
    match note(&shared, "input", Call::Input, &()) {
        fine if fine.status() == StatusCode::OK => image.unwrap().into_response(),
        fault => fault,
    }
}
