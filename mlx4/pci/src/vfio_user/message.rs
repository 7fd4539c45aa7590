//! The protocol's messages, as far as a client of a PCI function needs them. Fields have the host's byte order.

use std::io;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Command {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    DeviceInfo = 4,
    RegionInfo = 5,
    IrqInfo = 7,
    SetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    Reset = 13,
}

/// Bits of [`Header::flags`].
const REPLY: u32 = 1;
const TYPE_MASK: u32 = 0xf;
pub(super) const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// Bits of [`DmaMap::flags`].
pub(super) const MAP_READ: u32 = 1;
pub(super) const MAP_WRITE: u32 = 1 << 1;

/// Bits of [`DeviceInfo::flags`].
pub(super) const DEVICE_RESET: u32 = 1;
pub(super) const DEVICE_PCI: u32 = 1 << 1;

/// What every message begins with.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) id: u16,
    command: u16,
    /// Bytes of the whole message.
    size: u32,
    flags: u32,
    error: u32,
}

/// Bytes of a header.
pub(super) const HEADER: usize = size_of::<Header>();

/// What the header of an answer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// So many bytes follow.
    Done(usize),
    /// The server refuses, with an error number.
    Refused(i32),
    /// The answer to another message, whose refusal nobody waits for.
    Stale,
    /// No answer of this protocol to the message.
    Nonsense(&'static str),
}

impl Header {
    /// The header of a request with a body of `body` bytes.
    pub(super) fn request(id: u16, command: Command, flags: u32, body: usize) -> io::Result<Self> {
        let size = u32::try_from(HEADER + body).map_err(io::Error::other)?;
        Ok(Self { id, command: command as u16, size, flags, error: 0 })
    }

    /// Holds what the server sent against what it was asked, with room for `room` bytes of an answer.
    pub(super) fn answer(&self, id: u16, command: Command, room: usize) -> Answer {
        let body = usize::try_from(self.size).ok().and_then(|size| size.checked_sub(HEADER));
        let refused = self.flags & ERROR != 0;
        match body {
            _ if self.flags & TYPE_MASK != REPLY => Answer::Nonsense("a request of its own"),
            None => Answer::Nonsense("a message shorter than its header"),
            Some(0) if refused && self.id != id => Answer::Stale,
            _ if self.id != id => Answer::Nonsense("an answer to another message"),
            _ if self.command != command as u16 => Answer::Nonsense("an answer to another command"),
            Some(0) if refused => Answer::Refused(i32::try_from(self.error).unwrap_or(0)),
            Some(_) if refused => Answer::Nonsense("an error that goes on"),
            Some(body) if body > room => Answer::Nonsense("a longer answer than was asked for"),
            Some(body) => Answer::Done(body),
        }
    }
}

/// Body of [`Command::Version`], before the text.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Version {
    pub(super) major: u16,
    pub(super) minor: u16,
}

/// Body of [`Command::DmaMap`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DmaMap {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) offset: u64,
    pub(super) address: u64,
    pub(super) size: u64,
}

/// Body of [`Command::DmaUnmap`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DmaUnmap {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) address: u64,
    pub(super) size: u64,
}

/// Body of [`Command::DeviceInfo`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DeviceInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) regions: u32,
    pub(super) irqs: u32,
}

/// Body of [`Command::RegionInfo`], without capabilities.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RegionInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) capabilities: u32,
    pub(super) size: u64,
    pub(super) offset: u64,
}

/// Body of [`Command::IrqInfo`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IrqInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) count: u32,
}

/// Body of [`Command::SetIrqs`]; eventfds come beside it.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SetIrqs {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) start: u32,
    pub(super) count: u32,
}

/// Body of [`Command::RegionRead`] and [`Command::RegionWrite`], before the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RegionAccess {
    pub(super) offset: u64,
    pub(super) region: u32,
    pub(super) count: u32,
}

/// Bytes of a body, for its `argsz`.
pub(super) fn argsz<T>() -> u32 {
    // No body has more than 40 bytes.
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Command = Command::RegionRead;

    fn reply(id: u16, command: u16, size: u32, flags: u32) -> Answer {
        Header { id, command, size, flags, error: 22 }.answer(id.min(7), READ, 20)
    }

    #[test]
    fn only_the_answer_to_the_message_passes() {
        assert_eq!(reply(7, 9, 36, REPLY), Answer::Done(20));
        assert_eq!(reply(7, 9, 16, REPLY | ERROR), Answer::Refused(22));
        assert_eq!(reply(8, 10, 16, REPLY | ERROR), Answer::Stale);
        for (id, command, size, flags) in [
            (8, 9, 36, REPLY),
            (7, 10, 36, REPLY),
            (7, 9, 37, REPLY),
            (7, 9, u32::MAX, REPLY),
            (7, 9, 15, REPLY),
            (7, 9, 0, REPLY | ERROR),
            (7, 9, 36, REPLY | ERROR),
            (7, 9, 36, 0),
            (8, 10, 20, REPLY | ERROR),
        ] {
            let answer = reply(id, command, size, flags);
            assert!(matches!(answer, Answer::Nonsense(_)), "{id} {command} {size} {flags}: {answer:?}");
        }
    }

    #[test]
    fn bodies_have_the_protocols_sizes() {
        assert_eq!(
            (HEADER, size_of::<Version>(), size_of::<DmaMap>(), size_of::<DmaUnmap>()),
            (16, 4, 32, 24)
        );
        assert_eq!((size_of::<DeviceInfo>(), size_of::<RegionInfo>(), size_of::<IrqInfo>()), (16, 32, 16));
        assert_eq!((size_of::<SetIrqs>(), size_of::<RegionAccess>()), (20, 16));
    }
}
