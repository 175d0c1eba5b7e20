/* Gradients of a layer's weights on matrix units: dyᵀ · x over all tokens. Included by kernels.c once, after large.h.
 *
 * x is woven once for all threads; each thread has rows of the gradient of its own, for which dy is turned, and their sums with some of the
 * columns stay in the second-level cache while it goes through the tokens. */

#if UNITS
enum { OUTPUTS_AT_ONCE = 256, INPUTS_AT_ONCE = 576, TOKENS_TOGETHER = 256 };

/* (tokens, width), which may be blocked. */
typedef struct {
    const uint16_t *numbers;
    int64_t width, blocked;
} of_tokens;

/* 32 tokens and columns become columns and tokens, those `down` apart. */
static void turn_block(const of_tokens *from, long token, long column, uint16_t *to, long down) {
    long distance = from->blocked ? BLOCK_OF : from->width;
    const uint16_t *block = from->numbers + place_of(token, column, from->width, (int)from->blocked);
    uint16_t pairs[BLOCK_OF * BLOCK_OF] __attribute__((aligned(64)));
    weave(block, distance, BLOCK_OF, BLOCK_OF, pairs);
    for (long half = 0; half < BLOCK_OF; half += UNIT) turn_pairs_16(pairs + 2 * half, 2 * BLOCK_OF, to + half * down, down);
}

/* Sums of some outputs go into `to`, or are added to `wide`. */
static void put_sums(const float *sums, long outputs, long inputs, uint16_t *to, float *wide, long distance) {
    for (long row = 0; row < outputs; row++, sums += INPUTS_AT_ONCE)
        for (long i = row * distance, own = 0; own < inputs; i += BLOCK_OF, own += BLOCK_OF) {
            __m512 left = _mm512_load_ps(sums + own), right = _mm512_load_ps(sums + own + UNIT);
            if (to) {
                write_32(to + i, left, right);
                continue;
            }
            _mm512_storeu_ps(wide + i, _mm512_add_ps(_mm512_loadu_ps(wide + i), left));
            _mm512_storeu_ps(wide + i + UNIT, _mm512_add_ps(_mm512_loadu_ps(wide + i + UNIT), right));
        }
}

/* The gradient (width of dy, width of x) into `to`, or added to `wide`. */
int weight_gradient(const of_tokens *dy, const of_tokens *x, uint16_t *to, float *wide, long tokens) {
    long threads = omp_get_max_threads(), apart = tokens + BLOCK_OF, inputs = x->width;
    uint16_t *woven = claim_halves(tokens * inputs + threads * OUTPUTS_AT_ONCE * apart);
    float *all_sums = claim(threads * OUTPUTS_AT_ONCE * INPUTS_AT_ONCE * 4);
    int failed = !woven || !all_sums;
#pragma omp parallel if (!failed)
    if (!failed) {
        long begin, end, thread = omp_get_thread_num();
        uint16_t *turned = woven + tokens * inputs + thread * OUTPUTS_AT_ONCE * apart;
        float *sums = all_sums + thread * OUTPUTS_AT_ONCE * INPUTS_AT_ONCE;
#pragma omp for schedule(static) collapse(2)
        for (long token = 0; token < tokens; token += BLOCK_OF)
            for (long in = 0; in < inputs; in += BLOCK_OF)
                weave(x->numbers + place_of(token, in, inputs, (int)x->blocked), x->blocked ? BLOCK_OF : inputs, BLOCK_OF, BLOCK_OF,
                      woven + in * tokens + token * BLOCK_OF);
        take_share(dy->width, BLOCK_OF, &begin, &end);
        for (long first = begin; first < end; first += OUTPUTS_AT_ONCE) {
            long rows = MIN(OUTPUTS_AT_ONCE, end - first);
            for (long out = 0; out < rows; out += BLOCK_OF)
                for (long token = 0; token < tokens; token += BLOCK_OF) turn_block(dy, token, first + out, turned + out * apart + token, apart);
            for (long column = 0; column < inputs; column += INPUTS_AT_ONCE) {
                long columns = MIN(INPUTS_AT_ONCE, inputs - column);
                for (long token = 0; token < tokens; token += TOKENS_TOGETHER)
                    for (long out = 0; out < rows; out += BLOCK_OF)
                        for (long in = 0; in < columns; in += BLOCK_OF) {
                            const uint16_t *b = woven + (column + in) * tokens + token * BLOCK_OF;
                            /* meanwhile an eighth of what the next tokens have in these columns comes near */
                            const char *soon = (const char *)(b + (TOKENS_TOGETHER + out) * BLOCK_OF);
                            float *block = sums + out * INPUTS_AT_ONCE + in;
                            begin_block(block, INPUTS_AT_ONCE, token > 0);
                            add_to_block(turned + out * apart + token, apart, BLOCK_OF, b, 2 * BLOCK_OF, MIN(TOKENS_TOGETHER, tokens - token),
                                         B_PASSES, soon);
                            end_block(block, INPUTS_AT_ONCE);
                        }
                long at = first * inputs + column;
                put_sums(sums, rows, columns, to ? to + at : 0, wide ? wide + at : 0, inputs);
            }
        }
        _tile_release();
    }
    free(woven);
    free(all_sums);
    return failed;
}
#endif
