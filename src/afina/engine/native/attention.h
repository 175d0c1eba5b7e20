/* Attention as in tiles.h, in bfloat16 on matrix units. Included by kernels.c once, after units.h; heads of a multiple of 32.
 *
 * Scores lie with a key a row and a query a column, so that everything that happens to the scores of a query happens to whole
 * registers, and weights are ready to be multiplied as they are written:
 *   scoresᵀ = K·Qᵀ, outᵀ += Vᵀ·weightsᵀ. */

#if UNITS

/* Which keys of a tile a query sees: key j and query i where j ≤ i + ahead (any, where ahead ≥ TILE), i + ahead - j < window
 * (any, where window is 0), and j < seen. Of keys and queries the first `keys` and `queries` are there, multiples of 32. */
typedef struct {
    long ahead, window, seen, keys, queries;
} sight;

static inline long in_blocks(long count) { return (count + BLOCK_OF - 1) / BLOCK_OF * BLOCK_OF; }

/* Of each key, the queries that see it (bit i: query i); 0 where all see all, so that no masks are needed. */
static int list_seen(const sight *s, uint64_t *seen) {
    long furthest = s->queries - 1 + s->ahead;
    if (s->ahead >= s->keys - 1 && s->seen >= s->keys && (!s->window || furthest < s->window)) return 0;
    for (long j = 0; j < s->keys; j++) {
        long from = MAX(0, j - s->ahead), until = s->window ? MIN(TILE, s->window + j - s->ahead) : TILE;
        seen[j] = j >= s->seen || from >= until ? 0 : (~0ull << from) & (~0ull >> (64 - until));
    }
    return 1;
}

/* How many keys of the tile, in blocks, 32 queries from `query` on may see, and from which query on, in blocks, 32 keys may be seen: what
 * lies beyond is left out. */
static inline long seen_from(const sight *s, long query) { return MIN(s->keys, in_blocks(query + BLOCK_OF + s->ahead)); }
static inline long seers_of(const sight *s, long key) { return MAX(0, key - s->ahead) / BLOCK_OF * BLOCK_OF; }

/* `count` rows of `size`, then zeros up to TILE rows. */
static void fetch(const uint16_t *from, long distance, long count, long size, uint16_t *to) {
    for (long i = 0; i < count; i++) memcpy(to + i * size, from + i * distance, (size_t)size * 2);
    memset(to + count * size, 0, (size_t)((TILE - count) * size) * 2);
}

