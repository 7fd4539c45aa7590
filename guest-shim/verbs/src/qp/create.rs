//! What a queue pair is made of: its rings, and the request for it.

use mlx4_queue::geometry::{
    MASKED_SWAP_RESERVE, QpLayout, ReceiveGeometry, SendGeometry, SendSize, Service, lso_reserve,
};
use virtio_rdma::U32;
use virtio_rdma::request::queue_pair::{CreateQp, QpCap as WireCap, QpFlags};
use zerocopy::FromZeros;

use super::{QpCap, QpInit, QpType};
use crate::device::Open;
use crate::error::{Error, Result};

impl QpType {
    fn service(self) -> Service {
        match self {
            Self::Rc => Service::Rc,
            Self::Uc => Service::Uc,
            Self::Ud => Service::Ud,
            Self::XrcSend => Service::Xrc,
        }
    }
}

/// Whether the objects that a queue pair shall use are of a context and fit its type.
pub(super) fn check(open: &std::sync::Arc<Open>, init: &QpInit<'_>) -> Result<()> {
    if [init.send_cq, init.recv_cq].iter().any(|cq| !cq.queue().is_of(open)) {
        return Err(Error::Invalid("a CQ is of another context than the protection domain".into()));
    }
    if let Some(srq) = init.srq {
        let wrong = if !srq.shared().is_of(open) {
            "is of another context than the protection domain"
        } else if srq.shared().is_xrc() {
            "is one of XRC"
        } else if init.qp_type == QpType::XrcSend {
            "has nothing to receive for the sending end of XRC"
        } else {
            return Ok(());
        };
        return Err(Error::Invalid(format!("the SRQ {wrong}")));
    }
    if (init.max_lso_header != 0 || init.block_self_mcast_lb) && init.qp_type != QpType::Ud {
        return Err(Error::Invalid("only UD queue pairs cut messages and block their own multicast".into()));
    }
    Ok(())
}

/// The rings that hold at least what is asked for, and what they hold.
pub(super) fn layout(open: &Open, init: &QpInit<'_>) -> Result<(QpLayout, QpCap)> {
    let receives = init.srq.is_none() && init.qp_type != QpType::XrcSend;
    let cap = if receives { init.cap } else { QpCap { max_recv_wr: 0, max_recv_sge: 0, ..init.cap } };
    let (most_wr, most_sge) = (open.attributes().max_qp_wr.get(), open.attributes().max_sge.get());
    let most_inline = open.config().format.max_inline_bytes.get().into();
    for (what, asked, most) in [
        ("max_send_wr", cap.max_send_wr, most_wr),
        ("max_recv_wr", cap.max_recv_wr, most_wr),
        ("max_send_sge", cap.max_send_sge, most_sge),
        ("max_recv_sge", cap.max_recv_sge, most_sge),
        ("max_inline_data", cap.max_inline_data, most_inline),
    ] {
        if asked > most {
            return Err(Error::Invalid(format!("{what} of {asked} exceeds the device's {most}")));
        }
    }
    let size = SendSize { requests: cap.max_send_wr, sges: cap.max_send_sge, inline: cap.max_inline_data };
    let reserve = match init.max_lso_header {
        0 if init.masked_atomics => MASKED_SWAP_RESERVE,
        0 => 0,
        header => lso_reserve(header),
    };
    let send = SendGeometry::reserving(init.qp_type.service(), size, reserve, open.limits())?;
    let receive = ReceiveGeometry::new(cap.max_recv_wr, cap.max_recv_sge, open.limits())?;
    let holds = QpCap {
        max_send_wr: send.requests().min(most_wr),
        max_recv_wr: if receives { receive.entries().min(most_wr) } else { 0 },
        max_send_sge: send.max_sges().min(most_sge),
        max_recv_sge: if receives { receive.max_sges().min(most_sge) } else { 0 },
        max_inline_data: send.max_inline().min(most_inline),
    };
    Ok((QpLayout { send, receive: receives.then_some(receive) }, holds))
}

/// log2 of a power of two.
fn log2(power: u32) -> u8 {
    // At most 31.
    #[expect(clippy::cast_possible_truncation, reason = "at most 31")]
    let log2 = power.trailing_zeros() as u8;
    log2
}

/// The request for a queue pair, without PD, UAR and record.
pub(super) fn request(init: &QpInit<'_>, layout: &QpLayout, cap: &QpCap) -> CreateQp {
    let receive = layout.receive.map_or((0, 0), |receive| (log2(receive.entries()), log2(receive.stride())));
    let flag = |set: bool, flag| if set { flag } else { QpFlags::NONE };
    let recv_cq = if init.qp_type == QpType::XrcSend { 0 } else { init.recv_cq.queue().handle() };
    CreateQp {
        send_cq: U32::new(init.send_cq.queue().handle()),
        recv_cq: U32::new(recv_cq),
        srq: U32::new(init.srq.map_or(0, |srq| srq.shared().handle())),
        flags: flag(init.max_lso_header != 0, QpFlags::UD_LSO)
            | flag(init.block_self_mcast_lb, QpFlags::BLOCK_SELF_MCAST_LB),
        qp_type: init.qp_type.code(),
        log2_send_wqes: log2(layout.send.entries()),
        log2_send_stride: log2(layout.send.stride()),
        log2_recv_wqes: receive.0,
        log2_recv_stride: receive.1,
        cap: WireCap {
            max_send_wr: U32::new(cap.max_send_wr),
            max_recv_wr: U32::new(cap.max_recv_wr),
            max_send_sge: U32::new(cap.max_send_sge),
            max_recv_sge: U32::new(cap.max_recv_sge),
            max_inline_data: U32::new(cap.max_inline_data),
        },
        ..CreateQp::new_zeroed()
    }
}
