//! EQE: an entry of an event queue, and the data of each event type.
//!
//! An entry is 32 bytes. (Devices that report the capability can be set to 64-byte entries, which carry
//! these 32 bytes in their second half.) Offsets in the comments below are within the 32 bytes.
//!
//! Sources: Linux `struct mlx4_eqe` and `eq.c`; iPXE `hermonprm_event_queue_entry` and its data structures;
//! local-catastrophe types from illumos `hermon`.

use core::mem::offset_of;

mod data;

pub use data::{
    CableEvent, CommandEvent, CqErrorEvent, CqEvent, EventPort, LocalCatastrophicEvent, PortChangeEvent,
    PortInfoChange, PortInfoEvent, QpEvent, SlToVlEvent, SrqEvent, TableChangeEvent, TemperatureEvent,
};

/// Size of an EQE in bytes.
pub const EQE_BYTES: u32 = 32;

/// Number of event types that `MAP_EQ`'s mask can name: the type is the bit number.
pub const EVENT_TYPES: u32 = 64;

open_enum! {
    /// Event type, byte 01.
    pub enum EventType: u8 {
        /// A CQ has a completion ([`CqEvent`]).
        COMPLETION = 0x00,
        /// A path has migrated ([`QpEvent`]).
        PATH_MIGRATED = 0x01,
        /// A QP in RTR has got its first packet ([`QpEvent`]).
        COMMUNICATION_ESTABLISHED = 0x02,
        /// A QP in SQD has finished what it had begun ([`QpEvent`]).
        SQ_DRAINED = 0x03,
        /// A CQ has overrun or could not be written ([`CqErrorEvent`]).
        CQ_ERROR = 0x04,
        /// A QP cannot go on, for a reason that no CQE tells ([`QpEvent`]).
        WQ_CATASTROPHIC = 0x05,
        /// An end-to-end context or QP context cannot be read.
        EEC_CATASTROPHIC = 0x06,
        /// A path could not migrate ([`QpEvent`]).
        PATH_MIGRATION_FAILED = 0x07,
        /// The device has failed ([`LocalCatastrophicEvent`]).
        LOCAL_CATASTROPHIC = 0x08,
        /// A port went up or down ([`PortChangeEvent`], [`PortChangeSubtype`]).
        PORT_CHANGE = 0x09,
        /// A command is done ([`CommandEvent`]).
        COMMAND = 0x0a,
        /// FEXCH error (Fibre Channel).
        FEXCH_ERROR = 0x0b,
        /// A memory error was detected.
        ECC_DETECT = 0x0e,
        /// An EQ has overflowed.
        EQ_OVERFLOW = 0x0f,
        /// A QP's responder got an invalid request ([`QpEvent`]).
        WQ_INVALID_REQUEST = 0x10,
        /// A QP's responder got an access violation ([`QpEvent`]).
        WQ_ACCESS_ERROR = 0x11,
        /// An SRQ cannot go on ([`SrqEvent`]).
        SRQ_CATASTROPHIC = 0x12,
        /// A QP with an SRQ will take no more receive WQEs ([`QpEvent`]).
        SRQ_QP_LAST_WQE = 0x13,
        /// An SRQ has fewer WQEs than its limit ([`SrqEvent`]).
        SRQ_LIMIT = 0x14,
        /// A GPIO pin changed.
        GPIO = 0x15,
        /// Client reregister (iPXE's mask names); illumos says spoofing.
        CLIENT_REREGISTER = 0x16,
        /// The communication channel of a virtual function has something.
        COMM_CHANNEL = 0x18,
        /// Virtual Ethernet port update.
        VEP_UPDATE = 0x19,
        /// Firmware asks for `GET_OP_REQ`.
        OP_REQUIRED = 0x1a,
        /// Fatal warning; subtype 0 is the temperature ([`TemperatureEvent`]).
        FATAL_WARNING = 0x1b,
        /// A virtual function was reset.
        FLR = 0x1c,
        /// Management attributes of a port changed ([`PortManagementSubtype`]).
        PORT_MANAGEMENT_CHANGE = 0x1d,
        /// Recoverable error, such as a bad cable ([`CableEvent`], [`RecoverableErrorSubtype`]).
        RECOVERABLE_ERROR = 0x3e,
        /// No event.
        NONE = 0xff,
    }
}

impl EventType {
    /// The bit of the type in `MAP_EQ`'s mask; zero for a type that the mask cannot name. Completions are
    /// routed by the CQ, not by the mask.
    pub const fn mask(self) -> u64 {
        // Shifting by a type of 64 and more gives nothing.
        match 1u64.checked_shl(self.0 as u32) {
            Some(mask) => mask,
            None => 0,
        }
    }
}

open_enum! {
    /// Subtype of [`EventType::PORT_CHANGE`].
    pub enum PortChangeSubtype: u8 {
        /// The port has left ACTIVE.
        DOWN = 1,
        /// The port is ACTIVE.
        ACTIVE = 4,
    }
}

