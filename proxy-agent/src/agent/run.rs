//! The main loop. Sources and the node's netlink watch send into channels; this loop alone owns the state and the maps.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};

use super::{
    attachment::Attachment,
    config::{AgentConfig, Source},
    loads::LoadWatch,
    lock::{self, Role},
    memory,
    retired::{Look, RetiredWatch},
    sockets::Sockets,
    state::{Settings, State, until},
};
use crate::{
    dataplane::KernelMaps,
    events::Events,
    fault::{self, FaultPoint},
    health::{Health, Question, Servers},
    loader::{self, Attacher, Pins},
    logging,
    metrics::{Metrics, Pass},
    model::Event,
    node::{self, NetChange, NodeView, ports, watch},
    object,
    reconcile::{self, Reconciler},
    sources::{kubernetes, manifests},
    takeover::Adoption,
};

/// Pause after a source or the netlink watch failed.
const RESTART_PAUSE: Duration = Duration::from_secs(2);
/// Events that wait for the main loop; a source that is faster waits.
const QUEUE: usize = 1024;

/// Returns after SIGTERM or SIGINT. Programs and maps stay.
pub async fn run(config: AgentConfig) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut stop = Stop::new()?;
    fault::from_environment()?;
    let object = object::embedded()?;
    node::ensure_bpffs(&config.pin_root).context("prepare the pin root")?;
    let metrics = Metrics::default();
    let role = tokio::sync::watch::Sender::new(Role::default());
    let (health, questions) = Health::new(&config.pin_root, role.subscribe(), metrics.clone());
    let mut servers = Servers::start(config.health.clone(), &health);
    let _lock = tokio::select! {
        lock = lock::acquire(&config.pin_root, &role) => lock?,
        error = servers.fatal() => return Err(error),
        () = stop.wait() => return Ok(()),
    };
    fault::reach(FaultPoint::Locked);
    let (attachment, mut state) = load(&config, object, metrics)?;
    servers.take_over(&Pins::new(&config.pin_root), u32::from(config.snat_ports.last - config.snat_ports.first) + 1);

    let mut tasks = JoinSet::new();
    let (events, event_queue) = mpsc::channel(QUEUE);
    let (changes, change_queue) = mpsc::channel(QUEUE);
    tasks.spawn(follow_node(changes));
    tasks.spawn(logging::control::serve(config.pin_root.clone()));
    let told = match &config.source {
        Source::Kubernetes(kubernetes) => Events::start(kubernetes, &config.node_name, &mut tasks),
        Source::Manifests(_) => Events::off(),
    };
    health.report_to(told.clone());
    state.report_to(told);
    tasks.spawn(follow_source(config.source, config.node_name.clone(), events));
    state.sync_service_cidrs(Instant::now());
    let pins = Pins::new(&config.pin_root);
    let sockets = Sockets::start(config.sockets, pins.dir(), &mut state)?;
    let retired = RetiredWatch::new(pins.dir().to_owned());
    let loads = LoadWatch::new(pins.dir().to_owned());
    let mut main_loop =
        Loop { state, attachment, sockets, retired, loads, health, sync_delay: config.sync_delay, started, due: None };
    tokio::select! {
        () = main_loop.run(event_queue, change_queue, questions, &mut stop) => {}
        error = servers.fatal() => return Err(error),
    }
    tasks.shutdown().await;
    servers.end().await;
    tracing::info!("ended; the dataplane stays as it is (`weir cleanup` removes it)");
    Ok(())
}

