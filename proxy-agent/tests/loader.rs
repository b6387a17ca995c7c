//! The loader against this machine's kernel: attach, replace in place, clean up. Each test has its own network namespace,
//! its own mounts, its own BPF file system and its own cgroup. Needs root and an agent built with the kernel object; says so
//! and does nothing otherwise.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{collections::BTreeMap, fs, os::fd::AsFd, path::PathBuf, process::Command};

use aya::maps::{HashMap, Map, MapData};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use proxy_agent::{
    loader::{
        Attached, Attacher, CGROUP_HOOKS, Capacities, ConnectHooks, Loaded, Pins, Placement, TC_HOOKS, TcBackend,
        cleanup, config_for, load, sys,
    },
    node::{cgroup2_root, ensure_bpffs, netns_cookie},
    object,
};
use proxy_common::abi::names;

/// Namespaces of the test's own thread; files that go with it.
struct Ground {
    directory: tempfile::TempDir,
    pin_root: PathBuf,
    object: &'static [u8],
}

impl Ground {
    fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("{test}: not run, needs root");
            return None;
        }
        let object = match object::embedded() {
            Ok(object) => object,
            Err(error) => {
                println!("{test}: not run, {error}");
                return None;
            }
        };
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let directory = tempfile::tempdir().unwrap();
        mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        ip("link set lo up");
        ip("link add veth-a type veth peer name veth-b");
        let pin_root = directory.path().join("weir");
        ensure_bpffs(&pin_root).unwrap();
        Some(Self { directory, pin_root, object })
    }

    fn pins(&self) -> Pins {
        Pins::new(&self.pin_root)
    }

    fn load(&self, capacities: &Capacities) -> Loaded {
        let config = config_for("node-a", netns_cookie().unwrap(), ConnectHooks::All, false);
        load(self.object, &self.pins(), &config, capacities).unwrap()
    }

    fn attacher(&self, backend: TcBackend) -> Attacher {
        let ebpf = self.load(&small()).ebpf;
        Attacher::new(ebpf, self.pins(), Placement { backend, ..Placement::default() })
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = cleanup(&self.pin_root);
        let _ = nix::mount::umount(self.directory.path());
    }
}

fn small() -> Capacities {
    Capacities { conntrack: 1024, rings: 1024, backends: 1024, ..Capacities::default() }
}

fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

