//! When an update counts as late, and what is known of the node. Pure: the moment is passed in.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An update that waits for longer is late.
pub const UPDATE_LIMIT: Duration = Duration::from_secs(60);

/// Now, by the clock that two processes share and that never jumps, and by the one that people read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Nanoseconds since boot, suspension included.
    pub boot_ns: u64,
    /// Nanoseconds since 1970.
    pub wall_ns: u64,
}

impl Moment {
    pub fn now() -> Self {
        let boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self { boot_ns: boot.map_or(0, ns), wall_ns: wall.map_or(0, ns) }
    }

    pub(super) fn is_later_than(self, boot_ns: u64, limit: Duration) -> bool {
        u128::from(self.boot_ns.saturating_sub(boot_ns)) >= limit.as_nanos()
    }
}

/// What the own Node object says.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeSeen {
    #[default]
    Never = 0,
    /// It is being deleted, or the cluster autoscaler is about to.
    Leaving = 1,
    Eligible = 2,
}

/// What the answers are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// When everything heard was last in the maps, as [`Moment::wall_ns`]; 0 = never yet.
    pub updated_wall_ns: u64,
    /// Since when the oldest update waits, as [`Moment::boot_ns`]; 0 = none waits.
    pub waits_since_ns: u64,
    pub node: NodeSeen,
}

impl Facts {
    /// Something was heard that has to be written.
    pub fn queued(&mut self, now: Moment) {
        if self.waits_since_ns == 0 {
            self.waits_since_ns = now.boot_ns;
        }
    }

    /// Everything heard is written.
    pub fn updated(&mut self, now: Moment) {
        self.waits_since_ns = 0;
        self.updated_wall_ns = now.wall_ns;
    }

    /// No update waits for too long. True while the agent starts: what another left in the maps works.
    pub fn is_live(&self, now: Moment) -> bool {
        self.updated_wall_ns == 0 || self.waits_since_ns == 0 || !now.is_later_than(self.waits_since_ns, UPDATE_LIMIT)
    }

    pub fn is_eligible(&self) -> bool {
        self.node == NodeSeen::Eligible
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment { boot_ns: seconds * 1_000_000_000, wall_ns: (1_700_000_000 + seconds) * 1_000_000_000 }
    }

    #[test]
    fn an_update_is_late_after_a_minute() {
        let mut facts = Facts::default();
        facts.queued(at(1));
        assert!(facts.is_live(at(1000)), "while it starts");
        facts.updated(at(1000));
        assert!(facts.is_live(at(9000)), "nothing to do for long");
        facts.queued(at(9000));
        facts.queued(at(9059));
        assert!(facts.is_live(at(9059)));
        assert!(!facts.is_live(at(9060)), "the first one counts");
        facts.updated(at(9061));
        assert!(facts.is_live(at(9061)));
        assert_eq!(facts.updated_wall_ns, at(9061).wall_ns);
    }

    #[test]
    fn a_node_that_nobody_saw_is_not_eligible() {
        let facts = |node| Facts { node, ..Facts::default() };
        assert!(!facts(NodeSeen::Never).is_eligible());
        assert!(!facts(NodeSeen::Leaving).is_eligible());
        assert!(facts(NodeSeen::Eligible).is_eligible());
    }
}
