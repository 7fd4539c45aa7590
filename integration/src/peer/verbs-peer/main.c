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
#include <stdlib.h>

#include "peer.h"

enum { MAX_WORDS = 10, LINE_BYTES = 256 };

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
