//! Which endpoint each slot of a ring names: pure, and the same on every node that knows the same endpoints. Called by the assigner of
//! ids; the kernel programs only look slots up (`proxy-common/src/lb/schedule.rs`).

use std::{net::IpAddr, ops::RangeInclusive};

use proxy_common::abi::Algorithm;

/// A set whose weights would need more slots has them rounded, but never for less than four slots an endpoint.
const WEIGHTED_SLOTS_MAX: usize = 4096;
const ROUNDED_SLOTS_EACH: usize = 4;

/// What `--maglev-table-size` may be. The upper end is what sixty such tables would take of the default RINGS.
pub const MAGLEV_TABLE_SIZES: RangeInclusive<u32> = 251..=131_071;
/// A hundred slots for each of 163 endpoints.
pub const MAGLEV_TABLE_SIZE: u32 = 16_381;

/// An endpoint of a set, as nodes agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// Not 0: such an endpoint is in no set.
    pub(super) weight: u16,
}

/// The ring of a set, as indices into `members`; empty if there are none. `maglev_size` is prime.
#[must_use]
pub(super) fn slots(algorithm: Algorithm, members: &[Member], maglev_size: u32) -> Vec<usize> {
    if algorithm.is_consistent() {
        return maglev(members, maglev_size as usize);
    }
    interleaved(&shares(members))
}

/// True for a number that Maglev tables can have.
#[must_use]
pub fn is_prime(number: u32) -> bool {
    let mut divisors = (2..).take_while(|it| it * it <= number);
    number > 1 && divisors.all(|it| !number.is_multiple_of(it))
}

/// Slots of each member: its weight, as small as the proportions allow.
fn shares(members: &[Member]) -> Vec<usize> {
    let weights: Vec<usize> = members.iter().map(|it| usize::from(it.weight.max(1))).collect();
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let sum = weights.iter().sum::<usize>() / divisor;
    let most = WEIGHTED_SLOTS_MAX.max(ROUNDED_SLOTS_EACH * members.len());
    let share = |weight: usize| if sum <= most { weight / divisor } else { (weight * most / (sum * divisor)).max(1) };
    weights.into_iter().map(share).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Each member as often as its share says, its slots as far from each other as can be: where slots are taken in turn, a heavy
/// endpoint must not get its flows in one go.
fn interleaved(shares: &[usize]) -> Vec<usize> {
    // The k-th of n slots belongs at (2k + 1) / 2n of the ring.
    let place = |k: usize, share: usize| ((2 * k as u64 + 1) << 32) / share as u64;
    let mut slots: Vec<(u64, usize)> = Vec::with_capacity(shares.iter().sum());
    for (member, share) in shares.iter().enumerate() {
        slots.extend((0..*share).map(|k| (place(k, *share), member)));
    }
    slots.sort_unstable();
    slots.into_iter().map(|(_, member)| member).collect()
}

/// Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4: the members take turns, and
/// each takes the first free slot of its own permutation. By weight: in `n` rounds a member has `n` turns times its part of the
/// heaviest one's weight.
fn maglev(members: &[Member], size: usize) -> Vec<usize> {
    let Some(heaviest) = members.iter().map(|it| u64::from(it.weight.max(1))).max() else { return Vec::new() };
    let mut turns: Vec<Permutation> = members.iter().map(|member| Permutation::of(member, size)).collect();
    let mut slots = vec![None; size];
    let mut free = size;
    for round in 1_u64.. {
        for (index, member) in members.iter().enumerate() {
            let turn = &mut turns[index];
            if turn.taken * heaviest >= u64::from(member.weight.max(1)) * round {
                continue;
            }
            while slots[turn.next].is_some() {
                turn.step(size);
            }
            slots[turn.next] = Some(index);
            turn.taken += 1;
            free -= 1;
            if free == 0 {
                return slots.into_iter().flatten().collect();
            }
        }
    }
    Vec::new()
}

/// A member's order of preference: every slot once, since the size is prime.
struct Permutation {
    next: usize,
    skip: usize,
    taken: u64,
}

impl Permutation {
    fn of(member: &Member, size: usize) -> Self {
        let within = |digest: u64, len: usize| (digest % len as u64) as usize;
        Self { next: within(digest(member, 1), size), skip: 1 + within(digest(member, 2), size - 1), taken: 0 }
    }

    fn step(&mut self, size: usize) {
        self.next = (self.next + self.skip) % size;
    }
}

/// By address and port alone, never by an id: ids are this node's own. The result is part of what nodes agree on; another digest
/// moves every client of a cluster in which nodes of two versions run.
fn digest(member: &Member, seed: u64) -> u64 {
    let (high, low) = match member.address {
        IpAddr::V4(address) => (4, u64::from(address.to_bits())),
        IpAddr::V6(address) => ((address.to_bits() >> 64) as u64, address.to_bits() as u64),
    };
    [high, low, u64::from(member.port)].into_iter().fold(seed, |state, word| splitmix(state ^ word))
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn splitmix(state: u64) -> u64 {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
