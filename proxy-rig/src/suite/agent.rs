//! The agent as a process against the API server double. One function per test.

use anyhow::Result;
use libtest_mimic::Trial;

pub(super) fn tests() -> Result<Vec<Trial>> {
    Ok(Vec::new())
}
