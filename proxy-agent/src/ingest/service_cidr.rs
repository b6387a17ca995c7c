//! networking.k8s.io/v1 ServiceCIDR to the model: where ClusterIPs are allocated.

use k8s_openapi::api::networking::v1 as networking;

use super::{Reduced, Skips, address::parse_range};
use crate::model::{ServiceCidr, SkipReason};

/// What there is to know of a range; nothing if the API server does not use it.
///
/// One that is being deleted is not Ready and still counts: it stays for as long as a Service has an address of it, and
/// those that none has are nobody's as before.
pub fn reduce_service_cidr(object: &networking::ServiceCIDR) -> Reduced<ServiceCidr> {
    let metadata = &object.metadata;
    let mut skips = Skips::of("ServiceCIDR", metadata);
    let Some(name) = metadata.name.as_deref().filter(|name| !name.is_empty()) else {
        skips.add("metadata.name", "", SkipReason::MissingName);
        return skips.nothing();
    };
    let conditions = object.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let unready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "False");
    if unready && metadata.deletion_timestamp.is_none() {
        return Reduced::nothing();
    }
    let texts = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    let mut cidrs = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match parse_range(text) {
            // Everything that is no Service would be dropped.
            Some(cidr) if cidr.prefix_len() == 0 => {
                skips.add(format!("spec.cidrs[{index}]"), text, SkipReason::InvalidRange);
            }
            Some(cidr) => cidrs.push(cidr),
            None => skips.add(format!("spec.cidrs[{index}]"), text, SkipReason::InvalidRange),
        }
    }
    skips.with(ServiceCidr { name: name.into(), cidrs })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reduce(metadata: Value, cidrs: Value, ready: Option<&str>) -> Reduced<ServiceCidr> {
        let conditions: Vec<Value> = ready
            .map(|status| {
                json!({"type": "Ready", "status": status, "reason": "", "message": "",
                       "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .into_iter()
            .collect();
        let object = json!({"metadata": metadata, "spec": {"cidrs": cidrs}, "status": {"conditions": conditions}});
        reduce_service_cidr(&serde_json::from_value(object).expect("a ServiceCIDR"))
    }

    #[test]
    fn ranges_that_are_used_count() {
        let name = json!({"name": "kubernetes"});
        for ready in [None, Some("True")] {
            let found = reduce(name.clone(), json!(["10.96.0.0/12", "fd00:96::/112"]), ready).value;
            assert_eq!(found.expect("a range").cidrs.len(), 2, "{ready:?}");
        }
        assert!(reduce(name, json!(["10.96.0.0/12"]), Some("False")).value.is_none());
        let leaving = json!({"name": "kubernetes", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert!(reduce(leaving, json!(["10.96.0.0/12"]), Some("False")).value.is_some());
    }

    #[test]
    fn unreadable_ranges_are_left_out() {
        let Reduced { value, skips } = reduce(json!({"name": "x"}), json!(["10.96.0.0/40", "0.0.0.0/0"]), None);
        assert!(value.expect("the object").cidrs.is_empty());
        assert_eq!(skips.iter().map(|it| it.reason.as_str()).collect::<Vec<_>>(), ["invalid-range"; 2]);
        assert!(reduce(json!({}), json!([]), None).value.is_none());
    }
}
