//! From the tables of another layout, another version's or the same one's with other capacities, to those of this build, under
//! traffic. Called by the loader ([`Migration::prepare`]) and by the agent's attachment ([`Migration::begin`],
//! [`Migration::finish`]).
//!
//! 1. The new directory is marked as incomplete, and its tables are made.
//! 2. All tables are copied, while the old programs work on with the old ones.
//! 3. SWITCHES says in both directories that the tables move: from here on no program opens a flow, so that none is known to one
//!    half of the programs only. What such a packet wants to open is dropped, and its repetition finds the new tables. The
//!    switch is a moment close by, so that it goes out by itself if the agent dies.
//! 4. What changed since is copied; the pinned links go to the new directory, and their programs are replaced in place.
//! 5. What changed since is copied once more. The switch is cleared, the new directory is complete, the old one goes.
//!
//! An agent that dies at any point leaves directories of which at least one is complete. The next one, of either version, begins
//! again from that, and merges the flows of the others: of two elements the younger one counts.

mod convert;
mod copy;
mod layout;
mod meaning;
mod table;

use std::{
    collections::BTreeMap,
    fs, io,
    time::{Duration, Instant},
};

use proxy_common::abi::names;

use self::{
    copy::{FlowCopy, copy_counters, copy_table},
    meaning::{AGENT_TABLES, FLOW_TABLES},
    table::{Table, TableError},
};
use super::{LoaderError, cleanup, pin_error, pins::Pins};
use crate::{
    fault::{self, FaultPoint},
    node,
};

/// How long misses drop at most. The move takes milliseconds, or some tens with full tables.
const LONGEST_S: u32 = 3;
const ATTEMPTS: u32 = 3;
const SWITCH: &str = "migrating_until_s";

pub struct Migration {
    own: Pins,
    others: Vec<Pins>,
    flows: Vec<FlowCopy>,
    began: Option<Instant>,
    attempts: u32,
}

/// How far [`Migration::prepare`] came.
pub(super) struct Prepared {
    pub(super) migration: Migration,
    /// The tables that the agent writes are as in the other directory.
    pub(super) tables_copied: bool,
}

impl Migration {
    /// Step 2. `is_ready`: the own directory was complete before, and only flows are missing.
    pub(super) fn prepare(own: &Pins, others: Vec<Pins>, is_ready: bool) -> Result<Prepared, LoaderError> {
        let started = Instant::now();
        let source = others.iter().find(|other| !other.is_incomplete()).or(others.first());
        let tables_copied = is_ready || source.is_some_and(|source| copy_agent_tables(source, own));
        fault::reach(FaultPoint::TablesCopied);
        for other in &others {
            node::ports::take_over(other.dir(), own.dir()).map_err(pin_error("take over the ports of", other.dir()))?;
        }
        let mut flows = Vec::new();
        for (other, table) in others.iter().flat_map(|other| FLOW_TABLES.iter().map(move |table| (other, table))) {
            match FlowCopy::open(other, own, table) {
                Ok(copy) => flows.extend(copy),
                Err(error) => lost(table.name, &error),
            }
        }
        let mut migration = Self { own: own.clone(), others, flows, began: None, attempts: 0 };
        let elements = migration.copy_flows();
        tracing::info!(
            from = ?migration.others.iter().map(|other| other.dir()).collect::<Vec<_>>(),
            elements,
            ms = started.elapsed().as_millis(),
            "tables of another layout are copied"
        );
        fault::reach(FaultPoint::FlowsCopied);
        Ok(Prepared { migration, tables_copied })
    }

    /// Steps 3 and 4, up to the replacement of the programs, which the caller does at once.
    pub fn begin(&mut self) -> Result<(), LoaderError> {
        self.began = Some(Instant::now());
        self.attempts += 1;
        self.switch(node::seconds_since_boot() + LONGEST_S);
        fault::reach(FaultPoint::Migrating);
        self.copy_flows();
        for other in &self.others {
            take_links(other, &self.own).map_err(pin_error("take over the links of", other.links()))?;
        }
        fault::reach(FaultPoint::LinksTaken);
        Ok(())
    }

