//! Which interfaces and cgroup carry the programs, as the node changes. Owned by the main loop.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    dataplane::Actual,
    health::{self, Forwarding},
    loader::{Attacher, ConnectHooks, LoaderError, Migration},
    node::NodeView,
    takeover::Adoption,
};

/// How long after a failed attachment the next attempt is made.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Attachment {
    attacher: Attacher,
    connect_hooks: ConnectHooks,
    cgroup: PathBuf,
    /// Programs of an earlier agent, if any, work on tables of another layout until these are filled. Where there are none,
    /// another proxy may serve the Services, which an empty table must not take from it.
    waits_for_sync: bool,
    /// The way from the tables of another layout, until the programs are replaced.
    migration: Option<Migration>,
    /// On a node where Weir was not before: what is done just before and just after the programs come.
    adoption: Option<Adoption>,
    started: bool,
    retry_at: Option<Instant>,
    /// The last errors, so that each is logged once.
    known: Vec<String>,
}

impl Attachment {
    pub(super) fn new(attacher: Attacher, connect_hooks: ConnectHooks, cgroup: PathBuf, adoption: Adoption) -> Self {
        let is_new = !attacher.is_attached();
        Self {
            attacher,
            connect_hooks,
            cgroup,
            waits_for_sync: is_new,
            migration: None,
            adoption: is_new.then_some(adoption),
            started: false,
            retry_at: None,
            known: Vec::new(),
        }
    }

    /// What an earlier agent left has another layout; its programs are to be replaced.
    pub(super) fn with_migration(self, migration: Option<Migration>, waits_for_sync: bool) -> Self {
        match migration {
            Some(migration) => Self { migration: Some(migration), waits_for_sync, adoption: None, ..self },
            None => self,
        }
    }

    /// The tables are filled.
    pub(super) fn tables_ready(&mut self) {
        self.waits_for_sync = false;
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// These interfaces went, and their attachments with them.
    pub(super) fn forget(&mut self, gone: &[u32]) {
        gone.iter().for_each(|index| self.attacher.forget_interface(*index));
    }

    /// Attaches to what is new and forgets what is gone. Never fails as a whole. `view` must have heard of the node's
    /// interfaces: those that it does not know are taken for gone.
    pub(super) fn update(&mut self, view: &NodeView, now: Instant) {
        if self.waits_for_sync {
            return;
        }
        let began = self.migration.as_mut().map(Migration::begin);
        let name = |index: u32| view.net().link(index).map(|link| link.name.clone()).unwrap_or_default();
        let indexes = view.roles().keys().copied().chain(view.loopback().map(|link| link.index));
        let wanted: BTreeMap<u32, String> = indexes.map(|index| (index, name(index))).collect();
        let adoption = self.adoption.take();
        adopt(adoption.as_ref());
        let mut errors: Vec<LoaderError> = began.and_then(Result::err).into_iter().collect();
        errors.extend(self.attacher.sync_interfaces(&wanted));
        // Those that came meanwhile.
        adopt(adoption.as_ref());
        if !self.started {
            match self.start(&wanted) {
                Ok(()) => self.started = true,
                Err(error) => errors.push(error),
            }
        }
        if let Err(error) = self.end_migration(errors.is_empty()) {
            errors.push(error);
        }
        self.retry_at = (!errors.is_empty()).then(|| now + RETRY);
        self.log(errors);
    }

    /// Where new flows would go, and what should be attached.
    pub(super) fn ask(&self, actual: &Actual, turn: usize) -> Forwarding {
        let hooked = self.started && self.connect_hooks != ConnectHooks::Off;
        health::ask(actual, &self.attacher, hooked.then_some(&*self.cgroup), turn)
    }

    /// Once: the cgroup, and what an earlier agent left on interfaces that are not wanted.
    fn start(&mut self, wanted: &BTreeMap<u32, String>) -> Result<(), LoaderError> {
        self.attacher.remove_other_interfaces(wanted)?;
        match self.connect_hooks {
            ConnectHooks::Off => self.attacher.detach_cgroup(),
            ConnectHooks::All | ConnectHooks::Host => {
                self.attacher.attach_cgroup(&self.cgroup)?;
                tracing::info!(cgroup = %self.cgroup.display(), hooks = ?self.connect_hooks, "connect hooks attached");
                Ok(())
            }
        }
    }

    fn end_migration(&mut self, complete: bool) -> Result<(), LoaderError> {
        match self.migration.take() {
            Some(migration) if complete || migration.is_overdue() => migration.finish(),
            Some(migration) => {
                migration.pause();
                self.migration = Some(migration);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn log(&mut self, errors: Vec<LoaderError>) {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        for text in texts.iter().filter(|text| !self.known.contains(text)) {
            tracing::error!("{text}; tried again every {} s", RETRY.as_secs());
        }
        self.known = texts;
    }
}

fn adopt(adoption: Option<&Adoption>) {
    match adoption.map(Adoption::run) {
        Some(Err(error)) => tracing::warn!("connections that use our source ports already may lose answers: {error}"),
        Some(Ok(count)) if count > 0 => {
            tracing::info!(count, "connections that use our source ports already keep them")
        }
        _ => {}
    }
}
