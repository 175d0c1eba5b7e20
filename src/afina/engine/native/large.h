/* Products of what has a row a token with a layer's weights, on matrix units, with LoRA's share of them. Included by kernels.c once, after
 * units.h. Tokens, widths and rank are multiples of 32; everything is bfloat16, summed in float32.
 *
 * A thread takes ROWS_AT_ONCE tokens at a time through all that happens to them: they stay in its second-level cache, as do the sums
 * of 32 columns (NEAR numbers fit there with room to spare), and of the weights a PART of 32 columns in the first-level cache. Weights lie
 * in panels of 32 columns, each woven. */

#if UNITS
enum { PART = 576, STRIP = 384, BLOCKS_AT_ONCE = 10, ROWS_AT_ONCE = BLOCKS_AT_ONCE * BLOCK_OF, NEAR = 1 << 19 };

/* From here on, and up to there. */
typedef struct {
    int32_t begin, end;
} span;

/* x (…, depth) → x · matrix + z · up (+ bias) (…, width) with z = x · downᵀ (…, rank). weight: the matrix (depth, width), or where
 * `turned` its transpose; across: down (depth / 2, rank, 2), along: up (width / 32, rank / 2, 32, 2), neither where rank is 0. Outside some
 * spans these are zeros: inputs of each 16 ranks of down, and ranks of each 32 columns of up; of multiples of 32 and of 16. */
typedef struct {
    const uint16_t *weight, *bias, *across, *along;
    const span *inputs, *ranks;
    int64_t depth, width, rank, turned;
} factor;

/* Where the tokens from `row` on (a multiple of 32) have the 32 numbers from `column` on, of `width` that each token has: in rows, or
 * `blocked` in pieces of 32 tokens and 32 numbers, so that memory is written and read as it lies. */
static inline long place_of(long row, long column, long width, int blocked) { return row * width + (blocked ? column * BLOCK_OF : column); }

/* The weight in panels (width / 32, depth / 2, 32, 2). To be called by all threads; ends with a barrier. */
static void lay_panels(const factor *f, uint16_t *panels) {
    long depth = f->depth, width = f->width;
    if (f->turned) {
#pragma omp for schedule(dynamic)
        for (long column = 0; column < width; column += BLOCK_OF)
            for (long step = 0; step < depth; step += BLOCK_OF)
                for (long half = 0; half < BLOCK_OF; half += UNIT)
                    turn_pairs_16(f->weight + (column + half) * depth + step, depth, panels + (column * depth + step * BLOCK_OF) + 2 * half, 2 * BLOCK_OF);
    } else {
#pragma omp for schedule(dynamic) collapse(2)
        for (long step = 0; step < depth; step += STRIP)
            for (long column = 0; column < width; column += STRIP)
                for (long row = step; row < MIN(depth, step + STRIP); row += 2)
                    for (long own = column; own < MIN(width, column + STRIP); own += BLOCK_OF) {
                        const uint16_t *from = f->weight + row * width + own;
                        __builtin_prefetch(from + AHEAD_ROWS * width);
                        __builtin_prefetch(from + (AHEAD_ROWS + 1) * width);
                        weave_rows(from, from + width, panels + own * depth + row * BLOCK_OF);
                    }
    }
}

/* z (rows, rank) = x · downᵀ. */
static void take_to_rank(const uint16_t *x, int blocked, long rows, const factor *f, uint16_t *z) {
    float sums[BLOCK_OF * RANKS] __attribute__((aligned(64)));
    const long down = blocked ? BLOCK_OF : f->depth, along = blocked ? BLOCK_OF * BLOCK_OF : BLOCK_OF;
    for (long r = 0; r < f->rank; r += RANKS) {
        span s = f->inputs[r / UNIT];
        for (const span *other = f->inputs + r / UNIT; other < f->inputs + (r + RANKS) / UNIT; other++)
            if (other->begin < other->end) s = s.begin < s.end ? (span){MIN(s.begin, other->begin), MAX(s.end, other->end)} : *other;
        for (long row = 0; row < rows; row += BLOCK_OF) {
            thin_product(x + place_of(row, s.begin, f->depth, blocked), down, along, f->across + s.begin * f->rank + 2 * r, 2 * f->rank,
                         s.end - s.begin, sums);
            for (long i = 0; i < BLOCK_OF; i++)
                for (long j = 0; j < RANKS; j += UNIT) write_16(z + (row + i) * f->rank + r + j, _mm512_load_ps(sums + i * RANKS + j));
        }
    }
}

