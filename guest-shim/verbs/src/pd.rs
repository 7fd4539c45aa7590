//! Protection domains.

use crate::access::Access;
use crate::error::Result;
use crate::mr::Mr;
use crate::qp::{Qp, QpInit};

/// A protection domain (`ibv_pd`).
#[derive(Debug)]
pub struct Pd {}

impl Pd {
    /// Makes a memory region of `bytes` zeroed bytes (what `ibv_reg_mr` is for memory of the program's own).
    ///
    /// # Errors
    /// No bytes, or rights that contradict each other (`EINVAL`); there is no more memory, or too much is
    /// registered (`ENOMEM`); the device is lost.
    pub fn alloc_mr(&self, _bytes: usize, _access: Access) -> Result<Mr> {
        unimplemented!()
    }

    /// Makes an RC queue pair (`ibv_create_qp`), in the state RESET.
    ///
    /// # Errors
    /// It shall hold more than a queue pair can (`EINVAL`); a CQ is of another context (`EINVAL`); there are too
    /// many (`ENOMEM`); the device is lost.
    pub fn create_qp(&self, _init: &QpInit<'_>) -> Result<Qp> {
        unimplemented!()
    }

    /// Ends it (`ibv_dealloc_pd`), as dropping it does.
    ///
    /// # Errors
    /// Memory or queue pairs still use it (`EBUSY`): then it ends with the last of them.
    pub fn dealloc(self) -> Result<()> {
        unimplemented!()
    }
}
