/* cost.h - how long a step takes, learnt while serving.
 *
 * The model is a line: ms = a + b * tokens + c * attention, where attention is the sum over the
 * step's tokens of the positions each one looks at. Fitted by recursive least squares with
 * forgetting (Ljung, System Identification, 11.2), so that it follows a machine whose speed
 * changes. */
#pragma once

struct cost {
    double theta[3]; /* ms, ms per token, ms per 1000 positions */
    double cov[3][3];
};

void cost_init(struct cost *c);

/* A step of so many tokens and attended positions took ms. */
void cost_learn(struct cost *c, int n_tokens, double attention, double ms);

double cost_predict(const struct cost *c, int n_tokens, double attention);

/* How many more tokens, each looking at `context` positions, fit into target_ms beside n_tokens
 * with `attention`. At least 0. */
int cost_room(const struct cost *c, double target_ms, int n_tokens, double attention,
              double context);
