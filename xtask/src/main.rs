//! Everything a developer runs: `cargo xtask setup | build-ebpf | image | test | vmtest | demo | bench`.
//! Reads the command line and decides the exit code; each command lives in a module of its own.

mod apt;
mod build_ebpf;
mod cache;
mod doc_links;
mod elf;
mod image;
mod launch;
mod run;
mod setup;
mod summary;
mod test;
mod toolchain;
mod vmtest;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::toolchain::Choice;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find what is missing on this machine and install it (Debian and Ubuntu), or say what to install
    Setup {
        /// Only report; the exit code is 1 when something is missing
        #[arg(long)]
        check: bool,
    },
    /// Build the kernel object into target/ebpf/weir.o, where the agent's build embeds it
    BuildEbpf {
        /// Which Rust toolchain compiles the kernel programs [default: $WEIR_EBPF_TOOLCHAIN or auto]
        #[arg(long, value_enum)]
        toolchain: Option<Choice>,
        /// Fail on compiler warnings in the workspace's own crates
        #[arg(long)]
        deny_warnings: bool,
        /// Also load the programs (needs root) and print what the verifier says of each: instructions and stack
        #[arg(long)]
        report: bool,
    },
    /// Build the agent as a container image in one file, without a container engine
    Image(image::Options),
    /// Run every check and test; the last line is `N passed, N failed, N skipped`
    Test(test::Options),
    /// Boot other kernels in qemu, and there load, attach and run the scenarios of the kernel suite
    Vmtest(vmtest::Options),
    /// Build all, then show real requests reaching their backends (needs root)
    #[command(disable_help_flag = true)]
    Demo {
        /// Passed on to `weir-rig demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Build with optimisation, then measure (needs root): `bench connect`
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to `weir-rig bench`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup { check: true } => setup::report(),
        Command::Setup { check: false } => setup::ensure(setup::Scope::All).map(|()| ExitCode::SUCCESS),
        Command::BuildEbpf { toolchain, deny_warnings, report } => build_ebpf::run(toolchain, deny_warnings)
            .and_then(|code| if report { launch::programs() } else { Ok(code) }),
        Command::Image(options) => image::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Vmtest(options) => vmtest::run(&options),
        Command::Demo { args } => launch::demo(&args),
        Command::Bench { args } => launch::bench(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
