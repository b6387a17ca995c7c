//! The manifests of `deploy/`: valid for the API, consistent among themselves, with the agent and with the documents.
//! What belongs here needs neither root nor a cluster; `suite/image` runs the image as they say.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Parser as _;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Container, PodSpec, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use proxy_agent::{
    cli::Cli,
    health::HealthConfig,
    kubeproxy::{self, KubeProxyFlags, Settings},
    sources::kubernetes::{Asked, asked},
};
use proxy_rig::deploy::{directory, kustomize::render, variants};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// The objects of one variant, typed.
#[derive(Default)]
struct Manifests {
    account: ServiceAccount,
    role: ClusterRole,
    binding: ClusterRoleBinding,
    config: ConfigMap,
    set: DaemonSet,
}

impl Manifests {
    fn read(variant: &Path) -> Self {
        let mut manifests = Self::default();
        let mut kinds = BTreeSet::new();
        for object in render(variant).unwrap() {
            let kind = object["kind"].as_str().unwrap().to_owned();
            match kind.as_str() {
                "ServiceAccount" => manifests.account = typed(&object),
                "ClusterRole" => manifests.role = typed(&object),
                "ClusterRoleBinding" => manifests.binding = typed(&object),
                "ConfigMap" => manifests.config = typed(&object),
                "DaemonSet" => manifests.set = typed(&object),
                other => panic!("{}: the test knows no {other}", variant.display()),
            }
            assert!(kinds.insert(kind), "{}: two objects of one kind", variant.display());
        }
        assert_eq!(kinds.len(), 5, "{}", variant.display());
        manifests
    }

    fn pod(&self) -> &PodSpec {
        self.set.spec.as_ref().unwrap().template.spec.as_ref().unwrap()
    }

    fn container(&self) -> &Container {
        let [container] = self.pod().containers.as_slice() else { panic!("one container") };
        container
    }

    fn args(&self) -> &[String] {
        self.container().args.as_deref().unwrap()
    }
}

/// The types of the API take only what is in their schema; what they left out would be missing on the way back.
fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> T {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object:#}"));
    assert_eq!(&serde_json::to_value(&typed).unwrap(), object, "not in the schema, or a value that is the default");
    typed
}

fn all() -> Vec<(PathBuf, Manifests)> {
    variants().unwrap().into_iter().map(|path| (path.clone(), Manifests::read(&path))).collect()
}

fn overlay(name: &str) -> Manifests {
    Manifests::read(&directory().join("overlays").join(name))
}

fn document(name: &str) -> String {
    fs::read_to_string(directory().join("../docs").join(name)).unwrap()
}

#[test]
fn every_variant_fits_the_schema() {
    assert!(all().len() >= 4);
}

#[test]
fn every_file_of_the_base_is_listed() {
    let base = directory().join("base");
    let files = fs::read_dir(&base)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "kustomization.yaml");
    assert_eq!(files.count(), render(&base).unwrap().len());
}

/// Where there is a kubectl, what it makes of the overlays.
#[test]
fn kustomize_makes_the_same_of_it() {
    for variant in variants().unwrap() {
        let Ok(output) = Command::new("kubectl").arg("kustomize").arg(&variant).output() else {
            eprintln!("SKIPPED: no kubectl to compare with");
            return;
        };
        assert!(output.status.success(), "{}: {}", variant.display(), String::from_utf8_lossy(&output.stderr));
        let theirs: Vec<Value> = serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap();
        let ours = render(&variant).unwrap();
        assert_eq!(ours.len(), theirs.len(), "{}", variant.display());
        for object in &ours {
            assert!(theirs.contains(object), "{}: kustomize has no {object:#}", variant.display());
        }
    }
}

