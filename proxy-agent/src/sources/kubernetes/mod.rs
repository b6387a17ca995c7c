//! A Kubernetes API server as a source: watches of Services, EndpointSlices, the own Node and its Pods, and ServiceCIDRs.
//!
//! Called by the agent's main: [`connect`] makes the client, [`watch`] runs for as long as the agent does.
//! Objects are reduced when they arrive and not kept here, only their names.

mod access;
mod client;
mod follow;
#[cfg(test)]
pub(crate) mod heard;
mod items;
mod listing;
mod pace;
mod tolerant;
mod watched;

use kube::Client;
use tokio::{sync::mpsc, time};

pub use access::{Asked, asked};
pub use client::{ConnectError, KubernetesConfig, WATCH_TIMEOUT_S, Wanted, connect};

use self::{
    follow::{FollowError, Server},
    listing::Listing,
    pace::Pace,
    tolerant::Tolerant,
    watched::Watched,
};
use super::{ReceiverGone, Warnings};
use crate::{
    ingest::{Interner, Reduced},
    model::{EndpointSlice, Event, Node, Pod, Service, ServiceCidr},
};

/// HTTP 403 and 404: we may not list this kind, or the server has none of it.
const REFUSED: [u16; 2] = [403, 404];
/// Sends every object and change until the receiver of the events is gone. Errors of the API server are
/// warnings: the watches are resumed with growing pauses, and what was sent before stays valid.
pub async fn watch(
    client: Client,
    node_name: &str,
    wanted: &Wanted,
    events: mpsc::Sender<Event>,
) -> Result<(), ReceiverGone> {
    let timeout = wanted.watch_timeout_s;
    tokio::try_join!(
        watch_kind::<Service>(&client, node_name, timeout, &events),
        watch_kind::<EndpointSlice>(&client, node_name, timeout, &events),
        watch_kind::<Node>(&client, node_name, timeout, &events),
        watch_wanted::<Pod>(wanted.pods, &client, node_name, timeout, &events),
        watch_wanted::<ServiceCidr>(wanted.service_cidrs, &client, node_name, timeout, &events),
    )?;
    Ok(())
}

/// Nobody waits for a kind that is not wanted.
async fn watch_wanted<T: Watched>(
    wanted: bool,
    client: &Client,
    node_name: &str,
    timeout: u32,
    events: &mpsc::Sender<Event>,
) -> Result<(), ReceiverGone> {
    if wanted {
        return watch_kind::<T>(client, node_name, timeout, events).await;
    }
    events.send(Event::Synced(T::SOURCE)).await.map_err(|_| ReceiverGone)
}

async fn watch_kind<T: Watched>(
    client: &Client,
    node_name: &str,
    timeout: u32,
    events: &mpsc::Sender<Event>,
) -> Result<(), ReceiverGone> {
    let server = Server { client: client.clone(), selection: T::selection(node_name), watch_timeout_s: timeout };
    let mut watch = Watch::<T>::new(events, Pace::default());
    tokio::select! {
        () = events.closed() => Err(ReceiverGone),
        gone = watch.follow(&server) => Err(gone),
    }
}

/// The watch of one kind of object: what becomes of what it hears. How it hears is in [`follow`].
struct Watch<'a, T: Watched> {
    events: &'a mpsc::Sender<Event>,
    listing: Listing<T>,
    names: Interner,
    warnings: Warnings,
    pace: Pace,
    /// The server said that it has none of this kind, or not for us; told once.
    refused: bool,
}

impl<T: Watched> Watch<'_, T> {
    fn new(events: &mpsc::Sender<Event>, pace: Pace) -> Watch<'_, T> {
        Watch {
            events,
            listing: Listing::default(),
            names: Interner::default(),
            warnings: Warnings::default(),
            pace,
            refused: false,
        }
    }

    /// A list begins.
    fn begin(&mut self) {
        self.listing.begin();
    }

    /// A list is complete.
    async fn listed(&mut self) -> Result<(), ReceiverGone> {
        self.refused = false;
        for change in self.listing.finish() {
            self.send(T::event(change)).await?;
        }
        self.send(Event::Synced(T::SOURCE)).await
    }

    async fn delete(&mut self, object: &Tolerant<T>) -> Result<(), ReceiverGone> {
        match T::key_of(&object.metadata).and_then(|key| self.listing.delete(key)) {
            Some(change) => self.send(T::event(change)).await,
            None => Ok(()),
        }
    }

    /// Says so and waits.
    async fn list_failed(&mut self, error: FollowError) -> Result<(), ReceiverGone> {
        match error.refusal() {
            Some(status) if T::OPTIONAL && REFUSED.contains(&status.code) => self.do_without(&status.message).await?,
            _ => {
                let text = chain(&error);
                self.warnings
                    .warn(format_args!("listing {}: {text}; trying again, the last state stays in use", T::KIND));
            }
        }
        time::sleep(self.pace.next()).await;
        Ok(())
    }

    /// Says so and waits.
    async fn watch_failed(&mut self, error: &FollowError, list: bool) {
        let text = chain(error);
        let next = if list { "listing again" } else { "resuming" };
        match error.is_expiry() {
            true => tracing::info!("watching {}: {text}; {next}", T::KIND),
            false => {
                self.warnings.warn(format_args!("watching {}: {text}; {next}, the last state stays in use", T::KIND));
            }
        }
        time::sleep(self.pace.next()).await;
    }

    /// What depends on this kind is missing, everything else works. The listing is tried again, less and less often.
    async fn do_without(&mut self, message: &str) -> Result<(), ReceiverGone> {
        if std::mem::replace(&mut self.refused, true) {
            return Ok(());
        }
        tracing::warn!("listing {}: {message}; going on without: {}", T::KIND, T::MISSING);
        self.send(Event::Synced(T::SOURCE)).await
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
