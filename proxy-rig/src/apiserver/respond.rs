//! Requests in, answers out: dispatch, single objects, and lists with paging.

use std::{io, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use serde_json::{Value, json};

use super::{
    Shared, discovery,
    faults::ListBreak,
    request::{Options, Target, Verb},
    status::Status,
    store::{Key, Objects},
    watch, write,
};

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().fallback(handle).with_state(shared)
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    shared.note_request(format!("{method} {uri}"));
    let Some(target) = Target::parse(uri.path()) else {
        return discovery::respond(uri.path()).unwrap_or_else(|status| status.into_response());
    };
    if let Some(failure) = shared.faults.take_failure() {
        let mut response = Status::new(failure.status, "told to fail").into_response();
        if let Some(seconds) = failure.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        return response;
    }
    let answer = match (&method, &target.name) {
        (&Method::GET, _) => read(&shared, target, &uri),
        (&Method::POST, None) => write::create(&shared, &target, &body),
        (&Method::PUT, Some(name)) => write::update(&shared, &target, name, &body),
        (&Method::PATCH, Some(name)) => write::patch(&shared, &target, name, &headers, &body),
        (&Method::DELETE, Some(name)) => write::delete(&shared, &target, name),
        _ => Err(Status::new(StatusCode::METHOD_NOT_ALLOWED, "not supported by this server")),
    };
    answer.unwrap_or_else(|status| status.into_response())
}

fn read(shared: &Arc<Shared>, target: Target, uri: &Uri) -> Result<Response, Status> {
    let options = Options::parse(uri)?;
    if options.is_watch() {
        shared.count(target.resource, Verb::Watch);
        return watch::respond(shared, target, &options);
    }
    match &target.name {
        Some(name) => {
            shared.count(target.resource, Verb::Get);
            let key = Key::new(target.namespace.as_deref().unwrap_or_default(), name);
            let object = shared.store().get(target.resource, &key);
            let object = object.ok_or_else(|| Status::not_found(target.resource.plural, name))?;
            Ok(Json(&*object).into_response())
        }
        None => {
            shared.count(target.resource, Verb::List);
            list(shared, &target, &options)
        }
    }
}

/// The place where a list goes on: a version, so that all pages show one state, and the last key sent.
struct Continue {
    version: u64,
    after: Key,
}

impl Continue {
    fn parse(token: &str) -> Option<Self> {
        let mut parts = token.splitn(3, '/');
        Some(Self { version: parts.next()?.parse().ok()?, after: Key::new(parts.next()?, parts.next()?) })
    }

    fn to_token(&self) -> String {
        format!("{}/{}/{}", self.version, self.after.namespace, self.after.name)
    }
}

fn list(shared: &Shared, target: &Target, options: &Options) -> Result<Response, Status> {
    let selector = options.selector()?;
    let from = match options.continue_token.as_str() {
        "" => None,
        token => Some(Continue::parse(token).ok_or_else(|| Status::bad_request("continue key is not valid"))?),
    };
    let (version, objects) = snapshot(shared, target, options, from.as_ref())?;
    let mut selected = objects.iter().filter(|(key, object)| {
        target.namespace.as_ref().is_none_or(|wanted| *wanted == key.namespace)
            && from.as_ref().is_none_or(|from| **key > from.after)
            && selector.matches(object)
    });
    // Like the watch cache: a list at version 0 is not cut into pages.
    let limit = options.limit()?.filter(|_| options.resource_version != "0").unwrap_or(usize::MAX);
    let page: Vec<_> = selected.by_ref().take(limit).collect();
    let rest = selected.count();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let (Some((key, _)), true) = (page.last(), rest > 0) {
        let after = (*key).clone();
        metadata["continue"] = json!(Continue { version, after }.to_token());
        // Servers do not count what a selector leaves out.
        if selector.is_empty() {
            metadata["remainingItemCount"] = json!(rest);
        }
    }
    let items: Vec<Value> = page.into_iter().map(|(_, object)| without_type(object)).collect();
    let list = json!({
        "kind": format!("{}List", target.resource.kind),
        "apiVersion": target.resource.api_version(),
        "metadata": metadata,
        "items": items,
    });
    Ok(match shared.faults.take_list_break() {
        None => Json(list).into_response(),
        Some(form) => broken(&list, form),
    })
}

fn broken(list: &Value, form: ListBreak) -> Response {
    let text = list.to_string();
    let half = text.as_bytes()[..text.len() / 2].to_vec();
    let body = match form {
        ListBreak::Garbage => Body::from("\0garbage{]"),
        ListBreak::Truncated => {
            let pieces = [Ok(Bytes::from(half)), Err(io::Error::from(io::ErrorKind::ConnectionReset))];
            Body::from_stream(stream::iter(pieces))
        }
    };
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The state to list and its version, by `continue`, or `resourceVersion` and its match.
fn snapshot(
    shared: &Shared,
    target: &Target,
    options: &Options,
    from: Option<&Continue>,
) -> Result<(u64, Objects), Status> {
    let store = shared.store();
    let wanted = match from {
        Some(from) => Some(from.version),
        None if options.resource_version_match == "Exact" => options.version()?,
        None => None,
    };
    if let Some(version) = wanted {
        let objects = store.at_version(target.resource, version);
        return Ok((version, objects.map_err(|gone| Status::gone(version, gone))?));
    }
    let current = store.version();
    if let Some(version) = options.version()?.filter(|version| *version > current) {
        let message = format!("Too large resource version: {version}, current: {current}");
        return Err(Status::new(StatusCode::GATEWAY_TIMEOUT, message));
    }
    Ok((current, store.current(target.resource)))
}

/// Items of a list carry neither kind nor apiVersion.
fn without_type(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    object
}
