//! A daemon and two guests, and ends of connections between them.

use std::fmt::Debug;
use std::path::PathBuf;

pub(crate) use integration::patience::{PATIENCE, eventually};
use paraverbs_verbs::{
    Access, Ah, AhAttr, CompChannel, Context, Cq, Grh, Mr, Mtu, Pd, Qp, QpAttr, QpCap, QpInit, QpState,
    QpType, RecvWr, RtrAttr, RtsAttr, SendData, SendFlags, SendOp, SendWr, Srq, UdDest, Wc, WcStatus,
    XrcRecvQp,
};
use paraverbsd::Daemon;
use paraverbsd::config::{Config, Device, GuestEntry, GuestKind, GuestLimits};
use tempfile::TempDir;

/// Bytes of an end's memory.
pub(crate) const MEMORY: usize = 1 << 20;

/// A daemon with two sockets for processes.
pub(crate) struct Scene {
    pub(crate) daemon: Daemon,
    folder: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with_limits(GuestLimits::default())
    }

    pub(crate) fn with_limits(limits: GuestLimits) -> Self {
        let _already = env_logger::builder().is_test(true).try_init();
        let folder = tempfile::tempdir().unwrap();
        let guest = |name: &str| {
            let socket = folder.path().join(name);
            GuestEntry { limits: limits.clone(), ..GuestEntry::new(name, socket, GuestKind::Process) }
        };
        let config = Config {
            device: Device::Model { ports: 1 },
            fabric_sockets: Vec::new(),
            guests: vec![guest("a"), guest("b")],
            spin: None,
        };
        let daemon = Daemon::start(&config).unwrap();
        Self { daemon, folder }
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn open(&self, name: &str) -> Context {
        Context::connect(self.socket(name)).unwrap()
    }

    /// Both guests.
    pub(crate) fn guests(&self) -> [Context; 2] {
        ["a", "b"].map(|name| self.open(name))
    }

    /// A connection between the guests.
    pub(crate) fn connection(&self) -> [End; 2] {
        let ends = self.guests().map(|guest| End::new(&guest));
        connect(&ends);
        ends
    }

    /// Ends the daemon, which must have nothing left of guests that are gone.
    pub(crate) fn stop(self) {
        let gone = || self.daemon.status().guests.iter().all(|guest| !guest.connected);
        eventually("both guests to be disconnected", || gone().then_some(()));
        assert_eq!(self.daemon.status().quarantined_bytes, 0);
        assert_eq!(self.daemon.refused_accesses(), 0, "accesses of the HCA to memory that nobody gave it");
        self.daemon.stop().unwrap();
    }
}

/// The next completion of a CQ.
pub(crate) fn completion(cq: &Cq) -> Wc {
    eventually("a completion", || {
        let mut wc = [Wc::default()];
        (cq.poll(&mut wc).unwrap() == 1).then(|| wc[0])
    })
}

/// The error number of a verb that must fail.
pub(crate) fn errno<T: Debug>(result: paraverbs_verbs::Result<T>) -> i32 {
    let error = result.unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    error.errno()
}

/// One end of a connection: a queue pair with a CQ and memory of its own. Fields in the order in which they go.
pub(crate) struct End {
    pub(crate) qp: Qp,
    pub(crate) mr: Mr,
    pub(crate) cq: Cq,
    pub(crate) pd: Pd,
    pub(crate) channel: CompChannel,
    pub(crate) guest: Context,
}

/// What the queue pair of an end can hold, at least.
pub(crate) const CAP: QpCap =
    QpCap { max_send_wr: 16, max_recv_wr: 16, max_send_sge: 3, max_recv_sge: 2, max_inline_data: 200 };

impl End {
    pub(crate) fn new(guest: &Context) -> Self {
        Self::of_type(guest, QpType::Rc)
    }

    /// An end of another type than RC.
    pub(crate) fn of_type(guest: &Context, qp_type: QpType) -> Self {
        Self::with(guest, guest.alloc_pd().unwrap(), |init| QpInit { qp_type, ..init })
    }

