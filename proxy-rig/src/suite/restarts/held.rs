//! Flows that are held open while agents come and go: each asks all the time, and notes how long it waited for an answer.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::ways::Way;
use crate::{
    call::{Options, Outcome, Proto},
    demo::stage::Stage,
    world::Session,
};

/// Between an answer and the next question.
const PAUSE: Duration = Duration::from_millis(20);
/// A connection that hears nothing for this long is lost. TCP repeats several times meanwhile.
const TCP_LIMIT: Duration = Duration::from_secs(8);
/// A datagram may get lost; its flow is lost when none gets through for this long.
const UDP_LIMIT: Duration = Duration::from_secs(2);
const UDP_WAIT: Duration = Duration::from_millis(100);

pub(super) struct Held<'a> {
    way: &'a Way,
    session: Session<'a>,
    /// Who answers; nobody else may.
    pod: String,
    state: Mutex<State>,
}

struct State {
    last: Instant,
    gap: Duration,
    answers: usize,
    lost: Option<String>,
}

/// What was seen of one flow since the last report.
pub(super) struct Report {
    pub(super) gap: Duration,
    pub(super) answers: usize,
    pub(super) lost: Option<String>,
}

impl<'a> Held<'a> {
    /// The flow is confirmed: the second question is the client's answer to the backend.
    pub(super) async fn open(stage: &'a Stage, way: &'a Way) -> Result<Self> {
        let to: SocketAddr = way.to.parse().with_context(|| way.to.to_owned())?;
        let options = Options { connected: way.connected, ..Options::default() };
        let session = stage.actor(way.from)?.open_with(way.proto, to, options).await?;
        let mut pod = String::new();
        for _ in 0..2 {
            let result = session.send().await?;
            pod.clone_from(&result.answered().with_context(|| way.to_string())?.pod);
        }
        let state = State { last: Instant::now(), gap: Duration::ZERO, answers: 0, lost: None };
        Ok(Self { way, session, pod, state: Mutex::new(state) })
    }

    /// Asks until it is told to stop or is lost.
    pub(super) async fn run(&self, stop: &AtomicBool) -> Result<()> {
        self.lock().last = Instant::now();
        while !stop.load(Ordering::Relaxed) && self.lock().lost.is_none() {
            self.ask().await?;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn ask(&self) -> Result<()> {
        let udp = self.way.proto == Proto::Udp;
        let limit = if udp { UDP_WAIT } else { TCP_LIMIT };
        let options = Options { timeout_ms: limit.as_millis() as u64, ..Options::default() };
        let result = self.session.send_with(None, options).await?;
        let mut state = self.lock();
        let silent = state.last.elapsed();
        match result.outcome {
            Outcome::Answered(reply) if reply.pod == self.pod => {
                state.gap = state.gap.max(silent);
                state.answers += 1;
                state.last = Instant::now();
            }
            Outcome::TimedOut if udp && silent < UDP_LIMIT => {}
            other => state.lost = Some(format!("{}: {other:?} after {silent:?}, was {}", self.way, self.pod)),
        }
        Ok(())
    }

    /// Once, for a flow that was silent all the time.
    pub(super) async fn still_works(&self) -> Result<()> {
        let result = self.session.send_with(None, Options { timeout_ms: 8000, ..Options::default() }).await?;
        match result.pod() {
            Some(pod) if pod == self.pod => Ok(()),
            other => bail!("the silent flow {}: {:?} ({other:?}), was {}", self.way, result.outcome, self.pod),
        }
    }

    pub(super) fn report(&self) -> Report {
        let mut state = self.lock();
        let report = Report { gap: state.gap, answers: state.answers, lost: state.lost.clone() };
        (state.gap, state.answers) = (Duration::ZERO, 0);
        report
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
