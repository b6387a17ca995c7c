//! Label and field selectors of list and watch requests.

use serde_json::Value;

/// Requirements that an object must meet, all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    /// Also met by an object without the key.
    NotIn(Vec<String>),
    Exists,
    Absent,
}

/// Fields that servers index; others are refused there too.
const FIELDS: [&str; 3] = ["metadata.name", "metadata.namespace", "spec.nodeName"];

impl Selector {
    pub(super) fn parse(labels: &str, fields: &str) -> Result<Self, String> {
        let labels = parse_all(labels)?;
        let fields = parse_all(fields)?;
        for Requirement { key, test } in &fields {
            if !FIELDS.contains(&key.as_str()) || matches!(test, Test::Exists | Test::Absent) {
                return Err(format!("field label not supported: {key}"));
            }
        }
        Ok(Self { labels, fields })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|wanted| wanted.test.met_by(labels[&wanted.key].as_str()))
            && self.fields.iter().all(|wanted| {
                let value = wanted.key.split('.').fold(object, |value, step| &value[step]);
                // An unset field selects as the empty string.
                wanted.test.met_by(Some(value.as_str().unwrap_or_default()))
            })
    }
}

impl Test {
    fn met_by(&self, value: Option<&str>) -> bool {
        let is_one_of = |list: &Vec<String>| value.is_some_and(|value| list.iter().any(|item| item == value));
        match self {
            Self::In(list) => is_one_of(list),
            Self::NotIn(list) => !is_one_of(list),
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
        }
    }
}

fn parse_all(text: &str) -> Result<Vec<Requirement>, String> {
    split_outside_brackets(text)
        .into_iter()
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| parse_one(part).ok_or_else(|| format!("unable to parse requirement: {part}")))
        .collect()
}

fn parse_one(part: &str) -> Option<Requirement> {
    let (key, test) = if let Some(key) = part.strip_prefix('!') {
        (key, Test::Absent)
    } else if let Some((key, value)) = part.split_once("!=") {
        (key, Test::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (key, Test::In(vec![value.trim().to_owned()]))
    } else if let Some((key, list)) = part.split_once(" notin ") {
        (key, Test::NotIn(parse_list(list)?))
    } else if let Some((key, list)) = part.split_once(" in ") {
        (key, Test::In(parse_list(list)?))
    } else {
        (part, Test::Exists)
    };
    let key = key.trim();
    let valid = !key.is_empty() && !key.contains([' ', '(', ')', '=', '!']);
    valid.then(|| Requirement { key: key.to_owned(), test })
}

fn parse_list(text: &str) -> Option<Vec<String>> {
    let inside = text.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some(inside.split(',').map(|item| item.trim().to_owned()).collect())
}

/// Commas separate requirements, and values inside brackets.
fn split_outside_brackets(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.split(|character| {
        match character {
            '(' => inside = true,
            ')' => inside = false,
            _ => {}
        }
        character == ',' && !inside
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(labels: &str, object: &Value) -> bool {
        Selector::parse(labels, "").unwrap().matches(object)
    }

    #[test]
    fn label_requirements() {
        let web = json!({"metadata": {"labels": {"app": "web", "tier": "front"}}});
        for (selector, expected) in [
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=web,tier=back", false),
            ("app!=web", false),
            ("other!=x", true),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("app notin (db,cache),tier", true),
            ("other notin (x)", true),
            ("app", true),
            ("other", false),
            ("!other", true),
            ("!service.kubernetes.io/service-proxy-name,!other", true),
            ("!app", false),
            ("", true),
        ] {
            assert_eq!(matches(selector, &web), expected, "{selector}");
        }
    }

    #[test]
    fn no_labels_at_all() {
        assert!(matches("!app", &json!({"metadata": {}})));
        assert!(!matches("app", &json!({"metadata": {}})));
    }

    #[test]
    fn field_requirements() {
        let pod = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"nodeName": "n1"}});
        let by_fields = |fields| Selector::parse("", fields).unwrap().matches(&pod);
        assert!(by_fields("metadata.name=a,metadata.namespace=b"));
        assert!(by_fields("spec.nodeName=n1"));
        assert!(!by_fields("spec.nodeName!=n1"));
        assert!(Selector::parse("", "spec.colour=red").is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["a in x", "=b", "a b", "!"] {
            assert!(Selector::parse(text, "").is_err(), "{text}");
        }
    }
}
