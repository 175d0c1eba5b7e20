/* Attention as in tiles.h, in bfloat16 by blocks of 32 queries and 32 keys. Included by kernels.c once, after units.h; heads of a multiple of 32.
 *
 * Queries and what they find are rows as they lie in memory; keys are laid out across and values along, once for all query heads that share
 * them: scores = Q·Kᵀ, out = weights·V. Examples that begin alike look back at their beginning, which is so many keys more. */

#if UNITS
enum { BLOCKS_TOGETHER = 8, SCORES = BLOCKS_TOGETHER * BLOCK_OF + UNIT };

/* The tokens [first, end), whole examples, see the tokens [start, stop) besides their own example. */
typedef struct {
    int32_t first, end, start, stop;
} look;

/* Examples, one after the other from starts[0] on, and their looks. */
typedef struct {
    const int32_t *starts;
    const look *looks;
    long examples, count;
} layout;

static int looks_at(const layout *l, long example, const look *at) { return at->first <= l->starts[example] && l->starts[example + 1] <= at->end; }

/* What of a block of keys a block of queries sees: key j and query i where j ≤ i + ahead, i + ahead - j < window (any, where window
 * is 0), and j < seen. */
typedef struct {
    long ahead, window, seen;
} sight;

static inline int sees_all(const sight *s) {
    return s->ahead >= BLOCK_OF - 1 && s->seen >= BLOCK_OF && (!s->window || BLOCK_OF - 1 + s->ahead < s->window);
}

/* Whether it sees none. */
static inline int sees_none(const sight *s) { return s->ahead <= -BLOCK_OF || (s->window && s->ahead - BLOCK_OF + 1 >= s->window); }

/* The bits [from, until) of 32. */
static inline uint32_t bits(long from, long until) {
    from = MAX(0, from), until = MIN(BLOCK_OF, until);
    return from >= until ? 0 : (~0u << from) & (~0u >> (BLOCK_OF - until));
}

static inline uint32_t keys_seen(const sight *s, long query) {
    return bits(s->window ? query + s->ahead + 1 - s->window : 0, MIN(s->seen, query + s->ahead + 1));
}

static inline uint32_t queries_seeing(const sight *s, long key) {
    return key < s->seen ? bits(key - s->ahead, s->window ? s->window + key - s->ahead : BLOCK_OF) : 0;
}

/* `count` rows of `size`, then zeros up to BLOCK_OF rows. */
static void fetch(const uint16_t *from, long distance, long count, long size, uint16_t *to) {
    for (long i = 0; i < count; i++) memcpy(to + i * size, from + i * distance, (size_t)size * 2);
    memset(to + count * size, 0, (size_t)((BLOCK_OF - count) * size) * 2);
}

/* Keys are laid out in blocks: those of the examples in their order, then those of the looks in theirs. The row a block begins at, how many
 * keys it holds, which block it is, and which block of its example's queries is the first to see it; -1 where all do. */
typedef struct {
    int32_t row, count, place, first;
} key_block;

static long count_blocks(const layout *l, long examples, long looks) {
    long blocks = 0;
    for (long e = 0; e < examples; e++) blocks += blocks_of(l->starts[e + 1] - l->starts[e]);
    for (long i = 0; i < looks; i++) blocks += blocks_of(l->looks[i].stop - l->looks[i].start);
    return blocks;
}

static long longest_example(const layout *l) {
    long longest = 0;
    for (long e = 0; e < l->examples; e++) longest = MAX(longest, blocks_of(l->starts[e + 1] - l->starts[e]));
    return longest;
}

/* Rows [start, stop) of which the first block is `place`; those of a look, or of an example. Returns how many blocks there are. */
static long list_rows(long start, long stop, long place, int of_look, key_block *to) {
    for (long i = 0; start + i * BLOCK_OF < stop; i++) {
        long row = start + i * BLOCK_OF;
        to[i] = (key_block){(int32_t)row, (int32_t)MIN(BLOCK_OF, stop - row), (int32_t)(place + i), of_look ? -1 : (int32_t)i};
    }
    return blocks_of(stop - start);
}

/* What an example sees: its looks, then itself; returns how many blocks that is. */
static long list_seen(const layout *l, long example, key_block *to) {
    long blocks = 0;
    for (long i = 0; i < l->count; i++)
        if (looks_at(l, example, &l->looks[i]))
            blocks += list_rows(l->looks[i].start, l->looks[i].stop, count_blocks(l, l->examples, i), 1, to + blocks);
    return blocks + list_rows(l->starts[example], l->starts[example + 1], count_blocks(l, example, 0), 0, to + blocks);
}

/* All of them. */
static void list_all(const layout *l, key_block *to) {
    for (long e = 0; e < l->examples; e++) to += list_rows(l->starts[e], l->starts[e + 1], 0, 0, to);
    for (long i = 0; i < l->count; i++) to += list_rows(l->looks[i].start, l->looks[i].stop, 0, 1, to);
}

