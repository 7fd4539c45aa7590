//! What the driver does when the device fails, doesn't answer, or isn't given back.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use common::end::End;
use common::{Card, PATIENCE, Tampered, Untrue, config, fabric};
use mlx4::{
    Access, Attributes, CommandFailure, Config, CqConfig, Error, Event, Hca, Pd, QueuePairConfig,
    RingMemoryPages, Timeouts, Uar,
};
use mlx4_queue::geometry::{SendSize, Service};
use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::ctx::qp::QpState;
use mlx4_wire::regs::{HCR_BYTES, HCR_OFFSET};

const CONTROL: u64 = HCR_OFFSET + HCR_BYTES - 4;
const OPCODE: u32 = 0xfff;
const GO: u32 = 1 << 23;
const EVENT: u32 = 1 << 22;

fn impatient() -> Config {
    let short = Duration::from_millis(200);
    Config { timeouts: Timeouts { post: short, short, medium: short, long: short }, ports: false, ..config() }
}

#[test]
fn failed_firmware_is_noticed_and_told_and_the_device_can_be_opened_again() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0031_0000, 1);
    let before = card.dump();
    let (sender, events) = std::sync::mpsc::channel();
    let sink = Arc::new(common::Events::new(sender));
    let config = Config { events: sink, health_interval: Duration::from_millis(20), ..config() };
    let hca = Hca::open(card.seam(), &config).unwrap();
    card.device.hca().fail_firmware(0x1234);
    while events.recv_timeout(PATIENCE).unwrap() != Event::Fatal {}
    let error = hca.port(1).unwrap_err();
    assert!(error.to_string().contains("has failed or was closed"), "{error}");
    assert!(hca.close().is_err());
    assert_eq!(card.dump(), before);
    assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
    let hca = Hca::open(card.seam(), &config).unwrap();
    hca.close().unwrap();
}

#[test]
fn command_that_is_never_accepted_stops_all_commands() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0032_0000, 1);
    let stuck = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stuck);
    let device = Tampered::new(&card, move |offset, value| {
        if offset == CONTROL && flag.load(Ordering::SeqCst) { value | GO } else { value }
    });
    let (sender, events) = std::sync::mpsc::channel();
    let sink = Arc::new(common::Events::new(sender));
    let config = Config { events: sink, health_interval: Duration::from_millis(20), ..impatient() };
    let hca = Hca::open(device, &config).unwrap();
    stuck.store(true, Ordering::SeqCst);
    let failure = |error: Error| match error {
        Error::Command(error) => error.failure,
        other => panic!("{other}"),
    };
    assert!(matches!(failure(hca.port(1).unwrap_err()), CommandFailure::Busy(_)));
    assert!(matches!(failure(hca.port(1).unwrap_err()), CommandFailure::Dead));
    while events.recv_timeout(PATIENCE).unwrap() != Event::Fatal {}
    assert!(hca.close().is_err());
    assert_eq!(card.device.dma().quarantined(), 0, "the reset has freed everything");
}

#[test]
fn command_whose_event_is_lost_costs_its_place_and_no_other() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0033_0000, 1);
    let before = card.dump();
    let lose = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&lose);
    // The device is told to report no event, so the driver waits in vain.
    let device = Tampered::writing(&card, move |offset, value| {
        if offset == CONTROL && flag.swap(false, Ordering::SeqCst) { value & !EVENT } else { value }
    });
    let hca = Hca::open(device, &impatient()).unwrap();
    let pd = hca.pd().unwrap();
    let uar = hca.uar().unwrap();
    lose.store(true, Ordering::SeqCst);
    let error = hca.port(1).unwrap_err();
    assert!(error.to_string().contains("did not end within"), "{error}");
    hca.port(1).unwrap();
    // One in the middle of making an object: its memory must stay mapped, since the device may have it.
    let memory = hca.memory(&pd, 4096, Access::LOCAL).unwrap();
    lose.store(true, Ordering::SeqCst);
    assert!(hca.completion_queue(16, &uar, 0, || {}).is_err());
    assert_ne!(card.device.dma().quarantined(), 0);
    memory.destroy().unwrap();
    let in_use = hca.close();
    assert!(in_use.is_ok() || matches!(in_use, Err(Error::InUse(_))), "{in_use:?}");
    card.device.reset().unwrap();
    assert_eq!(card.dump(), before);
    assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
}

