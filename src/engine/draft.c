#include "engine/draft.h"

enum { LEAST_MATCH = 2, MOST_MATCH = 8 };

/* How many tokens before `end` are equal to the last ones. */
static int match_at(const int32_t *tokens, int n, int end)
{
    int len = 0;
    while (len < MOST_MATCH && len < end && tokens[end - 1 - len] == tokens[n - 1 - len])
        len++;
    return len;
}

int draft_guess(const int32_t *tokens, int n, int32_t *out, int n_most)
{
    int best = LEAST_MATCH - 1, at = 0;
    for (int end = n - 1; end >= LEAST_MATCH && best < MOST_MATCH; end--) {
        int len = tokens[end - 1] == tokens[n - 1] ? match_at(tokens, n, end) : 0;
        if (len > best) {
            best = len;
            at = end;
        }
    }
    if (!at)
        return 0;
    /* past the end the guess goes on with itself: a short loop fills the whole guess */
    for (int i = 0; i < n_most; i++)
        out[i] = at + i < n ? tokens[at + i] : out[at + i - n];
    return n_most;
}
