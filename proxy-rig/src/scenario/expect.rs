//! What a scenario expects of a packet, and whether an outcome is that.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use proxy_common::abi::{Action, Reason};

use super::{
    frame::{checksums_are_right, describe, quoted_tuple, tuple_of},
    notation::TuplePattern,
};

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub action: Action,
    pub reason: Reason,
    /// Interface of a redirect, by its scenario name.
    pub interface: Option<String>,
    /// `SERVICE-PORT ADDRESS:PORT`.
    pub backend: Option<String>,
    /// The frame as it leaves; of a drop, as it came.
    pub frame: Vec<u8>,
}

/// The text of `expect:`.
#[derive(Clone, Debug)]
pub struct Expectation {
    action: Action,
    reason: Option<Reason>,
    interface: Option<String>,
    /// None: unchanged, or of a redirect, anything.
    tuple: Option<TuplePattern>,
    /// Of the packet that an ICMP error quotes.
    about: Option<TuplePattern>,
}

impl Expectation {
    /// `pass [TUPLE]`, `drop REASON`, `refuse REASON`, `redirect INTERFACE [TUPLE]`.
    pub fn parse(text: &str, reason: Option<&str>) -> Result<Self> {
        Self::parse_words(text, reason).with_context(|| format!("expect {text:?}"))
    }

    fn parse_words(text: &str, reason: Option<&str>) -> Result<Self> {
        let (text, about) = text.split_once(" about ").map_or((text, None), |(text, about)| (text, Some(about)));
        let words: Vec<&str> = text.split_whitespace().collect();
        let about =
            about.map(|about| TuplePattern::parse(&about.split_whitespace().collect::<Vec<_>>())).transpose()?;
        let tuple = |words: &[&str]| if words.is_empty() { Ok(None) } else { TuplePattern::parse(words).map(Some) };
        let named = reason.map(reason_of).transpose()?;
        Ok(match words[..] {
            ["pass", ref rest @ ..] => {
                Self { action: Action::Pass, reason: named, interface: None, tuple: tuple(rest)?, about }
            }
            ["drop", reason] => Self {
                action: Action::Drop,
                reason: Some(reason_of(reason)?),
                interface: None,
                tuple: None,
                about: None,
            },
            ["refuse", reason] => Self {
                action: Action::Reply,
                reason: Some(reason_of(reason)?),
                interface: None,
                tuple: None,
                about: None,
            },
            ["redirect", interface, ref rest @ ..] => Self {
                action: Action::Redirect,
                reason: named,
                interface: Some(interface.to_owned()),
                tuple: tuple(rest)?,
                about,
            },
            _ => bail!("expected pass, drop REASON, refuse REASON or redirect INTERFACE"),
        })
    }

    pub(super) fn pass(tuple: Option<TuplePattern>, reason: Option<Reason>) -> Self {
        Self { action: Action::Pass, reason, interface: None, tuple, about: None }
    }

    pub(super) fn redirect(interface: &str, tuple: Option<TuplePattern>) -> Self {
        Self { action: Action::Redirect, reason: None, interface: Some(interface.to_owned()), tuple, about: None }
    }

    /// Says what is wrong with the outcome of `sent`.
    pub fn check(&self, sent: &[u8], outcome: &Outcome) -> Result<()> {
        if outcome.action != self.action {
            bail!("expected {}, got {}", action_word(self.action), outcome.in_words());
        }
        if let Some(reason) = self.reason
            && reason != outcome.reason
        {
            bail!("expected reason {}, got {}", reason.name(), outcome.in_words());
        }
        if self.interface.is_some() && self.interface != outcome.interface {
            bail!("expected interface {}, got {}", self.interface.as_deref().unwrap_or("-"), outcome.in_words());
        }
        match (&self.tuple, self.action) {
            (Some(tuple), _) => {
                let (protocol, src, dst) = tuple_of(&outcome.frame).context("what left is no IP packet")?;
                if !tuple.matches(protocol, src, dst) {
                    bail!("another tuple was expected, got {}", outcome.in_words());
                }
                if let Some(about) = &self.about {
                    let (protocol, src, dst) = quoted_tuple(&outcome.frame).context("nothing is quoted")?;
                    if !about.matches(protocol, src, dst) {
                        bail!("another quote was expected, got {}", outcome.in_words());
                    }
                }
            }
            (None, Action::Pass) if outcome.frame != sent => bail!("expected no change, got {}", outcome.in_words()),
            (None, Action::Reply) => check_refusal(sent, outcome)?,
            _ => {}
        }
        if checksums_are_right(sent) && !checksums_are_right(&outcome.frame) {
            bail!("a checksum is wrong after {}", outcome.in_words());
        }
        Ok(())
    }
}

/// A refusal comes from the frontend and goes to the client.
fn check_refusal(sent: &[u8], outcome: &Outcome) -> Result<()> {
    let (_, src, dst) = tuple_of(sent).context("what was refused is no IP packet")?;
    let (protocol, from, to) = tuple_of(&outcome.frame).context("the refusal is no IP packet")?;
    let icmp = if matches!(src.ip(), IpAddr::V4(_)) { 1 } else { 58 };
    if protocol != icmp || from.ip() != dst.ip() || to.ip() != src.ip() {
        bail!("the refusal is {}", describe(&outcome.frame));
    }
    Ok(())
}

fn reason_of(name: &str) -> Result<Reason> {
    Reason::ALL.iter().copied().find(|reason| reason.name() == name).with_context(|| format!("unknown reason {name:?}"))
}

pub(crate) fn action_word(action: Action) -> &'static str {
    match action {
        Action::Pass => "pass",
        Action::Redirect => "redirect",
        Action::Reply => "refuse",
        Action::Drop => "drop",
    }
}

impl Outcome {
    /// One line for traces and messages.
    pub fn in_words(&self) -> String {
        let mut text = format!("{} ({})", action_word(self.action), self.reason.name());
        if let Some(interface) = &self.interface {
            text += &format!(" to {interface}");
        }
        if self.action != Action::Drop {
            text += &format!(": {}", describe(&self.frame));
        }
        if let Some(backend) = &self.backend {
            text += &format!(", backend {backend}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_in_words() {
        for right in ["pass", "drop no-local-endpoints", "refuse no-endpoints", "redirect pod tcp *  > 10.0.0.1:*"] {
            Expectation::parse(right, None).unwrap();
        }
        for wrong in ["", "drop", "drop for-fun", "redirect", "pass tcp 1.1.1.1:1", "reset"] {
            assert!(Expectation::parse(wrong, None).is_err(), "{wrong}");
        }
    }
}
