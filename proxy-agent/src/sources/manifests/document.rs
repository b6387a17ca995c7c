//! YAML text to API objects: documents, lists, kinds, and errors that say where.

use std::fmt;

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::sources::typed::{self, shown};

/// An object of a kind that Weir reads.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    Service(Box<core::Service>),
    Slice(discovery::EndpointSlice),
    Endpoints(core::Endpoints),
    Node(Box<core::Node>),
    Pod(Box<core::Pod>),
    ServiceCidr(networking::ServiceCIDR),
}

/// Where in the manifests something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    /// From 1; documents without content are not counted. None for the file as a whole.
    pub document: Option<usize>,
    /// Kind, namespace and name, as far as they can be read.
    pub object: Option<String>,
}

/// A file that cannot be used, or an object in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct ManifestError {
    pub place: Place,
    /// Begins with the path of the field where one is meant.
    pub message: String,
    /// The text is no YAML: what it was meant to say is not known. Else only this object is concerned.
    pub whole_file: bool,
}

/// What one file holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Parsed {
    pub(super) objects: Vec<Object>,
    /// Objects of kinds that Weir does not read.
    pub(super) ignored: Vec<Place>,
    pub(super) errors: Vec<ManifestError>,
}

/// Reads one file. All errors are collected, so that one look is enough to mend them.
pub(super) fn parse(file: &str, text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let mut reader = text.as_bytes();
    // The file is the operator's own, and a dump of a great cluster exceeds the default budget. Limits on aliases and on depth
    // remain: the parser is recursive.
    // A value `n` or `y` is a text to kubectl, too.
    let budget = serde_saphyr::budget! {
        max_reader_input_bytes: None,
        max_events: usize::MAX,
        max_documents: usize::MAX,
        max_nodes: usize::MAX,
        max_total_scalar_bytes: usize::MAX,
    };
    let options = serde_saphyr::options! { budget: budget, strict_booleans: true };
    for (index, document) in serde_saphyr::read_with_options::<_, Value>(&mut reader, options).enumerate() {
        let place = Place { file: file.to_owned(), document: Some(index + 1), object: None };
        match document {
            Ok(value) => parsed.add(&place, &value, None),
            Err(error) => {
                let message = error.without_snippet().to_string();
                parsed.errors.push(ManifestError { place, message, whole_file: true });
            }
        }
    }
    parsed
}

/// What a list says of its items, for items that do not say it themselves.
struct ListKind<'a> {
    api_version: &'a str,
    kind: &'a str,
}

impl Parsed {
    fn add(&mut self, place: &Place, value: &Value, list: Option<&ListKind<'_>>) {
        let mut place = place.clone();
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let kind = text("kind").or(list.map(|list| list.kind));
        let api_version = text("apiVersion").or(list.map(|list| list.api_version));
        let (Some(kind), Some(api_version)) = (kind, api_version) else {
            let field = if kind.is_none() { "kind" } else { "apiVersion" };
            let found = value.get(field).map_or_else(|| "nothing".to_owned(), shown);
            let message = format!("{field}: expected a string, got {found}");
            self.errors.push(ManifestError { place, message, whole_file: false });
            return;
        };
        if let (Some(of), Some(items)) = (kind.strip_suffix("List"), value.get("items")) {
            let list = ListKind { api_version, kind: of };
            self.add_items(&place, items, (!of.is_empty()).then_some(&list));
            return;
        }
        place.object = Some(named(kind, value));
        let read = match (api_version, kind) {
            ("v1", "Service") => object(value, |it: &core::Service| &it.metadata, |it| Object::Service(Box::new(it))),
            ("v1", "Endpoints") => object(value, |it: &core::Endpoints| &it.metadata, Object::Endpoints),
            ("v1", "Node") => object(value, |it: &core::Node| &it.metadata, |it| Object::Node(Box::new(it))),
            ("v1", "Pod") => object(value, |it: &core::Pod| &it.metadata, |it| Object::Pod(Box::new(it))),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                object(value, |it: &discovery::EndpointSlice| &it.metadata, Object::Slice)
            }
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                object(value, |it: &networking::ServiceCIDR| &it.metadata, Object::ServiceCidr)
            }
            _ => {
                self.ignored.push(place);
                return;
            }
        };
        match read {
            Ok(object) => self.objects.push(object),
            Err(message) => self.errors.push(ManifestError { place, message, whole_file: false }),
        }
    }

    fn add_items(&mut self, place: &Place, items: &Value, list: Option<&ListKind<'_>>) {
        match items {
            Value::Array(items) => items.iter().for_each(|item| self.add(place, item, list)),
            Value::Null => {}
            other => {
                let message = format!("items: expected a list, got {}", shown(other));
                self.errors.push(ManifestError { place: place.clone(), message, whole_file: false });
            }
        }
    }
}

