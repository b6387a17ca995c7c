//! Foreign tc programs on an uplink beside Weir's: they see what docs/operations.md says of each `--tc-order`, and they
//! go on after Weir starts, restarts and goes.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, SocketAddrV4},
};

use anyhow::{Context, Result, ensure};

use super::{
    ROUTED, cast,
    observer::{Observer, Place, Seen},
};
use crate::{
    call::{Options, Proto},
    demo::stage::Stage,
    world::Node,
};

/// What the client calls, of `services.yaml`: it keeps the client, and web-1 alone answers on node-1.
const NODE_PORT: u16 = 30083;

/// What a program sees of the called side of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Called {
    Frontend,
    Endpoint,
}
use Called::{Endpoint, Frontend};

/// Arguments of the agent; what each observer sees at ingress and at egress.
struct Case {
    args: &'static [&'static str],
    /// Attached by tcx before Weir came.
    tcx: [Called; 2],
    /// In the clsact qdisc.
    clsact: [Called; 2],
}

const CASES: [Case; 6] = [
    Case { args: &[], tcx: [Endpoint, Frontend], clsact: [Endpoint, Frontend] },
    Case { args: &["--tc-order", "last"], tcx: [Frontend, Endpoint], clsact: [Endpoint, Frontend] },
    Case { args: &["--tc-order", "outer"], tcx: [Endpoint, Endpoint], clsact: [Endpoint, Frontend] },
    Case { args: &["--tc-order", "inner"], tcx: [Frontend, Frontend], clsact: [Endpoint, Frontend] },
    Case {
        args: &["--tc-order", "outer", "--tc-attach", "clsact"],
        tcx: [Frontend, Endpoint],
        clsact: [Endpoint, Endpoint],
    },
    Case {
        args: &["--tc-order", "inner", "--tc-attach", "clsact"],
        tcx: [Frontend, Endpoint],
        clsact: [Frontend, Frontend],
    },
];

pub(super) async fn test() -> Result<()> {
    let mut stage = cast::assemble(ROUTED).await?;
    let node = stage.node("node-1")?;
    let pins = node.pin_dir().with_file_name("observers");
    let place = |place, name: &str| Observer::attach(&node, "eth0", place, &pins.join(name));
    let mut tcx = place(Place::TcxLast, "tcx")?;
    let mut clsact = place(Place::Clsact(100), "clsact")?;
    for case in CASES {
        stage.start_agent(&node, &[cast::ARGS, case.args].concat())?;
        let mut agent = stage.take_agents().remove(node.name()).context("no agent")?;
        agent.wait_ready().await?;
        for (observer, expected, name) in [(&mut tcx, case.tcx, "tcx"), (&mut clsact, case.clsact, "clsact")] {
            let seen = watch(&stage, &node, observer).await?;
            ensure!(seen == expected, "{:?}: the program in {name} sees {seen:?} instead of {expected:?}", case.args);
        }
        // A program that comes after Weir, at the very front.
        let mut late = place(Place::TcxFirst, &format!("late-{}", case.args.join("")))?;
        let seen = watch(&stage, &node, &mut late).await?;
        ensure!(seen[0] == Frontend, "{:?}: a program in front sees {seen:?}", case.args);
        drop(late);
        agent.terminate().await?;
        let output = node.weir("cleanup", &["--force"])?;
        ensure!(output.status.success(), "weir cleanup: {}", String::from_utf8_lossy(&output.stderr));
    }
    straight(&stage, &node, [&mut tcx, &mut clsact]).await
}

/// One call; as what the observer sees the called side in the request and in the answer.
async fn watch(stage: &Stage, node: &Node, observer: &mut Observer) -> Result<[Called; 2]> {
    observer.clear()?;
    let to = SocketAddr::new(IpAddr::V4(node.ipv4()), NODE_PORT);
    let result = stage.ask("client", Proto::Tcp, to, Options::default()).await?;
    ensure!(result.pod() == Some("web-1"), "{:?}", result.outcome);
    let client = local(result.local)?;
    let request = observer.ingress()?.into_iter().filter(|seen| seen.from == client).map(|seen| seen.to);
    let answer = observer.egress()?.into_iter().filter(|seen| seen.to == client).map(|seen| seen.from);
    let IpAddr::V4(pod) = stage.address("web-1", to.ip())? else { unreachable!("of the family of IPv4") };
    let (frontend, endpoint) = (SocketAddrV4::new(node.ipv4(), NODE_PORT), SocketAddrV4::new(pod, 8080));
    let name = |side: BTreeSet<SocketAddrV4>| -> Result<Called> {
        ensure!(side.len() == 1, "one flow is seen with {side:?}");
        if side.contains(&frontend) {
            Ok(Frontend)
        } else {
            ensure!(side.contains(&endpoint), "a flow is seen with {side:?}");
            Ok(Endpoint)
        }
    };
    Ok([name(request.collect()).context("request")?, name(answer.collect()).context("answer")?])
}

fn local(address: Option<SocketAddr>) -> Result<SocketAddrV4> {
    match address {
        Some(SocketAddr::V4(v4)) => Ok(v4),
        other => anyhow::bail!("the client's socket is {other:?}"),
    }
}

/// Without Weir, the foreign programs still see everything.
async fn straight(stage: &Stage, node: &Node, observers: [&mut Observer; 2]) -> Result<()> {
    for observer in observers {
        observer.clear()?;
        let pod = stage.peer("web-1")?.host.ipv4();
        let result = stage.ask("client", Proto::Tcp, SocketAddr::new(pod.into(), 8080), Options::default()).await?;
        ensure!(result.pod() == Some("web-1"), "{:?}", result.outcome);
        let (client, pod) = (local(result.local)?, SocketAddrV4::new(pod, 8080));
        let (there, back) = (Seen { from: client, to: pod }, Seen { from: pod, to: client });
        ensure!(observer.ingress()?.contains(&there), "{}: {there} was not seen", node.name());
        ensure!(observer.egress()?.contains(&back), "{}: {back} was not seen", node.name());
    }
    Ok(())
}
