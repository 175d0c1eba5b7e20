/* What happens to tokens on either side of attention, each half of a layer in one call, on matrix units: a few rows go through norm,
 * products, gates or rotations and the residual sum while they are in the cache. Included by kernels.c once, after large.h and the
 * bfloat16 of rows.h. Results do not depend on how the work is shared out. */

#if UNITS
/* A norm before a product: inverse (tokens) = 1 / rms. */
typedef struct {
    const float *scale;
    float *inverse;
    float eps;
} norm_of;

static void norm_rows(const uint16_t *x, const norm_of *n, long at, long rows, long width, int given, uint16_t *h) {
    for (long row = 0; row < rows; row++) {
        if (!given) n->inverse[at + row] = inverse_of_bfloat16(x + (at + row) * width, width, n->eps);
        norm_row_bfloat16(x + (at + row) * width, n->scale, n->inverse[at + row], h + row * width, width);
    }
}

/* y = product(norm(x)) with the first `heads` heads of `size` turned to their places by cosine and sine (tokens, size / 2). */
int first_half(const uint16_t *x, const norm_of *n, const factor *f, const uint16_t *cosine, const uint16_t *sine, uint16_t *z, uint16_t *y,
               long tokens, long heads, long size) {
    uint16_t *panels = claim_halves(f->depth * f->width);
    int failed = !panels;
#pragma omp parallel if (panels)
    {
        float sums[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        long begin, end;
        uint16_t *h = claim_halves(ROWS_AT_ONCE * (f->depth + f->width)), *found = h + ROWS_AT_ONCE * f->depth;
        if (!h) {
#pragma omp atomic write
            failed = 1;
        }
        if (panels) lay_panels(f, panels);
        take_share(tokens, BLOCK_OF, &begin, &end);
        for (long at = begin; at < end && h && panels; at += ROWS_AT_ONCE) {
            long rows = MIN(ROWS_AT_ONCE, end - at);
            norm_rows(x, n, at, rows, f->depth, 0, h);
            find_rows(h, 0, rows, f, panels, sums, 0, z + at * f->rank, found);
            for (long row = 0; row < rows; row++)
                rotate_row_bfloat16(found + row * f->width, cosine + (at + row) * (size / 2), sine + (at + row) * (size / 2), heads, size, 0);
            memcpy(y + at * f->width, found, (size_t)(rows * f->width) * 2);
        }
        _tile_release();
        free(h);
    }
    free(panels);
    return failed;
}

/* Back through a product and the norm before it: h, the norm's result once more, d_h, its gradient, and dx, that of x plus `residual`. */
static void back_through_norm(const uint16_t *dy, int blocked, const uint16_t *x, const norm_of *n, const factor *f, const uint16_t *panels,
                              const uint16_t *residual, float *sums, uint16_t *dz, uint16_t *h, uint16_t *d_h, uint16_t *dx, long at,
                              long rows) {
    long width = f->width;
    norm_rows(x, n, at, rows, width, 1, h + at * width);
    find_rows(dy + at * f->depth, blocked, rows, f, panels, sums, 0, dz + at * f->rank, d_h + at * width);
    for (long row = at; row < at + rows; row++)
        norm_backward_row_bfloat16(d_h + row * width, x + row * width, n->scale, n->inverse[row], residual + row * width, dx + row * width,
                                   width);
}

/* Backward of first_half; the gradient dy of y is turned back in place. */
int first_half_backward(uint16_t *dy, const uint16_t *x, const norm_of *n, const factor *f, const uint16_t *cosine, const uint16_t *sine,
                        const uint16_t *residual, uint16_t *dz, uint16_t *h, uint16_t *d_h, uint16_t *dx, long tokens, long heads,
                        long size) {
    uint16_t *panels = claim_halves(f->depth * f->width);
    if (!panels) return 1;
#pragma omp parallel
    {
        float sums[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        long begin, end;
        lay_panels(f, panels);
        take_share(tokens, BLOCK_OF, &begin, &end);
        for (long at = begin; at < end; at += ROWS_AT_ONCE) {
            long rows = MIN(ROWS_AT_ONCE, end - at);
            for (long row = at; row < at + rows; row++)
                rotate_row_bfloat16(dy + row * f->depth, cosine + row * (size / 2), sine + row * (size / 2), heads, size, 1);
            back_through_norm(dy, 0, x, n, f, panels, residual, sums, dz, h, d_h, dx, at, rows);
        }
        _tile_release();
    }
    free(panels);
    return 0;
}

/* Numbers that will not be looked at for long: past the caches. */
static void put_away(const uint16_t *from, uint16_t *to, long count) {
    for (long i = 0; i < count; i += BLOCK_OF) _mm512_stream_si512((__m512i *)(to + i), _mm512_load_si512(from + i));
}

static inline __attribute__((always_inline)) void gate_16(const uint16_t *gate, const uint16_t *up, uint16_t *to, const int gelu) {
    __m512 slope;
    write_16(to, _mm512_mul_ps(activation_16(read_16(gate), gelu, &slope), read_16(up)));
}

static inline __attribute__((always_inline)) void gate_back_16(const uint16_t *d, const uint16_t *gate, const uint16_t *up, uint16_t *d_gate,
                                                               uint16_t *d_up, uint16_t *to, const int gelu) {
    __m512 slope, by = read_16(d), u = read_16(up), active = activation_16(read_16(gate), gelu, &slope);
    write_16(to, _mm512_mul_ps(active, u));
    write_16(d_up, _mm512_mul_ps(active, by));
    write_16(d_gate, _mm512_mul_ps(_mm512_mul_ps(by, u), slope));
}

/* x + down(act(gate) · up) of norm(x), with gates and ups kept for backward, blocked. Tokens are a multiple of 64. */
int feed_forward(const uint16_t *x, const norm_of *n, const factor *first, const factor *last, uint16_t *z, uint16_t *gate_up,
                 uint16_t *z_last, uint16_t *y, long tokens, int gelu) {
    long width = first->depth, inner = last->depth;
    uint16_t *panels = claim_halves(width * (first->width + inner)), *panels_last = panels + width * first->width;
    int failed = !panels;
#pragma omp parallel if (panels)
    {
        float sums[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        uint16_t gate[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64))), up[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        long begin, end;
        uint16_t *h = claim_halves(ROWS_AT_ONCE * (width + inner)), *between = h + ROWS_AT_ONCE * width;
        if (!h) {
#pragma omp atomic write
            failed = 1;
        }
        if (panels) {
            lay_panels(first, panels);
            lay_panels(last, panels_last);
        }
        take_share(tokens, KEPT_ROWS, &begin, &end);
        for (long at = begin; at < end && h && panels; at += ROWS_AT_ONCE) {
            long rows = MIN(ROWS_AT_ONCE, end - at);
            norm_rows(x, n, at, rows, width, 0, h);
            take_to_rank(h, 0, rows, first, z + at * first->rank);
            for (long column = 0; column < inner; column += BLOCK_OF) {
                find_columns(h, 0, z + at * first->rank, rows, first, panels, column, sums, 0, gate, BLOCK_OF);
                find_columns(h, 0, z + at * first->rank, rows, first, panels, inner + column, sums, 0, up, BLOCK_OF);
                for (long part = 0; part < rows; part += KEPT_ROWS) {
                    const uint16_t *of_gate = gate + part * BLOCK_OF, *of_up = up + part * BLOCK_OF;
                    uint16_t *to = between + place_of(part, column, inner, 1), *kept = gate_up + place_of(at + part, column, 2 * inner, 1);
                    if (gelu)
                        for (long i = 0; i < KEPT_ROWS * BLOCK_OF; i += UNIT) gate_16(of_gate + i, of_up + i, to + i, 1);
                    else
                        for (long i = 0; i < KEPT_ROWS * BLOCK_OF; i += UNIT) gate_16(of_gate + i, of_up + i, to + i, 0);
                    put_away(of_gate, kept, KEPT_ROWS * BLOCK_OF);
                    put_away(of_up, kept + inner * KEPT_ROWS, KEPT_ROWS * BLOCK_OF);
                }
            }
            find_rows(between, 1, rows, last, panels_last, sums, x + at * width, z_last + at * last->rank, y + at * width);
        }
        _tile_release();
        _mm_sfence();
        free(h);
    }
    free(panels);
    return failed;
}

/* Backward of feed_forward: with dx the gradients of what went into its products and, blocked, what that was, from which those of weights
 * are made. */
int feed_forward_backward(const uint16_t *dy, const uint16_t *x, const norm_of *n, const factor *last, const factor *first,
                          const uint16_t *gate_up, uint16_t *dz_last, uint16_t *between, uint16_t *d_gate_up, uint16_t *dz, uint16_t *h,
                          uint16_t *d_h, uint16_t *dx, long tokens, int gelu) {
    long width = last->depth, inner = last->width;
    uint16_t *panels = claim_halves(width * (first->depth + inner)), *panels_last = panels + width * first->depth;
    if (!panels) return 1;
#pragma omp parallel
    {
        float sums[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        uint16_t change[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        long begin, end, far = inner * KEPT_ROWS;
        lay_panels(last, panels_last);
        lay_panels(first, panels);
        take_share(tokens, KEPT_ROWS, &begin, &end);
        for (long at = begin; at < end; at += ROWS_AT_ONCE) {
            long rows = MIN(ROWS_AT_ONCE, end - at);
            take_to_rank(dy + at * width, 0, rows, last, dz_last + at * last->rank);
            for (long column = 0; column < inner; column += BLOCK_OF) {
                find_columns(dy + at * width, 0, dz_last + at * last->rank, rows, last, panels_last, column, sums, 0, change, BLOCK_OF);
                for (long part = 0; part < rows; part += KEPT_ROWS) {
                    const uint16_t *d = change + part * BLOCK_OF, *gate = gate_up + place_of(at + part, column, 2 * inner, 1);
                    uint16_t *d_gate = d_gate_up + place_of(at + part, column, 2 * inner, 1);
                    uint16_t *to = between + place_of(at + part, column, inner, 1);
                    if (gelu)
                        for (long i = 0; i < KEPT_ROWS * BLOCK_OF; i += UNIT)
                            gate_back_16(d + i, gate + i, gate + far + i, d_gate + i, d_gate + far + i, to + i, 1);
                    else
                        for (long i = 0; i < KEPT_ROWS * BLOCK_OF; i += UNIT)
                            gate_back_16(d + i, gate + i, gate + far + i, d_gate + i, d_gate + far + i, to + i, 0);
                }
            }
            back_through_norm(d_gate_up, 1, x, n, first, panels, dy, sums, dz, h, d_h, dx, at, rows);
        }
        _tile_release();
    }
    free(panels);
    return 0;
}
#endif
