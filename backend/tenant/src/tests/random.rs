//! Random requests of several guests, with faults: nothing panics, nothing is asked of the HCA that is wrong, and
//! nothing is left.

use virtio_rdma::request::{HEADER_BYTES, ReplyHeader, SegmentMode};
use virtio_rdma::{Opcode, Status};
use zerocopy::FromBytes;

use super::fake::FakeHca;
use super::memory::region;
use super::scene::{MEMORY, guest};
use crate::hca::HcaError;
use crate::{GuestConfig, Host, Limits, Tenant};

/// xorshift64*: enough to choose with.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % end
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A word of a body: small numbers, bits, handles that some guest was given, codes.
fn word(random: &mut Random, handles: &[u32]) -> u32 {
    match random.below(8) {
        0 | 1 => 0,
        2 => u32::try_from(random.below(16)).unwrap(),
        3 => 1 << random.below(32),
        4 => u32::try_from(random.next() >> 32).unwrap(),
        _ if handles.is_empty() => 1,
        _ => random.one(handles),
    }
}

/// Bodies that have a chance of being carried out: where the layout asks for something, put that.
fn shape(random: &mut Random, opcode: Opcode, body: &mut [u8]) -> Vec<(u64, u64)> {
    let at = 0x10_0000 + 0x1000 * random.next().wrapping_rem(0x4000);
    let mut put = |offset: usize, bytes: &[u8]| body[offset..offset + bytes.len()].copy_from_slice(bytes);
    match opcode {
        Opcode::ALLOC_UAR => {
            put(0, &[1, 0, 0, 0, 16, 0, 0, 0]);
            put(8, &at.to_le_bytes());
            put(16, &[0; 8]);
        }
        Opcode::REG_MR | Opcode::REREG_MR => {
            let tail = if opcode == Opcode::REG_MR { 8 } else { 16 };
            put(4, &u32::try_from(random.below(8)).unwrap().to_le_bytes());
            put(tail, &0u64.to_le_bytes());
            put(tail + 8, &0x3000u64.to_le_bytes());
            return vec![(at, 0x2000), (1 << 32, 0x1000)];
        }
        Opcode::CREATE_CQ => {
            put(4, &0u32.to_le_bytes());
            put(8, &64u32.to_le_bytes());
            put(12, &[0; 4]);
            put(16, &at.to_le_bytes());
            put(24, &[0; 8]);
            return vec![(at ^ 0x1000, 0x1000)];
        }
        Opcode::RESIZE_CQ => {
            put(4, &128u32.to_le_bytes());
            return vec![(at, 0x1000)];
        }
        Opcode::CREATE_SRQ => {
            put(12, &[u8::try_from(random.below(2)).unwrap(), 4, 6, 0]);
            put(16, &[0; 8]);
            put(24, &at.to_le_bytes());
            put(32, &[0; 8]);
            return vec![(at ^ 0x2000, 0x1000)];
        }
        Opcode::CREATE_QP => {
            let kind = random.one(&[2, 3, 4, 9, 10]);
            put(24, &[0, 0, 0, 0, kind, 6, 6, 6, 4, 0, 0, 0]);
            put(36, &[0; 20]);
            put(56, &at.to_le_bytes());
            put(64, &[0; 8]);
            return vec![(at ^ 0x4000, 0x2000)];
        }
        Opcode::MODIFY_QP => {
            let mask = random.one(&[1u32, 1 | 1 << 3 | 1 << 4 | 1 << 5, 1 | 1 << 4 | 1 << 5 | 1 << 6]);
            put(4, &mask.to_le_bytes());
            put(8, &[0; 128]);
            put(112, &[u8::from(mask != 1)]);
            put(121, &[1]);
        }
        Opcode::ATTACH_MCAST | Opcode::DETACH_MCAST => {
            put(4, &[1, 0xc0, 0, 0, 0xff, u8::try_from(random.below(2)).unwrap()]);
            put(10, &[0; 14]);
        }
        _ => {}
    }
    Vec::new()
}

