//! Puts the loaded programs onto interfaces and the cgroup root. Every attachment is a pinned link, so that it outlives the
//! agent and the next agent replaces the program in it, without a packet in between that nobody looks at.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use aya::{Ebpf, util::KernelVersion};

use super::{
    LoaderError,
    clsact::{self, TcBackend},
    hooks::{CGROUP_HOOKS, EGRESS, Hook, INGRESS, TC_HOOKS},
    pin_error,
    pins::Pins,
    sys::{self, LinkTarget, Order},
};
use crate::fault::{self, FaultPoint};

/// How tc programs are attached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placement {
    pub backend: TcBackend,
    pub order: Order,
}

/// What became of one attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// It was there; the program in it was replaced in place.
    Replaced,
    New,
}

/// Holds the loaded programs and knows where they are attached.
#[derive(Debug)]
pub struct Attacher {
    pub(super) ebpf: Ebpf,
    pub(super) pins: Pins,
    placement: Placement,
    pub(super) by_tcx: bool,
    /// Interfaces that carry our programs since this process started: index -> name.
    pub(super) done: BTreeMap<u32, String>,
}

impl Attacher {
    pub fn new(ebpf: Ebpf, pins: Pins, placement: Placement) -> Self {
        let by_tcx = match placement.backend {
            TcBackend::Auto => KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0)),
            TcBackend::Tcx => true,
            TcBackend::Clsact => false,
        };
        Self { ebpf, pins, placement, by_tcx, done: BTreeMap::new() }
    }

    /// Brings the set of interfaces that carry our programs to `wanted` (index -> name). Failures are returned per interface;
    /// the others are attached all the same.
    pub fn sync_interfaces(&mut self, wanted: &BTreeMap<u32, String>) -> Vec<LoaderError> {
        let gone: Vec<u32> = self.done.keys().filter(|index| !wanted.contains_key(index)).copied().collect();
        for index in gone {
            self.forget_interface(index);
        }
        let mut errors = Vec::new();
        let mut new: Vec<_> = wanted.iter().filter(|(index, _)| !self.done.contains_key(index)).collect();
        let mut how = BTreeMap::new();
        // Answers must find their program on every interface before the first request is translated on one.
        for hook in [&EGRESS, &INGRESS] {
            new.retain(|(index, name)| match self.attach_hook(hook, **index, name) {
                Ok(one) => {
                    let both = how.entry(**index).or_insert(one);
                    *both = if one == Attached::New { one } else { *both };
                    true
                }
                Err(error) => {
                    errors.push(error);
                    false
                }
            });
        }
        for (index, name) in new {
            tracing::info!(interface = %name, ifindex = index, how = ?how.get(index), "tc programs attached");
            self.done.insert(*index, name.clone());
        }
        errors
    }

    /// Whether any program of an earlier agent is on an interface.
    pub fn is_attached(&self) -> bool {
        interface_pins(&self.pins).is_ok_and(|pins| !pins.is_empty())
    }

    /// Removes pins of interfaces that are not in `wanted`: left by an earlier agent for interfaces that went since, or that
    /// are excluded now.
    pub fn remove_other_interfaces(&mut self, wanted: &BTreeMap<u32, String>) -> Result<(), LoaderError> {
        for (path, hook, index) in interface_pins(&self.pins).map_err(pin_error("list", self.pins.links()))? {
            if !wanted.contains_key(&index) {
                detach_pin(&path, hook, index);
                tracing::info!(
                    program = hook.program,
                    ifindex = index,
                    "detached from an interface that is not ours (any more)"
                );
            }
        }
        fault::reach(FaultPoint::OthersDetached);
        Ok(())
    }

    /// Attaches the tc programs to one interface of the own network namespace.
    pub fn attach_interface(&mut self, index: u32, name: &str) -> Result<Attached, LoaderError> {
        let egress = self.attach_hook(&EGRESS, index, name)?;
        if !INGRESS.is_for(index) {
            return Ok(egress);
        }
        let ingress = self.attach_hook(&INGRESS, index, name)?;
        Ok(if egress == Attached::New { egress } else { ingress })
    }

    fn attach_hook(&mut self, hook: &Hook, index: u32, name: &str) -> Result<Attached, LoaderError> {
        let how = if self.by_tcx {
            self.attach_tcx(hook, index, name)?
        } else {
            clsact::attach(&mut self.ebpf, hook, index, name, &self.pins, self.placement.order)?
        };
        fault::reach(if *hook == INGRESS { FaultPoint::IngressAttached } else { FaultPoint::EgressAttached });
        Ok(how)
    }

    /// Attaches the connect-time programs to a cgroup, and detaches them from any other.
    pub fn attach_cgroup(&self, cgroup: &Path) -> Result<(), LoaderError> {
        for hook in &CGROUP_HOOKS {
            let failed = |error| LoaderError::Cgroup { program: hook.program, cgroup: cgroup.to_owned(), error };
            let directory = File::open(cgroup).map_err(failed)?;
            let target = LinkTarget::Cgroup(sys::cgroup_id(&directory).map_err(failed)?);
            let path = self.pins.link(hook.program);
            let program = self.program(hook)?;
            if replace(&path, program.as_fd(), target, |_| true).map_err(failed)? == Attached::New {
                let link = sys::link_cgroup(program.as_fd(), directory.as_fd(), hook.attach_type).map_err(failed)?;
                sys::obj_pin(link.as_fd(), &path).map_err(pin_error("pin a link at", path))?;
            }
            fault::reach(FaultPoint::CgroupAttached);
        }
        Ok(())
    }

    /// `--connect-hooks off`.
    pub fn detach_cgroup(&self) -> Result<(), LoaderError> {
        for hook in &CGROUP_HOOKS {
            let path = self.pins.link(hook.program);
            if path.exists() {
                remove_link(&path).map_err(pin_error("detach", path))?;
            }
        }
        Ok(())
    }

    /// The interface went or is not wanted any more. The kernel drops an attachment together with its interface, but not the
    /// pin.
    pub fn forget_interface(&mut self, index: u32) {
        if let Some(name) = self.done.remove(&index) {
            for hook in TC_HOOKS {
                for path in [self.pins.link(&pin_name(hook, index)), self.pins.link(&clsact::pin_name(hook, index))] {
                    if path.exists() {
                        detach_pin(&path, hook, index);
                    }
                }
            }
            tracing::info!(interface = %name, ifindex = index, "tc programs detached");
        }
    }

    fn attach_tcx(&self, hook: &Hook, index: u32, name: &str) -> Result<Attached, LoaderError> {
        let failed = |error| LoaderError::Interface { program: hook.program, interface: name.to_owned(), error };
        let path = self.pins.link(&pin_name(*hook, index));
        let program = self.program(hook)?;
        // An index says nothing across network namespaces: the link must be in the chain of this very interface.
        let chain = sys::tcx_chain(index, hook.attach_type).map_err(failed)?;
        let is_here = |link: u32| chain.iter().any(|entry| entry.link == link);
        let how = replace(&path, program.as_fd(), LinkTarget::Tcx(index), is_here).map_err(failed)?;
        if how == Attached::New {
            let link = sys::link_tcx(program.as_fd(), index, hook.attach_type, self.placement.order).map_err(failed)?;
            sys::obj_pin(link.as_fd(), &path).map_err(pin_error("pin a link at", path))?;
        }
        Ok(how)
    }

    fn program(&self, hook: &Hook) -> Result<OwnedFd, LoaderError> {
        let program = self.ebpf.program(hook.program).ok_or(LoaderError::NoProgram(hook.program))?;
        let fd = program.fd().map_err(|error| LoaderError::Program { program: hook.program, error })?;
        fd.as_fd().try_clone_to_owned().map_err(pin_error("duplicate the descriptor of", hook.program))
    }
}

