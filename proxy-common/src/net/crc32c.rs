//! The CRC32c of an SCTP packet (RFC 9260 section 6.8 and appendix A) after its ports have changed. Called by what rewrites
//! packets.
//!
//! It goes over the SCTP packet alone: addresses do not count. A CRC is linear, so the checksum of the changed packet is the old
//! one plus the checksum (without preset and inversion) of the difference: the ports, and behind them as many zero bytes as the
//! packet has. Appending a byte of zeros is a multiplication by x^8 modulo the polynomial.

/// The Castagnoli polynomial, the lowest power of x in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// x^0.
const ONE: u32 = 1 << 31;
/// x^8: one byte of zeros.
const BYTE: u32 = 1 << 23;

/// x^(8 * i) for i up to 255.
static ZEROS: [u32; 256] = powers(BYTE);
/// x^(8 * 256 * i) for i up to 255.
static BLOCKS_OF_ZEROS: [u32; 256] = powers(multiply(powers(BYTE)[255], BYTE));

/// The product of two polynomials. Without branches: the verifier walks through it once.
#[inline(always)]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut i = 0;
    while i < 32 {
        product ^= b & 0u32.wrapping_sub((a >> (31 - i)) & 1);
        b = (b >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(b & 1));
        i += 1;
    }
    product
}

const fn powers(of: u32) -> [u32; 256] {
    let mut table = [ONE; 256];
    let mut i = 1;
    while i < table.len() {
        table[i] = multiply(table[i - 1], of);
        i += 1;
    }
    table
}

/// What the ports of an SCTP packet of `len` bytes change its checksum by, when they change from `from` to `to` (source port
/// in the high half). The checksum's bytes are a little-endian number; this is XORed to it.
// A function of its own: its loops are long, and the caller is checked for every way into it.
#[inline(never)]
#[must_use]
pub fn sctp_checksum_change(from: u32, to: u32, len: u16) -> u32 {
    let [blocks, bytes] = len.to_be_bytes();
    let difference = (from ^ to).swap_bytes();
    multiply(multiply(difference, ZEROS[bytes as usize]), BLOCKS_OF_ZEROS[blocks as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crc::{CRC_32_ISCSI, Crc};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn change_equals_recompute(mut packet in prop::collection::vec(any::<u8>(), 12..3000), to in any::<u32>()) {
            let crc = Crc::<u32>::new(&CRC_32_ISCSI);
            packet[8..12].fill(0);
            let before = crc.checksum(&packet);
            let from = u32::from_be_bytes(packet[..4].try_into().unwrap());
            packet[..4].copy_from_slice(&to.to_be_bytes());
            prop_assert_eq!(before ^ sctp_checksum_change(from, to, packet.len() as u16), crc.checksum(&packet));
        }
    }

    #[test]
    fn the_longest_packet() {
        let crc = Crc::<u32>::new(&CRC_32_ISCSI);
        for len in [12, 255, 256, 257, 65_515, 65_535] {
            let mut packet = vec![7; len];
            let before = crc.checksum(&packet);
            packet[..4].copy_from_slice(&[1, 2, 3, 4]);
            assert_eq!(
                before ^ sctp_checksum_change(0x0707_0707, 0x0102_0304, len as u16),
                crc.checksum(&packet),
                "{len}"
            );
        }
    }
}
