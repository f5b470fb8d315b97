//! Follows a task to its end, across lost connections, restarts and changes of server.

use std::time::{Duration, Instant};

use rayreel_client::Connection;
use rayreel_domain::wire::api::{EventBody, TaskBody};
use rayreel_domain::{State, TaskId};
use tokio::time::MissedTickBehavior;

use crate::failure::{Exit, Failure, INTERRUPTED};
use crate::progress::Progress;
use crate::session::{Session, is_handover};
use crate::signals::Interrupts;

/// How long to wait for a server that is away: as long as workers keep what they do for it.
const PATIENCE: Duration = Duration::from_secs(1800);
/// A server that is away for no longer is not worth a word.
const HICCUP: Duration = Duration::from_secs(2);
/// Between tries to connect again.
const PAUSE: Duration = Duration::from_millis(200);
/// How often to ask what the server expects.
const ASK: Duration = Duration::from_secs(2);

/// What the first Ctrl-C does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// Cancel the task, and follow it to that end; leave it alone if the server is away.
    Cancel,
    /// Leave it alone.
    Leave,
}

/// What an open stream of events ended with.
enum Ended {
    /// The task has.
    Task,
    /// Only the stream.
    Stream,
    Interrupted,
}

/// Follows one task.
pub(crate) struct Follower<'a> {
    pub session: &'a mut Session,
    pub id: TaskId,
    pub progress: &'a mut Progress,
    pub interrupts: &'a Interrupts,
    pub on_interrupt: OnInterrupt,
    /// Is told of every event, with its name.
    pub on_event: &'a mut dyn FnMut(&str, &EventBody) -> Result<(), Exit>,
    /// Position behind the last event that had one.
    pub after: Option<String>,
    /// The task's state, as it was last heard of.
    pub state: State,
}

impl Follower<'_> {
    /// Gives the task as it is at its end.
    pub(crate) async fn run(mut self) -> Result<TaskBody, Exit> {
        self.session.hush();
        let mut away: Option<Instant> = None;
        let mut told = false;
        let mut listening = true;
        loop {
            let interrupts = self.interrupts.clone();
            let opened = tokio::select! {
                opened = self.open() => opened,
                () = interrupts.first(), if listening => {
                    listening = false;
                    self.interrupted(away.is_some()).await?;
                    continue;
                }
            };
            let result = match opened {
                Ok(events) => {
                    away = None;
                    if std::mem::take(&mut told) {
                        self.progress.note("the server is back");
                    }
                    match self.listen(events, listening).await? {
                        Ended::Interrupted => {
                            listening = false;
                            self.interrupted(false).await?;
                            continue;
                        }
                        Ended::Task | Ended::Stream => self.look().await,
                    }
                }
                Err(failure) => Err(failure),
            };
            match result {
                Ok(task) if task.status.is_terminal() => return Ok(task),
                Ok(_) => {}
                Err(failure) if is_handover(&failure) => {
                    let since = *away.get_or_insert_with(Instant::now);
                    if since.elapsed() > HICCUP && !std::mem::replace(&mut told, true) {
                        self.tell_that_it_is_away();
                    }
                    self.session.lost();
                    if since.elapsed() > PATIENCE {
                        return Err(failure.into());
                    }
                }
                Err(failure) => return Err(failure.into()),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn open(&mut self) -> Result<Connection, Failure> {
        let client = self.session.look().await?;
        Ok(client.connect(self.id, self.after.as_deref()).await?)
    }

    async fn look(&mut self) -> Result<TaskBody, Failure> {
        let client = self.session.look().await?;
        Ok(client.task(self.id).await?)
    }

    fn tell_that_it_is_away(&self) {
        let what = if self.session.is_gone() { "is gone" } else { "does not answer" };
        self.progress.note(&format!(
            "{} {what}; this goes on when it is back (Ctrl-C leaves: the task stays {})",
            self.session.whom(),
            self.state(),
        ));
    }

    fn state(&self) -> String {
        self.state.as_str().to_lowercase()
    }

    async fn listen(&mut self, mut events: Connection, interruptible: bool) -> Result<Ended, Exit> {
        let interrupts = self.interrupts.clone();
        let mut ask = tokio::time::interval(ASK);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut heard, mut told) = (false, false);
        loop {
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event else { return Ok(Ended::Stream) };
                    if event.id.is_some() {
                        self.after = event.id;
                    }
                    let body = event.body;
                    (self.state, heard) = (body.status, true);
                    self.progress.event(&body);
                    (self.on_event)(event.kind.as_str(), &body)?;
                    if body.status.is_terminal() {
                        return Ok(Ended::Task);
                    }
                }
                _ = ask.tick(), if heard => {
                    let asked = tokio::select! {
                        asked = tokio::time::timeout(HICCUP, self.look()) => asked,
                        () = interrupts.first(), if interruptible => return Ok(Ended::Interrupted),
                    };
                    match asked {
                        Ok(Ok(task)) => {
                            if std::mem::take(&mut told) {
                                self.progress.note("the server is back");
                            }
                            if task.status == self.state {
                                self.progress.expect(&task);
                            }
                        }
                        // The stream says if something is wrong.
                        Ok(Err(_)) => {}
                        Err(_) if !std::mem::replace(&mut told, true) => self.tell_that_it_is_away(),
                        Err(_) => {}
                    }
                }
                () = interrupts.first(), if interruptible => return Ok(Ended::Interrupted),
            }
        }
    }

    async fn interrupted(&mut self, away: bool) -> Result<(), Exit> {
        let (id, state) = (self.id, self.state());
        match self.on_interrupt {
            OnInterrupt::Cancel if !away => {
                self.progress.note(&format!("cancelling {id}; Ctrl-C again leaves at once"));
                let cancelled = self.session.call(|client| async move { client.cancel(id).await });
                cancelled.await.map(drop).map_err(|failure| {
                    let message =
                        format!("{id} may go on, it could not be cancelled: {}", failure.message);
                    Failure { message, ..failure }.into()
                })
            }
            OnInterrupt::Cancel => {
                self.progress.clear();
                self.progress.note(&format!(
                    "left; without its server {id} can't be cancelled and stays {state}: \
                     rayreel cancel {id}"
                ));
                Err(Exit::Silent(INTERRUPTED))
            }
            OnInterrupt::Leave => {
                self.progress.clear();
                self.progress.note(&format!("left; {id} stays {state}: rayreel watch {id}"));
                Err(Exit::Silent(INTERRUPTED))
            }
        }
    }
}
