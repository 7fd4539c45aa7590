/*
 * verbs-peer: one end of RC, UC, UD or XRC on the stock libibverbs, driven by lines on standard input.
 *
 * Started as `verbs-peer DEVICE BYTES rc` (or `uc`, `ud`, `rc-srq`: with a shared receive queue, `xrc`: a queue pair
 * for its requests, one for the other end's, and a shared receive queue), it opens the HCA, registers BYTES of memory, brings a queue pair to
 * INIT, and says how it can be reached. Each command then gets one line of answer: `ok ...`, `wc NUMBER TEXT`
 * for a work completion that isn't IBV_WC_SUCCESS, or `error TEXT`. Numbers are decimal. Offsets are relative
 * to the registered memory.
 *
 *   connect LID QPN PSN MTU TIMEOUT RETRIES RNR REQUESTER SRQN     to RTR and RTS, with the peer's LID, queue pair and first PSN,
 *                                  the path MTU's code, and a requester's timeout and retries; of UD only LID and
 *                                  queue pair count; only of XRC the queue pair that its requests come from,
 *                                  and its shared receive queue
 *   fill OFFSET LENGTH SEED        write the pattern of a seed
 *   verify OFFSET LENGTH SEED      compare with the pattern of a seed
 *   recv OFFSET LENGTH COUNT       post COUNT receives of LENGTH bytes, one behind the other; of UD with 40 bytes
 *                                  before each, for a GRH, so only one at once
 *   send OFFSET LENGTH COUNT       post COUNT sends, then wait for all completions
 *   write OFFSET LENGTH COUNT ADDRESS RKEY      the same by RDMA write ...
 *   read OFFSET LENGTH COUNT ADDRESS RKEY       ... and by RDMA read
 *   post_send OFFSET LENGTH        post one, and don't wait
 *   post_send_imm OFFSET LENGTH IMM
 *   post_send_inv OFFSET LENGTH KEY
 *   post_write_imm OFFSET LENGTH IMM ADDRESS RKEY
 *   sent COUNT                     wait for COUNT send completions
 *   told LENGTH                    wait for one receive of LENGTH bytes; `nothing`, `imm IMM` or `inv KEY` came with it
 *   bind OFFSET LENGTH             bind a window of type 2 that may be written to; its key
 *   route LID QPN QKEY HIGH LOW    of UD: where datagrams go from now on; with a GRH, if the halves of the GID aren't 0
 *   attach LID HIGH LOW            of UD: receive what is sent to a group, too
 *   fetch_add OFFSET ADDRESS RKEY ADD               atomics; what was there goes to OFFSET
 *   compare_swap OFFSET ADDRESS RKEY COMPARE SWAP
 *   put OFFSET VALUE               write a word of 8 bytes
 *   get OFFSET                     read it
 *   received LENGTH COUNT          wait for COUNT receive completions of LENGTH bytes
 *   state                          the queue pair's state, as the driver is asked for it
 *
 * The end of standard input ends the program.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <infiniband/verbs.h>

enum { PORT = 1, DEPTH = 64, MAX_INLINE = 64, WAIT_SECONDS = 60, MAX_WORDS = 10, LINE_BYTES = 256,
       GRH_BYTES = 40, QKEY = 0x11111111 };

struct peer {
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_mr *mr;
	struct ibv_cq *send_cq;
	struct ibv_cq *recv_cq;
	struct ibv_qp *qp;
	struct ibv_srq *srq; /* where receives are posted, if there is one */
	struct ibv_xrcd *xrcd; /* of XRC: the domain ... */
	struct ibv_qp *target; /* ... and the queue pair for the other end's requests */
	uint32_t remote_srqn;
	struct ibv_mw *window;
	uint32_t remote_qkey;
	union ibv_gid group; /* of UD: one that it is attached to ... */
	uint16_t group_lid; /* ... if this isn't 0 */
	struct ibv_ah *ah; /* of UD: the way to the peer ... */
	uint32_t remote_qpn; /* ... and its queue pair */
	uint8_t *memory;
	uint64_t bytes;
	uint32_t psn;
};

