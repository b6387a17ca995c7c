//! The loaded packet programs with their maps, lent to one scenario after another: to verify them takes longer than a
//! scenario, and emulated kernels need half a minute for it. Called by kernel.rs.

use std::{
    fs, io,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, AsRawFd, RawFd},
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData},
    programs::SchedClassifier,
};
use proxy_agent::{loader::Capacities, object};
use proxy_common::abi::{Config, names};

/// What makes programs fit for a scenario: all that is fixed at load. Of the clock only whether it stands still.
#[derive(Clone, Debug, PartialEq)]
struct Kind {
    config: Config,
    capacities: Capacities,
}

/// Programs that no scenario uses at the moment.
static IDLE: Mutex<Vec<(Kind, Ebpf)>> = Mutex::new(Vec::new());

/// Given back when dropped.
pub(crate) struct Programs {
    kind: Kind,
    /// Always there until it is dropped.
    ebpf: Option<Ebpf>,
}

impl Programs {
    /// Programs whose maps are empty, and pinned below `pins`.
    pub(super) fn lend(config: &Config, capacities: &Capacities, pins: &Path) -> Result<Self> {
        let stopped = u64::from(config.fixed_now_ns != 0);
        let kind = Kind { config: Config { fixed_now_ns: stopped, ..*config }, capacities: capacities.clone() };
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let found = idle.iter().position(|(there, _)| *there == kind).map(|place| idle.swap_remove(place).1);
        drop(idle);
        let ebpf = match found {
            Some(ebpf) => {
                names::PINNED.iter().try_for_each(|name| empty(&ebpf, name))?;
                ebpf
            }
            None => load(&kind)?,
        };
        fs::create_dir_all(pins).with_context(|| pins.display().to_string())?;
        for name in names::PINNED {
            let map = ebpf.map(name).with_context(|| format!("no map {name}"))?;
            map.pin(pins.join(name)).with_context(|| format!("pinning {name}"))?;
        }
        let mut programs = Self { kind, ebpf: Some(ebpf) };
        programs.set_clock(config.fixed_now_ns)?;
        Ok(programs)
    }

    /// For programs whose clock stands still.
    pub(super) fn set_clock(&mut self, now_ns: u64) -> Result<()> {
        let mut clock: Array<_, u64> = self.map_mut("CLOCK").context("no map CLOCK")?.try_into()?;
        clock.set(0, now_ns, 0).context("CLOCK")
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        // Those of measurements are large, and no other will want them.
        if let Some(ebpf) = self.ebpf.take().filter(|_| self.kind.config.fixed_now_ns != 0) {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push((self.kind.clone(), ebpf));
        }
    }
}

impl Deref for Programs {
    type Target = Ebpf;
    fn deref(&self) -> &Ebpf {
        self.ebpf.as_ref().expect("invariant: there until it is dropped")
    }
}

impl DerefMut for Programs {
    fn deref_mut(&mut self) -> &mut Ebpf {
        self.ebpf.as_mut().expect("invariant: there until it is dropped")
    }
}

fn load(kind: &Kind) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.override_global("CONFIG", &kind.config, true);
    for name in names::PINNED {
        if let Some(entries) = kind.capacities.of(name) {
            loader.map_max_entries(name, entries);
        }
    }
    let mut ebpf = loader.load(object::embedded()?).context("loading the maps")?;
    for name in ["tc_ingress", "tc_egress"] {
        let program: &mut SchedClassifier = ebpf.program_mut(name).with_context(|| name)?.try_into()?;
        program.load().with_context(|| format!("loading {name}"))?;
    }
    Ok(ebpf)
}

/// As it was when it was made. Counters go on from where they are.
fn empty(ebpf: &Ebpf, name: &str) -> Result<()> {
    let result = match ebpf.map(name).with_context(|| format!("no map {name}"))? {
        Map::Array(map) => zero(map),
        Map::HashMap(map) | Map::LruHashMap(map) | Map::LpmTrie(map) => delete_all(map),
        Map::PerCpuArray(_) => Ok(()),
        _ => bail!("{name} is of another kind"),
    };
    result.with_context(|| format!("emptying {name}"))
}

fn zero(map: &MapData) -> Result<()> {
    let info = map.info()?;
    let value = vec![0_u8; info.value_size() as usize];
    for index in 0..info.max_entries() {
        element(map, Command::Update, Some(&index.to_ne_bytes()), value.as_ptr().cast_mut())?;
    }
    Ok(())
}

fn delete_all(map: &MapData) -> Result<()> {
    let mut key = vec![0_u8; map.info()?.key_size() as usize];
    loop {
        match element(map, Command::NextKey, None, key.as_mut_ptr()) {
            Ok(()) => element(map, Command::Delete, Some(&key), std::ptr::null_mut())?,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Of enum bpf_cmd.
#[derive(Clone, Copy)]
enum Command {
    Update = 2,
    Delete = 3,
    NextKey = 4,
}

/// bpf(2) on an element, whatever its type: aya wants to know it. `to` is the value, or where the next key goes.
fn element(map: &MapData, command: Command, key: Option<&[u8]>, to: *mut u8) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        fd: RawFd,
        zero: u32,
        key: *const u8,
        to: *mut u8,
        flags: u64,
    }
    let key = key.map_or(std::ptr::null(), <[u8]>::as_ptr);
    let attributes = Attributes { fd: map.fd().as_fd().as_raw_fd(), zero: 0, key, to, flags: 0 };
    let size = size_of::<Attributes>();
    // SAFETY: the attributes of element commands (union bpf_attr); key and value are of the map's sizes, or null where the
    // command takes none.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_int, &raw const attributes, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
