//! What came of the guests' requests: completions and events by kind, counted on their way, and the page that a
//! guest's doorbells are in.

#[cfg(test)]
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mlx4_model::hca::Fault;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cqe::CqeOpcode;
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::eqe::EventType;
use zerocopy::FromBytes;

/// Where an entry of an event queue has its type.
const EVENT_TYPE: usize = 0x01;
/// Where an error has its syndrome, counted from the end of the entry.
const SYNDROME: usize = 5;
/// In the last byte of a completion: whether it is of a send queue, and the opcode.
const SEND: u8 = 0x40;
const OPCODE: u8 = 0x1f;

/// First byte of a completion's queue pair, and what is set in it of an extended connection's target.
const CQE_QPN: usize = 1;
const XRC_TARGET: u8 = 0x80;

/// Looks, and changes nothing.
#[derive(Debug)]
pub(super) struct Watch {
    /// Page of the CQ that was made last.
    page: AtomicU32,
    requests: [AtomicU64; 32],
    receives: [AtomicU64; 32],
    errors: [AtomicU64; 256],
    events: [AtomicU64; 256],
    /// Receives of an extended connection's target.
    extended: [AtomicU64; 1],
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            page: AtomicU32::new(0),
            requests: [const { AtomicU64::new(0) }; 32],
            receives: [const { AtomicU64::new(0) }; 32],
            errors: [const { AtomicU64::new(0) }; 256],
            events: [const { AtomicU64::new(0) }; 256],
            extended: [const { AtomicU64::new(0) }; 1],
        }
    }

    /// The page that the CQ that was made last is rung in.
    pub(super) fn page(&self) -> u32 {
        self.page.load(Ordering::Relaxed)
    }

    /// How often each kind of thing has happened, for those that have.
    #[cfg(test)]
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        let tables: [(&str, &[AtomicU64]); 5] = [
            ("request", &self.requests),
            ("receive", &self.receives),
            ("syndrome", &self.errors),
            ("event", &self.events),
            ("extended", &self.extended),
        ];
        let named = tables.iter().flat_map(|(name, table)| {
            let count = move |(code, count): (usize, &AtomicU64)| {
                (format!("{name} {code:#04x}"), count.load(Ordering::Relaxed))
            };
            table.iter().enumerate().map(count)
        });
        named.filter(|(_, count)| *count != 0).collect()
    }
}

fn add(table: &[AtomicU64], code: u8) {
    table[usize::from(code)].fetch_add(1, Ordering::Relaxed);
}

impl Fault for Watch {
    fn request(&self, opcode: Opcode, _modifier: u32, mailbox: &mut [u8]) {
        if opcode == Opcode::SW2HW_CQ
            && let Ok((context, _)) = CqContext::ref_from_prefix(mailbox)
        {
            self.page.store(context.size.uar_page(), Ordering::Relaxed);
        }
    }

    fn event(&self, eqe: &mut [u8]) {
        let code = eqe[EVENT_TYPE];
        if ![EventType::COMPLETION.0, EventType::COMMAND.0].contains(&code) {
            add(&self.events, code);
        }
    }

    fn completion(&self, cqe: &mut [u8]) {
        let Some(last) = cqe.last().copied() else { return };
        match last & OPCODE {
            error if error == CqeOpcode::ERROR.0 => add(&self.errors, cqe[cqe.len() - SYNDROME]),
            opcode if last & SEND != 0 => add(&self.requests, opcode),
            opcode => {
                add(&self.receives, opcode);
                if cqe[CQE_QPN] & XRC_TARGET != 0 {
                    add(&self.extended, 0);
                }
            }
        }
    }
}
