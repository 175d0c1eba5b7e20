/* Attention as in tiles.h, in bfloat16 on matrix units. Included by kernels.c once, after units.h; heads of a multiple of 32.
 *
 * Scores lie with a key a row and a query a column, so that everything that happens to the scores of a query happens to whole
 * registers, and weights are ready to be multiplied as they are written:
 *   scoresᵀ = K·Qᵀ, outᵀ += Vᵀ·weightsᵀ;   dV += weightsᵀ·dO, dK += changesᵀ·Q, dQᵀ += Kᵀ·changesᵀ. */

#if UNITS
#define LOG2_E 1.44269504088896341f
#define LOG_2 0.693147180559945309f

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

/* from (size, TILE) times `by` of each column, turned: the first `count` columns as rows of `size`; where `add`, onto what is there. */
static void turn_back(const float *from, const float *by, long count, long size, uint16_t *to, long distance, int add) {
    for (long i = 0; i < count; i += UNIT)
        for (long j = 0; j < size; j += UNIT) {
            __m512 row[UNIT], scale = _mm512_loadu_ps(by + i);
            for (long k = 0; k < UNIT; k++) row[k] = _mm512_mul_ps(_mm512_loadu_ps(from + (j + k) * TILE + i), scale);
            turn_16(row);
            for (long k = 0; k < MIN(UNIT, count - i); k++) {
                uint16_t *at = to + (i + k) * distance + j;
                write_16(at, add ? _mm512_add_ps(read_16(at), row[k]) : row[k]);
            }
        }
}

static inline __m512i woven_16(__m512 first, __m512 second) {
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first));
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second)), 16));
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
    units_product(s->keys, s->queries, size, keys, size, f->across, 2 * TILE, f->score, TILE, 0);
    const __m512 by = _mm512_set1_ps(scaling * LOG2_E);
    float before[TILE];
    uint64_t seen[TILE];
    int masked = list_seen(s, seen);
    for (long c = 0; c < s->queries; c += UNIT)
        if (masked)
            weigh_16(f, c, s->keys, by, seen, 1, before);
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
    units_product(size, s->queries, s->keys, values, TILE, f->weights, 2 * TILE, f->answer, TILE, 1);
}

/* log Σ e^score of query i. */
static inline float norm_found(const finding *f, long i) { return f->most[i] * LOG_2 + logf(f->sum[i]); }

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
                for (long i = 0; i < TILE; i++) by[i] = 1.0f / f.sum[i];
                turn_back(f.answer, by, count, size, out + (first * queries + own) * size, queries * size, 0);
                for (long i = 0; i < count; i++) sums[own * rows + first + i] = norm_found(&f, i);
            }
        _tile_release();
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
                float by[TILE] = {0};
                for (long i = 0; i < count; i++) {
                    float *norm = sums + own * rows + row + i, more = norm_found(&f, i);
                    float high = MAX(*norm, more), whole = high + logf(expf(*norm - high) + expf(more - high));
                    __m512 of_own = _mm512_set1_ps(expf(*norm - whole));
                    uint16_t *to = out + ((row + i) * queries + own) * size;
                    for (long j = 0; j < size; j += UNIT) write_16(to + j, _mm512_mul_ps(read_16(to + j), of_own));
                    by[i] = expf(more - whole) / f.sum[i];
                    *norm = whole;
                }
                turn_back(f.answer, by, count, size, out + (row * queries + own) * size, queries * size, 1);
            }
        _tile_release();
        free(memory);
    }
    free(packs);
    return failed;
}

/* A tile of queries for the way back: itself and its output's gradient, each (size / 2, TILE, 2) across and (TILE / 2, size, 2) along; the
 * norm and Σ p·dp of each query; dQᵀ (size, TILE). */
typedef struct {
    uint16_t *q_across, *q_along, *d_across, *d_along;
    float *norm, *inner, *dq;
} asked;

static size_t asked_bytes(long size) { return (size_t)(TILE * size) * 12 + 2 * TILE * 4; }

