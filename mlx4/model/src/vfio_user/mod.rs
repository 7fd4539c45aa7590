//! Serves an HCA to a VMM over vfio-user.
//!
//! A [`VfioUserServer`] listens on a Unix socket and hands what a client (QEMU's `vfio-user-pci`, or any
//! other) asks for to a [`PciFunction`]: BAR and configuration accesses, all of them trapped, and resets.
//! The client's memory goes into the function's [`DmaSpace`], its eventfds into [`EventFdInterrupts`].
//!
//! One client at a time. When it leaves, the function is reset, its memory unmapped and its eventfds
//! closed, in that order, and the next one is accepted. A client is not trusted: what it asks for is
//! checked, and the worst it gets is an error or a closed connection.
//!
//! - `card`: a card of its own for each server
//! - `socket`: making the socket, and removing it
//! - `backend`: one client's requests
//! - `irqs`: eventfds as interrupts
//!
//! Does not: offer mmap-able regions (each trapped write would then wait for its reply), raise INTx.

mod backend;
mod card;
mod irqs;
pub mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ::vfio_user::{Error as ProtocolError, Server, ServerBackend};
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::device::PciFunction;
use crate::hca::HcaError;
use crate::mem::DmaSpace;
use backend::Backend;
pub use card::ServedCard;
pub use irqs::EventFdInterrupts;
use socket::{ServerSocket, SocketError};

/// How long a server that is told to stop waits for its thread. Only a client that has sent the first half
/// of a message and then nothing keeps it that long.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// Pause after an accept that failed, and between two looks whether the thread has ended.
const PAUSE: Duration = Duration::from_millis(5);

/// Why a server can't be started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no socket at the path.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// There can't be another card.
    #[error("can't plug in a card for {path}")]
    Card {
        /// The socket that it was to be served on.
        path: PathBuf,
        /// Why not.
        #[source]
        source: HcaError,
    },
    /// The thread of the server, or of its card, can't be started.
    #[error("can't start the server's thread")]
    Thread(#[source] io::Error),
    /// The signal that wakes the thread can't be set up.
    #[error("can't set up the signal that stops the server")]
    Signal(#[source] errno::Error),
}

impl ServeError {
    /// What the person who chose the path can do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Socket(SocketError::PathTooLong { .. }) => "choose a shorter path",
            Self::Socket(SocketError::InUse { .. }) => "stop that server, or choose another path",
            Self::Socket(SocketError::NotASocket { .. }) => "remove it, or choose another path",
            Self::Socket(SocketError::Listen { source, .. }) => match source.kind() {
                io::ErrorKind::NotFound => "make its folder first",
                io::ErrorKind::PermissionDenied => "choose a folder that you may write to",
                _ => "choose another path",
            },
            Self::Card { .. } => "serve fewer cards",
            Self::Thread(_) | Self::Signal(_) => "look at the limits of this user (ulimit -a)",
        }
    }
}

/// A PCI function on a Unix socket. Dropping it stops the server, as [`VfioUserServer::stop`] does.
#[derive(Debug)]
pub struct VfioUserServer {
    socket: ServerSocket,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl VfioUserServer {
    /// Listens on `path` and serves the function from a thread of its own. `irqs` is what the function
    /// raises its interrupts through, `dma` the space that it reaches memory through.
    ///
    /// A socket that a dead server left at the path is replaced.
    pub fn start(
        path: &Path,
        function: Arc<dyn PciFunction>,
        dma: Arc<DmaSpace>,
        irqs: Arc<EventFdInterrupts>,
    ) -> Result<Self, ServeError> {
        prepare_wakeup()?;
        let (socket, listener) = ServerSocket::bind(path)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let mut backend = Backend::new(function, dma, irqs, Arc::clone(&stopping));
        let server = Server::from_owned_fd(listener.into(), true, backend.irq_infos(), backend.regions());
        let thread = thread::Builder::new()
            .name("vfio-user".into())
            .spawn(move || serve(&server, &mut backend))
            .map_err(ServeError::Thread)?;
        Ok(Self { socket, stopping, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Disconnects the client if there is one, resets the function, and removes the socket.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stopping.store(true, Ordering::SeqCst);
        self.socket.close();
        let started = Instant::now();
        while !thread.is_finished() {
            if started.elapsed() > STOP_PATIENCE {
                log::warn!("{}: a client holds the server's thread, left behind", self.path().display());
                return;
            }
            // It may be on its way into the wait for a message just now, so one signal isn't enough.
            if let Err(error) = thread.kill(wakeup_signal()) {
                log::debug!("can't signal the server's thread: {error}");
            }
            thread::sleep(PAUSE);
        }
        if thread.join().is_err() {
            log::error!("{}: the server's thread panicked", self.path().display());
        }
    }
}

impl Drop for VfioUserServer {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// What the protocol's crate calls on behalf of a client, for whoever makes such calls without a socket (fuzz
/// targets). The client's memory and eventfds stay until `dma` and `irqs` are dropped.
pub fn backend(
    function: Arc<dyn PciFunction>,
    dma: Arc<DmaSpace>,
    irqs: Arc<EventFdInterrupts>,
) -> impl ServerBackend {
    Backend::new(function, dma, irqs, Arc::default())
}

/// Serves one client after the other until the server is stopped.
fn serve(server: &Server, backend: &mut Backend) {
    while !backend.stopping() {
        // The protocol's crate panics on some malformed messages. Nothing of it survives a connection, and
        // the backend is brought back to its first state after each.
        let result = catch_unwind(AssertUnwindSafe(|| server.run(backend)));
        backend.disconnected();
        match result {
            Ok(Ok(())) => log::debug!("client has left"),
            _ if backend.stopping() => {}
            Ok(Err(ProtocolError::SocketAccept(error))) => {
                log::warn!("can't accept a client: {error}");
                thread::sleep(PAUSE);
            }
            Ok(Err(error)) => log::warn!("client dropped: {error}"),
            Err(_) => log::warn!("client dropped: malformed message"),
        }
    }
}

/// The signal that gets the thread out of its wait for a message: the protocol's crate keeps the connection
/// to itself, so it can't be shut down.
fn wakeup_signal() -> c_int {
    SIGRTMIN() + 3
}

/// Gives the signal a handler, without which it would end the process.
fn prepare_wakeup() -> Result<(), ServeError> {
    extern "C" fn wake(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

    static READY: OnceLock<Result<(), errno::Error>> = OnceLock::new();
    READY.get_or_init(|| register_signal_handler(wakeup_signal(), wake)).map_err(ServeError::Signal)
}
