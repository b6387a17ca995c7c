//! The directory for what setup compiles: outside of `target`, so that `cargo clean` or a second clone
//! does not cost compiling bpf-linker again. Used by setup and toolchain.

use std::{env, path::PathBuf};

use crate::workspace;

/// `$XDG_CACHE_HOME/weir`, `~/.cache/weir`, or below the workspace where there is no home.
pub(crate) fn dir() -> PathBuf {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map_or_else(|| workspace::root().join("target/ebpf-toolchain"), |cache| cache.join("weir"))
}

/// Where `cargo install` puts the bpf-linker built against this LLVM.
pub(crate) fn linker_root(version: &str, llvm_major: u32) -> PathBuf {
    dir().join(format!("bpf-linker-{version}-llvm-{llvm_major}"))
}
