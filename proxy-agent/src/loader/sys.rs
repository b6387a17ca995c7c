//! The bpf(2) calls that aya does not offer: links by interface index, link updates of every type, queries of a chain.
//! Called by the rest of `loader` and by `weir status`.

use std::{
    ffi::CString,
    io,
    mem::zeroed,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::{BPF_F_AFTER, BPF_F_BEFORE, bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type};

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    pub id: u32,
    pub program: u32,
    pub target: LinkTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkTarget {
    /// The interface's index; 0 once it is gone.
    Tcx(u32),
    /// The cgroup's id, which is the inode number of its directory; 0 once it is gone.
    Cgroup(u64),
    Other,
}

/// One program of a tcx chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainEntry {
    pub program: u32,
    /// 0 if the program was attached without a link.
    pub link: u32,
}

/// Where our programs go among those of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    /// First at both hooks: nobody keeps a packet from us
    #[default]
    First,
    /// Last at both hooks
    Last,
    /// Next to the link: first at ingress, last at egress. Others see client and endpoint, both ways
    Outer,
    /// Next to the stack: last at ingress, first at egress. Others see client and frontend, both ways
    Inner,
}

impl Order {
    /// Whether our program of this hook comes before others.
    pub(super) fn is_first(self, hook: bpf_attach_type) -> bool {
        match self {
            Self::First => true,
            Self::Last => false,
            Self::Outer => hook == bpf_attach_type::BPF_TCX_INGRESS,
            Self::Inner => hook != bpf_attach_type::BPF_TCX_INGRESS,
        }
    }
}

