//! The one table of error codes: wire name, HTTP status, exit code of the CLI, whether a retry of
//! the same call can help, and what the reader of `docs/errors/` is told.
//!
//! A code is added only if a client would act on it.

use core::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Coarse class of an error: the `type` field of the error body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The caller must change the request.
    Request,
    /// The caller lacks a right.
    Permission,
    /// The thing is in another state than the call needs.
    Conflict,
    /// Come back later.
    Capacity,
    /// The task itself failed.
    Task,
    /// Something is wrong on our side.
    Server,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Request => "invalid_request_error",
            Kind::Permission => "permission_error",
            Kind::Conflict => "conflict_error",
            Kind::Capacity => "capacity_error",
            Kind::Task => "task_error",
            Kind::Server => "server_error",
        }
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct Entry {
    pub code: Code,
    pub name: &'static str,
    pub kind: Kind,
    /// HTTP status of a refusal with this code; for [`Kind::Task`], of asking for its content.
    pub status: u16,
    /// Exit status of the CLI.
    pub exit: u8,
    /// May the very same call succeed later?
    pub retryable: bool,
    pub meaning: &'static str,
    pub remedy: &'static str,
}

macro_rules! codes {
    ($( $code:ident $name:literal $kind:ident $status:literal $exit:literal $retry:literal
        $meaning:literal $remedy:literal; )*) => {
        /// An error code; see the table for what each one carries.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $( $code, )* }

        /// Every code, in the order of the documentation.
        pub const TABLE: &[Entry] = &[ $( Entry {
            code: Code::$code, name: $name, kind: Kind::$kind, status: $status, exit: $exit,
            retryable: $retry, meaning: $meaning, remedy: $remedy,
        }, )* ];
    };
}

