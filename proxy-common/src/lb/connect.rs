//! The decision for a socket: the destination is translated once, afterwards packets cost nothing.

use super::new_flow::lookup_service;
use super::select::{Chosen, Client, NotChosen, select_backend};
use super::tables::Tables;
use crate::abi::{
    ADDR_CLUSTER_IP, ADDR_NODE, ADDR_NODEPORT, ADDR_VANISHED, Algorithm, BackendState, CONFIG_CONNECT_HOST,
    CONFIG_CONNECT_PODS, EmptySet, FlowKey, Reason, SERVICE_SOURCE_RANGES, Service, SockDirection, SockKey, SockLoad,
    SockPeer, mix,
};
use crate::net::{Address, Family, Packet, TCP, UDP};

/// A socket on its way to a destination.
#[derive(Clone, Copy)]
pub struct SockRequest<F: Family> {
    pub addr: F::Addr,
    pub port: u16,
    pub protocol: u8,
    pub cookie: u64,
    /// Cookie of the socket's network namespace.
    pub netns: u64,
}

#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SockOutcome<F: Family> {
    /// As it is. Not every reason is worth a count.
    Pass(Reason),
    To {
        addr: F::Addr,
        port: u16,
        reason: Reason,
    },
    /// ECONNREFUSED.
    Refuse,
    /// EHOSTUNREACH.
    Unreachable,
}

/// `connect` and `sendmsg` with a destination.
#[inline(always)]
pub fn connect<F: Family, T: Tables<F>>(tables: &T, request: &SockRequest<F>) -> SockOutcome<F> {
    let config = tables.config();
    let host = request.netns == config.host_netns_cookie;
    if !config.has(if host { CONFIG_CONNECT_HOST } else { CONFIG_CONNECT_PODS })
        || (request.protocol != TCP && request.protocol != UDP)
    {
        return SockOutcome::Pass(Reason::NotOurs);
    }
    let addr_flags = frontend_flags(tables, &request.addr, host);
    if addr_flags == 0 {
        if tables.in_service_cidr(&request.addr) {
            return SockOutcome::Unreachable;
        }
        return SockOutcome::Pass(Reason::NotOurs);
    }
    let Some(service) = lookup_service(tables, &request.addr, request.port, request.protocol, addr_flags) else {
        return if addr_flags & ADDR_CLUSTER_IP != 0 {
            refuse(request)
        } else {
            SockOutcome::Pass(Reason::UnknownPort)
        };
    };
    if service.flags & SERVICE_SOURCE_RANGES != 0 {
        // The client's address is not known before the route is.
        return SockOutcome::Pass(Reason::SockLeft);
    }
    if request.protocol == UDP
        && let Some(peer) = sticky(tables, request)
    {
        show_as(tables, request, &peer);
        return SockOutcome::To { addr: peer.addr, port: peer.port, reason: Reason::SockSticky };
    }
    let hash = match service.algorithm {
        Algorithm::MaglevTuple => socket_hash(request),
        _ => tables.random(),
    };
    let client = Client::by_netns::<F>(hash, request.netns, config.seed);
    let mut chosen = Chosen::NONE;
    match select_backend(tables, &service, &client, &mut chosen) {
        Ok(()) => {
            if matches!(service.algorithm, Algorithm::LeastConnections) && request.protocol == TCP {
                count_socket(tables, request, &chosen);
            }
            translate(tables, request, &chosen)
        }
        Err(NotChosen::Empty(EmptySet::Refuse)) => refuse(request),
        Err(NotChosen::Empty(EmptySet::Drop) | NotChosen::Stale) => SockOutcome::Unreachable,
    }
}

/// What a socket's destination is.
#[inline(always)]
fn frontend_flags<F: Family, T: Tables<F>>(tables: &T, addr: &F::Addr, host: bool) -> u32 {
    if !addr.is_loopback() {
        tables.address(addr) & !ADDR_VANISHED
    } else if host {
        // NodePorts also listen on the node's own loopback; a pod's loopback is the pod's.
        ADDR_NODE | ADDR_NODEPORT
    } else {
        0
    }
}

/// What an application must see instead of the backend `addr:port`: `recvmsg`, `getpeername`.
#[inline(always)]
pub fn reveal<F: Family, T: Tables<F>>(tables: &T, request: &SockRequest<F>) -> Option<(F::Addr, u16)> {
    let key = sock_key(request, SockDirection::Reply);
    let peer = tables.sock(&key)?;
    (peer.check == request.cookie as u32).then_some((peer.addr, peer.port))
}

/// TCP is refused at once; a UDP socket may connect, its packets are refused.
#[inline(always)]
fn refuse<F: Family>(request: &SockRequest<F>) -> SockOutcome<F> {
    if request.protocol == TCP { SockOutcome::Refuse } else { SockOutcome::Pass(Reason::SockLeft) }
}

#[inline(always)]
fn sock_key<F: Family>(request: &SockRequest<F>, direction: SockDirection) -> SockKey<F> {
    SockKey {
        cookie: [request.cookie as u32, (request.cookie >> 32) as u32],
        addr: request.addr,
        port: request.port,
        protocol: request.protocol,
        direction,
    }
}

