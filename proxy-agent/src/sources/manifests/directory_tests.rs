//! Real files in a temporary directory: saves by rename, broken saves, and a directory that goes away.

use tempfile::TempDir;
use tokio::{sync::mpsc::Receiver, task::JoinHandle};

use super::*;
use crate::model::Change;

fn node(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")
}

fn write(directory: &Path, name: &str, text: &str) {
    fs::write(directory.join(name), text).expect("writable");
}

fn watching(path: &Path) -> (Receiver<Event>, JoinHandle<Result<(), WatchError>>) {
    let (sender, receiver) = mpsc::channel(64);
    let mut config = ManifestConfig::new(path, Vec::new());
    config.settle = Duration::from_millis(10);
    (receiver, tokio::spawn(watch(config, sender)))
}

/// The next change of a Node: `+name` or `-name`.
async fn next_node(events: &mut Receiver<Event>) -> String {
    loop {
        let event = time::timeout(Duration::from_secs(8), events.recv()).await.expect("in time").expect("an event");
        match event {
            Event::Node(Change::Applied(node)) => return format!("+{}", node.name),
            Event::Node(Change::Deleted(name)) => return format!("-{name}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn saves_renames_and_removals_are_seen() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path();
    write(path, "a.yaml", &node("a"));
    write(path, ".hidden.yaml", &node("hidden"));
    write(path, "notes.txt", "no manifest");
    let (mut events, task) = watching(path);
    assert_eq!(next_node(&mut events).await, "+a");
    write(path, "b.yml", &node("b"));
    assert_eq!(next_node(&mut events).await, "+b");
    // As editors save: beside the file, then renamed over it.
    write(path, ".a.yaml.swp", &node("c"));
    fs::rename(path.join(".a.yaml.swp"), path.join("a.yaml")).expect("renamed");
    assert_eq!(next_node(&mut events).await, "-a");
    assert_eq!(next_node(&mut events).await, "+c");
    write(path, "a.yaml", "kind: [");
    write(path, "d.yaml", &node("d"));
    assert_eq!(next_node(&mut events).await, "+d");
    fs::remove_file(path.join("b.yml")).expect("removed");
    assert_eq!(next_node(&mut events).await, "-b");
    drop(events);
    let ended = time::timeout(Duration::from_secs(5), task).await.expect("in time").expect("no panic");
    assert!(matches!(ended, Err(WatchError::ReceiverGone(_))));
}

#[tokio::test]
async fn a_single_file_and_its_return() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("all.yaml");
    write(directory.path(), "all.yaml", &node("a"));
    let (mut events, task) = watching(&path);
    assert_eq!(next_node(&mut events).await, "+a");
    // While the file is away its objects stay.
    fs::remove_file(&path).expect("removed");
    time::sleep(Duration::from_millis(100)).await;
    write(directory.path(), "all.yaml", &format!("{}---\n{}", node("a"), node("b")));
    assert_eq!(next_node(&mut events).await, "+b");
    task.abort();
}

#[tokio::test]
async fn a_directory_that_was_replaced_is_watched_again() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("manifests");
    fs::create_dir(&path).expect("made");
    write(&path, "a.yaml", &node("a"));
    let (mut events, task) = watching(&path);
    assert_eq!(next_node(&mut events).await, "+a");
    fs::rename(&path, directory.path().join("old")).expect("renamed");
    time::sleep(Duration::from_millis(100)).await;
    fs::create_dir(&path).expect("made");
    write(&path, "a.yaml", &node("b"));
    let mut seen = vec![next_node(&mut events).await];
    while !seen.contains(&"+b".to_owned()) {
        seen.push(next_node(&mut events).await);
    }
    assert!(seen.contains(&"-a".to_owned()), "{seen:?}");
    task.abort();
}

#[tokio::test]
async fn a_path_that_does_not_exist_is_an_error_at_the_start() {
    let (_events, task) = watching(Path::new("/nonexistent/manifests"));
    let error = task.await.expect("no panic").expect_err("no such path");
    assert!(error.to_string().contains("/nonexistent/manifests"), "{error}");
}

#[test]
fn load_reads_once() {
    let directory = TempDir::new().expect("a directory");
    write(directory.path(), "a.yaml", &node("a"));
    let update = load(&ManifestConfig::new(directory.path(), Vec::new())).expect("readable");
    assert!(matches!(&update.events[0], Event::Node(Change::Applied(node)) if &*node.name == "a"));
}
