//! A socket that serves one connection after the other, each for a short time: the model's dump and control.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mlx4_model::vfio_user::ServeError;
use mlx4_model::vfio_user::socket::ServerSocket;

/// How long a client may keep the others waiting, each time that it is read from or written to.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause after a connection that couldn't be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// The socket and its thread. Dropping it stops the thread and removes the socket.
#[derive(Debug)]
pub(crate) struct SocketServer {
    socket: ServerSocket,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SocketServer {
    /// Listens on a path with a thread called `name`; `serve` is called for each connection.
    pub(crate) fn start(
        name: &str,
        path: &Path,
        serve: impl Fn(UnixStream) -> io::Result<()> + Send + 'static,
    ) -> Result<Self, ServeError> {
        let (socket, listener) = ServerSocket::bind(path)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stopping);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::SeqCst) {
                    if let Err(error) = accept(&listener).and_then(&serve) {
                        log::debug!("connection not served: {error}");
                        thread::sleep(PAUSE);
                    }
                }
            })
            .map_err(ServeError::Thread)?;
        Ok(Self { socket, stopping, thread: Some(thread) })
    }
}

impl Drop for SocketServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.socket.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of {} panicked", self.socket.path().display());
        }
    }
}

fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
