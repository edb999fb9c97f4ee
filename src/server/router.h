/* router.h - routing at work: the tiers in force, what each is doing, and the way of a job from
 * tier to tier until one answers. What decides is gateway/route.h. The server's thread.
 *
 *   router_route -> (stages, engine) -> answer -> router_over
 *        ^--------------- router_escalate: failure, time-out, overload, failed check */
#pragma once

#include <jansson.h>

#include "gateway/route.h"
#include "server/service.h"

struct router;

struct router *router_new(struct server *s);
void router_free(struct router *r);

/* Takes the place of the configuration for requests that come from now on. On error nothing
 * changes. */
int router_configure(struct router *r, const json_t *config, struct err *e);
int router_check(const json_t *config, struct err *e); /* would it be taken? */

/* The route stage: decides at first, waits while the tier is full, then sets the model. */
enum job_step router_route(struct job *j);

/* An attempt failed before anything was sent: true if another tier will be tried, and the job goes
 * back to its route stage. */
bool router_escalate(struct job *j, int status, const struct err *e);

/* Whether the tier's check lets a whole answer pass; else *why. */
bool router_accepts(const struct job *j, struct str answer, const char **why);

/* Fails an attempt that has no first token within the tier's time. About once a second. */
void router_tick(struct job *j);

/* How many tokens the job's prompts are likely to be, from their texts. */
int64_t router_prompt_tokens(const struct job *j);

/* Where the job runs, NULL: its model is of no tier. */
const struct tier *router_tier(const struct job *j);

/* Adds the header x-terrace-route, before the first byte of an answer. */
void router_explain(struct job *j);
void router_explanation(const struct job *j, struct buf *out); /* its value */

/* The first token, and the answer's end: for the tier's targets. */
void router_first_token(struct job *j);
void router_answered(struct job *j, const struct engine_usage *u);

/* The backends that the tier names; NULL: it names none. */
const struct names *router_backends(const struct job *j);
bool router_has_more(const struct job *j); /* another tier may get the request after this one */

/* Gives up the job's place in its tier and forgets the route. */
void router_over(struct job *j);

void router_write_metrics(const struct router *r, struct buf *out);
