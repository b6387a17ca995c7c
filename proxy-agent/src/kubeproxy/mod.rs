//! kube-proxy's configuration, as Weir understands it: the file that `weir agent --config` reads, and kube-proxy's flags.
//!
//! [`load`] makes [`Settings`] of both, and findings: what has no meaning here, what is unknown. Called by `weir agent` and
//! `weir check`. The table of all fields and flags is in [`table`].

mod document;
mod field;
mod flags;
#[cfg(test)]
mod markdown;
mod read;
mod settings;
mod table;
#[cfg(test)]
mod tests;
mod value;
mod verbosity;

use std::{fmt, io, path::PathBuf};

pub use flags::KubeProxyFlags;
pub use settings::{Endpoint, Settings};
pub use verbosity::Verbosity;

use read::{Place, Said};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{0}")]
    Yaml(String),
    #[error("holds no KubeProxyConfiguration{}{found}", if found.is_empty() { "" } else { ", but " })]
    None { found: String },
    #[error("holds more than one KubeProxyConfiguration")]
    Several,
    #[error("line {line}: {field}: expected {expected:?}, got {got:?}")]
    Kind { field: &'static str, line: u64, expected: &'static str, got: String },
    #[error("{}", .0.join("; "))]
    Values(Vec<String>),
    #[error("unknown fields: {}", .0.join("; "))]
    Unknown(Vec<String>),
    #[error("--{flag} is not a way to run the agent: {what}")]
    Refused { flag: &'static str, what: &'static str },
    #[error("{}: {error}", path.display())]
    InFile { path: PathBuf, error: Box<ConfigError> },
}

/// Something that is not as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub unknown: bool,
    /// `line 7: ` and the path, or the flag.
    pub place: String,
    pub message: String,
}

impl Finding {
    fn unknown(path: &str, line: u64) -> Self {
        Self { unknown: true, place: format!("line {line}: {path}"), message: "unknown field".into() }
    }

    fn no_effect(said: &Said, path: &str, what: &str) -> Self {
        Self::of(said, path, &format!("{} has no effect: {what}", said.value))
    }

    fn of(said: &Said, path: &str, message: &str) -> Self {
        let place = match said.place {
            Place::Line(line) => format!("line {line}: {path}"),
            Place::Flag(flag) => format!("--{flag}"),
        };
        Self { unknown: false, place, message: message.to_owned() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// What the file (if any) and the flags ask for. With `strict`, unknown fields are an error.
pub fn load(
    file: Option<&std::path::Path>,
    flags: &KubeProxyFlags,
    strict: bool,
) -> Result<(Settings, Vec<Finding>), ConfigError> {
    let (mut values, mut findings) = match file {
        Some(path) => {
            let in_file = |error| ConfigError::InFile { path: path.to_owned(), error: Box::new(error) };
            let text =
                std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
            let (values, unknown) = document::find(&text).and_then(|node| read::read(&node)).map_err(in_file)?;
            if strict && !unknown.is_empty() {
                return Err(in_file(ConfigError::Unknown(unknown.into_iter().map(|it| it.place).collect())));
            }
            (values, unknown)
        }
        None => Default::default(),
    };
    findings.extend(flags.overlay(&mut values)?);
    findings.extend(read::without_meaning(&values));
    let (settings, more) = settings::translate(&values, file.is_some())?;
    findings.extend(more);
    Ok((settings, findings))
}
