//! Points of a start and of a sync at which the agent can be told to die, for tests of what a crash leaves behind:
//! `WEIR_FAULT_POINT=NAME` kills the process (SIGKILL, nothing is tidied up) when it comes to the point for the first time,
//! `NAME:3` for the third. Without the variable a point costs one load.

use std::{
    fmt,
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const VARIABLE: &str = "WEIR_FAULT_POINT";

macro_rules! fault_points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// In the order in which an upgrade and its first sync come to them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum FaultPoint {
            $($(#[$doc])* $point,)*
        }

        impl FaultPoint {
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

fault_points! {
    /// The lock is ours, nothing is touched yet.
    Locked = "locked",
    /// Pinned maps of another size are out of the way.
    UnfitMoved = "unfit-moved",
    MapsMade = "maps-made",
    ProgramsLoaded = "programs-loaded",
    /// The tables that the agent writes are copied from another layout.
    TablesCopied = "tables-copied",
    /// The tables that the programs write are, too.
    FlowsCopied = "flows-copied",
    PortsReserved = "ports-reserved",
    /// Ids are restored.
    MapsRead = "maps-read",
    InterfaceWritten = "interface-written",
    /// Misses drop from here on.
    Migrating = "migrating",
    /// The pinned links lie in the directory of the new layout, with the programs of the old one.
    LinksTaken = "links-taken",
    /// On an interface, before the other direction's.
    IngressAttached = "ingress-attached",
    EgressAttached = "egress-attached",
    OthersDetached = "others-detached",
    CgroupAttached = "cgroup-attached",
    /// What changed since is copied.
    CopiedAgain = "copied-again",
    MigratingCleared = "migrating-cleared",
    /// The old directory is marked as the one that counts no longer.
    OldMarked = "old-marked",
    OldRemoved = "old-removed",
    BackendWritten = "backend-written",
    RingWritten = "ring-written",
    SetWritten = "set-written",
    NameWritten = "name-written",
    SourceRangeWritten = "source-range-written",
    ServiceWritten = "service-written",
    AddressWritten = "address-written",
    AddressDeleted = "address-deleted",
    ServiceDeleted = "service-deleted",
    SourceRangeDeleted = "source-range-deleted",
    NameDeleted = "name-deleted",
    InterfaceDeleted = "interface-deleted",
    SwitchesWritten = "switches-written",
    /// Every source has listed; what is in nobody's list has not gone yet.
    SourcesSynced = "sources-synced",
    Pruned = "pruned",
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE}: there is no fault point {0:?}")]
pub struct UnknownPoint(String);

struct Wanted {
    point: FaultPoint,
    /// How often it is still passed.
    passes: AtomicU32,
}

static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();

/// Once, at start. A name that does not exist is an error: a test that waits for it would show nothing.
pub fn from_environment() -> Result<(), UnknownPoint> {
    let wanted = match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => Some(text.parse::<Wanted>()?),
        _ => None,
    };
    if let Some(Wanted { point, .. }) = &wanted {
        tracing::warn!(%point, "{VARIABLE} is set: the agent is going to die there");
    }
    // A second start in one process (tests) keeps the first.
    let _ = WANTED.set(wanted);
    Ok(())
}

/// Dies here, if that was asked for.
pub fn reach(point: FaultPoint) {
    let Some(Some(wanted)) = WANTED.get() else { return };
    if wanted.point != point || wanted.passes.fetch_sub(1, Ordering::Relaxed) != 1 {
        return;
    }
    tracing::warn!(%point, "fault point reached");
    // Cannot fail for the own process, and does not return.
    let _ = kill(Pid::this(), Signal::SIGKILL);
}

impl fmt::Display for FaultPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Wanted {
    type Err = UnknownPoint;

    fn from_str(text: &str) -> Result<Self, UnknownPoint> {
        let unknown = || UnknownPoint(text.to_owned());
        let (name, passes) = text.split_once(':').unwrap_or((text, "1"));
        let point = FaultPoint::ALL.iter().find(|point| point.name() == name).ok_or_else(unknown)?;
        let passes = passes.parse().ok().filter(|passes| *passes > 0).ok_or_else(unknown)?;
        Ok(Self { point: *point, passes: AtomicU32::new(passes) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_read_back() {
        let names: BTreeSet<_> = FaultPoint::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), FaultPoint::ALL.len());
        let wanted: Wanted = "set-written:3".parse().unwrap();
        assert_eq!((wanted.point, wanted.passes.into_inner()), (FaultPoint::SetWritten, 3));
        for wrong in ["set", "set-written:0", "set-written:x"] {
            assert!(wrong.parse::<Wanted>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_happens_unless_asked_for() {
        FaultPoint::ALL.iter().for_each(|point| reach(*point));
    }
}
