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

/* sums (rank, 32) = zᵀ · x of 32 columns, whose pieces of 32 rows lie `apart` from each other and their rows `distance`. */
static void learn_columns(const uint16_t *turned, const uint16_t *x, long apart, long distance, long rows, long rank, uint16_t *woven,
                          float *sums) {
    for (long row = 0; row < rows; row += BLOCK_OF) weave(x + row / BLOCK_OF * apart, distance, BLOCK_OF, BLOCK_OF, woven + row * BLOCK_OF);
    for (long r = 0; r < rank; r += BLOCK_OF)
        block_product(turned + r * ROWS_AT_ONCE, ROWS_AT_ONCE, woven, 2 * BLOCK_OF, rows, sums + r * BLOCK_OF, BLOCK_OF, 0);
}

/* What follows is for some rows, those of `stretch`; nothing happens where there is nothing to learn. z and dz have a row a token. */
static void learn_from(const learning *l, const uint16_t *z, const uint16_t *dz, long rows) {
    if (l->of && z) turn_tokens(z, rows, l->f->rank, l->z);
    if (l->of && dz) turn_tokens(dz, rows, l->f->rank, l->dz);
}

/* The share of the gradient of up in the columns [first, end), from z and dy, which may be blocked. */
static void learn_up(const learning *l, const uint16_t *dy, int blocked, long rows, long first, long end, long stretch) {
    long rank = l->f->rank, width = l->f->depth, distance = blocked ? BLOCK_OF : width;
    for (long column = first; column < end && l->of; column += BLOCK_OF)
        learn_columns(l->z, dy + place_of(0, column, width, blocked), BLOCK_OF * width, distance, rows, rank, l->woven,
                      l->up + (stretch * width + column) * rank);
}

/* The share of the gradient of down in 32 columns from `column` on, from dz and x, of which only these are there, its rows `distance` apart. */
static void learn_down(const learning *l, const uint16_t *x, long distance, long rows, long column, long stretch) {
    long rank = l->f->rank;
    if (l->of)
        learn_columns(l->dz, x, BLOCK_OF * distance, distance, rows, rank, l->woven, l->down + (stretch * l->f->width + column) * rank);
}

static void learn_all_down(const learning *l, const uint16_t *x, long rows, long stretch) {
    for (long column = 0; column < l->f->width; column += BLOCK_OF) learn_down(l, x + column, l->f->width, rows, column, stretch);
}

/* The sums of all stretches in 32 columns, (rank, 32), where those of the first were. */
static float *gather_sums(float *sums, long stretches, long width, long column, long rank) {
    float *to = sums + column * rank;
    for (long i = 0; i < rank * BLOCK_OF; i += UNIT) {
        __m512 sum = _mm512_load_ps(to + i);
        for (long s = 1; s < stretches; s++) sum = _mm512_add_ps(sum, _mm512_load_ps(sums + (s * width + column) * rank + i));
        _mm512_store_ps(to + i, sum);
    }
    return to;
}

/* The gradients, when all is done with all stretches. To be called by all threads. */
static void end_learning(const learning *l, long stretches) {
    if (!l->of) return;
    long rank = l->f->rank, inputs = l->f->width, outputs = l->f->depth;
#pragma omp barrier
#pragma omp for schedule(static) nowait
    for (long column = 0; column < inputs; column += BLOCK_OF) {
        const float *sums = gather_sums(l->down, stretches, inputs, column, rank);
        for (const adapter *own = l->of->each; own < l->of->each + l->of->count; own++)
            for (long r = 0; r < own->rank; r++)
                memcpy(own->a + r * inputs + column, sums + (own->first + r) * BLOCK_OF, BLOCK_OF * 4);
    }
#pragma omp for schedule(static) nowait
    for (long column = 0; column < outputs; column += BLOCK_OF) {
        const float *sums = gather_sums(l->up, stretches, outputs, column, rank);
        for (const adapter *own = l->of->each; own < l->of->each + l->of->count; own++)
            for (long at = MAX(column, own->begin); at < MIN(column + BLOCK_OF, own->begin + own->outputs); at++)
                for (long r = 0; r < own->rank; r++)
                    own->b[(at - own->begin) * own->rank + r] = sums[(own->first + r) * BLOCK_OF + at - column] * own->scale;
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
    int failed = !panels || !shares;
#pragma omp parallel if (!failed)
    if (!failed) {
        float sums[ROWS_AT_ONCE * BLOCK_OF] __attribute__((aligned(64)));
        long begin, end;
        const learning l = learning_at(f, of, panels + f->depth * f->width + omp_get_thread_num() * own, shares, stretches);
        lay_panels(f, panels);
        take_share(stretches, 1, &begin, &end);
        for (long stretch = begin; stretch < end; stretch++) {
            long at = begin_of(stretch, stretches, tokens), rows = begin_of(stretch + 1, stretches, tokens) - at;
            find_rows(x + at * f->depth, 0, rows, f, panels, sums, add ? add + at * f->width : 0, z + at * f->rank, y + at * f->width);
            if (!of) continue;
            learn_from(&l, of->z + at * f->rank, z + at * f->rank, rows);
            learn_up(&l, x + at * f->depth, 0, rows, 0, f->depth, stretch);
            learn_all_down(&l, input + at * f->width, rows, stretch);
        }
        _tile_release();
        end_learning(&l, stretches);
    }
    free(panels);
    free(shares);
    return failed;
}
#endif
