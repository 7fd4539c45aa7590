//! SMPs under way: transaction ids, a few at a time for each node, timeouts and retries.
//!
//! All go by directed route: path 0 is the switch that the manager sits in, path n the node behind its
//! port n. Does not: know what the answers mean.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use mlx4_wire::mad::LID_PERMISSIVE;
use mlx4_wire::mad::header::{MadHeader, Method, MgmtClass};
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::{U16, U32, U64};
use zerocopy::FromZeros;

/// SMPs under way to one node at once; VL15 has no flow control and nodes few buffers.
const WINDOW: usize = 4;

/// What is asked of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    /// Get or Set.
    pub(super) method: Method,
    /// Attribute id.
    pub(super) attribute: SmpAttribute,
    /// Attribute modifier.
    pub(super) modifier: u32,
    /// The attribute for a Set; zeros for a Get.
    pub(super) data: [u8; 64],
}

impl Question {
    /// Reads an attribute.
    pub(super) const fn get(attribute: SmpAttribute, modifier: u32) -> Self {
        Self { method: Method::GET, attribute, modifier, data: [0; 64] }
    }

    /// Writes an attribute.
    pub(super) const fn set(attribute: SmpAttribute, modifier: u32, data: [u8; 64]) -> Self {
        Self { method: Method::SET, attribute, modifier, data }
    }
}

struct Request<T> {
    path: u8,
    question: Question,
    tag: T,
    tries_left: u32,
    deadline: Duration,
}

/// How often an SMP may be sent at most.
const MAX_TRIES: u32 = 100;
/// Nodes that were given up are asked up to this many times more often: they may just be slow.
const MAX_PATIENCE: u32 = 4;

/// All SMPs of the manager that wait for an answer, or to be sent. `T` says what the answer is for.
pub(super) struct Requests<T> {
    timeout: Duration,
    tries: u32,
    counter: u64,
    hasher: RandomState,
    under_way: HashMap<u64, Request<T>>,
    waiting: Vec<VecDeque<(Question, T)>>,
    /// How many times more often than usual SMPs are sent, by path.
    patience: HashMap<u8, u32>,
}

impl<T> Requests<T> {
    /// Each SMP is sent up to `tries` times, `timeout` apart.
    pub(super) fn new(timeout: Duration, tries: u32) -> Self {
        Self {
            timeout,
            tries: tries.clamp(1, MAX_TRIES),
            counter: 0,
            hasher: RandomState::new(),
            under_way: HashMap::new(),
            waiting: Vec::new(),
            patience: HashMap::new(),
        }
    }

    /// The node at `path` was given up: next time it is given more time.
    pub(super) fn be_patient(&mut self, path: u8) {
        let patience = self.patience.entry(path).or_insert(1);
        *patience = (2 * *patience).min(MAX_PATIENCE);
    }

    /// The node at `path` answers well.
    pub(super) fn be_impatient(&mut self, path: u8) {
        self.patience.remove(&path);
    }

    /// Queues a question for the node at `path`.
    pub(super) fn ask(&mut self, path: u8, question: Question, tag: T) {
        let at = usize::from(path);
        if self.waiting.len() <= at {
            self.waiting.resize_with(at + 1, VecDeque::new);
        }
        self.waiting[at].push_back((question, tag));
    }

    /// Sends what may be sent now.
    pub(super) fn flush(&mut self, now: Duration, mut send: impl FnMut(Smp)) {
        for path in 0..=u8::MAX {
            let Some(queue) = self.waiting.get_mut(usize::from(path)) else { break };
            if queue.is_empty() {
                continue;
            }
            let busy = self.under_way.values().filter(|request| request.path == path).count();
            let n = WINDOW.saturating_sub(busy).min(queue.len());
            for (question, tag) in queue.drain(..n) {
                let deadline = now + self.timeout;
                self.counter += 1;
                let id = self.hasher.hash_one(self.counter);
                let tries = self.tries * self.patience.get(&path).unwrap_or(&1);
                let request = Request { path, question, tag, tries_left: tries - 1, deadline };
                send(smp(id, &request));
                self.under_way.insert(id, request);
            }
        }
    }

    /// Takes in a response. What it was for, and the path that was asked; `None` if nobody waits for it.
    pub(super) fn answered(&mut self, smp: &Smp) -> Option<(u8, T)> {
        let id = smp.header.transaction_id.get();
        let question = &self.under_way.get(&id)?.question;
        let matches = smp.header.mgmt_class == MgmtClass::SUBN_DIRECTED_ROUTE
            && smp.header.method == Method::GET_RESP
            && smp.attribute_id() == question.attribute
            && smp.header.attribute_modifier.get() == question.modifier;
        if !matches {
            return None;
        }
        self.under_way.remove(&id).map(|request| (request.path, request.tag))
    }