codes! {
    InvalidRequest "invalid_request" Request 400 2 false
        "The request is not HTTP as this server reads it: its first line, its headers or their size, `Host`, `Content-Length` or `Transfer-Encoding`. The status may also be 408, 414, 431 or 505."
        "Correct what the message names; `param` names the header, if it is one.";
    InvalidJson "invalid_json" Request 400 2 false
        "The body is not one JSON object in UTF-8, or a key stands in it twice."
        "Check the body at the position that the message names.";
    MissingField "missing_field" Request 400 2 false
        "A field that is required is absent; `param` names it."
        "Send the field.";
    UnknownField "unknown_field" Request 400 2 false
        "The body or the query has a field that does not exist; `param` names it."
        "Correct the spelling: the message names the nearest field that exists. Unknown fields are refused because a misspelt option that is ignored costs GPU time.";
    InvalidValue "invalid_value" Request 400 2 false
        "A field has a value that is not allowed; `param` names the field, the message what is allowed."
        "Change the value.";
    UnknownModel "unknown_model" Request 400 2 false
        "No model of that name is configured; the message lists those that are."
        "Use one of the names, or add the model to the configuration.";
    InvalidCursor "invalid_cursor" Request 400 2 false
        "The place to go on from, `cursor` or `after`, is none in this list; it may have been deleted too long ago."
        "Start again without it; take the next one from `next_cursor` or `last_id`.";
    InvalidConfig "invalid_config" Request 400 2 false
        "The configuration has an unknown key or a value that is not allowed."
        "`rayreel config check` says where and what is right.";
    BodyTooLarge "body_too_large" Request 413 2 false
        "The body is longer than `max_body_bytes` allows."
        "Send less, or raise the setting.";
    UnsupportedMediaType "unsupported_media_type" Request 415 2 false
        "The Content-Type is not one that this route reads."
        "Send `Content-Type: application/json`.";
    RouteNotFound "route_not_found" Request 404 2 false
        "There is nothing at this path."
        "See `/openapi.json` for the paths that exist.";
    MethodNotAllowed "method_not_allowed" Request 405 2 false
        "The path exists, but not with this method; the header `Allow` lists those that do."
        "Use an allowed method.";
    RangeNotSatisfiable "range_not_satisfiable" Request 416 2 false
        "The Range asks for bytes beyond the end of the file."
        "Ask within the size that Content-Range names.";
    TaskNotFound "task_not_found" Request 404 4 false
        "There is no task with this id, or it is not yours, or it has been deleted."
        "Check the id with `rayreel list`.";
    FileNotFound "file_not_found" Request 404 4 false
        "There is no file with this id, or it is not yours, or it has been deleted or has expired."
        "List your files with `GET /v1/files`, or upload it again.";
    Unauthorized "unauthorized" Permission 401 5 false
        "The key or token is missing, wrong, expired or revoked."
        "Send `Authorization: Bearer rr_…`; clients of the command line take it from `RAYREEL_TOKEN`. Workers send `RAYREEL_WORKER_TOKEN`; a local server keeps it in its data directory.";
    Forbidden "forbidden" Permission 403 5 false
        "The server answers on this address only for its own host names and pages: the Host or the Origin header is foreign."
        "Call it as localhost, 127.0.0.1 or [::1], and not from another site's page.";
    ScopeMissing "scope_missing" Permission 403 5 false
        "The key is right, but not good for this; the message names the scope that it lacks, or the only pool that it is for."
        "Use a key with that scope; `rayreel keys create --scopes …` makes one, with `--pool …` for the workers of one pool.";
    LinkInvalid "link_invalid" Permission 403 5 false
        "The signature of this link is not right for this file and this time, or its time is over."
        "Ask whoever gave it to you for a new one; `POST …/link` makes it.";
    KeyNotFound "key_not_found" Request 404 4 false
        "There is no key with this id."
        "`rayreel keys list` shows the ids.";
    TenantNotFound "tenant_not_found" Request 404 4 false
        "No tenant of this name is configured, has a key, or uses anything."
        "`rayreel tenants list` shows the names.";
    WorkerNotFound "worker_not_found" Request 404 4 false
        "There is no worker of this name, or it has gone."
        "`rayreel workers list` shows the names.";
    PoolNotFound "pool_not_found" Request 404 4 false
        "No pool of this name is configured."
        "`rayreel pools list` shows the names.";
    WorkerStarting "worker_starting" Conflict 409 6 true
        "The worker's process has been started, but it has not registered yet."
        "Try again in a moment.";
    StaleLease "stale_lease" Conflict 409 6 false
        "The attempt that reports no longer holds the task: it was cancelled, lost its lease, or another attempt has it."
        "A worker drops the task and claims the next one.";
    StaleWorker "stale_worker" Conflict 409 6 false
        "Another worker has registered under the same name, or this one was never registered."
        "Give each worker a name of its own; a worker that was replaced exits.";
    NotFinished "not_finished" Conflict 409 6 true
        "The task has no content yet: it is queued or running."
        "Wait for the end: `GET …/events` or `rayreel watch`.";
    NoWebhook "no_webhook" Conflict 409 6 false
        "The task was submitted without `webhook`: there is nobody to tell of its end."
        "Ask for its state, or name a `webhook` in the submit.";
    IdempotencyMismatch "idempotency_mismatch" Conflict 409 6 false
        "The idempotency key was used before, with another request."
        "Use a new key for a new request.";
    TaskDeleted "task_deleted" Conflict 409 6 false
        "The task that was made under this idempotency key has been deleted; of several tasks, all have."
        "To have it made again, send a new key.";
    UploadMismatch "upload_mismatch" Conflict 422 6 false
        "The bytes that arrived are not those that the manifest announced, or an output is missing."
        "The worker uploads again.";
    DataDirectoryInUse "data_directory_in_use" Conflict 409 6 true
        "Another server works on this data directory; the message names its process."
        "Use that server (`--server`), stop it, or give this one another `--data`.";
    AddressInUse "address_in_use" Conflict 409 6 true
        "Something listens already on the address that the server is to have."
        "Stop what listens there, or choose another address with `--listen`; port 0 takes a free one.";
    QueueFull "queue_full" Capacity 429 7 true
        "The queue holds as many tasks as `max_queued` allows."
        "Wait as long as Retry-After says.";
    LimitReached "limit_reached" Capacity 429 7 true
        "Your tenant has reached one of its limits; `param` names it: `tasks_per_minute`, `max_queued` or `gpu_seconds_per_day`, or `inputs.max_tenant_bytes` if its files take as much room as they may."
        "Wait as long as Retry-After says, delete files that you do not need, or ask the operator for more.";
    StoreUnavailable "store_unavailable" Capacity 503 7 true
        "The task store or the artifact store can't be written or read just now (a disk is full, read-only or failing; a bucket does not answer, or refuses the server); nothing was stored."
        "Free space, mend the disk, or see to the bucket; the server goes on by itself.";
    ServerBusy "server_busy" Capacity 503 7 true
        "The server reads as many long bodies as fit into `max_bodies_bytes`, or as many as your tenant may send at once; or as many of your tenant's images as may wait to be taken in."
        "Wait as long as Retry-After says; send fewer at once, or ask the operator to raise the setting.";
    WaitExceeded "wait_exceeded" Capacity 504 7 true
        "The images were not made within `max_wait_seconds`, or the server was about to stop; their tasks, which the message names, have been cancelled."
        "Submit them with `POST /v1/video/generations` and `format` png, and follow the tasks; or ask the operator to raise the setting. Repeated under the same Idempotency-Key, the call has them made anew.";
    OutcomeUnknown "outcome_unknown" Capacity 503 7 true
        "The store failed in the middle: the call may or may not have taken effect."
        "Repeat it with the same Idempotency-Key; a repetition is safe.";
    StorageFull "storage_full" Capacity 507 7 true
        "The artifact store has no room for the file, or a worker none for its work, or a task's own files have filled the worker's disk."
        "Free space: the worker keeps its file and tries again, a worker without room is started again. A task that fills the disk must ask for less, or needs a larger one.";
    ServerUnreachable "server_unreachable" Capacity 503 7 true
        "No server answers at the address."
        "Check `--server`, or start one with `rayreel serve`.";
    StoreTooNew "store_too_new" Server 500 8 false
        "The data directory was written by a newer version of rayreel."
        "Run the newer version; nothing was changed.";
    StoreCorrupt "store_corrupt" Server 500 8 false
        "The database file is damaged; the server has not touched it."
        "Restore it from a backup, or move it away to start empty; the videos lie beside it unharmed.";
    Internal "internal" Server 500 1 true
        "A fault of rayreel's own; the log has it under the request id."
        "Report it with the request id.";
    Cancelled "cancelled" Task 410 9 false
        "The task was cancelled."
        "Submit it again if it is still wanted.";
    Expired "expired" Task 410 9 false
        "The task's deadline passed before a worker was free."
        "Allow more time, or more workers.";
    EngineFailed "engine_failed" Task 410 10 false
        "The engine reported an error; the message is the engine's."
        "See the attempts of the task.";
    EngineCrashed "engine_crashed" Task 410 10 false
        "The engine process ended in the middle of the task; the detail has its last lines."
        "See the engine's last lines; often a driver or a library.";
    EngineProtocol "engine_protocol" Task 410 10 false
        "The engine wrote something on its standard output that is not a message."
        "An engine logs to standard error; standard output is for messages.";
    EngineSilent "engine_silent" Task 410 10 false
        "The engine said nothing for longer than the model's `silence_seconds`, or did not stop when asked, and was killed."
        "Raise the setting if a step of this model takes that long.";
    EngineLoadFailed "engine_load_failed" Task 410 10 false
        "The engine could not load the model, or ended while it did; the detail has its last lines."
        "See the engine's last lines; check the checkpoint and the settings of the model.";
    OutOfMemory "out_of_memory" Task 410 10 false
        "GPU or host memory ran out."
        "Ask for a smaller size or fewer frames, or use offloading or a larger GPU.";
    EngineRefused "engine_refused" Task 410 10 false
        "The engine says that this request can never succeed with this model."
        "Change the request as the message says.";
    MaxRunExceeded "max_run_exceeded" Task 410 10 false
        "The attempt ran longer than `max_run_seconds` and was stopped."
        "Ask for less, or raise the setting.";
    OutputInvalid "output_invalid" Task 410 10 false
        "The engine announced a file that is missing, empty, a link, or outside its directory."
        "A fault of the engine.";
    UploadFailed "upload_failed" Task 410 10 false
        "The worker could not deliver the file."
        "Check the artifact store and its space.";
    WorkersLost "workers_lost" Task 410 10 false
        "Too many workers vanished while they held this task."
        "Often the task itself kills them (host memory): see its attempts.";
    Interrupted "interrupted" Task 410 10 false
        "Workers gave this task back too often: they were stopped, or could not write to their scratch directories."
        "Give workers more time to drain; see the workers' logs.";
}

