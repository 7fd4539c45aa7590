//! Tests of requests and replies: golden bytes, checks, and bytes that no driver sends.

use std::vec;
use std::vec::Vec;

use zerocopy::{FromZeros, IntoBytes};

use super::completion::{CreateCq, DestroyCq};
use super::domain::{AllocPd, DeallocPd, PdAllocated};
use super::memory::{AccessFlags, RegMr};
use super::query::QueryDevice;
use super::queue_pair::{CreateQp, ModifyQp, QpAttrMask, QpState, QpType};
use super::*;
use crate::doorbell::DoorbellPlace;
use crate::{U16, U64};

fn segment(address: u64, length: u64) -> Segment {
    Segment { address: U64::new(address), length: U64::new(length) }
}

fn bytes_of<V: Verb>(body: &V, segments: &[Segment]) -> Vec<u8> {
    let mut bytes = vec![0xff; 4096];
    let length = encode(&mut bytes, body, segments, SegmentMode::DIRECT, 0x1122, 7).expect("room");
    bytes.truncate(length);
    bytes
}

fn reg_mr() -> RegMr {
    RegMr {
        pd: U32::new(3),
        access: AccessFlags::LOCAL_WRITE | AccessFlags::REMOTE_WRITE,
        iova: U64::new(0x7f01_0203_0000),
        length: U64::new(0x1800),
    }
}

