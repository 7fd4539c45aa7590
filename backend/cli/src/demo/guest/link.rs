//! A connection to the other guest: a queue pair with its memory, and the count of what was posted on it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use std::{hint, thread};

use anyhow::{Context as _, Result, bail, ensure};
use paraverbs_verbs::{
    Access, Ah, AhAttr, CompChannel, Context, Cq, GRH_BYTES, Mr, Mtu, Pd, Qp, QpAttr, QpCap, QpInit, QpState,
    QpType, RecvWr, RtrAttr, RtsAttr, SendData, SendFlags, SendOp, SendWr, Sge, Srq, SrqInit, UdDest, Wc,
    WcStatus,
};

use crate::demo::protocol::{Endpoint, LinkPlan, RemoteMemory, Service, Tally, Waiting};

/// The port of the device.
pub(super) const PORT: u8 = 1;
/// Send requests that may be outstanding.
pub(super) const DEPTH: u32 = 128;
/// Inline data that is asked for, in bytes.
const INLINE: u32 = 128;
/// Completions taken at once.
const BATCH: usize = 32;
/// Rounds of polling between two looks at the clock, and turns for others.
const SPINS: u32 = 16;
/// No completion takes that long, though the other guest may have 256 MiB to write first, in a debug build on a
/// busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// The key of datagrams.
const QKEY: u32 = 0x0def_ab1e;
/// Most bytes of a datagram: every port of a ConnectX-3 has this MTU, or the check fails.
const DATAGRAM: u32 = 4096;
/// Bytes of a datagram's receive before the message.
const GRH: u32 = {
    assert!(GRH_BYTES == 40);
    40
};
/// How far the address of a receive request is from the next: sizes are multiples of a page.
const PAGE: usize = 4096;

/// Data of a send request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data<'a> {
    /// The outbox from an offset on, so many bytes.
    Outbox(usize, u32),
    /// The window from an offset on, so many bytes: for reads.
    Window(usize, u32),
    /// These bytes, inline.
    Inline(&'a [u8]),
}

/// One end of the connection.
pub(super) struct Link {
    // In the order in which they end.
    qp: Qp,
    srq: Option<Srq>,
    cq: Cq,
    channel: CompChannel,
    pub(super) outbox: Mr,
    pub(super) window: Mr,
    inbox: Mr,
    plan: LinkPlan,
    far: Option<Endpoint>,
    /// The way of datagrams to the other side.
    ah: Option<Ah>,
    /// Number of the next send request.
    next: u64,
    /// Send requests before this one are done.
    done: u64,
    received: VecDeque<Wc>,
    tally: Tally,
    pub(super) waiting: Waiting,
}

impl Link {
    /// A link that isn't connected, with all its receives posted.
    pub(super) fn new(context: &Context, pd: &Pd, plan: LinkPlan) -> Result<Self> {
        let channel = context.create_comp_channel(0).context("create the completion channel")?;
        let cq = context.create_cq(DEPTH + plan.receives, Some(&channel)).context("create the CQ")?;
        let cap = QpCap {
            max_send_wr: DEPTH,
            max_recv_wr: plan.receives,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: INLINE,
        };
        let receives = SrqInit { max_wr: plan.receives, max_sge: 1 };
        let srq = (plan.service == Service::Srq).then(|| pd.create_srq(&receives));
        let srq = srq.transpose().context("create the shared receive queue")?;
        let qp_type = match plan.service {
            Service::Rc | Service::Srq => QpType::Rc,
            Service::Uc => QpType::Uc,
            Service::Ud => QpType::Ud,
        };
        let init = QpInit { qp_type, srq: srq.as_ref(), cap, ..QpInit::new(&cq) };
        let qp = pd.create_qp(&init).context("create the queue pair")?;
        let memory = |bytes: usize, access| {
            pd.alloc_mr(bytes, access).with_context(|| format!("register {bytes} bytes"))
        };
        let slots = if plan.one_slot { 1 } else { plan.receives as usize };
        let inbox = (slots * stride(&plan)).max(PAGE);
        let link = Self {
            qp,
            srq,
            cq,
            channel,
            outbox: memory(plan.outbox, Access::REMOTE_READ)?,
            window: memory(plan.window, Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC)?,
            inbox: memory(inbox, Access::LOCAL_WRITE)?,
            plan,
            far: None,
            ah: None,
            next: 0,
            done: 0,
            received: VecDeque::with_capacity(plan.receives as usize),
            tally: Tally::default(),
            waiting: Waiting::Sleep,
        };
        link.to_init().context("RESET to INIT")?;
        Ok(link)
    }

    fn to_init(&self) -> paraverbs_verbs::Result<()> {
        match self.plan.service {
            Service::Ud => self.qp.to_datagrams(PORT, QKEY),
            Service::Uc => self.qp.to_init(PORT, Access::REMOTE_WRITE),
            Service::Rc | Service::Srq => {
                let access = Access::REMOTE_READ | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
                self.qp.to_init(PORT, access)
            }
        }
    }