/* A stretch of the registered memory that COUNT messages of LENGTH bytes take. */
struct stretch {
	uint64_t offset;
	uint64_t length;
	uint64_t count;
};

/* Byte INDEX of the pattern of SEED. The host computes the same. */
static uint8_t pattern(uint64_t seed, uint64_t index)
{
	uint32_t mixed = (uint32_t)((index + 1) * 2654435761u + seed * 40503u);

	return (uint8_t)((mixed >> 24) ^ (mixed >> 11));
}

static int error(const char *what, int number)
{
	printf("error %s: %s\n", what, strerror(number));
	return -1;
}

static int inside(const struct peer *peer, const struct stretch *at)
{
	if (at->length > peer->bytes || at->count > DEPTH || at->offset > peer->bytes ||
	    at->length * at->count > peer->bytes - at->offset)
		return error("the stretch", ERANGE);
	return 0;
}

static void fill(struct peer *peer, const struct stretch *at, uint64_t seed)
{
	for (uint64_t i = 0; i < at->length; i++)
		peer->memory[at->offset + i] = pattern(seed, i);
	printf("ok\n");
}

static void verify(const struct peer *peer, const struct stretch *at, uint64_t seed)
{
	for (uint64_t i = 0; i < at->length; i++) {
		uint8_t found = peer->memory[at->offset + i];

		if (found != pattern(seed, i)) {
			printf("error byte %" PRIu64 " of %" PRIu64 " is %u, not %u\n", i, at->length, found,
			       pattern(seed, i));
			return;
		}
	}
	printf("ok\n");
}

/* Waits for COUNT completions; LENGTH is what each must have received, if it is a receive. LAST is the last one. */
static int last_of(struct ibv_cq *cq, uint64_t count, uint64_t length, struct ibv_wc *last)
{
	time_t deadline = time(NULL) + WAIT_SECONDS;

	while (count > 0) {
		/* libmlx4 adds IBV_WC_WITH_INV to the flags that it finds. */
		struct ibv_wc wc = { 0 };
		int found = ibv_poll_cq(cq, 1, &wc);

		if (found < 0)
			return error("ibv_poll_cq", EIO);
		if (found == 0) {
			if (time(NULL) > deadline)
				return error("waiting for a completion", ETIMEDOUT);
			continue;
		}
		if (wc.status != IBV_WC_SUCCESS) {
			printf("wc %d %s\n", wc.status, ibv_wc_status_str(wc.status));
			return -1;
		}
		if ((wc.opcode & IBV_WC_RECV) && wc.byte_len != length) {
			printf("error a message of %u bytes\n", wc.byte_len);
			return -1;
		}
		*last = wc;
		count--;
	}
	return 0;
}

static int completions(struct ibv_cq *cq, uint64_t count, uint64_t length)
{
	struct ibv_wc last;

	return last_of(cq, count, length, &last);
}

static int datagrams(const struct peer *peer)
{
	return peer->qp->qp_type == IBV_QPT_UD;
}

static void post_recv(struct peer *peer, const struct stretch *at)
{
	const uint64_t grh = datagrams(peer) ? GRH_BYTES : 0;

	if (grh && (at->offset < grh || at->count > 1)) {
		error("the place of the GRH", EINVAL);
		return;
	}
	for (uint64_t i = 0; i < at->count; i++) {
		struct ibv_sge sge = {
			.addr = (uintptr_t)peer->memory + at->offset + i * at->length - grh,
			.length = (uint32_t)(at->length + grh),
			.lkey = peer->mr->lkey,
		};
		struct ibv_recv_wr wr = { .wr_id = i, .sg_list = &sge, .num_sge = 1 };
		struct ibv_recv_wr *bad;
		int failed = peer->srq ? ibv_post_srq_recv(peer->srq, &wr, &bad) : ibv_post_recv(peer->qp, &wr, &bad);

		if (failed) {
			error("ibv_post_recv", failed);
			return;
		}
	}
	printf("ok\n");
}

