//! `serde_json::Value` to a typed API object, with errors that name the field and what was found there.
//!
//! Called by both sources for every object that they read. It exists because serde's own errors name Rust
//! types (`i32`) where an operator needs `spec.ports[0].port: expected a number, got "eighty"`.

use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
    value::StrDeserializer,
};
use serde_json::{Map, Value};

/// Longest value that a message repeats, in characters.
const MAX_SHOWN: usize = 60;

/// A field that does not have the type that the API gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldError {
    /// As `spec.ports[0].port`; empty for the object itself.
    pub(super) path: Option<String>,
    pub(super) message: String,
}

pub(super) fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, FieldError> {
    T::deserialize(Typed { value, path: &Path::Root })
}

/// A value as a message shows it.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= MAX_SHOWN {
        return text;
    }
    text.chars().take(MAX_SHOWN).chain("...".chars()).collect()
}

#[derive(Clone, Copy)]
enum Path<'p> {
    Root,
    Field(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[derive(Clone, Copy)]
struct Typed<'de, 'p> {
    value: &'de Value,
    path: &'p Path<'p>,
}

impl Typed<'_, '_> {
    fn expected(&self, what: &str) -> FieldError {
        FieldError { path: Some(self.path.to_string()), message: format!("expected {what}, got {}", shown(self.value)) }
    }

    fn integer(&self) -> Result<i64, FieldError> {
        self.value.as_i64().ok_or_else(|| self.expected("a number"))
    }
}

impl FieldError {
    fn at(mut self, path: &Path<'_>) -> Self {
        self.path.get_or_insert_with(|| path.to_string());
        self
    }
}

impl<'de> Deserializer<'de> for Typed<'de, '_> {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        let path = self.path;
        let result = match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => visitor.visit_seq(Items { items: items.iter(), next: 0, path }),
            Value::Object(fields) => visitor.visit_map(Fields { fields: fields.iter(), value: None, path }),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => visitor.visit_i64(integer),
                (None, Some(float)) => visitor.visit_f64(float),
                (None, None) => Err(self.expected("a number")),
            },
        };
        result.map_err(|error| error.at(path))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        if self.value.is_boolean() { self.deserialize_any(visitor) } else { Err(self.expected("true or false")) }
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match i32::try_from(self.integer()?) {
            Ok(number) => visitor.visit_i32(number),
            Err(_) => Err(self.expected("a number of 32 bits")),
        }
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_i64(self.integer()?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        if self.value.is_string() { self.deserialize_any(visitor) } else { Err(self.expected("a string")) }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        if self.value.is_array() { self.deserialize_any(visitor) } else { Err(self.expected("a list")) }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        if self.value.is_object() { self.deserialize_any(visitor) } else { Err(self.expected("a mapping")) }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        let path = self.path;
        visitor.visit_newtype_struct(self).map_err(|error| error.at(path))
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct enum
        identifier ignored_any
    }
}

struct Items<'de, 'p> {
    items: std::slice::Iter<'de, Value>,
    next: usize,
    path: &'p Path<'p>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = FieldError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, FieldError> {
        let Some(value) = self.items.next() else { return Ok(None) };
        let path = Path::Index(self.path, self.next);
        self.next += 1;
        seed.deserialize(Typed { value, path: &path }).map(Some).map_err(|error| error.at(&path))
    }
}

struct Fields<'de, 'p> {
    fields: <&'de Map<String, Value> as IntoIterator>::IntoIter,
    value: Option<(&'de str, &'de Value)>,
    path: &'p Path<'p>,
}

impl<'de> MapAccess<'de> for Fields<'de, '_> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, FieldError> {
        self.value = self.fields.next().map(|(name, value)| (name.as_str(), value));
        let Some((name, _)) = self.value else { return Ok(None) };
        let key: StrDeserializer<'_, FieldError> = name.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, FieldError> {
        let (name, value) =
            self.value.take().ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        let path = Path::Field(self.path, name);
        seed.deserialize(Typed { value, path: &path }).map_err(|error| error.at(&path))
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_deref() {
            None | Some("") => f.write_str(&self.message),
            Some(path) => write!(f, "{path}: {}", self.message),
        }
    }
}

impl std::error::Error for FieldError {}

impl de::Error for FieldError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: None, message: message.to_string() }
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}, got {unexpected}"))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::{core::v1 as core, discovery::v1 as discovery},
        apimachinery::pkg::util::intstr::IntOrString,
    };
    use serde_json::json;

    use super::*;

    fn error<T: DeserializeOwned + fmt::Debug>(value: Value) -> String {
        from_value::<T>(&value).expect_err("malformed").to_string()
    }

    #[test]
    fn errors_name_the_field_and_what_was_found() {
        for (spec, expected) in [
            (json!({"ports": [{"port": "eighty"}]}), r#"spec.ports[0].port: expected a number, got "eighty""#),
            (
                json!({"ports": [{"port": 99_999_999_999u64}]}),
                "spec.ports[0].port: expected a number of 32 bits, got 99999999999",
            ),
            (json!({"ports": {"port": 80}}), r#"spec.ports: expected a list, got {"port":80}"#),
            (json!({"clusterIP": 10}), "spec.clusterIP: expected a string, got 10"),
            (json!({"selector": ["app"]}), r#"spec.selector: expected a mapping, got ["app"]"#),
            (json!({"selector": {"app": 1}}), "spec.selector.app: expected a string, got 1"),
            (json!([]), "spec: expected a mapping, got []"),
            (
                json!({"publishNotReadyAddresses": "yes"}),
                r#"spec.publishNotReadyAddresses: expected true or false, got "yes""#,
            ),
        ] {
            assert_eq!(error::<core::Service>(json!({"spec": spec})), expected);
        }
        let text = error::<core::Service>(json!({"metadata": {"creationTimestamp": "yesterday"}}));
        assert!(text.starts_with("metadata.creationTimestamp: "), "{text}");
    }

    #[test]
    fn well_formed_objects_arrive_as_serde_json_reads_them() {
        let value = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z", "unknown": {"a": [1.5, true]}},
            "spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8081}], "selector": null},
        });
        let service: core::Service = from_value(&value).expect("a Service");
        assert_eq!(service, serde_json::from_value(value).expect("a Service"));
        let ports = service.spec.and_then(|spec| spec.ports).expect("ports");
        assert_eq!(ports[0].target_port, Some(IntOrString::String("http".into())));
        let value = json!({"addressType": "IPv4", "endpoints": null, "metadata": {}});
        let slice: discovery::EndpointSlice = from_value(&value).expect("a slice");
        assert!(slice.endpoints.is_empty());
    }
}
