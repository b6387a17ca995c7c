//! Addresses of endpoints that left while sockets connected to them could not be ended: ADDR_VANISHED makes the packet path
//! look at the senders of what still goes there. Kept for a while, and not too many. Part of [`super::Reconciler`].

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use proxy_common::{
    abi::ADDR_VANISHED,
    net::{V4, V6},
};

use super::addresses::AddressClaims;
use crate::dataplane::{Actual, MapFamily};

/// After that a connected UDP socket that is used at all has a flow of its own, or its owner has given up.
const LIFETIME: Duration = Duration::from_secs(3600);
const MOST: usize = 4096;

#[derive(Clone, Debug, Default)]
pub(super) struct Vanished {
    until: BTreeMap<IpAddr, Instant>,
}

impl Vanished {
    /// Those in the maps. How old they are is not known.
    pub(super) fn restore(actual: &Actual, now: Instant) -> Self {
        let mut vanished = Self::default();
        vanished.add(marked::<V4>(actual).chain(marked::<V6>(actual)), now);
        vanished
    }

    /// The oldest give way.
    pub(super) fn add(&mut self, ips: impl IntoIterator<Item = IpAddr>, now: Instant) {
        self.until.extend(ips.into_iter().map(|ip| (ip, now + LIFETIME)));
        if let Some(over) = self.until.len().checked_sub(MOST).filter(|over| *over > 0) {
            let mut by_age: Vec<(Instant, IpAddr)> = self.until.iter().map(|(ip, until)| (*until, *ip)).collect();
            by_age.sort_unstable();
            for (_, ip) in &by_age[..over] {
                self.until.remove(ip);
            }
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.until.retain(|_, until| *until > now);
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }

    pub(super) fn claims(&self) -> AddressClaims {
        self.until.keys().map(|ip| (*ip, ADDR_VANISHED)).collect()
    }
}

fn marked<F: MapFamily>(actual: &Actual) -> impl Iterator<Item = IpAddr> {
    F::tables(actual).addrs.iter().filter(|(_, info)| info.flags & ADDR_VANISHED != 0).map(|(addr, _)| F::to_ip(*addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn they_expire_and_the_oldest_give_way() {
        let now = Instant::now();
        let mut vanished = Vanished::default();
        vanished.add([ip(1), ip(2)], now);
        vanished.add([ip(2)], now + Duration::from_secs(1));
        assert_eq!(vanished.next(), Some(now + LIFETIME));
        vanished.expire(now + LIFETIME);
        assert_eq!(vanished.claims(), [(ip(2), ADDR_VANISHED)].into());
        vanished.add((10..10 + MOST as u32).map(ip), now + Duration::from_secs(2));
        assert_eq!(vanished.claims().len(), MOST);
        assert!(!vanished.claims().contains(&(ip(2), ADDR_VANISHED)));
    }
}
