//! What host and guest say to each other over the agent's channel.
//!
//! A message is a frame: kind (1 byte), command id (4 bytes), length of the body (4 bytes), body; integers
//! little endian. The host picks the ids. The guest's side is [`serve`], run by the program `rig-agent`.

mod server;

use std::io::{self, Read, Write};

pub use server::serve;

/// The name of the channel in the guest.
pub const CHANNEL: &str = "rig.agent";
/// The longest body in bytes.
pub const MAX_BODY: usize = 64 << 10;

const HEADER: usize = 9;

/// A message of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Guest: the agent is there.
    Hello,
    /// Host: run a command with `sh -c`, in a process group of its own.
    Start {
        /// The command's id from now on.
        id: u32,
        /// What the shell gets.
        command: String,
    },
    /// Host: bytes for a command's standard input; no bytes are its end.
    Input {
        /// The command.
        id: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Host: send a signal to a command's process group.
    Signal {
        /// The command.
        id: u32,
        /// The signal's number.
        number: i32,
    },
    /// Guest: bytes from a command's standard output.
    Output {
        /// The command.
        id: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Guest: bytes from a command's standard error.
    Error {
        /// The command.
        id: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Guest: a command has ended; nothing of it follows.
    Ended {
        /// The command.
        id: u32,
        /// The exit status, or 128 and the signal's number.
        status: i32,
    },
}

impl Message {
    /// Writes the message as one frame.
    ///
    /// # Errors
    /// The body is too long, or the writer fails.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let number;
        let (kind, id, body): (u8, u32, &[u8]) = match self {
            Self::Hello => (0, 0, &[]),
            Self::Start { id, command } => (1, *id, command.as_bytes()),
            Self::Input { id, bytes } => (2, *id, bytes),
            Self::Signal { id, number: signal } => {
                number = signal.to_le_bytes();
                (3, *id, &number)
            }
            Self::Output { id, bytes } => (4, *id, bytes),
            Self::Error { id, bytes } => (5, *id, bytes),
            Self::Ended { id, status } => {
                number = status.to_le_bytes();
                (6, *id, &number)
            }
        };
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_BODY);
        let length = length.ok_or_else(|| invalid(format!("body of {} bytes is too long", body.len())))?;
        let mut frame = Vec::with_capacity(HEADER + body.len());
        frame.push(kind);
        frame.extend_from_slice(&id.to_le_bytes());
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(body);
        to.write_all(&frame)?;
        to.flush()
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// The reader fails or ends, or what it gives is no message.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        let [kind, i0, i1, i2, i3, l0, l1, l2, l3] = header;
        let id = u32::from_le_bytes([i0, i1, i2, i3]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_BODY {
            return Err(invalid(format!("body of {length} bytes is too long")));
        }
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        Ok(match kind {
            0 => Self::Hello,
            1 => Self::Start { id, command: text(bytes)? },
            2 => Self::Input { id, bytes },
            3 => Self::Signal { id, number: number(&bytes)? },
            4 => Self::Output { id, bytes },
            5 => Self::Error { id, bytes },
            6 => Self::Ended { id, status: number(&bytes)? },
            kind => return Err(invalid(format!("unknown kind of message {kind}"))),
        })
    }
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| invalid(error.to_string()))
}

fn number(bytes: &[u8]) -> io::Result<i32> {
    let bytes = bytes.try_into().map_err(|_| invalid(format!("a number of {} bytes", bytes.len())))?;
    Ok(i32::from_le_bytes(bytes))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_read_as_it_was_written() {
        let all = [
            Message::Hello,
            Message::Start { id: 1, command: "echo ü".into() },
            Message::Input { id: 2, bytes: vec![0, 255] },
            Message::Signal { id: 3, number: 9 },
            Message::Output { id: u32::MAX, bytes: vec![7; MAX_BODY] },
            Message::Error { id: 5, bytes: Vec::new() },
            Message::Ended { id: 6, status: -1 },
        ];
        let mut wire = Vec::new();
        for message in &all {
            message.write(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        for message in &all {
            assert_eq!(&Message::read(&mut rest).unwrap(), message);
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn write_of_too_long_a_body_fails() {
        let message = Message::Input { id: 1, bytes: vec![0; MAX_BODY + 1] };
        assert!(message.write(&mut Vec::new()).is_err());
    }

    #[test]
    fn read_of_anything_else_fails() {
        let bad: [&[u8]; 6] = [
            &[],
            &[0, 0, 0],
            &[9, 0, 0, 0, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0, 0, 255, 255, 255, 255],
            &[6, 0, 0, 0, 0, 1, 0, 0, 0, 5],
            &[1, 0, 0, 0, 0, 1, 0, 0, 0, 255],
        ];
        for bytes in bad {
            assert!(Message::read(&mut &*bytes).is_err(), "{bytes:?}");
        }
    }
}
