//! What a guest wrote on its second serial line: checks, programs, and the output of the suite between them.

use std::fmt::Write as _;

use super::machine::Ended;
use crate::summary::{self, Counts};

/// Begins the guest's own lines (`proxy_rig::vmguest` prints them).
const MARK: &str = "vm-guest: ";

pub(super) struct Report {
    text: String,
    checks: Vec<Check>,
    pub(super) programs: Vec<Program>,
    suite: Option<Counts>,
}

struct Check {
    name: String,
    passed: bool,
    detail: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) name: String,
    verified: String,
    stack: String,
}

impl Report {
    /// A guest that did not come to its end has failed one check more.
    pub(super) fn parse(bytes: &[u8], ended: &Ended) -> Self {
        let text = String::from_utf8_lossy(bytes).replace('\r', "");
        let mut report = Self { checks: Vec::new(), programs: Vec::new(), suite: None, text };
        let mut complete = false;
        for line in report.text.lines() {
            let Some((_, line)) = line.split_once(MARK) else { continue };
            let words: Vec<&str> = line.splitn(5, ' ').collect();
            match words.as_slice() {
                ["check", name, outcome, detail @ ..] => report.checks.push(Check {
                    name: (*name).to_owned(),
                    passed: *outcome == "ok",
                    detail: detail.join(" "),
                }),
                ["program", name, verified, _, stack] => report.programs.push(Program {
                    name: (*name).to_owned(),
                    verified: (*verified).to_owned(),
                    stack: (*stack).to_owned(),
                }),
                ["end"] => complete = true,
                _ => {}
            }
        }
        report.suite = summary::of_result_lines(&report.text);
        if !complete {
            let detail = format!("the machine did not come to its end: {ended}");
            report.checks.push(Check { name: "end".to_owned(), passed: false, detail });
        }
        report
    }

    /// The tests of the suite stand for the check that ran them, unless that failed in another way.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = self.suite.unwrap_or_default();
        let told_by_suite = counts.failed > 0;
        for check in self.checks.iter().filter(|check| !(check.name == "suite" && told_by_suite)) {
            if check.passed {
                counts.passed += 1;
            } else {
                counts.failed += 1;
            }
        }
        counts
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn checks(&self) -> String {
        let mut lines = String::new();
        for Check { name, passed, detail } in &self.checks {
            let outcome = if *passed { "ok" } else { "FAILED" };
            let detail = match self.suite {
                Some(counts) if name == "suite" => counts.to_string(),
                _ => detail.clone(),
            };
            let _ = writeln!(lines, "{name:<8} {outcome:<6} {detail}");
        }
        lines
    }
}

/// One row for each program, two columns for each kernel: instructions verified, bytes of stack.
pub(super) fn table(kernels: &[(&str, &Report)]) -> String {
    let mut lines = format!("{:<14}", "program");
    for (release, _) in kernels {
        let _ = write!(lines, " | {release:>24}");
    }
    let _ = write!(lines, "\n{:<14}", "");
    for _ in kernels {
        let _ = write!(lines, " | {:>12} {:>11}", "instructions", "stack");
    }
    lines.push('\n');
    let first = kernels.iter().map(|(_, report)| &report.programs).max_by_key(|programs| programs.len());
    for row in first.into_iter().flatten() {
        let _ = write!(lines, "{:<14}", row.name);
        for (_, report) in kernels {
            let found = report.programs.iter().find(|program| program.name == row.name);
            let (verified, stack) = found.map_or(("-", "-"), |it| (it.verified.as_str(), it.stack.as_str()));
            let _ = write!(lines, " | {verified:>12} {stack:>11}");
        }
        lines.push('\n');
    }
    lines
}

pub(super) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "vm-guest: program connect4 812 640 96+32\r\nvm-guest: check load ok 11 programs\r\n\
        test result: ok. 40 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 9s\r\n\
        vm-guest: check suite ok scenarios\r\nvm-guest: end\r\n";

    fn counts(text: &str) -> Counts {
        Report::parse(text.as_bytes(), &Ended::ByItself).counts()
    }

    #[test]
    fn checks_and_tests_are_summed() {
        assert_eq!(counts(GOOD), Counts { passed: 42, failed: 0, skipped: 2 });
        let report = Report::parse(GOOD.as_bytes(), &Ended::ByItself);
        assert_eq!(report.programs[0].stack, "96+32");
        assert!(table(&[("6.1", &report)]).contains("connect4"));
    }

    #[test]
    fn a_failed_test_counts_once() {
        let text = GOOD.replace("0 failed", "3 failed").replace("suite ok scenarios", "suite failed exit 101");
        assert_eq!(counts(&text).failed, 3);
        let crashed = GOOD.replace("test result: ok.", "").replace("suite ok scenarios", "suite failed signal 11");
        assert_eq!(counts(&crashed).failed, 1);
    }

    #[test]
    fn a_guest_that_stops_early_has_failed() {
        assert_eq!(counts(&GOOD.replace("vm-guest: end", "")).failed, 1);
        assert_eq!(counts("").failed, 1);
    }
}
