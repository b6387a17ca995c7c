//! Choice of an endpoint: session affinity first, then the algorithm (schedule.rs) over the ring.

use super::schedule::{CONSISTENT_SEED, slot};
use super::tables::Tables;
use crate::abi::{
    AffinityBy, AffinityKey, AffinityValue, Algorithm, BACKEND_CLUSTER_SET, BACKEND_LOCAL_SET, Backend, BackendState,
    EmptySet, SERVICE_EXTERNAL_LOCAL, SERVICE_INTERNAL_LOCAL, Service,
};
use crate::net::{Address, Family};

/// Who chooses.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Client {
    /// A pod of this node, or the node itself.
    pub internal: bool,
    /// Uniform over u32; the same on every node for [`Algorithm::MaglevTuple`].
    pub hash: u32,
    /// What [`Algorithm::Maglev`] hashes `identity` with.
    pub salt: u32,
    /// The affinity key's identity of the client.
    pub by: AffinityBy,
    pub identity: [u32; 4],
}

impl Client {
    pub const NOBODY: Self = Self { internal: false, hash: 0, salt: 0, by: AffinityBy::None, identity: [0; 4] };

    #[inline(always)]
    #[must_use]
    pub fn by_address<F: Family>(internal: bool, hash: u32, addr: &F::Addr) -> Self {
        let by = if F::VERSION == 4 { AffinityBy::AddressV4 } else { AffinityBy::AddressV6 };
        let (identity, _) = addr.fold(([0u32; 4], 0usize), |(mut words, i), word| {
            words[i & 3] = word;
            (words, i + 1)
        });
        Self { internal, hash, salt: CONSISTENT_SEED, by, identity }
    }

    #[inline(always)]
    #[must_use]
    pub fn by_netns<F: Family>(hash: u32, cookie: u64, seed: u32) -> Self {
        let by = if F::VERSION == 4 { AffinityBy::NetnsV4 } else { AffinityBy::NetnsV6 };
        // Cookies are small numbers that all nodes have: with one salt, the nodes' pods would crowd on the same endpoints.
        Self { internal: true, hash, salt: seed, by, identity: [cookie as u32, (cookie >> 32) as u32, 0, 0] }
    }
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chosen<F: Family> {
    pub id: u32,
    pub backend: Backend<F>,
}

impl<F: Family> Chosen<F> {
    pub const NONE: Self = Self { id: 0, backend: Backend::FREE };
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotChosen {
    Empty(EmptySet),
    /// The ring was reused under the reader, twice.
    Stale,
}

/// The endpoint for a new flow of `client` to `service`, written to `chosen`.
#[inline(always)]
pub fn select_backend<F: Family, T: Tables<F>>(
    tables: &T,
    service: &Service,
    client: &Client,
    chosen: &mut Chosen<F>,
) -> Result<(), NotChosen> {
    let (set, local_bit) = if client.internal {
        (service.internal_set, SERVICE_INTERNAL_LOCAL)
    } else {
        (service.external_set, SERVICE_EXTERNAL_LOCAL)
    };
    if service.affinity_s == 0 {
        return from_ring(tables, service.algorithm, set, client, chosen);
    }
    let member = if service.flags & local_bit != 0 { BACKEND_LOCAL_SET } else { BACKEND_CLUSTER_SET };
    let key = AffinityKey { service: service.id, by: client.by, client: client.identity };
    let now_s = tables.now_s();
    if remembered(tables, service, &key, member, now_s, chosen) {
        return Ok(());
    }
    from_ring(tables, service.algorithm, set, client, chosen)?;
    let value = AffinityValue { backend: chosen.id, generation: chosen.backend.generation, last_used_s: now_s };
    // A full table costs the affinity of this client, not its connection.
    let _ = tables.put_affinity(&key, &value);
    Ok(())
}

/// The endpoint this client had last, if it is still in the set and the (sliding) timeout has not passed.
#[inline(always)]
fn remembered<F: Family, T: Tables<F>>(
    tables: &T,
    service: &Service,
    key: &AffinityKey,
    member: u8,
    now_s: u32,
    chosen: &mut Chosen<F>,
) -> bool {
    let Some(value) = tables.affinity(key, |value| *value) else { return false };
    if now_s.wrapping_sub(value.last_used_s) >= service.affinity_s {
        return false;
    }
    let backend = &mut chosen.backend;
    if !tables.copy_backend(value.backend, backend) {
        return false;
    }
    // The service id also catches an affinity element that was reused while it was read.
    let usable = matches!(backend.state, BackendState::Serving)
        && backend.generation == value.generation
        && backend.service == service.id
        && backend.flags & member != 0;
    if usable {
        tables.affinity(key, |value| value.last_used_s = now_s);
        chosen.id = value.backend;
    }
    usable
}

#[inline(always)]
fn from_ring<F: Family, T: Tables<F>>(
    tables: &T,
    algorithm: Algorithm,
    set: u32,
    client: &Client,
    chosen: &mut Chosen<F>,
) -> Result<(), NotChosen> {
    for _ in 0..2 {
        let endpoints = tables.set(set);
        if endpoints.len == 0 {
            return Err(NotChosen::Empty(endpoints.when_empty()));
        }
        let at = slot(tables, algorithm, set, endpoints, client);
        if let Some(slot) = tables.ring(endpoints.start.wrapping_add(at))
            && slot.set == set
            && tables.copy_backend(slot.backend, &mut chosen.backend)
        {
            chosen.id = slot.backend;
            return Ok(());
        }
    }
    Err(NotChosen::Stale)
}
