//! Which Events are written, and when: each note once, then as a series at a slow pace, and not too many of all together.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Notice, Reason};
use crate::model::ObjectRef;

/// Between two writes of the same Event; what happens meanwhile is counted.
const SERIES_PAUSE: Duration = Duration::from_secs(300);
/// An Event that did not happen again for this long is forgotten; servers keep them for an hour, too.
const MEMORY: Duration = Duration::from_secs(3600);
/// Different notes about one object for one reason.
const NOTES: usize = 4;
/// Objects and reasons that are remembered.
const SUBJECTS: usize = 500;
/// Writes that may come at once, and the time in which one more is allowed.
const BURST: u32 = 50;
const REFILL: Duration = Duration::from_secs(5);

type Subject = (ObjectRef, Reason);

/// One Event.
#[derive(Debug)]
struct Entry {
    note: String,
    seen: u32,
    seen_at: Instant,
    /// How often it had been seen when it was last written.
    written: u32,
    written_at: Option<Instant>,
}

/// An Event to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) notice: Notice,
    /// How often it was seen, by this run of the agent.
    pub(super) count: u32,
    /// It was written before, and is now a series.
    pub(super) again: bool,
}

#[derive(Debug)]
pub(super) struct Ledger {
    subjects: HashMap<Subject, Vec<Entry>>,
    tokens: u32,
    refilled: Instant,
}

impl Ledger {
    pub(super) fn new(now: Instant) -> Self {
        Self { subjects: HashMap::new(), tokens: BURST, refilled: now }
    }

    pub(super) fn see(&mut self, notice: Notice, now: Instant) {
        let subject = (notice.object, notice.reason);
        if !self.subjects.contains_key(&subject) && self.subjects.len() >= SUBJECTS {
            self.forget(now);
            if self.subjects.len() >= SUBJECTS {
                return;
            }
        }
        let entries = self.subjects.entry(subject).or_default();
        if let Some(entry) = entries.iter_mut().find(|entry| entry.note == notice.note) {
            entry.seen = entry.seen.saturating_add(1);
            entry.seen_at = now;
            return;
        }
        if entries.len() == NOTES {
            entries.retain(|entry| !entry.is_old(now));
        }
        if entries.len() < NOTES {
            entries.push(Entry { note: notice.note, seen: 1, seen_at: now, written: 0, written_at: None });
        }
    }

    /// The next Event to write, new ones first. It counts as written; [`Ledger::failed`] takes that back.
    pub(super) fn next(&mut self, now: Instant) -> Option<Write> {
        self.refill(now);
        if self.tokens == 0 {
            return None;
        }
        let entries =
            self.subjects.iter_mut().flat_map(|(subject, all)| all.iter_mut().map(move |entry| (subject, entry)));
        let (subject, entry) = entries.filter(|(_, it)| it.is_due(now)).min_by_key(|(_, it)| it.written_at)?;
        self.tokens -= 1;
        let notice = Notice { object: subject.0.clone(), reason: subject.1, note: entry.note.clone() };
        let write = Write { notice, count: entry.seen, again: entry.written_at.is_some() };
        (entry.written, entry.written_at) = (entry.seen, Some(now));
        Some(write)
    }

    /// The write is to be tried again.
    pub(super) fn failed(&mut self, write: &Write) {
        if let Some(entry) = self.entry(write) {
            entry.written = 0;
            if !write.again {
                entry.written_at = None;
            }
        }
    }

    /// An earlier run of the agent has seen it so often.
    pub(super) fn add_earlier(&mut self, write: &Write, count: u32) {
        if let Some(entry) = self.entry(write) {
            entry.seen = entry.seen.saturating_add(count);
            entry.written = entry.written.saturating_add(count);
        }
    }

    fn entry(&mut self, write: &Write) -> Option<&mut Entry> {
        let subject = (write.notice.object.clone(), write.notice.reason);
        self.subjects.get_mut(&subject)?.iter_mut().find(|entry| entry.note == write.notice.note)
    }

    fn refill(&mut self, now: Instant) {
        let periods = now.duration_since(self.refilled).as_millis() / REFILL.as_millis();
        let more = u32::try_from(periods).unwrap_or(BURST).min(BURST);
        if more > 0 {
            self.tokens = (self.tokens + more).min(BURST);
            self.refilled = now;
        }
    }

    fn forget(&mut self, now: Instant) {
        self.subjects.retain(|_, entries| {
            entries.retain(|entry| !entry.is_old(now));
            !entries.is_empty()
        });
    }
}

impl Entry {
    fn is_due(&self, now: Instant) -> bool {
        self.seen > self.written && self.written_at.is_none_or(|at| now.duration_since(at) >= SERIES_PAUSE)
    }

    fn is_old(&self, now: Instant) -> bool {
        now.duration_since(self.seen_at) >= MEMORY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn notice(name: &str, note: &str) -> Notice {
        let object = ObjectRef { kind: "Service", namespace: "default".into(), name: name.into() };
        Notice { object, reason: Reason::MapFull, note: note.to_owned() }
    }

    fn all(ledger: &mut Ledger, now: Instant) -> Vec<Write> {
        std::iter::from_fn(|| ledger.next(now)).collect()
    }

    #[test]
    fn repetitions_become_a_slow_series() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        ledger.see(notice("web", "full"), start);
        assert_eq!(all(&mut ledger, start), [Write { notice: notice("web", "full"), count: 1, again: false }]);
        for second in 1..300 {
            ledger.see(notice("web", "full"), start + second * SECOND);
            assert_eq!(ledger.next(start + second * SECOND), None);
        }
        let written = all(&mut ledger, start + SERIES_PAUSE);
        assert_eq!(written, [Write { notice: notice("web", "full"), count: 300, again: true }]);
        assert_eq!(ledger.next(start + 3 * SERIES_PAUSE), None, "nothing has happened since");
    }

    #[test]
    fn a_flood_about_one_object_or_many_is_bounded() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        for number in 0..1000 {
            ledger.see(notice("web", &number.to_string()), start);
        }
        assert_eq!(all(&mut ledger, start).len(), NOTES);
        for number in 0..1000 {
            ledger.see(notice(&number.to_string(), "full"), start);
        }
        assert_eq!(ledger.subjects.len(), SUBJECTS);
        assert_eq!(all(&mut ledger, start).len(), BURST as usize - NOTES);
        // The others have their turn later.
        assert_eq!(all(&mut ledger, start + 3 * REFILL).len(), 3);
        // And what is over makes room.
        ledger.see(notice("late", "full"), start + MEMORY);
        assert_eq!(ledger.subjects.len(), 1);
    }

    #[test]
    fn what_failed_is_tried_again() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        ledger.see(notice("web", "full"), start);
        for _ in 0..3 {
            let write = ledger.next(start).expect("due");
            assert_eq!((write.count, write.again), (1, false));
            ledger.failed(&write);
        }
    }

    #[test]
    fn the_series_of_an_earlier_run_goes_on() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        ledger.see(notice("web", "full"), start);
        let write = ledger.next(start).expect("due");
        ledger.add_earlier(&write, 7);
        assert_eq!(ledger.next(start + SERIES_PAUSE), None);
        ledger.see(notice("web", "full"), start);
        assert_eq!(ledger.next(start + SERIES_PAUSE).expect("due").count, 9);
    }
}
