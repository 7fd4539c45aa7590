//! Who is connected to whom, over all guests of an HCA.
//!
//! A packet of a connection names the queue pair that it is for, but not the one that it is from, and guests share
//! their port's LID. So a guest could connect a queue pair of its own to one of another guest's that waits for
//! packets from the same LID, guess the next PSN, and put a message into its connection. Hence this rule, for
//! connections that stay within a port (to one of its LIDs, or to one of its GIDs):
//!
//! - a queue pair can't be connected to another guest's that is connected, within the port, to a third
//!   ([`Reason::TAKEN`]);
//! - when a queue pair is connected, those of other guests that name it, and that it doesn't name, go to ERR first,
//!   since whoever comes first is not right by that.
//!
//! A queue pair whose destruction has failed counts until the HCA's reset. Nobody can put it to ERR, so the one that it
//! names can be connected to nothing else within the port.
//!
//! Two ends may be connected in either order, and a guest's own queue pairs as it likes. A connection that leaves
//! the port is left alone: the HCA compares the LID that packets come from.
//!
//! Does not: look at packets, or at what other ports send.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_rdma::Reason;

use crate::events::Events;
use crate::hca::{
    AsyncKind, Cookie, EventSink, Gid, GuestId, Hca, HcaError, HcaEvent, Path, QpId, QpKind, QpModify,
    QpState,
};

/// Queue pairs that are put to ERR while nobody else gets at the connections.
const EVICTED_AT_ONCE: usize = 4;

/// Tells that a queue pair is the target of extended connections. Whether a card looks at it in a packet isn't
/// documented; and no two numbers differ in it alone.
const XRC_TARGET: u32 = 1 << 23;

/// The number that a queue pair is known by here, with or without what tells of a target.
const fn plain(qpn: u32) -> u32 {
    qpn & !XRC_TARGET
}

/// A way that packets of a connection take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    port: u8,
    dlid: u16,
    /// It has a GRH to a GID of the port itself.
    to_own_gid: bool,
}

/// What a queue pair is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    dest: u32,
    primary: Way,
    alternate: Option<Way>,
}

/// The LIDs of an HCA's ports.
#[derive(Clone, Debug)]
struct Lids(Vec<(u16, u8)>);

impl Lids {
    fn of(hca: &dyn Hca) -> Result<Self, HcaError> {
        let lid = |port| hca.query_port(port).map(|info| (info.lid, info.lmc));
        (1..=hca.device().ports).map(lid).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a LID is one of a port's own, whatever the path bits.
    fn has(&self, port: u8, lid: u16) -> bool {
        let own = port.checked_sub(1).and_then(|index| self.0.get(usize::from(index)));
        own.is_some_and(|(base, lmc)| *base != 0 && lid >> (*lmc).min(7) == *base >> (*lmc).min(7))
    }

    /// Whether a connection stays within its port.
    fn keep(&self, link: &Link) -> bool {
        let within = |way: &Way| way.to_own_gid || self.has(way.port, way.dlid);
        within(&link.primary) || link.alternate.as_ref().is_some_and(within)
    }

    fn way(&self, hca: &dyn Hca, path: &Path) -> Result<Way, HcaError> {
        let (port, dlid) = (path.port, path.dlid);
        let to_own_gid = match &path.grh {
            Some(grh) if !self.has(port, dlid) => has_gid(hca, port, &grh.dgid)?,
            _ => false,
        };
        Ok(Way { port, dlid, to_own_gid })
    }
}

/// Whether a GID is one of a port's: a router could bring packets back.
fn has_gid(hca: &dyn Hca, port: u8, gid: &Gid) -> Result<bool, HcaError> {
    for index in 0..hca.query_port(port)?.gids {
        if hca.query_gid(port, index)? == *gid {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A queue pair that can be connected.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) guest: GuestId,
    pub(crate) qp: QpId,
    /// Its handle, and who is told when it is put to ERR.
    pub(crate) cookie: Cookie,
    pub(crate) events: Arc<Events>,
    link: Option<Link>,
    /// Nobody has it any more, but the HCA may: its destruction has failed.
    lost: bool,
}

impl End {
    /// One that isn't connected.
    pub(crate) fn new(guest: GuestId, qp: QpId, cookie: Cookie, events: &Arc<Events>) -> Self {
        Self { guest, qp, cookie, events: Arc::clone(events), link: None, lost: false }
    }
}

/// A change of a connection that the HCA has not made yet.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct Pending {
    qpn: u32,
    before: Option<Link>,
}

#[derive(Debug, Default)]
struct State {
    ends: BTreeMap<u32, End>,
    /// Which numbers name which: destination, and who names it.
    naming: BTreeSet<(u32, u32)>,
}

impl State {
    fn insert(&mut self, qpn: u32, end: End) {
        self.set(qpn, None);
        self.ends.insert(qpn, end);
    }

