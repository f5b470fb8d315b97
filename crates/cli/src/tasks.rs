//! Commands about tasks that exist, or are to exist: submit, get, watch, list, cancel, delete,
//! download.

use rayreel_client::{Filter, Variant};
use rayreel_domain::wire::api::EventBody;
use rayreel_domain::{Code, State, TaskId};
use serde::Serialize;

use crate::args::{self, Command, Global};
use crate::failure::{Exit, Failure};
use crate::follow::{Follower, OnInterrupt};
use crate::generate::{self, Saved};
use crate::out::Out;
use crate::progress::Progress;
use crate::request;
use crate::save::{Destination, save};
use crate::session::{Session, Workers};
use crate::signals::Interrupts;
use crate::text;

/// Runs a command, and the server for it if there is none.
pub(crate) async fn run(global: &Global, command: Command, out: Out) -> Result<(), Exit> {
    let workers = match command {
        Command::Watch(_) => Workers::Start,
        _ => Workers::None,
    };
    let mut session = Session::new(global, workers, out)?;
    let done = match command {
        Command::Submit(request) => submit(&mut session, &request, out).await,
        Command::Get(task) => get(&mut session, task.id, out).await,
        Command::Watch(task) => watch(&mut session, task.id, out).await,
        Command::List(list) => self::list(&mut session, list, out).await,
        Command::Cancel(task) => cancel(&mut session, task.id, out).await,
        Command::Delete(task) => delete(&mut session, task.id, out).await,
        Command::Download(download) => self::download(&mut session, &download, out).await,
        other => Err(Failure::new(Code::Internal, format!("{other:?} is not about tasks")).into()),
    };
    let closed = session.close().await;
    done?;
    Ok(closed?)
}

async fn submit(session: &mut Session, request: &args::Request, out: Out) -> Result<(), Exit> {
    let body = request::body(request, None)?;
    let submitted = generate::submit(session, &body).await?;
    if out.json {
        out.json(&submitted.task)?;
    } else {
        out.line(&submitted.task.id)?;
    }
    if session.is_embedded() {
        out.note("no server is running: the task waits until one does (rayreel serve)");
    }
    Ok(())
}

async fn get(session: &mut Session, id: TaskId, out: Out) -> Result<(), Exit> {
    let task = session.call(|client| async move { client.task(id).await }).await?;
    if out.json { out.json(&task) } else { out.line(&text::task(&task)) }
}

/// A line of `watch --json`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    event: &'a str,
    #[serde(flatten)]
    body: &'a EventBody,
}

async fn watch(session: &mut Session, id: TaskId, out: Out) -> Result<(), Exit> {
    let interrupts = Interrupts::listen()?;
    interrupts.exit_on_second();
    // A task that does not exist is told at once, and without a bar.
    let task = session.call(|client| async move { client.task(id).await }).await?;
    let mut progress = Progress::new(out, id);
    let follower = Follower {
        session,
        id,
        progress: &mut progress,
        interrupts: &interrupts,
        on_interrupt: OnInterrupt::Leave,
        on_event: &mut |event, body| {
            if out.json { out.json(&Line { event, body }) } else { Ok(()) }
        },
        after: None,
        state: task.status,
    };
    let task = follower.run().await?;
    drop(progress);
    match (&task.result, task.status) {
        (Some(result), State::Succeeded) if !out.json => {
            out.line(&format!("{id} succeeded {}", text::result(result)))
        }
        (_, State::Succeeded) => Ok(()),
        _ => Err(Failure::of_task(&task).into()),
    }
}

async fn list(session: &mut Session, asked: args::List, out: Out) -> Result<(), Exit> {
    let mut filter = Filter {
        state: asked.state,
        model: asked.model,
        limit: if asked.all { Some(100) } else { asked.limit },
        cursor: asked.cursor,
        ..Filter::default()
    };
    let mut head = true;
    loop {
        let page = &filter;
        let page = if head {
            session.call(|client| async move { client.list(page).await }).await?
        } else {
            // A list may begin anew with another server, but not go on.
            session.client().await?.list(page).await?
        };
        match (out.json, asked.all) {
            (true, true) => page.data.iter().try_for_each(|task| out.json(task))?,
            (true, false) => out.json(&page)?,
            (false, _) => out.raw(text::table(&page, head).as_bytes())?,
        }
        if head && page.data.is_empty() {
            out.note("no tasks");
        }
        head = false;
        match page.next_cursor {
            Some(cursor) if asked.all && page.has_more => filter.cursor = Some(cursor),
            Some(cursor) if page.has_more => {
                out.note(&format!("there are more: --cursor {cursor}, or --all"));
                return Ok(());
            }
            _ => return Ok(()),
        }
    }
}

async fn cancel(session: &mut Session, id: TaskId, out: Out) -> Result<(), Exit> {
    let body = session.call(|client| async move { client.cancel(id).await }).await?;
    if out.json {
        return out.json(&body);
    }
    out.line(&if body.cancelled {
        format!("{id} cancelled")
    } else {
        format!("{id} had ended already: {}", body.status)
    })
}

async fn delete(session: &mut Session, id: TaskId, out: Out) -> Result<(), Exit> {
    let task = session.call(|client| async move { client.task(id).await }).await?;
    if !task.status.is_terminal() {
        let message = format!("{id} is {}; cancel it before you delete it", task.status);
        return Err(Failure::new(Code::NotFinished, message).into());
    }
    // Once: a repetition could not tell that the first call has deleted it.
    let body = session.client().await?.delete(id).await?;
    if out.json { out.json(&body) } else { out.line(&format!("{id} deleted")) }
}

async fn download(session: &mut Session, asked: &args::Download, out: Out) -> Result<(), Exit> {
    let destination = Destination::new(asked.output.as_deref(), out)?;
    let interrupts = Interrupts::listen()?;
    interrupts.exit_on_second();
    let id = asked.id;
    let variant = if asked.thumbnail { Variant::Thumbnail } else { Variant::Main };
    let task = session.call(|client| async move { client.task(id).await }).await?;
    let path = save(session, &task, variant, &destination, &interrupts, out).await?;
    let file = path.map(|path| path.display().to_string());
    if out.json {
        return out.json(&Saved { task: &task, file });
    }
    match (file, &task.result) {
        (Some(file), Some(result)) if !asked.thumbnail => {
            out.line(&format!("wrote {file} {}", text::result(result)))
        }
        (Some(file), _) => out.line(&format!("wrote {file}")),
        (None, _) => Ok(()),
    }
}