/* 32 rows and columns of sums, plus those of `add` and a bias where there are such, into y; y and add have `distance` numbers a row. */
static inline void write_block(const float *sums, const uint16_t *add, const uint16_t *bias, uint16_t *y, long distance) {
    __m512 left = _mm512_setzero_ps(), right = left;
    if (bias) left = read_16(bias), right = read_16(bias + UNIT);
    for (long row = 0; row < BLOCK_OF; row++) {
        __m512 one = _mm512_add_ps(_mm512_load_ps(sums + row * BLOCK_OF), left);
        __m512 two = _mm512_add_ps(_mm512_load_ps(sums + row * BLOCK_OF + UNIT), right);
        if (add) {
            one = _mm512_add_ps(one, read_16(add + row * distance));
            two = _mm512_add_ps(two, read_16(add + row * distance + UNIT));
        }
        write_32(y + row * distance, one, two);
    }
}

/* The share of [from, to) of the depth in 32 columns of the result from `column` on: onto what `sums` (rows, 32) hold unless `from` is 0.
 * With the end of the depth the rest is added, `add` where there is one too, and put into y; y and add have `distance` numbers a row.
 * Meanwhile the weights that follow come near, a few with each row. */
static void find_columns(const uint16_t *x, int blocked, const uint16_t *z, long rows, const factor *f, const uint16_t *panels, long column,
                         long from, long to, float *sums, const uint16_t *add, uint16_t *y, long distance) {
    const uint16_t *panel = panels + column * f->depth, *bias = f->bias ? f->bias + column : 0;
    const int whole = from == 0 && to == f->depth && to <= PART;
    const char *soon = (const char *)(panel + BLOCK_OF * f->depth + BLOCK_OF * from);
    const long down = blocked ? BLOCK_OF : f->depth, along = blocked ? BLOCK_OF * BLOCK_OF : BLOCK_OF;
    const span own = f->rank ? f->ranks[column / BLOCK_OF] : (span){0, 0};
    const long first = own.begin / RANKS * RANKS, ranks = (own.end + RANKS - 1) / RANKS * RANKS - first;
    for (long step = from; step < to; step += PART) {
        long depth = MIN(PART, to - step), last = step + depth == f->depth;
        for (long row = 0; row < rows; row += BLOCK_OF, soon += depth * 8) {
            float *block = whole ? sums : sums + row * BLOCK_OF;
            begin_block(block, BLOCK_OF, step > 0);
            add_to_block(block, BLOCK_OF, x + place_of(row, step, f->depth, blocked), down, along, panel + step * BLOCK_OF, 2 * BLOCK_OF, depth, A_PASSES, soon);
            if (last && ranks)
                add_to_block(block, BLOCK_OF, z + row * f->rank + first, f->rank, BLOCK_OF, f->along + column * f->rank + first * BLOCK_OF,
                             2 * BLOCK_OF, ranks, A_PASSES, 0);
            end_block(block, BLOCK_OF);
            if (last) write_block(block, add ? add + row * distance : 0, bias, y + row * distance, distance);
        }
    }
}

/* z and y of some rows; `add` and y have as many numbers a row as the result. Of long rows fewer go through all columns at once. */
static void find_rows(const uint16_t *x, int blocked, long rows, const factor *f, const uint16_t *panels, float *sums, const uint16_t *add, uint16_t *z,
                      uint16_t *y) {
    long most = MIN(ROWS_AT_ONCE, MAX(BLOCK_OF, NEAR / f->depth / BLOCK_OF * BLOCK_OF));
    take_to_rank(x, blocked, rows, f, z);
    for (long row = 0; row < rows; row += most)
        for (long column = 0; column < f->width; column += BLOCK_OF)
            find_columns(x + row * f->depth, blocked, z + row * f->rank, MIN(most, rows - row), f, panels, column, 0, f->depth, sums,
                         add ? add + row * f->width + column : 0, y + row * f->width + column, f->width);
}

/* Matrix units for this thread, and its share of some tokens or columns, in whole `unit`s. */
static void take_share(long count, long unit, long *begin, long *end) {
    claim_units();
    long units = (count + unit - 1) / unit, threads = omp_get_num_threads(), thread = omp_get_thread_num();
    *begin = thread * units / threads * unit;
    *end = MIN(count, (thread + 1) * units / threads * unit);
}

/* Tokens are gone through in stretches of up to ROWS_AT_ONCE, as even as whole blocks allow. How many there are depends on the tokens
 * alone (unless there are more threads than that): what is summed over tokens is summed over stretches, in their order. */
static long count_stretches(long tokens) {
    long blocks = tokens / BLOCK_OF;
    return MIN(blocks, MAX(4 * ((blocks + 4 * BLOCKS_AT_ONCE - 1) / (4 * BLOCKS_AT_ONCE)), omp_get_max_threads()));
}

static long begin_of(long stretch, long stretches, long tokens) { return stretch * (tokens / BLOCK_OF) / stretches * BLOCK_OF; }
#endif
