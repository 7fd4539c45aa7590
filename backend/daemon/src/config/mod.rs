//! What a daemon is to serve, and whether that makes sense.
//!
//! - `file`: the configuration file
//! - `limits`: what one guest may have
//!
//! Does not: look at the file system, but to read a configuration file; know what the HCA has.

mod file;
mod limits;

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub use file::FileError;
pub use limits::{GuestLimits, LimitError};
use mlx4_pci::PciAddress;
use serde::Deserialize;

/// Bytes of a path in `sockaddr_un`, without the final zero.
const SOCKET_PATH_MAX: usize = 107;
/// Longest name of a guest in bytes.
const NAME_MAX: usize = 64;
/// Ports that a card has at most.
const MAX_PORTS: u8 = 2;

/// What a daemon serves. [`Config::check`] says whether it can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The HCA.
    pub device: Device,
    /// Sockets on which further cards of the model's fabric are served over vfio-user.
    pub fabric_sockets: Vec<PathBuf>,
    /// The guests.
    pub guests: Vec<GuestEntry>,
    /// How long the thread of doorbells looks for work before it sleeps; `None`: as the number of cores allows.
    pub spin: Option<Duration>,
}

/// The HCA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// A software ConnectX-3.
    Model {
        /// Number of its ports, 1 or 2.
        ports: u8,
    },
    /// A card that is bound to vfio-pci.
    Vfio(PciAddress),
    /// A card that another process serves over vfio-user, e.g. `paraverbs model`.
    VfioUser(PathBuf),
}

impl Device {
    /// Whether it is something else than a model of the daemon's own.
    pub fn is_card(&self) -> bool {
        !matches!(self, Self::Model { .. })
    }
}

impl Default for Device {
    /// A model with one port.
    fn default() -> Self {
        Self::Model { ports: 1 }
    }
}

impl FromStr for Device {
    type Err = ConfigError;

    /// `model`, or e.g. `vfio:0000:01:00.0` or `vfio-user:/run/card.sock`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "model" => Ok(Self::default()),
            card if card.starts_with("vfio:") => {
                let address = card.parse().map_err(|_| ConfigError::Address(card.to_owned()))?;
                Ok(Self::Vfio(address))
            }
            other => match other.strip_prefix("vfio-user:") {
                Some("") => Err(ConfigError::NoPath),
                Some(path) => Ok(Self::VfioUser(path.into())),
                None => Err(ConfigError::Device(other.to_owned())),
            },
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model { .. } => f.write_str("model"),
            Self::Vfio(address) => write!(f, "vfio:{address}"),
            Self::VfioUser(path) => write!(f, "vfio-user:{}", path.display()),
        }
    }
}

/// A guest, and the socket at which its device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestEntry {
    /// What the log and the status call it.
    pub name: String,
    /// The socket, which the daemon makes.
    pub socket: PathBuf,
    /// What connects to it.
    pub kind: GuestKind,
    /// Whether memory is refused that can be truncated under the daemon; `None`: as the kind has it.
    pub require_seals: Option<bool>,
    /// How its doorbells may reach the HCA.
    pub doorbells: Doorbells,
    /// What it may have.
    pub limits: GuestLimits,
}

impl GuestEntry {
    /// A guest with the default limits.
    pub fn new(name: &str, socket: impl Into<PathBuf>, kind: GuestKind) -> Self {
        Self {
            name: name.to_owned(),
            socket: socket.into(),
            kind,
            require_seals: None,
            doorbells: Doorbells::default(),
            limits: GuestLimits::default(),
        }
    }

    /// Whether memory is refused that can be truncated under the daemon.
    pub fn requires_seals(&self) -> bool {
        self.require_seals.unwrap_or(self.kind == GuestKind::Process)
    }
}

/// What connects to a guest's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestKind {
    /// A VMM.
    #[default]
    Vm,
    /// A process or container of this host, with `paraverbs-verbs`.
    Process,
}

/// How a guest's doorbells reach the HCA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Doorbells {
    /// Through the guest's memory, which the daemon reads: works with every VMM.
    #[default]
    Relayed,
    /// Through memory that is mapped into the guest, where its VMM does that; else relayed, and the log tells.
    Direct,
    /// As direct where the device is the model, as relayed where it is a card.
    Auto,
}

