//! The configuration file.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{Config, ConfigError, Device, Doorbells, GuestEntry, GuestKind, GuestLimits};

/// Why a configuration file can't be used. One line each: what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is none, or the user may not.
    #[error("can't read the configuration file {}: {error}; {}", .path.display(), advice(error))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said; not a source, since the line has it.
        error: io::Error,
    },
    /// Its text is none.
    #[error("{}, line {line}: {what}; correct that line", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// What it says makes no sense.
    #[error("{}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ConfigError,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "name one that exists",
        io::ErrorKind::PermissionDenied => "run as a user who may read it",
        _ => "name a file of text",
    }
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "model")]
    device: String,
    ports: Option<u8>,
    #[serde(default)]
    fabric_sockets: Vec<PathBuf>,
    spin_us: Option<u32>,
    #[serde(default, rename = "guest")]
    guests: Vec<Guest>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Guest {
    name: String,
    socket: PathBuf,
    #[serde(default)]
    kind: GuestKind,
    require_seals: Option<bool>,
    #[serde(default)]
    doorbells: Doorbells,
    #[serde(default)]
    limits: GuestLimits,
}

fn model() -> String {
    Device::default().to_string()
}

pub(super) fn read(path: &Path) -> Result<Config, FileError> {
    let text = std::fs::read_to_string(path).map_err(|error| FileError::Read { path: path.into(), error })?;
    let file: File = toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
        FileError::Syntax { path: path.into(), line, what: error.message().replace('\n', ", ") }
    })?;
    let failed = |source| FileError::Config { path: path.into(), source };
    let config = file.into_config().map_err(failed)?;
    config.check().map_err(failed)?;
    Ok(config)
}

impl File {
    fn into_config(self) -> Result<Config, ConfigError> {
        let device = match (self.device.parse()?, self.ports) {
            (Device::Model { .. }, Some(ports)) => Device::Model { ports },
            (Device::Vfio(_) | Device::VfioUser(_), Some(_)) => return Err(ConfigError::CardPorts),
            (device, None) => device,
        };
        let guests = self.guests.into_iter().map(Guest::into_entry).collect();
        let spin = self.spin_us.map(|spin| Duration::from_micros(spin.into()));
        Ok(Config { device, fabric_sockets: self.fabric_sockets, guests, spin })
    }
}

impl Guest {
    fn into_entry(self) -> GuestEntry {
        let Self { name, socket, kind, require_seals, doorbells, limits } = self;
        GuestEntry { name, socket, kind, require_seals, doorbells, limits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("paraverbsd.toml");
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|error| {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            format!("{error}{}", source.unwrap_or_default())
        })
    }

    #[test]
    fn file_with_everything_is_taken_as_written() {
        let config = written(
            r#"
            device = "model"
            ports = 2
            spin_us = 20
            fabric_sockets = ["/run/c"]
            [[guest]]
            name = "web1"
            socket = "/run/web1"
            kind = "vm"
            require_seals = true
            doorbells = "direct"
            [guest.limits]
            queue_pairs = 64
            registered_bytes = 17179869184
            [[guest]]
            name = "worker"
            socket = "/run/worker"
            kind = "process"
            "#,
        )
        .unwrap();
        assert_eq!(config.device, Device::Model { ports: 2 });
        assert_eq!(config.spin, Some(Duration::from_micros(20)));
        assert_eq!(config.fabric_sockets, [PathBuf::from("/run/c")]);
        let limits =
            GuestLimits { queue_pairs: Some(64), registered_bytes: Some(16 << 30), ..GuestLimits::default() };
        let web1 = GuestEntry {
            require_seals: Some(true),
            doorbells: Doorbells::Direct,
            limits,
            ..GuestEntry::new("web1", "/run/web1", GuestKind::Vm)
        };
        assert_eq!(config.guests, [web1, GuestEntry::new("worker", "/run/worker", GuestKind::Process)]);
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = written("[[guest]]\nname = 'a'\nsocket = '/run/a'\n").unwrap();
        assert_eq!(config.device, Device::Model { ports: 1 });
        assert_eq!(config.guests, [GuestEntry::new("a", "/run/a", GuestKind::Vm)]);
    }

    #[test]
    fn mistakes_are_told_in_one_line_with_their_place() {
        let guest = "[[guest]]\nname = 'a'\nsocket = '/run/a'\n";
        for (text, words) in [
            ("devise = 'model'\n".to_owned(), "line 1: unknown field `devise`"),
            (format!("{guest}limit = 3\n"), "line 4: unknown field `limit`"),
            (format!("{guest}[guest.limits]\nqps = 3\n"), "line 5: unknown field `qps`"),
            (format!("{guest}kind = 'pod'\n"), "line 4: unknown variant `pod`"),
            (format!("{guest}doorbells = 'mapped'\n"), "line 4: unknown variant `mapped`"),
            (format!("{guest}[guest.limits]\nqueue_pairs = -1\n"), "line 5: "),
            ("device = \n".to_owned(), "line 1: "),
            ("[[guest]]\nname = 'a'\n".to_owned(), "line 1: missing field `socket`"),
            (format!("device = 'vfio:0000:01:00.0'\nports = 1\n{guest}"), "leave `ports` out"),
            (format!("device = 'vfio-user:/c'\nports = 1\n{guest}"), "leave `ports` out"),
            (format!("{guest}[guest.limits]\nuars = 0\n"), "guest \"a\""),
        ] {
            let error = written(&text).unwrap_err();
            assert!(error.contains(words) && error.contains("paraverbsd.toml"), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let error = read(Path::new("/nonexistent/x.toml")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/x.toml") && error.contains("name one that exists"), "{error}");
    }
}
