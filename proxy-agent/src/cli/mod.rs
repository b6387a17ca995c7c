//! The command line. `weir agent` runs the agent; every other command reads the pinned maps, with or without an agent.

mod agent;
mod chains;
mod check;
mod cleanup;
mod dump;
mod flows;
mod output;
mod services;
mod status;
mod tables;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use proxy_common::abi::{ABI_VERSION, names};

pub use agent::AgentArgs;
use nix::sys::signal::{SigHandler, Signal, signal};
use output::{Format, print_json, print_rows};
use tables::TableError;

use crate::{loader, logging, object};

const EXIT_CODES: &str = "Exit codes: 0 success, 1 failure, 2 wrong usage, 3 nothing is loaded on this node, 4 flows were cut when the \
                          time of `cleanup --drain` was up.";

/// Kubernetes Services by eBPF, in the place of kube-proxy.
#[derive(Debug, Parser)]
#[command(name = "weir", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent: follow Services and endpoints, keep the kernel's maps as they should be
    Agent(Box<AgentArgs>),
    /// Frontends and the endpoints behind them
    Services(Inspect),
    /// Endpoints, with what is known of them
    Backends(Inspect),
    /// Tracked flows
    Flows {
        #[command(flatten)]
        inspect: Inspect,
        #[command(flatten)]
        filter: flows::FlowFilter,
        /// The table of translated source ports instead
        #[arg(long)]
        snat: bool,
    },
    /// Attached programs, fill of the maps, counters
    Status(Inspect),
    /// The maps themselves
    Maps {
        #[command(subcommand)]
        command: MapsCommand,
    },
    /// Remove every program, map and pin of every version, at once or after the last translated flow
    Cleanup {
        #[command(flatten)]
        pins: PinRoot,
        #[command(flatten)]
        args: cleanup::CleanupArgs,
    },
    /// Show the log level of the running agent, or change it until it ends
    LogLevel {
        #[command(flatten)]
        pins: PinRoot,
        /// off, error, warn, info, debug, trace, or directives as `info,proxy_agent::reconcile=trace`
        level: Option<String>,
    },
    /// Whether this node is ready for an agent with these flags: configuration, kernel, privileges, conflicts. Changes nothing
    Check(Box<check::CheckArgs>),
    /// Versions of this binary and of its map layout
    Version {
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
}

#[derive(Debug, Subcommand)]
enum MapsCommand {
    /// Names of the maps
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// All entries of one map
    Dump {
        #[command(flatten)]
        inspect: Inspect,
        /// As `weir maps list` prints it
        name: String,
    },
}

/// What every inspection command takes.
#[derive(Clone, Debug, Args)]
struct Inspect {
    #[command(flatten)]
    pins: PinRoot,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Debug, Args)]
pub struct PinRoot {
    /// Directory on a BPF file system below which maps and links are pinned
    #[arg(long, value_name = "DIR", default_value = loader::DEFAULT_PIN_ROOT, env = "WEIR_PIN_ROOT")]
    pub pin_root: PathBuf,
}

/// The exit code of a failure (see [`EXIT_CODES`]; clap itself ends with 2).
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<TableError>() {
        Some(TableError::NothingLoaded(_)) => ExitCode::from(3),
        _ if error.is::<cleanup::FlowsCut>() => ExitCode::from(4),
        _ => ExitCode::FAILURE,
    }
}

pub fn run(cli: Cli) -> anyhow::Result<()> {
    if !matches!(cli.command, Command::Agent(_)) {
        end_with_the_reader();
    }
    match cli.command {
        Command::Agent(args) => args.run(),
        Command::Services(inspect) => {
            print_rows(&services::frontends(&inspect.open()?)?, inspect.output, "No Service is programmed.")
        }
        Command::Backends(inspect) => {
            print_rows(&services::backends(&inspect.open()?)?, inspect.output, "No endpoint is programmed.")
        }
        Command::Flows { inspect, filter, snat: true } => {
            print_rows(&flows::snat(&inspect.open()?, &filter)?, inspect.output, "No such flow.")
        }
        Command::Flows { inspect, filter, snat: false } => {
            print_rows(&flows::flows(&inspect.open()?, &filter)?, inspect.output, "No such flow.")
        }
        Command::Status(inspect) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(status::Status::read(&inspect.open()?))?.print(inspect.output)
        }
        Command::LogLevel { pins, level } => {
            println!("{}", logging::control::ask(&pins.pin_root, level.as_deref())?);
            Ok(())
        }
        Command::Maps { command: MapsCommand::List { output } } => list_maps(output),
        Command::Maps { command: MapsCommand::Dump { inspect, name } } => {
            print_rows(&dump::dump(&inspect.open()?, &name)?, inspect.output, "The map is empty.")
        }
        Command::Cleanup { pins, args } => cleanup::run(&pins.pin_root, &args),
        Command::Check(args) => check::run(*args),
        Command::Version { output } => version(output),
    }
}

/// `weir ... | head`: end quietly when nobody reads on, as other commands do. Rust ignores SIGPIPE by default.
fn end_with_the_reader() {
    // SAFETY: the default action runs no code of this process.
    let result = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    // Fails for wrong signal numbers only.
    debug_assert!(result.is_ok());
}

impl Inspect {
    fn open(&self) -> Result<loader::Pins, TableError> {
        tables::pins(&self.pins.pin_root)
    }
}

fn list_maps(output: Format) -> anyhow::Result<()> {
    if output == Format::Json {
        return print_json(&names::PINNED);
    }
    for name in names::PINNED {
        println!("{name}");
    }
    Ok(())
}

fn version(output: Format) -> anyhow::Result<()> {
    let (version, programs) = (env!("CARGO_PKG_VERSION"), object::embedded().is_ok());
    if output == Format::Json {
        let facts = serde_json::json!({"version": version, "mapLayout": ABI_VERSION, "kernelPrograms": programs});
        return print_json(&facts);
    }
    let programs = if programs { "embedded" } else { "not embedded (built without `cargo xtask build-ebpf`)" };
    println!("weir {version}\nmap layout {ABI_VERSION}\nkernel programs {programs}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_loaded_has_its_own_exit_code() {
        let error = tables::pins(std::path::Path::new("/nonexistent")).unwrap_err();
        assert_eq!(exit_code(&error.into()), ExitCode::from(3));
        assert_eq!(exit_code(&anyhow::anyhow!("other")), ExitCode::FAILURE);
    }
}
