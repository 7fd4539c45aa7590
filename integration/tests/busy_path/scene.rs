//! A daemon and two guests in this process, with a connection.

use std::time::Duration;

pub(crate) use integration::patience::{PATIENCE, eventually};
use paraverbs_verbs::{
    Access, AhAttr, CompChannel, Context, Cq, Mr, Mtu, Pd, Qp, QpCap, QpInit, RecvWr, RtrAttr, RtsAttr,
    SendData, SendFlags, SendOp, SendWr, Sge, Wc, WcStatus,
};
use paraverbsd::Daemon;
use paraverbsd::config::{Config, Device, GuestEntry, GuestKind};
use tempfile::TempDir;

/// Bytes of an end's memory.
pub(crate) const MEMORY: usize = 4 << 20;
/// Only one scene at a time, so that its threads can be told from another's.
static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// A daemon with two sockets for processes.
pub(crate) struct Scene {
    pub(crate) daemon: Daemon,
    folder: TempDir,
    _one: std::sync::MutexGuard<'static, ()>,
}

/// One end of the connection. Fields in the order in which they go.
pub(crate) struct End {
    pub(crate) qp: Qp,
    pub(crate) cq: Cq,
    pub(crate) channel: CompChannel,
    pub(crate) mr: Mr,
    _pd: Pd,
    lid: u16,
}

impl Scene {
    pub(crate) fn new(spin: Option<Duration>) -> Self {
        let one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let guest = |name: &str| GuestEntry::new(name, folder.path().join(name), GuestKind::Process);
        let config = Config {
            device: Device::Model { ports: 1 },
            fabric_sockets: Vec::new(),
            guests: vec![guest("a"), guest("b")],
            spin,
        };
        Self { daemon: Daemon::start(&config).unwrap(), folder, _one: one }
    }

    pub(crate) fn connection(&self) -> [End; 2] {
        self.connections(1).remove(0)
    }

    /// Queue pairs of one guest, each connected to one of the other.
    pub(crate) fn connections(&self, count: usize) -> Vec<[End; 2]> {
        let guests = ["a", "b"].map(|name| Context::connect(self.folder.path().join(name)).unwrap());
        let connected = |_| {
            let ends = guests.each_ref().map(End::new);
            ends[0].connect(&ends[1]);
            ends[1].connect(&ends[0]);
            ends
        };
        (0..count).map(connected).collect()
    }

    /// One of the model's counters.
    pub(crate) fn count(&self, name: &str) -> u64 {
        let counters = self.daemon.model().unwrap().counters();
        counters.iter().find(|(found, _)| *found == name).unwrap().1
    }

    pub(crate) fn stop(self) {
        self.daemon.stop().unwrap();
    }
}

impl End {
    fn new(guest: &Context) -> Self {
        let channel = guest.create_comp_channel(0).unwrap();
        let cq = guest.create_cq(64, Some(&channel)).unwrap();
        let pd = guest.alloc_pd().unwrap();
        let mr = pd.alloc_mr(MEMORY, Access::ALL).unwrap();
        let cap =
            QpCap { max_send_wr: 16, max_recv_wr: 16, max_send_sge: 3, max_recv_sge: 2, max_inline_data: 64 };
        let qp = pd.create_qp(&QpInit { cap, ..QpInit::new(&cq) }).unwrap();
        let lid = guest.query_port(1).unwrap().lid;
        Self { qp, cq, channel, mr, _pd: pd, lid }
    }

    fn connect(&self, to: &Self) {
        self.qp.to_init(1, Access::ALL).unwrap();
        let rtr = RtrAttr::new(AhAttr::to_lid(to.lid, 1), to.qp.qpn(), 0, Mtu::B2048);
        self.qp.to_rtr(RtrAttr { max_dest_rd_atomic: 4, ..rtr }).unwrap();
        self.qp.to_rts(RtsAttr { max_rd_atomic: 4, ..RtsAttr::new(0) }).unwrap();
    }

    /// Posts a signalled request of `length` bytes from `offset` of the memory.
    pub(crate) fn post(&self, wr_id: u64, op: SendOp, offset: usize, length: u32) {
        self.post_pieces(wr_id, op, &[self.mr.sge(offset, length)]);
    }

    /// Posts a signalled request of some pieces.
    pub(crate) fn post_pieces(&self, wr_id: u64, op: SendOp, sges: &[Sge]) {
        let data = SendData::Sges(sges);
        self.qp.post_send(&SendWr { wr_id, op, data, flags: SendFlags::SIGNALED }).unwrap();
    }

    /// Posts a receive of two pieces.
    pub(crate) fn receive(&self, wr_id: u64, sges: [Sge; 2]) {
        self.qp.post_recv(&RecvWr { wr_id, sges: &sges }).unwrap();
    }

    /// The next completion, which must be of a request and good.
    pub(crate) fn done(&self, wr_id: u64) {
        let mut wc = [Wc::default()];
        eventually("a completion", || (self.cq.poll(&mut wc).unwrap() == 1).then_some(()));
        assert_eq!((wc[0].wr_id, wc[0].status), (wr_id, WcStatus::Success), "{wc:?}");
    }
}
