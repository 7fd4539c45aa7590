//! The control queue: requests, one for each control verb, and their replies.
//!
//! A request is a [`RequestHeader`], the body of its opcode, and, where the opcode has some, [`Segment`]s; a
//! reply is a [`ReplyHeader`] and, if the request was carried out, the answer of its opcode. The table at the
//! end of this file says which is which.

use zerocopy::{FromBytes, IntoBytes};

use crate::layout::Checked;
use crate::memory::{SEGMENT_BYTES, Segment, segments};
use crate::{Layout, Reason, Reserved, Status, U32, U64};

pub mod completion;
pub mod datagram;
pub mod domain;
pub mod management;
pub mod memory;
pub mod query;
pub mod queue_pair;
pub mod shared_receive;

mod table;
pub use table::{Body, MAX_ANSWER_BYTES, Opcode};

#[cfg(test)]
mod tests;

codes! {
    /// How the segments of a request are meant.
    pub enum SegmentMode {
        /// They are the memory, or there are none.
        DIRECT = 0,
        /// They are where the list of the segments is that are the memory.
        INDIRECT = 1,
    }
}

layout! {
    size = 24;
    /// Start of every request.
    pub struct RequestHeader {
        /// What is asked for.
        pub opcode: Opcode,
        /// How the segments are meant.
        pub segment_mode: SegmentMode,
        /// Zero.
        pub reserved: Reserved<2>,
        /// Length of the request in bytes: header, body and segments.
        pub length: U32,
        /// The driver's own, returned in the reply.
        pub cookie: U64,
        /// The generation that the request is made for.
        pub generation: U32,
        /// Zero.
        pub reserved_end: Reserved<4>,
    }
}

layout! {
    size = 24;
    /// Start of every reply.
    pub struct ReplyHeader {
        /// How the request ended.
        pub status: Status,
        /// Why, if it was not carried out.
        pub reason: Reason,
        /// Must be ignored.
        pub reserved: Reserved<2>,
        /// Length of the reply in bytes: header and answer.
        pub length: U32,
        /// That of the request; 0 if it had none.
        pub cookie: U64,
        /// The device's generation when it replied.
        pub generation: U32,
        /// Must be ignored.
        pub reserved_end: Reserved<4>,
    }
}

/// Size of a request's or reply's header in bytes.
pub const HEADER_BYTES: usize = HEADER_BYTES_U32 as usize;

const HEADER_BYTES_U32: u32 = 24;

const _: () = assert!(size_of::<RequestHeader>() == HEADER_BYTES && size_of::<ReplyHeader>() == HEADER_BYTES);

layout! {
    size = 0;
    /// The answer of requests that have nothing to say.
    pub struct Done {}
}

layout! {
    size = 8;
    /// The answer of requests that destroy what events are about. They count what was delivered in the object's
    /// life; after the reply no more comes.
    pub struct Destroyed {
        /// Completion events.
        pub completion_events: U32,
        /// Asynchronous events.
        pub async_events: U32,
    }
}

/// The body of a request: a control verb.
pub trait Verb: Layout {
    /// Its opcode.
    const OPCODE: Opcode;

    /// What the reply carries if it was carried out.
    type Answer: Layout;
}

/// A request, checked in form: lengths, reserved bytes and flags. Codes and handles are not judged, and nothing
/// is allowed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The header.
    pub header: &'a RequestHeader,
    /// The body.
    pub body: Body<'a>,
    /// The segments; empty for opcodes without.
    pub segments: &'a [Segment],
}

impl<'a> Request<'a> {
    /// The request that `bytes` are, which must not change any more.
    ///
    /// # Errors
    /// The reason, which [`refuse`] makes a reply of: [`Reason::REQUEST_TOO_SHORT`], [`Reason::BAD_LENGTH`],
    /// [`Reason::UNKNOWN_OPCODE`], [`Reason::RESERVED_NOT_ZERO`], [`Reason::UNKNOWN_FLAG`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Reason> {
        let (header, rest) = RequestHeader::ref_from_prefix(bytes).map_err(|_| Reason::REQUEST_TOO_SHORT)?;
        if usize::try_from(header.length.get()) != Ok(bytes.len()) {
            return Err(Reason::BAD_LENGTH);
        }
        header.check()?;
        let (body, rest) = Body::parse(header.opcode, rest)?;
        let segments = segments(rest)?;
        if !segments.is_empty() && !header.opcode.has_segments() {
            return Err(Reason::BAD_LENGTH);
        }
        if header.segment_mode.name().is_none() {
            return Err(Reason::UNKNOWN_FLAG);
        }
        if header.segment_mode == SegmentMode::INDIRECT && segments.is_empty() {
            return Err(Reason::BAD_LENGTH);
        }
        Ok(Self { header, body, segments })
    }

    /// What becomes of the request in this generation.
    pub fn admission(&self, generation: u32) -> Admission {
        if self.header.generation.get() == generation {
            Admission::CarryOut
        } else if self.header.opcode.destroys() {
            Admission::AlreadyGone
        } else {
            Admission::Stale
        }
    }
}

/// What becomes of a request, by the generation that it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Admission {
    /// It was made for this generation: carry it out.
    CarryOut,
    /// It destroys what was lost with another generation: answer [`Status::OK`] with a zero answer.
    AlreadyGone,
    /// It was made for another generation: answer [`Reason::STALE_GENERATION`].
    Stale,
}

