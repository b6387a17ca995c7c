//! What a request is about: resource, namespace and name from its path, options from its query.

use axum::{extract::Query, http::Uri};
use serde::Deserialize;

use super::{
    resources::{self, Resource},
    selector::Selector,
    status::Status,
};

/// Kinds of requests that the double counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
}

/// The object or collection that a path names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) resource: &'static Resource,
    /// None: the whole cluster.
    pub(super) namespace: Option<String>,
    /// None: the collection.
    pub(super) name: Option<String>,
    /// Only "status" exists here.
    pub(super) subresource: Option<String>,
}

/// List and watch options by their names in the API. Numbers stay text: a bad one is this server's to refuse.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Options {
    watch: String,
    pub(super) label_selector: String,
    pub(super) field_selector: String,
    pub(super) resource_version: String,
    pub(super) resource_version_match: String,
    limit: String,
    #[serde(rename = "continue")]
    pub(super) continue_token: String,
    allow_watch_bookmarks: String,
    send_initial_events: String,
    timeout_seconds: String,
}

impl Target {
    /// Forms: `/api/v1/...` and `/apis/GROUP/VERSION/...`, then `[namespaces/NS/]PLURAL[/NAME[/SUB]]`.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
        let (group, version, rest) = match steps.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            // `/api/v1/namespaces/NS` itself names a Namespace object.
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
            _ => (None, rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (plural, None, None),
            [plural, name] => (plural, Some(name), None),
            [plural, name, sub] => (plural, Some(name), Some(sub)),
            _ => return None,
        };
        Some(Self {
            resource: resources::by_path(group, version, plural)?,
            namespace,
            name: name.map(|name| (*name).to_owned()),
            subresource: subresource.map(|sub| (*sub).to_owned()),
        })
    }
}

impl Options {
    pub(super) fn parse(uri: &Uri) -> Result<Self, Status> {
        Query::try_from_uri(uri).map(|Query(options)| options).map_err(|error| Status::bad_request(error.to_string()))
    }

    pub(super) fn selector(&self) -> Result<Selector, Status> {
        Selector::parse(&self.label_selector, &self.field_selector).map_err(Status::bad_request)
    }

    pub(super) fn is_watch(&self) -> bool {
        is_true(&self.watch)
    }

    pub(super) fn wants_bookmarks(&self) -> bool {
        is_true(&self.allow_watch_bookmarks)
    }

    /// Not given is another thing than "false".
    pub(super) fn initial_events(&self) -> Option<bool> {
        (!self.send_initial_events.is_empty()).then(|| is_true(&self.send_initial_events))
    }

    /// `None` for an absent version and for 0, which both leave the choice to the server.
    pub(super) fn version(&self) -> Result<Option<u64>, Status> {
        Ok(number("resourceVersion", &self.resource_version)?.filter(|version| *version != 0))
    }

    pub(super) fn limit(&self) -> Result<Option<usize>, Status> {
        let limit = number("limit", &self.limit)?.filter(|limit| *limit != 0);
        Ok(limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)))
    }

    pub(super) fn timeout_seconds(&self) -> Result<Option<u64>, Status> {
        number("timeoutSeconds", &self.timeout_seconds)
    }
}

fn is_true(text: &str) -> bool {
    matches!(text, "1" | "true")
}

fn number(name: &str, text: &str) -> Result<Option<u64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let value = text.parse().map_err(|_| Status::bad_request(format!("{name}: invalid value {text:?}")))?;
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let target = Target::parse("/api/v1/namespaces/web/services/a/status").unwrap();
        assert_eq!(target.resource.kind, "Service");
        assert_eq!(target.namespace.as_deref(), Some("web"));
        assert_eq!(target.name.as_deref(), Some("a"));
        assert_eq!(target.subresource.as_deref(), Some("status"));
        let target = Target::parse("/apis/discovery.k8s.io/v1/endpointslices").unwrap();
        assert_eq!((target.resource.kind, target.namespace, target.name), ("EndpointSlice", None, None));
        let target = Target::parse("/api/v1/namespaces/web").unwrap();
        assert_eq!((target.resource.kind, target.name.as_deref()), ("Namespace", Some("web")));
        assert_eq!(Target::parse("/api/v1/unicorns"), None);
        assert_eq!(Target::parse("/apis/discovery.k8s.io/v1beta1/endpointslices"), None);
    }

    #[test]
    fn options() {
        let uri = "/x?watch=true&labelSelector=%21a%2Cb%3Dc&resourceVersion=0&allowWatchBookmarks=1".parse().unwrap();
        let options = Options::parse(&uri).unwrap();
        assert!(options.is_watch() && options.wants_bookmarks());
        assert_eq!(options.label_selector, "!a,b=c");
        assert_eq!(options.version().unwrap(), None);
        assert_eq!(options.initial_events(), None);
        let uri = "/x?resourceVersion=abc".parse().unwrap();
        assert!(Options::parse(&uri).unwrap().version().is_err());
    }
}
