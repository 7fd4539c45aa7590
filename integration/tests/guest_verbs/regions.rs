//! Changes of memory regions.

use paraverbs_verbs::{Access, Rereg, SendOp, WcStatus};

use crate::scene::{End, Scene, connect, errno};

const EINVAL: i32 = 22;
const ENOMEM: i32 = 12;

#[test]
fn rights_of_a_region_can_be_given_and_taken() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let mut mr = other.pd.alloc_mr(4096, Access::REMOTE_READ).unwrap();
    mr.rereg(&Rereg { access: Some(Access::ALL), ..Rereg::default() }).unwrap();
    one.mr.write(0, b"now it may").unwrap();
    one.post(1, SendOp::Write { remote_addr: mr.addr(), rkey: mr.rkey() }, 0, 10);
    one.done(1);
    let mut bytes = [0; 10];
    mr.read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"now it may");
    mr.rereg(&Rereg { access: Some(Access::LOCAL_WRITE), ..Rereg::default() }).unwrap();
    one.post(2, SendOp::Write { remote_addr: mr.addr(), rkey: mr.rkey() }, 0, 10);
    one.failed(2, WcStatus::RemAccessErr);
    drop((mr, ends));
    scene.stop();
}

#[test]
fn region_gets_other_memory_and_its_old_memory_is_the_hca_s_no_more() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let mut mr = other.pd.alloc_mr(4096, Access::ALL).unwrap();
    let (old_addr, old_rkey) = (mr.addr(), mr.rkey());
    mr.rereg(&Rereg { bytes: Some(100_000), ..Rereg::default() }).unwrap();
    assert_eq!(mr.len(), 100_000);
    assert_ne!(mr.addr(), old_addr);
    one.mr.write(0, b"far behind").unwrap();
    one.post(1, SendOp::Write { remote_addr: mr.addr() + 99_990, rkey: mr.rkey() }, 0, 10);
    one.done(1);
    let mut bytes = [0; 10];
    mr.read(99_990, &mut bytes).unwrap();
    assert_eq!(&bytes, b"far behind");
    one.post(2, SendOp::Write { remote_addr: old_addr, rkey: old_rkey }, 0, 10);
    one.failed(2, WcStatus::RemAccessErr);
    drop((mr, ends));
    scene.stop();
}

#[test]
fn region_moves_to_another_domain() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let second = End::new(&other.guest);
    let peer = End::new(&one.guest);
    connect_both(&peer, &second);
    let mut mr = other.pd.alloc_mr(4096, Access::ALL).unwrap();
    mr.rereg(&Rereg { pd: Some(&second.pd), ..Rereg::default() }).unwrap();
    let (remote_addr, rkey) = (mr.addr(), mr.rkey());
    peer.post(1, SendOp::Write { remote_addr, rkey }, 0, 8);
    peer.done(1);
    one.post(2, SendOp::Write { remote_addr, rkey }, 0, 8);
    one.failed(2, WcStatus::RemAccessErr);
    drop((mr, ends, second, peer));
    scene.stop();
}

fn connect_both(one: &End, other: &End) {
    one.connect(other);
    other.connect(one);
}

#[test]
fn changes_that_are_none_change_nothing() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let most = other.guest.query_device().unwrap().max_mr_size;
    let mut mr = other.pd.alloc_mr(4096, Access::ALL).unwrap();
    for (change, number) in [
        (Rereg::default(), EINVAL),
        (Rereg { access: Some(Access::REMOTE_WRITE), ..Rereg::default() }, EINVAL),
        (Rereg { bytes: Some(0), ..Rereg::default() }, EINVAL),
        (
            Rereg {
                bytes: usize::try_from(most).ok().map(|most| most.saturating_add(1)),
                ..Rereg::default()
            },
            ENOMEM,
        ),
        (Rereg { pd: Some(&one.pd), ..Rereg::default() }, EINVAL),
    ] {
        assert_eq!(errno(mr.rereg(&change)), number, "{change:?}");
        one.post(1, SendOp::Write { remote_addr: mr.addr(), rkey: mr.rkey() }, 0, 8);
        one.done(1);
    }
    drop((mr, ends));
    scene.stop();
}

#[test]
fn second_connection_of_the_same_ends_is_not_disturbed_by_a_change() {
    let scene = Scene::new();
    let guests = scene.guests();
    let ends = guests.each_ref().map(End::new);
    connect(&ends);
    let [one, other] = &ends;
    let mut mr = other.pd.alloc_mr(1 << 20, Access::ALL).unwrap();
    for round in 0..20u8 {
        let bytes = if round % 2 == 0 { 5000 } else { 1 << 20 };
        mr.rereg(&Rereg { bytes: Some(bytes), ..Rereg::default() }).unwrap();
        one.mr.write(0, &[round; 5000]).unwrap();
        one.post(1, SendOp::Write { remote_addr: mr.addr(), rkey: mr.rkey() }, 0, 5000);
        one.post(2, SendOp::Write { remote_addr: other.mr.addr(), rkey: other.mr.rkey() }, 0, 5000);
        one.done(1);
        one.done(2);
        let mut read = vec![0; 5000];
        mr.read(0, &mut read).unwrap();
        assert_eq!((read, other.bytes(0, 5000)), (vec![round; 5000], vec![round; 5000]));
    }
    drop((mr, ends, guests));
    scene.stop();
}
