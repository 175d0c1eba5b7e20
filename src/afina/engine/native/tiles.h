/* Causal attention of every example by itself, in tiles of 64 queries and 64 keys (Dao et al. 2022, algorithms 1 and 4).
 * Included by kernels.c for each number format.
 *
 * A row of qkv holds `queries` heads, then `keys` heads of keys, then as many of values, `size` numbers each; examples lie
 * end to end, `starts` has one entry more than there are examples. A query sees the `window` keys up to its own. */

/* `count` rows of `size`, `distance` apart, to float32; behind them zeros up to TILE rows. */
static void NAME(take)(const NUMBER *from, long distance, long count, long size, float *to) {
    for (long i = 0; i < count; i++)
#pragma omp simd
        for (long j = 0; j < size; j++) to[i * size + j] = GET(from[i * distance + j]);
    memset(to + count * size, 0, (size_t)((TILE - count) * size) * 4);
}

/* The same, transposed: (size, TILE). */
static void NAME(take_across)(const NUMBER *from, long distance, long count, long size, float *to) {
    for (long j = 0; j < size; j++) {
        for (long i = 0; i < count; i++) to[j * TILE + i] = GET(from[i * distance + j]);
        for (long i = count; i < TILE; i++) to[j * TILE + i] = 0.0f;
    }
}

/* Keys transposed and values of every tile and head, in float32: (tiles, keys, 2, TILE · size). work: example and first row
 * of every tile. */
static void NAME(pack)(const NUMBER *qkv, const int32_t *work, long tiles, const int32_t *starts, long queries, long keys,
                       long size, int both_across, float *packs) {
    long distance = (queries + 2 * keys) * size;
#pragma omp for schedule(static) collapse(2)
    for (long tile = 0; tile < tiles; tile++)
        for (long head = 0; head < keys; head++) {
            long first = work[2 * tile + 1], count = MIN(TILE, starts[work[2 * tile] + 1] - first);
            const NUMBER *k = qkv + first * distance + (queries + head) * size, *v = k + keys * size;
            float *to = packs + (tile * keys + head) * 2 * TILE * size;
            NAME(take_across)(k, distance, count, size, to);
            if (both_across)
                NAME(take_across)(v, distance, count, size, to + TILE * size);
            else
                NAME(take)(v, distance, count, size, to + TILE * size);
        }
}

/* out (rows, queries · size), and log Σ e^score of every query and head, sums (queries, rows). */
int NAME(attend)(const NUMBER *qkv, NUMBER *out, float *sums, const int32_t *starts, long examples, long queries,
                 long keys, long size, float scaling, long window) {
    long distance = (queries + 2 * keys) * size, rows = starts[examples], group = queries / keys;
    long tiles = count_tiles(starts, examples);
    int32_t *work = malloc((size_t)tiles * 2 * 4);
    float *packs = malloc((size_t)(tiles * keys * 2 * TILE * size) * 4);
    if (!work || !packs) {
        free(work);
        free(packs);
        return 1;
    }
    list_tiles(starts, examples, work);
    int failed = 0;
#pragma omp parallel
    {
        NAME(pack)(qkv, work, tiles, starts, queries, keys, size, 0, packs);
        float *q = malloc((size_t)(2 * TILE * size + TILE * TILE) * 4), *answer = q + TILE * size;
        float *score = answer + TILE * size, most[TILE], sum[TILE];
        if (!q) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic) collapse(2)
        for (long tile = tiles - 1; tile >= 0; tile--)
            for (long own = 0; own < queries; own++) {
                if (!q) continue;
                long start = starts[work[2 * tile]], first = work[2 * tile + 1];
                long count = MIN(TILE, starts[work[2 * tile] + 1] - first);
                for (long i = 0; i < TILE; i++) most[i] = NOTHING, sum[i] = 0.0f;
                memset(answer, 0, (size_t)(TILE * size) * 4);
                NAME(take)(qkv + first * distance + own * size, distance, count, size, q);
                long earliest = window ? MAX(start, first + 1 - window) : start;
                for (long key = start + (earliest - start) / TILE * TILE; key < first + count; key += TILE) {
                    long seen = MIN(TILE, first + count - key);
                    const float *across = packs + ((tile - (first - key) / TILE) * keys + own / group) * 2 * TILE * size;
                    product(count, TILE, size, q, size, 1, across, TILE, score, TILE, 0);
                    for (long i = 0; i < count; i++) {
                        long until = MIN(seen, first + i + 1 - key);
                        long since = window ? MAX(0, MIN(until, first + i + 1 - window - key)) : 0;
                        weigh(score + i * TILE, since, until, scaling, most + i, sum + i, answer + i * size, size);
                    }
                    product(count, size, seen, score, TILE, 1, across + TILE * size, size, answer, size, 1);
                }
                for (long i = 0; i < count; i++) {
                    float by = 1.0f / sum[i];
                    NUMBER *to = out + ((first + i) * queries + own) * size;
#pragma omp simd
                    for (long j = 0; j < size; j++) to[j] = PUT(answer[i * size + j] * by);
                    sums[own * rows + first + i] = most[i] + logf(sum[i]);
                }
            }
        free(q);
    }
    free(work);
    free(packs);
    return failed;
}

