//! `paraverbs bind`, `paraverbs unbind`, `paraverbs doctor`: a card of this host, before the daemon takes it.
//!
//! - `sysfs`: what the kernel says of a card, and who uses it
//! - `bind`: moving it between the drivers mlx4_core and vfio-pci
//! - `doctor`: what an operator needs, checked; `live`: what only the running card can tell
//!
//! Does not: load mlx4 modules, keep a binding across a restart of the host, or change the card's firmware.

mod bind;
mod doctor;
mod live;
#[cfg(test)]
mod stage;
mod sysfs;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use mlx4_pci::PciAddress;
use paraverbsd::config::{Config, Device};

use bind::Driver;
use doctor::{Needs, Report};
use sysfs::Sysfs;

/// Arguments of `paraverbs bind` and `paraverbs unbind`.
#[derive(Debug, Args)]
pub(crate) struct BindArgs {
    /// Address of the card, e.g. 0000:01:00.0
    address: String,
}

/// Arguments of `paraverbs doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Address of the card, e.g. 0000:01:00.0
    #[arg(required_unless_present = "config")]
    address: Option<String>,

    /// The daemon's configuration file: the card is the one in there, and its guests' memory counts
    #[arg(long, value_name = "FILE", conflicts_with = "address")]
    config: Option<PathBuf>,
}

/// Gives the card to vfio-pci.
pub(crate) fn run_bind(args: &BindArgs) -> Result<()> {
    move_to(args, Driver::Vfio)
}

/// Gives the card back to the kernel's own driver.
pub(crate) fn run_unbind(args: &BindArgs) -> Result<()> {
    move_to(args, Driver::Mlx4)
}

fn move_to(args: &BindArgs, target: Driver) -> Result<()> {
    let card = Sysfs::new("/", address(&args.address)?);
    let moved = bind::move_card(&card, &card, target)?;
    println!("{moved}");
    Ok(())
}

/// Checks everything, a line each; the status is 0 only if all that is needed is there.
pub(crate) fn run_doctor(args: &DoctorArgs) -> Result<ExitCode> {
    let (address, registered_bytes) = match (&args.config, &args.address) {
        (Some(path), _) => of_config(&Config::read(path)?)?,
        (None, Some(text)) => (address(text)?, None),
        (None, None) => bail!("name a card, or a configuration file"),
    };
    let mut report = Report::default();
    let card = Sysfs::new("/", address);
    let usable = doctor::check_host(&card, &Needs::of_this_process(registered_bytes)?, &mut report);
    if usable {
        live::check(address, &mut report);
    } else {
        live::leave_out(&mut report);
    }
    println!("{}", report.text());
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The card of a configuration, and the bytes that its guests may register together.
fn of_config(config: &Config) -> Result<(PciAddress, Option<u64>)> {
    let Device::Vfio(address) = config.device else {
        bail!("the configuration's device is {}; a card is written as vfio:0000:01:00.0", config.device);
    };
    let default = paraverbs_tenant::Limits::default().registered_bytes;
    let bytes = config.guests.iter().map(|guest| guest.limits.registered_bytes.unwrap_or(default));
    Ok((address, Some(bytes.fold(0, u64::saturating_add))))
}

/// An address as sysfs has it, or as the daemon does.
fn address(text: &str) -> Result<PciAddress> {
    let path = if text.starts_with("vfio:") { text.to_owned() } else { format!("vfio:{text}") };
    path.parse().with_context(|| format!("{text:?} is no address of a card, as 0000:01:00.0 is one"))
}
