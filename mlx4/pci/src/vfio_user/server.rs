//! What a server can do, and its regions and interrupts.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::Value;
use vfio_bindings::bindings::vfio::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX};
use zerocopy::{FromBytes, IntoBytes};

use super::ConnectError;
use super::link::{FDS_MAX, Link};
use super::message::{
    Command, DEVICE_PCI, DEVICE_RESET, DeviceInfo, IrqInfo, RegionAccess, RegionInfo, Version, argsz,
};
use crate::RegisterError;

/// Bytes of configuration space that a server must have.
pub(super) const CONFIG_BYTES: u64 = 4096;
/// What a range of configuration space is called in errors.
const CONFIG: &str = "configuration space";
/// Offset of the command register, and its bits for memory decoding and bus mastering.
const COMMAND: u64 = 4;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;

/// Bytes of a server's capabilities at most.
const TEXT_MAX: usize = 4096;
/// What a server takes that doesn't say otherwise.
const DEFAULT_MAPS: u64 = 65_535;
/// What this client can do.
const OWN: &[u8] = b"{\"capabilities\":{\"max_msg_fds\":0,\"max_data_xfer_size\":4096}}\0";

/// What a server says that it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Abilities {
    /// Descriptors that it takes with one message.
    pub(super) fds: usize,
    /// Mappings that it takes.
    pub(super) maps: u64,
}

/// Connects to a socket; not being connected at once is an error, for a server that takes nobody may never do.
fn dial(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?).map_err(|error| match error {
        Errno::AGAIN => {
            io::Error::other("too many others wait for its server, which is stuck or has a client")
        }
        error => error.into(),
    })?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A server, and the function that it serves.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) link: Link,
    pub(super) abilities: Abilities,
}

impl Server {
    /// Connects to the server at a path, and agrees with it on the protocol.
    pub(super) fn connect(path: &Path, patience: Duration) -> Result<Self, ConnectError> {
        let owned = path.to_owned();
        let failed = |source| ConnectError::Connect { path: owned.clone(), source };
        let stream = dial(path).map_err(failed)?;
        let link = Link::new(format!("vfio-user:{}", path.display()), stream, patience).map_err(failed)?;
        let abilities =
            agree(&link).map_err(|source| ConnectError::Version { path: owned.clone(), source })?;
        let server = Self { link, abilities };
        let info: DeviceInfo = server.describe(
            path,
            Command::DeviceInfo,
            &DeviceInfo { argsz: argsz::<DeviceInfo>(), ..DeviceInfo::default() },
        )?;
        let wanted = DEVICE_PCI | DEVICE_RESET;
        let (regions, irqs) = (VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX);
        if info.flags & wanted != wanted || info.regions <= regions || info.irqs <= irqs {
            return Err(ConnectError::NotPci { path: owned });
        }
        if server.region_bytes(path, VFIO_PCI_CONFIG_REGION_INDEX)? < CONFIG_BYTES {
            return Err(ConnectError::NotPci { path: owned });
        }
        Ok(server)
    }

    /// Bytes of a region.
    pub(super) fn region_bytes(&self, path: &Path, index: u32) -> Result<u64, ConnectError> {
        let question = RegionInfo { argsz: argsz::<RegionInfo>(), index, ..RegionInfo::default() };
        let info: RegionInfo = self.describe(path, Command::RegionInfo, &question)?;
        Ok(info.size)
    }

    /// Number of MSI-X vectors.
    pub(super) fn vectors(&self, path: &Path) -> Result<u16, ConnectError> {
        let question =
            IrqInfo { argsz: argsz::<IrqInfo>(), index: VFIO_PCI_MSIX_IRQ_INDEX, ..IrqInfo::default() };
        let info: IrqInfo = self.describe(path, Command::IrqInfo, &question)?;
        // PCI has room for 2048.
        Ok(u16::try_from(info.count.min(2048)).unwrap_or(0))
    }

    fn describe<T>(&self, path: &Path, command: Command, question: &T) -> Result<T, ConnectError>
    where
        T: FromBytes + IntoBytes + zerocopy::Immutable,
    {
        self.link
            .ask(command, question)
            .map_err(|source| ConnectError::Describe { path: path.to_owned(), source })
    }

