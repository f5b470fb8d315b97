//! `rayreel generate`: from a prompt to a file.

use rayreel_client::{Submitted, Variant, idempotency_key};
use rayreel_domain::wire::api::{SubmitBody, TaskBody};
use rayreel_domain::{Code, State};
use serde::Serialize;

use crate::args;
use crate::failure::{Exit, Failure};
use crate::follow::{Follower, OnInterrupt};
use crate::out::Out;
use crate::progress::Progress;
use crate::request;
use crate::save::{Destination, save};
use crate::session::{Session, Workers};
use crate::signals::Interrupts;
use crate::text;

/// What `--json` prints: the task, and where its file is.
#[derive(Debug, Serialize)]
pub(crate) struct Saved<'a> {
    #[serde(flatten)]
    pub task: &'a TaskBody,
    pub file: Option<String>,
}

pub(crate) async fn run(
    global: &args::Global,
    arguments: args::Generate,
    out: Out,
) -> Result<(), Exit> {
    let destination = Destination::new(arguments.output.as_deref(), out)?;
    let named = match arguments.request.format {
        Some(_) => None,
        None => destination.format()?,
    };
    let body = request::body(&arguments.request, named)?;
    let interrupts = Interrupts::listen()?;
    interrupts.exit_on_second();
    let mut session = Session::new(global, Workers::Start, out)?.for_model(body.model.as_deref());
    let made = make(&mut session, &body, &destination, &interrupts, out).await;
    let closed = session.close().await;
    made?;
    Ok(closed?)
}

async fn make(
    session: &mut Session,
    body: &SubmitBody,
    destination: &Destination,
    interrupts: &Interrupts,
    out: Out,
) -> Result<(), Exit> {
    tokio::select! {
        found = session.client() => { found?; }
        () = interrupts.first() => {
            return Err(Failure::new(Code::Cancelled, "stopped before anything was submitted").into());
        }
    }
    let submitted = submit(session, body).await?;
    let id = submitted.id;
    if submitted.test_pattern {
        out.note(&match &body.model {
            None => "no model configured: this is a test pattern".to_owned(),
            Some(model) => {
                format!("{} is no model: this is a test pattern", text::one_line(model, 64))
            }
        });
    }
    out.note(&format!("{id} submitted"));
    let mut progress = Progress::new(out, id);
    progress.expect(&submitted.task);
    let follower = Follower {
        session,
        id,
        progress: &mut progress,
        interrupts,
        on_interrupt: OnInterrupt::Cancel,
        on_event: &mut |_, _| Ok(()),
        after: None,
        state: submitted.task.status,
    };
    let task = follower.run().await?;
    drop(progress);
    if task.status != State::Succeeded {
        return Err(Failure::of_task(&task).into());
    }
    let path = save(session, &task, Variant::Main, destination, interrupts, out).await?;
    let file = path.map(|path| path.display().to_string());
    if out.json {
        return out.json(&Saved { task: &task, file });
    }
    let Some(result) = &task.result else {
        return Ok(());
    };
    match file {
        Some(file) => out.line(&format!("wrote {file} {}", text::result(result))),
        None => {
            out.note(&format!("done {}", text::result(result)));
            Ok(())
        }
    }
}

/// Submits once, however often the call has to be made.
pub(crate) async fn submit(session: &mut Session, body: &SubmitBody) -> Result<Submitted, Failure> {
    let key = idempotency_key();
    let key = key.as_str();
    session.call(|client| async move { client.submit_with_key(body, key).await }).await
}
