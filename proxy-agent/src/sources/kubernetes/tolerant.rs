//! An API object that may be unreadable without harm to the list it comes in.
//!
//! A server of another version, or an aggregated one, can send what our types do not fit. With plain types
//! one such object would fail every listing, and with it the whole watch.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    model::{ObjectRef, Skip, SkipReason},
    sources::typed::{self, FieldError},
};

#[derive(Clone, Debug)]
pub(super) struct Tolerant<K> {
    pub(super) metadata: ObjectMeta,
    pub(super) object: Result<K, FieldError>,
}

pub(super) fn skip(kind: &'static str, metadata: &ObjectMeta, error: &FieldError) -> Skip {
    Skip {
        object: ObjectRef {
            kind,
            namespace: metadata.namespace.as_deref().unwrap_or_default().into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
        },
        field: error.path.clone().unwrap_or_default(),
        got: error.message.clone(),
        reason: SkipReason::Malformed,
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Tolerant<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
            // Often the greater part of an object, and of no use here.
            metadata.remove("managedFields");
        }
        let metadata = value.get("metadata").unwrap_or(&Value::Null);
        Ok(Self {
            metadata: typed::from_value(metadata).unwrap_or_else(|_| names_only(metadata)),
            object: typed::from_value(&value),
        })
    }
}

/// What the watch itself needs, of metadata that are not readable as a whole.
fn names_only(metadata: &Value) -> ObjectMeta {
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).map(str::to_owned);
    ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Tolerant<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(_: &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group(_: &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version(_: &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural(_: &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Tolerant<core::Service> {
        serde_json::from_value(value).expect("always readable")
    }

    #[test]
    fn a_malformed_object_is_named_and_does_no_harm() {
        let found = read(json!({
            "metadata": {"name": "web", "namespace": "default"}, "spec": {"ports": [{"port": "eighty"}]},
        }));
        let error = found.object.expect_err("malformed");
        assert_eq!(
            skip("Service", &found.metadata, &error).to_string(),
            r#"Service default/web: spec.ports[0].port: expected a number, got "eighty""#
        );
    }

    #[test]
    fn names_survive_malformed_metadata_and_managed_fields_do_not() {
        let found = read(json!({"metadata": {"name": "web", "labels": 1, "resourceVersion": "7"}}));
        assert!(found.object.is_err());
        assert_eq!(found.metadata.name.as_deref(), Some("web"));
        assert_eq!(found.metadata.resource_version.as_deref(), Some("7"));
        let found = read(json!({"metadata": {"name": "web", "managedFields": [{"manager": "kubectl"}]}}));
        assert_eq!(found.object.expect("readable").metadata.managed_fields, None);
    }

    #[test]
    fn the_urls_are_those_of_the_object() {
        assert_eq!(Tolerant::<core::Service>::url_path(&(), None), "/api/v1/services");
    }
}
