#include "engine/cost.h"

#define FORGET      0.98
#define TRACE_LIMIT 1e5 /* without news in a direction its variance would grow without end */
#define ROOM_LIMIT  1000000

void cost_init(struct cost *c)
{
    /* before the first measurement: a large model on a few cores, so that the first chunk is small
     */
    *c = (struct cost){.theta = {5, 3, 0}};
    c->cov[0][0] = 1e3;
    c->cov[1][1] = 1e2;
    c->cov[2][2] = 1e1;
}

static double positive(double x)
{
    return x > 0 ? x : 0;
}

double cost_predict(const struct cost *c, int n_tokens, double attention)
{
    return positive(c->theta[0]) + positive(c->theta[1]) * n_tokens +
           positive(c->theta[2]) * attention * 1e-3;
}

void cost_learn(struct cost *c, int n_tokens, double attention, double ms)
{
    const double x[3] = {1, n_tokens, attention * 1e-3};
    double px[3], denom = FORGET, error = ms;
    for (int i = 0; i < 3; i++) {
        px[i] = 0;
        for (int j = 0; j < 3; j++)
            px[i] += c->cov[i][j] * x[j];
        denom += x[i] * px[i];
        error -= c->theta[i] * x[i];
    }
    /* one step that was interrupted for long must not spoil the line */
    double most = 4 * cost_predict(c, n_tokens, attention) + 10;
    if (error > most)
        error = most;
    double trace = c->cov[0][0] + c->cov[1][1] + c->cov[2][2];
    double grow = trace < TRACE_LIMIT ? 1 / FORGET : 1;
    for (int i = 0; i < 3; i++)
        c->theta[i] += px[i] / denom * error;
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            c->cov[i][j] = (c->cov[i][j] - px[i] * px[j] / denom) * grow;
}

int cost_room(const struct cost *c, double target_ms, int n_tokens, double attention,
              double context)
{
    double left = target_ms - cost_predict(c, n_tokens, attention);
    double each = positive(c->theta[1]) + positive(c->theta[2]) * context * 1e-3;
    if (left <= 0)
        return 0;
    return left >= each * ROOM_LIMIT ? ROOM_LIMIT : (int)(left / each);
}
