//! nft, iptables-save and their like, run to their end. One that is not installed is no error here: the caller knows whether
//! anything is missed without it.

use std::{
    io::{self, Write as _},
    process::{Command, ExitStatus, Stdio},
};

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("run {program}: {error}")]
    Run { program: String, error: io::Error },
    #[error("{program}: {status}: {message}")]
    Failed { program: String, status: ExitStatus, message: String },
}

/// What it printed; `None` if there is no such program.
pub(super) fn ask(program: &str, args: &[&str]) -> Result<Option<String>, ProgramError> {
    match run(program, args, "") {
        Err(ProgramError::Run { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        answer => answer.map(Some),
    }
}

pub(super) fn run(program: &str, args: &[&str], input: &str) -> Result<String, ProgramError> {
    let failed = |error| ProgramError::Run { program: program.to_owned(), error };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // None of these programs prints before it has read all.
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It ended before; its message says why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(error)),
            _ => {}
        }
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(ProgramError::Failed { program: program.to_owned(), status: output.status, message });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_failing_and_working_programs() {
        assert!(matches!(ask("weir-no-such-program", &[]), Ok(None)));
        assert_eq!(run("cat", &[], "text").unwrap(), "text");
        let error = run("sh", &["-c", "echo no >&2; exit 3"], "ignored").unwrap_err();
        assert_eq!(error.to_string(), "sh: exit status: 3: no");
    }
}
