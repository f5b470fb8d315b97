//! The load generator: some connections, each with one request under way at a time, on one thread.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::http::{Connection, Request, find};

/// The digits of a task's id.
pub(crate) type TaskHex = [u8; 32];

/// The id in an answer to a submit.
pub(crate) fn task_hex(body: &[u8]) -> io::Result<TaskHex> {
    const PREFIX: &[u8] = b"\"task_";
    find(body, PREFIX)
        .and_then(|at| body.get(at + PREFIX.len()..)?.first_chunk().copied())
        .ok_or_else(|| io::Error::other("no task id in the answer"))
}

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    After(Duration),
    Requests(u64),
}

/// What to send, and how.
#[derive(Debug, Clone)]
pub(crate) struct Load<F> {
    pub(crate) connections: usize,
    pub(crate) end: End,
    pub(crate) request: Request,
    /// Fills the hole of the n-th request.
    pub(crate) fill: F,
    pub(crate) expect: u16,
    /// Keep the task ids of the answers?
    pub(crate) keep: bool,
    /// Requests a second of all connections; as many as possible if absent.
    pub(crate) pace: Option<u32>,
}

/// How a load went.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) elapsed: Duration,
    pub(crate) times: Times,
    pub(crate) tasks: Vec<TaskHex>,
}

impl Run {
    pub(crate) fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.elapsed.as_secs_f64()
    }
}

impl<F: Fn(u64, &mut [u8]) + Clone + Send + 'static> Load<F> {
    /// Opens the connections, then runs.
    pub(crate) async fn run(self, address: SocketAddr) -> io::Result<Run> {
        let mut connections = Vec::with_capacity(self.connections);
        for _ in 0..self.connections {
            connections.push(Connection::open(address).await?);
        }
        let sent = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let mut lanes = JoinSet::new();
        for connection in connections {
            lanes.spawn(self.clone().lane(connection, Arc::clone(&sent), start));
        }
        let mut run = Run::default();
        while let Some(lane) = lanes.join_next().await {
            let (mut times, mut tasks) = lane.map_err(io::Error::other)??;
            run.times.0.append(&mut times);
            run.tasks.append(&mut tasks);
        }
        run.elapsed = start.elapsed();
        run.times.0.sort_unstable();
        Ok(run)
    }

    /// One connection's part.
    async fn lane(
        mut self,
        mut connection: Connection,
        sent: Arc<AtomicU64>,
        start: Instant,
    ) -> io::Result<(Vec<u64>, Vec<TaskHex>)> {
        let (mut times, mut tasks) = (Vec::new(), Vec::new());
        let mut ticks = self.pace.map(|rate| {
            let period = Duration::from_secs_f64(self.connections as f64 / f64::from(rate));
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            ticks
        });
        let mut before = start;
        loop {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
                before = Instant::now();
            }
            let number = sent.fetch_add(1, Ordering::Relaxed);
            match self.end {
                End::After(time) if before - start >= time => break,
                End::Requests(count) if number >= count => break,
                _ => {}
            }
            (self.fill)(number, self.request.hole());
            let answer = connection.call(&self.request).await?;
            let body = answer.expect(self.expect)?;
            if self.keep {
                tasks.push(task_hex(body)?);
            }
            let after = Instant::now();
            times.push((after - before).as_nanos() as u64);
            before = after;
        }
        Ok((times, tasks))
    }
}

/// Times in nanoseconds, sorted.
#[derive(Debug, Default, Clone)]
pub(crate) struct Times(Vec<u64>);

impl Times {
    pub(crate) fn new(mut nanoseconds: Vec<u64>) -> Self {
        nanoseconds.sort_unstable();
        Self(nanoseconds)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest time that at least `part` of all do not exceed, in milliseconds.
    pub(crate) fn quantile_ms(&self, part: f64) -> f64 {
        let rank = (part * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.clamp(1, self.0.len().max(1)) - 1).map_or(f64::NAN, |ns| *ns as f64 / 1e6)
    }

    pub(crate) fn p50(&self) -> f64 {
        self.quantile_ms(0.5)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.quantile_ms(0.99)
    }

    pub(crate) fn max(&self) -> f64 {
        self.quantile_ms(1.0)
    }
}

/// A well-mixed number that depends on `n` alone, so that every run asks for the same sequence.
pub(crate) fn mix(n: u64) -> u64 {
    // SplitMix64.
    let mut z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Writes `n` in decimal, with leading zeros, over the whole of `hole`.
pub(crate) fn write_number(mut n: u64, hole: &mut [u8]) {
    for digit in hole.iter_mut().rev() {
        *digit = b'0' + (n % 10) as u8;
        n /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::answering;

    const OK: &[&str] = &["HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok"];

    fn load(connections: usize, end: End) -> Load<impl Fn(u64, &mut [u8]) + Clone> {
        let request = Request::get("/########").with_hole("########");
        let (keep, pace) = (false, None);
        Load { connections, end, request, fill: write_number, expect: 202, keep, pace }
    }

    #[tokio::test]
    async fn sends_as_many_requests_as_asked_and_times_each() {
        let address = answering(OK).await;
        let run = load(8, End::Requests(1000)).run(address).await.unwrap();
        assert_eq!(run.times.len(), 1000);
        assert!(run.times.p50() > 0.0 && run.times.p50() <= run.times.p99());
        assert!(run.times.max() <= run.elapsed.as_secs_f64() * 1e3);
    }

    #[tokio::test]
    async fn ends_after_the_time_asked() {
        let address = answering(OK).await;
        let time = Duration::from_millis(50);
        let run = load(2, End::After(time)).run(address).await.unwrap();
        assert!(run.elapsed >= time && run.times.len() > 2);
    }

    #[tokio::test]
    async fn a_pace_is_kept() {
        let address = answering(OK).await;
        let load = Load { pace: Some(200), ..load(2, End::Requests(20)) };
        let run = load.run(address).await.unwrap();
        assert!(run.elapsed >= Duration::from_millis(90), "{:?} for 20 at 200/s", run.elapsed);
    }

    #[tokio::test]
    async fn a_refusal_ends_the_load() {
        let refusing = &["HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nfull"];
        let address = answering(refusing).await;
        let error = load(2, End::Requests(10)).run(address).await.unwrap_err();
        assert!(error.to_string().contains("429"), "{error}");
    }

    #[tokio::test]
    async fn task_ids_are_kept() {
        let answer = "HTTP/1.1 202 Accepted\r\ncontent-length: 47\r\n\r\n\
                      {\"id\":\"task_018bcfe5680070707070707070707070\" }";
        let address = answering(Box::leak(Box::new([answer]))).await;
        let load = Load { keep: true, ..load(1, End::Requests(2)) };
        let run = load.run(address).await.unwrap();
        assert_eq!(run.tasks, [*b"018bcfe5680070707070707070707070"; 2]);
        assert!(task_hex(b"{\"id\":\"task_12\"}").is_err(), "an id that is cut off is none");
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let times = Times::new((1..=100).rev().map(|ms| ms * 1_000_000).collect());
        assert_eq!((times.p50(), times.p99(), times.max()), (50.0, 99.0, 100.0));
        assert_eq!(Times::new(vec![7_000_000]).p99(), 7.0);
        assert!(Times::default().p50().is_nan(), "nothing was measured");
    }

    #[test]
    fn numbers_are_written_over_the_hole() {
        let mut hole = *b"########";
        write_number(1234, &mut hole);
        assert_eq!(&hole, b"00001234");
    }
}
