//! The device as a whole: bring-up and teardown.

use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mlx4_pci::PciDevice;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::fw::{ModStatCfg, ModStatCfgOp};
use mlx4_wire::cmd::misc::{NOP_AT_ONCE, SetNode};
use mlx4_wire::eqe::EventType;
use mlx4_wire::mad::MAD_SIZE;
use mlx4_wire::regs::{DeviceId, OWNER_OFFSET, VENDOR_ID};
use zerocopy::{FromZeros, IntoBytes};

use crate::caps::{Capabilities, Firmware};
use crate::cmd::{ALL_ONES, Command, Commands, Ends, Input, Timeouts};
use crate::cq::{Cq, CqConfig};
use crate::eq::{EqConfig, EventQueue, EventReader, EventThread};
use crate::error::{Error, Result};
use crate::event::{ASYNC_EVENTS, EventSink, LogEvents};
use crate::handlers::{AsyncHandler, CommandHandler, CompletionHandler};
use crate::health::Health;
use crate::icm::{FirmwareMemory, Icm};
use crate::mad::{MadAddress, MadQueue, MadService, MadSink, NoMads};
use crate::multicast::Groups;
use crate::object::{Pd, Uar};
use crate::path::Path;
use crate::port::{Gid, PortAttributes, Ports};
use crate::profile::{Layout, Profile};
use crate::qp::{Qp, QpConfig};
use crate::queues::{CompletionQueue, QueuePair, QueuePairConfig, SharedReceiveQueue};
use crate::region::{Access, Region, RegionConfig, RegionInfo, RegisteredMemory};
use crate::registry::Registry;
use crate::shared::{AllNumbers, Shared};
use crate::srq::{Srq, SrqConfig};

/// Devices that this driver knows: ConnectX-3 and its Pro, and their predecessors.
const DEVICES: [DeviceId; 7] = [
    DeviceId::MT25408_SDR,
    DeviceId::MT25408_DDR,
    DeviceId::MT25408_QDR,
    DeviceId::MT26418,
    DeviceId::MT26428,
    DeviceId::MT27500,
    DeviceId::MT27520,
];

/// Vectors of the event queues for commands and asynchronous events; completions have those behind.
const COMMAND_VECTOR: u16 = 0;
const ASYNC_VECTOR: u16 = 1;
const FIRST_COMPLETION_VECTOR: u16 = 2;
/// Entries of the event queues for commands and asynchronous events.
const COMMAND_ENTRIES: u32 = 128;
const ASYNC_ENTRIES: u32 = 1024;
/// Input modifier of SET_NODE.
const SET_NODE_MODIFIER: u32 = 1;
/// Completion event queues that the driver makes by default, at most.
const DEFAULT_COMPLETION_EQS: u16 = 4;

/// How a device is to be used.
#[derive(Clone)]
pub struct Config {
    /// How many objects of each kind there may be.
    pub profile: Profile,
    /// Event queues for completions, each with a thread; at least one. Completion queues name one of them.
    pub completion_eqs: u16,
    /// How long commands may take.
    pub timeouts: Timeouts,
    /// How often the device is looked at for a failure.
    pub health_interval: Duration,
    /// Who takes events.
    pub events: Arc<dyn EventSink>,
    /// Who takes datagrams that the firmware doesn't answer.
    pub mads: Arc<dyn MadSink>,
    /// Whether special queue pairs are made and ports brought up. Without, ports stay down.
    pub ports: bool,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            profile: Profile::default(),
            completion_eqs: u16::try_from(cores).unwrap_or(u16::MAX).clamp(1, DEFAULT_COMPLETION_EQS),
            timeouts: Timeouts::default(),
            health_interval: Duration::from_secs(1),
            events: Arc::new(LogEvents),
            mads: Arc::new(NoMads),
            ports: true,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("profile", &self.profile)
            .field("completion_eqs", &self.completion_eqs)
            .field("timeouts", &self.timeouts)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

/// A running HCA.
///
/// [`Hca::close`] stops it. Dropped instead, its threads end, and the device keeps what it has until it is
/// reset.
pub struct Hca {
    // In the order in which they end.
    mads: Option<MadService>,
    threads: Vec<EventThread>,
    queues: Vec<EventQueue>,
    ports: Arc<Ports>,
    shared: Arc<Shared>,
    closed: bool,
}

impl Hca {
    /// Resets a device and brings it up.
    ///
    /// # Errors
    /// The device is none that the driver knows, has another owner, doesn't answer, or says something that
    /// can't be; or the host lacks memory. The device has been reset again then.
    pub fn open(device: Arc<dyn PciDevice>, config: &Config) -> Result<Self> {
        let identity = device.identity();
        let known = DEVICES.contains(&DeviceId(identity.device));
        if identity.vendor != VENDOR_ID || !known {
            let (vendor, id) = (identity.vendor, identity.device);
            return Err(Error::Unknown { name: identity.name.clone(), vendor, device: id });
        }
        let how = device.reset()?;
        log::info!("{}: reset ({how:?})", identity.name);
        match bring_up(&device, config) {
            Ok(hca) => Ok(hca),
            Err(error) => {
                log::error!("{}: {error}", identity.name);
                if let Err(error) = device.reset() {
                    log::error!("{error}");
                }
                Err(error)
            }
        }
    }

