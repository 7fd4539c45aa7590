//! The driver in one process, on a card of the model of its own: two queue pairs connected to each other, with
//! memory of the driver's.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mlx4::{
    Access, Attributes, CompletionQueue, Config, Hca, Path, Pd, QueuePair, QueuePairConfig, RegisteredMemory,
    Uar,
};
use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::HcaConfig;
use mlx4_model::seam::ModelDevice;
use mlx4_pci::PciDevice;
use mlx4_queue::Completed;
use mlx4_queue::geometry::{SendSize, Service};
use mlx4_queue::request::{Data, Operation as Verb, Remote, SendFlags, SendRequest};
use mlx4_wire::ctx::qp::{Mtu, QpState};
use mlx4_wire::mad::portinfo::PortState;

use super::count;
use super::end::{End, Player, Polled, RECEIVES, Sends};
use super::slots::{Engine, InHand, SlotCard};
use crate::bench::plan::{DEPTH, MOST_BYTES, Operation, Task, Way};

/// GUID of the card: any will do on a fabric of its own.
const NODE_GUID: u64 = 0x0002_c903_00be_0000;
const PORT: u8 = 1;
/// How long the port may take to become ACTIVE.
const PATIENCE: Duration = Duration::from_secs(30);
/// Completions taken at once.
const BATCH: usize = 32;

/// One queue pair with its memory.
struct Side {
    qp: QueuePair,
    cq: CompletionQueue,
    memory: RegisteredMemory,
    /// What requests name: the other side's memory.
    far: Remote,
    next: u64,
}

/// The card with its driver, and both ends.
pub(super) struct Alone {
    // In the order in which they end.
    sides: [Side; 2],
    _domains: (Pd, Uar),
    hca: Hca,
    engine: Engine,
    _fabric: Arc<Fabric>,
}

impl Side {
    fn new(hca: &Hca, pd: &Pd, uar: &Uar) -> Result<Self> {
        let cq = hca.completion_queue(DEPTH + RECEIVES, uar, 0, || {}).context("make a completion queue")?;
        let memory = hca.memory(pd, 2 * MOST_BYTES as usize, Access::ALL).context("register memory")?;
        let config = QueuePairConfig {
            service: Service::Rc,
            pd,
            uar,
            send_cq: &cq,
            receive_cq: &cq,
            send: SendSize { requests: DEPTH, sges: 1, inline: 0 },
            receives: RECEIVES,
            receive_sges: 1,
            srq: None,
        };
        let qp = hca.queue_pair(&config).context("make a queue pair")?;
        Ok(Self { qp, cq, memory, far: Remote { address: 0, rkey: 0 }, next: 0 })
    }

    fn offer(&self) -> (Remote, u32) {
        let address = self.memory.address(MOST_BYTES as usize);
        (Remote { address, rkey: self.memory.region().rkey() }, self.qp.number())
    }

    fn connect(&mut self, lid: u16, (far, qpn): (Remote, u32)) -> Result<()> {
        self.far = far;
        let init = Attributes {
            port: Some(PORT),
            pkey_index: Some(0),
            access: Some(Access::ALL),
            ..Attributes::default()
        };
        self.qp.modify(QpState::INIT, &init)?;
        for _ in 0..RECEIVES {
            self.post_receive()?;
        }
        let rtr = Attributes {
            path: Some(Path::local(PORT, lid, 0)),
            mtu: Some(Mtu::MTU_2048),
            remote_qpn: Some(qpn),
            receive_psn: Some(0),
            responder_reads: Some(8),
            min_rnr_timer: Some(1),
            ..Attributes::default()
        };
        self.qp.modify(QpState::RTR, &rtr)?;
        let rts = Attributes {
            send_psn: Some(0),
            timeout: Some(14),
            retry_count: Some(7),
            rnr_retry: Some(7),
            requester_reads: Some(8),
            ..Attributes::default()
        };
        Ok(self.qp.modify(QpState::RTS, &rts)?)
    }
}

impl End for Side {
    fn post(&mut self, operation: Operation, bytes: u32, signaled: bool) -> Result<()> {
        let verb = match operation {
            Operation::Write => Verb::Write(self.far),
            Operation::Read => Verb::Read(self.far),
            Operation::Send => Verb::Send,
        };
        let data = [self.memory.piece(0, bytes)];
        let flags = SendFlags { signalled: signaled, ..SendFlags::default() };
        let data = Data::Pieces(&data);
        let request = SendRequest { wr_id: self.next, operation: verb, data, flags, destination: None };
        self.qp.post_send(&[request])?;
        self.next += 1;
        Ok(())
    }

    fn post_receive(&mut self) -> Result<()> {
        let piece = self.memory.piece(MOST_BYTES as usize, MOST_BYTES);
        Ok(self.qp.post_receive([(0, &[piece][..])])?)
    }

