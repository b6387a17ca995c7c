//! The objects of a list one by one, as its text arrives: a cluster's slices are many megabytes, of which little is kept.

use serde::Deserialize;

/// In front of the array, without the blanks outside of texts.
const ITEMS: &[u8] = b"\"items\":";

/// Takes a list apart. What is around the objects is read at the end, when the whole text was seen to be JSON.
#[derive(Debug, Default)]
pub(super) struct Items {
    /// The list without its objects.
    outer: Vec<u8>,
    /// The object that is arriving.
    object: Vec<u8>,
    /// Open brackets, those of the object included.
    depth: usize,
    in_items: bool,
    in_text: bool,
    escaped: bool,
}

/// What a list says of itself.
#[derive(Debug, Deserialize)]
struct Head {
    metadata: Metadata,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

impl Items {
    /// Takes the next bytes; `found` gets each object that is complete.
    pub(super) fn push<E>(&mut self, bytes: &[u8], mut found: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        for &byte in bytes {
            if self.take(byte) {
                let object = std::mem::take(&mut self.object);
                found(&object)?;
                // The next one is of about the same length.
                self.object = object;
                self.object.clear();
            }
        }
        Ok(())
    }

    /// The version of the list, if all of it was there.
    pub(super) fn finish(self) -> Result<String, serde_json::Error> {
        let head: Head = serde_json::from_slice(&self.outer)?;
        Ok(head.metadata.resource_version)
    }

    /// Whether the byte is the last one of an object.
    fn take(&mut self, byte: u8) -> bool {
        // Depth of an object in the array: the list itself, the array, the object.
        const OBJECT: usize = 3;
        if self.in_text {
            self.keep(byte);
            self.in_text = byte != b'"' || self.escaped;
            self.escaped = byte == b'\\' && !self.escaped;
            return false;
        }
        match byte {
            b'"' => self.in_text = true,
            b'{' | b'[' => {
                self.in_items |= byte == b'[' && self.depth == 1 && self.outer.ends_with(ITEMS);
                if self.in_items && self.depth == OBJECT - 1 && byte == b'{' {
                    self.depth = OBJECT;
                    self.object.push(byte);
                    return false;
                }
                self.keep(byte);
                self.depth += 1;
                return false;
            }
            b'}' | b']' => {
                let is_object = self.is_object();
                self.keep(byte);
                self.depth = self.depth.saturating_sub(1);
                self.in_items &= self.depth >= 2;
                return is_object && self.depth == OBJECT - 1;
            }
            b' ' | b'\t' | b'\n' | b'\r' => return false,
            // Between two objects.
            b',' if self.in_items && self.depth == OBJECT - 1 => return false,
            _ => {}
        }
        self.keep(byte);
        false
    }

    fn is_object(&self) -> bool {
        self.in_items && !self.object.is_empty()
    }

    fn keep(&mut self, byte: u8) {
        if self.is_object() { self.object.push(byte) } else { self.outer.push(byte) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The objects, and the version or None where the text is no list.
    fn read(text: &str, chunk: usize) -> (Vec<Value>, Option<String>) {
        let mut items = Items::default();
        let mut found = Vec::new();
        for bytes in text.as_bytes().chunks(chunk) {
            let take = |object: &[u8]| serde_json::from_slice(object).map(|it| found.push(it));
            if items.push(bytes, take).is_err() {
                return (found, None);
            }
        }
        (found, items.finish().ok())
    }

    #[test]
    fn objects_come_out_as_they_went_in() {
        let objects = vec![
            json!({"metadata": {"name": "a ]}\\\" \"items\":[{", "labels": {}}, "items": [{"x": [1, [2]]}]}),
            json!({}),
            json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}, "text": "ä \\"}),
        ];
        let list = json!({"kind": "ServiceList", "apiVersion": "v1", "before": [{"items": []}],
                          "metadata": {"resourceVersion": "7"}, "items": objects, "last": {"items": [1]}});
        for text in [list.to_string(), serde_json::to_string_pretty(&list).expect("JSON")] {
            for chunk in [1, 2, 7, 10_000] {
                assert_eq!(read(&text, chunk), (objects.clone(), Some("7".to_owned())), "{chunk}");
            }
        }
    }

    #[test]
    fn lists_without_objects() {
        for items in ["[]", "null", "[ ]"] {
            let text = format!(r#"{{"items": {items}, "metadata": {{"resourceVersion": "7"}}}}"#);
            assert_eq!(read(&text, 3), (Vec::new(), Some("7".to_owned())));
        }
    }

    #[test]
    fn what_is_no_list_or_only_a_part_of_one_has_no_version() {
        let whole = r#"{"metadata":{"resourceVersion":"7"},"items":[{"a":1},{"b":2}]}"#;
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length], 5).1, None, "{length}");
        }
        for text in ["<html>", "\0garbage{]", r#"{"items":[1,{]"#, r#"{"items":[}"#, "]]]}}}", r#"{"items":[{"a":]}]}"#]
        {
            assert_eq!(read(text, 5).1, None, "{text}");
        }
    }
}
