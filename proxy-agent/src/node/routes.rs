//! Which interface leads to an address: the longest prefix over the kernel's main table, as netlink tells it. No system call
//! per look-up.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

/// What makes two routes the same route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    pub to: IpNet,
    pub metric: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub key: RouteKey,
    /// Interfaces of its next hops; empty for routes that lead nowhere (blackhole, unreachable).
    pub links: Vec<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable {
    /// Metric -> interfaces.
    routes: HashMap<IpNet, BTreeMap<u32, Vec<u32>>>,
    /// How many prefixes of each length there are, so that look-ups try only lengths in use.
    lengths_v4: BTreeMap<u8, usize>,
    lengths_v6: BTreeMap<u8, usize>,
}

impl RouteTable {
    pub fn insert(&mut self, route: Route) {
        let to = route.key.to.trunc();
        let by_metric = self.routes.entry(to).or_default();
        let is_first = by_metric.is_empty();
        by_metric.insert(route.key.metric, route.links);
        if is_first {
            *self.lengths_mut(to).entry(to.prefix_len()).or_default() += 1;
        }
    }

    pub fn remove(&mut self, key: &RouteKey) {
        let to = key.to.trunc();
        if let Some(by_metric) = self.routes.get_mut(&to)
            && by_metric.remove(&key.metric).is_some()
            && by_metric.is_empty()
        {
            self.forget_prefix(to);
        }
    }

    /// The kernel drops IPv4 routes of an interface that went down or away without saying so.
    pub fn remove_link(&mut self, index: u32) {
        let mut emptied = Vec::new();
        for (to, by_metric) in &mut self.routes {
            by_metric.retain(|_, links| {
                let had_links = !links.is_empty();
                links.retain(|link| *link != index);
                !had_links || !links.is_empty()
            });
            if by_metric.is_empty() {
                emptied.push(*to);
            }
        }
        for to in emptied {
            self.forget_prefix(to);
        }
    }

    /// The interfaces of the most specific route to `address`; of equal ones that with the lowest metric.
    pub fn links_to(&self, address: IpAddr) -> Option<&[u32]> {
        let lengths = if address.is_ipv4() { &self.lengths_v4 } else { &self.lengths_v6 };
        lengths.keys().rev().find_map(|length| {
            let prefix = IpNet::new(address, *length).ok()?.trunc();
            Some(self.routes.get(&prefix)?.values().next()?.as_slice())
        })
    }

    /// True if a default route leaves by this interface.
    pub fn is_default(&self, index: u32) -> bool {
        let defaults = [IpNet::from(IpAddr::from([0_u8; 4])), IpNet::from(IpAddr::from([0_u8; 16]))];
        defaults.iter().any(|host| {
            let everything = IpNet::new(host.addr(), 0).expect("invariant: 0 is a valid prefix length");
            self.routes
                .get(&everything)
                .is_some_and(|by_metric| by_metric.values().flatten().any(|link| *link == index))
        })
    }

    fn forget_prefix(&mut self, to: IpNet) {
        self.routes.remove(&to);
        let lengths = self.lengths_mut(to);
        if let Some(count) = lengths.get_mut(&to.prefix_len()) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&to.prefix_len());
            }
        }
    }

    fn lengths_mut(&mut self, to: IpNet) -> &mut BTreeMap<u8, usize> {
        match to {
            IpNet::V4(_) => &mut self.lengths_v4,
            IpNet::V6(_) => &mut self.lengths_v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(to: &str, metric: u32, links: &[u32]) -> Route {
        Route { key: RouteKey { to: to.parse().unwrap(), metric }, links: links.to_vec() }
    }

    fn links_to<'a>(table: &'a RouteTable, address: &str) -> Option<&'a [u32]> {
        table.links_to(address.parse().unwrap())
    }

    #[test]
    fn most_specific_then_lowest_metric() {
        let mut table = RouteTable::default();
        for r in [
            route("0.0.0.0/0", 100, &[2]),
            route("10.244.0.0/16", 0, &[3]),
            route("10.244.1.0/24", 50, &[4]),
            route("10.244.1.0/24", 10, &[5]),
            route("10.244.1.9/32", 0, &[6]),
            route("::/0", 1024, &[2]),
            route("fd00:1::/64", 256, &[7]),
        ] {
            table.insert(r);
        }
        assert_eq!(links_to(&table, "10.244.1.9"), Some(&[6][..]));
        assert_eq!(links_to(&table, "10.244.1.8"), Some(&[5][..]));
        assert_eq!(links_to(&table, "10.244.2.8"), Some(&[3][..]));
        assert_eq!(links_to(&table, "192.0.2.1"), Some(&[2][..]));
        assert_eq!(links_to(&table, "fd00:1::9"), Some(&[7][..]));
        assert_eq!(links_to(&table, "fd00:2::9"), Some(&[2][..]));
        assert!(table.is_default(2) && !table.is_default(3));

        table.remove(&route("10.244.1.9/32", 0, &[]).key);
        table.remove(&route("10.244.1.0/24", 10, &[]).key);
        assert_eq!(links_to(&table, "10.244.1.9"), Some(&[4][..]));
        table.remove_link(4);
        assert_eq!(links_to(&table, "10.244.1.9"), Some(&[3][..]));
        table.remove_link(2);
        assert_eq!(links_to(&table, "192.0.2.1"), None);
        assert!(!table.is_default(2));
    }

    #[test]
    fn a_route_that_leads_nowhere_hides_wider_ones() {
        let mut table = RouteTable::default();
        table.insert(route("10.0.0.0/8", 0, &[3]));
        table.insert(route("10.9.0.0/16", 0, &[]));
        table.remove_link(99);
        assert_eq!(links_to(&table, "10.9.1.1"), Some(&[][..]));
        table.remove(&route("10.9.0.0/16", 0, &[]).key);
        table.remove(&route("10.9.0.0/16", 0, &[]).key);
        assert_eq!(links_to(&table, "10.9.1.1"), Some(&[3][..]));
    }
}
