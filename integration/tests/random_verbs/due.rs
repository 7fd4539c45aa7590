//! What a completion must be.

use paraverbs_verbs::{Mr, Wc, WcOpcode, WcStatus};

/// What a completion must be, and what must lie at a place of a memory then.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) wr_id: u64,
    pub(crate) status: WcStatus,
    pub(crate) opcode: Option<WcOpcode>,
    pub(crate) byte_len: Option<u32>,
    pub(crate) imm: Option<u32>,
    pub(crate) payload: Option<(usize, Vec<u8>)>,
}

impl Due {
    pub(crate) fn success(wr_id: u64, opcode: WcOpcode) -> Self {
        Self { opcode: Some(opcode), ..Self::failed(wr_id, WcStatus::Success) }
    }

    pub(crate) fn failed(wr_id: u64, status: WcStatus) -> Self {
        Self { wr_id, status, opcode: None, byte_len: None, imm: None, payload: None }
    }

    /// Fails unless the completion is it, of a queue pair.
    pub(crate) fn check(&self, wc: &Wc, qpn: u32, mr: &Mr) {
        assert_eq!((wc.wr_id, wc.status, wc.qp_num), (self.wr_id, self.status, qpn), "{self:?}");
        if wc.status == WcStatus::Success {
            assert_eq!((Some(wc.opcode), wc.imm), (self.opcode, self.imm), "{self:?}");
            assert!(self.byte_len.is_none_or(|length| length == wc.byte_len), "{wc:?}: {self:?}");
        }
        if let Some((at, payload)) = &self.payload {
            let mut bytes = vec![0; payload.len()];
            mr.read(*at, &mut bytes).unwrap();
            assert!(bytes == *payload, "another payload: {wc:?}");
        }
    }
}
