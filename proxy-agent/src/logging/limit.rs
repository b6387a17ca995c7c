//! How many lines one place of the code may write: a flood of bad objects, or of failing writes, must not fill the node's disk.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{Level, Metadata, callsite::Identifier};
use tracing_subscriber::layer::{Context, Filter};

/// Lines of one place in one window; the rest is only counted.
const LINES: u32 = 30;
const WINDOW: Duration = Duration::from_secs(60);

/// What each place has written. There are only as many as the code has.
#[derive(Debug, Default)]
pub(super) struct Limit(Mutex<HashMap<Identifier, Place>>);

#[derive(Debug)]
struct Place {
    window: Instant,
    written: u32,
    withheld: u64,
    name: String,
}

/// The filter in front of the writer.
pub(super) struct Admitted(pub(super) Arc<Limit>);

impl<S> Filter<S> for Admitted {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    /// Who asks for debug wants all of it.
    fn event_enabled(&self, event: &tracing::Event<'_>, _: &Context<'_, S>) -> bool {
        *event.metadata().level() > Level::INFO || self.0.admit(event.metadata(), Instant::now())
    }
}

impl Limit {
    fn admit(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(metadata.callsite()).or_insert_with(|| Place {
            window: now,
            written: 0,
            withheld: 0,
            name: format!("{}:{}", metadata.file().unwrap_or("?"), metadata.line().unwrap_or_default()),
        });
        if now.duration_since(place.window) >= WINDOW {
            (place.window, place.written) = (now, 0);
        }
        if place.written == LINES {
            place.withheld += 1;
            return false;
        }
        place.written += 1;
        true
    }

    /// Places that had to withhold lines since the last call, and how many.
    pub(super) fn take_withheld(&self) -> Vec<(String, u64)> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let withheld = places.values_mut().filter(|place| place.withheld > 0);
        withheld.map(|place| (place.name.clone(), std::mem::take(&mut place.withheld))).collect()
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::{Layer as _, fmt, layer::SubscriberExt as _};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flood_from_one_place_is_cut_off_and_counted() {
        let (limit, lines) = (Arc::new(Limit::default()), Lines::default());
        let writer = lines.clone();
        let layer = fmt::layer().with_writer(move || writer.clone()).with_filter(Admitted(Arc::clone(&limit)));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for number in 0..100 {
                tracing::warn!(number, "flood");
                tracing::debug!("asked for");
            }
            tracing::info!("another place");
        });
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
        let count = |part: &str| text.lines().filter(|line| line.contains(part)).count();
        assert_eq!((count("flood"), count("asked for"), count("another place")), (LINES as usize, 100, 1), "{text}");
        let withheld = limit.take_withheld();
        assert_eq!(withheld.len(), 1);
        assert_eq!(withheld[0].1, 100 - u64::from(LINES));
        assert!(limit.take_withheld().is_empty());
    }
}
