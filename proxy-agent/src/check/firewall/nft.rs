//! What `nft -j list ruleset` prints (libnftables-json(5)), as far as the check needs it.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;
use serde_json::Value;

use super::{Base, Hook, OWN_CHAINS, OWN_TABLES, Rule, Rules};

/// Family, table and chain.
type ChainKey = (String, String, String);

/// `without_iptables`: tables that iptables-nft keeps were read by iptables-save already.
pub(super) fn parse(text: &str, without_iptables: bool) -> Result<Rules, serde_json::Error> {
    let document: Value = serde_json::from_str(text)?;
    let entries = document.get("nftables").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut ruleset = Ruleset::default();
    for entry in entries {
        if let Some(chain) = entry.get("chain") {
            ruleset.chain(chain);
        } else if let Some(set) = entry.get("set").or_else(|| entry.get("map")) {
            let elements = set.get("elem").cloned().unwrap_or(Value::Null);
            ruleset.sets.insert(key(set, "name"), elements);
        } else if let Some(rule) = entry.get("rule") {
            ruleset.rules.push(rule);
        }
    }
    Ok(ruleset.finish(without_iptables))
}

#[derive(Default)]
struct Ruleset<'a> {
    bases: BTreeMap<ChainKey, Base>,
    hooks: BTreeMap<ChainKey, Vec<Hook>>,
    sets: BTreeMap<ChainKey, Value>,
    rules: Vec<&'a Value>,
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or("")
}

fn key(value: &Value, name: &str) -> ChainKey {
    (text(value, "family").to_owned(), text(value, "table").to_owned(), text(value, name).to_owned())
}

fn place(key: &ChainKey) -> String {
    format!("table {} {}, chain {}", key.0, key.1, key.2)
}

/// iptables-nft names its tables and base chains as iptables does.
fn is_iptables(key: &ChainKey) -> bool {
    matches!(key.0.as_str(), "ip" | "ip6") && matches!(key.1.as_str(), "filter" | "nat" | "mangle" | "raw" | "security")
}

