//! One special queue pair: its buffers, sending, and receiving.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mlx4_queue::Received;
use mlx4_queue::geometry::{SendSize, Service};
use mlx4_queue::request::{PostError, Sge};
use mlx4_wire::ctx::qp::QpState;
use mlx4_wire::mad::{DEFAULT_PKEY, LID_PERMISSIVE, MAD_SIZE, QP1_QKEY};
use mlx4_wire::packet::ICRC_BYTES;
use mlx4_wire::wqe::{
    ByteCount, Completion, CtrlOpcode, CtrlSize, DataSeg, MlxCtrlFlags, MlxCtrlSeg, Opcode,
};
use mlx4_wire::{U32, U64};
use zerocopy::FromZeros;

use super::header::UdHeader;
use super::{Arrival, GRH_BYTES, MadAddress, MadQueue, ReceivedMad};
use crate::cmd::Commands;
use crate::error::{Error, Fields, Result};
use crate::numbers::Number;
use crate::object::{Pd, Uar};
use crate::port::{LAST_UNICAST_LID, Port};
use crate::qp::{Attributes, QpRights};
use crate::queues::{CompletionQueue, QueuePair, QueuePairConfig};
use crate::region::RegisteredMemory;
use crate::shared::Shared;

/// Receive requests of a special queue pair.
const RECEIVES: u32 = 128;
/// Datagrams that it has under way.
const SENDS: u32 = 64;
/// Completions of one special queue pair, at most.
pub(super) const COMPLETIONS: u32 = RECEIVES + SENDS;
/// Distance of receive buffers: GRH and datagram, rounded up.
const RECEIVE_BYTES: usize = 320;
/// Where the send buffers start.
const SEND_OFFSET: usize = RECEIVES as usize * RECEIVE_BYTES;
/// Bytes of buffers of one special queue pair.
pub(super) const BUFFER_BYTES: usize = SEND_OFFSET + SENDS as usize * MAD_SIZE;
/// Bytes of a datagram, and of one with room for its GRH.
const MAD_BYTES: u32 = 256;
const RECEIVED_BYTES: u32 = 40 + MAD_BYTES;
const _: () = assert!(MAD_BYTES as usize == MAD_SIZE && RECEIVED_BYTES as usize == GRH_BYTES + MAD_SIZE);
/// The virtual lane of subnet management.
const VL_MANAGEMENT: u8 = 15;

/// What a special queue pair is made of.
pub(super) struct Parts<'a> {
    pub(super) shared: &'a std::sync::Arc<Shared>,
    pub(super) pd: &'a Pd,
    pub(super) uar: &'a Uar,
    pub(super) cq: &'a CompletionQueue,
}

/// Which send buffers are free, and which belong to requests that were posted; a bit each.
struct Slots {
    free: u64,
    posted: u64,
}

const _: () = assert!(SENDS == u64::BITS);

/// A special queue pair.
pub(super) struct Special {
    pub(super) port: u8,
    pub(super) queue: MadQueue,
    qp: QueuePair,
    /// Where its buffers start in the memory of all.
    base: usize,
    slots: Mutex<Slots>,
    psn: AtomicU32,
}

impl Special {
    pub(super) fn new(
        parts: &Parts<'_>,
        number: Number,
        (port, queue): (u8, MadQueue),
        base: usize,
    ) -> Result<Self> {
        let config = QueuePairConfig {
            service: Service::Mlx,
            pd: parts.pd,
            uar: parts.uar,
            send_cq: parts.cq,
            receive_cq: parts.cq,
            send: SendSize { requests: SENDS, sges: 1, inline: 0 },
            receives: RECEIVES,
            receive_sges: 1,
            srq: None,
        };
        let qp = QueuePair::with_number(parts.shared, number, &config, QpRights::default())?;
        let qp = if queue == MadQueue::Smi { qp.into_qp0() } else { qp };
        let slots = Mutex::new(Slots { free: u64::MAX, posted: 0 });
        Ok(Self { port, queue, qp, base, slots, psn: AtomicU32::new(0) })
    }

