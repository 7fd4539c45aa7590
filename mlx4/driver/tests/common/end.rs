//! Queue pairs that are connected to each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mlx4::{
    Access, Attributes, CompletionQueue, Hca, Path, Pd, Qp, QpRights, QueuePair, QueuePairConfig,
    RegisteredMemory, Uar,
};
use mlx4_queue::geometry::{SendSize, Service};
use mlx4_queue::request::{Data, Operation, SendFlags, SendRequest};
use mlx4_queue::{Completed, Completion};
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{Mtu, QpState};

use super::{Pair, eventually};

/// Completes also if all goes well.
pub const SIGNALLED: SendFlags = SendFlags { signalled: true, solicited: false, fence: false };

/// A signalled request of a connection.
pub fn request(wr_id: u64, operation: Operation, data: Data<'_>) -> SendRequest<'_> {
    SendRequest { wr_id, operation, data, flags: SIGNALLED, destination: None }
}

/// Waits until a send request has failed; why.
pub fn failed(end: &End, wr_id: u64) -> Syndrome {
    let completion = end.completion();
    assert_eq!(completion.wr_id, wr_id, "{completion:?}");
    match completion.outcome {
        Completed::Failed { send: true, syndrome, .. } => syndrome,
        other => panic!("{other:?}"),
    }
}

/// Waits until a send request is done; returns the bytes that it brought.
pub fn sent(end: &End, wr_id: u64) -> u32 {
    let completion = end.completion();
    assert_eq!(completion.wr_id, wr_id, "{completion:?}");
    match completion.outcome {
        Completed::Sent { bytes, .. } => bytes,
        other => panic!("{other:?}"),
    }
}

/// Bytes of an end's memory.
pub const MEMORY: usize = 1 << 20;

/// One end of a connection: a queue pair with a completion queue and memory.
pub struct End {
    pub pd: Pd,
    pub uar: Uar,
    pub cq: CompletionQueue,
    pub qp: QueuePair,
    pub memory: RegisteredMemory,
    pub notified: Arc<AtomicU32>,
}

impl End {
    pub fn new(hca: &Hca, service: Service) -> Self {
        Self::of(hca, service, QpRights::default())
    }

    /// The end of a reliable connection, whose requests may do what is not for everybody.
    pub fn with_rights(hca: &Hca, rights: QpRights) -> Self {
        Self::of(hca, Service::Rc, rights)
    }

    pub fn of(hca: &Hca, service: Service, rights: QpRights) -> Self {
        let (pd, uar) = (hca.pd().unwrap(), hca.uar().unwrap());
        let notified = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&notified);
        let cq = hca
            .completion_queue(256, &uar, 1, move || {
                count.fetch_add(1, Ordering::SeqCst);
            })
            .unwrap();
        let memory = hca.memory(&pd, MEMORY, Access::ALL).unwrap();
        let config = QueuePairConfig {
            service,
            pd: &pd,
            uar: &uar,
            send_cq: &cq,
            receive_cq: &cq,
            send: SendSize { requests: 64, sges: 4, inline: 128 },
            receives: 64,
            receive_sges: 4,
            srq: None,
        };
        let qp = hca.queue_pair_with(&config, rights).unwrap();
        Self { pd, uar, cq, qp, memory, notified }
    }

    /// Another queue pair of a reliable connection, with the same domain and completion queue.
    pub fn sibling(&self, hca: &Hca) -> QueuePair {
        let config = QueuePairConfig {
            service: Service::Rc,
            pd: &self.pd,
            uar: &self.uar,
            send_cq: &self.cq,
            receive_cq: &self.cq,
            send: SendSize { requests: 8, sges: 1, inline: 0 },
            receives: 8,
            receive_sges: 1,
            srq: None,
        };
        hca.queue_pair(&config).unwrap()
    }

    /// Two ends of a connection between two HCAs.
    pub fn connected(pair: &Pair) -> [Self; 2] {
        let ends = [Self::new(&pair.hosts[0].hca, Service::Rc), Self::new(&pair.hosts[1].hca, Service::Rc)];
        ends[0].connect(pair.lids[1], ends[1].qp.number());
        ends[1].connect(pair.lids[0], ends[0].qp.number());
        ends
    }

    /// Takes the queue pair to RTS with a Q_Key, for datagrams.
    pub fn start_datagrams(&self, qkey: u32) {
        let init =
            Attributes { port: Some(1), pkey_index: Some(0), qkey: Some(qkey), ..Attributes::default() };
        self.qp.modify(QpState::INIT, &init).unwrap();
        self.qp.modify(QpState::RTR, &Attributes::default()).unwrap();
        let rts = Attributes { send_psn: Some(0), ..Attributes::default() };
        self.qp.modify(QpState::RTS, &rts).unwrap();
    }

    /// Connects two ends again, at least one of which is in error.
    pub fn reconnect(pair: &Pair, ends: [&Self; 2]) {
        ends.iter().for_each(|end| end.qp.modify(QpState::RST, &Attributes::default()).unwrap());
        ends[0].connect(pair.lids[1], ends[1].qp.number());
        ends[1].connect(pair.lids[0], ends[0].qp.number());
    }

    /// Takes the queue pair to RTS, connected to another one.
    pub fn connect(&self, lid: u16, qpn: u32) {
        connect(&self.qp, lid, qpn);
    }

    /// Waits for a completion.
    pub fn completion(&self) -> Completion {
        eventually("a completion", || {
            let mut found = None;
            self.cq.poll(1, |completion| found = Some(completion)).unwrap();
            found
        })
    }

    pub fn destroy(self) {
        self.qp.destroy().unwrap();
        self.cq.destroy().unwrap();
        self.memory.destroy().unwrap();
    }
}

/// Takes a queue pair to RTS, connected to another one.
pub fn connect(qp: &QueuePair, lid: u16, qpn: u32) {
    connect_from(qp, 1, lid, qpn);
}

/// Takes a queue pair of a port to RTS, connected to another one.
pub fn connect_from(qp: &QueuePair, port: u8, lid: u16, qpn: u32) {
    connect_by(|to, attributes| qp.modify(to, attributes), (port, lid), qpn);
}

/// As [`connect`], for a queue pair in anybody's memory.
pub fn connect_object(qp: &Qp, lid: u16, qpn: u32) {
    connect_by(|to, attributes| qp.modify(to, attributes), (1, lid), qpn);
}

fn connect_by(modify: impl Fn(QpState, &Attributes) -> mlx4::Result<()>, (port, lid): (u8, u16), qpn: u32) {
    let init = Attributes {
        port: Some(port),
        pkey_index: Some(0),
        access: Some(Access::ALL),
        ..Attributes::default()
    };
    modify(QpState::INIT, &init).unwrap();
    let rtr = Attributes {
        path: Some(Path::local(port, lid, 0)),
        mtu: Some(Mtu::MTU_2048),
        remote_qpn: Some(qpn),
        receive_psn: Some(0x1000),
        responder_reads: Some(4),
        min_rnr_timer: Some(12),
        ..Attributes::default()
    };
    modify(QpState::RTR, &rtr).unwrap();
    let rts = Attributes {
        send_psn: Some(0x1000),
        timeout: Some(14),
        retry_count: Some(7),
        rnr_retry: Some(7),
        requester_reads: Some(4),
        ..Attributes::default()
    };
    modify(QpState::RTS, &rts).unwrap();
}
