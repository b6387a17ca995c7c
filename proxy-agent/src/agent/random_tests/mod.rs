//! A randomized model check of the whole agent but its sockets: random changes of objects, valid and hostile, and of the
//! node's network, heard as the watches hear them and written over maps of which one write in ten fails, must end where the
//! final objects at once end: the same desired state, the same conflicts and the same maps.
//!
//! A sequence follows from its number alone. One that fails is made shorter and printed; `WEIR_SEQUENCE=NUMBER` runs it again,
//! `WEIR_SEQUENCES` says how many run per test.

mod objects;
mod steps;

#[path = "../../../tests/small_maps/mod.rs"]
mod small_maps;

use std::{
    collections::BTreeMap,
    fmt::Write,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use self::{
    small_maps::create_by_name,
    steps::{Pool, Step, World, random_steps, view_of},
};
use super::*;
use crate::{
    dataplane::{Actual, Capacity, DataplaneError, FakeMaps, KernelMaps, MapOp},
    reconcile::{Conflict, Dump, MAGLEV_TABLE_SIZES, Options},
    sources::kubernetes::heard::{Heard, Read, Said},
};

/// Room for all that the few names can ask for, and little to read.
/// Small Maglev tables: all their slots are written and compared.
fn options() -> Options {
    Options { maglev_table_size: *MAGLEV_TABLE_SIZES.start(), ..Options::default() }
}

const CAPACITY: Capacity = Capacity {
    addrs: 256,
    services: 512,
    sets: 1024,
    rings: 16_384,
    backends: 256,
    src_ranges: 128,
    ifaces: 16,
    port_names: 256,
};
/// Of the writes, until the last one has succeeded.
const FAILING: f64 = 0.1;
/// A Service has tens of writes, so an attempt may well fail; not this often.
const MOST_RETRIES: usize = 10_000;
/// Sequences over the fake maps: sixteen tests, which a runner spreads over its CPUs.
const PER_TEST: u64 = 6_250;
/// Sequences over real maps.
const IN_KERNEL: u64 = 400;

/// Maps whose writes fail at random. The same seed fails the same writes, whatever the maps are.
struct Failing<D> {
    maps: D,
    random: StdRng,
}

impl<D: Dataplane> Failing<D> {
    fn new(maps: D, seed: u64) -> Self {
        Self { maps, random: StdRng::seed_from_u64(seed) }
    }
}

impl<D: Dataplane> Dataplane for Failing<D> {
    fn apply(&mut self, op: &MapOp) -> Result<(), DataplaneError> {
        if self.random.random_bool(FAILING) {
            return Err(DataplaneError::Injected { op: op.to_string() });
        }
        self.maps.apply(op)
    }

    fn read_all(&self) -> Result<Actual, DataplaneError> {
        self.maps.read_all()
    }

    fn capacity(&self) -> Capacity {
        self.maps.capacity()
    }
}

/// What an agent arrived at.
#[derive(Debug, PartialEq)]
struct Outcome {
    desired: BTreeMap<ServiceName, ServiceDesired>,
    conflicts: BTreeMap<ServiceName, Vec<Conflict>>,
    dump: Vec<String>,
}

/// An agent, what its watches know, and its clock. None only while the agent restarts.
struct Run<D> {
    state: Option<State<D>>,
    heard: Heard,
    now: Instant,
}

impl<D: Dataplane> Run<D> {
    fn new(maps: D, world: &World) -> Self {
        let now = Instant::now();
        let mut run = Self { state: None, heard: Heard::default(), now };
        run.start(maps, world);
        run
    }

    fn start(&mut self, maps: D, world: &World) {
        let reconciler = Reconciler::new(maps, options(), self.now).expect("the maps are readable");
        let mut state = State::new("node-a", view_of(), reconciler, Settings::default(), Metrics::default());
        state.on_net(NetChange::All(Box::new(world.net.clone())));
        self.state = Some(state);
        self.heard = Heard::default();
    }

    fn state(&mut self) -> &mut State<D> {
        self.state.as_mut().expect("an agent runs")
    }

    fn hear(&mut self, said: Said, object: &Read) {
        for event in self.heard.hear(said, object) {
            self.state().on_event(event);
        }
    }

    fn listed(&mut self) {
        for kind in [SourceKind::Services, SourceKind::Slices, SourceKind::Pods, SourceKind::Node] {
            self.state().on_event(Event::Synced(kind));
        }
        self.state().on_event(Event::Synced(SourceKind::ServiceCidrs));
    }

    /// The agent hears of one change, and `world` is what is the case after it.
    fn step(&mut self, step: &Step, world: &World) {
        match step {
            Step::Apply(object) => self.hear(Said::Applied, &object.read),
            Step::Delete(object) => self.hear(Said::Deleted, &object.read),
            Step::Net(change) => drop(self.state().on_net(change.clone())),
            Step::Relist => {
                let events = self.heard.relist(world.present().map(|object| &object.read));
                for event in events {
                    self.state().on_event(event);
                }
            }
            Step::Listed => self.listed(),
            Step::Sync => drop(self.state.as_mut().map(|state| state.sync(self.now))),
            Step::Wait(milliseconds) => {
                self.now += Duration::from_millis(*milliseconds);
                let now = self.now;
                self.state().retry(now);
            }
            Step::Restart => {
                let maps = self.state.take().expect("an agent runs").reconciler.into_dataplane();
                self.start(maps, world);
                world.present().for_each(|object| self.hear(Said::Applied, &object.read));
                self.listed();
            }
        }
    }

    /// The rest of what there is to do, and no connections are left.
    fn settle(&mut self) {
        self.listed();
        for _ in 0..MOST_RETRIES {
            let now = self.now;
            let state = self.state();
            state.sync(now);
            if let Some(due) = state.next_retry() {
                self.now = self.now.max(due);
                let now = self.now;
                self.state().retry(now);
            } else if state.any_retired() {
                state.remove_retired_addresses(&BTreeSet::new(), now, now);
            } else {
                return;
            }
        }
        panic!("never settled: {:?}", self.state().reconciler.status().failures);
    }

    fn check_nothing_left(&mut self) {
        let now = self.now;
        let reconciler = &mut self.state().reconciler;
        let names: Vec<ServiceName> = reconciler.desired().into_keys().cloned().collect();
        for name in names {
            assert_eq!(reconciler.plan(&name, now), vec![], "{name}: something is left to write");
        }
    }

    /// What lies in RINGS outside of the ranges in use is not read from the kernel.
    fn check_mirror(&self, found: &Actual, dump: &[String]) {
        let remembered = self.state.as_ref().expect("an agent runs").reconciler.mirror().actual();
        if remembered != found {
            assert_eq!(Dump::of(remembered).lines, dump, "the mirror is the maps");
            assert_eq!((&remembered.v4, &remembered.v6), (&found.v4, &found.v6), "the mirror is the maps");
        }
    }

    fn outcome(&self) -> Outcome {
        let reconciler = &self.state.as_ref().expect("an agent runs").reconciler;
        assert!(reconciler.status().failures.is_empty());
        let found = reconciler.dataplane().read_all().expect("the maps are readable");
        let dump = Dump::of(&found).lines;
        self.check_mirror(&found, &dump);
        let desired = reconciler.desired().into_iter().map(|(name, it)| (name.clone(), it.clone())).collect();
        Outcome { desired, conflicts: reconciler.status().conflicts.clone(), dump }
    }
}

/// The outcome of all steps in turn, and the world that they lead to.
fn in_turn<D: Dataplane>(maps: D, steps: &[Step]) -> (Outcome, World) {
    let mut world = World::default();
    let mut run = Run::new(maps, &world);
    for step in steps {
        world.step(step);
        run.step(step, &world);
    }
    run.settle();
    run.check_nothing_left();
    (run.outcome(), world)
}

/// The outcome of the final objects, heard in the other order by an agent that starts over empty maps.
fn at_once(world: &World) -> Outcome {
    let mut run = Run::new(FakeMaps::with_capacity(CAPACITY), world);
    let mut objects: Vec<_> = world.last_readable().collect();
    objects.reverse();
    objects.into_iter().for_each(|object| run.hear(Said::Applied, &object.read));
    run.settle();
    run.outcome()
}

/// What is wrong with a sequence; None if nothing is.
type Check = fn(&[Step], u64) -> Option<String>;

fn over_fake_maps(steps: &[Step], seed: u64) -> Option<String> {
    let (outcome, world) = in_turn(Failing::new(FakeMaps::with_capacity(CAPACITY), seed), steps);
    difference(&outcome, &at_once(&world), ["step by step", "at once"])
}

fn over_kernel_maps(steps: &[Step], seed: u64) -> Option<String> {
    let maps = KernelMaps::from_maps(|name| create_by_name(name, &CAPACITY)).expect("maps of the kernel");
    let (in_kernel, world) = in_turn(Failing::new(maps, seed), steps);
    let (in_fake, _) = in_turn(Failing::new(FakeMaps::with_capacity(CAPACITY), seed), steps);
    difference(&in_kernel, &in_fake, ["in the kernel", "in the fake"])
        .or_else(|| difference(&in_kernel, &at_once(&world), ["step by step", "at once"]))
}

fn difference(a: &Outcome, b: &Outcome, names: [&str; 2]) -> Option<String> {
    if a == b {
        return None;
    }
    let mut text = String::new();
    let mut only = |name: &str, own: &[String], other: &[String]| {
        for line in own.iter().filter(|line| !other.contains(line)) {
            writeln!(text, "  only {name}: {line}").expect("a text takes everything");
        }
    };
    let lines = |outcome: &Outcome| {
        let desired = outcome.desired.values().map(|it| format!("{it:?}"));
        let conflicts = outcome.conflicts.values().flatten().map(|it| format!("conflict: {it}"));
        desired.chain(conflicts).chain(outcome.dump.iter().cloned()).collect::<Vec<_>>()
    };
    only(names[0], &lines(a), &lines(b));
    only(names[1], &lines(b), &lines(a));
    Some(text)
}

/// A panic is a finding like another.
fn finding(check: Check, steps: &[Step], seed: u64) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| check(steps, seed))).unwrap_or_else(|_| Some("  it panics, see above".to_owned()))
}

