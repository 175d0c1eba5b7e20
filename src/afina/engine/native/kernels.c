/* What lies between the matrix products of a step, and the optimizer's step, each in as few passes over memory as it takes.
 *
 * Plain C with OpenMP, one file, no headers but the compiler's: `afina.engine.native` compiles it for the machine at hand
 * and calls it with the addresses of PyTorch's tensors. Everything is computed in float32; tensors are float32 or
 * bfloat16 (rows.h and tiles.h are compiled once for each). Knows nothing of layers or autograd. Results do not depend on
 * how the work is shared out among threads (gradients of adapters: among up to four of them).
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16, ACROSS = 4 };
#elif defined(__AVX__)
enum { LANES = 8, ACROSS = 2 };
#elif defined(__SSE2__)
enum { LANES = 4, ACROSS = 2 };
#else
enum { LANES = 4, ACROSS = 4 };
#endif
enum { DOWN = 6, TILE = 64 };
/* Numbers that one thread is done with before a second would be awake: answers are written a token at a time. */
enum { FEW = 1 << 15 };

typedef float lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

static inline float widen(uint16_t value) {
    union { uint32_t bits; float number; } word = {(uint32_t)value << 16};
    return word.number;
}

/* To the nearest bfloat16, ties to even; what is no number stays none. */
static inline uint16_t narrow(float value) {
    union { float number; uint32_t bits; } word = {value};
    uint32_t rounded = (word.bits + 0x7fffu + ((word.bits >> 16) & 1u)) >> 16;
    return value != value ? 0x7fc0u : (uint16_t)rounded;
}

/* e^x to 2 units in the last place: x = n·ln 2 + r, the polynomial of Cephes' expf for r. 0 where e^x is below 1.6e-38:
 * numbers so small are in no sum, but products with them would leave the normal range, which takes a processor a hundred
 * times as long. n is rounded by an addition that leaves no bits behind the point, for which there are registers everywhere. */
static inline float exponential(float exponent) {
    float x = exponent > 88.0f ? 88.0f : exponent;
    x = x < -87.0f ? -87.0f : x;
    float n = x * 1.44269504088896341f + 12582912.0f - 12582912.0f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t bits; float number; } power = {((int32_t)n + 127) << 23};
    return exponent < -87.0f ? 0.0f : p * power.number;
}

static inline float hyperbolic_tangent(float x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

/* GELU by its approximation with tanh, or SiLU. */
static inline float activation(float gate, int gelu) {
    if (gelu) return 0.5f * gate * (1.0f + hyperbolic_tangent(0.7978845608f * (gate + 0.044715f * gate * gate * gate)));
    return gate / (1.0f + exponential(-gate));
}

/* The highest of some numbers: of each of 16 places first, because clang leaves a single maximum scalar. */
static inline float highest(const float *row, long count) {
    float each[16], most = -INFINITY;
    long whole = count - count % 16;
    for (int j = 0; j < 16; j++) each[j] = -INFINITY;
    for (long begin = 0; begin < whole; begin += 16)
#pragma omp simd
        for (int j = 0; j < 16; j++) each[j] = MAX(row[begin + j], each[j]);
    for (int half = 8; half; half /= 2)
#pragma omp simd
        for (int j = 0; j < half; j++) each[j] = MAX(each[j + half], each[j]);
    for (long i = whole; i < count; i++) most = MAX(row[i], most);
    return MAX(each[0], most);
}

/* One block of C (m × n) = or += A (m × k) · B (k × n): m up to DOWN, n in whole lanes up to ACROSS of them, all in registers.
 * a_down, a_along: distance in A between rows and between columns, so that A may lie transposed. */
#define BLOCK(m, n)                                                                                                    \
    static void block_##m##_##n(long k, const float *restrict a, long a_down, long a_along, const float *restrict b,   \
                                long b_down, float *restrict c, long c_down, int add) {                                \
        lanes sum[m][n];                                                                                               \
        for (int i = 0; i < m; i++)                                                                                    \
            for (int j = 0; j < n; j++)                                                                                \
                sum[i][j] = add ? *(const lanes *)(c + i * c_down + j * LANES) : (lanes){0};                            \
        for (long step = 0; step < k; step++) {                                                                        \
            lanes row[n];                                                                                              \
            for (int j = 0; j < n; j++) row[j] = *(const lanes *)(b + step * b_down + j * LANES);                      \
            for (int i = 0; i < m; i++) {                                                                              \
                float value = a[i * a_down + step * a_along];                                                          \
                for (int j = 0; j < n; j++) sum[i][j] += value * row[j];                                               \
            }                                                                                                          \
        }                                                                                                              \
        for (int i = 0; i < m; i++)                                                                                    \
            for (int j = 0; j < n; j++) *(lanes *)(c + i * c_down + j * LANES) = sum[i][j];                             \
    }
