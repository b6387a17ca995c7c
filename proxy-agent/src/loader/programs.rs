//! What the kernel says of a loaded program, and how to run one over a packet that nobody sent. Called by `verify`, by the health
//! check and for metrics.

use std::{
    io,
    mem::zeroed,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use aya_obj::generated::{bpf_cmd, bpf_map_info, bpf_prog_info};

use super::sys::{bpf, bpf_fd, empty, obj_get, raw};

/// More than any of our programs uses.
const MAX_MAPS: usize = 64;
/// `struct __sk_buff` up to its last field that counts here, and where that lies.
const SKB_LEN: usize = 44;
const SKB_IFINDEX: usize = 40;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramFacts {
    pub id: u32,
    /// Zero padded.
    pub name: [std::ffi::c_char; 16],
    /// A digest of its instructions.
    pub tag: [u8; 8],
    /// In ascending order.
    pub map_ids: Vec<u32>,
    /// 0 unless the kernel keeps statistics (kernel.bpf_stats_enabled).
    pub run_time_ns: u64,
    pub run_count: u64,
}

pub fn by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = empty();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    bpf_fd(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr)
}

pub fn facts(program: BorrowedFd<'_>) -> io::Result<ProgramFacts> {
    let mut maps = [0_u32; MAX_MAPS];
    // SAFETY: all fields of the struct are integers, for which zero is valid.
    let mut info: bpf_prog_info = unsafe { zeroed() };
    info.nr_map_ids = MAX_MAPS as u32;
    info.map_ids = maps.as_mut_ptr() as u64;
    let mut attr = empty();
    attr.info.bpf_fd = raw(program);
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let mut map_ids = maps[..MAX_MAPS.min(info.nr_map_ids as usize)].to_vec();
    map_ids.sort_unstable();
    Ok(ProgramFacts {
        id: info.id,
        name: info.name,
        tag: info.tag,
        map_ids,
        run_time_ns: info.run_time_ns,
        run_count: info.run_cnt,
    })
}

/// The kernel's id of a pinned map.
pub fn map_id(path: &Path) -> io::Result<u32> {
    let map = obj_get(path)?;
    // SAFETY: all fields of the struct are integers, for which zero is valid.
    let mut info: bpf_map_info = unsafe { zeroed() };
    let mut attr = empty();
    attr.info.bpf_fd = raw(map.as_fd());
    attr.info.info_len = size_of::<bpf_map_info>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info.id)
}

/// Runs a tc program over `frame`, as if it were at `ifindex` but had come in by no interface. Returns what the program
/// returned and what became of the frame, which goes nowhere.
pub fn ask(program: BorrowedFd<'_>, ifindex: u32, frame: &[u8]) -> io::Result<(i32, Vec<u8>)> {
    let mut context = [0_u8; SKB_LEN];
    context[SKB_IFINDEX..SKB_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    // A refusal makes the frame longer.
    let mut out = vec![0_u8; frame.len() + 256];
    let mut attr = empty();
    attr.test.prog_fd = raw(program);
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = frame.len() as u32;
    attr.test.data_out = out.as_mut_ptr() as u64;
    attr.test.data_size_out = out.len() as u32;
    attr.test.ctx_in = context.as_ptr() as u64;
    attr.test.ctx_size_in = context.len() as u32;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: the member that was filled above; the kernel wrote integers to it.
    let (returned, len) = unsafe { (attr.test.retval, attr.test.data_size_out) };
    out.truncate(len as usize);
    Ok((returned.cast_signed(), out))
}