#[test]
fn objects_in_use_at_close_are_counted_and_the_device_is_reset() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0034_0000, 1);
    let before = card.dump();
    let host = card.open();
    let end = End::new(&host.hca, Service::Rc);
    let error = host.hca.close().unwrap_err();
    assert!(matches!(error, Error::InUse(3)), "{error}");
    assert_eq!(card.dump(), before);
    assert!(end.qp.destroy().is_ok(), "it never left RESET");
    assert!(end.cq.destroy().is_err());
    assert!(end.memory.destroy().is_err());
    assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
}

#[test]
fn queues_that_queue_pairs_still_use_are_given_back() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_003b_0000, 1);
    let hca = Hca::open(card.seam(), &Config { ports: false, ..config() }).unwrap();
    let (pd, uar) = (hca.pd().unwrap(), hca.uar().unwrap());
    let cq = hca.completion_queue(16, &uar, 0, || {}).unwrap();
    let srq = hca.shared_receive_queue(&pd, 16, 1).unwrap();
    let config = QueuePairConfig {
        service: Service::Rc,
        pd: &pd,
        uar: &uar,
        send_cq: &cq,
        receive_cq: &cq,
        send: SendSize { requests: 4, sges: 1, inline: 0 },
        receives: 0,
        receive_sges: 0,
        srq: Some(&srq),
    };
    let qp = hca.queue_pair(&config).unwrap();
    let srq = srq.destroy_unused().unwrap().expect("the queue pair has it");
    let cq = cq.destroy_unused().unwrap().expect("the queue pair has it");
    srq.post(1, &[]).unwrap();
    qp.destroy().unwrap();
    assert!(srq.destroy_unused().unwrap().is_none());
    assert!(cq.destroy_unused().unwrap().is_none());
    hca.close().unwrap();
    assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
}

#[test]
fn device_that_vanishes_is_noticed() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0035_0000, 1);
    let gone = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&gone);
    let device =
        Tampered::new(&card, move |_, value| if flag.load(Ordering::SeqCst) { u32::MAX } else { value });
    let (sender, events) = std::sync::mpsc::channel();
    let sink = Arc::new(common::Events::new(sender));
    let config = Config { events: sink, health_interval: Duration::from_millis(20), ..impatient() };
    let hca = Hca::open(device, &config).unwrap();
    gone.store(true, Ordering::SeqCst);
    while events.recv_timeout(PATIENCE).unwrap() != Event::Fatal {}
    assert!(hca.pkeys(1).is_err());
    assert!(hca.close().is_err());
}

#[test]
fn commands_of_many_threads_are_in_flight_at_once() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0036_0000, 1);
    let host = card.open();
    let hca = &host.hca;
    let pd = hca.pd().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let pd = &pd;
            scope.spawn(move || {
                for round in 0..40u32 {
                    if (thread + round) % 2 == 0 {
                        let memory = hca.memory(pd, 64 << 10, Access::LOCAL).unwrap();
                        memory.destroy().unwrap();
                    } else {
                        assert_eq!(hca.port(1).unwrap().gids, 128);
                    }
                }
            });
        }
    });
    host.hca.close().unwrap();
    assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
}

