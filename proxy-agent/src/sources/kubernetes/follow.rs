//! The list and watch protocol for one kind of object. `kube::runtime::watcher` is not used: it keeps the stream after a line that it
//! could not read, never asks whether a version went backwards, and starts its pauses anew with each attempt to list.

use std::{
    io,
    time::{Duration, Instant},
};

use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use kube::{
    Client, Resource as _,
    api::{ListParams, VersionMatch, WatchEvent, WatchParams},
    core::{Request, Status},
};
use tokio::time;

use super::{
    Watch,
    items::Items,
    tolerant::Tolerant,
    watched::{Selection, Watched},
};
use crate::sources::ReceiverGone;

/// HTTP 410: the resource version is older than what the server remembers.
const GONE: u16 = 410;
/// The cause by which a server says that it is behind our version.
const TOO_LARGE: &str = "ResourceVersionTooLarge";
/// Refusals that say nothing about the version: not logged in, not allowed, slow, too many.
const NOT_THE_VERSION: [u16; 4] = [401, 403, 408, 429];
/// A server ends a watch after its time; if nothing came for so much longer, the connection is dead.
const GRACE: Duration = Duration::from_secs(5);
/// A list that stands still for so long is given up.
const LIST_SILENCE: Duration = Duration::from_secs(60);
/// A watch that lived for so long was a good one, even if nothing happened.
const GOOD_WATCH: Duration = Duration::from_secs(2);

/// Where to ask, and for what.
pub(super) struct Server {
    pub(super) client: Client,
    pub(super) selection: Selection,
    pub(super) watch_timeout_s: u32,
}

