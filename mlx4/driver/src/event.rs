//! What the device tells by itself.

use mlx4_wire::Number24;
use mlx4_wire::eqe::{
    CqErrorEvent, CqEvent, Eqe, EventType, LocalCatastrophe, LocalCatastrophicEvent, PortChangeEvent,
    PortChangeSubtype, PortInfoEvent, PortManagementSubtype, QpEvent, SrqEvent, TableChangeEvent,
};

use crate::error::{Error, FieldError, Fields};
use crate::xrc::XRC_TARGET;

/// Something that happened without being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// About a queue pair.
    Qp {
        /// Its number; of the target of extended connections without [`XRC_TARGET`].
        qpn: u32,
        /// What happened.
        event: QpEventKind,
    },
    /// A completion queue has failed: it takes no more completions.
    CqError {
        /// Its number.
        cqn: u32,
        /// It was full; it could not be written otherwise.
        overrun: bool,
    },
    /// About a shared receive queue.
    Srq {
        /// Its number.
        srqn: u32,
        /// It has fewer requests than its limit; it has failed otherwise.
        limit: bool,
    },
    /// About a port.
    Port {
        /// Its number, from 1.
        port: u8,
        /// What happened.
        event: PortEvent,
    },
    /// Events may have been lost, of whatever: an event queue was full.
    Lost,
    /// The device has failed and must be reset. No command is answered any more.
    Fatal,
}

/// What happened to a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QpEventKind {
    /// It uses its alternate path now.
    PathMigrated,
    /// It can't use its alternate path.
    PathMigrationFailed,
    /// The first packet has come while it was in RTR.
    CommunicationEstablished,
    /// Its send queue is drained.
    SendDrained,
    /// It has failed for a reason that no completion tells.
    Fatal,
    /// The other end asked for something that can't be.
    InvalidRequest,
    /// The other end asked for memory that it may not have.
    AccessError,
    /// It will take no more requests from its SRQ.
    LastWqe,
}

/// What happened to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortEvent {
    /// It is ACTIVE.
    Active,
    /// It isn't ACTIVE any more.
    Down,
    /// Its LID has changed.
    Lid,
    /// LID or SL of the subnet manager have changed.
    Sm,
    /// The subnet manager asks for everything to be registered again: multicast groups, services, events.
    Reregister,
    /// Entries of its P_Key table have changed.
    Pkeys,
    /// Its GID prefix, or entries of its GUID table, have changed.
    Gids,
    /// Its table of virtual lanes by service level has changed.
    VirtualLanes,
}

/// Takes the device's events. Called from threads of the driver, which wait meanwhile: it must be quick, and
/// must not destroy objects of the driver.
pub trait EventSink: Send + Sync {
    /// Something has happened.
    fn event(&self, event: &Event);

    /// The device has told something that can't be: an event, or a completion of a special queue pair. It was
    /// dropped.
    fn refused(&self, error: &Error) {
        log::warn!("{error}");
    }
}

/// Lets events go, but for the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogEvents;

impl EventSink for LogEvents {
    fn event(&self, event: &Event) {
        log::info!("{event:?}");
    }
}

/// Event types that are asked for.
pub(crate) const ASYNC_EVENTS: [EventType; 18] = [
    EventType::PATH_MIGRATED,
    EventType::COMMUNICATION_ESTABLISHED,
    EventType::SQ_DRAINED,
    EventType::CQ_ERROR,
    EventType::WQ_CATASTROPHIC,
    EventType::EEC_CATASTROPHIC,
    EventType::PATH_MIGRATION_FAILED,
    EventType::LOCAL_CATASTROPHIC,
    EventType::PORT_CHANGE,
    EventType::ECC_DETECT,
    EventType::EQ_OVERFLOW,
    EventType::WQ_INVALID_REQUEST,
    EventType::WQ_ACCESS_ERROR,
    EventType::SRQ_CATASTROPHIC,
    EventType::SRQ_QP_LAST_WQE,
    EventType::SRQ_LIMIT,
    EventType::OP_REQUIRED,
    EventType::FATAL_WARNING,
];

/// How many objects there can be that an event names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) qps: u32,
    pub(crate) cqs: u32,
    pub(crate) srqs: u32,
    pub(crate) ports: u8,
}

/// Checks fields of an entry.
const FIELDS: Fields = Fields("EQE");

/// The object that an event names.
fn number(field: &'static str, number: Number24, count: u32) -> Result<u32, FieldError> {
    FIELDS.at_most(field, number.number(), u64::from(count).saturating_sub(1))
}

impl Bounds {
    fn port(&self, port: u8) -> Result<u8, FieldError> {
        FIELDS.between("port", port, 1, self.ports.into())
    }

    /// Devices name a target of extended connections with or without the bit that tells of it.
    fn qpn(&self, qpn: Number24) -> Result<u32, FieldError> {
        number("qpn", Number24::wrapping(qpn.number() & !XRC_TARGET), self.qps)
    }

