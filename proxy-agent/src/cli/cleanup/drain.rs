//! `weir cleanup --drain`: new flows fall to what is beside Weir, those that are open go on to their end.

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::{Format, left::Left, remove};
use crate::{
    cli::tables::{self, TableError},
    dataplane::{Dataplane as _, DataplaneError, KernelMaps},
    loader::Pins,
    takeover::{self, Plan},
};

/// Between two looks at the tables, which take a second when they are full.
const POLL: Duration = Duration::from_millis(500);
/// A line at least this often, and when numbers change at most this often.
const LINE_EVERY: Duration = Duration::from_secs(10);
const LINE_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, clap::Args)]
pub(super) struct DrainArgs {
    /// Give the frontends back, so that new flows fall to kube-proxy's rules, and remove the rest when the last translated flow
    /// has ended
    #[arg(long)]
    pub(super) drain: bool,
    /// Longest wait for the last flow; what is left is cut then (exit code 4)
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration, requires = "drain")]
    timeout: Duration,
    /// A UDP flow is over when it was silent for this long
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration, requires = "drain")]
    udp_idle: Duration,
}

/// The time was up; the exit code is its own.
#[derive(Debug, thiserror::Error)]
#[error("{0} flows were cut: they had not ended when the time was up")]
pub(in crate::cli) struct FlowsCut(usize);

/// A line of progress, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Progress<'a> {
    elapsed_s: u64,
    #[serde(flatten)]
    left: &'a Left,
}

pub(super) fn run(pin_root: &Path, args: &DrainArgs, output: Format) -> anyhow::Result<()> {
    let pins = match tables::pins(pin_root) {
        Ok(pins) => pins,
        Err(TableError::NothingLoaded(_)) if Pins::all_versions(pin_root)?.is_empty() => {
            return remove(pin_root, Some(Left::default()), output).map(drop);
        }
        Err(TableError::NothingLoaded(_)) => bail!(
            "the maps below {} are not of this version of Weir; drain with the version that made them",
            pin_root.display()
        ),
        Err(error) => return Err(error.into()),
    };
    warn_if_alone();
    let udp_idle_s = u32::try_from(args.udp_idle.as_secs()).unwrap_or(u32::MAX);
    let frontends = give_back(&pins, &Left::read(&pins, udp_idle_s)?).context("give the frontends back")?;
    if output == Format::Table {
        println!("{frontends} frontends given back: new flows are not Weir's any more");
    }
    let left = wait(&pins, args.timeout, udp_idle_s, output)?;
    match remove(pin_root, Some(left), output)? {
        0 => Ok(()),
        cut => Err(FlowsCut(cut).into()),
    }
}

/// Weir drains all the same: the rules may be another proxy's.
fn warn_if_alone() {
    let found = Plan::look().is_ok_and(|plan| plan.items().next().is_some() || !plan.missing.is_empty());
    if !found {
        eprintln!(
            "weir: warning: no rules of kube-proxy are on this node; new connections to Services may find nobody"
        );
    }
}

/// Returns how many frontends there were.
fn give_back(pins: &Pins, left: &Left) -> Result<usize, DataplaneError> {
    let mut maps = KernelMaps::from_pins(pins.dir())?;
    let actual = maps.read_all()?;
    for op in takeover::release(&actual, &left.frontends) {
        maps.apply(&op)?;
    }
    Ok(actual.v4.services.len() + actual.v6.services.len())
}

/// Returns what is left when the last flow has ended or the time is up.
fn wait(pins: &Pins, timeout: Duration, udp_idle_s: u32, output: Format) -> anyhow::Result<Left> {
    let started = Instant::now();
    let mut told: Option<(Instant, Left)> = None;
    loop {
        let before = Instant::now();
        let left = Left::read(pins, udp_idle_s)?;
        let (now, cost) = (Instant::now(), before.elapsed());
        let due = told.as_ref().is_none_or(|(at, last)| {
            let pause = now.duration_since(*at);
            pause >= LINE_EVERY || pause >= LINE_PAUSE && *last != left
        });
        if due {
            tell(started.elapsed(), &left, output)?;
            told = Some((now, left.clone()));
        }
        let rest = timeout.saturating_sub(started.elapsed());
        if left.total() == 0 || rest.is_zero() {
            return Ok(left);
        }
        sleep(POLL.max(4 * cost).min(rest));
    }
}

fn tell(elapsed: Duration, left: &Left, output: Format) -> anyhow::Result<()> {
    let elapsed_s = elapsed.as_secs();
    match output {
        Format::Json => println!("{}", serde_json::to_string(&Progress { elapsed_s, left })?),
        Format::Table => println!("{elapsed_s} s: {left}"),
    }
    Ok(())
}

/// `90s`, `10m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a number and a unit, such as 90s, 10m or 1h, got {text:?}");
    let unit_at = text.len().saturating_sub(1);
    let seconds = match text.get(unit_at..) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        _ => return Err(wrong()),
    };
    let number: u32 = text[..unit_at].parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for text in ["", "m", "10", "-1s", "1d", "1.5h", "10€"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