    fn set(&mut self, qpn: u32, link: Option<Link>) {
        let Some(end) = self.ends.get_mut(&qpn) else { return };
        if let Some(old) = std::mem::replace(&mut end.link, link) {
            self.naming.remove(&(old.dest, qpn));
        }
        if let Some(new) = link {
            self.naming.insert((new.dest, qpn));
        }
    }

    fn forget(&mut self, gone: impl Fn(&End) -> bool) {
        let gone: Vec<u32> = self.ends.iter().filter(|(_, end)| gone(end)).map(|(qpn, _)| *qpn).collect();
        for qpn in gone {
            self.remove(qpn);
        }
    }

    fn remove(&mut self, qpn: u32) {
        self.set(qpn, None);
        self.ends.remove(&qpn);
    }

    /// Queue pairs of other guests that name this one within the port, and that it doesn't name.
    fn intruders(&self, qpn: u32, guest: GuestId, link: &Link, lids: &Lids) -> Vec<u32> {
        let naming = self.naming.range((qpn, 0)..=(qpn, u32::MAX)).map(|(_, other)| *other);
        let stranger = |other: &u32| {
            let end = self.ends.get(other).filter(|end| end.guest != guest && *other != link.dest);
            end.and_then(|end| end.link).is_some_and(|theirs| lids.keep(&theirs))
        };
        naming.filter(stranger).collect()
    }
}

/// The connections of all guests.
#[derive(Debug, Default)]
pub(crate) struct Links(Mutex<State>);

impl Links {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue pair exists.
    pub(crate) fn insert(&self, qpn: u32, end: End) {
        self.lock().insert(plain(qpn), end);
    }

    /// A queue pair is about to be destroyed: from now on it is put to ERR by nobody. What it was is for
    /// [`Links::put_back`], if it stays.
    pub(crate) fn remove(&self, qpn: u32, qp: QpId) -> Option<End> {
        let (mut state, qpn) = (self.lock(), plain(qpn));
        let end = state.ends.get(&qpn).filter(|end| end.qp == qp)?.clone();
        state.remove(qpn);
        Some(end)
    }

    /// A queue pair was not destroyed.
    pub(crate) fn put_back(&self, qpn: u32, end: End) {
        let link = end.link;
        let (mut state, qpn) = (self.lock(), plain(qpn));
        state.insert(qpn, End { link: None, ..end });
        state.set(qpn, link);
    }

    /// The destruction of a queue pair has failed: the HCA may have it, connected as it was, until its reset.
    pub(crate) fn lose(&self, qpn: u32, end: End) {
        self.put_back(qpn, End { lost: true, ..end });
    }

    /// As [`Links::lose`], for all queue pairs of a guest.
    pub(crate) fn lose_all(&self, guest: GuestId) {
        self.lock().ends.values_mut().filter(|end| end.guest == guest).for_each(|end| end.lost = true);
    }

    /// A guest's queue pairs are gone with the HCA.
    pub(crate) fn forget(&self, guest: GuestId) {
        self.lock().forget(|end| end.guest == guest);
    }

    /// The HCA was reset: those that it kept are gone too.
    pub(crate) fn after_reset(&self) {
        self.lock().forget(|end| end.lost);
    }

    /// A queue pair is connected to nothing any more.
    pub(crate) fn disconnect(&self, qpn: u32) {
        self.lock().set(plain(qpn), None);
    }

