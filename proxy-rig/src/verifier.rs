//! What the kernel's verifier says of each program: the instructions it walked through, and the stack. Called by
//! `weir-rig programs` and by the guest of the other-kernel test.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    mem::zeroed,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    maps::{MapFd, MapInfo},
    programs::ProgramInfo,
};
use aya_obj::{
    Object,
    generated::{bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type},
};
use proxy_agent::loader::{CGROUP_HOOKS, Hook, TC_HOOKS};

/// `BPF_LOG_STATS` of the kernel: no trace, only the totals.
const LOG_STATS: u32 = 4;
const LOG_BYTES: usize = 16 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub program: &'static str,
    /// Instructions on all paths that the verifier followed; its limit is one million.
    pub instructions: u32,
    /// Instructions of the program as the kernel keeps it.
    pub translated: usize,
    /// Bytes, of the program and of each function that it calls: `208+64`.
    pub stack: String,
}

/// `loaded` holds the programs of `object`. The verifier tells the stack only in its log, which aya drops when a program is
/// accepted: each program is verified once more, over the same maps.
pub fn verify_again(object: &[u8], loaded: &Ebpf) -> Result<Vec<Verified>> {
    let hooks: Vec<&Hook> = TC_HOOKS.iter().chain(&CGROUP_HOOKS).collect();
    let mut infos = Vec::new();
    for hook in &hooks {
        let program = loaded.program(hook.program).with_context(|| format!("no program {}", hook.program))?;
        infos.push(program.info().with_context(|| format!("facts of {}", hook.program))?);
    }
    let maps = maps_of(&infos)?;
    let relocated = relocate(object, &maps)?;
    let mut rows = Vec::new();
    for (hook, info) in hooks.into_iter().zip(infos) {
        let btf = btf_of(&info)?;
        let log = load_with_log(hook, &relocated, &btf).with_context(|| format!("verifying {}", hook.program))?;
        rows.push(Verified {
            program: hook.program,
            instructions: number_after(&log, "processed ").with_context(|| format!("no total in {log:?}"))?,
            translated: info.size_translated().unwrap_or(0) as usize / size_of::<bpf_insn>(),
            stack: word_after(&log, "stack depth ").with_context(|| format!("no stack depth in {log:?}"))?.to_owned(),
        });
    }
    Ok(rows)
}

/// All maps that the programs use, by name.
fn maps_of(programs: &[ProgramInfo]) -> Result<HashMap<String, MapFd>> {
    let mut ids = BTreeSet::new();
    for program in programs {
        ids.extend(program.map_ids().context("maps of a program")?.unwrap_or_default());
    }
    let mut maps = HashMap::new();
    for id in ids {
        let info = MapInfo::from_id(id)?;
        let name = info.name_as_str().context("the name of a map is not UTF-8")?.to_owned();
        maps.insert(name, info.fd()?);
    }
    Ok(maps)
}

/// The object with the descriptors of `maps` in its instructions, and each program followed by what it calls.
fn relocate(object: &[u8], maps: &HashMap<String, MapFd>) -> Result<Object> {
    let mut object = Object::parse(object)?;
    let definitions = object.maps.clone();
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    let with_fd = maps.iter().filter_map(|(name, fd)| {
        let (name, definition) = definitions.get_key_value(name.as_str())?;
        Some((name.as_str(), fd.as_fd().as_raw_fd(), definition))
    });
    object.relocate_maps(with_fd, &sections).map_err(|error| anyhow!("{error}"))?;
    object.relocate_calls(&sections).map_err(|error| anyhow!("{error}"))?;
    Ok(object)
}

/// The type information that the program was loaded with.
fn btf_of(program: &ProgramInfo) -> Result<OwnedFd> {
    let mut attr = empty();
    attr.__bindgen_anon_6.__bindgen_anon_1.btf_id = program.btf_id().context("the program has no BTF")?;
    bpf(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attr).context("opening the BTF of a program")
}

/// Returns the verifier's log of a program that it accepts.
fn load_with_log(hook: &Hook, object: &Object, btf: &OwnedFd) -> Result<String> {
    let program = object.programs.get(hook.program).context("not in the object")?;
    let function = object.functions.get(&program.function_key()).context("no code")?;
    let mut log = vec![0_u8; LOG_BYTES];
    let mut attr = empty();
    attr.__bindgen_anon_3.prog_type = type_of(hook) as u32;
    if !TC_HOOKS.contains(hook) {
        attr.__bindgen_anon_3.expected_attach_type = hook.attach_type as u32;
    }
    attr.__bindgen_anon_3.insns = function.instructions.as_ptr() as u64;
    attr.__bindgen_anon_3.insn_cnt = function.instructions.len().try_into()?;
    attr.__bindgen_anon_3.license = program.license.as_ptr() as u64;
    attr.__bindgen_anon_3.log_level = LOG_STATS;
    attr.__bindgen_anon_3.log_buf = log.as_mut_ptr() as u64;
    attr.__bindgen_anon_3.log_size = LOG_BYTES as u32;
    // Functions that are called back must have a type.
    let functions = function.func_info.func_info_bytes();
    attr.__bindgen_anon_3.prog_btf_fd = btf.as_raw_fd() as u32;
    attr.__bindgen_anon_3.func_info = functions.as_ptr() as u64;
    attr.__bindgen_anon_3.func_info_cnt = function.func_info.len().try_into()?;
    attr.__bindgen_anon_3.func_info_rec_size = function.func_info_rec_size.try_into()?;
    // The program goes with its descriptor.
    let result = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr);
    let log: Vec<u8> = log.into_iter().take_while(|byte| *byte != 0).collect();
    let log = String::from_utf8_lossy(&log).into_owned();
    result.with_context(|| format!("refused: {log}"))?;
    Ok(log)
}

fn empty() -> bpf_attr {
    // SAFETY: all fields of the union are integers, for which zero is valid.
    unsafe { zeroed() }
}

/// A command that returns a descriptor. Every pointer in `attr` outlives the call (see callers).
fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is a whole, initialised union of the size given.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

fn type_of(hook: &Hook) -> bpf_prog_type {
    if TC_HOOKS.contains(hook) {
        bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS
    } else if hook.attach_type == BPF_CGROUP_INET_SOCK_RELEASE {
        bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK
    } else {
        bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR
    }
}

fn word_after<'a>(log: &'a str, before: &str) -> Option<&'a str> {
    log.split_once(before)?.1.split_whitespace().next()
}

fn number_after(log: &str, before: &str) -> Option<u32> {
    word_after(log, before)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_of_a_log() {
        let log = "verification time 1893 usec\nstack depth 208+64\nprocessed 4711 insns (limit 1000000) max_states_per_insn 4\n";
        assert_eq!(number_after(log, "processed "), Some(4711));
        assert_eq!(word_after(log, "stack depth "), Some("208+64"));
        assert_eq!(number_after("", "processed "), None);
    }
}