    /// The firmware.
    pub fn firmware(&self) -> &Firmware {
        &self.shared.firmware
    }

    /// What the device can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.shared.caps
    }

    /// Objects that the device works with, the driver's own included.
    pub fn objects(&self) -> usize {
        self.shared.objects()
    }

    /// What a port is like now.
    ///
    /// # Errors
    /// There is no such port, or the device doesn't tell.
    pub fn port(&self, number: u8) -> Result<PortAttributes> {
        self.ports.get(number)?.attributes(&self.shared.commands)
    }

    /// The GID table of a port.
    ///
    /// # Errors
    /// As for [`Hca::port`].
    pub fn gids(&self, port: u8) -> Result<Vec<Gid>> {
        self.ports.get(port)?.gids(&self.shared.commands)
    }

    /// The P_Key table of a port.
    ///
    /// # Errors
    /// As for [`Hca::port`].
    pub fn pkeys(&self, port: u8) -> Result<Vec<u16>> {
        self.ports.get(port)?.pkeys(&self.shared.commands)
    }

    /// Sets the node description: at most 64 bytes of text, which tools show for the device.
    ///
    /// # Errors
    /// The text is too long, or the device refuses it.
    pub fn set_node_description(&self, text: &str) -> Result<()> {
        let mut set = SetNode::new_zeroed();
        let room = set.node_desc.get_mut(..text.len());
        room.ok_or(Error::argument("length of the node description", text.len() as u64))?
            .copy_from_slice(text.as_bytes());
        Ok(self.shared.commands.give(Opcode::SET_NODE, SET_NODE_MODIFIER, &set)?)
    }

    /// Sends a datagram through a special queue pair of a port.
    ///
    /// # Errors
    /// The address isn't one, too many datagrams are under way, or ports weren't asked for.
    pub fn send_mad(
        &self,
        port: u8,
        queue: MadQueue,
        address: &MadAddress,
        mad: &[u8; MAD_SIZE],
    ) -> Result<()> {
        let mads = self.mads.as_ref().ok_or(Error::argument("port", port))?;
        mads.send(port, queue, address, mad)
    }

    /// A new protection domain.
    ///
    /// # Errors
    /// None is left.
    pub fn pd(&self) -> Result<Pd> {
        Pd::new(&self.shared)
    }

    /// A new UAR page.
    ///
    /// # Errors
    /// None is left.
    pub fn uar(&self) -> Result<Uar> {
        Uar::new(&self.shared)
    }

    /// A memory region over pages that are mapped for the device, and stay so until it is destroyed.
    ///
    /// # Errors
    /// The config isn't one of a region, none is left, or the device refuses it.
    pub fn region(&self, config: &RegionConfig<'_>) -> Result<Region> {
        Region::new(&self.shared, config)
    }

    /// What a key stands for now.
    pub fn region_of(&self, key: u32) -> Option<RegionInfo> {
        // The index of a key is above its variable byte.
        self.shared.regions.get(key >> 8).map(|info| *info).filter(|info| info.key == key)
    }

    /// Memory of the driver's own, registered.
    ///
    /// # Errors
    /// No memory or region is left.
    pub fn memory(&self, pd: &Pd, bytes: usize, access: Access) -> Result<RegisteredMemory> {
        RegisteredMemory::new(&self.shared, pd, bytes, access)
    }

    /// A completion queue in anybody's memory. `notify` is called for each completion event, from a thread of
    /// the driver's: it must be quick.
    ///
    /// # Errors
    /// The config isn't one of a completion queue, none is left, or the device refuses it.
    pub fn cq(&self, config: &CqConfig<'_>, notify: impl Fn() + Send + Sync + 'static) -> Result<Cq> {
        let number = self.shared.numbers.cqs.take()?;
        Cq::new(&self.shared, number, config, Box::new(notify))
    }

