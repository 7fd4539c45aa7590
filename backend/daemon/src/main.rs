//! The program `paraverbsd`: a [`Daemon`] until SIGTERM or SIGINT.
//!
//! An error is one line on stderr and exit status 1; a command line without sense has status 2. RUST_LOG sets
//! what is logged (`warn` if unset). It stays in the foreground. When it serves it says so on stdout, a line
//! for each socket.

mod args;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use args::Args;
use clap::Parser;
use paraverbsd::Daemon;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

/// QEMU's `VhostUserBackendCapabilities`: the device's kind, and features of which this back end has none.
const CAPABILITIES: &str = r#"{"type":"rdma","features":[]}"#;

fn main() -> ExitCode {
    let args = Args::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let result = if args.print_capabilities { say(CAPABILITIES) } else { serve(&args) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("paraverbsd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// As many open files as this user may have: each guest takes dozens, and most shells allow a thousand.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!("the limit of open files stays {:?}: {error}", limit.current);
    }
}

/// Serves until a signal comes.
fn serve(args: &Args) -> Result<()> {
    raise_file_limit();
    // Before anything that has to be cleaned up. The flag is for a signal during the start.
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&stopping)).context("can't wait for signals")?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("can't wait for signals")?;
    let config = args.config()?;
    let Some(daemon) = Daemon::start_unless(&config, &|| stopping.load(Ordering::Relaxed))? else {
        return Ok(());
    };
    for guest in &config.guests {
        say(&format!("serving guest {} on {}", guest.name, guest.socket.display()))?;
    }
    for (guid, path) in daemon.fabric_cards() {
        say(&format!("serving ConnectX-3 {guid:#018x} on {}", path.display()))?;
    }
    if let Some(signal) = signals.forever().next() {
        log::info!("stopping after signal {signal}");
    }
    Ok(daemon.stop()?)
}

/// Says something on stdout; whoever started the program may wait for it, or not listen at all.
fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.or_else(|error| {
        log::debug!("nobody reads stdout: {error}");
        Ok(())
    })
}
