//! Addresses as the API accepts them, and which of them may be used as what.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Reads an address. Leading zeros in IPv4 are decimal, as in the API server (`010.0.0.1` is 10.0.0.1,
/// not octal); a v4-mapped IPv6 address is the IPv4 address that it maps.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return parse_v4(text).map(IpAddr::V4);
    }
    let address = match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => format!("{head}:{}", parse_v4(tail)?).parse::<Ipv6Addr>(),
        _ => text.parse::<Ipv6Addr>(),
    };
    address.ok().map(|address| IpAddr::V6(address).to_canonical())
}

/// Reads a CIDR, blanks around it allowed; bits beyond the prefix are cleared.
pub fn parse_range(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.trim().split_once('/')?;
    let prefix = prefix.parse().ok()?;
    IpNet::new(parse_ip(address)?, prefix).ok().map(|net| net.trunc())
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        // `u8::from_str` takes leading zeros as decimal, but also a plus sign.
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// Whether traffic may be sent to this address as an endpoint. The ranges refused would turn a Service
/// into a way to the node's own loopback or to its neighbours (CVE-2020-8558 is of this kind).
pub(super) fn may_be_endpoint(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    may_be_vip(address) && !link_local
}

/// Whether a Service may be reached at this address.
pub(super) fn may_be_vip(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || broadcast)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> Option<String> {
        parse_ip(text).map(|address| address.to_string())
    }

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.001.009", Some("10.0.1.9")),
            ("fd00::0001", Some("fd00::1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::ffff:010.0.0.1", Some("10.0.0.1")),
            ("64:ff9b::10.0.0.1", Some("64:ff9b::a00:1")),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.256", None),
            ("10.0.0.+1", None),
            ("10.0.0.", None),
            (" 10.0.0.1", None),
            ("fe80::1%eth0", None),
            ("", None),
            ("example.org", None),
        ] {
            assert_eq!(ip(text).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            (" 010.0.0.0/8\t", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("fd00::1/64", Some("fd00::/64")),
            ("10.0.0.0", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/x", None),
        ] {
            assert_eq!(parse_range(text).map(|net| net.to_string()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn forbidden_endpoints() {
        for text in [
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "ff02::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:169.254.0.1",
        ] {
            assert!(!may_be_endpoint(parse_ip(text).expect("an address")), "{text}");
        }
        for text in ["10.0.0.1", "192.0.2.1", "fd00::1"] {
            assert!(may_be_endpoint(parse_ip(text).expect("an address")), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", octets in "[0-9.:/a-f+ ]{0,24}") {
            for text in [&text, &octets] {
                let (_, _) = (parse_ip(text), parse_range(text));
            }
        }

        #[test]
        fn what_the_standard_library_reads_is_read_alike(address: IpAddr) {
            prop_assert_eq!(parse_ip(&address.to_string()), Some(address.to_canonical()));
        }
    }
}
