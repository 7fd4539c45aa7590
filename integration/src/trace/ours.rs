//! Our driver against the stock one: what both gave the model for the same work, compared field by field.

use std::fs;
use std::path::Path as File;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mlx4::{
    Access, Attributes, CompletionQueue, Config, Event, EventSink, GlobalRoute, Hca, Path, Pd, PortEvent,
    QueuePair, QueuePairConfig, SharedReceiveQueue, Uar,
};
use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::{EngineThread, HcaConfig};
use mlx4_model::seam::ModelDevice;
use mlx4_model::trace::Trace;
use mlx4_pci::PciDevice;
use mlx4_queue::geometry::{SendSize, Service};
use mlx4_wire::ctx::qp::{Mtu, QpState};

use super::{Behaviour, Difference, bring_up, listed, parse, unexplained};

/// Node GUIDs of the HCAs, the first that of the recorded one.
const FIRST: u64 = 0x0002_c903_00a0_0000;
const SECOND: u64 = 0x0002_c903_00a0_0010;

/// How long a port may take to be ACTIVE.
const PATIENCE: Duration = Duration::from_secs(30);
const STOCK: &str = include_str!("../../../mlx4/wire/tests/golden/stock-6.12.trace");
const DOCUMENT: &str = include_str!("../../../docs/driver-differences.md");
/// The group of all nodes on IP over InfiniBand.
const GROUP: [u8; 16] = [0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];

/// Hands events to the test.
struct Events(Mutex<Sender<Event>>);

impl EventSink for Events {
    fn event(&self, event: &Event) {
        // The test may have ended.
        let _ended = self.0.lock().unwrap().send(*event);
    }
}

/// An HCA of the model with our driver.
struct Host {
    hca: Hca,
    events: Receiver<Event>,
    _engine: EngineThread,
    _device: Arc<ModelDevice>,
}

impl Host {
    fn open(fabric: &Arc<Fabric>, node_guid: u64, trace: &Arc<Trace>) -> Self {
        let config = HcaConfig { node_guid, ports: 1, trace: Some(Arc::clone(trace)) };
        let device = Arc::new(ModelDevice::new(config, fabric).unwrap());
        let engine = device.hca().start_engine().unwrap();
        let (sender, events) = channel();
        let config = Config { events: Arc::new(Events(Mutex::new(sender))), ..Config::default() };
        let seam: Arc<dyn PciDevice> = Arc::<ModelDevice>::clone(&device);
        let hca = Hca::open(seam, &config).unwrap();
        Self { hca, events, _engine: engine, _device: device }
    }

    /// Waits until the port is ACTIVE; returns its LID.
    fn active(&self) -> u16 {
        let active = Event::Port { port: 1, event: PortEvent::Active };
        while self.events.recv_timeout(PATIENCE).expect("the port becomes ACTIVE") != active {}
        self.hca.port(1).unwrap().lid
    }
}

/// What queue pairs are made of.
struct Parts {
    pd: Pd,
    uar: Uar,
    cq: CompletionQueue,
    srq: SharedReceiveQueue,
}

impl Parts {
    fn new(hca: &Hca) -> Self {
        let (pd, uar) = (hca.pd().unwrap(), hca.uar().unwrap());
        let cq = hca.completion_queue(256, &uar, 0, || {}).unwrap();
        let srq = hca.shared_receive_queue(&pd, 64, 1).unwrap();
        Self { pd, uar, cq, srq }
    }

    fn queue_pair(&self, hca: &Hca, service: Service, shared: bool) -> QueuePair {
        let config = QueuePairConfig {
            service,
            pd: &self.pd,
            uar: &self.uar,
            send_cq: &self.cq,
            receive_cq: &self.cq,
            send: SendSize { requests: 64, sges: 1, inline: 0 },
            receives: 64,
            receive_sges: 1,
            srq: shared.then_some(&self.srq),
        };
        hca.queue_pair(&config).unwrap()
    }

    fn destroy(self) {
        self.srq.destroy().unwrap();
        self.cq.destroy().unwrap();
    }
}

