//! `weir log-level`: asks the running agent for its level, or to change it, by an abstract Unix socket in the node's network
//! namespace. Such a socket leaves no file behind; only root is answered. The agent's main starts [`serve`].

use std::{
    io::{Read as _, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream},
        },
    },
    path::Path,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};

/// In front of the directory of the pins, of which a node may have several.
const NAME: &[u8] = b"weir/log";
/// Bytes of a Unix socket's name, without the zero in front (sun_path of unix(7)).
const NAME_LEN: usize = 107;
/// Longest question.
const QUESTION_LEN: u64 = 1024;
const PATIENCE: Duration = Duration::from_secs(5);
/// A standby has to wait for the name.
const BIND_PAUSE: Duration = Duration::from_secs(1);
const REPORT_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no agent runs here with this pin root: {0}")]
    NoAgent(#[source] std::io::Error),
    #[error("asking the agent: {0}")]
    Io(#[from] std::io::Error),
    #[error("the agent says: {0}")]
    Refused(String),
}

/// Answers questions, and says each minute how many lines were withheld. Ends with its task.
pub async fn serve(pin_root: std::path::PathBuf) {
    tokio::join!(answer_all(&pin_root), report());
}

async fn report() {
    loop {
        sleep(REPORT_PAUSE).await;
        super::tell_withheld();
    }
}

async fn answer_all(pin_root: &Path) {
    let listener = loop {
        match bind(pin_root) {
            Ok(listener) => break listener,
            Err(error) => tracing::debug!("`weir log-level` has to wait: {error}"),
        }
        sleep(BIND_PAUSE).await;
    };
    loop {
        match listener.accept().await {
            // One after the other: nobody asks often.
            Ok((mut stream, _)) => {
                if let Ok(Err(error)) = timeout(PATIENCE, answer(&mut stream)).await {
                    tracing::debug!("`weir log-level`: {error}");
                }
            }
            Err(_) => sleep(BIND_PAUSE).await,
        }
    }
}

async fn answer(stream: &mut UnixStream) -> std::io::Result<()> {
    if stream.peer_cred()?.uid() != 0 {
        return stream.write_all(b"error only root may ask\n").await;
    }
    let mut question = String::new();
    stream.take(QUESTION_LEN).read_to_string(&mut question).await?;
    let answer = match question.trim() {
        "" => super::level().map(|level| format!("{level}\n")),
        wanted => super::set_level(wanted).map(|before| {
            tracing::info!(before, now = wanted, "the log level was changed");
            format!("{before} -> {wanted}\n")
        }),
    };
    let text = answer.map_or_else(|error| format!("error {error}\n"), |text| format!("ok {text}"));
    stream.write_all(text.as_bytes()).await
}

/// Sends a level, or nothing to ask for the present one. Returns the answer.
pub fn ask(pin_root: &Path, level: Option<&str>) -> Result<String, ControlError> {
    let mut stream = StdStream::connect_addr(&address(pin_root)?).map_err(ControlError::NoAgent)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(level.unwrap_or_default().as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.trim().split_once(' ') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some(("error", text)) => Err(ControlError::Refused(text.to_owned())),
        _ => Err(ControlError::Refused(answer)),
    }
}

fn bind(pin_root: &Path) -> std::io::Result<UnixListener> {
    let listener = StdListener::bind_addr(&address(pin_root)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn address(pin_root: &Path) -> std::io::Result<SocketAddr> {
    let mut name = [NAME, pin_root.as_os_str().as_bytes()].concat();
    name.truncate(NAME_LEN);
    SocketAddr::from_abstract_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_agent() {
        let error = ask(Path::new("/nonexistent/weir"), None).expect_err("nobody is there").to_string();
        assert!(error.starts_with("no agent runs here"), "{error}");
    }
}
