//! A Kubernetes API server as a source: watches of Services, EndpointSlices, the own Node and its Pods, and ServiceCIDRs.
//!
//! Called by the agent's main: [`connect`] makes the client, [`watch`] runs for as long as the agent does.
//! Objects are reduced when they arrive and not kept here, only their names.

mod access;
mod client;
#[cfg(test)]
pub(crate) mod heard;
mod listing;
mod tolerant;
mod watched;

use std::{pin::pin, time::Duration};

use futures::StreamExt;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use tokio::{sync::mpsc, time};

pub use access::{Asked, asked};
pub use client::{ConnectError, KubernetesConfig, Wanted, connect};

use self::{listing::Listing, tolerant::Tolerant, watched::Watched};
use super::{ReceiverGone, Warnings};
use crate::{
    ingest::{Interner, Reduced},
    model::{EndpointSlice, Event, Node, Pod, Service, ServiceCidr},
};

/// HTTP 403 and 404: we may not list this kind, or the server has none of it.
const REFUSED: [u16; 2] = [403, 404];
/// HTTP 410: the resource version is older than what the server remembers.
const GONE: u16 = 410;
/// Before a watch that could not even start is begun anew with a listing.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Sends every object and change until the receiver of the events is gone. Errors of the API server are
/// warnings: the watches are resumed with growing pauses, and what was sent before stays valid.
pub async fn watch(
    client: Client,
    node_name: &str,
    wanted: &Wanted,
    events: mpsc::Sender<Event>,
) -> Result<(), ReceiverGone> {
    tokio::try_join!(
        watch_kind::<Service>(&client, node_name, &events),
        watch_kind::<EndpointSlice>(&client, node_name, &events),
        watch_kind::<Node>(&client, node_name, &events),
        watch_wanted::<Pod>(wanted.pods, &client, node_name, &events),
        watch_wanted::<ServiceCidr>(wanted.service_cidrs, &client, node_name, &events),
    )?;
    Ok(())
}

/// Nobody waits for a kind that is not wanted.
async fn watch_wanted<T: Watched>(
    wanted: bool,
    client: &Client,
    node_name: &str,
    events: &mpsc::Sender<Event>,
) -> Result<(), ReceiverGone> {
    if wanted {
        return watch_kind::<T>(client, node_name, events).await;
    }
    events.send(Event::Synced(T::SOURCE)).await.map_err(|_| ReceiverGone)
}

/// How one watch came to an end that it does not recover from by itself.
enum End {
    Expired,
    Receiver(ReceiverGone),
}

async fn watch_kind<T: Watched>(
    client: &Client,
    node_name: &str,
    events: &mpsc::Sender<Event>,
) -> Result<(), ReceiverGone> {
    let mut watch = Watch::<T> {
        events,
        listing: Listing::default(),
        names: Interner::default(),
        warnings: Warnings::default(),
        refused: false,
    };
    loop {
        tokio::select! {
            () = events.closed() => return Err(ReceiverGone),
            end = watch.run(Api::all(client.clone()), T::selection(node_name)) => match end {
                End::Expired => time::sleep(RESTART_PAUSE).await,
                End::Receiver(gone) => return Err(gone),
            },
        }
    }
}

/// The watch of one kind of object.
struct Watch<'a, T: Watched> {
    events: &'a mpsc::Sender<Event>,
    listing: Listing<T>,
    names: Interner,
    warnings: Warnings,
    /// The server said that it has none of this kind, or not for us; told once.
    refused: bool,
}

impl<T: Watched> Watch<'_, T> {
    async fn run(&mut self, api: Api<Tolerant<T>>, selection: watcher::Config) -> End {
        let mut stream = pin!(watcher(api, selection).default_backoff());
        while let Some(result) = stream.next().await {
            match result {
                Ok(event) => {
                    if let Err(gone) = self.take(event).await {
                        return End::Receiver(gone);
                    }
                }
                // The watcher would go on asking for the same version; only a listing helps.
                Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) if status.code == GONE => {
                    return End::Expired;
                }
                // An ordinary event in the life of a watch; the watcher lists again by itself.
                Err(watcher::Error::WatchError(status)) if status.code == GONE => {
                    tracing::info!("watching {}: the server has forgotten our version, listing again", T::KIND);
                }
                Err(watcher::Error::InitialListFailed(kube::Error::Api(status)))
                    if T::OPTIONAL && REFUSED.contains(&status.code) =>
                {
                    if let Err(gone) = self.do_without(&status.message).await {
                        return End::Receiver(gone);
                    }
                }
                Err(error) => {
                    let text = chain(&error);
                    self.warnings
                        .warn(format_args!("watching {}: {text}; retrying, the last state stays in use", T::KIND));
                }
            }
        }
        End::Expired
    }

    /// What depends on this kind is missing, everything else works. The listing is tried again, less and less often.
    async fn do_without(&mut self, message: &str) -> Result<(), ReceiverGone> {
        if std::mem::replace(&mut self.refused, true) {
            return Ok(());
        }
        tracing::warn!("listing {}: {message}; going on without: {}", T::KIND, T::MISSING);
        self.send(Event::Synced(T::SOURCE)).await
    }

    async fn take(&mut self, event: watcher::Event<Tolerant<T>>) -> Result<(), ReceiverGone> {
        match event {
            watcher::Event::Init => self.listing.begin(),
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => return self.apply(object).await,
            watcher::Event::Delete(object) => {
                if let Some(change) = T::key_of(&object.metadata).and_then(|key| self.listing.delete(key)) {
                    self.send(T::event(change)).await?;
                }
            }
            watcher::Event::InitDone => {
                self.refused = false;
                for change in self.listing.finish() {
                    self.send(T::event(change)).await?;
                }
                self.send(Event::Synced(T::SOURCE)).await?;
            }
        }
        Ok(())
    }

    async fn apply(&mut self, object: Tolerant<T>) -> Result<(), ReceiverGone> {
        let Some(key) = T::key_of(&object.metadata) else { return Ok(()) };
        let (change, skips) = match object.object {
            Ok(Reduced { mut value, skips }) => {
                if let Some(value) = &mut value {
                    value.share(&mut self.names);
                }
                (self.listing.apply(key.clone(), value), skips)
            }
            Err(skip) => {
                self.listing.keep(key.clone());
                (None, vec![skip])
            }
        };
        if let Some(change) = change {
            self.send(T::event(change)).await?;
        }
        let news = self.listing.new_skips(key, skips);
        if news.is_empty() {
            return Ok(());
        }
        for skip in &news {
            self.warnings.warn(format_args!("{skip}; this part is left out"));
        }
        self.send(Event::Skipped(news)).await
    }

    async fn send(&self, event: Event) -> Result<(), ReceiverGone> {
        self.events.send(event).await.map_err(|_| ReceiverGone)
    }
}

/// An error with its causes: kube's own texts name the operation, and only their sources the reason.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Several of kube's errors repeat their source in their own text.
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
