/* verbs-peer: memory, work requests and completions. */

#include <inttypes.h>
#include <time.h>

#include "peer.h"

/* Byte INDEX of the pattern of SEED. The host computes the same. */
static uint8_t pattern(uint64_t seed, uint64_t index)
{
	uint32_t mixed = (uint32_t)((index + 1) * 2654435761u + seed * 40503u);

	return (uint8_t)((mixed >> 24) ^ (mixed >> 11));
}

int inside(const struct peer *peer, const struct stretch *at)
{
	if (at->length > peer->bytes || at->count > DEPTH || at->offset > peer->bytes ||
	    at->length * at->count > peer->bytes - at->offset)
		return error("the stretch", ERANGE);
	return 0;
}

void fill(struct peer *peer, const struct stretch *at, uint64_t seed)
{
	for (uint64_t i = 0; i < at->length; i++)
		peer->memory[at->offset + i] = pattern(seed, i);
	printf("ok\n");
}

void verify(const struct peer *peer, const struct stretch *at, uint64_t seed)
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

int completions(struct ibv_cq *cq, uint64_t count, uint64_t length)
{
	struct ibv_wc last;

	return last_of(cq, count, length, &last);
}

void post_recv(struct peer *peer, const struct stretch *at)
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
int post_one(struct peer *peer, enum ibv_wr_opcode opcode, const struct stretch *at, uint32_t value,
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
void told(struct peer *peer, uint64_t length)
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
void bind_window(struct peer *peer, const struct stretch *at)
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
void post_send(struct peer *peer, enum ibv_wr_opcode opcode, const struct stretch *at, uint64_t address,
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
void atomic(struct peer *peer, enum ibv_wr_opcode opcode, const uint64_t *number)
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
void word(struct peer *peer, uint64_t offset, const uint64_t *value)
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
