//! A card that lies, under the driver: what commands answer, events, completions and registers are changed on
//! the way, from the first register that is read when the driver opens.

use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arbitrary::Arbitrary;
use mlx4::{Access, Attributes, Config, Error, Hca, Path, Profile, QueuePair, QueuePairConfig, Timeouts};
use mlx4_model::fabric::Fabric;
use mlx4_model::hca::Fault;
use mlx4_model::seam::ModelDevice;
use mlx4_pci::{
    DmaSpace, Doorbell, DoorbellKind, EventFd, Identity, InterruptError, PciDevice, RegisterError,
    ResetError, ResetKind,
};
use mlx4_queue::Notify;
use mlx4_queue::geometry::{SendSize, Service};
use mlx4_queue::request::{Data, Operation, SendFlags, SendRequest};
use mlx4_wire::cmd::Opcode;
use mlx4_wire::ctx::qp::{Mtu, QpState};

use crate::input::operations;
use crate::parts::{card, fabric, seam, settle};

/// How long the driver waits for a card that doesn't answer.
const TIMEOUT: Duration = Duration::from_millis(200);

static FABRIC: LazyLock<Arc<Fabric>> = LazyLock::new(|| fabric(false));

/// Where a lie is told.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the output mailbox of the commands with this number.
    Answer(u8),
    /// In the immediate result of them.
    Result(u8),
    Event,
    Completion,
    Register,
}

/// How bytes are changed.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Change {
    Set(u8),
    Flip(u8),
    Word(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Lie {
    place: Place,
    /// Times that the truth is told before.
    after: u8,
    /// Times that it is told then; 0: always.
    times: u8,
    /// The byte that it begins at; a register's word.
    at: u16,
    change: Change,
}

/// Lies, with how often their place was passed.
#[derive(Debug, Default)]
struct Liar(Mutex<Vec<(Lie, u32)>>);

impl Liar {
    fn lock(&self) -> MutexGuard<'_, Vec<(Lie, u32)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, place: Place, start: u64, bytes: &mut [u8]) {
        for (lie, passed) in self.lock().iter_mut().filter(|(lie, _)| lie.place == place) {
            let Some(at) = u64::from(lie.at).checked_sub(start).and_then(|at| usize::try_from(at).ok())
            else {
                continue;
            };
            if at >= bytes.len() {
                continue;
            }
            *passed += 1;
            let first = u32::from(lie.after);
            let last = if lie.times == 0 { u32::MAX } else { first + u32::from(lie.times) };
            if *passed > first && *passed <= last {
                lie.change.apply(&mut bytes[at..]);
            }
        }
    }
}

impl Change {
    fn apply(self, bytes: &mut [u8]) {
        match self {
            Self::Set(value) => bytes[0] = value,
            Self::Flip(bits) => bytes[0] ^= bits,
            Self::Word(word) => bytes.iter_mut().zip(word.to_be_bytes()).for_each(|(byte, new)| *byte = new),
        }
    }
}

fn number(opcode: Opcode) -> u8 {
    // A few opcodes are at the end of their range: they keep their last digits.
    u8::try_from(opcode.0 & 0xff).unwrap_or(0)
}

impl Fault for Liar {
    fn answer(&self, opcode: Opcode, mailbox: &mut [u8], result: &mut u64) {
        self.tell(Place::Answer(number(opcode)), 0, mailbox);
        let mut bytes = result.to_be_bytes();
        self.tell(Place::Result(number(opcode)), 0, &mut bytes);
        *result = u64::from_be_bytes(bytes);
    }

    fn event(&self, eqe: &mut [u8]) {
        self.tell(Place::Event, 0, eqe);
    }

    fn completion(&self, cqe: &mut [u8]) {
        self.tell(Place::Completion, 0, cqe);
    }
}

/// A card whose registers lie too.
struct Lying {
    inner: Arc<dyn PciDevice>,
    liar: Arc<Liar>,
}

/// Registers that lies can name, from their offsets: the command register, and the version of its interface.
const REGISTERS: [u64; 3] = [0x8_0680, 0xf_0000, 0x0];

impl PciDevice for Lying {
    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), RegisterError> {
        self.inner.config_read(offset, data)
    }

    fn register(&self, offset: u64) -> Result<u32, RegisterError> {
        let mut word = self.inner.register(offset)?.to_be_bytes();
        for (bank, base) in (0..).zip(REGISTERS) {
            if (base..base + 0x1000).contains(&offset) {
                self.liar.tell(Place::Register, bank * 0x1000 + (offset - base), &mut word);
            }
        }
        Ok(u32::from_be_bytes(word))
    }

    fn set_register(&self, offset: u64, value: u32) -> Result<(), RegisterError> {
        self.inner.set_register(offset, value)
    }

    fn dma(&self) -> &DmaSpace {
        self.inner.dma()
    }

    fn interrupt(&self, vector: u16) -> Result<EventFd, InterruptError> {
        self.inner.interrupt(vector)
    }

    fn enable_interrupts(&self, vectors: u16) -> Result<(), InterruptError> {
        self.inner.enable_interrupts(vectors)
    }

    fn disable_interrupts(&self) -> Result<(), InterruptError> {
        self.inner.disable_interrupts()
    }

    fn doorbell(&self, uar: u32, kind: DoorbellKind) -> Result<Arc<dyn Doorbell>, RegisterError> {
        self.inner.doorbell(uar, kind)
    }

    fn reset(&self) -> Result<ResetKind, ResetError> {
        self.inner.reset()
    }
}

