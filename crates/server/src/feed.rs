//! What has just changed, told in process: the store publishes after each commit, and whoever
//! waits for a task, for work or for an instruction is woken. A wake-up is never the truth: who is
//! woken reads the store.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rayreel_domain::id::{PoolName, TaskId, WorkerName};
use rayreel_domain::task::State;
use tokio::sync::{Notify, oneshot, watch};

/// A committed change of a task.
#[derive(Debug, Clone)]
pub struct Change {
    pub task: TaskId,
    pub pool: PoolName,
    /// The state that it is in now, if it was in another before.
    pub entered: Option<State>,
    /// A claim of the pool may find it now.
    pub ready: bool,
    /// Whose attempt has just ended without its doing.
    pub revoked_from: Option<WorkerName>,
}

/// Wakes those who wait.
#[derive(Debug, Default)]
pub struct Feed {
    tasks: Mutex<HashMap<TaskId, watch::Sender<u64>>>,
    parked: Mutex<HashMap<PoolName, VecDeque<oneshot::Sender<()>>>>,
    workers: Mutex<HashMap<WorkerName, Arc<Notify>>>,
    /// Woken when the backlog of some pool has changed.
    pub backlog: Notify,
    /// Woken when [`crate::store::Store::advance`] may have something to do earlier than it said.
    pub timers: Notify,
    /// Woken when there is new garbage.
    pub garbage: Notify,
    /// Woken when there is a webhook to deliver.
    pub webhooks: Notify,
    /// Woken when another server may have changed the API keys.
    pub keys: Notify,
    transitions: [AtomicU64; State::ALL.len()],
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

impl Feed {
    /// Tells everybody whom these changes concern.
    pub fn publish(&self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        {
            let tasks = locked(&self.tasks);
            if !tasks.is_empty() {
                for change in changes {
                    if let Some(watchers) = tasks.get(&change.task) {
                        watchers.send_modify(|version| *version += 1);
                    }
                }
            }
        }
        for change in changes {
            if let Some(state) = change.entered {
                self.transitions[state as usize].fetch_add(1, Ordering::Relaxed);
            }
            if change.ready {
                self.wake_one(&change.pool);
            }
            if let Some(worker) = &change.revoked_from {
                self.control(worker).notify_waiters();
            }
        }
        self.backlog.notify_one();
    }

    /// Wakes everybody: changes may have been missed.
    pub fn stir(&self) {
        for watchers in locked(&self.tasks).values() {
            watchers.send_modify(|version| *version += 1);
        }
        self.wake_everyone();
        for notify in [&self.backlog, &self.timers, &self.garbage, &self.webhooks, &self.keys] {
            notify.notify_one();
        }
    }

    /// How often each state has been entered since the start of the process.
    pub fn transitions(&self) -> [(State, u64); State::ALL.len()] {
        State::ALL.map(|state| (state, self.transitions[state as usize].load(Ordering::Relaxed)))
    }

    /// New progress of a task.
    pub fn progress(&self, task: TaskId) {
        if let Some(watchers) = locked(&self.tasks).get(&task) {
            watchers.send_modify(|version| *version += 1);
        }
    }

    /// Watches one task; changes after this call are seen.
    pub fn watch(self: &Arc<Self>, task: TaskId) -> Watch {
        let receiver =
            locked(&self.tasks).entry(task).or_insert_with(|| watch::channel(0).0).subscribe();
        Watch { receiver: Some(receiver), task, feed: Arc::clone(self) }
    }

    /// Parks a claim until there may be work in the pool. The newest one is woken first: the others
    /// grow idle and can be released.
    pub fn park(self: &Arc<Self>, pool: &PoolName) -> Parked {
        let (sender, receiver) = oneshot::channel();
        let mut parked = locked(&self.parked);
        let waiting = parked.entry(pool.clone()).or_default();
        waiting.retain(|waiter| !waiter.is_closed());
        waiting.push_back(sender);
        Parked { receiver, woken: false, pool: pool.clone(), feed: Arc::clone(self) }
    }

    /// Wakes one parked claim of the pool, if there is one whose caller is still there.
    pub fn wake_one(&self, pool: &PoolName) {
        let mut parked = locked(&self.parked);
        let Some(waiting) = parked.get_mut(pool) else { return };
        while let Some(waiter) = waiting.pop_back() {
            if waiter.send(()).is_ok() {
                return;
            }
        }
    }

    /// Wakes every parked claim of the pool: some of them are to go.
    pub fn wake_all(&self, pool: &PoolName) {
        let waiting = locked(&self.parked).remove(pool).unwrap_or_default();
        for waiter in waiting {
            let _ = waiter.send(());
        }
    }

    /// Wakes every parked claim and control request.
    pub fn wake_everyone(&self) {
        for (_, waiting) in locked(&self.parked).drain() {
            for waiter in waiting {
                let _ = waiter.send(());
            }
        }
        for notify in locked(&self.workers).values() {
            notify.notify_waiters();
        }
    }

    /// Where the control request of a worker waits.
    pub fn control(&self, worker: &WorkerName) -> Arc<Notify> {
        let mut workers = locked(&self.workers);
        if let Some(notify) = workers.get(worker) {
            return Arc::clone(notify);
        }
        Arc::clone(workers.entry(worker.clone()).or_default())
    }

    /// Forgets a worker that is gone.
    pub fn forget(&self, worker: &WorkerName) {
        locked(&self.workers).remove(worker);
    }
}

/// A parked claim. Dropped after it was woken and before [`Parked::served`], it wakes the next
/// one: its caller has gone, and the work is still there.
#[derive(Debug)]
pub struct Parked {
    receiver: oneshot::Receiver<()>,
    woken: bool,
    pool: PoolName,
    feed: Arc<Feed>,
}

impl Parked {
    /// Waits until there may be work.
    pub async fn woken(&mut self) {
        if self.woken {
            return;
        }
        if (&mut self.receiver).await.is_err() {
            std::future::pending::<()>().await;
        }
        self.woken = true;
    }

    /// The wake-up has been used.
    pub fn served(mut self) {
        self.woken = false;
        self.receiver.close();
        // A wake-up that came after the work was taken belongs to somebody else.
        self.woken = self.receiver.try_recv().is_ok();
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.receiver.close();
        if self.woken || self.receiver.try_recv().is_ok() {
            self.feed.wake_one(&self.pool);
        }
    }
}

/// Tells that a task has changed.
#[derive(Debug)]
pub struct Watch {
    /// There until it is dropped.
    receiver: Option<watch::Receiver<u64>>,
    task: TaskId,
    feed: Arc<Feed>,
}

impl Watch {
    /// Waits for the next change; several changes may come as one.
    pub async fn changed(&mut self) {
        if let Some(receiver) = &mut self.receiver
            && receiver.changed().await.is_ok()
        {
            return;
        }
        // Only the feed drops senders, and only when nobody watches.
        std::future::pending::<()>().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut tasks = locked(&self.feed.tasks);
        // Under the lock: of several watchers that go at once, one must see that it is the last.
        self.receiver = None;
        if tasks.get(&self.task).is_some_and(|sender| sender.receiver_count() == 0) {
            tasks.remove(&self.task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_watcher_of_a_task_leaves_nothing_behind() {
        let feed = Arc::new(Feed::default());
        let task = TaskId::new(1, [1; 10]);
        let (first, second) = (feed.watch(task), feed.watch(task));
        drop(first);
        assert_eq!(locked(&feed.tasks).len(), 1, "somebody still watches");
        drop(second);
        assert!(locked(&feed.tasks).is_empty());
    }
}
