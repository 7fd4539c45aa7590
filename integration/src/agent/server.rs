//! The guest's side: runs the commands that the host sends, several at a time.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::Message;

/// Exit status of a command that can't be started, as a shell has it.
const CANNOT_START: i32 = 127;
/// How long output is waited for after a command's end: what it left in the background may hold its
/// pipes open for ever.
const DRAIN: Duration = Duration::from_millis(300);

/// The sending half of the channel, shared by the threads of all commands.
type Out<W> = Arc<Mutex<W>>;

/// A command that runs.
struct Running {
    group: Pid,
    input: Sender<Vec<u8>>,
}

/// Serves the host until the channel ends.
///
/// # Errors
/// The channel fails, or the host breaks the protocol.
pub fn serve(mut from: impl Read, to: impl Write + Send + 'static) -> io::Result<()> {
    let out = Arc::new(Mutex::new(to));
    let running: Arc<Mutex<HashMap<u32, Running>>> = Arc::default();
    send(&out, &Message::Hello)?;
    loop {
        match Message::read(&mut from)? {
            Message::Start { id, command } => start(id, &command, &out, &running)?,
            Message::Input { id, bytes } => {
                if let Some(command) = lock(&running).get(&id) {
                    // Fails only if the command has closed its input.
                    let _ = command.input.send(bytes);
                }
            }
            Message::Signal { id, number } => {
                if let Some(command) = lock(&running).get(&id)
                    && let Some(signal) = Signal::from_named_raw(number)
                {
                    // The group may just have ended.
                    let _ = kill_process_group(command.group, signal);
                }
            }
            other => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("from the host: {other:?}")));
            }
        }
    }
}

fn start<W: Write + Send + 'static>(
    id: u32,
    command: &str,
    out: &Out<W>,
    running: &Arc<Mutex<HashMap<u32, Running>>>,
) -> io::Result<()> {
    let spawned = Command::new("sh")
        .args(["-c", command])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            send(out, &Message::Error { id, bytes: format!("rig-agent: sh: {error}\n").into_bytes() })?;
            return send(out, &Message::Ended { id, status: CANNOT_START });
        }
    };
    let (input, inputs) = channel();
    if let Some(stdin) = child.stdin.take() {
        thread::spawn(move || feed(stdin, &inputs));
    }
    lock(running).insert(id, Running { group: Pid::from_child(&child), input });
    let (drained, pipes) = channel();
    if let Some(stdout) = child.stdout.take() {
        forward(stdout, out, drained.clone(), move |bytes| Message::Output { id, bytes });
    }
    if let Some(stderr) = child.stderr.take() {
        forward(stderr, out, drained, move |bytes| Message::Error { id, bytes });
    }
    let (out, running) = (Arc::clone(out), Arc::clone(running));
    thread::spawn(move || finish(id, child, &pipes, &out, &running));
    Ok(())
}

/// Writes to a command's standard input what the host sends, up to the empty piece that ends it.
fn feed(mut stdin: impl Write, inputs: &Receiver<Vec<u8>>) {
    for bytes in inputs {
        // A command that doesn't read its input to the end is no error.
        if bytes.is_empty() || stdin.write_all(&bytes).is_err() {
            break;
        }
    }
}

/// Sends what comes out of a pipe, on a thread; `drained` is dropped at its end.
fn forward<W: Write + Send + 'static>(
    mut pipe: impl Read + Send + 'static,
    out: &Out<W>,
    drained: Sender<()>,
    message: impl Fn(Vec<u8>) -> Message + Send + 'static,
) {
    let out = Arc::clone(out);
    thread::spawn(move || {
        let _drained = drained;
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            if send(&out, &message(buffer[..length].to_vec())).is_err() {
                break;
            }
        }
    });
}

/// Waits for a command's end, and tells the host.
fn finish<W: Write>(
    id: u32,
    mut child: Child,
    pipes: &Receiver<()>,
    out: &Out<W>,
    running: &Mutex<HashMap<u32, Running>>,
) {
    let status = match child.wait() {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
        Err(_) => CANNOT_START,
    };
    // Nothing is ever sent here: the wait ends when both pipes have, or at the deadline.
    let deadline = Instant::now() + DRAIN;
    let _ = pipes.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    lock(running).remove(&id);
    // If the channel is gone, so is who would want to know.
    let _ = send(out, &Message::Ended { id, status });
}

fn send<W: Write>(out: &Out<W>, message: &Message) -> io::Result<()> {
    message.write(&mut *lock(out))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
