//! An end that leaves nobody without an answer. Sockets that share a port form a group; before one of them is closed, new
//! connections are steered to the other, and those that have come are served.

use std::{io, net::SocketAddr, os::fd::AsRawFd as _, time::Duration};

use axum::{Router, serve::Listener};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

/// Handshakes that are under way when the others are steered elsewhere end within this time.
const HANDSHAKES: Duration = Duration::from_millis(100);
/// How long answers that are under way may take.
const LINGER: Duration = Duration::from_secs(1);
/// Pause after an accept that failed for want of something.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

struct Draining {
    listener: TcpListener,
    /// Which socket of the group gets new connections at the end.
    other: Box<dyn Fn() -> u32 + Send + Sync>,
    close_at: Option<Instant>,
    end: watch::Receiver<bool>,
    drained: watch::Sender<bool>,
}

impl Listener for Draining {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        let Self { listener, other, close_at, end, drained } = self;
        let over = async {
            ended(end).await;
            let steer = || {
                steer_to(listener, other());
                Instant::now() + HANDSHAKES
            };
            sleep_until(*close_at.get_or_insert_with(steer)).await;
        };
        tokio::select! {
            biased;
            accepted = accept(listener) => accepted,
            // The queue is empty.
            () = over => {
                drained.send_replace(true);
                std::future::pending().await
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(_) => sleep(ACCEPT_AGAIN).await,
        }
    }
}

async fn ended(end: &mut watch::Receiver<bool>) {
    let _ = end.wait_for(|end| *end).await;
}

/// Serves until `end` says true or its sender is gone, and then those who wait in the queue.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    end: watch::Receiver<bool>,
    other: impl Fn() -> u32 + Send + Sync + 'static,
) -> io::Result<()> {
    let drained = watch::Sender::new(false);
    let mut empty = drained.subscribe();
    let listener = Draining { listener, other: Box::new(other), close_at: None, end: end.clone(), drained };
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
        let _ = empty.wait_for(|drained| *drained).await;
    });
    let mut end = end;
    let limit = async move {
        ended(&mut end).await;
        sleep(HANDSHAKES + LINGER).await;
    };
    tokio::select! {
        result = std::future::IntoFuture::into_future(serving) => result,
        () = limit => Ok(()),
    }
}

/// New connections to the group go to its socket of this number. Without such a socket the kernel chooses as ever. A failure costs
/// those who connect in the moment of the end.
fn steer_to(listener: &TcpListener, number: u32) {
    let mut instruction = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: number };
    let program = libc::sock_fprog { len: 1, filter: &raw mut instruction };
    // SAFETY: the option takes a `sock_fprog` of this size, whose one instruction outlives the call.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "new connections are not steered to another agent");
    }
}

/// Waits for tasks that serve, which were told to end.
pub(super) async fn wait_for(tasks: impl IntoIterator<Item = tokio::task::JoinHandle<()>>) {
    for task in tasks {
        let abort = task.abort_handle();
        if timeout((HANDSHAKES + LINGER) * 2, task).await.is_err() {
            abort.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn who_has_connected_is_served() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", axum::routing::any(async || "here"));
        let end = watch::Sender::new(false);
        let mut client = TcpStream::connect(address).await.unwrap();
        // The connection waits in the queue: nobody has accepted yet.
        end.send_replace(true);
        let serving = tokio::spawn(serve(listener, router, end.subscribe(), || 1));
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
        serving.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn the_other_socket_gets_what_is_new() {
        let listen = |address: &str| super::super::listener::listen(address.parse().unwrap()).unwrap();
        let first = listen("127.0.0.1:0");
        let address = first.local_addr().unwrap();
        let second = listen(&address.to_string());
        for (number, chosen, other) in [(1, &second, &first), (0, &first, &second), (1, &second, &first)] {
            steer_to(&first, number);
            for _ in 0..20 {
                let _client = TcpStream::connect(address).await.unwrap();
                tokio::select! {
                    biased;
                    accepted = chosen.accept() => drop(accepted.unwrap()),
                    _ = other.accept() => panic!("socket {number} was not chosen"),
                }
            }
        }
        drop(second);
        // Nobody has the number any more.
        let _client = TcpStream::connect(address).await.unwrap();
        first.accept().await.unwrap();
    }
}
