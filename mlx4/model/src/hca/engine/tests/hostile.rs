//! Queues full of nonsense, and the HCA stopped in the middle of work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::wqe::{CtrlSeg, Opcode};
use zerocopy::FromBytes;

use super::connections::{one_sided, remote};
use super::lab::Lab;
use super::machine::PD;
use super::queues::{QpConfig, TestCq, TestQp, TestSrq, Unit, ctrl, units, whole};

/// A generator of numbers that look random (xorshift).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn unit(&mut self) -> Unit {
        let [a, b] = [self.next(), self.next()].map(u64::to_ne_bytes);
        [a, b].concat().try_into().unwrap()
    }
}

const OPCODES: [Opcode; 14] = [
    Opcode::NOP,
    Opcode::SEND,
    Opcode::SEND_IMM,
    Opcode::RDMA_WRITE,
    Opcode::RDMA_WRITE_IMM,
    Opcode::RDMA_READ,
    Opcode::ATOMIC_CS,
    Opcode::ATOMIC_FA,
    Opcode::SEND_INVALIDATE,
    Opcode::MASKED_ATOMIC_CS,
    Opcode::MASKED_ATOMIC_FA,
    Opcode::BIND_MW,
    Opcode::LOCAL_INVALIDATE,
    Opcode::FAST_REGISTER,
];

const ROUNDS: usize = 240;
/// XRC domain.
const DOMAIN: u16 = 1;

#[test]
fn random_work_requests_harm_nobody() {
    let lab = Lab::new(2);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let bystander = lab.machines[1].buffer(4096);
    let queues = [0, 1].map(|m| (TestCq::new(&lab.machines[m], 10), TestCq::new(&lab.machines[m], 10)));
    let srq = TestSrq::xrc(&lab.machines[1], PD, &queues[1].1, DOMAIN);
    for round in 0..ROUNDS {
        use ServiceType as S;
        let service = [S::RC, S::UC, S::UD, S::MLX, S::XRC][round % 5];
        let domain = (service == S::XRC).then_some(DOMAIN);
        srq.post(&lab.machines[1], &[]);
        let config = QpConfig { ack_timeout: 1, retries: 0, rnr_retries: 0, ..QpConfig::new(service) };
        let ends = [0, 1].map(|m| {
            let config = QpConfig { xrcd: domain.filter(|_| m == 1), ..config };
            TestQp::new(&lab.machines[m], &queues[m].0, &queues[m].1, config)
        });
        for (m, end) in ends.iter().enumerate() {
            end.to_rtr(&lab.machines[m], ends[1 - m].qpn, lab.path(1 - m), 0);
            end.to_rts(&lab.machines[m], 0);
        }
        let known = lab.machines[0].buffer(300);
        for _ in 0..20 {
            // Lists with a good key now and then, else nobody gets far.
            let mut list: Vec<Unit> = (0..noise.below(15)).map(|_| noise.unit()).collect();
            for unit in &mut list {
                match noise.below(3) {
                    0 => *unit = units(&whole(&known))[0],
                    1 => unit[..2].copy_from_slice(&[if noise.below(2) == 0 { 0x80 } else { 0 }, 0]),
                    _ => {}
                }
            }
            let mut head = CtrlSeg::read_from_bytes(&noise.unit()).unwrap();
            let [any, ..] = noise.next().to_le_bytes();
            let known_opcode = OPCODES.get(usize::from(any >> 4)).copied();
            head.opcode.set_opcode(known_opcode.unwrap_or(Opcode(any & 0x1f)));
            if noise.below(2) != 0 {
                head.flags.set_remote_srqn(srq.srqn);
            }
            if noise.below(4) != 0 {
                head.size.set_units(0);
            }
            ends[0].put(&lab.machines[0], head, &list);
            let far = whole(&lab.machines[1].buffer(64));
            let noise_seg = FromBytes::read_from_bytes(&noise.unit()).unwrap();
            ends[1].post_receive(&lab.machines[1], &[far, noise_seg]);
        }
        lab.machines[0].ring(ends[0].qpn);
        lab.pass(Duration::from_millis(2));
        for (m, (send, receive)) in queues.iter().enumerate() {
            while send.poll(&lab.machines[m]).is_some() || receive.poll(&lab.machines[m]).is_some() {}
            lab.machines[m].take_events();
            lab.machines[m].running().qps.remove(ends[m].qpn);
            ends[m].qp.reset();
        }
    }
    assert_eq!(lab.machines[1].contents(&bystander), [0; 4096]);
    // None is stuck: each has at least failed, and been flushed.
    let counters = lab.machines[0].hca.counters();
    let executed = counters.send_wqes.get() + counters.datagram_sends.get();
    assert!(executed >= ROUNDS as u64 && counters.flushed_wqes.get() >= ROUNDS as u64);
}

#[test]
fn hca_that_stops_under_traffic_is_left_alone_at_once() {
    for stopped in [0, 1] {
        let lab = Lab::new(2);
        let config = QpConfig { ack_timeout: 1, ..QpConfig::new(ServiceType::RC) };
        let (a, b) = lab.connect((0, config), (1, config));
        let (from, to) = (lab.machine(&a).buffer(1 << 20), lab.machine(&b).buffer(1 << 20));
        let list = one_sided(&remote(&to, 0), &[whole(&from)]);
        for _ in 0..30 {
            a.qp.put(lab.machine(&a), ctrl(Opcode::RDMA_WRITE), &list);
        }
        let hcas = [0, 1].map(|m| lab.machines[m].hca.clone());
        let (started, done) = (AtomicBool::new(false), AtomicBool::new(false));
        lab.machine(&a).ring(a.qp.qpn);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    hcas[0].run();
                    started.store(true, Ordering::Release);
                }
            });
            while !started.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            let running = hcas[stopped].running.load_full().unwrap();
            hcas[stopped].stop_running();
            // What is in memory now stays: nobody writes any more.
            let (buffer, machine) =
                if stopped == 0 { (&from, &lab.machines[0]) } else { (&to, &lab.machines[1]) };
            machine.fill(buffer, &vec![7; 1 << 20]);
            std::thread::sleep(Duration::from_millis(5));
            assert!(machine.contents(buffer).iter().all(|byte| *byte == 7));
            drop(running);
            done.store(true, Ordering::Release);
        });
        if stopped == 0 {
            assert_eq!(a.qp.state(), QpState::RST);
        }
    }
}
