//! The guest's tool: what the device is (`pverbs devinfo`), and whether it reaches another (`pverbs ping`).

#![forbid(unsafe_code)]

mod devinfo;
mod exchange;
mod ping;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use paraverbs_verbs::Context;

/// Names the daemon's socket where no option does.
const SOCKET_VARIABLE: &str = "PARAVERBS_SOCKET";

#[derive(Debug, Parser)]
#[command(name = "pverbs", version, about = "RDMA verbs of this guest")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show devices and their ports, as ibv_devinfo does
    Devinfo(devinfo::Args),
    /// Ping-pong over a reliable connection, with pverbs ping or ibv_rc_pingpong at the other end
    Ping(ping::Args),
}

/// Why the tool gives up: a line for a person.
#[derive(Debug)]
enum Failure {
    /// Something is wrong.
    Error(String),
    /// Nobody reads the output any more.
    NobodyListens,
}

impl From<paraverbs_verbs::Error> for Failure {
    fn from(error: paraverbs_verbs::Error) -> Self {
        Self::Error(error.to_string())
    }
}

impl From<io::Error> for Failure {
    /// An error of the output.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyListens,
            _ => Self::Error(format!("can't write the output: {error}")),
        }
    }
}

impl From<String> for Failure {
    fn from(error: String) -> Self {
        Self::Error(error)
    }
}

/// The socket of an option, or of the environment.
fn socket(option: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let from_environment = || std::env::var_os(SOCKET_VARIABLE).filter(|path: &OsString| !path.is_empty());
    option.or_else(|| from_environment().map(PathBuf::from)).ok_or_else(|| {
        Failure::Error(format!("no device: name the daemon's socket with --socket, or in {SOCKET_VARIABLE}"))
    })
}

/// The device behind a socket.
fn open(socket: &std::path::Path) -> Result<Context, Failure> {
    Ok(Context::connect(socket)?)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("error")).init();
    let mut output = io::stdout().lock();
    let done = match cli.command {
        Command::Devinfo(args) => devinfo::run(args, &mut output),
        Command::Ping(args) => ping::run(args, &mut output),
    };
    match done.and_then(|()| Ok(output.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::NobodyListens) => ExitCode::FAILURE,
        Err(Failure::Error(error)) => {
            eprintln!("pverbs: {error}");
            ExitCode::FAILURE
        }
    }
}
