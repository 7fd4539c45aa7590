//! A program whose queue pairs have more to tell than the guest library keeps for it, while it takes nothing. The
//! library takes what the daemon has at once, so the daemon's own limit is tested with a guest that takes nothing
//! either: `hostile_guest`, "floods: events that nobody takes".

use std::time::Duration;

use fastrand::Rng;
use paraverbs_verbs::{AsyncEvent, EventElement, EventType, QpAttr, QpState};

use crate::scene::{End, PATIENCE, Scene, connect, eventually};

/// Events that the library keeps.
const KEPT: usize = 1024;
/// How many more happen, at least.
const MORE: usize = 50;

/// Drains random send queues, again and again, and takes the events afterwards: the first ones, all in their order, and
/// how many others there were.
pub(crate) fn run(rng: &mut Rng) {
    let scene = Scene::new();
    let guests = scene.guests();
    let pairs = [(), ()].map(|()| guests.each_ref().map(End::new));
    pairs.iter().for_each(connect);
    let ends: Vec<&End> = pairs.iter().map(|[end, _]| end).collect();
    // Whatever happened to the port comes before this event.
    drain(ends[0]);
    let drained = |event: AsyncEvent| event.event_type == EventType::SqDrained;
    while !drained(guests[0].get_async_event(PATIENCE).unwrap().expect("an event")) {}
    let count = KEPT + rng.usize(2 * MORE..4 * MORE);
    let mut happened = Vec::new();
    for _ in 0..count {
        let end = ends[rng.usize(..ends.len())];
        drain(end);
        happened.push(EventElement::Qp(end.qp.qpn()));
    }
    let (mut taken, mut lost) = (Vec::new(), 0);
    while taken.len() + lost < count {
        let event = guests[0].get_async_event(PATIENCE).unwrap().expect("an event");
        match event.event_type {
            EventType::SqDrained => taken.push(event.element),
            EventType::EventsLost(number) => lost += usize::try_from(number).unwrap(),
            _ => panic!("{event:?}"),
        }
    }
    assert_eq!(taken.len() + lost, count);
    assert!(taken.len() >= KEPT && lost >= MORE, "{} were kept, {lost} lost", taken.len());
    // Some of the later ones too: those that come while the first are taken.
    assert!(taken[..KEPT] == happened[..KEPT], "others than the oldest were kept");
    let mut later = happened[KEPT..].iter();
    assert!(taken[KEPT..].iter().all(|event| later.any(|other| other == event)), "they are in another order");
    assert!(guests[0].get_async_event(Duration::ZERO).unwrap().is_none());
    // From now on nothing is lost again.
    drain(ends[0]);
    let event = guests[0].get_async_event(PATIENCE).unwrap().expect("an event");
    assert_eq!((event.event_type, event.element), (EventType::SqDrained, EventElement::Qp(ends[0].qp.qpn())));
    drop((event, ends));
    drop((pairs, guests));
    scene.stop();
}

/// Drains the send queue, which is an event, and starts it again.
fn drain(end: &End) {
    let drain = QpAttr { en_sqd_async_notify: Some(true), ..QpAttr::state(QpState::Sqd) };
    end.qp.modify(&drain).unwrap();
    eventually("the queue to be drained", || {
        (end.qp.query().unwrap().sq_draining == Some(false)).then_some(())
    });
    end.qp.modify(&QpAttr::state(QpState::Rts)).unwrap();
}
