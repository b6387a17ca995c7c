//! HTTPS in front of the double, as a pod sees a real API server: a certificate of the cluster's own CA, and a bearer token
//! that every request must carry.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
};

use anyhow::{Context, Result};
use axum::{
    extract::Request,
    http::{StatusCode, header::AUTHORIZATION},
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivatePkcs8KeyDer},
    server::TlsStream,
};

use super::{ApiServer, respond};

/// A CA, a certificate that it signed, and a token; new for each run.
pub struct Tls {
    /// For `ca.crt`.
    pub ca: String,
    pub token: &'static str,
    acceptor: TlsAcceptor,
}

impl Tls {
    /// For a server that is called by one of these names or addresses.
    pub fn new(names: &[&str]) -> Result<Self> {
        let ca_key = KeyPair::generate().context("key")?;
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).context("CA")?.pem();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let key = KeyPair::generate().context("key")?;
        let issuer = Issuer::new(ca, ca_key);
        let certificate =
            CertificateParams::new(names).context("names")?.signed_by(&key, &issuer).context("certificate")?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("TLS versions")?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .context("certificate")?;
        Ok(Self { ca: ca_pem, token: "token-of-the-service-account", acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}

impl ApiServer {
    /// The same objects by HTTPS on one more listener, for as long as the runtime lives.
    pub fn serve_tls(&self, listener: StdListener, tls: &Tls) -> Result<()> {
        listener.set_nonblocking(true).context("the listener")?;
        let inner = TcpListener::from_std(listener).context("the listener")?;
        let listener = TlsListener { inner, acceptor: tls.acceptor.clone() };
        let wanted = format!("Bearer {}", tls.token);
        let check = from_fn(move |request: Request, next: Next| authenticated(wanted.clone(), request, next));
        let router = respond::router(Arc::clone(&self.shared)).layer(check);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(())
    }
}

async fn authenticated(wanted: String, request: Request, next: Next) -> Response {
    match request.headers().get(AUTHORIZATION) {
        Some(value) if value.as_bytes() == wanted.as_bytes() => next.run(request).await,
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

struct TlsListener {
    inner: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    /// Handshakes one after the other: there is one client.
    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = axum::serve::Listener::accept(&mut self.inner).await;
            match self.acceptor.accept(stream).await {
                Ok(stream) => return (stream, address),
                Err(error) => tracing::debug!(%address, %error, "TLS handshake"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}
