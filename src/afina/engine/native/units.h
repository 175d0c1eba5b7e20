/* What the kernels for whole blocks of bfloat16 share: registers of 16 numbers, weaving and turning. Included by kernels.c once, for processors
 * that have AVX512-BF16. All sizes here are multiples of 32. */

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define UNITS 1
#include "blocks.h"
#include "scratch.h"
#include "pieces.h"

#define LOG2_E 1.44269504088896341f
#define LOG_2 0.693147180559945309f
enum { AHEAD_ROWS = 16 };

static inline long blocks_of(long count) { return (count + BLOCK_OF - 1) / BLOCK_OF; }

static inline __m512 read_16(const uint16_t *from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

static inline void write_16(uint16_t *to, __m512 value) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(value)); }

static inline void write_32(uint16_t *to, __m512 left, __m512 right) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(right, left));
}

/* 16 pairs of two rows. */
static inline __m512i woven_16(__m512 first, __m512 second) {
    const __m512i pairs = _mm512_set_epi32(0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008, 0x170007, 0x160006,
                                           0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
    return _mm512_permutexvar_epi16(pairs, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* Two rows of 32 woven into 32 pairs. */
static inline void weave_rows(const uint16_t *first, const uint16_t *second, uint16_t *to) {
    __m512i one = _mm512_loadu_si512(first), two = _mm512_loadu_si512(second);
    __m512i low = _mm512_unpacklo_epi16(one, two), high = _mm512_unpackhi_epi16(one, two);
    const __m512i early = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), late = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, early, high));
    _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi64(low, late, high));
}

/* (rows, columns), rows `distance` apart → woven, the pairs `down` numbers apart. */
static void weave_into(const uint16_t *from, long distance, long rows, long columns, uint16_t *to, long down) {
    for (long row = 0; row < rows; row += 2)
        for (long column = 0; column < columns; column += 32) {
            __builtin_prefetch(from + (row + AHEAD_ROWS) * distance + column);
            __builtin_prefetch(from + (row + AHEAD_ROWS + 1) * distance + column);
            weave_rows(from + row * distance + column, from + (row + 1) * distance + column, to + row / 2 * down + 2 * column);
        }
}

/* (rows, columns), rows `distance` apart → woven (rows / 2, columns, 2). */
static void weave(const uint16_t *from, long distance, long rows, long columns, uint16_t *to) {
    weave_into(from, distance, rows, columns, to, 2 * columns);
}

/* c (m × n, float32) = or += a (m × depth) · b (depth × n, woven, `b_down` numbers from pair to pair); multiples of 32. */
static void units_product(long m, long n, long depth, const uint16_t *a, long a_down, const uint16_t *b, long b_down, float *c,
                          long c_down, int add) {
    for (long i = 0; i < m; i += BLOCK_OF)
        for (long j = 0; j < n; j += BLOCK_OF)
            block_product(a + i * a_down, a_down, b + 2 * j, b_down, depth, c + i * c_down + j, c_down, add);
}

/* 2^x by a polynomial for 2^f, f = x - ⌊x⌋, of the least relative error on [0, 1): to 2 units in the last place, or else to 18 bits. What is no
 * number stays none. */
static inline __attribute__((always_inline)) __m512 any_power_16(__m512 x, const int exact) {
    __m512 f = _mm512_reduce_ps(x, 9), p;
    if (exact) {
        p = _mm512_fmadd_ps(_mm512_set1_ps(1.87758e-3f), f, _mm512_set1_ps(8.98934e-3f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.582632e-2f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4015362e-1f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9315307e-1f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.9999993e-1f));
    } else {
        p = _mm512_fmadd_ps(_mm512_set1_ps(1.353417e-2f), f, _mm512_set1_ps(5.201146e-2f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4144275e-1f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9300384e-1f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000026f));
    }
    return _mm512_scalef_ps(p, x); /* p · 2^⌊x⌋ */
}

/* 2^x for x ≤ 0; below -126 it is next to nothing. */
static inline __m512 power_16(__m512 x) { return any_power_16(_mm512_max_ps(_mm512_set1_ps(-126.0f), x), 1); /* in this order none stays none */ }

