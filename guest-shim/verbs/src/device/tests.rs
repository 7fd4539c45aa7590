//! An open device whose other side is a test.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use virtio_rdma::Reason;
use virtio_rdma::doorbell::{AreaHeader, DoorbellPlace};
use virtio_rdma::event::{AsyncEvent as WireEvent, CompletionEvent, EventType as Code};
use virtio_rdma::queue::{CONTROL, EVENT, FIRST_KICK, FIRST_VECTOR};
use virtio_rdma::request::completion::CqCreated;
use virtio_rdma::request::domain::{PdAllocated, UarAllocated};
use virtio_rdma::request::memory::MrRegistered;
use virtio_rdma::request::query::{DeviceAttributes, QueryGid};
use virtio_rdma::request::{Body, Request};
use virtio_rdma::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::*;
use crate::channel::CompChannel;
use crate::cq::Cq;
use crate::event::{EventElement, EventType};
use crate::pd::Pd;
use crate::transport::testing::{Fake, GENERATION, Reply};

const PATIENCE: Duration = Duration::from_secs(30);

/// A device that makes one object after another, each with a number of its own.
fn willing() -> impl Fn(&Request<'_>) -> Reply {
    let objects = AtomicU32::new(0);
    move |request| {
        let number = objects.fetch_add(1, Ordering::Relaxed) + 1;
        let handle = U32::new(number);
        Reply::Answer(match request.body {
            Body::QueryDevice(_) => {
                let max_mr_size = U64::new(1 << 30);
                let attributes =
                    DeviceAttributes { max_cqe: U32::new(100), max_mr_size, ..FromZeros::new_zeroed() };
                attributes.as_bytes().to_vec()
            }
            Body::AllocPd(_) => PdAllocated { pd: handle, pdn: handle }.as_bytes().to_vec(),
            Body::AllocUar(_) => {
                let uar = UarAllocated { uar: handle, kick_queue: U16::new(0), ..FromZeros::new_zeroed() };
                uar.as_bytes().to_vec()
            }
            Body::RegMr(_) => {
                let mr = MrRegistered { mr: handle, lkey: handle, rkey: handle, ..FromZeros::new_zeroed() };
                mr.as_bytes().to_vec()
            }
            Body::CreateCq(_) => cq_created(number, DoorbellPlace::of_slot(number)),
            _ => Vec::new(),
        })
    }
}

fn cq_created(number: u32, arm: DoorbellPlace) -> Vec<u8> {
    CqCreated { cq: U32::new(number), cqn: U32::new(number + 0x80), arm }.as_bytes().to_vec()
}

/// A device that does what `special` says, and is willing where that says nothing.
fn open(special: impl Fn(&Request<'_>) -> Option<Reply> + Send + Sync + 'static) -> (Arc<Fake>, Arc<Open>) {
    let willing = willing();
    let fake = Arc::new(Fake::new(move |request| special(request).unwrap_or_else(|| willing(request))));
    let open = Open::new(Arc::<Fake>::clone(&fake)).unwrap();
    (fake, open)
}

fn gid(open: &Open) -> Result<()> {
    open.call(&QueryGid::new_zeroed()).map(|_| ())
}

fn is_lost(open: &Open) {
    let error = gid(open).unwrap_err();
    assert_eq!(error.errno(), libc::EIO, "{error}");
    assert!(open.loss().is_lost());
    let event = open.get_async_event(Deadline::after(Some(PATIENCE))).unwrap().map(|event| event.event_type);
    assert_eq!(event, Some(EventType::DeviceFatal));
    assert!(open.get_async_event(Deadline::after(Some(PATIENCE))).is_err());
}

#[test]
fn replies_in_any_order_find_their_threads() {
    let (fake, open) = open(|request| matches!(request.body, Body::QueryGid(_)).then_some(Reply::Keep));
    std::thread::scope(|threads| {
        let asked: Vec<_> = (0..40).map(|_| threads.spawn(|| gid(&open))).collect();
        // There is room for 32 of them; the others wait for it.
        let mut replied = 0;
        while replied < asked.len() {
            let kept = fake.kept();
            if kept >= 20.min(asked.len() - replied) {
                replied += kept;
                fake.reply_to_kept();
            }
            std::thread::yield_now();
        }
        for thread in asked {
            thread.join().unwrap().unwrap();
        }
    });
}

#[test]
fn refusal_has_errno_and_names() {
    let refuse = |request: &Request<'_>| match request.body {
        Body::AllocPd(_) => Some(Reply::Refuse(Reason::OBJECT_LIMIT)),
        Body::QueryGid(_) => Some(Reply::Refuse(Reason(0xee))),
        _ => None,
    };
    let (_fake, open) = open(refuse);
    let error = Pd::new(&open).unwrap_err();
    assert_eq!(error.errno(), libc::ENOMEM);
    assert!(error.to_string().starts_with("ALLOC_PD refused: OBJECT_LIMIT ("), "{error}");
    assert_eq!(gid(&open).unwrap_err().errno(), libc::EINVAL);
    assert!(!open.loss().is_lost());
}

