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

/// What is wrong with the text of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListBreak {
    /// Not JSON at all.
    Garbage,
    /// The connection breaks in the middle.
    Truncated,
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
    /// The last two events once more, the later one first.
    Replay,
}

pub struct Faults {
    state: Mutex<State>,
    disturbances: broadcast::Sender<Disturbance>,
    open: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    failures: Option<Failures>,
    gone: Option<GoneAs>,
    lists: Option<(ListBreak, usize)>,
    /// The plural of the kind whose next event is spoilt.
    garbled: Option<&'static str>,
}

#[derive(Clone, Copy)]
struct Failures {
    failure: Failure,
    left: usize,
}

/// How a request is refused.
#[derive(Clone, Copy)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    /// In seconds.
    pub(super) retry_after: Option<u64>,
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
        self.fail(status, None, count);
    }

    /// The same with a header Retry-After.
    pub fn fail_next_with_pause(&self, status: u16, retry_after_s: u64, count: usize) {
        self.fail(status, Some(retry_after_s), count);
    }

    /// How many of the requests that are to fail have not come yet.
    pub fn failures_left(&self) -> usize {
        self.lock().failures.map_or(0, |failures| failures.left)
    }

    /// The next `count` lists are broken.
    pub fn break_lists(&self, form: ListBreak, count: usize) {
        self.lock().lists = (count > 0).then_some((form, count));
    }

    /// The next event about this kind ("services") comes as a line that is not JSON, and never again.
    pub fn garble_event(&self, plural: &'static str) {
        self.lock().garbled = Some(plural);
    }

    /// The open watches send their last two events again, in the wrong order.
    pub fn replay(&self) {
        self.disturb(Disturbance::Replay);
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

    pub(super) fn take_failure(&self) -> Option<Failure> {
        let mut state = self.lock();
        let Failures { failure, left } = state.failures?;
        state.failures = (left > 1).then_some(Failures { failure, left: left - 1 });
        Some(failure)
    }

    pub(super) fn take_list_break(&self) -> Option<ListBreak> {
        let mut state = self.lock();
        let (form, left) = state.lists?;
        state.lists = (left > 1).then_some((form, left - 1));
        Some(form)
    }

    pub(super) fn take_garbled(&self, plural: &str) -> bool {
        self.lock().garbled.take_if(|garbled| *garbled == plural).is_some()
    }

    fn fail(&self, status: u16, retry_after: Option<u64>, count: usize) {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let failure = Failure { status, retry_after };
        self.lock().failures = (count > 0).then_some(Failures { failure, left: count });
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
