/* What happens to tokens on either side of attention, each half of a layer in one call, on matrix units: a few rows go through norm,
 * products, gates or rotations and the residual sum while they are in the cache. Included by kernels.c once, after large.h and the
 * bfloat16 of rows.h. Results do not depend on how the work is shared out. */

#if UNITS
enum { GATES_AT_ONCE = 384 };

/* A norm before a product: inverse (tokens) = 1 / rms. */
typedef struct {
    const float *scale;
    float *inverse;
    float eps;
} norm_of;

/* h of some rows of x, of which the first is token `at`; their 1 / rms may be `given`. As norm_row in rows.h. */
static void norm_rows(const uint16_t *x, const norm_of *n, long at, long rows, long width, int given, uint16_t *h) {
    for (long row = 0; row < rows; row++, x += width, h += width) {
        if (!given) n->inverse[at + row] = inverse_of_bfloat16(x, width, n->eps);
        const __m512 inverse = _mm512_set1_ps(n->inverse[at + row]);
        for (long i = 0; i < width; i += UNIT)
            write_16(h + i, _mm512_mul_ps(_mm512_mul_ps(read_16(x + i), inverse), _mm512_loadu_ps(n->scale + i)));
    }
}

/* The first `heads` heads of a token turned to its place, or `back`. As rotate_row in rows.h. */
static void turn_heads(uint16_t *x, const uint16_t *cosine, const uint16_t *sine, long heads, long size, int back) {
    const long half = size / 2;
    if (half % UNIT) {
        rotate_row_bfloat16(x, cosine, sine, heads, size, back);
        return;
    }
    for (uint16_t *head = x; head < x + heads * size; head += size)
        for (long i = 0; i < half; i += UNIT) {
            __m512 one = read_16(head + i), two = read_16(head + half + i), cos = read_16(cosine + i), sin = read_16(sine + i);
            if (back) sin = _mm512_sub_ps(_mm512_setzero_ps(), sin);
            write_16(head + i, _mm512_fmsub_ps(one, cos, _mm512_mul_ps(two, sin)));
            write_16(head + half + i, _mm512_fmadd_ps(two, cos, _mm512_mul_ps(one, sin)));
        }
}

/* y = product(norm(x)) with the first `heads` heads of `size` turned to their places by cosine and sine (tokens, size / 2). */
int first_half(const uint16_t *x, const norm_of *n, const factor *f, const uint16_t *cosine, const uint16_t *sine, uint16_t *z, uint16_t *y,
               long tokens, long heads, long size) {
    long stretches = count_stretches(tokens), threads = omp_get_max_threads(), own = ROWS_AT_ONCE * (f->depth + f->width);
    uint16_t *panels = claim_halves(f->depth * f->width + threads * own);
    hand *hands = claim_hands();
    const int failed = !panels || !hands;
#pragma omp parallel if (!failed)
    if (!failed) {
        float sums[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        uint16_t *h = panels + f->depth * f->width + omp_get_thread_num() * own, *found = h + ROWS_AT_ONCE * f->depth;
        deal(hands, stretches);
        lay_panels(f, panels);
        claim_units();
        for (long stretch; (stretch = take_piece(hands)) >= 0;) {
            long at = begin_of(stretch, stretches, tokens), rows = begin_of(stretch + 1, stretches, tokens) - at;
            norm_rows(x + at * f->depth, n, at, rows, f->depth, 0, h);
            find_rows(h, 0, rows, f, panels, sums, 0, z + at * f->rank, found);
            for (long row = 0; row < rows; row++)
                turn_heads(found + row * f->width, cosine + (at + row) * (size / 2), sine + (at + row) * (size / 2), heads, size, 0);
            memcpy(y + at * f->width, found, (size_t)(rows * f->width) * 2);
        }
        release_units();
    }
    give_back(panels);
    give_back(hands);
    return failed;
}

/* For what else is trained than LoRA's matrices: what went into a half's products, and gradients of what came out; rows a token, of
 * feed-forwards between and d_gate_up in blocks, each woven. 0 where not wanted. */
typedef struct {
    uint16_t *h, *d_h, *between, *d_gate_up;
} wanted;

/* Back through a norm, for some tokens from `at` on, of which h and d_h are there: h, its result once more, and dx, the gradient of x plus
 * `residual`. As norm_backward_row in rows.h. */
static void back_through_norm(const uint16_t *x, const norm_of *n, const uint16_t *residual, uint16_t *h, const uint16_t *d_h, uint16_t *dx,
                              long at, long rows, long width) {
    norm_rows(x + at * width, n, at, rows, width, 1, h);
    for (long row = at; row < at + rows; row++, d_h += width) {
        const uint16_t *from = x + row * width, *more = residual + row * width;
        __m512 sum = _mm512_setzero_ps();
        for (long i = 0; i < width; i += UNIT)
            sum = _mm512_fmadd_ps(_mm512_mul_ps(read_16(d_h + i), _mm512_loadu_ps(n->scale + i)), read_16(from + i), sum);
        const float own = n->inverse[row];
        const __m512 inverse = _mm512_set1_ps(own), mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) * own * own * own / (float)width);
        for (long i = 0; i < width; i += UNIT) {
            __m512 change = _mm512_mul_ps(_mm512_mul_ps(read_16(d_h + i), _mm512_loadu_ps(n->scale + i)), inverse);
            write_16(dx + row * width + i, _mm512_add_ps(_mm512_fnmadd_ps(read_16(from + i), mean, change), read_16(more + i)));
        }
    }
}

