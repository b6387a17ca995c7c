//! Makes the calls: opens flows, keeps those that shall stay open, times everything.

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::time::timeout;

use super::{
    Call, CallResult, Options, Outcome, Proto,
    flow::{Flow, connect_tcp},
};

/// The open flows of one process, by the owner's numbers.
#[derive(Default)]
pub(super) struct Flows(Mutex<HashMap<u64, Arc<tokio::sync::Mutex<Flow>>>>);

impl Flows {
    /// Executes one call. Never fails: what goes wrong is the result.
    pub(super) async fn execute(&self, call: Call, options: &Options) -> CallResult {
        let started = Instant::now();
        let done = match call {
            Call::Http { to } => once(Proto::Tcp, to, options).await,
            Call::Udp { to } => once(Proto::Udp, to, options).await,
            Call::Connect { to } => connect(to, options).await,
            Call::Open { session, proto, to } => self.open(session, proto, to, options).await,
            Call::Send { session, to } => self.send(session, to, options).await,
            Call::Await { session } => self.wait(session, options).await,
            Call::Reconnect { session, to } => self.reconnect(session, to, options).await,
            Call::Close { session } => self.close(session),
        };
        CallResult { outcome: done.outcome, peer: done.peer, local: done.local, elapsed: started.elapsed() }
    }

    async fn open(&self, session: u64, proto: Proto, to: SocketAddr, options: &Options) -> Done {
        match limited(options, Flow::open(proto, to, options)).await {
            Ok(flow) => {
                let done = Done::of(&flow, Outcome::Connected);
                self.lock().insert(session, Arc::new(tokio::sync::Mutex::new(flow)));
                done
            }
            Err(outcome) => outcome.into(),
        }
    }

    async fn send(&self, session: u64, to: Option<SocketAddr>, options: &Options) -> Done {
        let Some(flow) = self.lock().get(&session).cloned() else {
            return Outcome::Failed(format!("session {session} is not open")).into();
        };
        let mut flow = flow.lock().await;
        exchange(&mut flow, to, options).await
    }

    async fn wait(&self, session: u64, options: &Options) -> Done {
        let Some(flow) = self.lock().get(&session).cloned() else {
            return Outcome::Failed(format!("session {session} is not open")).into();
        };
        let mut flow = flow.lock().await;
        let outcome = limited(options, flow.wait()).await.map_or_else(|outcome| outcome, Outcome::Answered);
        Done::of(&flow, outcome)
    }

    async fn reconnect(&self, session: u64, to: SocketAddr, options: &Options) -> Done {
        let Some(flow) = self.lock().get(&session).cloned() else {
            return Outcome::Failed(format!("session {session} is not open")).into();
        };
        let mut flow = flow.lock().await;
        let outcome = flow.reconnect(to, options).await.map_or_else(|outcome| outcome, |()| Outcome::Connected);
        Done::of(&flow, outcome)
    }

    fn close(&self, session: u64) -> Done {
        match self.lock().remove(&session) {
            Some(_) => Outcome::Connected.into(),
            None => Outcome::Failed(format!("session {session} is not open")).into(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<tokio::sync::Mutex<Flow>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A result whose time is not known yet.
struct Done {
    outcome: Outcome,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
}

impl Done {
    fn of(flow: &Flow, outcome: Outcome) -> Self {
        Self { outcome, peer: flow.peer, local: flow.local }
    }
}

impl From<Outcome> for Done {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, peer: None, local: None }
    }
}

async fn once(proto: Proto, to: SocketAddr, options: &Options) -> Done {
    match limited(options, Flow::open(proto, to, options)).await {
        Ok(mut flow) => exchange(&mut flow, None, options).await,
        Err(outcome) => outcome.into(),
    }
}

async fn exchange(flow: &mut Flow, to: Option<SocketAddr>, options: &Options) -> Done {
    let outcome = match limited(options, flow.exchange(to, options)).await {
        Ok(reply) => Outcome::Answered(reply),
        Err(outcome) => outcome,
    };
    Done::of(flow, outcome)
}

async fn connect(to: SocketAddr, options: &Options) -> Done {
    let connected = async {
        let stream = connect_tcp(to, options).await;
        stream.map_err(|error| Outcome::from_io(&error))
    };
    match limited(options, connected).await {
        Ok(stream) => {
            Done { outcome: Outcome::Connected, peer: stream.peer_addr().ok(), local: stream.local_addr().ok() }
        }
        Err(outcome) => outcome.into(),
    }
}

/// The limit applies to each step (opening, one exchange) by itself.
async fn limited<T>(options: &Options, step: impl Future<Output = Result<T, Outcome>>) -> Result<T, Outcome> {
    timeout(options.timeout(), step).await.unwrap_or(Err(Outcome::TimedOut))
}