impl Code {
    pub fn entry(self) -> &'static Entry {
        &TABLE[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.entry().name
    }

    pub fn status(self) -> u16 {
        self.entry().status
    }

    pub fn exit(self) -> u8 {
        self.entry().exit
    }

    pub fn retryable(self) -> bool {
        self.entry().retryable
    }

    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|entry| entry.name == name).map(|entry| entry.code)
    }

    /// Does a failure with this code speak against the worker's engine rather than the task?
    /// Three such failures on different tasks in a row quarantine the model on that worker.
    pub fn blames_engine(self) -> bool {
        matches!(
            self,
            Code::EngineFailed
                | Code::EngineCrashed
                | Code::EngineProtocol
                | Code::EngineSilent
                | Code::EngineLoadFailed
                | Code::OutputInvalid
                | Code::OutOfMemory
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <alloc::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Code::from_name(&name)
            .ok_or_else(|| serde::de::Error::custom(format_args!("unknown error code `{name}`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_indexed_by_its_own_codes() {
        for (index, entry) in TABLE.iter().enumerate() {
            assert_eq!(entry.code as usize, index);
            assert_eq!(Code::from_name(entry.name), Some(entry.code), "{} is unique", entry.name);
            assert!((400..=599).contains(&entry.status), "{}", entry.name);
            assert_ne!(entry.exit, 0, "{}", entry.name);
        }
    }
}
