//! The agent under test as a process on a node, with its log in a file.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::node::Node;

/// The kernels of other machines are emulated.
const READY_DEADLINE: Duration = Duration::from_secs(400);
const END_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
/// Lines of the log that a failure shows.
const TAIL_LINES: usize = 60;

/// Start of the message that the agent logs after its first complete sync, as it stands in a
/// log line: after the target or the level in text form, as the message field in JSON form.
const READY_TEXT: [&str; 2] = [": ready", " INFO ready"];
const READY_JSON: &str = "\"message\":\"ready";

/// A running agent. Dropping it kills the process; what it programmed stays, as after any crash.
#[derive(Debug)]
pub struct Agent {
    node: String,
    log: PathBuf,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Agent {
    pub(super) fn start(node: &Node, program: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        let mut command = node.command(program)?;
        command
            .arg("agent")
            .args(["--hostname-override", node.name()])
            .arg("--cgroup-root")
            .arg(node.cgroup_path())
            .arg("--pin-root")
            .arg(node.pin_dir())
            .args(args)
            .envs(env.iter().copied());
        Self::spawn(node, command)
    }

    /// The command is the agent, or becomes it.
    pub(crate) fn spawn(node: &Node, mut command: Command) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = node.run().dir().join(format!("{}-agent-{number}.log", node.name()));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let child = command
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("sharing the agent's log")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting the agent of {}", node.name()))?;
        Ok(Self { node: node.name().to_owned(), log, child, ended: None })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the agent says that everything is programmed.
    pub async fn wait_ready(&mut self) -> Result<()> {
        self.wait_for_line(READY_DEADLINE, is_ready_line).await.context("not ready")
    }

    /// Waits for a line of the log. An agent that ends meanwhile is an error.
    pub async fn wait_for_line(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            // The order matters: an agent that logs the line and ends has logged it.
            let ended = self.try_wait()?;
            if self.log_text().lines().any(&wanted) {
                return Ok(());
            }
            if let Some(status) = ended {
                bail!("the agent of {} ended with {status}:\n{}", self.node, self.tail());
            }
            if started.elapsed() > limit {
                bail!("the agent of {} after {limit:?}:\n{}", self.node, self.tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.try_wait()?.is_none())
    }

    /// How the process ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.try_wait()
    }

    /// SIGTERM, then waits for the end.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let started = Instant::now();
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > END_DEADLINE {
                bail!("the agent of {} ignores SIGTERM:\n{}", self.node, self.tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGKILL: a crash.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("killing the agent of {}", self.node))?;
        self.ended = Some(self.child.wait().context("waiting for a killed agent")?);
        Ok(())
    }

    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id()).context("pid")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to the agent of {}", self.node))
    }

    /// The last lines of the log.
    pub fn tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().context("looking at the agent")?;
        }
        Ok(self.ended)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of the agent of {} ----\n{}\n----", self.node, self.tail());
        }
        if self.ended.is_none() {
            // Fails only if it has ended already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Whether a log line is the agent's "ready", in text or JSON form.
pub fn is_ready_line(line: &str) -> bool {
    line.starts_with("ready") || READY_TEXT.iter().any(|text| line.contains(text)) || line.contains(READY_JSON)
}

#[cfg(test)]
mod tests {
    use super::is_ready_line;

    #[test]
    fn ready_is_known_in_both_log_forms() {
        assert!(is_ready_line("2026-01-01T00:00:00Z  INFO weir: ready"));
        assert!(is_ready_line("2026-01-01T00:00:00Z  INFO weir::agent: ready services=3"));
        assert!(is_ready_line(r#"{"level":"INFO","message":"ready"}"#));
        assert!(is_ready_line(r#"{"level":"INFO","fields":{"message":"ready"},"target":"weir"}"#));
        assert!(is_ready_line("2026-01-01T00:00:00Z  INFO ready services=3"));
        assert!(!is_ready_line("INFO weir: not ready yet"));
        assert!(!is_ready_line("INFO weir: waiting until ready"));
    }
}
