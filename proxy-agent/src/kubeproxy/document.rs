//! YAML text to the one document in it that is a KubeProxyConfiguration, with the line of every value. Called by [`super::read`].

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

use super::ConfigError;

pub(super) const API_GROUP: &str = "kubeproxy.config.k8s.io";
pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub(super) const KIND: &str = "KubeProxyConfiguration";
/// Where kubeadm keeps the document in the ConfigMap `kube-proxy`.
const KEY: &str = "config.conf";

/// A YAML value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Yaml {
    Null,
    Bool(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// A value and the line on which it begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) value: Yaml,
    pub(super) line: u64,
}

impl Node {
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Yaml::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value {
            Yaml::Text(text) => Some(text),
            _ => None,
        }
    }

    fn later_by(&mut self, lines: u64) {
        self.line += lines;
        match &mut self.value {
            Yaml::List(nodes) => nodes.iter_mut().for_each(|node| node.later_by(lines)),
            Yaml::Map(entries) => entries.iter_mut().for_each(|(_, node)| node.later_by(lines)),
            _ => {}
        }
    }
}

/// The document of the right kind: alone, beside others (a kubeconfig), or in a ConfigMap.
pub(super) fn find(text: &str) -> Result<Node, ConfigError> {
    let mut wanted = None;
    let mut others = Vec::new();
    for document in parse(text)? {
        let (kind, version) = (document.text("kind").unwrap_or(""), document.text("apiVersion").unwrap_or(""));
        let in_map = (kind == "ConfigMap").then(|| document.get("data").and_then(|data| data.get(KEY))).flatten();
        let found = match in_map {
            Some(Node { value: Yaml::Text(inner), line }) => {
                let mut inner = find(inner)?;
                inner.later_by(line.saturating_sub(1));
                inner
            }
            _ if kind == KIND || version.starts_with(API_GROUP) => {
                check_kind(&document)?;
                document
            }
            _ => {
                others.push(described(kind, version));
                continue;
            }
        };
        if wanted.replace(found).is_some() {
            return Err(ConfigError::Several);
        }
    }
    wanted.ok_or_else(|| ConfigError::None { found: others.join(", ") })
}

fn check_kind(document: &Node) -> Result<(), ConfigError> {
    for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        let got = document.text(field).unwrap_or("nothing");
        if got != expected {
            let line = document.get(field).map_or(document.line, |node| node.line);
            return Err(ConfigError::Kind { field, line, expected, got: got.to_owned() });
        }
    }
    Ok(())
}

fn described(kind: &str, version: &str) -> String {
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    format!("{} of {}", or(kind, "no kind"), or(version, "no apiVersion"))
}

fn parse(text: &str) -> Result<Vec<Node>, ConfigError> {
    let mut reader = text.as_bytes();
    // `n` and `y` are texts to Kubernetes' parser, too, where a text is expected.
    // Deeper than any document of Kubernetes, and far from the end of a thread's stack.
    let budget = serde_saphyr::budget! { max_depth: 16, flow_nesting_limit: 16 };
    let options = serde_saphyr::options! { budget: budget, strict_booleans: true };
    let mut documents = Vec::new();
    for document in serde_saphyr::read_with_options::<_, Node>(&mut reader, options) {
        match document {
            Ok(node) if node.value == Yaml::Null => {}
            Ok(node) => documents.push(node),
            Err(error) => return Err(ConfigError::Yaml(error.without_snippet().to_string())),
        }
    }
    Ok(documents)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Yaml>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Yaml;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_none<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Yaml, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
        Ok(Yaml::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
        Ok(Yaml::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
        // Beyond any field's range in either form.
        Ok(Yaml::Integer(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Yaml, E> {
        Ok(Yaml::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Yaml, E> {
        Ok(Yaml::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Yaml, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = access.next_element()? {
            nodes.push(node);
        }
        Ok(Yaml::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Yaml, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Yaml::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    #[test]
    fn lines_and_types() {
        let text = format!("{CONFIG}a: {{b: [1, \"1\", yes, 1.5, ~, true]}}\nc:\n  d: x\n");
        let node = find(&text).unwrap();
        let Yaml::List(list) = &node.get("a").unwrap().get("b").unwrap().value else { panic!("{node:?}") };
        let values: Vec<_> = list.iter().map(|node| node.value.clone()).collect();
        let text = |text: &str| Yaml::Text(text.to_owned());
        assert_eq!(values, [Yaml::Integer(1), text("1"), text("yes"), Yaml::Number(1.5), Yaml::Null, Yaml::Bool(true)]);
        assert_eq!(node.get("c").unwrap().get("d"), Some(&Node { value: text("x"), line: 5 }));
    }

    #[test]
    fn beside_a_kubeconfig_and_in_a_config_map() {
        let beside = format!("apiVersion: v1\nkind: Config\nclusters: []\n---\n{CONFIG}mode: ipvs\n---\n");
        assert_eq!(find(&beside).unwrap().get("mode").unwrap().line, 7);
        let inner = format!("{CONFIG}mode: ipvs\n").replace('\n', "\n    ");
        let map =
            format!("apiVersion: v1\nkind: ConfigMap\ndata:\n  config.conf: |\n    {inner}\n  kubeconfig.conf: x\n");
        let node = find(&map).unwrap();
        assert_eq!(node.get("mode"), Some(&Node { value: Yaml::Text("ipvs".into()), line: 7 }));
    }

    #[test]
    fn hostile_text_is_an_error_or_nothing_worse() {
        let deep = format!("{CONFIG}a: {}", "[".repeat(20_000));
        let maps = format!("{CONFIG}a: {}", "{a: ".repeat(20_000));
        let aliases = "a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\n".to_owned()
            + &(b'c'..=b'z')
                .map(char::from)
                .map(|c| format!("{c}: &{c} [{}]\n", format!("*{}, ", char::from(c as u8 - 1)).repeat(9)))
                .collect::<String>();
        for text in [
            &deep,
            &maps,
            &aliases,
            "\0",
            "? [a]\n: b\n",
            "1: 2\n",
            "%YAML 9.9\n---\n",
            "- - -\n",
            "!!binary x",
            "a: !x y\n",
        ] {
            assert!(find(text).is_err(), "{:?}", text.get(..40));
        }
        let odd = find(&format!("{CONFIG}1: x\n18446744073709551615: y\nbig: 99999999999999999999999\n"));
        assert!(odd.is_ok(), "{odd:?}");
    }

    #[test]
    fn other_documents_are_errors() {
        for (text, expected) in [
            ("", "holds no KubeProxyConfiguration"),
            ("hello", "holds no KubeProxyConfiguration, but no kind of no apiVersion"),
            ("apiVersion: v1\nkind: Config\n", "but Config of v1"),
            ("apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration\n", "line 1: apiVersion: expected"),
            (
                "kind: KubeProxyConfiguration\n",
                "apiVersion: expected \"kubeproxy.config.k8s.io/v1alpha1\", got \"nothing\"",
            ),
            ("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: Other\n", "line 2: kind: expected"),
            ("a: [", "line 1"),
            ("a: 1\na: 2\n", "line 2"),
            (&format!("{CONFIG}---\n{CONFIG}"), "more than one"),
        ] {
            let error = find(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