/// Fewer steps that fail still, none of which can be left out.
fn shrunk(check: Check, mut steps: Vec<Step>, seed: u64) -> Vec<Step> {
    let mut index = steps.len();
    while index > 0 {
        index -= 1;
        let mut fewer = steps.clone();
        fewer.remove(index);
        if finding(check, &fewer, seed).is_some() {
            steps = fewer;
            index = index.min(steps.len());
        }
    }
    steps
}

fn check_all(check: Check, numbers: Range<u64>) {
    let asked = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let numbers = match (asked("WEIR_SEQUENCE"), asked("WEIR_SEQUENCES")) {
        (Some(number), _) => number..number + 1,
        (None, Some(count)) => numbers.start..numbers.start + count,
        (None, None) => numbers,
    };
    let mut pool = Pool::of(numbers.start);
    for number in numbers {
        if !pool.is_of(number) {
            pool = Pool::of(number);
        }
        let steps = random_steps(&pool, number);
        if finding(check, &steps, number).is_none() {
            continue;
        }
        let steps = shrunk(check, steps, number);
        let finding = finding(check, &steps, number).unwrap_or_default();
        let steps: String = steps.iter().map(|step| format!("  {step}\n")).collect();
        panic!("sequence {number} (WEIR_SEQUENCE={number} runs it again), shrunk:\n{steps}{finding}");
    }
}

