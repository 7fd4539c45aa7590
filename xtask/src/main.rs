//! The project's own commands: `cargo xtask --help`.

#![forbid(unsafe_code)]

mod bench;
mod console;
mod edges;
mod fuzz;
mod licences;
mod test;
mod unsafe_code;
mod vm;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check edges and unsafe code, prepare the rig, run the workspace's tests, then each fuzz target for a minute
    Test(test::Args),
    /// Measure and count what messages cost (`paraverbs bench`, as a release build)
    Bench(bench::Args),
    /// Start a rig of VMs, for a shell in one or to run commands
    Vm(vm::Args),
    /// Attach the terminal to a VM's console
    Console {
        /// The console's socket, as `vm` printed it
        socket: PathBuf,
    },
    /// Run fuzz targets under LLVM's fuzzer
    Fuzz(fuzz::Args),
    /// Hold the dependencies between the workspace's crates to the table
    Edges,
    /// Hold the licences of everything that is linked in to a list
    Licences,
    /// Hold the files that may contain unsafe code to a list
    Unsafe,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Console { socket } => console::attach(&socket),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Edges => edges::run(),
        Task::Licences => licences::run(),
        Task::Unsafe => unsafe_code::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root folder.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Runs cargo in the workspace.
fn cargo(args: &[&str], envs: &[(&str, &Path)]) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(args).envs(envs.iter().copied()).current_dir(root());
    let status = command.status().context("start cargo")?;
    if !status.success() {
        bail!("cargo {} failed ({status})", args.join(" "));
    }
    Ok(())
}