/* The gradient of qkv from that of out; scores are computed again. */
int NAME(attend_backward)(const NUMBER *d_out, const NUMBER *qkv, const NUMBER *out, const float *sums, NUMBER *d_qkv,
                          const int32_t *starts, long examples, long queries, long keys, long size, float scaling,
                          long window) {
    long distance = (queries + 2 * keys) * size, rows = starts[examples], group = queries / keys, longest = 0;
    for (long e = 0; e < examples; e++) longest = MAX(longest, starts[e + 1] - starts[e]);
    longest = (longest + TILE - 1) / TILE * TILE;
    /* of every query head: gradients of keys and values, summed over the heads that share them at the end */
    float *shares = malloc((size_t)(queries * rows * 2 * size) * 4);
    long tiles = count_tiles(starts, examples);
    int32_t *work = malloc((size_t)tiles * 2 * 4);
    float *packs = malloc((size_t)(tiles * keys * 2 * TILE * size) * 4);
    if (!shares || !work || !packs) {
        free(shares);
        free(work);
        free(packs);
        return 1;
    }
    list_tiles(starts, examples, work);
    int failed = 0;
#pragma omp parallel
    {
        NAME(pack)(qkv, work, tiles, starts, queries, keys, size, 1, packs);
        float *q = malloc((size_t)(longest * size * 3 + longest + TILE * size * 3 + 2 * TILE * TILE) * 4);
        float *d = q + longest * size, *dq = d + longest * size, *inner = dq + longest * size;
        float *k = inner + longest, *dk = k + TILE * size, *dv = dk + TILE * size, *weight = dv + TILE * size;
        float *change = weight + TILE * TILE;
        if (!q) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic) collapse(2)
        for (long e = 0; e < examples; e++)
            for (long head = 0; head < queries; head++) {
                if (!q) continue;
                long start = starts[e], length = starts[e + 1] - start, tile = count_tiles(starts, e);
                const float *norm = sums + head * rows + start;
                for (long first = 0; first < length; first += TILE) {
                    long count = MIN(TILE, length - first), row = start + first;
                    NAME(take)(qkv + row * distance + head * size, distance, count, size, q + first * size);
                    NAME(take)(d_out + (row * queries + head) * size, queries * size, count, size, d + first * size);
                }
                for (long i = 0; i < length; i++) {
                    const NUMBER *o = out + ((start + i) * queries + head) * size;
                    float total = 0.0f;
#pragma omp simd reduction(+ : total)
                    for (long j = 0; j < size; j++) total += GET(o[j]) * d[i * size + j];
                    inner[i] = total;
                }
                memset(dq, 0, (size_t)(longest * size) * 4);
                for (long key = 0; key < length; key += TILE, tile++) {
                    long seen = MIN(TILE, length - key);
                    const float *k_across = packs + (tile * keys + head / group) * 2 * TILE * size;
                    const float *v_across = k_across + TILE * size;
                    NAME(take)(qkv + (start + key) * distance + (queries + head / group) * size, distance, seen, size, k);
                    memset(dk, 0, (size_t)(2 * TILE * size) * 4);
                    long last = window ? MIN(length, key + seen - 1 + window) : length;
                    for (long first = key; first < last; first += TILE) {
                        long count = MIN(TILE, length - first);
                        product(count, TILE, size, q + first * size, size, 1, k_across, TILE, weight, TILE, 0);
                        product(count, TILE, size, d + first * size, size, 1, v_across, TILE, change, TILE, 0);
                        for (long i = 0; i < count; i++) {
                            long until = MIN(seen, first + i + 1 - key);
                            long since = window ? MAX(0, MIN(until, first + i + 1 - window - key)) : 0;
                            pull(weight + i * TILE, change + i * TILE, since, until, scaling, norm[first + i],
                                 inner[first + i]);
                        }
                        product(TILE, size, count, weight, 1, TILE, d + first * size, size, dv, size, 1);
                        product(TILE, size, count, change, 1, TILE, q + first * size, size, dk, size, 1);
                        product(count, size, seen, change, TILE, 1, k, size, dq + first * size, size, 1);
                    }
                    float *share = shares + (head * rows + start + key) * 2 * size;
                    for (long i = 0; i < seen; i++) {
                        memcpy(share + i * 2 * size, dk + i * size, (size_t)size * 4);
                        memcpy(share + i * 2 * size + size, dv + i * size, (size_t)size * 4);
                    }
                }
                for (long i = 0; i < length; i++) {
                    NUMBER *to = d_qkv + (start + i) * distance + head * size;
#pragma omp simd
                    for (long j = 0; j < size; j++) to[j] = PUT(dq[i * size + j]);
                }
            }
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++)
            for (long head = 0; head < keys; head++)
                for (long which = 0; which < 2; which++) {
                    NUMBER *to = d_qkv + row * distance + (queries + which * keys + head) * size;
                    for (long j = 0; j < size; j++) {
                        float total = 0.0f;
                        for (long member = 0; member < group; member++)
                            total += shares[((head * group + member) * rows + row) * 2 * size + which * size + j];
                        to[j] = PUT(total);
                    }
                }
        free(q);
    }
    free(shares);
    free(work);
    free(packs);
    return failed;
}

