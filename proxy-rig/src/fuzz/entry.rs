//! What any bytes must not break: the packet parser, and the way of objects into maps. Called by the cargo-fuzz targets in
//! `fuzz/`, and by the tests below with a corpus, damaged copies of it and random bytes.

use std::collections::BTreeMap;

use proxy_agent::sources::manifests::Manifests;
use proxy_common::net::{ETH_LEN, Fragment, Packet, ParseFamily, V4, V6, parse_packet};

use super::shrink::node_of;
use crate::scenario::{Machine, ModelMachine, checksums_are_right, describe};

/// Parses bytes as a frame of either family. Panics if the parser does, or if it names ports that are not there.
pub fn parser(bytes: &[u8]) {
    parse_as::<V4>(bytes);
    parse_as::<V6>(bytes);
    let _ = describe(bytes);
    let _ = checksums_are_right(bytes);
}

fn parse_as<F: ParseFamily>(bytes: &[u8]) {
    let mut packet = Packet::<F>::EMPTY;
    if parse_packet(bytes, ETH_LEN, &mut packet).is_err() {
        return;
    }
    let (l3, l4) = (packet.l3_offset as usize, packet.l4_offset as usize);
    assert!(l3 == ETH_LEN && l4 > l3 && l4 <= bytes.len(), "{packet:?} of {} bytes", bytes.len());
    if packet.fragment != Fragment::Later && packet.has_ports() {
        let ports = [packet.tuple.src_port.to_be_bytes(), packet.tuple.dst_port.to_be_bytes()].concat();
        assert_eq!(bytes.get(l4..l4 + 4), Some(&ports[..]), "{packet:?}");
    }
}

/// Reads bytes as a manifest file, twice, and programs what came of it. Panics if any of the agent's code does, or if the
/// same text brings changes a second time.
pub fn ingestion(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let cidrs = ["10.96.0.0/12", "fd00:96::/112"].map(|cidr| cidr.parse().expect("invariant: a CIDR"));
    let mut manifests = Manifests::new(cidrs.to_vec());
    let file = |name: &str| BTreeMap::from([(name.to_owned(), Ok(text.to_owned()))]);
    let update = manifests.update(file("objects.yaml"));
    let again = manifests.update(file("objects.yaml"));
    assert!(again.events.is_empty(), "the same text again: {:?}", again.events);
    if update.events.is_empty() {
        return;
    }
    let node = node_of("").expect("invariant: the node of a scenario that names none");
    let mut model = ModelMachine::new(node).expect("invariant: empty fake maps can be read");
    // What cannot be programmed is an error and no panic.
    if model.program(&update.events).is_ok() {
        model.dump().expect("the maps hold what the agent remembers");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::{super::packets::Packets, *};

    fn damaged(random: &mut StdRng, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        for _ in 0..random.random_range(1..8) {
            if bytes.is_empty() {
                break;
            }
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..5) {
                0 => bytes[at] = random.random(),
                1 => bytes[at] ^= 1 << random.random_range(0..8),
                2 => bytes.truncate(at),
                3 => {
                    bytes.remove(at);
                }
                _ => {
                    // A piece of it comes twice, or in another place.
                    let end = (at + random.random_range(1..40)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = random.random_range(0..=bytes.len());
                    bytes.splice(to..to, piece);
                }
            }
        }
        bytes
    }

    #[test]
    fn the_parser_takes_any_bytes() {
        let mut random = StdRng::seed_from_u64(1);
        let mut packets = Packets::new(None);
        for _ in 0..20_000 {
            let (_, frame) = packets.next(&mut random);
            parser(&frame);
            parser(&damaged(&mut random, &frame));
            packets.left(&mut random, frame);
            let len = random.random_range(0..128);
            parser(&(0..len).map(|_| random.random()).collect::<Vec<u8>>());
        }
        let (_, frame) = packets.next(&mut random);
        for len in 0..frame.len() {
            parser(&frame[..len]);
        }
    }

    #[test]
    fn ingestion_takes_any_text() {
        let mut random = StdRng::seed_from_u64(1);
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let mut seen = 0;
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let original = fs::read(&path).unwrap();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            seen += 1;
            ingestion(&original);
            for _ in 0..100 {
                ingestion(&damaged(&mut random, &original));
            }
        }
        assert!(seen > 5, "the examples are the corpus");
        for _ in 0..200 {
            let number = random.random_range(0..4);
            let objects = super::super::objects::service(&mut random, number);
            for object in objects {
                ingestion(object.to_string().as_bytes());
                ingestion(&damaged(&mut random, object.to_string().as_bytes()));
            }
        }
    }
}
