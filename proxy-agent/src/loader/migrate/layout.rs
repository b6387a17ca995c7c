//! The layout of a map's keys and values, read from the BTF that the kernel keeps with the map: the names, places and sizes of
//! all scalar fields. So that a build can read tables of a layout that it knows nothing of. Called by `table`.

use std::collections::BTreeMap;

/// Scalar fields by their path, such as `source.octets[3]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes.
    pub(super) size: usize,
    pub(super) fields: BTreeMap<String, Field>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Bytes.
    pub(super) offset: usize,
    pub(super) size: usize,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum LayoutError {
    #[error("the type information ends early")]
    Truncated,
    #[error("unknown form of type information")]
    Form,
    #[error("no type has the number {0}")]
    NoType(u32),
    #[error("types of kind {0} are not expected in a map")]
    Kind(u32),
}

const MAGIC: u32 = 0xeb9f;
/// Types in each other: none of ours come near it.
const DEPTH: usize = 16;

// Kinds, as in the kernel's include/uapi/linux/btf.h.
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

impl Layout {
    /// Of the type with this number in a BTF blob.
    pub(super) fn read(btf: &[u8], type_id: u32) -> Result<Self, LayoutError> {
        let btf = Btf::parse(btf)?;
        let mut layout = Self { size: btf.size(type_id, DEPTH)?, fields: BTreeMap::new() };
        btf.flatten(type_id, String::new(), 0, DEPTH, &mut layout.fields)?;
        Ok(layout)
    }

    pub(super) fn field(&self, name: &str) -> Option<Field> {
        self.fields.get(name).copied()
    }
}

/// One entry of the type section.
struct Type<'a> {
    kind: u32,
    /// How many members.
    len: usize,
    /// Size or type number, by kind.
    word: u32,
    extra: &'a [u8],
}

struct Btf<'a> {
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    fn parse(data: &'a [u8]) -> Result<Self, LayoutError> {
        if word(data, 0)? & 0xffff != MAGIC {
            return Err(LayoutError::Form);
        }
        let section = |offset: usize, len: usize| {
            let start = word(data, 4)? as usize + word(data, offset)? as usize;
            let end = start + word(data, len)? as usize;
            data.get(start..end).ok_or(LayoutError::Truncated)
        };
        let (mut rest, strings) = (section(8, 12)?, section(16, 20)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            let info = word(rest, 4)?;
            let (kind, len) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let extra = 12..12 + extra_len(kind, len);
            let entry = Type { kind, len, word: word(rest, 8)?, extra: bytes(rest, extra.clone())? };
            types.push(entry);
            rest = &rest[extra.end..];
        }
        Ok(Self { types, strings })
    }

    /// Numbers count from 1; 0 is void.
    fn get(&self, id: u32) -> Result<&Type<'a>, LayoutError> {
        let index = (id as usize).checked_sub(1).ok_or(LayoutError::NoType(id))?;
        self.types.get(index).ok_or(LayoutError::NoType(id))
    }

    fn name(&self, offset: u32) -> Result<&'a str, LayoutError> {
        let text = self.strings.get(offset as usize..).ok_or(LayoutError::Truncated)?;
        let end = text.iter().position(|byte| *byte == 0).ok_or(LayoutError::Truncated)?;
        std::str::from_utf8(&text[..end]).map_err(|_| LayoutError::Form)
    }

    fn size(&self, id: u32, depth: usize) -> Result<usize, LayoutError> {
        let depth = depth.checked_sub(1).ok_or(LayoutError::Form)?;
        let found = self.get(id)?;
        Ok(match found.kind {
            INT | STRUCT | ENUM | ENUM64 => found.word as usize,
            ARRAY => self.size(word(found.extra, 0)?, depth)? * word(found.extra, 8)? as usize,
            TYPEDEF | VOLATILE | CONST => self.size(found.word, depth)?,
            kind => return Err(LayoutError::Kind(kind)),
        })
    }

    fn flatten(
        &self,
        id: u32,
        path: String,
        offset: usize,
        depth: usize,
        fields: &mut BTreeMap<String, Field>,
    ) -> Result<(), LayoutError> {
        let depth = depth.checked_sub(1).ok_or(LayoutError::Form)?;
        let found = self.get(id)?;
        match found.kind {
            INT | ENUM | ENUM64 => {
                fields.insert(path, Field { offset, size: found.word as usize });
            }
            TYPEDEF | VOLATILE | CONST => self.flatten(found.word, path, offset, depth, fields)?,
            ARRAY => {
                let (element, count) = (word(found.extra, 0)?, word(found.extra, 8)? as usize);
                let size = self.size(element, depth)?;
                for index in 0..count {
                    self.flatten(element, format!("{path}[{index}]"), offset + index * size, depth, fields)?;
                }
            }
            STRUCT => {
                for member in found.extra.chunks_exact(12).take(found.len) {
                    let name = self.name(word(member, 0)?)?;
                    let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                    // Bits; rustc makes no bit fields.
                    let at = word(member, 8)? as usize / 8;
                    self.flatten(word(member, 4)?, path, offset + at, depth, fields)?;
                }
            }
            kind => return Err(LayoutError::Kind(kind)),
        }
        Ok(())
    }
}

