//! The tool `paraverbs`.
//!
//! - `paraverbs model`: software ConnectX-3 cards on one fabric, served to VMs over vfio-user
//!
//! An error is one line on stderr and exit status 1. RUST_LOG sets what is logged (`warn` if unset).

mod dump;
mod model;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// InfiniBand HCAs for virtual machines.
#[derive(Debug, Parser)]
#[command(name = "paraverbs", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve software ConnectX-3 cards, all plugged into one fabric, to VMs over vfio-user
    Model(model::ModelArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let result = match cli.command {
        Command::Model(args) => model::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("paraverbs: {error:#}");
            ExitCode::FAILURE
        }
    }
}
