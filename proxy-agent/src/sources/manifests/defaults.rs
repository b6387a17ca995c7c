//! What the API server fills in when an object is created, as far as the agent reads it.

use k8s_openapi::{
    api::{
        core::v1::{self as core, ClientIPConfig, ServiceSpec, SessionAffinityConfig},
        discovery::v1 as discovery,
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::document::Object;

const DEFAULT_NAMESPACE: &str = "default";
/// sessionAffinityConfig.clientIP.timeoutSeconds.
const AFFINITY_TIMEOUT_S: i32 = 10_800;

pub(super) fn fill_in(object: &mut Object) {
    match object {
        Object::Service(service) => {
            namespace(&mut service.metadata);
            fill_in_service(service.spec.get_or_insert_default());
        }
        Object::Slice(slice) => {
            namespace(&mut slice.metadata);
            fill_in_slice(slice);
        }
        Object::Endpoints(endpoints) => namespace(&mut endpoints.metadata),
        Object::Pod(pod) => {
            namespace(&mut pod.metadata);
            fill_in_pod(pod);
        }
        Object::Node(_) | Object::ServiceCidr(_) => {}
    }
}

fn namespace(metadata: &mut ObjectMeta) {
    if metadata.namespace.as_deref().unwrap_or_default().is_empty() {
        metadata.namespace = Some(DEFAULT_NAMESPACE.to_owned());
    }
}

fn fill_in_service(spec: &mut ServiceSpec) {
    let kind = default(&mut spec.type_, "ClusterIP").clone();
    for port in spec.ports.iter_mut().flatten() {
        default(&mut port.protocol, "TCP");
        port.target_port.get_or_insert(IntOrString::Int(port.port));
    }
    if kind == "ExternalName" {
        return;
    }
    if default(&mut spec.session_affinity, "None") == "ClientIP" {
        let config = spec.session_affinity_config.get_or_insert_with(SessionAffinityConfig::default);
        let client_ip = config.client_ip.get_or_insert_with(ClientIPConfig::default);
        client_ip.timeout_seconds.get_or_insert(AFFINITY_TIMEOUT_S);
    }
    default(&mut spec.internal_traffic_policy, "Cluster");
    let external = spec.external_ips.as_ref().is_some_and(|list| !list.is_empty());
    if external || ["NodePort", "LoadBalancer"].contains(&kind.as_str()) {
        default(&mut spec.external_traffic_policy, "Cluster");
    }
    // The two spellings of the address are kept in step.
    match (&spec.cluster_ip, spec.cluster_ips.as_deref()) {
        (Some(ip), None | Some([])) if !ip.is_empty() => spec.cluster_ips = Some(vec![ip.clone()]),
        (None, Some([first, ..])) => spec.cluster_ip = Some(first.clone()),
        _ => {}
    }
}

fn fill_in_slice(slice: &mut discovery::EndpointSlice) {
    for port in slice.ports.iter_mut().flatten() {
        default(&mut port.name, "");
        default(&mut port.protocol, "TCP");
    }
}

fn fill_in_pod(pod: &mut core::Pod) {
    let Some(spec) = &mut pod.spec else { return };
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for port in containers.flat_map(|container| container.ports.iter_mut().flatten()) {
        default(&mut port.protocol, "TCP");
    }
}

fn default<'a>(field: &'a mut Option<String>, value: &str) -> &'a String {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(value.to_owned());
    }
    field.get_or_insert_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::manifests::document::parse;

    fn service(spec: &str) -> core::Service {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n");
        let mut parsed = parse("web.yaml", &text);
        assert_eq!(parsed.errors, []);
        fill_in(&mut parsed.objects[0]);
        match parsed.objects.remove(0) {
            Object::Service(service) => *service,
            other => panic!("expected a Service, got {other:?}"),
        }
    }

    #[test]
    fn a_bare_service_becomes_what_the_api_server_stores() {
        let service = service("{ports: [{port: 80}], sessionAffinity: ClientIP}");
        assert_eq!(service.metadata.namespace.as_deref(), Some("default"));
        let spec = service.spec.expect("a spec");
        assert_eq!(spec.type_.as_deref(), Some("ClusterIP"));
        assert_eq!(spec.internal_traffic_policy.as_deref(), Some("Cluster"));
        assert_eq!(spec.external_traffic_policy, None);
        let timeout = spec.session_affinity_config.and_then(|it| it.client_ip).and_then(|it| it.timeout_seconds);
        assert_eq!(timeout, Some(10_800));
        let port = spec.ports.expect("ports").remove(0);
        assert_eq!(port.protocol.as_deref(), Some("TCP"));
        assert_eq!(port.target_port, Some(IntOrString::Int(80)));
    }

    #[test]
    fn node_ports_have_an_external_policy_and_addresses_both_spellings() {
        let spec = service("{type: NodePort, clusterIP: 10.96.0.1}").spec.expect("a spec");
        assert_eq!(spec.external_traffic_policy.as_deref(), Some("Cluster"));
        assert_eq!(spec.cluster_ips, Some(vec!["10.96.0.1".to_owned()]));
        let spec = service("{clusterIPs: [fd00::1]}").spec.expect("a spec");
        assert_eq!(spec.cluster_ip.as_deref(), Some("fd00::1"));
    }

    #[test]
    fn an_external_name_gets_no_policies() {
        let spec = service("{type: ExternalName, externalName: example.org}").spec.expect("a spec");
        assert_eq!((spec.session_affinity, spec.internal_traffic_policy), (None, None));
    }
}
