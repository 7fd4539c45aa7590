//! Our driver as a peer: a card of the model in this process, and queue pairs on it.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::peer::{Atomic, Endpoint, Peer, Status, Stretch, Terms, compare, pattern};
use mlx4::{
    Access, Attributes, CompletionQueue, Config, Event, EventSink, Hca, Path, PortEvent, QueuePair,
    QueuePairConfig, RegisteredMemory,
};
use mlx4_model::fabric::Fabric;
use mlx4_model::hca::{EngineThread, HcaConfig};
use mlx4_model::seam::ModelDevice;
use mlx4_queue::geometry::{SendSize, Service};
use mlx4_queue::request::{Data, Operation, Remote, SendFlags, SendRequest};
use mlx4_queue::{Completed, Received};
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{Mtu, QpState};

const PORT: u8 = 1;
/// Requests in each queue.
const DEPTH: u32 = 64;
/// What goes inline, as the stock peer has it.
const MAX_INLINE: u32 = 64;
/// Reads under way in each direction, as the stock peer has it.
const READS: u8 = 4;
/// Wraps soon, after another number of packets than the stock peer's.
const PSN: u32 = 0xff_ff80;
/// The other end runs on a translated processor.
const LIMIT: Duration = Duration::from_secs(60);

/// Hands events to whoever waits for the port.
struct Events(Mutex<Sender<Event>>);

impl EventSink for Events {
    fn event(&self, event: &Event) {
        // Nobody listens once the port is up.
        let _unheard = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(*event);
    }
}

/// A card with our driver, whose port is ACTIVE. Fields drop in order: the driver before its card.
pub(crate) struct Card {
    hca: Hca,
    lid: u16,
    device: Arc<ModelDevice>,
    _engine: EngineThread,
    untouched: String,
}

impl Card {
    /// Plugs a card into a fabric, and brings it up.
    pub(crate) fn open(fabric: &Arc<Fabric>, node_guid: u64) -> Result<Self> {
        let device = Arc::new(ModelDevice::new(HcaConfig { node_guid, ports: 1, trace: None }, fabric)?);
        let engine = device.hca().start_engine()?;
        let untouched = device.hca().dump();
        let (sender, events) = channel();
        let config =
            Config { events: Arc::new(Events(Mutex::new(sender))), completion_eqs: 1, ..Config::default() };
        let hca = Hca::open(Arc::<ModelDevice>::clone(&device), &config)?;
        wait_for_active(&events)?;
        let lid = hca.port(PORT)?.lid;
        Ok(Self { hca, lid, device, _engine: engine, untouched })
    }

    /// A queue pair in INIT, with `bytes` bytes of memory.
    pub(crate) fn peer(&self, bytes: usize) -> Result<DriverPeer> {
        let (pd, uar) = (self.hca.pd()?, self.hca.uar()?);
        let queue = || self.hca.completion_queue(DEPTH, &uar, 0, || {});
        let (sent, received) = (queue()?, queue()?);
        let qp = self.hca.queue_pair(&QueuePairConfig {
            service: Service::Rc,
            pd: &pd,
            uar: &uar,
            send_cq: &sent,
            receive_cq: &received,
            send: SendSize { requests: DEPTH, sges: 1, inline: MAX_INLINE },
            receives: DEPTH,
            receive_sges: 1,
            srq: None,
        })?;
        let access = Access::ALL;
        let init = Attributes {
            pkey_index: Some(0),
            port: Some(PORT),
            access: Some(access),
            ..Attributes::default()
        };
        qp.modify(QpState::INIT, &init)?;
        let memory = self.hca.memory(&pd, bytes, access)?;
        Ok(DriverPeer { qp, sent, received, memory, lid: self.lid })
    }

    /// Closes the driver; nothing may be left behind in the card.
    pub(crate) fn close(self) -> Result<()> {
        self.hca.close()?;
        let left = self.device.hca().dump();
        ensure!(left == self.untouched, "left behind: {left}, before: {}", self.untouched);
        Ok(())
    }
}

impl fmt::Debug for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Card").field("lid", &self.lid).finish_non_exhaustive()
    }
}

fn wait_for_active(events: &Receiver<Event>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left).context("the port doesn't become ACTIVE")?;
        if event == (Event::Port { port: PORT, event: PortEvent::Active }) {
            return Ok(());
        }
    }
}

/// A queue pair of our driver, and its memory.
#[derive(Debug)]
pub(crate) struct DriverPeer {
    qp: QueuePair,
    sent: CompletionQueue,
    received: CompletionQueue,
    memory: RegisteredMemory,
    lid: u16,
}

impl DriverPeer {
    /// Gives everything back; a refusal is an error.
    pub(crate) fn destroy(self) -> Result<()> {
        self.qp.destroy()?;
        self.sent.destroy()?;
        self.received.destroy()?;
        self.memory.destroy()?;
        Ok(())
    }

    /// Posts a request for each message, `operation` of its place in the stretch, and waits for all.
    fn request(&self, at: Stretch, inline: bool, operation: impl Fn(u64) -> Operation) -> Result<Status> {
        let mut bytes = vec![0; at.length];
        for index in 0..at.count {
            let start = index * at.length;
            let piece = [self.memory.piece(at.offset + start, u32::try_from(at.length)?)];
            self.memory.read(at.offset + start, &mut bytes)?;
            let data = if inline { Data::Inline(&[&bytes]) } else { Data::Pieces(&piece) };
            self.qp.post_send(&[SendRequest {
                wr_id: index as u64,
                operation: operation(start as u64),
                data,
                flags: SendFlags { signalled: true, ..SendFlags::default() },
                destination: None,
            }])?;
        }
        wait(&self.sent, at.count, |_| Ok(()))
    }
}

