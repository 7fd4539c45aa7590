//! Notices and traps (IBTA vol. 1, 13.4.8.2 and 14.2.5.1): how an agent tells the subnet manager of an event.

use crate::{U16, U32, U64};

open_enum! {
    /// Type of a notice.
    pub enum NoticeType: u8 {
        FATAL = 0,
        URGENT = 1,
        SECURITY = 2,
        SUBNET_MANAGEMENT = 3,
        INFORMATIONAL = 4,
        EMPTY = 0x7f,
    }
}

open_enum! {
    /// Producer of a generic notice.
    pub enum Producer: u32 {
        CHANNEL_ADAPTER = 1,
        SWITCH = 2,
        ROUTER = 3,
        CLASS_MANAGER = 4,
    }
}

open_enum! {
    /// Number of a generic trap.
    pub enum Trap: u16 {
        GID_IN_SERVICE = 64,
        GID_OUT_OF_SERVICE = 65,
        MULTICAST_GROUP_CREATED = 66,
        MULTICAST_GROUP_DELETED = 67,
        LINK_STATE_CHANGED = 128,
        LOCAL_LINK_INTEGRITY = 129,
        EXCESSIVE_BUFFER_OVERRUN = 130,
        FLOW_CONTROL_WATCHDOG = 131,
        LOCAL_CHANGES = 144,
        SYSTEM_IMAGE_GUID_CHANGED = 145,
        BAD_M_KEY = 256,
        BAD_P_KEY = 257,
        BAD_Q_KEY = 258,
        BAD_P_KEY_AT_SWITCH_PORT = 259,
    }
}

bits! {
    /// Kind and producer of a notice.
    pub struct NoticeKind: u32 {
        /// Defined by the standard; otherwise the producer field is the vendor's id.
        pub is_generic: bool,
        #[bits(7)]
        pub notice_type: NoticeType,
        /// Producer type, or vendor id.
        #[bits(24)]
        pub producer: Producer,
    }
}

bits! {
    /// How often the notice occurred.
    pub struct NoticeCount: u16 {
        /// Changes with each notice.
        pub toggle: bool,
        #[bits(15)]
        pub count: u16,
    }
}

wire! {
    size = 64;
    /// Notice, as in an SMP.
    pub struct Notice {
        /// Kind and producer.
        pub kind: NoticeKind,
        /// A [`Trap`], or the device id of a vendor's notice.
        pub trap_number: U16,
        /// LID of the node that saw the event.
        pub issuer_lid: U16,
        /// How often it occurred.
        pub count: NoticeCount,
        /// By trap number.
        pub details: [u8; 54],
    }
}

offsets!(Notice { trap_number: 4, issuer_lid: 6, count: 8, details: 0xa });

wire! {
    size = 80;
    /// Notice, as the subnet administrator reports it.
    pub struct ReportedNotice {
        /// The notice.
        pub notice: Notice,
        /// GID of the node that saw the event.
        pub issuer_gid: [u8; 16],
    }
}

wire! {
    size = 54;
    /// Details of traps 64 to 67.
    pub struct GidDetails {
        /// Zero.
        pub _reserved0: [u8; 6],
        /// GID of the port, or of the multicast group.
        pub gid: [u8; 16],
        /// Zero.
        pub _reserved16: [u8; 32],
    }
}

wire! {
    size = 54;
    /// Details of trap 128.
    pub struct LinkStateDetails {
        /// LID of the switch.
        pub lid: U16,
        /// Zero.
        pub _reserved2: [u8; 52],
    }
}

bits! {
    /// What changed, besides the capability mask (trap 144).
    pub struct LocalChanges: u16 {
        #[bits(10)]
        __: u16,
        pub capability_mask2: bool,
        pub hierarchy_info: bool,
        pub sm_priority: bool,
        pub link_speed_enabled: bool,
        pub link_width_enabled: bool,
        pub node_description: bool,
    }
}

