/* Blocks of 32 × 32 results, of bfloat16 summed in float32: on matrix units where a processor has them (Intel AMX), else by dot products of
 * pairs (AVX512-BF16: AMD from Zen 4 on, some of Intel's). Included by units.h once.
 *
 * A unit multiplies 16 rows of 32 numbers with 32 rows of 16, the latter laid out in pairs: two rows that follow each other are
 * woven into one of 16 pairs ("woven" below). Dot products take one pair of a row and 16 such pairs. All sizes are multiples of 32,
 * but LoRA's ranks count in RANKS.
 *
 * A block is begun, added to and ended in c; in between c holds nothing that can be read. */

enum { UNIT = 16, BLOCK_OF = 32, A_PASSES = 0, B_PASSES = 1 };

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

enum { REQUEST = 0x1023, TILE_DATA = 18, RANKS = 32 };

/* Whether this process may use them: the kernel keeps their registers only for those that asked. */
int units(void) {
    static int known = -1;
    if (known < 0) known = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return known;
}

/* Eight registers of 16 rows of 64 bytes for this thread; to be given back by release_units. A constant, because compilers see of a
 * variable only the first bytes used. */
static void claim_units(void) {
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((packed, aligned(64))) shape = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shape);
}

static void release_units(void) { _tile_release(); }

/* What was written is there to be loaded: compilers do not know that these registers are loaded from memory, and may write later. */
static inline void settle(void) { __asm__ volatile("" ::: "memory"); }