    /// A shared receive queue in anybody's memory.
    ///
    /// # Errors
    /// The config isn't one of a shared receive queue, none is left, or the device refuses it.
    pub fn srq(&self, config: &SrqConfig<'_>) -> Result<Srq> {
        let number = self.shared.numbers.srqs.take()?;
        Srq::new(&self.shared, number, config)
    }

    /// A queue pair in anybody's memory, in RESET.
    ///
    /// # Errors
    /// The config isn't one of a queue pair, or none is left.
    pub fn qp(&self, config: &QpConfig<'_>) -> Result<Qp> {
        let number = self.shared.numbers.qps.take()?;
        Qp::new(&self.shared, number, config)
    }

    /// A completion queue that this process polls, for at least so many completions; `vector` names one of
    /// the event queues. `notify` is called for each completion event, from a thread of the driver's.
    ///
    /// # Errors
    /// No memory or completion queue is left, or the device refuses it.
    pub fn completion_queue(
        &self,
        completions: u32,
        uar: &Uar,
        vector: usize,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> Result<CompletionQueue> {
        CompletionQueue::new(&self.shared, completions, uar, vector, notify)
    }

    /// A shared receive queue that this process posts to.
    ///
    /// # Errors
    /// No memory or shared receive queue is left, or the device refuses it.
    pub fn shared_receive_queue(&self, pd: &Pd, requests: u32, sges: u32) -> Result<SharedReceiveQueue> {
        SharedReceiveQueue::new(&self.shared, pd, requests, sges)
    }

    /// A queue pair that this process posts to, in RESET.
    ///
    /// # Errors
    /// No memory or queue pair is left.
    pub fn queue_pair(&self, config: &QueuePairConfig<'_>) -> Result<QueuePair> {
        QueuePair::new(&self.shared, config)
    }

    /// The address vector of datagrams that go along a path, for queue pairs of a domain.
    ///
    /// # Errors
    /// The path isn't one.
    pub fn address_vector(&self, pd: &Pd, path: &Path) -> Result<mlx4_wire::wqe::Av> {
        path.vector(pd, self.port_count())
    }

    /// Adds a queue pair to a multicast group. `block_loopback`: it doesn't get what it sends itself.
    ///
    /// # Errors
    /// No place is left, or the device refuses it.
    pub fn attach_multicast(&self, qp: &Qp, group: &Gid, block_loopback: bool) -> Result<()> {
        Groups(&self.shared).attach(group, qp.number(), block_loopback)
    }

    /// Takes a queue pair out of a multicast group. Do so before it is destroyed.
    ///
    /// # Errors
    /// It isn't in the group, or the device refuses it.
    pub fn detach_multicast(&self, qp: &Qp, group: &Gid) -> Result<()> {
        Groups(&self.shared).detach(group, qp.number())
    }

    fn port_count(&self) -> u8 {
        // At most 2.
        u8::try_from(self.ports.iter().count()).unwrap_or(0)
    }

    /// Stops the device in the reverse order of bring-up. If something fails, or objects are still in use, the
    /// device is reset, so that it can't access memory any more.
    ///
    /// # Errors
    /// The first failure; or, if objects were in use, how many.
    pub fn close(mut self) -> Result<()> {
        self.closed = true;
        let device = Arc::clone(&self.shared.device);
        let result = self.shut_down();
        if result.is_err() {
            device.reset()?;
        }
        result
    }

    fn shut_down(mut self) -> Result<()> {
        let mut ends = Ends::default();
        if let Some(mads) = self.mads.take() {
            ends.note(mads.close());
        }
        let in_use = self.shared.objects();
        self.shared.commands.use_events(false);
        let commands = Arc::clone(&self.shared.commands);
        for (queue, mask) in self.queues.iter().zip([command_mask(), async_mask(&self.shared.caps)]) {
            ends.note(queue.map(&commands, mask, true));
        }
        self.threads.clear();
        for queue in std::mem::take(&mut self.queues) {
            ends.note(queue.close(&commands, &self.shared.icm));
        }
        ends.note(commands.simple(Opcode::CLOSE_HCA, 0));
        let shared = Arc::clone(&self.shared);
        drop(self);
        if in_use != 0 {
            commands.kill();
            return Err(Error::InUse(in_use));
        }
        let shared = Arc::into_inner(shared).ok_or(Error::InUse(1))?;
        ends.note(give_up_memory(shared, commands));
        ends.result()
    }
}

/// Takes ICM and the firmware's area back, and lets go of the device.
fn give_up_memory(shared: Shared, commands: Arc<Commands>) -> Result<()> {
    let Shared { icm, area, device, commands: its, .. } = shared;
    drop(its);
    let mut ends = Ends::default();
    ends.note(icm.close(&commands));
    ends.note(area.take_back(&commands));
    match Arc::into_inner(commands) {
        Some(commands) => ends.note(commands.close()),
        None => ends.note(Err::<(), _>(Error::InUse(1))),
    };
    ends.note(device.disable_interrupts());
    ends.note(device.set_register(OWNER_OFFSET, 0));
    ends.result()
}

impl Drop for Hca {
    fn drop(&mut self) {
        if !self.closed {
            log::error!("an HCA wasn't closed: it keeps its memory until it is reset");
        }
    }
}

impl fmt::Debug for Hca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hca").field("shared", &self.shared).finish_non_exhaustive()
    }
}