/* What the queries of the rows [first, end) find at the keys of the rows [start, stop), all of which they see, is mixed into
 * out and sums, each of the two by its share of Σ e^score (the same paper, section 3.1). */
int NAME(look)(const NUMBER *qkv, NUMBER *out, float *sums, long rows, long first, long end, long start, long stop,
               long queries, long keys, long size, float scaling) {
    long distance = (queries + 2 * keys) * size, group = queries / keys, tiles = (stop - start + TILE - 1) / TILE;
    float *packs = malloc((size_t)(tiles * keys * 2 * TILE * size) * 4);
    if (!packs) return 1;
    int failed = 0;
#pragma omp parallel
    {
        float *q = malloc((size_t)(2 * TILE * size + TILE * TILE) * 4), *answer = q + TILE * size;
        float *score = answer + TILE * size, most[TILE], sum[TILE];
        if (!q) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static) collapse(2)
        for (long tile = 0; tile < tiles; tile++)
            for (long head = 0; head < keys; head++) {
                const NUMBER *k = qkv + (start + tile * TILE) * distance + (queries + head) * size;
                float *to = packs + (tile * keys + head) * 2 * TILE * size;
                long seen = MIN(TILE, stop - start - tile * TILE);
                NAME(take_across)(k, distance, seen, size, to);
                NAME(take)(k + keys * size, distance, seen, size, to + TILE * size);
            }
#pragma omp for schedule(dynamic) collapse(2)
        for (long row = first; row < end; row += TILE)
            for (long own = 0; own < queries; own++) {
                if (!q) continue;
                long count = MIN(TILE, end - row);
                for (long i = 0; i < TILE; i++) most[i] = NOTHING, sum[i] = 0.0f;
                memset(answer, 0, (size_t)(TILE * size) * 4);
                NAME(take)(qkv + row * distance + own * size, distance, count, size, q);
                for (long tile = 0; tile < tiles; tile++) {
                    long seen = MIN(TILE, stop - start - tile * TILE);
                    const float *across = packs + (tile * keys + own / group) * 2 * TILE * size;
                    product(count, TILE, size, q, size, 1, across, TILE, score, TILE, 0);
                    for (long i = 0; i < count; i++)
                        weigh(score + i * TILE, 0, seen, scaling, most + i, sum + i, answer + i * size, size);
                    product(count, size, seen, score, TILE, 1, across + TILE * size, size, answer, size, 1);
                }
                for (long i = 0; i < count; i++) {
                    float *norm = sums + own * rows + row + i, more = most[i] + logf(sum[i]);
                    float high = MAX(*norm, more), whole = high + logf(expf(*norm - high) + expf(more - high));
                    float by_own = expf(*norm - whole), by_more = expf(more - whole) / sum[i];
                    NUMBER *to = out + ((row + i) * queries + own) * size;
#pragma omp simd
                    for (long j = 0; j < size; j++) to[j] = PUT(GET(to[j]) * by_own + answer[i * size + j] * by_more);
                    *norm = whole;
                }
            }
        free(q);
    }
    free(packs);
    return failed;
}

