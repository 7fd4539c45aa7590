//! What the operator grants a guest, and the configuration space that tells it.

use virtio_rdma::config::{
    Capabilities, Config, DeviceState, MAGIC, Mlx4Format, QueueFormat as AbiFormat, VERSION_MAJOR,
    VERSION_MINOR,
};
use virtio_rdma::{U16, U32, U64};
use zerocopy::FromZeros;

use crate::hca::{DeviceInfo, Mlx4Parameters, QueueFormat};
use crate::limits::Limits;
use crate::state::{Phase, State};

/// What a guest is granted.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// Limits.
    pub limits: Limits,
    /// The P_Keys that it may use; `None`: all that the port has.
    pub partitions: Option<Vec<u16>>,
    /// Indexes of its own GIDs in each port's table; `None`: it shares the port's GIDs with others. All datagrams
    /// of a guest with GIDs of its own have the first of them, since a work request may name any; a guest with
    /// an empty list is offered no UD.
    pub own_gids: Option<Vec<u16>>,
    /// Completion vectors, 1 to 8.
    pub completion_vectors: u8,
    /// Doorbell-kick queues, 1 to 4.
    pub kick_queues: u8,
    /// Number of the HCA's present life.
    pub generation: u32,
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            partitions: None,
            own_gids: None,
            completion_vectors: 8,
            kick_queues: 1,
            generation: 1,
        }
    }
}

/// What a guest on this HCA can do.
pub(crate) fn capabilities(info: &DeviceInfo, config: &GuestConfig) -> Capabilities {
    let features = &info.features;
    let datagrams = features.ud && config.own_gids.as_ref().is_none_or(|own| !own.is_empty());
    let offered = [
        (features.uc, Capabilities::UC),
        (datagrams, Capabilities::UD),
        (datagrams && features.multicast, Capabilities::MULTICAST),
        (features.srq, Capabilities::SRQ),
        (features.srq && features.xrc, Capabilities::XRC),
        (features.mw_type1 || features.mw_type2, Capabilities::MEMORY_WINDOWS),
        (features.modify_mr, Capabilities::REREG_MR),
        (features.resize_cq, Capabilities::RESIZE_CQ),
        (features.moderate_cq, Capabilities::CQ_MODERATION),
        (true, Capabilities::SERVICE_IDS),
        (config.own_gids.is_some(), Capabilities::OWN_GIDS),
    ];
    let granted = offered.iter().filter(|(offered, _)| *offered);
    granted.fold(Capabilities::NONE, |all, (_, capability)| all | *capability)
}

impl State {
    /// What the guest can do through the transport that it has.
    pub(crate) fn offered(&self) -> Capabilities {
        let direct =
            if self.relay.has_region() { Capabilities::DOORBELLS_DIRECT } else { Capabilities::NONE };
        self.capabilities | direct
    }

    /// The configuration space.
    pub(crate) fn config_space(&self) -> Config {
        let limits = &self.config.limits;
        let QueueFormat::Mlx4(parameters) = &self.info.queue_format;
        Config {
            magic: MAGIC,
            version_major: U16::new(VERSION_MAJOR),
            version_minor: U16::new(VERSION_MINOR),
            generation: U32::new(self.generation),
            state: match self.phase {
                Phase::Starting => DeviceState::STARTING,
                Phase::Ready => DeviceState::READY,
                Phase::Failed => DeviceState::FAILED,
            },
            ports: self.info.ports,
            completion_vectors: self.config.completion_vectors,
            kick_queues: self.config.kick_queues,
            queue_format: AbiFormat::MLX4,
            capabilities: self.offered(),
            max_request_bytes: U32::new(limits.request_bytes),
            max_segments: U32::new(limits.segments),
            max_registered_bytes: U64::new(limits.registered_bytes),
            max_uars: U32::new(limits.uars),
            max_slots: U32::new(limits.slots),
            max_events: U32::new(limits.events),
            format: format(parameters),
            ..Config::new_zeroed()
        }
    }
}

fn format(parameters: &Mlx4Parameters) -> Mlx4Format {
    Mlx4Format {
        cqe_bytes: U16::new(parameters.cqe_bytes),
        max_send_wqe_bytes: U16::new(parameters.max_send_wqe_bytes),
        max_receive_wqe_bytes: U16::new(parameters.max_receive_wqe_bytes),
        max_send_sge: U16::new(parameters.max_send_sge),
        max_receive_sge: U16::new(parameters.max_receive_sge),
        max_srq_sge: U16::new(parameters.max_srq_sge),
        max_inline_bytes: U16::new(parameters.max_inline_bytes),
        headroom_bytes: U16::new(parameters.headroom_bytes),
        headroom_wqes: parameters.headroom_wqes,
        log2_min_send_stride: parameters.log2_min_send_stride,
        log2_min_receive_stride: parameters.log2_min_receive_stride,
        log2_min_srq_stride: parameters.log2_min_srq_stride,
        log2_max_wqes: parameters.log2_max_wqes,
        log2_max_srq_wqes: parameters.log2_max_srq_wqes,
        log2_max_cqes: parameters.log2_max_cqes,
        cq_record_bytes: parameters.cq_record_bytes,
        receive_record_bytes: parameters.receive_record_bytes,
        ..Mlx4Format::new_zeroed()
    }
}
