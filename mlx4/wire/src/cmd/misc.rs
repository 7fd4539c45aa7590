//! Small commands: QUERY_FUNC, MGID_HASH, SET_NODE, and the modifiers of MAP_EQ, MODIFY_CQ, HW2SW_*,
//! RTS2SQD_QP and NOP.

use crate::{U16, U32};

bits! {
    /// Byte 01 of QUERY_FUNC.
    pub struct FuncAddress: u8 {
        /// PCI device number.
        #[bits(5)]
        pub device: u8,
        /// PCI function number.
        #[bits(3)]
        pub function: u8,
    }
}

wire! {
    size = 0x10;
    /// Output of QUERY_FUNC (Linux `QUERY_FUNC_*_OFFSET`). The input modifier is the function, zero for
    /// one's own.
    pub struct QueryFunc {
        /// 00: PCI bus number; Linux reads four bits.
        pub bus: u8,
        /// 01: PCI device and function number.
        pub address: FuncAddress,
        _reserved02: u8,
        /// 03 \[3:0\]: physical function.
        pub physical_function: u8,
        /// 04: EQs that the firmware keeps, a count.
        pub rsvd_eqs: U16,
        /// 06: EQs of the function, a count.
        pub max_eq: U16,
        _reserved08: [u8; 3],
        /// 0b \[3:0\]: UAR pages that the firmware keeps, a count.
        pub rsvd_uars: u8,
        _reserved0c: U32,
    }
}

offsets! { QueryFunc:
    address = 0x01, physical_function = 0x03, rsvd_eqs = 0x04, max_eq = 0x06, rsvd_uars = 0x0b,
}

bits! {
    /// Low word of the immediate output of MGID_HASH (PRM `mgm_hash`). The input mailbox holds the 16
    /// bytes of the GID.
    pub struct MgidHash: u32 {
        #[bits(16)]
        __: u16,
        /// Index in the multicast table where the chain of the GID starts.
        #[bits(16)]
        pub hash: u16,
    }
}

bits! {
    /// Input modifier of MAP_EQ. The immediate input is a mask of event types, bit per type.
    pub struct MapEqModifier: u32 {
        /// Take the events away from the EQ.
        pub unmap: bool,
        #[bits(7)]
        __: u8,
        /// Event queue number.
        #[bits(24)]
        pub eqn: u32,
    }
}

bits! {
    /// Input modifier of RTS2SQD_QP.
    pub struct SqdModifier: u32 {
        /// Report by an event that the send queue is drained.
        pub event: bool,
        #[bits(7)]
        __: u8,
        /// Queue pair number.
        #[bits(24)]
        pub qpn: u32,
    }
}

open_enum! {
    /// Opcode modifiers of MODIFY_CQ, whose mailbox is a CQ context.
    pub enum ModifyCqOp: u8 {
        /// Move to a new buffer of another size.
        RESIZE = 0,
        /// Change the moderation of events.
        MODERATION = 1,
    }
}

open_enum! {
    /// Opcode modifiers of HW2SW_MPT, HW2SW_EQ, HW2SW_CQ and HW2SW_SRQ.
    ///
    /// iPXE passes `NO_OUTPUT` with a mailbox to HW2SW_EQ, and `OUTPUT` without one to HW2SW_MPT.
    pub enum Hw2SwOp: u8 {
        /// Write the context to the output mailbox.
        OUTPUT = 0,
        /// There is no output mailbox.
        NO_OUTPUT = 1,
    }
}

/// Input modifier of NOP that Linux sends: finish as soon as possible.
pub const NOP_AT_ONCE: u32 = 0x1f;

wire! {
    size = 0x40;
    /// Input of SET_NODE: the NodeDescription. The input modifier is 1.
    pub struct SetNode {
        /// 00: text, padded with zeros.
        pub node_desc: [u8; 0x40],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::testing::golden as at;

    #[test]
    fn query_func_fields_are_where_linux_reads_them() {
        type F = QueryFunc;
        at(|f: &mut F| f.address.set_device(0x1f), 0x01, &[0xf8]);
        at(|f: &mut F| f.address.set_function(7), 0x01, &[0x07]);
        at(|f: &mut F| f.physical_function = 1, 0x03, &[1]);
        at(|f: &mut F| f.rsvd_eqs.set(0x0102), 0x04, &[1, 2]);
        at(|f: &mut F| f.max_eq.set(0x0102), 0x06, &[1, 2]);
        at(|f: &mut F| f.rsvd_uars = 3, 0x0b, &[3]);
    }

    #[test]
    fn modifiers_are_the_words_of_linux() {
        assert_eq!(MapEqModifier::new().with_unmap(true).with_eqn(8).into_bits().get(), 0x8000_0008);
        assert_eq!(SqdModifier::new().with_event(true).with_qpn(0x208).into_bits().get(), 0x8000_0208);
        assert_eq!(MgidHash::from_bits(U32::new(0xffff_0abc)).hash(), 0x0abc);
    }
}
