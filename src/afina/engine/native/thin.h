/* LoRA's products on matrix units: between tokens and a rank of 32, 64, …, in one pass over what has a row a token. Included by
 * kernels.c once, after units.h. Tokens, widths and rank are multiples of 32; everything is bfloat16 but gradients of weights. */

#if UNITS
enum { STRETCH = 512, TOKENS_AT_ONCE = 256 };

/* A matrix (rank, width) woven for both ways: across (width / 2, rank, 2), along (width / 32, rank / 2, 32, 2). */
int weave_both(const uint16_t *from, long rank, long width, uint16_t *across, uint16_t *along) {
    weave_across(from, width, rank, width, across);
    for (long column = 0; column < width; column += BLOCK_OF) weave(from + column, width, rank, BLOCK_OF, along + column * rank);
    return 0;
}

/* The gradient of a matrix, float32 (rank, width) = zᵀ · x, over all tokens; z (tokens, rank), x (tokens, width). Each thread has columns
 * of its own and goes through the tokens a few at a time, so that it reads rows as they lie. */
int over_tokens(const uint16_t *z, const uint16_t *x, float *gradient, long tokens, long width, long rank) {
    int failed = 0;
#pragma omp parallel
    {
        long first, end;
        take_share(width, BLOCK_OF, &first, &end);
        long columns = end - first;
        uint16_t *turned = claim_halves(TOKENS_AT_ONCE * (rank + columns)), *some = turned + TOKENS_AT_ONCE * rank;
        if (!turned) {
#pragma omp atomic write
            failed = 1;
        }
        for (long at = 0; at < tokens && turned; at += TOKENS_AT_ONCE) {
            long rows = MIN(TOKENS_AT_ONCE, tokens - at);
            for (long r = 0; r < rank; r += UNIT)
                for (long i = 0; i < rows; i += UNIT) turn_halves_16(z + (at + i) * rank + r, rank, turned + r * rows + i, rows);
            weave(x + at * width + first, width, rows, columns, some);
            units_product(rank, columns, rows, turned, rows, some, 2 * columns, gradient + first, width, at > 0);
        }
        release_units();
        give_back(turned);
    }
    return failed;
}

/* to (rows, width), float32 = scores (rows, words) · weight (words, width): few results of very many terms. Each thread has columns of
 * its own and goes through words a stretch at a time, so that weights are woven once and sums stay in the cache. */
int over_words(const uint16_t *scores, const uint16_t *weight, float *to, long rows, long words, long width) {
    int failed = 0;
#pragma omp parallel
    {
        long threads = omp_get_num_threads(), blocks = width / BLOCK_OF;
        long most = (blocks + threads - 1) / threads * BLOCK_OF, apart = STRETCH + BLOCK_OF;
        uint16_t *panel = claim_halves(STRETCH * most + BLOCK_OF * apart), *some = panel + STRETCH * most;
        if (!panel) {
#pragma omp atomic write
            failed = 1;
        }
        claim_units();
#pragma omp for schedule(static)
        for (long part = 0; part < threads; part++) {
            long first = part * blocks / threads * BLOCK_OF, columns = (part + 1) * blocks / threads * BLOCK_OF - first;
            if (!panel || !columns) continue;
            for (long word = 0; word < words; word += STRETCH) {
                long depth = MIN(STRETCH, words - word);
                weave(weight + word * width + first, width, depth, columns, panel);
                for (long row = 0; row < rows; row += BLOCK_OF) {
                    /* rows lie a multiple of a page apart, which a cache keeps few of: they are brought together first */
                    for (long i = 0; i < BLOCK_OF; i++)
                        memcpy(some + i * apart, scores + (row + i) * words + word, (size_t)depth * 2);
                    units_product(BLOCK_OF, columns, depth, some, apart, panel, 2 * columns, to + row * width + first, width,
                                  word > 0);
                }
            }
        }
        release_units();
        give_back(panel);
    }
    return failed;
}
#endif
