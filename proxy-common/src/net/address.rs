//! The two address families as types, so that all code above is written once.

use bytemuck::{Pod, Zeroable};
use core::fmt;

/// An IPv4 address as on the wire. Octets, so that `bpftool map dump` prints what a person reads;
/// aligned to a word, so that the kernel side moves it in one instruction.
#[repr(C, align(4))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Ipv4 {
    pub octets: [u8; 4],
}

/// An IPv6 address as on the wire.
#[repr(C, align(4))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Ipv6 {
    pub octets: [u8; 16],
}

/// An address of one family.
pub trait Address: Copy + Eq + Ord + Pod + core::hash::Hash + fmt::Debug + fmt::Display {
    const ZERO: Self;
    /// Mixes the address into a running hash, a 32-bit word at a time.
    fn fold<S>(&self, state: S, mix: impl Fn(S, u32) -> S) -> S;
    /// 127.0.0.0/8 or ::1.
    fn is_loopback(&self) -> bool;
    /// Neither unspecified, loopback, multicast nor reserved: an ICMP error may be sent there (RFC 1122 section 3.2.2, RFC 4443
    /// section 2.4).
    fn is_answerable(&self) -> bool;
    /// True if `self & mask == net`.
    fn matches(&self, net: &Self, mask: &Self) -> bool;
}

impl Ipv4 {
    #[inline(always)]
    #[must_use]
    pub const fn word(&self) -> u32 {
        u32::from_ne_bytes(self.octets)
    }
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u32) -> Self {
        Self { octets: word.to_ne_bytes() }
    }
}

impl Ipv6 {
    #[inline(always)]
    #[must_use]
    pub fn words(&self) -> [u32; 4] {
        bytemuck::cast(*self)
    }
    #[inline(always)]
    #[must_use]
    pub fn from_words(words: [u32; 4]) -> Self {
        bytemuck::cast(words)
    }
}

impl PartialEq for Ipv4 {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.word() == other.word()
    }
}
impl Eq for Ipv4 {}

// By words: comparing the arrays would call bcmp, which the kernel side does not have.
impl PartialEq for Ipv6 {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.words(), other.words());
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }
}
impl Eq for Ipv6 {}

macro_rules! by_octets {
    ($($address:ty => $std:ty),*) => {$(
        impl PartialOrd for $address {
            fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for $address {
            fn cmp(&self, other: &Self) -> core::cmp::Ordering {
                self.octets.cmp(&other.octets)
            }
        }
        impl core::hash::Hash for $address {
            fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
                self.octets.hash(state);
            }
        }
        impl fmt::Display for $address {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                <$std>::from(self.octets).fmt(f)
            }
        }
        impl fmt::Debug for $address {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl From<$std> for $address {
            fn from(std: $std) -> Self {
                Self { octets: std.octets() }
            }
        }
        impl From<$address> for $std {
            fn from(address: $address) -> Self {
                Self::from(address.octets)
            }
        }
        impl From<$address> for core::net::IpAddr {
            fn from(address: $address) -> Self {
                <$std>::from(address.octets).into()
            }
        }
    )*};
}
by_octets!(Ipv4 => core::net::Ipv4Addr, Ipv6 => core::net::Ipv6Addr);

impl Address for Ipv4 {
    const ZERO: Self = Self { octets: [0; 4] };
    #[inline(always)]
    fn fold<S>(&self, state: S, mix: impl Fn(S, u32) -> S) -> S {
        mix(state, self.word())
    }
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.octets[0] == 127
    }
    #[inline(always)]
    fn is_answerable(&self) -> bool {
        self.octets[0] != 0 && self.octets[0] != 127 && self.octets[0] < 224
    }
    #[inline(always)]
    fn matches(&self, net: &Self, mask: &Self) -> bool {
        self.word() & mask.word() == net.word()
    }
}

impl Address for Ipv6 {
    const ZERO: Self = Self { octets: [0; 16] };
    #[inline(always)]
    fn fold<S>(&self, state: S, mix: impl Fn(S, u32) -> S) -> S {
        let words = self.words();
        mix(mix(mix(mix(state, words[0]), words[1]), words[2]), words[3])
    }
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        let words = self.words();
        words[0] | words[1] | words[2] == 0 && words[3] == u32::from_be(1)
    }
    #[inline(always)]
    fn is_answerable(&self) -> bool {
        let words = self.words();
        self.octets[0] != 0xff && words[0] | words[1] | words[2] | words[3] != 0 && !self.is_loopback()
    }
    #[inline(always)]
    fn matches(&self, net: &Self, mask: &Self) -> bool {
        let (a, n, m) = (self.words(), net.words(), mask.words());
        ((a[0] & m[0]) ^ n[0]) | ((a[1] & m[1]) ^ n[1]) | ((a[2] & m[2]) ^ n[2]) | ((a[3] & m[3]) ^ n[3]) == 0
    }
}

/// An address family, as a type parameter.
pub trait Family: Copy + Eq + Ord + core::hash::Hash + fmt::Debug + 'static {
    type Addr: Address;
    /// 4 or 6.
    const VERSION: u8;
    /// The EtherType that carries it, host byte order.
    const ETHERTYPE: u16;
    /// Its ICMP's protocol number.
    const ICMP: u8;
    /// True if an ICMP message of this type reports an error about a packet that it quotes (RFC 792; RFC 4443 section 2.1).
    fn is_icmp_error(kind: u8) -> bool;
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum V4 {}
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum V6 {}

impl Family for V4 {
    type Addr = Ipv4;
    const VERSION: u8 = 4;
    const ETHERTYPE: u16 = super::headers::ETH_P_IP;
    const ICMP: u8 = super::headers::ICMP;
    /// Unreachable, source quench, time exceeded, parameter problem. (A redirect is for its receiver alone.)
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 3 | 4 | 11 | 12)
    }
}

impl Family for V6 {
    type Addr = Ipv6;
    const VERSION: u8 = 6;
    const ETHERTYPE: u16 = super::headers::ETH_P_IPV6;
    const ICMP: u8 = super::headers::ICMPV6;
    /// Unreachable, packet too big, time exceeded, parameter problem.
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn masks_and_loopback() {
        let address = Ipv4::from(Ipv4Addr::new(10, 96, 3, 4));
        let net = Ipv4::from(Ipv4Addr::new(10, 96, 0, 0));
        assert!(address.matches(&net, &Ipv4::from(Ipv4Addr::new(255, 240, 0, 0))));
        assert!(!address.matches(&net, &Ipv4::from(Ipv4Addr::new(255, 255, 255, 0))));
        assert!(Ipv4::from(Ipv4Addr::new(127, 9, 9, 9)).is_loopback());
        assert!(Ipv6::from(Ipv6Addr::LOCALHOST).is_loopback());
        assert!(!Ipv6::from(Ipv6Addr::UNSPECIFIED).is_loopback());
    }
}
