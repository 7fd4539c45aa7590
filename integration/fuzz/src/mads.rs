//! Management datagrams that no honest node sends, to what answers them: the agents of a channel adapter and a
//! switch by themselves, and a whole fabric with its subnet manager and administrator and two drivers.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use arbitrary::Arbitrary;
use mlx4::{Config, Hca, MadAddress, MadQueue, MadSink, Profile, ReceivedMad};
use mlx4_model::fabric::Fabric;
use mlx4_model::node::{MadInput, NodeConfig, NodeState};
use mlx4_model::seam::ModelDevice;
use mlx4_wire::mad::header::{MadHeader, Method, MgmtClass};
use mlx4_wire::mad::{MAD_SIZE, QP1_QKEY};
use mlx4_wire::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::input::{one, operations};
use crate::parts::{card, eventually, fabric, seam, settle, within};

/// Ports of the switch that stands alone.
const SWITCH_PORTS: u8 = 8;

/// Class and version of datagrams: subnet management by LID and by path, administration, performance, devices.
const CLASSES: [(u8, u8); 7] = [(0x01, 1), (0x81, 1), (0x03, 2), (0x04, 1), (0x06, 1), (0x07, 2), (0x09, 1)];
const METHODS: [u8; 12] = [0x01, 0x02, 0x81, 0x05, 0x06, 0x86, 0x12, 0x13, 0x15, 0x92, 0x95, 0x07];
const ATTRIBUTES: [u16; 24] = [
    0x01, 0x02, 0x03, 0x10, 0x11, 0x12, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1d, 0x20, 0x30,
    0x31, 0x33, 0x34, 0x35, 0x38, 0x39, 0xff90,
];

#[derive(Arbitrary, Debug)]
struct Mad<'a> {
    class: u8,
    method: u8,
    attribute: u8,
    modifier: u32,
    transaction: u8,
    /// Status, or hop pointer and count.
    status: u16,
    specific: u16,
    /// Another value for a byte of the header.
    wrong: Option<(u8, u8)>,
    /// What follows the header, from an offset on, and what fills the rest.
    fill: bool,
    at: u8,
    body: &'a [u8],
}

impl Mad<'_> {
    fn bytes(&self) -> [u8; MAD_SIZE] {
        let (class, version) = one(&CLASSES, self.class);
        let mut mad = [if self.fill { 0xff } else { 0 }; MAD_SIZE];
        let header = MadHeader {
            base_version: 1,
            mgmt_class: MgmtClass(class),
            class_version: version,
            method: Method(one(&METHODS, self.method)),
            transaction_id: U64::new(self.transaction.into()),
            attribute_id: U16::new(one(&ATTRIBUTES, self.attribute)),
            attribute_modifier: U32::new(self.modifier),
            ..MadHeader::new_zeroed()
        };
        let size = size_of::<MadHeader>();
        mad[..size].copy_from_slice(header.as_bytes());
        mad[4..6].copy_from_slice(&self.status.to_be_bytes());
        mad[6..8].copy_from_slice(&self.specific.to_be_bytes());
        if let Some((at, value)) = self.wrong {
            mad[usize::from(at) % size] = value;
        }
        let at = size + usize::from(self.at) % (MAD_SIZE - size);
        let length = self.body.len().min(MAD_SIZE - at);
        mad[at..at + length].copy_from_slice(&self.body[..length]);
        mad
    }
}

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Process { port: u8, trusted: bool, slid: u16, mad: Mad<'a> },
    Link { port: u8, up: bool },
}

#[derive(Arbitrary, Debug)]
struct Sent<'a> {
    to: u8,
    general: bool,
    qpn: Option<u16>,
    mad: Mad<'a>,
}

/// Sends datagrams.
pub fn run(bytes: &[u8]) {
    match bytes.split_first() {
        // The fabric takes a hundred times as long.
        Some((0xff, rest)) => LIVE.lock().unwrap_or_else(PoisonError::into_inner).run(rest),
        Some((kind, rest)) => alone(kind & 1 != 0, rest),
        None => {}
    }
}

/// One node, to which everything is handed directly.
fn alone(switch: bool, bytes: &[u8]) {
    let config = if switch {
        NodeConfig::switch(0x0002_c902_0000_2000, SWITCH_PORTS, "switch")
    } else {
        NodeConfig::connectx3(0x0002_c903_0000_1000, 2, "adapter")
    };
    let node = NodeState::new(&config).unwrap();
    node.link_up(1);
    for step in operations::<Step<'_>>(bytes, 64) {
        match step {
            Step::Process { port, trusted, slid, mad } => {
                let input = MadInput { ignore_mkey: trusted, slid };
                let asked = mad.bytes();
                let answer = node.process_mad(port % 10, &asked, &input);
                if let Some(reply) = answer.reply {
                    assert_eq!(reply[8..16], asked[8..16], "another's transaction is answered");
                }
            }
            Step::Link { port, up: true } => drop(node.link_up(port % 10)),
            Step::Link { port, up: false } => drop(node.link_down(port % 10)),
        }
    }
}