/* A float32 block (32 × 32) into four registers: c where `add`, else zeros. */
static inline void begin_block(const float *c, long c_down, int add) {
    settle();
    if (add) {
        _tile_loadd(0, c, c_down * 4);
        _tile_loadd(1, c + UNIT, c_down * 4);
        _tile_loadd(2, c + UNIT * c_down, c_down * 4);
        _tile_loadd(3, c + UNIT * c_down + UNIT, c_down * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
}

/* Add a (32 × depth; 32 columns and the next lie `a_along` apart) · b (depth × 32, woven, `b_down` numbers from pair to pair) to it. What
 * only passes does not take the room of what stays in the first-level cache. Where `soon`, as much memory from there on as there is in b
 * is brought near meanwhile. */
static inline __attribute__((always_inline)) void add_to_block(float *c, long c_down, const uint16_t *a, long a_down, long a_along, const uint16_t *b,
                                                               long b_down, long depth, const int passes, const char *soon) {
    (void)c, (void)c_down; /* in registers */
    for (long step = 0; step < depth; step += BLOCK_OF, a += a_along) {
        const uint16_t *pairs = b + step / 2 * b_down;
        if (soon)
            for (long line = 0; line < 4; line++) _mm_prefetch(soon + step * 8 + line * 64, _MM_HINT_T1);
        if (passes == A_PASSES) {
            _tile_stream_loadd(4, a, a_down * 2);
            _tile_loadd(6, pairs, b_down * 2);
            _tile_loadd(7, pairs + BLOCK_OF, b_down * 2);
            _tile_stream_loadd(5, a + UNIT * a_down, a_down * 2);
        } else {
            _tile_loadd(4, a, a_down * 2);
            _tile_stream_loadd(6, pairs, b_down * 2);
            _tile_stream_loadd(7, pairs + BLOCK_OF, b_down * 2);
            _tile_loadd(5, a + UNIT * a_down, a_down * 2);
        }
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

/* The same of blocks that lie one after the other: those of a, of 32 rows and columns, and those of b, woven, `apart` from each other.
 * Meanwhile two lines of each that lie `ahead` of b's come near. */
static inline void add_blocks(float *c, long c_down, const uint16_t *a, const uint16_t *b, long apart, long depth, long ahead) {
    (void)c, (void)c_down;
    for (long step = 0; step < depth; step += BLOCK_OF, a += BLOCK_OF * BLOCK_OF, b += apart) {
        _mm_prefetch(b + ahead, _MM_HINT_T1);
        _mm_prefetch(b + ahead + BLOCK_OF, _MM_HINT_T1);
        _tile_stream_loadd(4, a, 2 * BLOCK_OF);
        _tile_loadd(6, b, 4 * BLOCK_OF);
        _tile_loadd(7, b + BLOCK_OF, 4 * BLOCK_OF);
        _tile_stream_loadd(5, a + UNIT * BLOCK_OF, 2 * BLOCK_OF);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

static inline void end_block(float *c, long c_down) {
    _tile_stored(0, c, c_down * 4);
    _tile_stored(1, c + UNIT, c_down * 4);
    _tile_stored(2, c + UNIT * c_down, c_down * 4);
    _tile_stored(3, c + UNIT * c_down + UNIT, c_down * 4);
}

/* The upper half of such a block, of 16 rows of a. */
static inline void half_block_product(const uint16_t *a, long a_down, const uint16_t *b, long b_down, long depth, float *c, long c_down) {
    settle();
    _tile_zero(0);
    _tile_zero(1);
    for (long step = 0; step < depth; step += BLOCK_OF) {
        _tile_loadd(4, a + step, a_down * 2);
        _tile_stream_loadd(6, b + step / 2 * b_down, b_down * 2);
        _tile_stream_loadd(7, b + step / 2 * b_down + BLOCK_OF, b_down * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, c, c_down * 4);
    _tile_stored(1, c + UNIT, c_down * 4);
}

/* The block of a (32 × depth) · b (depth × 32, woven) into c; where `add`, onto what is there. */
static inline void block_product(const uint16_t *a, long a_down, const uint16_t *b, long b_down, long depth, float *c, long c_down,
                                 int add) {
    begin_block(c, c_down, add);
    add_to_block(c, c_down, a, a_down, BLOCK_OF, b, b_down, depth, B_PASSES, 0);
    end_block(c, c_down);
}

/* a (32 × depth) · each of `count` blocks of b (depth × 32, woven, in one piece) into 32 columns of c (32 rows) each. */
static void products_along(const uint16_t *a, long a_down, const uint16_t *const *b, long count, long depth, float *c, long c_down) {
    if (depth != 2 * BLOCK_OF) {
        for (long k = 0; k < count; k++) block_product(a, a_down, b[k], 2 * BLOCK_OF, depth, c + k * BLOCK_OF, c_down, 0);
        return;
    }
    /* a stays in registers */
    settle();
    _tile_loadd(4, a, a_down * 2);
    _tile_loadd(5, a + BLOCK_OF, a_down * 2);
    _tile_loadd(6, a + UNIT * a_down, a_down * 2);
    _tile_loadd(7, a + UNIT * a_down + BLOCK_OF, a_down * 2);
    for (long k = 0; k < count; k++, c += BLOCK_OF)
        for (long half = 0; half < BLOCK_OF; half += UNIT) {
            const uint16_t *pairs = b[k] + 2 * half;
            _tile_zero(0);
            _tile_zero(1);
            _tile_stream_loadd(2, pairs, 4 * BLOCK_OF);
            _tile_stream_loadd(3, pairs + UNIT * 2 * BLOCK_OF, 4 * BLOCK_OF);
            _tile_dpbf16ps(0, 4, 2);
            _tile_dpbf16ps(1, 6, 2);
            _tile_dpbf16ps(0, 5, 3);
            _tile_dpbf16ps(1, 7, 3);
            _tile_stored(0, c + half, c_down * 4);
            _tile_stored(1, c + UNIT * c_down + half, c_down * 4);
        }
}

/* The same for RANKS columns of 32 rows of a as add_to_block takes them, into c (32, RANKS). */
static inline void thin_product(const uint16_t *a, long a_down, long a_along, const uint16_t *b, long b_down, long depth, float *c) {
    begin_block(c, RANKS, 0);
    add_to_block(c, RANKS, a, a_down, a_along, b, b_down, depth, A_PASSES, 0);
    end_block(c, RANKS);
}
#else
enum { RANKS = 16, ROWS_OF_DOTS = 8 };

int units(void) { return 1; }

static void claim_units(void) {}

static void release_units(void) {}

/* `rows` of c, up to 16, and `across` times 16 columns of it = or += a · b as add_to_block takes them, of a depth of any 16, blocks of b
 * `b_along` apart. Sixteen sums in registers: a processor makes one of these dot products a cycle and takes six for it. */
static inline __attribute__((always_inline)) void add_dots(float *c, long c_down, const int add, const int rows, const int across,
                                                           const uint16_t *a, long a_down, long a_along, const uint16_t *b, long b_down,
                                                           long b_along, long depth, const char *soon) {
    __m512 sum[UNIT][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < across; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * c_down + j * UNIT) : _mm512_setzero_ps();
    for (long step = 0; step < depth; step += BLOCK_OF, a += a_along, b += b_along) {
        if (soon) _mm_prefetch(soon + step * 8, _MM_HINT_T1);
        for (long pair = 0; pair < MIN(UNIT, (depth - step) / 2); pair++) {
            __m512bh pairs[2];
#pragma GCC unroll 2
            for (int j = 0; j < across; j++) pairs[j] = (__m512bh)_mm512_loadu_si512(b + pair * b_down + j * BLOCK_OF);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                int32_t both;
                memcpy(&both, a + i * a_down + 2 * pair, 4);
#pragma GCC unroll 2
                for (int j = 0; j < across; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], (__m512bh)_mm512_set1_epi32(both), pairs[j]);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < across; j++) _mm512_storeu_ps(c + i * c_down + j * UNIT, sum[i][j]);
}

/* As above, with c in memory. */
static inline void begin_block(float *c, long c_down, int add) {
    for (long i = 0; i < BLOCK_OF && !add; i++) memset(c + i * c_down, 0, BLOCK_OF * 4);
}

static void add_to_block(float *c, long c_down, const uint16_t *a, long a_down, long a_along, const uint16_t *b, long b_down, long depth,
                         const int passes, const char *soon) {
    (void)passes;
    for (long i = 0; i < BLOCK_OF; i += ROWS_OF_DOTS)
        add_dots(c + i * c_down, c_down, 1, ROWS_OF_DOTS, 2, a + i * a_down, a_down, a_along, b, b_down, UNIT * b_down, depth,
                 soon ? soon + i * 8 : 0);
}

static void add_blocks(float *c, long c_down, const uint16_t *a, const uint16_t *b, long apart, long depth, long ahead) {
    (void)ahead; /* what is read in order comes near by itself */
    for (long i = 0; i < BLOCK_OF; i += ROWS_OF_DOTS)
        add_dots(c + i * c_down, c_down, 1, ROWS_OF_DOTS, 2, a + i * BLOCK_OF, BLOCK_OF, BLOCK_OF * BLOCK_OF, b, 2 * BLOCK_OF, apart, depth, 0);
}

static inline void end_block(float *c, long c_down) { (void)c, (void)c_down; }

static void half_block_product(const uint16_t *a, long a_down, const uint16_t *b, long b_down, long depth, float *c, long c_down) {
    for (long i = 0; i < UNIT; i += ROWS_OF_DOTS)
        add_dots(c + i * c_down, c_down, 0, ROWS_OF_DOTS, 2, a + i * a_down, a_down, BLOCK_OF, b, b_down, UNIT * b_down, depth, 0);
}

static void block_product(const uint16_t *a, long a_down, const uint16_t *b, long b_down, long depth, float *c, long c_down, int add) {
    if (add)
        add_to_block(c, c_down, a, a_down, BLOCK_OF, b, b_down, depth, B_PASSES, 0);
    else
        for (long i = 0; i < BLOCK_OF; i += UNIT) half_block_product(a + i * a_down, a_down, b, b_down, depth, c + i * c_down, c_down);
}

static void products_along(const uint16_t *a, long a_down, const uint16_t *const *b, long count, long depth, float *c, long c_down) {
    for (long k = 0; k < count; k++) block_product(a, a_down, b[k], 2 * BLOCK_OF, depth, c + k * BLOCK_OF, c_down, 0);
}

static void thin_product(const uint16_t *a, long a_down, long a_along, const uint16_t *b, long b_down, long depth, float *c) {
    for (long i = 0; i < BLOCK_OF; i += UNIT)
        add_dots(c + i * RANKS, RANKS, 0, UNIT, 1, a + i * a_down, a_down, a_along, b, b_down, UNIT * b_down, depth, 0);
}
#endif
