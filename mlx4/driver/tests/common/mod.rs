//! A fabric, and HCAs of the model on it with this driver.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(unreachable_pub, reason = "shared by several test binaries")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod card;
pub mod end;

use std::cell::RefCell;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use mlx4::{Config, Event, EventSink, Hca, PortEvent, Profile};
use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::Fault;
use mlx4_pci::{
    DmaSpace, Doorbell, DoorbellKind, EventFd, Identity, InterruptError, PciDevice, RegisterError,
    ResetError, ResetKind,
};
use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::eqe::EventType;

pub use card::Card;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Hands events to a test.
pub struct Events(Mutex<Sender<Event>>);

impl Events {
    pub fn new(sender: Sender<Event>) -> Self {
        Self(Mutex::new(sender))
    }
}

impl EventSink for Events {
    fn event(&self, event: &Event) {
        // The test may have ended.
        let _ended = self.0.lock().expect("no panic while sending").send(*event);
    }
}

/// A fabric with its subnet manager.
pub fn fabric() -> Arc<Fabric> {
    let _already = env_logger::builder().is_test(true).try_init();
    Fabric::new(FabricConfig::default()).expect("a fabric")
}

/// Small tables, two event queues for completions.
pub fn config() -> Config {
    let profile = Profile { log2_cqs: 10, log2_mcgs: 8, ..Profile::default() };
    Config { profile, completion_eqs: 2, ..Config::default() }
}

/// A driver, and the events of its device.
pub struct Host {
    pub hca: Hca,
    pub events: Receiver<Event>,
    /// Events that came while another one was waited for.
    passed: RefCell<Vec<Event>>,
}

impl Host {
    /// Waits for an event; those that come before it can be waited for later.
    pub fn wait_for(&self, wanted: Event) {
        let mut passed = self.passed.borrow_mut();
        if let Some(place) = passed.iter().position(|event| *event == wanted) {
            passed.remove(place);
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            match self.events.recv_timeout(left) {
                Ok(event) if event == wanted => return,
                Ok(event) => passed.push(event),
                Err(_) => break,
            }
        }
        panic!("{wanted:?} didn't come");
    }

    /// Waits until a port is ACTIVE; returns its LID.
    pub fn active(&self, port: u8) -> u16 {
        self.wait_for(Event::Port { port, event: PortEvent::Active });
        self.hca.port(port).expect("attributes of a port").lid
    }
}

/// Two HCAs on one fabric, both ACTIVE, and their LIDs.
pub struct Pair {
    pub cards: [Card; 2],
    pub hosts: [Host; 2],
    pub lids: [u16; 2],
    before: [String; 2],
}

impl Pair {
    pub fn new(guid: u64) -> Self {
        let fabric = fabric();
        let cards = [guid, guid + 0x100].map(|guid| Card::new(&fabric, guid, 1));
        let before = [cards[0].dump(), cards[1].dump()];
        let hosts = [cards[0].open(), cards[1].open()];
        let lids = [hosts[0].active(1), hosts[1].active(1)];
        Self { cards, hosts, lids, before }
    }

    /// Closes both: nothing is left behind, and no access was refused.
    pub fn close(self) {
        for ((host, card), before) in self.hosts.into_iter().zip(&self.cards).zip(&self.before) {
            host.hca.close().expect("an orderly end");
            assert_eq!(card.dump(), *before);
            assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
        }
    }
}

/// Calls `probe` until it gives something.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(value) = probe() {
            return value;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what} didn't come");
}

/// Where an entry of an event queue has its type, and that of a command the status.
const EVENT_TYPE: usize = 0x01;
const COMMAND_STATUS: usize = 0x0f;

/// A card that carries commands out and says INTERNAL_ERR then: so many of each of these opcodes from now on.
#[derive(Debug, Default)]
pub struct Untrue(Mutex<UntrueState>);

#[derive(Debug, Default)]
struct UntrueState {
    left: Vec<(Opcode, usize)>,
    /// The next event tells of such a command.
    now: bool,
}

impl Untrue {
    /// To be put into a card before its driver opens.
    pub fn of(card: &Card) -> Arc<Self> {
        let this = Arc::new(Self::default());
        card.device.hca().inject(Arc::<Self>::clone(&this));
        this
    }

    /// Has the next commands of an opcode fail, besides those that are to fail already.
    pub fn fail(&self, opcode: Opcode, count: usize) {
        self.lock().left.push((opcode, count));
    }

    /// Whether all of them have failed.
    pub fn is_done(&self) -> bool {
        self.lock().left.iter().all(|(_, count)| *count == 0)
    }

    fn lock(&self) -> MutexGuard<'_, UntrueState> {
        self.0.lock().unwrap()
    }
}

impl Fault for Untrue {
    fn answer(&self, opcode: Opcode, _: &mut [u8], _: &mut u64) {
        let mut state = self.lock();
        if let Some((_, count)) = state.left.iter_mut().find(|(of, count)| *of == opcode && *count != 0) {
            *count -= 1;
            state.now = true;
        }
    }

    fn event(&self, eqe: &mut [u8]) {
        if eqe[EVENT_TYPE] == EventType::COMMAND.0 && std::mem::take(&mut self.lock().now) {
            eqe[COMMAND_STATUS] = Status::INTERNAL_ERR.0;
        }
    }
}

/// What a test does to a register: offset and true value give another value.
type Twist = dyn Fn(u64, u32) -> u32 + Send + Sync;

/// A device whose registers a test tampers with.
pub struct Tampered {
    inner: Arc<dyn PciDevice>,
    read: Box<Twist>,
    write: Box<Twist>,
    /// Whether doorbells of a kind are lost.
    loses: fn(DoorbellKind) -> bool,
}

/// A doorbell whose rings are lost.
#[derive(Debug)]
struct LostDoorbell;

impl Doorbell for LostDoorbell {
    fn ring(&self, _: u64) {}
}

impl Tampered {
    fn over(card: &Card) -> Self {
        let same = |_, value| value;
        Self { inner: card.seam(), read: Box::new(same), write: Box::new(same), loses: |_| false }
    }

    /// Doorbells of some kinds are lost.
    pub fn losing(card: &Card, loses: fn(DoorbellKind) -> bool) -> Arc<Self> {
        Arc::new(Self { loses, ..Self::over(card) })
    }

    /// What the driver reads is changed.
    pub fn new(card: &Card, read: impl Fn(u64, u32) -> u32 + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { read: Box::new(read), ..Self::over(card) })
    }

    /// What the driver writes is changed.
    pub fn writing(card: &Card, write: impl Fn(u64, u32) -> u32 + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { write: Box::new(write), ..Self::over(card) })
    }
}

impl std::fmt::Debug for Tampered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tampered({:?})", self.inner)
    }
}

impl PciDevice for Tampered {
    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), RegisterError> {
        self.inner.config_read(offset, data)
    }

    fn register(&self, offset: u64) -> Result<u32, RegisterError> {
        Ok((self.read)(offset, self.inner.register(offset)?))
    }

    fn set_register(&self, offset: u64, value: u32) -> Result<(), RegisterError> {
        self.inner.set_register(offset, (self.write)(offset, value))
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
        if (self.loses)(kind) { Ok(Arc::new(LostDoorbell)) } else { self.inner.doorbell(uar, kind) }
    }

    fn reset(&self) -> Result<ResetKind, ResetError> {
        self.inner.reset()
    }
}
