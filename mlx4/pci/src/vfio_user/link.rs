//! The connection to a server: requests that wait for their answer, and writes that don't.
//!
//! A server is not trusted to go on: one that leaves, answers nonsense or doesn't answer in time costs the
//! connection, for good. Whatever is asked for then fails at once.

use std::fmt;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::message::{Answer, Command, HEADER, Header, NO_REPLY};

/// Bytes of the longest message that goes out: a header, a body and a register.
const LONGEST: usize = 64;
/// Refusals of writes that nobody waits for which are passed over before an answer.
const STALE_MAX: usize = 4096;
/// Descriptors that go with a message at most.
pub(super) const FDS_MAX: usize = 8;

/// A connection. Dropping it ends it; an honest server then leaves this process's memory alone.
pub(super) struct Link {
    /// The device, for messages.
    name: String,
    stream: UnixStream,
    /// How long the server may take for an answer, or to make room for a message.
    patience: Duration,
    /// Number of the next message; whoever holds it sends.
    sending: Mutex<u16>,
    /// Whoever holds it waits for an answer.
    calling: Mutex<()>,
    /// Why the connection has ended.
    broken: OnceLock<String>,
}

impl Link {
    pub(super) fn new(name: String, stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let (sending, calling) = (Mutex::new(0), Mutex::new(()));
        Ok(Self { name, stream, patience, sending, calling, broken: OnceLock::new() })
    }

    /// Why there is no connection any more.
    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    /// Asks for something and waits for the answer, which may have as many bytes as `answer`; returns how
    /// many it has.
    ///
    /// # Errors
    /// The server refuses, or the connection has ended.
    pub(super) fn call(
        &self,
        command: Command,
        body: &[&[u8]],
        fds: &[RawFd],
        answer: &mut [u8],
    ) -> io::Result<usize> {
        let _calling = lock(&self.calling);
        let id = self.send(command, 0, body, fds)?;
        self.answer(id, command, answer)
    }

    /// Asks for something whose answer has as many bytes as `T`.
    ///
    /// # Errors
    /// As for [`Link::call`]; a shorter answer ends the connection.
    pub(super) fn ask<T: FromBytes + IntoBytes>(
        &self,
        command: Command,
        body: &(impl IntoBytes + Immutable),
    ) -> io::Result<T> {
        let mut answer = T::new_zeroed();
        let bytes = answer.as_mut_bytes();
        let len = bytes.len();
        if self.call(command, &[body.as_bytes()], &[], bytes)? != len {
            return Err(self.fail("a shorter answer than was asked for"));
        }
        Ok(answer)
    }

    /// Asks for something that isn't answered, and doesn't wait: the server does it before what it is asked
    /// for later. Does nothing once the connection has ended.
    pub(super) fn post(&self, command: Command, body: &[&[u8]]) {
        if let Err(error) = self.send(command, NO_REPLY, body, &[]) {
            log::trace!("{}: {command:?} lost: {error}", self.name);
        }
    }

    /// Ends the connection because the server did something that it shouldn't.
    pub(super) fn fail(&self, what: impl fmt::Display) -> io::Error {
        if self.broken.set(what.to_string()).is_ok() {
            log::error!("{}: the connection to its server has ended: {what}", self.name);
            if let Err(error) = self.stream.shutdown(Shutdown::Both) {
                log::debug!("{}: {error}", self.name);
            }
        }
        self.ended()
    }

    fn ended(&self) -> io::Error {
        io::Error::new(io::ErrorKind::NotConnected, self.broken().unwrap_or_default().to_owned())
    }

    /// Sends one message, whole; returns its number.
    fn send(&self, command: Command, flags: u32, body: &[&[u8]], fds: &[RawFd]) -> io::Result<u16> {
        let mut next = lock(&self.sending);
        if self.broken().is_some() {
            return Err(self.ended());
        }
        let id = *next;
        *next = id.wrapping_add(1);
        let header = Header::request(id, command, flags, body.iter().map(|part| part.len()).sum())?;
        let mut message = Vec::new();
        let mut short = [0; LONGEST];
        let bytes = gather(&header, body, &mut short, &mut message);
        self.push(bytes, fds).map_err(|error| self.fail(self.explain(&error)))?;
        Ok(id)
    }

    /// Sends all of these bytes, with descriptors beside the first. Callers hold `sending`.
    fn push(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let mut sent = 0;
        while sent == 0 && !fds.is_empty() {
            match self.stream.send_with_fds(&[bytes], fds) {
                Ok(first) => sent = first,
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(io::Error::from_raw_os_error(error.errno())),
            }
        }
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            sent += retry(|| send(&self.stream, rest, SendFlags::NOSIGNAL))?;
        }
        Ok(())
    }

    /// Waits for the answer to a message. Callers hold `calling`.
    fn answer(&self, id: u16, command: Command, answer: &mut [u8]) -> io::Result<usize> {
        let deadline = Instant::now() + self.patience;
        for _ in 0..STALE_MAX {
            let mut header = Header::default();
            self.pull(header.as_mut_bytes(), deadline)?;
            match header.answer(id, command, answer.len()) {
                Answer::Done(len) => {
                    let body = answer.get_mut(..len).ok_or(io::ErrorKind::InvalidData)?;
                    self.pull(body, deadline)?;
                    return Ok(len);
                }
                Answer::Refused(0) => return Err(io::Error::from_raw_os_error(libc::EIO)),
                Answer::Refused(error) => return Err(io::Error::from_raw_os_error(error)),
                Answer::Stale => log::debug!("{}: refuses message {}", self.name, header.id),
                Answer::Nonsense(what) => return Err(self.fail(what)),
            }
        }
        Err(self.fail("nothing but refusals"))
    }

    /// What an error of the socket's means.
    fn explain(&self, error: &io::Error) -> String {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("the server has done nothing for {} s", self.patience.as_secs_f32())
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => "the server has left".to_owned(),
            _ => error.to_string(),
        }
    }

    /// Receives as many bytes as there is room for.
    fn pull(&self, mut room: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !room.is_empty() {
            if self.broken().is_some() {
                return Err(self.ended());
            }
            if Instant::now() > deadline {
                return Err(self.fail("no whole answer in time"));
            }
            match (&self.stream).read(room) {
                Ok(0) => return Err(self.fail("the server has left")),
                Ok(read) => room = room.split_at_mut(read).1,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fail(self.explain(&error))),
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("name", &self.name).field("broken", &self.broken).finish_non_exhaustive()
    }
}

/// Puts a message together, where it is short without an allocation.
fn gather<'a>(
    header: &Header,
    body: &[&[u8]],
    short: &'a mut [u8; LONGEST],
    long: &'a mut Vec<u8>,
) -> &'a [u8] {
    let len = HEADER + body.iter().map(|part| part.len()).sum::<usize>();
    let whole = match short.get_mut(..len) {
        Some(whole) => whole,
        None => {
            long.resize(len, 0);
            &mut long[..]
        }
    };
    let (first, mut rest) = whole.split_at_mut(HEADER);
    first.copy_from_slice(header.as_bytes());
    for part in body {
        let (place, after) = rest.split_at_mut(part.len());
        place.copy_from_slice(part);
        rest = after;
    }
    whole
}

/// Calls again what a signal interrupted.
fn retry(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A number and nothing: a panic elsewhere leaves neither half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
