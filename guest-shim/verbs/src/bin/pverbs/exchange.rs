//! How two ends of a ping-pong tell each other where they are, over TCP: as `ibv_rc_pingpong` of rdma-core does
//! it (`libibverbs/examples/rc_pingpong.c`), so that either end can be it.
//!
//! The client sends its address, 52 bytes of text with a zero at the end; the server connects its queue pair and
//! answers with its own; the client says `done`.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use paraverbs_verbs::Gid;

/// Bytes of an address, the zero at the end included.
const ADDRESS_BYTES: usize = 52;
/// What the client says last.
const DONE: &[u8] = b"done\0";

/// Where an end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) lid: u16,
    pub(crate) qpn: u32,
    pub(crate) psn: u32,
    /// All zero: packets have no GRH.
    pub(crate) gid: Gid,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lid, qpn, psn, gid } = self;
        write!(f, "LID {lid:#06x}, QPN {qpn:#08x}, PSN {psn:#08x}, GID {gid}")
    }
}

impl Address {
    fn encode(&self) -> Vec<u8> {
        let gid = u128::from_be_bytes(self.gid.0);
        format!("{:04x}:{:06x}:{:06x}:{gid:032x}\0", self.lid, self.qpn, self.psn).into_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes.strip_suffix(b"\0")?).ok()?;
        let mut fields = text.split(':');
        let mut field = || fields.next();
        let lid = u16::from_str_radix(field()?, 16).ok()?;
        let qpn = u32::from_str_radix(field()?, 16).ok()?;
        let psn = u32::from_str_radix(field()?, 16).ok()?;
        let gid = field().filter(|gid| gid.len() == 32)?;
        let gid = Gid(u128::from_str_radix(gid, 16).ok()?.to_be_bytes());
        let rest = field();
        (rest.is_none() && qpn < 1 << 24 && psn < 1 << 24).then_some(Self { lid, qpn, psn, gid })
    }
}

fn receive(stream: &mut TcpStream) -> Result<Address, String> {
    let mut bytes = [0; ADDRESS_BYTES];
    stream
        .read_exact(&mut bytes)
        .map_err(|error| format!("the other end didn't tell its address: {error}"))?;
    Address::decode(&bytes)
        .ok_or_else(|| format!("the other end's address is none: {:?}", String::from_utf8_lossy(&bytes)))
}

fn send(stream: &mut TcpStream, bytes: &[u8]) -> Result<(), String> {
    stream.write_all(bytes).map_err(|error| format!("can't tell the other end: {error}"))
}

/// Tells a server this end's address, and answers the server's.
pub(crate) fn with_server(host: &str, port: u16, own: &Address) -> Result<Address, String> {
    let connected = TcpStream::connect((host, port));
    let mut stream = connected.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::ConnectionRefused => "; start the other end first, without a host",
            _ => "",
        };
        format!("can't connect to {host}, port {port}: {error}{advice}")
    })?;
    send(&mut stream, &own.encode())?;
    let other = receive(&mut stream)?;
    send(&mut stream, DONE)?;
    Ok(other)
}

/// A server that waits for its client.
pub(crate) struct Server(TcpListener);

impl Server {
    pub(crate) fn listen(port: u16) -> Result<Self, String> {
        let any = TcpListener::bind(("::", port)).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
            // A machine without IPv6.
            _ => TcpListener::bind(("0.0.0.0", port)),
        });
        any.map(Self)
            .map_err(|error| format!("can't listen on port {port}: {error}; name another with --port"))
    }

    /// Waits for a client's address, calls `connect` with it, and tells the client this end's.
    pub(crate) fn with_client<E: From<String>>(
        self,
        own: &Address,
        connect: impl FnOnce(&Address) -> Result<(), E>,
    ) -> Result<Address, E> {
        let (mut stream, _) = self.0.accept().map_err(|error| format!("no client: {error}"))?;
        let other = receive(&mut stream)?;
        connect(&other)?;
        send(&mut stream, &own.encode())?;
        let mut done = [0; DONE.len()];
        stream.read_exact(&mut done).map_err(|error| format!("the client has given up: {error}"))?;
        Ok(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        let mut gid = [0; 16];
        (gid[0], gid[1], gid[15]) = (0xfe, 0x80, 7);
        Address { lid: 0x2a, qpn: 0x40_0001, psn: 0xab_cdef, gid: Gid(gid) }
    }

    #[test]
    fn address_has_the_text_of_the_stock_program() {
        let bytes = address().encode();
        assert_eq!(bytes, b"002a:400001:abcdef:fe800000000000000000000000000007\0");
        assert_eq!(bytes.len(), ADDRESS_BYTES);
        assert_eq!(Address::decode(&bytes), Some(address()));
        let text = "LID 0x002a, QPN 0x400001, PSN 0xabcdef, GID fe80::7";
        assert_eq!(address().to_string(), text);
    }

    #[test]
    fn text_that_is_no_address_is_refused() {
        for text in [
            "002a:400001:abcdef:fe800000000000000000000000000007",
            "002a:400001:abcdef\0",
            "002a:1400001:abcdef:fe800000000000000000000000000007\0",
            "12345:400001:abcdef:fe800000000000000000000000000007\0",
            "002a:400001:abcdef:fe80\0",
            "002a:400001:abcdef:fe800000000000000000000000000007:\0",
            "002a:400001:xyz:fe800000000000000000000000000007\0",
            "\0",
        ] {
            assert_eq!(Address::decode(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Address::decode(&[0xff; ADDRESS_BYTES]), None);
    }
}
