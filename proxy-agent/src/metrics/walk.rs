//! Reads whole LRU tables in large pieces (BPF_MAP_LOOKUP_BATCH, Linux 5.6) instead of by one call per entry.

use std::{io, os::fd::AsFd as _, path::Path};

use aya::Pod;

use crate::loader::sys;

/// Entries of one piece. A bucket of the kernel's table must fit.
const PIECE: usize = 4096;

/// Hands all entries of a pinned hash map to `each`. What changes meanwhile may be left out or come twice.
pub(super) fn walk<K: Pod, V: Pod>(path: &Path, mut each: impl FnMut(&K, &V)) -> io::Result<()> {
    let map = sys::obj_get(path)?;
    let mut keys: Vec<K> = Vec::with_capacity(PIECE);
    let mut values: Vec<V> = Vec::with_capacity(PIECE);
    let mut position = None;
    loop {
        let (count, next) = sys::lookup_batch(map.as_fd(), position, &mut keys, &mut values)?;
        keys.iter().zip(&values).take(count).for_each(|(key, value)| each(key, value));
        match next {
            Some(next) => position = Some(next),
            None => return Ok(()),
        }
    }
}
