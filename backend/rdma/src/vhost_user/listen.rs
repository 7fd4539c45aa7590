//! A socket's path: what can be wrong with it, and whose the file is.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Longest path of a socket in bytes: `sun_path` without the zero behind it.
const MAX_PATH: usize = 107;

/// Why a guest's socket can't be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The path is too long for a socket's address.
    #[error("socket path of {bytes} bytes is longer than the {MAX_PATH} that a socket may have: {path}")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        bytes: usize,
    },
    /// A process that lives listens there.
    #[error("socket {path} is in use by another process; stop that or choose another path")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is a file that is no socket.
    #[error("{path} is there and is no socket; remove it or choose another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The directory isn't there.
    #[error("there is no directory for socket {path}; create it")]
    NoDirectory {
        /// The path.
        path: PathBuf,
    },
    /// This process may not create the socket.
    #[error("no permission to create socket {path}")]
    NoPermission {
        /// The path.
        path: PathBuf,
    },
    /// Something else failed.
    #[error("can't listen on {path}")]
    System {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ListenError {
    pub(crate) fn of(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NoDirectory { path },
            io::ErrorKind::PermissionDenied => Self::NoPermission { path },
            io::ErrorKind::AddrInUse => Self::InUse { path },
            _ => Self::System { path, source },
        }
    }
}

/// The file of a socket. It is removed when this is dropped, unless it is somebody else's by then.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Listens on a path. A file that a process left behind is removed first.
    pub(crate) fn bind(path: &Path) -> Result<(Self, UnixListener), ListenError> {
        let bytes = path.as_os_str().len();
        if bytes > MAX_PATH {
            return Err(ListenError::PathTooLong { path: path.to_owned(), bytes });
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(|error| ListenError::of(path, error))?;
        let identity = identity(path).map_err(|error| ListenError::of(path, error))?;
        Ok((Self { path: path.to_owned(), identity }, listener))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("socket {} stays behind: {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let file = match std::fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ListenError::of(path, error)),
    };
    if !file.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!("socket {} was left behind and is removed", path.display());
            std::fs::remove_file(path).map_err(|error| ListenError::of(path, error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(ListenError::of(path, error)),
        _ => Err(ListenError::InUse { path: path.to_owned() }),
    }
}
