//! The world itself: straight traffic between its hosts without any Service, and its removal.
//! Needs root; says so and passes where it is not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader, Read},
    net::{IpAddr, SocketAddr},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use proxy_rig::{
    call::{Options, Outcome, Proto},
    world::{
        Actor, Host, Node, PodPath, Serve, World,
        reap::{leftovers, reap_dead_runs},
    },
};

const PORT: u16 = 80;

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: network namespaces need root");
    }
    root
}

fn world() -> World {
    World::new("tests/world").unwrap()
}

async fn server(host: &Host) -> Actor {
    host.start_actor(Serve::ports(&[PORT])).await.unwrap()
}

async fn expect_answers(from: &Actor, client: &Host, to: &Host) {
    for (target, source) in to.addresses().into_iter().zip(client.addresses()) {
        for result in [from.http(target, PORT).await.unwrap(), from.udp(target, PORT).await.unwrap()] {
            let reply = result.answered().unwrap_or_else(|error| panic!("{} -> {}: {error}", client.name(), to.name()));
            assert_eq!(reply.pod, to.name());
            assert_eq!(reply.node, to.node_name().unwrap_or_default());
            assert_eq!(reply.client.ip(), source);
            assert_eq!(reply.server, SocketAddr::new(target, PORT));
            assert_eq!(result.peer, Some(reply.server));
            assert_eq!(result.local.map(|local| local.port()), Some(reply.client.port()));
        }
    }
}

fn two_nodes(world: &World) -> [Node; 2] {
    ["node-1", "node-2"].map(|name| world.add_node(name).unwrap())
}

#[tokio::test]
async fn straight_traffic_in_both_families() {
    if !is_root() {
        return;
    }
    let started = Instant::now();
    let world = world();
    let client = world.add_client("client").unwrap();
    let [node1, node2] = two_nodes(&world);
    let near = node1.add_pod("near", PodPath::Connect).unwrap();
    let far = node2.add_pod("far", PodPath::Packet).unwrap();
    let (near_actor, far_actor) = (server(&near).await, server(&far).await);
    let (client_actor, node_actor) = (server(&client).await, server(&node1).await);
    eprintln!("world up after {:?}", started.elapsed());

    expect_answers(&near_actor, &near, &far).await;
    expect_answers(&far_actor, &far, &near).await;
    expect_answers(&client_actor, &client, &near).await;
    expect_answers(&client_actor, &client, &far).await;
    expect_answers(&node_actor, &node1, &far).await;
    expect_answers(&near_actor, &near, &client).await;
    expect_answers(&client_actor, &client, &node1).await;
    world.close().unwrap();
}

#[tokio::test]
async fn failures_are_told_apart() {
    if !is_root() {
        return;
    }
    let world = world();
    let [node1, node2] = two_nodes(&world);
    let pod = node1.add_pod("pod", PodPath::Connect).unwrap();
    let actor = pod.start_actor(Serve::nothing()).await.unwrap();
    let quick = Options { timeout_ms: 200, ..Options::default() };

    let refused = actor.http(node2.ipv4(), 81).await.unwrap();
    assert_eq!(refused.outcome, Outcome::Refused);
    let refused = actor.udp(node2.ipv6(), 81).await.unwrap();
    assert_eq!(refused.outcome, Outcome::Refused);
    // The fabric's gateway has no way to it and says so.
    let unreachable = actor.connect("192.0.2.1", 80).await.unwrap();
    assert_eq!(unreachable.outcome, Outcome::Unreachable);
    node2.ip(&["route add blackhole 198.51.100.0/24".into()]).unwrap();
    node1.route_via("198.51.100.0/24", &node2).unwrap();
    let to = SocketAddr::from(([198, 51, 100, 1], 80));
    let silent = actor.http_with(to, quick).await.unwrap();
    assert_eq!(silent.outcome, Outcome::TimedOut);
    assert!(silent.elapsed >= quick.timeout());
}

#[tokio::test]
async fn ways_to_call() {
    if !is_root() {
        return;
    }
    let world = world();
    let [node1, node2] = two_nodes(&world);
    let client = node1.add_pod("client", PodPath::Connect).unwrap();
    let pod = node2.add_pod("pod", PodPath::Connect).unwrap();
    let (actor, _server) = (server(&client).await, server(&pod).await);
    let to = SocketAddr::from((pod.ipv4(), PORT));

    let from_port = Options { source_port: Some(33_333), ..Options::default() };
    let result = actor.http_with(to, from_port).await.unwrap();
    assert_eq!(result.answered().unwrap().client.port(), 33_333);
    let unconnected = Options { connected: false, ..Options::default() };
    let result = actor.udp_with(to, unconnected).await.unwrap();
    assert_eq!((result.pod(), result.peer), (Some("pod"), Some(to)));
    let mapped = Options { mapped: true, ..Options::default() };
    for result in [actor.udp_with(to, mapped).await, actor.http_with(to, mapped).await] {
        let result = result.unwrap();
        assert_eq!((result.pod(), result.peer), (Some("pod"), Some(to)));
    }
    // Larger than the MTU: fragments one way, fragments the other.
    let large = Options { size: 4000, ..Options::default() };
    assert_eq!(actor.udp_with(to, large).await.unwrap().pod(), Some("pod"));
    assert_eq!(actor.http_with(to, large).await.unwrap().pod(), Some("pod"));
}

