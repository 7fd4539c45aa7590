//! Our guest as a peer: verbs on a socket of the daemon, in this process.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use integration::peer::{
    Atomic, Endpoint, GRH_BYTES, Message, Notify, Peer, QKEY, Route, Service, Status, Stretch, Terms, Told,
    Way, compare, pattern,
};
use paraverbs_verbs::{
    Access, Ah, AhAttr, CompChannel, Context, Cq, EventType, Gid, Grh, Mr, Mtu, Mw, MwBind, MwType, Pd,
    PortState, Qp, QpAttr, QpCap, QpInit, QpState, QpType, RecvWr, RtrAttr, RtsAttr, SendData, SendFlags,
    SendOp, SendWr, Srq, SrqInit, UdDest, Wc, WcStatus, XrcRecvQp, Xrcd, inc_rkey,
};

const PORT: u8 = 1;
/// Requests in each queue.
const DEPTH: u32 = 64;
/// What goes inline, as the stock peer has it.
const MAX_INLINE: u32 = 64;
/// Reads under way in each direction, as the stock peer has it.
const READS: u8 = 4;
/// Wraps soon, after another number of packets than the stock peer's.
const PSN: u32 = 0xff_ff80;
/// The other side runs on a translated processor.
const LIMIT: Duration = Duration::from_secs(60);

/// A completion queue, and the channel on which this sleeps until it has something.
#[derive(Debug)]
struct Completions {
    cq: Cq,
    channel: CompChannel,
}

impl Completions {
    fn new(context: &Context) -> Result<Self> {
        let channel = context.create_comp_channel(0)?;
        let cq = context.create_cq(DEPTH, Some(&channel))?;
        Ok(Self { cq, channel })
    }

    /// Waits for `count` completions, or for the first that isn't a success; `look` sees the others.
    fn wait(&self, count: usize, look: impl Fn(&Wc) -> Result<()>) -> Result<Status> {
        let deadline = Instant::now() + LIMIT;
        for index in 0..count {
            let wc = self.next(deadline).with_context(|| format!("completion {index} of {count}"))?;
            if wc.status != WcStatus::Success {
                return Ok(Status(u32::from(wc.status as u8)));
            }
            look(&wc)?;
        }
        Ok(Status::SUCCESS)
    }

    fn next(&self, deadline: Instant) -> Result<Wc> {
        let mut wc = [Wc::default()];
        loop {
            if self.cq.poll(&mut wc)? == 1 {
                return Ok(wc[0]);
            }
            self.cq.req_notify(false)?;
            if self.cq.poll(&mut wc)? == 1 {
                return Ok(wc[0]);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "there is none after {LIMIT:?}");
            self.channel.wait(left)?;
        }
    }
}

/// A queue pair of our guest, and its memory.
#[derive(Debug)]
pub(crate) struct GuestPeer {
    qp: Qp,
    /// Where receives are posted, if it has one.
    srq: Option<Srq>,
    /// Of XRC: the queue pair for the other end's requests, and its domain.
    target: Option<(XrcRecvQp, Xrcd)>,
    /// Of XRC: the other end's SRQ.
    remote_srqn: u32,
    window: Option<Mw>,
    mr: Mr,
    sent: Completions,
    received: Completions,
    lid: u16,
    service: Service,
    pd: Arc<Pd>,
    /// Of datagrams: the way to the other end, and its queue pair.
    destination: Option<(Ah, u32, u32)>,
}

/// A guest of the daemon whose port is ACTIVE.
#[derive(Debug)]
pub(crate) struct Guest {
    context: Context,
    pd: Arc<Pd>,
}

