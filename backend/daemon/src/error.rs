//! Why a daemon can't be started.

use std::error::Error;
use std::{io, iter};

use mlx4_model::fabric::FabricError;
use mlx4_model::hca::HcaError;
use mlx4_model::vfio_user::ServeError;
use mlx4_pci::{ConnectError, OpenError};
use paraverbs_rdma::ListenError;

use crate::config::{ConfigError, LimitError};

/// Why a daemon can't be started. With its sources a line that says what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A guest may have more than there is.
    #[error("guest {guest:?}")]
    Limit {
        /// Whose limit.
        guest: String,
        /// Which limit.
        #[source]
        source: LimitError,
    },
    /// The card can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The card behind a socket can't be opened.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The model's fabric can't be made.
    #[error("can't make the model's fabric")]
    Fabric(#[from] FabricError),
    /// The model can't be made.
    #[error("can't make the model")]
    Model(#[from] HcaError),
    /// The HCA doesn't come up.
    #[error("the HCA does not come up; {}", bring_up_advice(.0))]
    BringUp(#[from] mlx4::Error),
    /// The socket of a guest can't be made.
    #[error("{}{}", chain(.0), advice(.0))]
    Listen(ListenError),
    /// A card of the fabric can't be served.
    #[error("{}; {}", chain(.0), .0.advice())]
    Serve(ServeError),
    /// A thread can't be started.
    #[error("can't start a thread; look at the limits of this user (ulimit -a)")]
    Thread(#[source] io::Error),
}

/// What to do about a socket, where the error doesn't say so itself.
fn advice(error: &ListenError) -> &'static str {
    match error {
        error if lacks_descriptors(error) => "; raise the limit of open files (ulimit -n)",
        ListenError::PathTooLong { .. } => "; choose a shorter path",
        ListenError::NoPermission { .. } => "; choose a directory that this user may write to",
        ListenError::System { .. } => "; choose another path",
        _ => "",
    }
}

/// What to do about an HCA that doesn't come up.
fn bring_up_advice(error: &mlx4::Error) -> &'static str {
    if lacks_descriptors(error) {
        "raise the limit of open files (ulimit -n)"
    } else {
        "RUST_LOG=info tells more"
    }
}

/// Whether this user, or this machine, has too many files open.
fn lacks_descriptors(error: &(dyn Error + 'static)) -> bool {
    iter::successors(Some(error), |error| (*error).source()).any(|error| {
        let code = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        matches!(code, Some(libc::EMFILE | libc::ENFILE))
    })
}

/// An error and its sources in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