/* What block `at` of an example's queries sees of some keys. */
static inline sight sight_of(const key_block *keys, long at, long window) {
    return keys->first < 0 ? (sight){BLOCK_OF, 0, keys->count} : (sight){(at - keys->first) * BLOCK_OF, window, BLOCK_OF};
}

/* What a block of queries has found so far: (32, size), and of each query the highest score and the sum of weights. Scores and, in
 * their place, weights are rows of SCORES numbers. */
typedef struct {
    float *answer, *score, most[BLOCK_OF], sum[BLOCK_OF];
    uint16_t *queries;
    int begun;
} finding;

static size_t finding_bytes(long size) { return (size_t)(BLOCK_OF * size) * 6 + BLOCK_OF * SCORES * 4; }

static finding finding_at(char *memory, long size) {
    finding f;
    f.score = (float *)memory;
    f.answer = f.score + BLOCK_OF * SCORES;
    f.queries = (uint16_t *)(f.answer + BLOCK_OF * size);
    return f;
}

static void ask(finding *f, const uint16_t *queries, long distance, long count, long size) {
    for (long i = 0; i < BLOCK_OF; i++) f->most[i] = NOTHING, f->sum[i] = 0.0f;
    fetch(queries, distance, count, size, f->queries);
    f->begun = 0;
}

/* Some blocks of keys, across (size / 2, 32, 2), and of values, along (16, size, 2), and what is seen of them. */
typedef struct {
    const uint16_t *keys[BLOCKS_TOGETHER], *values[BLOCKS_TOGETHER];
    sight seen[BLOCKS_TOGETHER];
    long count;
} some_blocks;

/* Scores become weights, which count by 2^(score · by); `before` is what was found before to be multiplied with. */
static void weigh_rows(finding *f, const some_blocks *b, float scaling, float *before) {
    const __m512 by = _mm512_set1_ps(scaling * LOG2_E);
    uint32_t seen[BLOCKS_TOGETHER][BLOCK_OF], masked = 0;
    float high[BLOCK_OF] __attribute__((aligned(64)));
    for (long k = 0; k < b->count; k++)
        if (!sees_all(&b->seen[k])) {
            masked |= 1u << k;
            for (long i = 0; i < BLOCK_OF; i++) seen[k][i] = keys_seen(&b->seen[k], i);
        }
    for (long i = 0; i < BLOCK_OF; i++) {
        const float *row = f->score + i * SCORES;
        __m512 one = _mm512_set1_ps(NOTHING), two = one;
        for (long k = 0; k < b->count; k++, row += BLOCK_OF) {
            uint32_t those = masked >> k & 1 ? seen[k][i] : ~0u;
            one = _mm512_mask_max_ps(one, (__mmask16)those, one, _mm512_load_ps(row));
            two = _mm512_mask_max_ps(two, (__mmask16)(those >> UNIT), two, _mm512_load_ps(row + UNIT));
        }
        high[i] = _mm512_reduce_max_ps(_mm512_max_ps(one, two));
    }
    for (long i = 0; i < BLOCK_OF; i += UNIT) {
        __m512 old = _mm512_loadu_ps(f->most + i), now = _mm512_max_ps(old, _mm512_mul_ps(_mm512_load_ps(high + i), by));
        _mm512_storeu_ps(f->most + i, now);
        _mm512_storeu_ps(before + i, power_16(_mm512_sub_ps(old, now)));
    }
    for (long i = 0; i < BLOCK_OF; i++) {
        const float *row = f->score + i * SCORES;
        uint16_t *to = (uint16_t *)(f->score + i * SCORES);
        const __m512 most = _mm512_set1_ps(f->most[i]);
        __m512 sum = _mm512_setzero_ps(), sum_2 = sum;
        for (long k = 0; k < b->count; k++, row += BLOCK_OF, to += BLOCK_OF) {
            __m512 one = power_16(_mm512_fmsub_ps(_mm512_load_ps(row), by, most));
            __m512 two = power_16(_mm512_fmsub_ps(_mm512_load_ps(row + UNIT), by, most));
            if (masked >> k & 1) {
                one = _mm512_maskz_mov_ps((__mmask16)seen[k][i], one);
                two = _mm512_maskz_mov_ps((__mmask16)(seen[k][i] >> UNIT), two);
            }
            sum = _mm512_add_ps(sum, one);
            sum_2 = _mm512_add_ps(sum_2, two);
            write_32(to, one, two);
        }
        f->sum[i] = f->sum[i] * before[i] + _mm512_reduce_add_ps(_mm512_add_ps(sum, sum_2));
    }
}

/* Take in some blocks of keys and values. */
static void find_among(finding *f, const some_blocks *b, long size, float scaling) {
    float before[BLOCK_OF];
    const int more = f->begun;
    f->begun = 1;
    products_along(f->queries, size, b->keys, b->count, size, f->score, SCORES);
    weigh_rows(f, b, scaling, before);
    for (long i = 0; i < BLOCK_OF && more; i++)
        if (before[i] != 1.0f)
            for (long j = 0; j < size; j += UNIT) {
                float *at = f->answer + i * size + j;
                _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), _mm512_set1_ps(before[i])));
            }
    for (long j = 0; j < size; j += BLOCK_OF) {
        begin_block(f->answer + j, size, more);
        for (long k = 0, next; k < b->count; k = next) {
            for (next = k + 1; next < b->count && b->values[next] == b->values[next - 1] + BLOCK_OF * size;) next++;
            add_to_block(f->answer + j, size, (const uint16_t *)f->score + k * BLOCK_OF, 2 * SCORES, BLOCK_OF, b->values[k] + 2 * j, 2 * size,
                         (next - k) * BLOCK_OF, B_PASSES, 0);
        }
        end_block(f->answer + j, size);
    }
}

