//! Counts of tests, read from what the test runners print: nextest's summary, and the result lines of
//! the standard harness, which the rig's suites print too. Called by test.

use std::{fmt, ops::AddAssign};

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// nextest: `Summary [   1.234s] 9 tests run: 7 passed (1 slow), 1 failed, 1 timed out, 2 skipped`.
/// Everything that ran and did not pass has failed.
pub(crate) fn of_nextest(output: &str) -> Option<Counts> {
    let output = without_escapes(output);
    let line = output.lines().rev().find(|line| line.trim_start().starts_with("Summary ["))?;
    let list = without_parentheses(line.split_once(" run:")?.1);
    let mut counts = Counts::default();
    for part in list.split(',') {
        let (number, outcome) = part.trim().split_once(' ')?;
        let number: usize = number.parse().ok()?;
        match outcome.trim() {
            "passed" => counts.passed += number,
            "skipped" => counts.skipped += number,
            _ => counts.failed += number,
        }
    }
    Some(counts)
}

/// The sum of all `test result: ok. 3 passed; 0 failed; 1 ignored; ...` lines; `None` without any.
pub(crate) fn of_result_lines(output: &str) -> Option<Counts> {
    let output = without_escapes(output);
    let mut sum = None;
    for line in output.lines() {
        let Some((_, list)) = line.split_once("test result:").and_then(|(_, rest)| rest.split_once(". ")) else {
            continue;
        };
        let number = |name: &str| {
            let number = list.split(';').find_map(|part| part.trim().strip_suffix(name))?;
            number.trim().parse().ok()
        };
        if let (Some(passed), Some(failed)) = (number("passed"), number("failed")) {
            let skipped = number("ignored").unwrap_or(0);
            *sum.get_or_insert_with(Counts::default) += Counts { passed, failed, skipped };
        }
    }
    sum
}

/// The number of tests in the output of `--list`: lines that end in `: test`.
pub(crate) fn of_list(output: &str) -> usize {
    output.lines().filter(|line| line.trim_end().ends_with(": test")).count()
}

/// Without the escape sequences that colour a terminal.
fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\x1b' {
            characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(character);
        }
    }
    plain
}

fn without_parentheses(text: &str) -> String {
    let mut depth = 0_usize;
    text.chars()
        .filter(|character| {
            match character {
                '(' => depth += 1,
                ')' => {
                    depth = depth.saturating_sub(1);
                    return false;
                }
                _ => {}
            }
            depth == 0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: usize, failed: usize, skipped: usize) -> Counts {
        Counts { passed, failed, skipped }
    }

    #[test]
    fn nextest_summary_of_success() {
        let output =
            "     PASS [   0.004s] xtask a\n────────\n     Summary [   0.010s] 3 tests run: 3 passed, 0 skipped\n";
        assert_eq!(of_nextest(output), Some(counts(3, 0, 0)));
        assert_eq!(of_nextest("     Summary [   0.010s] 1 test run: 1 passed, 4 skipped\n"), Some(counts(1, 0, 4)));
    }

    #[test]
    fn nextest_summary_of_failures() {
        let output = "     Summary [   1.234s] 9 tests run: 6 passed (1 slow, 1 leaky), 1 failed, 1 timed out, 1 exec failed, 2 skipped";
        assert_eq!(of_nextest(output), Some(counts(6, 3, 2)));
    }

    #[test]
    fn nextest_summary_in_colour() {
        let output = "\x1b[32;1m     Summary\x1b[0m [   0.010s] \x1b[1m3\x1b[0m tests run: \x1b[1m3\x1b[0m \x1b[32;1mpassed\x1b[0m, \x1b[1m0\x1b[0m \x1b[33;1mskipped\x1b[0m";
        assert_eq!(of_nextest(output), Some(counts(3, 0, 0)));
    }

    #[test]
    fn no_summary_is_no_count() {
        assert_eq!(of_nextest("error: could not compile `xtask`\n"), None);
        assert_eq!(of_result_lines("panicked\n"), None);
    }

    #[test]
    fn result_lines_are_summed() {
        let output = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.10s\n";
        assert_eq!(of_result_lines(output), Some(counts(8, 2, 1)));
    }

    #[test]
    fn listed_tests_are_counted() {
        assert_eq!(of_list("cluster_ip: test\nnode_port: test\n\n2 tests, 0 benchmarks\n"), 2);
    }

    #[test]
    fn the_closing_line() {
        assert_eq!(counts(8, 2, 1).to_string(), "8 passed, 2 failed, 1 skipped");
    }
}
