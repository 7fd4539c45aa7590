//! Whole requests are carried out: what the target starts from reaches every kind of request.

use super::request::{Address, Key, Verb, Whole};
use super::*;

/// The queue pairs of the guest: a connection of RC and its other end, datagrams, with an SRQ, and extended.
const RC: u8 = 0;
const OTHER: u8 = 1;
const DATAGRAMS: u8 = guest::DATAGRAMS;
const SHARED: u8 = 5;
const EXTENDED: u8 = 6;

fn receive(qp: u8) -> Step<'static> {
    let data = Segment::Data { key: Key::Own, address: Address::Inside(0x8000), count: 2048 };
    Step::Receive { qp, segments: [Some(data), None] }
}

fn post(qp: u8, verb: Verb) -> [Step<'static>; 2] {
    let request = Whole { verb, count: 200, address: Address::Inside(0x4000) };
    [Step::Whole { qp, flags: 0, far_srq: None, request }, Step::Run]
}

fn far() -> (Key, Address) {
    (Key::Own, Address::Inside(0x1000))
}

/// A bind of the window of type 2, whose key has these low bits.
fn bind(low: u8) -> Verb {
    let address = Address::Inside(0x2000);
    Verb::Bind { window: 1, low, access: 7, wrong_kind: false, address, length: 64 }
}

fn connected() -> Vec<Step<'static>> {
    let write = |immediate| {
        let (key, address) = far();
        Verb::Write { immediate, key, address }
    };
    let (key, address) = far();
    let atomic = |add| Verb::Atomic { key: Key::Own, place: 1, add, swap: 2, compare: 3 };
    let masked = |add| Verb::MaskedAtomic { key: Key::Own, place: 1, add, numbers: [1, 2, 3, 4] };
    let first = (0..4).map(|_| receive(OTHER));
    let verbs = [
        (RC, Verb::Send { immediate: false }),
        (RC, Verb::Send { immediate: true }),
        (RC, write(false)),
        (RC, write(true)),
        (RC, Verb::Read { key, address }),
        (RC, atomic(false)),
        (RC, atomic(true)),
        (RC, masked(false)),
        (RC, masked(true)),
        (OTHER, bind(1)),
        (RC, Verb::SendInvalidate(Key::Window(1, 1))),
        (OTHER, bind(2)),
        (OTHER, Verb::Invalidate(Key::Window(1, 2))),
    ];
    first.chain(verbs.into_iter().flat_map(|(qp, verb)| post(qp, verb))).collect()
}

fn others() -> Vec<Step<'static>> {
    let receives = [DATAGRAMS, DATAGRAMS, DATAGRAMS, SHARED, SHARED, EXTENDED].map(receive);
    let limit = Step::Limit { srq: 0, limit: 2 };
    let verbs = [
        (DATAGRAMS, Verb::Datagram { qp: DATAGRAMS, wrong: None }),
        (DATAGRAMS, Verb::Large { header: 20, mss: 128 }),
        (SHARED, Verb::Send { immediate: false }),
        (EXTENDED, Verb::Send { immediate: false }),
    ];
    let verbs = verbs.into_iter().flat_map(|(qp, verb)| post(qp, verb));
    receives.into_iter().chain([limit]).chain(verbs).collect()
}

#[test]
fn whole_requests_of_every_kind_are_carried_out() {
    carry_out(connected().into_iter().chain(others()));
    let reached = reached();
    // Requests: SEND with invalidate, RDMA write without and with immediate, SEND likewise, LSO, RDMA read, atomics, masked
    // atomics, bind, local invalidate. Receives: write with immediate, SEND alone, with immediate, with invalidate. The
    // limit of an SRQ. A receive of an extended connection.
    let requests = [0x01, 0x08, 0x09, 0x0a, 0x0b, 0x0e, 0x10, 0x11, 0x12, 0x14, 0x15, 0x18, 0x1b];
    let expected = requests.map(|opcode| format!("request {opcode:#04x}")).into_iter();
    let expected = expected.chain((0..4).map(|opcode| format!("receive {opcode:#04x}")));
    let expected = expected.chain(["event 0x14".to_owned(), "extended 0x00".to_owned()]);
    let missing: Vec<_> = expected.filter(|kind| !reached.contains_key(kind)).collect();
    assert!(missing.is_empty(), "{missing:?} of {reached:?}");
    assert!(!reached.keys().any(|kind| kind.starts_with("syndrome")), "{reached:?}");
}

#[test]
fn doorbell_of_one_s_own_page_reaches_the_engine_and_others_are_refused() {
    let bad =
        || SCENE.lock().unwrap_or_else(PoisonError::into_inner).device.hca().counters().bad_doorbells.get();
    let before = bad();
    carry_out([Step::Store { place: Place::Send, word: u32::MAX, second: None }].into_iter());
    carry_out([Step::Store { place: Place::Any(0x800), word: 0, second: None }].into_iter());
    carry_out([Step::Store { place: Place::Arm, word: 0x00ff_ffff, second: Some(0x00ff_ffff) }].into_iter());
    assert_eq!(bad(), before + 3);
}