fn request(random: &mut Random, handles: &[u32]) -> Vec<u8> {
    let opcode = random.one(Opcode::KNOWN);
    let mut body = vec![0; opcode.body_bytes().unwrap()];
    for place in body.chunks_exact_mut(4) {
        place.copy_from_slice(&word(random, handles).to_le_bytes());
    }
    if opcode.destroys() && body.len() == 8 {
        body[4..].fill(0);
    }
    let segments = shape(random, opcode, &mut body);
    let length = u32::try_from(HEADER_BYTES + body.len() + 16 * segments.len()).unwrap();
    let mut bytes = vec![opcode.0, SegmentMode::DIRECT.0, 0, 0];
    bytes.extend(length.to_le_bytes());
    bytes.extend(7u64.to_le_bytes());
    bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(body);
    for (address, length) in segments {
        bytes.extend(address.to_le_bytes());
        bytes.extend(length.to_le_bytes());
    }
    if random.below(10) == 0 {
        let place = random.below(bytes.len());
        bytes[place] ^= 1 << random.below(8);
    }
    bytes
}

/// Sends one request; the first word of an answer may be a handle.
fn send(tenant: &Tenant, bytes: &[u8], handles: &mut Vec<u32>) {
    let mut reply = [0; 512];
    let length = tenant.handle(bytes, &mut reply).unwrap();
    let (header, answer) = ReplyHeader::ref_from_prefix(&reply[..length]).unwrap();
    assert_eq!(usize::try_from(header.length.get()).unwrap(), length);
    if let (Status::OK, Some(first)) = (header.status, answer.first_chunk()) {
        handles.push(u32::from_le_bytes(*first));
        if handles.len() > 24 {
            handles.remove(0);
        }
    }
}

fn change_memory(tenant: &Tenant, random: &mut Random) {
    let mut regions = vec![region(1 << 32, MEMORY, MEMORY)];
    if random.below(3) != 0 {
        regions.push(region(0, MEMORY, u64::try_from(random.below(2)).unwrap() * 2 * MEMORY));
    }
    tenant.update_memory(regions).unwrap();
}

fn run(seed: u64, faults: bool) {
    let hca = FakeHca::new();
    let host = Host::new(hca.clone());
    let limits = Limits { idle_bytes: 4 << 20, chunks: 12, ..Limits::default() };
    let guests: Vec<_> =
        (0..3).map(|_| guest(&host, GuestConfig { limits, ..GuestConfig::default() })).collect();
    let mut random = Random(seed);
    let mut handles = Vec::new();
    for step in 0..3000 {
        let (tenant, _) = &guests[random.below(guests.len())];
        if faults && step % 50 == 0 {
            let calls = [
                "destroy qp",
                "destroy cq",
                "create mr",
                "create qp",
                "resize cq",
                "modify mr",
                "modify qp",
                "destroy mr",
                "attach mcast",
                "map",
                "unmap",
            ];
            let error = random.one(&[HcaError::Failed, HcaError::TimedOut, HcaError::Refused]);
            hca.lock().faults.insert(random.one(&calls).to_owned(), (error, 1));
        }
        match random.below(200) {
            0 => change_memory(tenant, &mut random),
            1 => drop(tenant.reset()),
            _ => send(tenant, &request(&mut random, &handles), &mut handles),
        }
        assert_eq!(hca.lock().wrong, Vec::<String>::new(), "seed {seed:#x}, step {step}");
    }
    let created = hca.lock().log.iter().filter(|call| call.starts_with("create")).count();
    assert!(created > 100, "{created} objects in all: the requests are too random");
    for (tenant, around) in &guests {
        tenant.close();
        assert!(around.areas.lock().unwrap().is_empty());
    }
    let mut fake = hca.lock();
    assert_eq!((fake.alive(), &fake.wrong), (vec![], &vec![]), "seed {seed:#x}");
    assert!(faults || fake.maps.is_empty(), "seed {seed:#x}");
    fake.forget_all();
    fake.faults.clear();
    drop(fake);
    host.after_reset();
    assert!(hca.lock().maps.is_empty(), "seed {seed:#x}");
}

#[test]
fn random_requests_leave_nothing_behind() {
    for seed in 1..7 {
        run(0x9e37_79b9_7f4a_7c15 ^ seed << 20, false);
    }
}

#[test]
fn random_requests_with_faults_leave_only_what_the_hca_kept() {
    for seed in 1..7 {
        run(0xd134_2543_de82_ef95 ^ seed << 20, true);
    }
}
