//! The source ports that are Weir's alone, and the kernel's list of ports that it must not hand out itself
//! (net.ipv4.ip_local_reserved_ports). Called by the agent at start and by cleanup.
//!
//! What was added to that list is remembered by the name of an empty directory beside the pinned maps, so that cleanup
//! takes away exactly that, whoever runs it.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

const SYSCTLS: &str = "/proc/sys/net/ipv4";
const REMEMBERED: &str = "reserved-ports-";
/// A flow looks at this many ports (proxy_common::lb::SNAT_WINDOW); fewer would serve nobody.
const FEWEST: u16 = 64;

/// First and last port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('-').map(|(first, last)| (first.trim().parse(), last.trim().parse()));
        let Some((Ok(first), Ok(last))) = numbers else {
            return Err(format!("expected FIRST-LAST, got {text:?}"));
        };
        if first < 1024 || last < first || last - first < FEWEST - 1 {
            return Err(format!("expected at least {FEWEST} ports from 1024 on, got {text:?}"));
        }
        Ok(Self { first, last })
    }
}

/// Keeps the kernel from using the ports for sockets of its own, where it would. What an earlier agent reserved is given back
/// before. `pins` is the directory of the pinned maps.
pub fn reserve(pins: &Path, range: PortRange) -> io::Result<()> {
    reserve_in(Path::new(SYSCTLS), pins, range)
}

/// Takes back what [`reserve`] did.
pub fn give_back(pins: &Path) -> io::Result<()> {
    give_back_in(Path::new(SYSCTLS), pins)
}

/// What was remembered in one directory is from now on in another.
pub fn take_over(from: &Path, to: &Path) -> io::Result<()> {
    for (path, _) in remembered(from)? {
        let Some(name) = path.file_name() else { continue };
        let target = to.join(name);
        if target.exists() { fs::remove_dir(&path)? } else { fs::rename(&path, target)? }
    }
    Ok(())
}

fn reserve_in(sysctls: &Path, pins: &Path, range: PortRange) -> io::Result<()> {
    give_back_in(sysctls, pins)?;
    let used = fs::read_to_string(sysctls.join("ip_local_port_range"))?;
    let used: Vec<u16> = used.split_whitespace().map(|number| number.parse().unwrap_or(0)).collect();
    let [low, high] = used[..] else { return Ok(()) };
    if range.last < low || range.first > high {
        return Ok(());
    }
    let list = sysctls.join("ip_local_reserved_ports");
    let mut reserved = read(&list)?;
    let added: BTreeSet<u16> = (range.first..=range.last).filter(|port| reserved.insert(*port)).collect();
    if added.is_empty() {
        return Ok(());
    }
    fs::create_dir(pins.join(format!("{REMEMBERED}{}", text(&added))))?;
    fs::write(&list, text(&reserved))?;
    tracing::info!(ports = text(&added), "reserved in net.ipv4.ip_local_reserved_ports");
    Ok(())
}

fn give_back_in(sysctls: &Path, pins: &Path) -> io::Result<()> {
    let list = sysctls.join("ip_local_reserved_ports");
    for (path, added) in remembered(pins)? {
        let reserved = read(&list)?;
        // An empty list is a line feed: a write of nothing changes nothing.
        fs::write(&list, format!("{}\n", text(&reserved.difference(&added).copied().collect())))?;
        fs::remove_dir(path)?;
    }
    Ok(())
}

fn remembered(pins: &Path) -> io::Result<Vec<(PathBuf, BTreeSet<u16>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(pins)? {
        let entry = entry?;
        if let Some(list) = entry.file_name().to_str().and_then(|name| name.strip_prefix(REMEMBERED)) {
            found.push((entry.path(), ports(list)));
        }
    }
    Ok(found)
}

fn read(list: &Path) -> io::Result<BTreeSet<u16>> {
    Ok(ports(&fs::read_to_string(list)?))
}

/// Of a list as the kernel writes it: `8080,9148,30000-30100`.
fn ports(text: &str) -> BTreeSet<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

fn text(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if u32::from(*last) + 1 == u32::from(*port) => *last = *port,
            _ => ranges.push((*port, *port)),
        }
    }
    let parts: Vec<String> =
        ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        assert_eq!("50000-60000".parse(), Ok(PortRange { first: 50000, last: 60000 }));
        for wrong in ["50000", "60000-50000", "80-9000", "50000-50010", "a-b", "50000-70000"] {
            assert!(wrong.parse::<PortRange>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_was_reserved_is_given_back_and_nothing_else() {
        let (sysctls, pins) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let list = sysctls.path().join("ip_local_reserved_ports");
        let now = || fs::read_to_string(&list).unwrap();
        fs::write(sysctls.path().join("ip_local_port_range"), "32768\t60999\n").unwrap();
        fs::write(&list, "8080,50010-50019\n").unwrap();
        let range = |text: &str| text.parse::<PortRange>().unwrap();
        // Outside of what the kernel uses.
        reserve_in(sysctls.path(), pins.path(), range("61000-65535")).unwrap();
        assert_eq!(now(), "8080,50010-50019\n");
        reserve_in(sysctls.path(), pins.path(), range("50000-50099")).unwrap();
        assert_eq!(now(), "8080,50000-50099");
        // A restart, then another range.
        reserve_in(sysctls.path(), pins.path(), range("50000-50099")).unwrap();
        assert_eq!(now(), "8080,50000-50099");
        reserve_in(sysctls.path(), pins.path(), range("40000-40099")).unwrap();
        assert_eq!(now(), "8080,40000-40099,50010-50019");
        give_back_in(sysctls.path(), pins.path()).unwrap();
        assert_eq!(now(), "8080,50010-50019\n");
        assert_eq!(fs::read_dir(pins.path()).unwrap().count(), 0);
    }
}