/// SIGTERM and SIGINT.
struct Stop {
    term: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { term: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn load(config: &AgentConfig, object: &[u8], metrics: Metrics) -> anyhow::Result<(Attachment, State<KernelMaps>)> {
    let cookie = node::netns_cookie().map_err(loader::LoaderError::Cookie)?;
    let mut kernel_config = loader::config_for(&config.node_name, cookie, config.connect_hooks, config.masquerade_all);
    (kernel_config.snat_first, kernel_config.snat_last) = (config.snat_ports.first, config.snat_ports.last);
    let cgroup = match &config.cgroup_root {
        Some(path) => path.clone(),
        None => node::cgroup2_root()?,
    };
    let pins = Pins::new(&config.pin_root);
    let loaded = loader::load(object, &pins, &kernel_config, &config.capacities)?;
    tracing::info!(node = config.node_name, pins = %pins.dir().display(), "kernel programs loaded");
    if let Err(error) = ports::reserve(pins.dir(), config.snat_ports) {
        tracing::warn!(%error, ports = %config.snat_ports, "not reserved: a socket of the node may take one of our source ports");
    }
    fault::reach(FaultPoint::PortsReserved);
    let maps = KernelMaps::from_pins(pins.dir())?;
    let options = reconcile::Options {
        protected_node_ports: config.protected_ports.clone(),
        maglev_table_size: config.maglev_table_size,
    };
    let reconciler = Reconciler::new(maps, options, Instant::now())?;
    fault::reach(FaultPoint::MapsRead);
    let view = NodeView::new(config.roles.clone(), config.node_ports.clone());
    let settings =
        Settings { external_ranges: config.external_ranges.clone(), service_cidrs: config.service_cidrs.clone() };
    let state = State::new(&config.node_name, view, reconciler, settings, metrics);
    let adoption = Adoption { pin_dir: pins.dir().to_owned(), ports: config.snat_ports };
    let attacher = Attacher::new(loaded.ebpf, pins, config.placement);
    let attachment = Attachment::new(attacher, config.connect_hooks, cgroup, adoption);
    Ok((attachment.with_migration(loaded.migration, loaded.waits_for_sync), state))
}

struct Loop {
    state: State<KernelMaps>,
    attachment: Attachment,
    sockets: Sockets,
    retired: RetiredWatch,
    loads: LoadWatch,
    health: Health,
    sync_delay: Duration,
    started: Instant,
    /// When what was heard is to be written.
    due: Option<Instant>,
}

impl Loop {
    async fn run(
        &mut self,
        mut events: mpsc::Receiver<Event>,
        mut changes: mpsc::Receiver<NetChange>,
        mut questions: mpsc::Receiver<Question>,
        stop: &mut Stop,
    ) {
        loop {
            let now = Instant::now();
            let look = self.retired.due(self.state.any_retired(), now);
            let correction = self.loads.due(self.state.any_counted(), now);
            let wake = [self.due, self.state.next_retry(), self.attachment.retry_at(), look, correction]
                .into_iter()
                .flatten()
                .min();
            tokio::select! {
                biased;
                () = stop.wait() => return,
                Some(change) = changes.recv() => self.on_net(change, &mut changes),
                Some(news) = self.sockets.news() => self.sockets.take_over(news, &mut self.state),
                () = pause(until(wake, now)) => self.on_time(),
                Some(event) = events.recv() => self.on_event(event, &mut events),
                look = self.retired.found() => self.on_look(&look),
                () = self.loads.corrected() => {}
                Some(question) = questions.recv() => self.on_question(question),
            }
            self.sockets.end_retired(&mut self.state);
        }
    }

    /// Interfaces are not coalesced: a new pod's first packet may come at once.
    fn on_net(&mut self, change: NetChange, queue: &mut mpsc::Receiver<NetChange>) {
        let mut changed = self.state.on_net(change);
        while let Ok(more) = queue.try_recv() {
            changed |= self.state.on_net(more);
        }
        if changed {
            let now = Instant::now();
            self.state.sync_node(now);
            self.attachment.forget(&self.state.take_gone());
            self.attach(now);
            self.expect_sync(now);
        }
    }

    fn on_event(&mut self, event: Event, queue: &mut mpsc::Receiver<Event>) {
        let mut stale = self.state.on_event(event);
        // No more than what waits already: the other branches want their turn.
        for _ in 0..queue.len() {
            let Ok(more) = queue.try_recv() else { break };
            stale |= self.state.on_event(more);
        }
        if stale {
            self.expect_sync(Instant::now());
        }
    }

    fn expect_sync(&mut self, now: Instant) {
        self.due.get_or_insert(now + self.sync_delay);
        self.health.queued();
        self.state.metrics().kube_proxy().queued();
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.sync(now);
        }
        if self.state.next_retry().is_some_and(|at| at <= now) {
            self.state.retry(now);
            self.tell_health();
        }
        if self.attachment.retry_at().is_some_and(|at| at <= now) {
            self.attach(now);
        }
        if self.loads.is_due(now) {
            self.loads.correct(self.state.counted());
        }
        if self.retired.is_due(now) {
            self.retired.look(self.state.retired_addresses(), now);
        }
    }

    /// Not before the node's interfaces are known: a source may list faster.
    fn attach(&mut self, now: Instant) {
        if self.state.is_node_listed() {
            self.attachment.update(&self.state.view, now);
        }
    }

    fn on_look(&mut self, look: &Look) {
        match &look.in_use {
            Ok(in_use) => self.state.remove_retired_addresses(in_use, look.read_at, Instant::now()),
            Err(error) => tracing::error!("looking for open connections: {error}"),
        }
    }

    fn sync(&mut self, start: Instant) {
        let synced = self.state.sync(start);
        let sync_ms = start.elapsed().as_millis();
        let complete = self.tell_health();
        let pass = if synced.all { Pass::Full } else { Pass::Partial };
        self.state.metrics().kube_proxy().synced(start.elapsed(), pass, complete);
        if synced.applied > 0 {
            tracing::debug!(writes = synced.applied, sync_ms, "maps written");
        }
        // The Node object may have changed an interface's role.
        if synced.first {
            self.attachment.tables_ready();
        }
        self.attach(start);
        if synced.first {
            let (services, backends) = (self.state.service_count(), self.state.backend_count());
            let start_ms = self.started.elapsed().as_millis();
            tracing::info!(services, backends, writes = synced.applied, sync_ms, start_ms, "ready");
            memory::release();
            let invalid = self.state.metrics().invalid_in_words();
            if !invalid.is_empty() {
                tracing::warn!("malformed objects, or parts of them, that are not programmed: {invalid}");
            }
        }
    }
}

impl Loop {
    fn on_question(&self, question: Question) {
        match question {
            // Who asked may have gone.
            Question::Forwarding { turn, answer } => {
                let _ = answer.send(self.attachment.ask(self.state.actual(), turn));
            }
            Question::Tables(answer) => {
                let _ = answer.send(self.state.table_counts());
            }
        }
    }

