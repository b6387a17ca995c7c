//! Whether a kube-proxy runs on this node: it would write its rules anew.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// Ids of the processes named kube-proxy in the own network namespace; on another node of one machine they are none of ours.
pub fn kube_proxies(proc: &Path) -> Vec<u32> {
    let Ok(own) = fs::metadata("/proc/thread-self/ns/net").map(|it| it.ino()) else { return Vec::new() };
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let dir = proc.join(id.to_string());
        let named = fs::read_to_string(dir.join("comm")).is_ok_and(|name| name.trim_end() == "kube-proxy");
        named && fs::metadata(dir.join("ns/net")).is_ok_and(|it| it.ino() == own)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_name_and_network_namespace() {
        let proc = tempfile::tempdir().unwrap();
        let process = |id: u32, name: &str, netns: &str| {
            let dir = proc.path().join(id.to_string());
            fs::create_dir_all(dir.join("ns")).unwrap();
            fs::write(dir.join("comm"), format!("{name}\n")).unwrap();
            std::os::unix::fs::symlink(netns, dir.join("ns/net")).unwrap();
        };
        process(7, "kube-proxy", "/proc/thread-self/ns/net");
        process(8, "kubelet", "/proc/thread-self/ns/net");
        process(9, "kube-proxy", "/proc/thread-self/ns/ipc");
        assert_eq!(kube_proxies(proc.path()), [7]);
        assert!(kube_proxies(Path::new("/nonexistent")).is_empty());
    }
}
