/* LoRA's products on matrix units: between tokens and a rank of 32, 64, …, in one pass over what has a row a token. Included by
 * kernels.c once, after units.h. Tokens, widths and rank are multiples of 32; everything is bfloat16 but gradients of weights. */

#if UNITS
enum { PANEL = 64, STRETCH = 512 };

/* A matrix (rank, width) woven for both ways: across (width / 2, rank, 2), along (rank / 2, width, 2). */
int weave_both(const uint16_t *from, long rank, long width, uint16_t *across, uint16_t *along) {
    weave_across(from, width, rank, width, across);
    weave(from, width, rank, width, along);
    return 0;
}

/* z (tokens, rank) = x (tokens, width) · matrixᵀ, woven across. */
int to_rank(const uint16_t *x, const uint16_t *across, uint16_t *z, long tokens, long width, long rank) {
#pragma omp parallel
    {
        float block[BLOCK_OF * BLOCK_OF] __attribute__((aligned(64)));
        claim_units();
#pragma omp for schedule(static)
        for (long token = 0; token < tokens; token += BLOCK_OF)
            for (long r = 0; r < rank; r += BLOCK_OF) {
                block_product(x + token * width, width, across + 2 * r, 2 * rank, width, block, BLOCK_OF, 0);
                for (long i = 0; i < BLOCK_OF; i++) {
                    uint16_t *to = z + (token + i) * rank + r;
                    write_16(to, _mm512_load_ps(block + i * BLOCK_OF));
                    write_16(to + UNIT, _mm512_load_ps(block + i * BLOCK_OF + UNIT));
                }
            }
        _tile_release();
    }
    return 0;
}

/* y (tokens, width) += z (tokens, rank) · matrix, woven along. */
int from_rank(const uint16_t *z, const uint16_t *along, uint16_t *y, long tokens, long width, long rank) {
#pragma omp parallel
    {
        float block[BLOCK_OF * BLOCK_OF] __attribute__((aligned(64)));
        claim_units();
#pragma omp for schedule(static)
        for (long token = 0; token < tokens; token += BLOCK_OF)
            for (long column = 0; column < width; column += BLOCK_OF) {
                block_product(z + token * rank, rank, along + 2 * column, 2 * width, rank, block, BLOCK_OF, 0);
                for (long i = 0; i < BLOCK_OF; i++) {
                    uint16_t *to = y + (token + i) * width + column;
                    write_16(to, _mm512_add_ps(read_16(to), _mm512_load_ps(block + i * BLOCK_OF)));
                    write_16(to + UNIT, _mm512_add_ps(read_16(to + UNIT), _mm512_load_ps(block + i * BLOCK_OF + UNIT)));
                }
            }
        _tile_release();
    }
    return 0;
}

/* The gradient of a matrix, float32 (rank, width) = zᵀ · x, over all tokens; z (tokens, rank), x (tokens, width). */
int over_tokens(const uint16_t *z, const uint16_t *x, float *gradient, long tokens, long width, long rank) {
    uint16_t *turned = aligned_alloc(64, (size_t)(tokens * rank) * 2);
    if (!turned) return 1;
    int failed = 0;
#pragma omp parallel
    {
        uint16_t *panel = aligned_alloc(64, (size_t)(tokens * PANEL) * 2);
        if (!panel) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (long token = 0; token < tokens; token += BLOCK_OF)
            for (long r = 0; r < rank; r++)
                for (long i = 0; i < BLOCK_OF; i++) turned[r * tokens + token + i] = z[(token + i) * rank + r];
        claim_units();
#pragma omp for schedule(static)
        for (long column = 0; column < width; column += PANEL) {
            if (!panel) continue;
            long columns = MIN(PANEL, width - column);
            weave(x + column, width, tokens, columns, panel);
            units_product(rank, columns, tokens, turned, tokens, panel, 2 * columns, gradient + column, width, 0);
        }
        _tile_release();
        free(panel);
    }
    free(turned);
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
        uint16_t *panel = aligned_alloc(64, (size_t)(STRETCH * most + BLOCK_OF * apart) * 2), *some = panel + STRETCH * most;
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
        _tile_release();
        free(panel);
    }
    return failed;
}
#endif