fn command_mask() -> u64 {
    EventType::COMMAND.mask()
}

fn async_mask(caps: &Capabilities) -> u64 {
    let mask = ASYNC_EVENTS.iter().fold(0, |mask, event| mask | event.mask());
    if caps.port_management_events { mask | EventType::PORT_MANAGEMENT_CHANGE.mask() } else { mask }
}

/// Claims a device that was just reset.
fn claim(device: &Arc<dyn PciDevice>) -> Result<()> {
    let name = || device.identity().name.clone();
    match device.register(OWNER_OFFSET)? {
        0 => Ok(()),
        ALL_ONES => Err(Error::Gone(name())),
        owner => Err(Error::Owned { name: name(), owner }),
    }
}

fn bring_up(device: &Arc<dyn PciDevice>, config: &Config) -> Result<Hca> {
    claim(device)?;
    let commands = Arc::new(Commands::new(device, config.timeouts)?);
    let bars = device.identity().bar_bytes;
    let firmware = Firmware::query(&commands, bars[0])?;
    let (major, minor, sub) = firmware.version;
    log::info!("{}: firmware {major}.{minor}.{sub}", device.identity().name);
    commands.set_outstanding(firmware.log2_commands);
    let map = (Opcode::MAP_FA, Opcode::UNMAP_FA);
    let area = FirmwareMemory::give(&commands, device.dma(), firmware.pages.into(), map)?;
    commands.simple(Opcode::RUN_FW, 0)?;
    set_page_size(&commands);
    let mut caps = Capabilities::query(&commands, bars[2])?;
    let layout = Layout::new(&config.profile, &caps)?;
    let icm = Icm::open(&commands, device.dma(), &layout, &caps)?;
    commands.give(Opcode::INIT_HCA, 0, &layout.init_hca(&caps)?)?;
    caps.query_board(&commands)?;
    let vectors = vectors(device, config, &caps)?;
    let first_eqn = caps.eqs.reserved;
    let completion_eqns = (FIRST_COMPLETION_VECTOR..vectors).map(|v| first_eqn + u32::from(v)).collect();
    let shared = Arc::new(Shared {
        device: Arc::clone(device),
        numbers: AllNumbers::new(&caps, &layout),
        regions: Registry::new(layout.profile.log2_mpts),
        completions: Arc::new(Registry::new(layout.profile.log2_cqs)),
        queues: Arc::new(Registry::new(layout.profile.log2_qps)),
        completion_eqns,
        groups: Mutex::new(()),
        objects: AtomicUsize::new(0),
        commands,
        firmware,
        caps,
        layout,
        area,
        icm,
    });
    let ports = Arc::new(Ports::new(&shared.caps));
    let mut hca = Hca { mads: None, threads: Vec::new(), queues: Vec::new(), ports, shared, closed: true };
    start_events(&mut hca, config, vectors)?;
    if config.ports {
        let (mads, events) = (Arc::clone(&config.mads), Arc::clone(&config.events));
        hca.mads = Some(MadService::start(&hca.shared, &hca.ports, mads, events)?);
    }
    hca.closed = false;
    Ok(hca)
}

/// Tells the device that host pages are of 4 KiB. Firmware that doesn't know the command has no others.
fn set_page_size(commands: &Commands) {
    let mut cfg = ModStatCfg::new_zeroed();
    cfg.page.set_log_pg_sz_m(true);
    let input = Input::Mailbox(cfg.as_bytes());
    let command = Command { opmod: ModStatCfgOp::SET.0, input, ..Command::new(Opcode::MOD_STAT_CFG, 0) };
    if let Err(error) = commands.run(&command) {
        log::warn!("{error}");
    }
}

