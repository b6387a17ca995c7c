//! Brings the kernel object into the kernel: maps (reused by their pins), programs, and their attachment to interfaces and
//! the cgroup root by pinned links. Nothing here is undone when the agent ends; [`cleanup()`] undoes it.
//!
//! Called by the agent's main loop, the scenario runner and `weir cleanup`.

mod attach;
mod capacities;
mod cleanup;
mod clsact;
mod hooks;
mod load;
mod migrate;
mod pins;
pub mod programs;
pub mod sys;
mod verify;

pub use attach::{Attached, Attacher, Placement};
pub use capacities::Capacities;
pub use cleanup::{Removed, cleanup};
pub use clsact::{CLSACT_MARK, TcBackend};
pub use hooks::{CGROUP_HOOKS, ConnectHooks, Hook, TC_HOOKS};
pub use load::{Loaded, config_for, load, try_load};
pub use migrate::Migration;
pub use pins::{DEFAULT_PIN_ROOT, Pins, WriterLock};
pub use verify::{Expected, Found};

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    #[error("the kernel object is unreadable: {0}")]
    Parse(#[from] aya_obj::ParseError),
    #[error("the kernel object has no map {0}")]
    NoMap(&'static str),
    #[error("the kernel object has no program {0} of the right type")]
    NoProgram(&'static str),
    #[error("load the maps: {0}")]
    Maps(#[source] aya::EbpfError),
    #[error("load program {program}: {error}")]
    Program { program: &'static str, error: aya::programs::ProgramError },
    #[error("{operation} {}: {error}", path.display())]
    Pin { operation: &'static str, path: PathBuf, error: io::Error },
    #[error("attach {program} to interface {interface}: {error}")]
    Interface { program: &'static str, interface: String, error: io::Error },
    #[error("attach {program} to interface {interface} by clsact: {error}")]
    Clsact { program: &'static str, interface: String, error: aya::programs::ProgramError },
    #[error("attach {program} to cgroup {}: {error}", cgroup.display())]
    Cgroup { program: &'static str, cgroup: PathBuf, error: io::Error },
    #[error("read the own network namespace's cookie: {0}")]
    Cookie(#[source] io::Error),
}

fn pin_error(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> LoaderError {
    let path = path.into();
    move |error| LoaderError::Pin { operation, path, error }
}