/*
 * Posts one request. What fits goes inline, except for a read. VALUE is immediate data in the host's byte order, or the
 * key to invalidate.
 */
static int post_one(struct peer *peer, enum ibv_wr_opcode opcode, const struct stretch *at, uint32_t value,
		    uint64_t address, uint32_t rkey)
{
	struct ibv_sge sge = {
		.addr = (uintptr_t)peer->memory + at->offset,
		.length = (uint32_t)at->length,
		.lkey = peer->mr->lkey,
	};
	struct ibv_send_wr wr = {
		.sg_list = &sge, .num_sge = 1, .opcode = opcode, .send_flags = IBV_SEND_SIGNALED,
	};
	struct ibv_send_wr *bad;
	int failed;

	if (opcode != IBV_WR_RDMA_READ && at->length <= MAX_INLINE)
		wr.send_flags |= IBV_SEND_INLINE;
	if (opcode == IBV_WR_SEND_WITH_INV)
		wr.invalidate_rkey = value;
	else
		wr.imm_data = htonl(value);
	if (datagrams(peer)) {
		wr.wr.ud.ah = peer->ah;
		wr.wr.ud.remote_qpn = peer->remote_qpn;
		wr.wr.ud.remote_qkey = peer->remote_qkey;
	} else {
		wr.wr.rdma.remote_addr = address;
		wr.wr.rdma.rkey = rkey;
		wr.qp_type.xrc.remote_srqn = peer->remote_srqn;
	}
	failed = ibv_post_send(peer->qp, &wr, &bad);
	return failed ? error("ibv_post_send", failed) : 0;
}

/* Waits for a receive, and says what came with it. */
static void told(struct peer *peer, uint64_t length)
{
	struct ibv_wc wc;

	if (last_of(peer->recv_cq, 1, length + (datagrams(peer) ? GRH_BYTES : 0), &wc) != 0)
		return;
	if (wc.wc_flags & IBV_WC_WITH_IMM)
		printf("ok imm %u\n", ntohl(wc.imm_data));
	else if (wc.wc_flags & IBV_WC_WITH_INV)
		printf("ok inv %u\n", wc.invalidated_rkey);
	else
		printf("ok nothing\n");
}

/* Binds a window over a stretch, and says its key. */
static void bind_window(struct peer *peer, const struct stretch *at)
{
	struct ibv_send_wr wr = { .opcode = IBV_WR_BIND_MW, .send_flags = IBV_SEND_SIGNALED };
	struct ibv_send_wr *bad;
	int failed;

	if (inside(peer, at) != 0)
		return;
	if (!peer->window && !(peer->window = ibv_alloc_mw(peer->pd, IBV_MW_TYPE_2))) {
		error("ibv_alloc_mw", errno);
		return;
	}
	wr.bind_mw.mw = peer->window;
	wr.bind_mw.rkey = ibv_inc_rkey(peer->window->rkey);
	wr.bind_mw.bind_info.mr = peer->mr;
	wr.bind_mw.bind_info.addr = (uintptr_t)peer->memory + at->offset;
	wr.bind_mw.bind_info.length = at->length;
	wr.bind_mw.bind_info.mw_access_flags = IBV_ACCESS_REMOTE_WRITE;
	failed = ibv_post_send(peer->qp, &wr, &bad);
	if (failed)
		error("ibv_post_send of a bind", failed);
	else if (completions(peer->send_cq, 1, 0) == 0)
		printf("ok %u\n", wr.bind_mw.rkey);
}

/* Posts and waits. */
static void post_send(struct peer *peer, enum ibv_wr_opcode opcode, const struct stretch *at, uint64_t address,
		      uint32_t rkey)
{
	for (uint64_t i = 0; i < at->count; i++) {
		const uint64_t start = i * at->length;
		struct stretch one = { .offset = at->offset + start, .length = at->length, .count = 1 };

		if (post_one(peer, opcode, &one, 0, address + start, rkey) != 0)
			return;
	}
	if (completions(peer->send_cq, at->count, 0) == 0)
		printf("ok\n");
}

