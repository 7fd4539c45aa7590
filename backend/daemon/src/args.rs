//! The command line, and the configuration that it stands for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::{Parser, ValueEnum};
use paraverbsd::config::{Config, Device, Doorbells, GuestEntry, GuestKind};

/// Gives the guests of a host their share of one InfiniBand HCA.
///
/// What to serve is in a configuration file, or in the options that do the same.
#[derive(Debug, Parser)]
#[command(name = "paraverbsd", version)]
pub(crate) struct Args {
    /// Take device, guests and limits from a file (TOML)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device", "fabric_sockets", "guests", "kind", "doorbells", "spin_us", "socket_path", "fd"])]
    config: Option<PathBuf>,

    /// The HCA: `model`, a software ConnectX-3; `vfio:ADDRESS`, a card bound to vfio-pci; or `vfio-user:PATH`, a card
    /// that another process serves on a Unix socket, e.g. `paraverbs model`
    #[arg(long, value_name = "DEVICE", default_value = "model")]
    device: String,

    /// Serve a further card of the model's fabric over vfio-user on this Unix socket; repeat it for more
    #[arg(long = "fabric-socket", value_name = "PATH")]
    fabric_sockets: Vec<PathBuf>,

    /// A guest, and the Unix socket of its device (vhost-user); repeat it for more
    #[arg(long = "guest", value_name = "NAME=PATH")]
    guests: Vec<String>,

    /// What connects to the sockets
    #[arg(long, value_name = "KIND", default_value = "vm")]
    kind: Kind,

    /// How doorbells reach the HCA
    #[arg(long, value_name = "WAY", default_value = "relayed")]
    doorbells: Way,

    /// How many µs the thread of doorbells looks for work before it sleeps [default: 50 where there are three
    /// cores or more, else 0]
    #[arg(long, value_name = "MICROSECONDS")]
    spin_us: Option<u32>,

    /// One guest at this Unix socket, as QEMU's conventions for vhost-user back ends have it
    #[arg(long, value_name = "PATH", conflicts_with = "guests")]
    socket_path: Option<PathBuf>,

    /// A connected socket that was inherited: not supported, see --socket-path
    #[arg(long, value_name = "FD", conflicts_with = "socket_path", hide = true)]
    fd: Option<i32>,

    /// Print what this back end can do, as JSON, and end; other options don't matter
    #[arg(long)]
    pub(crate) print_capabilities: bool,
}

/// The kinds of guests by their names on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// A VMM
    Vm,
    /// A process of this host, whose memory must be sealed
    Process,
}

impl From<Kind> for GuestKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Vm => Self::Vm,
            Kind::Process => Self::Process,
        }
    }
}

/// The ways of doorbells by their names on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Way {
    /// Through the guest's memory: works with every VMM
    Relayed,
    /// Through memory mapped into the guest where its VMM takes that, else relayed; the model only
    Direct,
    /// Direct on the model, relayed on a card
    Auto,
}

impl From<Way> for Doorbells {
    fn from(way: Way) -> Self {
        match way {
            Way::Relayed => Self::Relayed,
            Way::Direct => Self::Direct,
            Way::Auto => Self::Auto,
        }
    }
}

impl Args {
    /// The configuration, checked.
    pub(crate) fn config(&self) -> Result<Config> {
        if let Some(path) = &self.config {
            return Ok(Config::read(path)?);
        }
        if let Some(fd) = self.fd {
            bail!(
                "--fd {fd} is not supported: guests connect to a socket of the daemon's; use --socket-path"
            );
        }
        let device: Device = self.device.parse()?;
        let mut guests = self.guests.iter().map(|text| self.guest(text)).collect::<Result<Vec<_>>>()?;
        if let Some(path) = &self.socket_path {
            guests.push(self.entry("guest", path));
        }
        let spin = self.spin_us.map(|spin| Duration::from_micros(spin.into()));
        let config = Config { device, fabric_sockets: self.fabric_sockets.clone(), guests, spin };
        config.check()?;
        Ok(config)
    }

    fn guest(&self, text: &str) -> Result<GuestEntry> {
        let (name, path) = text.split_once('=').ok_or_else(|| {
            anyhow!("--guest {text:?} has no path; write it as NAME=PATH, e.g. a=/run/a.sock")
        })?;
        Ok(self.entry(name, Path::new(path)))
    }

    fn entry(&self, name: &str, path: &Path) -> GuestEntry {
        let doorbells = self.doorbells.into();
        GuestEntry { doorbells, ..GuestEntry::new(name, path, self.kind.into()) }
    }
}
