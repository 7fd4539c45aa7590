//! The device's configuration space: by what a driver knows the device, and what the device can do.

use zerocopy::FromBytes;

use crate::{Reserved, U16, U32, U64};

/// The virtio device id: RDMA device.
pub const DEVICE_ID: u32 = 42;

/// The virtio device id under a VMM that refuses [`DEVICE_ID`]: one that no known driver claims. A driver goes
/// by [`MAGIC`], under whatever id.
pub const FALLBACK_DEVICE_ID: u32 = 38;

/// The first bytes of the configuration space.
pub const MAGIC: [u8; 8] = *b"virtrdma";

/// The major version of this ABI: another one is another ABI.
pub const VERSION_MAJOR: u16 = 1;

/// The minor version of this ABI: a higher one only adds.
pub const VERSION_MINOR: u16 = 0;

codes! {
    /// How the device is.
    pub enum DeviceState {
        /// The HCA is being brought up, for the first time or again: requests end in `AGAIN`.
        STARTING = 0,
        /// It works.
        READY = 1,
        /// The HCA could not be brought up again: requests end in `IO`.
        FAILED = 2,
    }
}

flags! {
    /// What a device can do beyond PDs, UARs, MRs, CQs, RC queue pairs, relayed doorbells and asynchronous
    /// events, which every device has. A request of a group whose flag is clear is answered `NOT_SUPPORTED`.
    pub struct Capabilities: U64 as u64 {
        /// UC queue pairs.
        UC = 1 << 0,
        /// UD queue pairs, and `CREATE_AH`.
        UD = 1 << 1,
        /// Multicast attach and detach.
        MULTICAST = 1 << 2,
        /// Shared receive queues.
        SRQ = 1 << 3,
        /// XRC domains, XRC queue pairs and XRC SRQs.
        XRC = 1 << 4,
        /// Memory windows, of the types that `QUERY_DEVICE` names.
        MEMORY_WINDOWS = 1 << 5,
        /// `REREG_MR`.
        REREG_MR = 1 << 6,
        /// `RESIZE_CQ`.
        RESIZE_CQ = 1 << 7,
        /// `MODIFY_CQ`.
        CQ_MODERATION = 1 << 8,
        /// Service-ID registration.
        SERVICE_IDS = 1 << 9,
        /// The MAD queues and MAD agents.
        MADS = 1 << 10,
        /// The guest has GIDs of its own (alias GUIDs); clear: it shares the port's with other guests.
        OWN_GIDS = 1 << 11,
        /// Doorbell areas in the device's shared-memory region.
        DOORBELLS_DIRECT = 1 << 12,
        /// UAR pages of the HCA in the device's shared-memory region.
        DOORBELLS_REGISTERS = 1 << 13,
    }
}

codes! {
    /// The format of work requests and completions in rings.
    pub enum QueueFormat {
        /// That of the ConnectX family, with [`Mlx4Format`] as its parameters.
        MLX4 = 1,
    }
}

layout! {
    size = 64;
    /// Parameters of [`QueueFormat::MLX4`].
    pub struct Mlx4Format {
        /// Size of a completion (CQE) in bytes: 32 or 64.
        pub cqe_bytes: U16,
        /// Largest send work request (WQE) in bytes.
        pub max_send_wqe_bytes: U16,
        /// Largest receive WQE in bytes, of receive queues and SRQs.
        pub max_receive_wqe_bytes: U16,
        /// Most data segments of a send WQE.
        pub max_send_sge: U16,
        /// Most data segments of a receive WQE.
        pub max_receive_sge: U16,
        /// Most data segments of an SRQ's WQE.
        pub max_srq_sge: U16,
        /// Most bytes of inline data in a send WQE.
        pub max_inline_bytes: U16,
        /// Bytes that the HCA may have read ahead of the last valid send WQE.
        pub headroom_bytes: U16,
        /// WQEs that stay empty besides.
        pub headroom_wqes: u8,
        /// log2 of the smallest stride of a send queue, in bytes.
        pub log2_min_send_stride: u8,
        /// log2 of the smallest stride of a receive queue, in bytes.
        pub log2_min_receive_stride: u8,
        /// log2 of the smallest stride of an SRQ, in bytes.
        pub log2_min_srq_stride: u8,
        /// log2 of the most WQEs of a send or receive queue, headroom included.
        pub log2_max_wqes: u8,
        /// log2 of the most WQEs of an SRQ.
        pub log2_max_srq_wqes: u8,
        /// log2 of the most CQEs of a CQ.
        pub log2_max_cqes: u8,
        /// Size and alignment of a CQ's doorbell record in bytes.
        pub cq_record_bytes: u8,
        /// Size and alignment of a receive queue's or SRQ's doorbell record in bytes.
        pub receive_record_bytes: u8,
        /// Must be ignored.
        pub reserved: Reserved<39>,
    }
}

