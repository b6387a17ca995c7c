//! Nodes, pods and clients as network namespaces, with real sockets and real agents. One function per test.

use anyhow::Result;
use libtest_mimic::Trial;

pub(super) fn tests() -> Result<Vec<Trial>> {
    Ok(Vec::new())
}
