//! Copies tables from one layout to another. Called by [`super::Migration`].

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hasher as _},
};

use super::{
    convert::Converter,
    meaning::{Age, FlowTable, renew_digest, template},
    table::{Table, TableError},
};
use crate::loader::pins::Pins;

/// A table that nobody writes meanwhile, as it is. Returns how many elements it had. An array is taken to be empty so far.
pub(super) fn copy_table(from: &Pins, to: &Pins, name: &str) -> Result<usize, TableError> {
    let Some((from, to)) = open_both(from, to, name)? else { return Ok(0) };
    let (keys, values) = converters(name, &from, &to);
    let mut count = 0;
    from.for_each(|key, value| {
        if !from.is_array() {
            to.put(&keys.convert(key), &mut values.convert(value))?;
        } else if value.iter().any(|byte| *byte != 0) {
            to.put(key, &mut values.convert(value))?;
        } else {
            return Ok(());
        }
        count += 1;
        Ok::<(), TableError>(())
    })?;
    Ok(count)
}

/// Numbers per CPU, whose layout never changes.
pub(super) fn copy_counters(from: &Pins, to: &Pins, name: &str) -> Result<(), TableError> {
    let Some((from, to)) = open_both(from, to, name)? else { return Ok(()) };
    from.for_each(|key, value| Ok(to.put(key, &mut value.to_vec())?))
}

/// A table that the programs write while it is copied: the first run copies all of it, each further run what changed since.
pub(super) struct FlowCopy {
    table: &'static FlowTable,
    from: Table,
    to: Table,
    /// The other tables of the pair, see [`FlowTable`].
    settled: Option<Table>,
    new: Option<Table>,
    keys: Converter,
    values: Converter,
    age: Age,
    /// Digest of a key -> digest of the value that was copied last.
    copied: HashMap<u64, u64>,
}

impl FlowCopy {
    /// `None` if one of the two is not there.
    pub(super) fn open(from: &Pins, to: &Pins, table: &'static FlowTable) -> Result<Option<Self>, TableError> {
        let other = |name: Option<&str>| name.map_or(Ok(None), |name| Table::open(to, name));
        let (settled, new) = (other(table.settled)?, other(table.new)?);
        let Some((from, to)) = open_both(from, to, table.name)? else { return Ok(None) };
        let (keys, values) = converters(table.name, &from, &to);
        let age = Age::of(&to.value);
        Ok(Some(Self { table, from, to, settled, new, keys, values, age, copied: HashMap::new() }))
    }

    pub(super) fn name(&self) -> &'static str {
        self.table.name
    }

    /// Returns how many elements were new or had changed.
    pub(super) fn run(&mut self) -> Result<usize, TableError> {
        let mut copied = std::mem::take(&mut self.copied);
        let mut count = 0;
        let result = self.from.for_each(|key, value| {
            let now = digest(value);
            if copied.insert(digest(key), now) != Some(now) {
                count += 1;
                self.take(key, value)?;
            }
            Ok(())
        });
        self.copied = copied;
        result.map(|()| count)
    }

    fn take(&self, key: &[u8], value: &[u8]) -> Result<(), TableError> {
        let (key, mut value) = (self.keys.convert(key), self.values.convert(value));
        renew_digest(self.table.name, &key, &mut value);
        if let Some(settled) = &self.settled
            && settled.get(&key)?.is_some()
        {
            return Ok(());
        }
        if self.to.add(&key, &mut value)? {
            return self.new.as_ref().map_or(Ok(()), |new| Ok(new.remove(&key)?));
        }
        // Both layouts' programs have seen the flow.
        let there = self.to.get(&key)?;
        if there.is_none_or(|there| self.age.read(&there) <= self.age.read(&value)) {
            self.to.put(&key, &mut value)?;
        }
        Ok(())
    }
}

fn open_both(from: &Pins, to: &Pins, name: &str) -> Result<Option<(Table, Table)>, TableError> {
    Ok(Table::open(from, name)?.zip(Table::open(to, name)?))
}

fn converters(name: &str, from: &Table, to: &Table) -> (Converter, Converter) {
    let keys = Converter::new(&from.key, &to.key, Vec::new());
    let values = Converter::new(&from.value, &to.value, template(name));
    if !(keys.differences().is_empty() && values.differences().is_empty()) {
        tracing::info!(map = name, keys = ?keys.differences(), values = ?values.differences(), "another layout");
    }
    (keys, values)
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