static asked asked_at(char *memory, long size) {
    asked a;
    a.dq = (float *)memory;
    a.norm = a.dq + TILE * size;
    a.inner = a.norm + TILE;
    a.q_across = (uint16_t *)(a.inner + TILE);
    a.q_along = a.q_across + TILE * size;
    a.d_across = a.q_along + TILE * size;
    a.d_along = a.d_across + TILE * size;
    return a;
}

static void ask_back(asked *a, const uint16_t *q, long q_distance, const uint16_t *d, const uint16_t *o, long o_distance,
                     const float *norm, long count, long size, uint16_t *rows) {
    fetch(q, q_distance, count, size, rows);
    weave_across(rows, size, TILE, size, a->q_across);
    weave(rows, size, TILE, size, a->q_along);
    fetch(d, o_distance, count, size, rows);
    weave_across(rows, size, TILE, size, a->d_across);
    weave(rows, size, TILE, size, a->d_along);
    for (long i = 0; i < TILE; i++) {
        __m512 total = _mm512_setzero_ps();
        if (i < count)
            for (long j = 0; j < size; j += UNIT)
                total = _mm512_fmadd_ps(read_16(o + i * o_distance + j), read_16(d + i * o_distance + j), total);
        a->inner[i] = _mm512_reduce_add_ps(total);
        a->norm[i] = i < count ? norm[i] : 0.0f;
    }
    memset(a->dq, 0, (size_t)(TILE * size) * 4);
}

/* A tile of keys for the way back: keys and values (TILE, size), keys turned (size, TILE); their gradients (TILE, size). */
typedef struct {
    uint16_t *keys, *values, *turned, *rows, *woven;
    float *dk, *dv, *weight, *change;
    uint16_t *weights, *changes, *changes_woven;
} answering;

static size_t answering_bytes(long size) { return (size_t)(TILE * size) * 18 + TILE * TILE * 14; }

static answering answering_at(char *memory, long size) {
    answering a;
    a.dk = (float *)memory;
    a.dv = a.dk + TILE * size;
    a.weight = a.dv + TILE * size;
    a.change = a.weight + TILE * TILE;
    a.weights = (uint16_t *)(a.change + TILE * TILE);
    a.changes = a.weights + TILE * TILE;
    a.changes_woven = a.changes + TILE * TILE;
    a.keys = a.changes_woven + TILE * TILE;
    a.values = a.keys + TILE * size;
    a.turned = a.values + TILE * size;
    a.rows = a.turned + TILE * size;
    a.woven = a.rows + TILE * size;
    return a;
}

static void begin_answering(answering *a, const uint16_t *k, const uint16_t *v, long distance, long count, long size) {
    fetch(k, distance, count, size, a->keys);
    fetch(v, distance, count, size, a->values);
    turn_halves(a->keys, size, a->woven, a->turned);
    memset(a->dk, 0, (size_t)(2 * TILE * size) * 4);
}

/* Scores and gradients of weights of UNIT queries from column c on become weights and gradients of scores. */
static inline __attribute__((always_inline)) void pull_16(answering *a, const asked *q, long c, long keys, float scaling,
                                                          const uint64_t *seen, const int masked) {
    const __m512 by = _mm512_set1_ps(scaling), by_two = _mm512_set1_ps(scaling * LOG2_E);
    __m512 norm = _mm512_mul_ps(_mm512_loadu_ps(q->norm + c), _mm512_set1_ps(LOG2_E));
    __m512 inner = _mm512_mul_ps(_mm512_loadu_ps(q->inner + c), by);
    for (long j = 0; j < keys; j += 2) {
        __m512 change[2];
        for (int k = 0; k < 2; k++) {
            long at = (j + k) * TILE + c;
            __m512 weight = power_16(_mm512_fmsub_ps(_mm512_loadu_ps(a->weight + at), by_two, norm));
            if (masked) weight = _mm512_maskz_mov_ps((__mmask16)(seen[j + k] >> c), weight);
            change[k] = _mm512_mul_ps(_mm512_fmsub_ps(_mm512_loadu_ps(a->change + at), by, inner), weight);
            write_16(a->weights + at, weight);
            write_16(a->changes + at, change[k]);
        }
        _mm512_storeu_si512(a->changes_woven + j * TILE + 2 * c, woven_16(change[0], change[1]));
    }
}

