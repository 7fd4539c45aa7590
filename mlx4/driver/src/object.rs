//! Numbers that this side hands out: protection domains and UAR pages; and the count of the device's objects.

use std::sync::Arc;

use mlx4_pci::{Doorbell, DoorbellKind, PciDevice};

use crate::error::Result;
use crate::numbers::Number;
use crate::shared::Shared;

/// An object that the device works with, until it has given it back.
///
/// An object that is dropped before that stays counted, and its number taken: the device may still use it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) shared: Arc<Shared>,
    what: &'static str,
    number: Number,
    ended: bool,
}

impl Live {
    pub(crate) fn new(shared: &Arc<Shared>, what: &'static str, number: Number) -> Self {
        shared.made();
        Self { shared: Arc::clone(shared), what, number, ended: false }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number.get()
    }

    /// The number stays taken when the object has ended: the device may still know it elsewhere.
    pub(crate) fn keep_number(&mut self) {
        self.number.lose();
    }

    /// The device has given the object back.
    pub(crate) fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if self.ended {
            self.shared.unmade();
            return;
        }
        self.number.lose();
        if !self.shared.commands.is_dead() {
            log::error!("{} {:#x} wasn't destroyed: the device keeps it", self.what, self.number());
        }
    }
}

/// A protection domain: queue pairs and address handles of one domain reach the regions of that domain only.
///
/// Clones are the same domain. Its number is free again when the last of them, and the last object in it, is
/// gone.
#[derive(Clone, Debug)]
pub struct Pd(Arc<Number>);

impl Pd {
    pub(crate) fn new(shared: &Shared) -> Result<Self> {
        Ok(Self(Arc::new(shared.numbers.pds.take()?)))
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.0.get()
    }
}

/// A UAR page: doorbells of queue pairs and completion queues that name it come through it only.
///
/// Clones are the same page. It is free again when the last of them, and the last object that names it, is
/// gone.
#[derive(Clone, Debug)]
pub struct Uar {
    page: Arc<Number>,
    device: Arc<dyn PciDevice>,
}

impl Uar {
    pub(crate) fn new(shared: &Shared) -> Result<Self> {
        let page = Arc::new(shared.numbers.uars.take()?);
        Ok(Self { page, device: Arc::clone(&shared.device) })
    }

    /// Its index, from 128: lower pages hold the doorbells of event queues.
    pub fn index(&self) -> u32 {
        self.page.get()
    }

    /// A doorbell in the page.
    ///
    /// # Errors
    /// The page isn't in the BAR.
    pub fn doorbell(&self, kind: DoorbellKind) -> Result<Arc<dyn Doorbell>> {
        Ok(self.device.doorbell(self.index(), kind)?)
    }
}