#[test]
fn names_refer_to_what_is_there() {
    for (path, manifests) in all() {
        let path = path.display();
        let spec = manifests.set.spec.as_ref().unwrap();
        let labels = spec.template.metadata.as_ref().unwrap().labels.clone().unwrap();
        for (key, value) in spec.selector.match_labels.as_ref().unwrap() {
            assert_eq!(labels.get(key), Some(value), "{path}: the selector finds no pod");
        }

        let account = &manifests.account.metadata;
        assert_eq!(manifests.pod().service_account_name, account.name, "{path}");
        let [subject] = manifests.binding.subjects.as_deref().unwrap() else { panic!("{path}: one subject") };
        assert_eq!((Some(&subject.name), &subject.namespace), (account.name.as_ref(), &account.namespace), "{path}");
        assert_eq!(Some(&manifests.binding.role_ref.name), manifests.role.metadata.name.as_ref(), "{path}");
        assert_eq!(manifests.set.metadata.namespace, account.namespace, "{path}");
        assert_eq!(manifests.config.metadata.namespace, account.namespace, "{path}");

        let volumes: BTreeSet<_> = manifests.pod().volumes.iter().flatten().map(|volume| &volume.name).collect();
        let mounts: BTreeSet<_> =
            manifests.container().volume_mounts.iter().flatten().map(|mount| &mount.name).collect();
        assert_eq!(volumes, mounts, "{path}");
    }
}

/// Exactly what the agent lists and watches, and Events.
#[test]
fn the_role_is_what_the_agent_asks_for() {
    for (path, manifests) in all() {
        let mut watched = Vec::new();
        let mut events = 0;
        for rule in manifests.role.rules.as_deref().unwrap() {
            let groups = rule.api_groups.as_deref().unwrap();
            assert_eq!(groups.len(), 1, "{}", path.display());
            for plural in rule.resources.as_deref().unwrap() {
                if plural == "events" {
                    assert_eq!(
                        (groups[0].as_str(), rule.verbs.as_slice()),
                        ("events.k8s.io", ["create".into(), "patch".into()].as_slice())
                    );
                    events += 1;
                    continue;
                }
                assert_eq!(rule.verbs, ["list", "watch"], "{}: {plural}", path.display());
                watched.push(Asked { group: groups[0].clone(), plural: plural.clone() });
            }
        }
        watched.sort();
        let mut wanted = asked().to_vec();
        wanted.sort();
        assert_eq!((watched, events), (wanted, 1), "{}", path.display());
    }
}

#[test]
fn the_agent_takes_the_arguments() {
    for (path, manifests) in all() {
        let line = std::iter::once("weir").chain(manifests.args().iter().map(String::as_str));
        if let Err(error) = Cli::try_parse_from(line) {
            panic!("{}: {error}", path.display());
        }
    }
}

/// Where the agent looks for its files, something is mounted.
#[test]
fn paths_in_the_arguments_are_mounted() {
    for (path, manifests) in all() {
        let mounts = manifests.container().volume_mounts.as_deref().unwrap();
        for arg in manifests.args() {
            let Some((_, file)) = arg.split_once("=/") else { continue };
            let file = Path::new("/").join(file);
            assert!(mounts.iter().any(|mount| file.starts_with(&mount.mount_path)), "{}: {arg}", path.display());
        }
    }
}

/// A host port would keep the second agent of an update from its node.
#[test]
fn two_agents_fit_on_a_node_during_an_update() {
    for (path, manifests) in all() {
        let update = manifests.set.spec.as_ref().unwrap().update_strategy.as_ref().unwrap();
        let rolling = serde_json::to_value(update.rolling_update.as_ref().unwrap()).unwrap();
        assert_eq!(rolling, serde_json::json!({"maxSurge": 1, "maxUnavailable": 0}), "{}", path.display());
        assert_eq!(manifests.container().ports, None, "{}", path.display());
    }
}

/// Without a single complaint, also about what has no effect.
fn settings(config: &ConfigMap) -> Settings {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &config.data.as_ref().unwrap()["config.conf"]).unwrap();
    let (settings, findings) = kubeproxy::load(Some(file.path()), &KubeProxyFlags::default(), true).unwrap();
    assert_eq!(findings, []);
    settings
}

