//! The HCA: registers, command interface, ICM, queues and the data path.
//!
//! Who runs what:
//! - a store to the HCR executes the command on the storing thread, one command at a time;
//! - a send doorbell only marks the queue pair; the [`engine`] executes work requests, on its own thread or
//!   on whoever calls [`Hca::run`];
//! - the engine of the sender does the receiver's part too: payload is copied once, from the memory of one
//!   HCA to that of the other.
//!
//! What is reached through DMA is read once, checked, then used. Every burst of work holds snapshots of
//! the mappings ([`burst`]); whoever takes a mapping back waits for the bursts that may still use it.
//!
//! Order of locks: command, send half of a queue pair, receive half (of the far one), SRQ, CQ, EQ.

mod burst;
mod caps;
mod cmd;
mod counters;
mod cq;
mod dump;
mod engine;
mod eq;
mod icm;
mod mcg;
mod port;
mod qp;
mod regs;
mod ring;
mod running;
mod runset;
mod srq;
mod table;
mod tpt;
mod uar;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use mlx4_wire::regs::{BAR0_BYTES, BAR2_BYTES};

use crate::device::{Interrupts, PciFunction};
use crate::fabric::{Fabric, FabricError, Plug};
use crate::mem::DmaSpace;
use crate::node::NodeState;
use crate::pci::ConfigSpace;
use burst::{Burst, IcmTables};
use cmd::Firmware;
pub use counters::Counters;
use icm::Icm;
use regs::{Effect, Registers};
use running::Running;

/// What a card is made with.
#[derive(Clone, Debug)]
pub struct HcaConfig {
    /// Node GUID; port GUIDs follow it, and the system image GUID is three above.
    pub node_guid: u64,
    /// Number of InfiniBand ports, 1 or 2.
    pub ports: u8,
}

/// A ConnectX-3.
pub struct Hca {
    me: Weak<Self>,
    config: HcaConfig,
    dma: Arc<DmaSpace>,
    interrupts: Arc<dyn Interrupts>,
    pci: Mutex<ConfigSpace>,
    regs: Registers,
    icm: Icm,
    firmware: Mutex<Firmware>,
    running: ArcSwapOption<Running>,
    node: NodeState,
    plugs: OnceLock<Vec<Plug>>,
    engine: engine::Engine,
    half_doorbell: uar::HalfDoorbell,
    counters: Counters,
}