/// Bytes behind the three words that every kind has.
fn extra_len(kind: u32, len: usize) -> usize {
    match kind {
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => 12 * len,
        ENUM | FUNC_PROTO => 8 * len,
        _ => 0,
    }
}

/// The kernel hands BTF out in its own byte order.
fn word(data: &[u8], at: usize) -> Result<u32, LayoutError> {
    let bytes = bytes(data, at..at + 4)?;
    Ok(u32::from_ne_bytes(bytes.try_into().map_err(|_| LayoutError::Truncated)?))
}

fn bytes(data: &[u8], range: std::ops::Range<usize>) -> Result<&[u8], LayoutError> {
    data.get(range).ok_or(LayoutError::Truncated)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A layout as [`Layout::read`] would give it.
    pub(in super::super) fn layout(size: usize, fields: &[(&str, usize, usize)]) -> Layout {
        let field = |&(name, offset, size): &(&str, usize, usize)| (name.to_owned(), Field { offset, size });
        Layout { size, fields: fields.iter().map(field).collect() }
    }

    /// `struct { a: u8, b: [u16; 2], c: struct { d: u32 } }`, by hand.
    fn blob() -> Vec<u8> {
        let strings = b"\0a\0b\0c\0d\0";
        let types: &[&[u32]] = &[
            &[0, INT << 24, 1, 8],
            &[0, INT << 24, 2, 16],
            &[0, ARRAY << 24, 0, 2, 1, 2],
            &[0, STRUCT << 24 | 1, 4, 7, 5, 0],
            &[0, INT << 24, 4, 32],
            &[0, STRUCT << 24 | 3, 12, 1, 1, 0, 3, 3, 16, 5, 4, 64],
        ];
        let types: Vec<u8> = types.iter().flat_map(|words| words.iter().flat_map(|it| it.to_ne_bytes())).collect();
        let header = [MAGIC | 1 << 16, 24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
        let header = header.iter().flat_map(|it| it.to_ne_bytes());
        header.chain(types.iter().copied()).chain(strings.iter().copied()).collect()
    }

    #[test]
    fn all_scalars_are_found() {
        let wanted = layout(12, &[("a", 0, 1), ("b[0]", 2, 2), ("b[1]", 4, 2), ("c.d", 8, 4)]);
        assert_eq!(Layout::read(&blob(), 6).unwrap(), wanted);
        assert!(matches!(Layout::read(&blob(), 7), Err(LayoutError::NoType(7))));
        let cut = blob().len() - 20;
        assert!(matches!(Layout::read(&blob()[..cut], 6), Err(LayoutError::Truncated)));
    }
}
