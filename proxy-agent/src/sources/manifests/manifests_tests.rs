//! Manifests as a whole: several files, changes between two looks, and files that break.

use super::*;
use crate::model::{Change, Snapshot};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports: [{port: 80, targetPort: 8080}]\n";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, labels: {app: web}}\nspec: {nodeName: node-a, containers: []}\n\
                   status: {podIP: 10.1.0.1, conditions: [{type: Ready, status: 'True'}]}\n";
const ENDPOINTS: &str = "apiVersion: v1\nkind: Endpoints\nmetadata: {name: web}\nsubsets: [{addresses: [{ip: 192.0.2.42}], ports: [{port: 9376}]}]\n";
const SLICE: &str = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                     metadata: {name: web-x, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n\
                     endpoints: [{addresses: [192.0.2.43]}]\nports: [{port: 9376}]\n";

fn manifests() -> Manifests {
    Manifests::new(vec!["10.96.0.0/12".parse().expect("a CIDR")])
}

fn files(texts: &[(&str, &str)]) -> BTreeMap<String, Result<String, String>> {
    texts.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned()))).collect()
}

/// The events in short, without those of the first listing's end.
fn short(update: &Update) -> Vec<String> {
    let text = |event: &Event| match event {
        Event::Service(Change::Applied(it)) => Some(format!("+Service {}", it.name)),
        Event::Service(Change::Deleted(key)) => Some(format!("-Service {key}")),
        Event::Slice(Change::Applied(it)) => Some(format!("+Slice {} -> {}", it.name, it.endpoints[0].address)),
        Event::Slice(Change::Deleted(key)) => Some(format!("-Slice {}", key.name)),
        Event::Node(Change::Applied(it)) => Some(format!("+Node {}", it.name)),
        Event::Node(Change::Deleted(key)) => Some(format!("-Node {key}")),
        Event::Pod(Change::Applied(it)) => Some(format!("+{}", it.name)),
        Event::Pod(Change::Deleted(key)) => Some(format!("-{key}")),
        Event::ServiceCidr(Change::Applied(it)) => Some(format!("+Range {}", it.cidrs[0])),
        Event::ServiceCidr(Change::Deleted(key)) => Some(format!("-Range {key}")),
        Event::Synced(_) | Event::Skipped(_) => None,
    };
    update.events.iter().filter_map(text).collect()
}

#[test]
fn a_plain_service_with_pods_works() {
    let mut manifests = manifests();
    let update = manifests.update(files(&[("a.yaml", SERVICE), ("b.yaml", POD)]));
    assert!(update.errors.is_empty() && update.warnings.is_empty() && update.skips.is_empty(), "{update:?}");
    let mut snapshot = Snapshot::new("node-a");
    for event in update.events {
        snapshot.apply(event);
    }
    assert!(snapshot.is_synced());
    let service = snapshot.services().next().expect("a Service");
    assert_eq!(service.cluster_ips.len(), 1);
    let slice = snapshot.slices_of(&service.name).next().expect("a slice");
    assert_eq!((slice.ports[0].port, slice.endpoints[0].node.as_deref()), (8080, Some("node-a")));
}

#[test]
fn only_differences_are_told() {
    let mut manifests = manifests();
    let first = manifests.update(files(&[("a.yaml", SERVICE), ("b.yaml", POD)]));
    assert_eq!(short(&first), ["+Service default/web", "+Slice web:pods:0:ipv4 -> 10.1.0.1"]);
    assert!(manifests.update(files(&[("a.yaml", SERVICE), ("b.yaml", POD)])).events.is_empty());
    let moved = POD.replace("10.1.0.1", "10.1.0.2");
    let second = manifests.update(files(&[("a.yaml", SERVICE), ("b.yaml", &moved)]));
    assert_eq!(short(&second), ["+Slice web:pods:0:ipv4 -> 10.1.0.2"]);
    assert_eq!(short(&manifests.update(files(&[("a.yaml", SERVICE)]))), ["-Slice web:pods:0:ipv4"]);
    assert_eq!(short(&manifests.update(files(&[]))), ["-Service default/web"]);
}

#[test]
fn slices_come_before_endpoints_and_endpoints_before_pods() {
    let mut manifests = manifests();
    manifests.update(files(&[("a.yaml", SERVICE), ("b.yaml", POD)]));
    let with_endpoints = [("a.yaml", SERVICE), ("b.yaml", POD), ("c.yaml", ENDPOINTS)];
    let update = manifests.update(files(&with_endpoints));
    assert_eq!(short(&update), ["-Slice web:pods:0:ipv4", "+Slice web:endpoints:0:ipv4 -> 192.0.2.42"]);
    let with_slice = [("a.yaml", SERVICE), ("b.yaml", POD), ("c.yaml", ENDPOINTS), ("d.yaml", SLICE)];
    let update = manifests.update(files(&with_slice));
    assert_eq!(short(&update), ["-Slice web:endpoints:0:ipv4", "+Slice web-x -> 192.0.2.43"]);
}

