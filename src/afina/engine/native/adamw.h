/* AdamW's step (Loshchilov and Hutter 2019, algorithm 2) for all that is trained, in one pass over memory. Included by kernels.c once.
 *
 * Work is shared out in pieces that do not depend on the number of threads, and so do sums. */

enum { PIECE = 1 << 15 };

/* Of one tensor: its gradient, its numbers, both moments, and where not null, where they go in bfloat16. keep: 1 - rate · decay; pace:
 * rate / (1 - β1^t); wider: 1 / √(1 - β2^t). */
typedef struct {
    const float *gradient;
    float *numbers, *first, *second;
    uint16_t *rounded;
    int64_t count;
    float keep, pace, wider;
} trained;

/* rest_1: 1 - β1, which float32 would not find from β1. */
typedef struct {
    float by, beta_1, rest_1, beta_2, rest_2, eps;
} moving;

static void move_piece(const trained *t, const moving *how, long begin, long end) {
    const moving m = *how;
    const float keep = t->keep, pace = t->pace, wider = t->wider;
    const float *restrict gradient = t->gradient;
    float *restrict numbers = t->numbers, *restrict first = t->first, *restrict second = t->second;
#pragma omp simd
    for (long i = begin; i < end; i++) {
        float g = gradient[i] * m.by;
        first[i] = m.beta_1 * first[i] + m.rest_1 * g;
        second[i] = m.beta_2 * second[i] + m.rest_2 * g * g;
        numbers[i] = keep * numbers[i] - pace * first[i] / (sqrtf(second[i]) * wider + m.eps);
    }
    if (!t->rounded) return;
    uint16_t *restrict rounded = t->rounded;
#pragma omp simd
    for (long i = begin; i < end; i++) rounded[i] = narrow(numbers[i]);
}

static double squares_of(const float *gradient, long count) {
    float own = 0.0f;
#pragma omp simd reduction(+ : own)
    for (long i = 0; i < count; i++) own += gradient[i] * gradient[i];
    return own;
}

static long count_pieces(const trained *all, long count) {
    long pieces = 0;
    for (const trained *t = all; t < all + count; t++) pieces += (t->count + PIECE - 1) / PIECE;
    return pieces;
}

/* A step of all pieces as `how` says, or without it Σ gradient² of each into `squares`. Each thread has pieces that follow each other. */
static void go_through(const trained *all, long count, long pieces, const moving *how, double *squares) {
#pragma omp parallel
    {
        long piece = 0, thread = omp_get_thread_num(), threads = omp_get_num_threads();
        for (const trained *t = all; t < all + count; t++)
            for (long begin = 0; begin < t->count; begin += PIECE, piece++) {
                if (piece * threads / pieces != thread) continue;
                long end = MIN(t->count, begin + PIECE);
                if (how)
                    move_piece(t, how, begin, end);
                else
                    squares[piece] = squares_of(t->gradient + begin, end - begin);
            }
    }
}

/* One step of `count` tensors. */
int adamw(const trained *all, long count, const moving *how) {
    go_through(all, count, count_pieces(all, count), how, 0);
    return 0;
}

/* Σ gradient² of `count` tensors into `sum`. */
int sum_of_squares(const trained *all, long count, double *sum) {
    long pieces = count_pieces(all, count);
    double *squares = malloc((size_t)pieces * sizeof(double));
    if (!squares) return 1;
    go_through(all, count, pieces, 0, squares);
    *sum = 0.0;
    for (long piece = 0; piece < pieces; piece++) *sum += squares[piece];
    free(squares);
    return 0;
}