    fn poll(&mut self) -> Result<Polled> {
        let (mut polled, mut failed) = (Polled::default(), None);
        self.cq.poll(BATCH, |completion| match completion.outcome {
            Completed::Sent { .. } => polled.sent = completion.wr_id + 1,
            Completed::Received(_) => polled.received += 1,
            Completed::Failed { syndrome, .. } => failed = Some(syndrome),
        })?;
        if let Some(syndrome) = failed {
            bail!("a request has failed: {syndrome:?}");
        }
        Ok(polled)
    }

    fn posted(&self) -> u64 {
        self.next
    }
}

/// An end whose polls run the engine.
struct Driving<'a> {
    side: &'a mut Side,
    engine: &'a InHand<'a>,
}

impl End for Driving<'_> {
    fn post(&mut self, operation: Operation, bytes: u32, signaled: bool) -> Result<()> {
        self.side.post(operation, bytes, signaled)
    }

    fn post_receive(&mut self) -> Result<()> {
        self.side.post_receive()
    }

    fn poll(&mut self) -> Result<Polled> {
        self.engine.turn();
        self.side.poll()
    }

    fn posted(&self) -> u64 {
        self.side.next
    }
}

impl Alone {
    /// Brings the card up and connects.
    pub(super) fn open() -> Result<Self> {
        let fabric = Fabric::new(FabricConfig { training: Duration::ZERO, ..FabricConfig::default() })?;
        let config = HcaConfig { node_guid: NODE_GUID, ports: 1, trace: None };
        let card = Arc::new(SlotCard::new(Arc::new(ModelDevice::new(config, &fabric)?)));
        let engine = Engine::start(&card)?;
        let seam: Arc<dyn PciDevice> = card;
        let hca = Hca::open(seam, &Config::default()).context("bring the card up")?;
        let lid = active(&hca)?;
        let (pd, uar) = (hca.pd()?, hca.uar()?);
        let mut sides = [Side::new(&hca, &pd, &uar)?, Side::new(&hca, &pd, &uar)?];
        let offers = [sides[0].offer(), sides[1].offer()];
        sides[0].connect(lid, offers[1])?;
        sides[1].connect(lid, offers[0])?;
        Ok(Self { sides, _domains: (pd, uar), hca, engine, _fabric: fabric })
    }

    pub(super) fn measure(&mut self, task: &Task, way: Way) -> Result<Vec<f64>> {
        let [first, second] = &mut self.sides;
        match (way, task.operation) {
            (Way::Alone, Operation::Send) => thread::scope(|scope| {
                let server = Sends::new(second, task, false);
                let server = thread::Builder::new()
                    .name("bench-peer".into())
                    .spawn_scoped(scope, move || server.run())?;
                let taken = Sends::new(first, task, true).run()?;
                ensure!(server.join().is_ok_and(|result| result.is_ok()), "the other end has failed");
                Ok(taken)
            }),
            (Way::Alone, _) => Player::new(first).measure(task),
            (Way::Inline, Operation::Send) => {
                let engine = &self.engine.take();
                let mut near = Driving { side: first, engine };
                let mut far = Driving { side: second, engine };
                let mut sends = [Sends::new(&mut near, task, true), Sends::new(&mut far, task, false)];
                while !sends.iter().all(Sends::is_done) {
                    sends[0].step()?;
                    sends[1].step()?;
                }
                let [first, second] = sends;
                second.finish()?;
                first.finish()
            }
            (Way::Inline, _) => {
                let engine = &self.engine.take();
                Player::new(&mut Driving { side: first, engine }).measure(task)
            }
            (Way::Guest, _) => bail!("this player is no guest"),
        }
    }

    /// Posts and polls in windows, for a tool that counts.
    pub(super) fn count(&mut self, operation: Operation, windows: u32, way: Way) -> Result<()> {
        let [first, _] = &mut self.sides;
        match way {
            Way::Inline => {
                let engine = self.engine.take();
                count::windows(first, operation, windows, || while engine.turn() {})
            }
            _ => count::windows(first, operation, windows, count::pause),
        }
    }

    /// Ends everything in order.
    pub(super) fn close(self) -> Result<()> {
        let Self { sides, _domains: domains, hca, engine, .. } = self;
        for Side { qp, cq, memory, .. } in sides {
            qp.destroy()?;
            cq.destroy()?;
            memory.destroy()?;
        }
        drop(domains);
        hca.close()?;
        drop(engine);
        Ok(())
    }
}

/// Waits until the port is ACTIVE; answers its LID.
fn active(hca: &Hca) -> Result<u16> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let port = hca.port(PORT)?;
        if port.state == PortState::ACTIVE {
            return Ok(port.lid);
        }
        ensure!(Instant::now() < deadline, "the port is not ACTIVE after {} s", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(5));
    }
}
