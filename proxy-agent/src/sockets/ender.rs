//! [`Ender`]: a thread that ends the sockets of endpoints that left. It works beside the reconciler: retired endpoints are
//! collected while it looks through the namespaces, and it rests as long as it worked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use proxy_common::abi::{Reason, SocketEnding};
use tokio::sync::mpsc::UnboundedSender;

use super::{
    SocketsConfig,
    choice::{PinnedTables, is_stale},
    diag::{Diag, DiagError, SocketFamily},
    namespaces::{Namespace, Namespaces},
    probe::{Ability, probe, seen},
};

/// A socket may have been on its way through `connect()` when its endpoint left: each is looked for once more after this time.
const SECOND_LOOK: Duration = Duration::from_millis(300);
const LONGEST_REST: Duration = Duration::from_millis(250);
/// At most one line of the log in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What the thread says.
#[derive(Debug)]
pub enum News {
    /// What is possible; at the start and whenever it changes.
    Ability { ending: SocketEnding, why: Option<String> },
    /// Sockets of these endpoints may be left, because not every namespace could be looked through.
    Incomplete(Vec<SocketAddr>),
}

/// The thread's owner. It ends when this is dropped.
pub struct Ender(Sender<Vec<SocketAddr>>);

impl Ender {
    /// `pins` is the directory of the pinned maps. To be called in the node's network namespace.
    pub fn start(config: SocketsConfig, pins: &Path, news: UnboundedSender<News>) -> std::io::Result<Self> {
        let (sender, retired) = mpsc::channel();
        let pins = pins.to_owned();
        thread::Builder::new().name("sockets".into()).spawn(move || run(&config, &pins, &retired, news))?;
        Ok(Self(sender))
    }

    /// Returns at once. These endpoints stopped serving; sockets that were connected after one of them came back are spared.
    pub fn end_sockets_of(&self, retired: Vec<SocketAddr>) {
        // Fails after a panic of the thread only, which has been reported then.
        let _ = self.0.send(retired);
    }
}

/// What one look through the namespaces did, or several since the last line of the log.
#[derive(Debug, Default)]
struct Tally {
    ended: u64,
    failed: u64,
    /// Other namespaces that were looked through.
    entered: u64,
    unreachable: u64,
    /// The first error.
    error: Option<String>,
}

struct Work {
    namespaces: Namespaces,
    tables: PinnedTables,
    ending: SocketEnding,
    news: UnboundedSender<News>,
}

fn run(config: &SocketsConfig, pins: &Path, retired: &Receiver<Vec<SocketAddr>>, news: UnboundedSender<News>) {
    let started = Namespaces::new(config)
        .map_err(|error| error.to_string())
        .and_then(|namespaces| Ok((namespaces, PinnedTables::open(pins).map_err(|error| error.to_string())?)));
    match started {
        Ok((namespaces, tables)) => {
            let Ability { ending, why } = probe(&namespaces);
            send(&news, News::Ability { ending, why });
            Work { namespaces, tables, ending, news }.run(retired);
        }
        Err(why) => {
            send(&news, News::Ability { ending: SocketEnding::NotPermitted, why: Some(why) });
            retired.iter().for_each(|backends| send(&news, News::Incomplete(backends)));
        }
    }
}

impl Work {
    fn run(&mut self, retired: &Receiver<Vec<SocketAddr>>) {
        // Until when each is looked for.
        let mut wanted: BTreeMap<SocketAddr, Instant> = BTreeMap::new();
        let mut log = Log { tally: Tally::default(), not_before: Instant::now() };
        loop {
            let wake = wanted.values().copied().chain(log.due()).min();
            let Ok(mut fresh) = wait(retired, wake) else { return };
            fresh.extend(retired.try_iter().flatten());
            let start = Instant::now();
            wanted.extend(fresh.iter().map(|backend| (*backend, start + SECOND_LOOK)));
            if !fresh.is_empty() || wanted.values().any(|until| *until <= start) {
                let tally = self.look(&wanted.keys().copied().collect());
                self.tell(&tally, fresh);
                log.add(tally);
                wanted.retain(|_, until| *until > start);
                thread::sleep(start.elapsed().min(LONGEST_REST));
            }
            log.write(Instant::now());
        }
    }

    fn tell(&mut self, tally: &Tally, fresh: Vec<SocketAddr>) {
        let incomplete = tally.failed + tally.unreachable > 0 || self.ending != SocketEnding::On;
        if incomplete && !fresh.is_empty() {
            send(&self.news, News::Incomplete(fresh));
        }
        for (reason, more) in [(Reason::SockEnded, tally.ended), (Reason::SockNotEnded, tally.failed)] {
            if let Err(error) = self.tables.count(reason, more) {
                tracing::warn!("{error}");
            }
        }
    }

    /// Ends the sockets of these endpoints in every namespace.
    fn look(&mut self, backends: &BTreeSet<SocketAddr>) -> Tally {
        let mut tally = Tally::default();
        if matches!(self.ending, SocketEnding::NotPermitted | SocketEnding::NotSupported) {
            return tally;
        }
        self.look_into(None, backends, &mut tally);
        let others = self.namespaces.others();
        others.errors.iter().for_each(|error| tally.unreachable(error));
        others.found.iter().for_each(|namespace| self.look_into(Some(namespace), backends, &mut tally));
        if let Err(error) = self.namespaces.own().enter() {
            tally.unreachable(error);
        }
        let now = match (&tally.error, tally.entered) {
            (Some(error), 0) if !others.found.is_empty() => Ability::own_namespace_only(error),
            _ => seen(others.found.len()),
        };
        if now.ending != self.ending {
            self.ending = now.ending;
            send(&self.news, News::Ability { ending: now.ending, why: now.why });
        }
        tally
    }

