//! Memory windows.

use paraverbs_verbs::{
    Access, Context, Mr, Mw, MwBind, MwType, Pd, SendData, SendFlags, SendOp, SendWr, WcOpcode, WcStatus,
    inc_rkey,
};

use crate::scene::{End, Scene, connect, errno};

const EINVAL: i32 = 22;
const EPERM: i32 = 1;
const EBUSY: i32 = 16;

/// A region that windows may be bound to.
fn region(pd: &Pd) -> Mr {
    pd.alloc_mr(8192, Access::ALL | Access::MW_BIND).unwrap()
}

/// A bind of the bytes 1000 to 2000.
fn middle(mr: &Mr, wr_id: u64, access: Access) -> MwBind<'_> {
    MwBind { wr_id, mr, offset: 1000, length: 1000, access, flags: SendFlags::SIGNALED }
}

/// Binds a window of either type, and waits for it.
fn bind(end: &End, mw: &Mw, bind: &MwBind<'_>) -> u32 {
    let rkey = match mw.mw_type() {
        MwType::Type1 => end.qp.bind_mw(mw, bind).unwrap(),
        MwType::Type2 => {
            let rkey = inc_rkey(mw.rkey());
            end.qp.post_bind_mw(mw, rkey, bind).unwrap();
            rkey
        }
    };
    assert_eq!(end.done(bind.wr_id).opcode, WcOpcode::BindMw);
    assert_eq!(mw.rkey(), rkey);
    rkey
}

/// Writes 8 bytes from another end, which must end in some way.
fn write(from: &End, remote_addr: u64, rkey: u32, status: WcStatus) {
    from.post(77, SendOp::Write { remote_addr, rkey }, 0, 8);
    match status {
        WcStatus::Success => drop(from.done(77)),
        failure => from.failed(77, failure),
    }
}

/// A connection of the guests anew, since the last one ended in an error.
fn again(guests: &[Context; 2], pd: &Pd) -> [End; 2] {
    let ends = [End::new(&guests[0]), End::sharing(&guests[1], pd)];
    connect(&ends);
    ends
}

/// A domain of the second guest with a region and a window, and a connection to its end there.
fn window(guests: &[Context; 2], mw_type: MwType) -> (Pd, Mr, Mw, [End; 2]) {
    let pd = guests[1].alloc_pd().unwrap();
    let (mr, mw) = (region(&pd), pd.alloc_mw(mw_type).unwrap());
    let ends = again(guests, &pd);
    (pd, mr, mw, ends)
}

#[test]
fn window_of_either_type_opens_its_bytes_and_no_others() {
    let scene = Scene::new();
    let guests = scene.guests();
    for mw_type in [MwType::Type1, MwType::Type2] {
        let (pd, mr, mw, ends) = window(&guests, mw_type);
        let [one, other] = &ends;
        let rkey = bind(other, &mw, &middle(&mr, 1, Access::REMOTE_WRITE));
        one.mr.write(0, b"a window").unwrap();
        write(one, mr.addr() + 1000, rkey, WcStatus::Success);
        write(one, mr.addr() + 1992, rkey, WcStatus::Success);
        let mut bytes = [0; 1000];
        mr.read(1000, &mut bytes).unwrap();
        assert_eq!((&bytes[..8], &bytes[992..]), (&b"a window"[..], &b"a window"[..]));
        write(one, mr.addr() + 1993, rkey, WcStatus::RemAccessErr);
        drop(ends);
        // Of type 2 the window was that queue pair's only.
        let ends = again(&guests, &pd);
        let next = if mw_type == MwType::Type1 { WcStatus::Success } else { WcStatus::RemAccessErr };
        write(&ends[0], mr.addr() + 1000, rkey, next);
        drop(ends);
        mw.dealloc().unwrap();
        mr.dereg().unwrap();
    }
    drop(guests);
    scene.stop();
}

