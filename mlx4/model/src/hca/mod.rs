//! The HCA: registers, command interface, ICM, queues and the data path.
//!
//! Who runs what:
//! - a store to the HCR executes the command on the storing thread, one command at a time;
//! - a send doorbell only marks the queue pair; the engine executes work requests, on its own thread or
//!   on whoever calls [`Hca::run`];
//! - the engine of the sender does the receiver's part too: payload is copied once, from the memory of one
//!   HCA to that of the other.
//!
//! What is reached through DMA is read once, checked, then used. Every burst of work holds snapshots of
//! the mappings; whoever takes a mapping back waits for the bursts that may still use it.
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
mod fault;
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
#[cfg(test)]
mod tests;
mod tpt;
mod uar;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwapOption;
use mlx4_wire::regs::{BAR0_BYTES, BAR2_BYTES};

use crate::device::{Interrupts, PciFunction};
use crate::fabric::{Fabric, FabricError, Plug};
use crate::mem::DmaSpace;
use crate::node::{NodeConfig, NodeError, NodeState};
use crate::pci::{ConfigError, ConfigParams, ConfigSpace, MsixTable};
use crate::trace::Trace;
use burst::{Burst, IcmTables};
use cmd::Firmware;
pub use counters::Counters;
pub use engine::{EngineThread, Progress};
pub use fault::{FAULT_MAILBOX_BYTES, Fault};
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
    /// Where to write a trace of the driver's commands.
    pub trace: Option<Arc<Trace>>,
}

/// Why a card can't be made.
#[derive(Debug, thiserror::Error)]
pub enum HcaError {
    /// The card's configuration space can't be laid out.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Subnet management can't describe the node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The fabric has no place for it.
    #[error(transparent)]
    Fabric(#[from] FabricError),
}

/// What the function shows on the bus besides its registers.
struct Pci {
    config: ConfigSpace,
    msix: MsixTable,
}

impl Pci {
    fn new(config: &HcaConfig) -> Result<Self, ConfigError> {
        let params = ConfigParams::new(config.node_guid, config.ports);
        Ok(Self { config: ConfigSpace::new(&params)?, msix: MsixTable::new(params.msix_vectors) })
    }

    /// As after a reset.
    fn wipe(&mut self) {
        self.config.wipe();
        self.msix.wipe();
    }
}

/// A ConnectX-3.
pub struct Hca {
    config: HcaConfig,
    dma: Arc<DmaSpace>,
    interrupts: Arc<dyn Interrupts>,
    pci: Mutex<Pci>,
    regs: Registers,
    icm: Icm,
    firmware: Mutex<Firmware>,
    running: ArcSwapOption<Running>,
    node: NodeState,
    plugs: OnceLock<Vec<Plug>>,
    engine: engine::Engine,
    half_doorbell: uar::HalfDoorbell,
    counters: Counters,
    /// Transaction id of the next trap.
    traps: AtomicU64,
    key_traps: port::KeyTraps,
    fault: OnceLock<Arc<dyn Fault>>,
}

impl Hca {
    /// A card that is plugged into a fabric by all its ports. Its engine runs when [`Hca::run`] is called;
    /// [`Hca::start_engine`] gives it a thread of its own.
    ///
    /// # Errors
    /// A number of ports other than 1 or 2, a node GUID of 0, or no free switch port.
    pub fn new(
        config: HcaConfig,
        dma: Arc<DmaSpace>,
        interrupts: Arc<dyn Interrupts>,
        fabric: &Arc<Fabric>,
    ) -> Result<Arc<Self>, HcaError> {
        let description = format!("ConnectX-3 {:016x}", config.node_guid);
        let hca = Arc::new(Self {
            node: NodeState::new(&NodeConfig::connectx3(config.node_guid, config.ports, &description))?,
            pci: Mutex::new(Pci::new(&config)?),
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
            traps: AtomicU64::new(1),
            key_traps: port::KeyTraps::default(),
            fault: OnceLock::new(),
        });
        let plugs = (1..=hca.config.ports)
            .map(|number| fabric.plug(Arc::new(port::PortEndpoint::new(&hca, number))))
            .collect::<Result<_, FabricError>>()?;
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

    /// Makes the firmware fail, for tests of drivers: the catastrophic-error buffer shows `code` (0 counts as
    /// 1), and commands are dead until the next reset.
    pub fn fail_firmware(&self, code: u32) {
        self.regs.catastrophe(code);
    }

    /// Pulls the cable of a port, or puts it back.
    pub fn set_link(&self, port: u8, up: bool) {
        if let Some(plug) = self.plug(port) {
            plug.set_link(up);
        }
    }

    /// Changes from now on what the HCA tells its driver, for tests of drivers. The first call decides.
    pub fn inject(&self, fault: Arc<dyn Fault>) {
        let _first = self.fault.set(fault);
    }

    /// Snapshots for a burst of work, while the HCA runs.
    fn enter(&self) -> Option<(Burst, Arc<Running>)> {
        let running = self.running.load_full()?;
        Some((self.command_burst(&running), running))
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

    fn pci(&self) -> MutexGuard<'_, Pci> {
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
        self.node.reset();
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

    /// Notes a rare event in the log and the trace.
    fn note(&self, what: &str) {
        log::info!("HCA {:#018x}: {what}", self.config.node_guid);
        if let Some(trace) = &self.config.trace {
            trace.record(self.config.node_guid, what, &[]);
        }
    }

    fn wipe_pci(&self) {
        self.pci().wipe();
        self.dma.set_enabled(false);
    }

    fn bar0_write(&self, offset: u64, word: [u8; 4]) {
        if MsixTable::covers(offset) {
            self.pci().msix.write(offset, &word);
            return;
        }
        match self.regs.write(offset, word) {
            Effect::None => {}
            Effect::Command(hcr) => cmd::run(self, &hcr),
            Effect::Reset => {
                self.note("software reset");
                self.reset_core();
                self.wipe_pci();
            }
        }
    }

    fn bar0_read(&self, offset: u64) -> [u8; 4] {
        if MsixTable::covers(offset) {
            let mut word = [0; 4];
            self.pci().msix.read(offset, &mut word);
            return word;
        }
        self.regs.read(offset)
    }
}

/// Cuts an access into aligned 32-bit words; `None` where it can't be.
fn words(offset: u64, len: usize, size: u64) -> Option<impl Iterator<Item = (u64, std::ops::Range<usize>)>> {
    let whole = offset.is_multiple_of(4) && len.is_multiple_of(4) && offset.checked_add(len as u64)? <= size;
    whole.then(|| (0..len / 4).map(move |i| (offset + 4 * i as u64, 4 * i..4 * i + 4)))
}

impl PciFunction for Hca {
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.pci().config.read(offset, data);
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        let (effects, bus_master) = {
            let mut pci = self.pci();
            (pci.config.write(offset, data), pci.config.bus_master())
        };
        if effects.flr_requested {
            self.reset();
        } else if effects.bus_master_changed {
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
        self.note("function reset");
        self.reset_core();
        self.wipe_pci();
    }
}

impl std::fmt::Debug for Hca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hca").field("config", &self.config).finish_non_exhaustive()
    }
}
