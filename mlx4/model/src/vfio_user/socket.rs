//! A server's Unix socket: made with care for what is at its path, and removed with the server.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Bytes of a path in `sockaddr_un`, without the final zero.
const PATH_MAX: usize = 107;

/// Why a socket can't be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Longer than the address of a Unix socket.
    #[error("socket path {path} has {len} bytes, more than {PATH_MAX}")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// Another process, or another server of this one, listens there.
    #[error("socket {path} is in use by a running server")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is a file that no server left behind.
    #[error("{path} exists and is not a socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("can't listen on {path}")]
    Listen {
        /// The path.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// A listening socket with a path. Dropping it removes the path.
#[derive(Debug)]
pub struct ServerSocket {
    path: PathBuf,
    /// The listener as a stream, which is what the standard library can shut down.
    listener: UnixStream,
    /// Device and inode of the path, so that somebody else's socket is not removed.
    identity: (u64, u64),
}

impl ServerSocket {
    /// Listens on a path; the listener is for the thread that accepts. A socket that a dead server left
    /// there is replaced.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let len = path.as_os_str().as_bytes().len();
        if len > PATH_MAX {
            return Err(SocketError::PathTooLong { path: path.into(), len });
        }
        clear(path)?;
        let failed = |source| SocketError::Listen { path: path.into(), source };
        let listener = UnixListener::bind(path).map_err(failed)?;
        let identity = identity(path).map_err(failed)?;
        let copy = OwnedFd::from(listener.try_clone().map_err(failed)?);
        Ok((Self { path: path.into(), listener: copy.into(), identity }, listener))
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses further clients and ends a wait for one, with an error.
    pub fn close(&self) {
        if let Err(error) = self.listener.shutdown(Shutdown::Both) {
            log::debug!("{}: {error}", self.path.display());
        }
    }
}

impl Drop for ServerSocket {
    fn drop(&mut self) {
        self.close();
        if identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("can't remove {}: {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Makes way for a socket, if all that is there is one that nobody listens on.
fn clear(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Listen { path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.into() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!("{}: replacing the socket of a server that is gone", path.display());
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}
