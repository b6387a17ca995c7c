//! A field's value, from the document or from a flag. Called by [`super::read`] and [`super::flags`].

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    document::{Node, Yaml},
    field::Shape,
};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Integer(i64),
    Number(f64),
    Duration(Duration),
    Text(String),
    Texts(Vec<String>),
    Gates(BTreeMap<String, bool>),
}

impl Value {
    /// True for the type's zero, which says the same as a field that is left out (except in [`Shape::Bool`] fields that are
    /// true by default; those look for themselves).
    pub(super) fn is_zero(&self) -> bool {
        match self {
            Value::Bool(value) => !value,
            Value::Integer(value) => *value == 0,
            Value::Number(value) => *value == 0.0,
            Value::Duration(value) => value.is_zero(),
            Value::Text(value) => value.is_empty(),
            Value::Texts(values) => values.is_empty(),
            Value::Gates(gates) => gates.is_empty(),
        }
    }

    /// `None` if the node has none (null). `Err` names the place below the field if it is not the field itself.
    pub(super) fn from_yaml(shape: Shape, node: &Node) -> Result<Option<Self>, Wrong> {
        let wrong = || Wrong { line: node.line, got: shown(&node.value) };
        let value = match (shape, &node.value) {
            (_, Yaml::Null) => return Ok(None),
            (Shape::Bool, Yaml::Bool(value)) => Value::Bool(*value),
            (Shape::Integer(..) | Shape::DurationOrNanoseconds | Shape::Quantity, Yaml::Integer(value)) => {
                Value::Integer(*value)
            }
            (Shape::Number, Yaml::Integer(value)) => Value::Number(*value as f64),
            (Shape::Number, Yaml::Number(value)) => Value::Number(*value),
            (Shape::Duration | Shape::DurationOrNanoseconds, Yaml::Text(text)) => {
                Value::Duration(duration(text).ok_or_else(wrong)?)
            }
            (Shape::Quantity, Yaml::Text(text)) => quantity(text),
            (Shape::Text | Shape::Choice(_) | Shape::Address | Shape::AddressAndPort, Yaml::Text(text)) => {
                Value::Text(text.clone())
            }
            (Shape::Texts, Yaml::List(nodes)) => Value::Texts(nodes.iter().map(text_of).collect::<Result<_, _>>()?),
            (Shape::Gates, Yaml::Map(entries)) => {
                let gate = |(name, node): &(String, Node)| match node.value {
                    Yaml::Bool(on) => Ok((name.clone(), on)),
                    _ => Err(Wrong { line: node.line, got: format!("{name}: {}", shown(&node.value)) }),
                };
                Value::Gates(entries.iter().map(gate).collect::<Result<_, _>>()?)
            }
            (Shape::Levels, Yaml::List(nodes)) => Value::Texts(nodes.iter().map(level_of).collect::<Result<_, _>>()?),
            _ => return Err(wrong()),
        };
        if value.fits(shape) { Ok(Some(value)) } else { Err(wrong()) }
    }

    /// As pflag reads it.
    pub(super) fn from_flag(shape: Shape, text: &str) -> Result<Self, String> {
        let list = || text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let value = match shape {
            Shape::Bool => boolean(text).map(Value::Bool),
            Shape::Integer(..) => text.parse().ok().map(Value::Integer),
            Shape::Number => text.parse().ok().map(Value::Number),
            Shape::Duration | Shape::DurationOrNanoseconds => duration(text).map(Value::Duration),
            Shape::Texts | Shape::Levels => Some(Value::Texts(list())),
            Shape::Gates => gates(text).map(Value::Gates),
            Shape::Quantity => Some(quantity(text)),
            _ => Some(Value::Text(text.to_owned())),
        };
        value.filter(|value| value.fits(shape)).ok_or_else(|| format!("expected {}, got {text:?}", shape.expected()))
    }

    /// Empty texts stand for the default everywhere.
    fn fits(&self, shape: Shape) -> bool {
        match (shape, self) {
            (Shape::Integer(low, high), Value::Integer(value)) => (low..=high).contains(value),
            (Shape::Number, Value::Number(value)) => value.is_finite(),
            (_, Value::Text(text)) if text.is_empty() => true,
            (Shape::Choice(choices), Value::Text(text)) => choices.contains(&text.as_str()),
            (Shape::Address, Value::Text(text)) => text.parse::<IpAddr>().is_ok(),
            (Shape::AddressAndPort, Value::Text(text)) => {
                text.parse::<SocketAddr>().is_ok() || bare_address(text).is_some()
            }
            _ => true,
        }
    }
}