    /// What the other side needs to know.
    pub(super) fn endpoint(&self, lid: u16, psn: u32) -> Endpoint {
        let remote = |mr: &Mr| RemoteMemory { addr: mr.addr(), rkey: mr.rkey() };
        Endpoint { lid, qpn: self.qp.qpn(), psn, outbox: remote(&self.outbox), window: remote(&self.window) }
    }

    /// Connects to the other side's link, and answers the state of the queue pair.
    pub(super) fn connect(&mut self, pd: &Pd, far: Endpoint, own_psn: u32, mtu: Mtu) -> Result<QpState> {
        for slot in 0..self.plan.receives {
            self.post_receive(slot.into())?;
        }
        let path = AhAttr::to_lid(far.lid, PORT);
        match self.plan.service {
            Service::Ud => self.ah = Some(pd.create_ah(&path).context("create the address handle")?),
            Service::Uc => {
                let rtr = QpAttr {
                    ah_attr: Some(path),
                    dest_qp_num: Some(far.qpn),
                    rq_psn: Some(far.psn),
                    path_mtu: Some(mtu),
                    ..QpAttr::state(QpState::Rtr)
                };
                self.qp.modify(&rtr).context("INIT to RTR")?;
                let rts = QpAttr { sq_psn: Some(own_psn), ..QpAttr::state(QpState::Rts) };
                self.qp.modify(&rts).context("RTR to RTS")?;
            }
            Service::Rc | Service::Srq => {
                let rtr = RtrAttr::new(path, far.qpn, far.psn, mtu);
                self.qp.to_rtr(RtrAttr { max_dest_rd_atomic: 8, ..rtr })?;
                self.qp.to_rts(RtsAttr { max_rd_atomic: 8, ..RtsAttr::new(own_psn) })?;
            }
        }
        self.far = Some(far);
        self.state()
    }

    /// The state of the queue pair, as the HCA has it.
    pub(super) fn state(&self) -> Result<QpState> {
        let attr = self.qp.query().context("query the queue pair")?;
        attr.qp_state.context("a queue pair without a state")
    }

    /// Number of the queue pair.
    pub(super) fn qpn(&self) -> u32 {
        self.qp.qpn()
    }

    /// The other side.
    pub(super) fn far(&self) -> Result<Endpoint> {
        self.far.context("the link is not connected")
    }

    /// Most bytes of inline data.
    pub(super) fn max_inline(&self) -> usize {
        self.qp.cap().max_inline_data as usize
    }

    /// Most bytes of a message.
    pub(super) fn max_message(&self) -> u32 {
        if self.plan.service == Service::Ud { DATAGRAM } else { u32::MAX }
    }

    /// Bytes of a receive before the message.
    fn head(&self) -> u32 {
        if self.plan.service == Service::Ud { GRH } else { 0 }
    }

    /// Puts bytes into the outbox.
    pub(super) fn load(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.outbox.write(at, bytes).context("fill the outbox")
    }

    /// Posts a send request, and answers its number.
    pub(super) fn post(&mut self, op: SendOp, data: Data<'_>, flags: SendFlags) -> Result<u64> {
        let sge;
        let pieces;
        let (data, bytes) = match data {
            Data::Outbox(at, bytes) => {
                sge = [self.outbox.sge(at, bytes)];
                (SendData::Sges(&sge), u64::from(bytes))
            }
            Data::Window(at, bytes) => {
                sge = [self.window.sge(at, bytes)];
                (SendData::Sges(&sge), u64::from(bytes))
            }
            Data::Inline(bytes) => {
                pieces = [bytes];
                (SendData::Inline(&pieces), bytes.len() as u64)
            }
        };
        let wr_id = self.next;
        let wr = SendWr { wr_id, op, data, flags };
        if let (Some(ah), Some(far)) = (&self.ah, self.far) {
            let to = UdDest { ah, remote_qpn: far.qpn, remote_qkey: QKEY };
            self.qp.post_send_ud(&wr, &to).context("post a datagram")?;
            self.tally.datagrams += 1;
        } else {
            self.qp.post_send(&wr).context("post a send request")?;
            self.tally.sends += 1;
            let atomic = matches!(op, SendOp::FetchAdd { .. } | SendOp::CompareSwap { .. });
            self.tally.payload += if atomic { 0 } else { bytes };
        }
        self.next += 1;
        Ok(wr_id)
    }

    /// Takes back the last request from the count of payload: it had a wrong rkey.
    pub(super) fn had_wrong_key(&mut self, bytes: u64) {
        self.tally.payload -= bytes;
        self.tally.wrong_keys += 1;
    }

    /// Posts the receive request of a slot.
    pub(super) fn post_receive(&mut self, slot: u64) -> Result<()> {
        let bytes = self.plan.slot + self.head();
        let sges: [Sge; 1] = [self.inbox.sge(self.slot_offset(slot)?, bytes)];
        let wr = RecvWr { wr_id: slot, sges: &sges };
        match &self.srq {
            Some(srq) => srq.post_recv(&wr),
            None => self.qp.post_recv(&wr),
        }
        .context("post a receive request")?;
        self.tally.receives += 1;
        Ok(())
    }

