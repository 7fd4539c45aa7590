//! The daemon on the model with a hook in it, and two guests that don't know each other: the attacker, and the victim
//! whose memory and queues must stay as they are.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use integration::patience::until;
use mlx4_model::device::PciFunction;
use mlx4_model::hca::{Counters, Hca};
use mlx4_wire::cmd::Opcode;
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::ctx::qp::QpMailbox;
use mlx4_wire::doorbell::UAR_PAGE_BYTES;
use paraverbsd::Daemon;
use paraverbsd::config::{Config, Device, GuestEntry, GuestKind};
use tempfile::TempDir;
use virtio_rdma::event::AsyncEvent;
use virtio_rdma::queue::EVENT;
use zerocopy::FromBytes;

use super::guest::{Guest, at};
use super::hook::{Hook, install};
use super::memory::Seals;
use super::objects::{DATA, DATA_BYTES, Objects, RECORDS, SPARE};
use super::queue::{Descriptor, WRITE};

/// What the victim's memory holds.
pub(crate) const SECRET: u8 = 0xa5;
/// Where the second half of registered memory begins: writes go there.
pub(crate) const SINK: u64 = DATA + DATA_BYTES / 2;
/// Bytes that an attack reads or writes.
pub(crate) const LOOT: u32 = 256;
/// Where events arrive, and how many fit.
const EVENTS: u64 = SPARE + 0x10_0000;
const EVENT_BUFFERS: u16 = 8;

/// Everything.
pub(crate) struct Rig {
    pub(crate) hook: Arc<Hook>,
    daemon: Daemon,
    folder: TempDir,
}

impl Rig {
    pub(crate) fn start() -> Result<Self> {
        let _already = env_logger::builder().is_test(true).try_init();
        let folder = tempfile::tempdir()?;
        let entry = |name: &str| GuestEntry::new(name, folder.path().join(name), GuestKind::Vm);
        let guests = ["attacker", "victim", "probe"].map(entry).to_vec();
        let config = Config { device: Device::default(), fabric_sockets: Vec::new(), guests, spin: None };
        let daemon = Daemon::start(&config)?;
        let hook = install(daemon.model().context("the device is no model")?);
        Ok(Self { hook, daemon, folder })
    }

    /// A guest on a socket.
    pub(crate) fn guest(&self, name: &str) -> Result<Guest> {
        Guest::connect(&self.folder.path().join(name), Seals::Shrink)
    }

    /// The one who attacks, with nothing yet.
    pub(crate) fn attacker(&self) -> Result<Guest> {
        self.guest("attacker")
    }

    /// The HCA.
    pub(crate) fn model(&self) -> Result<&Hca> {
        self.daemon.model().map(Arc::as_ref).context("the device is no model")
    }

    pub(crate) fn counters(&self) -> Result<&Counters> {
        Ok(self.model()?.counters())
    }

    /// A store to a UAR page, as a guest makes it whose VMM has mapped the page.
    pub(crate) fn store(&self, page: u32, offset: u32, bytes: &[u8]) -> Result<()> {
        let address = u64::from(page) * u64::from(UAR_PAGE_BYTES) + u64::from(offset);
        self.model()?.bar_write(2, address, bytes);
        Ok(())
    }

    /// The UAR page of a queue pair that has been to INIT.
    pub(crate) fn uar_page(&self, qpn: u32) -> Result<u32> {
        let mailbox = self.hook.last::<QpMailbox>(Opcode::RST2INIT_QP, qpn).context("no such queue pair")?;
        Ok(mailbox.context.uar_page.number())
    }

    /// Events that an EQ has dropped.
    pub(crate) fn dropped_events(&self, eqn: u32) -> Result<u64> {
        let dump: serde_json::Value = serde_json::from_str(&self.model()?.dump())?;
        let eqs = dump["eqs"].as_array().context("no EQs")?;
        let eq = eqs.iter().find(|eq| eq["eqn"] == eqn).context("no such EQ")?;
        eq["dropped"].as_u64().context("a count")
    }

    /// Bytes of memory of guests that are gone, which the HCA may still use.
    pub(crate) fn quarantined_bytes(&self) -> u64 {
        self.daemon.status().quarantined_bytes
    }

