//! Records of paths and multicast groups (IBTA vol. 1, 15.2.5.16 and 15.2.5.17).

use crate::{U16, U32, U64};

open_enum! {
    /// How a value of a query compares with those of the answer.
    pub enum Selector: u8 {
        GREATER_THAN = 0,
        LESS_THAN = 1,
        EXACTLY = 2,
        /// The largest MTU or rate, the smallest lifetime.
        BEST = 3,
    }
}

open_enum! {
    /// Codes of a static rate. They don't grow with the speed.
    pub enum Rate: u8 {
        G2_5 = 2,
        G10 = 3,
        G30 = 4,
        G5 = 5,
        G20 = 6,
        G40 = 7,
        G60 = 8,
        G80 = 9,
        G120 = 10,
        G14 = 11,
        G56 = 12,
        G112 = 13,
        G168 = 14,
        G25 = 15,
        G100 = 16,
        G200 = 17,
        G300 = 18,
    }
}

impl Rate {
    /// The speed of a known code, in Mb/s: the sum of the lanes' signalling rates.
    pub const fn mbps(self) -> Option<u32> {
        Some(match self {
            Self::G2_5 => 2_500,
            Self::G5 => 5_000,
            Self::G10 => 10_000,
            Self::G14 => 14_062,
            Self::G20 => 20_000,
            Self::G25 => 25_781,
            Self::G30 => 30_000,
            Self::G40 => 40_000,
            Self::G56 => 56_250,
            Self::G60 => 60_000,
            Self::G80 => 80_000,
            Self::G100 => 103_125,
            Self::G112 => 112_500,
            Self::G120 => 120_000,
            Self::G168 => 168_750,
            Self::G200 => 206_250,
            Self::G300 => 309_375,
            _ => return None,
        })
    }
}

bits! {
    /// MTU, rate or packet lifetime with its selector.
    pub struct Selected: u8 {
        #[bits(2)]
        pub selector: Selector,
        /// A code of an MTU or a rate, or n in 4.096 µs × 2^n.
        #[bits(6)]
        pub value: u8,
    }
}

bits! {
    /// Raw traffic, flow label and hop limit of a path.
    pub struct PathFlow: u32 {
        pub raw_traffic: bool,
        #[bits(3)]
        __: u32,
        #[bits(20)]
        pub flow_label: u32,
        #[bits(8)]
        pub hop_limit: u8,
    }
}

bits! {
    /// Reversibility, and number of paths.
    pub struct PathCount: u8 {
        pub reversible: bool,
        /// In a query, the most records that are wanted.
        #[bits(7)]
        pub numb_path: u8,
    }
}

bits! {
    /// QoS class and service level.
    pub struct PathSl: u16 {
        #[bits(12)]
        pub qos_class: u16,
        #[bits(4)]
        pub sl: u8,
    }
}

wire! {
    size = 64;
    /// PathRecord.
    pub struct PathRecord {
        /// Service id.
        pub service_id: U64,
        /// Destination GID.
        pub dgid: [u8; 16],
        /// Source GID.
        pub sgid: [u8; 16],
        /// Destination LID.
        pub dlid: U16,
        /// Source LID.
        pub slid: U16,
        /// Raw traffic, flow label, hop limit. Linux adds a GRH as soon as the hop limit isn't 0.
        pub flow: PathFlow,
        /// Traffic class.
        pub tclass: u8,
        /// Reversibility, number of paths.
        pub count: PathCount,
        /// Partition key.
        pub p_key: U16,
        /// QoS class and service level.
        pub sl: PathSl,
        /// An [`Mtu`](crate::mad::portinfo::Mtu).
        pub mtu: Selected,
        /// A [`Rate`].
        pub rate: Selected,
        /// Packet lifetime.
        pub packet_life_time: Selected,
        /// 0 for the path to prefer.
        pub preference: u8,
        /// Zero.
        pub _reserved: [u8; 6],
    }
}

offsets!(PathRecord {
    dgid: 8,
    dlid: 0x28,
    flow: 0x2c,
    tclass: 0x30,
    p_key: 0x32,
    sl: 0x34,
    mtu: 0x36,
    preference: 0x39
});

components! { PathRecord {
    MASK_SERVICE_ID: 0,
    MASK_SERVICE_ID_LOW: 1,
    MASK_DGID: 2,
    MASK_SGID: 3,
    MASK_DLID: 4,
    MASK_SLID: 5,
    MASK_RAW_TRAFFIC: 6,
    MASK_FLOW_LABEL: 8,
    MASK_HOP_LIMIT: 9,
    MASK_TCLASS: 10,
    MASK_REVERSIBLE: 11,
    MASK_NUMB_PATH: 12,
    MASK_P_KEY: 13,
    MASK_QOS_CLASS: 14,
    MASK_SL: 15,
    MASK_MTU_SELECTOR: 16,
    MASK_MTU: 17,
    MASK_RATE_SELECTOR: 18,
    MASK_RATE: 19,
    MASK_PACKET_LIFE_TIME_SELECTOR: 20,
    MASK_PACKET_LIFE_TIME: 21,
    MASK_PREFERENCE: 22,
} }

bits! {
    /// Service level, flow label and hop limit of a multicast group.
    pub struct GroupFlow: u32 {
        #[bits(4)]
        pub sl: u8,
        #[bits(20)]
        pub flow_label: u32,
        #[bits(8)]
        pub hop_limit: u8,
    }
}