    /// `None`: the own one, in which the thread is at the beginning.
    fn look_into(&self, namespace: Option<&Namespace>, backends: &BTreeSet<SocketAddr>, tally: &mut Tally) {
        if let Some(Err(error)) = namespace.map(Namespace::enter) {
            return tally.unreachable(error);
        }
        match self.end_sockets(backends, tally) {
            Ok(()) => tally.entered += u64::from(namespace.is_some()),
            Err(error) => tally.unreachable(error),
        }
    }

    /// In the namespace where the thread is.
    fn end_sockets(&self, backends: &BTreeSet<SocketAddr>, tally: &mut Tally) -> Result<(), DiagError> {
        let mut diag = Diag::open()?;
        for family in [SocketFamily::V4, SocketFamily::V6] {
            if family == SocketFamily::V4 && backends.iter().all(SocketAddr::is_ipv6) {
                continue;
            }
            let sockets = diag.connected(family)?;
            for socket in sockets.iter().filter(|it| backends.contains(&it.peer())) {
                match is_stale(&self.tables, socket.cookie(), socket.peer()) {
                    Ok(true) => tally.note(diag.destroy(socket)),
                    Ok(false) => {}
                    Err(error) => tally.unreachable(error),
                }
            }
        }
        Ok(())
    }
}

impl Tally {
    fn note(&mut self, result: Result<(), DiagError>) {
        match result {
            Ok(()) => self.ended += 1,
            // Its owner closed it meanwhile.
            Err(DiagError::Refused(error)) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => {
                self.failed += 1;
                self.error.get_or_insert_with(|| error.to_string());
            }
        }
    }

    fn unreachable(&mut self, error: impl ToString) {
        self.unreachable += 1;
        self.error.get_or_insert_with(|| error.to_string());
    }
}

/// What is not in the log yet.
struct Log {
    tally: Tally,
    not_before: Instant,
}

impl Log {
    fn add(&mut self, more: Tally) {
        self.tally.ended += more.ended;
        self.tally.failed += more.failed;
        self.tally.unreachable += more.unreachable;
        self.tally.error = self.tally.error.take().or(more.error);
    }

    fn is_empty(&self) -> bool {
        self.tally.ended + self.tally.failed + self.tally.unreachable == 0
    }

    /// When the next line may be written, if there is one.
    fn due(&self) -> Option<Instant> {
        (!self.is_empty()).then_some(self.not_before)
    }

    fn write(&mut self, now: Instant) {
        if self.due().is_none_or(|due| due > now) {
            return;
        }
        self.not_before = now + LOG_INTERVAL;
        let Tally { ended, failed, unreachable, error, .. } = std::mem::take(&mut self.tally);
        match error {
            None => tracing::info!(ended, "connected UDP sockets of endpoints that left: ended with an error"),
            Some(error) => tracing::warn!(
                ended,
                failed,
                namespaces_not_searched = unreachable,
                "connected UDP sockets of endpoints that left: some may remain, their packets are steered anew: {error}"
            ),
        }
    }
}

/// The queue's other end is gone.
struct Ended;

/// Empty when the time has come.
fn wait(retired: &Receiver<Vec<SocketAddr>>, wake: Option<Instant>) -> Result<Vec<SocketAddr>, Ended> {
    let Some(wake) = wake else { return retired.recv().map_err(|_| Ended) };
    match retired.recv_timeout(wake.saturating_duration_since(Instant::now())) {
        Ok(backends) => Ok(backends),
        Err(RecvTimeoutError::Timeout) => Ok(Vec::new()),
        Err(RecvTimeoutError::Disconnected) => Err(Ended),
    }
}

/// Nobody listens when the main loop has ended; then this thread ends at its next look at the queue.
fn send(news: &UnboundedSender<News>, it: News) {
    let _ = news.send(it);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_has_one_line_in_an_interval() {
        let now = Instant::now();
        let mut log = Log { tally: Tally::default(), not_before: now };
        assert_eq!(log.due(), None, "nothing to say");
        log.add(Tally { ended: 2, ..Tally::default() });
        assert_eq!(log.due(), Some(now));
        log.write(now);
        assert_eq!(log.due(), None, "it is said");
        log.add(Tally { failed: 1, error: Some("first".into()), ..Tally::default() });
        log.add(Tally { ended: 1, error: Some("second".into()), ..Tally::default() });
        log.write(now + Duration::from_secs(1));
        assert_eq!(log.due(), Some(now + LOG_INTERVAL));
        assert_eq!((log.tally.ended, log.tally.failed, log.tally.error.as_deref()), (1, 1, Some("first")));
    }

    #[test]
    fn a_socket_that_is_gone_is_no_failure() {
        let mut tally = Tally::default();
        let refused = |errno| Err(DiagError::Refused(std::io::Error::from_raw_os_error(errno)));
        tally.note(Ok(()));
        tally.note(refused(libc::ENOENT));
        assert_eq!((tally.ended, tally.failed, &tally.error), (1, 0, &None));
        tally.note(refused(libc::EPERM));
        assert_eq!(tally.failed, 1);
    }
}
