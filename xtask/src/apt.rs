//! Installs packages on Debian and Ubuntu, as root or through sudo. Called by setup.

use std::{
    io::IsTerminal,
    path::Path,
    process::{Command, Stdio},
    sync::Once,
};

use anyhow::Result;

use crate::run;

/// How this user may install packages.
pub(crate) struct Apt {
    sudo: bool,
}

/// The package lists are read once in a run, however many steps install something.
static UPDATE: Once = Once::new();

impl Apt {
    /// `Err` with the reason where packages cannot be installed from here.
    pub(crate) fn available() -> Result<Self, &'static str> {
        if !Path::new("/etc/debian_version").is_file() || run::find_program("apt-get").is_none() {
            return Err("this system has no apt-get");
        }
        let sudo = !run::is_root();
        if sudo && !can_sudo() {
            return Err("installing packages needs root or sudo");
        }
        Ok(Self { sudo })
    }

    pub(crate) fn install(&self, packages: &[String]) -> Result<()> {
        self.update_once();
        println!("installing: {}", packages.join(" "));
        // A conflict with what the user has installed is for the user to decide.
        let options = ["install", "--yes", "--no-remove", "--no-install-recommends", "-qq"];
        run::run(self.command().args(options).args(packages))
    }

    /// Whether a repository offers this package.
    pub(crate) fn offers(&self, package: &str) -> bool {
        self.update_once();
        run::capture(Command::new("apt-cache").args(["policy", package])).is_ok_and(|text| has_candidate(&text))
    }

    /// A repository that fails (a third party's, say) must not stop the others: if a package is not
    /// found because of it, the installation says so.
    pub(crate) fn update_once(&self) {
        UPDATE.call_once(|| {
            println!("updating the package lists");
            if let Err(error) = run::run(self.command().args(["update", "-qq"])) {
                eprintln!("warning: {error:#}");
            }
        });
    }

    fn command(&self) -> Command {
        let mut command = if self.sudo {
            let mut sudo = Command::new("sudo");
            sudo.args(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
            sudo
        } else {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive");
            command
        };
        // Another package installation may hold the lock for a while.
        command.args(["-o", "DPkg::Lock::Timeout=300"]).stdin(Stdio::null());
        command
    }
}

/// sudo is usable when it asks nothing, or when somebody is there to be asked.
fn can_sudo() -> bool {
    run::find_program("sudo").is_some()
        && (std::io::stdin().is_terminal() || run::capture(Command::new("sudo").args(["-n", "true"])).is_ok())
}

/// Reads the output of `apt-cache policy`, which is empty for an unknown package.
fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))
        .is_some_and(|candidate| candidate.trim() != "(none)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_told_from_virtual_and_unknown_packages() {
        assert!(has_candidate("wrk:\n  Installed: (none)\n  Candidate: 4.1.0-3+b2\n"));
        assert!(!has_candidate("bpftool:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }
}