impl Mlx4Format {
    /// How many WQEs at the end of a send queue with strides of `2^log2_stride` bytes must stay empty.
    pub const fn headroom(&self, log2_stride: u8) -> u32 {
        let read_ahead = match (self.headroom_bytes.get() as u32).checked_shr(log2_stride as u32) {
            Some(wqes) => wqes,
            None => 0,
        };
        read_ahead + self.headroom_wqes as u32
    }
}

layout! {
    size = 256;
    /// The configuration space. All of it is read-only.
    pub struct Config {
        /// The bytes `virtrdma`.
        pub magic: [u8; 8],
        /// Major version of the ABI: 1.
        pub version_major: U16,
        /// Minor version of the ABI: 0.
        pub version_minor: U16,
        /// Number of the HCA's present life; it changes when the guest's objects were lost.
        pub generation: U32,
        /// How the device is.
        pub state: DeviceState,
        /// Number of ports, counted from 1.
        pub ports: u8,
        /// Number of completion vectors, 1 to 8.
        pub completion_vectors: u8,
        /// Number of doorbell-kick queues, 1 to 4.
        pub kick_queues: u8,
        /// The format of rings, and of `format` below.
        pub queue_format: QueueFormat,
        /// Must be ignored.
        pub reserved: Reserved<3>,
        /// What the device can do.
        pub capabilities: Capabilities,
        /// Longest request in bytes, header and segments included.
        pub max_request_bytes: U32,
        /// Most segments that describe one object's memory, whether direct or by a list.
        pub max_segments: U32,
        /// Bytes of memory that this guest may have registered in all, rings included.
        pub max_registered_bytes: U64,
        /// Most UARs.
        pub max_uars: U32,
        /// Most slots of a doorbell area, at most 4096.
        pub max_slots: U32,
        /// Asynchronous events that the device keeps while the driver has no buffer for them.
        pub max_events: U32,
        /// Longest MAD in bytes, RMPP transfers included; 0 without MAD queues.
        pub max_mad_bytes: U32,
        /// Parameters of the queue format.
        pub format: Mlx4Format,
        /// Must be ignored.
        pub reserved_end: Reserved<128>,
    }
}

/// Why a configuration space is not one that this crate knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// It is shorter than [`Config`].
    TooShort {
        /// Its length in bytes.
        bytes: usize,
    },
    /// It is another kind of device.
    NoMagic,
    /// The device speaks another major version.
    Version {
        /// The device's major version.
        major: u16,
    },
    /// Rings have a format that this crate doesn't know.
    QueueFormat {
        /// The format.
        format: QueueFormat,
    },
    /// A number in it is none that a device may have.
    Value {
        /// The name of the field.
        field: &'static str,
    },
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooShort { bytes } => write!(f, "configuration space of {bytes} bytes is too short"),
            Self::NoMagic => write!(f, "configuration space does not start with the magic of virtio-rdma"),
            Self::Version { major } => {
                write!(f, "device has version {major} of the ABI, this side has {VERSION_MAJOR}")
            }
            Self::QueueFormat { format } => write!(f, "unknown queue format {format}"),
            Self::Value { field } => write!(f, "configuration space has a bad {field}"),
        }
    }
}

impl core::error::Error for ConfigError {}

impl Config {
    /// Size in bytes: all that every VMM passes on.
    pub const BYTES: usize = size_of::<Self>();

    /// The configuration space in `bytes`, checked as far as a driver depends on it.
    ///
    /// # Errors
    /// It is not that of a virtio-rdma device of this major version and a known queue format, or a number in
    /// it is out of its range.
    pub fn read(bytes: &[u8]) -> Result<Self, ConfigError> {
        let (config, _) =
            Self::read_from_prefix(bytes).map_err(|_| ConfigError::TooShort { bytes: bytes.len() })?;
        if config.magic != MAGIC {
            return Err(ConfigError::NoMagic);
        }
        if config.version_major.get() != VERSION_MAJOR {
            return Err(ConfigError::Version { major: config.version_major.get() });
        }
        if config.queue_format != QueueFormat::MLX4 {
            return Err(ConfigError::QueueFormat { format: config.queue_format });
        }
        config.check_ranges()?;
        Ok(config)
    }

