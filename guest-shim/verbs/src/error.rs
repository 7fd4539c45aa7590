//! Why a verb was not carried out.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use mlx4_queue::geometry::GeometryError;
use mlx4_queue::request::PostError;
use mlx4_queue::{CqError, PlaceError};
use virtio_rdma::config::ConfigError;
use virtio_rdma::{Reason, Status};

/// Bytes of a path in `sockaddr_un`, without the final zero.
const SOCKET_PATH_MAX: usize = 107;

/// The result of a verb.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a verb was not carried out: the error number that libibverbs has for it ([`Error::errno`]), and a line
/// that tells a person all of it, so that there is no further source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The daemon's socket can't be connected to.
    #[error("can't connect to {}: {}", path.display(), connect_hint(path, error))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// What answers at the socket doesn't speak vhost-user as it must, or doesn't answer.
    #[error("{}: {step}: {what}", path.display())]
    Handshake {
        /// The socket.
        path: PathBuf,
        /// Which step of the handshake.
        step: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The device isn't one that this library can drive.
    #[error("a device that this library can't drive: {0}")]
    Device(String),
    /// The device has refused a request.
    #[error("{verb} refused: {reason} ({})", io::Error::from_raw_os_error(*errno))]
    Refused {
        /// The request, as `docs/virtio-rdma.md` calls it.
        verb: &'static str,
        /// The error number that its status stands for.
        errno: i32,
        /// The reason, as `docs/virtio-rdma.md` calls it.
        reason: &'static str,
    },
    /// The device is lost: it failed, or the daemon is gone.
    #[error("the device is lost ({0}): drop the context and connect again")]
    Lost(&'static str),
    /// The HCA, or the device, has said something that can't be.
    #[error("nonsense from the device: {0}")]
    Hca(String),
    /// An argument is none that the verb takes.
    #[error("{0}")]
    Invalid(String),
    /// The verb may not be applied to these objects.
    #[error("{0}")]
    NotPermitted(&'static str),
    /// There is no more of something.
    #[error("{0}")]
    NoMemory(String),
    /// The object is used by another one.
    #[error("{0} is in use")]
    Busy(&'static str),
    /// The queue has no room: completions of earlier requests must be polled first.
    #[error("the queue is full: poll completions first")]
    QueueFull,
    /// The queue pair's state doesn't allow it.
    #[error("a queue pair in this state takes no {0} requests")]
    State(&'static str),
    /// The kernel refused something.
    #[error("{what}: {error}")]
    System {
        /// What.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

/// What to do about a socket that can't be connected to.
fn connect_hint(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "no such socket; is paraverbsd running, and this the guest's socket?".into()
        }
        io::ErrorKind::ConnectionRefused if !is_socket(path) => {
            "it is no socket; name the socket that paraverbsd serves this guest on".into()
        }
        io::ErrorKind::ConnectionRefused => "nobody listens there; start paraverbsd".into(),
        // Of all that is wrong with a path the kernel isn't even asked about a long one.
        io::ErrorKind::InvalidInput if is_too_long(path) => {
            format!("the path is longer than the {SOCKET_PATH_MAX} bytes of a Unix socket's address")
        }
        io::ErrorKind::PermissionDenied => {
            "permission denied; run as a user or group that may write to the socket".into()
        }
        _ => error.to_string(),
    }
}

/// Whether a socket is there, as far as that can be told.
fn is_socket(path: &Path) -> bool {
    path.metadata().map_or(true, |metadata| metadata.file_type().is_socket())
}

fn is_too_long(path: &Path) -> bool {
    path.as_os_str().len() > SOCKET_PATH_MAX
}

impl Error {
    /// The error number that libibverbs has for it (Linux's numbers).
    pub fn errno(&self) -> i32 {
        match self {
            Self::Connect { path, .. } if is_too_long(path) => libc::ENAMETOOLONG,
            Self::Connect { error, .. } | Self::System { error, .. } => {
                error.raw_os_error().unwrap_or(libc::EIO)
            }
            Self::Handshake { .. } => libc::EPROTO,
            Self::Device(_) => libc::EOPNOTSUPP,
            Self::Refused { errno, .. } => *errno,
            Self::Lost(_) | Self::Hca(_) => libc::EIO,
            Self::Invalid(_) | Self::State(_) => libc::EINVAL,
            Self::NotPermitted(_) => libc::EPERM,
            Self::NoMemory(_) | Self::QueueFull => libc::ENOMEM,
            Self::Busy(_) => libc::EBUSY,
        }
    }

    /// The device has refused a request.
    pub(crate) fn refused(verb: &'static str, status: Status, reason: Reason) -> Self {
        Self::Refused { verb, errno: status.errno(), reason: reason.name().unwrap_or("unknown reason") }
    }

    /// The kernel refused something: a conversion for `map_err`.
    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System { what, error: error.into() }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Device(error.to_string())
    }
}

impl From<CqError> for Error {
    fn from(error: CqError) -> Self {
        Self::Hca(error.to_string())
    }
}

impl From<PlaceError> for Error {
    fn from(error: PlaceError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<GeometryError> for Error {
    fn from(error: GeometryError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<PostError> for Error {
    fn from(error: PostError) -> Self {
        match error {
            PostError::Full => Self::QueueFull,
            other => Self::Invalid(other.to_string()),
        }
    }
}