#[test]
fn window_gives_the_rights_it_was_bound_with() {
    let scene = Scene::new();
    let guests = scene.guests();
    let (pd, mr, mw, ends) = window(&guests, MwType::Type1);
    let [one, other] = &ends;
    let rkey = bind(other, &mw, &middle(&mr, 1, Access::REMOTE_READ));
    one.post(2, SendOp::Read { remote_addr: mr.addr() + 1000, rkey }, 0, 8);
    one.done(2);
    write(one, mr.addr() + 1000, rkey, WcStatus::RemAccessErr);
    drop((ends, mw, mr, pd, guests));
    scene.stop();
}

#[test]
fn key_of_a_bind_ends_with_the_next_bind() {
    let scene = Scene::new();
    let guests = scene.guests();
    let (pd, mr, mw, ends) = window(&guests, MwType::Type1);
    let [one, other] = &ends;
    let old = bind(other, &mw, &middle(&mr, 1, Access::REMOTE_WRITE));
    let new = bind(other, &mw, &MwBind { offset: 4096, ..middle(&mr, 2, Access::REMOTE_WRITE) });
    assert_eq!(new, inc_rkey(old));
    one.mr.write(0, b"elsewhere").unwrap();
    write(one, mr.addr() + 4096, new, WcStatus::Success);
    let mut bytes = [0; 8];
    mr.read(4096, &mut bytes).unwrap();
    assert_eq!(&bytes, b"elsewher");
    write(one, mr.addr() + 1000, old, WcStatus::RemAccessErr);
    drop((ends, mw, mr, pd, guests));
    scene.stop();
}

#[test]
fn window_of_type_2_is_invalidated_by_the_message_that_names_it() {
    let scene = Scene::new();
    let guests = scene.guests();
    let (pd, mr, mw, ends) = window(&guests, MwType::Type2);
    let [one, other] = &ends;
    let rkey = bind(other, &mw, &middle(&mr, 1, Access::REMOTE_WRITE));
    write(one, mr.addr() + 1000, rkey, WcStatus::Success);
    other.receive(2, 0, 8);
    one.post(2, SendOp::SendInvalidate(rkey), 0, 8);
    one.done(2);
    let wc = other.done(2);
    assert_eq!((wc.invalidated_rkey, wc.byte_len), (Some(rkey), 8));
    // It keeps its region no longer, and can be bound anew; only the new key counts.
    mr.dereg().unwrap();
    let mr = region(&pd);
    let next = bind(other, &mw, &middle(&mr, 3, Access::REMOTE_WRITE));
    write(one, mr.addr() + 1000, next, WcStatus::Success);
    write(one, mr.addr() + 1000, rkey, WcStatus::RemAccessErr);
    drop((ends, mw, mr, pd, guests));
    scene.stop();
}

#[test]
fn invalidation_that_comes_before_the_end_of_the_bind_is_known_counts() {
    let scene = Scene::new();
    let guests = scene.guests();
    let (pd, mr, mw, ends) = window(&guests, MwType::Type2);
    let [one, other] = &ends;
    let rkey = inc_rkey(mw.rkey());
    // Nobody hears of the end of this bind before that of the last request.
    let flags = SendFlags::default();
    other.qp.post_bind_mw(&mw, rkey, &MwBind { flags, ..middle(&mr, 1, Access::REMOTE_WRITE) }).unwrap();
    one.receive(2, 0, 8);
    let data = SendData::Sges(&[other.mr.sge(0, 8)]);
    other.qp.post_send(&SendWr { wr_id: 2, op: SendOp::Send, data, flags }).unwrap();
    one.done(2);
    other.receive(3, 0, 8);
    one.post(3, SendOp::SendInvalidate(rkey), 0, 8);
    assert_eq!(other.done(3).invalidated_rkey, Some(rkey));
    one.done(3);
    one.receive(4, 0, 8);
    other.post(4, SendOp::Send, 0, 8);
    other.done(4);
    mr.dereg().unwrap();
    drop((ends, mw, pd, guests));
    scene.stop();
}

