//! Source ports of Weir's range that the node uses already when the programs come: chosen by a masquerade rule (kube-proxy's
//! or another's), or by a socket. An answer to one of them that comes before the node's next packet would be taken for a
//! stray one and dropped. So they are written to SNAT as the programs write them, which keeps them for their owners, too.
//!
//! Called by the agent when it attaches to a node where it was not before.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use proxy_common::{
    abi::{FlowKey, FlowState, SnatEntry, names},
    net::{V4, V6},
};

use super::kernel_flows::{KernelFlow, kernel_flows};
use crate::{
    dataplane::MapFamily,
    node::{self, ports::PortRange},
};

const BPF_NOEXIST: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error("list the addresses of the node: {0}")]
    Addresses(#[from] nix::errno::Errno),
    #[error("list the connections that the kernel tracks: {0}")]
    Connections(#[from] io::Error),
    #[error("write to {map}: {error}")]
    Write { map: &'static str, error: MapError },
}

/// What to look for, and where to write it.
#[derive(Clone, Debug)]
pub struct Adoption {
    pub pin_dir: PathBuf,
    pub ports: PortRange,
}

impl Adoption {
    /// Returns how many connections were written. Those that are known stay as they are.
    pub fn run(&self) -> Result<usize, AdoptError> {
        let own: BTreeSet<IpAddr> = own_addresses()?;
        let flows = kernel_flows()?;
        let wanted: Vec<&KernelFlow> = flows.iter().filter(|flow| self.concerns(flow, &own)).collect();
        if wanted.is_empty() {
            return Ok(0);
        }
        Ok(write::<V4>(&self.pin_dir, names::SNAT_V4, &wanted)? + write::<V6>(&self.pin_dir, names::SNAT_V6, &wanted)?)
    }

    fn concerns(&self, flow: &KernelFlow, own: &BTreeSet<IpAddr>) -> bool {
        let port = flow.answer_to.port();
        let ours = port >= self.ports.first && port <= self.ports.last;
        ours && flow.is_open() && own.contains(&flow.answer_to.ip()) && !own.contains(&flow.answer_from.ip())
    }
}

fn own_addresses() -> Result<BTreeSet<IpAddr>, nix::errno::Errno> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|it| {
        let address = it.address?;
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
    });
    Ok(addresses.collect())
}

fn write<F: MapFamily>(dir: &Path, map: &'static str, flows: &[&KernelFlow]) -> Result<usize, AdoptError>
where
    FlowKey<F>: Pod,
    SnatEntry<F>: Pod,
{
    let failed = |error| AdoptError::Write { map, error };
    let data = MapData::from_pin(dir.join(map)).map_err(failed)?;
    let mut table =
        Map::from_map_data(data).and_then(HashMap::<_, FlowKey<F>, SnatEntry<F>>::try_from).map_err(failed)?;
    let mut written = 0;
    for (key, entry) in flows.iter().filter_map(|flow| entry::<F>(flow)) {
        match table.insert(key, entry, BPF_NOEXIST) {
            Ok(()) => written += 1,
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(written)
}

/// The answer's tuple is the key; its destination is the owner and is not translated.
fn entry<F: MapFamily>(flow: &KernelFlow) -> Option<(FlowKey<F>, SnatEntry<F>)> {
    let (from, to) = (F::from_ip(flow.answer_from.ip())?, F::from_ip(flow.answer_to.ip())?);
    let key = FlowKey::new(from, flow.answer_from.port(), to, flow.answer_to.port(), flow.protocol);
    let entry = SnatEntry {
        client: to,
        client_port: flow.answer_to.port(),
        state: FlowState::Established,
        flags: 0,
        last_seen_s: node::seconds_since_boot(),
        check: key.check(),
    };
    Some((key, entry))
}

#[cfg(test)]
mod tests {
    use proxy_common::net::TCP;

    use super::*;

    fn flow(answer_from: &str, answer_to: &str) -> KernelFlow {
        let [from, to] = ["192.0.2.1:40000", "172.18.0.11:30080"].map(|it| it.parse().unwrap());
        let (answer_from, answer_to) = (answer_from.parse().unwrap(), answer_to.parse().unwrap());
        KernelFlow { protocol: TCP, from, to, answer_from, answer_to, tcp_state: Some(3) }
    }

    #[test]
    fn ports_of_the_range_on_own_addresses() {
        let adoption = Adoption { pin_dir: PathBuf::new(), ports: PortRange { first: 61000, last: 65535 } };
        let own = ["172.18.0.11".parse().unwrap()].into();
        let concerns = |from: &str, to: &str| adoption.concerns(&flow(from, to), &own);
        assert!(concerns("10.244.2.1:8080", "172.18.0.11:61000"));
        assert!(!concerns("10.244.2.1:8080", "172.18.0.11:60999"));
        assert!(!concerns("10.244.2.1:8080", "192.0.2.1:61000"), "a client's own port");
        assert!(!concerns("172.18.0.11:8080", "172.18.0.11:61000"), "by lo");
        let over = KernelFlow { tcp_state: Some(7), ..flow("10.244.2.1:8080", "172.18.0.11:61000") };
        assert!(!adoption.concerns(&over, &own));
    }

    #[test]
    fn the_owner_is_the_node() {
        let flow = flow("10.244.2.1:8080", "172.18.0.11:61000");
        let (key, entry) = entry::<V4>(&flow).unwrap();
        assert_eq!((key.dst, key.dst_port, key.src_port), (entry.client, entry.client_port, 8080));
        assert_eq!(entry.check, key.check());
        assert!(super::entry::<V6>(&flow).is_none());
    }
}
