//! Internet checksum arithmetic (RFC 1071, RFC 1624).

use super::Address;

/// Folds a 32-bit sum to the 16-bit one's complement sum.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// One's complement sum of `bytes` added to `sum`, as big-endian 16-bit words, an odd byte padded with zero.
#[must_use]
pub fn sum_words(mut sum: u32, bytes: &[u8]) -> u32 {
    for pair in bytes.chunks(2) {
        let low = if let Some(low) = pair.get(1) { *low } else { 0 };
        sum += (pair[0] as u32) << 8 | low as u32;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// The checksum of `bytes` (the field itself being zero in them), started from `sum`.
#[must_use]
pub fn checksum(sum: u32, bytes: &[u8]) -> u16 {
    !fold(sum_words(sum, bytes))
}

/// The checksum after the bytes `old` of the covered data became `new` (RFC 1624, equation 3). `old` and `new` have one
/// even length and start at an even offset.
#[must_use]
pub fn checksum_replace(check: u16, old: &[u8], new: &[u8]) -> u16 {
    let mut sum = u32::from(!check);
    for pair in old.chunks_exact(2) {
        sum += u32::from(!u16::from_be_bytes([pair[0], pair[1]]));
    }
    sum = u32::from(fold(sum));
    !fold(sum_words(sum, new))
}

/// What changes under a checksum, word by word as the words stand in memory (a one's complement sum may be taken in either
/// byte order): the sum that RFC 1624 adds. Room for 32,768 words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    sum: u32,
}

impl Difference {
    pub const NONE: Self = Self { sum: 0 };

    #[inline(always)]
    #[must_use]
    pub const fn word(self, from: u16, to: u16) -> Self {
        Self { sum: self.sum + !from as u32 + to as u32 }
    }

    #[inline(always)]
    #[must_use]
    pub fn address<A: Address>(self, from: &A, to: &A) -> Self {
        let sum = from.fold(self.sum, |sum, word| sum + (!word & 0xffff) + (!word >> 16));
        Self { sum: to.fold(sum, |sum, word| sum + (word & 0xffff) + (word >> 16)) }
    }

    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { sum: self.sum + other.sum }
    }

    /// The sum, as the kernel's helpers take it.
    #[inline(always)]
    #[must_use]
    pub const fn sum(self) -> u32 {
        self.sum
    }

    /// The checksum afterwards.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, check: u16) -> u16 {
        !fold(!check as u32 + self.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn replace_equals_recompute(mut data in prop::collection::vec(any::<u8>(), 24..80), new in any::<[u8; 8]>(), word in 0usize..4) {
            data[0] |= 1; // an all-zero packet has two representations of zero
            let before = checksum(0, &data);
            let at = 8 + word * 2;
            let old: [u8; 8] = data[at..at + 8].try_into().unwrap();
            data[at..at + 8].copy_from_slice(&new);
            prop_assert_eq!(checksum_replace(before, &old, &new), checksum(0, &data));
        }
    }

    proptest! {
        #[test]
        fn difference_equals_replace(check in any::<u16>(), old in any::<[u8; 4]>(), new in any::<[u8; 4]>(), from in any::<[u8; 16]>(), to in any::<[u8; 16]>()) {
            let word = |bytes: &[u8]| u16::from_ne_bytes([bytes[0], bytes[1]]);
            let difference = Difference::NONE
                .word(word(&old), word(&new))
                .and(Difference::NONE.word(word(&old[2..]), word(&new[2..])))
                .address(&crate::net::Ipv6 { octets: from }, &crate::net::Ipv6 { octets: to });
            let got = difference.apply(u16::from_be_bytes(check.to_ne_bytes()));
            let (old, new) = ([&old[..], &from].concat(), [&new[..], &to].concat());
            let expected = checksum_replace(u16::from_be_bytes(u16::from_be_bytes(check.to_ne_bytes()).to_ne_bytes()), &old, &new);
            prop_assert_eq!(u16::from_be_bytes(got.to_ne_bytes()), expected);
        }
    }

    #[test]
    fn known_header() {
        // RFC 1071's example words.
        assert_eq!(fold(sum_words(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }
}