impl Guest {
    /// Opens the device at a socket, and waits until its port is ACTIVE.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let context = Context::connect(socket)?;
        let deadline = Instant::now() + LIMIT;
        while context.query_port(PORT)?.state != PortState::Active {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "port {PORT} is not ACTIVE after {LIMIT:?}");
            context.get_async_event(left)?;
        }
        let pd = Arc::new(context.alloc_pd()?);
        Ok(Self { context, pd })
    }

    /// A queue pair in INIT, with `bytes` bytes of memory.
    pub(crate) fn peer(&self, bytes: usize, service: Service) -> Result<GuestPeer> {
        let (sent, received) = (Completions::new(&self.context)?, Completions::new(&self.context)?);
        let holds = SrqInit { max_wr: DEPTH, max_sge: 1 };
        let (mut srq, mut target) = (None, None);
        match service {
            Service::RcShared => srq = Some(self.pd.create_srq(&holds)?),
            Service::Xrc => {
                let domain = self.context.open_xrcd()?;
                srq = Some(domain.create_srq(&self.pd, &received.cq, &holds)?);
                target = Some((domain.create_recv_qp()?, domain));
            }
            Service::Rc | Service::Uc | Service::Ud => {}
        }
        let init = QpInit {
            qp_type: match service {
                Service::Rc | Service::RcShared => QpType::Rc,
                Service::Xrc => QpType::XrcSend,
                Service::Uc => QpType::Uc,
                Service::Ud => QpType::Ud,
            },
            recv_cq: &received.cq,
            srq: srq.as_ref().filter(|_| service == Service::RcShared),
            cap: QpCap {
                max_send_wr: DEPTH,
                max_recv_wr: DEPTH,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: MAX_INLINE,
            },
            ..QpInit::new(&sent.cq)
        };
        let qp = self.pd.create_qp(&init)?;
        let unreliable = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        let access = unreliable | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
        match service {
            Service::Rc | Service::RcShared | Service::Xrc => qp.to_init(PORT, access)?,
            Service::Uc => qp.to_init(PORT, unreliable)?,
            Service::Ud => qp.to_datagrams(PORT, QKEY)?,
        }
        if let Some((target, _)) = &target {
            target.modify(&QpAttr {
                qp_access_flags: Some(access),
                pkey_index: Some(0),
                port_num: Some(PORT),
                ..QpAttr::state(QpState::Init)
            })?;
        }
        let mr = self.pd.alloc_mr(bytes, access | Access::MW_BIND)?;
        let (lid, pd) = (self.context.query_port(PORT)?.lid, Arc::clone(&self.pd));
        let (remote_srqn, destination) = (0, None);
        Ok(GuestPeer {
            qp,
            srq,
            target,
            remote_srqn,
            window: None,
            mr,
            sent,
            received,
            lid,
            service,
            pd,
            destination,
        })
    }

    /// The port's GID.
    pub(crate) fn gid(&self) -> Result<[u8; 16]> {
        Ok(self.context.query_gid(PORT, 0)?.0)
    }

    /// Lets go of the device.
    pub(crate) fn close(self) -> Result<()> {
        let pd = Arc::into_inner(self.pd).context("a queue pair is left")?;
        Ok(pd.dealloc()?)
    }

    /// Waits for the event of a queue pair that an intruder has come to.
    pub(crate) fn wait_for_access_error(&self, peer: &GuestPeer) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(event) = self.context.get_async_event(left)? else {
                bail!("there is no such event after {LIMIT:?}");
            };
            if event.event_type == EventType::QpAccessErr {
                let expected = paraverbs_verbs::EventElement::Qp(peer.qp.qpn());
                ensure!(event.element == expected, "{event:?} instead of {expected:?}");
                return Ok(());
            }
        }
    }
}

impl GuestPeer {
    /// Gives everything back; a refusal is an error.
    pub(crate) fn destroy(self) -> Result<()> {
        self.qp.destroy()?;
        if let Some(window) = self.window {
            window.dealloc()?;
        }
        if let Some(srq) = self.srq {
            srq.destroy()?;
        }
        if let Some((target, domain)) = self.target {
            target.destroy()?;
            domain.close()?;
        }
        self.sent.cq.destroy()?;
        self.received.cq.destroy()?;
        self.mr.dereg()?;
        Ok(())
    }

    /// What a receive has before its message.
    fn grh_bytes(&self) -> usize {
        if self.service == Service::Ud { GRH_BYTES } else { 0 }
    }

    /// Posts a request for each message, `op` of its place in the stretch, and waits for all.
    fn request(&self, at: Stretch, inline: bool, op: impl Fn(u64) -> SendOp) -> Result<Status> {
        self.begin(at, inline, op)?;
        self.sent.wait(at.count, |_| Ok(()))
    }

