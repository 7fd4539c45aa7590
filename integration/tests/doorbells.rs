//! Thousands of queue pairs of a guest, rung and armed back to back from several threads, with relayed and with
//! direct doorbells: the daemon with its model, and the guest library.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::HashMap;
use std::sync::Barrier;

use integration::patience::{PATIENCE, eventually};
use paraverbs_verbs::{
    Access, AhAttr, CompChannel, Context, Cq, Doorbells as Way, Mr, Mtu, Pd, Qp, QpCap, QpInit, RtrAttr,
    RtsAttr, SendData, SendFlags, SendOp, SendWr, Wc, WcStatus,
};
use paraverbsd::Daemon;
use paraverbsd::config::{Config, Device, Doorbells, GuestEntry, GuestKind};
use tempfile::TempDir;

/// Threads, and pairs of connected queue pairs of each.
const THREADS: usize = 4;
const PAIRS: usize = 250;
/// How often each queue pair is posted to.
const ROUNDS: u32 = 4;
/// CQs that nobody uses: with them the objects don't fit into one doorbell area.
const IDLE: usize = 300;

struct Scene {
    // In the order in which they end.
    daemon: Daemon,
    folder: TempDir,
}

impl Scene {
    fn new(doorbells: Doorbells) -> Self {
        let _already = env_logger::builder().is_test(true).try_init();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("a");
        let guest = GuestEntry { doorbells, ..GuestEntry::new("a", socket, GuestKind::Process) };
        let config =
            Config { device: Device::default(), fabric_sockets: Vec::new(), guests: vec![guest], spin: None };
        Self { daemon: Daemon::start(&config).unwrap(), folder }
    }

    fn open(&self) -> Context {
        Context::connect(self.folder.path().join("a")).unwrap()
    }

    /// Ends the daemon, which must have nothing left of guests that are gone.
    fn stop(self) {
        let gone = || self.daemon.status().guests.iter().all(|guest| !guest.connected);
        eventually("the guest to be disconnected", || gone().then_some(()));
        assert_eq!(self.daemon.status().quarantined_bytes, 0);
        assert_eq!(self.daemon.refused_accesses(), 0);
        self.daemon.stop().unwrap();
    }
}

/// A queue pair with a CQ of its own. Fields in the order in which they go.
struct End {
    qp: Qp,
    cq: Cq,
}

impl End {
    fn new(guest: &Context, pd: &Pd, channel: &CompChannel) -> Self {
        let cq = guest.create_cq(ROUNDS, Some(channel)).unwrap();
        let cap = QpCap {
            max_send_wr: ROUNDS,
            max_recv_wr: 1,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 0,
        };
        let qp = pd.create_qp(&QpInit { cap, ..QpInit::new(&cq) }).unwrap();
        qp.to_init(1, Access::REMOTE_WRITE).unwrap();
        Self { qp, cq }
    }

    fn connect(&self, to: &Self, lid: u16) {
        let path = AhAttr::to_lid(lid, 1);
        self.qp.to_rtr(RtrAttr::new(path, to.qp.qpn(), 0, Mtu::B2048)).unwrap();
        self.qp.to_rts(RtsAttr::new(0)).unwrap();
    }

    fn post(&self, mr: &Mr, wr_id: u64) {
        let sges = [mr.sge(0, 8)];
        let op = SendOp::Write { remote_addr: mr.addr() + 64, rkey: mr.rkey() };
        let data = SendData::Sges(&sges);
        self.qp.post_send(&SendWr { wr_id, op, data, flags: SendFlags::SIGNALED }).unwrap();
    }
}

/// One thread's queue pairs, each connected to its neighbour.
struct Many {
    ends: Vec<End>,
    channel: CompChannel,
    mr: Mr,
    _pd: Pd,
}

impl Many {
    fn new(guest: &Context, pairs: usize) -> Self {
        let lid = guest.query_port(1).unwrap().lid;
        let channel = guest.create_comp_channel(0).unwrap();
        let pd = guest.alloc_pd().unwrap();
        let mr = pd.alloc_mr(4096, Access::LOCAL_WRITE | Access::REMOTE_WRITE).unwrap();
        let ends: Vec<_> = (0..2 * pairs).map(|_| End::new(guest, &pd, &channel)).collect();
        for pair in ends.chunks(2) {
            pair[0].connect(&pair[1], lid);
            pair[1].connect(&pair[0], lid);
        }
        Self { ends, channel, mr, _pd: pd }
    }

