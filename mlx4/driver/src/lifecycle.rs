//! Bring-up and teardown of a device, step by step.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mlx4_pci::PciDevice;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::fw::{ModStatCfg, ModStatCfgOp};
use mlx4_wire::cmd::misc::NOP_AT_ONCE;
use mlx4_wire::eqe::EventType;
use mlx4_wire::regs::OWNER_OFFSET;
use zerocopy::{FromZeros, IntoBytes};

use crate::arm::EVENTS;
use crate::caps::{Capabilities, Firmware};
use crate::cmd::{ALL_ONES, Command, Commands, Ends, Input};
use crate::eq::{EqConfig, EventHandler, EventQueue, EventReader, EventThread, SPARE};
use crate::error::{Error, Result};
use crate::event::{ASYNC_EVENTS, Bounds};
use crate::handlers::{AsyncHandler, CommandHandler, CompletionHandler};
use crate::hca::{Config, Hca};
use crate::health::Health;
use crate::icm::{FirmwareMemory, Icm};
use crate::mad::MadService;
use crate::poller::{CompletionEvents, EventPoller};
use crate::port::Ports;
use crate::profile::Layout;
use crate::registry::Registry;
use crate::shared::{AllNumbers, Shared};

/// Vectors of the event queues for commands and asynchronous events; completions have those behind.
const COMMAND_VECTOR: u16 = 0;
const ASYNC_VECTOR: u16 = 1;
const FIRST_COMPLETION_VECTOR: u16 = 2;
/// Entries of the event queue for commands.
const COMMAND_ENTRIES: u32 = 128;
/// Entries of that for asynchronous events: for those of ports and the device, and most of all together.
const OTHER_EVENTS: u32 = 1024;
const MOST_EVENTS: u32 = (1 << 16) - SPARE;
/// How long a device may take until it answers after a reset, and how often it is asked.
const RESET_PATIENCE: Duration = Duration::from_secs(2);
const RESET_PAUSE: Duration = Duration::from_millis(1);