/// Waits for `count` completions, or for the first that isn't a success; `look` sees what was received.
fn wait(cq: &CompletionQueue, count: usize, look: impl Fn(&Received) -> Result<()>) -> Result<Status> {
    let deadline = Instant::now() + LIMIT;
    for index in 0..count {
        let mut found = None;
        while found.is_none() {
            ensure!(Instant::now() < deadline, "no completion {index} of {count} after {LIMIT:?}");
            cq.poll(1, |completion| found = Some(completion.outcome))?;
            std::thread::yield_now();
        }
        match found {
            Some(Completed::Received(received)) => look(&received)?,
            Some(Completed::Failed { syndrome, .. }) => return status(syndrome),
            _ => {}
        }
    }
    Ok(Status::SUCCESS)
}

/// The verbs' status of a syndrome.
fn status(syndrome: Syndrome) -> Result<Status> {
    match syndrome {
        Syndrome::REMOTE_ACCESS_ERR => Ok(Status::REM_ACCESS_ERR),
        Syndrome::WR_FLUSH_ERR => Ok(Status::WR_FLUSH_ERR),
        other => bail!("a request fails with {other:?}"),
    }
}

fn mtu(bytes: u32) -> Result<Mtu> {
    let all = [Mtu::MTU_256, Mtu::MTU_512, Mtu::MTU_1024, Mtu::MTU_2048, Mtu::MTU_4096];
    let found = all.into_iter().find(|mtu| mtu.bytes() == Some(bytes));
    found.with_context(|| format!("there is no MTU of {bytes} bytes"))
}

impl Peer for DriverPeer {
    fn endpoint(&self) -> Endpoint {
        Endpoint {
            lid: self.lid,
            qpn: self.qp.number(),
            psn: PSN,
            address: self.memory.address(0),
            rkey: self.memory.region().rkey(),
            requester: self.qp.number(),
            srqn: 0,
        }
    }

    fn connect(&mut self, to: &Endpoint, terms: &Terms) -> Result<()> {
        let rtr = Attributes {
            path: Some(Path::local(PORT, to.lid, 0)),
            mtu: Some(mtu(terms.mtu)?),
            remote_qpn: Some(to.qpn),
            receive_psn: Some(to.psn),
            responder_reads: Some(READS),
            min_rnr_timer: Some(12),
            ..Attributes::default()
        };
        let rts = Attributes {
            send_psn: Some(PSN),
            timeout: Some(terms.timeout),
            retry_count: Some(terms.retries),
            rnr_retry: Some(terms.rnr_retries),
            requester_reads: Some(READS),
            ..Attributes::default()
        };
        self.qp.modify(QpState::RTR, &rtr)?;
        self.qp.modify(QpState::RTS, &rts)?;
        Ok(())
    }

    fn fill(&mut self, at: Stretch, seed: u32) -> Result<()> {
        Ok(self.memory.write(at.offset, &pattern(seed, at.bytes()))?)
    }

    fn verify(&mut self, at: Stretch, seed: u32) -> Result<()> {
        let mut found = vec![0; at.bytes()];
        self.memory.read(at.offset, &mut found)?;
        compare(&found, seed)
    }

    fn post_recv(&mut self, at: Stretch) -> Result<()> {
        for index in 0..at.count {
            let piece = self.memory.piece(at.offset + index * at.length, u32::try_from(at.length)?);
            self.qp.post_receive([(index as u64, [piece].as_slice())])?;
        }
        Ok(())
    }

    fn received(&mut self, at: Stretch) -> Result<Status> {
        wait(&self.received, at.count, |received| {
            ensure!(received.bytes as usize == at.length, "a message of {} bytes", received.bytes);
            Ok(())
        })
    }

    fn send(&mut self, at: Stretch) -> Result<Status> {
        self.request(at, at.length <= MAX_INLINE as usize, |_| Operation::Send)
    }

    fn write(&mut self, at: Stretch, address: u64, rkey: u32) -> Result<Status> {
        let remote = |start| Operation::Write(Remote { address: address + start, rkey });
        self.request(at, at.length <= MAX_INLINE as usize, remote)
    }

    fn read(&mut self, at: Stretch, address: u64, rkey: u32) -> Result<Status> {
        self.request(at, false, |start| Operation::Read(Remote { address: address + start, rkey }))
    }

    fn atomic(&mut self, result: usize, address: u64, rkey: u32, operation: Atomic) -> Result<Status> {
        let remote = Remote { address, rkey };
        self.request(Stretch { offset: result, length: 8, count: 1 }, false, |_| match operation {
            Atomic::FetchAdd { add } => Operation::FetchAdd { remote, add },
            Atomic::CompareSwap { compare, swap } => Operation::CompareSwap { remote, compare, swap },
        })
    }

    fn put_word(&mut self, at: usize, value: u64) -> Result<()> {
        Ok(self.memory.write(at, &value.to_ne_bytes())?)
    }

    fn word(&mut self, at: usize) -> Result<u64> {
        let mut word = [0; 8];
        self.memory.read(at, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn state(&mut self) -> Result<String> {
        Ok(format!("{:?}", self.qp.query()?.state))
    }
}
