//! The figures as a table and as JSON.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Cell, Table, presets};
use serde::Serialize;

use super::{
    case::{Case, Flows, Goal},
    measure::Times,
};
use crate::bench::report::{verdict, write_json};

pub(super) struct Figure {
    pub(super) case: Case,
    pub(super) times: Times,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    hook: &'static str,
    packets: &'static str,
    state: &'static str,
    flows: &'static str,
    /// Nanoseconds, the quickest run less the quickest run of nothing.
    net_ns: f64,
    floor_ns: f64,
    /// To the floor; of known flows only: the floor knows no new ones.
    ratio: Option<f64>,
    goal: String,
    met: bool,
    runs_ns: &'a Times,
}

impl Figure {
    fn line(&self) -> Result<Line<'_>> {
        let quickest = |runs: &[u32]| runs.iter().min().copied().map(f64::from).context("nothing was measured");
        let nothing = quickest(&self.times.nothing)?;
        let (net_ns, floor_ns) = (quickest(&self.times.program)? - nothing, quickest(&self.times.floor)? - nothing);
        let known = matches!(self.case.flows, Flows::One | Flows::Many);
        let ratio = (known && floor_ns > 0.0).then(|| net_ns / floor_ns);
        let (goal, met) = match self.case.goal {
            Goal::Nanoseconds(most) => (format!("{most:.0} ns"), net_ns <= most),
            Goal::FloorRatio(most) => (format!("{most:.1} x floor"), ratio.is_some_and(|ratio| ratio <= most)),
        };
        Ok(Line {
            hook: self.case.hook(),
            packets: self.case.packets(),
            state: self.case.state,
            flows: self.case.flows.in_words(),
            net_ns,
            floor_ns,
            ratio,
            goal,
            met,
            runs_ns: &self.times,
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
    Ok(lines.iter().all(|line| line.met))
}

fn table(lines: &[Line<'_>]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
        "hook",
        "packets",
        "state",
        "flows",
        "ns",
        "floor, ns",
        "ratio",
        "goal",
        "",
    ]);
    for line in lines {
        table.add_row([
            Cell::new(line.hook),
            Cell::new(line.packets),
            Cell::new(line.state),
            Cell::new(line.flows),
            Cell::new(format!("{:.0}", line.net_ns)),
            Cell::new(format!("{:.0}", line.floor_ns)),
            Cell::new(line.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"))),
            Cell::new(&line.goal),
            verdict(Some(line.met)),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::packet::case;

    #[test]
    fn a_time_is_net_of_the_quickest_empty_run() {
        let times = Times { nothing: vec![41, 40, 50], floor: vec![84, 82, 90], program: vec![120, 101, 100] };
        let cases = case::all();
        let one = |flows| cases.iter().find(|case| case.flows == flows).copied().expect("there is one");
        let figure = Figure { case: one(Flows::One), times: times.clone() };
        let line = figure.line().expect("measured");
        assert_eq!((line.net_ns, line.floor_ns, line.met), (60.0, 42.0, true));
        let figure = Figure { case: one(Flows::Many), times };
        assert!(!figure.line().expect("measured").met, "60 is more than 1.3 times 42");
    }
}
