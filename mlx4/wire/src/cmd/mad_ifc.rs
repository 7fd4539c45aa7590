//! MAD_IFC: the firmware's subnet management and performance agents process a MAD.
//!
//! The output mailbox carries the answer in its first 256 bytes. The status of the command says whether a
//! MAD was processed, the status field of the answer how.

use crate::mad::MAD_SIZE;
use crate::{Number24, U16, U32};

bits! {
    /// Opcode modifier of MAD_IFC, in the low four bits.
    pub struct MadIfcOp: u8 {
        #[bits(4)]
        __: u8,
        /// Show the physical port to a function that would see its own (Linux, SR-IOV only).
        pub net_view: bool,
        /// The mailbox holds extended information, [`MadIfc::ext`].
        pub ext_info: bool,
        /// Don't check the B_Key.
        pub ignore_bkey: bool,
        /// Don't check the M_Key.
        pub ignore_mkey: bool,
    }
}

bits! {
    /// Input modifier of MAD_IFC (PRM `mad_ifc_input_modifier`).
    pub struct MadIfcModifier: u32 {
        /// Source LID of the MAD, if there is extended information.
        #[bits(16)]
        pub rlid: u16,
        #[bits(7)]
        __: u8,
        /// PRM: extended information is valid. Linux sets the opcode modifier's bit and not this one.
        pub ext_info: bool,
        /// Port that the MAD came through, from 1.
        #[bits(8)]
        pub port: u8,
    }
}

bits! {
    /// Half-word 10c of the mailbox: path of the MAD.
    pub struct MadPath: u16 {
        /// Service level.
        #[bits(4)]
        pub sl: u8,
        #[bits(4)]
        __: u8,
        /// There is a GRH.
        pub grh: bool,
        /// Low bits of the destination LID.
        #[bits(7)]
        pub path_bits: u8,
    }
}

wire! {
    size = 0x100;
    /// Bytes 100 to 1ff of the mailbox: how the MAD came, for traps and answers.
    pub struct MadExtInfo {
        /// 100: QP that received the MAD.
        pub my_qpn: Number24,
        _reserved104: U32,
        /// 108: QP that sent the MAD.
        pub rqpn: Number24,
        /// 10c: path.
        pub path: MadPath,
        _reserved10e: [u8; 4],
        /// 112: index of the P_Key.
        pub pkey_index: U16,
        _reserved114: [u8; 0x2c],
        /// 140: the GRH, if `path` says so.
        pub grh: [u8; 40],
        _reserved168: [u8; 0x98],
    }
}

wire! {
    size = 0x200;
    /// Mailbox of MAD_IFC (PRM `mad_ifc`).
    pub struct MadIfc {
        /// 000: the MAD, as on the wire.
        pub mad: [u8; MAD_SIZE],
        /// 100: extended information, input only.
        pub ext: MadExtInfo,
    }
}

// Counted from the extended information, which starts at byte 100 of the mailbox.
offsets! { MadExtInfo: rqpn = 0x08, path = 0x0c, pkey_index = 0x12, grh = 0x40, }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::testing::golden as at;

    #[test]
    fn extended_information_is_where_linux_writes_it() {
        type M = MadIfc;
        at(|m: &mut M| m.mad[0] = 1, 0x000, &[1]);
        at(|m: &mut M| m.ext.my_qpn.set_number(1), 0x103, &[1]);
        at(|m: &mut M| m.ext.rqpn.set_number(0x12_3456), 0x109, &[0x12, 0x34, 0x56]);
        at(|m: &mut M| m.ext.path.set_sl(0xf), 0x10c, &[0xf0]);
        at(|m: &mut M| m.ext.path.set_grh(true), 0x10d, &[0x80]);
        at(|m: &mut M| m.ext.path.set_path_bits(0x7f), 0x10d, &[0x7f]);
        at(|m: &mut M| m.ext.pkey_index.set(0x0102), 0x112, &[1, 2]);
        at(|m: &mut M| m.ext.grh[39] = 0xee, 0x167, &[0xee]);
    }

    #[test]
    fn modifiers_are_the_bits_of_linux() {
        at(|o: &mut MadIfcOp| o.set_ignore_mkey(true), 0, &[0x1]);
        at(|o: &mut MadIfcOp| o.set_ignore_bkey(true), 0, &[0x2]);
        at(|o: &mut MadIfcOp| o.set_ext_info(true), 0, &[0x4]);
        at(|o: &mut MadIfcOp| o.set_net_view(true), 0, &[0x8]);
        let modifier = MadIfcModifier::new().with_rlid(0xabcd).with_port(2);
        assert_eq!(modifier.into_bits().get(), 0xabcd_0002);
    }
}
