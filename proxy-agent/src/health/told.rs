//! [`Health`]: what the main loop tells, and what is answered from it.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use super::{
    answer::Answer,
    board::{Board, BoardError},
    checks::Checks,
    forwarding::{Prover, Question, Report},
    state::{Facts, Moment, NodeSeen},
};
use crate::{
    agent::Role,
    events::{Events, Reason, object_of},
    loader::Pins,
    metrics::Metrics,
    model::ServiceName,
};

/// How often the active agent says that it is there, and a standby looks which ports it has to answer on.
const POST_INTERVAL: Duration = Duration::from_secs(1);

/// A clone tells and answers the same.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    facts: Mutex<Facts>,
    checks: watch::Sender<Arc<Checks>>,
    /// They are the main loop's own.
    checks_known: AtomicBool,
    role: watch::Receiver<Role>,
    pin_root: PathBuf,
    /// What others posted: opened once it is needed.
    posted: Mutex<Option<Board>>,
    events: OnceLock<Events>,
    prover: Prover,
    metrics: Metrics,
}

/// Whose word is answered with.
struct View {
    facts: Facts,
    live: bool,
}

impl Health {
    /// The main loop answers the questions.
    pub fn new(pin_root: &Path, role: watch::Receiver<Role>, metrics: Metrics) -> (Self, mpsc::Receiver<Question>) {
        let (prover, questions) = Prover::new();
        let health = Self(Arc::new(Inner {
            facts: Mutex::default(),
            checks: watch::Sender::default(),
            checks_known: AtomicBool::new(false),
            role,
            pin_root: pin_root.to_owned(),
            posted: Mutex::default(),
            events: OnceLock::new(),
            prover,
            metrics,
        }));
        (health, questions)
    }

    /// Something was heard that has to be written.
    pub fn queued(&self) {
        lock(&self.0.facts).queued(Moment::now());
    }

    /// Everything heard is written.
    pub fn updated(&self) {
        lock(&self.0.facts).updated(Moment::now());
    }

    pub fn node_is(&self, node: NodeSeen) {
        lock(&self.0.facts).node = node;
    }

    /// The Services whose healthCheckNodePort is to be answered.
    pub fn publish(&self, checks: Checks) {
        self.0.checks.send_if_modified(|known| {
            self.0.checks_known.store(true, Relaxed);
            let changed = **known != checks;
            if changed {
                *known = Arc::new(checks);
            }
            changed
        });
    }

    /// Who is told of a port that could not be bound, beside the log. Once.
    pub fn report_to(&self, events: Events) {
        let _ = self.0.events.set(events);
    }

    pub(super) fn complain(&self, service: &ServiceName, why: impl fmt::Display) {
        if let Some(events) = self.0.events.get() {
            events.warn(object_of(service), Reason::FailedToStartServiceHealthcheck, why);
        }
    }

    pub(super) fn checks(&self) -> watch::Receiver<Arc<Checks>> {
        self.0.checks.subscribe()
    }

    /// By the word of the active agent, as it is now.
    pub(super) fn local_endpoints(&self, service: &ServiceName) -> u32 {
        let known = self.0.checks.borrow().get(service).copied();
        let Some(known) = known else { return 0 };
        let own = self.0.checks_known.load(Relaxed);
        let posted = if own { None } else { self.with_board(|board| board.local_endpoints(service, known.port)) };
        posted.unwrap_or(known.local_endpoints)
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(super) fn livez(&self, now: Moment) -> Answer {
        let own = *lock(&self.0.facts);
        let view = self.view(own, now);
        // An agent that is starting is alive, whatever the one before it left undone.
        let live = if self.is_active() { own.is_live(now) } else { view.live };
        Answer::livez(&view.facts, live, now)
    }

    pub(super) fn healthz(&self, now: Moment) -> Answer {
        let view = self.view(*lock(&self.0.facts), now);
        Answer::healthz(&view.facts, view.live, now)
    }

    /// What is attached, and what it does with new flows. None from a standby: it has loaded nothing.
    pub(super) async fn forwarding(&self) -> Option<Report> {
        if !self.is_active() {
            return None;
        }
        Some(self.0.prover.report().await)
    }

    /// Brings the metrics up to date that the main loop alone can tell.
    pub(super) async fn count_tables(&self) {
        if let Some(counts) = self.0.prover.tables().await {
            self.0.metrics.set_tables(counts);
        }
    }

    /// The dataplane is up to date, as far as anybody knows.
    pub(super) fn forwards(&self, now: Moment) -> bool {
        self.view(*lock(&self.0.facts), now).live
    }

    /// The number of the other agent's socket among those that share a port. The kernel numbers them as they come, and puts the
    /// last one into a gap: of two, the active agent's is 0 and the standby's 1.
    pub(super) fn other_socket(&self) -> u32 {
        u32::from(self.is_active())
    }

    fn is_active(&self) -> bool {
        *self.0.role.borrow() == Role::Active
    }

    /// The own word counts once everything was written; until then that of the agent which did it last.
    fn view(&self, own: Facts, now: Moment) -> View {
        let own = View { live: own.is_live(now), facts: own };
        if self.is_active() && own.facts.updated_wall_ns != 0 {
            return own;
        }
        let posted = self.with_board(|board| board.facts()).flatten();
        posted.map_or(own, |posted| View { facts: posted.facts, live: posted.is_live(now) })
    }

    /// Looks again for the newest board while none is known or another may be the newer one.
    fn with_board<R>(&self, read: impl FnOnce(&Board) -> R) -> Option<R> {
        let mut posted = lock(&self.0.posted);
        if posted.is_none() {
            *posted = Board::newest(&self.0.pin_root);
        }
        posted.as_ref().map(read)
    }

    /// While others know better: their ports are answered, too.
    pub(super) async fn follow_board(self) {
        while !self.0.checks_known.load(Relaxed) {
            *lock(&self.0.posted) = None;
            if let Some(checks) = self.with_board(Board::checks) {
                self.0.checks.send_if_modified(|known| {
                    // Under the channel's lock: what the main loop publishes comes later and stays.
                    let changed = !self.0.checks_known.load(Relaxed) && **known != checks;
                    if changed {
                        *known = Arc::new(checks);
                    }
                    changed
                });
            }
            sleep(POST_INTERVAL).await;
        }
    }

    /// Posts what is answered, at once when a check changes, and at least every second.
    pub(super) async fn post(self, pins: Pins) {
        let mut checks = self.checks();
        let mut board = None;
        let mut told = false;
        loop {
            let facts = *lock(&self.0.facts);
            if facts.updated_wall_ns != 0 {
                let current = checks.borrow_and_update().clone();
                let result = Self::post_once(&pins, &mut board, &facts, &current);
                if let Err(error) = result {
                    board = None;
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "a standby agent cannot answer health checks");
                    }
                }
            }
            tokio::select! {
                _ = checks.changed() => {}
                () = sleep(POST_INTERVAL) => {}
            }
        }
    }

    fn post_once(pins: &Pins, board: &mut Option<Board>, facts: &Facts, checks: &Checks) -> Result<(), BoardError> {
        let board = match board {
            Some(board) => board,
            None => board.insert(Board::create(pins)?),
        };
        board.post_checks(checks)?;
        board.post_facts(facts, Moment::now())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
