//! `paraverbs demo`: the daemon on the model, or on a card, and two guests, which exchange data by RDMA.
//!
//! - `checks`: what is checked; `run`: how, step by step
//! - `host`: the daemon; `guests`: the processes; `protocol`: what they are told, and what they answer
//! - `guest`: what a guest does
//! - `screen`, `table`, `pattern`: output, and data that can be recognised

mod checks;
mod guests;
mod host;
mod pattern;
mod protocol;
mod run;
mod screen;
mod table;

pub(crate) mod guest;

use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result};
use clap::Args;
use paraverbsd::config::Device;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use checks::Check;
use guests::{Guests, Interrupted};
use run::Demo;
use screen::Screen;

/// Exit status of a program that was interrupted, as shells have it.
const INTERRUPTED: u8 = 130;

/// Arguments of `paraverbs demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Only list what is checked
    #[arg(long)]
    list: bool,
    /// The HCA: model (in this process), vfio:ADDRESS (a card that is bound to vfio-pci), or vfio-user:PATH (a
    /// card that another process serves, e.g. `paraverbs model`)
    #[arg(long, default_value_t = Device::default())]
    device: Device,
}

/// Runs the demo; the status is 0 only if every check has passed.
pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode> {
    let screen = Screen::new();
    if args.list {
        for check in Check::ALL {
            screen.line(&format!("{:<13} {}", check.name(), check.sentence()));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let guests = Guests::new();
    let interrupter = guests.interrupter();
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("can't wait for signals")?;
    let handle = signals.handle();
    let waiting = thread::Builder::new().name("signals".into()).spawn(move || {
        for _signal in signals.forever() {
            interrupter.interrupt();
        }
    });
    let waiting = waiting.context("can't wait for signals")?;
    let result = Demo::new(guests, &screen, &args.device).run();
    handle.close();
    if waiting.join().is_err() {
        log::error!("the thread that waits for signals has panicked");
    }
    match result {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(error) if error.is::<Interrupted>() => {
            screen.done();
            eprintln!("paraverbs: interrupted; guests and daemon were stopped");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error),
    }
}