#[test]
fn stale_generation_is_a_loss() {
    let stale = |request: &Request<'_>| {
        matches!(request.body, Body::QueryGid(_)).then_some(Reply::Refuse(Reason::STALE_GENERATION))
    };
    let (_fake, open) = open(stale);
    assert_eq!(gid(&open).unwrap_err().errno(), libc::EIO);
    is_lost(&open);
}

#[test]
fn reply_that_is_none_is_a_loss() {
    for bytes in [vec![], vec![0; 23], vec![0; 24], vec![0xff; 100], vec![0; 512]] {
        let garbage = move |request: &Request<'_>| {
            matches!(request.body, Body::QueryGid(_)).then(|| Reply::Bytes(bytes.clone()))
        };
        let (_fake, open) = open(garbage);
        assert_eq!(gid(&open).unwrap_err().errno(), libc::EIO);
        is_lost(&open);
    }
}

#[test]
fn broken_queues_are_a_loss_and_wake_whoever_waits() {
    for queue in [CONTROL, EVENT] {
        let (fake, open) = open(|request| matches!(request.body, Body::QueryGid(_)).then_some(Reply::Keep));
        std::thread::scope(|threads| {
            let waiting = threads.spawn(|| gid(&open));
            while fake.kept() == 0 {
                std::thread::yield_now();
            }
            fake.push_used(queue, 0x1234, 8);
            assert_eq!(waiting.join().unwrap().unwrap_err().errno(), libc::EIO);
        });
        is_lost(&open);
    }
}

#[test]
fn device_that_leaves_requests_unanswered_is_lost_for_all_who_wait() {
    let willing = willing();
    let mut fake = Fake::new(move |request| match request.body {
        Body::QueryGid(_) => Reply::Keep,
        _ => willing(request),
    });
    // Other requests are answered by the thread that asks, while it does.
    fake.patience = Duration::from_millis(20);
    let open = Open::new(Arc::new(fake)).unwrap();
    std::thread::scope(|threads| {
        let asked: Vec<_> = (0..40).map(|_| threads.spawn(|| gid(&open))).collect();
        for thread in asked {
            assert_eq!(thread.join().unwrap().unwrap_err().errno(), libc::EIO);
        }
    });
    is_lost(&open);
}

#[test]
fn hangup_is_a_loss_that_is_told_once() {
    let (fake, open) = open(|_| None);
    let channel = CompChannel::new(&open, 0).unwrap();
    fake.hang_up();
    assert_eq!(channel.wait(PATIENCE).unwrap_err().errno(), libc::EIO);
    is_lost(&open);
}

fn event(event_type: Code, generation: u32, handle: u32, lost: u32) -> WireEvent {
    WireEvent {
        event_type,
        port: 1,
        generation: U32::new(generation),
        handle: U32::new(handle),
        lost: U32::new(lost),
        ..FromZeros::new_zeroed()
    }
}

#[test]
fn events_of_this_generation_and_of_known_objects_are_told() {
    let (fake, open) = open(|_| None);
    let cq = Cq::new(&open, 4, None).unwrap();
    let handle = cq.cqn() - 0x80;
    let next = || open.get_async_event(Deadline::after(Some(PATIENCE))).unwrap().unwrap();
    for wire in [
        event(Code::PORT_ERR, GENERATION - 1, 0, 0),
        event(Code(0x7e), GENERATION, 0, 0),
        event(Code::CQ_ERR, GENERATION, handle + 1, 0),
        event(Code::DEVICE_READY, GENERATION, 0, 0),
        event(Code::CQ_ERR, GENERATION, handle, 0),
        event(Code::PORT_ACTIVE, GENERATION, 0, 3),
    ] {
        fake.deliver(EVENT, wire.as_bytes(), 32);
    }
    // A device that says it wrote nothing, or more than there is room for.
    fake.deliver(EVENT, &[], 0);
    fake.deliver(EVENT, event(Code::LID_CHANGE, GENERATION, 0, 0).as_bytes(), u32::MAX);
    let told = [next(), next(), next(), next()].map(|event| (event.event_type, event.element));
    assert_eq!(
        told,
        [
            (EventType::CqErr, EventElement::Cq(cq.cqn())),
            (EventType::EventsLost(3), EventElement::Device),
            (EventType::PortActive, EventElement::Port(1)),
            (EventType::LidChange, EventElement::Port(1)),
        ]
    );
    fake.deliver(EVENT, event(Code::CQ_ERR, GENERATION, handle, 0).as_bytes(), 32);
    cq.destroy().unwrap();
    assert!(open.get_async_event(Deadline::after(Some(Duration::ZERO))).unwrap().is_none());
    fake.deliver(EVENT, event(Code::DEVICE_FATAL, GENERATION + 1, 0, 0).as_bytes(), 32);
    assert_eq!(next().event_type, EventType::DeviceFatal);
    assert!(open.loss().is_lost());
}

