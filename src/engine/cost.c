#include "engine/cost.h"

#include <math.h>
#include <stdbool.h>

/* Shares of the value: what a measurement is off by chance, how far a value drifts in a step, and
 * how many deviations off it may be before it counts as less. */
static const double noise = 0.1, drift = 0.03, most_deviations = 3;

/* Twice the tokens take at least this much of the time: a step of one takes another path through
 * the kernels than a step of four, and may well take longer. */
static const double least_growth = 0.9;

/* No value falls below this, or to less than a quarter in one step: what reached zero could not be
 * stretched again. */
static const double least_ms = 1e-4, least_left = 0.25;

void cost_init(struct cost *c)
{
    /* before the first measurement: a large model on a few cores, so that the first chunk is small;
     * the first measurement counts in full */
    *c = (struct cost){.slope_var = 1};
    for (int i = 0; i < COST_KNOTS; i++) {
        c->ms[i] = 5 + 3 * ldexp(1, i);
        c->var[i] = 100 * c->ms[i] * c->ms[i];
    }
}

/* n_tokens lies `part` of the way from knot `at` to the next; beyond the last it goes straight on.
 */
struct place {
    int at;
    double part;
};

static struct place place_of(int n_tokens)
{
    struct place p = {0, 0};
    while (p.at + 2 < COST_KNOTS && n_tokens >= 2 << p.at)
        p.at++;
    double low = ldexp(1, p.at);
    p.part = (n_tokens - low) / low;
    return p;
}

double cost_predict(const struct cost *c, int n_tokens, double attention)
{
    if (n_tokens < 1)
        return 0;
    struct place p = place_of(n_tokens);
    return c->ms[p.at] * (1 - p.part) + c->ms[p.at + 1] * p.part + c->slope * attention * 1e-3;
}

static double clamp(double x, double low, double high)
{
    return x < low ? low : x > high ? high : x;
}

static bool is_seen(const struct cost *c, int at)
{
    return c->var[at] < c->ms[at] * c->ms[at];
}

/* For a size not seen yet, the same time is the best guess. */
static double growth(const struct cost *c, int at)
{
    return is_seen(c, at) ? least_growth : 1;
}

/* What the knots at and at+1 say about all others, and about each other. */
static void spread(struct cost *c, int at)
{
    for (int i = at + 1; i < COST_KNOTS; i++)
        c->ms[i] = clamp(c->ms[i], c->ms[i - 1] * growth(c, i), c->ms[i - 1] * 2);
    for (int i = at; i-- > 0;)
        c->ms[i] = clamp(c->ms[i], c->ms[i + 1] / 2, c->ms[i + 1] / growth(c, i));
}

/* One filter's step: x is how much the measurement depends on the value. */
static void correct(double *value, double *var, double x, double error, double total, double wander)
{
    double gain = *var * x / total;
    *value = fmax(*value + gain * error, least_left * *value);
    *var = *var * (1 - gain * x) + wander * wander;
}

/* The first measurement between two knots counts in full: it stretches what was guessed. */
static void stretch(struct cost *c, struct place p, double factor)
{
    for (int i = p.at; i <= p.at + (p.part > 0); i++) {
        c->ms[i] = fmax(c->ms[i] * factor, least_ms);
        c->var[i] = 2 * noise * noise * c->ms[i] * c->ms[i];
    }
}

void cost_learn(struct cost *c, int n_tokens, double attention, double ms)
{
    if (n_tokens < 1 || !(ms > 0) || !isfinite(ms))
        return;
    struct place p = place_of(n_tokens);
    double x[2] = {1 - p.part, p.part}, k = attention * 1e-3;
    double expected = cost_predict(c, n_tokens, attention);
    if (!is_seen(c, p.at) && (p.part == 0 || !is_seen(c, p.at + 1))) {
        stretch(c, p, ms / expected);
        spread(c, p.at);
        return;
    }
    double total = noise * noise * expected * expected + 1e-4 + c->slope_var * k * k;
    for (int i = 0; i < 2; i++)
        total += c->var[p.at + i] * x[i] * x[i];
    double most = most_deviations * sqrt(total);
    double error = clamp(ms - expected, -most, most);
    for (int i = 0; i < 2; i++)
        correct(&c->ms[p.at + i], &c->var[p.at + i], x[i], error, total,
                x[i] * drift * c->ms[p.at + i]);
    for (int i = 0; i < 2; i++)
        c->ms[p.at + i] = fmax(c->ms[p.at + i], least_ms);
    correct(&c->slope, &c->slope_var, k, error, total, drift * c->slope);
    c->slope_var = fmin(c->slope_var, 1);
    spread(c, p.at);
}

int cost_room(const struct cost *c, double target_ms, int n_tokens, double attention, int from,
              int most)
{
    int low = 0, high = most > 0 ? most : 0;
    while (low < high) {
        int n = low + (high - low + 1) / 2;
        if (cost_predict(c, n_tokens + n, attention + cost_attention(from, n)) <= target_ms)
            low = n;
        else
            high = n - 1;
    }
    return low;
}
