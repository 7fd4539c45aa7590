//! What the HCA tells of its own accord.

/// What a tenant calls an object; the HCA gives it back with each event of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u32);

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AsyncKind {
    /// A CQ failed or overran.
    CqError,
    /// A queue pair failed.
    QpFatal,
    /// A queue pair got an invalid request.
    QpRequestError,
    /// A queue pair got a request that violated its rights.
    QpAccessError,
    /// The first message came in before the change to RTS.
    CommunicationEstablished,
    /// The send queue is drained.
    SendQueueDrained,
    /// The connection moved to the alternate path.
    PathMigrated,
    /// The connection could not move to the alternate path.
    PathMigrationError,
    /// A queue pair in error has taken its last request from its SRQ.
    LastWqeReached,
    /// An SRQ failed.
    SrqError,
    /// An SRQ fell below its limit.
    SrqLimitReached,
}

/// What happened to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortChange {
    /// It became active.
    Active,
    /// It is no longer active.
    Down,
    /// Its LID changed.
    Lid,
    /// Its P_Key table changed.
    Pkey,
    /// Its subnet manager changed.
    SubnetManager,
    /// The subnet manager asks for registrations to be renewed.
    ClientReregister,
    /// Its GID table changed.
    Gid,
}

/// An asynchronous event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HcaEvent {
    /// About an object of this guest. What kind of object it is follows from `kind`.
    Object {
        /// The object, as the tenant called it.
        cookie: Cookie,
        /// What happened.
        kind: AsyncKind,
        /// The HCA's own code of an error, for logs; else 0.
        syndrome: u8,
    },
    /// About a port.
    Port {
        /// The port, from 1.
        port: u8,
        /// What happened.
        change: PortChange,
    },
    /// The HCA has lost events, nobody knows how many and of what.
    Lost,
}

/// Who is told of events of one guest. Called on the HCA's event threads: it returns soon and calls no
/// [`super::Hca`].
pub trait EventSink: Send + Sync + std::fmt::Debug {
    /// A CQ that was armed has fired.
    fn completion(&self, cq: Cookie);

    /// Something else happened.
    fn raise(&self, event: HcaEvent);
}