    /// Takes it to RTS, with all receive requests posted.
    pub(super) fn start(&self, memory: &RegisteredMemory) -> Result<()> {
        let qkey = if self.queue == MadQueue::Smi { 0 } else { QP1_QKEY };
        let init = Attributes {
            port: Some(self.port),
            pkey_index: Some(0),
            qkey: Some(qkey),
            ..Attributes::default()
        };
        self.qp.modify(QpState::INIT, &init)?;
        for slot in 0..RECEIVES as usize {
            self.post_receive(memory, slot)?;
        }
        self.qp.modify(QpState::RTR, &Attributes::default())?;
        self.qp.modify(QpState::RTS, &Attributes { send_psn: Some(0), ..Attributes::default() })
    }

    /// Starts it again, if the device has taken it to an error state.
    pub(super) fn recover(&self, memory: &RegisteredMemory) -> Result<()> {
        match self.qp.query()?.state {
            QpState::SQER => self.qp.modify(QpState::RTS, &Attributes::default()),
            QpState::ERR => {
                log::warn!("{:?} of port {} has failed and starts again", self.queue, self.port);
                // Nobody posts meanwhile.
                let mut slots = self.slots();
                self.qp.modify(QpState::RST, &Attributes::default())?;
                slots.free |= std::mem::take(&mut slots.posted);
                self.start(memory)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn number(&self) -> u32 {
        self.qp.number()
    }

    /// Posts a receive buffer.
    pub(super) fn post_receive(&self, memory: &RegisteredMemory, slot: usize) -> Result<(), PostError> {
        let piece = memory.piece(self.receive_offset(slot), RECEIVED_BYTES);
        self.qp.post_receive([(slot as u64, &[piece] as &[Sge])])
    }

    /// The datagram in a receive buffer.
    ///
    /// # Errors
    /// What came isn't one.
    pub(super) fn received(
        &self,
        memory: &RegisteredMemory,
        port: &Port,
        slot: usize,
        received: &Received,
    ) -> Result<ReceivedMad> {
        if slot >= RECEIVES as usize {
            return Err(Error::argument("receive buffer", slot as u64));
        }
        let fields = Fields("CQE of a special queue pair");
        fields.is("byte_count", received.bytes, RECEIVED_BYTES.into())?;
        let source = received.slid <= LAST_UNICAST_LID || received.slid == LID_PERMISSIVE;
        fields.holds("slid", received.slid, source, "a unicast LID or the permissive one")?;
        if self.queue == MadQueue::Gsi {
            fields.at_most(
                "pkey_index",
                received.pkey_index,
                u64::from(port.caps.pkeys).saturating_sub(1),
            )?;
        }
        let offset = self.receive_offset(slot);
        let (mut grh, mut mad) = ([0; GRH_BYTES], [0; MAD_SIZE]);
        memory.read(offset, &mut grh)?;
        memory.read(offset + GRH_BYTES, &mut mad)?;
        let arrival = Arrival {
            qpn: self.queue.qpn(),
            source_qpn: received.source_qpn,
            slid: received.slid,
            sl: received.sl,
            path_bits: received.path_bits,
            pkey_index: if self.queue == MadQueue::Gsi { received.pkey_index } else { 0 },
            grh: received.grh.then_some(grh),
        };
        Ok(ReceivedMad { port: self.port, mad, arrival })
    }

    /// Sends a datagram.
    pub(super) fn send(
        &self,
        commands: &Commands,
        memory: &RegisteredMemory,
        port: &Port,
        address: &MadAddress,
        mad: &[u8; MAD_SIZE],
    ) -> Result<()> {
        let header = self.header(commands, port, address)?;
        let slot = self.take_slot()?;
        let offset = self.base + SEND_OFFSET + slot * MAD_SIZE;
        let result = match memory.write(offset, mad) {
            Ok(()) => {
                let mut slots = self.slots();
                let result = self.post(slot, address, &header, &memory.piece(offset, MAD_BYTES));
                slots.posted |= u64::from(result.is_ok()) << slot;
                result.map_err(Error::from)
            }
            Err(error) => Err(error.into()),
        };
        if result.is_err() {
            self.sent(slot);
        }
        result
    }

    fn post(
        &self,
        slot: usize,
        address: &MadAddress,
        header: &UdHeader,
        piece: &Sge,
    ) -> Result<(), PostError> {
        let mut control = MlxCtrlSeg::new_zeroed();
        control.opcode = CtrlOpcode::new().with_opcode(Opcode::SEND);
        control.size = CtrlSize::new();
        control.flags = MlxCtrlFlags::new()
            .with_vl15(self.queue == MadQueue::Smi)
            .with_header_slid(header.slid == LID_PERMISSIVE)
            .with_sl(header.sl)
            .with_completion(Completion::ALWAYS);
        control.remote_lid.set(address.dlid);
        let data = DataSeg {
            byte_count: ByteCount::new().with_count(piece.length),
            lkey: U32::new(piece.lkey),
            address: U64::new(piece.address),
        };
        let bytes = header.bytes();
        self.qp.post_with(slot as u64, |wqe| {
            wqe.segment(&control);
            wqe.inline(&[bytes.as_slice()]);
            wqe.segment(&data);
            wqe.inline(&[&[0; ICRC_BYTES]]);
        })
    }

    fn header(&self, commands: &Commands, port: &Port, address: &MadAddress) -> Result<UdHeader> {
        if address.sl > 15 {
            return Err(Error::argument("service level", address.sl));
        }
        let smi = self.queue == MadQueue::Smi;
        let grh = match address.grh {
            Some(route) => {
                let gids = port.gids(commands)?;
                let gid = gids.get(usize::from(route.sgid_index));
                Some((route, *gid.ok_or(Error::argument("source GID index", route.sgid_index))?))
            }
            None => None,
        };
        let lane = if smi { VL_MANAGEMENT } else { port.lane(commands, address.sl)? };
        if !smi && lane == VL_MANAGEMENT {
            return Err(Error::argument("service level without a virtual lane", address.sl));
        }
        let permissive = smi && address.dlid == LID_PERMISSIVE;
        Ok(UdHeader {
            vl: lane,
            sl: if smi { 0 } else { address.sl },
            dlid: address.dlid,
            slid: if permissive { LID_PERMISSIVE } else { u16::from(address.path_bits & 0x7f) },
            grh,
            pkey: if smi { DEFAULT_PKEY } else { pkey(commands, port, address.pkey_index)? },
            remote_qpn: address.qpn,
            psn: self.psn.fetch_add(1, Ordering::Relaxed),
            qkey: address.qkey,
            source_qpn: self.queue.qpn(),
        })
    }

    fn take_slot(&self) -> Result<usize, PostError> {
        let mut slots = self.slots();
        let slot = slots.free.trailing_zeros();
        if slot == SENDS {
            return Err(PostError::Full);
        }
        slots.free &= !(1 << slot);
        Ok(slot as usize)
    }

    /// A send buffer is free again.
    pub(super) fn sent(&self, slot: usize) {
        if slot < SENDS as usize {
            let mut slots = self.slots();
            slots.posted &= !(1 << slot);
            slots.free |= 1 << slot;
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it to ERR, as the device does by itself.
    #[cfg(test)]
    pub(super) fn break_down(&self) {
        self.qp.modify(QpState::ERR, &Attributes::default()).expect("ERR can be reached");
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> QpState {
        self.qp.query().expect("the device tells").state
    }

    fn receive_offset(&self, slot: usize) -> usize {
        self.base + slot * RECEIVE_BYTES
    }

    /// Stops and destroys it.
    pub(super) fn destroy(self) -> Result<()> {
        self.qp.destroy()
    }
}

fn pkey(commands: &Commands, port: &Port, index: u8) -> Result<u16> {
    let pkeys = port.pkeys(commands)?;
    pkeys.get(usize::from(index)).copied().ok_or(Error::argument("P_Key index", index))
}