    /// After an attempt to write: true if nothing waits any more.
    fn tell_health(&mut self) -> bool {
        self.health.node_is(self.state.node_seen());
        let complete = self.state.is_up_to_date();
        if let Some(checks) = self.state.take_checks() {
            self.health.publish(checks);
        }
        if complete {
            self.health.updated();
            self.state.note_written();
        }
        complete
    }
}

/// For ever if there is nothing to wait for.
async fn pause(duration: Option<Duration>) {
    match duration {
        Some(duration) => sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// A source that fails is started again; what it said before stays in use.
async fn follow_source(source: Source, node_name: String, events: mpsc::Sender<Event>) {
    while !events.is_closed() {
        let result = match &source {
            Source::Manifests(config) => {
                manifests::watch(config.clone(), events.clone()).await.map_err(anyhow::Error::from)
            }
            Source::Kubernetes(config) => match kubernetes::connect(config).await {
                Ok(client) => kubernetes::watch(client, &node_name, &config.wanted, events.clone())
                    .await
                    .map_err(anyhow::Error::from),
                Err(error) => Err(error.into()),
            },
        };
        match result {
            // The agent is about to end.
            _ if events.is_closed() => return,
            Err(error) => tracing::error!("source: {error:#}; started again in {} s", RESTART_PAUSE.as_secs()),
            Ok(()) => {}
        }
        sleep(RESTART_PAUSE).await;
    }
}

async fn follow_node(changes: mpsc::Sender<NetChange>) {
    while !changes.is_closed() {
        if let Err(error) = watch::watch(changes.clone()).await {
            tracing::error!("{error}; started again in {} s", RESTART_PAUSE.as_secs());
        }
        sleep(RESTART_PAUSE).await;
    }
}