/// Bits of a join state.
pub mod join_state {
    /// Sends and receives.
    pub const FULL_MEMBER: u8 = 1;
    /// Sends and receives, doesn't keep the group alive.
    pub const NON_MEMBER: u8 = 2;
    /// Sends only, doesn't keep the group alive.
    pub const SEND_ONLY_NON_MEMBER: u8 = 4;
    /// Sends only.
    pub const SEND_ONLY_FULL_MEMBER: u8 = 8;
}

bits! {
    /// Scope and join state.
    pub struct ScopeJoin: u8 {
        #[bits(4)]
        pub scope: u8,
        /// Bits of [`join_state`].
        #[bits(4)]
        pub join_state: u8,
    }
}

bits! {
    /// Whether one port joined for another.
    pub struct ProxyJoin: u8 {
        pub proxy_join: bool,
        #[bits(7)]
        __: u8,
    }
}

wire! {
    size = 52;
    /// MCMemberRecord.
    pub struct McMemberRecord {
        /// GID of the group.
        pub mgid: [u8; 16],
        /// GID of the member.
        pub port_gid: [u8; 16],
        /// Q_Key of the group.
        pub q_key: U32,
        /// LID of the group.
        pub mlid: U16,
        /// An [`Mtu`](crate::mad::portinfo::Mtu).
        pub mtu: Selected,
        /// Traffic class.
        pub tclass: u8,
        /// Partition key.
        pub p_key: U16,
        /// A [`Rate`].
        pub rate: Selected,
        /// Packet lifetime.
        pub packet_life_time: Selected,
        /// Service level, flow label, hop limit.
        pub flow: GroupFlow,
        /// Scope and join state.
        pub scope_join: ScopeJoin,
        /// Proxy join.
        pub proxy: ProxyJoin,
        /// Zero.
        pub _reserved: [u8; 2],
    }
}

offsets!(McMemberRecord {
    q_key: 0x20,
    mlid: 0x24,
    mtu: 0x26,
    p_key: 0x28,
    rate: 0x2a,
    flow: 0x2c,
    scope_join: 0x30,
    proxy: 0x31
});

components! { McMemberRecord {
    MASK_MGID: 0,
    MASK_PORT_GID: 1,
    MASK_Q_KEY: 2,
    MASK_MLID: 3,
    MASK_MTU_SELECTOR: 4,
    MASK_MTU: 5,
    MASK_TCLASS: 6,
    MASK_P_KEY: 7,
    MASK_RATE_SELECTOR: 8,
    MASK_RATE: 9,
    MASK_PACKET_LIFE_TIME_SELECTOR: 10,
    MASK_PACKET_LIFE_TIME: 11,
    MASK_SL: 12,
    MASK_FLOW_LABEL: 13,
    MASK_HOP_LIMIT: 14,
    MASK_SCOPE: 15,
    MASK_JOIN_STATE: 16,
    MASK_PROXY_JOIN: 17,
} }

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn ipoib_queries_have_the_masks_of_the_kernel() {
        let path = PathRecord::MASK_DGID
            | PathRecord::MASK_SGID
            | PathRecord::MASK_TCLASS
            | PathRecord::MASK_NUMB_PATH
            | PathRecord::MASK_P_KEY;
        assert_eq!(path, 0x340c);
        let broadcast = McMemberRecord::MASK_MGID
            | McMemberRecord::MASK_PORT_GID
            | McMemberRecord::MASK_P_KEY
            | McMemberRecord::MASK_JOIN_STATE;
        assert_eq!(broadcast, 0x10083);
        let group = broadcast
            | McMemberRecord::MASK_Q_KEY
            | McMemberRecord::MASK_MTU_SELECTOR
            | McMemberRecord::MASK_MTU
            | McMemberRecord::MASK_TCLASS
            | McMemberRecord::MASK_RATE_SELECTOR
            | McMemberRecord::MASK_RATE
            | McMemberRecord::MASK_SL
            | McMemberRecord::MASK_FLOW_LABEL
            | McMemberRecord::MASK_HOP_LIMIT;
        assert_eq!(group, 0x173f7);
    }

    #[test]
    fn path_record_ends_as_opensm_answers() {
        let mut path = PathRecord::new_zeroed();
        path.flow = PathFlow::new().with_flow_label(0xa_bcde).with_hop_limit(1);
        path.count = PathCount::new().with_reversible(true).with_numb_path(1);
        path.sl = PathSl::new().with_sl(3);
        path.mtu = Selected::new().with_selector(Selector::EXACTLY).with_value(3);
        path.rate = Selected::new().with_selector(Selector::EXACTLY).with_value(Rate::G10.0);
        path.packet_life_time = Selected::new().with_selector(Selector::EXACTLY);
        assert_eq!(path.as_bytes()[0x2c..0x39], [0x0a, 0xbc, 0xde, 1, 0, 0x81, 0, 0, 0, 3, 0x83, 0x83, 0x80]);
    }

    #[test]
    fn member_record_ends_with_scope_and_join_state() {
        let mut member = McMemberRecord::new_zeroed();
        member.flow = GroupFlow::new().with_sl(1).with_flow_label(2).with_hop_limit(3);
        member.scope_join = ScopeJoin::new().with_scope(2).with_join_state(join_state::FULL_MEMBER);
        member.proxy = ProxyJoin::new().with_proxy_join(true);
        assert_eq!(member.as_bytes()[0x2c..], [0x10, 0, 2, 3, 0x21, 0x80, 0, 0]);
    }

    #[test]
    fn rates_are_known_by_their_speed() {
        assert_eq!(Rate(12).mbps(), Some(56_250));
        assert_eq!(Rate(0).mbps(), None);
    }
}