    fn arm(&self) {
        self.ends.iter().for_each(|end| end.cq.req_notify(false).unwrap());
    }

    fn post(&self, round: u64) {
        self.ends.iter().for_each(|end| end.post(&self.mr, round));
    }

    /// Waits for one event of each CQ, and no more.
    fn take_events(&self) {
        let mut events: HashMap<u32, u32> = HashMap::new();
        while events.len() < self.ends.len() {
            let event = self.channel.wait(PATIENCE).unwrap();
            let event = event.unwrap_or_else(|| panic!("{} of {} CQs", events.len(), self.ends.len()));
            *events.entry(event.cqn).or_default() += 1;
        }
        assert!(events.values().all(|count| *count == 1), "a CQ has told twice of one arm");
    }

    /// Takes the completions of a round: one of each queue pair.
    fn take_completions(&self, round: u64) {
        for end in &self.ends {
            let mut wc = [Wc::default(); 2];
            let polled = || Some(end.cq.poll(&mut wc).unwrap()).filter(|count| *count != 0);
            let count = eventually("a completion", polled);
            assert_eq!((count, wc[0].wr_id, wc[0].status), (1, round, WcStatus::Success), "{:?}", wc[0]);
            assert_eq!(wc[0].qp_num, end.qp.qpn());
        }
    }
}

fn thousands_lose_nothing(doorbells: Doorbells, way: Way) {
    let scene = Scene::new(doorbells);
    let guest = scene.open();
    assert_eq!(guest.doorbells().unwrap(), way);
    let idle: Vec<_> = (0..IDLE).map(|_| guest.create_cq(1, None).unwrap()).collect();
    let start = Barrier::new(THREADS);
    std::thread::scope(|threads| {
        for _ in 0..THREADS {
            threads.spawn(|| {
                let many = Many::new(&guest, PAIRS);
                start.wait();
                for round in 0..ROUNDS {
                    // Before the completion is there, or perhaps after it.
                    if round % 2 == 0 {
                        many.arm();
                        many.post(round.into());
                    } else {
                        many.post(round.into());
                        many.arm();
                    }
                    many.take_events();
                    many.take_completions(round.into());
                }
            });
        }
    });
    // A ring that comes before the last one of its slot was read is one with it: here each was waited for.
    let stats = scene.daemon.status().guests[0].stats.unwrap();
    let rings = u64::from(ROUNDS) * (2 * THREADS * PAIRS) as u64;
    assert_eq!((stats.send_doorbells.get(), stats.arm_doorbells.get()), (rings, rings));
    assert_eq!(stats.bad_doorbells.get(), 0);
    drop(idle);
    drop(guest);
    scene.stop();
}

#[test]
fn thousands_of_queue_pairs_lose_nothing_with_relayed_doorbells() {
    thousands_lose_nothing(Doorbells::Relayed, Way::Relayed);
}

#[test]
fn thousands_of_queue_pairs_lose_nothing_with_direct_doorbells() {
    thousands_lose_nothing(Doorbells::Direct, Way::Direct);
}

#[test]
fn queue_pairs_come_and_go_while_others_ring() {
    for (doorbells, way) in [(Doorbells::Relayed, Way::Relayed), (Doorbells::Auto, Way::Direct)] {
        let scene = Scene::new(doorbells);
        let guest = scene.open();
        assert_eq!(guest.doorbells().unwrap(), way);
        let rest = Many::new(&guest, 20);
        std::thread::scope(|threads| {
            let come_and_go = threads.spawn(|| {
                for _ in 0..20 {
                    let many = Many::new(&guest, 4);
                    many.arm();
                    many.post(0);
                    // Some go with requests and arms outstanding.
                }
            });
            let mut round = 0;
            while round < 10 || !come_and_go.is_finished() {
                rest.arm();
                rest.post(round);
                rest.take_events();
                rest.take_completions(round);
                round += 1;
            }
        });
        drop((rest, guest));
        scene.stop();
    }
}

#[test]
fn next_guest_of_a_socket_has_doorbells_of_its_own() {
    let scene = Scene::new(Doorbells::Direct);
    for _ in 0..5 {
        let guest = scene.open();
        assert_eq!(guest.doorbells().unwrap(), Way::Direct);
        let many = Many::new(&guest, 2);
        many.arm();
        many.post(0);
        many.take_events();
        many.take_completions(0);
    }
    scene.stop();
}