    /// Reads a part of a region.
    pub(super) fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        const ACCESS: usize = size_of::<RegionAccess>();
        let mut answer = [0; ACCESS + 256];
        for (piece, offset) in data.chunks_mut(256).zip((offset..).step_by(256)) {
            let access = RegionAccess { offset, region, count: length(piece)? };
            let room = answer.get_mut(..ACCESS + piece.len()).ok_or(io::ErrorKind::InvalidInput)?;
            let len = self.link.call(Command::RegionRead, &[access.as_bytes()], &[], room)?;
            let (head, content) = room.split_at(ACCESS);
            if len != room.len() || head != access.as_bytes() {
                return Err(self.link.fail("an answer to another read"));
            }
            piece.copy_from_slice(content);
        }
        Ok(())
    }

    /// Writes a part of a region, and waits until it's there.
    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let access = RegionAccess { offset, region, count: length(data)? };
        let mut answer = RegionAccess::default();
        let len =
            self.link.call(Command::RegionWrite, &[access.as_bytes(), data], &[], answer.as_mut_bytes())?;
        if len != size_of::<RegionAccess>() || answer != access {
            return Err(self.link.fail("an answer to another write"));
        }
        Ok(())
    }

    /// Writes a part of a region, before anything that is asked for later. At most 8 bytes.
    pub(super) fn post(&self, region: u32, offset: u64, data: &[u8]) {
        let count = length(data).unwrap_or(0);
        let access = RegionAccess { offset, region, count };
        self.link.post(Command::RegionWrite, &[access.as_bytes(), data]);
    }

    pub(super) fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), RegisterError> {
        let len = data.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > CONFIG_BYTES) {
            return Err(RegisterError::Outside { what: CONFIG, offset, len, size: CONFIG_BYTES });
        }
        self.read(VFIO_PCI_CONFIG_REGION_INDEX, offset, data).map_err(|source| RegisterError::Io {
            what: CONFIG,
            offset,
            len,
            source,
        })
    }

    /// Turns memory decoding on, and bus mastering on or off.
    pub(super) fn set_command(&self, bus_master: bool) -> io::Result<()> {
        let mut command = [0; 2];
        self.read(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND, &mut command)?;
        let rest = u16::from_le_bytes(command) & !COMMAND_MASTER;
        let master = if bus_master { COMMAND_MASTER } else { 0 };
        let command = rest | COMMAND_MEMORY | master;
        self.write(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND, &command.to_le_bytes())
    }

    /// Resets the function, and waits until that's done.
    pub(super) fn reset(&self) -> io::Result<()> {
        self.link.call(Command::Reset, &[], &[], &mut []).map(drop)
    }
}

/// Agrees on version 0 of the protocol; what the server can do.
fn agree(link: &Link) -> io::Result<Abilities> {
    let mut answer = [0; size_of::<Version>() + TEXT_MAX];
    let version = Version { major: 0, minor: 0 };
    let len = link.call(Command::Version, &[version.as_bytes(), OWN], &[], &mut answer)?;
    let answer = answer.get(..len).unwrap_or_default();
    let Ok((version, text)) = Version::read_from_prefix(answer) else {
        return Err(link.fail("a version without a number"));
    };
    if version.major != 0 {
        return Err(link.fail(format!("version {}.{} of the protocol", version.major, version.minor)));
    }
    abilities(text).ok_or_else(|| link.fail("capabilities that are no JSON"))
}

/// What the text of a version message says; empty text says nothing.
fn abilities(text: &[u8]) -> Option<Abilities> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    let value: Value = if text.is_empty() { Value::Null } else { serde_json::from_slice(text).ok()? };
    let number = |name: &str| value.get("capabilities").and_then(|all| all.get(name)).and_then(Value::as_u64);
    let fds = number("max_msg_fds").and_then(|fds| usize::try_from(fds).ok()).unwrap_or(1);
    let maps = number("max_dma_maps").unwrap_or(DEFAULT_MAPS);
    Some(Abilities { fds: fds.clamp(1, FDS_MAX), maps })
}

fn length(data: &[u8]) -> io::Result<u32> {
    u32::try_from(data.len()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abilities_have_defaults_and_bounds() {
        let some = |fds, maps| Some(Abilities { fds, maps });
        assert_eq!(abilities(b""), some(1, 65_535));
        assert_eq!(abilities(b"{}\0"), some(1, 65_535));
        assert_eq!(abilities(b"{\"capabilities\":{\"max_msg_fds\":4,\"max_dma_maps\":9}}\0"), some(4, 9));
        assert_eq!(abilities(b"{\"capabilities\":{\"max_msg_fds\":4000000000}}"), some(FDS_MAX, 65_535));
        assert_eq!(abilities(b"{\"capabilities\":{\"max_msg_fds\":\"x\"}}"), some(1, 65_535));
        assert_eq!(abilities(b"{\"capabilities\""), None);
        assert_eq!(abilities(b"\xff\xff"), None);
    }
}
