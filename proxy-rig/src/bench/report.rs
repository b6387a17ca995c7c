//! The figures of `connect` as a table and as JSON; `packet` uses the parts that are not about pairs.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use comfy_table::{Cell, Color, Table, presets};
use serde::Serialize;

use super::{
    stats::{self, Estimate},
    wrk::{Mode, Run},
};

/// Requests per second of two runs, one after the other.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Pair {
    pub(super) straight: Run,
    pub(super) service: Run,
}

/// One line of the table, before it is evaluated.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) mode: Mode,
    pub(super) goal: Option<f64>,
    pub(super) pairs: Vec<Pair>,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    name: &'a str,
    mode: Mode,
    straight_per_second: f64,
    service_per_second: f64,
    ratio: Estimate,
    goal: Option<f64>,
    met: Option<bool>,
    /// Of all runs, both sides.
    socket_errors: u64,
    pairs: &'a [Pair],
}

impl Figure {
    fn line(&self) -> Result<Line<'_>> {
        let ratios: Vec<f64> =
            self.pairs.iter().map(|pair| pair.service.per_second / pair.straight.per_second).collect();
        let ratio = stats::estimate(&ratios).with_context(|| format!("{}: nothing was measured", self.name))?;
        let middle = |side: fn(&Pair) -> f64| stats::median(self.pairs.iter().map(side).collect()).unwrap_or_default();
        Ok(Line {
            name: self.name,
            mode: self.mode,
            straight_per_second: middle(|pair| pair.straight.per_second),
            service_per_second: middle(|pair| pair.service.per_second),
            ratio,
            goal: self.goal,
            // Reached by the interval, not only by the median.
            met: self.goal.map(|goal| ratio.high >= goal),
            socket_errors: self.pairs.iter().map(|it| it.straight.socket_errors + it.service.socket_errors).sum(),
            pairs: &self.pairs,
        })
    }
}

/// Prints the table, writes the JSON. True when every goal is met.
pub(super) fn show(figures: &[Figure], json: Option<&Path>) -> Result<bool> {
    let lines = figures.iter().map(Figure::line).collect::<Result<Vec<_>>>()?;
    println!("{}", table(&lines));
    if let Some(path) = json {
        write_json(path, &lines)?;
    }
    Ok(lines.iter().all(|line| line.met != Some(false)))
}

/// The figures, and where they were taken.
pub(super) fn write_json(path: &Path, figures: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(&serde_json::json!({
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "figures": figures,
    }))?;
    fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    println!("written to {}", path.display());
    Ok(())
}

/// Whether a goal is met, if there is one.
pub(super) fn verdict(met: Option<bool>) -> Cell {
    match met {
        Some(true) => Cell::new("met").fg(Color::Green),
        Some(false) => Cell::new("missed").fg(Color::Red),
        None => Cell::new(""),
    }
}

fn table(lines: &[Line<'_>]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
        "path",
        "connections",
        "straight, 1/s",
        "Service, 1/s",
        "ratio",
        "95 % interval",
        "socket errors",
        "goal",
        "",
    ]);
    for line in lines {
        table.add_row([
            Cell::new(line.name),
            Cell::new(match line.mode {
                Mode::NewConnections => "one per request",
                Mode::KeepAlive => "kept alive",
            }),
            Cell::new(format!("{:.0}", line.straight_per_second)),
            Cell::new(format!("{:.0}", line.service_per_second)),
            Cell::new(format!("{:.3}", line.ratio.median)),
            Cell::new(format!("{:.3} to {:.3}", line.ratio.low, line.ratio.high)),
            Cell::new(line.socket_errors),
            Cell::new(line.goal.map_or_else(String::new, |goal| format!("{goal:.2}"))),
            verdict(line.met),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_when_the_interval_reaches_it() {
        let run = |per_second| Run { per_second, socket_errors: 0 };
        let figure = |rates: &[f64]| Figure {
            name: "x",
            mode: Mode::KeepAlive,
            goal: Some(0.95),
            pairs: rates.iter().map(|rate| Pair { straight: run(100.0), service: run(*rate) }).collect(),
        };
        assert_eq!(figure(&[96.0; 11]).line().unwrap().met, Some(true));
        assert_eq!(figure(&[90.0; 11]).line().unwrap().met, Some(false));
        let wide = figure(&[92.0, 92.5, 93.0, 93.5, 94.0, 94.5, 95.0, 95.5, 96.0, 97.0, 98.0]);
        let line = wide.line().unwrap();
        assert!(line.ratio.median < 0.95 && line.met == Some(true), "{line:?}");
    }
}