fn object<T: DeserializeOwned>(
    value: &Value,
    metadata: impl Fn(&T) -> &ObjectMeta,
    wrap: impl Fn(T) -> Object,
) -> Result<Object, String> {
    let typed: T = typed::from_value(value).map_err(|error| error.to_string())?;
    match metadata(&typed).name.as_deref() {
        None | Some("") => Err("metadata.name: expected a name, got nothing".to_owned()),
        Some(_) => Ok(wrap(typed)),
    }
}

/// `Service default/web`, with what can be read of it.
fn named(kind: &str, value: &Value) -> String {
    let text = |name: &str| value.get("metadata").and_then(|it| it.get(name)).and_then(Value::as_str);
    title(kind, text("namespace"), text("name"))
}

impl Object {
    pub(super) fn kind_and_metadata(&self) -> (&'static str, &ObjectMeta) {
        match self {
            Object::Service(it) => ("Service", &it.metadata),
            Object::Slice(it) => ("EndpointSlice", &it.metadata),
            Object::Endpoints(it) => ("Endpoints", &it.metadata),
            Object::Node(it) => ("Node", &it.metadata),
            Object::Pod(it) => ("Pod", &it.metadata),
            Object::ServiceCidr(it) => ("ServiceCIDR", &it.metadata),
        }
    }

    /// As [`Place::object`] names it.
    pub(super) fn title(&self) -> String {
        let (kind, metadata) = self.kind_and_metadata();
        title(kind, metadata.namespace.as_deref(), metadata.name.as_deref())
    }
}

fn title(kind: &str, namespace: Option<&str>, name: Option<&str>) -> String {
    match (kind, name) {
        (_, None) => kind.to_owned(),
        ("Node" | "ServiceCIDR", Some(name)) => format!("{kind} {name}"),
        (_, Some(name)) => format!("{kind} {}/{name}", namespace.unwrap_or("default")),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(document) = self.document {
            write!(f, ": document {document}")?;
        }
        match &self.object {
            Some(object) => write!(f, " ({object})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> Vec<String> {
        parse("web.yaml", text).errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn documents_lists_and_unknown_kinds() {
        let parsed = parse(
            "web.yaml",
            r#"
# a comment before the first separator
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Node
  metadata: {name: node-a, creationTimestamp: 2026-01-01T00:00:00Z}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: web}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSliceList
items:
- metadata: {name: web-1}
  addressType: IPv4
  endpoints: []
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: other}
"#,
        );
        assert_eq!(parsed.errors, []);
        assert!(matches!(&parsed.objects[..], [Object::Service(_), Object::Node(_), Object::Slice(_)]));
        let ignored: Vec<_> = parsed.ignored.iter().map(ToString::to_string).collect();
        assert_eq!(
            ignored,
            ["web.yaml: document 2 (Deployment default/web)", "web.yaml: document 4 (Service default/other)"]
        );
    }

    #[test]
    fn errors_name_file_document_and_field() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Service\n\
                    metadata: {name: web}\nspec: {ports: [{port: eighty}]}\n---\nkind: Service\n---\n\
                    apiVersion: v1\nkind: Pod\nmetadata: {}\n---\nhello\n";
        assert_eq!(
            errors(text),
            [
                r#"web.yaml: document 2 (Service default/web): spec.ports[0].port: expected a number, got "eighty""#,
                "web.yaml: document 3: apiVersion: expected a string, got nothing",
                "web.yaml: document 4 (Pod): metadata.name: expected a name, got nothing",
                "web.yaml: document 5: kind: expected a string, got nothing",
            ]
        );
    }

    #[test]
    fn text_that_nests_deeper_than_any_object_is_an_error() {
        let blocks: String = (0..5_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        for text in ["[".repeat(100_000), "{a: ".repeat(100_000), "- ".repeat(100_000), blocks] {
            let found = errors(&text);
            assert_eq!(found.len(), 1, "{:?}: {found:?}", text.get(..20));
        }
    }

    #[test]
    fn text_that_is_no_yaml_is_one_error_in_its_document() {
        let found = errors("apiVersion: v1\nkind: Node\nmetadata: {name: a}\n---\nspec: [unclosed\n");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("web.yaml: document 2: "), "{found:?}");
        assert!(!found[0].contains('\n'), "{found:?}");
        assert!(errors("").is_empty());
    }
}