/* log2 x for x > 0, to 2 units in the last place: x = m · 2^n with m in [0.75, 1.5), and the series of artanh((m - 1) / (m + 1)). */
static inline __m512 log2_16(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src), n = _mm512_sub_ps(_mm512_getexp_ps(x), _mm512_getexp_ps(m));
    __m512 t = _mm512_div_ps(_mm512_sub_ps(m, one), _mm512_add_ps(m, one)), square = _mm512_mul_ps(t, t);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(2.0f / 9.0f * LOG2_E), square, _mm512_set1_ps(2.0f / 7.0f * LOG2_E));
    p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(2.0f / 5.0f * LOG2_E));
    p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(2.0f / 3.0f * LOG2_E));
    p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(2.0f * LOG2_E));
    /* x = 2^n: getexp of m is 0 for m in [1, 1.5) and -1 below, so that n fits m */
    return _mm512_fmadd_ps(p, t, n);
}

/* SiLU of x or its GELU by tanh, and the slope there, to 14 bits: they become bfloat16. */
static inline __attribute__((always_inline)) __m512 activation_16(__m512 x, const int gelu, __m512 *slope) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 square = _mm512_mul_ps(x, x), inner = x; /* both are x · sigmoid(inner) */
    if (gelu) inner = _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.5957691216f)), _mm512_fmadd_ps(square, _mm512_set1_ps(0.044715f), one));
    __m512 sigmoid = _mm512_rcp14_ps(_mm512_add_ps(one, any_power_16(_mm512_mul_ps(inner, _mm512_set1_ps(-LOG2_E)), 0)));
    __m512 active = _mm512_mul_ps(x, sigmoid), rest = _mm512_fnmadd_ps(active, sigmoid, active);
    if (gelu)
        rest = _mm512_mul_ps(_mm512_mul_ps(rest, _mm512_set1_ps(1.5957691216f)), _mm512_fmadd_ps(square, _mm512_set1_ps(0.134145f), one));
    *slope = _mm512_add_ps(sigmoid, rest);
    return active;
}

/* 16 rows of 16 become columns. */
static inline void turn_16(__m512 *row) {
    __m512 two[16], four[16];
    for (int k = 0; k < 16; k += 2) {
        two[k] = _mm512_unpacklo_ps(row[k], row[k + 1]);
        two[k + 1] = _mm512_unpackhi_ps(row[k], row[k + 1]);
    }
    for (int k = 0; k < 16; k += 4)
        for (int c = 0; c < 2; c++) {
            __m512d one = _mm512_castps_pd(two[k + c]), other = _mm512_castps_pd(two[k + c + 2]);
            four[k + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(one, other));
            four[k + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(one, other));
        }
    for (int c = 0; c < 4; c++) {
        __m512 even = _mm512_shuffle_f32x4(four[c], four[4 + c], 0x88), odd = _mm512_shuffle_f32x4(four[c], four[4 + c], 0xdd);
        __m512 even_2 = _mm512_shuffle_f32x4(four[8 + c], four[12 + c], 0x88);
        __m512 odd_2 = _mm512_shuffle_f32x4(four[8 + c], four[12 + c], 0xdd);
        row[c] = _mm512_shuffle_f32x4(even, even_2, 0x88);
        row[4 + c] = _mm512_shuffle_f32x4(odd, odd_2, 0x88);
        row[8 + c] = _mm512_shuffle_f32x4(even, even_2, 0xdd);
        row[12 + c] = _mm512_shuffle_f32x4(odd, odd_2, 0xdd);
    }
}
/* The same for bfloat16: rows lie `distance` apart, and `down` where they are put. */
static void turn_halves_16(const uint16_t *from, long distance, uint16_t *to, long down) {
    __m512 row[UNIT];
    for (long i = 0; i < UNIT; i++) row[i] = read_16(from + i * distance);
    turn_16(row);
    for (long i = 0; i < UNIT; i++) write_16(to + i * down, row[i]);
}
/* The same for 16 rows of 16 pairs. */
static inline void turn_pairs_16(const uint16_t *from, long distance, uint16_t *to, long down) {
    __m512 row[UNIT];
    for (long i = 0; i < UNIT; i++) row[i] = _mm512_loadu_ps(from + i * distance);
    turn_16(row);
    for (long i = 0; i < UNIT; i++) _mm512_storeu_ps(to + i * down, row[i]);
}

/* (rows, columns), rows `distance` apart → its transpose woven (columns / 2, rows, 2): pairs stay pairs, so it is a transpose of 32
 * bits. */
static void weave_across(const uint16_t *from, long distance, long rows, long columns, uint16_t *to) {
    for (long row = 0; row < rows; row += UNIT)
        for (long column = 0; column < columns; column += BLOCK_OF)
            turn_pairs_16(from + row * distance + column, distance, to + column * rows + 2 * row, 2 * rows);
}
#else
int units(void) { return 0; }
#endif
