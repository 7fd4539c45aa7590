//! A socket that answers each connection with a text, and closes it.

use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mlx4_model::vfio_user::ServeError;
use mlx4_model::vfio_user::socket::ServerSocket;

/// How long a reader may keep the others waiting.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause after a connection that couldn't be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// The socket and its thread. Dropping it stops the thread and removes the socket.
#[derive(Debug)]
pub(crate) struct DumpServer {
    socket: ServerSocket,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DumpServer {
    /// Listens on a path; `text` makes the answer, anew for each connection.
    pub(crate) fn start(path: &Path, text: impl Fn() -> String + Send + 'static) -> Result<Self, ServeError> {
        let (socket, listener) = ServerSocket::bind(path)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stopping);
        let thread = thread::Builder::new()
            .name("dump".into())
            .spawn(move || {
                while !stopped.load(Ordering::SeqCst) {
                    if let Err(error) = answer(&listener, &text) {
                        log::debug!("dump not delivered: {error}");
                        thread::sleep(PAUSE);
                    }
                }
            })
            .map_err(ServeError::Thread)?;
        Ok(Self { socket, stopping, thread: Some(thread) })
    }
}

impl Drop for DumpServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.socket.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the dump socket panicked");
        }
    }
}

fn answer(listener: &UnixListener, text: impl Fn() -> String) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(text().as_bytes())
}
