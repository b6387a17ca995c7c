//! What a test can make go wrong, and the count of watches that it can go wrong for.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use axum::http::StatusCode;
use tokio::sync::broadcast;

/// Disturbances that a watch has not read yet; it reads at once.
const QUEUE: usize = 16;

/// How a server says that a resourceVersion is too old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneAs {
    /// Status 200 and an ERROR event: what a watch usually meets.
    Event,
    /// HTTP status 410.
    HttpStatus,
}

/// What happens to the open watches, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disturbance {
    /// The stream ends in good order.
    Close,
    /// Nothing more is sent, and the connection stays open.
    HalfOpen,
    /// The connection breaks in the middle of a line.
    Truncate,
    /// A line that is not JSON, then events go on.
    Garbage,
}

pub struct Faults {
    state: Mutex<State>,
    disturbances: broadcast::Sender<Disturbance>,
    open: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    failures: Option<(StatusCode, usize)>,
    gone: Option<GoneAs>,
}

/// One open watch: hears of disturbances, and is counted as long as it lives.
pub(super) struct Listener {
    pub(super) disturbances: broadcast::Receiver<Disturbance>,
    open: Arc<AtomicUsize>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { state: Mutex::default(), disturbances: broadcast::Sender::new(QUEUE), open: Arc::default() }
    }
}

impl Faults {
    /// The next `count` requests for objects are answered with this status. 0 takes it back.
    pub fn fail_next(&self, status: u16, count: usize) {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.lock().failures = (count > 0).then_some((status, count));
    }

    /// The next watch is told that its resourceVersion is too old.
    pub fn gone_next_watch(&self, form: GoneAs) {
        self.lock().gone = Some(form);
    }

    /// Ends all open watches in good order.
    pub fn close_watches(&self) {
        self.disturb(Disturbance::Close);
    }

    /// The open watches fall silent without being closed.
    pub fn half_open(&self) {
        self.disturb(Disturbance::HalfOpen);
    }

    /// The open watches break off in the middle of an event.
    pub fn truncate_chunk(&self) {
        self.disturb(Disturbance::Truncate);
    }

    /// The open watches carry one line that is not JSON.
    pub fn garbage(&self) {
        self.disturb(Disturbance::Garbage);
    }

    pub(super) fn open_watches(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub(super) fn listen(&self) -> Listener {
        self.open.fetch_add(1, Ordering::SeqCst);
        Listener { disturbances: self.disturbances.subscribe(), open: Arc::clone(&self.open) }
    }

    pub(super) fn take_failure(&self) -> Option<StatusCode> {
        let mut state = self.lock();
        let (status, left) = state.failures?;
        state.failures = (left > 1).then_some((status, left - 1));
        Some(status)
    }

    pub(super) fn take_gone(&self) -> Option<GoneAs> {
        self.lock().gone.take()
    }

    fn disturb(&self, disturbance: Disturbance) {
        // An error means that no watch is open.
        let _ = self.disturbances.send(disturbance);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}
