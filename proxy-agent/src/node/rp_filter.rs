//! Linux' reverse path filter (net.ipv4.conf.*.rp_filter), which Weir reads and never sets. Called by the agent at start.

use std::{fs, path::Path};

const CONF: &str = "/proc/sys/net/ipv4/conf";

/// True if an interface of this network namespace, or one to come, drops packets whose source is not reached by it. The higher
/// one of the value for all interfaces and an interface's own counts; 1 is strict.
pub fn is_strict() -> bool {
    is_strict_below(Path::new(CONF))
}

fn is_strict_below(conf: &Path) -> bool {
    let value = |name: &Path| -> u8 {
        let text = fs::read_to_string(name.join("rp_filter")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let all = value(&conf.join("all"));
    // `default` is among them.
    let links = fs::read_dir(conf).into_iter().flatten().flatten();
    links.filter(|link| link.file_name() != "lo").any(|link| value(&link.path()).max(all) == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_higher_value_counts() {
        for (all, link, strict) in
            [(0, 0, false), (0, 1, true), (1, 0, true), (2, 1, false), (1, 2, true), (2, 2, false)]
        {
            let conf = tempfile::tempdir().unwrap();
            for (name, value) in [("all", all), ("default", 0), ("eth0", link)] {
                fs::create_dir(conf.path().join(name)).unwrap();
                fs::write(conf.path().join(name).join("rp_filter"), format!("{value}\n")).unwrap();
            }
            assert_eq!(is_strict_below(conf.path()), strict, "all {all}, link {link}");
        }
    }
}
