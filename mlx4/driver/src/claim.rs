//! What an object takes of the device before it is there: a number, entries in the tables of ICM, and
//! translation entries for its memory. And how it is handed to the device, and given back.

use std::sync::Arc;

use mlx4_wire::cmd::Opcode;
use mlx4_wire::ctx::RingPages;
use zerocopy::{Immutable, IntoBytes};

use crate::cmd::Ends;
use crate::error::{Error, Result};
use crate::icm::{Kind, MttRange, Pages};
use crate::numbers::Number;
use crate::object::Live;
use crate::shared::Shared;

/// The memory of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingMemoryPages<'a> {
    /// Bus addresses of the pages, each a multiple of the page's size. The ring starts at the first.
    pub pages: &'a [u64],
    /// log2 of the page's size in bytes, 12 to 31.
    pub log2_page: u8,
}

impl RingMemoryPages<'_> {
    /// Checks that the pages hold `bytes`.
    pub(crate) fn check(&self, bytes: u64) -> Result<()> {
        if !(12..=31).contains(&self.log2_page) {
            return Err(Error::argument("log2 of the page size", self.log2_page));
        }
        let page = 1u64 << self.log2_page;
        if bytes.div_ceil(page) != self.pages.len() as u64 {
            return Err(Error::argument("number of pages of a ring", self.pages.len() as u64));
        }
        match self.pages.iter().find(|address| !address.is_multiple_of(page)) {
            Some(address) => Err(Error::argument("page address of a ring", *address)),
            None => Ok(()),
        }
    }

    /// How a context names the pages, whose translation entries are `mtt`.
    pub(crate) fn context(&self, mtt: &MttRange) -> Result<RingPages> {
        RingPages::new(self.log2_page, mtt.offset()).ok_or(Error::argument("MTT offset", mtt.offset()))
    }
}

/// What an object takes. The device knows nothing of it yet.
#[derive(Debug)]
pub(crate) struct Claim {
    kind: Kind,
    number: Number,
    mtt: MttRange,
}

impl Claim {
    /// For an object whose memory are `pages`, with `spare` translation entries behind that are never present.
    ///
    /// # Errors
    /// No memory for the tables; nothing is taken then.
    pub(crate) fn new(
        shared: &Shared,
        (kind, number): (Kind, Number),
        pages: &Pages<'_>,
        spare: u32,
    ) -> Result<Self> {
        let index = number.get();
        shared.icm.get(&shared.commands, kind, index)?;
        match shared.icm.translate(&shared.commands, pages, spare) {
            Ok(mtt) => Ok(Self { kind, number, mtt }),
            Err(error) => {
                shared.icm.put(&shared.commands, kind, index)?;
                Err(error)
            }
        }
    }

    /// For a ring: the one entry behind it is never present.
    pub(crate) fn ring(shared: &Shared, object: (Kind, Number), ring: &RingMemoryPages<'_>) -> Result<Self> {
        Self::new(shared, object, &Pages::List(ring.pages), 1)
    }

    pub(crate) fn number(&self) -> u32 {
        self.number.get()
    }

    pub(crate) fn mtt(&self) -> &MttRange {
        &self.mtt
    }

    /// Hands the object to the device by a command with its context.
    ///
    /// # Errors
    /// There is no context, or the device refuses it: everything is given back. If the error
    /// [leaves it open](Error::leaves_open), everything stays taken.
    pub(crate) fn hand_over<T: IntoBytes + Immutable>(
        mut self,
        shared: &Arc<Shared>,
        what: &'static str,
        opcode: Opcode,
        context: Result<T>,
    ) -> Result<(Live, MttRange)> {
        let number = self.number();
        let given = context.and_then(|context| Ok(shared.commands.give(opcode, number, &context)?));
        match given {
            Ok(()) => Ok(self.keep(shared, what)),
            Err(error) if error.leaves_open() => {
                self.number.lose();
                Err(error)
            }
            Err(error) => {
                self.give_back(shared)?;
                Err(error)
            }
        }
    }

    /// Makes it an object, which the device may know of from now on.
    pub(crate) fn keep(self, shared: &Arc<Shared>, what: &'static str) -> (Live, MttRange) {
        (Live::new(shared, what, self.number), self.mtt)
    }

    /// Gives everything back, since there will be no object.
    ///
    /// # Errors
    /// The device doesn't give memory of tables back; it stays mapped until the next reset.
    pub(crate) fn give_back(self, shared: &Shared) -> Result<()> {
        give_back(shared, self.kind, self.number.get(), self.mtt)
    }
}

/// Gives back what an object took that the device doesn't know any more.
///
/// # Errors
/// As for [`Claim::give_back`].
pub(crate) fn give_back(shared: &Shared, kind: Kind, number: u32, mtt: MttRange) -> Result<()> {
    let mut ends = Ends::default();
    ends.note(shared.icm.forget(&shared.commands, mtt));
    ends.note(shared.icm.put(&shared.commands, kind, number));
    ends.result()
}
