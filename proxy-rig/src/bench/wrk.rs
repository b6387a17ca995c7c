//! Runs `wrk` inside a host and reads its summary. Called by `connect`.

use std::{net::SocketAddr, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

use crate::world::Host;

/// Whether each request gets a connection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mode {
    NewConnections,
    KeepAlive,
}

/// How hard and how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) connections: u32,
    pub(super) seconds: u32,
}

/// What one run of wrk printed.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct Run {
    pub(super) per_second: f64,
    /// Connects, reads and writes that failed, and answers that took more than two seconds.
    pub(super) socket_errors: u64,
}

/// One socket error in this many requests is borne and shown: the last connections of the run before may end in this
/// one. More of them, or an answer that is not 2xx, fail the run: a figure from a path that loses requests means nothing.
const REQUESTS_PER_ERROR: u64 = 1000;

pub(super) async fn run(from: &Host, to: SocketAddr, mode: Mode, load: Load) -> Result<Run> {
    let mut command = from.command("wrk")?;
    command.arg("-t1").arg(format!("-c{}", load.connections)).arg(format!("-d{}s", load.seconds));
    if mode == Mode::NewConnections {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{to}/")).stdin(Stdio::null());
    let output = Command::from(command).kill_on_drop(true).output().await.context("running wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "wrk from {} to {to}: {}\n{text}{}",
        from.name(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    summary(&text).with_context(|| format!("wrk from {} to {to}", from.name()))
}

fn summary(text: &str) -> Result<Run> {
    let (mut requests, mut socket_errors) = (0, 0);
    for line in text.lines().map(str::trim) {
        if line.starts_with("Non-2xx") {
            bail!("{line}");
        }
        if let Some((number, _)) = line.split_once(" requests in ") {
            requests = number.parse().with_context(|| line.to_owned())?;
        }
        if let Some(counts) = line.strip_prefix("Socket errors:") {
            let numbers = counts.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok());
            socket_errors = numbers.sum();
            ensure!(socket_errors * REQUESTS_PER_ERROR <= requests, "{line}, in {requests} requests");
        }
        if let Some(number) = line.strip_prefix("Requests/sec:") {
            let per_second: f64 = number.trim().parse().with_context(|| line.to_owned())?;
            ensure!(per_second > 0.0, "no request was answered");
            return Ok(Run { per_second, socket_errors });
        }
    }
    bail!("wrk printed no rate:\n{text}")
}

#[cfg(test)]
mod tests {
    use super::{Run, summary};

    const GOOD: &str = "Running 1s test @ http://10.0.0.1:80/\n  1 threads and 8 connections\n  12000 requests in 1.00s\n\
                        Requests/sec:  11988.01\nTransfer/sec:      1.92MB\n";

    #[test]
    fn the_rate_is_read() {
        assert_eq!(summary(GOOD).unwrap(), Run { per_second: 11988.01, socket_errors: 0 });
    }

    #[test]
    fn many_errors_are_no_figures() {
        let errors = |reads: u32| {
            let line = format!("  Socket errors: connect 1, read {reads}, write 2, timeout 0\nRequests/sec");
            summary(&GOOD.replace("Requests/sec", &line))
        };
        assert_eq!(errors(9).unwrap().socket_errors, 12);
        let text = errors(10).unwrap_err().to_string();
        assert_eq!(text, "Socket errors: connect 1, read 10, write 2, timeout 0, in 12000 requests");
        let refused = GOOD.replace("Requests/sec", "  Non-2xx or 3xx responses: 5\nRequests/sec");
        assert!(summary(&refused).is_err());
        assert!(summary("").is_err());
        assert!(summary("Requests/sec:  0.00\n").is_err());
    }
}