impl fmt::Debug for Lying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lying({:?})", self.inner)
    }
}

/// Opens the driver on a card that lies, works with it, and closes it.
pub fn run(bytes: &[u8]) {
    let lies = operations::<Lie>(bytes, 16).map(|lie| (lie, 0)).collect();
    let liar = Arc::new(Liar(Mutex::new(lies)));
    let card = card(&FABRIC, 0x0002_c903_00f3_0000);
    card.hca().inject(Arc::<Liar>::clone(&liar));
    let device: Arc<dyn PciDevice> = Arc::new(Lying { inner: seam(&card), liar });
    let profile = Profile {
        log2_qps: 12,
        log2_srqs: 10,
        log2_cqs: 10,
        log2_mpts: 12,
        log2_mtts: 15,
        log2_mcgs: 8,
        ..Profile::default()
    };
    let timeouts = Timeouts { post: TIMEOUT, short: TIMEOUT, medium: TIMEOUT, long: TIMEOUT };
    let config = Config { profile, timeouts, completion_eqs: 1, ports: false, ..Config::default() };
    if let Ok(hca) = Hca::open(device, &config) {
        let _lied_to = work(&card, &hca);
        let _lied_to = hca.close();
    }
    assert_eq!(card.refused(), 0, "accesses of the card to memory that the driver never gave it");
}

/// Some of everything.
fn work(card: &ModelDevice, hca: &Hca) -> Result<(), Error> {
    let _port = (hca.port(1)?, hca.gids(1)?, hca.pkeys(1)?, hca.node_info()?);
    let (pd, uar) = (hca.pd()?, hca.uar()?);
    let cq = hca.completion_queue(16, &uar, 0, || {})?;
    let memory = hca.memory(&pd, 4096, Access::ALL)?;
    let srq = hca.shared_receive_queue(&pd, 15, 1)?;
    srq.object().arm(3)?;
    let qp = hca.queue_pair(&QueuePairConfig {
        service: Service::Rc,
        pd: &pd,
        uar: &uar,
        send_cq: &cq,
        receive_cq: &cq,
        send: SendSize { requests: 16, sges: 1, inline: 0 },
        receives: 0,
        receive_sges: 0,
        srq: Some(&srq),
    })?;
    let worked = exchange(card, &qp, || {
        srq.post(7, &[memory.piece(0, 64)])?;
        cq.arm(Notify::Next);
        let data = [memory.piece(128, 64)];
        let flags = SendFlags { signalled: true, ..SendFlags::default() };
        let send = SendRequest {
            wr_id: 9,
            operation: Operation::Send,
            data: Data::Pieces(&data),
            flags,
            destination: None,
        };
        Ok(qp.post_send(&[send])?)
    });
    // Whatever completed, however often it says so.
    let _lied_to = cq.poll(64, |_| {});
    let _state = (qp.query(), cq.query(), srq.object().limit());
    let ends = qp.destroy().and(srq.destroy()).and(cq.destroy()).and(memory.destroy());
    worked.and(ends)
}

/// A message of a queue pair to itself.
fn exchange(
    card: &ModelDevice,
    qp: &QueuePair,
    post: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    let init =
        Attributes { port: Some(1), pkey_index: Some(0), access: Some(Access::ALL), ..Attributes::default() };
    qp.modify(QpState::INIT, &init)?;
    let rtr = Attributes {
        path: Some(Path::local(1, 1, 0)),
        mtu: Some(Mtu::MTU_1024),
        remote_qpn: Some(qp.number()),
        receive_psn: Some(7),
        responder_reads: Some(4),
        min_rnr_timer: Some(1),
        ..Attributes::default()
    };
    qp.modify(QpState::RTR, &rtr)?;
    let rts = Attributes {
        send_psn: Some(7),
        timeout: Some(1),
        retry_count: Some(1),
        rnr_retry: Some(1),
        requester_reads: Some(4),
        ..Attributes::default()
    };
    qp.modify(QpState::RTS, &rts)?;
    post()?;
    settle(card.hca());
    qp.modify(QpState::ERR, &Attributes::default())?;
    settle(card.hca());
    Ok(())
}
