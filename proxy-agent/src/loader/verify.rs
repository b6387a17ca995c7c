//! Is attached what this process attached? Asked by the health check.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya_obj::generated::bpf_attach_type;
use futures::TryStreamExt as _;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use proxy_common::abi::names;

use super::{
    Attacher, CGROUP_HOOKS, LoaderError, Pins, TC_HOOKS,
    hooks::INGRESS,
    programs::{self, ProgramFacts},
    sys::{self, LinkTarget},
};

/// What should be there.
#[derive(Clone, Debug)]
pub struct Expected {
    pins: Pins,
    by_tcx: bool,
    interfaces: BTreeMap<u32, String>,
    /// By name.
    programs: BTreeMap<&'static str, ProgramFacts>,
    /// The inode number of its directory; None if no connect hook is wanted.
    cgroup: Option<u64>,
}

/// What is there.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Attachments that are as they should be.
    pub right: usize,
    /// Each in a sentence.
    pub problems: Vec<String>,
}

impl Attacher {
    /// `cgroup`: where the connect hooks are, if anywhere.
    pub fn expected(&self, cgroup: Option<&Path>) -> io::Result<Expected> {
        let mut found = BTreeMap::new();
        for hook in TC_HOOKS.iter().chain(&CGROUP_HOOKS) {
            let program = self.ebpf.program(hook.program).ok_or_else(|| other(LoaderError::NoProgram(hook.program)))?;
            found.insert(hook.program, programs::facts(program.fd().map_err(other)?.as_fd())?);
        }
        let cgroup = cgroup.map(|path| sys::cgroup_id(&std::fs::File::open(path)?)).transpose()?;
        Ok(Expected {
            pins: self.pins.clone(),
            by_tcx: self.by_tcx,
            interfaces: self.done.clone(),
            programs: found,
            cgroup,
        })
    }

    /// The program at the ingress of an interface that carries ours, as it is attached now, by the kernel's word.
    pub fn attached_ingress(&self, index: u32) -> io::Result<OwnedFd> {
        let hook = INGRESS;
        let program = self.ebpf.program(hook.program).ok_or_else(|| other(LoaderError::NoProgram(hook.program)))?;
        if !self.by_tcx {
            return program.fd().map_err(other)?.as_fd().try_clone_to_owned();
        }
        let own = programs::facts(program.fd().map_err(other)?.as_fd())?;
        let link = sys::obj_get(&self.pins.link(&format!("{}-{index}", hook.program)))?;
        let id = sys::link_facts(link.as_fd()).map_or(own.id, |facts| facts.program);
        programs::by_id(id)
    }

    /// Interfaces that carry our program at ingress.
    pub fn ingress_interfaces(&self) -> impl Iterator<Item = (u32, &str)> {
        let carry = self.done.iter().filter(|(index, _)| INGRESS.is_for(**index));
        carry.map(|(index, name)| (*index, name.as_str()))
    }
}

impl Expected {
    pub async fn verify(&self) -> Found {
        let mut found = Found::default();
        self.verify_maps(&mut found);
        let filters = if self.by_tcx { BTreeMap::new() } else { self.filters().await };
        for (index, name) in &self.interfaces {
            for hook in TC_HOOKS.into_iter().filter(|hook| hook.is_for(*index)) {
                let ids = if self.by_tcx {
                    let chain = sys::tcx_chain(*index, hook.attach_type).unwrap_or_default();
                    chain.iter().map(|entry| entry.program).collect()
                } else {
                    let ingress = hook.attach_type == bpf_attach_type::BPF_TCX_INGRESS;
                    filters.get(&(*index, ingress)).cloned().unwrap_or_default()
                };
                self.verify_one(&mut found, hook.program, &ids, &format!("interface {name}"));
            }
        }
        if let Some(cgroup) = self.cgroup {
            for hook in CGROUP_HOOKS {
                let link = sys::obj_get(&self.pins.link(hook.program)).and_then(|link| sys::link_facts(link.as_fd()));
                let here = link.ok().filter(|facts| facts.target == LinkTarget::Cgroup(cgroup));
                let ids: Vec<u32> = here.into_iter().map(|facts| facts.program).collect();
                self.verify_one(&mut found, hook.program, &ids, "the cgroup");
            }
        }
        found
    }

    /// One of the programs `ids` must be ours: the same instructions on the same maps, and the same name (some hooks do the same).
    fn verify_one(&self, found: &mut Found, program: &'static str, ids: &[u32], place: &str) {
        let wanted = &self.programs[program];
        let is_ours = |id: u32| {
            let facts = programs::by_id(id).and_then(|program| programs::facts(program.as_fd()));
            id == wanted.id
                || facts.is_ok_and(|it| it.tag == wanted.tag && it.map_ids == wanted.map_ids && it.name == wanted.name)
        };
        if ids.iter().any(|id| is_ours(*id)) {
            found.right += 1;
            return;
        }
        let there = if ids.is_empty() { "nothing".to_owned() } else { format!("programs {ids:?}") };
        found.problems.push(format!("{program} is not attached to {place}: {there} there, expected {}", wanted.id));
    }

    /// What the agent writes to must be what the programs read.
    fn verify_maps(&self, found: &mut Found) {
        let used: BTreeSet<u32> = self.programs.values().flat_map(|program| program.map_ids.iter().copied()).collect();
        // Names are for people: no program reads them.
        for map in names::PINNED.into_iter().filter(|map| *map != names::PORT_NAMES) {
            match programs::map_id(&self.pins.map(map)) {
                Ok(id) if used.contains(&id) => {}
                Ok(_) => found.problems.push(format!("the programs use another map {map} than the pinned one")),
                Err(error) => found.problems.push(format!("map {map} is not pinned: {error}")),
            }
        }
    }

    /// Ids of the programs in the clsact qdisc, by interface and whether at ingress.
    async fn filters(&self) -> BTreeMap<(u32, bool), Vec<u32>> {
        let mut found = BTreeMap::new();
        let Ok((connection, handle, _)) = rtnetlink::new_connection() else { return found };
        let connection = tokio::spawn(connection);
        for index in self.interfaces.keys() {
            for ingress in [true, false] {
                let mut filters = handle.traffic_filter(index.cast_signed());
                let request = if ingress { filters.get().ingress() } else { filters.get().egress() };
                let messages: Vec<TcMessage> = request.execute().try_collect().await.unwrap_or_default();
                found.insert((*index, ingress), messages.iter().filter_map(program_of).collect());
            }
        }
        connection.abort();
        found
    }
}

fn program_of(message: &TcMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
            _ => None,
        }),
        _ => None,
    })
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(error)
}
