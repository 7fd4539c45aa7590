//! Messages that tell the receiver something besides their data, and receivers that come late.

use anyhow::{Context, Result, ensure};

use super::{Endpoint, GRH_BYTES, Peer, QKEY, Service, Status, Stretch};

/// A message of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A send.
    Send,
    /// A send with immediate data.
    SendImmediate(u32),
    /// A send that invalidates a key of the other end's.
    SendInvalidate(u32),
    /// A write to the other end's address with a key of it, and immediate data.
    WriteImmediate {
        /// Where to.
        address: u64,
        /// The key.
        rkey: u32,
        /// The immediate data.
        immediate: u32,
    },
}

/// What a receive's completion says besides its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing.
    Nothing,
    /// Immediate data.
    Immediate(u32),
    /// The key that isn't good any more.
    Invalidated(u32),
}

/// A peer that tells by messages, and is told.
pub trait Notify: Peer {
    /// Posts the request of one message, and doesn't wait.
    fn post(&mut self, at: Stretch, message: Message) -> Result<()>;

    /// Waits until as many requests are done.
    fn sent(&mut self, count: usize) -> Result<Status>;

    /// Waits for a receive of that length.
    fn told(&mut self, length: usize) -> Result<Told>;

    /// Binds a window of type 2 over a stretch that the other end may write to; gives its key.
    fn bind(&mut self, at: Stretch) -> Result<u32>;
}

/// A way for datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The port's LID, or the group's.
    pub lid: u16,
    /// The queue pair.
    pub qpn: u32,
    /// Its Q_Key.
    pub qkey: u32,
    /// Its GID, if there shall be a GRH.
    pub gid: Option<[u8; 16]>,
}

/// A peer of datagrams that chooses their way.
pub trait Route: Notify {
    /// The way of what is sent from now on.
    fn route(&mut self, way: &Way) -> Result<()>;

    /// Receives what is sent to a group, too.
    fn attach(&mut self, gid: [u8; 16], lid: u16) -> Result<()>;
}

const FROM: Stretch = Stretch { offset: 4097, length: 3000, count: 1 };
const TO: Stretch = Stretch { offset: 8190, ..FROM };

/// Has one of two connected peers tell the other by immediate data, by a send and (other than UD) by a write.
///
/// # Errors
/// Data or what is told is not what it should be.
pub fn tell(one: &mut dyn Notify, other: &mut dyn Notify, service: Service) -> Result<()> {
    let end = other.endpoint();
    let send = Message::SendImmediate(0x0102_0384);
    let (address, rkey, immediate) = (end.address + TO.offset as u64, end.rkey, 0xf1f2_f3f4);
    let write = Message::WriteImmediate { address, rkey, immediate };
    let messages = [(Message::Send, Told::Nothing), (send, Told::Immediate(0x0102_0384))];
    let write = (service != Service::Ud).then_some((write, Told::Immediate(immediate)));
    for (index, (message, expected)) in (0..).zip(messages.into_iter().chain(write)) {
        one.fill(FROM, 10 + index)?;
        other.fill(TO, 20)?;
        // A write takes a receive, and leaves its memory alone.
        let elsewhere = Stretch { offset: 1 << 16, ..TO };
        let place = if matches!(message, Message::WriteImmediate { .. }) { elsewhere } else { TO };
        other.post_recv(place)?;
        one.post(FROM, message)?;
        let (sent, told) = (one.sent(1)?, other.told(FROM.length)?);
        ensure!(
            (sent, told) == (Status::SUCCESS, expected),
            "{message:?} ends in {sent:?} and tells {told:?}"
        );
        other.verify(TO, 10 + index).with_context(|| format!("{message:?}"))?;
    }
    Ok(())
}

/// Has one of two connected peers write through a window of the other's, and invalidate its key by a send: a write
/// after that is refused, memory stays as it was, and the connection has ended.
///
/// # Errors
/// It goes otherwise.
pub fn revoke(one: &mut dyn Notify, other: &mut dyn Notify) -> Result<()> {
    let (key, address) = (other.bind(TO)?, other.endpoint().address + TO.offset as u64);
    one.fill(FROM, 1)?;
    other.fill(TO, 2)?;
    let status = one.write(FROM, address, key)?;
    ensure!(status == Status::SUCCESS, "the write through the window ends in {status:?}");
    other.verify(TO, 1).context("what was written through the window")?;

    let notice = Stretch { offset: 1 << 16, length: 9, count: 1 };
    other.post_recv(notice)?;
    one.post(notice, Message::SendInvalidate(key))?;
    let (sent, told) = (one.sent(1)?, other.told(notice.length)?);
    ensure!(
        (sent, told) == (Status::SUCCESS, Told::Invalidated(key)),
        "it ends in {sent:?} and tells {told:?}"
    );

    one.fill(FROM, 3)?;
    let status = one.write(FROM, address, key)?;
    ensure!(status == Status::REM_ACCESS_ERR, "the write with the revoked key ends in {status:?}");
    other.verify(TO, 1).context("what the refused write should have left")
}

