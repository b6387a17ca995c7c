//! The table of paths: walks all of them, prints what came of each.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};

use super::{
    expect::{self, Row},
    paths::PATHS,
    progress::Progress,
    stage::Stage,
};
use crate::call::{Outcome, Proto};

/// How many rows are as expected, of how many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) good: usize,
    pub(super) all: usize,
}

impl Tally {
    pub(super) fn count(&mut self, good: bool) {
        self.good += usize::from(good);
        self.all += 1;
    }
}

/// Walks every path and prints the table.
pub(super) async fn show(stage: &Stage, progress: &Progress, tally: &mut Tally) -> Result<()> {
    let mut rows = Vec::with_capacity(PATHS.len());
    progress.start("walking the paths", PATHS.len());
    for path in PATHS {
        let row = expect::walk(stage, path).await?;
        tally.count(row.complaint.is_none());
        rows.push(row);
        progress.step();
    }
    progress.end();
    println!("{}", render(stage, &rows));
    Ok(())
}

fn render(stage: &Stage, rows: &[Row]) -> Table {
    let mut table = Table::new();
    // Wraps at a terminal that is too narrow.
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
        "path",
        "from",
        "to",
        "answered by",
        "source it saw",
        "expected",
        "",
    ]);
    for row in rows {
        let verdict = match &row.complaint {
            None => Cell::new("ok").fg(Color::Green),
            Some(complaint) => Cell::new(format!("FAIL: {complaint}")).fg(Color::Red),
        };
        let backends: Vec<String> = row.seen.iter().map(|((pod, _), count)| format!("{pod} {count}x")).collect();
        let sources: Vec<String> = row.seen.keys().map(|(_, source)| named(stage, *source)).collect();
        let answered = if backends.is_empty() { nobody(row.outcome.as_ref()) } else { backends.join("\n") };
        table.add_row([
            Cell::new(row.path.title),
            Cell::new(row.path.from),
            Cell::new(destination(row.path.proto, row.to)),
            Cell::new(answered),
            Cell::new(sources.join("\n")),
            Cell::new(&row.expected),
            verdict,
        ]);
    }
    table
}

fn nobody(outcome: Option<&Outcome>) -> String {
    match outcome {
        Some(Outcome::Refused) => "(refused)".to_owned(),
        Some(Outcome::TimedOut) => "(no answer)".to_owned(),
        Some(other) => format!("({other:?})"),
        None => String::new(),
    }
}

fn destination(proto: Proto, to: SocketAddr) -> String {
    match proto {
        Proto::Tcp => to.to_string(),
        Proto::Udp => format!("{to} UDP"),
    }
}

/// The address with the name of the host that has it.
fn named(stage: &Stage, ip: IpAddr) -> String {
    stage.owner_of(ip).map_or_else(|| ip.to_string(), |name| format!("{ip} {name}"))
}
