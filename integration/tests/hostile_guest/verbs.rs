//! Every request of the ABI, by its type.

pub(crate) use virtio_rdma::request::completion::{CreateCq, DestroyCq, ModifyCq, ResizeCq};
pub(crate) use virtio_rdma::request::datagram::{AttachMcast, CreateAh, DetachMcast};
pub(crate) use virtio_rdma::request::domain::{
    AllocPd, AllocUar, CloseXrcd, DeallocPd, DeallocUar, OpenXrcd,
};
pub(crate) use virtio_rdma::request::management::{
    RegisterMadAgent, RegisterServiceId, UnregisterMadAgent, UnregisterServiceId,
};
pub(crate) use virtio_rdma::request::memory::{AllocMw, DeallocMw, DeregMr, RegMr, ReregMr};
pub(crate) use virtio_rdma::request::query::{QueryDevice, QueryGid, QueryPkey, QueryPort, QueryStats};
pub(crate) use virtio_rdma::request::queue_pair::{CreateQp, DestroyQp, ModifyQp, QueryQp};
pub(crate) use virtio_rdma::request::shared_receive::{CreateSrq, DestroySrq, ModifySrq, QuerySrq};

/// Calls a macro with the names of all requests' types.
macro_rules! every_verb {
    ($with:ident) => {
        $with! {
            QueryDevice QueryPort QueryGid QueryPkey QueryStats
            AllocPd DeallocPd AllocUar DeallocUar OpenXrcd CloseXrcd
            RegMr ReregMr DeregMr AllocMw DeallocMw
            CreateCq ModifyCq ResizeCq DestroyCq
            CreateSrq ModifySrq QuerySrq DestroySrq
            CreateQp ModifyQp QueryQp DestroyQp
            CreateAh AttachMcast DetachMcast
            RegisterServiceId UnregisterServiceId RegisterMadAgent UnregisterMadAgent
        }
    };
}
pub(crate) use every_verb;