/* Posts an atomic whose result goes to OFFSET, and waits. */
static void atomic(struct peer *peer, enum ibv_wr_opcode opcode, const uint64_t *number)
{
	struct stretch at = { .offset = number[0], .length = 8, .count = 1 };
	struct ibv_sge sge = {
		.addr = (uintptr_t)peer->memory + at.offset, .length = 8, .lkey = peer->mr->lkey,
	};
	struct ibv_send_wr wr = {
		.sg_list = &sge, .num_sge = 1, .opcode = opcode, .send_flags = IBV_SEND_SIGNALED,
		.wr.atomic = { .remote_addr = number[1], .rkey = (uint32_t)number[2], .compare_add = number[3],
			       .swap = number[4] },
		.qp_type.xrc.remote_srqn = peer->remote_srqn,
	};
	struct ibv_send_wr *bad;
	int failed;

	if (inside(peer, &at) != 0)
		return;
	failed = ibv_post_send(peer->qp, &wr, &bad);
	if (failed)
		error("ibv_post_send", failed);
	else if (completions(peer->send_cq, 1, 0) == 0)
		printf("ok\n");
}

/* A word of the memory: written if VALUE is one, then told. */
static void word(struct peer *peer, uint64_t offset, const uint64_t *value)
{
	struct stretch at = { .offset = offset, .length = 8, .count = 1 };
	uint64_t found;

	if (inside(peer, &at) != 0)
		return;
	if (value)
		memcpy(peer->memory + offset, value, sizeof(*value));
	memcpy(&found, peer->memory + offset, sizeof(found));
	printf("ok %" PRIu64 "\n", found);
}

static union ibv_gid gid(const uint64_t *number)
{
	union ibv_gid gid;

	for (int i = 0; i < 16; i++)
		gid.raw[i] = (uint8_t)(number[i / 8] >> (56 - i % 8 * 8));
	return gid;
}

/* NUMBER: LID, queue pair, Q_Key, GID. */
static void route(struct peer *peer, const uint64_t *number)
{
	struct ibv_ah_attr to = { .dlid = (uint16_t)number[0], .port_num = PORT };
	int failed = peer->ah ? ibv_destroy_ah(peer->ah) : 0;

	if (failed) {
		error("ibv_destroy_ah", failed);
		return;
	}
	to.is_global = number[3] || number[4];
	to.grh.dgid = gid(&number[3]);
	to.grh.hop_limit = 1;
	peer->remote_qpn = (uint32_t)number[1];
	peer->remote_qkey = (uint32_t)number[2];
	if ((peer->ah = ibv_create_ah(peer->pd, &to)))
		printf("ok\n");
	else
		error("ibv_create_ah", errno);
}

static void attach(struct peer *peer, const uint64_t *number)
{
	const union ibv_gid group = gid(&number[1]);
	int failed = ibv_attach_mcast(peer->qp, &group, (uint16_t)number[0]);

	if (failed) {
		error("ibv_attach_mcast", failed);
		return;
	}
	peer->group = group;
	peer->group_lid = (uint16_t)number[0];
	printf("ok\n");
}

/* NUMBER: LID, queue pair. */
static void address_to(struct peer *peer, const uint64_t *number)
{
	struct ibv_ah_attr to = { .dlid = (uint16_t)number[0], .port_num = PORT };
	struct ibv_qp_attr rtr = { .qp_state = IBV_QPS_RTR };
	struct ibv_qp_attr rts = { .qp_state = IBV_QPS_RTS, .sq_psn = peer->psn };
	int failed;

	peer->remote_qpn = (uint32_t)number[1];
	if (!(peer->ah = ibv_create_ah(peer->pd, &to))) {
		error("ibv_create_ah", errno);
		return;
	}
	failed = ibv_modify_qp(peer->qp, &rtr, IBV_QP_STATE);
	if (!failed)
		failed = ibv_modify_qp(peer->qp, &rts, IBV_QP_STATE | IBV_QP_SQ_PSN);
	if (failed)
		error("ibv_modify_qp of datagrams", failed);
	else
		printf("ok\n");
}

