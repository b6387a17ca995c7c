//! Codes, headers and bodies, as kube-proxy's clients know them.

use std::collections::BTreeMap;

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::{
    forwarding::Report,
    state::{Facts, Moment},
};

/// kube-proxy has a proxier per family; here one agent serves both.
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// The body of /livez and /healthz.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HealthBody {
    last_updated: String,
    current_time: String,
    /// /healthz only.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyBody>,
    /// /healthz?verbose only.
    #[serde(skip_serializing_if = "Option::is_none")]
    forwarding: Option<Report>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

/// Code and body.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) ok: bool,
    pub(super) body: HealthBody,
}

impl Answer {
    pub(super) fn livez(facts: &Facts, live: bool, now: Moment) -> Self {
        Self::new(facts, live, None, now)
    }

    pub(super) fn healthz(facts: &Facts, live: bool, now: Moment) -> Self {
        Self::new(facts, live, Some(facts.is_eligible()), now)
    }

    /// A dataplane that does not forward is no healthy one.
    pub(super) fn with(mut self, report: Report) -> Self {
        self.ok &= report.healthy;
        self.body.forwarding = Some(report);
        self
    }

    fn new(facts: &Facts, live: bool, node_eligible: Option<bool>, now: Moment) -> Self {
        let ok = live && node_eligible.unwrap_or(true);
        let updated = time(facts.updated_wall_ns);
        let started = facts.updated_wall_ns != 0;
        let family = |name| (name, FamilyBody { last_updated: updated.clone(), healthy: live });
        let body = HealthBody {
            // kube-proxy has always said "just now" while it is healthy, and some look at the age.
            last_updated: if ok { time(now.wall_ns) } else { updated.clone() },
            current_time: time(now.wall_ns),
            node_eligible,
            healthy: live,
            status: FAMILIES.into_iter().filter(|_| started).map(family).collect(),
            forwarding: None,
        };
        Self { ok, body }
    }
}

/// 200 or 503, JSON, and what keeps browsers from guessing.
pub(super) fn json(ok: bool, body: &impl Serialize) -> Response {
    let text = serde_json::to_string(body).expect("invariant: the body has string keys only");
    let code = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, headers("application/json"), text).into_response()
}

pub(super) fn headers(content_type: &'static str) -> HeaderMap {
    const NO_GUESSING: (HeaderName, HeaderValue) =
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type)), NO_GUESSING])
}

/// RFC 3339 in UTC, fractions without trailing zeros. Never is the year 1, as Go writes it.
fn time(wall_ns: u64) -> String {
    match wall_ns {
        0 => "0001-01-01T00:00:00Z".to_owned(),
        ns => Timestamp::from_nanosecond(i128::from(ns)).map_or_else(|_| String::new(), |time| time.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::state::NodeSeen;

    const SECOND: u64 = 1_000_000_000;
    const NOW: Moment = Moment { boot_ns: 100 * SECOND, wall_ns: 1_700_000_000 * SECOND + 120_000_000 };

    fn text(answer: &Answer) -> String {
        serde_json::to_string(&answer.body).expect("JSON")
    }

    #[test]
    fn bodies_to_the_letter() {
        let facts = Facts { updated_wall_ns: 1_699_999_990 * SECOND, waits_since_ns: 0, node: NodeSeen::Eligible };
        let family = r#"{"lastUpdated":"2023-11-14T22:13:10Z","healthy":true}"#;
        assert_eq!(
            text(&Answer::healthz(&facts, true, NOW)),
            format!(
                r#"{{"lastUpdated":"2023-11-14T22:13:20.12Z","currentTime":"2023-11-14T22:13:20.12Z","nodeEligible":true,"healthy":true,"status":{{"IPv4":{family},"IPv6":{family}}}}}"#
            )
        );
        assert!(!text(&Answer::livez(&facts, true, NOW)).contains("nodeEligible"));
    }

    #[test]
    fn what_is_late_says_when_it_was_last_right() {
        let facts = Facts { updated_wall_ns: 1_699_999_000 * SECOND, waits_since_ns: SECOND, node: NodeSeen::Eligible };
        for answer in [Answer::livez(&facts, false, NOW), Answer::healthz(&facts, false, NOW)] {
            assert!(!answer.ok);
            let text = text(&answer);
            assert!(
                text.starts_with(r#"{"lastUpdated":"2023-11-14T21:56:40Z","currentTime":"2023-11-14T22:13"#),
                "{text}"
            );
            assert!(text.contains(r#""healthy":false"#), "{text}");
        }
    }

    #[test]
    fn the_node_counts_for_healthz_only() {
        for node in [NodeSeen::Never, NodeSeen::Leaving] {
            let facts = Facts { node, ..Facts::default() };
            assert!(Answer::livez(&facts, true, NOW).ok);
            let healthz = Answer::healthz(&facts, true, NOW);
            assert!(!healthz.ok);
            let expected = r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2023-11-14T22:13:20.12Z","nodeEligible":false,"healthy":true}"#;
            assert_eq!(text(&healthz), expected);
        }
    }
}