    /// The HCA's firmware fails, and the daemon resets it and brings it up again.
    pub(crate) fn fail_hca(&self) -> Result<()> {
        let lives = || self.hook.commands().iter().filter(|opcode| **opcode == Opcode::INIT_HCA).count();
        let before = lives();
        self.model()?.fail_firmware(0x1234);
        until("the HCA works again", || {
            let active = self.daemon.status().ports.iter().all(|port| port.active);
            Ok(lives() > before && self.is_running() && active)
        })
    }

    /// Waits until the daemon has done with a guest that has gone: before that it answers no other one.
    pub(crate) fn gone(&self, name: &str) -> Result<()> {
        Guest::bare(&self.folder.path().join(name), Seals::Shrink).map(drop)
    }

    /// Whether the HCA works.
    pub(crate) fn is_running(&self) -> bool {
        self.daemon.status().state == paraverbsd::HcaState::Running
    }

    /// Accesses to memory that the HCA tried and was refused.
    pub(crate) fn refused_accesses(&self) -> u64 {
        self.daemon.refused_accesses()
    }

    /// Ends everything: the HCA has gone on through it all, and nothing is left in it.
    pub(crate) fn stop(self) -> Result<()> {
        ensure!(self.is_running(), "the HCA has failed");
        let model = Arc::clone(self.daemon.model().context("the device is no model")?);
        self.daemon.stop()?;
        let left: serde_json::Value = serde_json::from_str(&model.dump())?;
        ensure!(left["running"] == false && left["icm_pages"] == 0, "left in the model: {left}");
        Ok(())
    }
}

/// The one who is attacked.
pub(crate) struct Victim {
    pub(crate) guest: Guest,
    pub(crate) objects: Objects,
    /// The bus address of its guest-physical address 0.
    window: u64,
}

impl Victim {
    /// Two queue pairs connected to each other, and memory full of secrets.
    pub(crate) fn new(rig: &Rig) -> Result<Self> {
        let mut guest = rig.guest("victim")?;
        guest.memory.write(DATA, &vec![SECRET; usize::try_from(DATA_BYTES)?])?;
        let objects = Objects::connected(&mut guest)?;
        let cq: CqContext =
            rig.hook.last(Opcode::SW2HW_CQ, objects.cq.cqn.get()).context("the victim's CQ wasn't seen")?;
        Ok(Self { guest, objects, window: cq.record_base() - at(RECORDS) })
    }

    /// The bus address of an offset of its memory.
    pub(crate) fn bus(&self, offset: u64) -> u64 {
        self.window + at(offset)
    }

    /// Its registered memory is what it was.
    pub(crate) fn is_untouched(&self) -> Result<bool> {
        let data = self.guest.memory.read(DATA, usize::try_from(DATA_BYTES)?)?;
        Ok(data.iter().all(|byte| *byte == SECRET))
    }

    /// Nothing has happened to it: its memory is what it was, and its queues work.
    pub(crate) fn is_well(&mut self) -> Result<()> {
        ensure!(self.is_untouched()?, "the victim's memory was written");
        ensure!(self.objects.poll(&self.guest)?.is_none(), "the victim has a completion that is not its own");
        self.objects.works(&self.guest)
    }
}

/// Gives the device room for events.
pub(crate) fn expect_events(guest: &mut Guest) -> Result<()> {
    for index in 0..EVENT_BUFFERS {
        let buffer = Descriptor::new(at(EVENTS + 32 * u64::from(index)), 32, WRITE, 0);
        guest.queues[usize::from(EVENT)].describe(&guest.memory, index, buffer)?;
        guest.offer(EVENT, index)?;
    }
    Ok(())
}

/// The next asynchronous event.
pub(crate) fn event(guest: &mut Guest) -> Result<AsyncEvent> {
    let (head, length) = guest.used(EVENT)?;
    ensure!(length == 32, "an event of {length} bytes");
    let bytes = guest.memory.read(EVENTS + 32 * u64::from(head), 32)?;
    AsyncEvent::read_from_bytes(&bytes).ok().context("an event")
}
