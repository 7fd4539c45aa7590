//! The device as a whole, and what can be made of it. How it starts and ends is in `lifecycle`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mlx4_pci::PciDevice;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::misc::SetNode;
use mlx4_wire::ctx::qp::ServiceType;
use mlx4_wire::mad::MAD_SIZE;
use mlx4_wire::mad::attr::NodeInfo;
use mlx4_wire::regs::{DeviceId, VENDOR_ID};
use zerocopy::FromZeros;

use crate::arm::ArmDoorbell;
use crate::caps::{Capabilities, Firmware};
use crate::cmd::Timeouts;
use crate::cq::{Cq, CqConfig};
use crate::eq::{EventQueue, EventThread};
use crate::error::{Error, Result};
use crate::event::{EventSink, LogEvents};
use crate::fast::FastRegion;
use crate::lifecycle::bring_up;
use crate::mad::{MadAddress, MadQueue, MadService, MadSink, NoMads};
use crate::multicast::Groups;
use crate::object::{Pd, Uar};
use crate::path::Path;
use crate::poller::{CompletionEvents, EventPoller};
use crate::port::{Gid, PortAttributes, Ports, node_info};
use crate::profile::Profile;
use crate::qp::{Qp, QpConfig, QpRights};
use crate::queues::{CompletionQueue, QueuePair, QueuePairConfig, SharedReceiveQueue};
use crate::region::{Access, Region, RegionConfig, RegionInfo, RegisteredMemory};
use crate::shared::Shared;
use crate::srq::{Srq, SrqConfig};
use crate::window::{Window, WindowKind};
use crate::xrc::Xrcd;

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

/// Input modifier of SET_NODE.
const SET_NODE_MODIFIER: u32 = 1;
/// Completion event queues that the driver makes by default, at most.
const DEFAULT_COMPLETION_EQS: u16 = 4;

/// How a device is to be used.
#[derive(Clone)]
pub struct Config {
    /// How many objects of each kind there may be.
    pub profile: Profile,
    /// Event queues for completions, at least one. Completion queues name one of them.
    pub completion_eqs: u16,
    /// How completion events come: each of those event queues has a thread, or none has.
    pub completion_events: CompletionEvents,
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
            completion_events: CompletionEvents::default(),
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
            .field("completion_events", &self.completion_events)
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
    pub(crate) mads: Option<MadService>,
    pub(crate) threads: Vec<EventThread>,
    pub(crate) poller: Option<EventPoller>,
    pub(crate) queues: Vec<EventQueue>,
    pub(crate) ports: Arc<Ports>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) closed: bool,
}

impl Hca {
    /// Whether a device with this PCI vendor and device id is one that this driver knows.
    pub fn knows(vendor: u16, device: u16) -> bool {
        vendor == VENDOR_ID && DEVICES.contains(&DeviceId(device))
    }

