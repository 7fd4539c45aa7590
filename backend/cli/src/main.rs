//! The tool `paraverbs`.
//!
//! - `paraverbs demo`: the daemon on a software ConnectX-3 and two guests, which exchange data by RDMA
//! - `paraverbs bench`: latency and bandwidth of messages between guests, and what they are compared with
//! - `paraverbs doctor`: what a card of this host needs before the daemon can have it, checked
//! - `paraverbs bind`, `paraverbs unbind`: gives a card to the daemon, or back to the kernel
//! - `paraverbs model`: software ConnectX-3 cards on one fabric, served to VMs over vfio-user
//!
//! An error is one line on stderr and exit status 1. RUST_LOG sets what is logged (`warn` if unset).

mod bench;
mod card;
mod control;
mod demo;
mod model;
mod socket;

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
    /// Show two guests exchange data by RDMA through the daemon, on a software ConnectX-3, and check it
    Demo(demo::DemoArgs),
    /// Measure messages between two guests, and compare them with the driver alone and with memcpy
    Bench(bench::BenchArgs),
    /// Check what a card of this host needs before the daemon can have it, and say how to mend what is missing
    Doctor(card::DoctorArgs),
    /// Move a card from the kernel's driver to vfio-pci, for the daemon
    Bind(card::BindArgs),
    /// Move a card from vfio-pci back to the kernel's driver
    Unbind(card::BindArgs),
    /// Serve software ConnectX-3 cards, all plugged into one fabric, to VMs over vfio-user
    Model(model::ModelArgs),
    /// A guest of the demo, which starts it by itself
    #[command(hide = true)]
    DemoGuest(demo::guest::GuestArgs),
    /// A player of the bench, which starts it by itself
    #[command(hide = true)]
    BenchPlayer(bench::player::PlayerArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let result = match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => card::run_doctor(&args),
        Command::Bind(args) => card::run_bind(&args).map(|()| ExitCode::SUCCESS),
        Command::Unbind(args) => card::run_unbind(&args).map(|()| ExitCode::SUCCESS),
        Command::BenchPlayer(args) => bench::player::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Model(args) => model::run(&args).map(|()| ExitCode::SUCCESS),
        Command::DemoGuest(args) => demo::guest::run(&args).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(status) => status,
        Err(error) => {
            eprintln!("paraverbs: {error:#}");
            ExitCode::FAILURE
        }
    }
}
