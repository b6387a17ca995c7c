//! Ranges of RINGS. A range belongs to the set that points at it; the one that it replaces rests for a while,
//! because a packet may still be reading it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Instant,
};

use proxy_common::abi::EndpointSet;

use super::ids::GRACE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u32,
    pub(super) len: u32,
}

#[derive(Clone, Debug)]
pub(super) struct RingAllocator {
    /// Free ranges by start (for merging neighbours) and by size (for the best fit).
    by_start: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
    /// Oldest first.
    resting: VecDeque<(Instant, Range)>,
    /// The range that each set points at.
    held: HashMap<u32, Range>,
}

impl RingAllocator {
    /// An allocator for an array of `len` elements in which sets point at ranges already.
    pub(super) fn restore(len: usize, held: HashMap<u32, Range>) -> Self {
        let mut allocator = Self { by_start: BTreeMap::new(), by_len: BTreeSet::new(), resting: VecDeque::new(), held };
        let mut used: Vec<Range> = allocator.held.values().copied().collect();
        used.sort_unstable_by_key(|range| range.start);
        let mut free_from = 0;
        for range in used {
            if range.start > free_from {
                allocator.insert(Range { start: free_from, len: range.start - free_from });
            }
            free_from = free_from.max(range.start.saturating_add(range.len));
        }
        let end = u32::try_from(len).unwrap_or(u32::MAX);
        if end > free_from {
            allocator.insert(Range { start: free_from, len: end - free_from });
        }
        allocator
    }

    pub(super) fn take(&mut self, len: u32, now: Instant) -> Option<Range> {
        while let Some((ready, range)) = self.resting.front().copied()
            && ready <= now
        {
            self.resting.pop_front();
            self.insert(range);
        }
        let (found, start) = self.by_len.range((len, 0)..).next().copied()?;
        self.remove(Range { start, len: found });
        if found > len {
            self.insert(Range { start: start + len, len: found - len });
        }
        Some(Range { start, len })
    }

    /// `set` points at `range` now, or at nothing; what it pointed at before comes to rest.
    pub(super) fn publish(&mut self, set: u32, range: Option<Range>, now: Instant) {
        let before = match range {
            Some(range) => self.held.insert(set, range),
            None => self.held.remove(&set),
        };
        if let Some(before) = before
            && Some(before) != range
        {
            self.resting.push_back((now + GRACE, before));
        }
    }

    /// Whether the range that the set's word names is known to be its own.
    pub(super) fn is_held(&self, set: u32, word: EndpointSet) -> bool {
        self.held.get(&set) == Some(&Range { start: word.start, len: word.len })
    }

    /// Frees a range that was taken, unless `set` has come to point at it.
    pub(super) fn settle(&mut self, set: u32, range: Range) {
        if self.held.get(&set) != Some(&range) {
            self.insert(range);
        }
    }

    fn insert(&mut self, range: Range) {
        let mut merged = range;
        if let Some((start, len)) = self.by_start.range(..range.start).next_back().map(|(start, len)| (*start, *len))
            && start + len == range.start
        {
            self.remove(Range { start, len });
            merged = Range { start, len: len + merged.len };
        }
        if let Some(len) = self.by_start.get(&(range.start + range.len)).copied() {
            self.remove(Range { start: range.start + range.len, len });
            merged.len += len;
        }
        self.by_start.insert(merged.start, merged.len);
        self.by_len.insert((merged.len, merged.start));
    }

    fn remove(&mut self, range: Range) {
        self.by_start.remove(&range.start);
        self.by_len.remove(&(range.len, range.start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u32, len: u32) -> Range {
        Range { start, len }
    }

    #[test]
    fn best_fit_rest_and_merge() {
        let now = Instant::now();
        let mut rings = RingAllocator::restore(20, HashMap::from([(1, range(2, 3)), (2, range(8, 4))]));
        assert_eq!(rings.take(2, now), Some(range(0, 2)), "the smallest that fits");
        rings.publish(1, Some(range(0, 2)), now);
        assert_eq!(rings.take(8, now), Some(range(12, 8)));
        assert_eq!(rings.take(4, now), None, "2..5 rests");
        assert_eq!(rings.take(6, now + GRACE), Some(range(2, 6)), "2..5 and 5..8 are one again");
        rings.settle(3, range(2, 6));
        rings.publish(2, None, now + GRACE);
        assert_eq!(rings.take(10, now + GRACE), None);
        assert_eq!(rings.take(10, now + 2 * GRACE), Some(range(2, 10)));
    }
}
