//! Version, health and discovery: what a client may ask before it asks for objects.

use std::collections::BTreeSet;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    resources::{RESOURCES, Resource},
    status::Status,
};

pub(super) fn respond(path: &str) -> Result<Response, Status> {
    let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
    let answer = match steps.as_slice() {
        ["healthz" | "readyz" | "livez"] => return Ok("ok".into_response()),
        ["version"] => {
            json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0+weir-rig", "platform": "linux/amd64"})
        }
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"]}),
        ["apis"] => groups(),
        ["api", version] => resources("", version, path)?,
        ["apis", group, version] => resources(group, version, path)?,
        _ => return Err(Status::not_found("path", path)),
    };
    Ok(Json(answer).into_response())
}

fn groups() -> Value {
    let names: BTreeSet<&str> = RESOURCES.iter().map(|row| row.group).filter(|group| !group.is_empty()).collect();
    let groups: Vec<Value> = names
        .into_iter()
        .map(|name| {
            let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
            json!({"name": name, "versions": [version], "preferredVersion": version})
        })
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn resources(group: &str, version: &str, path: &str) -> Result<Value, Status> {
    let rows: Vec<&Resource> = RESOURCES.iter().filter(|row| row.group == group && row.version == version).collect();
    let first = rows.first().ok_or_else(|| Status::not_found("path", path))?;
    let list: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "name": row.plural,
                "singularName": row.kind.to_lowercase(),
                "namespaced": row.namespaced,
                "kind": row.kind,
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            })
        })
        .collect();
    Ok(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": first.api_version(),
        "resources": list,
    }))
}
