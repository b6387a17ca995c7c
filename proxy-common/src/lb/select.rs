//! Choice of an endpoint: session affinity first, then the algorithm over the ring.

use super::tables::Tables;
use crate::abi::{
    AffinityBy, AffinityKey, AffinityValue, BACKEND_CLUSTER_SET, BACKEND_LOCAL_SET, Backend, BackendState, EmptySet,
    SERVICE_EXTERNAL_LOCAL, SERVICE_INTERNAL_LOCAL, Service,
};
use crate::net::{Address, Family};

/// Who chooses.
#[derive(Clone, Copy)]
pub struct Client {
    /// A pod of this node, or the node itself.
    pub internal: bool,
    /// Uniform over u32.
    pub hash: u32,
    /// The affinity key's identity of the client.
    pub by: AffinityBy,
    pub identity: [u32; 4],
}

impl Client {
    #[inline(always)]
    #[must_use]
    pub fn by_address<F: Family>(internal: bool, hash: u32, addr: &F::Addr) -> Self {
        let by = if F::VERSION == 4 { AffinityBy::AddressV4 } else { AffinityBy::AddressV6 };
        let (identity, _) = addr.fold(([0u32; 4], 0usize), |(mut words, i), word| {
            words[i & 3] = word;
            (words, i + 1)
        });
        Self { internal, hash, by, identity }
    }

    #[inline(always)]
    #[must_use]
    pub fn by_netns<F: Family>(hash: u32, cookie: u64) -> Self {
        let by = if F::VERSION == 4 { AffinityBy::NetnsV4 } else { AffinityBy::NetnsV6 };
        Self { internal: true, hash, by, identity: [cookie as u32, (cookie >> 32) as u32, 0, 0] }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chosen<F: Family> {
    pub id: u32,
    pub backend: Backend<F>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotChosen {
    Empty(EmptySet),
    /// The ring was reused under the reader, twice.
    Stale,
}

/// The endpoint for a new flow of `client` to `service`.
#[inline(always)]
pub fn select_backend<F: Family, T: Tables<F>>(
    tables: &T,
    service: &Service,
    client: &Client,
) -> Result<Chosen<F>, NotChosen> {
    let (set, local_bit) = if client.internal {
        (service.internal_set, SERVICE_INTERNAL_LOCAL)
    } else {
        (service.external_set, SERVICE_EXTERNAL_LOCAL)
    };
    if service.affinity_s == 0 {
        return from_ring(tables, set, client.hash);
    }
    let member = if service.flags & local_bit != 0 { BACKEND_LOCAL_SET } else { BACKEND_CLUSTER_SET };
    let key = AffinityKey { service: service.id, by: client.by, client: client.identity };
    let now_s = tables.now_s();
    if let Some(chosen) = remembered(tables, service, &key, member, now_s) {
        return Ok(chosen);
    }
    let chosen = from_ring(tables, set, client.hash)?;
    let value = AffinityValue { backend: chosen.id, generation: chosen.backend.generation, last_used_s: now_s };
    // A full table costs the affinity of this client, not its connection.
    let _ = tables.put_affinity(&key, &value);
    Ok(chosen)
}

/// The endpoint this client had last, if it is still in the set and the (sliding) timeout has not passed.
#[inline(always)]
fn remembered<F: Family, T: Tables<F>>(
    tables: &T,
    service: &Service,
    key: &AffinityKey,
    member: u8,
    now_s: u32,
) -> Option<Chosen<F>> {
    let value = tables.affinity(key, |value| *value)?;
    if now_s.wrapping_sub(value.last_used_s) >= service.affinity_s {
        return None;
    }
    let backend = tables.backend(value.backend)?;
    // The service id also catches an affinity element that was reused while it was read.
    let usable = matches!(backend.state, BackendState::Serving)
        && backend.generation == value.generation
        && backend.service == service.id
        && backend.flags & member != 0;
    if !usable {
        return None;
    }
    tables.affinity(key, |value| value.last_used_s = now_s);
    Some(Chosen { id: value.backend, backend })
}

#[inline(always)]
fn from_ring<F: Family, T: Tables<F>>(tables: &T, set: u32, hash: u32) -> Result<Chosen<F>, NotChosen> {
    for _ in 0..2 {
        let endpoints = tables.set(set);
        if endpoints.len == 0 {
            return Err(NotChosen::Empty(endpoints.when_empty()));
        }
        // Maps the hash to 0..len without a division.
        let at = (u64::from(hash) * u64::from(endpoints.len)) >> 32;
        if let Some(slot) = tables.ring(endpoints.start.wrapping_add(at as u32))
            && slot.set == set
            && let Some(backend) = tables.backend(slot.backend)
        {
            return Ok(Chosen { id: slot.backend, backend });
        }
    }
    Err(NotChosen::Stale)
}