/* (TILE, size) → its transpose (size, TILE), by way of `woven` (as much memory). */
static void turn_halves(const uint16_t *from, long size, uint16_t *woven, uint16_t *to) {
    weave_across(from, size, TILE, size, woven);
    for (long pair = 0; pair < size / 2; pair++)
        for (long i = 0; i < TILE; i += UNIT) {
            __m512i both = _mm512_loadu_si512(woven + pair * 2 * TILE + 2 * i);
            _mm256_storeu_si256((__m256i *)(to + 2 * pair * TILE + i), _mm512_cvtepi32_epi16(both));
            _mm256_storeu_si256((__m256i *)(to + (2 * pair + 1) * TILE + i), _mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
        }
}

/* from (size, TILE) times `by` of each column, turned: the first `count` columns as rows of `size`; where `of_old`, onto as much of what is
 * there. */
static void turn_back(const float *from, const float *by, long count, long size, uint16_t *to, long distance, const float *of_old) {
    for (long i = 0; i < count; i += UNIT)
        for (long j = 0; j < size; j += UNIT) {
            __m512 row[UNIT], scale = _mm512_loadu_ps(by + i);
            for (long k = 0; k < UNIT; k++) row[k] = _mm512_mul_ps(_mm512_loadu_ps(from + (j + k) * TILE + i), scale);
            turn_16(row);
            for (long k = 0; k < MIN(UNIT, count - i); k++) {
                uint16_t *at = to + (i + k) * distance + j;
                write_16(at, of_old ? _mm512_fmadd_ps(read_16(at), _mm512_set1_ps(of_old[i + k]), row[k]) : row[k]);
            }
        }
}

/* What a tile of queries has found so far: outᵀ (size, TILE), and of each query the highest score and the sum of weights. */
typedef struct {
    float *answer, *score, most[TILE], sum[TILE];
    uint16_t *across, *weights, *rows;
} finding;

static size_t finding_bytes(long size) { return (size_t)(TILE * size) * 8 + TILE * TILE * 6; }

static void begin_finding(finding *f, char *memory, long size) {
    f->answer = (float *)memory;
    f->score = f->answer + TILE * size;
    f->across = (uint16_t *)(f->score + TILE * TILE);
    f->weights = f->across + TILE * size;
    f->rows = f->weights + TILE * TILE;
}

static void ask(finding *f, const uint16_t *queries, long distance, long count, long size) {
    memset(f->answer, 0, (size_t)(TILE * size) * 4);
    for (long i = 0; i < TILE; i++) f->most[i] = NOTHING, f->sum[i] = 0.0f;
    fetch(queries, distance, count, size, f->rows);
    weave_across(f->rows, size, TILE, size, f->across);
}

/* Scores of UNIT queries from column c on become weights; scores count by `by`, in powers of two. */
static inline __attribute__((always_inline)) void weigh_16(finding *f, long c, long keys, __m512 by, const uint64_t *seen,
                                                           const int masked, float *before) {
    __m512 old = _mm512_loadu_ps(f->most + c), high = _mm512_set1_ps(NOTHING), sum = _mm512_setzero_ps();
    for (long j = 0; j < keys; j++) {
        __mmask16 those = masked ? (__mmask16)(seen[j] >> c) : 0xffff;
        high = _mm512_mask_max_ps(high, those, high, _mm512_loadu_ps(f->score + j * TILE + c));
    }
    high = _mm512_max_ps(old, _mm512_mul_ps(high, by));
    for (long j = 0; j < keys; j += 2) {
        __m512 one = power_16(_mm512_fmsub_ps(_mm512_loadu_ps(f->score + j * TILE + c), by, high));
        __m512 two = power_16(_mm512_fmsub_ps(_mm512_loadu_ps(f->score + (j + 1) * TILE + c), by, high));
        if (masked) {
            one = _mm512_maskz_mov_ps((__mmask16)(seen[j] >> c), one);
            two = _mm512_maskz_mov_ps((__mmask16)(seen[j + 1] >> c), two);
        }
        sum = _mm512_add_ps(sum, _mm512_add_ps(one, two));
        _mm512_storeu_si512(f->weights + j * TILE + 2 * c, woven_16(one, two));
    }
    __m512 factor = power_16(_mm512_sub_ps(old, high));
    _mm512_storeu_ps(before + c, factor);
    _mm512_storeu_ps(f->most + c, high);
    _mm512_storeu_ps(f->sum + c, _mm512_fmadd_ps(_mm512_loadu_ps(f->sum + c), factor, sum));
}

/* Take in a tile of keys (TILE, size) and values turned (size, TILE). */
static void find_among(finding *f, const uint16_t *keys, const uint16_t *values, long size, float scaling, const sight *s) {
    for (long query = 0; query < s->queries; query += BLOCK_OF)
        units_product(seen_from(s, query), BLOCK_OF, size, keys, size, f->across + 2 * query, 2 * TILE, f->score + query, TILE, 0);
    const __m512 by = _mm512_set1_ps(scaling * LOG2_E);
    float before[TILE];
    uint64_t seen[TILE];
    int masked = list_seen(s, seen);
    for (long c = 0; c < s->queries; c += UNIT)
        if (masked)
            weigh_16(f, c, seen_from(s, c / BLOCK_OF * BLOCK_OF), by, seen, 1, before);
        else
            weigh_16(f, c, s->keys, by, seen, 0, before);
    for (long c = 0; c < s->queries; c += UNIT) {
        __m512 factor = _mm512_loadu_ps(before + c);
        if (_mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_OQ))
            for (long j = 0; j < size; j++) {
                float *at = f->answer + j * TILE + c;
                _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), factor));
            }
    }
    for (long query = 0; query < s->queries; query += BLOCK_OF)
        units_product(size, BLOCK_OF, seen_from(s, query), values, TILE, f->weights + 2 * query, 2 * TILE, f->answer + query, TILE, 1);
}

