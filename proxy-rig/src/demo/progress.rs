//! Shows how far a long step is: a bar at a terminal, one line per step elsewhere.

use std::{
    cell::RefCell,
    io::{self, IsTerminal},
    time::Instant,
};

use indicatif::{ProgressBar, ProgressStyle};

/// Written to by the demo and the bench.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    begun: Instant,
    bar: RefCell<Option<ProgressBar>>,
}

impl Default for Progress {
    fn default() -> Self {
        Self { terminal: io::stderr().is_terminal(), begun: Instant::now(), bar: RefCell::new(None) }
    }
}

impl Progress {
    /// A step of known length begins.
    pub fn start(&self, what: &str, steps: usize) {
        if !self.terminal {
            eprintln!("[{:5.1} s] {what}", self.begun.elapsed().as_secs_f64());
            return;
        }
        let bar = ProgressBar::new(steps as u64);
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        self.bar.replace(Some(bar));
    }

    pub fn step(&self) {
        if let Some(bar) = &*self.bar.borrow() {
            bar.inc(1);
        }
    }

    pub fn end(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
