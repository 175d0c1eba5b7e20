/* The way back through attention.h, a key a row and a query a column, so that what belongs to a query is a register: with scoresᵀ computed again,
 *   dV += weightsᵀ·dO, dK += changesᵀ·Q, dQᵀ += Kᵀ·changesᵀ. Included by kernels.c once, after attention.h. */

#if UNITS
/* Queries are taken QUERIES_TOGETHER blocks at a time, keys KEYS_TOGETHER: what is summed over some is in registers meanwhile. */
enum { QUERIES_TOGETHER = 6, KEYS_TOGETHER = 4, PULLED = QUERIES_TOGETHER * BLOCK_OF + UNIT, CHANGED = 2 * QUERIES_TOGETHER * BLOCK_OF };

/* (32, size) → its transpose (size, 32), by way of `woven` (as much memory). */
static void turn_halves(const uint16_t *from, long size, uint16_t *woven, uint16_t *to) {
    weave_across(from, size, BLOCK_OF, size, woven);
    for (long pair = 0; pair < size / 2; pair++)
        for (long i = 0; i < BLOCK_OF; i += UNIT) {
            __m512i both = _mm512_loadu_si512(woven + pair * 2 * BLOCK_OF + 2 * i);
            _mm256_storeu_si256((__m256i *)(to + 2 * pair * BLOCK_OF + i), _mm512_cvtepi32_epi16(both));
            _mm256_storeu_si256((__m256i *)(to + (2 * pair + 1) * BLOCK_OF + i), _mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
        }
}

/* from (size, 32), turned: the first `count` columns as rows of `size`. */
static void turn_back(const float *from, long count, long size, uint16_t *to, long distance) {
    for (long i = 0; i < count; i += UNIT)
        for (long j = 0; j < size; j += UNIT) {
            __m512 row[UNIT];
            for (long k = 0; k < UNIT; k++) row[k] = _mm512_load_ps(from + (j + k) * BLOCK_OF + i);
            turn_16(row);
            for (long k = 0; k < MIN(UNIT, count - i); k++) write_16(to + (i + k) * distance + j, row[k]);
        }
}

/* An example's queries in blocks for the way back: each across (size / 2, 32, 2) and along (16, size, 2), as are the gradients of their
 * answers; the norm and Σ p·dp of each, both as pull_block takes them; and dQᵀ (size, 32). */
typedef struct {
    uint16_t *q_across, *q_along, *d_across, *d_along;
    float *norm, *inner, *dq;
} asked;

static size_t asked_bytes(long size) { return (size_t)(BLOCK_OF * size) * 12 + 2 * BLOCK_OF * 4; }

static asked asked_at(char *memory, long blocks, long size) {
    asked a;
    a.dq = (float *)memory;
    a.norm = a.dq + blocks * BLOCK_OF * size;
    a.inner = a.norm + blocks * BLOCK_OF;
    a.q_across = (uint16_t *)(a.inner + blocks * BLOCK_OF);
    a.q_along = a.q_across + blocks * BLOCK_OF * size;
    a.d_across = a.q_along + blocks * BLOCK_OF * size;
    a.d_along = a.d_across + blocks * BLOCK_OF * size;
    return a;
}

/* Block `at`: `count` queries. */
static void ask_back(asked *a, long at, const uint16_t *q, long q_distance, const uint16_t *d, const uint16_t *o, long o_distance,
                     const float *norm, long count, long size, float scaling, uint16_t *rows) {
    const long begin = at * BLOCK_OF * size;
    fetch(q, q_distance, count, size, rows);
    weave_across(rows, size, BLOCK_OF, size, a->q_across + begin);
    weave(rows, size, BLOCK_OF, size, a->q_along + begin);
    fetch(d, o_distance, count, size, rows);
    weave_across(rows, size, BLOCK_OF, size, a->d_across + begin);
    weave(rows, size, BLOCK_OF, size, a->d_along + begin);
    for (long i = 0; i < BLOCK_OF; i++) {
        __m512 total = _mm512_setzero_ps();
        for (long j = 0; j < size && i < count; j += UNIT)
            total = _mm512_fmadd_ps(read_16(o + i * o_distance + j), read_16(rows + i * size + j), total);
        a->inner[at * BLOCK_OF + i] = _mm512_reduce_add_ps(total) * scaling;
        a->norm[at * BLOCK_OF + i] = i < count ? norm[i] * LOG2_E : 0.0f;
    }
    memset(a->dq + begin, 0, (size_t)(BLOCK_OF * size) * 4);
}

/* Blocks of keys for the way back: keys and values (32, size), keys turned (size, 32); their gradients (32, size). */
typedef struct {
    uint16_t *keys, *values, *turned;
    float *dk, *dv;
} answering;

static size_t answering_bytes(long size) { return (size_t)(BLOCK_OF * size) * 14; }

static answering answering_at(char *memory, long blocks, long size) {
    answering a;
    a.dk = (float *)memory;
    a.dv = a.dk + blocks * BLOCK_OF * size;
    a.keys = (uint16_t *)(a.dv + blocks * BLOCK_OF * size);
    a.values = a.keys + blocks * BLOCK_OF * size;
    a.turned = a.values + blocks * BLOCK_OF * size;
    return a;
}

static void begin_answering(answering *a, long at, const uint16_t *k, const uint16_t *v, long distance, long count, long size, uint16_t *woven) {
    const long begin = at * BLOCK_OF * size;
    fetch(k, distance, count, size, a->keys + begin);
    fetch(v, distance, count, size, a->values + begin);
    turn_halves(a->keys + begin, size, woven, a->turned + begin);
    memset(a->dk + begin, 0, (size_t)(BLOCK_OF * size) * 4);
    memset(a->dv + begin, 0, (size_t)(BLOCK_OF * size) * 4);
}

/* What is at work between some keys and some queries: scores and gradients of weights of 32 keys, and in their place weights and
 * gradients of scores, rows of PULLED numbers; the latter woven for all keys, rows of CHANGED numbers. */
typedef struct {
    float *weight, *change;
    uint16_t *woven, *rows;
} pulling;

static size_t pulling_bytes(long size) {
    return (size_t)BLOCK_OF * PULLED * 8 + KEYS_TOGETHER * UNIT * CHANGED * 2 + (size_t)(BLOCK_OF * size) * 4;
}

static pulling pulling_at(char *memory) {
    pulling p;
    p.weight = (float *)memory;
    p.change = p.weight + BLOCK_OF * PULLED;
    p.woven = (uint16_t *)(p.change + BLOCK_OF * PULLED);
    p.rows = p.woven + KEYS_TOGETHER * UNIT * CHANGED;
    return p;
}

/* Scores of 32 keys and 32 queries and gradients of their weights become weights and gradients of scores; scores count by 2^(score · by_two). */
static void pull_block(const float *weight, const float *change, const float *norm, const float *inner, float scaling, const sight *s,
                       uint16_t *weights, uint16_t *changes, uint16_t *woven) {
    const __m512 by = _mm512_set1_ps(scaling), by_two = _mm512_set1_ps(scaling * LOG2_E);
    const __m512 norms[2] = {_mm512_load_ps(norm), _mm512_load_ps(norm + UNIT)}, inners[2] = {_mm512_load_ps(inner), _mm512_load_ps(inner + UNIT)};
    const int masked = !sees_all(s);
    for (long j = 0; j < BLOCK_OF; j += 2) {
        __m512 pulled[2][2];
        for (long k = 0; k < 2; k++) {
            const uint32_t seeing = masked ? queries_seeing(s, j + k) : ~0u;
            __m512 power[2];
            for (long c = 0; c < 2; c++) {
                const long at = (j + k) * PULLED + c * UNIT;
                power[c] = power_16(_mm512_fmsub_ps(_mm512_load_ps(weight + at), by_two, norms[c]));
                power[c] = _mm512_maskz_mov_ps((__mmask16)(seeing >> c * UNIT), power[c]);
                pulled[k][c] = _mm512_mul_ps(_mm512_fmsub_ps(_mm512_load_ps(change + at), by, inners[c]), power[c]);
            }
            write_32(weights + (j + k) * 2 * PULLED, power[0], power[1]);
            write_32(changes + (j + k) * 2 * PULLED, pulled[k][0], pulled[k][1]);
        }
        for (long c = 0; c < 2; c++) _mm512_storeu_si512(woven + j / 2 * CHANGED + c * BLOCK_OF, woven_16(pulled[0][c], pulled[1][c]));
    }
}

/* The gradients between the key blocks [key, last) and the query blocks [query, end), KEYS_TOGETHER and QUERIES_TOGETHER of them at most. */
static void answer_back(answering *a, const key_block *list, long key, long last, asked *q, long query, long end, pulling *p, long size,
                        float scaling, long window) {
    const long block = BLOCK_OF * size;
    long highest[QUERIES_TOGETHER] = {0}, lowest[QUERIES_TOGETHER];
    for (long k = 0; k < last - key; k++) {
        const uint16_t *q_across[QUERIES_TOGETHER], *d_across[QUERIES_TOGETHER];
        uint16_t *woven = p->woven + k * UNIT * CHANGED, *weights = (uint16_t *)p->weight, *changes = (uint16_t *)p->change;
        long seers = 0, from = 0;
        for (long at = query; at < end; at++) {
            const sight s = sight_of(&list[key + k], at, window);
            if (sees_none(&s)) {
                for (long pair = 0; pair < UNIT; pair++) memset(woven + pair * CHANGED + (at - query) * 2 * BLOCK_OF, 0, 4 * BLOCK_OF);
                continue;
            }
            if (!seers) from = at;
            if (!highest[at - query]) lowest[at - query] = k;
            highest[at - query] = k + 1;
            q_across[seers] = q->q_across + at * block;
            d_across[seers++] = q->d_across + at * block;
        }
        if (!seers) continue;
        products_along(a->keys + (key + k) * block, size, q_across, seers, size, p->weight, PULLED);
        products_along(a->values + (key + k) * block, size, d_across, seers, size, p->change, PULLED);
        for (long at = 0; at < seers; at++) {
            const sight s = sight_of(&list[key + k], from + at, window);
            pull_block(p->weight + at * BLOCK_OF, p->change + at * BLOCK_OF, q->norm + (from + at) * BLOCK_OF, q->inner + (from + at) * BLOCK_OF,
                       scaling, &s, weights + at * BLOCK_OF, changes + at * BLOCK_OF, woven + (from + at - query) * 2 * BLOCK_OF);
        }
        for (long j = 0; j < size; j += BLOCK_OF) {
            const long to = (key + k) * block + j, of = from * block + 2 * j;
            block_product(weights, 2 * PULLED, q->d_along + of, 2 * size, seers * BLOCK_OF, a->dv + to, size, 1);
            block_product(changes, 2 * PULLED, q->q_along + of, 2 * size, seers * BLOCK_OF, a->dk + to, size, 1);
        }
    }
    for (long at = 0; at < end - query; at++)
        for (long i = 0; i < size && highest[at]; i += BLOCK_OF) {
            float *to = q->dq + (query + at) * block + i * BLOCK_OF;
            begin_block(to, BLOCK_OF, 1);
            add_to_block(to, BLOCK_OF, a->turned + (key + lowest[at]) * block + i * BLOCK_OF, BLOCK_OF, block,
                         p->woven + lowest[at] * UNIT * CHANGED + at * 2 * BLOCK_OF, CHANGED, (highest[at] - lowest[at]) * BLOCK_OF, B_PASSES, 0);
            end_block(to, BLOCK_OF);
        }
}

/* Gradients of keys and values, (keys, members, rows, 2, size): those of query heads, or of examples, summed over the members that share a
 * key's head into d_qkv; where `add`, onto what is there. To be called by all threads. */
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

/* The gradients of `count` keys and of their values. */
static void put_share(float *to, const float *dk, const float *dv, long count, long size) {
    for (long i = 0; i < count; i++, to += 2 * size) {
        memcpy(to, dk + i * size, (size_t)size * 4);
        memcpy(to + size, dv + i * size, (size_t)size * 4);
    }
}

/* The same, the values' `beyond` the keys'. */
static void put_answer(uint16_t *to, const float *dk, const float *dv, long count, long size, long distance, long beyond) {
    for (long i = 0; i < count; i++, to += distance)
        for (long j = 0; j < size; j += BLOCK_OF) {
            write_32(to + j, _mm512_load_ps(dk + i * size + j), _mm512_load_ps(dk + i * size + j + UNIT));
            write_32(to + beyond + j, _mm512_load_ps(dv + i * size + j), _mm512_load_ps(dv + i * size + j + UNIT));
        }
}

/* The examples, longest first. */
static void list_longest(const layout *l, int32_t *order) {
    for (long e = 0; e < l->examples; e++) {
        long at = e, length = l->starts[e + 1] - l->starts[e];
        for (; at > 0 && l->starts[order[at - 1] + 1] - l->starts[order[at - 1]] < length; at--) order[at] = order[at - 1];
        order[at] = (int32_t)e;
    }
}

/* How many query heads of a key's one thread takes: all, so that keys are made ready and their gradients summed once, unless that
 * would leave less than eight pieces of work as long as the longest. */
static long heads_together(const layout *l, long keys, long group) {
    double all = 0.0, most = 0.0;
    for (long e = 0; e < l->examples; e++) {
        double length = l->starts[e + 1] - l->starts[e];
        all += length * length;
        most = MAX(most, length * length);
    }
    return all * (double)keys >= 8.0 * most ? group : 1;
}

/* How many examples before `before` a look is for. */
static long count_seers(const layout *l, const look *at, long before) {
    long seers = 0;
    for (long e = 0; e < before; e++) seers += looks_at(l, e, at);
    return seers;
}

/* As attend_backward_bfloat16, with looks. */
int attend_backward_by_units(const uint16_t *d_out, const uint16_t *qkv, const uint16_t *out, const float *sums, uint16_t *d_qkv,
                             const int32_t *starts, long examples, const look *looks, long count, long queries, long keys, long size,
                             float scaling, long window) {
    const layout l = {starts, looks, examples, count};
    const long distance = (queries + 2 * keys) * size, rows = starts[examples], group = queries / keys, block = BLOCK_OF * size;
    const long together = heads_together(&l, keys, group), parts = group / together;
    const long longest = longest_example(&l), seen = longest + count_blocks(&l, 0, count);
    const long of_rows = parts > 1 ? queries * rows * 2 * size : 0; /* numbers of what is shared */
    long of_looks = 0;
    for (long i = 0; i < count; i++)
        of_looks += count_seers(&l, &looks[i], examples) * parts * keys * (looks[i].stop - looks[i].start) * 2 * size;
    float *shares = claim((of_rows + of_looks) * 4);
    int32_t *order = claim(examples * 4);
    int failed = !shares || !order;
    if (order) list_longest(&l, order);
#pragma omp parallel if (!failed)
    {
        const size_t of_asked = (size_t)longest * asked_bytes(size), of_answers = (size_t)seen * answering_bytes(size);
        char *memory = failed ? 0 : claim((long)(of_asked + of_answers + pulling_bytes(size)) + seen * (long)sizeof(key_block));
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
        answering a = answering_at(memory + of_asked, seen, size);
        pulling p = pulling_at(memory + of_asked + of_answers);
        key_block *list = (key_block *)(memory + of_asked + of_answers + pulling_bytes(size));
        asked q = asked_at(memory, longest, size);
        claim_units();
#pragma omp for schedule(dynamic) collapse(2)
        for (long at = 0; at < examples; at++)
            for (long heads = 0; heads < queries; heads += together) {
                if (!memory) continue;
                const long example = order[at], start = starts[example], length = starts[example + 1] - start, asking = blocks_of(length);
                const long blocks = list_seen(&l, example, list), own = queries + heads / group;
                for (long key = 0; key < blocks; key++) {
                    const uint16_t *k = qkv + list[key].row * distance + own * size;
                    begin_answering(&a, key, k, k + keys * size, distance, list[key].count, size, p.rows);
                }
                for (long head = heads; head < heads + together; head++) {
                    for (long ask = 0; ask < asking; ask++) {
                        long row = start + ask * BLOCK_OF, from = (row * queries + head) * size;
                        ask_back(&q, ask, qkv + row * distance + head * size, distance, d_out + from, out + from, queries * size,
                                 sums + head * rows + row, MIN(BLOCK_OF, length - ask * BLOCK_OF), size, scaling, p.rows);
                    }
                    for (long key = 0; key < blocks; key += KEYS_TOGETHER)
                        for (long ask = MAX(0, list[key].first); ask < asking; ask += QUERIES_TOGETHER)
                            answer_back(&a, list, key, MIN(blocks, key + KEYS_TOGETHER), &q, ask, MIN(asking, ask + QUERIES_TOGETHER), &p,
                                        size, scaling, window);
                    for (long ask = 0; ask < asking; ask++)
                        turn_back(q.dq + ask * block, MIN(BLOCK_OF, length - ask * BLOCK_OF), size,
                                  d_qkv + (start + ask * BLOCK_OF) * distance + head * size, distance);
                }
                const long member = heads % group / together;
                const float *dk = a.dk, *dv = a.dv;
                float *share = shares + of_rows;
                for (long i = 0; i < count; i++) {
                    const long many = looks[i].stop - looks[i].start, seers = count_seers(&l, &looks[i], examples) * parts;
                    const long mine = count_seers(&l, &looks[i], example) * parts + member;
                    if (looks_at(&l, example, &looks[i])) {
                        put_share(share + (heads / group * seers + mine) * many * 2 * size, dk, dv, many, size);
                        dk += blocks_of(many) * block, dv += blocks_of(many) * block;
                    }
                    share += seers * keys * many * 2 * size;
                }
                if (parts > 1)
                    put_share(shares + (heads * rows + start) * 2 * size, dk, dv, length, size);
                else
                    put_answer(d_qkv + start * distance + own * size, dk, dv, length, size, distance, keys * size);
            }
        release_units();
        if (parts > 1 && !failed) gather_shares(shares, d_qkv, rows, group, distance, keys, size, 0);
        const float *share = shares + of_rows;
        for (long i = 0; i < count && !failed; i++) {
            const long many = looks[i].stop - looks[i].start, seers = count_seers(&l, &looks[i], examples) * parts;
            gather_shares(share, d_qkv + looks[i].start * distance, many, seers, distance, keys, size, 1);
            share += seers * keys * many * 2 * size;
        }
        give_back(memory);
    }
    give_back(shares);
    give_back(order);
    return failed;
}
#endif