    /// Resets a device and brings it up.
    ///
    /// # Errors
    /// The device is none that the driver knows, has another owner, doesn't answer, or says something that
    /// can't be; or the host lacks memory. The device has been reset again then.
    pub fn open(device: Arc<dyn PciDevice>, config: &Config) -> Result<Self> {
        let identity = device.identity();
        if !Self::knows(identity.vendor, identity.device) {
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

    /// Gives the device up, which doesn't answer any more: commands fail at once from now on, also those under way.
    /// [`crate::Event::Fatal`] follows. What remains is [`Hca::close`].
    pub fn give_up(&self) {
        self.shared.commands.kill();
    }

    /// The firmware.
    pub fn firmware(&self) -> &Firmware {
        &self.shared.firmware
    }

    /// What the device can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.shared.caps
    }

    /// How many objects of each kind there may be: what was asked for, or what the device has.
    pub fn profile(&self) -> &Profile {
        &self.shared.layout.profile
    }

    /// What polls for completion events, the first time that it is asked for, if they are polled. It must be dropped
    /// before [`Hca::close`].
    pub fn take_event_poller(&mut self) -> Option<EventPoller> {
        self.poller.take()
    }

    /// Event queues for completions.
    pub fn completion_eqs(&self) -> usize {
        self.shared.completion_eqns.len()
    }

    /// Completion queues that each of those event queues has room for.
    pub fn completion_eq_room(&self) -> u32 {
        self.shared.completion_eq_room
    }

    /// What the device says of itself to a subnet manager.
    ///
    /// # Errors
    /// It doesn't tell.
    pub fn node_info(&self) -> Result<NodeInfo> {
        node_info(&self.shared.commands, &self.shared.caps)
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

    /// A memory window that isn't bound.
    ///
    /// # Errors
    /// The device has no such windows, none is left, or it refuses it.
    pub fn window(&self, pd: &Pd, kind: WindowKind) -> Result<Window> {
        Window::new(&self.shared, pd, kind)
    }

    /// A region of at most so many pages that work requests register, for the driver's own use.
    ///
    /// # Errors
    /// The device has no such regions, none or no memory is left, or it refuses it.
    pub fn fast_region(&self, pd: &Pd, pages: u32) -> Result<FastRegion> {
        FastRegion::new(&self.shared, pd, pages)
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
    /// the driver's, or by [`EventPoller::poll`]: it must be quick.
    ///
    /// # Errors
    /// The config isn't one of a completion queue, none is left, or the device refuses it.
    pub fn cq(&self, config: &CqConfig<'_>, notify: impl Fn() + Send + Sync + 'static) -> Result<Cq> {
        let number = self.shared.numbers.cqs.take()?;
        Cq::new(&self.shared, number, config, &self.shared.completion_eqns, Box::new(notify))
    }

    /// What arms a completion queue, not more often than its event queue has room for. It must be dropped before the
    /// queue is destroyed.
    ///
    /// # Errors
    /// Its UAR page isn't in the BAR.
    pub fn arm_doorbell(&self, cq: &Cq) -> Result<ArmDoorbell> {
        let queue = self.queues.iter().find(|queue| queue.eqn() == cq.eqn());
        let ring = queue.ok_or(Error::argument("EQ number", cq.eqn()))?.ring();
        Ok(ArmDoorbell::new(Arc::clone(ring), cq.doorbell()?))
    }

    /// A shared receive queue in anybody's memory.
    ///
    /// # Errors
    /// The config isn't one of a shared receive queue, none is left, or the device refuses it.
    pub fn srq(&self, config: &SrqConfig<'_>) -> Result<Srq> {
        let number = self.shared.numbers.srqs.take()?;
        Srq::new(&self.shared, number, config)
    }

    /// An XRC domain.
    ///
    /// # Errors
    /// The device has none, or none is left.
    pub fn xrcd(&self) -> Result<Xrcd> {
        Xrcd::new(&self.shared)
    }

    /// The end of extended connections that receives, in RESET: what comes goes to the shared receive queues of
    /// its domain.
    ///
    /// # Errors
    /// None is left.
    pub fn xrc_target(&self, xrcd: &Xrcd) -> Result<Qp> {
        let number = self.shared.numbers.qps.take()?;
        Qp::xrc_target(&self.shared, number, xrcd)
    }

    /// A queue pair in anybody's memory, in RESET.
    ///
    /// # Errors
    /// The config isn't one of a queue pair, or none is left.
    pub fn qp(&self, config: &QpConfig<'_>) -> Result<Qp> {
        let caps = &self.shared.caps;
        let offered = match config.service {
            ServiceType::RC | ServiceType::UD => true,
            ServiceType::UC => caps.has_uc,
            ServiceType::XRC => caps.xrcds.is_some(),
            _ => false,
        };
        if !offered {
            return Err(Error::argument("service of a queue pair", config.service.0));
        }
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
        SharedReceiveQueue::new(&self.shared, pd, (requests, sges), None)
    }

    /// A shared receive queue for extended connections of a domain, that this process posts to; what comes
    /// completes in `cq`.
    ///
    /// # Errors
    /// As for [`Hca::shared_receive_queue`].
    pub fn xrc_receive_queue(
        &self,
        (pd, xrcd): (&Pd, &Xrcd),
        cq: &CompletionQueue,
        requests: u32,
        sges: u32,
    ) -> Result<SharedReceiveQueue> {
        SharedReceiveQueue::new(&self.shared, pd, (requests, sges), Some((xrcd, cq)))
    }

    /// A queue pair that this process posts to, in RESET.
    ///
    /// # Errors
    /// No memory or queue pair is left.
    pub fn queue_pair(&self, config: &QueuePairConfig<'_>) -> Result<QueuePair> {
        self.queue_pair_with(config, QpRights::default())
    }

    /// The same, whose requests may do what is not for everybody.
    ///
    /// # Errors
    /// As for [`Hca::queue_pair`]; or the device doesn't have that, or not for such a queue pair.
    pub fn queue_pair_with(&self, config: &QueuePairConfig<'_>, rights: QpRights) -> Result<QueuePair> {
        QueuePair::new(&self.shared, config, rights)
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mlx4_wire::mad::portinfo::PortState;

    use super::*;
    use crate::testing::Bench;

    /// As on a real subnet, a subnet manager alone doesn't make a port ACTIVE.
    #[test]
    fn port_whose_driver_does_not_answer_qp0_stays_in_init() {
        let bench = Bench::new(&Config { ports: false, ..Config::default() });
        Ports::init(&bench.hca.shared.commands, 1).unwrap();
        let state = || bench.hca.port(1).unwrap().state;
        let start = Instant::now();
        while state() != PortState::INIT {
            assert!(start.elapsed() < Duration::from_secs(10), "the link doesn't come up");
        }
        // Several times what the subnet manager takes for a port that answers.
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(state(), PortState::INIT);
        bench.hca.close().unwrap();
    }
}