/* What a queue pair of a type has as the requester and as the responder. */
static int requests(const struct ibv_qp *qp)
{
	return qp->qp_type == IBV_QPT_RC || qp->qp_type == IBV_QPT_XRC_SEND;
}

static int responds(const struct ibv_qp *qp)
{
	return qp->qp_type == IBV_QPT_RC || qp->qp_type == IBV_QPT_XRC_RECV;
}

/* NUMBER: LID, queue pair, PSN, MTU, timeout, retries, RNR retries. */
static int connect_qp(const struct peer *peer, struct ibv_qp *qp, uint32_t remote_qpn, const uint64_t *number)
{
	struct ibv_qp_attr rtr = {
		.qp_state = IBV_QPS_RTR,
		.path_mtu = (enum ibv_mtu)number[3],
		.dest_qp_num = remote_qpn,
		.rq_psn = (uint32_t)number[2],
		.max_dest_rd_atomic = 4,
		.min_rnr_timer = 12,
		.ah_attr = { .dlid = (uint16_t)number[0], .port_num = PORT },
	};
	struct ibv_qp_attr rts = {
		.qp_state = IBV_QPS_RTS,
		.sq_psn = peer->psn,
		.timeout = (uint8_t)number[4],
		.retry_cnt = (uint8_t)number[5],
		.rnr_retry = (uint8_t)number[6],
		.max_rd_atomic = 4,
	};
	int failed = ibv_modify_qp(qp, &rtr,
				   IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
					   (responds(qp) ? IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER : 0));

	if (failed)
		return error("ibv_modify_qp to RTR", failed);
	failed = ibv_modify_qp(qp, &rts,
			       IBV_QP_STATE | IBV_QP_SQ_PSN | (requests(qp) || responds(qp) ? IBV_QP_TIMEOUT : 0) |
				       (requests(qp) ? IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC
						     : 0));
	return failed ? error("ibv_modify_qp to RTS", failed) : 0;
}

/* NUMBER: as before; then the queue pair of the other end's requests, and its shared receive queue. */
static void connect_to(struct peer *peer, const uint64_t *number)
{
	peer->remote_srqn = (uint32_t)number[8];
	if (connect_qp(peer, peer->qp, (uint32_t)number[1], number) != 0)
		return;
	if (peer->target && connect_qp(peer, peer->target, (uint32_t)number[7], number) != 0)
		return;
	printf("ok\n");
}

static void state(struct peer *peer)
{
	static const char *const names[] = { "RESET", "INIT", "RTR", "RTS", "SQD", "SQE", "ERR" };
	struct ibv_qp_attr attributes;
	struct ibv_qp_init_attr initial;
	int failed = ibv_query_qp(peer->qp, &attributes, IBV_QP_STATE, &initial);

	if (failed)
		error("ibv_query_qp", failed);
	else if (attributes.qp_state >= sizeof(names) / sizeof(names[0]))
		error("the queue pair's state", ERANGE);
	else
		printf("ok %s\n", names[attributes.qp_state]);
}

/* A command that posts one request and doesn't wait. */
static void post_command(struct peer *peer, const char *name, const uint64_t *number, int numbers)
{
	static const struct {
		const char *name;
		enum ibv_wr_opcode opcode;
		int numbers;
	} all[] = {
		{ "post_send", IBV_WR_SEND, 2 },
		{ "post_send_imm", IBV_WR_SEND_WITH_IMM, 3 },
		{ "post_send_inv", IBV_WR_SEND_WITH_INV, 3 },
		{ "post_write_imm", IBV_WR_RDMA_WRITE_WITH_IMM, 5 },
	};
	struct stretch at = { .offset = number[0], .length = number[1], .count = 1 };

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		if (strcmp(name, all[i].name) || numbers != all[i].numbers)
			continue;
		if (inside(peer, &at) == 0 &&
		    post_one(peer, all[i].opcode, &at, (uint32_t)number[2], number[3], (uint32_t)number[4]) == 0)
			printf("ok\n");
		return;
	}
	error(name, EINVAL);
}

