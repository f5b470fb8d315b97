//! The public API, as a client calls it.

use std::time::Duration;

use rayreel_domain::task::State;
use rayreel_domain::wire::api::{CancelBody, ErrorBody, TASKS_PATH, TaskBody, TaskList};
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::wait::{LONG, found_within};

/// A client of one address.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    agent: Agent,
    pub(crate) base: String,
}

/// Why a call was not answered with what was asked for.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// None if nobody answered.
    pub(crate) status: Option<u16>,
    /// From the code table; empty if nobody answered.
    pub(crate) code: String,
    pub(crate) message: String,
}

type Answer<T> = Result<T, Refusal>;

impl Api {
    pub(crate) fn new(base: &str) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(45)))
            // A connection that is kept outlives the server at its other end.
            .max_idle_connections(0)
            .proxy(None)
            .build()
            .new_agent();
        Self { agent, base: base.to_owned() }
    }

    pub(crate) fn submit(&self, body: &Value) -> TaskBody {
        self.try_submit(body, None).expect("submitted")
    }

    pub(crate) fn try_submit(&self, body: &Value, key: Option<&str>) -> Answer<TaskBody> {
        let mut call =
            self.agent.post(self.url(TASKS_PATH)).header("content-type", "application/json");
        if let Some(key) = key {
            call = call.header("idempotency-key", key);
        }
        read(call.send(body.to_string()))
    }

    pub(crate) fn try_task(&self, id: &str) -> Answer<TaskBody> {
        self.get(&format!("{TASKS_PATH}/{id}"))
    }

    pub(crate) fn task(&self, id: &str) -> TaskBody {
        self.try_task(id).expect("the task is there")
    }

    /// Waits until the task is as it should be; a server that is away is waited for.
    #[track_caller]
    pub(crate) fn wait_for(
        &self,
        id: &str,
        what: &str,
        mut is_so: impl FnMut(&TaskBody) -> bool,
    ) -> TaskBody {
        let mut last = None;
        let found = found_within(LONG, || match self.try_task(id) {
            Ok(task) if is_so(&task) => Some(task),
            other => {
                last = Some(other);
                None
            }
        });
        found.unwrap_or_else(|| panic!("{id} does not become {what}: {last:#?}"))
    }

    #[track_caller]
    pub(crate) fn wait_for_end(&self, id: &str) -> TaskBody {
        self.wait_for(id, "ended", |task| task.status.is_terminal())
    }

    #[track_caller]
    pub(crate) fn wait_for_success(&self, id: &str) -> TaskBody {
        let task = self.wait_for_end(id);
        assert_eq!(task.status, State::Succeeded, "{task:#?}");
        task
    }

    #[track_caller]
    pub(crate) fn wait_until_running(&self, id: &str) -> TaskBody {
        let task = self.wait_for(id, "running", |task| task.status != State::Queued);
        assert_eq!(task.status, State::Running, "{task:#?}");
        task
    }

    pub(crate) fn cancel(&self, id: &str) -> CancelBody {
        read(self.agent.post(self.url(&format!("{TASKS_PATH}/{id}/cancel"))).send_empty())
            .expect("cancelled")
    }

    /// Cancels a task that lives, deletes one that has ended.
    pub(crate) fn delete(&self, id: &str) -> CancelBody {
        read(self.agent.delete(self.url(&format!("{TASKS_PATH}/{id}"))).call()).expect("deleted")
    }

    pub(crate) fn content(&self, id: &str) -> Vec<u8> {
        self.bytes(&format!("{TASKS_PATH}/{id}/content")).expect("the task has content")
    }

    /// Where the server sends whoever asks for this URL.
    pub(crate) fn moved(&self, url: &str) -> String {
        let request = self.agent.get(url).config().max_redirects(0).build();
        let answer = request.call().expect("answered");
        assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
        answer.headers()["location"].to_str().expect("text").to_owned()
    }

    pub(crate) fn thumbnail(&self, id: &str) -> Vec<u8> {
        self.bytes(&format!("{TASKS_PATH}/{id}/content?variant=thumbnail"))
            .expect("the task has a thumbnail")
    }

    /// Every task, newest first, page by page.
    pub(crate) fn every_task(&self) -> Vec<TaskBody> {
        let mut tasks = Vec::new();
        let mut cursor = String::new();
        loop {
            let page: TaskList =
                self.get(&format!("{TASKS_PATH}?limit=100{cursor}")).expect("a page");
            tasks.extend(page.data);
            match page.next_cursor {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return tasks,
            }
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.bytes("/readyz").is_ok()
    }

    /// The sum of a metric over its labels that contain `label`.
    pub(crate) fn metric(&self, name: &str, label: &str) -> Option<f64> {
        let text = String::from_utf8(self.bytes("/metrics").ok()?).expect("text");
        let values = text
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Some(values.sum())
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        read(self.agent.get(self.url(path)).call())
    }

    /// A call of the worker API.
    pub(crate) fn worker_call<T: DeserializeOwned>(
        &self,
        call: &str,
        token: &str,
        body: &impl serde::Serialize,
    ) -> Answer<T> {
        let body = serde_json::to_string(body).expect("wire messages are plain data");
        let call = self
            .agent
            .post(self.url(&format!("/v1/worker/{call}")))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json");
        read(call.send(body))
    }

    /// Puts a file to where an upload goes.
    pub(crate) fn put(&self, path: &str, token: &str, bytes: &[u8]) -> Answer<Value> {
        let call =
            self.agent.put(self.url(path)).header("authorization", format!("Bearer {token}"));
        read(call.send(bytes))
    }

    fn bytes(&self, path: &str) -> Answer<Vec<u8>> {
        whole(self.agent.get(self.url(path)).call())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}

fn whole(answer: Result<Response<Body>, ureq::Error>) -> Answer<Vec<u8>> {
    let lost = |error: ureq::Error| Refusal {
        status: None,
        code: String::new(),
        message: error.to_string(),
    };
    let mut answer = answer.map_err(lost)?;
    let status = answer.status();
    let bytes = answer.body_mut().with_config().limit(1 << 30).read_to_vec().map_err(lost)?;
    if status.is_success() && status != StatusCode::NO_CONTENT {
        return Ok(bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let error = serde_json::from_str::<ErrorBody>(&text)
        .unwrap_or_else(|error| panic!("{status} without the one form of errors ({error}): {text}"))
        .error;
    Err(Refusal { status: Some(status.as_u16()), code: error.code, message: error.message })
}

fn read<T: DeserializeOwned>(answer: Result<Response<Body>, ureq::Error>) -> Answer<T> {
    let bytes = whole(answer)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| panic!("{error} in {}", String::from_utf8_lossy(&bytes)))
}
