//! Of several agents on one node (a rolling update starts the next before it ends the last), one is active and writes; the
//! others wait as standby. A lock on the pin root decides, which the kernel gives back however its holder ends, and hands to a
//! waiting agent at once.
//!
//! The main loop waits in [`acquire`]; whoever wants to know the role (health endpoints) subscribes to it before.

use std::path::Path;

use anyhow::Context as _;
use tokio::sync::{oneshot, watch};

use crate::loader::WriterLock;

/// What this agent is to the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Another agent writes, or it is not known yet whether there is one. Nothing but the pins may be read.
    #[default]
    Standby,
    /// This agent is the one that writes. It stays so until it ends.
    Active,
}

/// Waits until this agent is the one that writes. Can be dropped at any time.
pub(super) async fn acquire(pin_root: &Path, role: &watch::Sender<Role>) -> anyhow::Result<WriterLock> {
    let failed = || format!("lock {}", pin_root.display());
    let lock = match WriterLock::try_acquire(pin_root).with_context(failed)? {
        Some(lock) => lock,
        None => {
            tracing::info!(pins = %pin_root.display(), "another agent is running here; waiting as standby");
            let lock = wait(pin_root).await.with_context(failed)?;
            tracing::info!(pins = %pin_root.display(), "the other agent has ended; taking over");
            lock
        }
    };
    role.send_replace(Role::Active);
    Ok(lock)
}

/// On a thread of its own, for the call blocks. It is left alone if nobody waits any more: it ends with the process, or gives
/// the lock back at once.
async fn wait(pin_root: &Path) -> anyhow::Result<WriterLock> {
    let (sender, receiver) = oneshot::channel();
    let pin_root = pin_root.to_owned();
    std::thread::Builder::new().name("standby".into()).spawn(move || {
        let _ = sender.send(WriterLock::wait(&pin_root));
    })?;
    Ok(receiver.await.context("the thread that waits for the lock has ended")??)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_standby_takes_over_at_once() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (watch::Sender::new(Role::default()), watch::Sender::new(Role::default()));
        let held = acquire(root.path(), &first).await.unwrap();
        assert_eq!(*first.borrow(), Role::Active);
        let mut seen = second.subscribe();
        let path = root.path().to_owned();
        let waiting = tokio::spawn(async move { acquire(&path, &second).await });
        assert!(tokio::time::timeout(Duration::from_millis(200), seen.changed()).await.is_err());
        assert_eq!(*seen.borrow(), Role::Standby);
        drop(held);
        tokio::time::timeout(Duration::from_secs(1), seen.changed()).await.unwrap().unwrap();
        assert_eq!(*seen.borrow(), Role::Active);
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_keeps_no_lock() {
        let root = tempfile::tempdir().unwrap();
        let role = watch::Sender::new(Role::default());
        let held = acquire(root.path(), &role).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(100), acquire(root.path(), &role)).await.is_err());
        drop(held);
        tokio::time::timeout(Duration::from_secs(5), acquire(root.path(), &role)).await.unwrap().unwrap();
    }
}