static void execute(struct peer *peer, const char *name, const uint64_t *number, int numbers)
{
	struct stretch at = { .offset = number[0], .length = number[1], .count = 1 };

	if (!strcmp(name, "connect") && numbers == 9) {
		if (datagrams(peer))
			address_to(peer, number);
		else
			connect_to(peer, number);
	} else if (!strcmp(name, "fetch_add") && numbers == 4) {
		atomic(peer, IBV_WR_ATOMIC_FETCH_AND_ADD, number);
	} else if (!strcmp(name, "compare_swap") && numbers == 5) {
		atomic(peer, IBV_WR_ATOMIC_CMP_AND_SWP, number);
	} else if (!strcmp(name, "put") && numbers == 2) {
		word(peer, number[0], &number[1]);
	} else if (!strcmp(name, "get") && numbers == 1) {
		word(peer, number[0], NULL);
	} else if (!strcmp(name, "state") && numbers == 0) {
		state(peer);
	} else if (!strcmp(name, "received") && numbers == 2) {
		if (completions(peer->recv_cq, number[1], number[0] + (datagrams(peer) ? GRH_BYTES : 0)) == 0)
			printf("ok\n");
	} else if (!strcmp(name, "fill") && numbers == 3) {
		if (inside(peer, &at) == 0)
			fill(peer, &at, number[2]);
	} else if (!strcmp(name, "verify") && numbers == 3) {
		if (inside(peer, &at) == 0)
			verify(peer, &at, number[2]);
	} else if (!strcmp(name, "sent") && numbers == 1) {
		if (completions(peer->send_cq, number[0], 0) == 0)
			printf("ok\n");
	} else if (!strcmp(name, "route") && numbers == 5) {
		route(peer, number);
	} else if (!strcmp(name, "attach") && numbers == 3) {
		attach(peer, number);
	} else if (!strcmp(name, "told") && numbers == 1) {
		told(peer, number[0]);
	} else if (!strcmp(name, "bind") && numbers == 2) {
		bind_window(peer, &at);
	} else if (!strncmp(name, "post_", 5)) {
		post_command(peer, name, number, numbers);
	} else {
		at.count = number[2];
		if (!strcmp(name, "recv") && numbers == 3) {
			if (inside(peer, &at) == 0)
				post_recv(peer, &at);
		} else if (!strcmp(name, "send") && numbers == 3) {
			if (inside(peer, &at) == 0)
				post_send(peer, IBV_WR_SEND, &at, 0, 0);
		} else if (!strcmp(name, "write") && numbers == 5) {
			if (inside(peer, &at) == 0)
				post_send(peer, IBV_WR_RDMA_WRITE, &at, number[3], (uint32_t)number[4]);
		} else if (!strcmp(name, "read") && numbers == 5) {
			if (inside(peer, &at) == 0)
				post_send(peer, IBV_WR_RDMA_READ, &at, number[3], (uint32_t)number[4]);
		} else {
			error(name, EINVAL);
		}
	}
}

/* Splits a line into a name and numbers, and executes it. */
static void command(struct peer *peer, char *line)
{
	uint64_t number[MAX_WORDS] = { 0 };
	int numbers = 0;
	char *rest = strpbrk(line, " \n");

	while (rest && *rest == ' ' && numbers < MAX_WORDS) {
		*rest++ = '\0';
		number[numbers++] = strtoull(rest, &rest, 10);
	}
	if (!rest || *rest != '\n') {
		error("a line that ends in no number", EINVAL);
		return;
	}
	*rest = '\0';
	execute(peer, line, number, numbers);
}