    /// Posts them, and doesn't wait.
    fn begin(&self, at: Stretch, inline: bool, op: impl Fn(u64) -> SendOp) -> Result<()> {
        let mut bytes = vec![0; if inline { at.length } else { 0 }];
        for index in 0..at.count {
            let start = index * at.length;
            let sge = [self.mr.sge(at.offset + start, u32::try_from(at.length)?)];
            let data = if inline {
                self.mr.read(at.offset + start, &mut bytes)?;
                SendData::Inline(&[&bytes])
            } else {
                SendData::Sges(&sge)
            };
            let wr = SendWr { wr_id: index as u64, op: op(start as u64), data, flags: SendFlags::SIGNALED };
            match &self.destination {
                None if self.service == Service::Xrc => self.qp.post_send_xrc(&wr, self.remote_srqn)?,
                None => self.qp.post_send(&wr)?,
                Some((ah, qpn, qkey)) => {
                    let to = UdDest { ah, remote_qpn: *qpn, remote_qkey: *qkey };
                    self.qp.post_send_ud(&wr, &to)?;
                }
            }
        }
        Ok(())
    }
}

fn mtu(bytes: u32) -> Result<Mtu> {
    match bytes {
        256 => Ok(Mtu::B256),
        512 => Ok(Mtu::B512),
        1024 => Ok(Mtu::B1024),
        2048 => Ok(Mtu::B2048),
        4096 => Ok(Mtu::B4096),
        other => bail!("there is no MTU of {other} bytes"),
    }
}

/// Whether messages of this length go inline.
fn fits_inline(at: Stretch) -> bool {
    at.length <= MAX_INLINE as usize
}

impl Peer for GuestPeer {
    fn endpoint(&self) -> Endpoint {
        Endpoint {
            lid: self.lid,
            qpn: self.target.as_ref().map_or(self.qp.qpn(), |(target, _)| target.qpn()),
            psn: PSN,
            address: self.mr.addr(),
            rkey: self.mr.rkey(),
            requester: self.qp.qpn(),
            srqn: self.srq.as_ref().filter(|_| self.service == Service::Xrc).map_or(0, Srq::srqn),
        }
    }

    fn connect(&mut self, to: &Endpoint, terms: &Terms) -> Result<()> {
        if self.service == Service::Ud {
            self.destination = Some((self.pd.create_ah(&AhAttr::to_lid(to.lid, PORT))?, to.qpn, QKEY));
            return Ok(());
        }
        let mtu = mtu(terms.mtu)?;
        let rtr = RtrAttr::new(AhAttr::to_lid(to.lid, PORT), to.qpn, to.psn, mtu);
        let mut rtr = QpAttr::from(RtrAttr { max_dest_rd_atomic: READS, ..rtr });
        let mut rts = QpAttr::from(RtsAttr {
            max_rd_atomic: READS,
            timeout: terms.timeout,
            retry_cnt: terms.retries,
            rnr_retry: terms.rnr_retries,
            ..RtsAttr::new(PSN)
        });
        if self.service == Service::Uc {
            rtr = QpAttr { max_dest_rd_atomic: None, min_rnr_timer: None, ..rtr };
            rts = QpAttr { sq_psn: rts.sq_psn, ..QpAttr::state(QpState::Rts) };
        }
        if let Some((target, _)) = &self.target {
            target.modify(&QpAttr { dest_qp_num: Some(to.requester), ..rtr })?;
            let (sq_psn, timeout) = (rts.sq_psn, rts.timeout);
            target.modify(&QpAttr { sq_psn, timeout, ..QpAttr::state(QpState::Rts) })?;
            self.remote_srqn = to.srqn;
            rtr = QpAttr { max_dest_rd_atomic: None, min_rnr_timer: None, ..rtr };
        }
        self.qp.modify(&rtr)?;
        Ok(self.qp.modify(&rts)?)
    }

    fn fill(&mut self, at: Stretch, seed: u32) -> Result<()> {
        Ok(self.mr.write(at.offset, &pattern(seed, at.bytes()))?)
    }

    fn verify(&mut self, at: Stretch, seed: u32) -> Result<()> {
        let mut found = vec![0; at.bytes()];
        self.mr.read(at.offset, &mut found)?;
        compare(&found, seed)
    }

    fn post_recv(&mut self, at: Stretch) -> Result<()> {
        let grh = self.grh_bytes();
        for index in 0..at.count {
            let sge = self.mr.sge(at.offset + index * at.length - grh, u32::try_from(at.length + grh)?);
            let (wr_id, sges) = (index as u64, &[sge][..]);
            match &self.srq {
                Some(srq) => srq.post_recv(&RecvWr { wr_id, sges })?,
                None => self.qp.post_recv(&RecvWr { wr_id, sges })?,
            }
        }
        Ok(())
    }

