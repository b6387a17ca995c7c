//! The annotations that say how endpoints are chosen: weir.dev/algorithm of a Service, weir.dev/weight of an EndpointSlice. Called when
//! these are reduced. docs/operations.md ("Schedulers") describes both.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proxy_common::abi::Algorithm;

use super::{ALGORITHM_ANNOTATION, Skips, WEIGHT_ANNOTATION, address::parse_ip, annotation};
use crate::model::SkipReason;

/// Weir's names, then those of IPVS that mean something else there but come closest.
const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("random", Algorithm::Random),
    ("rr", Algorithm::RoundRobin),
    ("maglev", Algorithm::Maglev),
    ("maglev-5tuple", Algorithm::MaglevTuple),
    ("lc", Algorithm::LeastConnections),
    ("sh", Algorithm::Maglev),
    ("dh", Algorithm::MaglevTuple),
    ("sed", Algorithm::LeastConnections),
    ("nq", Algorithm::LeastConnections),
];

/// An endpoint's without an annotation.
const DEFAULT_WEIGHT: u16 = 1;

/// A name that nobody knows means random, as none does.
pub(super) fn algorithm(metadata: &ObjectMeta, skips: &mut Skips) -> Algorithm {
    let Some(text) = annotation(metadata, ALGORITHM_ANNOTATION) else { return Algorithm::Random };
    let known = ALGORITHMS.iter().find(|(name, _)| *name == text.trim());
    if known.is_none() {
        skips.add(format!("metadata.annotations[{ALGORITHM_ANNOTATION}]"), text, SkipReason::InvalidAlgorithm);
    }
    known.map_or(Algorithm::Random, |(_, algorithm)| *algorithm)
}

/// The weights of a slice's endpoints.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Weights {
    all: u16,
    of: BTreeMap<IpAddr, u16>,
}

impl Weights {
    /// `5`, `10.1.2.3=5,10.1.2.4=1`, or both. An item that makes no sense leaves its endpoints the weight 1.
    pub(super) fn read(metadata: &ObjectMeta, skips: &mut Skips) -> Self {
        let mut weights = Self { all: DEFAULT_WEIGHT, of: BTreeMap::new() };
        let text = annotation(metadata, WEIGHT_ANNOTATION).unwrap_or_default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            if !weights.take(item) {
                skips.add(format!("metadata.annotations[{WEIGHT_ANNOTATION}]"), item, SkipReason::InvalidWeight);
            }
        }
        weights
    }

    fn take(&mut self, item: &str) -> bool {
        let Some((address, number)) = item.split_once('=') else {
            let weight = item.parse().ok();
            self.all = weight.unwrap_or(self.all);
            return weight.is_some();
        };
        let (Some(address), weight) = (parse_ip(address.trim()), number.trim().parse().ok()) else { return false };
        // Also where it cannot be read: not the weight of the others.
        self.of.insert(address, weight.unwrap_or(DEFAULT_WEIGHT));
        weight.is_some()
    }

    pub(super) fn of(&self, address: IpAddr) -> u16 {
        self.of.get(&address).copied().unwrap_or(self.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(name: &str, value: &str) -> ObjectMeta {
        ObjectMeta { annotations: Some(BTreeMap::from([(name.to_owned(), value.to_owned())])), ..ObjectMeta::default() }
    }

    fn weights(text: &str) -> (Weights, Vec<String>) {
        let metadata = annotated(WEIGHT_ANNOTATION, text);
        let mut skips = Skips::of("EndpointSlice", &metadata);
        let weights = Weights::read(&metadata, &mut skips);
        (weights, skips.list.iter().map(|skip| skip.got.clone()).collect())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn every_name_is_known_and_another_one_is_named() {
        let read = |text: &str| {
            let metadata = annotated(ALGORITHM_ANNOTATION, text);
            let mut skips = Skips::of("Service", &metadata);
            (algorithm(&metadata, &mut skips), skips.list)
        };
        for (name, algorithm) in ALGORITHMS {
            assert_eq!(read(name), (algorithm, Vec::new()));
        }
        let (algorithm, skips) = read("wlc-2");
        assert_eq!(algorithm, Algorithm::Random);
        let [skip] = &skips[..] else { panic!("{skips:?}") };
        assert_eq!(
            skip.to_string(),
            "Service : metadata.annotations[weir.dev/algorithm]: expected random, rr, maglev, maglev-5tuple or lc, \
             got \"wlc-2\""
        );
        assert_eq!(
            super::algorithm(&ObjectMeta::default(), &mut Skips::of("Service", &ObjectMeta::default())),
            Algorithm::Random
        );
    }

    #[test]
    fn weights_of_all_and_of_some() {
        let (found, skips) = weights("2, 10.1.2.3=5,fd00::1=0");
        assert_eq!(skips, [""; 0]);
        assert_eq!([found.of(ip("10.1.2.3")), found.of(ip("fd00::1")), found.of(ip("10.1.2.4"))], [5, 0, 2]);
        let (found, skips) = weights("");
        assert_eq!((found.of(ip("10.1.2.3")), skips.len()), (1, 0));
    }

    #[test]
    fn what_makes_no_sense_is_named_and_weighs_one() {
        let (found, skips) = weights("-1,10.1.2.3=70000,10.1.2.4=7,nobody=3,10.1.2.5=");
        assert_eq!(skips, ["-1", "10.1.2.3=70000", "nobody=3", "10.1.2.5="]);
        let of = |text| found.of(ip(text));
        assert_eq!([of("10.1.2.3"), of("10.1.2.4"), of("10.1.2.5"), of("10.1.2.6")], [1, 7, 1, 1]);
    }
}
