//! The virtqueues. Their number is the same for every device, so that a VMM can be told it once.

/// Number of virtqueues that a device has, whether or not it uses them all.
pub const QUEUES: u16 = 16;

/// Requests and their replies ([`crate::request`]).
pub const CONTROL: u16 = 0;

/// Asynchronous events ([`crate::event::AsyncEvent`]).
pub const EVENT: u16 = 1;

/// MADs that arrive ([`crate::mad::MadReceived`]).
pub const MAD_RECEIVE: u16 = 2;

/// MADs to send ([`crate::mad::MadSend`]).
pub const MAD_SEND: u16 = 3;

/// The first doorbell-kick queue. They carry no buffers: the notification is all.
pub const FIRST_KICK: u16 = 4;

/// Most doorbell-kick queues; a device's number is in its configuration space.
pub const MAX_KICKS: u16 = 4;

/// The first completion-vector queue ([`crate::event::CompletionEvent`]).
pub const FIRST_VECTOR: u16 = FIRST_KICK + MAX_KICKS;

/// Most completion vectors; a device's number is in its configuration space.
pub const MAX_VECTORS: u16 = QUEUES - FIRST_VECTOR;

/// What a virtqueue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queue {
    /// [`CONTROL`].
    Control,
    /// [`EVENT`].
    Event,
    /// [`MAD_RECEIVE`].
    MadReceive,
    /// [`MAD_SEND`].
    MadSend,
    /// A doorbell-kick queue, counted from 0.
    Kick(u16),
    /// The queue of a completion vector, counted from 0.
    Vector(u16),
}

impl Queue {
    /// The queue of an index; `None` beyond the last.
    pub const fn at(index: u16) -> Option<Self> {
        match index {
            CONTROL => Some(Self::Control),
            EVENT => Some(Self::Event),
            MAD_RECEIVE => Some(Self::MadReceive),
            MAD_SEND => Some(Self::MadSend),
            FIRST_KICK..FIRST_VECTOR => Some(Self::Kick(index - FIRST_KICK)),
            FIRST_VECTOR..QUEUES => Some(Self::Vector(index - FIRST_VECTOR)),
            _ => None,
        }
    }

    /// The index; `None` for a kick queue or a vector that no device has.
    pub const fn index(self) -> Option<u16> {
        match self {
            Self::Control => Some(CONTROL),
            Self::Event => Some(EVENT),
            Self::MadReceive => Some(MAD_RECEIVE),
            Self::MadSend => Some(MAD_SEND),
            Self::Kick(kick) if kick < MAX_KICKS => Some(FIRST_KICK + kick),
            Self::Vector(vector) if vector < MAX_VECTORS => Some(FIRST_VECTOR + vector),
            Self::Kick(_) | Self::Vector(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_of_every_queue_leads_back_to_it() {
        for index in 0..QUEUES {
            assert_eq!(Queue::at(index).and_then(Queue::index), Some(index));
        }
        assert_eq!(Queue::at(QUEUES), None);
        assert_eq!(Queue::Kick(MAX_KICKS).index(), None);
        assert_eq!(Queue::Vector(MAX_VECTORS).index(), None);
        assert_eq!(Queue::Vector(0).index(), Some(8));
    }
}