#[tokio::test]
async fn flows_stay_open() {
    if !is_root() {
        return;
    }
    let world = world();
    let [node1, _] = two_nodes(&world);
    let pod = node1.add_pod("pod", PodPath::Connect).unwrap();
    let _server = server(&pod).await;
    let client = world.add_client("client").unwrap();
    let actor = client.start_actor(Serve::nothing()).await.unwrap();

    for proto in [Proto::Tcp, Proto::Udp] {
        let session = actor.open(proto, pod.ipv6(), PORT).await.unwrap();
        let first = session.send().await.unwrap();
        let second = session.send().await.unwrap();
        assert_eq!(first.answered().unwrap(), second.answered().unwrap());
        session.close().await.unwrap();
    }
    let unconnected = Options { connected: false, ..Options::default() };
    let to = SocketAddr::from((pod.ipv4(), PORT));
    let session = actor.open_with(Proto::Udp, to, unconnected).await.unwrap();
    assert_eq!(session.send().await.unwrap().pod(), Some("pod"));
    let elsewhere = session.send_to(IpAddr::from(node1.ipv4()), 9).await.unwrap();
    assert_ne!(elsewhere.pod(), Some("pod"));
    assert_eq!(session.send().await.unwrap().pod(), Some("pod"));
}

#[tokio::test]
async fn a_reply_leaves_from_the_address_that_was_asked() {
    if !is_root() {
        return;
    }
    let world = world();
    let [node1, _] = two_nodes(&world);
    let outside = world.add_client("outside").unwrap();
    outside.add_address("192.0.2.42/32").unwrap();
    let _server = server(&outside).await;
    node1.route("192.0.2.42/32", outside.ipv4().into()).unwrap();
    let actor = node1.start_actor(Serve::nothing()).await.unwrap();
    let result = actor.udp("192.0.2.42", PORT).await.unwrap();
    assert_eq!(result.answered().unwrap().server.ip(), IpAddr::from([192, 0, 2, 42]));
}

/// How a server of the test's own process, such as the API server double, is reached from a node.
#[tokio::test]
async fn a_listener_inside_a_namespace() {
    if !is_root() {
        return;
    }
    let world = world();
    let [node1, _] = two_nodes(&world);
    let control_plane = world.add_client("control-plane").unwrap();
    let address = SocketAddr::from((control_plane.ipv4(), 6443));
    let listener = control_plane.listen(address).unwrap();
    assert_eq!(listener.local_addr().unwrap(), address);
    let stream = node1.in_netns(|| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2)));
    let (_, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), IpAddr::from(node1.ipv4()));
    stream.unwrap().unwrap();
}

#[tokio::test]
async fn nothing_is_left_after_drop() {
    if !is_root() {
        return;
    }
    let world = world();
    let [node1, _] = two_nodes(&world);
    let pod = node1.add_pod("pod", PodPath::Packet).unwrap();
    let actor = server(&pod).await;
    let (id, pid) = (world.run_id().to_owned(), actor.pid());
    std::fs::create_dir_all(node1.pin_dir().join("maps")).unwrap();
    assert!(!leftovers(&id).unwrap().is_empty());
    drop(world);
    assert_eq!(leftovers(&id).unwrap(), Vec::<String>::new());
    assert!(actor.http("127.0.0.1", PORT).await.is_err(), "the actor {pid} still answers");
}

/// The owner gets no chance to clean up; the next start does it.
#[test]
fn nothing_is_left_after_kill_and_reap() {
    if !is_root() {
        return;
    }
    let mut owner = Command::new(env!("CARGO_BIN_EXE_weir-rig"))
        .args(["world", "--nodes", "2", "--pods", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (id, _reader) = run_id_of(&mut owner);
    // Agents, unlike actors, do not end with their owner.
    let cgroup = host_cgroup(&id);
    let mut survivor = Command::new(env!("CARGO_BIN_EXE_weir-rig"))
        .args(["exec-in", "--netns", &format!("weir-{id}-node-1"), "--cgroup", &cgroup])
        .args(["--", "sh", "-c", "echo in; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 3];
    survivor.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(survivor.try_wait().unwrap().is_none());
    reap_dead_runs().unwrap();
    assert_eq!(leftovers(&id).unwrap(), Vec::<String>::new());
    assert_eq!(survivor.wait().unwrap().signal(), Some(9));
}

#[test]
fn a_signal_removes_the_world() {
    if !is_root() {
        return;
    }
    let mut owner = Command::new(env!("CARGO_BIN_EXE_weir-rig"))
        .args(["world", "--nodes", "1", "--pods", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (id, _reader) = run_id_of(&mut owner);
    let pid = nix::unistd::Pid::from_raw(owner.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = owner.wait().unwrap();
    assert_eq!(status.code(), Some(143));
    assert_eq!(leftovers(&id).unwrap(), Vec::<String>::new());
}

/// A living run is not touched by another one's start.
#[test]
fn the_living_are_not_reaped() {
    if !is_root() {
        return;
    }
    let first = world();
    let before = leftovers(first.run_id()).unwrap();
    let _second = world();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(leftovers(first.run_id()).unwrap(), before);
}

/// The host cgroup of node-1, by the list of what the run has.
fn host_cgroup(id: &str) -> String {
    let all = leftovers(id).unwrap();
    let root = all.iter().find(|path| path.contains("cgroup")).unwrap();
    format!("{root}/node-1/host")
}

/// `weir-rig world` prints "run <id>: ..." when all is up. The pipe stays open with the reader.
fn run_id_of(owner: &mut Child) -> (String, BufReader<ChildStdout>) {
    let mut reader = BufReader::new(owner.stdout.take().unwrap());
    let lines = reader.by_ref().lines();
    let id = lines
        .map_while(Result::ok)
        .find_map(|line| Some(line.strip_prefix("run ")?.split_once(':')?.0.to_owned()))
        .expect("the world did not come up");
    (id, reader)
}
