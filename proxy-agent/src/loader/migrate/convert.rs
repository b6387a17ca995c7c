//! Bytes of one layout into bytes of another, field by field and by name. A field that only the new layout has gets that
//! layout's default, one that only the old has is dropped, a wider one is extended, and a narrower one keeps its value if that
//! fits, else the greatest that does.

use super::layout::{Field, Layout};

pub(super) struct Converter {
    steps: Vec<Step>,
    /// An element with every default.
    template: Vec<u8>,
    /// For the log: what is not the same in both.
    differences: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    from: Field,
    to: Field,
}

impl Converter {
    pub(super) fn new(from: &Layout, to: &Layout, template: Vec<u8>) -> Self {
        let mut steps = Vec::new();
        let mut differences = Vec::new();
        for (name, field) in &to.fields {
            match from.field(name) {
                Some(old) if old.size != field.size => {
                    differences.push(format!("{name}: {} -> {} bytes", old.size, field.size));
                    steps.push(Step { from: old, to: *field });
                }
                Some(old) => steps.push(Step { from: old, to: *field }),
                None => differences.push(format!("{name}: new")),
            }
        }
        let dropped = from.fields.keys().filter(|name| !to.fields.contains_key(*name));
        differences.extend(dropped.map(|name| format!("{name}: dropped")));
        let mut template = template;
        template.resize(to.size, 0);
        Self { steps: merged(steps), template, differences }
    }

    pub(super) fn differences(&self) -> &[String] {
        &self.differences
    }

    pub(super) fn convert(&self, from: &[u8]) -> Vec<u8> {
        let mut to = self.template.clone();
        for Step { from: old, to: new } in &self.steps {
            let source = &from[old.offset..old.offset + old.size];
            let target = &mut to[new.offset..new.offset + new.size];
            resize(source, target);
        }
        to
    }
}

/// Little endian on all machines that Weir is built for; on others only equal sizes occur within one field.
fn resize(source: &[u8], target: &mut [u8]) {
    let kept = source.len().min(target.len());
    target[..kept].copy_from_slice(&source[..kept]);
    target[kept..].fill(0);
    if source[kept..].iter().any(|byte| *byte != 0) {
        target.fill(u8::MAX);
    }
}

/// Fields that lie side by side in both layouts are one copy.
fn merged(mut steps: Vec<Step>) -> Vec<Step> {
    steps.sort_unstable_by_key(|step| step.to.offset);
    let mut merged: Vec<Step> = Vec::new();
    for step in steps {
        if let Some(last) = merged.last_mut() {
            let same_size = last.from.size == last.to.size && step.from.size == step.to.size;
            let adjacent = last.from.offset + last.from.size == step.from.offset
                && last.to.offset + last.to.size == step.to.offset;
            if same_size && adjacent {
                last.from.size += step.from.size;
                last.to.size += step.to.size;
                continue;
            }
        }
        merged.push(step);
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::{super::layout::tests::layout, *};

    #[test]
    fn up_and_down_again() {
        let old = layout(8, &[("addr[0]", 0, 1), ("addr[1]", 1, 1), ("port", 2, 2), ("kind", 4, 1), ("zero", 5, 3)]);
        let new = layout(12, &[("port", 0, 2), ("addr[0]", 2, 1), ("addr[1]", 3, 1), ("kind", 4, 4), ("born", 8, 4)]);
        let up = Converter::new(&old, &new, vec![0, 0, 0, 0, 0, 0, 0, 0, 7, 7, 7, 7]);
        assert_eq!(up.steps.len(), 3, "the address is one copy: {:?}", up.steps);
        assert_eq!(up.differences(), ["born: new", "kind: 1 -> 4 bytes", "zero: dropped"]);
        let converted = up.convert(&[1, 2, 0x50, 0, 3, 9, 9, 9]);
        assert_eq!(converted, [0x50, 0, 1, 2, 3, 0, 0, 0, 7, 7, 7, 7]);
        let down = Converter::new(&new, &old, Vec::new());
        assert_eq!(down.convert(&converted), [1, 2, 0x50, 0, 3, 0, 0, 0]);
        let mut too_large = converted;
        too_large[5] = 1;
        assert_eq!(down.convert(&too_large)[4], u8::MAX, "the greatest that fits");
    }

    #[test]
    fn equal_layouts_are_one_copy() {
        let same = layout(6, &[("a", 0, 4), ("b", 4, 2)]);
        let converter = Converter::new(&same, &same, Vec::new());
        assert_eq!((converter.steps.len(), converter.differences().len()), (1, 0));
    }
}
