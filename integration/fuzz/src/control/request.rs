//! Requests that a device would carry out, and what the input changes in them.

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use virtio_rdma::Opcode;
use virtio_rdma::request::{HEADER_BYTES, SegmentMode};

use super::{BASE, OBJECTS};
use crate::input::one;

/// Handles that the device gave, by what was asked for.
#[derive(Debug, Default)]
pub(super) struct Handles(BTreeMap<u8, Vec<u32>>);

impl Handles {
    /// Takes in the first word of an answer.
    pub(super) fn add(&mut self, opcode: Opcode, handle: u32) {
        self.0.entry(opcode.0).or_default().push(handle);
    }

    fn last(&self, opcode: Opcode) -> u32 {
        self.0.get(&opcode.0).and_then(|handles| handles.last()).copied().unwrap_or(0)
    }

    /// Any of all.
    fn any(&self, index: u8) -> u32 {
        let all: Vec<u32> = self.0.values().flatten().copied().collect();
        if all.is_empty() { 0 } else { one(&all, index) }
    }
}

#[derive(Arbitrary, Debug)]
enum Value {
    Byte(u8),
    Half(u16),
    Word(u32),
    Handle(u8),
    /// An address in the objects' memory.
    Address(u16),
    Wild(u64),
}

#[derive(Arbitrary, Debug)]
pub(super) struct Request<'a> {
    opcode: u8,
    variant: u8,
    /// Pages of the objects' memory that it begins at.
    page: u8,
    /// Values for places of the body.
    changes: [Option<(u8, Value)>; 4],
    /// Segments instead of those that fit.
    segments: Option<[(u16, u16); 2]>,
    /// Another byte anywhere.
    wrong: Option<(u16, u8)>,
    /// What follows.
    rest: Option<&'a [u8]>,
}

impl Request<'_> {
    pub(super) fn opcode(&self) -> Opcode {
        one(Opcode::KNOWN, self.opcode)
    }

    /// The request, header and all.
    pub(super) fn bytes(&self, handles: &Handles, generation: u32) -> Vec<u8> {
        let opcode = self.opcode();
        let mut body = vec![0; opcode.body_bytes().unwrap()];
        let start = OBJECTS / 0x1000 + u64::from(self.page) * 4;
        let mut form = Form { body: &mut body, handles, start, variant: self.variant };
        form.fill(opcode);
        let fitting = form.segments(opcode);
        for (at, value) in self.changes.iter().flatten() {
            change(&mut body, usize::from(*at), value, handles);
        }
        let segments = self.segments.map_or(fitting, |pages| {
            let page =
                |(page, count): &(u16, u16)| (BASE + u64::from(*page) * 0x1000, u64::from(*count) * 0x1000);
            pages.iter().map(page).collect()
        });
        let segments =
            segments.iter().flat_map(|(address, length)| [address.to_le_bytes(), length.to_le_bytes()]);
        body.extend(segments.flatten());
        body.extend(self.rest.unwrap_or_default().iter().take(0x1000));
        let length = u32::try_from(HEADER_BYTES + body.len()).unwrap();
        let mut bytes = vec![opcode.0, SegmentMode::DIRECT.0, 0, 0];
        bytes.extend(length.to_le_bytes());
        bytes.extend(7u64.to_le_bytes());
        bytes.extend(generation.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        if let Some((at, value)) = self.wrong {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        bytes
    }
}

fn change(body: &mut [u8], at: usize, value: &Value, handles: &Handles) {
    let bytes = match value {
        Value::Byte(value) => vec![*value],
        Value::Half(value) => value.to_le_bytes().to_vec(),
        Value::Word(value) => value.to_le_bytes().to_vec(),
        Value::Handle(index) => handles.any(*index).to_le_bytes().to_vec(),
        Value::Address(offset) => (BASE + OBJECTS + u64::from(*offset)).to_le_bytes().to_vec(),
        Value::Wild(value) => value.to_le_bytes().to_vec(),
    };
    let at = at.min(body.len());
    body[at..].iter_mut().zip(bytes).for_each(|(byte, new)| *byte = new);
}

/// A body that is being filled in, at the offsets that docs/virtio-rdma.md has.
struct Form<'a> {
    body: &'a mut [u8],
    handles: &'a Handles,
    /// Page that its memory begins at.
    start: u64,
    variant: u8,
}

