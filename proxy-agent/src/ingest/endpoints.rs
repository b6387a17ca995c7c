//! core/v1 Endpoints to EndpointSlices, as the mirroring controller of a cluster writes them.
//!
//! Called by the manifest source for Endpoints that no EndpointSlice stands for; in a cluster the
//! controller has done it.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{SERVICE_NAME_LABEL, address::parse_ip};

/// One slice per subset and family. The names hold a colon, which no name from an API server can.
pub fn slices_of_endpoints(object: &core::Endpoints) -> Vec<discovery::EndpointSlice> {
    let subsets = object.subsets.as_deref().unwrap_or_default();
    subsets.iter().enumerate().flat_map(|(index, subset)| slices_of_subset(object, index, subset)).collect()
}

fn slices_of_subset(
    object: &core::Endpoints,
    index: usize,
    subset: &core::EndpointSubset,
) -> Vec<discovery::EndpointSlice> {
    let mut by_family: BTreeMap<&str, Vec<discovery::Endpoint>> = BTreeMap::new();
    for (addresses, ready) in [(&subset.addresses, true), (&subset.not_ready_addresses, false)] {
        for address in addresses.as_deref().unwrap_or_default() {
            // An unreadable address goes where its spelling points; reducing the slice reports it.
            let v6 = parse_ip(&address.ip).map_or_else(|| address.ip.contains(':'), |ip| ip.is_ipv6());
            by_family.entry(if v6 { "IPv6" } else { "IPv4" }).or_default().push(endpoint(address, ready));
        }
    }
    let name = object.metadata.name.as_deref().unwrap_or_default();
    by_family
        .into_iter()
        .map(|(family, endpoints)| discovery::EndpointSlice {
            metadata: ObjectMeta {
                name: Some(format!("{name}:endpoints:{index}:{}", family.to_lowercase())),
                namespace: object.metadata.namespace.clone(),
                // The mirroring controller copies them, too.
                annotations: object.metadata.annotations.clone(),
                labels: Some(BTreeMap::from([(SERVICE_NAME_LABEL.to_owned(), name.to_owned())])),
                ..ObjectMeta::default()
            },
            address_type: family.to_owned(),
            endpoints,
            ports: Some(subset.ports.as_deref().unwrap_or_default().iter().map(port).collect()),
        })
        .collect()
}

fn endpoint(address: &core::EndpointAddress, ready: bool) -> discovery::Endpoint {
    discovery::Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(discovery::EndpointConditions {
            ready: Some(ready),
            serving: Some(ready),
            terminating: Some(false),
        }),
        node_name: address.node_name.clone(),
        ..discovery::Endpoint::default()
    }
}

fn port(port: &core::EndpointPort) -> discovery::EndpointPort {
    discovery::EndpointPort {
        app_protocol: port.app_protocol.clone(),
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ingest::{Interner, reduce_slice},
        model::Family,
    };

    #[test]
    fn subsets_become_slices_by_family_with_unready_addresses_marked() {
        let object: core::Endpoints = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "db", "namespace": "default"},
            "subsets": [{
                "addresses": [{"ip": "192.0.2.42"}, {"ip": "2001:db8::42", "nodeName": "node-a"}],
                "notReadyAddresses": [{"ip": "192.0.2.43"}],
                "ports": [{"port": 9376}],
            }],
        }))
        .expect("Endpoints");
        let mut names = Interner::default();
        let slices: Vec<_> =
            slices_of_endpoints(&object).iter().filter_map(|slice| reduce_slice(slice, &mut names).value).collect();
        assert_eq!(slices.len(), 2);
        assert_eq!((slices[0].family, slices[1].family), (Family::V4, Family::V6));
        assert_eq!(slices[0].service.to_string(), "default/db");
        assert_eq!((&*slices[0].ports[0].name, slices[0].ports[0].port), ("", 9376));
        let ready: Vec<_> = slices[0].endpoints.iter().map(|it| (it.ready, it.serving)).collect();
        assert_eq!(ready, [(true, true), (false, false)]);
        assert_eq!(slices[1].endpoints[0].node.as_deref(), Some("node-a"));
    }
}
