//! Attributes of queue pairs as requests carry them.

use virtio_rdma::request::queue_pair::{AhAttributes, QpAttrMask as Mask, QpAttributes};
use virtio_rdma::{U16, U32};
use zerocopy::FromZeros;

use super::{AhAttr, AltPath, Grh, MigState, QpAttr, QpState};
use crate::access::Access;
use crate::attr::{Gid, Mtu, known};
use crate::error::Result;

impl AhAttr {
    pub(crate) fn to_wire(self) -> AhAttributes {
        let grh = self.grh.unwrap_or_default();
        AhAttributes {
            dgid: grh.dgid.0,
            flow_label: U32::new(grh.flow_label),
            dlid: U16::new(self.dlid),
            sgid_index: grh.sgid_index,
            hop_limit: grh.hop_limit,
            traffic_class: grh.traffic_class,
            sl: self.sl,
            src_path_bits: self.src_path_bits,
            static_rate: self.static_rate,
            is_global: u8::from(self.grh.is_some()),
            port_num: self.port_num,
            ..AhAttributes::new_zeroed()
        }
    }

    fn of_wire(from: &AhAttributes) -> Self {
        let grh = Grh {
            dgid: Gid(from.dgid),
            flow_label: from.flow_label.get(),
            sgid_index: from.sgid_index,
            hop_limit: from.hop_limit,
            traffic_class: from.traffic_class,
        };
        Self {
            dlid: from.dlid.get(),
            sl: from.sl,
            src_path_bits: from.src_path_bits,
            static_rate: from.static_rate,
            port_num: from.port_num,
            grh: (from.is_global != 0).then_some(grh),
        }
    }
}

impl QpAttr {
    /// The attributes and the mask that says which they are.
    pub(super) fn to_wire(self) -> (Mask, QpAttributes) {
        let mut wire = Wire { mask: Mask::NONE, to: QpAttributes::new_zeroed() };
        wire.set(Mask::STATE, self.qp_state, |to, state| to.qp_state = state.code());
        wire.set(Mask::CUR_STATE, self.cur_qp_state, |to, state| to.cur_qp_state = state.code());
        wire.set(Mask::EN_SQD_ASYNC_NOTIFY, self.en_sqd_async_notify, |to, notify| {
            to.en_sqd_async_notify = u8::from(notify);
        });
        wire.set(Mask::ACCESS_FLAGS, self.qp_access_flags, |to, access| to.qp_access_flags = access.flags());
        wire.set(Mask::PKEY_INDEX, self.pkey_index, |to, index| to.pkey_index = U16::new(index));
        wire.set(Mask::PORT, self.port_num, |to, port| to.port_num = port);
        wire.set(Mask::QKEY, self.qkey, |to, qkey| to.qkey = U32::new(qkey));
        wire.set(Mask::AV, self.ah_attr, |to, path| to.ah_attr = path.to_wire());
        wire.set(Mask::PATH_MTU, self.path_mtu, |to, mtu| to.path_mtu = mtu.code());
        wire.set(Mask::TIMEOUT, self.timeout, |to, timeout| to.timeout = timeout);
        wire.set(Mask::RETRY_CNT, self.retry_cnt, |to, count| to.retry_cnt = count);
        wire.set(Mask::RNR_RETRY, self.rnr_retry, |to, count| to.rnr_retry = count);
        wire.set(Mask::RQ_PSN, self.rq_psn, |to, psn| to.rq_psn = U32::new(psn));
        wire.set(Mask::MAX_QP_RD_ATOMIC, self.max_rd_atomic, |to, count| to.max_rd_atomic = count);
        wire.set(Mask::ALT_PATH, self.alt_path, |to, path| {
            to.alt_ah_attr = path.ah_attr.to_wire();
            to.alt_pkey_index = U16::new(path.pkey_index);
            to.alt_port_num = path.ah_attr.port_num;
            to.alt_timeout = path.timeout;
        });
        wire.set(Mask::MIN_RNR_TIMER, self.min_rnr_timer, |to, timer| to.min_rnr_timer = timer);
        wire.set(Mask::SQ_PSN, self.sq_psn, |to, psn| to.sq_psn = U32::new(psn));
        wire.set(Mask::MAX_DEST_RD_ATOMIC, self.max_dest_rd_atomic, |to, count| {
            to.max_dest_rd_atomic = count;
        });
        wire.set(Mask::PATH_MIG_STATE, self.path_mig_state, |to, state| to.path_mig_state = state.code());
        wire.set(Mask::DEST_QPN, self.dest_qp_num, |to, qpn| to.dest_qp_num = U32::new(qpn));
        (wire.mask, wire.to)
    }

    /// What the device answered. Attributes that a queue pair of its type and state doesn't have are as the HCA has
    /// them.
    pub(super) fn of_wire(from: &QpAttributes) -> Result<Self> {
        let state = known("queue pair state", QpState::of_code(from.qp_state))?;
        let alt_path = AltPath {
            ah_attr: AhAttr::of_wire(&from.alt_ah_attr),
            pkey_index: from.alt_pkey_index.get(),
            timeout: from.alt_timeout,
        };
        Ok(Self {
            qp_state: Some(state),
            cur_qp_state: Some(state),
            en_sqd_async_notify: Some(from.en_sqd_async_notify != 0),
            qp_access_flags: Some(Access::of_flags(from.qp_access_flags)),
            pkey_index: Some(from.pkey_index.get()),
            port_num: Some(from.port_num),
            qkey: Some(from.qkey.get()),
            ah_attr: Some(AhAttr::of_wire(&from.ah_attr)),
            path_mtu: Mtu::of_code(from.path_mtu),
            timeout: Some(from.timeout),
            retry_cnt: Some(from.retry_cnt),
            rnr_retry: Some(from.rnr_retry),
            rq_psn: Some(from.rq_psn.get()),
            max_rd_atomic: Some(from.max_rd_atomic),
            alt_path: (from.alt_port_num != 0).then_some(alt_path),
            min_rnr_timer: Some(from.min_rnr_timer),
            sq_psn: Some(from.sq_psn.get()),
            max_dest_rd_atomic: Some(from.max_dest_rd_atomic),
            path_mig_state: MigState::of_code(from.path_mig_state),
            dest_qp_num: Some(from.dest_qp_num.get()),
            sq_draining: Some(from.sq_draining != 0),
        })
    }
}

struct Wire {
    mask: Mask,
    to: QpAttributes,
}

impl Wire {
    fn set<T>(&mut self, bit: Mask, value: Option<T>, put: impl FnOnce(&mut QpAttributes, T)) {
        if let Some(value) = value {
            self.mask = self.mask | bit;
            put(&mut self.to, value);
        }
    }
}
