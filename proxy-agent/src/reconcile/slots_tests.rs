//! What rings hold: shares by weight, spread, and Maglev's two promises, balance and little movement.

use super::*;

fn members(weights: &[u16]) -> Vec<Member> {
    let member = |(last, weight): (u32, &u16)| Member {
        address: std::net::Ipv4Addr::from_bits(0x0af4_0100 + last).into(),
        port: 9376,
        weight: *weight,
    };
    (0..).zip(weights).map(member).collect()
}

fn counts(slots: &[usize], members: usize) -> Vec<usize> {
    let mut counts = vec![0; members];
    slots.iter().for_each(|slot| counts[*slot] += 1);
    counts
}

fn ring(weights: &[u16]) -> Vec<usize> {
    slots(Algorithm::RoundRobin, &members(weights), MAGLEV_TABLE_SIZE)
}

#[test]
fn equal_weights_are_one_slot_each() {
    assert_eq!(ring(&[1, 1, 1]), [0, 1, 2]);
    assert_eq!(ring(&[50, 50, 50]), [0, 1, 2]);
    assert!(ring(&[]).is_empty());
    assert!(slots(Algorithm::Maglev, &[], MAGLEV_TABLE_SIZE).is_empty());
}

#[test]
fn weights_are_shares_and_turns_are_spread() {
    assert_eq!(ring(&[10, 30]), [1, 0, 1, 1]);
    let slots = ring(&[5, 1, 1]);
    assert_eq!(counts(&slots, 3), [5, 1, 1]);
    let longest = slots.chunk_by(|a, b| a == b).map(<[usize]>::len).max();
    assert!(longest <= Some(3), "{slots:?}");
}

#[test]
fn unequal_weights_without_a_common_divisor_are_rounded() {
    let slots = ring(&[65535, 32768, 1]);
    let counts = counts(&slots, 3);
    assert!(slots.len() <= WEIGHTED_SLOTS_MAX + 3, "{}", slots.len());
    assert_eq!(counts[2], 1, "nobody is forgotten");
    let share = counts[0] as f64 / counts[1] as f64;
    assert!((share - 2.0).abs() < 0.01, "{counts:?}");
}

#[test]
fn maglev_is_balanced() {
    for count in [1, 2, 3, 7, 50, 163] {
        let slots = slots(Algorithm::Maglev, &members(&vec![1; count]), MAGLEV_TABLE_SIZE);
        assert_eq!(slots.len(), MAGLEV_TABLE_SIZE as usize);
        let counts = counts(&slots, count);
        let (least, most) = (counts.iter().min().expect("some"), counts.iter().max().expect("some"));
        assert!(most - least <= 1, "{count} members: {least} to {most} slots");
    }
    let counts = counts(&slots(Algorithm::MaglevTuple, &members(&[1, 2, 5]), MAGLEV_TABLE_SIZE), 3);
    let part = |slots: usize| slots as f64 / f64::from(MAGLEV_TABLE_SIZE);
    for (got, wanted) in counts.iter().zip([0.125, 0.25, 0.625]) {
        assert!((part(*got) - wanted).abs() < 0.001, "{counts:?}");
    }
}

/// Of all slots, the part that names another member once `gone` has left.
fn moved(members: &[Member], gone: usize) -> f64 {
    let before = slots(Algorithm::Maglev, members, MAGLEV_TABLE_SIZE);
    let mut rest = members.to_vec();
    rest.remove(gone);
    let after = slots(Algorithm::Maglev, &rest, MAGLEV_TABLE_SIZE);
    let moved = before.iter().zip(&after).filter(|(before, after)| members[**before] != rest[**after]).count();
    moved as f64 / before.len() as f64
}

#[test]
fn one_that_leaves_moves_little_else() {
    for count in [2, 3, 5, 10, 20, 50, 100, 163, 300] {
        let members = members(&vec![1; count]);
        for gone in (0..count).step_by(count.div_ceil(5)) {
            let moved = moved(&members, gone);
            let bound = 1.0 / count as f64 + 0.02;
            assert!(moved <= bound, "one of {count} left, {:.2} % of the clients moved", 100.0 * moved);
        }
    }
}

#[test]
fn a_weight_that_changes_moves_its_part_alone() {
    let before = members(&[10; 10]);
    let mut after = before.clone();
    after[3].weight = 5;
    let table = |members: &[Member]| slots(Algorithm::Maglev, members, MAGLEV_TABLE_SIZE);
    let moved = table(&before).iter().zip(table(&after)).filter(|(a, b)| **a != *b).count();
    let moved = moved as f64 / f64::from(MAGLEV_TABLE_SIZE);
    assert!(moved < 0.05 + 0.02, "{:.2} % moved", 100.0 * moved);
}

#[test]
fn the_table_is_the_same_in_every_build() {
    let table = slots(Algorithm::Maglev, &members(&[1, 1, 1]), 251);
    // By another implementation.
    assert_eq!(table[..12], [2, 1, 0, 2, 0, 2, 0, 2, 2, 0, 2, 1]);
    let v6 = Member { address: "fd00::1".parse().expect("an address"), port: 80, weight: 1 };
    assert_eq!([digest(&v6, 1), digest(&members(&[1])[0], 1)], [0x036e_ad62_4cbb_db30, 0x4444_ece5_151b_e67b]);
}

#[test]
fn primes() {
    assert!([2, 3, 251, 4093, 16381, 65521, 131_071].into_iter().all(is_prime));
    assert!([0, 1, 4, 16384, 65536, 99_999].into_iter().all(|it| !is_prime(it)));
}