    /// Sends again what wasn't answered in time; returns the tags of those that were sent often enough.
    pub(super) fn expire(&mut self, now: Duration, mut send: impl FnMut(Smp)) -> Vec<T> {
        let mut lost = Vec::new();
        for (id, request) in &mut self.under_way {
            if request.deadline > now {
                continue;
            }
            if request.tries_left == 0 {
                lost.push(*id);
                continue;
            }
            request.tries_left -= 1;
            request.deadline = now + self.timeout;
            send(smp(*id, request));
        }
        lost.iter().filter_map(|id| self.under_way.remove(id)).map(|request| request.tag).collect()
    }

    /// Forgets all questions to the node at `path`; answers that still come are dropped.
    pub(super) fn forget(&mut self, path: u8) {
        self.under_way.retain(|_, request| request.path != path);
        if let Some(queue) = self.waiting.get_mut(usize::from(path)) {
            queue.clear();
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.under_way.values().map(|request| request.deadline).min()
    }
}

fn smp<T>(id: u64, request: &Request<T>) -> Smp {
    let mut smp = Smp::new_zeroed();
    smp.header.base_version = MadHeader::BASE_VERSION;
    smp.header.mgmt_class = MgmtClass::SUBN_DIRECTED_ROUTE;
    smp.header.class_version = Smp::CLASS_VERSION;
    smp.header.method = request.question.method;
    smp.header.transaction_id = U64::new(id);
    smp.header.attribute_id = U16::new(request.question.attribute.0);
    smp.header.attribute_modifier = U32::new(request.question.modifier);
    smp.dr_slid = U16::new(LID_PERMISSIVE);
    smp.dr_dlid = U16::new(LID_PERMISSIVE);
    smp.data = request.question.data;
    if request.path != 0 {
        smp.set_hop_count(1);
        smp.initial_path[1] = request.path;
    }
    smp
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(200);

    fn node_info() -> Question {
        Question::get(SmpAttribute::NODE_INFO, 0)
    }

    fn sent(requests: &mut Requests<u32>, now: Duration) -> Vec<Smp> {
        let mut out = Vec::new();
        requests.flush(now, |smp| out.push(smp));
        out
    }

    #[test]
    fn window_limits_each_node_by_itself() {
        let mut requests = Requests::new(TIMEOUT, 3);
        for tag in 0..6 {
            requests.ask(1, node_info(), tag);
        }
        requests.ask(2, node_info(), 9);
        let out = sent(&mut requests, Duration::ZERO);
        assert_eq!(out.len(), WINDOW + 1);
        let mut response = out[0];
        response.header.method = Method::GET_RESP;
        assert_eq!(requests.answered(&response), Some((1, 0)));
        assert_eq!(requests.answered(&response), None);
        assert_eq!(sent(&mut requests, Duration::ZERO).len(), 1);
    }

    #[test]
    fn response_to_another_question_is_not_taken() {
        let mut requests = Requests::new(TIMEOUT, 3);
        requests.ask(1, node_info(), 0);
        let mut response = sent(&mut requests, Duration::ZERO)[0];
        assert_eq!(requests.answered(&response), None);
        response.header.method = Method::GET_RESP;
        response.header.attribute_modifier.set(1);
        assert_eq!(requests.answered(&response), None);
        response.header.attribute_modifier.set(0);
        assert_eq!(requests.answered(&response), Some((1, 0)));
    }

    #[test]
    fn silence_is_retried_then_given_up() {
        let mut requests = Requests::new(TIMEOUT, 3);
        requests.ask(1, node_info(), 7);
        assert_eq!(sent(&mut requests, Duration::ZERO).len(), 1);
        let mut resent = 0;
        assert!(requests.expire(TIMEOUT / 2, |_| resent += 1).is_empty());
        assert!(requests.expire(TIMEOUT, |_| resent += 1).is_empty());
        assert!(requests.expire(2 * TIMEOUT, |_| resent += 1).is_empty());
        assert_eq!(resent, 2);
        assert_eq!(requests.expire(3 * TIMEOUT, |_| resent += 1), [7]);
        assert_eq!(requests.deadline(), None);
        requests.be_patient(1);
        requests.ask(1, node_info(), 8);
        assert_eq!(sent(&mut requests, Duration::ZERO).len(), 1);
        let lost = (1..=6).map(|n| requests.expire(n * TIMEOUT, |_| ()).len()).collect::<Vec<_>>();
        assert_eq!(lost, [0, 0, 0, 0, 0, 1]);
    }
}
