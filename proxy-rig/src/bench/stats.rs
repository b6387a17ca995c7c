//! Median and its bootstrap interval. Called by `report`.

use rand::{Rng, SeedableRng, rngs::StdRng};

const RESAMPLES: usize = 10_000;
/// Fixed, so that the same measurements always give the same interval.
const SEED: u64 = 0x5eed;

/// A median with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct Estimate {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// Percentile bootstrap of the median. `None` without samples.
pub(super) fn estimate(samples: &[f64]) -> Option<Estimate> {
    let centre = median(samples.to_vec())?;
    let mut random = StdRng::seed_from_u64(SEED);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| median((0..samples.len()).map(|_| samples[random.random_range(0..samples.len())]).collect()))
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |share: f64| medians[((medians.len() - 1) as f64 * share).round() as usize];
    Some(Estimate { median: centre, low: at(0.025), high: at(0.975) })
}

pub(super) fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    match samples.len() {
        0 => None,
        length if length % 2 == 1 => Some(samples[middle]),
        _ => Some((samples[middle - 1] + samples[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn the_interval_holds_the_median_and_narrows_with_agreement() {
        let spread: Vec<f64> = (0..11).map(|n| 0.9 + f64::from(n) * 0.02).collect();
        let wide = estimate(&spread).unwrap();
        assert!(wide.low < wide.median && wide.median < wide.high, "{wide:?}");
        assert!(wide.low >= 0.9 && wide.high <= 1.1, "{wide:?}");
        let equal = estimate(&[1.0; 11]).unwrap();
        assert_eq!((equal.low, equal.high), (1.0, 1.0));
    }
}