wire! {
    size = 54;
    /// Details of trap 144.
    pub struct LocalChangesDetails {
        /// Zero.
        pub _reserved0: U16,
        /// LID of the port.
        pub lid: U16,
        /// Zero.
        pub _reserved4: u8,
        /// Bit 0: `changes` is valid.
        pub other_local_changes: u8,
        /// The capability mask that the port has now.
        pub capability_mask: U32,
        /// What else changed.
        pub changes: LocalChanges,
        /// The capability mask 2 that the port has now.
        pub capability_mask2: U16,
        /// Zero.
        pub _reserved_e: [u8; 40],
    }
}

offsets!(LocalChangesDetails {
    lid: 2,
    other_local_changes: 5,
    capability_mask: 6,
    changes: 10,
    capability_mask2: 12
});

bits! {
    /// Route of the offending SMP (trap 256).
    pub struct OffendingRoute: u8 {
        /// The SMP was a directed-route one.
        pub dr_notice: bool,
        /// The return path didn't fit.
        pub path_truncated: bool,
        #[bits(6)]
        pub hop_count: u8,
    }
}

wire! {
    size = 54;
    /// Details of trap 256.
    pub struct BadMKeyDetails {
        /// Zero.
        pub _reserved0: U16,
        /// LID that the SMP came from.
        pub lid: U16,
        /// DrSLID of a directed-route SMP.
        pub dr_slid: U16,
        /// Its method.
        pub method: u8,
        /// Zero.
        pub _reserved7: u8,
        /// Its attribute id.
        pub attribute_id: U16,
        /// Its attribute modifier.
        pub attribute_modifier: U32,
        /// The M_Key that it carried.
        pub m_key: U64,
        /// Zero.
        pub _reserved16: u8,
        /// Its route.
        pub route: OffendingRoute,
        /// Its return path.
        pub return_path: [u8; 30],
    }
}

offsets!(BadMKeyDetails {
    method: 6,
    attribute_id: 8,
    attribute_modifier: 10,
    m_key: 14,
    route: 23,
    return_path: 24
});

bits! {
    /// Service level and a queue pair (traps 257 and 258).
    pub struct OffendingQp: u32 {
        #[bits(4)]
        pub sl: u32,
        #[bits(4)]
        __: u32,
        #[bits(24)]
        pub qp: u32,
    }
}

wire! {
    size = 54;
    /// Details of traps 257 and 258.
    pub struct BadKeyDetails {
        /// Zero.
        pub _reserved0: U16,
        /// LID of the sender.
        pub lid1: U16,
        /// LID of the receiver.
        pub lid2: U16,
        /// The key that the packet carried.
        pub key: U32,
        /// Service level, and queue pair of the sender.
        pub qp1: OffendingQp,
        /// Queue pair of the receiver.
        pub qp2: OffendingQp,
        /// GID of the sender.
        pub gid1: [u8; 16],
        /// GID of the receiver.
        pub gid2: [u8; 16],
        /// Zero.
        pub _reserved32: [u8; 4],
    }
}

offsets!(BadKeyDetails { key: 6, qp1: 10, qp2: 14, gid1: 18, gid2: 34 });

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn trap_128_has_the_bytes_of_the_standard() {
        let mut notice = Notice::new_zeroed();
        notice.kind = NoticeKind::new()
            .with_is_generic(true)
            .with_notice_type(NoticeType::URGENT)
            .with_producer(Producer::SWITCH);
        notice.trap_number.set(Trap::LINK_STATE_CHANGED.0);
        notice.issuer_lid.set(2);
        notice.count = NoticeCount::new().with_toggle(true).with_count(1);
        notice.details[..2].copy_from_slice(&[0, 2]);
        assert_eq!(notice.as_bytes()[..12], [0x81, 0, 0, 2, 0, 128, 0, 2, 0x80, 1, 0, 2]);
    }

    #[test]
    fn node_description_is_the_lowest_of_the_changes() {
        let changes = LocalChanges::new().with_node_description(true).with_capability_mask2(true);
        assert_eq!(changes.as_bytes(), [0, 0x21]);
    }
}
