//! The connection tables in words, one entry a line, sorted: what two executors compare after each packet.

use std::fmt::Write;

use proxy_common::net::Family;

use super::tables::{Flows, FlowsOf};

pub(super) fn flows_text(flows: &Flows) -> String {
    let mut text = String::new();
    family_text(&flows.v4, &mut text);
    family_text(&flows.v6, &mut text);
    for (key, value) in flows.affinity.borrow().iter() {
        let _ = writeln!(
            text,
            "affinity of service-port {} {:?} {:08x?}: backend {} generation {} used {}",
            key.service, key.by, key.client, value.backend, value.generation, value.last_used_s
        );
    }
    for (set, turn) in flows.cursors.borrow().iter() {
        let _ = writeln!(text, "cursor of set {set}: {turn}");
    }
    text
}

fn family_text<F: Family>(flows: &FlowsOf<F>, text: &mut String) {
    let settled = flows.conntrack.borrow();
    let new = flows.new_flows.borrow();
    let all = settled.iter().map(|entry| ("", entry)).chain(new.iter().map(|entry| ("new: ", entry)));
    for (table, (key, flow)) in all {
        let _ = writeln!(
            text,
            "{table}{:?} {} {}:{} > {}:{}: {:?} client port {} frontend {}:{} backend {}:{} ({}, generation {}) source {}:{} \
             interface {} seen {} healed {} flags {:#x} check {:08x}",
            flow.kind,
            key.protocol,
            key.src,
            key.src_port,
            key.dst,
            key.dst_port,
            flow.state,
            flow.client_port,
            flow.frontend,
            flow.frontend_port,
            flow.backend,
            flow.backend_port,
            flow.backend_id,
            flow.generation,
            flow.source,
            flow.source_port,
            flow.ifindex,
            flow.last_seen_s,
            flow.healed_s,
            flow.flags,
            flow.check,
        );
    }
    let settled = flows.snat.borrow();
    let new = flows.new_snat.borrow();
    let all = settled.iter().map(|entry| ("", entry)).chain(new.iter().map(|entry| ("new: ", entry)));
    for (table, (key, entry)) in all {
        let _ = writeln!(
            text,
            "{table}snat {} {}:{} > {}:{}: {:?} client {}:{} seen {} flags {:#x} check {:08x}",
            key.protocol,
            key.src,
            key.src_port,
            key.dst,
            key.dst_port,
            entry.state,
            entry.client,
            entry.client_port,
            entry.last_seen_s,
            entry.flags,
            entry.check,
        );
    }
    for (backend, load) in flows.loads.borrow().iter() {
        let _ = writeln!(text, "load of backend {backend}: {}", load.cast_signed());
    }
    for (key, entry) in flows.frags.borrow().iter() {
        let _ = writeln!(
            text,
            "fragments {} egress {} {} > {} of {:#x}: {} > {} interface {} bounce {} backend {} seen {} check {:08x}",
            key.protocol,
            key.egress,
            key.src,
            key.dst,
            key.id,
            entry.src,
            entry.dst,
            entry.ifindex,
            entry.bounce,
            entry.backend,
            entry.seen_s,
            entry.check,
        );
    }
}
