/* The way back through attention.h: with scoresᵀ computed again,
 *   dV += weightsᵀ·dO, dK += changesᵀ·Q, dQᵀ += Kᵀ·changesᵀ. Included by kernels.c once, after attention.h. */

#if UNITS
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

/* A tile of keys for the way back: keys and values (TILE, size), keys turned (size, TILE); their gradients (TILE, size). What is at work for
 * one pair of tiles alone is the same for all. */
typedef struct {
    uint16_t *keys, *values, *turned, *rows, *woven;
    float *dk, *dv, *weight, *change;
    uint16_t *weights, *changes, *changes_woven;
} answering;

static size_t answering_bytes(long size) { return (size_t)(TILE * size) * 14; }

static size_t work_bytes(long size) { return (size_t)(TILE * size) * 4 + TILE * TILE * 14; }

static answering answering_at(char *memory, char *work, long size) {
    answering a;
    a.dk = (float *)memory;
    a.dv = a.dk + TILE * size;
    a.keys = (uint16_t *)(a.dv + TILE * size);
    a.values = a.keys + TILE * size;
    a.turned = a.values + TILE * size;
    a.weight = (float *)work;
    a.change = a.weight + TILE * TILE;
    a.weights = (uint16_t *)(a.change + TILE * TILE);
    a.changes = a.weights + TILE * TILE;
    a.changes_woven = a.changes + TILE * TILE;
    a.rows = a.changes_woven + TILE * TILE;
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
    for (long query = 0; query < s->queries; query += BLOCK_OF) {
        long keys = seen_from(s, query);
        units_product(keys, BLOCK_OF, size, a->keys, size, q->q_across + 2 * query, 2 * TILE, a->weight + query, TILE, 0);
        units_product(keys, BLOCK_OF, size, a->values, size, q->d_across + 2 * query, 2 * TILE, a->change + query, TILE, 0);
    }
    uint64_t seen[TILE];
    int masked = list_seen(s, seen);
    for (long c = 0; c < s->queries; c += UNIT)
        if (masked)
            pull_16(a, q, c, seen_from(s, c / BLOCK_OF * BLOCK_OF), scaling, seen, 1);
        else
            pull_16(a, q, c, s->keys, scaling, seen, 0);
    for (long key = 0; key < s->keys; key += BLOCK_OF) {
        long from = seers_of(s, key), at = key * TILE + from, depth = s->queries - from;
        units_product(BLOCK_OF, size, depth, a->weights + at, TILE, q->d_along + from * size, 2 * size, a->dv + key * size, size, 1);
        units_product(BLOCK_OF, size, depth, a->changes + at, TILE, q->q_along + from * size, 2 * size, a->dk + key * size, size, 1);
    }
    for (long query = 0; query < s->queries; query += BLOCK_OF)
        units_product(size, BLOCK_OF, seen_from(s, query), a->turned, TILE, a->changes_woven + 2 * query, 2 * TILE, q->dq + query, TILE, 1);
}

/* Gradients of keys and values, (keys, members, rows, 2, size): those of query heads, or of parts of their tokens, summed over the members
 * that share a key's head into d_qkv; where `add`, onto what is there. To be called by all threads. */
