//! Why a function behind a socket can't be opened, and what to do about it.

use std::io;
use std::path::PathBuf;

/// Why a function behind a socket can't be opened. Each message is one line: what, which, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens at the path.
    #[error(
        "can't connect to {}; a server must listen there, e.g. `paraverbs model --socket PATH`, and this user be \
         allowed to write to its socket", .path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The server speaks something else, or doesn't answer.
    #[error("the server at {} does not speak vfio-user, or serves another client", .path.display())]
    Version {
        /// The socket.
        path: PathBuf,
        /// What came instead.
        #[source]
        source: io::Error,
    },
    /// The server doesn't say what it serves.
    #[error("the server at {} does not tell what it serves", .path.display())]
    Describe {
        /// The socket.
        path: PathBuf,
        /// What came instead.
        #[source]
        source: io::Error,
    },
    /// The server has another kind of device.
    #[error(
        "the server at {} has no PCI Express function that can be reset; name the socket of an mlx4 card",
        .path.display()
    )]
    NotPci {
        /// The socket.
        path: PathBuf,
    },
    /// The function has no registers or doorbells.
    #[error("BAR{bar} of the function at {} is missing; is it an mlx4 card?", .path.display())]
    NoBar {
        /// The socket.
        path: PathBuf,
        /// Number of the BAR.
        bar: u8,
    },
}
