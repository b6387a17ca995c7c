//! Which sockets are ended: those that the connect hook sent to an endpoint that no longer serves, and no others.

use std::{net::SocketAddr, path::Path};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use proxy_common::{
    abi::{Backend, BackendState, Reason, SockDirection, SockKey, SockPeer, names},
    net::{Family, UDP, V4, V6},
};

use crate::dataplane::MapFamily;

#[derive(Debug, thiserror::Error)]
#[error("read map {map}: {error}")]
pub(super) struct TableError {
    map: &'static str,
    error: MapError,
}

/// What has to be known of sockets and endpoints.
pub(super) trait SocketTables<F: Family> {
    /// What the connect hook did.
    fn sock(&self, key: &SockKey<F>) -> Result<Option<SockPeer<F>>, TableError>;
    fn backend(&self, id: u32) -> Result<Option<Backend<F>>, TableError>;
}

/// True if the socket with this cookie was translated to `peer` and the endpoint has stopped serving since. A socket that was
/// connected to the endpoint's address itself has no entry.
pub(super) fn is_stale<T: SocketTables<V4> + SocketTables<V6>>(
    tables: &T,
    cookie: [u32; 2],
    peer: SocketAddr,
) -> Result<bool, TableError> {
    match peer {
        SocketAddr::V4(peer) => is_stale_in::<V4, T>(tables, cookie, (*peer.ip()).into(), peer.port()),
        SocketAddr::V6(peer) => is_stale_in::<V6, T>(tables, cookie, (*peer.ip()).into(), peer.port()),
    }
}

fn is_stale_in<F: Family, T: SocketTables<F>>(
    tables: &T,
    cookie: [u32; 2],
    addr: F::Addr,
    port: u16,
) -> Result<bool, TableError> {
    let key = SockKey { cookie, addr, port, protocol: UDP, direction: SockDirection::Reply };
    let Some(entry) = tables.sock(&key)?.filter(|it| it.check == cookie[0]) else { return Ok(false) };
    let serving =
        |backend: Backend<F>| backend.state == BackendState::Serving && backend.generation == entry.generation;
    Ok(!tables.backend(entry.backend_id)?.is_some_and(serving))
}

/// The pinned maps.
pub(super) struct PinnedTables {
    v4: FamilyTables<V4>,
    v6: FamilyTables<V6>,
    counters: PerCpuArray<MapData, u64>,
}

struct FamilyTables<F: Family>
where
    SockKey<F>: Pod,
    SockPeer<F>: Pod,
    Backend<F>: Pod,
{
    socks: HashMap<MapData, SockKey<F>, SockPeer<F>>,
    backends: Array<MapData, Backend<F>>,
}

impl PinnedTables {
    pub(super) fn open(dir: &Path) -> Result<Self, TableError> {
        Ok(Self {
            v4: FamilyTables { socks: open(dir, names::SOCK_REVNAT_V4)?, backends: open(dir, names::BACKENDS_V4)? },
            v6: FamilyTables { socks: open(dir, names::SOCK_REVNAT_V6)?, backends: open(dir, names::BACKENDS_V6)? },
            counters: open(dir, names::COUNTERS)?,
        })
    }

    /// Adds to a counter that no program writes.
    pub(super) fn count(&mut self, reason: Reason, more: u64) -> Result<(), TableError> {
        if more == 0 {
            return Ok(());
        }
        let failed = |error| TableError { map: names::COUNTERS, error };
        let mut values = self.counters.get(&(reason as u32), 0).map_err(failed)?.to_vec();
        if let Some(first) = values.first_mut() {
            *first += more;
        }
        let values = PerCpuValues::try_from(values).map_err(|error| failed(error.into()))?;
        self.counters.set(reason as u32, values, 0).map_err(failed)
    }
}

