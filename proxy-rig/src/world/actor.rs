//! The owner's end of a resident process inside a host: starts it, sends calls, hands out results.
//!
//! The process itself is `weir-rig pod-server` (modules `echo` and `call`). It ends when its
//! standard input closes, so it does not outlive a killed owner.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::oneshot,
    time::timeout,
};

use super::{binaries, host::Host};
use crate::call::{Call, CallResult, Options, Outcome, Proto, READY, Request, Response, ToIp};

/// The kernels of other machines are emulated.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Added to a call's own time limit before the process itself is taken for stuck.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// What an actor listens on.
#[derive(Debug, Clone, Default)]
pub struct Serve {
    pub tcp: Vec<u16>,
    pub udp: Vec<u16>,
}

impl Serve {
    /// For hosts that only call others.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// The same ports for TCP and UDP.
    pub fn ports(ports: &[u16]) -> Self {
        Self { tcp: ports.to_vec(), udp: ports.to_vec() }
    }
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<CallResult>>>>;

/// A running process inside a host. Belongs to the tokio runtime it was started on.
/// Dropping it ends the process.
pub struct Actor {
    name: String,
    log: PathBuf,
    pid: u32,
    stdin: tokio::sync::Mutex<ChildStdin>,
    waiting: Waiting,
    next_id: AtomicU64,
    _child: Child,
}

/// A flow that stays open between sends.
pub struct Session<'a> {
    actor: &'a Actor,
    id: u64,
    /// What opening it gave: addresses and time.
    pub opened: CallResult,
}

impl Actor {
    /// Starts the process and returns when it listens.
    pub(super) async fn start(host: &Host, serve: Serve) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = host.run().dir().join(format!("{}-actor-{number}.log", host.name()));
        let mut command = host.command(binaries::rig_binary()?)?;
        command.args(["pod-server", "--name", host.name()]);
        command.args(["--node", host.node_name().unwrap_or_default()]);
        command.args(serve.tcp.iter().map(|port| format!("--tcp={port}")));
        command.args(serve.udp.iter().map(|port| format!("--udp={port}")));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(fs::File::create(&log).with_context(|| log.display().to_string())?);
        let mut child = Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting the actor of {}", host.name()))?;
        let pid = child.id().context("the actor ended at once")?;
        let stdin = child.stdin.take().context("the actor has no input")?;
        let stdout = child.stdout.take().context("the actor has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let first = timeout(START_DEADLINE, lines.next_line()).await;
        if !matches!(&first, Ok(Ok(Some(line))) if line == READY) {
            let log = fs::read_to_string(&log).unwrap_or_default();
            bail!("the actor of {} did not get ready ({first:?}): {log}", host.name());
        }
        let waiting = Waiting::default();
        tokio::spawn(hand_out(lines, Arc::clone(&waiting)));
        Ok(Self {
            name: host.name().to_owned(),
            log,
            pid,
            stdin: tokio::sync::Mutex::new(stdin),
            waiting,
            next_id: AtomicU64::new(1),
            _child: child,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process' id, for looking into /proc.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// GET over a fresh connection that is closed afterwards.
    pub async fn http(&self, address: impl ToIp, port: u16) -> Result<CallResult> {
        self.http_with(SocketAddr::new(address.to_ip()?, port), Options::default()).await
    }

    pub async fn http_with(&self, to: SocketAddr, options: Options) -> Result<CallResult> {
        self.call(Call::Http { to }, options).await
    }

    /// One datagram and its answer, from a connected socket.
    pub async fn udp(&self, address: impl ToIp, port: u16) -> Result<CallResult> {
        self.udp_with(SocketAddr::new(address.to_ip()?, port), Options::default()).await
    }

    pub async fn udp_with(&self, to: SocketAddr, options: Options) -> Result<CallResult> {
        self.call(Call::Udp { to }, options).await
    }

    /// A TCP connect without any data.
    pub async fn connect(&self, address: impl ToIp, port: u16) -> Result<CallResult> {
        let to = SocketAddr::new(address.to_ip()?, port);
        self.call(Call::Connect { to }, Options::default()).await
    }

    /// Opens a flow to hold. An unconnected UDP session may send elsewhere too.
    pub async fn open(&self, proto: Proto, address: impl ToIp, port: u16) -> Result<Session<'_>> {
        self.open_with(proto, SocketAddr::new(address.to_ip()?, port), Options::default()).await
    }

    pub async fn open_with(&self, proto: Proto, to: SocketAddr, options: Options) -> Result<Session<'_>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let opened = self.call(Call::Open { session: id, proto, to }, options).await?;
        if opened.outcome != Outcome::Connected {
            bail!("{}: opening {proto:?} to {to}: {:?}", self.name, opened.outcome);
        }
        Ok(Session { actor: self, id, opened })
    }

    /// Sends any call and waits for its result. An `Err` means that the process failed, never that the network did.
    pub async fn call(&self, call: Call, options: Options) -> Result<CallResult> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let limit = options.timeout() + ANSWER_MARGIN;
        let (sender, receiver) = oneshot::channel();
        self.waiting_calls().insert(id, sender);
        let mut line = serde_json::to_vec(&Request { id, call, options })?;
        line.push(b'\n');
        let written = self.stdin.lock().await.write_all(&line).await;
        let answer = match written {
            Ok(()) => timeout(limit, receiver).await,
            Err(error) => bail!("the actor of {} takes no calls ({error}): {}", self.name, self.log_text()),
        };
        match answer {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => bail!("the actor of {} ended: {}", self.name, self.log_text()),
            Err(_) => {
                self.waiting_calls().remove(&id);
                bail!("the actor of {} did not answer within {limit:?}: {}", self.name, self.log_text())
            }
        }
    }

    fn waiting_calls(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<CallResult>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Session<'_> {
    /// Sends one request on the open flow and waits for its answer.
    pub async fn send(&self) -> Result<CallResult> {
        self.send_with(None, Options::default()).await
    }

    /// The same socket to another destination (unconnected UDP).
    pub async fn send_to(&self, address: IpAddr, port: u16) -> Result<CallResult> {
        self.send_with(Some(SocketAddr::new(address, port)), Options::default()).await
    }

    pub async fn send_with(&self, to: Option<SocketAddr>, options: Options) -> Result<CallResult> {
        self.actor.call(Call::Send { session: self.id, to }, options).await
    }

    /// Waits for a datagram or an error on a UDP flow.
    pub async fn wait(&self, options: Options) -> Result<CallResult> {
        self.actor.call(Call::Await { session: self.id }, options).await
    }

    /// Connects the flow's UDP socket anew.
    pub async fn reconnect(&self, to: SocketAddr, options: Options) -> Result<CallResult> {
        self.actor.call(Call::Reconnect { session: self.id, to }, options).await
    }

    /// Closes the flow's socket. A session that is only dropped stays open in the process.
    pub async fn close(self) -> Result<()> {
        self.actor.call(Call::Close { session: self.id }, Options::default()).await?;
        Ok(())
    }
}

/// Ends with the process; whoever still waits then learns it by the dropped sender.
async fn hand_out(mut lines: Lines<BufReader<ChildStdout>>, waiting: Waiting) {
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Response>(&line) {
            Ok(Response { id, result }) => {
                let sender = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                if let Some(sender) = sender {
                    // The caller may have given up.
                    let _ = sender.send(result);
                }
            }
            Err(error) => eprintln!("an actor wrote {line:?}: {error}"),
        }
    }
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

impl std::fmt::Debug for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Actor").field("name", &self.name).field("pid", &self.pid).finish_non_exhaustive()
    }
}
