//! Makes the connections. Runs in a namespace of the world, on threads of this process.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use tokio::time::timeout;

const WORKERS: usize = 8;
/// Long enough to see by how much a connect misses its bound.
const LIMIT: Duration = Duration::from_secs(5);
/// For a connection that is meant to fail; two SYNs.
const HOLD_LIMIT: Duration = Duration::from_millis(2500);
const NICE: i32 = 10;
const QUESTION: &[u8] = b"GET / HTTP/1.1\r\nHost: churn\r\n\r\n";

/// What a client saw.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) connections: u64,
    /// What failed, and how often.
    pub(super) failures: BTreeMap<String, u64>,
    pub(super) longest: Duration,
    /// Connections that began in each second.
    pub(super) per_second: Vec<u64>,
}

impl Load {
    pub(super) fn in_words(&self) -> String {
        let seconds = self.per_second.len().max(1) as u64;
        format!(
            "{} connections, {} per second (at least {}), longest connect {:.1} ms",
            self.connections,
            self.connections / seconds,
            self.per_second.iter().min().copied().unwrap_or_default(),
            self.longest.as_secs_f64() * 1e3,
        )
    }

    fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.longest = self.longest.max(other.longest);
        for (what, count) in other.failures {
            *self.failures.entry(what).or_default() += count;
        }
        for (all, count) in self.per_second.iter_mut().zip(other.per_second) {
            *all += count;
        }
    }
}

/// Connect, one question, its answer, close; over and over.
pub(super) fn churn(to: SocketAddr, time: Duration) -> Result<Load> {
    let started = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(move || work(to, started, time))).collect();
        let mut all = Load { per_second: vec![0; time.as_secs() as usize], ..Load::default() };
        for worker in workers {
            all.add(worker.join().map_err(|_| anyhow!("a worker panicked"))?);
        }
        Ok(all)
    })
}

fn work(to: SocketAddr, started: Instant, time: Duration) -> Load {
    // Other tests run meanwhile, some of them with bounds: they go first.
    // SAFETY: no pointers. On Linux it concerns the calling thread alone; if it fails, nothing is lost.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    let mut load = Load { per_second: vec![0; time.as_secs() as usize], ..Load::default() };
    loop {
        let at = started.elapsed();
        if at >= time {
            return load;
        }
        let begun = Instant::now();
        let connected = TcpStream::connect_timeout(&to, LIMIT);
        let took = begun.elapsed();
        match connected.map_err(|error| (error, "connect")).and_then(|stream| ask(stream).map_err(|e| (e, "answer"))) {
            Ok(()) => {
                load.connections += 1;
                load.longest = load.longest.max(took);
                if let Some(count) = load.per_second.get_mut(at.as_secs() as usize) {
                    *count += 1;
                }
            }
            // The client's own ports are all in use: nothing was sent.
            Err((error, _)) if error.kind() == ErrorKind::AddrNotAvailable => thread::sleep(Duration::from_millis(1)),
            Err((error, step)) => *load.failures.entry(format!("{step}: {error}")).or_default() += 1,
        }
    }
}

fn ask(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(QUESTION)?;
    let mut answer = [0; 2048];
    let length = stream.read(&mut answer)?;
    if answer[..length].starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    Err(std::io::Error::other("no answer of a pod"))
}

/// What became of connections that were to be open at once.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) connected: usize,
    pub(super) timed_out: usize,
}

/// Opens that many, and closes them when all are open or have given up.
pub(super) fn hold(to: SocketAddr, connections: usize) -> Result<Held> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(async {
        let all = (0..connections).map(|_| timeout(HOLD_LIMIT, tokio::net::TcpStream::connect(to)));
        let all = futures::future::join_all(all).await;
        let connected = all.iter().filter(|it| matches!(it, Ok(Ok(_)))).count();
        Ok(Held { connected, timed_out: all.iter().filter(|it| it.is_err()).count() })
    })
}
