//! What the event queue and the completion-vector queues carry.

use crate::{Reserved, U32};

codes! {
    /// Kind of an asynchronous event. Up to 0x7f these are verbs' (`ibv_event_type`), above the device's own.
    pub enum EventType {
        /// A CQ failed, or overran.
        CQ_ERR = 0,
        /// A queue pair failed and is in error.
        QP_FATAL = 1,
        /// A queue pair got an invalid request.
        QP_REQ_ERR = 2,
        /// A queue pair got a request that violated its rights.
        QP_ACCESS_ERR = 3,
        /// The first message came in on a queue pair that was ready to receive.
        COMM_EST = 4,
        /// The send queue of a queue pair is drained.
        SQ_DRAINED = 5,
        /// A connection moved to the alternate path.
        PATH_MIG = 6,
        /// A connection could not move to the alternate path.
        PATH_MIG_ERR = 7,
        /// The HCA failed: every object is lost, and `generation` is the new one.
        DEVICE_FATAL = 8,
        /// A port became active.
        PORT_ACTIVE = 9,
        /// A port is no longer active.
        PORT_ERR = 10,
        /// A port's LID changed.
        LID_CHANGE = 11,
        /// A port's P_Key table changed.
        PKEY_CHANGE = 12,
        /// A port's subnet manager changed.
        SM_CHANGE = 13,
        /// An SRQ failed.
        SRQ_ERR = 14,
        /// An SRQ fell below its limit.
        SRQ_LIMIT_REACHED = 15,
        /// A queue pair in error has taken the last request that it takes from its SRQ.
        QP_LAST_WQE_REACHED = 16,
        /// The subnet manager asks for registrations to be renewed.
        CLIENT_REREGISTER = 17,
        /// A port's GID table changed.
        GID_CHANGE = 18,

        /// The device works again after `DEVICE_FATAL`: the configuration space has its new state.
        DEVICE_READY = 0x80,
        /// Nothing happened but that events were lost.
        EVENTS_LOST = 0x81,
    }
}

/// What an asynchronous event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventSubject {
    /// The CQ of the handle.
    Cq,
    /// The queue pair of the handle.
    Qp,
    /// The SRQ of the handle.
    Srq,
    /// The port of the number.
    Port,
    /// The device.
    Device,
}

impl EventType {
    /// What an event of this kind is about; `None` for an unknown kind.
    pub const fn subject(self) -> Option<EventSubject> {
        Some(match self {
            Self::CQ_ERR => EventSubject::Cq,
            Self::QP_FATAL
            | Self::QP_REQ_ERR
            | Self::QP_ACCESS_ERR
            | Self::COMM_EST
            | Self::SQ_DRAINED
            | Self::PATH_MIG
            | Self::PATH_MIG_ERR
            | Self::QP_LAST_WQE_REACHED => EventSubject::Qp,
            Self::SRQ_ERR | Self::SRQ_LIMIT_REACHED => EventSubject::Srq,
            Self::PORT_ACTIVE
            | Self::PORT_ERR
            | Self::LID_CHANGE
            | Self::PKEY_CHANGE
            | Self::SM_CHANGE
            | Self::CLIENT_REREGISTER
            | Self::GID_CHANGE => EventSubject::Port,
            Self::DEVICE_FATAL | Self::DEVICE_READY | Self::EVENTS_LOST => EventSubject::Device,
            _ => return None,
        })
    }
}

layout! {
    size = 32;
    /// An asynchronous event: what the device writes into a buffer of the event queue.
    pub struct AsyncEvent {
        /// What happened.
        pub event_type: EventType,
        /// The port, from 1, of an event about a port. Else 0.
        pub port: u8,
        /// The HCA's own code of an error, for logs. Else 0.
        pub syndrome: u8,
        /// Must be ignored.
        pub reserved: Reserved<1>,
        /// The device's generation when it happened.
        pub generation: U32,
        /// Handle of the CQ, queue pair or SRQ that it is about. Else 0.
        pub handle: U32,
        /// How many events were lost before this one.
        pub lost: U32,
        /// Must be ignored.
        pub reserved_end: Reserved<16>,
    }
}

layout! {
    size = 8;
    /// A completion event: the device fills a buffer of a completion-vector queue with as many as it has.
    pub struct CompletionEvent {
        /// Handle of the CQ that fired.
        pub cq: U32,
        /// The device's generation when it fired.
        pub generation: U32,
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn async_event_has_its_bytes() {
        let event = AsyncEvent {
            event_type: EventType::QP_ACCESS_ERR,
            syndrome: 2,
            generation: U32::new(5),
            handle: U32::new(0x0102),
            lost: U32::new(1),
            ..AsyncEvent::new_zeroed()
        };
        assert_eq!(event.as_bytes()[..16], [3, 0, 2, 0, 5, 0, 0, 0, 2, 1, 0, 0, 1, 0, 0, 0]);
        assert_eq!(event.as_bytes()[16..], [0; 16]);
    }

    #[test]
    fn completion_event_has_its_bytes() {
        let event = CompletionEvent { cq: U32::new(0x11), generation: U32::new(0x0203_0405) };
        assert_eq!(event.as_bytes(), [0x11, 0, 0, 0, 5, 4, 3, 2]);
    }

    #[test]
    fn every_known_event_is_about_something() {
        for event_type in EventType::KNOWN {
            assert!(event_type.subject().is_some(), "{event_type}");
        }
        assert_eq!(EventType(19).subject(), None);
    }
}
