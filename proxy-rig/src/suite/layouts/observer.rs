//! A foreign tc program: notes the addresses and ports of every IPv4 packet and lets the next program run. Written as
//! instructions, so that it owes nothing to Weir's own kernel side.

use std::{
    collections::BTreeSet,
    fmt, fs,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::{
    maps::{HashMap, Map, MapData},
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{NlOptions, TcAttachOptions, qdisc_add_clsact},
    },
};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_type};

use crate::world::Host;

/// Source and destination address, source and destination port, as they stand in a packet without IP options.
type Tuple = [u8; 12];
const CAPACITY: u32 = 4096;

/// Where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    TcxFirst,
    TcxLast,
    /// In the clsact qdisc with this priority.
    Clsact(u16),
}

/// An observer on both sides of an interface. Dropping it detaches a tcx one; a filter goes with the interface.
pub(super) struct Observer {
    ingress: Side,
    egress: Side,
}

struct Side {
    seen: HashMap<MapData, Tuple, u64>,
    _program: SchedClassifier,
}

/// What was noted: `source > destination`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
}

impl Observer {
    /// `pins` is a directory on bpffs that goes with the world.
    pub(super) fn attach(host: &Host, link: &str, place: Place, pins: &Path) -> Result<Self> {
        fs::create_dir_all(pins).with_context(|| pins.display().to_string())?;
        host.in_netns(|| {
            let side = |side, name: &str| attach(link, side, place, &pins.join(name));
            Ok(Self { ingress: side(TcAttachType::Ingress, "in")?, egress: side(TcAttachType::Egress, "out")? })
        })?
    }

    pub(super) fn ingress(&self) -> Result<BTreeSet<Seen>> {
        self.ingress.seen()
    }

    pub(super) fn egress(&self) -> Result<BTreeSet<Seen>> {
        self.egress.seen()
    }

    /// Forgets what it saw.
    pub(super) fn clear(&mut self) -> Result<()> {
        for side in [&mut self.ingress, &mut self.egress] {
            let keys: Vec<Tuple> = side.seen.keys().collect::<Result<_, _>>()?;
            for key in keys {
                side.seen.remove(&key)?;
            }
        }
        Ok(())
    }
}

impl Side {
    fn seen(&self) -> Result<BTreeSet<Seen>> {
        self.seen.keys().map(|key| Ok(Seen::of(key?))).collect()
    }
}

impl Seen {
    fn of(tuple: Tuple) -> Self {
        let [a, b, c, d, e, f, g, h, p, q, r, s] = tuple;
        Self {
            from: SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([p, q])),
            to: SocketAddrV4::new(Ipv4Addr::new(e, f, g, h), u16::from_be_bytes([r, s])),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}", self.from, self.to)
    }
}

fn attach(link: &str, side: TcAttachType, place: Place, pin: &Path) -> Result<Side> {
    let map_pin = PathBuf::from(format!("{}-map", pin.display()));
    HashMap::<MapData, Tuple, u64>::create(CAPACITY, 0)?.pin(&map_pin)?;
    let map = MapData::from_pin(&map_pin)?;
    pin_program(&load(map.fd().as_fd().as_raw_fd())?, pin)?;
    let seen = HashMap::try_from(Map::HashMap(map))?;
    let mut program = SchedClassifier::from_pin(pin)?;
    let options = match place {
        Place::TcxFirst => TcAttachOptions::TcxOrder(LinkOrder::first()),
        Place::TcxLast => TcAttachOptions::TcxOrder(LinkOrder::last()),
        Place::Clsact(priority) => {
            // Both sides share the qdisc.
            let _ = qdisc_add_clsact(link);
            TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() })
        }
    };
    program.attach_with_options(link, side, options).with_context(|| format!("an observer at {link}"))?;
    Ok(Side { seen, _program: program })
}

/// Encodes one instruction.
const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    code as u64 | (dst as u64) << 8 | (src as u64) << 12 | (off as u16 as u64) << 16 | (imm as u32 as u64) << 32
}

fn program(map_fd: i32) -> [u64; 21] {
    const KEY: i32 = -16;
    const VALUE: i32 = -24;
    /// `protocol` in `__sk_buff`; ETH_P_IP as it stands in memory.
    const PROTOCOL: i16 = 16;
    const IPV4: i32 = 0x0008;
    [
        insn(0xbf, 6, 1, 0, 0),        // r6 = skb
        insn(0x61, 2, 6, PROTOCOL, 0), // r2 = skb->protocol
        insn(0x55, 2, 0, 16, IPV4),    // other than IPv4: end
        insn(0xbf, 1, 6, 0, 0),        // bpf_skb_load_bytes(skb,
        insn(0xb7, 2, 0, 0, 26),       //   source address and what follows,
        insn(0xbf, 3, 10, 0, 0),       //   key,
        insn(0x07, 3, 0, 0, KEY),
        insn(0xb7, 4, 0, 0, 12), //   12)
        insn(0x85, 0, 0, 0, 26),
        insn(0x55, 0, 0, 9, 0),             // too short: end
        insn(0x7a, 10, 0, VALUE as i16, 1), // value = 1
        insn(0x18, 1, 1, 0, map_fd),        // bpf_map_update_elem(map,
        insn(0, 0, 0, 0, 0),
        insn(0xbf, 2, 10, 0, 0), //   key,
        insn(0x07, 2, 0, 0, KEY),
        insn(0xbf, 3, 10, 0, 0), //   value,
        insn(0x07, 3, 0, 0, VALUE),
        insn(0xb7, 4, 0, 0, 0), //   BPF_ANY)
        insn(0x85, 0, 0, 0, 2),
        insn(0xb7, 0, 0, 0, -1), // end: TCX_NEXT, which clsact takes as "continue", too
        insn(0x95, 0, 0, 0, 0),
    ]
}

fn load(map_fd: i32) -> Result<OwnedFd> {
    let instructions = program(map_fd);
    let licence = c"Dual MIT/GPL";
    let mut attr = empty();
    // SAFETY: the call uses this member of the union; all its fields are integers.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    load.insn_cnt = instructions.len() as u32;
    load.insns = instructions.as_ptr() as u64;
    load.license = licence.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("loading an observer")?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pin_program(program: &OwnedFd, path: &Path) -> Result<()> {
    let text = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = text.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).with_context(|| format!("pinning an observer at {}", path.display()))?;
    Ok(())
}

fn empty() -> bpf_attr {
    // SAFETY: all members of the union are integers, for which zero is valid.
    unsafe { std::mem::zeroed() }
}

fn bpf(cmd: bpf_cmd, attr: &mut bpf_attr) -> std::io::Result<i32> {
    // SAFETY: `attr` is a whole, initialised union of the size given; every pointer in it outlives the call (see callers).
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, cmd as libc::c_long, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result as i32) }
}