/* The gradients between a tile of keys and one of queries. */
static void answer_back(answering *a, asked *q, long size, float scaling, const sight *s) {
    units_product(s->keys, s->queries, size, a->keys, size, q->q_across, 2 * TILE, a->weight, TILE, 0);
    units_product(s->keys, s->queries, size, a->values, size, q->d_across, 2 * TILE, a->change, TILE, 0);
    uint64_t seen[TILE];
    int masked = list_seen(s, seen);
    for (long c = 0; c < s->queries; c += UNIT)
        if (masked)
            pull_16(a, q, c, s->keys, scaling, seen, 1);
        else
            pull_16(a, q, c, s->keys, scaling, seen, 0);
    units_product(s->keys, size, s->queries, a->weights, TILE, q->d_along, 2 * size, a->dv, size, 1);
    units_product(s->keys, size, s->queries, a->changes, TILE, q->q_along, 2 * size, a->dk, size, 1);
    units_product(size, s->queries, s->keys, a->turned, TILE, a->changes_woven, 2 * TILE, q->dq, TILE, 1);
}

/* Gradients of keys and values of every query head, (queries, rows, 2, size), summed over the heads that share them into d_qkv; where
 * `add`, onto what is there. To be called by all threads. */
static void gather_shares(const float *shares, uint16_t *d_qkv, long rows, long queries, long keys, long size, int add) {
    long distance = (queries + 2 * keys) * size, group = queries / keys;
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++)
        for (long head = 0; head < keys; head++)
            for (long which = 0; which < 2; which++) {
                uint16_t *to = d_qkv + row * distance + (queries + which * keys + head) * size;
                for (long j = 0; j < size; j += UNIT) {
                    __m512 total = add ? read_16(to + j) : _mm512_setzero_ps();
                    for (long member = 0; member < group; member++) {
                        const float *share = shares + (((head * group + member) * rows + row) * 2 + which) * size + j;
                        total = _mm512_add_ps(total, _mm512_loadu_ps(share));
                    }
                    write_16(to + j, total);
                }
            }
}

static void put_share(float *to, const answering *a, long seen, long size) {
    for (long i = 0; i < seen; i++) {
        memcpy(to + i * 2 * size, a->dk + i * size, (size_t)size * 4);
        memcpy(to + i * 2 * size + size, a->dv + i * size, (size_t)size * 4);
    }
}

/* As attend_backward_bfloat16. */
int attend_backward_by_units(const uint16_t *d_out, const uint16_t *qkv, const uint16_t *out, const float *sums, uint16_t *d_qkv,
                             const int32_t *starts, long examples, long queries, long keys, long size, float scaling, long window) {
    long distance = (queries + 2 * keys) * size, rows = starts[examples], group = queries / keys, longest = 0;
    for (long e = 0; e < examples; e++) longest = MAX(longest, starts[e + 1] - starts[e]);
    long tiles = (longest + TILE - 1) / TILE;
    float *shares = malloc((size_t)(queries * rows * 2 * size) * 4);
    if (!shares) return 1;
    int failed = 0;
    float ones[TILE];
    for (long i = 0; i < TILE; i++) ones[i] = 1.0f;
#pragma omp parallel
    {
        char *memory = aligned_alloc(64, answering_bytes(size) + (size_t)tiles * asked_bytes(size));
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
        answering a = answering_at(memory, size);
        char *asking = memory + answering_bytes(size);
        claim_units();
#pragma omp for schedule(dynamic) collapse(2)
        for (long e = 0; e < examples; e++)
            for (long head = 0; head < queries; head++) {
                if (!memory) continue;
                long start = starts[e], length = starts[e + 1] - start;
                for (long first = 0; first < length; first += TILE) {
                    long row = start + first, at = (row * queries + head) * size;
                    asked q = asked_at(asking + first / TILE * asked_bytes(size), size);
                    ask_back(&q, qkv + row * distance + head * size, distance, d_out + at, out + at, queries * size,
                             sums + head * rows + row, MIN(TILE, length - first), size, a.rows);
                }
                for (long key = 0; key < length; key += TILE) {
                    long seen = MIN(TILE, length - key), last = window ? MIN(length, key + seen - 1 + window) : length;
                    const uint16_t *k = qkv + (start + key) * distance + (queries + head / group) * size;
                    begin_answering(&a, k, k + keys * size, distance, seen, size);
                    for (long first = key; first < last; first += TILE) {
                        asked q = asked_at(asking + first / TILE * asked_bytes(size), size);
                        sight s = {first - key, window, TILE, in_blocks(seen), in_blocks(MIN(TILE, length - first))};
                        answer_back(&a, &q, size, scaling, &s);
                    }
                    put_share(shares + (head * rows + start + key) * 2 * size, &a, seen, size);
                }
                for (long first = 0; first < length; first += TILE)
                    turn_back(asked_at(asking + first / TILE * asked_bytes(size), size).dq, ones, MIN(TILE, length - first), size,
                              d_qkv + (start + first) * distance + head * size, distance, 0);
            }
        _tile_release();
        gather_shares(shares, d_qkv, rows, queries, keys, size, 0);
        free(memory);
    }
    free(shares);
    return failed;
}

