/* verbs-peer: the HCA, and what is made and given back. */

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>

#include "peer.h"

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
int make(struct peer *peer, const char *device, const struct service *service)
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
int give_back(struct peer *peer)
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

int announce(const struct peer *peer)
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
const struct service *service(const char *name)
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
