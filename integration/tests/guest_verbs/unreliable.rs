//! UC: connections without acknowledgements.

use paraverbs_verbs::{QpState, QpType, SendData, SendFlags, SendOp, SendWr, WcOpcode, WcStatus};

use crate::scene::{End, Fence, Scene, errno};

const EINVAL: i32 = 22;

fn connection(scene: &Scene) -> [End; 2] {
    let ends = scene.guests().map(|guest| End::of_type(&guest, QpType::Uc));
    let [one, other] = &ends;
    one.connect_unreliably(other);
    other.connect_unreliably(one);
    ends
}

#[test]
fn messages_and_writes_of_uc_arrive() {
    let scene = Scene::new();
    let [one, other] = connection(&scene);
    let text: Vec<u8> = (0..9000u32).map(|at| at.wrapping_mul(31).to_le_bytes()[0]).collect();
    one.mr.write(0, &text).unwrap();
    other.receive(1, 100, 9000);
    one.post(1, SendOp::SendImm(77), 0, 9000);
    assert_eq!(one.done(1).opcode, WcOpcode::Send);
    let wc = other.done(1);
    assert_eq!((wc.opcode, wc.byte_len, wc.imm), (WcOpcode::Recv, 9000, Some(77)));
    assert_eq!(other.bytes(100, 9000), text);

    let (remote_addr, rkey) = (other.mr.addr() + 20_000, other.mr.rkey());
    one.post(2, SendOp::Write { remote_addr, rkey }, 0, 5000);
    assert_eq!(one.done(2).opcode, WcOpcode::RdmaWrite);
    other.receive(3, 0, 0);
    one.post(3, SendOp::WriteImm { remote_addr: remote_addr + 5000, rkey, imm: 5 }, 5000, 4000);
    one.done(3);
    let wc = other.done(3);
    assert_eq!((wc.opcode, wc.byte_len, wc.imm), (WcOpcode::RecvRdmaWithImm, 4000, Some(5)));
    assert_eq!(other.bytes(20_000, 9000), text);
    drop([one, other]);
    scene.stop();
}

#[test]
fn uc_message_without_a_receive_is_lost_and_the_next_one_arrives() {
    let scene = Scene::new();
    let [one, other] = connection(&scene);
    let fence = Fence::new([&one.guest, &other.guest]);
    one.post(1, SendOp::Send, 0, 8);
    one.done(1);
    fence.pass();
    other.receive(2, 0, 8);
    one.mr.write(8, b"the next").unwrap();
    one.post(2, SendOp::Send, 8, 8);
    one.done(2);
    other.done(2);
    assert_eq!(other.bytes(0, 8), b"the next");
    other.nothing();
    drop(([one, other], fence));
    scene.stop();
}

#[test]
fn uc_write_with_a_wrong_key_is_lost_without_an_error_at_the_sender() {
    let scene = Scene::new();
    let [one, other] = connection(&scene);
    let fence = Fence::new([&one.guest, &other.guest]);
    one.mr.write(0, b"not here").unwrap();
    let (remote_addr, rkey) = (other.mr.addr(), other.mr.rkey() ^ 1);
    one.post(1, SendOp::Write { remote_addr, rkey }, 0, 8);
    assert_eq!(one.done(1).status, WcStatus::Success);
    fence.pass();
    assert_eq!(other.bytes(0, 8), [0; 8]);
    assert_eq!(one.qp.query().unwrap().qp_state, Some(QpState::Rts));
    drop(([one, other], fence));
    scene.stop();
}

#[test]
fn reads_and_atomics_are_refused_by_uc() {
    let scene = Scene::new();
    let [one, other] = connection(&scene);
    let (remote_addr, rkey) = (other.mr.addr(), other.mr.rkey());
    let sges = [one.mr.sge(0, 8)];
    for op in [
        SendOp::Read { remote_addr, rkey },
        SendOp::FetchAdd { remote_addr, rkey, add: 1 },
        SendOp::CompareSwap { remote_addr, rkey, compare: 1, swap: 2 },
        SendOp::SendInvalidate(rkey),
    ] {
        let wr = SendWr { wr_id: 1, op, data: SendData::Sges(&sges), flags: SendFlags::SIGNALED };
        assert_eq!(errno(one.qp.post_send(&wr)), EINVAL, "{op:?}");
    }
    drop([one, other]);
    scene.stop();
}
