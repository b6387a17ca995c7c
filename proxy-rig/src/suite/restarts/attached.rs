//! Counts the programs at a node's hooks, over and over, from a thread of its own: what no moment of a restart may lack.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use proxy_agent::loader::{CGROUP_HOOKS, TC_HOOKS, sys};

use crate::world::Node;

const PAUSE: Duration = Duration::from_millis(2);

pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    polls: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Result<usize>>>,
    expected: usize,
    node: String,
}

impl Watch {
    /// Every interface and the cgroup have all their programs now.
    pub(super) fn start(node: &Node) -> Result<Self> {
        let links = 1 + node.pods().len();
        let expected = CGROUP_HOOKS.len() + TC_HOOKS.len() * links;
        let found = node.in_netns(|| count(node))??;
        ensure!(found == expected, "{} programs at the hooks of {} instead of {expected}", found, node.name());
        let (stop, polls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (their_stop, their_polls, their_node) = (Arc::clone(&stop), Arc::clone(&polls), node.clone());
        let thread = std::thread::spawn(move || {
            their_node.in_netns(|| {
                let mut fewest = usize::MAX;
                while !their_stop.load(Ordering::Relaxed) {
                    fewest = fewest.min(count(&their_node)?);
                    their_polls.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                }
                Ok(fewest)
            })?
        });
        Ok(Self { stop, polls, thread: Some(thread), expected, node: node.name().to_owned() })
    }

    /// The number that was never gone below, and how often it was looked at.
    pub(super) fn end(mut self) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the thread that counts programs")?;
        let fewest = thread.join().map_err(|_| anyhow!("the thread that counts programs panicked"))??;
        let (expected, node) = (self.expected, &self.node);
        ensure!(fewest == expected, "{fewest} programs at the hooks of {node} at one moment instead of {expected}");
        Ok(format!("{node}: {expected} programs at every one of {} looks", self.polls.load(Ordering::Relaxed)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// By the kernel's own lists, of the interfaces that the world has from the start. To be called in the node's namespace.
fn count(node: &Node) -> Result<usize> {
    let mut found = 0;
    let links =
        node.pods().iter().map(|pod| pod.node_ifname().to_owned()).chain(["eth0".to_owned()]).collect::<Vec<_>>();
    for link in links {
        let index = nix::net::if_::if_nametoindex(link.as_str()).with_context(|| link.clone())?;
        for hook in TC_HOOKS {
            found += sys::tcx_chain(index, hook.attach_type)?.len();
        }
    }
    let cgroup = File::open(node.cgroup_path())?;
    for hook in CGROUP_HOOKS {
        found += sys::cgroup_programs(&cgroup, hook.attach_type)?.len();
    }
    Ok(found)
}