/// The reply to a request that is not carried out; the request may be garbage.
pub fn refuse(request: &[u8], reason: Reason, generation: u32) -> ReplyHeader {
    let cookie = RequestHeader::ref_from_prefix(request).map_or(0, |(header, _)| header.cookie.get());
    reply_header(reason, 0, cookie, generation)
}

/// Writes the reply to a request that was carried out to the start of `to` and returns its length in bytes;
/// `None` if there is no room.
pub fn answer<V: Verb>(
    to: &mut [u8],
    request: &RequestHeader,
    generation: u32,
    answer: &V::Answer,
) -> Option<usize> {
    write_reply(to, request, generation, answer.as_bytes())
}

/// Writes the reply to a request of [`Admission::AlreadyGone`] as [`answer`] does.
pub fn answer_gone(to: &mut [u8], request: &RequestHeader, generation: u32) -> Option<usize> {
    let zero = [0; MAX_ANSWER_BYTES];
    write_reply(to, request, generation, zero.get(..request.opcode.answer_bytes()?)?)
}

fn write_reply(to: &mut [u8], request: &RequestHeader, generation: u32, answer: &[u8]) -> Option<usize> {
    let answer_bytes = u32::try_from(answer.len()).ok()?;
    let header = reply_header(Reason::NONE, answer_bytes, request.cookie.get(), generation);
    let length = HEADER_BYTES + answer.len();
    let (head, tail) = to.get_mut(..length)?.split_at_mut_checked(HEADER_BYTES)?;
    header.write_to(head).ok()?;
    tail.copy_from_slice(answer);
    Some(length)
}

fn reply_header(reason: Reason, answer_bytes: u32, cookie: u64, generation: u32) -> ReplyHeader {
    ReplyHeader {
        status: reason.status(),
        reason,
        reserved: Reserved::ZERO,
        length: U32::new(HEADER_BYTES_U32 + answer_bytes),
        cookie: U64::new(cookie),
        generation: U32::new(generation),
        reserved_end: Reserved::ZERO,
    }
}

/// Size in bytes of a request with `segments` segments; `None` if its length doesn't fit in the header.
pub fn request_bytes<V: Verb>(segments: usize) -> Option<u32> {
    let segments = segments.checked_mul(SEGMENT_BYTES)?;
    let bytes = segments.checked_add(HEADER_BYTES + size_of::<V>())?;
    u32::try_from(bytes).ok()
}

/// Writes a request to the start of `to` and returns its length in bytes; `None` if there is no room.
///
/// `list` says how `segments` are meant; they may be empty.
pub fn encode<V: Verb>(
    to: &mut [u8],
    body: &V,
    segments: &[Segment],
    segment_mode: SegmentMode,
    cookie: u64,
    generation: u32,
) -> Option<usize> {
    let length = request_bytes::<V>(segments.len())?;
    let header = RequestHeader {
        opcode: V::OPCODE,
        segment_mode,
        reserved: Reserved::ZERO,
        length: U32::new(length),
        cookie: U64::new(cookie),
        generation: U32::new(generation),
        reserved_end: Reserved::ZERO,
    };
    let length = usize::try_from(length).ok()?;
    let (head, rest) = to.get_mut(..length)?.split_at_mut_checked(HEADER_BYTES)?;
    let (middle, tail) = rest.split_at_mut_checked(size_of::<V>())?;
    header.write_to(head).ok()?;
    body.write_to(middle).ok()?;
    segments.write_to(tail).ok()?;
    Some(length)
}

/// Why a reply gives no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// The request was not carried out.
    Refused {
        /// How it ended.
        status: Status,
        /// Why.
        reason: Reason,
    },
    /// The device's bytes are no reply to this request.
    Malformed {
        /// How many bytes it wrote.
        bytes: usize,
    },
}

impl ReplyError {
    /// The error number that verbs return for it (Linux's numbers).
    pub const fn errno(self) -> i32 {
        match self {
            Self::Refused { status, .. } => status.errno(),
            Self::Malformed { .. } => Status::IO.errno(),
        }
    }
}

impl core::fmt::Display for ReplyError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Refused { status, reason } => write!(f, "device answered {status} ({reason})"),
            Self::Malformed { bytes } => write!(f, "{bytes} bytes from the device are no reply"),
        }
    }
}

impl core::error::Error for ReplyError {}

/// The answer in a reply: `bytes` are what the device wrote, `cookie` the request's.
///
/// # Errors
/// The device refused the request, or what it wrote is no reply to it.
pub fn decode<V: Verb>(bytes: &[u8], cookie: u64) -> Result<V::Answer, ReplyError> {
    let malformed = ReplyError::Malformed { bytes: bytes.len() };
    let (header, rest) = ReplyHeader::ref_from_prefix(bytes).map_err(|_| malformed)?;
    if header.cookie.get() != cookie || usize::try_from(header.length.get()) != Ok(bytes.len()) {
        return Err(malformed);
    }
    if header.status != Status::OK {
        return Err(ReplyError::Refused { status: header.status, reason: header.reason });
    }
    V::Answer::read_from_bytes(rest).map_err(|_| malformed)
}
