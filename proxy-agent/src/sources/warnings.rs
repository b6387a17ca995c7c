//! Warnings at a bounded rate: a broken API server or object must not fill the node's disk with log lines.

use std::time::{Duration, Instant};

/// Lines written in one window before the rest is only counted.
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);

/// Decides which warnings are written. Each source has its own.
#[derive(Debug, Default)]
pub struct Warnings {
    window: Option<Instant>,
    written: u32,
    withheld: u64,
}

/// Whether to write a line, and how many were withheld before it.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Write { withheld: u64 },
    Withhold,
}

impl Warnings {
    /// Writes the message, unless too many were written within the last minute.
    pub fn warn(&mut self, message: impl std::fmt::Display) {
        match self.turn(Instant::now()) {
            Turn::Write { withheld: 0 } => tracing::warn!("{message}"),
            Turn::Write { withheld } => tracing::warn!("{message} ({withheld} warnings before this were withheld)"),
            Turn::Withhold => {}
        }
    }

    fn turn(&mut self, now: Instant) -> Turn {
        if self.window.is_none_or(|start| now.duration_since(start) >= WINDOW) {
            self.window = Some(now);
            self.written = 0;
        }
        if self.written == LINES {
            self.withheld += 1;
            return Turn::Withhold;
        }
        self.written += 1;
        Turn::Write { withheld: std::mem::take(&mut self.withheld) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_off_and_counted() {
        let mut warnings = Warnings::default();
        let start = Instant::now();
        for _ in 0..LINES {
            assert_eq!(warnings.turn(start), Turn::Write { withheld: 0 });
        }
        assert_eq!(warnings.turn(start), Turn::Withhold);
        assert_eq!(warnings.turn(start + WINDOW / 2), Turn::Withhold);
        assert_eq!(warnings.turn(start + WINDOW), Turn::Write { withheld: 2 });
        assert_eq!(warnings.turn(start + WINDOW), Turn::Write { withheld: 0 });
    }
}