/* As look_backward_bfloat16. */
int look_backward_by_units(const uint16_t *d_out, const uint16_t *qkv, const uint16_t *out, const float *sums, uint16_t *d_qkv,
                           long rows, long first, long end, long start, long stop, long queries, long keys, long size,
                           float scaling) {
    long distance = (queries + 2 * keys) * size, group = queries / keys, seen_rows = stop - start;
    long tiles = (seen_rows + TILE - 1) / TILE;
    float *shares = malloc((size_t)(queries * seen_rows * 2 * size) * 4);
    if (!shares) return 1;
    int failed = 0;
    float ones[TILE];
    for (long i = 0; i < TILE; i++) ones[i] = 1.0f;
#pragma omp parallel
    {
        char *memory = aligned_alloc(64, (size_t)tiles * answering_bytes(size) + asked_bytes(size));
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
        char *answers = memory + asked_bytes(size);
        asked q = asked_at(memory, size);
        claim_units();
#pragma omp for schedule(dynamic)
        for (long head = 0; head < queries; head++) {
            if (!memory) continue;
            for (long key = 0; key < seen_rows; key += TILE) {
                answering a = answering_at(answers + key / TILE * answering_bytes(size), size);
                const uint16_t *k = qkv + (start + key) * distance + (queries + head / group) * size;
                begin_answering(&a, k, k + keys * size, distance, MIN(TILE, seen_rows - key), size);
            }
            for (long row = first; row < end; row += TILE) {
                long at = (row * queries + head) * size, count = MIN(TILE, end - row);
                ask_back(&q, qkv + row * distance + head * size, distance, d_out + at, out + at, queries * size,
                         sums + head * rows + row, count, size, answering_at(answers, size).rows);
                for (long key = 0; key < seen_rows; key += TILE) {
                    answering a = answering_at(answers + key / TILE * answering_bytes(size), size);
                    long seen = MIN(TILE, seen_rows - key);
                    sight s = {TILE, 0, seen, in_blocks(seen), in_blocks(count)};
                    answer_back(&a, &q, size, scaling, &s);
                }
                turn_back(q.dq, ones, count, size, d_qkv + row * distance + head * size, distance, 1);
            }
            for (long key = 0; key < seen_rows; key += TILE) {
                answering a = answering_at(answers + key / TILE * answering_bytes(size), size);
                put_share(shares + (head * seen_rows + key) * 2 * size, &a, MIN(TILE, seen_rows - key), size);
            }
        }
        _tile_release();
        gather_shares(shares, d_qkv + start * distance, seen_rows, queries, keys, size, 1);
        free(memory);
    }
    free(shares);
    return failed;
}
#endif
