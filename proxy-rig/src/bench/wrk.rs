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

/// Requests per second. Errors of sockets and answers that are not 2xx fail the run: a figure
/// from a path that loses requests would mean nothing.
pub(super) async fn run(from: &Host, to: SocketAddr, mode: Mode, load: Load) -> Result<f64> {
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
    rate(&text).with_context(|| format!("wrk from {} to {to}", from.name()))
}

fn rate(text: &str) -> Result<f64> {
    for line in text.lines().map(str::trim) {
        if line.starts_with("Socket errors:") || line.starts_with("Non-2xx") {
            bail!("{line}");
        }
        if let Some(number) = line.strip_prefix("Requests/sec:") {
            let number: f64 = number.trim().parse().with_context(|| line.to_owned())?;
            ensure!(number > 0.0, "no request was answered");
            return Ok(number);
        }
    }
    bail!("wrk printed no rate:\n{text}")
}

#[cfg(test)]
mod tests {
    use super::rate;

    const GOOD: &str = "Running 1s test @ http://10.0.0.1:80/\n  1 threads and 8 connections\n  12000 requests in 1.00s\n\
                        Requests/sec:  11988.01\nTransfer/sec:      1.92MB\n";

    #[test]
    fn the_rate_is_read() {
        assert_eq!(rate(GOOD).unwrap(), 11988.01);
    }

    #[test]
    fn errors_are_no_figures() {
        let errors =
            GOOD.replace("Requests/sec", "  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec");
        assert_eq!(rate(&errors).unwrap_err().to_string(), "Socket errors: connect 0, read 3, write 0, timeout 0");
        let refused = GOOD.replace("Requests/sec", "  Non-2xx or 3xx responses: 5\nRequests/sec");
        assert!(rate(&refused).is_err());
        assert!(rate("").is_err());
        assert!(rate("Requests/sec:  0.00\n").is_err());
    }
}
