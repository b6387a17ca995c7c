//! What an EndpointSlice amounts to, and what of it is skipped and why.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn slice(mut object: Value, extra_labels: &[&str]) -> discovery::EndpointSlice {
    object["metadata"] = json!({"name": "web-abc", "namespace": "default", "labels": {SERVICE_NAME_LABEL: "web"}});
    for label in extra_labels {
        object["metadata"]["labels"][label] = json!("");
    }
    serde_json::from_value(object).expect("an EndpointSlice")
}

fn reduce(object: Value) -> Reduced<EndpointSlice> {
    reduce_slice(&slice(object, &[]), &mut Interner::default())
}

#[test]
fn conditions_left_out_mean_ready_and_serving() {
    let found = reduce(json!({
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}],
        "endpoints": [
            {"addresses": ["10.0.0.1"]},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": false, "terminating": true}},
        ],
    }))
    .value
    .expect("a slice");
    let conditions: Vec<_> = found.endpoints.iter().map(|it| (it.ready, it.serving, it.terminating)).collect();
    assert_eq!(conditions, [(true, true, false), (false, true, false), (false, false, true)]);
    assert_eq!(found.ports, [SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }]);
    assert_eq!(found.service.to_string(), "default/web");
}

#[test]
fn places_and_hints_arrive() {
    let found = reduce(json!({
        "addressType": "IPv6",
        "endpoints": [{
            "addresses": ["fd00::1", "fd00::2"], "nodeName": "node-a", "zone": "z1",
            "hints": {"forZones": [{"name": "z1"}, {"name": "z2"}], "forNodes": [{"name": "node-a"}]},
        }],
    }))
    .value
    .expect("a slice");
    assert_eq!(found.endpoints.len(), 1, "only the first address counts");
    let endpoint = &found.endpoints[0];
    assert_eq!((endpoint.node.as_deref(), endpoint.zone.as_deref()), (Some("node-a"), Some("z1")));
    assert_eq!((endpoint.zone_hints.len(), endpoint.node_hints.len()), (2, 1));
    assert!(Arc::ptr_eq(endpoint.node.as_ref().expect("a node"), &endpoint.node_hints[0]));
}

#[test]
fn ports_without_name_or_number_are_no_ports() {
    let found = reduce(json!({
        "addressType": "IPv4", "endpoints": null,
        "ports": [{"port": 80}, {"name": "a"}, {"name": "b", "port": 0}, {"name": "c", "port": 80, "protocol": "SCTP"}],
    }));
    assert_eq!(found.skips, []);
    let ports = found.value.expect("a slice").ports;
    assert_eq!(ports, [SlicePort { name: "c".into(), protocol: Protocol::Sctp, port: 80 }]);
}

#[test]
fn slices_that_are_not_programmed() {
    let object = json!({"addressType": "FQDN", "endpoints": [{"addresses": ["example.org"]}]});
    assert!(reduce(object).value.is_none());
    let headless = slice(json!({"addressType": "IPv4", "endpoints": []}), &[HEADLESS_LABEL]);
    assert!(reduce_slice(&headless, &mut Interner::default()).value.is_none());
}

#[test]
fn a_slice_of_no_service_is_skipped() {
    let mut object = slice(json!({"addressType": "IPv4", "endpoints": []}), &[]);
    object.metadata.labels = None;
    let Reduced { value, skips } = reduce_slice(&object, &mut Interner::default());
    assert!(value.is_none());
    assert_eq!(skips[0].reason, SkipReason::MissingService);
}

#[test]
fn endpoints_that_are_refused() {
    let Reduced { value, skips } = reduce(json!({
        "addressType": "IPv6",
        "endpoints": [
            {"addresses": []}, {"addresses": ["nonsense"]}, {"addresses": ["10.0.0.1"]}, {"addresses": ["::1"]},
            {"addresses": ["::ffff:127.0.0.1"]}, {"addresses": ["::ffff:10.0.0.1"]}, {"addresses": ["fd00::1"]},
        ],
        "ports": [{"name": "a", "port": 70000}, {"name": "b", "port": 80, "protocol": "tcp"}],
    }));
    assert_eq!(value.expect("a slice").endpoints.len(), 1);
    let reasons: Vec<_> = skips.iter().map(|skip| (skip.field.as_str(), skip.reason)).collect();
    assert_eq!(
        reasons,
        [
            ("ports[0].port", SkipReason::InvalidPort),
            ("ports[1].protocol", SkipReason::InvalidProtocol),
            ("endpoints[0].addresses[0]", SkipReason::InvalidIp),
            ("endpoints[1].addresses[0]", SkipReason::InvalidIp),
            ("endpoints[2].addresses[0]", SkipReason::WrongFamily),
            ("endpoints[3].addresses[0]", SkipReason::ForbiddenAddress),
            ("endpoints[4].addresses[0]", SkipReason::ForbiddenAddress),
            ("endpoints[5].addresses[0]", SkipReason::WrongFamily),
        ]
    );
}

proptest! {
    #[test]
    fn any_slice_is_reduced_without_panic(
        kind in prop_oneof![Just("IPv4"), Just("IPv6"), Just("FQDN"), Just("")],
        label in proptest::option::of("[a-z]{0,3}"),
        addresses in proptest::collection::vec(proptest::collection::vec("[0-9.:a-f]{0,12}", 0..2), 0..4),
        ports in proptest::collection::vec((proptest::option::of("[a-z]{0,2}"), any::<Option<i32>>(), "[A-Z]{0,4}"), 0..4),
    ) {
        let endpoints: Vec<_> = addresses.iter().map(|list| json!({"addresses": list})).collect();
        let ports: Vec<_> =
            ports.iter().map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol})).collect();
        let mut object = slice(json!({"addressType": kind, "endpoints": endpoints, "ports": ports}), &[]);
        object.metadata.labels = label.map(|label| [(SERVICE_NAME_LABEL.to_owned(), label)].into());
        let Reduced { value, skips } = reduce_slice(&object, &mut Interner::default());
        if let Some(found) = value {
            prop_assert!(found.endpoints.iter().all(|it| may_be_endpoint(it.address) && Family::of(it.address) == found.family));
            let refused = skips.iter().filter(|skip| skip.field.starts_with("endpoints")).count();
            prop_assert_eq!(found.endpoints.len() + refused, object.endpoints.len());
        }
    }
}
