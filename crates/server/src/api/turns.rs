//! Turns at what only few can do at once, handed out fairly between tenants.
//!
//! Each tenant has a line of its own, and the lines take turns: however long one tenant's is, the
//! next turn but one is another's. A tenant gets a further turn only if it leaves as many free as it
//! has already: one alone gets half of them, and for the next there is always something left. Lines
//! have an end: whoever would stand behind it is told to come later.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use rayreel_domain::Code;
use rayreel_domain::id::TenantName;
use tokio::sync::oneshot;

use super::error::Error;

/// Calls of one tenant that may wait at once.
const MAX_LINE: usize = 64;

/// So many turns at once, all tenants together.
#[derive(Debug)]
pub(super) struct Turns(Mutex<Lines>);

#[derive(Debug)]
struct Lines {
    free: usize,
    tenants: HashMap<TenantName, Line>,
    /// Those who wait: whoever was served last comes last.
    order: VecDeque<TenantName>,
}

#[derive(Debug, Default)]
struct Line {
    taken: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

impl Turns {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let lines = Lines { free: most, tenants: HashMap::new(), order: VecDeque::new() };
        Arc::new(Self(Mutex::new(lines)))
    }

    /// Waits for a turn. Whoever stops waiting leaves the line.
    pub(super) async fn take(self: &Arc<Self>, tenant: &TenantName) -> Result<Turn, Error> {
        let (give, given) = oneshot::channel();
        {
            let mut lines = self.lines();
            let line = lines.tenants.entry(tenant.clone()).or_default();
            line.waiting.retain(|waiting| !waiting.is_closed());
            if line.waiting.len() >= MAX_LINE {
                let message = "as many of your tenant's images as may wait to be taken in already; \
                               send it again in a moment";
                return Err(Error::new(Code::ServerBusy, message));
            }
            line.waiting.push_back(give);
            if !lines.order.contains(tenant) {
                lines.order.push_back(tenant.clone());
            }
        }
        self.hand_out();
        given.await.map_err(Error::internal)
    }

    /// Hands out what is free, as long as somebody who waits may have it.
    fn hand_out(self: &Arc<Self>) {
        loop {
            let next = self.lines().next();
            let Some((tenant, give)) = next else { return };
            // Who has gone in this moment gives it back: the turn is dropped, and nothing is locked.
            drop(give.send(Turn { turns: Arc::clone(self), tenant }));
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl Lines {
    /// Takes a turn for whoever is next.
    fn next(&mut self) -> Option<(TenantName, oneshot::Sender<Turn>)> {
        let left = self.free.checked_sub(1)?;
        loop {
            let tenants = &self.tenants;
            let fair = |name| tenants.get(name).is_none_or(|line| line.taken <= left);
            let at = self.order.iter().position(fair)?;
            let tenant = self.order.remove(at)?;
            let Some(line) = self.tenants.get_mut(&tenant) else { continue };
            line.waiting.retain(|waiting| !waiting.is_closed());
            let next = line.waiting.pop_front();
            line.taken += usize::from(next.is_some());
            if !line.waiting.is_empty() {
                self.order.push_back(tenant.clone());
            } else if line.taken == 0 {
                self.tenants.remove(&tenant);
            }
            if let Some(give) = next {
                self.free = left;
                return Some((tenant, give));
            }
        }
    }
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    tenant: TenantName,
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut lines = self.turns.lines();
            lines.free += 1;
            if let Some(line) = lines.tenants.get_mut(&self.tenant) {
                line.taken -= 1;
                if line.taken == 0 && line.waiting.is_empty() {
                    lines.tenants.remove(&self.tenant);
                }
            }
        }
        self.turns.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Waiting = Pin<Box<dyn Future<Output = Result<Turn, Error>>>>;

    fn tenant(name: &str) -> TenantName {
        name.parse().expect("a name")
    }

    fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    /// Asks for a turn, and does not get it.
    fn wait(turns: &Arc<Turns>, name: &str) -> Waiting {
        let (turns, tenant) = (Arc::clone(turns), tenant(name));
        let mut waiting: Waiting = Box::pin(async move { turns.take(&tenant).await });
        assert!(poll(waiting.as_mut()).is_none(), "{name} waits");
        waiting
    }

    /// So many turns as are had at once.
    fn take(turns: &Arc<Turns>, name: &str, most: usize) -> Vec<Turn> {
        let tenant = tenant(name);
        let once = |_| poll(pin!(turns.take(&tenant)))?.ok();
        (0..most).map_while(once).collect()
    }

    fn given(waiting: &mut Waiting) -> Option<Turn> {
        poll(waiting.as_mut()).map(|given| given.expect("a turn"))
    }

    #[test]
    fn a_tenant_may_have_as_many_as_it_leaves_free() {
        let turns = Turns::new(16);
        let one = take(&turns, "a", 99);
        let others = ["b", "c", "d", "e"].map(|name| take(&turns, name, 99));
        assert_eq!((one.len(), others.each_ref().map(Vec::len)), (8, [4, 2, 1, 1]));
        assert!(take(&turns, "f", 1).is_empty(), "there is none left");
        drop((one, others));
        assert_eq!(take(&turns, "f", 99).len(), 8);
        assert!(turns.lines().tenants.is_empty(), "nothing is kept of those who have gone");
    }

    #[test]
    fn the_lines_take_turns() {
        let turns = Turns::new(1);
        let mut turn = take(&turns, "evil", 1).pop().expect("it is free");
        let mut line: Vec<_> = (0..50).map(|_| ("evil", wait(&turns, "evil"))).collect();
        line.extend(["a", "b", "a"].map(|name| (name, wait(&turns, name))));
        let mut served = Vec::new();
        for _ in 0..7 {
            drop(turn);
            let next = line
                .iter_mut()
                .enumerate()
                .find_map(|(at, (_, waiting))| given(waiting).map(|turn| (at, turn)));
            let (at, given) = next.expect("somebody is next");
            served.push(line.remove(at).0);
            turn = given;
        }
        assert_eq!(served, ["evil", "a", "b", "evil", "a", "evil", "evil"]);
    }

    #[test]
    fn whoever_stops_waiting_is_passed_over() {
        let turns = Turns::new(1);
        let turn = take(&turns, "a", 1);
        let (first, mut second) = (wait(&turns, "a"), wait(&turns, "a"));
        let (third, mut fourth) = (wait(&turns, "b"), wait(&turns, "b"));
        drop((first, third));
        drop(turn);
        let turn = given(&mut second).expect("it is next");
        // Given, and gone before it could be taken.
        drop(turn);
        drop(second);
        assert!(given(&mut fourth).is_some());
        let turn = take(&turns, "c", 1);
        let waits = wait(&turns, "d");
        drop(turn);
        drop(waits);
        assert_eq!(take(&turns, "e", 1).len(), 1);
    }

    #[test]
    fn a_line_has_an_end() {
        let turns = Turns::new(1);
        let turn = take(&turns, "a", 1);
        let mut line: Vec<_> = (0..MAX_LINE).map(|_| wait(&turns, "a")).collect();
        let refused = poll(pin!(turns.take(&tenant("a")))).expect("at once").expect_err("refused");
        assert_eq!(refused.status(), 503);
        let other = wait(&turns, "b");
        line.pop();
        line.push(wait(&turns, "a"));
        drop((turn, line, other));
        assert!(!take(&turns, "a", 1).is_empty());
    }
}