/* log Σ e^score of UNIT queries from i on, and what their answers are to be multiplied with; of `count` queries. */
static void end_found(const finding *f, long i, long count, float *norm, float *by) {
    const __mmask16 there = count - i >= UNIT ? 0xffff : (__mmask16)((1u << (count - i)) - 1);
    __m512 sum = _mm512_loadu_ps(f->sum + i);
    __m512 exponent = _mm512_add_ps(_mm512_loadu_ps(f->most + i), log2_16(sum));
    _mm512_mask_storeu_ps(norm + i, there, _mm512_mul_ps(exponent, _mm512_set1_ps(LOG_2)));
    _mm512_storeu_ps(by + i, _mm512_div_ps(_mm512_set1_ps(1.0f), sum));
}

/* The same beside what was found before: its norm is there, and it is to be multiplied with `of_old`. */
static void end_found_beside(const finding *f, long i, long count, float *norm, float *of_old, float *by) {
    const __mmask16 there = count - i >= UNIT ? 0xffff : (__mmask16)((1u << (count - i)) - 1);
    __m512 old = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, norm + i), _mm512_set1_ps(LOG2_E)), most = _mm512_loadu_ps(f->most + i);
    __m512 high = _mm512_max_ps(old, most), power = power_16(_mm512_sub_ps(old, high)), own = power_16(_mm512_sub_ps(most, high));
    __m512 sum = _mm512_fmadd_ps(_mm512_loadu_ps(f->sum + i), own, power);
    _mm512_mask_storeu_ps(norm + i, there, _mm512_mul_ps(_mm512_add_ps(high, log2_16(sum)), _mm512_set1_ps(LOG_2)));
    _mm512_storeu_ps(of_old + i, _mm512_div_ps(power, sum));
    _mm512_storeu_ps(by + i, _mm512_div_ps(own, sum));
}

/* Keys (TILE, size) and values turned (size, TILE) of a tile. */
static void pack_for_finding(const uint16_t *k, const uint16_t *v, long distance, long count, long size, uint16_t *rows,
                             uint16_t *woven, uint16_t *to) {
    fetch(k, distance, count, size, to);
    fetch(v, distance, count, size, rows);
    turn_halves(rows, size, woven, to + TILE * size);
}

