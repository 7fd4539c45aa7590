//! The table of requests: opcode, body, whether segments follow, whether it destroys something, and the answer.

use zerocopy::FromBytes;

use super::completion::{CqCreated, CreateCq, DestroyCq, ModifyCq, ResizeCq};
use super::datagram::{AddressVector, AttachMcast, CreateAh, DetachMcast};
use super::domain::{
    AllocPd, AllocUar, CloseXrcd, DeallocPd, DeallocUar, OpenXrcd, PdAllocated, UarAllocated, XrcdOpened,
};
use super::management::{
    MadAgentRegistered, RegisterMadAgent, RegisterServiceId, ServiceIdRegistered, UnregisterMadAgent,
    UnregisterServiceId,
};
use super::memory::{AllocMw, DeallocMw, DeregMr, MrRegistered, MwAllocated, RegMr, ReregMr};
use super::query::{
    DeviceAttributes, GidEntry, PkeyEntry, PortAttributes, QueryDevice, QueryGid, QueryPkey, QueryPort,
    QueryStats, Stats,
};
use super::queue_pair::{CreateQp, DestroyQp, ModifyQp, QpCreated, QpQueried, QueryQp};
use super::shared_receive::{CreateSrq, DestroySrq, ModifySrq, QuerySrq, SrqAttributes, SrqCreated};
use super::{Destroyed, Done, Verb};
use crate::Reason;
use crate::layout::Checked;

macro_rules! requests {
    ( $vis:vis enum Opcode, Body; $( $opcode:ident = $value:literal: $body:ident $(+ $trait:ident)* => $answer:ident; )* ) => {
        codes! {
            /// What a request asks for.
            $vis enum Opcode {
                $( #[doc = concat!("[`", stringify!($body), "`], answered by [`", stringify!($answer), "`].")]
                $opcode = $value, )*
            }
        }

        impl Opcode {
            /// Whether segments may follow the body.
            pub const fn has_segments(self) -> bool {
                match self {
                    $( Self::$opcode => false $( || requests!(@ $trait segments) )*, )*
                    _ => false,
                }
            }

            /// Whether the request ends the life of an object, and nothing else.
            pub const fn destroys(self) -> bool {
                match self {
                    $( Self::$opcode => false $( || requests!(@ $trait destroys) )*, )*
                    _ => false,
                }
            }

            /// Size in bytes of the body; `None` for an unknown opcode.
            pub const fn body_bytes(self) -> Option<usize> {
                match self {
                    $( Self::$opcode => Some(size_of::<$body>()), )*
                    _ => None,
                }
            }

            /// Size in bytes of the answer; `None` for an unknown opcode.
            pub const fn answer_bytes(self) -> Option<usize> {
                match self {
                    $( Self::$opcode => Some(size_of::<$answer>()), )*
                    _ => None,
                }
            }

            /// Names of body and answer; `None` for an unknown opcode.
            pub const fn structures(self) -> Option<(&'static str, &'static str)> {
                match self {
                    $( Self::$opcode => Some((stringify!($body), stringify!($answer))), )*
                    _ => None,
                }
            }
        }

        /// The body of a request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum Body<'a> {
            $( #[doc = concat!("Of [`Opcode::", stringify!($opcode), "`].")]
            $body(&'a $body), )*
        }

        impl<'a> Body<'a> {
            /// The body of `opcode` at the start of `bytes`, and what follows it.
            pub(super) fn parse(opcode: Opcode, bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Reason> {
                match opcode {
                    $( Opcode::$opcode => {
                        let (body, rest) = $body::ref_from_prefix(bytes).map_err(|_| Reason::BAD_LENGTH)?;
                        body.check()?;
                        Ok((Self::$body(body), rest))
                    } )*
                    _ => Err(Reason::UNKNOWN_OPCODE),
                }
            }
        }

        $( impl Verb for $body {
            const OPCODE: Opcode = Opcode::$opcode;
            type Answer = $answer;
        } )*
    };
    (@ segments segments) => { true };
    (@ destroys destroys) => { true };
    (@ $trait:ident $other:ident) => { false };
}

requests! {
    pub enum Opcode, Body;

    QUERY_DEVICE = 0x01: QueryDevice => DeviceAttributes;
    QUERY_PORT = 0x02: QueryPort => PortAttributes;
    QUERY_GID = 0x03: QueryGid => GidEntry;
    QUERY_PKEY = 0x04: QueryPkey => PkeyEntry;
    QUERY_STATS = 0x05: QueryStats => Stats;

    ALLOC_PD = 0x10: AllocPd => PdAllocated;
    DEALLOC_PD = 0x11: DeallocPd + destroys => Done;
    ALLOC_UAR = 0x12: AllocUar => UarAllocated;
    DEALLOC_UAR = 0x13: DeallocUar + destroys => Done;
    OPEN_XRCD = 0x14: OpenXrcd => XrcdOpened;
    CLOSE_XRCD = 0x15: CloseXrcd + destroys => Done;

    REG_MR = 0x20: RegMr + segments => MrRegistered;
    REREG_MR = 0x21: ReregMr + segments => MrRegistered;
    DEREG_MR = 0x22: DeregMr + destroys => Done;
    ALLOC_MW = 0x23: AllocMw => MwAllocated;
    DEALLOC_MW = 0x24: DeallocMw + destroys => Done;

    CREATE_CQ = 0x30: CreateCq + segments => CqCreated;
    MODIFY_CQ = 0x31: ModifyCq => Done;
    RESIZE_CQ = 0x32: ResizeCq + segments => Done;
    DESTROY_CQ = 0x33: DestroyCq + destroys => Destroyed;

    CREATE_SRQ = 0x40: CreateSrq + segments => SrqCreated;
    MODIFY_SRQ = 0x41: ModifySrq => Done;
    QUERY_SRQ = 0x42: QuerySrq => SrqAttributes;
    DESTROY_SRQ = 0x43: DestroySrq + destroys => Destroyed;

    CREATE_QP = 0x50: CreateQp + segments => QpCreated;
    MODIFY_QP = 0x51: ModifyQp => Done;
    QUERY_QP = 0x52: QueryQp => QpQueried;
    DESTROY_QP = 0x53: DestroyQp + destroys => Destroyed;

    CREATE_AH = 0x60: CreateAh => AddressVector;
    ATTACH_MCAST = 0x61: AttachMcast => Done;
    DETACH_MCAST = 0x62: DetachMcast + destroys => Done;

    REGISTER_SERVICE_ID = 0x70: RegisterServiceId => ServiceIdRegistered;
    UNREGISTER_SERVICE_ID = 0x71: UnregisterServiceId + destroys => Done;
    REGISTER_MAD_AGENT = 0x72: RegisterMadAgent => MadAgentRegistered;
    UNREGISTER_MAD_AGENT = 0x73: UnregisterMadAgent + destroys => Done;
}

/// Size in bytes of the longest answer.
pub const MAX_ANSWER_BYTES: usize = {
    let mut longest = 0;
    let mut index = 0;
    while index < Opcode::KNOWN.len() {
        match Opcode::KNOWN[index].answer_bytes() {
            Some(bytes) if bytes > longest => longest = bytes,
            _ => {}
        }
        index += 1;
    }
    longest
};
