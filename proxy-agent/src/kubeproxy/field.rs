//! What a row of the table of fields says ([`super::table`]).

/// A field of KubeProxyConfiguration, a flag of kube-proxy, or (mostly) both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    /// Path in the document, parts separated by points; empty for a flag without a field.
    pub(super) path: &'static str,
    pub(super) flag: Flag,
    pub(super) shape: Shape,
    pub(super) treatment: Treatment,
    /// What Weir does with it, or why it has no meaning here. Completes "has no effect: ..." for the latter.
    pub(super) what: &'static str,
}

/// By which flag the field can be set on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flag {
    None,
    /// A flag of Weir's own that is named as kube-proxy's and means the same.
    Weir(&'static str),
    /// Taken for kube-proxy's sake; its value stands for the field's.
    KubeProxy(&'static str),
}

impl Flag {
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Flag::None => None,
            Flag::Weir(name) | Flag::KubeProxy(name) => Some(name),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// It means here what it means to kube-proxy.
    Honoured,
    /// Weir has something of its own for it.
    Translated,
    /// It has no meaning here; a value other than the type's zero is a warning.
    Warned,
    /// It asks for something other than to run; an error.
    Refused,
}

/// Which values a field takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shape {
    Bool,
    Integer(i64, i64),
    Number,
    /// As Go writes it: `1h2m3.5s`.
    Duration,
    /// The same, or an integer of nanoseconds.
    DurationOrNanoseconds,
    Text,
    Choice(&'static [&'static str]),
    /// An IP address.
    Address,
    /// An IP address, or one and a port.
    AddressAndPort,
    Texts,
    /// Names and whether they are on.
    Gates,
    /// Patterns and levels.
    Levels,
    /// A text or an integer, as in resource quantities.
    Quantity,
}

impl Shape {
    /// Completes "expected ...".
    pub(super) fn expected(self) -> String {
        match self {
            Shape::Bool => "true or false".into(),
            Shape::Integer(0, i64::MAX) => "an integer of at least 0".into(),
            Shape::Integer(low, high) => format!("an integer from {low} to {high}"),
            Shape::Number => "a number".into(),
            Shape::Duration => "a duration such as \"30s\" or \"1h5m\"".into(),
            Shape::DurationOrNanoseconds => "a duration such as \"5s\", or an integer of nanoseconds".into(),
            Shape::Text => "a text".into(),
            Shape::Choice(choices) => format!("one of {}", choices.join(", ")),
            Shape::Address => "an IP address".into(),
            Shape::AddressAndPort => "IP:PORT".into(),
            Shape::Texts => "a list of texts".into(),
            Shape::Gates => "names with true or false".into(),
            Shape::Levels => "a list of filePattern and verbosity".into(),
            Shape::Quantity => "a quantity".into(),
        }
    }
}