open_enum! {
    /// Subtype of [`EventType::PORT_MANAGEMENT_CHANGE`].
    pub enum PortManagementSubtype: u8 {
        /// The GUID table ([`TableChangeEvent`]; mask bit n is GUID n of the block of 8).
        GUID_INFO = 0x14,
        /// PortInfo ([`PortInfoEvent`]).
        PORT_INFO = 0x15,
        /// The P_Key table ([`TableChangeEvent`]; mask bit n is P_Key n of the block of 32).
        PKEY_TABLE = 0x16,
        /// The SL to VL table ([`SlToVlEvent`]).
        SL_TO_VL = 0x17,
    }
}

open_enum! {
    /// Subtype of [`EventType::RECOVERABLE_ERROR`].
    pub enum RecoverableErrorSubtype: u8 {
        /// The cable is bad.
        BAD_CABLE = 1,
        /// The cable is not supported.
        UNSUPPORTED_CABLE = 2,
    }
}

open_enum! {
    /// What went wrong with a CQ, byte 0f of [`EventType::CQ_ERROR`].
    pub enum CqErrorSyndrome: u8 {
        /// A CQE found no free entry.
        OVERRUN = 1,
        /// A CQE could not be written.
        ACCESS_VIOLATION = 2,
    }
}

open_enum! {
    /// What failed, byte 0f of [`EventType::LOCAL_CATASTROPHIC`] (illumos).
    pub enum LocalCatastrophe: u8 {
        /// An EQ overflowed.
        EQ_OVERFLOW = 1,
        /// A doorbell came through a wrong UAR page.
        BAD_UAR_PAGE = 2,
        /// Uplink bus error.
        UPLINK_BUS = 3,
        /// Memory error.
        DDR_DATA = 4,
        /// Internal parity error.
        PARITY = 5,
    }
}

bits! {
    /// Last byte of an EQE.
    pub struct EqeOwner: u8 {
        /// Owner bit. The entry is the driver's when the bit equals the parity of the driver's pass over
        /// the ring, 0 in the first; the device fills a new ring with 1.
        pub owner: bool,
        #[bits(7)]
        __: u8,
    }
}

/// Offset of the owner byte in an EQE, written last.
pub const EQE_OWNER: u64 = 0x1f;

wire! {
    size = 32;
    /// An entry of an event queue.
    pub struct Eqe {
        __0: u8,
        event_type: u8,
        __1: u8,
        /// Subtype, by event type.
        pub subtype: u8,
        /// Data, by event type: convert from and to the structures of this module.
        pub data: [u8; 24],
        /// Function of an SR-IOV event; zero otherwise.
        pub function: u8,
        __2: [u8; 2],
        /// Owner.
        pub owner: EqeOwner,
    }
}

const _: () = {
    assert!(offset_of!(Eqe, subtype) == 0x03);
    assert!(offset_of!(Eqe, data) == 0x04);
    assert!(offset_of!(Eqe, function) == 0x1c);
    assert!(offset_of!(Eqe, owner) as u64 == EQE_OWNER);
};

impl Eqe {
    /// An entry of the given type, subtype and data, with owner bit 0.
    pub fn new(event_type: EventType, subtype: u8, data: impl Into<[u8; 24]>) -> Self {
        Self {
            __0: 0,
            event_type: event_type.0,
            __1: 0,
            subtype,
            data: data.into(),
            function: 0,
            __2: [0; 2],
            owner: EqeOwner::new(),
        }
    }