/* Backward of first_half; the gradient dy of y is turned back in place. */
int first_half_backward(uint16_t *dy, const uint16_t *x, const norm_of *n, const factor *f, const learned *of, const wanted *w,
                        const uint16_t *cosine, const uint16_t *sine, const uint16_t *residual, uint16_t *dx, long tokens, long heads,
                        long size) {
    long stretches = count_stretches(tokens), threads = omp_get_max_threads(), width = f->width;
    long own = halves_to_learn(f) + ROWS_AT_ONCE * (2 * width + f->rank);
    uint16_t *panels = claim_halves(f->depth * width + threads * own);
    float *shares = claim(4 * sums_to_learn(f, stretches));
    hand *hands = claim_hands();
    int failed = !panels || !shares || !hands;
#pragma omp parallel if (!failed)
    if (!failed) {
        float sums[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        uint16_t *memory = panels + f->depth * width + omp_get_thread_num() * own;
        const learning l = learning_at(f, of, memory, shares, stretches);
        uint16_t *dz = memory + halves_to_learn(f), *some_h = dz + ROWS_AT_ONCE * f->rank, *some_d_h = some_h + ROWS_AT_ONCE * width;
        deal(hands, stretches);
        lay_panels(f, panels);
        claim_units();
        for (long stretch; (stretch = take_piece(hands)) >= 0;) {
            long at = begin_of(stretch, stretches, tokens), rows = begin_of(stretch + 1, stretches, tokens) - at;
            uint16_t *h = w ? w->h + at * width : some_h, *d_h = w ? w->d_h + at * width : some_d_h;
            for (long row = at; row < at + rows; row++)
                turn_heads(dy + row * f->depth, cosine + row * (size / 2), sine + row * (size / 2), heads, size, 1);
            find_rows(dy + at * f->depth, 0, rows, f, panels, sums, 0, dz, d_h);
            back_through_norm(x, n, residual, h, d_h, dx, at, rows, width);
            learn_from(&l, of ? of->z + at * f->rank : 0, dz, rows);
            learn_all_up(&l, dy + at * f->depth, rows, stretch);
            learn_all_down(&l, h, rows, stretch);
        }
        release_units();
        end_learning(&l, stretches);
    }
    give_back(panels);
    give_back(shares);
    give_back(hands);
    return failed;
}

/* Numbers that will not be looked at for long: past the caches. */
static void put_away(const uint16_t *from, uint16_t *to, long count) {
    for (long i = 0; i < count; i += BLOCK_OF) _mm512_stream_si512((__m512i *)(to + i), _mm512_load_si512(from + i));
}

static inline __attribute__((always_inline)) void gate_16(const uint16_t *gate, const uint16_t *up, uint16_t *to, const int gelu) {
    __m512 slope;
    write_16(to, _mm512_mul_ps(activation_16(read_16(gate), gelu, &slope), read_16(up)));
}

/* What happened to 16 gates of a token, the way back. */
typedef struct {
    __m512 between, d_gate, d_up;
} gate_back;

static inline __attribute__((always_inline)) gate_back gate_back_16(const uint16_t *d, const uint16_t *gate, const uint16_t *up, const int gelu) {
    /* the next columns of these tokens lie behind these */
    _mm_prefetch(gate + BLOCK_OF * BLOCK_OF, _MM_HINT_T1);
    _mm_prefetch(up + BLOCK_OF * BLOCK_OF, _MM_HINT_T1);
    __m512 slope, by = read_16(d), u = read_16(up), active = activation_16(read_16(gate), gelu, &slope);
    return (gate_back){_mm512_mul_ps(active, u), _mm512_mul_ps(_mm512_mul_ps(by, u), slope), _mm512_mul_ps(active, by)};
}

/* Of a block of 32 tokens: gradients of gates and ups, and woven, these and between. */
static inline __attribute__((always_inline)) void gate_back_block(const uint16_t *d, const uint16_t *gate, const uint16_t *up, uint16_t *d_gate,
                                                                  uint16_t *d_up, uint16_t *const woven[3], const int gelu) {
    for (long row = 0; row < BLOCK_OF * BLOCK_OF; row += 2 * BLOCK_OF)
        for (long half = 0; half < BLOCK_OF; half += UNIT) {
            long i = row + half, j = i + BLOCK_OF, pairs = row + 2 * half;
            gate_back one = gate_back_16(d + i, gate + i, up + i, gelu), two = gate_back_16(d + j, gate + j, up + j, gelu);
            write_16(d_gate + i, one.d_gate);
            write_16(d_gate + j, two.d_gate);
            write_16(d_up + i, one.d_up);
            write_16(d_up + j, two.d_up);
            _mm512_store_si512(woven[0] + pairs, woven_16(one.d_gate, two.d_gate));
            _mm512_store_si512(woven[1] + pairs, woven_16(one.d_up, two.d_up));
            _mm512_store_si512(woven[2] + pairs, woven_16(one.between, two.between));
        }
}

/* x + down(act(gate) · up) of norm(x), with gates and ups kept for backward, blocked. */
int feed_forward(const uint16_t *x, const norm_of *n, const factor *first, const factor *last, uint16_t *z, uint16_t *gate_up,
                 uint16_t *z_last, uint16_t *y, long tokens, int gelu) {
    long width = first->depth, inner = last->depth, own = ROWS_AT_ONCE * (width + inner);
    long stretches = count_stretches(tokens), threads = omp_get_max_threads();
    uint16_t *panels = claim_halves(width * (first->width + inner) + threads * own), *panels_last = panels + width * first->width;
    hand *hands = claim_hands();
    const int failed = !panels || !hands;
#pragma omp parallel if (!failed)
    if (!failed) {
        float sums[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        uint16_t gate[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64))), up[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        uint16_t *h = panels_last + width * inner + omp_get_thread_num() * own, *between = h + ROWS_AT_ONCE * width;
        deal(hands, stretches);
        lay_panels(first, panels);
        lay_panels(last, panels_last);
        claim_units();
        for (long stretch; (stretch = take_piece(hands)) >= 0;) {
            long at = begin_of(stretch, stretches, tokens), rows = begin_of(stretch + 1, stretches, tokens) - at;
            norm_rows(x + at * width, n, at, rows, width, 0, h);
            take_to_rank(h, 0, rows, first, z + at * first->rank);
            for (long column = 0; column < inner; column += BLOCK_OF) {
                find_columns(h, 0, z + at * first->rank, rows, first, panels, column, 0, width, sums, 0, gate, BLOCK_OF);
                find_columns(h, 0, z + at * first->rank, rows, first, panels, inner + column, 0, width, sums, 0, up, BLOCK_OF);
                for (long part = 0; part < rows; part += BLOCK_OF) {
                    const uint16_t *of_gate = gate + part * BLOCK_OF, *of_up = up + part * BLOCK_OF;
                    uint16_t *to = between + place_of(part, column, inner, 1), *kept = gate_up + place_of(at + part, column, 2 * inner, 1);
                    if (gelu)
                        for (long i = 0; i < BLOCK_OF * BLOCK_OF; i += UNIT) gate_16(of_gate + i, of_up + i, to + i, 1);
                    else
                        for (long i = 0; i < BLOCK_OF * BLOCK_OF; i += UNIT) gate_16(of_gate + i, of_up + i, to + i, 0);
                    put_away(of_gate, kept, BLOCK_OF * BLOCK_OF);
                    put_away(of_up, kept + inner * BLOCK_OF, BLOCK_OF * BLOCK_OF);
                }
            }
            find_rows(between, 1, rows, last, panels_last, sums, x + at * width, z_last + at * last->rank, y + at * width);
        }
        release_units();
        _mm_sfence();
    }
    give_back(panels);
    give_back(hands);
    return failed;
}

/* Backward of feed_forward: dx, and the gradients of LoRA's matrices beside both products. */
int feed_forward_backward(const uint16_t *dy, const uint16_t *x, const norm_of *n, const factor *last, const factor *first,
                          const learned *of_last, const learned *of_first, const wanted *w, const uint16_t *gate_up, uint16_t *dx,
                          long tokens, int gelu) {
    long width = last->depth, inner = last->width, far = inner * BLOCK_OF, weights = width * (first->depth + inner);
    long stretches = count_stretches(tokens), threads = omp_get_max_threads(), learning_last = halves_to_learn(last);
    long learning_both = learning_last + halves_to_learn(first);
    long own = learning_both + ROWS_AT_ONCE * (last->rank + first->rank + 2 * width + 2 * inner + 2 * width);
    uint16_t *panels = claim_halves(weights + threads * own), *panels_last = panels + width * first->depth;
    float *shares = claim(4 * (sums_to_learn(last, stretches) + sums_to_learn(first, stretches)));
    hand *hands = claim_hands();
    int failed = !panels || !shares || !hands;
#pragma omp parallel if (!failed)
    if (!failed) {
        float sums[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        uint16_t change[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64))), woven[3][ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        uint16_t *memory = panels + weights + omp_get_thread_num() * own;
        const learning l_last = learning_at(last, of_last, memory, shares, stretches);
        const learning l_first = learning_at(first, of_first, memory + learning_last, shares + sums_to_learn(last, stretches), stretches);
        uint16_t *dz_last = memory + learning_both, *dz = dz_last + ROWS_AT_ONCE * last->rank, *some_h = dz + ROWS_AT_ONCE * first->rank;
        uint16_t *some_d_h = some_h + ROWS_AT_ONCE * width, *d_gate_up = some_d_h + ROWS_AT_ONCE * width;
        float *all_sums = (float *)(d_gate_up + ROWS_AT_ONCE * 2 * inner);
        deal(hands, stretches);
        lay_panels(last, panels_last);
        lay_panels(first, panels);
        claim_units();
        for (long stretch; (stretch = take_piece(hands)) >= 0;) {
            long at = begin_of(stretch, stretches, tokens), rows = begin_of(stretch + 1, stretches, tokens) - at;
            const uint16_t *d = dy + at * width;
            uint16_t *h = w ? w->h + at * width : some_h, *d_h = w ? w->d_h + at * width : some_d_h;
            take_to_rank(d, 0, rows, last, dz_last);
            learn_from(&l_last, of_last ? of_last->z + at * last->rank : 0, dz_last, rows);
            learn_from(&l_first, of_first ? of_first->z + at * first->rank : 0, 0, rows);
            learn_all_up(&l_last, d, rows, stretch);
            for (long from = 0; from < inner; from += GATES_AT_ONCE) {
                long to = MIN(inner, from + GATES_AT_ONCE);
                for (long column = from; column < to; column += BLOCK_OF) {
                    find_columns(d, 0, dz_last, rows, last, panels_last, column, 0, width, sums, 0, change, BLOCK_OF);
                    for (long part = 0; part < rows; part += BLOCK_OF) {
                        const uint16_t *by = change + part * BLOCK_OF, *gate = gate_up + place_of(at + part, column, 2 * inner, 1);
                        uint16_t *d_gate = d_gate_up + place_of(part, column, 2 * inner, 1);
                        uint16_t *const pairs[3] = {woven[0] + part * BLOCK_OF, woven[1] + part * BLOCK_OF, woven[2] + part * BLOCK_OF};
                        if (gelu)
                            gate_back_block(by, gate, gate + far, d_gate, d_gate + far, pairs, 1);
                        else
                            gate_back_block(by, gate, gate + far, d_gate, d_gate + far, pairs, 0);
                        if (!w) continue;
                        uint16_t *to = w->d_gate_up + place_of(at + part, column, 2 * inner, 1);
                        put_away(pairs[0], to, BLOCK_OF * BLOCK_OF);
                        put_away(pairs[1], to + far, BLOCK_OF * BLOCK_OF);
                        put_away(pairs[2], w->between + place_of(at + part, column, inner, 1), BLOCK_OF * BLOCK_OF);
                    }
                    learn_up(&l_first, woven[0], rows, column, stretch);
                    learn_up(&l_first, woven[1], rows, inner + column, stretch);
                    learn_down(&l_last, woven[2], rows, column, stretch);
                }
                if (to == inner) take_to_rank(d_gate_up, 1, rows, first, dz);
                for (long column = 0; column < width; column += BLOCK_OF) {
                    float *own_sums = all_sums + column * ROWS_AT_ONCE;
                    find_columns(d_gate_up, 1, dz, rows, first, panels, column, from, to, own_sums, 0, 0, 0);
                    find_columns(d_gate_up, 1, dz, rows, first, panels, column, inner + from, inner + to, own_sums, 0, d_h + column, width);
                }
            }
            back_through_norm(x, n, dy, h, d_h, dx, at, rows, width);
            learn_from(&l_first, 0, dz, rows);
            learn_all_down(&l_first, h, rows, stretch);
        }
        release_units();
        _mm_sfence();
        end_learning(&l_last, stretches);
        end_learning(&l_first, stretches);
    }
    give_back(panels);
    give_back(shares);
    give_back(hands);
    return failed;
}
#endif