#[test]
fn request_has_its_bytes() {
    let bytes = bytes_of(&reg_mr(), &[segment(0x10_0000, 0x2000)]);
    #[rustfmt::skip]
    let golden = [
        0x20, 0, 0, 0, 64, 0, 0, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        3, 0, 0, 0, 3, 0, 0, 0, 0, 0, 3, 2, 1, 0x7f, 0, 0, 0, 0x18, 0, 0, 0, 0, 0, 0,
        0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(bytes, golden);
}

#[test]
fn create_qp_has_its_bytes() {
    let mut body = CreateQp::new_zeroed();
    body.pd = U32::new(1);
    body.send_cq = U32::new(2);
    body.recv_cq = U32::new(3);
    body.uar = U32::new(4);
    body.qp_type = QpType::RC;
    (body.log2_send_wqes, body.log2_send_stride) = (7, 6);
    (body.log2_recv_wqes, body.log2_recv_stride) = (5, 4);
    body.cap.max_send_wr = U32::new(95);
    body.record = U64::new(0x0a0b_0c00);
    let bytes = bytes_of(&body, &[]);
    assert_eq!(bytes[24..40], [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[40..64], [0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 2, 7, 6, 5, 4, 0, 0, 0, 95, 0, 0, 0]);
    assert_eq!(bytes[80..], [0, 0x0c, 0x0b, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn modify_qp_has_its_bytes() {
    let mut body = ModifyQp::new_zeroed();
    body.qp = U32::new(9);
    body.attr_mask = QpAttrMask::STATE | QpAttrMask::DEST_QPN;
    body.attributes.ah_attr.dlid = U16::new(0x0102);
    body.attributes.dest_qp_num = U32::new(0x03_0201);
    body.attributes.qp_state = QpState::RTR;
    body.attributes.rnr_retry = 7;
    let bytes = bytes_of(&body, &[]);
    assert_eq!(bytes[24..32], [9, 0, 0, 0, 1, 0, 0x10, 0]);
    assert_eq!(bytes[32 + 20..32 + 22], [2, 1]);
    assert_eq!(bytes[32 + 92..32 + 96], [1, 2, 3, 0]);
    assert_eq!(bytes[32 + 104], 2);
    assert_eq!(bytes[32 + 116], 7);
    assert_eq!(bytes.len(), 24 + 136);
}

#[test]
fn parse_gives_back_what_was_encoded() {
    let segments = [segment(0x1000, 0x1000), segment(0x8000, 0x1000)];
    let bytes = bytes_of(&reg_mr(), &segments);
    let request = Request::parse(&bytes).expect("a request");
    assert_eq!(request.body, Body::RegMr(&reg_mr()));
    assert_eq!(request.segments, segments);
    assert_eq!((request.header.cookie.get(), request.header.generation.get()), (0x1122, 7));

    let bytes = bytes_of(&QueryDevice {}, &[]);
    assert_eq!(Request::parse(&bytes).map(|request| request.body), Ok(Body::QueryDevice(&QueryDevice {})));
}

#[test]
fn parse_refuses_what_has_no_form() {
    let good = bytes_of(&reg_mr(), &[segment(0x1000, 0x2000)]);
    let broken = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        Request::parse(&bytes).err()
    };
    assert_eq!(Request::parse(&good[..23]).err(), Some(Reason::REQUEST_TOO_SHORT));
    assert_eq!(Request::parse(&good[..63]).err(), Some(Reason::BAD_LENGTH));
    assert_eq!(broken(0, 0xfe), Some(Reason::UNKNOWN_OPCODE));
    assert_eq!(broken(1, 2), Some(Reason::UNKNOWN_FLAG));
    assert_eq!(broken(2, 1), Some(Reason::RESERVED_NOT_ZERO));
    assert_eq!(broken(4, 65), Some(Reason::BAD_LENGTH));
    assert_eq!(broken(7, 0xff), Some(Reason::BAD_LENGTH));
    assert_eq!(broken(23, 1), Some(Reason::RESERVED_NOT_ZERO));
    assert_eq!(broken(28, 0x20), Some(Reason::UNKNOWN_FLAG));
    // An opcode whose body is longer, and one without segments.
    assert_eq!(broken(0, Opcode::CREATE_QP.0), Some(Reason::BAD_LENGTH));
    assert_eq!(broken(0, Opcode::ALLOC_PD.0), Some(Reason::BAD_LENGTH));

    let mut half_a_segment = good[..56].to_vec();
    half_a_segment[4] = 56;
    assert_eq!(Request::parse(&half_a_segment).err(), Some(Reason::BAD_LENGTH));
}

#[test]
fn indirect_without_segments_is_refused() {
    let mut bytes = vec![0; 256];
    let length = encode(&mut bytes, &reg_mr(), &[], SegmentMode::INDIRECT, 0, 0).expect("room");
    assert_eq!(Request::parse(&bytes[..length]).err(), Some(Reason::BAD_LENGTH));
}

#[test]
fn reserved_byte_of_a_body_must_be_zero() {
    let mut bytes = bytes_of(&CreateCq::new_zeroed(), &[]);
    *bytes.last_mut().expect("a byte") = 1;
    assert_eq!(Request::parse(&bytes).err(), Some(Reason::RESERVED_NOT_ZERO));

    let mut bytes = bytes_of(&ModifyQp::new_zeroed(), &[]);
    let path_reserved = 24 + 8 + 36;
    bytes[path_reserved] = 1;
    assert_eq!(Request::parse(&bytes).err(), Some(Reason::RESERVED_NOT_ZERO));
}

#[test]
fn encode_without_room_writes_nothing() {
    let mut bytes = [0u8; 47];
    assert_eq!(encode(&mut bytes, &reg_mr(), &[], SegmentMode::DIRECT, 1, 1), None);
    assert_eq!(bytes, [0; 47]);
    assert_eq!(request_bytes::<RegMr>(usize::MAX), None);
}

#[test]
fn admission_goes_by_the_generation() {
    let bytes = bytes_of(&reg_mr(), &[]);
    let request = Request::parse(&bytes).expect("a request");
    assert_eq!(request.admission(7), Admission::CarryOut);
    assert_eq!(request.admission(8), Admission::Stale);

    let bytes = bytes_of(&DestroyCq::new_zeroed(), &[]);
    let request = Request::parse(&bytes).expect("a request");
    assert_eq!(request.admission(8), Admission::AlreadyGone);
}

#[test]
fn reply_has_its_bytes_and_gives_its_answer() {
    let request = bytes_of(&AllocPd {}, &[]);
    let header = Request::parse(&request).expect("a request").header;
    let allocated = PdAllocated { pd: U32::new(5), pdn: U32::new(0x1_0203) };
    let mut reply = [0xff; 32];
    assert_eq!(answer::<AllocPd>(&mut reply[..31], header, 7, &allocated), None);
    assert_eq!(answer::<AllocPd>(&mut reply, header, 7, &allocated), Some(32));
    assert_eq!(reply[..24], [0, 0, 0, 0, 32, 0, 0, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(reply[24..], [5, 0, 0, 0, 3, 2, 1, 0]);
    assert_eq!(decode::<AllocPd>(&reply, 0x1122), Ok(allocated));
    assert_eq!(decode::<AllocPd>(&reply, 0x1123), Err(ReplyError::Malformed { bytes: 32 }));
    assert_eq!(decode::<AllocPd>(&reply[..31], 0x1122), Err(ReplyError::Malformed { bytes: 31 }));
    assert_eq!(decode::<DeallocPd>(&reply, 0x1122), Err(ReplyError::Malformed { bytes: 32 }));
    assert_eq!(decode::<AllocPd>(&reply[..3], 0x1122), Err(ReplyError::Malformed { bytes: 3 }));
}

#[test]
fn answer_to_what_is_already_gone_is_zero() {
    let request = bytes_of(&DestroyCq::new_zeroed(), &[]);
    let header = Request::parse(&request).expect("a request").header;
    let mut reply = [0xff; 32];
    assert_eq!(answer_gone(&mut reply, header, 8), Some(32));
    assert_eq!(decode::<DestroyCq>(&reply, 0x1122), Ok(Destroyed::new_zeroed()));
}

#[test]
fn refusal_carries_status_reason_and_error_number() {
    let request = bytes_of(&AllocPd {}, &[]);
    let reply = refuse(&request, Reason::OBJECT_LIMIT, 7);
    assert_eq!(reply.as_bytes()[..8], [2, 0x40, 0, 0, 24, 0, 0, 0]);
    let error = decode::<AllocPd>(reply.as_bytes(), 0x1122).expect_err("refused");
    assert_eq!(error, ReplyError::Refused { status: Status::NO_MEMORY, reason: Reason::OBJECT_LIMIT });
    assert_eq!(error.errno(), 12);
}

#[test]
fn refusal_of_less_than_a_header_has_no_cookie() {
    assert_eq!(refuse(&[0xff; 23], Reason::REQUEST_TOO_SHORT, 7).cookie.get(), 0);
}

#[test]
fn opcodes_tell_their_bodies_and_answers() {
    assert_eq!(Opcode::REG_MR.body_bytes(), Some(24));
    assert_eq!(Opcode::REG_MR.answer_bytes(), Some(16));
    assert_eq!(Opcode::CREATE_AH.structures(), Some(("CreateAh", "AddressVector")));
    assert_eq!(Opcode(0xff).answer_bytes(), None);
    assert_eq!(MAX_ANSWER_BYTES, 232);
    assert_eq!(DoorbellPlace::NONE.as_bytes(), [0; 8]);
    let segmented: Vec<_> = Opcode::KNOWN.iter().filter(|opcode| opcode.has_segments()).collect();
    let expected = [
        Opcode::REG_MR,
        Opcode::REREG_MR,
        Opcode::CREATE_CQ,
        Opcode::RESIZE_CQ,
        Opcode::CREATE_SRQ,
        Opcode::CREATE_QP,
    ];
    assert_eq!(segmented, expected.iter().collect::<Vec<_>>());
}

/// A generator of numbers that is the same in every run (xorshift32).
struct Noise(u32);

impl Noise {
    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize % end
    }

    fn byte(&mut self) -> u8 {
        self.below(usize::MAX).to_le_bytes()[1]
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| self.byte());
    }
}

/// What must hold of any bytes: no panic, and a request that is accepted is the bytes it was made from.
fn parse_is_sound(bytes: &[u8]) -> bool {
    let Ok(request) = Request::parse(bytes) else { return false };
    assert_eq!(request.header.length.get() as usize, bytes.len());
    let body = request.header.opcode.body_bytes().expect("a known opcode");
    assert_eq!(HEADER_BYTES + body + size_of_val(request.segments), bytes.len());
    assert!(request.header.segment_mode.name().is_some());
    true
}

#[test]
fn parse_of_noise_never_panics() {
    let mut noise = Noise(0x9e37_79b9);
    let mut bytes = [0u8; 300];
    for _ in 0..20_000 {
        let length = noise.below(300);
        noise.fill(&mut bytes[..length]);
        parse_is_sound(&bytes[..length]);
    }
}

/// Requests of a true form with a few bytes changed reach further than noise.
#[test]
fn parse_of_damaged_requests_never_panics() {
    let mut noise = Noise(0xd1b5_4a32);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..2_000 {
        for opcode in Opcode::KNOWN {
            let body = opcode.body_bytes().expect("a known opcode");
            let segments = if opcode.has_segments() { noise.below(4) } else { 0 };
            let length = HEADER_BYTES + body + SEGMENT_BYTES * segments;
            let mut bytes = vec![0u8; length];
            bytes[0] = opcode.0;
            bytes[4..8].copy_from_slice(&u32::try_from(length).expect("short").to_le_bytes());
            for _ in 0..noise.below(3) {
                let at = noise.below(length);
                bytes[at] = noise.byte();
            }
            let keep = if noise.below(8) == 0 { noise.below(length) } else { length };
            if parse_is_sound(&bytes[..keep]) { accepted += 1 } else { refused += 1 }
        }
    }
    assert!(accepted > 1_000 && refused > 1_000, "{accepted} accepted, {refused} refused");
}

#[test]
fn decode_of_noise_never_panics() {
    let mut noise = Noise(0x2545_f491);
    let mut bytes = [0u8; 64];
    for _ in 0..20_000 {
        let length = noise.below(64);
        noise.fill(&mut bytes[..length]);
        let cookie = bytes[8];
        assert!(decode::<AllocPd>(&bytes[..length], cookie.into()).is_err());
    }
}
