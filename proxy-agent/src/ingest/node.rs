//! core/v1 Node to the model.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::{Reduced, Skips, ZONE_LABEL, address::parse_ip, label};
use crate::model::{Node, SkipReason};

/// Set by the cluster autoscaler before it removes a node.
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

pub fn reduce_node(object: &core::Node) -> Reduced<Node> {
    let metadata = &object.metadata;
    let mut skips = Skips::of("Node", metadata);
    let Some(name) = metadata.name.as_deref().filter(|name| !name.is_empty()) else {
        skips.add("metadata.name", "", SkipReason::MissingName);
        return skips.nothing();
    };
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let node = Node {
        name: name.into(),
        internal_ips: addresses(object, "InternalIP", &mut skips),
        external_ips: addresses(object, "ExternalIP", &mut skips),
        zone: label(metadata, ZONE_LABEL).filter(|zone| !zone.is_empty()).map(Into::into),
        deleting: metadata.deletion_timestamp.is_some(),
        leaving: taints.iter().any(|taint| taint.key == AUTOSCALER_TAINT),
    };
    skips.with(node)
}

fn addresses(object: &core::Node, kind: &str, skips: &mut Skips) -> Vec<IpAddr> {
    let listed = object.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut found = Vec::new();
    for (index, entry) in listed.iter().enumerate().filter(|(_, entry)| entry.type_ == kind) {
        match parse_ip(&entry.address) {
            Some(address) if !found.contains(&address) => found.push(address),
            Some(_) => {}
            None => {
                let field = format!("status.addresses[{index}].address");
                skips.add(field, entry.address.as_str(), SkipReason::InvalidIp);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_zone_and_signs_of_leaving() {
        let object: core::Node = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "node-a",
                "labels": {"topology.kubernetes.io/zone": "z1"},
                "deletionTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"taints": [{"key": AUTOSCALER_TAINT, "effect": "NoSchedule"}]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "node-a"},
                {"type": "ExternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "InternalIP", "address": "nonsense"},
            ]},
        }))
        .expect("a Node");
        let Reduced { value, skips } = reduce_node(&object);
        let node = value.expect("a node");
        assert_eq!(node.internal_ips, ["10.0.0.1".parse::<IpAddr>().expect("ip"), "fd00::1".parse().expect("ip")]);
        assert_eq!(node.external_ips, ["192.0.2.1".parse::<IpAddr>().expect("ip")]);
        assert_eq!(node.zone.as_deref(), Some("z1"));
        assert!(node.deleting && node.leaving);
        assert_eq!(skips.len(), 1);
        assert_eq!(
            skips[0].to_string(),
            "Node node-a: status.addresses[4].address: expected an IP address, got \"nonsense\""
        );
    }

    #[test]
    fn a_node_without_a_name_is_skipped() {
        let Reduced { value, skips } = reduce_node(&core::Node::default());
        assert!(value.is_none());
        assert_eq!(skips[0].reason, SkipReason::MissingName);
    }
}