/// A value of the wrong type or out of range.
#[derive(Debug, PartialEq)]
pub(super) struct Wrong {
    pub(super) line: u64,
    pub(super) got: String,
}

/// `10.0.0.1`, `::1` or `[::1]`: an address whose port is the default.
pub(super) fn bare_address(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.unwrap_or(text).parse().ok()
}

fn text_of(node: &Node) -> Result<String, Wrong> {
    match &node.value {
        Yaml::Text(text) => Ok(text.clone()),
        other => Err(Wrong { line: node.line, got: shown(other) }),
    }
}

fn level_of(node: &Node) -> Result<String, Wrong> {
    match (node.get("filePattern").map(|it| &it.value), node.get("verbosity").map(|it| &it.value)) {
        (Some(Yaml::Text(pattern)), Some(Yaml::Integer(level))) => Ok(format!("{pattern}={level}")),
        _ => Err(Wrong { line: node.line, got: shown(&node.value) }),
    }
}

/// The words that Go's strconv.ParseBool takes.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn gates(text: &str) -> Option<BTreeMap<String, bool>> {
    let gate = |part: &str| {
        let (name, on) = part.split_once('=')?;
        Some((name.trim().to_owned(), boolean(on.trim())?))
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(gate).collect()
}

/// Its unit is of no interest here.
fn quantity(text: &str) -> Value {
    text.parse().map_or_else(|_| Value::Text(text.to_owned()), Value::Integer)
}

/// Go's time.ParseDuration without its sign: numbers, each with a unit.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0_f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |at| end + at);
        let unit = match &rest[end..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[unit_end..];
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

fn shown(value: &Yaml) -> String {
    match value {
        Yaml::Null => "nothing".into(),
        Yaml::Bool(value) => value.to_string(),
        Yaml::Integer(value) => value.to_string(),
        Yaml::Number(value) => value.to_string(),
        Yaml::Text(text) => format!("{text:?}"),
        Yaml::List(_) => "a list".into(),
        Yaml::Map(_) => "a mapping".into(),
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(value) => value.fmt(f),
            Value::Integer(value) => value.fmt(f),
            Value::Number(value) => value.fmt(f),
            Value::Duration(value) => write!(f, "{value:?}"),
            Value::Text(value) => f.write_str(value),
            Value::Texts(values) => f.write_str(&values.join(",")),
            Value::Gates(gates) => {
                let gates: Vec<_> = gates.iter().map(|(name, on)| format!("{name}={on}")).collect();
                f.write_str(&gates.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (text, seconds) in
            [("0", 0.0), ("0s", 0.0), ("1h2m3.5s", 3723.5), ("250ms", 0.25), ("15m0s", 900.0), ("1.5h", 5400.0)]
        {
            assert_eq!(duration(text).map(|it| it.as_secs_f64()), Some(seconds), "{text}");
        }
        for text in ["", "5", "s", "1x", "-5s", "1 s", "1..5s", "1e3s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn flags_as_pflag_reads_them() {
        assert_eq!(Value::from_flag(Shape::Bool, "T"), Ok(Value::Bool(true)));
        let gates = Value::from_flag(Shape::Gates, "A=true, B=false").unwrap();
        assert_eq!(gates.to_string(), "A=true,B=false");
        let texts = Value::from_flag(Shape::Texts, "10.0.0.0/8,fd00::/8").unwrap();
        assert_eq!(texts, Value::Texts(vec!["10.0.0.0/8".into(), "fd00::/8".into()]));
        for (shape, text) in [
            (Shape::Bool, "yes"),
            (Shape::Integer(0, 31), "32"),
            (Shape::Integer(0, 31), "x"),
            (Shape::Gates, "A"),
            (Shape::Choice(&["a"]), "b"),
            (Shape::Address, "10.0.0"),
            (Shape::AddressAndPort, "10.0.0.1:x"),
            (Shape::Number, "NaN"),
        ] {
            let error = Value::from_flag(shape, text).unwrap_err();
            assert!(error.starts_with("expected ") && error.contains(text), "{error}");
        }
    }

    #[test]
    fn addresses_with_and_without_a_port() {
        for text in ["0.0.0.0:10256", "[::]:10256", "0.0.0.0", "::", "[::]", ""] {
            assert!(Value::from_flag(Shape::AddressAndPort, text).is_ok(), "{text}");
        }
    }
}
