//! Which objects were sent, so that a new listing deletes what it no longer names: at its end, not before.

use std::collections::{BTreeMap, HashSet};

use crate::model::{Change, Keyed, Skip};

/// The names of one kind's objects.
#[derive(Debug)]
pub(super) struct Listing<T: Keyed> {
    known: HashSet<T::Key>,
    /// Names seen since the present listing began; None outside of a listing.
    seen: Option<HashSet<T::Key>>,
    /// What was last reported of objects that are not used in full.
    skipped: BTreeMap<T::Key, Vec<Skip>>,
}

impl<T: Keyed> Default for Listing<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), seen: None, skipped: BTreeMap::new() }
    }
}

impl<T: Keyed> Listing<T> {
    /// A listing begins, or begins again after one that broke off.
    pub(super) fn begin(&mut self) {
        self.seen = Some(HashSet::new());
    }

    /// An object is there. `None` stands for one that is not to be programmed (any longer).
    pub(super) fn apply(&mut self, key: T::Key, value: Option<T>) -> Option<Change<T>> {
        let Some(value) = value else {
            return self.known.remove(&key).then_some(Change::Deleted(key));
        };
        if let Some(seen) = &mut self.seen {
            seen.insert(key.clone());
        }
        self.known.insert(key);
        Some(Change::Applied(value))
    }

    /// An object is there but unreadable: what was sent of it before stays valid.
    pub(super) fn keep(&mut self, key: T::Key) {
        if let Some(seen) = &mut self.seen {
            seen.insert(key);
        }
    }

    pub(super) fn delete(&mut self, key: T::Key) -> Option<Change<T>> {
        self.skipped.remove(&key);
        self.known.remove(&key).then_some(Change::Deleted(key))
    }

    /// The listing is complete: what it did not name is gone.
    pub(super) fn finish(&mut self) -> Vec<Change<T>> {
        let Some(seen) = self.seen.take() else { return Vec::new() };
        let gone: Vec<T::Key> = self.known.extract_if(|key| !seen.contains(key)).collect();
        gone.into_iter()
            .map(|key| {
                self.skipped.remove(&key);
                Change::Deleted(key)
            })
            .collect()
    }

    /// The skips of an object, or none if the same were reported last time.
    pub(super) fn new_skips(&mut self, key: T::Key, skips: Vec<Skip>) -> Vec<Skip> {
        if skips.is_empty() {
            self.skipped.remove(&key);
            return skips;
        }
        if self.skipped.get(&key) == Some(&skips) {
            return Vec::new();
        }
        self.skipped.insert(key, skips.clone());
        skips
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Node, ObjectRef, SkipReason};

    fn node(name: &str) -> Node {
        Node {
            name: name.into(),
            internal_ips: Vec::new(),
            external_ips: Vec::new(),
            zone: None,
            deleting: false,
            leaving: false,
        }
    }

    fn apply(listing: &mut Listing<Node>, name: &str) -> Option<Change<Node>> {
        listing.apply(name.into(), Some(node(name)))
    }

    fn deleted(name: &str) -> Change<Node> {
        Change::Deleted(name.into())
    }

    #[test]
    fn a_relisting_deletes_at_its_end_only() {
        let mut listing = Listing::default();
        listing.begin();
        assert_eq!(apply(&mut listing, "a"), Some(Change::Applied(node("a"))));
        apply(&mut listing, "b");
        assert_eq!(listing.finish(), []);
        apply(&mut listing, "c");
        listing.begin();
        apply(&mut listing, "a");
        // It breaks off and begins again; nothing was deleted by the first half.
        listing.begin();
        apply(&mut listing, "b");
        listing.keep("c".into());
        assert_eq!(listing.finish(), [deleted("a")]);
        assert_eq!(listing.finish(), []);
    }

    #[test]
    fn an_object_that_is_not_to_be_programmed_any_longer_is_deleted_once() {
        let mut listing = Listing::default();
        apply(&mut listing, "a");
        assert_eq!(listing.apply("a".into(), None), Some(deleted("a")));
        assert_eq!(listing.apply("a".into(), None), None);
        assert_eq!(listing.delete("a".into()), None);
        apply(&mut listing, "b");
        assert_eq!(listing.delete("b".into()), Some(deleted("b")));
    }

    #[test]
    fn the_same_skips_are_told_once() {
        let object = ObjectRef { kind: "Node", namespace: "".into(), name: "a".into() };
        let skip = Skip { object, field: "metadata".into(), got: String::new(), reason: SkipReason::InvalidIp };
        let mut listing = Listing::<Node>::default();
        let key: Arc<str> = "a".into();
        assert_eq!(listing.new_skips(key.clone(), vec![skip.clone()]).len(), 1);
        assert_eq!(listing.new_skips(key.clone(), vec![skip.clone()]).len(), 0);
        assert_eq!(listing.new_skips(key.clone(), Vec::new()).len(), 0);
        assert_eq!(listing.new_skips(key, vec![skip]).len(), 1);
    }
}
