//! A pinned map as bytes, with its layout: read in batches, written one element at a time. Called by `copy`.

use std::{io, mem::zeroed, os::fd::AsFd as _, os::fd::OwnedFd};

use aya_obj::generated::{BPF_ANY, BPF_NOEXIST, bpf_btf_info, bpf_cmd, bpf_map_info, bpf_map_type};

use super::layout::{Layout, LayoutError};
use crate::loader::{pins::Pins, sys};

/// Elements that one call reads.
const BATCH: usize = 4096;
/// ENOTSUPP: a kind of map that this kernel reads one by one only.
const NOT_SUPPORTED: i32 = 524;

pub(super) struct Table {
    fd: OwnedFd,
    info: bpf_map_info,
    pub(super) key: Layout,
    pub(super) value: Layout,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("it carries no type information")]
    NoTypes,
}

impl Table {
    /// `None` if nothing is pinned there.
    pub(super) fn open(pins: &Pins, name: &str) -> Result<Option<Self>, TableError> {
        let fd = match sys::obj_get(&pins.map(name)) {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // SAFETY: all fields are integers, for which zero is valid.
        let mut info: bpf_map_info = unsafe { zeroed() };
        sys::obj_info(fd.as_fd(), &mut info)?;
        if info.btf_id == 0 || info.btf_value_type_id == 0 {
            return Err(TableError::NoTypes);
        }
        let btf = read_btf(info.btf_id)?;
        let value = Layout::read(&btf, info.btf_value_type_id)?;
        let key = Layout::read(&btf, info.btf_key_type_id)?;
        Ok(Some(Self { fd, info, key, value }))
    }

    pub(super) fn is_array(&self) -> bool {
        self.is_per_cpu() || self.info.type_ == bpf_map_type::BPF_MAP_TYPE_ARRAY as u32
    }

    fn is_per_cpu(&self) -> bool {
        self.info.type_ == bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32
    }

    fn key_size(&self) -> usize {
        self.info.key_size as usize
    }

    /// Bytes that the kernel reads and writes for one element.
    fn value_size(&self) -> io::Result<usize> {
        let size = self.info.value_size as usize;
        if !self.is_per_cpu() {
            return Ok(size);
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        Ok(size.next_multiple_of(8) * cpus)
    }

    /// `None` if the key is not there.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_size()?];
        match sys::map_element(bpf_cmd::BPF_MAP_LOOKUP_ELEM, self.fd.as_fd(), key, Some(&mut value), 0) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn put(&self, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        sys::map_element(bpf_cmd::BPF_MAP_UPDATE_ELEM, self.fd.as_fd(), key, Some(value), BPF_ANY.into())
    }

    /// False if the key is there already.
    pub(super) fn add(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        match sys::map_element(bpf_cmd::BPF_MAP_UPDATE_ELEM, self.fd.as_fd(), key, Some(value), BPF_NOEXIST.into()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn remove(&self, key: &[u8]) -> io::Result<()> {
        match sys::map_element(bpf_cmd::BPF_MAP_DELETE_ELEM, self.fd.as_fd(), key, None, 0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Hands every element over: key and value. Those that come and go meanwhile may or may not be among them.
    pub(super) fn for_each<E: From<io::Error>>(
        &self,
        mut take: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (key_size, value_size) = (self.key_size(), self.value_size()?);
        let (mut at, mut next) = (vec![0; key_size.max(4)], vec![0; key_size.max(4)]);
        let (mut first, mut room) = (true, BATCH);
        loop {
            let (mut keys, mut values) = (vec![0; key_size * room], vec![0; value_size * room]);
            let start = (!first).then_some(&at[..]);
            let read = sys::map_batch(self.fd.as_fd(), start, &mut next, &mut keys, &mut values, room);
            let (count, more) = match read {
                Ok(read) => read,
                // More elements in one bucket than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    room *= 2;
                    continue;
                }
                Err(error) if first && matches!(error.raw_os_error(), Some(libc::EINVAL | NOT_SUPPORTED)) => {
                    return self.for_each_one(take);
                }
                Err(error) => return Err(error.into()),
            };
            let pairs = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size));
            pairs.take(count).try_for_each(|(key, value)| take(key, value))?;
            if !more {
                return Ok(());
            }
            first = false;
            std::mem::swap(&mut at, &mut next);
        }
    }

    fn for_each_one<E: From<io::Error>>(&self, mut take: impl FnMut(&[u8], &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut key: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0; self.key_size()];
            if !sys::map_next_key(self.fd.as_fd(), key.as_deref(), &mut next)? {
                return Ok(());
            }
            if let Some(value) = self.get(&next)? {
                take(&next, &value)?;
            }
            key = Some(next);
        }
    }
}

/// The kernel's copy of the type information that came with the map.
fn read_btf(id: u32) -> io::Result<Vec<u8>> {
    let fd = sys::btf_by_id(id)?;
    // SAFETY: all fields are integers, for which zero is valid.
    let mut info: bpf_btf_info = unsafe { zeroed() };
    sys::obj_info(fd.as_fd(), &mut info)?;
    let mut data = vec![0; info.btf_size as usize];
    // SAFETY: as above.
    let mut info: bpf_btf_info = unsafe { zeroed() };
    info.btf = data.as_mut_ptr() as u64;
    info.btf_size = data.len() as u32;
    sys::obj_info(fd.as_fd(), &mut info)?;
    Ok(data)
}