macro_rules! socket_tables {
    ($family:ty, $field:ident) => {
        impl SocketTables<$family> for PinnedTables {
            fn sock(&self, key: &SockKey<$family>) -> Result<Option<SockPeer<$family>>, TableError> {
                match self.$field.socks.get(key, 0) {
                    Ok(entry) => Ok(Some(entry)),
                    Err(MapError::KeyNotFound) => Ok(None),
                    Err(error) => Err(TableError { map: "SOCK_REVNAT", error }),
                }
            }

            fn backend(&self, id: u32) -> Result<Option<Backend<$family>>, TableError> {
                match self.$field.backends.get(&id, 0) {
                    Ok(backend) => Ok(Some(backend)),
                    Err(MapError::KeyNotFound | MapError::OutOfBounds { .. }) => Ok(None),
                    Err(error) => Err(TableError { map: <$family as MapFamily>::NAMES.backends, error }),
                }
            }
        }
    };
}
socket_tables!(V4, v4);
socket_tables!(V6, v6);

fn open<M: TryFrom<Map, Error = MapError>>(dir: &Path, map: &'static str) -> Result<M, TableError> {
    let failed = |error| TableError { map, error };
    let data = MapData::from_pin(dir.join(map)).map_err(failed)?;
    Map::from_map_data(data).and_then(M::try_from).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_common::net::Ipv6;

    /// One socket, translated to 10.0.0.1:53, which was backend 3 in its second life.
    struct OneSocket(Backend<V4>);

    const COOKIE: [u32; 2] = [7, 1];

    impl SocketTables<V4> for OneSocket {
        fn sock(&self, key: &SockKey<V4>) -> Result<Option<SockPeer<V4>>, TableError> {
            let addr = std::net::Ipv4Addr::new(10, 0, 0, 1).into();
            let known = SockKey { cookie: COOKIE, addr, port: 53, protocol: UDP, direction: SockDirection::Reply };
            let frontend = std::net::Ipv4Addr::new(10, 96, 0, 10).into();
            let entry = SockPeer { addr: frontend, port: 53, zero: 0, backend_id: 3, generation: 2, check: COOKIE[0] };
            Ok((*key == known).then_some(entry))
        }
        fn backend(&self, id: u32) -> Result<Option<Backend<V4>>, TableError> {
            Ok((id == 3).then_some(self.0))
        }
    }

    impl SocketTables<V6> for OneSocket {
        fn sock(&self, _key: &SockKey<V6>) -> Result<Option<SockPeer<V6>>, TableError> {
            Ok(None)
        }
        fn backend(&self, _id: u32) -> Result<Option<Backend<V6>>, TableError> {
            Ok(Some(Backend {
                addr: Ipv6::from_words([0; 4]),
                port: 0,
                flags: 0,
                state: BackendState::Free,
                generation: 0,
                service: 0,
                weight: 1,
                zero: 0,
            }))
        }
    }

    fn stale(state: BackendState, generation: u32, cookie: [u32; 2], peer: &str) -> bool {
        let addr = std::net::Ipv4Addr::new(10, 0, 0, 1).into();
        let backend = Backend { addr, port: 53, flags: 0, state, generation, service: 1, weight: 1, zero: 0 };
        is_stale(&OneSocket(backend), cookie, peer.parse().unwrap()).unwrap()
    }

    #[test]
    fn only_translated_sockets_of_endpoints_that_left() {
        use BackendState::{Free, Serving};
        assert!(!stale(Serving, 2, COOKIE, "10.0.0.1:53"), "it serves");
        assert!(stale(Free, 3, COOKIE, "10.0.0.1:53"), "it left");
        assert!(stale(Serving, 3, COOKIE, "10.0.0.1:53"), "it left and came back, or the id is another's");
        assert!(!stale(Free, 3, [8, 1], "10.0.0.1:53"), "a socket that talks to the pod itself");
        assert!(!stale(Free, 3, [7, 2], "10.0.0.1:53"), "the same low half of the cookie");
        assert!(!stale(Free, 3, COOKIE, "10.0.0.1:54"), "another port");
        assert!(!stale(Free, 3, COOKIE, "[fd00::1]:53"), "another family");
    }
}
