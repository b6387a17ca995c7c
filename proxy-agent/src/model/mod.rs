//! What the agent remembers of Kubernetes objects, reduced to the fields that decide something.
//!
//! `ingest` makes these types from API objects, `sources` send them as [`Event`]s, [`Snapshot`] holds
//! the present state, and `desired` reads it. Nothing in here does I/O or knows BPF.

mod event;
mod names;
mod objects;
mod snapshot;

pub use event::{Change, Event, Keyed, ObjectRef, Skip, SkipReason, SourceKind};
pub use names::{Family, Protocol, ServiceName, ServicePortName};
pub use objects::{
    Endpoint, EndpointSlice, HostPort, LastChange, Node, NodeFacts, Pod, Service, ServiceCidr, ServicePort, SliceKey,
    SlicePort, TrafficPolicy,
};
pub use snapshot::{Snapshot, Touched};
