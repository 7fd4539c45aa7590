/* verbs-peer: the way to the other end. */


#include "peer.h"

static union ibv_gid gid(const uint64_t *number)
{
	union ibv_gid gid;

	for (int i = 0; i < 16; i++)
		gid.raw[i] = (uint8_t)(number[i / 8] >> (56 - i % 8 * 8));
	return gid;
}

/* NUMBER: LID, queue pair, Q_Key, GID. */
void route(struct peer *peer, const uint64_t *number)
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

void attach(struct peer *peer, const uint64_t *number)
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
void address_to(struct peer *peer, const uint64_t *number)
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
void connect_to(struct peer *peer, const uint64_t *number)
{
	peer->remote_srqn = (uint32_t)number[8];
	if (connect_qp(peer, peer->qp, (uint32_t)number[1], number) != 0)
		return;
	if (peer->target && connect_qp(peer, peer->target, (uint32_t)number[7], number) != 0)
		return;
	printf("ok\n");
}

void state(struct peer *peer)
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
