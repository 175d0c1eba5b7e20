/* Pieces of work dealt out to threads. Threads run at different speeds (other programs, cores of two kinds), so who is done with its own
 * takes from the others; whose own they are stays the same from kernel to kernel, and with it what is in a core's caches. What is computed
 * must not depend on who takes a piece. Included by units.h once. */

/* What a thread has left of its own: the pieces [front, back) in one word, alone in a line of the cache. */
typedef struct {
    uint64_t left;
    char apart[56];
} hand;

/* One for each thread; 0 where there is no memory. */
static hand *claim_hands(void) { return claim(omp_get_max_threads() * (long)sizeof(hand)); }

/* This thread's share of `count` pieces. None may be taken before all have theirs. */
static void deal(hand *hands, long count) {
    const uint64_t threads = (uint64_t)omp_get_num_threads(), thread = (uint64_t)omp_get_thread_num(), pieces = (uint64_t)count;
    __atomic_store_n(&hands[thread].left, thread * pieces / threads << 32 | (thread + 1) * pieces / threads, __ATOMIC_RELEASE);
}

static long count_left(uint64_t left) { return (long)(left & 0xffffffff) - (long)(left >> 32); }

/* The next of this thread's own pieces, else the last of whoever has most left; -1 where none are. */
static long take_piece(hand *hands) {
    hand *const own = hands + omp_get_thread_num(), *const end = hands + omp_get_num_threads();
    for (;;) {
        hand *from = own;
        uint64_t left = __atomic_load_n(&own->left, __ATOMIC_ACQUIRE);
        for (hand *other = hands; other < end && (from != own || count_left(left) <= 0); other++) {
            const uint64_t theirs = __atomic_load_n(&other->left, __ATOMIC_ACQUIRE);
            if (count_left(theirs) > MAX(0, count_left(left))) from = other, left = theirs;
        }
        if (count_left(left) <= 0) return -1;
        const uint64_t rest = from == own ? left + (1ull << 32) : left - 1;
        if (__atomic_compare_exchange_n(&from->left, &left, rest, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return (long)(from == own ? left >> 32 : rest & 0xffffffff);
    }
}
