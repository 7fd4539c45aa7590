//! A card, and the way to it: the environment variable `PARAVERBS_SEAM` says which.
//!
//! - none, or `model`: the model in this process, by calls
//! - `vfio-user`: the model in this process, as a server at a socket of which the driver's seam is a client
//! - `vfio:0000:01:00.0,vfio:0000:02:00.0`: cards of this machine that are bound to vfio-pci and plugged into one
//!   fabric. What is inside them can't be seen from here: whoever runs the tests looks after that, and a test
//!   that needs it panics

use std::cell::RefCell;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};

use mlx4::{Config, Hca};
use mlx4_model::fabric::Fabric;
use mlx4_model::hca::{EngineThread, HcaConfig};
use mlx4_model::seam::ModelDevice;
use mlx4_model::trace::Trace;
use mlx4_model::vfio_user::ServedCard;
use mlx4_pci::{DmaSpace, PciDevice, ResetError, ResetKind, VfioPci, VfioUserPci};
use tempfile::TempDir;

use super::{Events, Host, config};

/// The variable that names the way to the cards.
const SEAM: &str = "PARAVERBS_SEAM";

/// A card.
pub struct Card {
    pub device: Device,
}

impl Card {
    pub fn new(fabric: &Arc<Fabric>, node_guid: u64, ports: u8) -> Self {
        Self::traced(fabric, node_guid, ports, None)
    }

    /// A card that writes a trace.
    pub fn traced(fabric: &Arc<Fabric>, node_guid: u64, ports: u8, trace: Option<Arc<Trace>>) -> Self {
        let config = HcaConfig { node_guid, ports, trace };
        let device = match Way::chosen() {
            Way::Model => Device::model(config, fabric),
            Way::VfioUser => Device::served(config, fabric),
            Way::Vfio(cards) => Device::foreign(cards, config.trace.is_some()),
        };
        Self { device }
    }

    pub fn seam(&self) -> Arc<dyn PciDevice> {
        Arc::clone(&self.device.seam)
    }

    /// All that there is in the card. Nothing where it can't be seen: then it is for others to compare.
    pub fn dump(&self) -> String {
        match &self.device.inside {
            Inside::Foreign { .. } => String::new(),
            _ => self.device.hca().dump(),
        }
    }

    /// Opens the driver, with a small profile.
    pub fn open(&self) -> Host {
        let (sender, events) = channel();
        let config = Config { events: Arc::new(Events::new(sender)), ..config() };
        let hca = Hca::open(self.seam(), &config).expect("the driver opens");
        Host { hca, events, passed: RefCell::default() }
    }
}

/// The seam to a card, and what can be seen of the card besides.
pub struct Device {
    // The client leaves before its server is stopped.
    seam: Arc<dyn PciDevice>,
    inside: Inside,
}

enum Inside {
    Model { device: Arc<ModelDevice>, _engine: EngineThread },
    Served { card: ServedCard, _folder: TempDir },
    Foreign { _lent: Lent },
}

impl Device {
    fn model(config: HcaConfig, fabric: &Arc<Fabric>) -> Self {
        let device = Arc::new(ModelDevice::new(config, fabric).expect("a card"));
        let engine = device.hca().start_engine().expect("an engine");
        let seam = Arc::<ModelDevice>::clone(&device);
        Self { seam, inside: Inside::Model { device, _engine: engine } }
    }

    fn served(config: HcaConfig, fabric: &Arc<Fabric>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("card");
        let card = ServedCard::start(&path, config, fabric).expect("a card at a socket");
        let seam = Arc::new(VfioUserPci::open(&path).expect("the card opens"));
        Self { seam, inside: Inside::Served { card, _folder: folder } }
    }

    fn foreign(cards: &'static Mutex<Vec<String>>, traced: bool) -> Self {
        assert!(!traced, "this test reads the card's trace, which there is not with {SEAM}=vfio:...");
        let name = cards.lock().unwrap().pop();
        let name =
            name.expect("this test needs more cards than PARAVERBS_SEAM names, or runs beside another");
        let lent = Lent { name, cards };
        let seam = Arc::new(VfioPci::open(&lent.name).expect("the card opens"));
        Self { seam, inside: Inside::Foreign { _lent: lent } }
    }

    /// The card itself.
    pub fn hca(&self) -> &Arc<mlx4_model::hca::Hca> {
        self.settle();
        match &self.inside {
            Inside::Model { device, .. } => device.hca(),
            Inside::Served { card, .. } => card.hca(),
            Inside::Foreign { .. } => {
                panic!("this test needs the card's inside, unseen with {SEAM}=vfio:...")
            }
        }
    }

    /// Accesses to memory that the card tried and was refused. None where that can't be seen: then it is for
    /// others to look.
    pub fn refused(&self) -> u64 {
        self.settle();
        match &self.inside {
            Inside::Model { device, .. } => device.refused(),
            Inside::Served { card, .. } => card.refused(),
            Inside::Foreign { .. } => 0,
        }
    }

    pub fn dma(&self) -> &DmaSpace {
        self.seam.dma()
    }

    pub fn reset(&self) -> Result<ResetKind, ResetError> {
        self.seam.reset()
    }

    /// Waits until the card has all that was written to it so far.
    fn settle(&self) {
        self.seam.config_read(0, &mut [0; 4]).expect("the card answers");
    }
}

/// A card of this machine, for one test at a time.
struct Lent {
    name: String,
    cards: &'static Mutex<Vec<String>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.cards.lock().unwrap().push(std::mem::take(&mut self.name));
    }
}

/// The way to cards.
enum Way {
    Model,
    VfioUser,
    /// By the cards that no test has now.
    Vfio(&'static Mutex<Vec<String>>),
}

impl Way {
    fn chosen() -> Self {
        static CARDS: OnceLock<Mutex<Vec<String>>> = OnceLock::new();
        match std::env::var(SEAM).as_deref() {
            Err(_) | Ok("model") => Self::Model,
            Ok("vfio-user") => Self::VfioUser,
            Ok(names) if names.split(',').all(|name| name.starts_with("vfio:")) => {
                let names = || names.split(',').rev().map(str::to_owned).collect();
                Self::Vfio(CARDS.get_or_init(|| Mutex::new(names())))
            }
            Ok(other) => panic!("{SEAM}={other:?} is no way to a card: model, vfio-user or vfio:ADDRESS,..."),
        }
    }
}