#[test]
fn probes_ask_what_they_should() {
    for (path, manifests) in all() {
        let container = manifests.container();
        let port = settings(&manifests.config).healthz.unwrap().listens().unwrap().port();
        // The kubeadm variant does not read this file, and kubeadm's leaves the port to the default.
        assert_eq!(Some(port), HealthConfig::default().healthz.map(|address| address.port()));
        for (probe, wanted) in [
            (&container.liveness_probe, "/livez"),
            (&container.startup_probe, "/livez"),
            (&container.readiness_probe, "/healthz"),
        ] {
            let get = probe.as_ref().unwrap().http_get.as_ref().unwrap();
            assert_eq!(get.path.as_deref(), Some(wanted), "{}", path.display());
            assert_eq!(serde_json::to_value(&get.port).unwrap(), port, "{}", path.display());
        }
    }
}

#[test]
fn one_image_of_this_version_everywhere() {
    let image = concat!("localhost/weir:", env!("CARGO_PKG_VERSION"));
    for (path, manifests) in all() {
        assert_eq!(manifests.container().image.as_deref(), Some(image), "{}", path.display());
    }
}

#[test]
fn the_unprivileged_variant_has_what_the_page_explains() {
    let manifests = overlay("unprivileged");
    let context = manifests.container().security_context.as_ref().unwrap();
    assert_eq!((context.privileged, context.allow_privilege_escalation), (Some(false), Some(false)));
    let capabilities = context.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.drop.as_deref(), Some(["ALL".to_owned()].as_slice()));
    let page = document("privileges.md");
    for name in capabilities.add.as_deref().unwrap() {
        assert!(page.contains(&format!("CAP_{name} ")), "docs/privileges.md does not explain CAP_{name}");
    }
    for mount in manifests.container().volume_mounts.as_deref().unwrap() {
        // The API server refuses it.
        assert_ne!(mount.mount_propagation.as_deref(), Some("Bidirectional"), "{}", mount.name);
    }
}

/// kubeadm's configuration names the kubeconfig by its path in the pod.
#[test]
fn the_kubeadm_variant_mounts_what_kubeadm_wrote() {
    let text = fs::read_to_string(directory().join("../examples/kube-proxy-config.yaml")).unwrap();
    let theirs: ConfigMap = serde_saphyr::from_str(&text).unwrap();
    let manifests = overlay("kubeadm");
    let volumes = manifests.pod().volumes.as_deref().unwrap();
    let volume = volumes.iter().find(|volume| volume.name == "config").unwrap();
    assert_eq!(Some(&volume.config_map.as_ref().unwrap().name), theirs.metadata.name.as_ref());
    let mounts = manifests.container().volume_mounts.as_deref().unwrap();
    let place = Path::new(&mounts.iter().find(|mount| mount.name == "config").unwrap().mount_path);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &theirs.data.as_ref().unwrap()["config.conf"]).unwrap();
    let (settings, _) = kubeproxy::load(Some(file.path()), &KubeProxyFlags::default(), true).unwrap();
    let kubeconfig = settings.kubeconfig.unwrap();
    assert_eq!(kubeconfig.parent(), Some(place));
    let name = kubeconfig.file_name().unwrap().to_str().unwrap();
    assert!(theirs.data.as_ref().unwrap().contains_key(name), "{name}");
}

#[test]
fn labels_of_kube_proxy_by_overlay_only() {
    for (path, manifests) in all() {
        let labels = manifests.set.spec.as_ref().unwrap().template.metadata.as_ref().unwrap().labels.as_ref().unwrap();
        let wanted = path.ends_with("kube-proxy-labels").then_some("kube-proxy");
        assert_eq!(labels.get("k8s-app").map(String::as_str), wanted, "{}", path.display());
        assert!(!manifests.set.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap().contains_key("k8s-app"));
    }
}
