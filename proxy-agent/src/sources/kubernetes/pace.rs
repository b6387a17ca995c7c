//! Pauses between attempts that fail, and the pause that a server asks for.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};
use tower::util::MapFutureLayer;

/// Pauses double from the first to the last, and each is shortened by up to half of it: many nodes lose a server at once.
const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(30);
/// Nobody waits longer, whatever a server says.
const LONGEST_ASKED: Duration = Duration::from_secs(120);
/// HTTP 429 and 503: the statuses with which a server asks for patience.
const BUSY: [u16; 2] = [429, 503];

/// How long to wait after a failure.
#[derive(Debug)]
pub(super) struct Pace {
    failures: u32,
    /// 1, but for a test in which a day passes quickly.
    speed: u32,
    /// The sum of the pauses, at speed 1.
    #[cfg(test)]
    waited: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            failures: 0,
            speed: 1,
            #[cfg(test)]
            waited: Duration::ZERO,
        }
    }
}

impl Pace {
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(super) fn next(&mut self) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let pause = whole.mul_f64(rand::random_range(0.5..=1.0));
        #[cfg(test)]
        {
            self.waited += pause;
        }
        pause / self.speed
    }
}

type Answer<B> = BoxFuture<'static, Result<http::Response<B>, tower::BoxError>>;

/// Hands an answer with Retry-After on only after that time, so that no attempt comes earlier, whoever makes it.
pub(super) fn patience<B: Send + 'static>() -> MapFutureLayer<impl Fn(Answer<B>) -> Answer<B> + Clone> {
    MapFutureLayer::new(|answer: Answer<B>| {
        async move {
            let arrived = answer.await;
            if let Some(pause) = arrived.as_ref().ok().and_then(asked_for) {
                tracing::debug!(pause_s = pause.as_secs(), "the API server asks for patience");
                tokio::time::sleep(pause).await;
            }
            arrived
        }
        .boxed()
    })
}

fn asked_for<B>(response: &http::Response<B>) -> Option<Duration> {
    if !BUSY.contains(&response.status().as_u16()) {
        return None;
    }
    // Kubernetes never sends the form with a date.
    let seconds: u64 = response.headers().get("Retry-After")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Pace {
        pub(in super::super) fn at_speed(speed: u32) -> Self {
            Self { speed, ..Self::default() }
        }

        pub(in super::super) fn waited(&self) -> Duration {
            self.waited
        }
    }

    #[test]
    fn pauses_grow_to_half_a_minute() {
        let mut pace = Pace::default();
        for whole in [800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
            let pause = pace.next().as_millis();
            assert!(pause >= whole / 2 && pause <= whole, "{pause} ms instead of {whole} or a little less");
        }
        (0..100).for_each(|_| assert!(pace.next() <= LONGEST));
        pace.reset();
        assert!(pace.next() <= FIRST);
    }

    #[test]
    fn the_pause_that_a_server_asks_for() {
        let response = |status: u16, value: &str| {
            http::Response::builder().status(status).header("Retry-After", value).body(()).expect("a response")
        };
        assert_eq!(asked_for(&response(429, "7")), Some(Duration::from_secs(7)));
        assert_eq!(asked_for(&response(503, "1")), Some(Duration::from_secs(1)));
        assert_eq!(asked_for(&response(429, "86400")), Some(LONGEST_ASKED));
        assert_eq!(asked_for(&response(429, "soon")), None);
        assert_eq!(asked_for(&response(200, "7")), None);
        assert_eq!(asked_for(&http::Response::new(())), None);
    }
}
