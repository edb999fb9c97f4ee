/* draft.h - guesses the next tokens from the text so far.
 *
 * Prompt lookup (Saxena, 2023): where the last tokens stood before, what followed then follows
 * again. Good for summaries, code edits and answers that quote. */
#pragma once

#include <stdint.h>

/* Guesses up to n_most tokens that follow tokens[0..n) and writes them to out. Takes the longest
 * earlier occurrence of the last tokens (2 to 8 of them), the latest of equals. Returns how many.
 */
int draft_guess(const int32_t *tokens, int n, int32_t *out, int n_most);
