/* Gradients of LoRA's two matrices beside a product, made while what they are made of is in the cache. Included by kernels.c once, after
 * large.h. */

#if UNITS
/* LoRA beside one of the layers of a product: A (rank, in) and B (out, rank), float32, and its scale; where it begins among all ranks, and
 * among all outputs. down (Σ rank, in) are all A, up (Σ rank, Σ out) all scaled Bᵀ, each at its outputs, else zeros. */
typedef struct {
    float *a, *b;
    int64_t rank, first, outputs, begin;
    float scale;
} adapter;

/* Beside y = x · matrix + z · up with z = x · downᵀ: z (tokens, rank) of forward, and `count` adapters whose a and b are the places of
 * their gradients, all of which are made: of down, dzᵀ · x, of up, zᵀ · dy. */
typedef struct {
    const uint16_t *z;
    const adapter *each;
    int64_t count;
} learned;

/* The same for one product while it goes on: z and dz turned (rank, ROWS_AT_ONCE), and of each stretch of tokens the sums (width / 32,
 * rank, 32). f: the product's, the other way: from dy to dx. */
typedef struct {
    const factor *f;
    const learned *of;
    uint16_t *z, *dz, *woven;
    float *down, *up;
} learning;

static long halves_to_learn(const factor *f) { return (2 * f->rank + BLOCK_OF) * ROWS_AT_ONCE; }

static long sums_to_learn(const factor *f, long stretches) { return stretches * f->rank * (f->depth + f->width); }

static learning learning_at(const factor *f, const learned *of, uint16_t *memory, float *sums, long stretches) {
    learning l = {f, of, memory, memory + f->rank * ROWS_AT_ONCE, memory + 2 * f->rank * ROWS_AT_ONCE, sums, 0};
    l.up = sums + stretches * f->rank * f->width;
    return l;
}

/* (rows, rank) → (rank, ROWS_AT_ONCE). */
static void turn_tokens(const uint16_t *z, long rows, long rank, uint16_t *to) {
    for (long r = 0; r < rank; r += UNIT)
        for (long i = 0; i < rows; i += UNIT) turn_halves_16(z + i * rank + r, rank, to + r * ROWS_AT_ONCE + i, ROWS_AT_ONCE);
}

/* Whether some adapter with outputs in [begin, end) has ranks in the 16 from r on. */
static int learns_rank(const learned *of, long r, long begin, long end) {
    for (const adapter *own = of->each; own < of->each + of->count; own++)
        if (own->begin < end && begin < own->begin + own->outputs && own->first < r + UNIT && r < own->first + own->rank) return 1;
    return 0;
}

/* sums (rank, 32) = zᵀ · 32 columns that come woven (rows / 2, 32, 2); only of ranks of adapters with outputs in [begin, end). */
static void learn_woven(const learning *l, const uint16_t *turned, const uint16_t *woven, long rows, long begin, long end, float *sums) {
    for (long r = 0; r < l->f->rank; r += UNIT) {
        if (!learns_rank(l->of, r, begin, end)) continue;
        const uint16_t *z = turned + r * ROWS_AT_ONCE;
        if (r + UNIT < l->f->rank && learns_rank(l->of, r + UNIT, begin, end)) {
            block_product(z, ROWS_AT_ONCE, woven, 2 * BLOCK_OF, rows, sums + r * BLOCK_OF, BLOCK_OF, 0);
            r += UNIT;
        } else {
            half_block_product(z, ROWS_AT_ONCE, woven, 2 * BLOCK_OF, rows, sums + r * BLOCK_OF, BLOCK_OF);
        }
    }
}

/* What follows is for some rows, those of `stretch`; nothing happens where there is nothing to learn. z and dz have a row a token. */
static void learn_from(const learning *l, const uint16_t *z, const uint16_t *dz, long rows) {
    if (l->of && z) turn_tokens(z, rows, l->f->rank, l->z);
    if (l->of && dz) turn_tokens(dz, rows, l->f->rank, l->dz);
}

/* The share of the gradient of up in 32 columns, from z and dy, of which these come woven. */
static void learn_up(const learning *l, const uint16_t *woven, long rows, long column, long stretch) {
    if (l->of) learn_woven(l, l->z, woven, rows, column, column + BLOCK_OF, l->up + (stretch * l->f->depth + column) * l->f->rank);
}

/* The share of the gradient of down in 32 columns, from dz and x, of which these come woven. */
static void learn_down(const learning *l, const uint16_t *woven, long rows, long column, long stretch) {
    if (l->of) learn_woven(l, l->dz, woven, rows, 0, l->f->depth, l->down + (stretch * l->f->width + column) * l->f->rank);
}

/* All of up, and all of down; dy and x in rows. */
static void learn_all_up(const learning *l, const uint16_t *dy, long rows, long stretch) {
    for (long column = 0; column < l->f->depth && l->of; column += BLOCK_OF) {
        weave(dy + column, l->f->depth, rows, BLOCK_OF, l->woven);
        learn_up(l, l->woven, rows, column, stretch);
    }
}

