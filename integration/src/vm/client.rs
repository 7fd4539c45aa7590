//! The host's side of the agent's channel.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::{MAX_BODY, Message};

const SIGKILL: i32 = 9;
/// How long a guest may leave its channel unread.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// How long a killed command may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How a command ended, and what it wrote. Bytes that aren't UTF-8 are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit status, or 128 and the number of the signal that ended it.
    pub status: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ended with status {}\n--- stdout\n{}\n--- stderr\n{}",
            self.status,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// The connection to one guest's agent.
#[derive(Debug)]
pub(super) struct Client {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    stream: UnixStream,
    /// Held while a frame is written.
    writing: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    hello: bool,
    /// Why the connection ended.
    lost: Option<String>,
    last_id: u32,
    commands: HashMap<u32, Command>,
}

#[derive(Debug, Default)]
struct Command {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    status: Option<i32>,
}

impl Command {
    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }
}

impl Client {
    pub(super) fn start(name: &str, stream: UnixStream) -> Result<Self> {
        stream.set_write_timeout(Some(WRITE_LIMIT))?;
        let mut from = stream.try_clone()?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            stream,
            writing: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let reader = Arc::clone(&shared);
        let reader = thread::Builder::new().name(format!("agent-{name}")).spawn(move || {
            let error = loop {
                match Message::read(&mut from) {
                    Ok(message) => reader.receive(message),
                    Err(error) => break error,
                }
            };
            reader.lock().lost = Some(match error.kind() {
                io::ErrorKind::UnexpectedEof => "QEMU closed the channel".to_owned(),
                _ => error.to_string(),
            });
            reader.changed.notify_all();
        })?;
        Ok(Self { shared, reader: Some(reader) })
    }

    /// Forgets that the agent has answered, and the commands that end with the guest.
    pub(super) fn expect_hello(&self) {
        let mut state = self.shared.lock();
        state.hello = false;
        state.commands.clear();
    }

    pub(super) fn wait_for_hello(&self, limit: Duration) -> Result<()> {
        self.shared.wait_until(limit, |state| state.hello.then_some(()))?.context("the agent didn't come up")
    }

    pub(super) fn spawn(&self, command: &str) -> Result<Process> {
        let id = {
            let mut state = self.shared.lock();
            state.last_id += 1;
            let id = state.last_id;
            state.commands.insert(id, Command::default());
            id
        };
        let process = Process {
            shared: Arc::clone(&self.shared),
            id,
            command: command.to_owned(),
            read: 0,
            forgotten: false,
        };
        self.shared.send(&Message::Start { id, command: command.to_owned() })?;
        Ok(process)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Fails only if the connection has ended already.
        let _ = self.shared.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            // The reader has nothing to panic on.
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, message: Message) {
        let mut state = self.lock();
        match message {
            Message::Hello => state.hello = true,
            Message::Output { id, bytes } => {
                if let Some(command) = state.commands.get_mut(&id) {
                    command.stdout.extend(bytes);
                }
            }
            Message::Error { id, bytes } => {
                if let Some(command) = state.commands.get_mut(&id) {
                    command.stderr.extend(bytes);
                }
            }
            Message::Ended { id, status } => {
                if let Some(command) = state.commands.get_mut(&id) {
                    command.status = Some(status);
                }
            }
            other => state.lost = Some(format!("the agent sent {other:?}")),
        }
        self.changed.notify_all();
    }