impl Hca {
    /// A card that is plugged into a fabric by all its ports. Its engine runs when [`Hca::run`] is called;
    /// [`Hca::start_engine`] gives it a thread of its own.
    ///
    /// # Errors
    /// The fabric has no free switch port.
    pub fn new(
        config: HcaConfig,
        dma: Arc<DmaSpace>,
        interrupts: Arc<dyn Interrupts>,
        fabric: &Arc<Fabric>,
    ) -> Result<Arc<Self>, FabricError> {
        let hca = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            node: port::node_state(&config),
            pci: Mutex::new(port::config_space(&config)),
            config,
            dma,
            interrupts,
            regs: Registers::new(),
            icm: Icm::default(),
            firmware: Mutex::default(),
            running: ArcSwapOption::empty(),
            plugs: OnceLock::new(),
            engine: engine::Engine::new(),
            half_doorbell: Mutex::default(),
            counters: Counters::default(),
        });
        let plugs = (1..=hca.config.ports)
            .map(|number| fabric.plug(Arc::new(port::PortEndpoint::new(&hca, number))))
            .collect::<Result<_, _>>()?;
        let _first = hca.plugs.set(plugs);
        Ok(hca)
    }

    /// The node GUID.
    pub fn node_guid(&self) -> u64 {
        self.config.node_guid
    }

    /// What the HCA has counted since it was made.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Snapshots for a burst of work, while the HCA runs.
    fn enter(&self) -> Option<(Burst, Arc<Running>)> {
        let running = self.running.load_full()?;
        Some((Burst::new(self.dma.snapshot(), self.icm.snapshot(), running.icm), running))
    }

    /// Snapshots for a command before INIT_HCA has set tables up.
    fn enter_bare(&self) -> Burst {
        Burst::new(self.dma.snapshot(), self.icm.snapshot(), IcmTables::default())
    }

    /// The cable of a port, numbered from 1.
    fn plug(&self, port: u8) -> Option<&Plug> {
        self.plugs.get()?.get(usize::from(port.checked_sub(1)?))
    }

    fn firmware(&self) -> MutexGuard<'_, Firmware> {
        self.firmware.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pci(&self) -> MutexGuard<'_, ConfigSpace> {
        self.pci.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops everything and returns to the state before MAP_FA: when this returns, no DMA is under way and
    /// none will come.
    fn reset_core(&self) {
        let mut firmware = self.firmware();
        for port in 1..=self.config.ports {
            if let Some(plug) = self.plug(port) {
                plug.set_link(false);
            }
        }
        self.stop_running();
        self.icm.clear();
        self.dma.quiesce();
        port::reset(&self.node);
        self.regs.reset();
        *firmware = Firmware::default();
    }

    /// Takes the tables away from the data path and waits until nobody works with them (CLOSE_HCA, reset).
    fn stop_running(&self) {
        if let Some(running) = self.running.swap(None) {
            for qp in running.qps.iter() {
                qp.reset();
            }
            for cq in running.cqs.iter() {
                cq.stop();
            }
            for eq in running.eqs.iter() {
                eq.stop();
            }
        }
        self.dma.quiesce();
    }

    fn bar0_write(&self, offset: u64, word: [u8; 4]) {
        match self.regs.write(offset, word) {
            Effect::None => {}
            Effect::Command(hcr) => cmd::run(self, &hcr),
            Effect::Reset => {
                log::info!("software reset of HCA {:#018x}", self.config.node_guid);
                self.reset_core();
                let mut pci = self.pci();
                pci.wipe();
                self.dma.set_enabled(pci.bus_master());
            }
            Effect::Msix => self.pci().msix_write(offset, word),
        }
    }

    fn bar0_read(&self, offset: u64) -> [u8; 4] {
        self.pci().msix_read(offset).unwrap_or_else(|| self.regs.read(offset))
    }
}

/// Cuts an access into aligned 32-bit words; `None` where it can't be.
fn words(offset: u64, len: usize, size: u64) -> Option<impl Iterator<Item = (u64, std::ops::Range<usize>)>> {
    let whole = offset % 4 == 0 && len % 4 == 0 && offset.checked_add(len as u64)? <= size;
    whole.then(|| (0..len / 4).map(move |i| (offset + 4 * i as u64, 4 * i..4 * i + 4)))
}

impl PciFunction for Hca {
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.pci().read(offset, data);
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        let (flr, bus_master) = {
            let mut pci = self.pci();
            let effect = pci.write(offset, data);
            (effect.flr, pci.bus_master())
        };
        if flr {
            self.reset();
        } else {
            self.dma.set_enabled(bus_master);
        }
    }

    fn bar_size(&self, bar: u8) -> u64 {
        match bar {
            0 => BAR0_BYTES,
            2 => BAR2_BYTES,
            _ => 0,
        }
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some(words) = words(offset, data.len(), self.bar_size(bar)) else { return };
        for (at, range) in words {
            data[range].copy_from_slice(&if bar == 0 { self.bar0_read(at) } else { [0; 4] });
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        let Some(words) = words(offset, data.len(), self.bar_size(bar)) else {
            log::debug!("store of {} bytes at {offset:#x} of BAR{bar} dropped", data.len());
            return;
        };
        if bar == 2 {
            self.uar_write(offset, data);
            return;
        }
        for (at, range) in words {
            let mut word = [0; 4];
            word.copy_from_slice(&data[range]);
            self.bar0_write(at, word);
        }
    }

    fn reset(&self) {
        log::info!("function reset of HCA {:#018x}", self.config.node_guid);
        self.reset_core();
        let mut pci = self.pci();
        pci.reset();
        self.dma.set_enabled(pci.bus_master());
    }
}

impl std::fmt::Debug for Hca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hca").field("config", &self.config).finish_non_exhaustive()
    }
}
