//! The flags, named as kube-proxy's and with its defaults.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::Args;

use crate::kubeproxy::{Endpoint, Settings};

const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// Where the agent answers. `None` means not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    pub healthz: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    /// The agent ends if it cannot listen; else it tries again.
    pub hard_fail: bool,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            healthz: Some((Ipv4Addr::UNSPECIFIED, HEALTHZ_PORT).into()),
            metrics: Some((Ipv4Addr::LOCALHOST, METRICS_PORT).into()),
            hard_fail: false,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    /// Where /healthz and /livez are served; empty: nowhere [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP[:PORT]")]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics and /proxyMode are served; empty: nowhere [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP[:PORT]")]
    pub metrics_bind_address: Option<String>,
    /// End if one of these addresses cannot be bound (else it is tried again every five seconds)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub bind_address_hard_fail: Option<bool>,
}

impl HealthArgs {
    /// A flag comes before kube-proxy's configuration, and that before the default.
    pub fn config(&self, settings: &Settings) -> Result<HealthConfig, AddressError> {
        let default = HealthConfig::default();
        let listen = |flag: &Option<String>, set: Option<Endpoint>, port, default| match (flag, set) {
            (Some(text), _) => address(text, port),
            (None, Some(endpoint)) => Ok(endpoint.listens()),
            (None, None) => Ok(default),
        };
        let hard_fail = self.bind_address_hard_fail.or(settings.bind_address_hard_fail);
        Ok(HealthConfig {
            healthz: listen(&self.healthz_bind_address, settings.healthz, HEALTHZ_PORT, default.healthz)?,
            metrics: listen(&self.metrics_bind_address, settings.metrics, METRICS_PORT, default.metrics)?,
            hard_fail: hard_fail.unwrap_or(default.hard_fail),
        })
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address as 0.0.0.0:10256, [::]:10256 or 0.0.0.0, got {0:?}")]
pub struct AddressError(String);

/// An address without a port gets the default one. Empty is none.
fn address(text: &str, default_port: u16) -> Result<Option<SocketAddr>, AddressError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let bare = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, default_port));
    text.parse().or_else(|_| bare()).map(Some).map_err(|_| AddressError(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_for_kube_proxy() {
        let parsed = |text| address(text, 10256).map(|it| it.map(|it| it.to_string()));
        assert_eq!(parsed("0.0.0.0:1"), Ok(Some("0.0.0.0:1".into())));
        assert_eq!(parsed("10.0.0.1"), Ok(Some("10.0.0.1:10256".into())));
        assert_eq!(parsed("::"), Ok(Some("[::]:10256".into())));
        assert_eq!(parsed("[fd00::1]:99"), Ok(Some("[fd00::1]:99".into())));
        assert_eq!(parsed(""), Ok(None));
        for wrong in ["here", "10.0.0.1:http", "10.0.0.1:70000", ":10256"] {
            assert_eq!(parsed(wrong), Err(AddressError(wrong.into())));
        }
    }
}
