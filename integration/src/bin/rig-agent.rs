//! The rig's agent: runs in the guest and executes the host's commands.

#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(port) = std::env::args_os().nth(1) else {
        eprintln!("usage: rig-agent PORT");
        return ExitCode::FAILURE;
    };
    let served = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&port)
        .and_then(|from| from.try_clone().map(|to| (from, to)))
        .and_then(|(from, to)| integration::agent::serve(from, to));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rig-agent: {}: {error}", port.to_string_lossy());
            ExitCode::FAILURE
        }
    }
}
