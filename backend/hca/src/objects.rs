//! What guests have: the tables of objects, and who uses which.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4::ArmDoorbell;
use mlx4_pci::Doorbell;
use paraverbs_tenant::hca::{Cookie, HcaError, QpKind};

use crate::completion::{EqPlace, Gate};
use crate::events::{Guest, Guests};
use crate::share::{Entries, Share};
use crate::table::{Entry, Table};

/// Counts who uses an object.
#[derive(Debug, Default)]
pub(crate) struct Users(Arc<()>);

/// A use of an object, until it is dropped.
#[derive(Debug)]
pub(crate) struct Use {
    _of: Arc<()>,
}

impl Users {
    /// One more.
    pub(crate) fn one(&self) -> Use {
        Use { _of: Arc::clone(&self.0) }
    }

    fn any(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Whose an object is, and what he calls it.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) guest: Arc<Guest>,
    pub(crate) cookie: Cookie,
}

#[derive(Debug)]
pub(crate) struct Pd {
    pub(crate) id: u32,
    pub(crate) driver: mlx4::Pd,
    /// Whose it is, as far as regions in it take translation entries.
    pub(crate) share: Arc<Share>,
    pub(crate) users: Users,
}

#[derive(Debug)]
pub(crate) struct Uar {
    pub(crate) id: u32,
    pub(crate) driver: mlx4::Uar,
    pub(crate) users: Users,
}

#[derive(Debug)]
pub(crate) struct Xrcd {
    pub(crate) id: u32,
    pub(crate) driver: mlx4::Xrcd,
    pub(crate) users: Users,
}

#[derive(Debug)]
pub(crate) struct Mw {
    pub(crate) id: u32,
    pub(crate) driver: mlx4::Window,
    pub(crate) pd: Use,
    pub(crate) users: Users,
}

#[derive(Debug)]
pub(crate) struct Mr {
    pub(crate) id: u32,
    pub(crate) driver: mlx4::Region,
    pub(crate) shape: crate::region::Shape,
    /// Id of its PD.
    pub(crate) domain: u32,
    pub(crate) pd: Use,
    pub(crate) entries: Entries,
    pub(crate) users: Users,
}

#[derive(Debug)]
pub(crate) struct Cq {
    pub(crate) id: u32,
    pub(crate) driver: mlx4::Cq,
    /// The UAR through which it is armed.
    pub(crate) uar: u32,
    pub(crate) bell: ArmDoorbell,
    pub(crate) owner: Owner,
    pub(crate) gate: Arc<Gate>,
    pub(crate) held: (Use, EqPlace),
    /// Of the ring that it has now.
    pub(crate) entries: Mutex<Entries>,
    pub(crate) users: Users,
}

#[derive(Debug)]
pub(crate) struct Srq {
    pub(crate) id: u32,
    pub(crate) driver: mlx4::Srq,
    pub(crate) owner: Owner,
    pub(crate) held: (Vec<Use>, Entries),
    pub(crate) users: Users,
}

/// Groups of a queue pair.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    pub(crate) groups: BTreeSet<mlx4::Gid>,
    /// Port that the queue pair is on; none before INIT.
    pub(crate) port: Option<u8>,
    /// The HCA may have it in a group that it isn't known to be in.
    pub(crate) uncertain: bool,
}

#[derive(Debug)]
pub(crate) struct Qp {
    pub(crate) id: u32,
    pub(crate) driver: mlx4::Qp,
    pub(crate) kind: QpKind,
    /// The UAR through which its send queue is rung, if it has one, and the doorbell there.
    pub(crate) bell: Option<(u32, Arc<dyn Doorbell>)>,
    pub(crate) owner: Owner,
    pub(crate) block_loopback: bool,
    pub(crate) membership: Mutex<Membership>,
    pub(crate) held: (Vec<Use>, Entries),
    pub(crate) users: Users,
}

/// What a queue pair is made of, besides what was asked for.
pub(crate) struct NewQp {
    pub(crate) driver: mlx4::Qp,
    pub(crate) bell: Option<(u32, Arc<dyn Doorbell>)>,
    pub(crate) owner: Owner,
    pub(crate) held: (Vec<Use>, Entries),
}

impl Qp {
    pub(crate) fn membership(&self) -> MutexGuard<'_, Membership> {
        // Changed by one call on one collection.
        self.membership.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Objects that others may use.
pub(crate) trait Used: Entry {
    /// Who uses it.
    fn users(&self) -> &Users;
}

macro_rules! entries {
    ($($name:ident),*) => {
        $(impl Entry for $name {
            fn id(&self) -> u32 {
                self.id
            }
        }

        impl Used for $name {
            fn users(&self) -> &Users {
                &self.users
            }
        })*
    };
}

entries!(Pd, Uar, Xrcd, Mr, Mw, Cq, Srq, Qp);

/// All objects of all guests.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) guests: Guests,
    pub(crate) pds: Table<Pd>,
    pub(crate) uars: Table<Uar>,
    pub(crate) xrcds: Table<Xrcd>,
    pub(crate) mrs: Table<Mr>,
    pub(crate) mws: Table<Mw>,
    pub(crate) cqs: Table<Cq>,
    pub(crate) srqs: Table<Srq>,
    pub(crate) qps: Table<Qp>,
    lost: Mutex<Vec<Box<dyn Any + Send>>>,
}

impl Objects {
    /// Keeps what an object uses that the HCA may still have, until its reset.
    pub(crate) fn lose(&self, held: impl Any + Send) {
        self.lost().push(Box::new(held));
    }

    /// Forgets everything. When this returns no doorbell is being rung and no event is under way.
    pub(crate) fn clear(&self) {
        self.qps.clear(drop);
        self.srqs.clear(drop);
        self.cqs.clear(|cq| cq.gate.close());
        self.xrcds.clear(drop);
        self.mws.clear(drop);
        self.mrs.clear(drop);
        self.uars.clear(drop);
        self.pds.clear(drop);
        self.guests.clear();
        self.lost().clear();
    }

    fn lost(&self) -> MutexGuard<'_, Vec<Box<dyn Any + Send>>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An object of a table.
pub(crate) fn known<T: Entry>(table: &Table<T>, id: u32) -> Result<Arc<T>, HcaError> {
    table.get(id).ok_or(HcaError::Refused)
}

/// Takes an object out that nobody uses.
pub(crate) fn take_unused<T: Used>(table: &Table<T>, id: u32) -> Result<T, HcaError> {
    if known(table, id)?.users().any() {
        return Err(HcaError::Busy);
    }
    let entry = table.take(id).ok_or(HcaError::Refused)?;
    // Somebody may have begun to use it meanwhile.
    if entry.users().any() {
        table.insert(entry);
        return Err(HcaError::Busy);
    }
    Ok(entry)
}