/// Why a configuration makes no sense. One line each: what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No kind of device.
    #[error("unknown device {0:?}; use model, vfio:ADDRESS, e.g. vfio:0000:01:00.0, or vfio-user:PATH")]
    Device(String),
    /// No PCI address.
    #[error("{0:?} has no PCI address; write it as vfio:0000:01:00.0 (`lspci -D -d 15b3:` lists the cards)")]
    Address(String),
    /// More ports than a card has.
    #[error("a model with {0} ports; it has 1 or 2")]
    Ports(u8),
    /// Ports of a card can't be chosen.
    #[error("the ports of a card can't be chosen; leave `ports` out, or use the model")]
    CardPorts,
    /// There is no fabric to plug cards into.
    #[error("fabric sockets need the model, and the device is {0}; leave them out, or use the model")]
    FabricOfCard(Device),
    /// Nobody to serve.
    #[error(
        "there are no guests; name one with --guest NAME=PATH, or with [[guest]] in the configuration file"
    )]
    NoGuests,
    /// A name that can't be one.
    #[error(
        "guest name {0:?} can't be used; use 1 to {NAME_MAX} letters, digits, dots, underscores or hyphens"
    )]
    Name(String),
    /// Two guests have it.
    #[error("two guests are called {0:?}; give each a name of its own")]
    TwiceNamed(String),
    /// Two sockets have it.
    #[error("{} is named twice; give each guest and each card a socket of its own", .0.display())]
    TwiceAtPath(PathBuf),
    /// Longer than the address of a Unix socket.
    #[error(
        "socket path {} has {len} bytes, more than the {SOCKET_PATH_MAX} of a Unix socket's address; choose a shorter path",
        .path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// A socket needs a name.
    #[error("a socket without a path; name one, e.g. /run/paraverbs/a.sock")]
    NoPath,
    /// A card's doorbells can't be mapped into guests.
    #[error(
        "guest {guest:?} is to have direct doorbells, which only the model has so far, and the device is {device}; use doorbells = \"relayed\", or \"auto\""
    )]
    DirectOnCard {
        /// Whose.
        guest: String,
        /// The card.
        device: Device,
    },
    /// A limit that can't be one.
    #[error("guest {guest:?}")]
    Limit {
        /// Whose.
        guest: String,
        /// Which, and why.
        #[source]
        source: LimitError,
    },
}

impl Config {
    /// Reads a configuration file and checks it.
    ///
    /// # Errors
    /// It can't be read, or isn't a configuration that makes sense.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        file::read(path)
    }

    /// Whether this can be served, as far as that shows without a look at the host.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self.device {
            Device::Model { ports } if !(1..=MAX_PORTS).contains(&ports) => {
                return Err(ConfigError::Ports(ports));
            }
            Device::Vfio(_) | Device::VfioUser(_) if !self.fabric_sockets.is_empty() => {
                return Err(ConfigError::FabricOfCard(self.device.clone()));
            }
            _ => {}
        }
        if self.guests.is_empty() {
            return Err(ConfigError::NoGuests);
        }
        for guest in &self.guests {
            check_name(&guest.name)?;
            guest
                .limits
                .check()
                .map_err(|source| ConfigError::Limit { guest: guest.name.clone(), source })?;
            if guest.doorbells == Doorbells::Direct && self.device.is_card() {
                let device = self.device.clone();
                return Err(ConfigError::DirectOnCard { guest: guest.name.clone(), device });
            }
        }
        if let Some(name) = twice(self.guests.iter().map(|guest| &guest.name)) {
            return Err(ConfigError::TwiceNamed(name.clone()));
        }
        for path in self.sockets() {
            check_path(path)?;
        }
        match twice(self.sockets()) {
            Some(path) => Err(ConfigError::TwiceAtPath(path.clone())),
            None => Ok(()),
        }
    }

    fn sockets(&self) -> impl Iterator<Item = &PathBuf> {
        let card = match &self.device {
            Device::VfioUser(path) => Some(path),
            Device::Model { .. } | Device::Vfio(_) => None,
        };
        self.guests.iter().map(|guest| &guest.socket).chain(&self.fabric_sockets).chain(card)
    }
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !(1..=NAME_MAX).contains(&name.len()) || !name.bytes().all(fits) {
        return Err(ConfigError::Name(name.to_owned()));
    }
    Ok(())
}

fn check_path(path: &Path) -> Result<(), ConfigError> {
    match path.as_os_str().as_bytes().len() {
        0 => Err(ConfigError::NoPath),
        len if len > SOCKET_PATH_MAX => Err(ConfigError::PathTooLong { path: path.into(), len }),
        _ => Ok(()),
    }
}

