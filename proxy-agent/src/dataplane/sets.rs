//! SETS through a memory mapping: each set is one aligned 64-bit store, so that no packet sees half of it.
//! The only place of the agent that writes kernel memory directly; [`super::KernelMaps`] owns it.

use std::{
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use proxy_common::abi::{EndpointSet, names};

use super::DataplaneError;

#[derive(Debug)]
pub(super) struct SetWords {
    words: NonNull<AtomicU64>,
    len: usize,
    bytes: NonZeroUsize,
    // Keeps the map's file descriptor for as long as the mapping lives.
    _map: MapData,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only touched by atomic operations.
unsafe impl Send for SetWords {}
// SAFETY: as above; `&SetWords` gives atomic loads and stores only.
unsafe impl Sync for SetWords {}

impl SetWords {
    /// Maps the array, which must have been created with BPF_F_MMAPABLE.
    pub(super) fn new(map: MapData, len: usize) -> Result<Self, DataplaneError> {
        let error = |source| DataplaneError::Mmap { map: names::SETS, source };
        let bytes = NonZeroUsize::new(len * size_of::<u64>()).ok_or(error(nix::errno::Errno::EINVAL))?;
        // SAFETY: a new shared mapping at an address of the kernel's choice; it aliases no Rust object.
        let address = unsafe {
            mmap(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, map.fd().as_fd(), 0)
        }
        .map_err(error)?;
        Ok(Self { words: address.cast(), len, bytes, _map: map })
    }

    /// Publishes a set. Release: the ring range that it points at was written by a system call before.
    pub(super) fn store(&self, index: usize, set: EndpointSet) -> bool {
        let Some(word) = self.words().get(index) else { return false };
        word.store(set.to_word(), Ordering::Release);
        true
    }

    /// All sets up to the last that is not zero.
    pub(super) fn load_all(&self) -> Vec<EndpointSet> {
        let mut words: Vec<u64> = self.words().iter().map(|word| word.load(Ordering::Acquire)).collect();
        words.truncate(words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1));
        words.into_iter().map(EndpointSet::from_word).collect()
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned and `len` words long (checked against the map's size by `mmap`, which
        // refuses more than the array has), lives as long as `self`, and is written by atomic stores only.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }
}

impl Drop for SetWords {
    fn drop(&mut self) {
        // SAFETY: the address and length are those that `mmap` returned, and no reference outlives `self`.
        // An error could only mean a wrong address; there is nothing to do about it.
        let _ = unsafe { munmap(self.words.cast(), self.bytes.get()) };
    }
}