/// Keeps the transaction that was answered last.
#[derive(Default)]
struct Answers(Mutex<Option<u64>>);

impl MadSink for Answers {
    fn received(&self, mad: &ReceivedMad) -> bool {
        let Ok((header, _)) = MadHeader::read_from_prefix(&mad.mad) else { return false };
        if header.method.is_response() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(header.transaction_id.get());
        }
        header.method.is_response()
    }
}

struct Node {
    card: Arc<ModelDevice>,
    hca: Hca,
    answers: Arc<Answers>,
    lid: u16,
}

impl Node {
    fn new(fabric: &Arc<Fabric>, guid: u64) -> Self {
        let card = card(fabric, guid);
        let answers = Arc::<Answers>::default();
        let mads: Arc<dyn MadSink> = Arc::<Answers>::clone(&answers);
        let profile = Profile { log2_cqs: 10, log2_mcgs: 8, ..Profile::default() };
        let hca = Hca::open(seam(&card), &Config { mads, profile, ..Config::default() }).unwrap();
        let active = || hca.port(1).ok().map(|port| port.lid).filter(|lid| *lid != 0);
        let lid = eventually("a LID", &[card.hca()], active);
        Self { card, hca, answers, lid }
    }
}

/// A fabric, with one that sends and one that bears it.
struct Live {
    nodes: [Node; 2],
    fabric: Arc<Fabric>,
    fences: u64,
}

static LIVE: LazyLock<Mutex<Live>> = LazyLock::new(|| Mutex::new(Live::new()));

impl Live {
    fn new() -> Self {
        let fabric = fabric(true);
        let nodes = [0x0002_c903_00f2_0000, 0x0002_c903_00f2_0100].map(|guid| Node::new(&fabric, guid));
        let mut live = Self { nodes, fabric, fences: 0 };
        while !live.is_well() {}
        live
    }

    /// Whether the administrator and the other node answer.
    fn is_well(&mut self) -> bool {
        [(1, 3, 2), (self.nodes[1].lid, 4, 1)].into_iter().all(|to| self.ask(to))
    }

    fn run(&mut self, bytes: &[u8]) {
        let [from, other] = &self.nodes;
        for sent in operations::<Sent<'_>>(bytes, 16) {
            let dlid = one(&[1, other.lid, from.lid, 0xc000, 0xffff, 9], sent.to);
            let queue = if sent.general { MadQueue::Gsi } else { MadQueue::Smi };
            let qpn = sent.qpn.map_or(u32::from(sent.general), u32::from);
            let qkey = if sent.general { QP1_QKEY } else { 0 };
            let to = MadAddress { dlid, sl: 0, path_bits: 0, qpn, qkey, pkey_index: 0, grh: None };
            let _refused = from.hca.send_mad(1, queue, &to, &sent.mad.bytes());
            self.nodes.iter().for_each(|node| settle(node.card.hca()));
        }
        // What was sent before is done when these are answered. It may have been the end of a port, or the
        // beginning of another subnet: then nobody can answer.
        let answered = self.is_well();
        for node in &self.nodes {
            assert_eq!(node.card.refused(), 0, "accesses of the HCA to memory that nobody gave it");
        }
        if !answered {
            *self = Self::new();
        }
    }

    /// Asks a port's agent of a class what it is.
    fn ask(&mut self, (dlid, class, class_version): (u16, u8, u8)) -> bool {
        self.fences += 1;
        let id = 0x00fe_0000 + self.fences;
        let header = MadHeader {
            base_version: 1,
            mgmt_class: MgmtClass(class),
            class_version,
            method: Method::GET,
            transaction_id: U64::new(id),
            attribute_id: U16::new(1),
            ..MadHeader::new_zeroed()
        };
        let mut mad = [0; MAD_SIZE];
        mad[..size_of::<MadHeader>()].copy_from_slice(header.as_bytes());
        let to = MadAddress { dlid, sl: 0, path_bits: 0, qpn: 1, qkey: QP1_QKEY, pkey_index: 0, grh: None };
        let [from, other] = &self.nodes;
        if from.hca.send_mad(1, MadQueue::Gsi, &to, &mad).is_err() {
            return false;
        }
        let answered = || {
            let answer = *from.answers.0.lock().unwrap_or_else(PoisonError::into_inner);
            // The driver may have put its own mark into the upper half.
            answer.filter(|answer| answer & 0xffff_ffff == id)
        };
        within(Duration::from_millis(500), &[from.card.hca(), other.card.hca()], answered).is_some()
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Live({:?})", self.fabric)
    }
}
