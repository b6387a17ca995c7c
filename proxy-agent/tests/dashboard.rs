//! What is exported, what docs/metrics.md says of it, and what the dashboard asks for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use prometheus_client::registry::Registry;
use proxy_agent::{
    loader::Pins,
    metrics::{Metrics, text::encode},
};
use serde_json::Value;

/// Name -> type, as Prometheus is told. There is nothing behind the pins.
fn exported() -> BTreeMap<String, String> {
    let mut registry = Registry::default();
    Metrics::default().register_all(&mut registry, &Pins::new("/nowhere"), 4536);
    let text = encode(&registry).expect("text");
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    kinds.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of series: a histogram has three.
fn series() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (name, kind) in exported() {
        if kind == "histogram" {
            all.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
        } else {
            all.insert(name);
        }
    }
    all
}

/// The metrics that a PromQL expression names: every word that is no function, no label and no keyword.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let end_of = |close: char| rest[1..].find(close).map_or(rest.len(), |at| at + 2);
        if first == '{' || first == '[' || first == '"' {
            rest = &rest[end_of(match first {
                '{' => '}',
                '[' => ']',
                _ => '"',
            })..];
            continue;
        }
        if !(first.is_ascii_alphabetic() || first == '_') {
            let number = rest.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(rest.len());
            rest = &rest[number.max(first.len_utf8())..];
            continue;
        }
        let end = rest.find(|it: char| !it.is_ascii_alphanumeric() && it != '_' && it != ':').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        match word {
            "by" | "without" | "on" | "ignoring" => {
                rest = &after[after.find(')').expect("a list of labels")..];
                continue;
            }
            "and" | "or" | "unless" | "bool" | "offset" => {}
            _ if after.starts_with('(') => {}
            // Only an aggregation has its labels between its name and its argument.
            _ if after.starts_with("by ") || after.starts_with("without ") => {}
            _ => {
                found.insert(word.to_owned());
            }
        }
        rest = after;
    }
    found
}

fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match (key.as_str(), value) {
                    ("expr", Value::String(text)) => found.push(text.clone()),
                    ("definition", Value::String(text)) => {
                        let inner = text.strip_prefix("label_values(").and_then(|text| text.split_once(','));
                        found.push(inner.expect("label_values(METRIC, LABEL)").0.to_owned());
                    }
                    (_, value) => expressions(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[test]
fn expressions_are_read() {
    let names = |text| metrics_of(text).into_iter().collect::<Vec<_>>();
    assert_eq!(names("sum by (a, b) (rate(x_total{c=\"d\"}[5m])) / 2.5 > 0"), ["x_total"]);
    assert_eq!(names("clamp_min(max by (i) (a{x=~\"$y\"} - b), 0) or topk(8, c / on (m) d)"), ["a", "b", "c", "d"]);
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let dashboard: Value = serde_json::from_str(&file("deploy/dashboards/weir.json")).expect("JSON");
    let mut found = Vec::new();
    expressions(&dashboard, &mut found);
    assert!(found.len() > 30, "{found:?}");
    let series = series();
    for expression in &found {
        let names = metrics_of(expression);
        assert!(!names.is_empty(), "{expression} names no metric");
        for name in names {
            assert!(series.contains(&name), "{name} is not exported: {expression}");
        }
    }
    let ids: BTreeSet<_> = dashboard["panels"].as_array().expect("panels").iter().map(|it| it["id"].as_u64()).collect();
    assert_eq!(ids.len(), dashboard["panels"].as_array().expect("panels").len(), "panel ids repeat");
}

#[test]
fn the_documentation_lists_what_there_is() {
    let text = file("docs/metrics.md");
    let row = |line: &str| -> Option<(String, String)> {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.trim_end_matches('`').to_owned();
        Some((name, cells.next()?.to_owned()))
    };
    let documented: BTreeMap<String, String> = text.lines().filter_map(row).collect();
    assert_eq!(documented, exported());
}
