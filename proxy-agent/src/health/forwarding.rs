//! `/healthz?verbose`: asks the main loop, compares what is attached, and remembers the result for a second.

use std::time::Duration;

use serde::Serialize;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use super::probe::{Forwarding, Probe};
use crate::metrics::TableCounts;

/// A result is given again for this long.
const KEEP: Duration = Duration::from_secs(1);
/// A main loop that is busy for longer is a problem.
const PATIENCE: Duration = Duration::from_secs(5);
/// An interface may come or go while it is looked at: what is wrong must be so twice.
const SECOND_LOOK: Duration = Duration::from_millis(100);

/// A question to the main loop.
#[derive(Debug)]
pub enum Question {
    Forwarding { turn: usize, answer: oneshot::Sender<Forwarding> },
    Tables(oneshot::Sender<TableCounts>),
}

/// What `/healthz?verbose` says in addition.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) healthy: bool,
    /// Programs that are attached where they should be.
    programs: usize,
    probes: Vec<Probe>,
    /// Each in a sentence.
    pub(super) problems: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Prover {
    questions: mpsc::Sender<Question>,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    at: Option<Instant>,
    report: Report,
    turn: usize,
}

impl Prover {
    pub(super) fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, receiver) = mpsc::channel(8);
        (Self { questions, last: Mutex::default() }, receiver)
    }

    pub(super) async fn report(&self) -> Report {
        let mut last = self.last.lock().await;
        if last.at.is_some_and(|at| at.elapsed() < KEEP) {
            return last.report.clone();
        }
        last.turn = last.turn.wrapping_add(1);
        let mut report = self.look(last.turn).await;
        if !report.healthy {
            sleep(SECOND_LOOK).await;
            report = self.look(last.turn).await;
        }
        last.report = report;
        last.at = Some(Instant::now());
        last.report.clone()
    }

    /// None if the main loop is busy: an older count will do.
    pub(super) async fn tables(&self) -> Option<TableCounts> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.questions.send(Question::Tables(answer)).await.ok()?;
            answered.await.ok()
        };
        timeout(KEEP, asked).await.ok().flatten()
    }

    async fn look(&self, turn: usize) -> Report {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.questions.send(Question::Forwarding { turn, answer }).await.ok()?;
            answered.await.ok()
        };
        let Ok(Some(Forwarding { expected, probes })) = timeout(PATIENCE, asked).await else {
            return Report { problems: vec!["the main loop does not answer".to_owned()], ..Report::default() };
        };
        let mut report = Report { probes, ..Report::default() };
        match expected {
            Ok(expected) => {
                let found = expected.verify().await;
                report.programs = found.right;
                report.problems = found.problems;
            }
            Err(error) => report.problems.push(error),
        }
        if report.programs == 0 && report.problems.is_empty() {
            report.problems.push("no program is attached to anything yet".to_owned());
        }
        report.problems.extend(report.probes.iter().filter_map(Probe::in_words));
        report.healthy = report.problems.is_empty();
        report
    }
}
