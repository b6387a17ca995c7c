//! qemu and kernels from Debian's packages, unpacked into the cache directory and used again. Nothing is installed: qemu's
//! packages may stand against others that the user has.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::machine::Qemu;
use crate::{apt::Apt, cache, run};

const QEMU: &str = "qemu-system-x86_64";
const QEMU_PACKAGE: &str = "qemu-system-x86";
const FLAVOUR: &str = "cloud-amd64";

pub(super) struct Kernel {
    /// The compressed kernel, which qemu can boot.
    pub(super) image: PathBuf,
    /// The directory that holds `kernel/` with the modules.
    pub(super) modules: PathBuf,
    pub(super) release: String,
}

/// The installed one, or that of the package and all that it depends on.
pub(super) fn qemu() -> Result<Qemu> {
    if let Some(program) = run::find_program(QEMU) {
        return Ok(Qemu { program, root: None });
    }
    let root = cache::dir().join("qemu");
    if !root.is_dir() {
        update_lists();
        let simulated = ["-s", "install", "--no-install-recommends", QEMU_PACKAGE];
        let simulated = run::capture(Command::new("apt-get").args(simulated))
            .with_context(|| format!("no {QEMU} in PATH, and no package for it; please install it"))?;
        unpack(&to_install(&simulated), &root)?;
    }
    Ok(Qemu { program: root.join("usr/bin").join(QEMU), root: Some(root) })
}

/// The newest kernel of a series that was unpacked before, or else the newest that apt knows.
pub(super) fn kernel(series: &str) -> Result<Kernel> {
    let parent = cache::dir().join("kernels");
    let prefix = format!("linux-image-{series}.");
    let unpacked = parent.read_dir().into_iter().flatten().filter_map(|it| it.ok()?.file_name().into_string().ok());
    let package = match newest(unpacked, &prefix) {
        Some(package) => package,
        None => {
            update_lists();
            let offered = run::capture(Command::new("apt-cache").args(["pkgnames", &prefix]))?;
            let package = newest(offered.lines().map(str::to_owned), &prefix).with_context(|| {
                format!("no repository of this system offers {prefix}*-{FLAVOUR} (Debian 12 has it)")
            })?;
            unpack(std::slice::from_ref(&package), &parent.join(&package))?;
            package
        }
    };
    let release = package.trim_start_matches("linux-image-").to_owned();
    let root = parent.join(&package);
    let modules = ["usr/lib/modules", "lib/modules"].map(|path| root.join(path).join(&release));
    let modules = modules.into_iter().find(|path| path.is_dir()).context("the package has no modules")?;
    Ok(Kernel { image: root.join(format!("boot/vmlinuz-{release}")), modules, release })
}

/// Lists that are out of date name packages that are gone. Without root the present ones have to do.
fn update_lists() {
    match Apt::available() {
        Ok(apt) => apt.update_once(),
        Err(reason) => println!("the package lists are used as they are: {reason}"),
    }
}

/// Packages of the flavour, by the numbers in their names.
fn newest(names: impl Iterator<Item = String>, prefix: &str) -> Option<String> {
    names.filter(|name| name.starts_with(prefix) && name.ends_with(FLAVOUR)).max_by_key(|name| numbers(name))
}

/// All numbers of a text in their order.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|character: char| !character.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Reads lines such as `Inst seabios (1.16.2-1 Debian:12.15/oldstable [all])`; an upgrade has the old version in brackets
/// before the parenthesis.
fn to_install(simulated: &str) -> Vec<String> {
    let package = |line: &str| {
        let rest = line.strip_prefix("Inst ")?;
        let name = rest.split_whitespace().next()?;
        let version = rest.split_once('(')?.1.split_whitespace().next()?;
        Some(format!("{name}={version}"))
    };
    simulated.lines().filter_map(package).collect()
}

/// The directory appears only when it is complete.
fn unpack(packages: &[String], directory: &Path) -> Result<()> {
    ensure!(!packages.is_empty(), "nothing to unpack");
    println!("unpacking into {}: {}", directory.display(), packages.join(" "));
    let work = directory.with_extension(format!("new-{}", std::process::id()));
    let (archives, files) = (work.join("archives"), work.join("files"));
    for path in [&archives, &files] {
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    }
    let outcome = download(packages, &archives)
        .and_then(|()| extract(&archives, &files))
        .and_then(|()| fs::rename(&files, directory).with_context(|| format!("creating {}", directory.display())));
    // Nothing is lost if this fails: it lies in the cache.
    let _ = fs::remove_dir_all(&work);
    outcome
}

fn download(packages: &[String], to: &Path) -> Result<()> {
    // Without its own sandbox user, who may not write here.
    let options = ["-qq", "-o", "APT::Sandbox::User=root", "download"];
    run::run(Command::new("apt-get").args(options).args(packages).current_dir(to))
}

fn extract(archives: &Path, to: &Path) -> Result<()> {
    let mut found = 0;
    for entry in archives.read_dir()? {
        run::run(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(to))?;
        found += 1;
    }
    if found == 0 {
        bail!("apt-get downloaded nothing");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_goes_by_numbers() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64-dbg",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.12.117+deb12-cloud-amd64",
        ];
        let newest = |prefix| newest(names.iter().map(|name| (*name).to_owned()), prefix);
        assert_eq!(newest("linux-image-6.1.").as_deref(), Some(names[1]));
        assert_eq!(newest("linux-image-6.12.").as_deref(), Some(names[4]));
        assert_eq!(newest("linux-image-5.10."), None);
    }

    #[test]
    fn packages_of_a_simulation() {
        let simulated = "Remv qemu-utils [1:10.0.2]\nInst libusb-1.0-0 (2:1.0.26-1 Debian:12 [amd64])\n\
            Inst libc6 [2.36-8] (2.36-9 Debian:12 [amd64])\nConf seabios (1.16.2-1 Debian:12 [all])\n";
        assert_eq!(to_install(simulated), ["libusb-1.0-0=2:1.0.26-1", "libc6=2.36-9"]);
    }
}
