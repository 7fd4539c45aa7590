//! The daemon from its start to its end.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use mlx4::CompletionEvents;
use mlx4_model::hca::Hca as ModelHca;
use mlx4_model::vfio_user::ServedCard;
use paraverbs_hca::{Mlx4Config, Mlx4Hca};
use paraverbs_rdma::{Doorbells as Granted, GuestSocket, GuestSocketConfig, RdmaHost, RelayConfig};
use paraverbs_tenant::hca::{DeviceInfo, DmaInfo, Hca};
use paraverbs_tenant::{GuestConfig, Host};

use crate::config::{Config, Device, Doorbells, GuestEntry};
use crate::device::{Model, Opened};
use crate::error::StartError;
use crate::ports::{ACTIVE, wait_active};
use crate::recovery::Recovery;
use crate::status::{HcaState, PortStatus, Status};

/// A daemon that serves. Dropping it ends it, as [`Daemon::stop`] does.
pub struct Daemon {
    device: String,
    // In the order in which they end.
    recovery: Option<Recovery>,
    guests: Vec<GuestSocket>,
    cards: Vec<ServedCard>,
    rdma: Option<Arc<RdmaHost>>,
    hca: Arc<Mlx4Hca>,
    model: Option<Model>,
}

impl Daemon {
    /// Brings the HCA up, waits a few seconds for its ports, and serves the guests.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left then.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        let mut daemon = Self::bring_up(config)?;
        wait_active(&daemon.hca, &|| false);
        daemon.serve(config)?;
        Ok(daemon)
    }

    /// As [`Daemon::start`], but gives up while it waits for ports if it is cancelled: then there is no daemon.
    ///
    /// # Errors
    /// As for [`Daemon::start`].
    pub fn start_unless(config: &Config, cancelled: &dyn Fn() -> bool) -> Result<Option<Self>, StartError> {
        let mut daemon = Self::bring_up(config)?;
        if !wait_active(&daemon.hca, cancelled) {
            return Ok(None);
        }
        daemon.serve(config)?;
        Ok(Some(daemon))
    }

    /// The HCA runs, and there are no guests yet.
    fn bring_up(config: &Config) -> Result<Self, StartError> {
        config.check()?;
        let Opened { device, model } = Opened::new(config)?;
        // Ports need the model's data path to come up.
        let engine = model.as_ref().map(Model::run_meanwhile).transpose()?;
        let hca = Mlx4Hca::open(device, hca_config(model.is_some()))?;
        drop(engine);
        let mut daemon = Self {
            device: config.device.to_string(),
            recovery: None,
            guests: Vec::new(),
            cards: Vec::new(),
            rdma: None,
            hca,
            model,
        };
        let engine = daemon.model.as_ref().map(Model::engine);
        let relay = config.spin.map_or_else(RelayConfig::default, |spin| RelayConfig { spin });
        let host = Host::new(Arc::<Mlx4Hca>::clone(&daemon.hca));
        let rdma = RdmaHost::start(host, engine, relay).map_err(StartError::Thread)?;
        daemon.recovery = Some(Recovery::start(&daemon.hca, &rdma).map_err(StartError::Thread)?);
        daemon.rdma = Some(rdma);
        Ok(daemon)
    }

    fn serve(&mut self, config: &Config) -> Result<(), StartError> {
        let info = self.hca.device();
        let dma = self.hca.dma();
        let grant = |guest| grant(guest, &config.device, &info, &dma);
        let grants = config.guests.iter().map(grant).collect::<Result<Vec<_>, _>>()?;
        if let Some(model) = &self.model {
            self.cards = model.serve(&config.fabric_sockets)?;
        }
        let Some(rdma) = &self.rdma else { return Ok(()) };
        for grant in grants {
            self.guests.push(GuestSocket::listen(rdma, grant).map_err(StartError::Listen)?);
        }
        Ok(())
    }

    /// How it is now.
    pub fn status(&self) -> Status {
        let info = self.hca.device();
        let port = |number| {
            let port = self.hca.query_port(number).ok()?;
            Some(PortStatus { number, active: port.state == ACTIVE, lid: port.lid })
        };
        Status {
            device: self.device.clone(),
            state: self.recovery.as_ref().map_or(HcaState::Failed, Recovery::state),
            firmware: info.firmware,
            ports: (1..=info.ports).filter_map(port).collect(),
            objects: self.hca.driver(|driver| driver.objects()).unwrap_or(0),
            quarantined_bytes: self.rdma.as_ref().map_or(0, |rdma| rdma.host().quarantined_bytes()),
            guests: self.guests.iter().map(GuestSocket::status).collect(),
        }
    }

    /// The card of the model, if that is the device: its counters, and a dump of what is in it.
    pub fn model(&self) -> Option<&Arc<ModelHca>> {
        self.model.as_ref().map(Model::hca)
    }

    /// Accesses to memory that the card of the model tried and was refused; 0 for another device.
    pub fn refused_accesses(&self) -> u64 {
        self.model.as_ref().map_or(0, Model::refused)
    }

    /// The further cards of the fabric: node GUID and socket of each.
    pub fn fabric_cards(&self) -> impl Iterator<Item = (u64, &Path)> {
        self.cards.iter().map(|card| (card.hca().node_guid(), card.path()))
    }

    /// Disconnects the guests, takes everything of theirs from the HCA, removes the sockets, and stops the HCA.
    ///
    /// # Errors
    /// The HCA doesn't stop in order: it was reset then.
    pub fn stop(mut self) -> mlx4::Result<()> {
        self.end();
        self.hca.close()
    }

    /// Ends everything but the HCA.
    fn end(&mut self) {
        self.recovery = None;
        self.guests.clear();
        self.cards.clear();
        self.rdma = None;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        if let Err(error) = self.hca.close() {
            log::error!("the HCA was not closed in order: {error}");
        }
    }
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// How the HCA is used. Who runs a model's engine polls for its completion events: they wake nobody then.
fn hca_config(is_model: bool) -> Mlx4Config {
    let config = Mlx4Config::default();
    if is_model {
        Mlx4Config { completion_eqs: 1, completion_events: CompletionEvents::Polled, ..config }
    } else {
        config
    }
}

/// What a guest's socket is to be on a certain HCA.
fn grant(
    guest: &GuestEntry,
    device: &Device,
    info: &DeviceInfo,
    dma: &DmaInfo,
) -> Result<GuestSocketConfig, StartError> {
    let limits = guest
        .limits
        .on(info, dma)
        .map_err(|source| StartError::Limit { guest: guest.name.clone(), source })?;
    Ok(GuestSocketConfig {
        name: guest.name.clone(),
        path: guest.socket.clone(),
        guest: GuestConfig { limits, ..GuestConfig::default() },
        require_seals: guest.requires_seals(),
        doorbells: match (guest.doorbells, device) {
            (Doorbells::Relayed, _) | (_, Device::Vfio(_) | Device::VfioUser(_)) => Granted::Relayed,
            (Doorbells::Auto, _) => Granted::Auto,
            (Doorbells::Direct, _) => Granted::Direct,
        },
    })
}