    fn send(&self, message: &Message) -> Result<()> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &self.lock().lost {
            bail!("the agent of {} is lost: {why}", self.name);
        }
        message.write(&mut &self.stream).with_context(|| format!("send to the agent of {}", self.name))
    }

    /// Waits until `done` gives a value: `None` when `limit` is over first.
    fn wait_until<T>(
        &self,
        limit: Duration,
        mut done: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(value) = done(&mut state) {
                return Ok(Some(value));
            }
            if let Some(why) = &state.lost {
                bail!("the agent of {} is lost: {why}", self.name);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A command that runs in a guest. Dropping it kills its process group.
#[derive(Debug)]
pub struct Process {
    shared: Arc<Shared>,
    id: u32,
    command: String,
    /// How many bytes of the standard output [`Process::line`] has given.
    read: usize,
    forgotten: bool,
}

impl Process {
    /// Gives the command bytes on its standard input, and leaves that open.
    ///
    /// # Errors
    /// The agent can't be reached.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(MAX_BODY) {
            self.shared.send(&Message::Input { id: self.id, bytes: piece.to_vec() })?;
        }
        Ok(())
    }

    /// Waits for the next line of the command's standard output, and gives it without its end.
    ///
    /// # Errors
    /// The command ends without, or none comes within `limit`. The message has its output.
    pub fn line(&mut self, limit: Duration) -> Result<String> {
        let (id, from) = (self.id, self.read);
        let line = self.shared.wait_until(limit, |state| {
            let command = state.commands.get(&id)?;
            let rest = &command.stdout[from..];
            match rest.iter().position(|&byte| byte == b'\n') {
                Some(length) => Some(Some(rest[..length].to_vec())),
                None => command.status.is_some().then_some(None),
            }
        })?;
        if let Some(Some(line)) = line {
            self.read += line.len() + 1;
            return Ok(Command::text(&line));
        }
        let what = if line.is_some() { "ended" } else { "went on" };
        bail!("{}", self.silence(what, "another line"));
    }

    /// Gives the command bytes on its standard input, and then ends that.
    ///
    /// # Errors
    /// The agent can't be reached.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes)?;
        self.shared.send(&Message::Input { id: self.id, bytes: Vec::new() })
    }

    /// Waits for the command's end.
    ///
    /// # Errors
    /// It still runs after `limit` (it is killed then), or the agent is lost. The message has its output.
    pub fn wait(self, limit: Duration) -> Result<Output> {
        let id = self.id;
        let ended = self.shared.wait_until(limit, |state| ended(state, id));
        match ended.with_context(|| format!("while `{}` ran", self.command))? {
            Some(output) => Ok(output),
            None => {
                let (stdout, stderr) = self.output();
                bail!(
                    "on {}: `{}` still runs after {limit:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}",
                    self.shared.name,
                    self.command
                )
            }
        }
    }

    /// Sends a signal to the command's process group.
    ///
    /// # Errors
    /// The agent can't be reached.
    pub fn signal(&self, number: i32) -> Result<()> {
        self.shared.send(&Message::Signal { id: self.id, number })
    }

    /// Kills the command and gives what it had written.
    ///
    /// # Errors
    /// It doesn't end, or the agent is lost.
    pub fn kill(self) -> Result<Output> {
        self.signal(SIGKILL)?;
        self.wait(KILL_LIMIT)
    }

    /// Whether the command still runs.
    pub fn is_running(&self) -> bool {
        let state = self.shared.lock();
        state.lost.is_none() && state.commands.get(&self.id).is_some_and(|command| command.status.is_none())
    }

    /// Its standard output and standard error so far.
    pub fn output(&self) -> (String, String) {
        let state = self.shared.lock();
        state.commands.get(&self.id).map_or_else(Default::default, |command| {
            (Command::text(&command.stdout), Command::text(&command.stderr))
        })
    }

    /// Waits until standard output or standard error contains `text`: that a server listens, say.
    ///
    /// # Errors
    /// The command ends without, or doesn't say it within `limit`. The message has its output.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<()> {
        let id = self.id;
        let seen = self.shared.wait_until(limit, |state| {
            let command = state.commands.get(&id)?;
            let seen = [&command.stdout, &command.stderr].iter().any(|out| Command::text(out).contains(text));
            (seen || command.status.is_some()).then_some(seen)
        })?;
        if seen != Some(true) {
            let what = if seen.is_some() { "ended" } else { "went on" };
            bail!("{}", self.silence(what, &format!("{text:?}")));
        }
        Ok(())
    }

    /// Tells that the command didn't say what was waited for, with all that it said.
    fn silence(&self, what: &str, missing: &str) -> String {
        let (stdout, stderr) = self.output();
        format!(
            "on {}: `{}` {what} without saying {missing}\n--- stdout\n{stdout}\n--- stderr\n{stderr}",
            self.shared.name, self.command
        )
    }

    /// Lets go of the command without killing it.
    pub fn forget(mut self) {
        self.forgotten = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.forgotten && self.is_running() {
            // If the agent is lost the guest is too.
            let _ = self.signal(SIGKILL);
        }
        self.shared.lock().commands.remove(&self.id);
    }
}

fn ended(state: &mut State, id: u32) -> Option<Output> {
    let command = state.commands.get(&id)?;
    let status = command.status?;
    Some(Output { status, stdout: Command::text(&command.stdout), stderr: Command::text(&command.stderr) })
}