    fn slot_offset(&self, slot: u64) -> Result<usize> {
        let slot = usize::try_from(slot)?;
        Ok(if self.plan.one_slot { 0 } else { slot * stride(&self.plan) })
    }

    /// The start of what a receive request got.
    pub(super) fn message(&self, wc: &Wc, to: &mut [u8]) -> Result<()> {
        self.inbox.read(self.slot_offset(wc.wr_id)? + self.head() as usize, to).context("read the inbox")
    }

    /// Send requests that are not known to be done.
    pub(super) fn outstanding(&self) -> u64 {
        self.next - self.done
    }

    /// Waits until a send request, which was signalled, is done.
    pub(super) fn wait_sent(&mut self, number: u64) -> Result<()> {
        self.wait_until(|link| link.done > number, "a send request to complete")
    }

    /// Waits until at most so many send requests are outstanding.
    pub(super) fn wait_room(&mut self, outstanding: u64) -> Result<()> {
        self.wait_until(|link| link.outstanding() <= outstanding, "send requests to complete")
    }

    /// The next message that came, if one has.
    pub(super) fn take_received(&mut self) -> Option<Wc> {
        self.received.pop_front()
    }

    /// Waits for the next message. Its receive request is to be posted again.
    pub(super) fn wait_received(&mut self) -> Result<Wc> {
        self.wait_until(|link| !link.received.is_empty(), "a message")?;
        self.take_received().context("no message")
    }

    /// Waits until completions have made something true.
    fn wait_until(&mut self, ready: impl Fn(&Self) -> bool, what: &str) -> Result<()> {
        let mut deadline = None;
        let mut spins = 0;
        while !ready(self) {
            if self.take()? > 0 {
                continue;
            }
            spins += 1;
            if self.waiting == Waiting::Poll && spins % SPINS != 0 {
                hint::spin_loop();
                continue;
            }
            // The core may be wanted by whoever does the work.
            thread::yield_now();
            let end = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("waited {} s in vain for {what}", PATIENCE.as_secs());
            }
            if self.waiting == Waiting::Sleep {
                self.cq.req_notify(false).context("arm the CQ")?;
                if self.take()? == 0 {
                    let _event = self.channel.wait(left).context("wait for a completion event")?;
                }
            }
        }
        Ok(())
    }

    /// Takes completions, all of which must be good, and says how many there were.
    pub(super) fn take(&mut self) -> Result<usize> {
        let mut wcs = [Wc::default(); BATCH];
        let count = self.cq.poll(&mut wcs).context("poll the CQ")?;
        for wc in &wcs[..count] {
            if wc.status != WcStatus::Success {
                let what = if wc.opcode.is_receive() { "receive" } else { "send" };
                bail!("{what} request {} ended with {:?} (vendor {:#x})", wc.wr_id, wc.status, wc.vendor_err);
            }
            self.account(*wc);
        }
        Ok(count)
    }

    fn account(&mut self, mut wc: Wc) {
        if wc.opcode.is_receive() {
            if self.plan.service == Service::Ud {
                self.tally.received_datagrams += 1;
                wc.byte_len = wc.byte_len.saturating_sub(GRH);
            } else {
                self.tally.received += 1;
            }
            self.received.push_back(wc);
        } else {
            self.done = wc.wr_id + 1;
        }
    }

    /// Waits for the next completion, however it ended.
    pub(super) fn wait_any(&mut self) -> Result<Wc> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.cq.req_notify(false).context("arm the CQ")?;
            let mut wcs = [Wc::default()];
            if self.cq.poll(&mut wcs).context("poll the CQ")? > 0 {
                let [wc] = wcs;
                match wc.status {
                    WcStatus::Success => self.account(wc),
                    WcStatus::WrFlushErr => self.tally.flushed += 1,
                    _ => self.done = wc.wr_id + 1,
                }
                return Ok(wc);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "waited {} s in vain for a completion", PATIENCE.as_secs());
            let _event = self.channel.wait(left).context("wait for a completion event")?;
        }
    }

    /// Takes the queue pair to ERR, takes all that is flushed, ends everything, and answers what was posted.
    pub(super) fn close(mut self) -> Result<Tally> {
        self.qp.modify(&QpAttr::state(QpState::Err)).context("modify the queue pair to ERR")?;
        if self.srq.is_some() {
            // What is left there is nobody's.
            self.tally.receives = self.tally.received;
        }
        while self.tally.received + self.tally.received_datagrams + self.tally.flushed < self.tally.receives {
            self.wait_any()?;
        }
        self.qp.destroy().context("destroy the queue pair")?;
        if let Some(srq) = self.srq {
            srq.destroy().context("destroy the shared receive queue")?;
        }
        self.cq.destroy().context("destroy the CQ")?;
        for mr in [self.outbox, self.window, self.inbox] {
            mr.dereg().context("end a memory region")?;
        }
        Ok(self.tally)
    }
}

fn stride(plan: &LinkPlan) -> usize {
    let head = if plan.service == Service::Ud { GRH } else { 0 };
    ((plan.slot + head) as usize).next_multiple_of(PAGE)
}