    fn received(&mut self, at: Stretch) -> Result<Status> {
        self.received.wait(at.count, |wc| {
            ensure!(
                wc.byte_len as usize == at.length + self.grh_bytes(),
                "a message of {} bytes",
                wc.byte_len
            );
            Ok(())
        })
    }

    fn send(&mut self, at: Stretch) -> Result<Status> {
        self.request(at, fits_inline(at), |_| SendOp::Send)
    }

    fn write(&mut self, at: Stretch, address: u64, rkey: u32) -> Result<Status> {
        self.request(at, fits_inline(at), |start| SendOp::Write { remote_addr: address + start, rkey })
    }

    fn read(&mut self, at: Stretch, address: u64, rkey: u32) -> Result<Status> {
        self.request(at, false, |start| SendOp::Read { remote_addr: address + start, rkey })
    }

    fn atomic(&mut self, result: usize, address: u64, rkey: u32, operation: Atomic) -> Result<Status> {
        let remote_addr = address;
        let at = Stretch { offset: result, length: 8, count: 1 };
        self.request(at, false, |_| match operation {
            Atomic::FetchAdd { add } => SendOp::FetchAdd { remote_addr, rkey, add },
            Atomic::CompareSwap { compare, swap } => SendOp::CompareSwap { remote_addr, rkey, compare, swap },
        })
    }

    fn put_word(&mut self, at: usize, value: u64) -> Result<()> {
        Ok(self.mr.write(at, &value.to_ne_bytes())?)
    }

    fn word(&mut self, at: usize) -> Result<u64> {
        let mut word = [0; 8];
        self.mr.read(at, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn state(&mut self) -> Result<String> {
        let state = self.qp.query()?.qp_state.context("the answer has no state")?;
        Ok(format!("{state:?}").to_uppercase())
    }
}

impl Notify for GuestPeer {
    fn post(&mut self, at: Stretch, message: Message) -> Result<()> {
        let op = match message {
            Message::Send => SendOp::Send,
            Message::SendImmediate(immediate) => SendOp::SendImm(immediate),
            Message::SendInvalidate(key) => SendOp::SendInvalidate(key),
            Message::WriteImmediate { address, rkey, immediate } => {
                SendOp::WriteImm { remote_addr: address, rkey, imm: immediate }
            }
        };
        self.begin(at, fits_inline(at), |_| op)
    }

    fn sent(&mut self, count: usize) -> Result<Status> {
        self.sent.wait(count, |_| Ok(()))
    }

    fn told(&mut self, length: usize) -> Result<Told> {
        let wc = self.received.next(Instant::now() + LIMIT)?;
        ensure!(wc.status == WcStatus::Success, "the receive ends in {}", wc.status);
        ensure!(wc.byte_len as usize == length + self.grh_bytes(), "a message of {} bytes", wc.byte_len);
        Ok(match (wc.imm, wc.invalidated_rkey) {
            (None, None) => Told::Nothing,
            (Some(immediate), None) => Told::Immediate(immediate),
            (None, Some(key)) => Told::Invalidated(key),
            both => bail!("a receive tells {both:?}"),
        })
    }

    fn bind(&mut self, at: Stretch) -> Result<u32> {
        let window = match self.window.take() {
            Some(window) => window,
            None => self.pd.alloc_mw(MwType::Type2)?,
        };
        let key = inc_rkey(window.rkey());
        let bind = MwBind {
            wr_id: 0,
            mr: &self.mr,
            offset: at.offset as u64,
            length: at.bytes() as u64,
            access: Access::REMOTE_WRITE,
            flags: SendFlags::SIGNALED,
        };
        self.qp.post_bind_mw(&window, key, &bind)?;
        let status = self.sent.wait(1, |_| Ok(()))?;
        ensure!(status == Status::SUCCESS, "the bind ends in {status:?}");
        self.window = Some(window);
        Ok(key)
    }
}

impl Route for GuestPeer {
    fn route(&mut self, way: &Way) -> Result<()> {
        let grh = way.gid.map(|gid| Grh { dgid: Gid(gid), hop_limit: 1, ..Grh::default() });
        let ah = self.pd.create_ah(&AhAttr { grh, ..AhAttr::to_lid(way.lid, PORT) })?;
        self.destination = Some((ah, way.qpn, way.qkey));
        Ok(())
    }

    fn attach(&mut self, gid: [u8; 16], lid: u16) -> Result<()> {
        Ok(self.qp.attach_mcast(&Gid(gid), lid)?)
    }
}
