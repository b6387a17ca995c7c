//! Between the main loop and the thread that ends sockets: endpoints that left go to it, and what it could not do comes back.

use std::{path::Path, time::Instant};

use anyhow::Context as _;
use proxy_common::abi::SocketEnding;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::state::State;
use crate::{
    dataplane::Dataplane,
    sockets::{Ender, News, SocketsConfig},
};

pub(super) struct Sockets {
    /// `None`: switched off.
    ender: Option<Ender>,
    news: UnboundedReceiver<News>,
}

impl Sockets {
    pub(super) fn start<D: Dataplane>(
        config: SocketsConfig,
        pins: &Path,
        state: &mut State<D>,
    ) -> anyhow::Result<Self> {
        let (sender, news) = unbounded_channel();
        if !config.destroy {
            tracing::info!("connected UDP sockets of endpoints that leave: not ended, their packets are steered anew");
            state.set_socket_ending(SocketEnding::Off, Instant::now());
            return Ok(Self { ender: None, news });
        }
        let ender = Ender::start(config, pins, sender).context("start the thread that ends sockets")?;
        Ok(Self { ender: Some(ender), news })
    }

    /// `None` for ever once there is no thread.
    pub(super) async fn news(&mut self) -> Option<News> {
        self.news.recv().await
    }

    pub(super) fn take_over<D: Dataplane>(&self, news: News, state: &mut State<D>) {
        match news {
            News::Ability { ending, why } => {
                state.set_socket_ending(ending, Instant::now());
                tell(ending, why.as_deref().unwrap_or_default());
            }
            News::Incomplete(endpoints) => state.steer_vanished(&endpoints, Instant::now()),
        }
    }

    /// After everything that may have written to the maps.
    pub(super) fn end_retired<D: Dataplane>(&self, state: &mut State<D>) {
        let retired = state.take_retired();
        if retired.is_empty() {
            return;
        }
        tracing::debug!(endpoints = ?retired, "UDP endpoints left");
        match &self.ender {
            Some(ender) => ender.end_sockets_of(retired),
            None => state.steer_vanished(&retired, Instant::now()),
        }
    }
}

fn tell(ending: SocketEnding, why: &str) {
    match ending {
        SocketEnding::On => tracing::info!("connected UDP sockets of endpoints that leave: ended with an error"),
        SocketEnding::OwnNamespaceOnly => tracing::warn!(
            "connected UDP sockets of endpoints that leave: ended on the node itself only, packets of others are steered \
             anew: {why} (docs/privileges.md)"
        ),
        _ => tracing::warn!(
            "connected UDP sockets of endpoints that leave: not ended, their packets are steered anew: {why} \
             (docs/privileges.md)"
        ),
    }
}