/// Makes one object of each kind, and takes them back.
fn make_and_unmake(hca: &Hca, pd: &Pd, uar: &Uar, unmaking: &dyn Fn()) -> mlx4::Result<()> {
    // Large enough for chunks of ICM of its own.
    let memory = hca.memory(pd, 300 << 20, Access::LOCAL);
    let cq = hca.completion_queue(16, uar, 0, || {});
    let resized = cq.as_ref().map_or(Ok(()), |cq| cq.resize(100));
    let srq = hca.shared_receive_queue(pd, 16, 1);
    let qp = cq.as_ref().ok().map(|cq| {
        let config = QueuePairConfig {
            service: Service::Rc,
            pd,
            uar,
            send_cq: cq,
            receive_cq: cq,
            send: SendSize { requests: 4, sges: 1, inline: 0 },
            receives: 4,
            receive_sges: 1,
            srq: None,
        };
        let qp = hca.queue_pair(&config)?;
        let init = Attributes {
            port: Some(1),
            pkey_index: Some(0),
            access: Some(Access::ALL),
            ..Attributes::default()
        };
        let result = qp.modify(QpState::INIT, &init);
        Ok::<_, Error>((qp, result))
    });
    unmaking();
    let mut result = resized;
    if let Some(qp) = qp {
        match qp {
            Ok((qp, modified)) => result = result.and(modified).and(qp.destroy()),
            Err(error) => result = result.and(Err(error)),
        }
    }
    result = result.and(srq.and_then(mlx4::SharedReceiveQueue::destroy));
    result = result.and(cq.and_then(mlx4::CompletionQueue::destroy));
    result.and(memory.and_then(mlx4::RegisteredMemory::destroy))
}

/// Tampers with the control word of one command: the one that comes after so many others.
struct Nth {
    left: AtomicI32,
    change: fn(u32) -> u32,
}

impl Nth {
    fn device(card: &Card, change: fn(u32) -> u32) -> (Arc<Tampered>, Arc<Self>) {
        let nth = Arc::new(Self { left: AtomicI32::new(-1), change });
        let this = Arc::clone(&nth);
        let device = Tampered::writing(card, move |offset, value| {
            let now = offset == CONTROL && this.left.fetch_sub(1, Ordering::SeqCst) == 0;
            if now { (this.change)(value) } else { value }
        });
        (device, nth)
    }

    fn set(&self, left: i32) {
        self.left.store(left, Ordering::SeqCst);
    }
}

#[test]
fn whichever_command_is_refused_everything_is_given_back() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0037_0000, 1);
    let before = card.dump();
    // An opcode that no device has.
    let (device, nth) = Nth::device(&card, |control| control & !0xfff | 0x7ff);
    let hca = Hca::open(device, &impatient()).unwrap();
    let (pd, uar) = (hca.pd().unwrap(), hca.uar().unwrap());
    let (running, objects) = (card.dump(), hca.objects());
    let mut refused = 0;
    for command in 0.. {
        nth.set(command);
        let result = make_and_unmake(&hca, &pd, &uar, &|| nth.set(-1));
        assert_eq!((card.dump(), hca.objects()), (running.clone(), objects), "command {command} was refused");
        assert_eq!(card.device.dma().quarantined(), 0, "command {command} was refused");
        match result {
            Ok(()) => break,
            Err(error) => assert!(error.to_string().contains("BAD_OP"), "{error}"),
        }
        refused += 1;
    }
    assert!(refused >= 8, "{refused}");
    hca.close().unwrap();
    assert_eq!(card.dump(), before);
    assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
}

