//! Becomes another program, which may lock only so much memory, be it root's or not.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

/// Runs `command` with a limit in MiB.
pub(crate) fn run(mib: u64, command: &[PathBuf]) -> Result<()> {
    let bytes = Some(mib << 20);
    setrlimit(Resource::Memlock, Rlimit { current: bytes, maximum: bytes })?;
    remove_capability_from_bounding_set(CapabilitySet::IPC_LOCK)?;
    let (program, args) = command.split_first().context("no program")?;
    Err(Command::new(program).args(args).exec().into())
}
