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
                        float *row = score + i * TILE, high = most[i], total = 0.0f;
                        long end = MIN(seen, first + i + 1 - key);
                        long begin = window ? MAX(0, MIN(end, first + i + 1 - window - key)) : 0;
                        if (end <= begin) {
                            memset(row, 0, TILE * 4);
                            continue;
                        }
#pragma omp simd
                        for (long j = 0; j < TILE; j++) row[j] *= scaling;
                        for (long j = 0; j < begin; j++) row[j] = NOTHING;
                        for (long j = end; j < TILE; j++) row[j] = NOTHING;
#pragma omp simd reduction(max : high)
                        for (long j = 0; j < TILE; j++) high = row[j] > high ? row[j] : high;
#pragma omp simd reduction(+ : total)
                        for (long j = 0; j < TILE; j++) {
                            row[j] = exponential(row[j] - high);
                            total += row[j];
                        }
                        float before = exponential(most[i] - high);
                        most[i] = high;
                        sum[i] = sum[i] * before + total;
                        if (before != 1.0f)
#pragma omp simd
                            for (long j = 0; j < size; j++) answer[i * size + j] *= before;
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
                            float *w = weight + i * TILE, *c = change + i * TILE;
                            long end = MIN(seen, first + i + 1 - key);
                            long begin = window ? MAX(0, MIN(end, first + i + 1 - window - key)) : 0;
                            float shift = norm[first + i], mean = inner[first + i];
#pragma omp simd
                            for (long j = 0; j < TILE; j++) {
                                w[j] = exponential(w[j] * scaling - shift);
                                c[j] = w[j] * (c[j] - mean) * scaling;
                            }
                            for (long j = 0; j < begin; j++) w[j] = c[j] = 0.0f;
                            for (long j = end; j < TILE; j++) w[j] = c[j] = 0.0f;
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
