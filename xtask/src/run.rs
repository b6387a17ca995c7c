//! Runs other programs, with errors that name the command line and how it ended. Used by every command.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};

/// What a program wrote and how it ended. Lines of the two streams are in order within each.
pub(crate) struct Recorded {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs to the end with our own streams; an unsuccessful exit is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("could not start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Standard output of a program that must succeed; on failure its standard error is in the error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("could not start `{}`", line(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}: {}", line(command), output.status, stderr.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of `{}` is not UTF-8", line(command)))
}

/// Shows both streams as they come and keeps them.
pub(crate) fn record(command: &mut Command) -> Result<Recorded> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start `{}`", line(command)))?;
    let stdout = child.stdout.take().context("no stdout pipe")?;
    let stderr = child.stderr.take().context("no stderr pipe")?;
    let stderr = thread::spawn(move || copy_lines(stderr, &mut std::io::stderr()));
    let stdout = copy_lines(stdout, &mut std::io::stdout());
    let stderr = stderr.join().map_err(|_| anyhow::anyhow!("the thread that copies stderr panicked"))?;
    let status = child.wait().with_context(|| format!("waiting for `{}`", line(command)))?;
    Ok(Recorded { status, stdout, stderr })
}

/// The program in `PATH`, or in the sbin directories, which Debian leaves out of a user's `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid reads no memory and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A command line as one would type it.
pub(crate) fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| {
            let part = part.to_string_lossy();
            if part.contains(' ') { format!("'{part}'") } else { part.into_owned() }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn copy_lines(from: impl Read, to: &mut dyn Write) -> String {
    let mut from = BufReader::new(from);
    let mut kept = String::new();
    let mut bytes = Vec::new();
    while from.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
        // A closed terminal must not stop the reading: the child would block on a full pipe.
        let _ = to.write_all(&bytes).and_then(|()| to.flush());
        kept.push_str(&String::from_utf8_lossy(&bytes));
        bytes.clear();
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_command_and_status() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).expect_err("must fail");
        assert_eq!(error.to_string(), "`sh -c 'exit 3'` ended with exit status: 3");
    }

    #[test]
    fn both_streams_are_kept() {
        let recorded = record(Command::new("sh").args(["-c", "echo out; echo err >&2"])).expect("runs");
        assert_eq!((recorded.stdout.as_str(), recorded.stderr.as_str()), ("out\n", "err\n"));
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-of-weir").is_none());
    }
}