    /// The CQ that a completion event names.
    ///
    /// # Errors
    /// There can be none of that number, or the event isn't one of a completion.
    pub(crate) fn completion(&self, eqe: &Eqe) -> Result<u32, FieldError> {
        FIELDS.is("event_type", eqe.event_type().0, EventType::COMPLETION.0.into())?;
        number("cqn", CqEvent::from(eqe.data).cqn, self.cqs)
    }
}

impl Event {
    /// Reads an entry of the asynchronous event queue; one entry can tell several things, or nothing that
    /// anybody is told.
    ///
    /// # Errors
    /// It names an object that can't be, or isn't of a type that was asked for.
    pub(crate) fn read(eqe: &Eqe, bounds: &Bounds) -> Result<Vec<Self>, FieldError> {
        let qp = |event| {
            let qpn = bounds.qpn(QpEvent::from(eqe.data).qpn)?;
            Ok(vec![Self::Qp { qpn, event }])
        };
        let srq = |limit| {
            let srqn = number("srqn", SrqEvent::from(eqe.data).srqn, bounds.srqs)?;
            Ok(vec![Self::Srq { srqn, limit }])
        };
        match eqe.event_type() {
            EventType::PATH_MIGRATED => qp(QpEventKind::PathMigrated),
            EventType::PATH_MIGRATION_FAILED => qp(QpEventKind::PathMigrationFailed),
            EventType::COMMUNICATION_ESTABLISHED => qp(QpEventKind::CommunicationEstablished),
            EventType::SQ_DRAINED => qp(QpEventKind::SendDrained),
            EventType::WQ_CATASTROPHIC => qp(QpEventKind::Fatal),
            EventType::WQ_INVALID_REQUEST => qp(QpEventKind::InvalidRequest),
            EventType::WQ_ACCESS_ERROR => qp(QpEventKind::AccessError),
            EventType::SRQ_QP_LAST_WQE => qp(QpEventKind::LastWqe),
            EventType::SRQ_CATASTROPHIC => srq(false),
            EventType::SRQ_LIMIT => srq(true),
            EventType::CQ_ERROR => {
                let data = CqErrorEvent::from(eqe.data);
                let overrun = data.syndrome() == mlx4_wire::eqe::CqErrorSyndrome::OVERRUN;
                Ok(vec![Self::CqError { cqn: number("cqn", data.cqn, bounds.cqs)?, overrun }])
            }
            EventType::PORT_CHANGE => port_change(eqe, bounds),
            EventType::PORT_MANAGEMENT_CHANGE => port_management(eqe, bounds),
            EventType::EQ_OVERFLOW => Ok(vec![Self::Lost]),
            EventType::LOCAL_CATASTROPHIC
                if LocalCatastrophicEvent::from(eqe.data).catastrophe() == LocalCatastrophe::EQ_OVERFLOW =>
            {
                Ok(vec![Self::Lost])
            }
            // The failure itself stands in the error buffer.
            told if ASYNC_EVENTS.contains(&told) => {
                log::warn!("{told} event with subtype {:#x}", eqe.subtype);
                Ok(Vec::new())
            }
            other => {
                FIELDS.holds("event_type", other.0, false, "one that was asked for")?;
                Ok(Vec::new())
            }
        }
    }
}

fn port_change(eqe: &Eqe, bounds: &Bounds) -> Result<Vec<Event>, FieldError> {
    let port = bounds.port(PortChangeEvent::from(eqe.data).port.port())?;
    let event = match PortChangeSubtype(eqe.subtype) {
        PortChangeSubtype::ACTIVE => PortEvent::Active,
        PortChangeSubtype::DOWN => PortEvent::Down,
        other => return unknown_subtype(other.0),
    };
    Ok(vec![Event::Port { port, event }])
}

fn unknown_subtype(subtype: u8) -> Result<Vec<Event>, FieldError> {
    FIELDS.holds("subtype", subtype, false, "one of the event's type").map(|_| Vec::new())
}

fn port_management(eqe: &Eqe, bounds: &Bounds) -> Result<Vec<Event>, FieldError> {
    // The port is at the same place in all of them.
    let port = bounds.port(TableChangeEvent::from(eqe.data).port)?;
    let one = |event| Ok(vec![Event::Port { port, event }]);
    match PortManagementSubtype(eqe.subtype) {
        PortManagementSubtype::GUID_INFO => one(PortEvent::Gids),
        PortManagementSubtype::PKEY_TABLE => one(PortEvent::Pkeys),
        PortManagementSubtype::SL_TO_VL => one(PortEvent::VirtualLanes),
        PortManagementSubtype::PORT_INFO => {
            let info = PortInfoEvent::from(eqe.data);
            let changed = info.changed;
            let told = [
                (changed.sm_lid() || changed.sm_sl(), PortEvent::Sm),
                (changed.lid(), PortEvent::Lid),
                (changed.gid_prefix(), PortEvent::Gids),
                (changed.client_reregister(), PortEvent::Reregister),
            ];
            let events = told.into_iter().filter(|(told, _)| *told);
            Ok(events.map(|(_, event)| Event::Port { port, event }).collect())
        }
        other => unknown_subtype(other.0),
    }
}

