//! What runs do with the driver, so that it reads a structure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mlx4::{
    Access, Attributes, CompletionQueue, Error, Event, Gid, GlobalRoute, MadAddress, MadQueue, Path,
    PortEvent, QpEventKind, QueuePair, QueuePairConfig, RegisteredMemory, SharedReceiveQueue,
};
use mlx4_queue::geometry::{SendSize, Service};
use mlx4_queue::request::{Data, Operation, Remote, SendFlags, SendRequest};
use mlx4_queue::{Completed, Completion, Notify};
use mlx4_wire::ctx::qp::{Mtu, QpState};
use mlx4_wire::mad::{MAD_SIZE, QP1_QKEY};

use super::lab::Bench;

type Told = Result<String, Error>;

/// Nothing: what bring-up does is enough.
pub fn nothing(_: &Bench<'_>) -> Told {
    Ok(String::new())
}

/// Asks for the attributes of the port.
pub fn port(bench: &Bench<'_>) -> Told {
    bench.hca.port(1).map(|port| format!("{port:?}"))
}

/// Asks for what the device says of itself.
pub fn node(bench: &Bench<'_>) -> Told {
    bench.hca.node_info().map(|info| format!("{info:?}"))
}

/// Asks for both tables of the port.
pub fn port_tables(bench: &Bench<'_>) -> Told {
    Ok(format!("{:?} {:?}", bench.hca.gids(1)?, bench.hca.pkeys(1)?))
}

fn wait_for_active(bench: &Bench<'_>) -> Result<(), Error> {
    bench.told.wait(|event| matches!(event, Event::Port { event: PortEvent::Active, .. })).map(drop)
}

/// Brings the port up.
pub fn active(bench: &Bench<'_>) -> Told {
    wait_for_active(bench)?;
    Ok("active".into())
}

/// Brings the port up; returns what it was told before.
pub fn lid(bench: &Bench<'_>) -> Told {
    wait_for_active(bench)?;
    Ok(bench.told.before_active())
}

/// Brings the port up, and waits until it is told that one of its tables has changed.
pub fn table(bench: &Bench<'_>) -> Told {
    wait_for_active(bench)?;
    let tables = [PortEvent::Gids, PortEvent::Pkeys, PortEvent::VirtualLanes];
    bench.told.wait(|event| matches!(event, Event::Port { event, .. } if tables.contains(event)))?;
    Ok("told".into())
}

/// Sends a datagram from QP1, with each service level.
pub fn send_mad(bench: &Bench<'_>) -> Told {
    wait_for_active(bench)?;
    let to = MadAddress { dlid: 1, sl: 0, path_bits: 0, qpn: 1, qkey: QP1_QKEY, pkey_index: 0, grh: None };
    for sl in 0..16 {
        bench.hca.send_mad(1, MadQueue::Gsi, &MadAddress { sl, ..to }, &[0; MAD_SIZE])?;
    }
    Ok("sent".into())
}

/// A queue pair, with what it works with.
struct Parts<'a> {
    bench: &'a Bench<'a>,
    cq: CompletionQueue,
    srq: Option<SharedReceiveQueue>,
    qp: QueuePair,
    memory: RegisteredMemory,
    notified: Arc<AtomicBool>,
}

