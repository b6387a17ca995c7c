//! Removes everything that any version of Weir left below a pin root: attachments, maps, directories.

use std::{fs, io, path::Path};

use super::{
    LoaderError,
    attach::{interface_pins, remove_link},
    clsact, pin_error,
    pins::Pins,
};
use crate::node;

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Programs taken off interfaces and cgroups.
    pub attachments: usize,
    pub maps: usize,
}

/// Programs go first, so that none runs on maps that are half gone. Whatever fails stays pinned; the first error is
/// returned after all the rest was removed.
pub fn cleanup(pin_root: &Path) -> Result<Removed, LoaderError> {
    let mut removed = Removed::default();
    let mut first_error = None;
    let mut note = |result: Result<(), LoaderError>| {
        if let Err(error) = result {
            first_error.get_or_insert(error);
        }
    };
    for pins in Pins::all_versions(pin_root).map_err(pin_error("list", pin_root))? {
        note(remove_pins(&pins, &mut removed));
    }
    if let Err(error) = fs::remove_dir(pin_root) {
        // Something that is not ours lies in it.
        tracing::warn!(path = %pin_root.display(), %error, "the pin root stays");
    }
    first_error.map_or(Ok(removed), Err)
}

/// After a move to another layout: what is left of the old one.
pub(super) fn remove_version(pins: &Pins) -> Result<(), LoaderError> {
    remove_pins(pins, &mut Removed::default())
}

fn remove_pins(pins: &Pins, removed: &mut Removed) -> Result<(), LoaderError> {
    let mut first_error = None;
    let mut note = |result: Result<(), LoaderError>| match result {
        Ok(()) => true,
        Err(error) => {
            first_error.get_or_insert(error);
            false
        }
    };
    for result in remove_attachments(pins)? {
        removed.attachments += usize::from(note(result));
    }
    note(node::ports::give_back(pins.dir()).map_err(pin_error("give back the ports remembered in", pins.dir())));
    for path in files(pins.dir())? {
        removed.maps += usize::from(note(fs::remove_file(&path).map_err(pin_error("unpin", path))));
    }
    if pins.links().exists() {
        note(fs::remove_dir(pins.links()).map_err(pin_error("remove", pins.links())));
    }
    note(pins.mark_complete().map_err(pin_error("unmark", pins.dir())));
    note(fs::remove_dir(pins.dir()).map_err(pin_error("remove", pins.dir())));
    first_error.map_or(Ok(()), Err)
}

fn remove_attachments(pins: &Pins) -> Result<Vec<Result<(), LoaderError>>, LoaderError> {
    if !pins.links().exists() {
        return Ok(Vec::new());
    }
    let mut results = Vec::new();
    let on_interfaces = interface_pins(pins).map_err(pin_error("list", pins.links()))?;
    for (path, hook, index) in on_interfaces.into_iter().filter(|(path, ..)| clsact::is_pin(path)) {
        results.push(clsact::remove(&path, hook, index).map_err(pin_error("remove the filter of", path)));
    }
    for path in files(&pins.links())? {
        results.push(remove_link(&path).map_err(pin_error("detach", path)));
    }
    Ok(results)
}

fn files(directory: &Path) -> Result<Vec<std::path::PathBuf>, LoaderError> {
    let list = || -> io::Result<Vec<_>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                paths.push(entry.path());
            }
        }
        Ok(paths)
    };
    list().map_err(pin_error("list", directory))
}
