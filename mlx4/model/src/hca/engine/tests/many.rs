//! Tens of thousands of objects on one HCA.

use mlx4_wire::Number24;
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{QpMailbox, QpState, ServiceType, WqSize};
use mlx4_wire::wqe::Opcode;
use zerocopy::FromZeros;

use super::connections::good;
use super::lab::Lab;
use super::machine::{Machine, PD, UAR};
use super::queues::{Done, QpConfig, TestCq, TestSrq, ctrl, whole};
use crate::hca::qp::Qp;

const QPS: u32 = 30_000;
const OTHERS: u32 = 10_000;
/// Above the numbers of everything else in the lab.
const FIRST: u32 = 0x1000;

/// Queue pairs in RTS that share the memory of their queues.
fn crowd(machine: &Machine, cq: &TestCq) {
    let (running, burst) = (machine.running(), machine.burst());
    let buffer = machine.pages(1);
    for slot in 0..16 {
        machine.write(buffer + 64 * slot, &[0x80, 0, 0, 0]);
    }
    let mut mailbox = QpMailbox::new_zeroed();
    let context = &mut mailbox.context;
    context.flags.set_service(ServiceType::RC);
    context.pd = Number24::wrapping(PD);
    context.sq_size = WqSize::new().with_log2_entries(4).with_log2_stride_less_4(2);
    context.rq_size = WqSize::from_bits(0xfc);
    context.uar_page = Number24::wrapping(UAR);
    context.send_cqn = Number24::wrapping(cq.cqn);
    context.receive_cqn = Number24::wrapping(cq.cqn);
    context.pages = machine.ring_pages(buffer, 1);
    for qpn in FIRST..FIRST + QPS {
        let qp = Qp::new(&burst, &running, qpn, &mailbox).unwrap();
        for opcode in [mlx4_wire::cmd::Opcode::INIT2RTR_QP, mlx4_wire::cmd::Opcode::RTR2RTS_QP] {
            qp.transition(&burst, &running, opcode, &QpMailbox::new_zeroed(), false).unwrap();
        }
        running.qps.insert(qpn, std::sync::Arc::new(qp));
    }
}

#[test]
fn crowd_of_objects_is_rung_flushed_dumped_and_stopped_while_others_work() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let config = QpConfig::new(ServiceType::RC);
    let (a, b) = lab.connect((0, config), (0, config));
    let cq = TestCq::new(machine, 6);
    crowd(machine, &cq);
    let (running, ring) = (machine.running(), machine.pages(1));
    for _ in 0..OTHERS {
        let (own, srq) = (TestCq::sharing(machine, ring), TestSrq::sharing(machine, ring));
        running.mpts.insert(own.cqn);
        assert_eq!(own.cq(machine).cqn + 1, srq.srqn);
    }
    let to = machine.buffer(64);
    let works = || {
        b.qp.post_receive(machine, &[whole(&to)]);
        a.qp.post(machine, ctrl(Opcode::SEND), &[]);
        assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
        assert_eq!(b.received(&lab), Done::Good { opcode: 1, bytes: 0 });
    };
    for qpn in FIRST..FIRST + QPS {
        machine.ring(qpn);
    }
    works();
    for qpn in FIRST..FIRST + QPS {
        running.qps.get(qpn).unwrap().error();
        machine.hca.engine.ring(qpn);
    }
    works();
    // One of them still has its queue, and its place.
    let last = running.qps.get(FIRST + QPS - 1).unwrap();
    assert_eq!((last.qpn, last.state()), (FIRST + QPS - 1, QpState::ERR));
    let dump = machine.hca.dump();
    assert!(dump.contains(&format!("{{\"qpn\":{},\"state\":\"ERR\"}}", FIRST + QPS - 1)));
    assert_eq!(dump.matches("\"qpn\"").count(), running.qps.iter().count());
    for qpn in FIRST..FIRST + QPS {
        let qp = running.qps.remove(qpn).unwrap();
        qp.reset();
    }
    works();
    a.qp.post(machine, ctrl(Opcode::RDMA_READ), &[[0; 16]]);
    assert_eq!(a.sent(&lab), good(Opcode::RDMA_READ, 0));
    b.qp.qp.error();
    a.qp.post(machine, ctrl(Opcode::SEND), &[]);
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
    machine.hca.stop_running();
    assert!(machine.hca.dump().contains("\"running\":false"));
}
