//! A listener for each healthCheckNodePort, on all addresses of the node. It opens, moves and closes with its Service. A port that
//! cannot be bound is a warning, is tried again, and nothing else fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderName, HeaderValue},
    response::Response,
    routing::any,
};
use serde::Serialize;
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::{answer::json, checks::owners, drain, listener::listen, state::Moment, told::Health};
use crate::model::ServiceName;

/// Pause before a port that could not be bound is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(5);
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

#[derive(Debug, Serialize)]
struct CheckBody<'a> {
    service: NameBody<'a>,
    #[serde(rename = "localEndpoints")]
    local_endpoints: u32,
    #[serde(rename = "serviceProxyHealthy")]
    service_proxy_healthy: bool,
}

#[derive(Debug, Serialize)]
struct NameBody<'a> {
    namespace: &'a str,
    name: &'a str,
}

pub(super) struct Ports {
    health: Health,
    open: BTreeMap<u16, Open>,
    /// Said already.
    complained: BTreeSet<(ServiceName, u16)>,
}

struct Open {
    service: ServiceName,
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Ports {
    pub(super) fn new(health: Health) -> Self {
        Self { health, open: BTreeMap::new(), complained: BTreeSet::new() }
    }

    /// Until `end` says true: keeps the listeners as the Services want them.
    pub(super) async fn follow(mut self, mut end: watch::Receiver<bool>) {
        let mut checks = self.health.checks();
        loop {
            let incomplete = self.sync(&checks.borrow_and_update().clone());
            tokio::select! {
                changed = checks.changed() => if changed.is_err() { break },
                () = sleep(BIND_AGAIN), if incomplete => {}
                _ = end.wait_for(|end| *end) => break,
            }
        }
        let open = std::mem::take(&mut self.open);
        for open in open.values() {
            open.end.send_replace(true);
        }
        drain::wait_for(open.into_values().map(|open| open.task)).await;
    }

    /// True if a port could not be bound.
    fn sync(&mut self, checks: &super::checks::Checks) -> bool {
        let before = self.open.iter().map(|(port, open)| (*port, open.service.clone())).collect();
        let (owners, mut refused) = owners(checks, &before);
        let reasons: Vec<_> = refused.drain(..).map(|it| (it, "another Service has it".to_owned())).collect();
        self.open.retain(|port, open| {
            let stays = owners.get(port) == Some(&open.service);
            if !stays {
                open.end.send_replace(true);
                tracing::debug!(service = %open.service, port, "health check closed");
            }
            stays
        });
        let mut failed = reasons;
        for (port, service) in owners {
            if self.open.contains_key(&port) {
                continue;
            }
            match self.open_port(port, &service) {
                Ok(open) => {
                    self.open.insert(port, open);
                }
                Err(error) => failed.push(((service, port), error.to_string())),
            }
        }
        self.complain(&failed);
        !failed.is_empty()
    }

    fn open_port(&self, port: u16, service: &ServiceName) -> std::io::Result<Open> {
        let listener = listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
        let router = Router::new().fallback(any(answer)).with_state((self.health.clone(), service.clone()));
        let end = watch::Sender::new(false);
        let health = self.health.clone();
        let serving = drain::serve(listener, router, end.subscribe(), move || health.other_socket());
        let task = tokio::spawn(async move { drop(serving.await) });
        tracing::debug!(%service, port, "health check opened");
        Ok(Open { service: service.clone(), end, task })
    }

    fn complain(&mut self, failed: &[((ServiceName, u16), String)]) {
        for (refused, why) in failed {
            if !self.complained.contains(refused) {
                let (service, port) = refused;
                tracing::warn!(%service, port, "no health check: {why}; tried again every {} s", BIND_AGAIN.as_secs());
                self.health.complain(service, format_args!("no health check on port {port}: {why}"));
            }
        }
        self.complained = failed.iter().map(|(refused, _)| refused.clone()).collect();
    }
}

/// The same for every path and method, as kube-proxy's.
async fn answer(State((health, service)): State<(Health, ServiceName)>) -> Response {
    let healthy = health.forwards(Moment::now());
    let local_endpoints = health.local_endpoints(&service);
    check_response(&service, local_endpoints, healthy)
}

fn check_response(service: &ServiceName, local_endpoints: u32, service_proxy_healthy: bool) -> Response {
    let service = NameBody { namespace: &service.namespace, name: &service.name };
    let body = CheckBody { service, local_endpoints, service_proxy_healthy };
    let mut response = json(local_endpoints > 0 && service_proxy_healthy, &body);
    response.headers_mut().insert(WEIGHT, HeaderValue::from(local_endpoints));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    async fn told(local_endpoints: u32, healthy: bool) -> (u16, String, String) {
        let response = check_response(&ServiceName::new("default", "web"), local_endpoints, healthy);
        let weight = response.headers()[WEIGHT].to_str().unwrap().to_owned();
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        let code = response.status().as_u16();
        let body = to_bytes(response.into_body(), 4096).await.unwrap();
        (code, weight, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn answers_to_the_letter() {
        let body = |count, healthy| {
            format!(
                r#"{{"service":{{"namespace":"default","name":"web"}},"localEndpoints":{count},"serviceProxyHealthy":{healthy}}}"#
            )
        };
        assert_eq!(told(2, true).await, (200, "2".into(), body(2, true)));
        assert_eq!(told(0, true).await, (503, "0".into(), body(0, true)));
        assert_eq!(told(2, false).await, (503, "2".into(), body(2, false)));
    }
}
