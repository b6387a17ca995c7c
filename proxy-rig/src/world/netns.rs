//! Network namespaces: making them, configuring them with `ip -batch`, and working inside one from a thread.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

const NETNS_DIR: &str = "/run/netns";
/// IFNAMSIZ without the closing zero.
const IFNAME_MAX: usize = 15;

pub(super) fn path(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

pub(super) fn add(name: &str) -> Result<()> {
    run_ip(&["netns", "add", name], "")
}

/// Names of all namespaces that begin with `prefix`.
pub(super) fn list(prefix: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir(NETNS_DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(NETNS_DIR),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.context(NETNS_DIR)?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            names.push(name);
        }
    }
    Ok(names)
}

pub(super) fn delete(name: &str) -> Result<()> {
    run_ip(&["netns", "del", name], "")
}

/// Runs `ip` once inside `netns` with one command per line.
pub(super) fn ip_batch(netns: &str, lines: &[String]) -> Result<()> {
    run_ip(&["-n", netns, "-batch", "-"], &lines.join("\n")).with_context(|| format!("configuring namespace {netns}"))
}

/// Runs one command of `ip` inside `netns`.
pub(super) fn ip(netns: &str, args: &[&str]) -> Result<()> {
    let all: Vec<&str> = ["-n", netns].into_iter().chain(args.iter().copied()).collect();
    run_ip(&all, "")
}

/// Applies an nftables file inside `netns`.
pub(super) fn nft(netns: &str, rules: &str) -> Result<()> {
    run_ip(&["netns", "exec", netns, "nft", "-f", "-"], rules).with_context(|| format!("filters of namespace {netns}"))
}

/// Adds an entry to the forwarding table of a device: frames to `mac` go to the node `via`.
pub(super) fn add_fdb(netns: &str, dev: &str, mac: &str, via: &str) -> Result<()> {
    run_ip(&["netns", "exec", netns, "bridge", "fdb", "append", mac, "dev", dev, "dst", via], "")
}

/// Writes sysctls of a namespace; keys are paths below /proc/sys.
pub(super) fn sysctls(netns: &str, pairs: &[(&str, &str)]) -> Result<()> {
    in_netns(netns, || {
        for (key, value) in pairs {
            let path = Path::new("/proc/sys").join(key);
            fs::write(&path, value).with_context(|| format!("{} = {value}", path.display()))?;
        }
        Ok(())
    })?
}

/// Runs `work` on a thread of its own inside the namespace. Sockets made there stay in the
/// namespace, but belong to the cgroup of this process.
pub fn in_netns<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(path(netns)).with_context(|| format!("namespace {netns}"))?;
    thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering namespace {netns}"))?;
                Ok(work())
            })
            .join()
            .map_err(|_| anyhow!("the thread inside namespace {netns} panicked"))?
    })
}

/// A name cut to what the kernel takes for an interface.
pub(super) fn ifname(wanted: &str) -> String {
    wanted.chars().take(IFNAME_MAX).collect::<String>().trim_end_matches('-').to_owned()
}

fn run_ip(args: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip (package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).context("writing to ip")?;
    }
    let output = child.wait_with_output().context("waiting for ip")?;
    ensure!(
        output.status.success(),
        "ip {}: {}{}{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim(),
        if input.is_empty() { "" } else { "\n" },
        input
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::ifname;

    #[test]
    fn interface_names_fit_the_kernel() {
        assert_eq!(ifname("veth1-web"), "veth1-web");
        assert_eq!(ifname("veth12-a-very-long-pod"), "veth12-a-very-l");
        assert_eq!(ifname("veth1-abcdefgh-x"), "veth1-abcdefgh");
    }
}
