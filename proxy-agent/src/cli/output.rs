//! Tables for people, JSON for programs. Every inspection command prints through this.

use comfy_table::{Table, presets};
use serde::Serialize;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    #[default]
    Table,
    Json,
}

/// One line of a table, and one element of the JSON array.
pub(super) trait Row: Serialize {
    const COLUMNS: &'static [&'static str];
    fn cells(&self) -> Vec<String>;
}

/// Prints `rows`; `when_empty` in place of a table without lines.
pub(super) fn print_rows<R: Row>(rows: &[R], format: Format, when_empty: &str) -> anyhow::Result<()> {
    match format {
        Format::Json => print_json(&rows),
        Format::Table if rows.is_empty() => {
            println!("{when_empty}");
            Ok(())
        }
        Format::Table => {
            println!("{}", table(rows));
            Ok(())
        }
    }
}

pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Without borders, so that lines can be cut and compared by other tools.
pub(super) fn table<R: Row>(rows: &[R]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(R::COLUMNS.iter().copied());
    for row in rows {
        table.add_row(row.cells());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Pair(&'static str, u32);

    impl Row for Pair {
        const COLUMNS: &'static [&'static str] = &["NAME", "COUNT"];
        fn cells(&self) -> Vec<String> {
            vec![self.0.to_owned(), self.1.to_string()]
        }
    }

    #[test]
    fn aligned_and_without_borders() {
        assert_eq!(
            table(&[Pair("one", 1), Pair("twenty-two", 22)]),
            "NAME        COUNT\none         1\ntwenty-two  22"
        );
    }
}
