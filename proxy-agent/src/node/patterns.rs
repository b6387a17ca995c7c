//! Lists of interface name patterns, as the flags take them: `docker*,tap?`.

use std::{convert::Infallible, str::FromStr};

/// A name matches if any pattern does. `*` stands for any text, `?` for one character.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(Vec<String>);

impl Patterns {
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| glob(pattern.as_bytes(), name.as_bytes()))
    }

    pub fn one(pattern: &str) -> Self {
        Self(vec![pattern.to_owned()])
    }

    pub fn and(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }
}

impl FromStr for Patterns {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()))
    }
}

/// Greedy match that goes back to the last star only: linear for the short patterns of interface names.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let patterns: Patterns = "docker*, tap?,eth0,,*-mgmt".parse().unwrap();
        for name in ["docker0", "docker", "tap1", "eth0", "br-mgmt", "a-mgmt-mgmt"] {
            assert!(patterns.matches(name), "{name}");
        }
        for name in ["tap", "tap12", "eth01", "dock", "br-mgmt0", ""] {
            assert!(!patterns.matches(name), "{name}");
        }
        assert!(!Patterns::default().matches("eth0"));
        assert!("*".parse::<Patterns>().unwrap().matches(""));
    }
}
