//! Which slot of a ring a new flow gets. Weights are in the ring: a backend has slots in proportion to its weight. Called by
//! select.rs; the agent makes the rings (`reconcile/slots.rs`).

use super::select::Client;
use super::tables::Tables;
use crate::abi::{Algorithm, EndpointSet, mix};
use crate::net::Family;

/// What consistent algorithms hash with, the same on every node: "weir".
pub const CONSISTENT_SEED: u32 = 0x7765_6972;

/// An index below `endpoints.len`, which is not 0.
#[inline(always)]
pub(super) fn slot<F: Family, T: Tables<F>>(
    tables: &T,
    algorithm: Algorithm,
    set: u32,
    endpoints: EndpointSet,
    client: &Client,
) -> u32 {
    if matches!(algorithm, Algorithm::Random | Algorithm::MaglevTuple) {
        return scale(client.hash, endpoints.len);
    }
    scheduled_slot(tables, algorithm, set, endpoints.to_word(), client)
}

/// The algorithms that take more than the hash. `word` is the set's.
// A function of its own, for the sake of the caller's stack; five arguments are what BPF has registers for.
#[inline(never)]
fn scheduled_slot<F: Family, T: Tables<F>>(
    tables: &T,
    algorithm: Algorithm,
    set: u32,
    word: u64,
    client: &Client,
) -> u32 {
    let endpoints = EndpointSet::from_word(word);
    match algorithm {
        Algorithm::RoundRobin => (tables.next_turn(set) % u64::from(endpoints.len)) as u32,
        Algorithm::Maglev => scale(consistent_hash(client), endpoints.len),
        Algorithm::LeastConnections => less_loaded(tables, set, endpoints, client.hash),
        Algorithm::Random | Algorithm::MaglevTuple => scale(client.hash, endpoints.len),
    }
}

/// Maps a hash to 0..len without a division.
#[inline(always)]
fn scale(hash: u32, len: u32) -> u32 {
    ((u64::from(hash) * u64::from(len)) >> 32) as u32
}

/// Of the client alone, whatever its ports and the frontend are.
#[inline(always)]
fn consistent_hash(client: &Client) -> u32 {
    let [a, b, c, d] = client.identity;
    (mix(mix(mix(mix(mix(u64::from(client.salt), a), b), c), d), client.by as u32) >> 16) as u32
}

/// The power of two choices: of two different slots at random, the one whose backend has fewer connections for its weight.
#[inline(always)]
fn less_loaded<F: Family, T: Tables<F>>(tables: &T, set: u32, endpoints: EndpointSet, hash: u32) -> u32 {
    let len = endpoints.len;
    let first = scale(hash, len);
    let mut second = scale((mix(u64::from(hash), len) >> 16) as u32, len);
    if second == first {
        second = if first + 1 < len { first + 1 } else { 0 };
    }
    // With one more connection each: a / weight_a <= b / weight_b.
    let (a, weight_a) = expected_load(tables, set, endpoints.start.wrapping_add(first));
    let (b, weight_b) = expected_load(tables, set, endpoints.start.wrapping_add(second));
    if a * weight_b <= b * weight_a { first } else { second }
}

/// Connections that the slot's backend would have with one more, and its weight.
#[inline(always)]
fn expected_load<F: Family, T: Tables<F>>(tables: &T, set: u32, index: u32) -> (u64, u64) {
    if let Some(slot) = tables.ring(index)
        && slot.set == set
        && let Some(backend) = tables.backend(slot.backend)
    {
        return (u64::from(tables.load(slot.backend)) + 1, u64::from(backend.weight));
    }
    // Another set's by now: the caller finds the same and looks once more.
    (0, 1)
}