#[test]
fn whichever_command_is_not_answered_no_memory_is_taken_from_the_device() {
    let fabric = fabric();
    for command in 0..9u8 {
        let card = Card::new(&fabric, 0x0002_c903_0038_0000 + 0x100 * u64::from(command), 1);
        let before = card.dump();
        let (device, nth) = Nth::device(&card, |control| control & !EVENT);
        let hca = Hca::open(device, &impatient()).unwrap();
        let (pd, uar) = (hca.pd().unwrap(), hca.uar().unwrap());
        nth.set(command.into());
        let error = make_and_unmake(&hca, &pd, &uar, &|| nth.set(-1)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
        let _in_use = hca.close();
        card.device.reset().unwrap();
        assert_eq!(card.dump(), before);
        assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
    }
}

#[test]
fn whichever_command_fails_in_the_device_itself_no_memory_is_taken_from_it() {
    let fabric = fabric();
    let opcodes =
        [Opcode::MAP_ICM, Opcode::SW2HW_MPT, Opcode::SW2HW_CQ, Opcode::MODIFY_CQ, Opcode::SW2HW_SRQ];
    for (opcode, guid) in opcodes.into_iter().zip(0x0002_c903_003a_0000..) {
        let card = Card::new(&fabric, guid, 1);
        let before = card.dump();
        let untrue = Untrue::of(&card);
        let hca = Hca::open(card.seam(), &impatient()).unwrap();
        let (pd, uar) = (hca.pd().unwrap(), hca.uar().unwrap());
        untrue.fail(opcode, 1);
        let error = make_and_unmake(&hca, &pd, &uar, &|| ()).unwrap_err();
        assert_eq!(error.to_string(), format!("{opcode} failed with {}", Status::INTERNAL_ERR));
        assert_ne!(card.device.dma().quarantined(), 0, "{opcode}: the device may have the memory");
        let _in_use = hca.close();
        card.device.reset().unwrap();
        assert_eq!(card.dump(), before);
        assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
    }
}

/// log2 of the entries of rings whose translation entries fill whole chunks of ICM, and of small ones; and of
/// their bytes per entry.
const LOG2_LARGE: u8 = 22;
const LOG2_SMALL: u8 = 7;
const LOG2_CQE: u8 = 5;

/// The pages of a ring, all of them the same one.
fn same_page(page: u64, log2_entries: u8) -> Vec<u64> {
    vec![page; 1 << (log2_entries + LOG2_CQE - 12)]
}

#[test]
fn memory_of_tables_that_the_device_has_kept_is_taken_back_before_it_is_used_again() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_003b_0000, 1);
    let refuse = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&refuse);
    // Another opcode, which the device doesn't know, in the place of the next UNMAP_ICM.
    let device = Tampered::writing(&card, move |offset, value| {
        let unmap = offset == CONTROL && value & OPCODE == u32::from(Opcode::UNMAP_ICM.0);
        if unmap && flag.swap(false, Ordering::SeqCst) { value | OPCODE } else { value }
    });
    let profile = mlx4::Profile { wide_cqes: false, ..impatient().profile };
    let hca = Hca::open(device, &Config { profile, ..impatient() }).unwrap();
    let (uar, memory) = (hca.uar().unwrap(), card.device.dma().allocate(2 << 12, 1 << 12).unwrap());
    let pages = same_page(memory.iova(), LOG2_LARGE);
    let config = CqConfig {
        log2_entries: LOG2_LARGE,
        ring: RingMemoryPages { pages: &pages, log2_page: 12 },
        record: memory.iova() + (1 << 12),
        uar: &uar,
        ignore_overrun: false,
        vector: 0,
    };
    let cq = hca.cq(&config, || {}).unwrap();
    refuse.store(true, Ordering::SeqCst);
    let error = cq.destroy().unwrap_err();
    assert!(error.to_string().starts_with("UNMAP_ICM failed with") && !error.leaves_open(), "{error}");
    assert!(!refuse.load(Ordering::SeqCst));
    // It is the first that is free, so the next queue gets it.
    hca.cq(&config, || {}).unwrap().destroy().unwrap();
    assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
    memory.release().unwrap();
    hca.close().unwrap();
    assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
}

#[test]
fn queue_has_moved_although_the_device_does_not_give_back_what_was_of_its_old_ring() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0039_0000, 1);
    let untrue = Untrue::of(&card);
    let profile = mlx4::Profile { wide_cqes: false, ..impatient().profile };
    let hca = Hca::open(card.seam(), &Config { profile, ..impatient() }).unwrap();
    let (uar, memory) = (hca.uar().unwrap(), card.device.dma().allocate(2 << 12, 1 << 12).unwrap());
    let ring = |pages| RingMemoryPages { pages, log2_page: 12 };
    let [large, small] = [LOG2_LARGE, LOG2_SMALL].map(|log2| same_page(memory.iova(), log2));
    let config = CqConfig {
        log2_entries: LOG2_LARGE,
        ring: ring(&large),
        record: memory.iova() + (1 << 12),
        uar: &uar,
        ignore_overrun: false,
        vector: 0,
    };
    let cq = hca.cq(&config, || {}).unwrap();
    untrue.fail(Opcode::UNMAP_ICM, 1);
    cq.resize(LOG2_SMALL, &ring(&small)).unwrap();
    assert!(untrue.is_done(), "the old ring had a chunk of ICM of its own");
    cq.destroy().unwrap();
    memory.release().unwrap();
    hca.close().unwrap();
    card.device.reset().unwrap();
    assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
}
