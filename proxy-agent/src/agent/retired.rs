//! Looks now and then whether retired addresses still have connections. CONNTRACK is read on a thread of its own, since that
//! may take a second; the main loop starts it and takes what it found.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    dataplane::{DataplaneError, frontends_in_use},
    node,
};

/// A retired address costs one element of ADDRS, a look some milliseconds: no reason to hurry.
const INTERVAL: Duration = Duration::from_secs(30);

pub(super) struct RetiredWatch {
    pin_dir: PathBuf,
    due: Option<Instant>,
    looks: JoinSet<Look>,
}

/// What one look found.
pub(super) struct Look {
    pub(super) read_at: Instant,
    pub(super) in_use: Result<BTreeSet<IpAddr>, DataplaneError>,
}

impl RetiredWatch {
    pub(super) fn new(pin_dir: PathBuf) -> Self {
        Self { pin_dir, due: None, looks: JoinSet::new() }
    }

    /// When [`Self::look`] is to be called, if any address is retired.
    pub(super) fn due(&mut self, any: bool, now: Instant) -> Option<Instant> {
        if !any || !self.looks.is_empty() {
            self.due = None;
            return None;
        }
        Some(*self.due.get_or_insert(now + INTERVAL))
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    pub(super) fn look(&mut self, retired: BTreeSet<IpAddr>, read_at: Instant) {
        self.due = None;
        let dir = self.pin_dir.clone();
        self.looks.spawn_blocking(move || Look {
            read_at,
            in_use: frontends_in_use(&dir, &retired, node::seconds_since_boot()),
        });
    }

    /// Never, while no look is under way.
    pub(super) async fn found(&mut self) -> Look {
        loop {
            match self.looks.join_next().await {
                Some(Ok(look)) => return look,
                Some(Err(error)) => tracing::error!("looking for open connections: {error}"),
                None => std::future::pending().await,
            }
        }
    }
}
