//! What the threads of the event queues do.

use std::sync::Arc;
use std::time::Duration;

use mlx4_wire::eqe::{CommandEvent, CqEvent, Eqe, EventType};

use crate::cmd::Commands;
use crate::eq::EventHandler;
use crate::event::{Event, EventSink};
use crate::health::Health;
use crate::port::Ports;
use crate::registry::Registry;
use crate::shared::CompletionSink;

/// Completes commands.
pub(crate) struct CommandHandler(pub(crate) Arc<Commands>);

impl EventHandler for CommandHandler {
    fn event(&mut self, eqe: &Eqe) {
        match eqe.event_type() {
            EventType::COMMAND => self.0.completed(&CommandEvent::from(eqe.data)),
            other => log::warn!("{other} event in the queue of commands"),
        }
    }
}

/// Hands completion events to whom they are for.
pub(crate) struct CompletionHandler(pub(crate) Arc<Registry<CompletionSink>>);

impl EventHandler for CompletionHandler {
    fn event(&mut self, eqe: &Eqe) {
        if eqe.event_type() != EventType::COMPLETION {
            log::warn!("{} event in a queue of completions", eqe.event_type());
            return;
        }
        let cqn = CqEvent::from(eqe.data).cqn.number();
        match self.0.get(cqn) {
            Some(sink) => (sink.notify)(),
            // Its last event may come after it was destroyed.
            None => log::debug!("completion event of CQ {cqn:#x}, which isn't there"),
        }
    }
}

/// Hands asynchronous events on, and watches for a failure of the device.
pub(crate) struct AsyncHandler {
    pub(crate) sink: Arc<dyn EventSink>,
    pub(crate) ports: Arc<Ports>,
    pub(crate) commands: Arc<Commands>,
    pub(crate) health: Health,
    pub(crate) interval: Duration,
}

impl EventHandler for AsyncHandler {
    fn event(&mut self, eqe: &Eqe) {
        let events = Event::read(eqe);
        if events.is_empty() {
            log::warn!("unexpected event {} with subtype {:#x}", eqe.event_type(), eqe.subtype);
        }
        for event in events {
            match event {
                Event::Port { port, event } if !self.ports.changed(port, event) => {
                    log::warn!("{event:?} of port {port}, which isn't there");
                }
                event => self.sink.event(&event),
            }
        }
    }

    fn idle(&mut self) {
        if self.commands.is_dead() {
            return;
        }
        if let Some(wrong) = self.health.check() {
            log::error!("{wrong}");
            self.commands.kill();
            self.sink.event(&Event::Fatal);
        }
    }

    fn interval(&self) -> Option<Duration> {
        Some(self.interval)
    }
}