    /// Not all programs could be replaced: flows can be opened until the next attempt.
    pub fn pause(&self) {
        self.switch(0);
    }

    /// Where the programs could not be attached so often, the interface takes none: it does not hold up the others.
    pub fn is_overdue(&self) -> bool {
        self.attempts >= ATTEMPTS
    }

    /// Step 5, after all programs were replaced.
    pub fn finish(mut self) -> Result<(), LoaderError> {
        let changed = self.copy_flows();
        for other in &self.others {
            if let Err(error) = copy_counters(other, &self.own, names::COUNTERS) {
                tracing::warn!(%error, "counters begin anew");
            }
        }
        fault::reach(FaultPoint::CopiedAgain);
        self.switch(0);
        let dropped = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        fault::reach(FaultPoint::MigratingCleared);
        self.own.mark_complete().map_err(pin_error("mark as complete", self.own.dir()))?;
        for other in &self.others {
            other.mark_incomplete().map_err(pin_error("mark as incomplete", other.dir()))?;
        }
        fault::reach(FaultPoint::OldMarked);
        for other in &self.others {
            cleanup::remove_version(other)?;
        }
        fault::reach(FaultPoint::OldRemoved);
        tracing::info!(changed, ms = dropped.as_millis(), to = %self.own.dir().display(), "moved to the new tables");
        Ok(())
    }

    /// A table that cannot be copied costs its flows, not the upgrade.
    fn copy_flows(&mut self) -> usize {
        let mut elements = 0;
        for copy in &mut self.flows {
            match copy.run() {
                Ok(count) => elements += count,
                Err(error) => lost(copy.name(), &error),
            }
        }
        elements
    }

    /// In all directories: 0 clears it.
    fn switch(&self, until_s: u32) {
        for pins in self.others.iter().chain([&self.own]) {
            match set_switch(pins, until_s) {
                Ok(()) => {}
                Err(error) => tracing::warn!(pins = %pins.dir().display(), %error, "cannot say that the tables move"),
            }
        }
    }
}

fn copy_agent_tables(from: &Pins, to: &Pins) -> bool {
    let mut counts = BTreeMap::new();
    for name in AGENT_TABLES {
        match copy_table(from, to, name) {
            Ok(count) => counts.insert(name, count),
            Err(error) => {
                tracing::warn!(map = name, %error, "not copied; the programs are replaced when all objects are known");
                return false;
            }
        };
    }
    tracing::debug!(?counts, "tables copied");
    // Of a move that an agent died in.
    set_switch(to, 0).is_ok()
}

fn lost(map: &str, error: &TableError) {
    tracing::error!(map, %error, "not copied: flows in it are lost");
}

/// By the name of the field: the layout may be another.
fn set_switch(pins: &Pins, until_s: u32) -> Result<(), TableError> {
    let Some(switches) = Table::open(pins, names::SWITCHES)? else { return Ok(()) };
    let key = 0_u32.to_ne_bytes();
    let (Some(field), Some(mut value)) = (switches.value.field(SWITCH), switches.get(&key)?) else { return Ok(()) };
    let place = &mut value[field.offset..field.offset + field.size];
    let until = u64::from(until_s).to_le_bytes();
    place.copy_from_slice(&until[..place.len()]);
    Ok(switches.put(&key, &mut value)?)
}

/// A pin of the same name is of an earlier attempt and stays; the other one goes with its directory.
fn take_links(from: &Pins, to: &Pins) -> io::Result<()> {
    let entries = match fs::read_dir(from.links()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if let Some(target) = path.file_name().map(|name| to.links().join(name))
            && !target.exists()
        {
            fs::rename(path, target)?;
        }
    }
    Ok(())
}

impl std::fmt::Debug for Migration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Migration").field("own", &self.own).field("others", &self.others).finish_non_exhaustive()
    }
}