impl<'a> Parts<'a> {
    fn new(bench: &'a Bench<'a>, service: Service, completions: u32, shared: bool) -> Result<Self, Error> {
        let hca = bench.hca;
        let (pd, uar) = (hca.pd()?, hca.uar()?);
        let notified = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&notified);
        let cq = hca.completion_queue(completions, &uar, 0, move || flag.store(true, Ordering::SeqCst))?;
        let memory = hca.memory(&pd, 4096, Access::ALL)?;
        let srq = if shared { Some(hca.shared_receive_queue(&pd, 15, 1)?) } else { None };
        let config = QueuePairConfig {
            service,
            pd: &pd,
            uar: &uar,
            send_cq: &cq,
            receive_cq: &cq,
            send: SendSize { requests: 16, sges: 1, inline: 0 },
            receives: 16,
            receive_sges: 1,
            srq: srq.as_ref(),
        };
        let qp = hca.queue_pair(&config)?;
        Ok(Self { bench, cq, srq, qp, memory, notified })
    }

    /// Takes it to INIT.
    fn init(&self) -> Result<(), Error> {
        let datagram = self.qp.object().service() == mlx4_wire::ctx::qp::ServiceType::UD;
        let init = Attributes {
            port: Some(1),
            pkey_index: Some(0),
            qkey: datagram.then_some(1),
            access: (!datagram).then_some(Access::ALL),
            ..Attributes::default()
        };
        self.qp.modify(QpState::INIT, &init)
    }

    /// Takes it from INIT to RTS, connected to itself at a LID.
    fn connect(&self, lid: u16) -> Result<(), Error> {
        self.connect_by(Path::local(1, lid, 0))
    }

    fn connect_by(&self, path: Path) -> Result<(), Error> {
        let rtr = Attributes {
            path: Some(path),
            mtu: Some(Mtu::MTU_1024),
            remote_qpn: Some(self.qp.number()),
            receive_psn: Some(7),
            responder_reads: Some(4),
            min_rnr_timer: Some(12),
            ..Attributes::default()
        };
        self.qp.modify(QpState::RTR, &rtr)?;
        let rts = Attributes {
            send_psn: Some(7),
            timeout: Some(14),
            retry_count: Some(7),
            rnr_retry: Some(6),
            requester_reads: Some(4),
            ..Attributes::default()
        };
        self.qp.modify(QpState::RTS, &rts)
    }

    fn post_receives(&self, count: u64) -> Result<(), Error> {
        for id in 0..count {
            match &self.srq {
                Some(srq) => srq.post(id, &[self.memory.piece(0, 64)])?,
                None => self.qp.post_receive([(id, &[self.memory.piece(0, 64)][..])])?,
            }
        }
        Ok(())
    }

    fn post(&self, operation: Operation) -> Result<(), Error> {
        let flags = SendFlags { signalled: true, ..SendFlags::default() };
        let piece = [self.memory.piece(128, 64)];
        let data = Data::Pieces(&piece);
        Ok(self.qp.post_send(&[SendRequest { wr_id: 99, operation, data, flags, destination: None }])?)
    }

    /// Waits for so many completions.
    fn completions(&self, count: usize) -> Result<Vec<Completion>, Error> {
        let mut found = Vec::new();
        self.bench.told.eventually(|| {
            let own = |mut completion: Completion| {
                // Numbers of queue pairs differ from run to run.
                completion.qpn = completion.qpn.wrapping_sub(self.qp.number());
                if let Completed::Received(received) = &mut completion.outcome {
                    received.source_qpn = received.source_qpn.wrapping_sub(self.qp.number());
                }
                completion
            };
            self.cq.poll(count - found.len(), |completion| found.push(own(completion)))?;
            Ok((found.len() == count).then_some(()))
        })?;
        // Both sides of a message complete in any order.
        found.sort_by_key(|completion| completion.wr_id);
        Ok(found)
    }

    fn flush(&self) -> Result<(), Error> {
        self.qp.modify(QpState::ERR, &Attributes::default())
    }

    /// Destroys everything, whatever came of the work.
    fn end<T>(self, result: Result<T, Error>) -> Result<T, Error> {
        let ends = self.qp.destroy();
        let ends = ends.and(self.srq.map_or(Ok(()), SharedReceiveQueue::destroy));
        let ends = ends.and(self.cq.destroy()).and(self.memory.destroy());
        result.and_then(|found| ends.map(|()| found))
    }
}

