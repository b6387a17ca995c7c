//! Hands the kernel object to `src/object.rs`: copies it into `OUT_DIR`, or leaves an empty file there
//! where nobody has built it, so that the agent compiles without the eBPF toolchain.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Names another object than the one of `cargo xtask build-ebpf`.
const OVERRIDE: &str = "WEIR_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let object = match env::var_os(OVERRIDE).map(PathBuf::from) {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(&path).unwrap_or_else(|error| panic!("{OVERRIDE}={}: {error}", path.display()))
        }
        None => built_object(),
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("invariant: cargo sets OUT_DIR")).join("weir.o");
    fs::write(&out, object).unwrap_or_else(|error| panic!("writing {}: {error}", out.display()));
}

/// The object of `cargo xtask build-ebpf`, or nothing.
///
/// The directory is watched, not the file: cargo takes a watched file that is not there as changed, and
/// would build the agent anew every time.
fn built_object() -> Vec<u8> {
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR").expect("invariant: cargo sets CARGO_MANIFEST_DIR");
    let directory = Path::new(&manifest_dir).with_file_name("target").join("ebpf");
    if !directory.is_dir() {
        create_as_old(&directory);
    }
    if directory.is_dir() {
        println!("cargo::rerun-if-changed={}", directory.display());
    }
    fs::read(directory.join("weir.o")).unwrap_or_default()
}

/// Creates the directory with a time in the past: a directory younger than this run would count as a
/// change at the next build. Where that fails (sources on a read-only disk) nothing is watched.
fn create_as_old(directory: &Path) {
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let _ = fs::create_dir_all(directory)
        .and_then(|()| File::open(directory))
        .and_then(|directory| directory.set_modified(long_ago));
}