/// File name of the pinned link of a tc program.
fn pin_name(hook: Hook, index: u32) -> String {
    format!("{}-{index}", hook.program)
}

/// Puts `program` into the pinned link if that is attached where it should be; removes the pin otherwise.
fn replace(
    path: &Path,
    program: std::os::fd::BorrowedFd<'_>,
    target: LinkTarget,
    is_here: impl Fn(u32) -> bool,
) -> io::Result<Attached> {
    let link = match sys::obj_get(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Attached::New),
        Err(error) => return Err(error),
    };
    let facts = sys::link_facts(link.as_fd())?;
    if facts.target == target && is_here(facts.id) {
        match sys::link_update(link.as_fd(), program) {
            Ok(()) => return Ok(Attached::Replaced),
            // What it was attached to has gone meanwhile.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV)) => {}
            Err(error) => return Err(error),
        }
    }
    fs::remove_file(path)?;
    Ok(Attached::New)
}

/// Detaches and unpins one link.
pub(super) fn remove_link(path: &Path) -> io::Result<()> {
    let link = sys::obj_get(path)?;
    match sys::link_detach(link.as_fd()) {
        // The interface or cgroup went first.
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV | libc::EINVAL)) => {
            return Err(error);
        }
        _ => {}
    }
    fs::remove_file(path)
}

/// Pins of tc programs: path, hook, interface index.
pub(super) fn interface_pins(pins: &Pins) -> io::Result<Vec<(std::path::PathBuf, Hook, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(pins.links())? {
        let entry = entry?;
        let name = entry.file_name();
        let mut parts = name.to_str().unwrap_or_default().split('-');
        let program = parts.next();
        let hook = TC_HOOKS.into_iter().find(|hook| program == Some(hook.program));
        let index = parts.next().and_then(|index| index.parse().ok());
        if let (Some(hook), Some(index)) = (hook, index) {
            found.push((entry.path(), hook, index));
        }
    }
    Ok(found)
}

/// Best effort: a pin that cannot be removed is named in the log and found by `weir cleanup`.
fn detach_pin(path: &Path, hook: Hook, index: u32) {
    let result = if clsact::is_pin(path) { clsact::remove(path, hook, index) } else { remove_link(path) };
    if let Err(error) = result {
        tracing::warn!(path = %path.display(), %error, "cannot remove a pinned link");
    }
}