pub(super) fn bpf(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attr` is a whole, initialised union of the size given; every pointer in it outlives the call (see callers).
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, cmd as libc::c_long, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn bpf_fd(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(cmd, attr)? as i32;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn empty() -> bpf_attr {
    // SAFETY: all fields of the union are integers, for which zero is valid.
    unsafe { zeroed() }
}

pub(super) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Opens a pinned object.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

pub fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = raw(fd);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// EINVAL on kernels before 6.6.
pub fn link_tcx(program: BorrowedFd<'_>, ifindex: u32, hook: bpf_attach_type, order: Order) -> io::Result<OwnedFd> {
    let mut attr = empty();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = hook as u32;
    // Relative to no program: the very end of the chain.
    attr.link_create.flags = if order.is_first(hook) { BPF_F_BEFORE } else { BPF_F_AFTER };
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

pub fn link_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: bpf_attach_type) -> io::Result<OwnedFd> {
    let mut attr = empty();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.__bindgen_anon_2.target_fd = raw(cgroup);
    attr.link_create.attach_type = hook as u32;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Puts another program into the link, in one step. ENOLINK: what it was attached to is gone.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty();
    attr.link_update.link_fd = raw(link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = raw(program);
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches at once, whoever else holds the link.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty();
    attr.link_detach.link_fd = raw(link);
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

pub fn link_facts(link: BorrowedFd<'_>) -> io::Result<LinkFacts> {
    // SAFETY: all fields of the struct are integers, for which zero is valid.
    let mut info: bpf_link_info = unsafe { zeroed() };
    let mut attr = empty();
    attr.info.bpf_fd = raw(link);
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let target = if info.type_ == bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
        // SAFETY: the kernel filled the member that belongs to the type.
        LinkTarget::Tcx(unsafe { info.__bindgen_anon_1.tcx.ifindex })
    } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
        // SAFETY: as above.
        LinkTarget::Cgroup(unsafe { info.__bindgen_anon_1.cgroup.cgroup_id })
    } else {
        LinkTarget::Other
    };
    Ok(LinkFacts { id: info.id, program: info.prog_id, target })
}

/// What the kernel says of an object; `T` is the structure of its kind.
pub(super) fn obj_info<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr = empty();
    attr.info.bpf_fd = raw(fd);
    attr.info.info_len = size_of::<T>() as u32;
    attr.info.info = std::ptr::from_mut(info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

pub(super) fn btf_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = empty();
    attr.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    bpf_fd(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attr)
}

/// Looks up, updates or deletes one element of a map; the caller's slices have the sizes of the map's keys and values.
pub(super) fn map_element(
    cmd: bpf_cmd,
    map: BorrowedFd<'_>,
    key: &[u8],
    value: Option<&mut [u8]>,
    flags: u64,
) -> io::Result<()> {
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.map_or(0, |value| value.as_mut_ptr() as u64);
    attr.__bindgen_anon_2.flags = flags;
    bpf(cmd, &mut attr).map(drop)
}

/// The key behind `key`, or the first one. False if there is none.
pub(super) fn map_next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = key.map_or(0, |key| key.as_ptr() as u64);
    attr.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
    match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads up to `room` elements from where an earlier call ended (`next` says where this one did): how many, and whether there are more.
pub(super) fn map_batch(
    map: BorrowedFd<'_>,
    start: Option<&[u8]>,
    next: &mut [u8],
    keys: &mut [u8],
    values: &mut [u8],
    room: usize,
) -> io::Result<(usize, bool)> {
    let mut attr = empty();
    attr.batch.map_fd = raw(map);
    attr.batch.in_batch = start.map_or(0, |start| start.as_ptr() as u64);
    attr.batch.out_batch = next.as_mut_ptr() as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = room as u32;
    let more = match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => true,
        // The last ones.
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    // SAFETY: the kernel wrote the count, an integer.
    Ok((unsafe { attr.batch.count } as usize, more))
}

/// The tcx chain of an interface of the own network namespace, in the order of execution.
pub fn tcx_chain(ifindex: u32, hook: bpf_attach_type) -> io::Result<Vec<ChainEntry>> {
    // BPF_MPROG_MAX.
    const MAX: usize = 64;
    let mut programs = [0_u32; MAX];
    let mut links = [0_u32; MAX];
    let mut attr = empty();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = hook as u32;
    attr.query.prog_ids = programs.as_mut_ptr() as u64;
    attr.query.link_ids = links.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.count = MAX as u32;
    match bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) {
        // No chain at all.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        result => result?,
    };
    // SAFETY: the kernel wrote the count, an integer.
    let count = unsafe { attr.query.__bindgen_anon_2.count } as usize;
    let entries = programs.iter().zip(links).take(count);
    Ok(entries.map(|(program, link)| ChainEntry { program: *program, link }).collect())
}

/// The programs that are attached to a cgroup itself, by their ids.
pub fn cgroup_programs(cgroup: &impl AsFd, hook: bpf_attach_type) -> io::Result<Vec<u32>> {
    const MAX: usize = 64;
    let mut programs = [0_u32; MAX];
    let mut attr = empty();
    attr.query.__bindgen_anon_1.target_fd = raw(cgroup.as_fd());
    attr.query.attach_type = hook as u32;
    attr.query.prog_ids = programs.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = MAX as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: the kernel wrote the count, an integer.
    let count = unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize;
    Ok(programs[..count.min(MAX)].to_vec())
}

/// The id that links to this cgroup report: the inode number of its directory.
pub fn cgroup_id(cgroup: &impl AsFd) -> io::Result<u64> {
    let stat = nix::sys::stat::fstat(cgroup)?;
    Ok(stat.st_ino)
}

/// One piece of a hash map, from `position` (None: from the start): how many entries came, and where the next piece begins.
/// The vectors' capacity says how many fit; their length is set to what came.
pub fn lookup_batch<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    position: Option<u32>,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
) -> io::Result<(usize, Option<u32>)> {
    keys.clear();
    values.clear();
    let mut next = 0_u32;
    let position = position.as_ref();
    let mut attr = empty();
    attr.batch.in_batch = position.map_or(0, |position| std::ptr::from_ref(position) as u64);
    attr.batch.out_batch = std::ptr::from_mut(&mut next) as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = keys.capacity().min(values.capacity()) as u32;
    attr.batch.map_fd = raw(map);
    let end = match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => false,
        // The last piece.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    // SAFETY: the member that was filled above; the kernel wrote an integer, at most the count that it was given.
    let count = unsafe { attr.batch.count } as usize;
    // SAFETY: the kernel wrote so many keys and values, which have no invalid bit patterns or were written by programs of the same
    // layout (`aya::Pod`), and both vectors have room for them (the count given).
    unsafe {
        keys.set_len(count);
        values.set_len(count);
    }
    Ok((count, (!end).then_some(next)))
}
