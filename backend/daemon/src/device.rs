//! The HCA's device: a card, or the model with its fabric.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::{EngineThread, Hca, HcaConfig};
use mlx4_model::seam::ModelDevice;
use mlx4_model::vfio_user::ServedCard;
use mlx4_pci::{PciDevice, VfioPci, VfioUserPci};
use paraverbs_rdma::{Engine, Progress};

use crate::config::{Config, Device};
use crate::error::StartError;

/// Node GUID of the daemon's own card: Mellanox's OUI and a number.
const OWN_GUID: u64 = 0x0002_c903_00b0_0000;
/// Distance of the cards' GUIDs; a card uses four.
const GUID_STEP: u64 = 0x10;

/// How long links train where drivers in VMs are plugged in, which are slow to get ready for the first SMP.
const TRAINING_WITH_VMS: Duration = Duration::from_secs(1);

/// The device, and the model if it is one.
pub(crate) struct Opened {
    pub(crate) device: Arc<dyn PciDevice>,
    pub(crate) model: Option<Model>,
}

impl Opened {
    pub(crate) fn new(config: &Config) -> Result<Self, StartError> {
        match &config.device {
            Device::Vfio(address) => {
                let device = Arc::new(VfioPci::open(&format!("vfio:{address}"))?);
                Ok(Self { device, model: None })
            }
            Device::VfioUser(path) => {
                let device = Arc::new(VfioUserPci::open(path)?);
                Ok(Self { device, model: None })
            }
            Device::Model { ports } => {
                let model = Model::new(*ports, !config.fabric_sockets.is_empty())?;
                let device: Arc<dyn PciDevice> = Arc::<ModelDevice>::clone(&model.device);
                Ok(Self { device, model: Some(model) })
            }
        }
    }
}

/// A card of the model that the daemon drives, and the fabric that it is plugged into.
pub(crate) struct Model {
    device: Arc<ModelDevice>,
    fabric: Arc<Fabric>,
    ports: u8,
}

impl Model {
    fn new(ports: u8, with_vms: bool) -> Result<Self, StartError> {
        let training = if with_vms { TRAINING_WITH_VMS } else { Duration::ZERO };
        let fabric = Fabric::new(FabricConfig { training, ..FabricConfig::default() })?;
        let config = HcaConfig { node_guid: OWN_GUID, ports, trace: None };
        let device = Arc::new(ModelDevice::new(config, &fabric)?);
        Ok(Self { device, fabric, ports })
    }

    pub(crate) fn hca(&self) -> &Arc<Hca> {
        self.device.hca()
    }

    /// Accesses to memory that the card tried and was refused.
    pub(crate) fn refused(&self) -> u64 {
        self.device.refused()
    }

    /// What the thread of doorbells runs.
    pub(crate) fn engine(&self) -> Arc<dyn Engine> {
        Arc::new(ModelEngine(Arc::clone(self.hca())))
    }

    /// Runs the card until the thread of doorbells does.
    pub(crate) fn run_meanwhile(&self) -> Result<EngineThread, StartError> {
        self.hca().start_engine().map_err(StartError::Thread)
    }

    /// Serves further cards of the fabric.
    pub(crate) fn serve(&self, paths: &[PathBuf]) -> Result<Vec<ServedCard>, StartError> {
        let serve = |(number, path): (u64, &PathBuf)| self.serve_one(number, path);
        (1..).zip(paths).map(serve).collect()
    }

    fn serve_one(&self, number: u64, path: &Path) -> Result<ServedCard, StartError> {
        let node_guid = OWN_GUID + number * GUID_STEP;
        let config = HcaConfig { node_guid, ports: self.ports, trace: None };
        ServedCard::start(path, config, &self.fabric).map_err(StartError::Serve)
    }
}

/// The model's data path, for the thread of doorbells.
struct ModelEngine(Arc<Hca>);

impl Engine for ModelEngine {
    fn run(&self) -> Progress {
        let mlx4_model::hca::Progress { worked, next_timer } = self.0.run();
        Progress { worked, next_timer }
    }

    fn may_sleep(&self) -> bool {
        self.0.may_sleep()
    }

    fn is_awake(&self) {
        self.0.is_awake();
    }

    fn set_waker(&self, waker: Box<dyn Fn() + Send + Sync>) {
        self.0.set_waker(waker);
    }
}
