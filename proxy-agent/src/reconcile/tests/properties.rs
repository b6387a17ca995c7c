//! Any Services, any order of events, any write failing: the end is the same, and nothing is ever half done.

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn some_ip() -> impl Strategy<Value = IpAddr> {
    // External addresses of their own, a ClusterIP, an endpoint, a node address.
    prop_oneof![
        Just(ip("80.1.1.1")),
        Just(ip("80.1.1.2")),
        Just(ip("2001:db8::1")),
        Just(ip("10.96.0.1")),
        Just(ip("10.244.0.1")),
        Just(ip("172.16.0.1")),
    ]
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

fn node() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("here"), Just("there"), Just("~here"), Just("~there")]
}

fn endpoint(number: u8) -> IpAddr {
    ip(&if number < 8 { format!("10.244.0.{number}") } else { format!("fd01::{number}") })
}

prop_compose! {
    fn some_spec(number: usize)(
        v6 in any::<bool>(),
        ports in proptest::collection::btree_map(1u16..4, proptest::option::of(30001u16..30004), 0..3),
        external_ips in proptest::collection::vec(some_ip(), 0..3),
        load_balancer_ips in proptest::collection::vec(some_ip(), 0..2),
        ranges in any::<bool>(),
        (internal_policy, external_policy) in (policy(), policy()),
        affinity_timeout_s in proptest::option::of(Just(60)),
        created in proptest::option::of(0i64..3),
        endpoints in proptest::collection::btree_map(0u8..16, node(), 0..6),
    ) -> Spec {
        let mut spec = Spec::new(NAMES[number], &format!("10.96.0.{number}"));
        spec.endpoints = endpoints.into_iter().map(|(number, node)| (endpoint(number), node)).collect();
        spec.with(|service| {
            if v6 {
                service.cluster_ips.push(ip(&format!("fd00::{number}")));
            }
            service.ports = ports
                .into_iter()
                .map(|(port, node_port)| ServicePort {
                    name: format!("p{port}").into(),
                    protocol: if port == 3 { Protocol::Udp } else { Protocol::Tcp },
                    port,
                    node_port,
                })
                .collect();
            service.external_ips = external_ips;
            service.load_balancer_ips = load_balancer_ips;
            if ranges {
                service.source_ranges = vec!["10.0.0.0/8".parse().expect("a range")];
            }
            service.internal_policy = internal_policy;
            service.external_policy = external_policy;
            service.affinity_timeout_s = affinity_timeout_s;
            service.created = created;
        })
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set(Box<Spec>),
    Delete(usize),
    Retry,
    /// Whether the second address is one of the node's, too.
    Node(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..NAMES.len()).prop_flat_map(some_spec).prop_map(|spec| Step::Set(Box::new(spec))),
        2 => (0..NAMES.len()).prop_map(Step::Delete),
        2 => Just(Step::Retry),
        1 => any::<bool>().prop_map(Step::Node),
    ]
}

fn node_addresses(second: bool) -> Vec<NodeAddress> {
    let first = NodeAddress { ip: ip("172.16.0.1"), nodeport: true };
    let second = second.then(|| NodeAddress { ip: ip("80.1.1.1"), nodeport: false });
    [first].into_iter().chain(second).collect()
}

/// What is meant to be there in the end.
#[derive(Default)]
struct Wanted {
    specs: BTreeMap<ServiceName, Spec>,
    second: bool,
}

impl Wanted {
    fn step(&mut self, step: &Step, bench: &mut Bench) {
        match step {
            Step::Set(spec) => {
                bench.set(spec);
                self.specs.insert(spec.name(), (**spec).clone());
            }
            Step::Delete(number) => {
                let spec = Spec::new(NAMES[*number], "10.96.0.1");
                bench.delete(&spec);
                self.specs.remove(&spec.name());
            }
            Step::Retry => {
                bench.now += Duration::from_millis(150);
                bench.reconciler.retry(bench.now);
            }
            Step::Node(second) => {
                bench.reconciler.set_node_addresses(&node_addresses(*second), bench.now);
                self.second = *second;
            }
        }
        bench.check();
    }

    /// All of it at once, over these maps.
    fn over(&self, mut bench: Bench, reverse: bool) -> (Bench, usize) {
        bench.reconciler.set_node_addresses(&node_addresses(self.second), bench.now);
        let mut specs: Vec<Spec> = self.specs.values().cloned().collect();
        if reverse {
            specs.reverse();
            specs.iter_mut().for_each(|spec| spec.endpoints.reverse());
        }
        specs.iter().for_each(|spec| {
            bench.set(spec);
        });
        let report = bench.sync();
        (bench, report.applied)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn failing_writes_lead_to_the_same_maps(
        steps in proptest::collection::vec(step(), 1..25),
        seed in any::<u64>(),
        sync_at in 0usize..10,
    ) {
        let mut bench = Bench::over(FakeMaps::default());
        bench.reconciler.set_node_addresses(&node_addresses(false), bench.now);
        bench.reconciler.dataplane_mut().injection = Injection::random(0.1, seed);
        let mut wanted = Wanted::default();
        for (number, step) in steps.iter().enumerate() {
            if number == sync_at {
                bench.sync();
            }
            wanted.step(step, &mut bench);
        }
        bench.sync();
        bench.settle();
        bench.end_connections();
        for name in wanted.specs.keys() {
            prop_assert_eq!(bench.reconciler.plan(name, bench.now), vec![]);
        }
        let (fresh, _) = wanted.over(Bench::over(FakeMaps::default()), false);
        prop_assert_eq!(bench.dump(), fresh.dump());
        prop_assert_eq!(bench.actual().port_names.len(), fresh.actual().port_names.len());
        let (again, applied) = wanted.over(bench.restart(), true);
        prop_assert_eq!(applied, 0);
        prop_assert_eq!(again.dump(), fresh.dump());
    }

    #[test]
    fn a_restart_in_the_middle_of_failures_is_healed(
        steps in proptest::collection::vec(step(), 1..12),
        seed in any::<u64>(),
    ) {
        let mut bench = Bench::synced();
        bench.reconciler.set_node_addresses(&node_addresses(false), bench.now);
        bench.reconciler.dataplane_mut().injection = Injection::random(0.3, seed);
        let mut wanted = Wanted::default();
        steps.iter().for_each(|step| wanted.step(step, &mut bench));
        let (mut again, _) = wanted.over(bench.restart(), false);
        again.end_connections();
        let (fresh, _) = wanted.over(Bench::over(FakeMaps::default()), false);
        prop_assert_eq!(again.dump(), fresh.dump());
    }
}
