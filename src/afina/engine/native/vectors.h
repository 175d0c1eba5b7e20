/* Products of stored matrices with one vector or a few: reading the weights is what takes the time. Included by kernels.c once. */

enum { TOGETHER = 4, GATES = 32, AHEAD = 2048 };

/* A matrix (outputs, inputs): form 0 float32, 1 bfloat16, 2 int8 with one scale an output; bias may be 0. */
typedef struct {
    const void *weight;
    const float *scale, *bias;
    int64_t form;
} matrix;

/* Norms are scales of float32, 0 where a layer has none; keys and values (heads, room, size); cosine and sine (room, size / 2);
 * window 0: all tokens are seen; softcap 0: none. */
typedef struct {
    const float *norm, *query_norm, *key_norm, *post, *after_norm, *after_post;
    matrix qkv, output, gate_up, down;
    void *keys, *values;
    const void *cosine, *sine;
    int64_t window;
    float scaling, softcap;
} layer;

typedef struct {
    int64_t layers, width, queries, heads, size, inner, room, gelu;
    float eps;
} network;

/* Compilers turn the conversion of short vectors into loads of single numbers, so it is spelled out where that matters. */
static inline lanes lanes_of_bytes(const int8_t *from) {
#if defined(__AVX512F__)
    return (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#elif defined(__AVX2__)
    return (lanes)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#else
    lanes to;
    for (int i = 0; i < LANES; i++) to[i] = from[i];
    return to;
#endif
}

static inline lanes lanes_of_halves(const uint16_t *from) {
#if defined(__AVX512F__)
    return (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
#elif defined(__AVX2__)
    return (lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16);
#else
    lanes to;
    for (int i = 0; i < LANES; i++) to[i] = widen(from[i]);
    return to;
#endif
}

static inline lanes lanes_of_floats(const float *from) { return *(const lanes *)from; }

static inline float sum_of(lanes value) {
    float total = 0.0f;
    for (int i = 0; i < LANES; i++) total += value[i];
    return total;
}

/* TOGETHER products of rows of a matrix with x. */
#define DOTS(name, kind, load, one)                                                                                     \
    static void name(const kind *weight, const float *x, long width, long rows, float *to) {                           \
        lanes sum[TOGETHER][2] = {{{0}}};                                                                               \
        const kind *row[TOGETHER];                                                                                     \
        for (int r = 0; r < TOGETHER; r++) row[r] = weight + MIN(r, rows - 1) * width;                                  \
        long i = 0;                                                                                                    \
        for (; i + 2 * LANES <= width; i += 2 * LANES) {                                                               \
            lanes first = *(const lanes *)(x + i), second = *(const lanes *)(x + i + LANES);                           \
            for (int r = 0; r < TOGETHER; r++) {                                                                       \
                __builtin_prefetch((const char *)(row[r] + i) + AHEAD);                                                \
                sum[r][0] += load(row[r] + i) * first;                                                                 \
                sum[r][1] += load(row[r] + i + LANES) * second;                                                        \
            }                                                                                                          \
        }                                                                                                              \
        for (long r = 0; r < rows; r++) {                                                                              \
            float total = sum_of(sum[r][0] + sum[r][1]);                                                               \
            for (long j = i; j < width; j++) total += one(row[r][j]) * x[j];                                            \
            to[r] = total;                                                                                             \
        }                                                                                                              \
    }
DOTS(dots_of_bytes, int8_t, lanes_of_bytes, (float))
DOTS(dots_of_halves, uint16_t, lanes_of_halves, widen)
DOTS(dots_of_floats, float, lanes_of_floats, (float))

/* Outputs [first, first + rows) of matrix · x, rows up to TOGETHER. */
static inline void some_outputs(const matrix *m, const float *x, long width, long first, long rows, float *to) {
    if (m->form == 2)
        dots_of_bytes((const int8_t *)m->weight + first * width, x, width, rows, to);
    else if (m->form == 1)
        dots_of_halves((const uint16_t *)m->weight + first * width, x, width, rows, to);
    else
        dots_of_floats((const float *)m->weight + first * width, x, width, rows, to);
    for (long r = 0; r < rows; r++) {
        if (m->scale) to[r] *= m->scale[first + r];
        if (m->bias) to[r] += m->bias[first + r];
    }
}

/* to (outputs) = matrix · x, the outputs shared among the threads; all have theirs when it returns. */
static void share_outputs(const matrix *m, const float *x, long width, long outputs, float *to) {
#pragma omp for schedule(static)
    for (long first = 0; first < outputs; first += TOGETHER)
        some_outputs(m, x, width, first, MIN(TOGETHER, outputs - first), to + first);
}

static void norm_one(const float *x, const float *scale, float *y, long width, float eps) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < width; i++) sum += x[i] * x[i];
    float by = 1.0f / sqrtf(sum / (float)width + eps);
#pragma omp simd
    for (long i = 0; i < width; i++) y[i] = x[i] * by * scale[i];
}

/* y (rows, outputs) = x (rows, inputs) · matrixᵀ. */
int multiply(const float *x, const matrix *m, float *y, long rows, long inputs, long outputs) {
#pragma omp parallel if (inputs * outputs > FEW)
    {
#pragma omp for schedule(static)
        for (long first = 0; first < outputs; first += TOGETHER)
            for (long row = 0; row < rows; row++)
                some_outputs(m, x + row * inputs, inputs, first, MIN(TOGETHER, outputs - first), y + row * outputs + first);
    }
    return 0;
}
