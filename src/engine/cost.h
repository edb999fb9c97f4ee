/* cost.h - how long a step takes, learnt while serving.
 *
 * ms = f(tokens) + c * attention. A few tokens cost what reading the weights costs, however many
 * they are; from then on every token costs the same. So f is a curve, not a line: it has a value at
 * every power of two and goes straight in between. Each measurement moves the two values beside it
 * and, so that sizes not seen yet are guessed well, whatever contradicts them: twice the tokens
 * cost no more than twice the time, and (nearly) no less.
 *
 *     ms |                    /        f(1) .. f(8): memory is the bound
 *        |                 /           f(16) ..:     multiplication is
 *        |______________/
 *        +----------------------- tokens
 *
 * Each value is a scalar Kalman filter (Kalman, 1960) that lets the value drift, so that f follows
 * a machine whose speed changes; measurements far outside what is expected count as less. */
#pragma once

enum { COST_KNOTS = 14 }; /* 1 .. 8192 tokens */

struct cost {
    double ms[COST_KNOTS], var[COST_KNOTS]; /* f(2^i), and how unsure it is (ms^2) */
    double slope, slope_var;                /* c: ms per 1000 positions */
};

void cost_init(struct cost *c);

/* What n new tokens of a sequence that has `from` add to a step's attention: the positions that
 * each one looks at, and the reading of the keys and values, which costs about as much as using
 * them COST_READ times. */
enum { COST_READ = 7 };
static inline double cost_attention(int from, int n)
{
    return (double)n * from + 0.5 * n * (n + 1.0) + (double)COST_READ * (from + n);
}

/* A step of so many tokens and so much attention took ms. */
void cost_learn(struct cost *c, int n_tokens, double attention, double ms);

double cost_predict(const struct cost *c, int n_tokens, double attention);

/* How many more tokens, at most `most`, of a sequence that has `from` fit into target_ms beside
 * n_tokens with `attention`. At least 0. */
int cost_room(const struct cost *c, double target_ms, int n_tokens, double attention, int from,
              int most);