/// Has one of two connected peers, whose RNR retries are without end, send where the other has no receive; `refused`
/// waits until that was answered, and only then is there one.
///
/// # Errors
/// The message doesn't arrive then.
pub fn late(
    sender: &mut dyn Notify,
    receiver: &mut dyn Notify,
    refused: impl FnOnce() -> Result<()>,
) -> Result<()> {
    sender.fill(FROM, 1)?;
    receiver.fill(TO, 2)?;
    sender.post(FROM, Message::Send)?;
    refused()?;
    receiver.verify(TO, 2).context("before there is a receive")?;
    receiver.post_recv(TO)?;
    let statuses = [receiver.received(TO)?, sender.sent(1)?];
    ensure!(statuses == [Status::SUCCESS; 2], "receive and send end in {statuses:?}");
    receiver.verify(TO, 1)
}

/// Has one of two connected peers of datagrams, whose ports have these GIDs, send by an address handle with a GRH, and
/// with a wrong Q_Key: that datagram is dropped.
///
/// # Errors
/// It goes otherwise.
pub fn address(one: &mut dyn Route, other: &mut dyn Route, gids: [[u8; 16]; 2]) -> Result<()> {
    let Endpoint { lid, qpn, .. } = other.endpoint();
    let global = Way { lid, qpn, qkey: QKEY, gid: Some(gids[1]) };
    datagram(one, other, &global, gids, 1)?;

    one.route(&Way { qkey: QKEY ^ 1, ..global })?;
    other.fill(TO, 5)?;
    other.post_recv(TO)?;
    one.fill(FROM, 6)?;
    let status = one.send(FROM)?;
    ensure!(status == Status::SUCCESS, "the send with a wrong Q_Key ends in {status:?}");
    // Datagrams don't overtake each other: the receive is still there for this one.
    one.route(&global)?;
    one.fill(FROM, 7)?;
    let statuses = [one.send(FROM)?, other.received(TO)?];
    ensure!(statuses == [Status::SUCCESS; 2], "send and receive end in {statuses:?}");
    other.verify(TO, 7).context("the datagram behind one with a wrong Q_Key")
}

/// Has one of two peers of datagrams send by a way with a GRH, which is looked at. `gids` are the sender's and the
/// destination's.
///
/// # Errors
/// It doesn't arrive as it was sent.
pub fn datagram(
    one: &mut dyn Route,
    other: &mut dyn Route,
    way: &Way,
    gids: [[u8; 16]; 2],
    seed: u32,
) -> Result<()> {
    one.route(way)?;
    one.fill(FROM, seed)?;
    other.fill(TO, seed + 1)?;
    other.post_recv(TO)?;
    let statuses = [one.send(FROM)?, other.received(TO)?];
    ensure!(statuses == [Status::SUCCESS; 2], "send and receive end in {statuses:?}");
    other.verify(TO, seed)?;
    let grh = TO.offset - GRH_BYTES;
    let mut found = [[0; 16]; 2];
    for (index, half) in found.as_flattened_mut().chunks_exact_mut(8).enumerate() {
        half.copy_from_slice(&other.word(grh + 8 + 8 * index)?.to_ne_bytes());
    }
    ensure!(found == gids, "the GRH has the GIDs {found:x?}, not {gids:x?}");
    let [version, _, _, _, high, low, next, _] = other.word(grh)?.to_ne_bytes();
    let payload = usize::from(u16::from_be_bytes([high, low]));
    // BTH, DETH, the payload and ICRC.
    let expected = (6, 12 + 8 + FROM.length + 4, 0x1b);
    let found = (version >> 4, payload, next);
    ensure!(
        found == expected,
        "IP version, length and next header of the GRH are {found:?}, not {expected:?}"
    );
    Ok(())
}

/// Has one of two connected UC peers send where the other has no receive: that message is lost, and the next one arrives.
///
/// # Errors
/// It goes otherwise.
pub fn lose(one: &mut dyn Peer, other: &mut dyn Peer) -> Result<()> {
    one.fill(FROM, 1)?;
    other.fill(TO, 2)?;
    let status = one.send(FROM)?;
    ensure!(status == Status::SUCCESS, "the send of a lost message ends in {status:?}");
    other.post_recv(TO)?;
    one.fill(FROM, 3)?;
    let statuses = [one.send(FROM)?, other.received(TO)?];
    ensure!(statuses == [Status::SUCCESS; 2], "send and receive behind a lost message end in {statuses:?}");
    other.verify(TO, 3)
}
