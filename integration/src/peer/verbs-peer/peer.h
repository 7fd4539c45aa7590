/* verbs-peer: what its files share. */
#ifndef PEER_H
#define PEER_H

#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <infiniband/verbs.h>

enum { PORT = 1, DEPTH = 64, MAX_INLINE = 64, WAIT_SECONDS = 60, GRH_BYTES = 40, QKEY = 0x11111111 };

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

/* A word of the command line, and what is made then. */
struct service {
	const char *name;
	enum ibv_qp_type type;
	int shared; /* with a shared receive queue */
};

static inline int error(const char *what, int number)
{
	printf("error %s: %s\n", what, strerror(number));
	return -1;
}

static inline int datagrams(const struct peer *peer)
{
	return peer->qp->qp_type == IBV_QPT_UD;
}

/* work.c */
int inside(const struct peer *peer, const struct stretch *at);
void fill(struct peer *peer, const struct stretch *at, uint64_t seed);
void verify(const struct peer *peer, const struct stretch *at, uint64_t seed);
int completions(struct ibv_cq *cq, uint64_t count, uint64_t length);
void post_recv(struct peer *peer, const struct stretch *at);
int post_one(struct peer *peer, enum ibv_wr_opcode opcode, const struct stretch *at, uint32_t value,
	     uint64_t address, uint32_t rkey);
void told(struct peer *peer, uint64_t length);
void bind_window(struct peer *peer, const struct stretch *at);
void post_send(struct peer *peer, enum ibv_wr_opcode opcode, const struct stretch *at, uint64_t address,
	       uint32_t rkey);
void atomic(struct peer *peer, enum ibv_wr_opcode opcode, const uint64_t *number);
void word(struct peer *peer, uint64_t offset, const uint64_t *value);

/* way.c */
void route(struct peer *peer, const uint64_t *number);
void attach(struct peer *peer, const uint64_t *number);
void address_to(struct peer *peer, const uint64_t *number);
void connect_to(struct peer *peer, const uint64_t *number);
void state(struct peer *peer);

/* objects.c */
int make(struct peer *peer, const char *device, const struct service *service);
int give_back(struct peer *peer);
int announce(const struct peer *peer);
const struct service *service(const char *name);

#endif
