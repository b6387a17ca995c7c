//! Now and then corrects the loads of backends whose connections are counted (algorithm lc). The tables are read on a thread of its own; the
//! main loop starts that and takes what it remembers.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    dataplane::{Counted, DataplaneError, Written, correct_loads},
    node,
};

/// So long a load may be wrong by connections that ended unheard.
const INTERVAL: Duration = Duration::from_secs(3);

pub(super) struct LoadWatch {
    pin_dir: PathBuf,
    due: Option<Instant>,
    written: Written,
    corrections: JoinSet<Result<Written, DataplaneError>>,
}

impl LoadWatch {
    pub(super) fn new(pin_dir: PathBuf) -> Self {
        Self { pin_dir, due: None, written: Written::default(), corrections: JoinSet::new() }
    }

    /// When [`Self::correct`] is to be called, if anything is or was counted.
    pub(super) fn due(&mut self, any: bool, now: Instant) -> Option<Instant> {
        if !any && self.written.is_empty() || !self.corrections.is_empty() {
            self.due = None;
            return None;
        }
        Some(*self.due.get_or_insert(now + INTERVAL))
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    pub(super) fn correct(&mut self, counted: Counted) {
        self.due = None;
        let (dir, before) = (self.pin_dir.clone(), self.written.clone());
        self.corrections.spawn_blocking(move || correct_loads(&dir, &counted, &before, node::seconds_since_boot()));
    }

    /// Waits for a correction to end; never returns while none is under way.
    pub(super) async fn corrected(&mut self) {
        match self.corrections.join_next().await {
            Some(Ok(Ok(written))) => self.written = written,
            Some(Ok(Err(error))) => tracing::error!("correcting the loads of backends: {error}"),
            Some(Err(error)) => tracing::error!("correcting the loads of backends: {error}"),
            None => std::future::pending().await,
        }
    }
}
