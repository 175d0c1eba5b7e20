/* Memory for the time of a call, at the beginning of a cache's line. Not by aligned_alloc: glibc (2.36) looks for more than it hands out, so what
 * one call gave back is too small for the next, which takes it further up: a heap grew by a fifth within a dozen steps. Included by units.h
 * once. */
enum { LINE = 64 };

/* 0 where there is no memory. */
static void *claim(long bytes) {
    void *whole = malloc((size_t)bytes + sizeof(void *) + LINE);
    if (!whole) return 0;
    void **begin = (void **)(((uintptr_t)whole + sizeof(void *) + LINE - 1) / LINE * LINE);
    begin[-1] = whole;
    return begin;
}

static uint16_t *claim_halves(long count) { return claim(2 * count); }

static void give_back(void *claimed) {
    if (claimed) free(((void **)claimed)[-1]);
}
