//! The table as docs/configuration.md shows it. A test holds the two together.

use std::fmt::Write as _;

use super::{field::Treatment, table::FIELDS};

/// All rows, in the order of the table.
pub(super) fn table() -> String {
    let mut text = "| field | flag of kube-proxy | | what Weir does |\n|---|---|---|---|\n".to_owned();
    for field in FIELDS {
        let path = if field.path.is_empty() { String::new() } else { format!("`{}`", field.path) };
        let flag = field.flag.name().map_or_else(String::new, |name| format!("`--{name}`"));
        let treatment = match field.treatment {
            Treatment::Honoured => "honoured",
            Treatment::Translated => "translated",
            Treatment::Warned => "warned",
            Treatment::Refused => "refused",
        };
        writeln!(text, "| {path} | {flag} | {treatment} | {} |", field.what).expect("invariant: a String takes all");
    }
    text
}
