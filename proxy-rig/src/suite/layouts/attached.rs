//! Pods that hang on the network beside their node, as with macvlan or an SR-IOV function: what they send does not
//! pass the node, so that a reply finds its way back only if the request came from the node's address.

use anyhow::Result;

use super::{ROUTED, cast, walk_all};
use crate::{
    demo::{
        cluster::PodSpec,
        paths::{
            Path,
            Source::{Kept, Node},
            host,
        },
    },
    suite::netns::paths::both,
    world::Serve,
};

pub(super) async fn test() -> Result<()> {
    let mut stage = cast::assemble(ROUTED).await?;
    let node = stage.node("node-1")?;
    let spec = PodSpec { labels: &[("app", "beside")], ..PodSpec::default() };
    stage.add_attached_pod(&node, "beside", &spec, Serve::ports(&[8080])).await?;
    stage.start_agents(cast::ARGS).await?;
    walk_all(&stage, &paths()).await?;
    let ways = [("client", "node-1", 30092), ("client", "node-2/6", 30092), ("packet", "10.96.0.12", 80)];
    super::transfers(&stage, &ways).await
}

fn paths() -> Vec<Path> {
    let through = |node| host("beside", 8080, Node(node));
    let kept = || host("beside", 8080, Kept);
    [
        both("NodePort of its node", "client", "node-1", "node-1/6", 30092, through("node-1")),
        both("NodePort of another node", "client", "node-2", "node-2/6", 30092, through("node-2")),
        both("Local, at its node", "client", "node-1", "node-1/6", 30093, through("node-1")),
        both("pod of its node", "packet", "10.96.0.12", "fd00:10:96::c", 80, kept()),
        both("pod of its node, connect time", "near", "10.96.0.12", "fd00:10:96::c", 80, kept()),
        both("its node", "node-1", "10.96.0.12", "fd00:10:96::c", 80, kept()),
        both("another node", "node-2", "10.96.0.12", "fd00:10:96::c", 80, kept()),
    ]
    .concat()
}