/// What stands for the five-tuple of a socket that has no port yet.
#[inline(always)]
fn socket_hash<F: Family>(request: &SockRequest<F>) -> u32 {
    let state = mix(mix(u64::from(request.port), request.cookie as u32), (request.cookie >> 32) as u32);
    (request.addr.fold(state, mix) >> 16) as u32
}

/// The end of the socket takes it out again (`hooks/sock_release.rs`). UDP sockets are not counted: nobody says when one that is not
/// connected is done with an endpoint.
#[inline(always)]
fn count_socket<F: Family, T: Tables<F>>(tables: &T, request: &SockRequest<F>, chosen: &Chosen<F>) {
    let (check, family) = (request.cookie as u32, u32::from(F::VERSION));
    // A connect that failed before, on the same socket.
    if let Some(before) = tables.sock_load(request.cookie)
        && before.check == check
        && before.family == family
    {
        tables.add_load(before.backend, -1);
    }
    let load = SockLoad { backend: chosen.id, generation: chosen.backend.generation, family, check };
    tables.put_sock_load(request.cookie, &load);
    tables.add_load(chosen.id, 1);
}

/// The backend that earlier datagrams of this socket to this frontend went to, if it still serves.
#[inline(always)]
fn sticky<F: Family, T: Tables<F>>(tables: &T, request: &SockRequest<F>) -> Option<SockPeer<F>> {
    let peer = tables.sock(&sock_key(request, SockDirection::Request))?;
    if peer.check != request.cookie as u32 {
        return None;
    }
    still_serves(tables, &peer).then_some(peer)
}

/// False once the endpoint that a socket was sent to has left.
#[inline(always)]
fn still_serves<F: Family, T: Tables<F>>(tables: &T, peer: &SockPeer<F>) -> bool {
    match tables.backend(peer.backend_id) {
        Some(backend) => matches!(backend.state, BackendState::Serving) && backend.generation == peer.generation,
        None => false,
    }
}

/// The frontend that the sender of a packet connected to, if its endpoint has left since; the packet still goes there. Written
/// to `frontend`'s destination. Called by the packet path for addresses that such endpoints had.
// A function of its own, for the sake of the caller's stack.
#[inline(never)]
pub(super) fn stale_socket<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, frontend: &mut FlowKey<F>) -> bool {
    let cookie = tables.socket_cookie();
    if cookie == 0 || packet.protocol != UDP {
        return false;
    }
    let key = SockKey {
        cookie: [cookie as u32, (cookie >> 32) as u32],
        addr: packet.tuple.dst,
        port: packet.tuple.dst_port,
        protocol: UDP,
        direction: SockDirection::Reply,
    };
    let Some(peer) = tables.sock(&key) else { return false };
    if peer.check != cookie as u32 || still_serves(tables, &peer) {
        return false;
    }
    frontend.dst = peer.addr;
    frontend.dst_port = peer.port;
    true
}

/// The Service that a stale socket belongs to.
#[inline(always)]
pub(super) fn service_of_socket<F: Family, T: Tables<F>>(tables: &T, frontend: &FlowKey<F>) -> Option<Service> {
    // Only sockets of the node itself were ever translated from a loopback address.
    let flags = frontend_flags(tables, &frontend.dst, true);
    lookup_service(tables, &frontend.dst, frontend.dst_port, UDP, flags)
}

/// Answers of `peer` must be shown as the frontend of `request`: the entry may have been evicted, or tell of another frontend of
/// this socket that shares the backend.
#[inline(always)]
fn show_as<F: Family, T: Tables<F>>(tables: &T, request: &SockRequest<F>, peer: &SockPeer<F>) {
    let there = SockRequest { addr: peer.addr, port: peer.port, ..*request };
    let key = sock_key(&there, SockDirection::Reply);
    let shown = SockPeer { addr: request.addr, port: request.port, ..*peer };
    if tables.sock(&key) != Some(shown) {
        let _ = tables.put_sock(&key, &shown);
    }
}

#[inline(always)]
fn translate<F: Family, T: Tables<F>>(tables: &T, request: &SockRequest<F>, chosen: &Chosen<F>) -> SockOutcome<F> {
    let backend = &chosen.backend;
    let mut peer = SockPeer {
        addr: request.addr,
        port: request.port,
        zero: 0,
        backend_id: chosen.id,
        generation: backend.generation,
        check: request.cookie as u32,
    };
    let there = SockRequest { addr: backend.addr, port: backend.port, ..*request };
    // Without the entry the application would see the backend's address: no reason to fail a connection.
    let _ = tables.put_sock(&sock_key(&there, SockDirection::Reply), &peer);
    if request.protocol == UDP {
        peer.addr = backend.addr;
        peer.port = backend.port;
        let _ = tables.put_sock(&sock_key(request, SockDirection::Request), &peer);
    }
    SockOutcome::To { addr: backend.addr, port: backend.port, reason: Reason::SockTranslated }
}