/// What comes a second time.
fn twice<T: Eq + Hash + Copy>(items: impl Iterator<Item = T>) -> Option<T> {
    let mut seen = HashMap::new();
    items.into_iter().find(|item| seen.insert(*item, ()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(guests: &[(&str, &str)]) -> Config {
        let guest = |(name, path): &(&str, &str)| GuestEntry::new(name, *path, GuestKind::Vm);
        Config {
            device: Device::default(),
            fabric_sockets: Vec::new(),
            guests: guests.iter().map(guest).collect(),
            spin: None,
        }
    }

    fn refusal(config: &Config) -> String {
        let error = config.check().unwrap_err();
        let source = std::error::Error::source(&error);
        source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
    }

    #[test]
    fn device_is_the_model_or_an_address() {
        assert_eq!("model".parse::<Device>().unwrap(), Device::Model { ports: 1 });
        let card: Device = "vfio:0000:01:00.0".parse().unwrap();
        assert_eq!(card.to_string(), "vfio:0000:01:00.0");
        let card: Device = "vfio-user:/run/card".parse().unwrap();
        assert_eq!(card, Device::VfioUser("/run/card".into()));
        assert_eq!(card.to_string(), "vfio-user:/run/card");
        assert!("vfio-user:".parse::<Device>().unwrap_err().to_string().contains("without a path"));
        assert!("mlx5".parse::<Device>().unwrap_err().to_string().starts_with("unknown device \"mlx5\""));
        let error = "vfio:01:00.0".parse::<Device>().unwrap_err().to_string();
        assert!(error.contains("vfio:01:00.0") && error.contains("vfio:0000:01:00.0"), "{error}");
    }

    #[test]
    fn config_that_makes_sense_passes() {
        let mut config = config(&[("a", "/run/a"), ("b-2.c_d", "/run/b")]);
        config.fabric_sockets = vec!["/run/c".into()];
        config.device = Device::Model { ports: 2 };
        config.check().unwrap();
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let long = format!("/run/{}", "x".repeat(110));
        for (config, words) in [
            (config(&[]), "no guests"),
            (config(&[("a", "/a"), ("b", "/b"), ("a", "/c")]), "two guests are called \"a\""),
            (config(&[("a", "/a"), ("b", "/a")]), "/a is named twice"),
            (config(&[("", "/a")]), "guest name \"\""),
            (config(&[("a b", "/a")]), "guest name \"a b\""),
            (config(&[("a", "")]), "without a path"),
            (config(&[("a", &long)]), "has 115 bytes, more than the 107"),
            (Config { fabric_sockets: vec!["/a".into()], ..config(&[("a", "/a")]) }, "/a is named twice"),
            (
                Config {
                    device: "vfio:0000:01:00.0".parse().unwrap(),
                    fabric_sockets: vec!["/b".into()],
                    ..config(&[("a", "/a")])
                },
                "fabric sockets need the model, and the device is vfio:0000:01:00.0",
            ),
            (
                Config {
                    device: "vfio-user:/c".parse().unwrap(),
                    fabric_sockets: vec!["/b".into()],
                    ..config(&[("a", "/a")])
                },
                "fabric sockets need the model, and the device is vfio-user:/c",
            ),
            (
                Config { device: "vfio-user:/a".parse().unwrap(), ..config(&[("a", "/a")]) },
                "/a is named twice",
            ),
            (Config { device: Device::Model { ports: 3 }, ..config(&[("a", "/a")]) }, "3 ports"),
        ] {
            let text = refusal(&config);
            assert!(text.contains(words), "{text}");
        }
        let mut zero = config(&[("a", "/a")]);
        zero.guests[0].limits.queue_pairs = Some(0);
        assert_eq!(
            refusal(&zero),
            "guest \"a\": limit queue_pairs is 0; leave it out for the default, or allow at least 1"
        );
    }

    #[test]
    fn direct_doorbells_need_the_model() {
        let mut config = config(&[("a", "/a")]);
        config.guests[0].doorbells = Doorbells::Direct;
        config.check().unwrap();
        for card in ["vfio:0000:01:00.0", "vfio-user:/c"] {
            config.device = card.parse().unwrap();
            let text = refusal(&config);
            assert!(text.starts_with("guest \"a\" is to have direct doorbells"), "{text}");
            assert!(text.contains(card), "{text}");
        }
        config.guests[0].doorbells = Doorbells::Auto;
        config.check().unwrap();
    }

    #[test]
    fn seals_are_required_of_processes_unless_said_otherwise() {
        let guest = |kind, require_seals| GuestEntry { require_seals, ..GuestEntry::new("a", "/a", kind) };
        assert!(guest(GuestKind::Process, None).requires_seals());
        assert!(!guest(GuestKind::Vm, None).requires_seals());
        assert!(guest(GuestKind::Vm, Some(true)).requires_seals());
        assert!(!guest(GuestKind::Process, Some(false)).requires_seals());
    }
}
