//! Calls made for one path, held against what has to come of it. Called by `table` and the end-to-end suite.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};

use super::{
    paths::{Expect, Path, Source, Who},
    stage::Stage,
};
use crate::{
    call::{CallResult, Options, Outcome},
    echo::Reply,
};

/// Choice is random: how often a path is asked at most until every endpoint has answered once.
/// Two endpoints: one of them stays unseen in one run of 2^39.
const MAX_CALLS: usize = 40;
/// Asked at least so often, to catch an answer from somebody else.
const MIN_CALLS: usize = 6;
/// For a call that shall end in silence. Any answer on this machine takes a few milliseconds.
const SILENCE_MS: u64 = 600;
/// For a call that shall be refused. Over IPv6 Linux may take the second error for the first, a second later.
const REFUSAL_MS: u64 = 2500;

/// What was seen on one path.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) path: Path,
    pub(crate) to: SocketAddr,
    /// How often each backend answered, and the source address it saw.
    pub(crate) seen: BTreeMap<(String, IpAddr), usize>,
    /// What happened where nobody answered.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) expected: String,
    /// Why the path is not as expected.
    pub(crate) complaint: Option<String>,
}

/// Walks one path.
pub(crate) async fn walk(stage: &Stage, path: &Path) -> Result<Row> {
    let to = SocketAddr::new(target_ip(stage, path)?, path.port);
    let expected = describe(&path.expect);
    let mut row = Row { path: *path, to, seen: BTreeMap::new(), outcome: None, expected, complaint: None };
    match path.expect {
        Expect::Answer { who, target, source } => answers(stage, &mut row, &names(stage, who), target, source).await?,
        Expect::Refused => silence(stage, &mut row, &Outcome::Refused).await?,
        Expect::TimedOut => silence(stage, &mut row, &Outcome::TimedOut).await?,
    }
    Ok(row)
}

async fn answers(stage: &Stage, row: &mut Row, wanted: &BTreeSet<String>, target: u16, source: Source) -> Result<()> {
    for call in 0..MAX_CALLS {
        let result = stage.ask(row.path.from, row.path.proto, row.to, Options::default()).await?;
        let Outcome::Answered(reply) = &result.outcome else {
            row.complaint = Some(format!("{:?} instead of an answer", result.outcome));
            row.outcome = Some(result.outcome);
            return Ok(());
        };
        *row.seen.entry((reply.pod.clone(), reply.client.ip())).or_default() += 1;
        row.complaint = fault(stage, row, &result, reply, wanted, target, source)?;
        let complete = wanted.iter().all(|name| row.seen.keys().any(|(pod, _)| pod == name));
        if row.complaint.is_some() || (call + 1 >= MIN_CALLS && complete) {
            return Ok(());
        }
    }
    let missing: Vec<_> = wanted.iter().filter(|name| row.seen.keys().all(|(pod, _)| pod != *name)).collect();
    row.complaint = Some(format!("never answered: {missing:?}"));
    Ok(())
}

async fn silence(stage: &Stage, row: &mut Row, wanted: &Outcome) -> Result<()> {
    let timeout_ms = if *wanted == Outcome::TimedOut { SILENCE_MS } else { REFUSAL_MS };
    let options = Options { timeout_ms, ..Options::default() };
    let result = stage.ask(row.path.from, row.path.proto, row.to, options).await?;
    if let Outcome::Answered(reply) = &result.outcome {
        row.seen.insert((reply.pod.clone(), reply.client.ip()), 1);
    }
    if result.outcome != *wanted {
        row.complaint = Some(format!("{:?}", result.outcome));
    }
    row.outcome = Some(result.outcome);
    Ok(())
}

/// What is wrong with an answer.
fn fault(
    stage: &Stage,
    row: &Row,
    result: &CallResult,
    reply: &Reply,
    wanted: &BTreeSet<String>,
    target: u16,
    source: Source,
) -> Result<Option<String>> {
    let client = reply.client.ip();
    let source = match source {
        Source::Kept => stage.address(row.path.from, client)?,
        Source::KeptOn(node) if reply.node == node => stage.address(row.path.from, client)?,
        Source::KeptOn(node) | Source::Node(node) => stage.address(node, client)?,
        Source::ByNode(table) => match table.iter().find(|(node, _)| *node == reply.node) {
            Some((_, addresses)) => addresses[usize::from(client.is_ipv6())].parse().context("a path's source")?,
            None => stage.address(row.path.from, client)?,
        },
    };
    Ok(if !wanted.contains(&reply.pod) {
        Some(format!("{} answered", reply.pod))
    } else if client != source {
        Some(format!("{} saw {client} instead of {source}", reply.pod))
    } else if reply.port != target {
        Some(format!("{} was asked at port {} instead of {target}", reply.pod, reply.port))
    } else if result.peer != Some(row.to) {
        Some(format!("the caller sees its peer as {:?} instead of {}", result.peer, row.to))
    } else {
        None
    })
}

fn target_ip(stage: &Stage, path: &Path) -> Result<IpAddr> {
    if let Ok(ip) = path.to.parse() {
        return Ok(ip);
    }
    let (name, place) = path.to.strip_suffix("/6").map_or((path.to, 0), |name| (name, 1));
    let peer = stage.peer(name).with_context(|| path.title)?;
    Ok(peer.host.addresses()[place])
}

fn names(stage: &Stage, who: Who) -> BTreeSet<String> {
    let endpoints = |service: &str| {
        let (namespace, name) = service.split_once('/').unwrap_or(("default", service));
        stage.cluster.endpoints_of(namespace, name)
    };
    let on = |node: &str, pod: &&str| stage.cluster.workload(pod).is_some_and(|pod| pod.node == node);
    match who {
        Who::All(service) => endpoints(service).into_iter().map(str::to_owned).collect(),
        Who::On(service, node) => {
            endpoints(service).into_iter().filter(|pod| on(node, pod)).map(str::to_owned).collect()
        }
        Who::Host(name) => [name.to_owned()].into(),
    }
}

/// The expectation in words.
fn describe(expect: &Expect) -> String {
    let Expect::Answer { who, source, .. } = expect else {
        return match expect {
            Expect::Refused => "refused".to_owned(),
            _ => "no answer".to_owned(),
        };
    };
    let short = |service: &str| service.rsplit('/').next().unwrap_or_default().to_owned();
    let who = match who {
        Who::All(service) => format!("all of {}", short(service)),
        Who::On(service, node) => format!("{} on {node}", short(service)),
        Who::Host(name) => (*name).to_owned(),
    };
    let source = match source {
        Source::Kept => "source kept".to_owned(),
        Source::KeptOn(node) => format!("kept if on {node}, else its address"),
        Source::Node(node) => format!("source is {node}"),
        Source::ByNode(_) => "source by the backend's node".to_owned(),
    };
    format!("{who}; {source}")
}