impl Ruleset<'_> {
    fn chain(&mut self, chain: &Value) {
        let Some(hook) = Hook::of(text(chain, "hook")) else { return };
        let key = key(chain, "name");
        self.hooks.insert(key.clone(), vec![hook]);
        let base = Base { place: place(&key), hook, drops: text(chain, "policy") == "drop" };
        self.bases.insert(key, base);
    }

    fn finish(mut self, without_iptables: bool) -> Rules {
        self.follow_jumps();
        let left_out = |key: &ChainKey| OWN_TABLES.contains(&key.1.as_str()) || without_iptables && is_iptables(key);
        let mut rules = Rules::default();
        rules.bases.extend(self.bases.iter().filter(|(key, _)| !left_out(key)).map(|(_, base)| base.clone()));
        for rule in &self.rules {
            let key = key(rule, "chain");
            if left_out(&key) || key.2.starts_with(OWN_CHAINS) {
                continue;
            }
            let Some(hooks) = self.hooks.get(&key) else { continue };
            let mut parsed = self.rule(rule, &key, hooks);
            if !parsed.destinations.is_empty() || !parsed.ports.is_empty() {
                parsed.text.push_str(&verdict(rule));
                rules.rules.push(parsed);
            }
        }
        rules
    }

    fn follow_jumps(&mut self) {
        let jumps: Vec<(ChainKey, ChainKey)> = self
            .rules
            .iter()
            .flat_map(|rule| {
                let from = key(rule, "chain");
                let mut targets = Vec::new();
                collect_targets(rule.get("expr").unwrap_or(&Value::Null), &self.sets, &from, &mut targets);
                targets
                    .into_iter()
                    .map(move |target| {
                        let to = (from.0.clone(), from.1.clone(), target);
                        (from.clone(), to)
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        loop {
            let mut changed = false;
            for (from, to) in &jumps {
                let hooks = self.hooks.get(from).cloned().unwrap_or_default();
                if hooks.is_empty() {
                    continue;
                }
                let known = self.hooks.entry(to.clone()).or_default();
                for hook in hooks {
                    if !known.contains(&hook) {
                        known.push(hook);
                        changed = true;
                    }
                }
            }
            if !changed {
                return;
            }
        }
    }

    fn rule(&self, rule: &Value, chain: &ChainKey, hooks: &[Hook]) -> Rule {
        let mut parsed = Rule {
            place: place(chain),
            hooks: hooks.to_vec(),
            text: String::new(),
            destinations: Vec::new(),
            ports: Vec::new(),
            accepts: false,
        };
        for expression in rule.get("expr").and_then(Value::as_array).into_iter().flatten() {
            parsed.accepts |= expression.get("accept").is_some() || expression.get("return").is_some();
            let (Some(matched), true) = (expression.get("match"), rule.is_object()) else {
                // A verdict map is looked up by what it names: `tcp dport vmap { 80 : drop }`.
                if let Some(vmap) = expression.get("vmap") {
                    self.matched(chain, &vmap["key"], &vmap["data"], &mut parsed);
                }
                continue;
            };
            if text(matched, "op") != "!=" {
                self.matched(chain, &matched["left"], &matched["right"], &mut parsed);
            }
        }
        parsed
    }

    /// `left` is what is compared: a field of a header, the connection's original destination, or several of them together.
    fn matched(&self, chain: &ChainKey, left: &Value, right: &Value, parsed: &mut Rule) {
        let names: Vec<&str> = match left.get("concat").and_then(Value::as_array) {
            Some(parts) => parts.iter().map(field).collect(),
            None => vec![field(left)],
        };
        let mut values = Vec::new();
        self.values(chain, right, &mut values);
        for (index, name) in names.iter().enumerate() {
            let of_part = |value: &&Value| match value.get("concat").and_then(Value::as_array) {
                Some(parts) => parts.get(index).cloned(),
                None => Some((*value).clone()),
            };
            for value in values.iter().filter_map(of_part) {
                let known = match *name {
                    "daddr" => net(&value).map(|net| parsed.destinations.push(net)),
                    "dport" => ports(&value).map(|ports| parsed.ports.push(ports)),
                    _ => continue,
                };
                if known.is_some() && parsed.text.len() < 80 {
                    parsed.text.push_str(&format!("{name} {} ", shown(&value)));
                }
            }
        }
    }

    /// Single values of a set, of a named set (`@blocked`), or the value itself.
    fn values<'v>(&'v self, chain: &ChainKey, value: &'v Value, into: &mut Vec<&'v Value>) {
        if let Some(name) = value.as_str().and_then(|text| text.strip_prefix('@')) {
            let set = (chain.0.clone(), chain.1.clone(), name.to_owned());
            if let Some(elements) = self.sets.get(&set) {
                self.values(chain, elements, into);
            }
        } else if let Some(elements) = value.get("set").or_else(|| value.get("elem")).unwrap_or(value).as_array() {
            for element in elements {
                // An element of a map is a pair, one with a timeout or a comment a mapping.
                let element = element.get(0).unwrap_or(element);
                into.push(element.get("elem").and_then(|elem| elem.get("val")).unwrap_or(element));
            }
        } else {
            into.push(value);
        }
    }
}

/// `daddr` or `dport`, or nothing of interest.
fn field(left: &Value) -> &'static str {
    let payload = left.get("payload").map_or("", |payload| text(payload, "field"));
    let ct = left.get("ct").map_or("", |ct| text(ct, "key"));
    match (payload, ct) {
        ("daddr", _) | (_, "daddr" | "ip daddr" | "ip6 daddr") => "daddr",
        ("dport", _) | (_, "proto-dst") => "dport",
        _ => "",
    }
}

fn collect_targets(value: &Value, sets: &BTreeMap<ChainKey, Value>, chain: &ChainKey, into: &mut Vec<String>) {
    match value {
        Value::Object(entries) => {
            for (name, value) in entries {
                if let ("jump" | "goto", Some(target)) = (name.as_str(), value.get("target").and_then(Value::as_str)) {
                    into.push(target.to_owned());
                }
                collect_targets(value, sets, chain, into);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect_targets(value, sets, chain, into)),
        Value::String(name) => {
            let set = name.strip_prefix('@').map(|name| (chain.0.clone(), chain.1.clone(), name.to_owned()));
            // A set has no jumps, and a map names no map.
            if let Some(elements) = set.and_then(|set| sets.get(&set)) {
                collect_targets(elements, &BTreeMap::new(), chain, into);
            }
        }
        _ => {}
    }
}

fn net(value: &Value) -> Option<IpNet> {
    if let Some(address) = value.as_str() {
        return address.parse::<IpAddr>().ok().map(IpNet::from);
    }
    if let Some(prefix) = value.get("prefix") {
        let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
        return IpNet::new(text(prefix, "addr").parse().ok()?, length).ok();
    }
    // The first address of a range stands for it.
    net(value.get("range")?.get(0)?)
}

fn ports(value: &Value) -> Option<RangeInclusive<u16>> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    match value.get("range") {
        Some(range) => Some(port(range.get(0)?)?..=port(range.get(1)?)?),
        None => port(value).map(|port| port..=port),
    }
}

fn shown(value: &Value) -> String {
    if let Some(range) = value.get("range") {
        return format!("{}-{}", plain(&range[0]), plain(&range[1]));
    }
    match value.get("prefix") {
        Some(prefix) => format!("{}/{}", plain(&prefix["addr"]), plain(&prefix["len"])),
        None => plain(value),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The last expression's name: drop, accept, jump.
fn verdict(rule: &Value) -> String {
    let last = rule.get("expr").and_then(Value::as_array).and_then(|all| all.last()).and_then(Value::as_object);
    last.and_then(|last| last.keys().next()).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::firewall::tests::frontends;

    fn found(entries: &str, without_iptables: bool) -> Vec<String> {
        let text = format!(r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6"}}}}, {entries}]}}"#);
        let rules = parse(&text, without_iptables).unwrap();
        rules.judge(&frontends()).into_iter().map(|finding| finding.found).collect()
    }

    const CHAINS: &str = r#"
        {"table": {"family": "inet", "name": "host"}},
        {"chain": {"family": "inet", "table": "host", "name": "pre", "type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}},
        {"chain": {"family": "inet", "table": "host", "name": "fwd", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "host", "name": "guard"}},
        {"chain": {"family": "inet", "table": "host", "name": "unused"}},
        {"set": {"family": "inet", "table": "host", "name": "blocked", "type": "ipv4_addr", "elem": ["192.0.2.1", "10.96.0.10"]}}"#;

    fn rule(table: &str, chain: &str, expressions: &str) -> String {
        format!(
            r#"{{"rule": {{"family": "inet", "table": "{table}", "chain": "{chain}", "handle": 7, "expr": [{expressions}]}}}}"#
        )
    }

    fn matches(protocol: &str, field: &str, op: &str, right: &str) -> String {
        format!(
            r#"{{"match": {{"op": "{op}", "left": {{"payload": {{"protocol": "{protocol}", "field": "{field}"}}}}, "right": {right}}}}}"#
        )
    }

    #[test]
    fn rules_that_no_longer_see_frontends() {
        let jump = rule("host", "pre", r#"{"jump": {"target": "guard"}}"#);
        let drop = r#"{"drop": null}"#;
        for (chain, matched, expected) in [
            ("pre", matches("tcp", "dport", "==", "30080"), Some("`dport 30080 drop`")),
            ("pre", matches("tcp", "dport", "==", r#"{"range": [30000, 32767]}"#), Some("`dport 30000-32767 drop`")),
            (
                "pre",
                matches("tcp", "dport", "==", r#"{"set": [22, {"range": [31000, 31001]}]}"#),
                Some("dport 31000-31001"),
            ),
            (
                "guard",
                matches("ip", "daddr", "==", r#"{"prefix": {"addr": "10.96.0.0", "len": 16}}"#),
                Some("daddr 10.96.0.0/16"),
            ),
            ("guard", matches("ip", "daddr", "==", r#""@blocked""#), Some("daddr 10.96.0.10")),
            ("pre", matches("ip", "daddr", "!=", r#""10.96.0.10""#), None),
            ("unused", matches("tcp", "dport", "==", "30080"), None),
            ("fwd", matches("tcp", "dport", "==", "30080"), None),
            ("pre", matches("tcp", "dport", "==", "22"), None),
        ] {
            let found =
                found(&format!("{CHAINS}, {jump}, {}", rule("host", chain, &format!("{matched}, {drop}"))), false);
            let (policy, rules): (Vec<_>, Vec<_>) = found.iter().partition(|text| text.contains("policy"));
            assert_eq!(policy.len(), 1, "{found:?}");
            match expected {
                Some(expected) => {
                    let place = format!("table inet host, chain {chain}: ");
                    assert!(
                        rules.len() == 1 && rules[0].starts_with(&place) && rules[0].contains(expected),
                        "{found:?}"
                    );
                }
                None => assert!(rules.is_empty(), "{matched}: {found:?}"),
            }
        }
    }

    #[test]
    fn verdict_maps_and_concatenations() {
        let vmap = r#"{"vmap": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": {"set": [[22, {"accept": null}], [30443, {"drop": null}]]}}}"#;
        let found_vmap = found(&format!("{CHAINS}, {}", rule("host", "pre", vmap)), false);
        assert!(found_vmap[0].contains("dport 30443"), "{found_vmap:?}");
        let concat = r#"{"match": {"op": "==", "left": {"concat": [{"payload": {"protocol": "ip", "field": "daddr"}}, {"payload": {"protocol": "tcp", "field": "dport"}}]},
            "right": {"set": [{"concat": ["10.96.0.10", 53]}]}}}, {"drop": null}"#;
        let found_concat = found(&format!("{CHAINS}, {}", rule("host", "pre", concat)), false);
        assert!(found_concat[0].contains("daddr 10.96.0.10 dport 53"), "{found_concat:?}");
    }

    #[test]
    fn tables_of_kube_proxy_and_of_iptables_are_left_out() {
        let chains = CHAINS.replace(r#""host""#, r#""kube-proxy""#);
        let text = format!("{chains}, {}", rule("kube-proxy", "pre", &matches("tcp", "dport", "==", "30080")));
        assert!(found(&text, false).is_empty());
        let text = CHAINS.replace(r#""inet""#, r#""ip""#).replace(r#""host""#, r#""filter""#);
        assert_eq!(found(&text, false).len(), 1);
        assert!(found(&text, true).is_empty());
        assert!(parse("{", false).is_err() && parse("{}", false).unwrap().judge(&frontends()).is_empty());
    }
}
