//! A hash map of the kernel read by BPF_MAP_LOOKUP_BATCH (Linux 5.6): some thousand entries by one system call, where an iterator takes two
//! for each. Called by loads.rs, which reads whole tables every few seconds.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use aya::{Pod, maps::MapData};

/// Of enum bpf_cmd.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
/// Entries by one call; more if a bucket of the map has more.
const ENTRIES: usize = 4096;

/// The part of union bpf_attr for batches.
#[repr(C)]
struct Attributes {
    in_batch: *const u32,
    out_batch: *mut u32,
    keys: *mut u8,
    values: *mut u8,
    /// In: room; out: entries.
    count: u32,
    map_fd: RawFd,
    elem_flags: u64,
    flags: u64,
}

/// Hands over every entry once, except such as come or go meanwhile. `K` and `V` must be what the map was made with.
pub(super) fn for_each<K: Pod, V: Pod>(map: &MapData, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
    let info = map.info().map_err(io::Error::other)?;
    if info.key_size() as usize != size_of::<K>() || info.value_size() as usize != size_of::<V>() {
        return Err(io::Error::other("the map has keys or values of another size"));
    }
    let mut room = ENTRIES.min(info.max_entries() as usize).max(1);
    let mut bucket = None;
    loop {
        let mut keys: Vec<K> = Vec::with_capacity(room);
        let mut values: Vec<V> = Vec::with_capacity(room);
        let mut next = 0_u32;
        let mut attributes = Attributes {
            in_batch: bucket.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
            out_batch: &raw mut next,
            keys: keys.as_mut_ptr().cast(),
            values: values.as_mut_ptr().cast(),
            count: u32::try_from(room).unwrap_or(u32::MAX),
            map_fd: map.fd().as_fd().as_raw_fd(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes of this command; keys and values have room for `count` entries of the map's sizes (checked above),
        // and all pointers live until the call is over.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attributes, size_of::<Attributes>()) };
        let error = (result < 0).then(io::Error::last_os_error);
        let last = match error.as_ref().map(io::Error::raw_os_error) {
            None => false,
            Some(Some(libc::ENOENT)) => true,
            // A bucket that has more entries than there is room.
            Some(Some(libc::ENOSPC)) => {
                room *= 2;
                continue;
            }
            Some(_) => return Err(error.unwrap_or_else(|| io::Error::other("no error"))),
        };
        let len = (attributes.count as usize).min(room);
        // SAFETY: the kernel wrote so many of each, and `Pod` types are valid whatever the bytes are.
        unsafe {
            keys.set_len(len);
            values.set_len(len);
        }
        keys.iter().zip(&values).for_each(|(key, value)| visit(key, value));
        if last {
            return Ok(());
        }
        bucket = Some(next);
    }
}