/* As attend_bfloat16. */
int attend_by_units(const uint16_t *qkv, uint16_t *out, float *sums, const int32_t *starts, long examples, long queries, long keys,
                    long size, float scaling, long window) {
    long distance = (queries + 2 * keys) * size, rows = starts[examples], group = queries / keys;
    long tiles = count_tiles(starts, examples);
    int32_t *work = malloc((size_t)tiles * 2 * 4);
    uint16_t *packs = aligned_alloc(64, (size_t)(tiles * keys * 2 * TILE * size) * 2);
    if (!work || !packs) {
        free(work);
        free(packs);
        return 1;
    }
    list_tiles(starts, examples, work);
    int failed = 0;
#pragma omp parallel
    {
        char *memory = aligned_alloc(64, finding_bytes(size));
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
        finding f;
        begin_finding(&f, memory, size);
#pragma omp for schedule(static) collapse(2)
        for (long tile = 0; tile < tiles; tile++)
            for (long head = 0; head < keys; head++) {
                if (!memory) continue;
                long first = work[2 * tile + 1], count = MIN(TILE, starts[work[2 * tile] + 1] - first);
                const uint16_t *k = qkv + first * distance + (queries + head) * size;
                uint16_t *to = packs + (tile * keys + head) * 2 * TILE * size;
                pack_for_finding(k, k + keys * size, distance, count, size, f.rows, f.across, to);
            }
        claim_units();
#pragma omp for schedule(dynamic) collapse(2)
        for (long tile = tiles - 1; tile >= 0; tile--)
            for (long own = 0; own < queries; own++) {
                if (!memory) continue;
                long start = starts[work[2 * tile]], first = work[2 * tile + 1];
                long count = MIN(TILE, starts[work[2 * tile] + 1] - first);
                ask(&f, qkv + first * distance + own * size, distance, count, size);
                long earliest = window ? MAX(start, first + 1 - window) : start;
                for (long key = start + (earliest - start) / TILE * TILE; key < first + count; key += TILE) {
                    const uint16_t *pack = packs + ((tile - (first - key) / TILE) * keys + own / group) * 2 * TILE * size;
                    sight s = {first - key, window, TILE, TILE, in_blocks(count)};
                    if (key == first) s.keys = s.queries;
                    find_among(&f, pack, pack + TILE * size, size, scaling, &s);
                }
                float by[TILE];
                for (long i = 0; i < count; i += UNIT) end_found(&f, i, count, sums + own * rows + first, by);
                turn_back(f.answer, by, count, size, out + (first * queries + own) * size, queries * size, 0);
            }
        release_units();
        free(memory);
    }
    free(work);
    free(packs);
    return failed;
}

/* As look_bfloat16. */
int look_by_units(const uint16_t *qkv, uint16_t *out, float *sums, long rows, long first, long end, long start, long stop,
                  long queries, long keys, long size, float scaling) {
    long distance = (queries + 2 * keys) * size, group = queries / keys, tiles = (stop - start + TILE - 1) / TILE;
    uint16_t *packs = aligned_alloc(64, (size_t)(tiles * keys * 2 * TILE * size) * 2);
    if (!packs) return 1;
    int failed = 0;
#pragma omp parallel
    {
        char *memory = aligned_alloc(64, finding_bytes(size));
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
        finding f;
        begin_finding(&f, memory, size);
#pragma omp for schedule(static) collapse(2)
        for (long tile = 0; tile < tiles; tile++)
            for (long head = 0; head < keys; head++) {
                if (!memory) continue;
                const uint16_t *k = qkv + (start + tile * TILE) * distance + (queries + head) * size;
                uint16_t *to = packs + (tile * keys + head) * 2 * TILE * size;
                pack_for_finding(k, k + keys * size, distance, MIN(TILE, stop - start - tile * TILE), size, f.rows, f.across, to);
            }
        claim_units();
#pragma omp for schedule(dynamic) collapse(2)
        for (long row = first; row < end; row += TILE)
            for (long own = 0; own < queries; own++) {
                if (!memory) continue;
                long count = MIN(TILE, end - row);
                ask(&f, qkv + row * distance + own * size, distance, count, size);
                for (long tile = 0; tile < tiles; tile++) {
                    const uint16_t *pack = packs + (tile * keys + own / group) * 2 * TILE * size;
                    long seen = MIN(TILE, stop - start - tile * TILE);
                    sight s = {TILE, 0, seen, in_blocks(seen), in_blocks(count)};
                    find_among(&f, pack, pack + TILE * size, size, scaling, &s);
                }
                float by[TILE], of_old[TILE];
                for (long i = 0; i < count; i += UNIT) end_found_beside(&f, i, count, sums + own * rows + row, of_old, by);
                turn_back(f.answer, by, count, size, out + (row * queries + own) * size, queries * size, of_old);
            }
        release_units();
        free(memory);
    }
    free(packs);
    return failed;
}
#endif