/// From which state a server may list.
#[derive(Clone, Debug, PartialEq, Eq)]
enum From {
    /// Any that it has at hand: a thousand nodes that list at once are spared the quorum read. No limit: servers
    /// before 1.34 read pages from etcd.
    Cache,
    /// Not back in time, as another replica could be behind.
    NotOlderThan(String),
    /// The version that we knew is no use any more.
    Newest,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum FollowError {
    #[error(transparent)]
    Request(#[from] kube::Error),
    #[error("reading a list: {0}")]
    Read(#[from] io::Error),
    #[error("what came is no list of objects: {0}")]
    NoList(#[from] serde_json::Error),
    #[error("the list stands still")]
    ListSilent,
    #[error("nothing came for {0} s: the connection is dead")]
    WatchSilent(u64),
    #[error("the server says: {} ({})", .0.message, .0.code)]
    Told(Box<Status>),
    #[error("the server is at version {got}, and was at {known} before: it was restored, or another one answers")]
    Backwards { known: String, got: String },
    #[error("the server ends each watch at once")]
    EndsAtOnce,
}

/// Why a step did not come to its end.
pub(super) enum Stop {
    Receiver(ReceiverGone),
    Failed(FollowError),
}

impl<E: Into<FollowError>> std::convert::From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

impl FollowError {
    /// Only a list helps: what has changed since our version is lost to us.
    fn is_about_version(&self) -> bool {
        match self {
            FollowError::Request(kube::Error::Api(status)) | FollowError::Told(status) => {
                let too_large = status.details.iter().flat_map(|it| &it.causes).any(|it| it.reason == TOO_LARGE);
                too_large || ((400..500).contains(&status.code) && !NOT_THE_VERSION.contains(&status.code))
            }
            FollowError::Backwards { .. } => true,
            _ => false,
        }
    }

    /// An ordinary event in the life of a watch.
    pub(super) fn is_expiry(&self) -> bool {
        matches!(self, FollowError::Request(kube::Error::Api(status)) | FollowError::Told(status) if status.code == GONE)
    }

    /// The status with which a request was refused.
    pub(super) fn refusal(&self) -> Option<&Status> {
        match self {
            FollowError::Request(kube::Error::Api(status)) => Some(status),
            _ => None,
        }
    }
}

impl<T: Watched> Watch<'_, T> {
    /// Lists and watches for ever.
    pub(super) async fn follow(&mut self, server: &Server) -> ReceiverGone {
        let mut from = From::Cache;
        loop {
            let version = match self.list(server, &from).await {
                Ok(version) => version,
                Err(Stop::Receiver(gone)) => return gone,
                Err(Stop::Failed(error)) => {
                    if error.is_about_version() && from != From::Cache {
                        from = From::Newest;
                    }
                    match self.list_failed(error).await {
                        Ok(()) => continue,
                        Err(gone) => return gone,
                    }
                }
            };
            from = match self.watch(server, version).await {
                Ok(from) => from,
                Err(gone) => return gone,
            };
        }
    }

    #[cfg(test)]
    pub(super) async fn list_once(&mut self, server: &Server) -> Result<String, Stop> {
        self.list(server, &From::Cache).await
    }

    /// Takes over what there is. Returns its version.
    async fn list(&mut self, server: &Server, from: &From) -> Result<String, Stop> {
        let request = Request::new(T::Object::url_path(&(), None)).list(&server.list_params(from));
        let request = request.map_err(kube::Error::BuildRequest)?;
        let mut stream = Box::pin(server.client.request_stream(request).await?);
        self.begin();
        let (mut items, mut found) = (Items::default(), Vec::new());
        loop {
            let bytes = time::timeout(LIST_SILENCE, stream.fill_buf()).await.map_err(|_| FollowError::ListSilent)??;
            if bytes.is_empty() {
                break;
            }
            items.push(bytes, |object| serde_json::from_slice(object).map(|it| found.push(it)))?;
            let length = bytes.len();
            stream.consume_unpin(length);
            for object in found.drain(..) {
                self.apply(object).await.map_err(Stop::Receiver)?;
            }
        }
        let version = items.finish()?;
        self.listed().await.map_err(Stop::Receiver)?;
        Ok(version)
    }

    /// Watches, and resumes watching, until only a list helps: then from where.
    async fn watch(&mut self, server: &Server, mut version: String) -> Result<From, ReceiverGone> {
        loop {
            let (started, before) = (Instant::now(), version.clone());
            let result = self.watch_once(server, &mut version).await;
            let good = version != before || started.elapsed() >= GOOD_WATCH;
            if good {
                self.pace.reset();
            }
            let error = match result {
                Ok(()) if good => continue,
                Ok(()) => FollowError::EndsAtOnce,
                Err(Stop::Receiver(gone)) => return Err(gone),
                Err(Stop::Failed(error)) => error,
            };
            let list = error.is_about_version();
            let back = matches!(error, FollowError::Backwards { .. });
            self.watch_failed(&error, list).await;
            if list {
                return Ok(if back { From::Newest } else { From::NotOlderThan(version) });
            }
        }
    }

    /// One watch, until the server ends it in good order.
    async fn watch_once(&mut self, server: &Server, version: &mut String) -> Result<(), Stop> {
        let params = server.watch_params();
        let request = Request::new(T::Object::url_path(&(), None)).watch(&params, version);
        let request = request.map_err(kube::Error::BuildRequest)?;
        let mut stream = Box::pin(server.client.request_events::<Tolerant<T>>(request).await?);
        let silence = Duration::from_secs(server.watch_timeout_s.into()) + GRACE;
        loop {
            let line = time::timeout(silence, stream.try_next()).await;
            let Some(event) = line.map_err(|_| FollowError::WatchSilent(silence.as_secs()))?? else { return Ok(()) };
            let seen = match &event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
                    object.metadata.resource_version.clone()
                }
                WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version.clone()),
                WatchEvent::Error(_) => None,
            };
            if let Some(got) = seen.as_ref().filter(|got| is_older(got, version)) {
                return Err(FollowError::Backwards { known: version.clone(), got: got.clone() }.into());
            }
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => self.apply(object).await,
                WatchEvent::Deleted(object) => self.delete(&object).await,
                WatchEvent::Bookmark(_) => Ok(()),
                WatchEvent::Error(status) => return Err(FollowError::Told(status).into()),
            }
            .map_err(Stop::Receiver)?;
            if let Some(seen) = seen.filter(|it| !it.is_empty()) {
                *version = seen;
            }
        }
    }
}

impl Server {
    fn list_params(&self, from: &From) -> ListParams {
        let (version, version_match) = match from {
            From::Cache => (Some("0".to_owned()), Some(VersionMatch::NotOlderThan)),
            From::NotOlderThan(version) => (Some(version.clone()), Some(VersionMatch::NotOlderThan)),
            From::Newest => (None, None),
        };
        ListParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            resource_version: version,
            version_match,
            ..ListParams::default()
        }
    }

    fn watch_params(&self) -> WatchParams {
        WatchParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            timeout: Some(self.watch_timeout_s),
            bookmarks: true,
            send_initial_events: false,
        }
    }
}

/// Versions of one kind of object are numbers that grow (KEP-5504); what is no number is not judged.
fn is_older(version: &str, than: &str) -> bool {
    matches!((version.parse::<u64>(), than.parse::<u64>()), (Ok(version), Ok(than)) if version < than)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_older("9", "10") && !is_older("10", "9") && !is_older("10", "10"));
        assert!(!is_older("", "10") && !is_older("a", "10"));
    }

    #[test]
    fn which_refusals_need_a_list() {
        let told = |code| FollowError::Told(Status::failure("", "").with_code(code).boxed());
        for code in [400, 404, 410, 422] {
            assert!(told(code).is_about_version(), "{code}");
        }
        for code in [401, 403, 429, 500, 503, 504] {
            assert!(!told(code).is_about_version(), "{code}");
        }
    }
}