#define BLOCKS(n) BLOCK(6, n) BLOCK(5, n) BLOCK(4, n) BLOCK(3, n) BLOCK(2, n) BLOCK(1, n)
BLOCKS(1)
BLOCKS(2)
BLOCKS(3)
BLOCKS(4)

typedef void (*block_function)(long, const float *, long, long, const float *, long, float *, long, int);
#define COLUMN(n) {block_1_##n, block_2_##n, block_3_##n, block_4_##n, block_5_##n, block_6_##n}
static const block_function block_of[4][6] = {COLUMN(1), COLUMN(2), COLUMN(3), COLUMN(4)};

/* C (m × n) = or += A (m × k) · B (k × n), n in whole lanes. */
static void product(long m, long n, long k, const float *a, long a_down, long a_along, const float *b, long b_down,
                    float *c, long c_down, int add) {
    for (long j = 0; j < n; j += ACROSS * LANES) {
        long across = MIN(ACROSS, (n - j) / LANES);
        for (long i = 0; i < m; i += DOWN)
            block_of[across - 1][MIN(DOWN, m - i) - 1](k, a + i * a_down, a_down, a_along, b + j, b_down,
                                                       c + i * c_down + j, c_down, add);
    }
}

/* A score that weighs nothing beside any other. */
#define NOTHING (-1e30f)

static long count_tiles(const int32_t *starts, long examples) {
    long tiles = 0;
    for (long e = 0; e < examples; e++) tiles += (starts[e + 1] - starts[e] + TILE - 1) / TILE;
    return tiles;
}

/* Example and first row of every tile. */
static void list_tiles(const int32_t *starts, long examples, int32_t *work) {
    for (long e = 0; e < examples; e++)
        for (long first = starts[e]; first < starts[e + 1]; first += TILE) {
            *work++ = (int32_t)e;
            *work++ = (int32_t)first;
        }
}

/* Scores of a query with the keys [begin, end) of a tile become weights, nothing elsewhere; what was weighed before, the
 * `answer` so far and the `sum` of its weights, is brought to the new highest score. */
static void weigh(float *row, long begin, long end, float scaling, float *most, float *sum, float *answer, long size) {
    if (end <= begin) {
        memset(row, 0, TILE * 4);
        return;
    }
    float total = 0.0f;
#pragma omp simd
    for (long j = 0; j < TILE; j++) row[j] *= scaling;
    for (long j = 0; j < begin; j++) row[j] = NOTHING;
    for (long j = end; j < TILE; j++) row[j] = NOTHING;
    float high = MAX(*most, highest(row, TILE));
#pragma omp simd reduction(+ : total)
    for (long j = 0; j < TILE; j++) {
        row[j] = exponential(row[j] - high);
        total += row[j];
    }
    float before = exponential(*most - high);
    *most = high;
    *sum = *sum * before + total;
    if (before != 1.0f)
#pragma omp simd
        for (long j = 0; j < size; j++) answer[j] *= before;
}

/* Scores of a query and the gradients of its weights become weights and the gradients of scores. */
static void pull(float *weights, float *change, long begin, long end, float scaling, float shift, float mean) {
#pragma omp simd
    for (long j = 0; j < TILE; j++) {
        weights[j] = exponential(weights[j] * scaling - shift);
        change[j] = weights[j] * (change[j] - mean) * scaling;
    }
    for (long j = 0; j < begin; j++) weights[j] = change[j] = 0.0f;
    for (long j = end; j < TILE; j++) weights[j] = change[j] = 0.0f;
}

/* Numbers in a register: heads must have a multiple of that. */
long lanes_of(void) { return LANES; }

#include "adamw.h"
#include "vectors.h"
#include "units.h"
#include "large.h"
#include "weights.h"
#include "words.h"
#include "thin.h"
#include "learned.h"
#include "attention.h"
#include "attention_back.h"

#define NUMBER float
#define NAME(name) name##_float32
#define GET(value) (value)
#define PUT(value) (value)
#define LANES_OF_NUMBERS lanes_of_floats
#define DOTS_OF_NUMBERS dots_of_floats
#include "rows.h"
#include "tiles.h"
#include "speak.h"
#undef NUMBER
#undef NAME
#undef GET
#undef PUT
#undef LANES_OF_NUMBERS
#undef DOTS_OF_NUMBERS

#define NUMBER uint16_t
#define NAME(name) name##_bfloat16
#define GET(value) widen(value)
#define PUT(value) narrow(value)
#define LANES_OF_NUMBERS lanes_of_halves
#define DOTS_OF_NUMBERS dots_of_halves
#include "rows.h"
#include "tiles.h"
#include "speak.h"

#include "halves.h"
