//! An API object, reduced while it is read, that may be unreadable without harm to the list it comes in.
//!
//! A server of another version, or an aggregated one, can send what our types do not fit. With plain types
//! one such object would fail every listing, and with it the whole watch. Of each object only the reduced form is kept.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::watched::Watched;
use crate::{
    ingest::Reduced,
    model::{ObjectRef, Skip, SkipReason},
    sources::typed,
};

#[derive(Clone, Debug)]
pub(super) struct Tolerant<T> {
    /// Names and version only.
    pub(super) metadata: ObjectMeta,
    pub(super) object: Result<Reduced<T>, Skip>,
}

impl<'de, T: Watched> Deserialize<'de> for Tolerant<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
            // Often the greater part of an object, and of no use here.
            metadata.remove("managedFields");
        }
        let metadata = names_only(&value);
        let object = match typed::from_value::<T::Object>(&value) {
            Ok(object) => Ok(T::reduce(&object)),
            Err(error) => Err(Skip {
                object: ObjectRef {
                    kind: T::KIND,
                    namespace: metadata.namespace.as_deref().unwrap_or_default().into(),
                    name: metadata.name.as_deref().unwrap_or_default().into(),
                },
                field: error.path.unwrap_or_default(),
                got: error.message,
                reason: SkipReason::Malformed,
            }),
        };
        Ok(Self { metadata, object })
    }
}

/// What the watch itself needs, also of metadata that are not readable as a whole.
fn names_only(object: &Value) -> ObjectMeta {
    let text = |field: &str| object.get("metadata")?.get(field)?.as_str().map(str::to_owned);
    ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Service;

    fn read(value: Value) -> Tolerant<Service> {
        serde_json::from_value(value).expect("always readable")
    }

    #[test]
    fn a_malformed_object_is_named_and_does_no_harm() {
        let found = read(json!({
            "metadata": {"name": "web", "namespace": "default"}, "spec": {"ports": [{"port": "eighty"}]},
        }));
        assert_eq!(
            found.object.expect_err("malformed").to_string(),
            r#"Service default/web: spec.ports[0].port: expected a number, got "eighty""#
        );
    }

    #[test]
    fn names_survive_malformed_metadata() {
        let found = read(json!({"metadata": {"name": "web", "labels": 1, "resourceVersion": "7"}}));
        assert_eq!(found.object.expect_err("malformed").field, "metadata.labels");
        assert_eq!(found.metadata.name.as_deref(), Some("web"));
        assert_eq!(found.metadata.resource_version.as_deref(), Some("7"));
    }

    #[test]
    fn managed_fields_are_not_even_looked_at() {
        let found = read(json!({
            "metadata": {"name": "web", "namespace": "default", "managedFields": "malformed"},
            "spec": {"clusterIP": "10.96.0.1"},
        }));
        assert!(found.object.expect("readable").value.is_some());
    }
}