#[cfg(test)]
mod tests {
    use mlx4_wire::eqe::{CqErrorSyndrome, PortInfoChange};
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    use super::*;

    const BOUNDS: Bounds = Bounds { qps: 1 << 16, cqs: 1 << 15, srqs: 1 << 14, ports: 2 };

    fn read(eqe: &Eqe) -> Result<Vec<Event>, FieldError> {
        Event::read(eqe, &BOUNDS)
    }

    #[test]
    fn port_info_change_is_told_sm_first() {
        let mut data = PortInfoEvent::new_zeroed();
        data.port = 2;
        data.changed = PortInfoChange::new().with_lid(true).with_sm_lid(true).with_client_reregister(true);
        let subtype = PortManagementSubtype::PORT_INFO.0;
        let events = read(&Eqe::new(EventType::PORT_MANAGEMENT_CHANGE, subtype, data)).unwrap();
        let port = |event| Event::Port { port: 2, event };
        assert_eq!(events, [port(PortEvent::Sm), port(PortEvent::Lid), port(PortEvent::Reregister)]);
    }

    #[test]
    fn events_name_their_object() {
        let event = Eqe::new(EventType::SQ_DRAINED, 0, QpEvent::new(0x1234));
        assert_eq!(read(&event).unwrap(), [Event::Qp { qpn: 0x1234, event: QpEventKind::SendDrained }]);
        let event = Eqe::new(EventType::CQ_ERROR, 0, CqErrorEvent::new(7, CqErrorSyndrome::OVERRUN));
        assert_eq!(read(&event).unwrap(), [Event::CqError { cqn: 7, overrun: true }]);
        let event = Eqe::new(EventType::SRQ_LIMIT, 0, SrqEvent::new(9));
        assert_eq!(read(&event).unwrap(), [Event::Srq { srqn: 9, limit: true }]);
        let event = Eqe::new(EventType::PORT_CHANGE, PortChangeSubtype::ACTIVE.0, PortChangeEvent::new(1));
        assert_eq!(read(&event).unwrap(), [Event::Port { port: 1, event: PortEvent::Active }]);
        assert_eq!(read(&Eqe::new(EventType::EQ_OVERFLOW, 0, [0xff; 24])).unwrap(), [Event::Lost]);
        let failed = |what| Eqe::new(EventType::LOCAL_CATASTROPHIC, 0, LocalCatastrophicEvent::new(what, 0));
        assert_eq!(read(&failed(LocalCatastrophe::EQ_OVERFLOW)).unwrap(), [Event::Lost]);
        assert_eq!(read(&failed(LocalCatastrophe::BAD_UAR_PAGE)).unwrap(), []);
    }

    #[test]
    fn event_that_can_not_be_is_refused_with_the_field() {
        let refused = |eqe: &Eqe| read(eqe).unwrap_err().field;
        assert_eq!(refused(&Eqe::new(EventType(0x77), 0, [0xff; 24])), "event_type");
        assert_eq!(refused(&Eqe::new(EventType::COMMAND, 0, [0xff; 24])), "event_type");
        assert_eq!(refused(&Eqe::new(EventType::PORT_CHANGE, 9, PortChangeEvent::new(1))), "subtype");
        assert_eq!(refused(&Eqe::new(EventType::PORT_CHANGE, 1, PortChangeEvent::new(3))), "port");
        assert_eq!(refused(&Eqe::new(EventType::PORT_MANAGEMENT_CHANGE, 0x14, [0; 24])), "port");
        assert_eq!(refused(&Eqe::new(EventType::SQ_DRAINED, 0, QpEvent::new(1 << 16))), "qpn");
        assert_eq!(refused(&Eqe::new(EventType::SRQ_LIMIT, 0, SrqEvent::new(1 << 14))), "srqn");
        let completion = |cqn| BOUNDS.completion(&Eqe::new(EventType::COMPLETION, 0, CqEvent::new(cqn)));
        assert_eq!((completion(7).unwrap(), completion(1 << 15).unwrap_err().field), (7, "cqn"));
        assert_eq!(read(&Eqe::new(EventType::FATAL_WARNING, 0, [0; 24])), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn any_entry_of_an_event_queue_is_read_or_refused(event_type: u8, subtype: u8, data: [u8; 24]) {
            for event in read(&Eqe::new(EventType(event_type), subtype, data)).unwrap_or_default() {
                let (number, count) = match event {
                    Event::Qp { qpn, .. } => (qpn, BOUNDS.qps),
                    Event::CqError { cqn, .. } => (cqn, BOUNDS.cqs),
                    Event::Srq { srqn, .. } => (srqn, BOUNDS.srqs),
                    Event::Port { port, .. } => (port.into(), 3),
                    Event::Lost => (0, 1),
                    Event::Fatal => (0, 0),
                };
                prop_assert!(number < count);
            }
        }
    }
}