impl Form<'_> {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.body[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn handle(&mut self, at: usize, of: Opcode) {
        self.put(at, &self.handles.last(of).to_le_bytes());
    }

    fn address(&self) -> u64 {
        BASE + self.start * 0x1000
    }

    fn fill(&mut self, opcode: Opcode) {
        let record = self.address().to_le_bytes();
        match opcode {
            Opcode::QUERY_PORT | Opcode::QUERY_GID | Opcode::QUERY_PKEY => self.put(0, &[1]),
            Opcode::DEALLOC_PD => self.handle(0, Opcode::ALLOC_PD),
            Opcode::DEALLOC_UAR => self.handle(0, Opcode::ALLOC_UAR),
            Opcode::CLOSE_XRCD => self.handle(0, Opcode::OPEN_XRCD),
            Opcode::DEREG_MR => self.handle(0, Opcode::REG_MR),
            Opcode::DEALLOC_MW => self.handle(0, Opcode::ALLOC_MW),
            Opcode::MODIFY_CQ | Opcode::DESTROY_CQ => self.handle(0, Opcode::CREATE_CQ),
            Opcode::MODIFY_SRQ | Opcode::QUERY_SRQ | Opcode::DESTROY_SRQ => {
                self.handle(0, Opcode::CREATE_SRQ);
            }
            Opcode::QUERY_QP | Opcode::DESTROY_QP => self.handle(0, Opcode::CREATE_QP),
            Opcode::UNREGISTER_SERVICE_ID => self.handle(0, Opcode::REGISTER_SERVICE_ID),
            Opcode::ALLOC_UAR => {
                self.put(0, &[1, 0, 0, 0, 16, 0, 0, 0]);
                self.put(8, &record);
            }
            Opcode::REG_MR => {
                self.handle(0, Opcode::ALLOC_PD);
                self.put(4, &[self.variant & 7]);
                self.put(16, &0x3000u64.to_le_bytes());
            }
            Opcode::REREG_MR => {
                self.handle(0, Opcode::REG_MR);
                self.put(4, &[self.variant & 7]);
                self.handle(8, Opcode::ALLOC_PD);
                self.put(24, &0x3000u64.to_le_bytes());
            }
            Opcode::ALLOC_MW => {
                self.handle(0, Opcode::ALLOC_PD);
                self.put(4, &[1 + (self.variant & 1)]);
            }
            Opcode::CREATE_CQ => {
                self.handle(0, Opcode::ALLOC_UAR);
                self.put(8, &64u32.to_le_bytes());
                self.put(16, &record);
            }
            Opcode::RESIZE_CQ => {
                self.handle(0, Opcode::CREATE_CQ);
                self.put(4, &128u32.to_le_bytes());
            }
            Opcode::CREATE_SRQ => {
                self.handle(0, Opcode::ALLOC_PD);
                self.put(12, &[0, 4, 6, 0]);
                self.put(24, &record);
            }
            Opcode::CREATE_QP => self.queue_pair(&record),
            Opcode::MODIFY_QP => self.transition(),
            Opcode::CREATE_AH => {
                self.handle(0, Opcode::ALLOC_PD);
                // LID and port.
                self.put(8 + 20, &[1, 0]);
                self.put(8 + 29, &[1]);
            }
            Opcode::ATTACH_MCAST | Opcode::DETACH_MCAST => {
                self.handle(0, Opcode::CREATE_QP);
                self.put(4, &[1, 0xc0, 0, 0, 0xff, self.variant]);
            }
            _ => {}
        }
    }

    fn queue_pair(&mut self, record: &[u8; 8]) {
        self.handle(0, Opcode::ALLOC_PD);
        self.handle(4, Opcode::CREATE_CQ);
        self.handle(8, Opcode::CREATE_CQ);
        self.handle(20, Opcode::ALLOC_UAR);
        let kind = one(&[2, 2, 3, 4, 9, 10], self.variant);
        self.put(28, &[kind, 6, if kind == 4 { 7 } else { 6 }, 6, 4, 0, 0, 0]);
        self.put(56, record);
    }

    /// RESET to INIT, INIT to RTR, RTR to RTS of RC, or to an error.
    fn transition(&mut self) {
        self.handle(0, Opcode::CREATE_QP);
        let (mask, state): (u32, u8) = one(
            &[
                (1 | 1 << 3 | 1 << 4 | 1 << 5, 1),
                (1 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 15 | 1 << 17 | 1 << 20, 2),
                (1 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 16, 3),
                (1, 6),
                (1, 0),
            ],
            self.variant,
        );
        self.put(4, &mask.to_le_bytes());
        let attributes = 8;
        // LID and port of the path, and the path MTU.
        self.put(attributes + 20, &[1, 0]);
        self.put(attributes + 29, &[1]);
        self.put(attributes + 104, &[state, 0, 3]);
        // The port.
        self.put(attributes + 113, &[1]);
    }

    /// Memory as large as what [`Form::fill`] asks for needs.
    fn segments(&self, opcode: Opcode) -> Vec<(u64, u64)> {
        let at = self.address() + 0x1000;
        match opcode {
            Opcode::REG_MR | Opcode::REREG_MR => vec![(at, 0x2000), (at + 0x4000, 0x1000)],
            Opcode::CREATE_CQ | Opcode::CREATE_SRQ => vec![(at, 0x1000)],
            Opcode::RESIZE_CQ => vec![(at, 0x2000)],
            Opcode::CREATE_QP => vec![(at, 0x2000)],
            _ => Vec::new(),
        }
    }
}
