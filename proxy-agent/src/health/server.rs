//! The HTTP servers, and the tasks around them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::any,
};
use prometheus_client::registry::Registry;
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        watch,
    },
    task::JoinHandle,
    time::sleep,
};

use super::{
    answer::{headers, json},
    args::HealthConfig,
    drain,
    listener::listen,
    ports::Ports,
    state::Moment,
    told::Health,
};
use crate::{loader::Pins, metrics::text};

/// Pause before an address that could not be bound is tried again; as kube-proxy's.
const BIND_AGAIN: Duration = Duration::from_secs(5);
/// What /proxyMode says. kube-proxy says iptables, ipvs or nftables.
pub const PROXY_MODE: &str = "ebpf";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Everything that listens. Ends when it is dropped; [`Servers::end`] does so with care.
pub struct Servers {
    config: HealthConfig,
    health: Health,
    /// Told to end, and then waited for.
    serving: Vec<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    end: watch::Sender<bool>,
    fatal: UnboundedReceiver<anyhow::Error>,
    fail: UnboundedSender<anyhow::Error>,
}

impl Servers {
    /// /livez, /healthz and the health checks of Services: also while this agent waits as standby.
    pub fn start(config: HealthConfig, health: &Health) -> Self {
        let (fail, fatal) = unbounded_channel();
        let (serving, others) = (Vec::new(), Vec::new());
        let end = watch::Sender::new(false);
        let mut servers = Self { config, health: health.clone(), serving, others, end, fatal, fail };
        let router =
            Router::new().route("/livez", any(livez)).route("/healthz", any(healthz)).with_state(health.clone());
        servers.serve("healthz", servers.config.healthz, router);
        let ports = Ports::new(health.clone()).follow(servers.end.subscribe());
        servers.serving.push(tokio::spawn(ports));
        servers.others.push(tokio::spawn(health.clone().follow_board()));
        servers
    }

    /// This agent is the node's one writer now. Only such a one serves /metrics and /proxyMode: two that count in turns would
    /// make no sense.
    pub fn take_over(&mut self, pins: &Pins, snat_ports: u32) {
        self.others.push(tokio::spawn(self.health.clone().post(pins.clone())));
        let mut registry = Registry::default();
        self.health.metrics().register_all(&mut registry, pins, snat_ports);
        let router = Router::new()
            .route("/metrics", any(metrics))
            .with_state((self.health.clone(), Arc::new(registry)))
            .route("/proxyMode", any(async || (headers(PLAIN), PROXY_MODE)))
            .route("/healthz", any(async || (headers(PLAIN), "ok")));
        self.serve("metrics", self.config.metrics, router);
    }

    /// Why the agent has to end; waits for ever if it does not.
    pub async fn fatal(&mut self) -> anyhow::Error {
        match self.fatal.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Serves those who have connected, then closes. A standby answers from here on.
    pub async fn end(mut self) {
        self.end.send_replace(true);
        drain::wait_for(self.serving.drain(..)).await;
    }

    fn serve(&mut self, name: &'static str, address: Option<SocketAddr>, router: Router) {
        let Some(address) = address else { return };
        let (hard_fail, fail, end) = (self.config.hard_fail, self.fail.clone(), self.end.subscribe());
        let health = self.health.clone();
        self.serving.push(tokio::spawn(async move {
            let mut told = false;
            loop {
                let result = match listen(address) {
                    Ok(listener) => {
                        tracing::info!(%address, "serving {name}");
                        let health = health.clone();
                        drain::serve(listener, router.clone(), end.clone(), move || health.other_socket()).await
                    }
                    Err(error) => Err(error),
                };
                let Err(error) = result else { return };
                if hard_fail {
                    let _ = fail.send(anyhow::anyhow!("serve {name} on {address}: {error}"));
                    return;
                }
                if !std::mem::replace(&mut told, true) {
                    let pause = BIND_AGAIN.as_secs();
                    tracing::error!(%address, %error, "cannot serve {name}; tried again every {pause} s");
                }
                sleep(BIND_AGAIN).await;
            }
        }));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.serving.iter().chain(&self.others).for_each(JoinHandle::abort);
    }
}

async fn livez(State(health): State<Health>) -> Response {
    let answer = health.livez(Moment::now());
    health.metrics().kube_proxy().count_livez(answer.ok);
    json(answer.ok, &answer.body)
}

async fn healthz(State(health): State<Health>, RawQuery(query): RawQuery) -> Response {
    let verbose = query.is_some_and(|query| query.split('&').any(|word| word.split('=').next() == Some("verbose")));
    let report = if verbose { health.forwarding().await } else { None };
    let mut answer = health.healthz(Moment::now());
    if let Some(report) = report {
        answer = answer.with(report);
    }
    health.metrics().kube_proxy().count_healthz(answer.ok);
    json(answer.ok, &answer.body)
}

async fn metrics(State((health, registry)): State<(Health, Arc<Registry>)>) -> Response {
    health.count_tables().await;
    // Reads maps.
    let encoded = tokio::task::spawn_blocking(move || text::encode(&registry)).await;
    match encoded {
        Ok(Ok(text)) => (headers(text::CONTENT_TYPE), text).into_response(),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded").into_response(),
    }
}
