//! Flows that are held open and speak all the time: each exchange that is not answered, or is answered by another endpoint,
//! is a loss.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use tokio::time::sleep;

use crate::{
    call::{Options, Proto},
    demo::stage::Stage,
    world::Session,
};

/// Between two exchanges of a flow. There are some hundred flows.
const PAUSE: Duration = Duration::from_millis(300);
/// Tries until each endpoint has a flow. They are chosen at random.
const MOST_TRIES: usize = 40;

pub(super) struct Held<'a> {
    pub(super) from: &'static str,
    pub(super) proto: Proto,
    pub(super) to: SocketAddr,
    pub(super) local: SocketAddr,
    /// Who answered first.
    pub(super) pod: String,
    session: Session<'a>,
    exchanges: Cell<usize>,
}

/// One flow, asked once.
pub(super) async fn hold<'a>(
    stage: &'a Stage,
    from: &'static str,
    proto: Proto,
    to: SocketAddr,
    options: Options,
) -> Result<Held<'a>> {
    let what = || format!("{from} -> {to} {proto:?}");
    let session = stage.actor(from)?.open_with(proto, to, options).await.with_context(what)?;
    let result = session.send().await.with_context(what)?;
    let pod = result.answered().with_context(what)?.pod.clone();
    let local = result.local.or(session.opened.local).with_context(what)?;
    Ok(Held { from, proto, to, local, pod, session, exchanges: Cell::new(1) })
}

/// TCP flows of one way, until each endpoint has one; all are held.
pub(super) async fn hold_to_each<'a>(
    stage: &'a Stage,
    from: &'static str,
    to: SocketAddr,
    endpoints: usize,
) -> Result<Vec<Held<'a>>> {
    let (mut held, mut seen) = (Vec::new(), BTreeSet::new());
    while seen.len() < endpoints {
        ensure!(held.len() < MOST_TRIES, "{from} -> {to}: only {seen:?} after {MOST_TRIES} flows");
        let flow = hold(stage, from, Proto::Tcp, to, Options::default()).await?;
        // More to one endpoint show nothing more.
        if seen.insert(flow.pod.clone()) {
            held.push(flow);
        } else {
            flow.session.close().await?;
        }
    }
    Ok(held)
}

impl Held<'_> {
    async fn exchange(&self) -> Result<()> {
        let result = self.session.send().await?;
        let reply = result.answered()?;
        // A datagram may go elsewhere when the proxy changes.
        ensure!(self.proto == Proto::Udp || reply.pod == self.pod, "answered by {} and not by {}", reply.pod, self.pod);
        self.exchanges.set(self.exchanges.get() + 1);
        Ok(())
    }

    pub(super) async fn close(self) -> Result<()> {
        self.session.close().await
    }

    fn name(&self) -> String {
        format!("{} ({}) -> {} {:?} at {}", self.from, self.local, self.to, self.proto, self.pod)
    }
}

/// All speak until `stop` is set. Returns what was lost.
async fn speak(flows: &[Held<'_>], stop: &Cell<bool>) -> Vec<String> {
    let lost = RefCell::new(Vec::new());
    let speak = async |flow: &Held<'_>| {
        while !stop.get() {
            if let Err(error) = flow.exchange().await {
                lost.borrow_mut().push(format!("{}, exchange {}: {error:#}", flow.name(), flow.exchanges.get()));
                return;
            }
            sleep(PAUSE).await;
        }
    };
    join_all(flows.iter().map(speak)).await;
    lost.into_inner()
}

/// Does `work` while all `flows` speak, and once more afterwards. Fails if anything was lost.
pub(super) async fn speaking<T>(when: &str, flows: &[&[Held<'_>]], work: impl Future<Output = Result<T>>) -> Result<T> {
    let stop = Cell::new(false);
    let all = join_all(flows.iter().map(|flows| speak(flows, &stop)));
    let work = async {
        let result = work.await;
        stop.set(true);
        result
    };
    let (lost, result) = futures::future::join(all, work).await;
    let result = result.with_context(|| when.to_owned())?;
    let once = async |flow: &Held<'_>| {
        flow.exchange().await.err().map(|error| format!("{}, afterwards: {error:#}", flow.name()))
    };
    let after = join_all(flows.iter().copied().flatten().map(once)).await;
    let lost: Vec<String> = lost.into_iter().flatten().chain(after.into_iter().flatten()).collect();
    ensure!(lost.is_empty(), "{when}: {} flows lost:\n{}", lost.len(), lost.join("\n"));
    Ok(result)
}

/// How many exchanges there were.
pub(super) fn exchanges(flows: &[Held<'_>]) -> usize {
    flows.iter().map(|flow| flow.exchanges.get()).sum()
}
