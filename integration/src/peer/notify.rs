//! Messages that tell the receiver something besides their data, and receivers that come late.

use anyhow::{Context, Result, ensure};

use super::{Peer, Service, Status, Stretch};

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
