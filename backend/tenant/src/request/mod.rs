//! Requests: from bytes to an action to the bytes of a reply.
//!
//! First the form is checked, then generation and phase, then what the verb itself needs; the HCA is asked last.

mod completion;
mod datagram;
mod domain;
mod management;
mod memory;
mod modify;
mod path;
mod query;
mod queue_pair;
mod rereg;
mod shared_receive;
mod transition;

use virtio_rdma::config::Capabilities;
use virtio_rdma::request::{
    Admission, HEADER_BYTES, ReplyHeader, Request, RequestHeader, answer, answer_gone, refuse,
};
use virtio_rdma::{Body, Opcode, Reason, Verb};
use zerocopy::IntoBytes;

use crate::state::{Phase, State};
use crate::stats::Counters;

/// A verb, carried out for a guest.
trait CarryOut: Verb {
    /// Carries it out. On failure nothing has changed, but as the ABI says of those that destroy.
    fn carry_out(&self, state: &mut State, request: &Request<'_>) -> Result<Self::Answer, Reason>;
}

/// Carries out a request and writes the reply; `None` if there is no room for the header of one.
pub(crate) fn handle(state: &mut State, request: &[u8], reply: &mut [u8]) -> Option<usize> {
    Counters::add(&state.counters.requests, 1);
    if reply.len() < HEADER_BYTES {
        Counters::add(&state.counters.requests_failed, 1);
        return None;
    }
    match carry_out(state, request, reply) {
        Ok(length) => Some(length),
        Err(reason) => {
            Counters::add(&state.counters.requests_failed, 1);
            log::debug!("request of {:?} refused: {reason}", state.guest);
            write_header(&refuse(request, reason, state.generation), reply)
        }
    }
}

fn write_header(header: &ReplyHeader, reply: &mut [u8]) -> Option<usize> {
    header.write_to_prefix(reply).ok()?;
    Some(HEADER_BYTES)
}

fn carry_out(state: &mut State, bytes: &[u8], reply: &mut [u8]) -> Result<usize, Reason> {
    if u32::try_from(bytes.len()).map_or(true, |length| length > state.config.limits.request_bytes) {
        return Err(Reason::REQUEST_TOO_LONG);
    }
    let request = Request::parse(bytes)?;
    let opcode = request.header.opcode;
    let room = opcode.answer_bytes().and_then(|bytes| bytes.checked_add(HEADER_BYTES));
    if room.is_none_or(|room| room > reply.len()) {
        return Err(Reason::REPLY_TOO_SHORT);
    }
    match request.admission(state.generation) {
        Admission::CarryOut => {}
        Admission::AlreadyGone => {
            return answer_gone(reply, request.header, state.generation).ok_or(Reason::REPLY_TOO_SHORT);
        }
        Admission::Stale => return Err(Reason::STALE_GENERATION),
    }
    match state.phase {
        Phase::Ready => {}
        Phase::Starting => return Err(Reason::STARTING),
        Phase::Failed => return Err(Reason::HCA_LOST),
    }
    if !state.capabilities.contains(needed(opcode)) {
        return Err(Reason::NOT_OFFERED);
    }
    dispatch(state, &request, reply)
}

/// The capability that an opcode needs.
const fn needed(opcode: Opcode) -> Capabilities {
    match opcode {
        Opcode::OPEN_XRCD | Opcode::CLOSE_XRCD => Capabilities::XRC,
        Opcode::REREG_MR => Capabilities::REREG_MR,
        Opcode::ALLOC_MW | Opcode::DEALLOC_MW => Capabilities::MEMORY_WINDOWS,
        Opcode::MODIFY_CQ => Capabilities::CQ_MODERATION,
        Opcode::RESIZE_CQ => Capabilities::RESIZE_CQ,
        Opcode::CREATE_SRQ | Opcode::MODIFY_SRQ | Opcode::QUERY_SRQ | Opcode::DESTROY_SRQ => {
            Capabilities::SRQ
        }
        Opcode::CREATE_AH => Capabilities::UD,
        Opcode::ATTACH_MCAST | Opcode::DETACH_MCAST => Capabilities::MULTICAST,
        Opcode::REGISTER_SERVICE_ID | Opcode::UNREGISTER_SERVICE_ID => Capabilities::SERVICE_IDS,
        Opcode::REGISTER_MAD_AGENT | Opcode::UNREGISTER_MAD_AGENT => Capabilities::MADS,
        _ => Capabilities::NONE,
    }
}

fn finish<V: CarryOut>(
    state: &mut State,
    verb: &V,
    request: &Request<'_>,
    reply: &mut [u8],
) -> Result<usize, Reason> {
    let done = verb.carry_out(state, request)?;
    let header: &RequestHeader = request.header;
    answer::<V>(reply, header, state.generation, &done).ok_or(Reason::REPLY_TOO_SHORT)
}

macro_rules! dispatch {
    ($state:ident, $request:ident, $reply:ident; $($body:ident)*) => {
        match $request.body {
            $( Body::$body(verb) => finish($state, verb, $request, $reply), )*
            Body::RegisterMadAgent(_) | Body::UnregisterMadAgent(_) => Err(Reason::NOT_OFFERED),
        }
    };
}

fn dispatch(state: &mut State, request: &Request<'_>, reply: &mut [u8]) -> Result<usize, Reason> {
    dispatch! { state, request, reply;
        QueryDevice QueryPort QueryGid QueryPkey QueryStats
        AllocPd DeallocPd AllocUar DeallocUar OpenXrcd CloseXrcd
        RegMr ReregMr DeregMr AllocMw DeallocMw
        CreateCq ModifyCq ResizeCq DestroyCq
        CreateSrq ModifySrq QuerySrq DestroySrq
        CreateQp ModifyQp QueryQp DestroyQp
        CreateAh AttachMcast DetachMcast
        RegisterServiceId UnregisterServiceId
    }
}
