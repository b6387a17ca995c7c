//! discovery.k8s.io/v1 EndpointSlice to the model.

use std::sync::Arc;

use k8s_openapi::{api::discovery::v1 as discovery, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};

use super::{
    HEADLESS_LABEL, Interner, LAST_CHANGE_ANNOTATION, Reduced, SERVICE_NAME_LABEL, Skips,
    address::{may_be_endpoint, parse_ip},
    has_label, label, namespaced, port_number,
    schedule::Weights,
};
use crate::model::{Endpoint, EndpointSlice, Family, LastChange, Protocol, ServiceName, SkipReason, SlicePort};

/// What there is to program of a slice; nothing if it is a headless Service's or of type FQDN.
pub fn reduce_slice(object: &discovery::EndpointSlice, names: &mut Interner) -> Reduced<EndpointSlice> {
    let metadata = &object.metadata;
    if has_label(metadata, HEADLESS_LABEL) {
        return Reduced::nothing();
    }
    let mut skips = Skips::of("EndpointSlice", metadata);
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Reduced::nothing(),
        other => {
            skips.add("addressType", other, SkipReason::InvalidAddressType);
            return skips.nothing();
        }
    };
    let Some((namespace, name)) = namespaced(metadata) else {
        skips.add("metadata", "", SkipReason::MissingName);
        return skips.nothing();
    };
    let Some(service) = label(metadata, SERVICE_NAME_LABEL).filter(|service| !service.is_empty()) else {
        skips.add(format!("metadata.labels[{SERVICE_NAME_LABEL}]"), "", SkipReason::MissingService);
        return skips.nothing();
    };
    let ports = ports(object, names, &mut skips);
    let weights = Weights::read(metadata, &mut skips);
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        endpoints.extend(reduce_endpoint(index, endpoint, family, &weights, names, &mut skips));
    }
    let slice = EndpointSlice {
        name: name.into(),
        service: ServiceName { namespace: names.get(namespace), name: names.get(service) },
        family,
        ports,
        endpoints,
        last_change: last_change(metadata),
    };
    skips.with(slice)
}

/// What is no time is as good as none: it is for a metric only.
fn last_change(metadata: &ObjectMeta) -> LastChange {
    let text = metadata.annotations.as_ref().and_then(|all| all.get(LAST_CHANGE_ANNOTATION));
    let time = text.and_then(|text| text.parse::<Timestamp>().ok());
    LastChange(time.and_then(|time| u64::try_from(time.as_nanosecond()).ok()))
}

/// Takes the texts of a slice that was reduced elsewhere into the set of shared ones.
pub fn share_names(slice: &mut EndpointSlice, names: &mut Interner) {
    let EndpointSlice { name: _, service, family: _, ports, endpoints, last_change: _ } = slice;
    let service = [&mut service.namespace, &mut service.name].into_iter();
    let ports = ports.iter_mut().map(|port| &mut port.name);
    let endpoints = endpoints.iter_mut().flat_map(|endpoint| {
        let places = endpoint.node.iter_mut().chain(&mut endpoint.zone);
        places.chain(&mut endpoint.zone_hints).chain(&mut endpoint.node_hints)
    });
    for text in service.chain(ports).chain(endpoints) {
        *text = names.get(text);
    }
}

/// A port without a name or number stands for "every port", which no Service port can mean.
fn ports(object: &discovery::EndpointSlice, names: &mut Interner, skips: &mut Skips) -> Vec<SlicePort> {
    let mut found = Vec::new();
    for (index, port) in object.ports.as_deref().unwrap_or_default().iter().enumerate() {
        let (Some(name), Some(number)) = (port.name.as_deref(), port.port.filter(|port| *port != 0)) else {
            continue;
        };
        let Some(number) = port_number(number) else {
            skips.add(format!("ports[{index}].port"), number.to_string(), SkipReason::InvalidPort);
            continue;
        };
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        match protocol.parse::<Protocol>() {
            Ok(protocol) => found.push(SlicePort { name: names.get(name), protocol, port: number }),
            Err(_) => skips.add(format!("ports[{index}].protocol"), protocol, SkipReason::InvalidProtocol),
        }
    }
    found
}

fn reduce_endpoint(
    index: usize,
    endpoint: &discovery::Endpoint,
    family: Family,
    weights: &Weights,
    names: &mut Interner,
    skips: &mut Skips,
) -> Option<Endpoint> {
    // Further addresses have no defined meaning; only the first counts.
    let text = endpoint.addresses.first().map(String::as_str).unwrap_or_default();
    let refusal = match parse_ip(text) {
        None => Err(SkipReason::InvalidIp),
        Some(address) if !may_be_endpoint(address) => Err(SkipReason::ForbiddenAddress),
        Some(address) if Family::of(address) != family => Err(SkipReason::WrongFamily),
        Some(address) => Ok(address),
    };
    let address = refusal.map_err(|reason| skips.add(format!("endpoints[{index}].addresses[0]"), text, reason)).ok()?;
    let conditions = endpoint.conditions.as_ref();
    let hints = endpoint.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
    Some(Endpoint {
        address,
        node: shared(endpoint.node_name.as_deref(), names),
        zone: shared(endpoint.zone.as_deref(), names),
        zone_hints: zones.iter().map(|zone| names.get(&zone.name)).collect(),
        node_hints: nodes.iter().map(|node| names.get(&node.name)).collect(),
        ready: conditions.and_then(|it| it.ready).unwrap_or(true),
        serving: conditions.and_then(|it| it.serving).unwrap_or(true),
        terminating: conditions.and_then(|it| it.terminating).unwrap_or(false),
        weight: weights.of(address),
    })
}

fn shared(text: Option<&str>, names: &mut Interner) -> Option<Arc<str>> {
    text.filter(|text| !text.is_empty()).map(|text| names.get(text))
}

#[cfg(test)]
#[path = "slice_tests.rs"]
mod tests;