static struct ibv_context *open_device(const char *name)
{
	int count = 0;
	struct ibv_device **devices = ibv_get_device_list(&count);
	struct ibv_context *context = NULL;

	errno = ENODEV;
	for (int i = 0; devices && i < count; i++)
		if (!strcmp(ibv_get_device_name(devices[i]), name))
			context = ibv_open_device(devices[i]);
	if (devices)
		ibv_free_device_list(devices);
	return context;
}

enum { ACCESS = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC };

/* A word of the command line, and what is made then. */
struct service {
	const char *name;
	enum ibv_qp_type type;
	int shared; /* with a shared receive queue */
};

static int to_init(struct ibv_qp *qp)
{
	struct ibv_qp_attr init = {
		.qp_state = IBV_QPS_INIT, .pkey_index = 0, .port_num = PORT, .qkey = QKEY,
		/* UC has neither reads nor atomics. */
		.qp_access_flags = qp->qp_type == IBV_QPT_UC ? IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE : ACCESS,
	};
	int failed = ibv_modify_qp(qp, &init,
				   IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
					   (qp->qp_type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS));

	return failed ? error("ibv_modify_qp to INIT", failed) : 0;
}

/* Makes the shared receive queue, of XRC with its domain and the queue pair for the other end's requests. */
static int make_shared(struct peer *peer, const struct service *service)
{
	struct ibv_xrcd_init_attr domain = {
		.comp_mask = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS, .fd = -1, .oflags = O_CREAT,
	};
	struct ibv_srq_init_attr_ex shared = {
		.attr = { .max_wr = DEPTH, .max_sge = 1 },
		.comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD,
		.srq_type = IBV_SRQT_BASIC,
		.pd = peer->pd,
	};
	struct ibv_qp_init_attr_ex target = { .qp_type = IBV_QPT_XRC_RECV, .comp_mask = IBV_QP_INIT_ATTR_XRCD };

	if (service->type == IBV_QPT_XRC_SEND) {
		if (!(peer->xrcd = ibv_open_xrcd(peer->context, &domain)))
			return error("ibv_open_xrcd", errno);
		shared.srq_type = IBV_SRQT_XRC;
		shared.comp_mask |= IBV_SRQ_INIT_ATTR_XRCD | IBV_SRQ_INIT_ATTR_CQ;
		target.xrcd = shared.xrcd = peer->xrcd;
		shared.cq = peer->recv_cq;
		if (!(peer->target = ibv_create_qp_ex(peer->context, &target)))
			return error("ibv_create_qp_ex of XRC_RECV", errno);
	}
	if (!(peer->srq = ibv_create_srq_ex(peer->context, &shared)))
		return error("ibv_create_srq_ex", errno);
	return 0;
}

static int make_qp(struct peer *peer, enum ibv_qp_type type)
{
	struct ibv_qp_init_attr_ex wanted = {
		.send_cq = peer->send_cq,
		.recv_cq = type == IBV_QPT_XRC_SEND ? NULL : peer->recv_cq,
		.srq = type == IBV_QPT_XRC_SEND ? NULL : peer->srq,
		.cap = { .max_send_wr = DEPTH, .max_recv_wr = peer->srq ? 0 : DEPTH, .max_send_sge = 1,
			 .max_recv_sge = peer->srq ? 0 : 1, .max_inline_data = MAX_INLINE },
		.qp_type = type,
		.comp_mask = IBV_QP_INIT_ATTR_PD,
		.pd = peer->pd,
	};

	return (peer->qp = ibv_create_qp_ex(peer->context, &wanted)) ? 0 : error("ibv_create_qp_ex", errno);
}