#[test]
fn destruction_waits_until_events_that_were_taken_are_acknowledged() {
    let (fake, open) = open(|_| None);
    let cq = Cq::new(&open, 4, None).unwrap();
    let handle = cq.cqn() - 0x80;
    let wire = event(Code::CQ_ERR, GENERATION, handle, 0);
    fake.deliver(EVENT, wire.as_bytes(), 32);
    let taken = open.get_async_event(Deadline::after(Some(PATIENCE))).unwrap().unwrap();
    let destroyed = AtomicU32::new(0);
    std::thread::scope(|threads| {
        let thread = threads.spawn(|| {
            cq.destroy().unwrap();
            destroyed.store(1, Ordering::SeqCst);
        });
        // Other objects come and go meanwhile.
        Cq::new(&open, 4, None).unwrap().destroy().unwrap();
        assert_eq!(destroyed.load(Ordering::SeqCst), 0);
        drop(taken);
        thread.join().unwrap();
    });
    assert_eq!(destroyed.into_inner(), 1);
}

#[test]
fn dropping_an_object_does_not_wait_for_its_events() {
    let (fake, open) = open(|_| None);
    let cq = Cq::new(&open, 4, None).unwrap();
    fake.deliver(EVENT, event(Code::CQ_ERR, GENERATION, cq.cqn() - 0x80, 0).as_bytes(), 32);
    let taken = open.get_async_event(Deadline::after(Some(PATIENCE))).unwrap().unwrap();
    drop(cq);
    assert_eq!(taken.event_type, EventType::CqErr);
}

#[test]
fn events_that_nobody_takes_are_bounded_and_counted() {
    let (fake, open) = open(|_| None);
    let deliver = |lost| {
        // Buffers come back as the thread of events takes them.
        while fake.try_deliver(EVENT, event(Code::PORT_ERR, GENERATION, 0, lost).as_bytes(), 32).is_none() {
            std::thread::yield_now();
        }
    };
    (0..1500).for_each(|_| deliver(0));
    // The device has lost 99 more before this one, for which there is no room for long.
    deliver(99);
    (0..400).for_each(|_| deliver(0));
    let mut taken = 0;
    loop {
        let event = open.get_async_event(Deadline::after(Some(PATIENCE))).unwrap().unwrap();
        taken += match event.event_type {
            EventType::PortErr => 1,
            EventType::EventsLost(lost) => lost,
            other => panic!("{other:?}"),
        };
        if taken == 2000 {
            break;
        }
    }
}

#[test]
fn completion_events_go_to_their_channel_and_no_farther() {
    let (fake, open) = open(|_| None);
    let channels = [CompChannel::new(&open, 1).unwrap(), CompChannel::new(&open, 1).unwrap()];
    let cqs = channels.each_ref().map(|channel| Cq::new(&open, 4, Some(channel)).unwrap());
    let fired = |cq: u32, generation| CompletionEvent { cq: U32::new(cq), generation: U32::new(generation) };
    let handles = cqs.each_ref().map(|cq| cq.cqn() - 0x80);
    let events = [
        fired(handles[1], GENERATION),
        fired(0xffff, GENERATION),
        fired(handles[0], GENERATION + 1),
        fired(handles[0], GENERATION),
    ];
    // The last half event is none.
    fake.deliver(FIRST_VECTOR + 1, events.as_bytes(), 36);
    for (channel, cq) in channels.iter().zip(&cqs) {
        assert_eq!(channel.wait(PATIENCE).unwrap().map(|event| event.cqn), Some(cq.cqn()));
        assert_eq!(channel.wait(Duration::ZERO).unwrap(), None);
    }
    fake.push_used(FIRST_VECTOR + 1, 77, 8);
    assert_eq!(channels[0].wait(PATIENCE).unwrap_err().errno(), libc::EIO);
    is_lost(&open);
}

