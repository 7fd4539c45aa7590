//! An HCA of the model that guests share, on a fabric with its subnet manager.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(unreachable_pub, reason = "shared by several test binaries")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

pub mod guest;
pub mod rings;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mlx4::{Profile, Timeouts};
use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::{EngineThread, Fault, HcaConfig};
use mlx4_model::seam::ModelDevice;
use mlx4_pci::PciDevice;
use mlx4_wire::cmd::Opcode as CommandOpcode;
use mlx4_wire::cmd::dev_cap::QueryDevCap;
use paraverbs_hca::{Mlx4Config, Mlx4Hca};
use paraverbs_tenant::hca::{Cookie, EventSink, Hca, HcaEvent, PortInfo};
use zerocopy::{FromBytes, FromZeros};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// State of a port that is ready.
const ACTIVE: u8 = 4;

/// What a guest was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Completion(Cookie),
    Event(HcaEvent),
}

/// Hands a guest's events to a test.
#[derive(Debug)]
pub struct Sink(Mutex<Sender<Told>>);

impl Sink {
    pub fn pair() -> (Arc<dyn EventSink>, Receiver<Told>) {
        let (sender, receiver) = channel();
        (Arc::new(Self(Mutex::new(sender))), receiver)
    }

    fn tell(&self, told: Told) {
        // The test may have ended.
        let _ended = self.0.lock().unwrap().send(told);
    }
}

impl EventSink for Sink {
    fn completion(&self, cq: Cookie) {
        self.tell(Told::Completion(cq));
    }

    fn raise(&self, event: HcaEvent) {
        self.tell(Told::Event(event));
    }
}

/// Waits for something that a guest is told.
pub fn wait_for(told: &Receiver<Told>, wanted: Told) {
    let deadline = Instant::now() + PATIENCE;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        match told.recv_timeout(left) {
            Ok(found) if found == wanted => return,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    panic!("{wanted:?} didn't come");
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

/// Small tables, two event queues for completions.
pub fn config() -> Mlx4Config {
    let profile = Profile { log2_cqs: 10, log2_mcgs: 8, ..Profile::default() };
    let health_interval = Duration::from_millis(20);
    Mlx4Config { profile, completion_eqs: 2, health_interval, ..Mlx4Config::default() }
}

/// As [`config`], for tests in which commands aren't answered.
pub fn impatient() -> Mlx4Config {
    // Longer than any answer takes, however busy the machine is.
    let short = Duration::from_secs(3);
    let timeouts = Timeouts { post: short, short, medium: short, long: short };
    Mlx4Config { timeouts, ports: false, ..config() }
}

/// As [`impatient`], with other tables.
pub fn impatient_with(profile: Profile) -> Mlx4Config {
    Mlx4Config { profile, ..impatient() }
}

/// Takes what not every card has out of what a card says of itself.
#[derive(Debug)]
struct Plain;

impl Fault for Plain {
    fn answer(&self, opcode: CommandOpcode, mailbox: &mut [u8], _: &mut u64) {
        if opcode == CommandOpcode::QUERY_DEV_CAP
            && let Ok(cap) = QueryDevCap::mut_from_bytes(&mut mailbox[..size_of::<QueryDevCap>()])
        {
            cap.flags.set_xrc(false);
            cap.flags.set_mem_window(false);
            cap.bmme = FromZeros::new_zeroed();
            cap.gso_rss.set_log2_max_gso(0);
            cap.ext_flags.set_cqe_64b(false);
        }
    }
}

/// A card of the model, and the HCA on it.
pub struct Rig {
    pub hca: Arc<Mlx4Hca>,
    pub device: Arc<ModelDevice>,
    unopened: String,
    engine: Option<EngineThread>,
    _fabric: Arc<Fabric>,
}

impl Rig {
    pub fn new(node_guid: u64, config: Mlx4Config) -> Self {
        Self::on(&Fabric::new(FabricConfig::default()).unwrap(), node_guid, config)
    }

    /// On a fabric that others may be on too.
    pub fn on(fabric: &Arc<Fabric>, node_guid: u64, config: Mlx4Config) -> Self {
        Self::of(fabric, node_guid, config, None)
    }

    /// A card that says to have neither XRC nor windows, nor to cut long messages.
    pub fn of_a_plain_card(node_guid: u64, config: Mlx4Config) -> Self {
        let fabric = Fabric::new(FabricConfig::default()).unwrap();
        Self::of(&fabric, node_guid, config, Some(Arc::new(Plain)))
    }

    fn of(fabric: &Arc<Fabric>, node_guid: u64, config: Mlx4Config, fault: Option<Arc<dyn Fault>>) -> Self {
        let _already = env_logger::builder().is_test(true).try_init();
        let card = HcaConfig { node_guid, ports: 1, trace: None };
        let device = Arc::new(ModelDevice::new(card, fabric).unwrap());
        fault.into_iter().for_each(|fault| device.hca().inject(fault));
        let engine = device.hca().start_engine().unwrap();
        let unopened = device.hca().dump();
        let seam: Arc<dyn PciDevice> = Arc::<ModelDevice>::clone(&device);
        let hca = Mlx4Hca::open(seam, config).unwrap();
        Self { hca, device, unopened, engine: Some(engine), _fabric: Arc::clone(fabric) }
    }

    /// From now on nobody runs the card, or a thread does again.
    pub fn run_engine(&mut self, run: bool) {
        self.engine = None;
        self.engine = run.then(|| self.device.hca().start_engine().unwrap());
    }

    /// Waits until the port is ACTIVE.
    pub fn active(&self) -> PortInfo {
        let active = || self.hca.query_port(1).ok().filter(|port| port.state == ACTIVE);
        eventually("an active port", active)
    }

    pub fn dump(&self) -> String {
        self.device.hca().dump()
    }

    /// Closes the HCA: nothing is left behind, and no access was refused.
    pub fn close(self) {
        self.hca.close().unwrap();
        self.closed();
    }

    /// Nothing is left behind by an HCA that was closed somehow.
    pub fn closed(&self) {
        assert_eq!(self.dump(), self.unopened);
        assert_eq!((self.device.refused(), self.device.dma().quarantined()), (0, 0));
    }
}
