//! Follows links, addresses, routes and the reverse path filter of the agent's network namespace by rtnetlink and sends them as [`NetChange`]s.

use std::{io, net::IpAddr};

use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    sys::SocketAddr,
};
use tokio::sync::mpsc;

use super::{
    net::{Link, NetChange, NodeNet},
    routes::{Route, RouteKey},
    source_filter,
};

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("open a netlink socket: {0}")]
    Open(#[source] io::Error),
    #[error("list {what} by netlink: {error}")]
    List { what: &'static str, error: rtnetlink::Error },
    #[error("follow rp_filter by netlink: {0}")]
    SourceFilter(#[source] io::Error),
    #[error("the netlink socket was closed")]
    Closed,
}

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Sends the whole state, then every change, until the receiver is dropped. Must be called in the node's network namespace.
pub async fn watch(changes: mpsc::Sender<NetChange>) -> Result<(), WatchError> {
    let (connection, handle, messages) = new_multicast_connection(&GROUPS).map_err(WatchError::Open)?;
    let connection = tokio::spawn(connection);
    let result = tokio::select! {
        result = follow(&handle, messages, &changes) => result,
        result = source_filter::follow(&changes) => result.map_err(WatchError::SourceFilter),
    };
    connection.abort();
    result
}

async fn follow(handle: &Handle, mut messages: Messages, changes: &mpsc::Sender<NetChange>) -> Result<(), WatchError> {
    // The groups were joined before this listing, so no change falls between the two.
    let mut stale = true;
    loop {
        if std::mem::take(&mut stale) {
            let all = NetChange::All(Box::new(list(handle).await?));
            if changes.send(all).await.is_err() {
                return Ok(());
            }
        }
        let (message, _) = messages.next().await.ok_or(WatchError::Closed)?;
        match message.payload {
            // Messages were lost: the socket's buffer was full.
            NetlinkPayload::Overrun(_) => stale = true,
            NetlinkPayload::InnerMessage(inner) => {
                // With an IPv4 address the kernel also drops routes that prefer it as source, without a message.
                stale = matches!(&inner, RouteNetlinkMessage::DelAddress(gone) if gone.header.family == AddressFamily::Inet);
                if let Some(change) = change_of(inner)
                    && changes.send(change).await.is_err()
                {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
}

/// The whole state of the namespace.
pub async fn list(handle: &Handle) -> Result<NodeNet, WatchError> {
    let mut net = NodeNet::default();
    let failed = |what| move |error| WatchError::List { what, error };
    let links: Vec<_> = handle.link().get().execute().try_collect().await.map_err(failed("links"))?;
    let addresses: Vec<_> = handle.address().get().execute().try_collect().await.map_err(failed("addresses"))?;
    for change in links.into_iter().filter_map(link_of).map(NetChange::Link) {
        net.apply(change);
    }
    for change in addresses.iter().filter_map(address_of) {
        net.apply(change);
    }
    let queries = [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ];
    for query in queries {
        let routes: Vec<_> = handle.route().get(query).execute().try_collect().await.map_err(failed("routes"))?;
        for route in routes.iter().filter_map(route_of) {
            net.apply(NetChange::Route(route));
        }
    }
    Ok(net)
}

/// A one-shot listing for commands.
pub async fn snapshot() -> Result<NodeNet, WatchError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(WatchError::Open)?;
    let connection = tokio::spawn(connection);
    let net = list(&handle).await;
    connection.abort();
    net
}

fn change_of(message: RouteNetlinkMessage) -> Option<NetChange> {
    match message {
        RouteNetlinkMessage::NewLink(link) => link_of(link).map(NetChange::Link),
        // A bridge tells of ports that leave it in its own address family; the link itself stays.
        RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            Some(NetChange::LinkGone(link.header.index))
        }
        RouteNetlinkMessage::NewAddress(address) => address_of(&address),
        RouteNetlinkMessage::DelAddress(address) => match address_of(&address)? {
            NetChange::Address { link, address, .. } => Some(NetChange::AddressGone { link, address }),
            _ => None,
        },
        RouteNetlinkMessage::NewRoute(route) => route_of(&route).map(NetChange::Route),
        RouteNetlinkMessage::DelRoute(route) => route_of(&route).map(|route| NetChange::RouteGone(route.key)),
        _ => None,
    }
}

fn link_of(message: LinkMessage) -> Option<Link> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ethernet: matches!(message.header.link_layer_type, LinkLayerType::Ether | LinkLayerType::Loopback),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}

fn address_of(message: &AddressMessage) -> Option<NetChange> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // On point-to-point links ADDRESS is the peer's and LOCAL the node's.
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) => found = found.or(Some(*address)),
            _ => {}
        }
    }
    let late = AddressHeaderFlags::Secondary | AddressHeaderFlags::Deprecated;
    let later = message.header.flags.intersects(late);
    Some(NetChange::Address { link: message.header.index, address: found?, later })
}

/// Only the main table: routes of pods stand there in every known network plugin, and other tables need rules to be judged.
fn route_of(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.source_prefix_length != 0 {
        return None;
    }
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut to, mut metric, mut links) = (unspecified, 0, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = (*address).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = (*address).into(),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => links.push(*index),
            RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    if header.kind != RouteType::Unicast {
        links.clear();
    }
    let to = IpNet::new(to, header.destination_prefix_length).ok()?.trunc();
    links.sort_unstable();
    links.dedup();
    Some(Route { key: RouteKey { to, metric }, links })
}