#[test]
fn events_of_a_dropped_channel_are_kept_by_nobody() {
    let (fake, open) = open(|_| None);
    let [dropped, other] = [(); 2].map(|()| CompChannel::new(&open, 0).unwrap());
    let cq = Cq::new(&open, 4, Some(&dropped)).unwrap();
    let pending = Arc::downgrade(dropped.pending());
    drop(dropped);
    assert!(pending.upgrade().is_none(), "the CQ keeps what its channel would have told");
    cq.req_notify(false).unwrap();
    let event = CompletionEvent { cq: U32::new(cq.cqn() - 0x80), generation: U32::new(GENERATION) };
    fake.deliver(FIRST_VECTOR, event.as_bytes(), 8);
    assert_eq!(other.wait(Duration::ZERO).unwrap(), None);
    cq.destroy().unwrap();
}

#[test]
fn doorbell_kicks_while_its_reader_sleeps() {
    let area = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&area);
    let look = move |request: &Request<'_>| {
        if let Body::AllocUar(body) = request.body {
            seen.store(body.area.get(), Ordering::Relaxed);
        }
        None
    };
    let (fake, open) = open(look);
    let channel = CompChannel::new(&open, 0).unwrap();
    let cq = Cq::new(&open, 4, Some(&channel)).unwrap();
    cq.req_notify(false).unwrap();
    assert_eq!(fake.kicks(FIRST_KICK), 0, "the reader is awake");
    let sleeping = area.load(Ordering::Relaxed) + std::mem::offset_of!(AreaHeader, sleeping) as u64;
    fake.write(sleeping, &[1]);
    cq.req_notify(false).unwrap();
    assert_eq!(fake.kicks(FIRST_KICK), 1);
}

#[test]
fn full_doorbell_area_is_followed_by_another() {
    let limited = |request: &Request<'_>| match request.body {
        Body::CreateCq(body) if body.uar.get() == 2 => Some(Reply::Refuse(Reason::SLOT_LIMIT)),
        _ => None,
    };
    let (_fake, open) = open(limited);
    let first = Cq::new(&open, 4, None).unwrap();
    let second = Cq::new(&open, 4, None).unwrap();
    assert_eq!(open.uars.lock().unwrap().len(), 1, "the one that was full is gone");
    drop((first, second));
}

#[test]
fn doorbell_that_can_not_be_is_a_loss() {
    for place in [
        DoorbellPlace::NONE,
        DoorbellPlace::of_slot(64),
        DoorbellPlace { offset: U32::new(4097), ..DoorbellPlace::of_slot(0) },
    ] {
        let wrong = move |request: &Request<'_>| {
            matches!(request.body, Body::CreateCq(_)).then(|| Reply::Answer(cq_created(1, place)))
        };
        let (_fake, open) = open(wrong);
        assert_eq!(Cq::new(&open, 4, None).unwrap_err().errno(), libc::EIO);
        is_lost(&open);
    }
}

#[test]
fn memory_is_kept_aside_if_the_hca_may_still_use_it() {
    let address_after = |reason: Reason| {
        let refuse = move |request: &Request<'_>| {
            matches!(request.body, Body::DeregMr(_)).then_some(Reply::Refuse(reason))
        };
        let (_fake, open) = open(refuse);
        let pd = Pd::new(&open).unwrap();
        let mr = pd.alloc_mr(4096, crate::Access::NONE).unwrap();
        let before = mr.addr();
        assert!(mr.dereg().is_err());
        before == pd.alloc_mr(4096, crate::Access::NONE).unwrap().addr()
    };
    assert!(!address_after(Reason::COMMAND_FAILED));
    assert!(!address_after(Reason::COMMAND_TIMEOUT));

    let reg = |reason: Reason| {
        let first = AtomicU32::new(0);
        let refuse = move |request: &Request<'_>| match request.body {
            Body::RegMr(_) if first.fetch_add(1, Ordering::Relaxed) == 1 => Some(Reply::Refuse(reason)),
            _ => None,
        };
        let (_fake, open) = open(refuse);
        let pd = Pd::new(&open).unwrap();
        let register = || pd.alloc_mr(4096, crate::Access::NONE);
        let before = register().unwrap().addr();
        assert!(register().is_err());
        register().unwrap().addr() == before
    };
    assert!(reg(Reason::MAPPING_LIMIT));
    assert!(!reg(Reason::COMMAND_FAILED));
}

#[test]
fn device_that_does_not_fit_is_refused() {
    let refused = |change: fn(&mut Config)| {
        let mut fake = Fake::new(willing());
        change(&mut fake.config);
        Open::new(Arc::new(fake)).unwrap_err().to_string()
    };
    assert!(refused(|config| config.format.cqe_bytes = U16::new(128)).contains("32 or 64 bytes"));
    assert!(refused(|config| config.format.headroom_bytes = U16::new(4096)).contains("farther ahead"));
    assert!(refused(|config| config.state = DeviceState::FAILED).contains("could not bring the HCA up"));
}
