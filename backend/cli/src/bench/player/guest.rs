//! A guest: a queue pair of the guest library, at a device of the daemon's.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use paraverbs_verbs::{
    Access, AhAttr, CompChannel, Context, Cq, Mr, Mtu, Pd, Qp, QpCap, QpInit, RecvWr, RtrAttr, RtsAttr,
    SendData, SendFlags, SendOp, SendWr, Wc, WcStatus,
};

use super::end::{End, Polled, RECEIVES};
use crate::bench::plan::{DEPTH, MOST_BYTES, Operation};
use crate::bench::protocol::Endpoint;

const PORT: u8 = 1;
/// Completions taken at once.
const BATCH: usize = 32;
/// How long an event may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// The guest.
pub(super) struct Guest {
    // In the order in which they end.
    qp: Qp,
    cq: Cq,
    channel: CompChannel,
    memory: Mr,
    pd: Pd,
    _context: Context,
    lid: u16,
    mtu: Mtu,
    far: Option<Endpoint>,
    next: u64,
    wcs: [Wc; BATCH],
}

impl Guest {
    /// Opens the device and makes the queue pair.
    pub(super) fn open(socket: &Path) -> Result<Self> {
        let context = Context::connect(socket)?;
        let port = context.query_port(PORT).context("query the port")?;
        let pd = context.alloc_pd().context("allocate a protection domain")?;
        let channel = context.create_comp_channel(0).context("create the completion channel")?;
        let cq = context.create_cq(DEPTH + RECEIVES, Some(&channel)).context("create the CQ")?;
        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
        let memory = pd.alloc_mr(2 * MOST_BYTES as usize, access).context("register memory")?;
        let cap = QpCap {
            max_send_wr: DEPTH,
            max_recv_wr: RECEIVES,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 0,
        };
        let qp = pd.create_qp(&QpInit { cap, ..QpInit::new(&cq) }).context("create the queue pair")?;
        qp.to_init(PORT, Access::REMOTE_READ | Access::REMOTE_WRITE)?;
        // Every page is there before time is taken.
        memory.fill(0, memory.len(), 1)?;
        Ok(Self {
            qp,
            cq,
            channel,
            memory,
            pd,
            _context: context,
            lid: port.lid,
            mtu: port.active_mtu,
            far: None,
            next: 0,
            wcs: [Wc::default(); BATCH],
        })
    }

    /// What the other side needs to know.
    pub(super) fn endpoint(&self) -> Endpoint {
        let addr = self.memory.addr() + u64::from(MOST_BYTES);
        Endpoint { lid: self.lid, qpn: self.qp.qpn(), addr, rkey: self.memory.rkey() }
    }

    /// Connects to the other side.
    pub(super) fn connect(&mut self, far: Endpoint) -> Result<()> {
        for _ in 0..RECEIVES {
            self.post_receive()?;
        }
        let rtr = RtrAttr::new(AhAttr::to_lid(far.lid, PORT), far.qpn, 0, self.mtu);
        self.qp.to_rtr(RtrAttr { max_dest_rd_atomic: 8, min_rnr_timer: 1, ..rtr })?;
        self.qp.to_rts(RtsAttr { max_rd_atomic: 8, ..RtsAttr::new(0) })?;
        self.far = Some(far);
        Ok(())
    }

    /// Writes messages one by one, and sleeps until each is done. Nanoseconds for each.
    pub(super) fn sleep(&mut self, messages: u32) -> Result<Vec<f64>> {
        (0..messages).map(|_| self.sleep_once()).collect()
    }

    fn sleep_once(&mut self) -> Result<f64> {
        self.cq.req_notify(false)?;
        let start = std::time::Instant::now();
        self.post(Operation::Write, 8, true)?;
        let event = self.channel.wait(PATIENCE).context("wait for a completion event")?;
        ensure!(event.is_some(), "no completion event in {} s", PATIENCE.as_secs());
        let polled = self.poll()?;
        ensure!(polled.sent == self.next, "an event without its completion");
        Ok(start.elapsed().as_secs_f64() * 1e9)
    }

    /// Ends everything in order.
    pub(super) fn close(self) -> Result<()> {
        let Self { qp, cq, channel, memory, pd, .. } = self;
        qp.destroy()?;
        cq.destroy()?;
        drop(channel);
        memory.dereg()?;
        Ok(pd.dealloc()?)
    }
}

impl End for Guest {
    fn post(&mut self, operation: Operation, bytes: u32, signaled: bool) -> Result<()> {
        let far = self.far.context("the queue pair is not connected")?;
        let (remote_addr, rkey) = (far.addr, far.rkey);
        let op = match operation {
            Operation::Write => SendOp::Write { remote_addr, rkey },
            Operation::Read => SendOp::Read { remote_addr, rkey },
            Operation::Send => SendOp::Send,
        };
        let sges = [self.memory.sge(0, bytes)];
        let flags = SendFlags { signaled, ..SendFlags::default() };
        self.qp.post_send(&SendWr { wr_id: self.next, op, data: SendData::Sges(&sges), flags })?;
        self.next += 1;
        Ok(())
    }

    fn post_receive(&mut self) -> Result<()> {
        let sges = [self.memory.sge(MOST_BYTES as usize, MOST_BYTES)];
        Ok(self.qp.post_recv(&RecvWr { wr_id: 0, sges: &sges })?)
    }

    fn poll(&mut self) -> Result<Polled> {
        let mut polled = Polled::default();
        let count = self.cq.poll(&mut self.wcs)?;
        for wc in &self.wcs[..count] {
            ensure!(wc.status == WcStatus::Success, "a request has ended with {}", wc.status);
            if wc.opcode.is_receive() {
                polled.received += 1;
            } else {
                polled.sent = wc.wr_id + 1;
            }
        }
        Ok(polled)
    }

    fn posted(&self) -> u64 {
        self.next
    }
}