    /// An end of RC whose queue pair and memory are in a domain that others use too.
    pub(crate) fn sharing(guest: &Context, pd: &Pd) -> Self {
        let end = Self::new(guest);
        let qp = pd.create_qp(&QpInit { cap: CAP, ..QpInit::new(&end.cq) }).unwrap();
        Self { qp, mr: pd.alloc_mr(MEMORY, Access::ALL).unwrap(), ..end }
    }

    /// An end of a type that receives by an SRQ.
    pub(crate) fn of_srq(guest: &Context, qp_type: QpType, srq: &Srq) -> Self {
        let cq = guest.create_cq(100, None).unwrap();
        let pd = guest.alloc_pd().unwrap();
        let mr = pd.alloc_mr(MEMORY, Access::ALL).unwrap();
        let init = QpInit { cap: CAP, qp_type, srq: Some(srq), ..QpInit::new(&cq) };
        let qp = pd.create_qp(&init).unwrap();
        Self { qp, mr, cq, pd, channel: guest.create_comp_channel(0).unwrap(), guest: guest.clone() }
    }

    /// An end in a domain, with a queue pair that is made as `change` says.
    pub(crate) fn with(
        guest: &Context,
        pd: Pd,
        change: impl for<'a> FnOnce(QpInit<'a>) -> QpInit<'a>,
    ) -> Self {
        let channel = guest.create_comp_channel(0).unwrap();
        let cq = guest.create_cq(100, Some(&channel)).unwrap();
        let mr = pd.alloc_mr(MEMORY, Access::ALL).unwrap();
        let qp = pd.create_qp(&change(QpInit { cap: CAP, ..QpInit::new(&cq) })).unwrap();
        Self { qp, mr, cq, pd, channel, guest: guest.clone() }
    }

    /// The path to this end's port.
    pub(crate) fn path(&self) -> AhAttr {
        AhAttr::to_lid(self.guest.query_port(1).unwrap().lid, 1)
    }

    /// Takes the queue pair of UC from RESET to RTS.
    pub(crate) fn connect_unreliably(&self, to: &Self) {
        let RtrAttr { ah_attr, dest_qp_num, rq_psn, path_mtu, .. } = to.rtr();
        self.qp.to_init(1, Access::ALL).unwrap();
        let rtr = QpAttr {
            ah_attr: Some(ah_attr),
            dest_qp_num: Some(dest_qp_num),
            rq_psn: Some(rq_psn),
            path_mtu: Some(path_mtu),
            ..QpAttr::state(QpState::Rtr)
        };
        self.qp.modify(&rtr).unwrap();
        self.qp.modify(&QpAttr { sq_psn: Some(self.psn()), ..QpAttr::state(QpState::Rts) }).unwrap();
    }

    /// Takes the queue pair of RC from RESET to RTS.
    pub(crate) fn connect(&self, to: &Self) {
        self.connect_with(to, Access::ALL);
    }

    /// The same, giving the other end certain rights.
    pub(crate) fn connect_with(&self, to: &Self, access: Access) {
        self.qp.to_init(1, access).unwrap();
        self.qp.to_rtr(to.rtr()).unwrap();
        self.qp.to_rts(self.rts()).unwrap();
    }

    /// What another end needs to receive from this one.
    pub(crate) fn rtr(&self) -> RtrAttr {
        let rtr = RtrAttr::new(self.path(), self.qp.qpn(), self.psn(), Mtu::B2048);
        RtrAttr { max_dest_rd_atomic: 4, ..rtr }
    }

    /// What this end needs to send.
    pub(crate) fn rts(&self) -> RtsAttr {
        RtsAttr { max_rd_atomic: 4, ..RtsAttr::new(self.psn()) }
    }

    fn psn(&self) -> u32 {
        self.qp.qpn().wrapping_mul(0x9e37) & 0xff_ffff
    }

    /// Posts a signalled request of `length` bytes from `offset` of the memory.
    pub(crate) fn post(&self, wr_id: u64, op: SendOp, offset: usize, length: u32) {
        let sges = [self.mr.sge(offset, length)];
        let data = SendData::Sges(&sges);
        self.qp.post_send(&SendWr { wr_id, op, data, flags: SendFlags::SIGNALED }).unwrap();
    }

    /// An address handle to another end, without or with a GRH.
    pub(crate) fn ah(&self, to: &Self, grh: bool) -> Ah {
        let dgid = to.guest.query_gid(1, 0).unwrap();
        let grh = grh.then_some(Grh { dgid, hop_limit: 1, ..Grh::default() });
        self.pd.create_ah(&AhAttr { grh, ..to.path() }).unwrap()
    }

    /// Posts a signalled datagram of `length` bytes from `offset` of the memory.
    pub(crate) fn post_datagram(&self, wr_id: u64, op: SendOp, offset: usize, length: u32, to: &UdDest<'_>) {
        let sges = [self.mr.sge(offset, length)];
        let data = SendData::Sges(&sges);
        self.qp.post_send_ud(&SendWr { wr_id, op, data, flags: SendFlags::SIGNALED }, to).unwrap();
    }

    /// Nothing has completed.
    pub(crate) fn nothing(&self) {
        let mut wc = [Wc::default()];
        assert_eq!(self.cq.poll(&mut wc).unwrap(), 0, "{wc:?}");
    }

    /// Posts a receive of `length` bytes at `offset` of the memory.
    pub(crate) fn receive(&self, wr_id: u64, offset: usize, length: u32) {
        self.qp.post_recv(&RecvWr { wr_id, sges: &[self.mr.sge(offset, length)] }).unwrap();
    }

    /// The next completion, which must be of a request and good.
    pub(crate) fn done(&self, wr_id: u64) -> Wc {
        let wc = completion(&self.cq);
        assert_eq!((wc.wr_id, wc.status, wc.qp_num), (wr_id, WcStatus::Success, self.qp.qpn()), "{wc:?}");
        wc
    }

    /// The next completion, which must be of a request, and a failure.
    pub(crate) fn failed(&self, wr_id: u64, status: WcStatus) {
        let wc = completion(&self.cq);
        assert_eq!((wc.wr_id, wc.status), (wr_id, status), "{wc:?}");
    }

    /// `length` bytes of the memory.
    pub(crate) fn bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.mr.read(offset, &mut bytes).unwrap();
        bytes
    }
}