    /// Event type.
    pub const fn event_type(&self) -> EventType {
        EventType(self.event_type)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::{U16, U32, U64};

    /// The bytes of an entry made of `event_type`, `subtype` and `data`.
    fn bytes(event_type: EventType, subtype: u8, data: impl Into<[u8; 24]>) -> [u8; 32] {
        zerocopy::transmute!(Eqe::new(event_type, subtype, data))
    }

    #[test]
    fn completion_names_the_cq_at_04() {
        let data = CqEvent::new(0x12_3456);
        let eqe = bytes(EventType::COMPLETION, 0, data);
        assert_eq!(eqe[..8], [0, 0, 0, 0, 0, 0x12, 0x34, 0x56]);
        assert_eq!(eqe[8..], [0; 24]);
    }

    #[test]
    fn qp_and_srq_events_name_the_object_at_04() {
        let data = QpEvent::new(0x40);
        assert_eq!(bytes(EventType::COMMUNICATION_ESTABLISHED, 0, data)[..8], [0, 2, 0, 0, 0, 0, 0, 0x40]);
        let data = SrqEvent::new(0x41);
        assert_eq!(bytes(EventType::SRQ_LIMIT, 0, data)[..8], [0, 0x14, 0, 0, 0, 0, 0, 0x41]);
    }

    #[test]
    fn command_has_token_at_06_status_at_0f_result_at_10() {
        let data = CommandEvent::new(0xabcd, 0x10, 0x0102_0304_0506_0708);
        let eqe = bytes(EventType::COMMAND, 0, data);
        assert_eq!(eqe[0x01], 0x0a);
        assert_eq!(eqe[0x06..0x08], [0xab, 0xcd]);
        assert_eq!(eqe[0x0f], 0x10);
        assert_eq!(eqe[0x10..0x18], [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn cq_error_has_syndrome_at_0f() {
        let data = CqErrorEvent::new(0x83, CqErrorSyndrome::ACCESS_VIOLATION);
        let eqe = bytes(EventType::CQ_ERROR, 0, data);
        assert_eq!((eqe[0x07], eqe[0x0f]), (0x83, 2));
    }

    #[test]
    fn local_catastrophe_has_type_at_0f_and_detail_at_10() {
        let data = LocalCatastrophicEvent::new(LocalCatastrophe::BAD_UAR_PAGE, 0x0102_0304);
        let eqe = bytes(EventType::LOCAL_CATASTROPHIC, 0, data);
        assert_eq!(eqe[0x0f..0x14], [2, 1, 2, 3, 4]);
    }

    #[test]
    fn port_change_has_port_in_the_top_of_0c() {
        let eqe = bytes(EventType::PORT_CHANGE, PortChangeSubtype::ACTIVE.0, PortChangeEvent::new(2));
        assert_eq!(eqe[..4], [0, 9, 0, 4]);
        assert_eq!(eqe[0x0c..0x10], [0x20, 0, 0, 0]);
    }

    #[test]
    fn port_info_fields_are_at_their_places() {
        let mut data = PortInfoEvent::from([0; 24]);
        data.port = 1;
        data.sm_lid = U16::new(0x0102);
        data.lid = U16::new(0x0304);
        data.changed = PortInfoChange::new().with_client_reregister(true).with_sm_lid(true);
        data.sm_sl = 5;
        data.gid_prefix = U64::new(0xfe80 << 48);
        let eqe = bytes(EventType::PORT_MANAGEMENT_CHANGE, PortManagementSubtype::PORT_INFO.0, data);
        assert_eq!(eqe[0x07..0x0c], [1, 1, 2, 3, 4]);
        assert_eq!(eqe[0x0c..0x10], [0, 0, 0, 0x09]);
        assert_eq!(eqe[0x13], 5);
        assert_eq!(eqe[0x14..0x16], [0xfe, 0x80]);
    }

    #[test]
    fn port_info_change_bits_are_in_order() {
        let changes = [
            PortInfoChange::new().with_sm_lid(true),
            PortInfoChange::new().with_gid_prefix(true),
            PortInfoChange::new().with_lid(true),
            PortInfoChange::new().with_client_reregister(true),
            PortInfoChange::new().with_sm_sl(true),
        ];
        for (bit, change) in changes.iter().enumerate() {
            assert_eq!(change.into_bits().get(), 1 << bit);
        }
    }

    #[test]
    fn table_changes_are_at_their_places() {
        let mut data = TableChangeEvent::from([0; 24]);
        data.port = 2;
        data.block = U32::new(1);
        data.entries = U32::new(0x8000_0000);
        let eqe = bytes(EventType::PORT_MANAGEMENT_CHANGE, PortManagementSubtype::PKEY_TABLE.0, data);
        assert_eq!(eqe[0x07..0x10], [2, 0, 0, 0, 1, 0x80, 0, 0, 0]);
        let mut data = SlToVlEvent::from([0; 24]);
        data.table[7] = 0xef;
        assert_eq!(bytes(EventType::PORT_MANAGEMENT_CHANGE, 0x17, data)[0x0f], 0xef);
    }

    #[test]
    fn warnings_are_at_their_places() {
        let mut data = TemperatureEvent::from([0; 24]);
        data.current = U16::new(100);
        data.threshold = U16::new(95);
        assert_eq!(bytes(EventType::FATAL_WARNING, 0, data)[4..8], [0, 100, 0, 95]);
        let mut data = CableEvent::from([0; 24]);
        data.port = 2;
        assert_eq!(bytes(EventType::RECOVERABLE_ERROR, 1, data)[7], 2);
    }

    #[test]
    fn owner_is_the_top_bit_of_the_last_byte() {
        let mut eqe = Eqe::new(EventType::NONE, 0, [0; 24]);
        eqe.owner.set_owner(true);
        assert_eq!(eqe.as_bytes()[0x1f], 0x80);
    }

    #[test]
    fn mask_of_the_stock_driver_is_made_of_its_types() {
        let types = [
            0x01u8, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x09, 0x0a, 0x0e, 0x10, 0x11, 0x12, 0x13, 0x14, 0x18,
            0x1a, 0x1b, 0x1c,
        ];
        let mask = types.iter().fold(0, |mask, &code| mask | EventType(code).mask());
        assert_eq!(mask, 0x1d1f_46fe);
        assert_eq!(EventType::NONE.mask(), 0);
    }
}