static void gather_shares(const float *shares, uint16_t *d_qkv, long rows, long members, long distance, long keys, long size, int add) {
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++)
        for (long head = 0; head < keys; head++)
            for (long which = 0; which < 2; which++) {
                /* keys and values are the last in a row */
                uint16_t *to = d_qkv + (row + 1) * distance + ((which - 2) * keys + head) * size;
                for (long j = 0; j < size; j += UNIT) {
                    __m512 total = add ? read_16(to + j) : _mm512_setzero_ps();
                    for (long member = 0; member < members; member++) {
                        const float *share = shares + (((head * members + member) * rows + row) * 2 + which) * size + j;
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

/* The gradients of a tile of keys, and `beyond` them of its values. */
static void put_answer(uint16_t *to, const answering *a, long seen, long size, long distance, long beyond) {
    for (long i = 0; i < seen; i++, to += distance)
        for (long j = 0; j < size; j += UNIT) {
            write_16(to + j, _mm512_load_ps(a->dk + i * size + j));
            write_16(to + beyond + j, _mm512_load_ps(a->dv + i * size + j));
        }
}

/* The examples, longest first. */
static void list_longest(const int32_t *starts, long examples, int32_t *order) {
    for (long e = 0; e < examples; e++) {
        long at = e, length = starts[e + 1] - starts[e];
        for (; at > 0 && starts[order[at - 1] + 1] - starts[order[at - 1]] < length; at--) order[at] = order[at - 1];
        order[at] = (int32_t)e;
    }
}

/* How many query heads of a key's one thread takes: all, so that keys are made ready and their gradients summed once, unless that
 * would leave less than eight pieces of work as long as the longest. */
static long heads_together(const int32_t *starts, long examples, long keys, long group) {
    double all = 0.0, most = 0.0;
    for (long e = 0; e < examples; e++) {
        double length = starts[e + 1] - starts[e];
        all += length * length;
        most = MAX(most, length * length);
    }
    return all * (double)keys >= 8.0 * most ? group : 1;
}

/* As attend_backward_bfloat16. */
int attend_backward_by_units(const uint16_t *d_out, const uint16_t *qkv, const uint16_t *out, const float *sums, uint16_t *d_qkv,
                             const int32_t *starts, long examples, long queries, long keys, long size, float scaling, long window) {
    long distance = (queries + 2 * keys) * size, rows = starts[examples], group = queries / keys, longest = 0;
    for (long e = 0; e < examples; e++) longest = MAX(longest, starts[e + 1] - starts[e]);
    long tiles = (longest + TILE - 1) / TILE, together = heads_together(starts, examples, keys, group);
    float *shares = together < group ? malloc((size_t)(queries * rows * 2 * size) * 4) : 0;
    int32_t *order = malloc((size_t)examples * 4);
    int failed = !order || (together < group && !shares);
    if (order) list_longest(starts, examples, order);
    float ones[TILE];
    for (long i = 0; i < TILE; i++) ones[i] = 1.0f;
#pragma omp parallel if (!failed)
    {
        char *work = failed ? 0 : aligned_alloc(64, work_bytes(size) + (size_t)tiles * (answering_bytes(size) + asked_bytes(size)));
        char *answers = work + work_bytes(size), *asking = answers + (size_t)tiles * answering_bytes(size);
        if (!work) {
#pragma omp atomic write
            failed = 1;
        }
        claim_units();
#pragma omp for schedule(dynamic) collapse(2)
        for (long at = 0; at < examples; at++)
            for (long heads = 0; heads < queries; heads += together) {
                if (!work) continue;
                long start = starts[order[at]], length = starts[order[at] + 1] - start;
                const uint16_t *k = qkv + start * distance + (queries + heads / group) * size;
                for (long key = 0; key < length; key += TILE) {
                    answering a = answering_at(answers + key / TILE * answering_bytes(size), work, size);
                    begin_answering(&a, k + key * distance, k + key * distance + keys * size, distance, MIN(TILE, length - key), size);
                }
                for (long head = heads; head < heads + together; head++) {
                    for (long first = 0; first < length; first += TILE) {
                        long row = start + first, from = (row * queries + head) * size;
                        asked q = asked_at(asking + first / TILE * asked_bytes(size), size);
                        ask_back(&q, qkv + row * distance + head * size, distance, d_out + from, out + from, queries * size,
                                 sums + head * rows + row, MIN(TILE, length - first), size, (uint16_t *)work);
                    }
                    for (long key = 0; key < length; key += TILE) {
                        answering a = answering_at(answers + key / TILE * answering_bytes(size), work, size);
                        long seen = MIN(TILE, length - key), last = window ? MIN(length, key + seen - 1 + window) : length;
                        for (long first = key; first < last; first += TILE) {
                            asked q = asked_at(asking + first / TILE * asked_bytes(size), size);
                            sight s = {first - key, window, TILE, in_blocks(seen), in_blocks(MIN(TILE, length - first))};
                            answer_back(&a, &q, size, scaling, &s);
                        }
                        if (shares) put_share(shares + (head * rows + start + key) * 2 * size, &a, seen, size);
                    }
                    for (long first = 0; first < length; first += TILE)
                        turn_back(asked_at(asking + first / TILE * asked_bytes(size), size).dq, ones, MIN(TILE, length - first), size,
                                  d_qkv + (start + first) * distance + head * size, distance, 0);
                }
                for (long key = 0; key < length && !shares; key += TILE) {
                    answering a = answering_at(answers + key / TILE * answering_bytes(size), work, size);
                    put_answer(d_qkv + (start + key) * distance + (queries + heads / group) * size, &a, MIN(TILE, length - key), size,
                               distance, keys * size);
                }
            }
        release_units();
        if (shares) gather_shares(shares, d_qkv, rows, group, distance, keys, size, 0);
        free(work);
    }
    free(shares);
    free(order);
    return failed;
}

/* As look_backward_bfloat16. */
int look_backward_by_units(const uint16_t *d_out, const uint16_t *qkv, const uint16_t *out, const float *sums, uint16_t *d_qkv,
                           long rows, long first, long end, long start, long stop, long queries, long keys, long size,
                           float scaling) {
    long distance = (queries + 2 * keys) * size, group = queries / keys, seen_rows = stop - start;
    long tiles = (seen_rows + TILE - 1) / TILE, askers = (end - first + TILE - 1) / TILE, parts = MIN(4, askers); /* work for more threads */
    float *shares = malloc((size_t)(queries * parts * seen_rows * 2 * size) * 4);
    if (!shares) return 1;
    int failed = 0;
    float ones[TILE];
    for (long i = 0; i < TILE; i++) ones[i] = 1.0f;
#pragma omp parallel
    {
        char *memory = aligned_alloc(64, asked_bytes(size) + work_bytes(size) + (size_t)tiles * answering_bytes(size));
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
        char *work = memory + asked_bytes(size), *answers = work + work_bytes(size);
        asked q = asked_at(memory, size);
        claim_units();
#pragma omp for schedule(dynamic) collapse(2)
        for (long head = 0; head < queries; head++)
            for (long part = 0; part < parts; part++) {
                if (!memory) continue;
                for (long key = 0; key < seen_rows; key += TILE) {
                    answering a = answering_at(answers + key / TILE * answering_bytes(size), work, size);
                    const uint16_t *k = qkv + (start + key) * distance + (queries + head / group) * size;
                    begin_answering(&a, k, k + keys * size, distance, MIN(TILE, seen_rows - key), size);
                }
                for (long asker = part * askers / parts; asker < (part + 1) * askers / parts; asker++) {
                    long row = first + asker * TILE, at = (row * queries + head) * size, count = MIN(TILE, end - row);
                    ask_back(&q, qkv + row * distance + head * size, distance, d_out + at, out + at, queries * size,
                             sums + head * rows + row, count, size, (uint16_t *)work);
                    for (long key = 0; key < seen_rows; key += TILE) {
                        answering a = answering_at(answers + key / TILE * answering_bytes(size), work, size);
                        long seen = MIN(TILE, seen_rows - key);
                        sight s = {TILE, 0, seen, in_blocks(seen), in_blocks(count)};
                        answer_back(&a, &q, size, scaling, &s);
                    }
                    turn_back(q.dq, ones, count, size, d_qkv + row * distance + head * size, distance, ones);
                }
                for (long key = 0; key < seen_rows; key += TILE) {
                    answering a = answering_at(answers + key / TILE * answering_bytes(size), work, size);
                    put_share(shares + ((head * parts + part) * seen_rows + key) * 2 * size, &a, MIN(TILE, seen_rows - key), size);
                }
            }
        release_units();
        gather_shares(shares, d_qkv + start * distance, seen_rows, group * parts, distance, keys, size, 1);
        free(memory);
    }
    free(shares);
    return failed;
}
#endif