/// Makes the parts, works with them, and destroys them.
fn with(
    bench: &Bench<'_>,
    service: Service,
    (completions, shared): (u32, bool),
    work: impl FnOnce(&Parts<'_>) -> Told,
) -> Told {
    let parts = Parts::new(bench, service, completions, shared)?;
    let result = work(&parts);
    parts.end(result)
}

/// Flushes receive requests.
pub fn flush(bench: &Bench<'_>) -> Told {
    with(bench, Service::Ud, (16, false), |parts| {
        parts.init()?;
        parts.post_receives(4)?;
        parts.flush()?;
        parts.completions(4).map(|found| format!("{found:?}"))
    })
}

/// Waits for the event of a completion.
pub fn notified(bench: &Bench<'_>) -> Told {
    with(bench, Service::Ud, (16, false), |parts| {
        parts.init()?;
        parts.post_receives(1)?;
        parts.cq.arm(Notify::Next);
        parts.flush()?;
        bench.told.eventually(|| Ok(parts.notified.load(Ordering::SeqCst).then_some(())))?;
        Ok("notified".into())
    })
}

/// Has a completion queue overrun.
pub fn overrun(bench: &Bench<'_>) -> Told {
    with(bench, Service::Ud, (3, false), |parts| {
        parts.init()?;
        parts.post_receives(8)?;
        parts.flush()?;
        let event = bench.told.wait(|event| matches!(event, Event::CqError { .. }))?;
        Ok(format!("{event:?}"))
    })
}

/// Drains a send queue.
pub fn drained(bench: &Bench<'_>) -> Told {
    with(bench, Service::Rc, (16, false), |parts| {
        parts.init()?;
        parts.connect(1)?;
        parts.qp.modify(QpState::SQD, &Attributes { drained_event: true, ..Attributes::default() })?;
        let told = |event: &Event| matches!(event, Event::Qp { event: QpEventKind::SendDrained, .. });
        bench.told.wait(told).map(|event| format!("{event:?}"))
    })
}

/// Asks for a queue pair as it is in RTS.
pub fn query_qp(bench: &Bench<'_>) -> Told {
    with(bench, Service::Rc, (16, false), |parts| {
        parts.init()?;
        let route =
            GlobalRoute { dgid: [7; 16], sgid_index: 2, hop_limit: 3, traffic_class: 4, flow_label: 5 };
        parts.connect_by(Path { grh: Some(route), ..Path::local(1, 5, 3) })?;
        parts.qp.query().map(|status| format!("{status:?}"))
    })
}

/// Asks for a completion queue in which something is.
pub fn query_cq(bench: &Bench<'_>) -> Told {
    with(bench, Service::Ud, (16, false), |parts| {
        parts.init()?;
        parts.post_receives(4)?;
        parts.flush()?;
        parts.completions(3)?;
        parts.cq.query().map(|state| format!("{state:?}"))
    })
}

/// Asks for the limit of an SRQ.
pub fn query_srq(bench: &Bench<'_>) -> Told {
    with(bench, Service::Rc, (16, true), |parts| {
        let srq = parts.srq.as_ref().ok_or(Error::Exhausted("SRQ"))?;
        srq.object().arm(5)?;
        srq.object().limit().map(|limit| format!("{limit}"))
    })
}

/// Two queue pairs join a group and leave it.
pub fn join(bench: &Bench<'_>) -> Told {
    let make = || Parts::new(bench, Service::Ud, 16, false);
    let (first, second) = (make()?, make()?);
    let group: Gid = [0xff; 16];
    let members = [first.qp.object(), second.qp.object()];
    let joined = members.iter().try_for_each(|qp| bench.hca.attach_multicast(qp, &group, false));
    let left = members.iter().try_for_each(|qp| bench.hca.detach_multicast(qp, &group));
    first.end(second.end(joined.and(left).map(|()| "left".into())))
}

/// One operation on a connection of a queue pair with itself, both sides of which complete.
fn message(bench: &Bench<'_>, shared: bool, operation: fn(Remote) -> Operation, completions: usize) -> Told {
    wait_for_active(bench)?;
    let lid = bench.hca.port(1)?.lid;
    with(bench, Service::Rc, (16, shared), |parts| {
        parts.init()?;
        parts.post_receives(if completions == 2 { 3 } else { 0 })?;
        parts.connect(lid)?;
        let (address, rkey) = (parts.memory.address(1024), parts.memory.region().rkey());
        parts.post(operation(Remote { address, rkey }))?;
        parts.completions(completions).map(|found| format!("{found:?}"))
    })
}

/// A message with immediate data.
pub fn send(bench: &Bench<'_>) -> Told {
    message(bench, false, |_| Operation::SendImm([1, 2, 3, 4]), 2)
}

/// A message into a shared receive queue.
pub fn send_shared(bench: &Bench<'_>) -> Told {
    message(bench, true, |_| Operation::Send, 2)
}

/// An RDMA read.
pub fn read(bench: &Bench<'_>) -> Told {
    message(bench, false, Operation::Read, 1)
}

/// An RDMA write with immediate data.
pub fn write(bench: &Bench<'_>) -> Told {
    message(bench, false, |remote| Operation::WriteImm(remote, [1, 2, 3, 4]), 2)
}

/// A message of a shared receive queue that has fewer requests than its limit then.
pub fn limit(bench: &Bench<'_>) -> Told {
    wait_for_active(bench)?;
    let lid = bench.hca.port(1)?.lid;
    with(bench, Service::Rc, (16, true), |parts| {
        parts.post_receives(3)?;
        let srq = parts.srq.as_ref().ok_or(Error::Exhausted("SRQ"))?;
        srq.object().arm(3)?;
        parts.init()?;
        parts.connect(lid)?;
        parts.post(Operation::Send)?;
        let own = |event: &Event| *event == Event::Srq { srqn: srq.object().number(), limit: true };
        bench.told.wait(own).map(|_| "told".into())
    })
}

/// Waits until the device is told to have failed.
pub fn alive(bench: &Bench<'_>) -> Told {
    for _ in 0..40 {
        bench.hca.port(1)?;
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok("alive".into())
}