#[test]
fn binds_of_one_window_by_two_threads_have_different_keys() {
    const BINDS: usize = 100;
    let scene = Scene::new();
    let guests = scene.guests();
    let pd = guests[1].alloc_pd().unwrap();
    let mr = region(&pd);
    let mw = pd.alloc_mw(MwType::Type1).unwrap();
    let pairs = [again(&guests, &pd), again(&guests, &pd)];
    let keys: Vec<u32> = std::thread::scope(|scope| {
        let threads = pairs.each_ref().map(|[_, end]| {
            scope.spawn(|| {
                let bind = |wr_id| {
                    let rkey = end.qp.bind_mw(&mw, &middle(&mr, wr_id, Access::REMOTE_WRITE)).unwrap();
                    end.done(wr_id);
                    rkey
                };
                (0..BINDS as u64).map(bind).collect::<Vec<_>>()
            })
        });
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // A key comes again after 256 binds.
    assert_eq!(keys.iter().collect::<std::collections::BTreeSet<_>>().len(), 2 * BINDS);
    drop((pairs, mw, mr, pd, guests));
    scene.stop();
}

#[test]
fn region_stays_while_a_window_is_bound_to_it() {
    let scene = Scene::new();
    let guests = scene.guests();
    let (pd, mr, mw, ends) = window(&guests, MwType::Type1);
    let second = region(&pd);
    let [one, other] = &ends;
    let rkey = bind(other, &mw, &middle(&mr, 1, Access::REMOTE_WRITE));
    let remote_addr = mr.addr() + 1000;
    assert_eq!(errno(mr.dereg()), EBUSY);
    write(one, remote_addr, rkey, WcStatus::Success);
    // The next bind lets go of it.
    bind(other, &mw, &middle(&second, 2, Access::REMOTE_WRITE));
    bind(other, &mw, &MwBind { length: 0, ..middle(&second, 3, Access::NONE) });
    second.dereg().unwrap();
    drop((ends, mw, pd, guests));
    scene.stop();
}

#[test]
fn binds_that_can_not_be_are_refused() {
    let scene = Scene::new();
    let guests = scene.guests();
    let pd = guests[1].alloc_pd().unwrap();
    let mr = region(&pd);
    let ends = again(&guests, &pd);
    let other = &ends[1];
    let [one, two] = [MwType::Type1, MwType::Type2].map(|mw_type| pd.alloc_mw(mw_type).unwrap());
    let request = middle(&mr, 1, Access::REMOTE_WRITE);
    assert_eq!(errno(other.qp.bind_mw(&two, &request)), EINVAL);
    assert_eq!(errno(other.qp.post_bind_mw(&one, inc_rkey(one.rkey()), &request)), EINVAL);
    assert_eq!(errno(other.qp.post_bind_mw(&two, two.rkey() ^ 0x100, &request)), EINVAL);
    let foreign = guests[1].alloc_pd().unwrap();
    let stranger = region(&foreign);
    assert_eq!(errno(other.qp.bind_mw(&one, &middle(&stranger, 1, Access::REMOTE_WRITE))), EPERM);
    // What only the HCA sees ends the queue pair.
    let beyond = MwBind { offset: 8000, ..request };
    other.qp.bind_mw(&one, &beyond).unwrap();
    other.failed(1, WcStatus::MwBindErr);
    drop(ends);
    let ends = again(&guests, &pd);
    let closed = pd.alloc_mr(8192, Access::ALL).unwrap();
    ends[1].qp.bind_mw(&one, &middle(&closed, 2, Access::REMOTE_WRITE)).unwrap();
    ends[1].failed(2, WcStatus::MwBindErr);
    closed.dereg().unwrap();
    drop(ends);
    // Nobody writes through a window to what may not be written.
    let ends = again(&guests, &pd);
    let read_only = pd.alloc_mr(8192, Access::REMOTE_READ | Access::MW_BIND).unwrap();
    bind(&ends[1], &one, &middle(&read_only, 3, Access::REMOTE_READ));
    ends[1].qp.bind_mw(&one, &middle(&read_only, 4, Access::REMOTE_WRITE)).unwrap();
    ends[1].failed(4, WcStatus::MwBindErr);
    drop((ends, one, two, read_only, stranger, foreign, mr, pd, guests));
    scene.stop();
}