    fn check_ranges(&self) -> Result<(), ConfigError> {
        let format = &self.format;
        let ok = |field, holds| if holds { Ok(()) } else { Err(ConfigError::Value { field }) };
        ok("ports", self.ports != 0)?;
        ok("completion_vectors", (1..=crate::queue::MAX_VECTORS).contains(&self.completion_vectors.into()))?;
        ok("kick_queues", (1..=crate::queue::MAX_KICKS).contains(&self.kick_queues.into()))?;
        ok("max_slots", (1..=crate::doorbell::MAX_SLOTS).contains(&self.max_slots.get()))?;
        ok("cqe_bytes", matches!(format.cqe_bytes.get(), 32 | 64))?;
        ok("log2_max_wqes", format.log2_max_wqes <= 15)?;
        ok("log2_max_srq_wqes", format.log2_max_srq_wqes <= 15)?;
        ok("log2_max_cqes", format.log2_max_cqes <= 23)?;
        ok("log2_min_send_stride", (4..=11).contains(&format.log2_min_send_stride))?;
        ok("log2_min_receive_stride", (4..=11).contains(&format.log2_min_receive_stride))?;
        ok("log2_min_srq_stride", (5..=11).contains(&format.log2_min_srq_stride))?;
        ok("cq_record_bytes", format.cq_record_bytes == 8)?;
        ok("receive_record_bytes", format.receive_record_bytes == 4)
    }

    /// The bytes of this configuration space from `offset`, as many as `to` has room for; beyond the end they
    /// read as zero.
    pub fn copy_to(&self, offset: usize, to: &mut [u8]) {
        use zerocopy::IntoBytes;

        let tail = self.as_bytes().get(offset..).unwrap_or_default();
        for (index, byte) in to.iter_mut().enumerate() {
            *byte = tail.get(index).copied().unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    fn config() -> Config {
        Config {
            magic: MAGIC,
            version_major: U16::new(VERSION_MAJOR),
            version_minor: U16::new(VERSION_MINOR),
            generation: U32::new(0x0102_0304),
            state: DeviceState::READY,
            ports: 2,
            completion_vectors: 8,
            kick_queues: 1,
            queue_format: QueueFormat::MLX4,
            capabilities: Capabilities::UD | Capabilities::DOORBELLS_DIRECT,
            max_request_bytes: U32::new(0x1_0000),
            max_slots: U32::new(4096),
            format: Mlx4Format {
                cqe_bytes: U16::new(32),
                max_send_wqe_bytes: U16::new(1008),
                headroom_bytes: U16::new(2048),
                headroom_wqes: 1,
                log2_min_send_stride: 6,
                log2_min_receive_stride: 4,
                log2_min_srq_stride: 5,
                log2_max_wqes: 14,
                log2_max_srq_wqes: 14,
                log2_max_cqes: 22,
                cq_record_bytes: 8,
                receive_record_bytes: 4,
                ..Mlx4Format::new_zeroed()
            },
            ..Config::new_zeroed()
        }
    }

    #[test]
    fn config_has_its_bytes() {
        let config = config();
        let bytes = config.as_bytes();
        assert_eq!(&bytes[..0x18], b"virtrdma\x01\0\0\0\x04\x03\x02\x01\x01\x02\x08\x01\x01\0\0\0");
        assert_eq!(bytes[0x18..0x24], [2, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(bytes[0x34..0x38], [0, 0x10, 0, 0]);
        assert_eq!(bytes[0x40..0x44], [32, 0, 0xf0, 3]);
        assert_eq!(bytes[0x4e..0x59], [0, 8, 1, 6, 4, 5, 14, 14, 22, 8, 4]);
        assert_eq!(Config::read(bytes), Ok(config));
    }

    #[test]
    fn read_refuses_what_is_not_this_device() {
        let good = config();
        assert_eq!(Config::read(&[0; 60]), Err(ConfigError::TooShort { bytes: 60 }));
        assert_eq!(Config::read(&[0; 256]), Err(ConfigError::NoMagic));

        let newer = Config { version_major: U16::new(2), ..good };
        assert_eq!(Config::read(newer.as_bytes()), Err(ConfigError::Version { major: 2 }));
        let other = Config { queue_format: QueueFormat(9), ..good };
        assert_eq!(Config::read(other.as_bytes()), Err(ConfigError::QueueFormat { format: QueueFormat(9) }));
        let deaf = Config { completion_vectors: 0, ..good };
        assert_eq!(Config::read(deaf.as_bytes()), Err(ConfigError::Value { field: "completion_vectors" }));
    }

    #[test]
    fn read_accepts_a_higher_minor_version_and_what_it_adds() {
        let mut later = Config { version_minor: U16::new(9), ..config() };
        later.capabilities = later.capabilities | Capabilities::from_bits(1 << 63);
        later.as_mut_bytes()[255] = 1;
        assert_eq!(Config::read(later.as_bytes()), Ok(later));
    }

    #[test]
    fn headroom_is_two_kibibytes_and_a_wqe() {
        let format = config().format;
        assert_eq!((format.headroom(6), format.headroom(9), format.headroom(255)), (33, 5, 1));
    }

    #[test]
    fn copy_beyond_the_end_reads_zero() {
        let mut piece = [0xff; 4];
        config().copy_to(6, &mut piece);
        assert_eq!(piece, *b"ma\x01\0");
        config().copy_to(254, &mut piece);
        assert_eq!(piece, [0; 4]);
        config().copy_to(usize::MAX, &mut piece);
        assert_eq!(piece, [0; 4]);
    }
}
