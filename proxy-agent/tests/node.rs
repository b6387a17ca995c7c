//! The netlink watch against this machine's kernel, in a network namespace of its own. Needs root; says so and does nothing
//! otherwise.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use proxy_agent::node::{NetChange, NodePortAddresses, NodeView, RoleRules, watch};
use proxy_common::abi::{IFACE_STRICT, IfaceRole};
use tokio::sync::mpsc;

fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

/// Applies changes until the view is as wanted.
async fn until(
    view: &mut NodeView,
    changes: &mut mpsc::Receiver<NetChange>,
    what: &str,
    is_so: impl Fn(&NodeView) -> bool,
) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_so(view) {
        let left = deadline.saturating_duration_since(Instant::now());
        let change = tokio::time::timeout(left, changes.recv()).await;
        view.apply(change.unwrap_or_else(|_| panic!("never: {what}; {view:?}")).unwrap());
    }
}

#[test]
fn links_addresses_and_routes_are_followed() {
    if !nix::unistd::geteuid().is_root() {
        println!("links_addresses_and_routes_are_followed: not run, needs root");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    // The runtime's only thread is this one, so that the netlink socket is of this namespace.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        ip("link set lo up");
        ip("link add up0 type veth peer name up1");
        let (sender, mut changes) = mpsc::channel(64);
        let task = tokio::spawn(watch::watch(sender));
        let mut view = NodeView::new(RoleRules::default(), NodePortAddresses::Primary);
        let index =
            |view: &NodeView, name: &str| view.net().links().find(|link| link.name == name).map(|link| link.index);
        let role = |view: &NodeView, name: &str| index(view, name).and_then(|index| view.roles().get(&index).copied());

        until(&mut view, &mut changes, "a pod's link", |view| role(view, "up0") == Some(IfaceRole::Pod)).await;
        ip("addr add 192.0.2.1/24 dev up0");
        ip("link set up0 up");
        ip("link set up1 up");
        ip("route add default via 192.0.2.254");
        until(&mut view, &mut changes, "the default route", |view| role(view, "up0") == Some(IfaceRole::Uplink)).await;
        assert_eq!(
            view.addresses().into_keys().collect::<Vec<_>>(),
            ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]
        );

        let strict = |view: &NodeView| view.ifaces().values().any(|iface| iface.flags & IFACE_STRICT != 0);
        assert!(!strict(&view));
        for (name, value, wanted) in [("up0", 1, true), ("all", 2, false), ("all", 0, true), ("up0", 0, false)] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), format!("{value}")).unwrap();
            until(&mut view, &mut changes, "rp_filter", |view| strict(view) == wanted).await;
        }

        let pod = "10.244.1.5".parse().unwrap();
        ip("link add pod0 type veth peer name pod1");
        ip("link set pod0 up");
        ip("link set pod1 up");
        ip("route add 10.244.1.5/32 dev pod0");
        until(&mut view, &mut changes, "a direct pod", |view| view.is_direct(pod)).await;
        // The kernel drops the routes of an interface that goes down without saying so.
        ip("link set pod0 down");
        until(&mut view, &mut changes, "the pod's route gone", |view| !view.is_direct(pod)).await;
        ip("link del pod0");
        until(&mut view, &mut changes, "the pod's link gone", |view| index(view, "pod0").is_none()).await;
        ip("addr del 192.0.2.1/24 dev up0");
        until(&mut view, &mut changes, "the address gone", |view| role(view, "up0") == Some(IfaceRole::Pod)).await;
        assert!(view.addresses().is_empty());
        task.abort();
    });
}
