//! `-v`, counted as Weir does or with a number as kube-proxy takes it.

use std::str::FromStr;

/// One occurrence of `-v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    OneMore,
    Klog(u32),
}

impl FromStr for Verbosity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Ok(Self::OneMore),
            _ => text.parse().map(Self::Klog).map_err(|_| format!("expected a number, got {text:?}")),
        }
    }
}

impl Verbosity {
    /// In `-v`s; none if there was no flag. The last number counts.
    pub fn of(given: &[Self]) -> Option<u8> {
        let number = given.iter().rev().find_map(|it| match it {
            Self::Klog(level) => Some(Self::from_klog(*level)),
            Self::OneMore => None,
        });
        let count = || u8::try_from(given.len()).unwrap_or(u8::MAX);
        number.or_else(|| (!given.is_empty()).then(count))
    }

    /// Operators run kube-proxy at 2 and look closer with 4 and more.
    pub fn from_klog(level: u32) -> u8 {
        match level {
            0..=3 => 0,
            4..=5 => 1,
            6..=7 => 2,
            _ => 3,
        }
    }
}
