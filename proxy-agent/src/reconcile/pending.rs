//! What failed and when to try it again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{dataplane::DataplaneError, model::ServiceName};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// Whose work failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// Node addresses, interfaces, Service CIDRs.
    Node,
    Service(ServiceName),
}

/// The first write that failed in the last attempt, which is repeated at `retry_at`.
#[derive(Clone, Debug)]
pub struct Failure {
    pub error: Arc<DataplaneError>,
    /// Attempts in a row that failed.
    pub attempts: u32,
    pub retry_at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Pending {
    failures: BTreeMap<Subject, Failure>,
    due: BTreeSet<(Instant, Subject)>,
}

impl Pending {
    pub(super) fn failed(&mut self, subject: &Subject, error: DataplaneError, now: Instant) {
        let attempts = self.remove(subject).map_or(1, |before| before.attempts.saturating_add(1));
        let delay = FIRST_DELAY.saturating_mul(1 << (attempts - 1).min(16)).min(LONGEST_DELAY);
        let failure = Failure { error: Arc::new(error), attempts, retry_at: now + delay };
        self.due.insert((failure.retry_at, subject.clone()));
        self.failures.insert(subject.clone(), failure);
    }

    pub(super) fn succeeded(&mut self, subject: &Subject) {
        self.remove(subject);
    }

    fn remove(&mut self, subject: &Subject) -> Option<Failure> {
        let before = self.failures.remove(subject)?;
        self.due.remove(&(before.retry_at, subject.clone()));
        Some(before)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(super) fn due(&self, now: Instant) -> Vec<Subject> {
        self.due.iter().take_while(|(at, _)| *at <= now).map(|(_, subject)| subject.clone()).collect()
    }

    pub(super) fn failures(&self) -> &BTreeMap<Subject, Failure> {
        &self.failures
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Node => f.write_str("node"),
            Subject::Service(name) => write!(f, "Service {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_end() {
        let now = Instant::now();
        let mut pending = Pending::default();
        let error = || DataplaneError::Missing { map: "SETS" };
        for expected in [100, 200, 400] {
            pending.failed(&Subject::Node, error(), now);
            assert_eq!(pending.next(), Some(now + Duration::from_millis(expected)));
        }
        (0..50).for_each(|_| pending.failed(&Subject::Node, error(), now));
        assert_eq!(pending.next(), Some(now + LONGEST_DELAY));
        assert!(pending.due(now).is_empty());
        assert_eq!(pending.due(now + LONGEST_DELAY), [Subject::Node]);
        pending.succeeded(&Subject::Node);
        assert_eq!(pending.next(), None);
    }
}