    /// A queue pair is about to be changed. Notes what it will be connected to, if the change says something of it.
    ///
    /// # Errors
    /// [`Reason::TAKEN`]; or the HCA doesn't answer, or doesn't stop a queue pair that names this one.
    pub(crate) fn connect(
        &self,
        hca: &dyn Hca,
        qpn: u32,
        modify: &QpModify,
    ) -> Result<Option<Pending>, Reason> {
        if modify.dest_qpn.is_none() && modify.path.is_none() && modify.alternate.is_none() {
            return Ok(None);
        }
        let reason = |error: HcaError| error.reason();
        let lids = Lids::of(hca).map_err(reason)?;
        let way = |path: &Path| lids.way(hca, path).map_err(reason);
        let primary = modify.path.as_ref().map(way).transpose()?;
        let alternate = modify.alternate.as_ref().map(|alternate| way(&alternate.path)).transpose()?;
        let (mut state, qpn) = (self.lock(), plain(qpn));
        let Some(end) = state.ends.get(&qpn) else { return Ok(None) };
        let (guest, before) = (end.guest, end.link);
        let dest = modify.dest_qpn.map(plain).or(before.map(|link| link.dest));
        let primary = primary.or(before.map(|link| link.primary));
        let (Some(dest), Some(primary)) = (dest, primary) else { return Ok(None) };
        let alternate = alternate.or(before.and_then(|link| link.alternate));
        let link = Link { dest, primary, alternate };
        if lids.keep(&link) {
            let other = state.ends.get(&dest).filter(|other| other.guest != guest);
            let theirs = other.and_then(|other| other.link).filter(|theirs| lids.keep(theirs));
            if theirs.is_some_and(|theirs| theirs.dest != qpn) {
                return Err(Reason::TAKEN);
            }
        }
        // From now on no other guest's can be connected to this one.
        state.set(qpn, Some(link));
        drop(state);
        let pending = Pending { qpn, before };
        if lids.keep(&link)
            && let Err(error) = self.evict_intruders(hca, (qpn, guest), &link, &lids)
        {
            self.withdraw(pending);
            return Err(error.reason());
        }
        Ok(Some(pending))
    }

    /// Puts all to ERR that name a queue pair and must not. Others get at the connections in between: the HCA takes
    /// its time for each, and a guest can have many.
    fn evict_intruders(
        &self,
        hca: &dyn Hca,
        (qpn, guest): (u32, GuestId),
        link: &Link,
        lids: &Lids,
    ) -> Result<(), HcaError> {
        loop {
            let mut state = self.lock();
            let intruders = state.intruders(qpn, guest, link, lids);
            for intruder in intruders.iter().take(EVICTED_AT_ONCE) {
                evict(&mut state, hca, *intruder)?;
            }
            if intruders.len() <= EVICTED_AT_ONCE {
                return Ok(());
            }
        }
    }

    /// The HCA has refused the change.
    pub(crate) fn withdraw(&self, pending: Pending) {
        self.lock().set(pending.qpn, pending.before);
    }
}

/// Puts a queue pair to ERR, and tells its owner. It is there: who destroys it takes it out of `state` before. One whose
/// destruction has failed can't be put to ERR.
fn evict(state: &mut State, hca: &dyn Hca, qpn: u32) -> Result<(), HcaError> {
    let Some(end) = state.ends.get(&qpn) else { return Ok(()) };
    if end.lost {
        log::error!(
            "queue pair {qpn:#x}, which wasn't destroyed, may be connected to another guest's until the reset"
        );
        return Err(HcaError::Failed);
    }
    log::info!(
        "queue pair {qpn:#x} of {:?} names one that is connected to another: it goes to ERR",
        end.guest
    );
    match hca.modify_qp(end.qp, &QpModify::state(QpState::Rtr, QpState::Err)) {
        Ok(()) => {}
        // Whatever was wrong with the command: what counts is whether it can send.
        Err(HcaError::Refused) => match hca.query_qp(end.qp)?.state {
            QpState::Reset | QpState::Err => {}
            state => {
                log::error!("queue pair {qpn:#x} can't be put to ERR, it is in {state:?}");
                return Err(HcaError::Failed);
            }
        },
        Err(error) => return Err(error),
    }
    end.events.raise(HcaEvent::Object { cookie: end.cookie, kind: AsyncKind::QpFatal, syndrome: 0 });
    state.set(qpn, None);
    Ok(())
}

/// Whether queue pairs of a type are connected to one other.
pub(crate) const fn is_connected(kind: QpKind) -> bool {
    !matches!(kind, QpKind::Ud)
}