/// Takes a connected queue pair to RTS with the attributes that ibv_rc_pingpong gives.
fn connect(qp: &QueuePair, remote: &QueuePair, path: Path, reliable: bool) {
    let access = Access { local_write: false, remote_read: false, remote_write: false, remote_atomic: false };
    let init =
        Attributes { pkey_index: Some(0), port: Some(1), access: Some(access), ..Attributes::default() };
    qp.modify(QpState::INIT, &init).unwrap();
    let mut rtr = Attributes {
        path: Some(path),
        mtu: Some(Mtu::MTU_1024),
        remote_qpn: Some(remote.number()),
        receive_psn: Some(0x12_3456),
        ..Attributes::default()
    };
    let mut rts = Attributes { send_psn: Some(0x12_3456), ..Attributes::default() };
    if reliable {
        (rtr.responder_reads, rtr.min_rnr_timer) = (Some(1), Some(12));
        (rts.timeout, rts.retry_count, rts.rnr_retry) = (Some(14), Some(7), Some(7));
        rts.requester_reads = Some(1);
    }
    qp.modify(QpState::RTR, &rtr).unwrap();
    qp.modify(QpState::RTS, &rts).unwrap();
}

/// Queue pairs of both ends connected as `ibv_*_pingpong` do, with and without a shared receive queue.
fn connected(hosts: &[Host; 2], parts: &[Parts; 2], lids: [u16; 2]) {
    for (service, shared) in [(Service::Rc, false), (Service::Rc, true), (Service::Uc, false)] {
        let [a, b] = [0, 1].map(|i| parts[i].queue_pair(&hosts[i].hca, service, shared));
        let reliable = service == Service::Rc;
        connect(&a, &b, Path::local(1, lids[1], 0), reliable);
        let dgid = hosts[0].hca.gids(1).unwrap()[0];
        let grh = GlobalRoute { dgid, sgid_index: 0, hop_limit: 1, traffic_class: 0, flow_label: 0 };
        connect(&b, &a, Path { grh: Some(grh), ..Path::local(1, lids[0], 0) }, reliable);
        a.query().unwrap();
        a.destroy().unwrap();
        b.destroy().unwrap();
    }
}

/// A datagram queue pair in a multicast group, as ib_ipoib makes it.
fn datagrams(host: &Host, parts: &Parts) {
    let qp = parts.queue_pair(&host.hca, Service::Ud, false);
    let init = Attributes { pkey_index: Some(0), port: Some(1), qkey: Some(0x0b1b), ..Attributes::default() };
    qp.modify(QpState::INIT, &init).unwrap();
    qp.modify(QpState::RTR, &Attributes::default()).unwrap();
    qp.modify(QpState::RTS, &Attributes { send_psn: Some(0), ..Attributes::default() }).unwrap();
    host.hca.attach_multicast(qp.object(), &GROUP, true).unwrap();
    host.hca.detach_multicast(qp.object(), &GROUP).unwrap();
    qp.modify(QpState::ERR, &Attributes::default()).unwrap();
    qp.destroy().unwrap();
}

/// Brings two HCAs up, makes objects of every kind, and takes everything down; the trace of that.
fn run(trace: &Arc<Trace>) {
    let fabric = Fabric::new(FabricConfig::default()).unwrap();
    let hosts = [FIRST, SECOND].map(|guid| Host::open(&fabric, guid, trace));
    let lids = [hosts[0].active(), hosts[1].active()];
    let parts = [Parts::new(&hosts[0].hca), Parts::new(&hosts[1].hca)];
    let memory = hosts[0].hca.memory(&parts[0].pd, 8192, Access::ALL).unwrap();
    connected(&hosts, &parts, lids);
    datagrams(&hosts[0], &parts[0]);
    memory.destroy().unwrap();
    parts.into_iter().for_each(Parts::destroy);
    hosts.into_iter().for_each(|host| host.hca.close().unwrap());
}

#[test]
fn our_driver_differs_from_the_stock_one_only_as_the_document_says() {
    let folder = tempfile::tempdir().unwrap();
    let file: &File = &folder.path().join("trace");
    run(&Arc::new(Trace::create(file).unwrap()));
    let ours = parse(&fs::read_to_string(file).unwrap()).unwrap();
    let stock = parse(STOCK).unwrap();
    let mut found = Behaviour::of(&stock).differences(&Behaviour::of(&ours));
    let [before, after] = [&stock, &ours].map(|records| bring_up(records, FIRST).join(", "));
    if before != after {
        let [command, field] = ["bring-up", "sequence"].map(str::to_owned);
        found.push(Difference { command, field, stock: before, ours: after });
    }
    let wrong = unexplained(&found, &listed(DOCUMENT));
    assert!(wrong.is_empty(), "docs/driver-differences.md:\n{}", wrong.join("\n"));
}