#[test]
fn a_broken_file_keeps_its_last_good_objects_and_says_so_once() {
    let mut manifests = manifests();
    manifests.update(files(&[("a.yaml", SERVICE), ("b.yaml", SLICE)]));
    let broken = format!("{SERVICE}---\n{}", SERVICE.replace("port: 80,", "port: eighty,"));
    let update = manifests.update(files(&[("a.yaml", &broken), ("b.yaml", SLICE)]));
    assert!(update.events.is_empty());
    let errors: Vec<_> = update.errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        errors,
        [r#"a.yaml: document 2 (Service default/web): spec.ports[0].port: expected a number, got "eighty""#]
    );
    let again = manifests.update(files(&[("a.yaml", &broken), ("b.yaml", SLICE)]));
    assert!(again.events.is_empty() && again.errors.is_empty());
    assert!(manifests.update(files(&[("a.yaml", SERVICE), ("b.yaml", SLICE)])).events.is_empty());
}

#[test]
fn a_broken_object_leaves_the_others_of_its_file_alone() {
    let mut manifests = manifests();
    let broken = SERVICE.replace("port: 80,", "port: eighty,");
    let update = manifests.update(files(&[("a.yaml", &format!("{broken}---\n{SLICE}"))]));
    assert_eq!((short(&update), update.errors.len()), (vec!["+Slice web-x -> 192.0.2.43".to_owned()], 1));
    assert!(!update.errors[0].whole_file);
    let update = manifests.update(files(&[("a.yaml", &format!("{SERVICE}---\n{SLICE}"))]));
    assert_eq!(short(&update), ["+Service default/web"]);
    // What was good of it stays in use while the rest changes.
    let moved = SLICE.replace("192.0.2.43", "192.0.2.44");
    let update = manifests.update(files(&[("a.yaml", &format!("{moved}---\n{broken}"))]));
    assert_eq!(short(&update), ["+Slice web-x -> 192.0.2.44"]);
    assert_eq!(short(&manifests.update(files(&[("a.yaml", &moved)]))), ["-Service default/web"]);
}

#[test]
fn host_ports_and_service_ranges() {
    let pod = POD.replace("containers: []", "containers: [{name: c, ports: [{containerPort: 80, hostPort: 8080}]}]");
    let range = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\nspec: {cidrs: [10.96.0.0/12]}\n";
    let mut manifests = manifests();
    let update = manifests.update(files(&[("a.yaml", &pod), ("b.yaml", range)]));
    assert_eq!(short(&update), ["+Range 10.96.0.0/12", "+default/pod/web-1"]);
    assert!(update.ignored.is_empty() && update.skips.is_empty());
    assert_eq!(short(&manifests.update(files(&[("a.yaml", POD)]))), ["-Range kubernetes", "-default/pod/web-1"]);
    let without = Manifests::new(Vec::new()).host_ports(false).update(files(&[("a.yaml", &pod)]));
    assert!(short(&without).is_empty());
}

#[test]
fn the_first_look_goes_on_with_the_good_files() {
    let update = manifests().update(files(&[("a.yaml", "spec: ["), ("b.yaml", SLICE)]));
    assert_eq!(short(&update), ["+Slice web-x -> 192.0.2.43"]);
    assert_eq!(update.errors.len(), 1);
    assert!(update.events.contains(&Event::Synced(SourceKind::Services)));
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_of_its_own() {
    let mut unreadable = files(&[("b.yaml", SLICE)]);
    unreadable.insert("a.yaml".to_owned(), Err("cannot be read: permission denied".to_owned()));
    let update = manifests().update(unreadable);
    assert_eq!(update.errors[0].to_string(), "a.yaml: cannot be read: permission denied");
    assert_eq!(short(&update).len(), 1);
}

#[test]
fn of_two_objects_with_one_name_the_later_counts() {
    let other = SLICE.replace("192.0.2.43", "192.0.2.44");
    let mut manifests = manifests();
    let update = manifests.update(files(&[("a.yaml", SLICE), ("b.yaml", &other)]));
    assert_eq!(short(&update), ["+Slice web-x -> 192.0.2.44"]);
    assert_eq!(update.warnings, ["EndpointSlice default/web-x is given more than once; the last one counts"]);
    assert!(manifests.update(files(&[("a.yaml", SLICE), ("b.yaml", &other)])).warnings.is_empty());
}

#[test]
fn skipped_parts_and_ignored_kinds_are_told_once() {
    let odd = format!(
        "{}---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\n",
        SLICE.replace("[192.0.2.43]", "[192.0.2.43]}, {addresses: [127.0.0.1]")
    );
    let mut manifests = manifests();
    let update = manifests.update(files(&[("a.yaml", &odd)]));
    assert_eq!(update.skips.len(), 1);
    assert_eq!(
        update.ignored.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["a.yaml: document 2 (Deployment default/web)"]
    );
    let again = manifests.update(files(&[("a.yaml", &odd)]));
    assert!(again.skips.is_empty() && again.ignored.is_empty());
}