/* The answers of `count` queries into rows of `out`, and log Σ e^score. */
static void tell(const finding *f, long count, long size, uint16_t *out, long distance, float *norm) {
    for (long i = 0; i < count; i += UNIT) {
        const __mmask16 there = count - i >= UNIT ? 0xffff : (__mmask16)((1u << (count - i)) - 1);
        __m512 exponent = _mm512_add_ps(_mm512_loadu_ps(f->most + i), log2_16(_mm512_loadu_ps(f->sum + i)));
        _mm512_mask_storeu_ps(norm + i, there, _mm512_mul_ps(exponent, _mm512_set1_ps(LOG_2)));
    }
    for (long i = 0; i < count; i++) {
        const __m512 by = _mm512_set1_ps(1.0f / f->sum[i]);
        const float *from = f->answer + i * size;
        for (long j = 0; j < size; j += BLOCK_OF)
            write_32(out + i * distance + j, _mm512_mul_ps(_mm512_load_ps(from + j), by), _mm512_mul_ps(_mm512_load_ps(from + j + UNIT), by));
    }
}

/* What block `at` of an example's queries finds among the `count` blocks of keys it may see; packs: the keys and, `beyond` them, the values of all. */
static void find_all(finding *f, const key_block *list, long count, long at, const uint16_t *packs, long beyond, long size, float scaling,
                     long window) {
    some_blocks some;
    some.count = 0;
    for (const key_block *keys = list; keys < list + count; keys++) {
        const sight s = sight_of(keys, at, window);
        if (sees_none(&s)) continue;
        some.keys[some.count] = packs + keys->place * BLOCK_OF * size;
        some.values[some.count] = some.keys[some.count] + beyond;
        some.seen[some.count++] = s;
        if (some.count < BLOCKS_TOGETHER) continue;
        find_among(f, &some, size, scaling);
        some.count = 0;
    }
    if (some.count) find_among(f, &some, size, scaling);
}

/* As attend_bfloat16, with looks. */
int attend_by_units(const uint16_t *qkv, uint16_t *out, float *sums, const int32_t *starts, long examples, const look *looks, long count,
                    long queries, long keys, long size, float scaling, long window) {
    const layout l = {starts, looks, examples, count};
    const long distance = (queries + 2 * keys) * size, rows = starts[examples], group = queries / keys, pack = BLOCK_OF * size;
    const long askers = count_blocks(&l, examples, 0), blocks = count_blocks(&l, examples, count), seen = longest_example(&l) + blocks - askers;
    key_block *every = claim(blocks * (long)sizeof *every);
    uint16_t *packs = claim_halves(keys * 2 * blocks * pack); /* (keys, 2, blocks, 32 · size) */
    int failed = !every || !packs;
    if (every) list_all(&l, every);
#pragma omp parallel if (!failed)
    {
        char *memory = failed ? 0 : claim((long)finding_bytes(size) + seen * (long)sizeof(key_block));
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
        finding f = finding_at(memory, size);
        key_block *list = (key_block *)(memory + finding_bytes(size));
#pragma omp for schedule(dynamic)
        for (long block = 0; block < blocks; block++)
            for (long head = 0; head < keys && memory; head++) {
                const uint16_t *k = qkv + every[block].row * distance + (queries + head) * size;
                uint16_t *to = packs + (head * 2 * blocks + block) * pack;
                fetch(k, distance, every[block].count, size, f.queries);
                weave_across(f.queries, size, BLOCK_OF, size, to);
                fetch(k + keys * size, distance, every[block].count, size, f.queries);
                weave(f.queries, size, BLOCK_OF, size, to + blocks * pack);
            }
        claim_units();
#pragma omp for schedule(dynamic) collapse(2)
        for (long block = askers - 1; block >= 0; block--)
            for (long head = 0; head < keys; head++) {
                if (!memory) continue;
                const long row = every[block].row, asking = every[block].count;
                long example = 0;
                while (starts[example + 1] <= row) example++;
                const long known = list_seen(&l, example, list);
                for (long own = head * group; own < (head + 1) * group; own++) {
                    ask(&f, qkv + row * distance + own * size, distance, asking, size);
                    find_all(&f, list, known, every[block].first, packs + head * 2 * blocks * pack, blocks * pack, size, scaling, window);
                    tell(&f, asking, size, out + (row * queries + own) * size, queries * size, sums + own * rows + row);
                }
            }
        release_units();
        give_back(memory);
    }
    give_back(every);
    give_back(packs);
    return failed;
}
#endif