/// A connection on which a message is sent when all that was posted before has been carried out, at both ends.
pub(crate) struct Fence([End; 2]);

impl Fence {
    pub(crate) fn new(guests: [&Context; 2]) -> Self {
        let ends = guests.map(End::new);
        connect(&ends);
        Self(ends)
    }

    /// What was posted before at either end and could be done is done.
    pub(crate) fn pass(&self) {
        let [one, other] = &self.0;
        for (from, to) in [(one, other), (other, one)] {
            to.receive(1, 0, 8);
            from.post(2, SendOp::Send, 0, 8);
            from.done(2);
            to.done(1);
        }
    }
}

pub(crate) fn connect([one, other]: &[End; 2]) {
    one.connect(other);
    other.connect(one);
}

/// Takes both ends of an extended connection from RESET to where the sender can send.
pub(crate) fn connect_extended(sender: &End, target: &XrcRecvQp) {
    let init = QpAttr {
        port_num: Some(1),
        pkey_index: Some(0),
        qp_access_flags: Some(Access::ALL),
        ..QpAttr::state(QpState::Init)
    };
    target.modify(&init).unwrap();
    target.modify(&sender.rtr().into()).unwrap();
    sender.qp.to_init(1, Access::NONE).unwrap();
    let rtr = QpAttr {
        ah_attr: Some(sender.path()),
        dest_qp_num: Some(target.qpn()),
        rq_psn: Some(0),
        path_mtu: Some(sender.rtr().path_mtu),
        ..QpAttr::state(QpState::Rtr)
    };
    sender.qp.modify(&rtr).unwrap();
    sender.qp.to_rts(sender.rts()).unwrap();
}

/// Two senders of one guest, and the ends of another one that they are connected to, which receive by one SRQ.
pub(crate) fn senders_to_srq(from: &Context, to: &Context, srq: &Srq) -> [[End; 2]; 2] {
    let receivers = [(), ()].map(|()| End::of_srq(to, QpType::Rc, srq));
    let senders = [(), ()].map(|()| End::new(from));
    for (sender, receiver) in senders.iter().zip(&receivers) {
        sender.connect(receiver);
        receiver.connect(sender);
    }
    [senders, receivers]
}