/// Connects as many interrupts as there are to be event queues.
fn vectors(device: &Arc<dyn PciDevice>, config: &Config, caps: &Capabilities) -> Result<u16> {
    let eqs = (1u32 << caps.eqs.log2).saturating_sub(caps.eqs.reserved);
    let most = device.identity().vectors.min(u16::try_from(eqs).unwrap_or(u16::MAX));
    let wanted = FIRST_COMPLETION_VECTOR.saturating_add(config.completion_eqs.max(1)).min(most);
    if wanted <= FIRST_COMPLETION_VECTOR {
        return Err(Error::Exhausted("interrupt vector"));
    }
    device.enable_interrupts(wanted)?;
    Ok(wanted)
}

/// Makes the event queues and their threads, and has commands reported by events from there on.
fn start_events(hca: &mut Hca, config: &Config, vectors: u16) -> Result<()> {
    let shared = Arc::clone(&hca.shared);
    let commands = &shared.commands;
    let make = |vector: u16, entries| {
        let config = EqConfig { eqn: shared.caps.eqs.reserved + u32::from(vector), vector, entries };
        EventQueue::new(&shared.device, commands, &shared.icm, config)
    };
    let (queue, reader) = make(COMMAND_VECTOR, COMMAND_ENTRIES)?;
    let handler = CommandHandler(Arc::clone(commands));
    add(hca, "mlx4-cmd".into(), COMMAND_VECTOR, (queue, reader), handler)?;
    let (queue, reader) = make(ASYNC_VECTOR, ASYNC_ENTRIES)?;
    let handler = AsyncHandler {
        sink: Arc::clone(&config.events),
        ports: Arc::clone(&hca.ports),
        commands: Arc::clone(commands),
        health: Health::new(Arc::clone(&shared.device), &shared.firmware),
        interval: config.health_interval,
    };
    add(hca, "mlx4-async".into(), ASYNC_VECTOR, (queue, reader), handler)?;
    // Room for an event of every completion queue.
    let entries = 1u32 << shared.layout.profile.log2_cqs;
    for vector in FIRST_COMPLETION_VECTOR..vectors {
        let made = make(vector, entries.min(1 << shared.caps.log2_max_eqes >> 1))?;
        let handler = CompletionHandler(Arc::clone(&shared.completions));
        let name = format!("mlx4-comp{}", vector - FIRST_COMPLETION_VECTOR);
        add(hca, name, vector, made, handler)?;
    }
    hca.queues[usize::from(COMMAND_VECTOR)].map(commands, command_mask(), false)?;
    hca.queues[usize::from(ASYNC_VECTOR)].map(commands, async_mask(&shared.caps), false)?;
    commands.use_events(true);
    // The first command that an event reports: it shows that interrupts come.
    Ok(commands.simple(Opcode::NOP, NOP_AT_ONCE)?)
}

fn add(
    hca: &mut Hca,
    name: String,
    vector: u16,
    (queue, reader): (EventQueue, EventReader),
    handler: impl crate::eq::EventHandler + 'static,
) -> Result<()> {
    hca.queues.push(queue);
    let interrupt = hca.shared.device.interrupt(vector)?;
    hca.threads.push(EventThread::start(name, interrupt, reader, handler)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mlx4_model::fabric::{Fabric, FabricConfig};
    use mlx4_model::hca::HcaConfig;
    use mlx4_model::seam::ModelDevice;
    use mlx4_wire::mad::portinfo::PortState;

    use super::*;

    /// As on a real subnet, a subnet manager alone doesn't make a port ACTIVE.
    #[test]
    fn port_whose_driver_does_not_answer_qp0_stays_in_init() {
        let fabric = Fabric::new(FabricConfig::default()).unwrap();
        let config = HcaConfig { node_guid: 0x0002_c903_0041_0000, ports: 1, trace: None };
        let device = Arc::new(ModelDevice::new(config, &fabric).unwrap());
        let hca = Hca::open(device, &Config { ports: false, ..Config::default() }).unwrap();
        Ports::init(&hca.shared.commands, 1).unwrap();
        let state = || hca.port(1).unwrap().state;
        let start = Instant::now();
        while state() != PortState::INIT {
            assert!(start.elapsed() < Duration::from_secs(10), "the link doesn't come up");
        }
        // Several times what the subnet manager takes for a port that answers.
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(state(), PortState::INIT);
        hca.close().unwrap();
    }
}
