//! The connection to the API server: kubeconfig, service account, or an address given by flag.

use std::{path::PathBuf, time::Duration};

use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::pace::patience;

/// Without --watch-timeout, in seconds. It is resumed where it ended, so shorter costs the server one cheap request each time.
pub const WATCH_TIMEOUT_S: u32 = 120;
/// What reading may take longer than a watch lives.
const READ_GRACE: Duration = Duration::from_secs(30);

/// The flags --kubeconfig and --master, which mean what they mean for kube-proxy.
#[derive(Clone, Debug, Default)]
pub struct KubernetesConfig {
    pub kubeconfig: Option<PathBuf>,
    /// Takes the place of the address in the kubeconfig or the pod's environment.
    pub master: Option<String>,
    pub wanted: Wanted,
}

/// What is asked for beside Services, EndpointSlices and the own Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The Pods of this node, for their host ports.
    pub pods: bool,
    pub service_cidrs: bool,
    /// The server ends a watch after this time, and a little later the client gives it up: this bounds how long a connection
    /// that died without a sign goes unnoticed.
    pub watch_timeout_s: u32,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { pods: true, service_cidrs: true, watch_timeout_s: WATCH_TIMEOUT_S }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("reading the kubeconfig {path}: {source}")]
    Kubeconfig { path: PathBuf, source: Box<KubeconfigError> },
    #[error("{master:?} is no URL of an API server: {reason}")]
    Master { master: String, reason: String },
    #[error("no kubeconfig is given (--kubeconfig), and this is no pod with a service account: {0}")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    #[error("making a client for {url}: {source}")]
    Client { url: String, source: Box<kube::Error> },
}

/// Makes a client. Nothing is sent yet, so a server that is down is no error here.
pub async fn connect(config: &KubernetesConfig) -> Result<Client, ConnectError> {
    let watch_timeout = Duration::from_secs(config.wanted.watch_timeout_s.into());
    let mut config = client_config(config).await?;
    // A watch is quiet for as long as nothing happens; a listing must not wait for a dead server for ever.
    config.read_timeout = Some(watch_timeout + READ_GRACE);
    config.reset_reader_on_write = true;
    if config.cluster_url.scheme_str() == Some("http") {
        // No certificate is ever looked at; without this the client wants those of the system, which an image may not have.
        config.root_cert = Some(Vec::new());
    }
    // It would try again in silence, the first time after 5 ms; those who ask have pauses of their own.
    config.default_retry = false;
    let url = config.cluster_url.to_string();
    let client = ClientBuilder::try_from(config).map(|builder| builder.with_layer(&patience()).build());
    client.map_err(|source| ConnectError::Client { url, source: Box::new(source) })
}

async fn client_config(config: &KubernetesConfig) -> Result<Config, ConnectError> {
    let master = config.master.as_deref().filter(|master| !master.is_empty());
    let mut found = match (&config.kubeconfig, Config::incluster()) {
        (Some(path), _) => from_file(path, master).await?,
        (None, Ok(in_cluster)) => in_cluster,
        // kube-proxy, too, takes a bare address for a server that asks for no credentials.
        (None, Err(_)) if master.is_some() => Config::new(parse(master.unwrap_or_default())?.cluster_url),
        (None, Err(error)) => return Err(ConnectError::InCluster(Box::new(error))),
    };
    if let Some(master) = master {
        found.cluster_url = parse(master)?.cluster_url;
    }
    Ok(found)
}

/// A kubeconfig may leave the server's address to --master.
async fn from_file(path: &PathBuf, master: Option<&str>) -> Result<Config, ConnectError> {
    let failed = |source| ConnectError::Kubeconfig { path: path.clone(), source: Box::new(source) };
    let mut file = Kubeconfig::read_from(path).map_err(failed)?;
    for cluster in file.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        if let Some(master) = master {
            cluster.server = Some(master.to_owned());
        }
    }
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)
}

fn parse(master: &str) -> Result<Config, ConnectError> {
    let failed = |reason: String| ConnectError::Master { master: master.to_owned(), reason };
    // As for kube-proxy, `host:port` is https.
    let url = if master.contains("://") { master.to_owned() } else { format!("https://{master}") };
    let config = Config::new(url.parse().map_err(|error| failed(format!("{error}")))?);
    match config.cluster_url.host() {
        Some(_) => Ok(config),
        None => Err(failed("it has no host".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        contexts: [{name: c, context: {cluster: k, user: u}}]\n\
        clusters: [{name: k, cluster: {server: 'https://192.0.2.1:6443'}}]\n\
        users: [{name: u, user: {token: secret}}]\n";

    async fn url(kubeconfig: Option<&str>, master: Option<&str>) -> Result<String, String> {
        let directory = tempfile::TempDir::new().expect("a directory");
        let path = directory.path().join("config");
        if let Some(text) = kubeconfig {
            std::fs::write(&path, text).expect("writable");
        }
        let config = KubernetesConfig {
            kubeconfig: kubeconfig.map(|_| path),
            master: master.map(str::to_owned),
            ..KubernetesConfig::default()
        };
        client_config(&config).await.map(|it| it.cluster_url.to_string()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn where_the_address_comes_from() {
        assert_eq!(url(Some(KUBECONFIG), None).await.expect("a URL"), "https://192.0.2.1:6443/");
        let both = url(Some(KUBECONFIG), Some("http://127.0.0.1:8080")).await;
        assert_eq!(both.expect("a URL"), "http://127.0.0.1:8080/");
        assert_eq!(url(None, Some("127.0.0.1:8443")).await.expect("a URL"), "https://127.0.0.1:8443/");
    }

    #[tokio::test]
    async fn errors_say_what_to_mend() {
        let missing =
            KubernetesConfig { kubeconfig: Some("/nonexistent/config".into()), ..KubernetesConfig::default() };
        let text = client_config(&missing).await.expect_err("no such file").to_string();
        assert!(text.contains("/nonexistent/config"), "{text}");
        let text = url(None, None).await.expect_err("not in a pod");
        assert!(text.contains("--kubeconfig"), "{text}");
        assert!(url(None, Some("http://")).await.expect_err("no URL").contains("http://"));
    }
}
