//! The names by which Services and their ports are known everywhere: in maps, metrics and messages.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr, sync::Arc};

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// One port of a Service: what a stable service-port id stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    pub service: ServiceName,
    /// The port's name; empty for the only port of a Service that left it unnamed.
    pub port: Arc<str>,
    pub protocol: Protocol,
}

/// Layer 4 protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Address family of an address or of an EndpointSlice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

/// Bytes of `namespace/name:port` that PORT_NAMES holds.
const STORED_LEN: usize = 144;
/// In front of a Pod's name: no Service has a slash in its own.
const POD_PREFIX: &str = "pod/";
/// Bytes of a Pod's name (of up to 253) that are kept beside the longest namespace and a port number.
const POD_NAME_LEN: usize = 68;

impl ServiceName {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The name under which the host ports of a Pod stand beside the ports of Services.
    pub fn of_pod(namespace: &str, pod: &str) -> Self {
        Self::new(namespace, format!("{POD_PREFIX}{}", fitted(pod, POD_NAME_LEN)))
    }

    pub fn is_pod(&self) -> bool {
        self.name.starts_with(POD_PREFIX)
    }

    /// The Pod's name, or the start of a long one.
    pub fn pod_name(&self) -> Option<&str> {
        self.name.strip_prefix(POD_PREFIX)
    }
}

/// The text, or as much of it as fits with a digest of the whole: names that differ stay different, and a restart finds
/// in the maps what it would write.
fn fitted(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    // FNV-1a, whose value never changes with a version of the standard library.
    let digest = text.bytes().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut end = max.saturating_sub(9);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}~{digest:08x}", &text[..end]))
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl ServicePortName {
    /// A port name may have 63 bytes, as those of Service and namespace: where all three do not fit, it is shortened.
    pub fn new(service: ServiceName, port: impl Into<Arc<str>>, protocol: Protocol) -> Self {
        let port = port.into();
        let room = STORED_LEN.saturating_sub(service.namespace.len() + service.name.len() + 2);
        match fitted(&port, room) {
            Cow::Borrowed(_) => Self { service, port, protocol },
            Cow::Owned(short) => Self { service, port: short.into(), protocol },
        }
    }
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.port {
            "" => write!(f, "{}/{}", self.service, self.protocol),
            port => write!(f, "{}:{port}/{}", self.service, self.protocol),
        }
    }
}

impl Protocol {
    /// The number in the IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            132 => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// The text is no protocol that a Service port can have.
#[derive(Debug, thiserror::Error)]
#[error("expected TCP, UDP or SCTP, got {0:?}")]
pub struct UnknownProtocol(String);

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        match text {
            "TCP" => Ok(Protocol::Tcp),
            "UDP" => Ok(Protocol::Udp),
            "SCTP" => Ok(Protocol::Sctp),
            other => Err(UnknownProtocol(other.to_owned())),
        }
    }
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_operators_read_them() {
        let service = ServiceName::new("default", "web");
        assert_eq!(service.to_string(), "default/web");
        let named = ServicePortName::new(service.clone(), "https", Protocol::Tcp);
        assert_eq!(named.to_string(), "default/web:https/TCP");
        let unnamed = ServicePortName::new(service, "", Protocol::Udp);
        assert_eq!(unnamed.to_string(), "default/web/UDP");
    }

    #[test]
    fn names_that_do_not_fit_are_shortened_and_stay_different() {
        let service = ServiceName::new("n".repeat(63), "s".repeat(63));
        let name = |port: String| ServicePortName::new(service.clone(), port, Protocol::Tcp);
        let (a, b) = (name("p".repeat(62) + "a"), name("p".repeat(62) + "b"));
        assert_ne!(a, b);
        for name in [&a, &b] {
            assert!(name.service.to_string().len() + 1 + name.port.len() <= STORED_LEN);
            assert_eq!(ServicePortName::new(name.service.clone(), name.port.clone(), Protocol::Tcp), *name);
        }
        let pod = ServiceName::of_pod("default", &"x".repeat(253));
        assert!(pod.is_pod() && pod.name.len() <= POD_PREFIX.len() + POD_NAME_LEN);
        assert_eq!(ServiceName::of_pod("default", "web-0").to_string(), "default/pod/web-0");
    }

    #[test]
    fn protocol_numbers_go_there_and_back() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
            assert_eq!(protocol.to_string().parse::<Protocol>().expect("own text"), protocol);
        }
        assert_eq!(Protocol::from_number(1), None);
        assert!("tcp".parse::<Protocol>().is_err());
    }
}
