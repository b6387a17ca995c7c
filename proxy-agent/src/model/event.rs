//! What a source says: an object appeared, changed or went, a listing is complete, a part was skipped.

use std::{fmt, sync::Arc};

use super::{
    names::ServiceName,
    objects::{EndpointSlice, Node, Pod, Service, ServiceCidr, SliceKey},
};

/// An object that is known by a key.
pub trait Keyed {
    type Key: Clone + fmt::Debug + PartialEq + Eq + Ord + std::hash::Hash + Send + Sync;
    fn key(&self) -> Self::Key;
}

/// One object's present state, or the name of one that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T: Keyed> {
    Applied(T),
    Deleted(T::Key),
}

/// The listings that have to be complete before anything may be deleted from the kernel's maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    Services,
    Slices,
    Node,
    /// Those of this node that have host ports.
    Pods,
    /// Never waited for: an API server need not have them.
    ServiceCidrs,
}

/// What every source sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Service(Change<Service>),
    Slice(Change<EndpointSlice>),
    Node(Change<Node>),
    Pod(Change<Pod>),
    ServiceCidr(Change<ServiceCidr>),
    /// All objects of this kind have been sent once (and again after each relisting).
    Synced(SourceKind),
    /// Parts of objects that could not be used. The source has written the warning; this is for metrics.
    Skipped(Vec<Skip>),
}

/// Kind, namespace and name, for messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    pub kind: &'static str,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// A malformed object, or the part of one, that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    pub object: ObjectRef,
    /// Path of the field, as `spec.ports[1].port`.
    pub field: String,
    /// The value found there; for [`SkipReason::Malformed`] what is wrong with it.
    pub got: String,
    pub reason: SkipReason,
}

/// Why a part was skipped. [`SkipReason::as_str`] is a metric label and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SkipReason {
    /// The object does not have the shape of its kind; nothing of it is used.
    Malformed,
    MissingName,
    MissingService,
    InvalidIp,
    InvalidRange,
    InvalidPort,
    InvalidProtocol,
    InvalidPolicy,
    InvalidAffinity,
    WrongFamily,
    ForbiddenAddress,
    DuplicatePort,
    InvalidName,
    InvalidAddressType,
    InvalidIpMode,
    InvalidAlgorithm,
    InvalidWeight,
}

impl SkipReason {
    pub const ALL: [SkipReason; 17] = [
        SkipReason::Malformed,
        SkipReason::MissingName,
        SkipReason::MissingService,
        SkipReason::InvalidIp,
        SkipReason::InvalidRange,
        SkipReason::InvalidPort,
        SkipReason::InvalidProtocol,
        SkipReason::InvalidPolicy,
        SkipReason::InvalidAffinity,
        SkipReason::WrongFamily,
        SkipReason::ForbiddenAddress,
        SkipReason::DuplicatePort,
        SkipReason::InvalidName,
        SkipReason::InvalidAddressType,
        SkipReason::InvalidIpMode,
        SkipReason::InvalidAlgorithm,
        SkipReason::InvalidWeight,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            SkipReason::Malformed => "malformed",
            SkipReason::MissingName => "missing-name",
            SkipReason::MissingService => "missing-service",
            SkipReason::InvalidIp => "invalid-ip",
            SkipReason::InvalidRange => "invalid-range",
            SkipReason::InvalidPort => "invalid-port",
            SkipReason::InvalidProtocol => "invalid-protocol",
            SkipReason::InvalidPolicy => "invalid-policy",
            SkipReason::InvalidAffinity => "invalid-affinity",
            SkipReason::WrongFamily => "wrong-family",
            SkipReason::ForbiddenAddress => "forbidden-address",
            SkipReason::DuplicatePort => "duplicate-port",
            SkipReason::InvalidName => "invalid-name",
            SkipReason::InvalidAddressType => "invalid-address-type",
            SkipReason::InvalidIpMode => "invalid-ip-mode",
            SkipReason::InvalidAlgorithm => "invalid-algorithm",
            SkipReason::InvalidWeight => "invalid-weight",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SkipReason::Malformed => "expected another shape",
            SkipReason::MissingName => "expected a name",
            SkipReason::MissingService => "expected the name of a Service",
            SkipReason::InvalidIp => "expected an IP address",
            SkipReason::InvalidRange => "expected a CIDR",
            SkipReason::InvalidPort => "expected a port number from 1 to 65535",
            SkipReason::InvalidProtocol => "expected TCP, UDP or SCTP",
            SkipReason::InvalidPolicy => "expected Cluster or Local",
            SkipReason::InvalidAffinity => "expected a valid session affinity",
            SkipReason::WrongFamily => "expected an address of the slice's family",
            SkipReason::ForbiddenAddress => {
                "expected an address outside the loopback, link-local, multicast and unspecified ranges"
            }
            SkipReason::DuplicatePort => "expected each port once",
            SkipReason::InvalidName => "expected a name of at most 63 bytes without blanks, slashes and colons",
            SkipReason::InvalidAddressType => "expected IPv4, IPv6 or FQDN",
            SkipReason::InvalidIpMode => "expected VIP or Proxy",
            SkipReason::InvalidAlgorithm => "expected random, rr, maglev, maglev-5tuple or lc",
            SkipReason::InvalidWeight => "expected a weight from 0 to 65535, or ADDRESS=WEIGHT",
        })
    }
}

impl Skip {
    /// The message without the name of the object.
    #[must_use]
    pub fn part(&self) -> String {
        let Skip { field, got, reason, .. } = self;
        match reason {
            SkipReason::Malformed => format!("{field}: {got}"),
            _ => format!("{field}: {reason}, got {got:?}"),
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.part())
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

impl Keyed for Service {
    type Key = ServiceName;

    fn key(&self) -> ServiceName {
        self.name.clone()
    }
}

impl Keyed for EndpointSlice {
    type Key = SliceKey;

    fn key(&self) -> SliceKey {
        EndpointSlice::key(self)
    }
}

impl Keyed for Node {
    type Key = Arc<str>;

    fn key(&self) -> Arc<str> {
        self.name.clone()
    }
}

impl Keyed for Pod {
    type Key = ServiceName;

    fn key(&self) -> ServiceName {
        self.name.clone()
    }
}

impl Keyed for ServiceCidr {
    type Key = Arc<str>;

    fn key(&self) -> Arc<str> {
        self.name.clone()
    }
}