/* Makes what belongs to a queue pair in INIT; what is missing at a failure isn't there. */
static int make(struct peer *peer, const char *device, const struct service *service)
{

	if (!(peer->context = open_device(device)))
		return error("ibv_open_device", errno);
	if (!(peer->pd = ibv_alloc_pd(peer->context)))
		return error("ibv_alloc_pd", errno);
	if (!(peer->memory = calloc(1, peer->bytes)))
		return error("calloc", ENOMEM);
	if (!(peer->mr = ibv_reg_mr(peer->pd, peer->memory, peer->bytes, ACCESS | IBV_ACCESS_MW_BIND)))
		return error("ibv_reg_mr", errno);
	if (!(peer->send_cq = ibv_create_cq(peer->context, DEPTH, NULL, NULL, 0)) ||
	    !(peer->recv_cq = ibv_create_cq(peer->context, DEPTH, NULL, NULL, 0)))
		return error("ibv_create_cq", errno);
	if (service->shared && make_shared(peer, service) != 0)
		return -1;
	if (make_qp(peer, service->type) != 0 || to_init(peer->qp) != 0)
		return -1;
	return peer->target ? to_init(peer->target) : 0;
}

/* Gives back what `make` made. A refusal means that something of it is still in use. */
static int give_back(struct peer *peer)
{
	int failed = 0;

	failed |= peer->group_lid && ibv_detach_mcast(peer->qp, &peer->group, peer->group_lid);
	failed |= peer->qp && ibv_destroy_qp(peer->qp);
	failed |= peer->window && ibv_dealloc_mw(peer->window);
	failed |= peer->target && ibv_destroy_qp(peer->target);
	failed |= peer->srq && ibv_destroy_srq(peer->srq);
	failed |= peer->xrcd && ibv_close_xrcd(peer->xrcd);
	failed |= peer->ah && ibv_destroy_ah(peer->ah);
	failed |= peer->send_cq && ibv_destroy_cq(peer->send_cq);
	failed |= peer->recv_cq && ibv_destroy_cq(peer->recv_cq);
	failed |= peer->mr && ibv_dereg_mr(peer->mr);
	failed |= peer->pd && ibv_dealloc_pd(peer->pd);
	failed |= peer->context && ibv_close_device(peer->context);
	free(peer->memory);
	return failed;
}

static int announce(const struct peer *peer)
{
	struct ibv_port_attr port;
	int failed = ibv_query_port(peer->context, PORT, &port);
	uint32_t srqn = 0;

	if (failed)
		return error("ibv_query_port", failed);
	if (peer->target && (failed = ibv_get_srq_num(peer->srq, &srqn)))
		return error("ibv_get_srq_num", failed);
	printf("ok %u %u %u %" PRIuPTR " %u %u %u\n", port.lid, (peer->target ? peer->target : peer->qp)->qp_num,
	       peer->psn, (uintptr_t)peer->memory, peer->mr->rkey, peer->qp->qp_num, srqn);
	return 0;
}

/* The service of a name; NULL if it is none. */
static const struct service *service(const char *name)
{
	static const struct service all[] = {
		{ "rc", IBV_QPT_RC, 0 }, { "uc", IBV_QPT_UC, 0 }, { "ud", IBV_QPT_UD, 0 },
		{ "rc-srq", IBV_QPT_RC, 1 }, { "xrc", IBV_QPT_XRC_SEND, 1 },
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (!strcmp(name, all[i].name))
			return &all[i];
	return NULL;
}

int main(int arguments, char **argument)
{
	struct peer peer = { .psn = 0xfffff0 /* so that it wraps soon */, .remote_qkey = QKEY };
	const struct service *wanted = arguments == 4 ? service(argument[3]) : NULL;
	char line[LINE_BYTES];
	int failed;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!wanted) {
		fprintf(stderr, "usage: verbs-peer DEVICE BYTES rc|uc|ud|rc-srq|xrc\n");
		return EXIT_FAILURE;
	}
	peer.bytes = strtoull(argument[2], NULL, 10);
	failed = make(&peer, argument[1], wanted) || announce(&peer);
	while (!failed && fgets(line, sizeof(line), stdin))
		command(&peer, line);
	failed |= give_back(&peer);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