static void learn_all_down(const learning *l, const uint16_t *x, long rows, long stretch) {
    for (long column = 0; column < l->f->width && l->of; column += BLOCK_OF) {
        weave(x + column, l->f->width, rows, BLOCK_OF, l->woven);
        learn_down(l, l->woven, rows, column, stretch);
    }
}

/* Of some ranks the sums of all stretches in 32 columns, (ranks, 32), where those of the first were. */
static const float *gather_sums(float *sums, long apart, long stretches, long ranks) {
    for (long i = 0; i < ranks * BLOCK_OF; i += UNIT) {
        __m512 sum = _mm512_load_ps(sums + i);
        for (long s = 1; s < stretches; s++) sum = _mm512_add_ps(sum, _mm512_load_ps(sums + s * apart + i));
        _mm512_store_ps(sums + i, sum);
    }
    return sums;
}

/* The gradients, when all is done with all stretches. To be called by all threads. */
static void end_learning(const learning *l, long stretches) {
    if (!l->of) return;
    long rank = l->f->rank, inputs = l->f->width, outputs = l->f->depth;
    const adapter *last = l->of->each + l->of->count;
#pragma omp barrier
#pragma omp for schedule(static) nowait
    for (long column = 0; column < inputs; column += BLOCK_OF)
        for (const adapter *own = l->of->each; own < last; own++) {
            const float *sums = gather_sums(l->down + column * rank + own->first * BLOCK_OF, inputs * rank, stretches, own->rank);
            for (long r = 0; r < own->rank; r++) memcpy(own->a + r * inputs + column, sums + r * BLOCK_OF, BLOCK_OF * 4);
        }
#pragma omp for schedule(static) nowait
    for (long column = 0; column < outputs; column += BLOCK_OF)
        for (const adapter *own = l->of->each; own < last; own++) {
            long begin = MAX(column, own->begin), end = MIN(column + BLOCK_OF, own->begin + own->outputs);
            if (begin >= end) continue;
            const float *sums = gather_sums(l->up + column * rank + own->first * BLOCK_OF, outputs * rank, stretches, own->rank);
            for (long at = begin; at < end; at++)
                for (long r = 0; r < own->rank; r++)
                    own->b[(at - own->begin) * own->rank + r] = sums[r * BLOCK_OF + at - column] * own->scale;
        }
}

/* The adapters' numbers into down and up of `rank` and into what the products take of them (as weave_both). */
int take_adapters(const learned *from, uint16_t *down, uint16_t *down_across, uint16_t *down_along, uint16_t *up, uint16_t *up_across,
                  uint16_t *up_along, long rank, long inputs, long outputs) {
#pragma omp parallel sections
    {
#pragma omp section
        {
            for (const adapter *own = from->each; own < from->each + from->count; own++)
                for (long i = 0; i < own->rank * inputs; i++) down[own->first * inputs + i] = narrow(own->a[i]);
            weave_both(down, rank, inputs, down_across, down_along);
        }
#pragma omp section
        {
            for (const adapter *own = from->each; own < from->each + from->count; own++)
                for (long r = 0; r < own->rank; r++)
                    for (long i = 0; i < own->outputs; i++)
                        up[(own->first + r) * outputs + own->begin + i] = narrow(own->b[i * own->rank + r] * own->scale);
            weave_both(up, rank, outputs, up_across, up_along);
        }
    }
    return 0;
}

/* y (tokens, width) = the result for x (tokens, depth) (+ add), and z (tokens, rank). Where `of`, all this is on the way back, and the
 * gradients of LoRA's matrices are made too: x, y and z are dy, dx and dz, and `input` is what the product was made of. */
int project(const uint16_t *x, const factor *f, const uint16_t *add, const learned *of, const uint16_t *input, uint16_t *z, uint16_t *y,
            long tokens) {
    long stretches = count_stretches(tokens), threads = omp_get_max_threads(), own = of ? halves_to_learn(f) : 0;
    uint16_t *panels = claim_halves(f->depth * f->width + threads * own);
    float *shares = claim(of ? 4 * sums_to_learn(f, stretches) : 0);
    hand *hands = claim_hands();
    int failed = !panels || !shares || !hands;
#pragma omp parallel if (!failed)
    if (!failed) {
        float sums[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        const learning l = learning_at(f, of, panels + f->depth * f->width + omp_get_thread_num() * own, shares, stretches);
        deal(hands, stretches);
        lay_panels(f, panels);
        claim_units();
        for (long stretch; (stretch = take_piece(hands)) >= 0;) {
            long at = begin_of(stretch, stretches, tokens), rows = begin_of(stretch + 1, stretches, tokens) - at;
            find_rows(x + at * f->depth, 0, rows, f, panels, sums, add ? add + at * f->width : 0, z + at * f->rank, y + at * f->width);
            if (!of) continue;
            learn_from(&l, of->z + at * f->rank, z + at * f->rank, rows);
            learn_all_up(&l, x + at * f->depth, rows, stretch);
            learn_all_down(&l, input + at * f->width, rows, stretch);
        }
        release_units();
        end_learning(&l, stretches);
    }
    give_back(panels);
    give_back(shares);
    give_back(hands);
    return failed;
}
#endif
