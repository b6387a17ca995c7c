//! Create, update, merge-patch and delete over HTTP.

use axum::{
    Json,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use super::{
    Shared,
    request::{Target, Verb},
    status::Status,
    store::Key,
};

const MERGE_PATCH: &str = "application/merge-patch+json";
/// Length of the random part that `generateName` gets.
const SUFFIX: usize = 5;

pub(super) fn create(shared: &Shared, target: &Target, body: &[u8]) -> Result<Response, Status> {
    shared.count(target.resource, Verb::Create);
    let mut object = parse(body)?;
    if let (None, Some(prefix)) = (object["metadata"]["name"].as_str(), object["metadata"]["generateName"].as_str()) {
        let suffix: String = rand::random_iter::<u8>().map(|byte| char::from(b'a' + byte % 26)).take(SUFFIX).collect();
        object["metadata"]["name"] = json!(format!("{prefix}{suffix}"));
    }
    let key = Key::of(target.resource, &object, target.namespace.as_deref());
    let key = key.ok_or_else(|| Status::new(StatusCode::UNPROCESSABLE_ENTITY, "metadata.name: Required value"))?;
    let mut store = shared.store();
    if store.get(target.resource, &key).is_some() {
        return Err(Status::already_exists(target.resource.plural, &key.name));
    }
    let object = store.put(target.resource, &key, object);
    drop(store);
    shared.announce();
    Ok((StatusCode::CREATED, Json(&*object)).into_response())
}

pub(super) fn update(shared: &Shared, target: &Target, name: &str, body: &[u8]) -> Result<Response, Status> {
    shared.count(target.resource, Verb::Update);
    let wanted = parse(body)?;
    change(shared, target, name, |object| {
        let version = &wanted["metadata"]["resourceVersion"];
        if version.is_string() && *version != object["metadata"]["resourceVersion"] {
            return Err(Status::new(StatusCode::CONFLICT, "the object has been modified"));
        }
        if target.subresource.is_some() {
            object["status"] = wanted["status"].clone();
        } else {
            let status = object["status"].take();
            *object = wanted.clone();
            if !status.is_null() {
                // Only the subresource changes it.
                object["status"] = status;
            }
        }
        Ok(())
    })
}

pub(super) fn patch(
    shared: &Shared,
    target: &Target,
    name: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, Status> {
    shared.count(target.resource, Verb::Patch);
    let form = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if form != MERGE_PATCH {
        let message = format!("this server takes {MERGE_PATCH} only, not {form}");
        return Err(Status::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let patch = parse(body)?;
    change(shared, target, name, |object| {
        merge(object, &patch);
        Ok(())
    })
}

pub(super) fn delete(shared: &Shared, target: &Target, name: &str) -> Result<Response, Status> {
    shared.count(target.resource, Verb::Delete);
    let removed = shared.store().remove(target.resource, &key(target, name));
    let last = removed.ok_or_else(|| Status::not_found(target.resource.plural, name))?;
    shared.announce();
    Ok(Json(json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": name, "kind": target.resource.plural, "uid": last["metadata"]["uid"]},
    }))
    .into_response())
}

fn change(
    shared: &Shared,
    target: &Target,
    name: &str,
    edit: impl FnOnce(&mut Value) -> Result<(), Status>,
) -> Result<Response, Status> {
    let key = key(target, name);
    let mut store = shared.store();
    let before = store.get(target.resource, &key);
    let mut object = (*before.ok_or_else(|| Status::not_found(target.resource.plural, name))?).clone();
    edit(&mut object)?;
    let object = store.put(target.resource, &key, object);
    drop(store);
    shared.announce();
    Ok(Json(&*object).into_response())
}

fn key(target: &Target, name: &str) -> Key {
    Key::new(target.namespace.as_deref().unwrap_or_default(), name)
}

fn parse(body: &[u8]) -> Result<Value, Status> {
    let value: Value = serde_json::from_slice(body).map_err(|error| Status::bad_request(error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(Status::bad_request("not an object")) }
}

/// JSON merge patch, RFC 7396 section 2: null removes, objects merge, everything else replaces.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.as_str()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From RFC 7396, appendix A.
    #[test]
    fn merge_patch() {
        for (mut target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            merge(&mut target, &patch);
            assert_eq!(target, expected);
        }
    }
}
