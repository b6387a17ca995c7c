//! The agent's log on standard error: text or JSON, a level that can be changed while it runs, and no more than some lines a
//! minute from one place. `weir agent` calls [`start`]; [`control`] has the socket behind `weir log-level`.

pub mod control;
mod limit;

use std::{
    env,
    str::FromStr as _,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use clap::Args;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, filter::FilterExt as _, fmt, layer::SubscriberExt as _, reload,
    util::SubscriberInitExt as _,
};

use limit::Limit;

/// Read in this order.
const VARIABLES: [&str; 2] = ["WEIR_LOG", "RUST_LOG"];
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// Reports each failed request without a bound; our own warnings name them, too.
const CHATTY: &str = "kube_client=off";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    /// One object per line
    Json,
}

#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// Form of the log on standard error [default: text]
    #[arg(long, value_enum, env = "WEIR_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// off, error, warn, info, debug, trace, or directives as `info,proxy_agent::reconcile=trace`; `weir log-level` changes it later
    /// [default: WEIR_LOG, RUST_LOG, -v, info]
    #[arg(long, value_name = "LEVEL", value_parser = checked)]
    pub log_level: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{text:?} is neither a level ({}) nor a list of directives: {reason}", LEVELS.join(", "))]
    Level { text: String, reason: String },
    #[error("the log was not started by the agent")]
    NotStarted,
    #[error("changing the level: {0}")]
    Change(#[from] reload::Error),
}

/// What is written now, and how to change it.
struct Running {
    level: Mutex<String>,
    filter: reload::Handle<EnvFilter, Registry>,
    limit: Arc<Limit>,
}

static RUNNING: OnceLock<Running> = OnceLock::new();

/// Starts the log. A second start in one process (tests) keeps the first.
pub fn start(args: &LogArgs, format: LogFormat, verbosity: &str) {
    let (level, complaint) = first_level(args.log_level.as_deref(), |name| env::var(name).ok(), verbosity);
    let filter = filter(&level).unwrap_or_else(|_| EnvFilter::new(verbosity));
    let (filter, handle) = reload::Layer::new(filter);
    let limit = Arc::new(Limit::default());
    let admitted = filter.and(limit::Admitted(Arc::clone(&limit)));
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let layer = match args.log_format.unwrap_or(format) {
        LogFormat::Text => lines.with_ansi(false).with_filter(admitted).boxed(),
        LogFormat::Json => lines.json().with_filter(admitted).boxed(),
    };
    if tracing_subscriber::registry().with(layer).try_init().is_ok() {
        let running = Running { level: Mutex::new(level), filter: handle, limit };
        // Nobody else sets it.
        let _ = RUNNING.set(running);
    }
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
}

/// Changes the level. Returns the one before.
pub fn set_level(text: &str) -> Result<String, LogError> {
    let running = RUNNING.get().ok_or(LogError::NotStarted)?;
    running.filter.reload(filter(text)?)?;
    let mut level = running.level.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::replace(&mut *level, text.to_owned()))
}

/// The present level, as it was given.
pub fn level() -> Result<String, LogError> {
    let running = RUNNING.get().ok_or(LogError::NotStarted)?;
    Ok(running.level.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Says how many lines were withheld since the last call.
pub fn tell_withheld() {
    for (place, count) in RUNNING.get().map(|running| running.limit.take_withheld()).unwrap_or_default() {
        tracing::warn!(place, count, "lines of the log were withheld, as there were too many of the kind");
    }
}

/// The level to start with, and what is wrong with a variable of the environment.
fn first_level(
    given: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
    verbosity: &str,
) -> (String, Option<String>) {
    if let Some(given) = given {
        return (given.to_owned(), None);
    }
    for name in VARIABLES {
        match variable(name).filter(|text| !text.trim().is_empty()).map(checked_owned) {
            None => {}
            Some(Ok(text)) => return (text, None),
            Some(Err(error)) => return (verbosity.to_owned(), Some(format!("{name}: {error}; it is not used"))),
        }
    }
    (verbosity.to_owned(), None)
}

fn checked_owned(text: String) -> Result<String, LogError> {
    checked(&text)
}

fn checked(text: &str) -> Result<String, LogError> {
    filter(text)?;
    Ok(text.to_owned())
}

/// A level alone is about Weir itself: of libraries everything from info on is written.
fn filter(text: &str) -> Result<EnvFilter, LogError> {
    let failed = |reason: String| LogError::Level { text: text.to_owned(), reason };
    let text = text.trim();
    let directives = match LEVELS.iter().find(|level| text.eq_ignore_ascii_case(level)) {
        Some(level @ (&"debug" | &"trace")) => format!("info,proxy_agent={level},{CHATTY}"),
        Some(level) => format!("{level},{CHATTY}"),
        // A single word would be taken for the name of a module, and nothing would be written.
        None if !text.contains('=') && !text.contains(',') => return Err(failed("no such level".to_owned())),
        None => text.to_owned(),
    };
    EnvFilter::from_str(&directives).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives() {
        assert_eq!(filter("DEBUG").expect("a level").to_string(), filter("debug").expect("a level").to_string());
        let text = filter("info").expect("a level").to_string();
        assert!(text.contains("kube_client=off") && text.contains("info"), "{text}");
        filter("info,proxy_agent::reconcile=trace").expect("directives");
        for bad in ["", "loud", "info,=x=y", "proxy_agent=loud"] {
            let error = filter(bad).expect_err(bad).to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn where_the_first_level_comes_from() {
        let both = |name: &str| Some(if name == "WEIR_LOG" { "debug" } else { "warn" }.to_owned());
        let rust_only = |name: &str| (name == "RUST_LOG").then(|| "warn".to_owned());
        let nothing = |_: &str| None;
        assert_eq!(first_level(Some("error"), both, "info").0, "error");
        assert_eq!(first_level(None, both, "info").0, "debug");
        assert_eq!(first_level(None, rust_only, "info").0, "warn");
        assert_eq!(first_level(None, nothing, "trace").0, "trace");
        let (level, complaint) = first_level(None, |_| Some("loud".to_owned()), "info");
        assert_eq!(level, "info");
        assert!(complaint.expect("a complaint").starts_with("WEIR_LOG: \"loud\""));
    }
}
