//! COUNTERS: reason -> how often. VERDICT: the last run's verdict. One list of reasons for both; a number never changes its
//! meaning.

use super::map_types;

#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// On with the packet, changed or not.
    Pass = 0,
    /// Sent out of another interface.
    Redirect = 1,
    /// Answered with an ICMP error.
    Reply = 2,
    Drop = 3,
}

macro_rules! reasons {
    ($($variant:ident = $number:literal, $name:literal, $text:literal;)*) => {
        /// Why a packet or a socket got its verdict.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Reason { $(#[doc = $text] $variant = $number,)* }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// The name in metrics, tests and on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
            /// One sentence for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
            #[must_use]
            pub fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    None = 0, "none", "No packet was seen yet.";
    // Passed unchanged.
    NotIp = 1, "not-ip", "Not an IPv4 or IPv6 packet.";
    NotOurs = 2, "not-ours", "The address belongs to no Service.";
    Malformed = 3, "malformed", "The headers do not fit in the packet.";
    TooManyHeaders = 4, "too-many-headers", "More IPv6 extension headers than are looked at.";
    UnsupportedProtocol = 5, "unsupported-protocol", "Neither TCP, UDP nor SCTP.";
    LaterFragment = 6, "later-fragment", "A later fragment of a datagram that was not translated.";
    NoFlow = 7, "no-flow", "A TCP segment or SCTP packet in mid-connection without an entry.";
    UnknownPort = 8, "unknown-port", "An external or node address, but no such port.";
    OwnSocket = 9, "own-socket", "A connected UDP socket of this node owns the tuple.";
    NoTranslation = 10, "no-translation", "A packet on its way out that belongs to no flow.";
    FamilyOff = 11, "family-off", "The address family is switched off.";
    VlanTag = 12, "vlan-tag", "Carries a VLAN tag: handled on its VLAN device.";
    Probe = 13, "probe", "The agent's own question where a new flow would go; no packet of anybody's, and nothing is remembered.";
    // Translated.
    NewFlow = 20, "new-flow", "A new flow: endpoint chosen, DNAT.";
    Forward = 21, "forward", "A known flow: DNAT.";
    Reply = 22, "reply", "A reply: the source is the frontend again.";
    Snat = 23, "snat", "On its way to another node: SNAT.";
    SnatReply = 24, "snat-reply", "A reply to one of our source ports: the destination is the client again.";
    HairpinForward = 25, "hairpin-forward", "A pod calls itself through its own Service.";
    HairpinReply = 26, "hairpin-reply", "A pod answers itself through its own Service.";
    OwnForward = 27, "own-forward", "The node's own packet: DNAT on the way out.";
    OwnReply = 28, "own-reply", "A reply to the node's own packet.";
    FragmentFollows = 29, "fragment-follows", "A later fragment: goes where its first one went.";
    IcmpError = 30, "icmp-error", "An ICMP error about a packet of a translated flow.";
    Resteered = 31, "resteered", "A packet of a socket whose endpoint left: another endpoint chosen.";
    Adopted = 32, "adopted", "A TCP segment in mid-connection to a Service with a consistent algorithm: endpoint chosen by its hash.";
    // Refused: ICMP port unreachable (too long: packet too big), or ECONNREFUSED at connect time.
    NoEndpoints = 40, "no-endpoints", "The Service has no usable endpoint.";
    UnknownClusterIpPort = 41, "unknown-cluster-ip-port", "A ClusterIP without such a port.";
    TooLong = 42, "too-long", "The node's own packet is longer than the link to its endpoint: its socket is told.";
    // Dropped.
    NoLocalEndpoints = 60, "no-local-endpoints", "Traffic policy Local, and no endpoint on this node.";
    UnallocatedClusterIp = 61, "unallocated-cluster-ip", "In the Service range, but no Service has it.";
    SourceNotAllowed = 62, "source-not-allowed", "The client is in no source range of the load balancer.";
    SnatPortsBusy = 63, "snat-ports-busy", "No free source port towards this endpoint.";
    SnatNoEntry = 64, "snat-no-entry", "One of our source ports, but no flow.";
    NoNodeAddress = 65, "no-node-address", "The node has no address of this family on that link.";
    TableFull = 66, "table-full", "The connection table took no entry.";
    RewriteFailed = 67, "rewrite-failed", "The packet could not be changed.";
    NoRoute = 68, "no-route", "No route to the endpoint.";
    TupleBusy = 69, "tuple-busy", "Another flow has this client tuple and endpoint, and no other source port is free.";
    StaleRing = 70, "stale-ring", "The endpoint set changed twice during one packet.";
    ReplyFailed = 71, "reply-failed", "The ICMP error could not be built.";
    ReplyLimited = 72, "reply-limited", "Too many ICMP errors at the moment.";
    NotAnswerable = 73, "not-answerable", "Refused, but a packet that must not be answered by an ICMP error.";
    FragmentAlone = 74, "fragment-alone", "A later fragment to a Service, and no first one before it.";
    SctpFragment = 75, "sctp-fragment", "A first fragment of an SCTP packet whose ports would change.";
    Migrating = 78, "migrating", "To a Service, but unknown while the tables move to another layout: a repetition is known.";
    // Connect time.
    SockTranslated = 80, "sock-translated", "Connect time: endpoint chosen.";
    SockSticky = 81, "sock-sticky", "Connect time: the endpoint that this socket already uses.";
    SockReply = 82, "sock-reply", "Connect time: the application sees the frontend.";
    SockRefused = 83, "sock-refused", "Connect time: ECONNREFUSED.";
    SockUnreachable = 84, "sock-unreachable", "Connect time: EHOSTUNREACH.";
    SockLeft = 85, "sock-left", "Connect time: left to the packet path.";
    // Counted by the agent.
    SockEnded = 86, "sock-ended", "A connected UDP socket whose endpoint left: ended with an error.";
    SockNotEnded = 87, "sock-not-ended", "A connected UDP socket whose endpoint left: the kernel refused to end it.";
}

/// Slots of COUNTERS.
pub const REASON_SLOTS: usize = 128;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerdictRecord {
    pub action: Action,
    pub reason: Reason,
    /// Where it was sent, if redirected.
    pub ifindex: u32,
    /// Backend id, if one was chosen or known.
    pub backend: u32,
}

map_types!(VerdictRecord = 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_and_names_are_unique() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(Reason::ALL.iter().all(|r| (*r as usize) < REASON_SLOTS));
        assert!(Reason::ALL.iter().all(|r| Reason::from_number(*r as u32) == Some(*r)));
    }
}
