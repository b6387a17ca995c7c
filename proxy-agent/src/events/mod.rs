//! Kubernetes Events: what `kubectl describe service` shows of that which this node leaves out, and why.
//!
//! The main loop and its parts call [`Events`], which never waits and never fails. A task of its own ([`recorder`])
//! writes to the API server, as often as [`ledger`] allows. With a directory of manifests nothing is sent.

mod ledger;
mod recorder;

use std::{collections::BTreeMap, fmt};

use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    desired::Warning,
    model::{ObjectRef, ServiceName, Skip, SkipReason},
    reconcile::Conflict,
    sources::kubernetes::KubernetesConfig,
};

/// Notices that wait for the recorder; what does not fit is only in the log.
const QUEUE: usize = 256;
/// Bytes of a note. A server admits 1024.
const NOTE_LEN: usize = 512;
/// Parts of one object that a note names before the rest is only counted.
const PARTS: usize = 3;

/// Why an Event is sent; its name in the API, which never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The object, or a part of it, makes no sense and is left out.
    InvalidObject,
    /// Another Service has the frontend, or it would capture what is not the Service's.
    FrontendConflict,
    /// The configuration does not allow the frontend.
    FrontendNotAllowed,
    /// `weir.dev/algorithm` has no such value.
    UnknownAlgorithm,
    /// The healthCheckNodePort cannot be bound. kube-proxy's name.
    FailedToStartServiceHealthcheck,
    /// A map has no room for the Service.
    MapFull,
}

/// What is to be told about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Notice {
    object: ObjectRef,
    reason: Reason,
    note: String,
}

/// Takes notices. Clones send to the same recorder.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// None: nobody is told.
    recorder: Option<mpsc::Sender<Notice>>,
}

impl Reason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::InvalidObject => "InvalidObject",
            Reason::FrontendConflict => "FrontendConflict",
            Reason::FrontendNotAllowed => "FrontendNotAllowed",
            Reason::UnknownAlgorithm => "UnknownAlgorithm",
            Reason::FailedToStartServiceHealthcheck => "FailedToStartServiceHealthcheck",
            Reason::MapFull => "MapFull",
        }
    }

    fn of_skip(skip: &Skip) -> Self {
        match skip.reason {
            SkipReason::InvalidAlgorithm => Reason::UnknownAlgorithm,
            _ => Reason::InvalidObject,
        }
    }

    fn of(warning: &Warning) -> Self {
        match warning {
            Warning::ExternalNotAllowed(_) | Warning::ForbiddenAddress(_) => Reason::FrontendNotAllowed,
        }
    }
}

impl Events {
    /// For sources without an API server.
    #[must_use]
    pub fn off() -> Self {
        Self::default()
    }

    /// Starts the recorder, which ends with the set of tasks.
    #[must_use]
    pub fn start(config: &KubernetesConfig, node_name: &str, tasks: &mut JoinSet<()>) -> Self {
        let (sender, notices) = mpsc::channel(QUEUE);
        tasks.spawn(recorder::record(config.clone(), node_name.to_owned(), notices));
        Self { recorder: Some(sender) }
    }

    /// An Event of type Warning. Repeated ones become a series of one Event.
    pub fn warn(&self, object: ObjectRef, reason: Reason, note: impl fmt::Display) {
        let Some(recorder) = &self.recorder else { return };
        let mut note = note.to_string();
        note.truncate(note.floor_char_boundary(NOTE_LEN));
        if recorder.try_send(Notice { object, reason, note }).is_err() {
            tracing::debug!("an Event was not sent: too many are waiting");
        }
    }

    /// One Event per object and reason.
    pub fn skipped(&self, skips: &[Skip]) {
        let mut objects: BTreeMap<(&ObjectRef, Reason), Vec<&Skip>> = BTreeMap::new();
        if self.recorder.is_some() {
            skips.iter().for_each(|skip| objects.entry((&skip.object, Reason::of_skip(skip))).or_default().push(skip));
        }
        for ((object, reason), skips) in objects {
            self.warn(object.clone(), reason, joined("not used: ", skips.into_iter().map(Skip::part)));
        }
    }

    /// One Event per Service or Pod.
    pub fn conflicts(&self, conflicts: &[Conflict]) {
        let mut services: BTreeMap<&ServiceName, Vec<&Conflict>> = BTreeMap::new();
        if self.recorder.is_some() {
            conflicts.iter().for_each(|it| services.entry(&it.port.service).or_default().push(it));
        }
        for (service, conflicts) in services {
            let note = joined("", conflicts.into_iter().map(Conflict::to_string));
            self.warn(object_of(service), Reason::FrontendConflict, note);
        }
    }

    pub fn warning(&self, service: &ServiceName, warning: &Warning) {
        self.warn(object_of(service), Reason::of(warning), warning);
    }
}

/// The Service or, for host ports, the Pod.
#[must_use]
pub fn object_of(service: &ServiceName) -> ObjectRef {
    let (kind, name) = match service.pod_name() {
        Some(pod) => ("Pod", pod.into()),
        None => ("Service", service.name.clone()),
    };
    ObjectRef { kind, namespace: service.namespace.clone(), name }
}

fn joined(start: &str, parts: impl ExactSizeIterator<Item = String>) -> String {
    let rest = parts.len().saturating_sub(PARTS);
    let text = parts.take(PARTS).collect::<Vec<_>>().join("; ");
    let more = if rest > 0 { format!("; and {rest} more") } else { String::new() };
    format!("{start}{text}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(size: usize) -> (Events, mpsc::Receiver<Notice>) {
        let (sender, notices) = mpsc::channel(size);
        (Events { recorder: Some(sender) }, notices)
    }

    fn skip(name: &str, field: &str) -> Skip {
        let object = ObjectRef { kind: "EndpointSlice", namespace: "default".into(), name: name.into() };
        Skip { object, field: field.to_owned(), got: "x".to_owned(), reason: SkipReason::InvalidIp }
    }

    #[test]
    fn many_parts_of_an_object_are_one_event() {
        let (events, mut notices) = queue(10);
        events.skipped(&[skip("a", "e[0]"), skip("b", "e"), skip("a", "e[1]"), skip("a", "e[2]"), skip("a", "e[3]")]);
        let first = notices.try_recv().expect("a notice");
        assert_eq!(&*first.object.name, "a");
        assert_eq!(
            first.note,
            "not used: e[0]: expected an IP address, got \"x\"; e[1]: expected an IP address, got \"x\"; \
             e[2]: expected an IP address, got \"x\"; and 1 more"
        );
        assert_eq!(&*notices.try_recv().expect("a notice").object.name, "b");
        assert!(notices.try_recv().is_err());
    }

    #[test]
    fn a_full_queue_is_no_obstacle() {
        let (events, mut notices) = queue(1);
        let object = || object_of(&ServiceName::new("default", "web"));
        for _ in 0..3 {
            events.warn(object(), Reason::MapFull, "ä".repeat(NOTE_LEN));
        }
        assert_eq!(notices.try_recv().expect("a notice").note.len(), NOTE_LEN);
        assert!(notices.try_recv().is_err());
        drop(notices);
        events.warn(object(), Reason::MapFull, "");
        Events::off().warn(object(), Reason::MapFull, "");
    }

    #[test]
    fn host_ports_are_about_their_pod() {
        let pod = object_of(&ServiceName::of_pod("default", "web-1"));
        assert_eq!((pod.kind, &*pod.name), ("Pod", "web-1"));
    }
}
