//! The document against the table: values, and what is to be said about them. Called by [`super::load`].

use std::collections::BTreeMap;

use super::{
    ConfigError, Finding,
    document::{Node, Yaml},
    field::{Field, Shape, Treatment},
    table,
    value::Value,
};

/// A value and where it was said.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Said {
    pub(super) value: Value,
    pub(super) place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Line(u64),
    Flag(&'static str),
}

/// By path.
pub(super) type Values = BTreeMap<&'static str, Said>;

/// Reads a document of the right kind. Wrong values are errors, all of them at once; unknown fields are findings.
pub(super) fn read(document: &Node) -> Result<(Values, Vec<Finding>), ConfigError> {
    let mut reader = Reader::default();
    reader.entries("", document);
    if reader.wrong.is_empty() { Ok((reader.values, reader.unknown)) } else { Err(ConfigError::Values(reader.wrong)) }
}

#[derive(Default)]
struct Reader {
    values: Values,
    unknown: Vec<Finding>,
    wrong: Vec<String>,
}

impl Reader {
    fn entries(&mut self, path: &str, node: &Node) {
        let Yaml::Map(entries) = &node.value else {
            // An empty struct (null) is one with its defaults.
            if node.value != Yaml::Null {
                self.wrong.push(format!("line {}: {path}: expected a mapping", node.line));
            }
            return;
        };
        for (name, node) in entries {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if path == "apiVersion" || path == "kind" {
                continue;
            }
            if let Some(field) = table::by_path(&path) {
                self.field(field, node);
            } else if table::is_group(&path) {
                self.entries(&path, node);
            } else {
                self.unknown.push(Finding::unknown(&path, node.line));
            }
        }
    }

    fn field(&mut self, field: &'static Field, node: &Node) {
        match Value::from_yaml(field.shape, node) {
            Ok(None) => {}
            Ok(Some(value)) => {
                self.unknown_levels(field, node);
                self.values.insert(field.path, Said { value, place: Place::Line(node.line) });
            }
            Err(wrong) => {
                let expected = field.shape.expected();
                self.wrong.push(format!("line {}: {}: expected {expected}, got {}", wrong.line, field.path, wrong.got));
            }
        }
    }

    /// The only list of structs in the type.
    fn unknown_levels(&mut self, field: &Field, node: &Node) {
        let (Shape::Levels, Yaml::List(items)) = (field.shape, &node.value) else { return };
        for (index, item) in items.iter().enumerate() {
            let Yaml::Map(entries) = &item.value else { continue };
            for (name, node) in entries.iter().filter(|(name, _)| name != "filePattern" && name != "verbosity") {
                self.unknown.push(Finding::unknown(&format!("{}[{index}].{name}", field.path), node.line));
            }
        }
    }
}

/// One warning for each value that has no meaning here.
pub(super) fn without_meaning(values: &Values) -> Vec<Finding> {
    let warned = |(path, said): (&&'static str, &Said)| {
        let field = table::by_path(path)?;
        (field.treatment == Treatment::Warned && !said.value.is_zero())
            .then(|| Finding::no_effect(said, field.path, field.what))
    };
    values.iter().filter_map(warned).collect()
}
