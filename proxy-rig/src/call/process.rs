//! The resident process inside a host (`weir-rig pod-server`): serves its ports, takes calls on
//! standard input, ends when that closes.

use std::{
    io::{self, Write},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use tokio::sync::mpsc;

use super::{READY, Request, Response, client::Flows};
use crate::echo::{self, Identity};

/// Runs until the owner closes standard input.
pub async fn run(identity: Identity, tcp: &[u16], udp: &[u16]) -> Result<()> {
    let identity = Arc::new(identity);
    for port in tcp {
        echo::start_tcp(*port, &identity)?;
    }
    for port in udp {
        echo::start_udp(*port, &identity)?;
    }
    write_line(READY).context("telling the owner")?;
    take_calls(read_lines()).await
}

async fn take_calls(mut lines: mpsc::UnboundedReceiver<String>) -> Result<()> {
    let flows = Arc::new(Flows::default());
    while let Some(line) = lines.recv().await {
        let Request { id, call, options } = serde_json::from_str(&line).with_context(|| format!("call {line:?}"))?;
        let flows = Arc::clone(&flows);
        tokio::spawn(async move {
            let result = flows.execute(call, &options).await;
            if let Ok(text) = serde_json::to_string(&Response { id, result }) {
                // Nobody reads any more when the owner is gone.
                let _ = write_line(&text);
            }
        });
    }
    // The owner is gone or done; calls under way have nobody to report to.
    Ok(())
}

/// A thread of its own reads: standard input has no other way to wait without blocking the servers.
fn read_lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The owner reads all the time, so a line of a few hundred bytes does not block.
fn write_line(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
