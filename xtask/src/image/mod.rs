//! `cargo xtask image`: the agent as a container image in one file, without a container engine. The image holds one
//! static binary. Two builds of the same sources in one place give the same bytes: every time stamp is SOURCE_DATE_EPOCH or
//! zero. Paths of this machine are only in the debug information of the kernel object. `cargo xtask test` builds one without optimisation for the image suite.

mod archive;
#[cfg(test)]
mod containerfile;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    build_ebpf, run,
    setup::{self, Scope},
    toolchain::Choice,
    workspace,
};
use archive::Image;

/// Names no registry: the manifests in `deploy/` use it for an image that was imported on the nodes.
const REPOSITORY: &str = "localhost/weir";
/// Same version for all crates of the workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");
const BINARY: &str = "weir";

#[derive(Args)]
pub(crate) struct Options {
    /// `dev` is quick to build, and slow and large
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
    /// Only the static binary, for a build by Containerfile
    #[arg(long)]
    binary: bool,
    /// The file to write [default: target/image/weir-VERSION.tar, or target/image/weir with --binary]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profile {
    Dev,
    Release,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(Scope::Build)?;
    build_ebpf::build(Choice::of_environment()?)?;
    let binary = static_binary(options.profile)?;
    let directory = workspace::root().join("target/image");
    let name = if options.binary { BINARY.to_owned() } else { format!("{BINARY}-{VERSION}.tar") };
    let output = options.output.clone().unwrap_or_else(|| directory.join(name));
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    if options.binary {
        fs::copy(&binary, &output).with_context(|| output.display().to_string())?;
        println!("{}", output.display());
    } else {
        write(&binary, &output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// For `cargo xtask test`: the image whose suite comes next, beside the rig, where that looks for it.
pub(crate) fn build_for_tests() -> Result<()> {
    let binary = static_binary(Profile::Dev)?;
    write(&binary, &workspace::binary("debug", "weir-image.tar")?)
}

fn write(binary: &Path, output: &Path) -> Result<()> {
    let content = fs::read(binary).with_context(|| binary.display().to_string())?;
    let image = Image::new(content, epoch()?);
    let (archive, digest) = image.archive(REPOSITORY, VERSION)?;
    fs::write(output, &archive).with_context(|| output.display().to_string())?;
    println!("{REPOSITORY}:{VERSION}  {digest}  {} bytes\n{}", archive.len(), output.display());
    Ok(())
}

/// The reproducible-builds.org convention; seconds since 1970.
fn epoch() -> Result<u64> {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH={text:?}")),
        Err(_) => Ok(0),
    }
}

/// Compiles `weir` and links it with a static C library, which needs nothing that a usual build does not: the crates are
/// the same for both, and only the last step differs. cargo keeps both programs apart and puts the last one asked for at
/// `target/.../weir`, so this one is moved aside and the usual one put back by the next `cargo build`.
fn static_binary(profile: Profile) -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.args(["rustc", "--locked", "--package", "proxy-agent", "--bin", BINARY]);
    let built = match profile {
        Profile::Dev => workspace::binary("debug", BINARY)?,
        Profile::Release => {
            let target_dir = workspace::binary("image", "")?;
            without_own_paths(&mut command, &target_dir)?;
            command.arg("--release").arg("--target-dir").arg(&target_dir);
            target_dir.join("release").join(BINARY)
        }
    };
    run::run(command.args(["--", "-Ctarget-feature=+crt-static", "-Cstrip=symbols"]))?;
    let kept = built.with_extension("static");
    fs::copy(&built, &kept).with_context(|| built.display().to_string())?;
    if profile == Profile::Dev {
        // The suites run the usual program.
        run::run(workspace::cargo().args(["build", "--quiet", "--locked", "--package", "proxy-agent", "--bins"]))?;
    }
    check_static(&kept)?;
    Ok(kept)
}

/// Panics name source files: those of the registry, the workspace and generated ones become independent of this machine.
/// All crates are compiled anew for that, in a directory of their own.
fn without_own_paths(command: &mut Command, target_dir: &Path) -> Result<()> {
    let home =
        env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo")));
    let home = home.context("neither CARGO_HOME nor HOME is set")?;
    // The last that fits is taken.
    let places = [(home.as_path(), "/cargo"), (workspace::root(), "/weir"), (target_dir, "/target")];
    let mut flags = Vec::new();
    for (from, to) in places {
        let from = from.to_str().with_context(|| format!("{} is not UTF-8", from.display()))?;
        flags.push(format!("--remap-path-prefix={from}={to}"));
    }
    // cargo takes these in place of RUSTFLAGS; the separator may not occur in paths.
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env_remove("RUSTFLAGS");
    Ok(())
}

/// A program that asks for a loader would end with "no such file" in the image.
fn check_static(binary: &Path) -> Result<()> {
    let headers = run::capture(Command::new("readelf").args(["--program-headers", "--wide"]).arg(binary))?;
    if headers.contains("INTERP") {
        bail!("{} is linked dynamically; the static C library is missing (libc6-dev)", binary.display());
    }
    Ok(())
}
