//! [`Health`]: what the main loop tells, and the two HTTP servers that answer from it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::any,
};
use prometheus_client::registry::Registry;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
    time::sleep,
};

use super::{
    answer::{Answer, headers, json},
    args::HealthConfig,
    listener::listen,
    state::{Facts, Moment, NodeSeen},
};
use crate::metrics::{Metrics, text};

/// Pause before an address that could not be bound is tried again; as kube-proxy's.
const BIND_AGAIN: Duration = Duration::from_secs(5);
/// What /proxyMode says. kube-proxy says iptables, ipvs or nftables.
pub const PROXY_MODE: &str = "ebpf";

/// A clone tells and answers the same.
#[derive(Clone, Debug)]
pub struct Health {
    facts: Arc<Mutex<Facts>>,
    metrics: Metrics,
}

/// Ends the servers when it is dropped.
#[derive(Debug)]
pub struct Servers {
    tasks: Vec<JoinHandle<()>>,
    fatal: UnboundedReceiver<anyhow::Error>,
    fail: UnboundedSender<anyhow::Error>,
    config: HealthConfig,
}

impl Health {
    pub fn new(metrics: Metrics) -> Self {
        Self { facts: Arc::default(), metrics }
    }

    /// Something was heard that has to be written.
    pub fn queued(&self) {
        self.lock().queued(Moment::now());
    }

    /// Everything heard is written.
    pub fn updated(&self) {
        self.lock().updated(Moment::now());
    }

    pub fn node_is(&self, node: NodeSeen) {
        self.lock().node = node;
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn livez(&self, now: Moment) -> Answer {
        let facts = *self.lock();
        Answer::livez(&facts, facts.is_live(now), now)
    }

    fn healthz(&self, now: Moment) -> Answer {
        let facts = *self.lock();
        Answer::healthz(&facts, facts.is_live(now), now)
    }
}

impl Servers {
    /// /livez and /healthz.
    pub fn start(config: HealthConfig, health: &Health) -> Self {
        let (fail, fatal) = unbounded_channel();
        let mut servers = Self { tasks: Vec::new(), fatal, fail, config };
        let router =
            Router::new().route("/livez", any(livez)).route("/healthz", any(healthz)).with_state(health.clone());
        servers.serve("healthz", servers.config.healthz, router);
        servers
    }

    /// /metrics and /proxyMode, once this agent is the node's one writer: two that count in turns would make no sense.
    pub fn start_metrics(&mut self, health: &Health) {
        let mut registry = Registry::default();
        health.metrics.register(&mut registry);
        let router = Router::new()
            .route("/metrics", any(metrics))
            .with_state(Arc::new(registry))
            .route("/proxyMode", any(async || (headers("text/plain; charset=utf-8"), PROXY_MODE)))
            .route("/healthz", any(async || (headers("text/plain; charset=utf-8"), "ok")));
        self.serve("metrics", self.config.metrics, router);
    }

    /// Why the agent has to end; waits for ever if it does not.
    pub async fn fatal(&mut self) -> anyhow::Error {
        match self.fatal.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    fn serve(&mut self, name: &'static str, address: Option<SocketAddr>, router: Router) {
        let Some(address) = address else { return };
        let hard_fail = self.config.hard_fail;
        let fail = self.fail.clone();
        self.tasks.push(tokio::spawn(async move {
            let mut told = false;
            loop {
                let error = match listen(address) {
                    Ok(listener) => {
                        tracing::info!(%address, "serving {name}");
                        axum::serve(listener, router.clone()).await.err()
                    }
                    Err(error) => Some(error),
                };
                let Some(error) = error else { return };
                if hard_fail {
                    let _ = fail.send(anyhow::anyhow!("serve {name} on {address}: {error}"));
                    return;
                }
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(%address, %error, "cannot serve {name}; tried again every {} s", BIND_AGAIN.as_secs());
                }
                sleep(BIND_AGAIN).await;
            }
        }));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn livez(State(health): State<Health>) -> Response {
    let answer = health.livez(Moment::now());
    health.metrics.kube_proxy().count_livez(answer.ok);
    json(answer.ok, &answer.body)
}

async fn healthz(State(health): State<Health>) -> Response {
    let answer = health.healthz(Moment::now());
    health.metrics.kube_proxy().count_healthz(answer.ok);
    json(answer.ok, &answer.body)
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    // Reads maps.
    let encoded = tokio::task::spawn_blocking(move || text::encode(&registry)).await;
    match encoded {
        Ok(Ok(text)) => (headers(text::CONTENT_TYPE), text).into_response(),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded").into_response(),
    }
}