impl Hca {
    /// Stops the device in the reverse order of bring-up. All is tried; the first failure is told.
    pub(crate) fn shut_down(mut self) -> Result<()> {
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
        self.poller = None;
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

fn command_mask() -> u64 {
    EventType::COMMAND.mask()
}

fn async_mask(caps: &Capabilities) -> u64 {
    let mask = ASYNC_EVENTS.iter().fold(0, |mask, event| mask | event.mask());
    if caps.port_management_events { mask | EventType::PORT_MANAGEMENT_CHANGE.mask() } else { mask }
}

/// Claims a device that was just reset, as soon as it answers.
fn claim(device: &Arc<dyn PciDevice>) -> Result<()> {
    let name = || device.identity().name.clone();
    let deadline = Instant::now() + RESET_PATIENCE;
    loop {
        match device.register(OWNER_OFFSET)? {
            0 => return Ok(()),
            ALL_ONES if Instant::now() >= deadline => return Err(Error::Gone(name())),
            ALL_ONES => std::thread::sleep(RESET_PAUSE),
            owner => return Err(Error::Owned { name: name(), owner }),
        }
    }
}

/// Brings up a device that was just reset.
pub(crate) fn bring_up(device: &Arc<dyn PciDevice>, config: &Config) -> Result<Hca> {
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
    let eqs = CompletionEqs::connect(device, config, &caps)?;
    let shared = Arc::new(Shared {
        device: Arc::clone(device),
        numbers: AllNumbers::new(&caps, &layout),
        key_variant: AtomicU8::new(1),
        regions: Registry::new(layout.profile.log2_mpts),
        completions: Arc::new(Registry::new(layout.profile.log2_cqs)),
        queues: Arc::new(Registry::new(layout.profile.log2_qps)),
        shared_rings: Arc::new(Registry::new(layout.profile.log2_srqs)),
        completion_eqns: eqs.shared(&caps).collect(),
        own_completion_eqns: eqs.own(&caps).collect(),
        completion_eq_room: completion_eq_room(&layout, &caps),
        groups: Mutex::new(()),
        objects: AtomicUsize::new(0),
        xrc_uar: Mutex::new(None),
        commands,
        firmware,
        caps,
        layout,
        area,
        icm,
    });
    let ports = Arc::new(Ports::new(&shared.caps));
    let mut hca = Hca {
        mads: None,
        threads: Vec::new(),
        poller: None,
        queues: Vec::new(),
        ports,
        shared,
        closed: true,
    };
    start_events(&mut hca, config, &eqs)?;
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

/// Completion queues that an event queue has room for: all, or as many as the device's largest one takes.
fn completion_eq_room(layout: &Layout, caps: &Capabilities) -> u32 {
    let most = (1u32 << caps.log2_max_eqes).saturating_sub(SPARE) / EVENTS;
    most.min((1u32 << layout.profile.log2_cqs).saturating_sub(caps.cqs.reserved))
}

/// Which event queues there are: each with the interrupt of its place, then those that are polled.
#[derive(Clone, Copy, Debug)]
struct CompletionEqs {
    vectors: u16,
    /// Behind those with an interrupt.
    polled: u16,
}

impl CompletionEqs {
    /// Connects as many interrupts as there are to be event queues with one.
    fn connect(device: &Arc<dyn PciDevice>, config: &Config, caps: &Capabilities) -> Result<Self> {
        let eqs = (1u32 << caps.eqs.log2).saturating_sub(caps.eqs.reserved);
        let eqs = u16::try_from(eqs).unwrap_or(u16::MAX);
        let most = device.identity().vectors.min(eqs);
        let (interrupting, polled) = match config.completion_events {
            CompletionEvents::Interrupts => (config.completion_eqs.max(1), 0),
            CompletionEvents::Polled => (1, config.completion_eqs.max(1)),
        };
        let vectors = FIRST_COMPLETION_VECTOR.saturating_add(interrupting).min(most);
        if vectors <= FIRST_COMPLETION_VECTOR {
            return Err(Error::Exhausted("interrupt vector"));
        }
        let left = eqs.saturating_sub(vectors).min(polled);
        if left == 0 && polled != 0 {
            return Err(Error::Exhausted("completion EQ"));
        }
        device.enable_interrupts(vectors)?;
        Ok(Self { vectors, polled: left })
    }

    /// Places of those that are polled.
    fn polled(&self) -> Range<u16> {
        self.vectors..self.vectors + self.polled
    }

    /// Numbers of those for completion queues that this process polls, and the driver's own.
    fn own(&self, caps: &Capabilities) -> impl Iterator<Item = u32> {
        let first = caps.eqs.reserved;
        (FIRST_COMPLETION_VECTOR..self.vectors).map(move |place| first + u32::from(place))
    }

    /// Numbers of those for all other completion queues.
    fn shared(&self, caps: &Capabilities) -> impl Iterator<Item = u32> {
        let first = caps.eqs.reserved;
        let places = if self.polled == 0 { FIRST_COMPLETION_VECTOR..self.vectors } else { self.polled() };
        places.map(move |place| first + u32::from(place))
    }
}

/// Makes the event queues and their threads, and has commands reported by events from there on.
fn start_events(hca: &mut Hca, config: &Config, eqs: &CompletionEqs) -> Result<()> {
    let shared = Arc::clone(&hca.shared);
    let commands = &shared.commands;
    let profile = &shared.layout.profile;
    let bounds = Bounds {
        qps: 1 << profile.log2_qps,
        cqs: 1 << profile.log2_cqs,
        srqs: 1 << profile.log2_srqs,
        // At most 2.
        ports: u8::try_from(shared.caps.ports.len()).unwrap_or(0),
    };
    let make_at = |place: u16, vector, entries| {
        let config = EqConfig { eqn: shared.caps.eqs.reserved + u32::from(place), vector, entries };
        EventQueue::new(&shared.device, commands, &shared.icm, config)
    };
    let make = |vector, entries| make_at(vector, Some(vector), entries);
    let (queue, reader) = make(COMMAND_VECTOR, COMMAND_ENTRIES)?;
    let handler = CommandHandler { commands: Arc::clone(commands), sink: Arc::clone(&config.events) };
    add(hca, "mlx4-cmd".into(), COMMAND_VECTOR, (queue, reader), handler)?;
    let (queue, reader) = make(ASYNC_VECTOR, async_entries(&bounds, &shared.caps))?;
    let handler = AsyncHandler {
        sink: Arc::clone(&config.events),
        ports: Arc::clone(&hca.ports),
        bounds,
        commands: Arc::clone(commands),
        health: Health::new(Arc::clone(&shared.device), &shared.firmware),
        interval: config.health_interval,
        failed: false,
    };
    add(hca, "mlx4-async".into(), ASYNC_VECTOR, (queue, reader), handler)?;
    let handler = || {
        let (queues, sink) = (Arc::clone(&shared.completions), Arc::clone(&config.events));
        CompletionHandler { queues, bounds, sink }
    };
    let completion_entries = EVENTS * shared.completion_eq_room;
    for vector in FIRST_COMPLETION_VECTOR..eqs.vectors {
        let made = make(vector, completion_entries)?;
        let name = format!("mlx4-comp{}", vector - FIRST_COMPLETION_VECTOR);
        add(hca, name, vector, made, handler())?;
    }
    let mut readers = Vec::new();
    for place in eqs.polled() {
        let (queue, reader) = make_at(place, None, completion_entries)?;
        hca.queues.push(queue);
        readers.push(reader);
    }
    hca.poller = (!readers.is_empty()).then(|| EventPoller::new(readers, handler()));
    hca.queues[usize::from(COMMAND_VECTOR)].map(commands, command_mask(), false)?;
    hca.queues[usize::from(ASYNC_VECTOR)].map(commands, async_mask(&shared.caps), false)?;
    commands.use_events(true);
    // The first command that an event reports: it shows that interrupts come.
    Ok(commands.simple(Opcode::NOP, NOP_AT_ONCE)?)
}

/// Asynchronous events that there may be at once, so that objects that fail together cost nobody theirs: up to four of
/// each queue pair, and two of each shared receive queue.
fn async_entries(bounds: &Bounds, caps: &Capabilities) -> u32 {
    let Bounds { qps, cqs, srqs, .. } = bounds;
    let all = OTHER_EVENTS.saturating_add(4 * qps).saturating_add(2 * srqs).saturating_add(*cqs);
    all.min(MOST_EVENTS).min(1 << caps.log2_max_eqes.saturating_sub(1))
}

fn add(
    hca: &mut Hca,
    name: String,
    vector: u16,
    (queue, reader): (EventQueue, EventReader),
    handler: impl EventHandler + 'static,
) -> Result<()> {
    hca.queues.push(queue);
    let interrupt = hca.shared.device.interrupt(vector)?;
    hca.threads.push(EventThread::start(name, interrupt, reader, handler)?);
    Ok(())
}