/// One part of the sequences per test.
macro_rules! parts {
    ($($name:ident: $part:expr),*) => {$(
        #[test]
        fn $name() {
            check_all(over_fake_maps, $part * PER_TEST..($part + 1) * PER_TEST);
        }
    )*};
}

parts!(
    step_by_step_is_at_once_01: 0,
    step_by_step_is_at_once_02: 1,
    step_by_step_is_at_once_03: 2,
    step_by_step_is_at_once_04: 3,
    step_by_step_is_at_once_05: 4,
    step_by_step_is_at_once_06: 5,
    step_by_step_is_at_once_07: 6,
    step_by_step_is_at_once_08: 7,
    step_by_step_is_at_once_09: 8,
    step_by_step_is_at_once_10: 9,
    step_by_step_is_at_once_11: 10,
    step_by_step_is_at_once_12: 11,
    step_by_step_is_at_once_13: 12,
    step_by_step_is_at_once_14: 13,
    step_by_step_is_at_once_15: 14,
    step_by_step_is_at_once_16: 15
);

#[test]
fn step_by_step_is_at_once_in_the_kernel() {
    if !nix::unistd::geteuid().is_root() {
        println!("step_by_step_is_at_once_in_the_kernel: not run, needs root");
        return;
    }
    check_all(over_kernel_maps, 0..IN_KERNEL);
}