fn index_of(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// Programs per hook of an interface.
fn chains(index: u32) -> Vec<Vec<sys::ChainEntry>> {
    TC_HOOKS.iter().map(|hook| sys::tcx_chain(index, hook.attach_type).unwrap()).collect()
}

#[test]
fn a_restart_replaces_the_programs_in_their_links() {
    let Some(ground) = Ground::new("a_restart_replaces_the_programs_in_their_links") else { return };
    let index = index_of("veth-a");
    let mut first = ground.attacher(TcBackend::Tcx);
    assert_eq!(first.attach_interface(index, "veth-a").unwrap(), Attached::New);
    let before = chains(index);
    assert!(before.iter().all(|chain| chain.len() == 1), "{before:?}");
    drop(first);
    assert_eq!(chains(index), before, "programs stay when the agent ends");

    let mut second = ground.attacher(TcBackend::Tcx);
    assert_eq!(second.attach_interface(index, "veth-a").unwrap(), Attached::Replaced);
    for (old, new) in before.iter().flatten().zip(chains(index).iter().flatten()) {
        assert_eq!(old.link, new.link);
        assert_ne!(old.program, new.program);
    }
    // Of another version of the map layout.
    fs::create_dir_all(ground.pin_root.join("v99/links")).unwrap();
    let removed = cleanup(&ground.pin_root).unwrap();
    assert_eq!((removed.attachments, removed.maps), (2, names::PINNED.len()));
    assert!(!ground.pin_root.exists());
    assert_eq!(chains(index), [vec![], vec![]]);
}

#[test]
fn interfaces_come_and_go() {
    let Some(ground) = Ground::new("interfaces_come_and_go") else { return };
    let wanted =
        |names: &[&str]| names.iter().map(|name| (index_of(name), (*name).to_owned())).collect::<BTreeMap<_, _>>();
    let links = || fs::read_dir(ground.pins().links()).unwrap().count();
    let mut attacher = ground.attacher(TcBackend::Tcx);
    assert!(attacher.sync_interfaces(&wanted(&["veth-a", "veth-b"])).is_empty());
    assert_eq!(links(), 4);
    let only_a = wanted(&["veth-a"]);
    assert!(attacher.sync_interfaces(&only_a).is_empty());
    assert_eq!((links(), chains(index_of("veth-b"))), (2, vec![vec![], vec![]]));
    ip("link del veth-a");
    assert!(attacher.sync_interfaces(&BTreeMap::new()).is_empty());
    assert_eq!(links(), 0);
    // An interface that vanishes before it could be attached to is an error of its own only.
    assert_eq!(attacher.sync_interfaces(&only_a).len(), 1);
}

#[test]
fn pins_of_interfaces_that_went_meanwhile_are_removed() {
    let Some(ground) = Ground::new("pins_of_interfaces_that_went_meanwhile_are_removed") else { return };
    let index = index_of("veth-a");
    ground.attacher(TcBackend::Tcx).attach_interface(index, "veth-a").unwrap();
    ip("link del veth-a");
    // The same index, another interface: the old link must not pass for an attachment.
    ip(&format!("link add veth-c index {index} type veth peer name veth-d"));
    let mut attacher = ground.attacher(TcBackend::Tcx);
    assert_eq!(attacher.attach_interface(index, "veth-c").unwrap(), Attached::New);
    attacher.remove_other_interfaces(&BTreeMap::new()).unwrap();
    assert_eq!(chains(index), [vec![], vec![]]);
}

#[test]
fn clsact_where_there_is_no_tcx() {
    let Some(ground) = Ground::new("clsact_where_there_is_no_tcx") else { return };
    let filters = || {
        let show =
            |direction| Command::new("tc").args(["filter", "show", "dev", "veth-a", direction]).output().unwrap();
        let text = [show("ingress").stdout, show("egress").stdout].concat();
        String::from_utf8(text).unwrap().matches("direct-action").count()
    };
    let index = index_of("veth-a");
    assert_eq!(ground.attacher(TcBackend::Clsact).attach_interface(index, "veth-a").unwrap(), Attached::New);
    assert_eq!(filters(), 2, "filters stay when the agent ends");
    assert_eq!(ground.attacher(TcBackend::Clsact).attach_interface(index, "veth-a").unwrap(), Attached::Replaced);
    assert_eq!(filters(), 2);
    cleanup(&ground.pin_root).unwrap();
    assert_eq!(filters(), 0);
    let qdiscs = Command::new("tc").args(["qdisc", "show", "dev", "veth-a"]).output().unwrap().stdout;
    assert!(!String::from_utf8(qdiscs).unwrap().contains("clsact"));
}

#[test]
fn maps_that_fit_are_kept_and_others_are_copied() {
    let Some(ground) = Ground::new("maps_that_fit_are_kept_and_others_are_copied") else { return };
    let addresses = |pins: &Pins| -> HashMap<MapData, u32, u32> {
        HashMap::try_from(Map::HashMap(MapData::from_pin(pins.map(names::ADDRS_V4)).unwrap())).unwrap()
    };
    for _ in 0..2 {
        assert!(ground.load(&small()).migration.is_none());
    }
    addresses(&ground.pins()).insert(7, 4, 0).unwrap();
    let more_flows = Capacities { conntrack: 2048, ..small() };
    // An agent that dies before it is done; the next one begins again.
    assert!(ground.load(&more_flows).migration.is_some());
    let Loaded { migration, waits_for_sync, .. } = ground.load(&more_flows);
    let mut migration = migration.unwrap();
    assert!(!waits_for_sync, "the tables are copied");
    migration.begin().unwrap();
    migration.finish().unwrap();
    assert_eq!(Pins::all_versions(&ground.pin_root).unwrap(), [ground.pins()], "the old maps are gone");
    assert_eq!(addresses(&ground.pins()).get(&7, 0).unwrap(), 4);
    assert!(ground.load(&more_flows).migration.is_none());
}

#[test]
fn connect_hooks_on_a_cgroup() {
    let Some(ground) = Ground::new("connect_hooks_on_a_cgroup") else { return };
    let cgroup = |name: &str| {
        let path = cgroup2_root().unwrap().join(format!("weir-loader-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        path
    };
    let (one, other) = (cgroup("one"), cgroup("other"));
    let ids = || -> Vec<_> {
        let facts = |hook: &proxy_agent::loader::Hook| {
            let link = sys::obj_get(&ground.pins().link(hook.program)).unwrap();
            sys::link_facts(link.as_fd()).unwrap()
        };
        CGROUP_HOOKS.iter().map(facts).collect()
    };
    ground.attacher(TcBackend::Tcx).attach_cgroup(&one).unwrap();
    let first = ids();
    ground.attacher(TcBackend::Tcx).attach_cgroup(&one).unwrap();
    let second = ids();
    assert!(first.iter().zip(&second).all(|(a, b)| a.id == b.id && a.program != b.program && a.target == b.target));
    let attacher = ground.attacher(TcBackend::Tcx);
    attacher.attach_cgroup(&other).unwrap();
    assert!(first.iter().zip(ids()).all(|(a, b)| a.id != b.id && a.target != b.target));
    attacher.detach_cgroup().unwrap();
    assert_eq!(fs::read_dir(ground.pins().links()).unwrap().count(), 0);
    fs::remove_dir(one).unwrap();
    fs::remove_dir(other).unwrap();
}