/* The gradients that flow through a look are added to d_qkv. */
int NAME(look_backward)(const NUMBER *d_out, const NUMBER *qkv, const NUMBER *out, const float *sums, NUMBER *d_qkv,
                        long rows, long first, long end, long start, long stop, long queries, long keys, long size,
                        float scaling) {
    long distance = (queries + 2 * keys) * size, group = queries / keys, seen_rows = stop - start;
    float *shares = malloc((size_t)(queries * seen_rows * 2 * size) * 4);
    if (!shares) return 1;
    int failed = 0;
#pragma omp parallel
    {
        float *q = malloc((size_t)(TILE * size * 8 + 2 * TILE * TILE) * 4), *d = q + TILE * size;
        float *dq = d + TILE * size, *k = dq + TILE * size, *k_across = k + TILE * size;
        float *v_across = k_across + TILE * size, *dk = v_across + TILE * size, *dv = dk + TILE * size;
        float *weight = dv + TILE * size, *change = weight + TILE * TILE;
        if (!q) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (long head = 0; head < queries; head++) {
            if (!q) continue;
            for (long key = 0; key < seen_rows; key += TILE) {
                long seen = MIN(TILE, seen_rows - key);
                const NUMBER *from = qkv + (start + key) * distance + (queries + head / group) * size;
                NAME(take)(from, distance, seen, size, k);
                NAME(take_across)(from, distance, seen, size, k_across);
                NAME(take_across)(from + keys * size, distance, seen, size, v_across);
                memset(dk, 0, (size_t)(2 * TILE * size) * 4);
                for (long row = first; row < end; row += TILE) {
                    long count = MIN(TILE, end - row);
                    NAME(take)(qkv + row * distance + head * size, distance, count, size, q);
                    NAME(take)(d_out + (row * queries + head) * size, queries * size, count, size, d);
                    product(count, TILE, size, q, size, 1, k_across, TILE, weight, TILE, 0);
                    product(count, TILE, size, d, size, 1, v_across, TILE, change, TILE, 0);
                    for (long i = 0; i < count; i++) {
                        const NUMBER *o = out + ((row + i) * queries + head) * size;
                        float mean = 0.0f;
#pragma omp simd reduction(+ : mean)
                        for (long j = 0; j < size; j++) mean += GET(o[j]) * d[i * size + j];
                        pull(weight + i * TILE, change + i * TILE, 0, seen, scaling, sums[head * rows + row + i], mean);
                    }
                    product(TILE, size, count, weight, 1, TILE, d, size, dv, size, 1);
                    product(TILE, size, count, change, 1, TILE, q, size, dk, size, 1);
                    product(count, size, seen, change, TILE, 1, k, size, dq, size, 0);
                    for (long i = 0; i < count; i++) {
                        NUMBER *to = d_qkv + (row + i) * distance + head * size;
#pragma omp simd
                        for (long j = 0; j < size; j++) to[j] = PUT(GET(to[j]) + dq[i * size + j]);
                    }
                }
                float *share = shares + (head * seen_rows + key) * 2 * size;
                for (long i = 0; i < seen; i++) {
                    memcpy(share + i * 2 * size, dk + i * size, (size_t)size * 4);
                    memcpy(share + i * 2 * size + size, dv + i * size, (size_t)size * 4);
                }
            }
        }
#pragma omp for schedule(static)
        for (long row = 0; row < seen_rows; row++)
            for (long head = 0; head < keys; head++)
                for (long which = 0; which < 2; which++) {
                    NUMBER *to = d_qkv + (start + row) * distance + (queries + which * keys + head) * size;
                    for (long j = 0; j < size; j++) {
                        float total = GET(to[j]);
                        for (long member = 0; member < group; member++)
                            total += shares[((head * group + member) * seen_rows + row) * 2 * size + which * size + j];
                        to[j] = PUT(total);
                    }
                }
        free(q);
    }
    free(shares);
    return failed;
}
