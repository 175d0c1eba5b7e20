/* Gradients of a layer's weights on matrix units: dyᵀ · x over all tokens. Included by kernels.c once, after large.h.
 *
 * The narrower of the two is turned once for all threads. A thread takes some columns of the other, which are woven unless they come so;
 * sums of some rows and columns stay in the second-level cache while it goes through the tokens. */

#if UNITS
enum { COLUMNS_AT_ONCE = 256, NARROW_AT_ONCE = 576, TOKENS_TOGETHER = 256 };

/* 32 tokens and columns, tokens `distance` apart, become columns and tokens. */
static void turn_block(const uint16_t *from, long distance, uint16_t *to) {
    uint16_t pairs[BLOCK_OF * BLOCK_OF] __attribute__((aligned(64)));
    weave(from, distance, BLOCK_OF, BLOCK_OF, pairs);
    for (long half = 0; half < BLOCK_OF; half += UNIT) turn_pairs_16(pairs + 2 * half, 2 * BLOCK_OF, to + half * BLOCK_OF, BLOCK_OF);
}

/* Where a result goes: in bfloat16 into `rounded`, or in float32 into `wide`, where `add` onto what is there. */
typedef struct {
    uint16_t *rounded;
    float *wide;
    int64_t add;
} result;

static inline void put_32(__m512 left, __m512 right, const result *to, long at) {
    if (to->rounded) {
        write_32(to->rounded + at, left, right);
        return;
    }
    float *wide = to->wide + at;
    _mm512_storeu_ps(wide, to->add ? _mm512_add_ps(_mm512_loadu_ps(wide), left) : left);
    _mm512_storeu_ps(wide + UNIT, to->add ? _mm512_add_ps(_mm512_loadu_ps(wide + UNIT), right) : right);
}

/* 32 rows and columns of sums into those of the result from `row` and `column` on, which has `width` columns; or `turned`, where rows and
 * columns change places. */
static void put_block(const float *sums, long row, long column, long width, int turned, const result *to) {
    for (long half = 0; half < BLOCK_OF; half += UNIT) {
        __m512 left[UNIT], right[UNIT];
        for (long j = 0; j < UNIT; j++) {
            left[j] = _mm512_load_ps(sums + (turned ? j * BLOCK_OF + half : (half + j) * BLOCK_OF));
            right[j] = _mm512_load_ps(sums + (turned ? (UNIT + j) * BLOCK_OF + half : (half + j) * BLOCK_OF + UNIT));
        }
        if (turned) turn_16(left), turn_16(right);
        for (long j = 0; j < UNIT; j++) put_32(left[j], right[j], to, turned ? (column + half + j) * width + row : (row + half + j) * width + column);
    }
}

/* narrowᵀ · wide (rows, all_columns) for narrow (tokens, rows) and wide (tokens, all_columns), or where `turned` its transpose, to
 * where it goes. woven: wide lies in blocks of 32 tokens and columns, each woven. */
int weight_gradient(const uint16_t *narrow, long rows, const uint16_t *wide, long all_columns, int woven, int turned, const result *to,
                    long tokens) {
    const long threads = omp_get_max_threads(), own = COLUMNS_AT_ONCE * tokens, width = turned ? rows : all_columns;
    /* at least two pieces a thread, so that there is something to take from others */
    const long each = MIN(COLUMNS_AT_ONCE, blocks_of((all_columns + 2 * threads - 1) / (2 * threads)) * BLOCK_OF);
    uint16_t *blocks = claim_halves(tokens * rows + (woven ? 0 : threads * own));
    float *all_sums = claim(threads * NARROW_AT_ONCE * COLUMNS_AT_ONCE * 4);
    hand *hands = claim_hands();
    const int failed = !blocks || !all_sums || !hands;
#pragma omp parallel if (!failed)
    if (!failed) {
        const long thread = omp_get_thread_num();
        uint16_t *panels = blocks + tokens * rows + thread * own;
        float *sums = all_sums + thread * NARROW_AT_ONCE * COLUMNS_AT_ONCE;
        deal(hands, (all_columns + each - 1) / each);
#pragma omp for schedule(dynamic, 16) collapse(2)
        for (long token = 0; token < tokens; token += BLOCK_OF)
            for (long row = 0; row < rows; row += BLOCK_OF)
                turn_block(narrow + token * rows + row, rows, blocks + row * tokens + token * BLOCK_OF);
        claim_units();
        for (long piece; (piece = take_piece(hands)) >= 0;) {
            const long first = piece * each, columns = MIN(each, all_columns - first);
            for (long token = 0; token < tokens && !woven; token += BLOCK_OF)
                for (long i = 0; i < columns; i += BLOCK_OF)
                    weave(wide + token * all_columns + first + i, all_columns, BLOCK_OF, BLOCK_OF, panels + i * tokens + token * BLOCK_OF);
            for (long row = 0; row < rows; row += NARROW_AT_ONCE) {
                const long down = MIN(NARROW_AT_ONCE, rows - row);
                for (long token = 0; token < tokens; token += TOKENS_TOGETHER) {
                    const long depth = MIN(TOKENS_TOGETHER, tokens - token);
                    for (long i = 0; i < columns; i += BLOCK_OF) {
                        const uint16_t *b = woven ? wide + place_of(token, first + i, all_columns, 1) : panels + i * tokens + token * BLOCK_OF;
                        const long apart = woven ? all_columns * BLOCK_OF : BLOCK_OF * BLOCK_OF, next = woven ? BLOCK_OF * BLOCK_OF : BLOCK_OF * tokens;
                        for (long j = 0; j < down; j += BLOCK_OF) {
                            float *block = sums + j * COLUMNS_AT_ONCE + i * BLOCK_OF;
                            begin_block(block, BLOCK_OF, token > 0);
                            add_blocks(block, BLOCK_OF, blocks + (row + j) * tokens + token * BLOCK_OF, b, apart, depth, next + 2 * j % (BLOCK_OF * BLOCK_OF));
                            end_block(block, BLOCK_OF);
                        }
                    }
                }
                for (long j = 0; j < down; j += BLOCK_OF)
                    for (long i = 0; i < columns; i += BLOCK_OF)
                        put_block(sums + j * COLUMNS_AT_ONCE + i * BLOCK_OF, row + j, first + i, width, turned, to);
            }
        }
        release_units();
    }
    give_back(blocks);
    give_back(all_sums);
    give_back(hands);
    return failed;
}
#endif
