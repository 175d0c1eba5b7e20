/* Output head and loss of tokens in one pass over the vocabulary on matrix units: scores are there for 32 tokens and some words at a
 * time, never as a whole. What Σ e^score is, and what it gives of the gradient, is carried along against the highest score so far, as
 * attention does it (Dao et al. 2022, algorithm 1). Included by kernels.c once, after large.h. */

#if UNITS
enum { WORDS_AT_ONCE = 256, WORDS_APART = WORDS_AT_ONCE + BLOCK_OF };

/* What a token has met so far: its highest score, Σ e^(score - highest), and its target's score. Scores are exponents of 2. */
typedef struct {
    float most, sum, wanted;
} met;

/* Words [0, count) of (words, width) for both ways: `ahead` (count / 32, width / 2, 32, 2) from width to words, `back`
 * (width / 32, count / 2, 32, 2). To be called by all threads; ends with a barrier. */
static void lay_words(const uint16_t *weight, long count, long width, uint16_t *ahead, uint16_t *back) {
    const factor words = {weight, 0, 0, 0, 0, 0, width, count, 0, 1};
    if (back) {
#pragma omp for schedule(static) nowait
        for (long column = 0; column < width; column += BLOCK_OF) weave(weight + column, width, count, BLOCK_OF, back + column * count);
    }
    lay_panels(&words, ahead);
}

/* Scores become softcap · tanh(scale · score / softcap), as exponents of 2. */
static void cap_scores(float *scores, long count, float scale, float softcap) {
    const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
    for (long i = 0; i < count; i += UNIT) {
        __m512 score = _mm512_mul_ps(_mm512_load_ps(scores + i), _mm512_set1_ps(scale / softcap));
        __mmask16 below = _mm512_cmp_ps_mask(score, zero, _CMP_LT_OQ);
        __m512 power = power_16(_mm512_mul_ps(_mm512_abs_ps(score), _mm512_set1_ps(-2.0f * LOG2_E)));
        __m512 tanh = _mm512_div_ps(_mm512_sub_ps(one, power), _mm512_add_ps(one, power));
        _mm512_store_ps(scores + i, _mm512_mul_ps(_mm512_mask_sub_ps(tanh, below, zero, tanh), _mm512_set1_ps(softcap * LOG2_E)));
    }
}

/* A token's scores with some words become weights against its highest score so far (in bfloat16, and times how much the capped move
 * with the uncapped; none for the target, whose gradient is a small difference of near numbers that rounding would lose); what `sums`
 * (width) holds is brought down to a new highest. Scores times `by` are exponents of 2. */
static void meet(const float *scores, long count, long target, float by, float softcap, met *m, uint16_t *weights, float *sums, long width) {
    __m512 high = _mm512_set1_ps(m->most), sum = _mm512_setzero_ps();
    const __m512 exponent = _mm512_set1_ps(by), cap = _mm512_set1_ps(softcap ? 1.0f / (softcap * LOG2_E) : 0.0f), one = _mm512_set1_ps(1.0f);
    for (long i = 0; i < count; i += UNIT) high = _mm512_max_ps(high, _mm512_mul_ps(_mm512_load_ps(scores + i), exponent));
    float most = _mm512_reduce_max_ps(high), down = exp2f(m->most - most);
    if (m->sum > 0.0f && down < 1.0f) {
        m->sum *= down;
        for (long i = 0; i < width && sums; i++) sums[i] *= down;
    }
    m->most = most;
    high = _mm512_set1_ps(most);
    for (long i = 0; i < count; i += UNIT) {
        __m512 score = _mm512_load_ps(scores + i), power = power_16(_mm512_fmsub_ps(score, exponent, high));
        sum = _mm512_add_ps(sum, power);
        if (!sums) continue;
        __m512 tanh = _mm512_mul_ps(score, cap);
        write_16(weights + i, _mm512_mul_ps(power, _mm512_fnmadd_ps(tanh, tanh, one)));
    }
    m->sum += _mm512_reduce_add_ps(sum);
    if (target >= 0 && target < count) m->wanted = scores[target] * by, weights[target] = 0;
}

/* losses (rows) = log Σ e^score - score of the target, for scores = cap(scale · hidden · weightᵀ) of hidden (rows, width) and weight
 * (words, width), capped where there is a softcap; where d_hidden, there go its gradients, float32. All but targets in whole blocks. */
int loss_of_words(const uint16_t *hidden, const uint16_t *weight, const int64_t *targets, float *losses, float *d_hidden, long rows,
                  long words, long width, float scale, float softcap) {
    long most = MIN(WORDS_AT_ONCE, words) * width;
    uint16_t *panels = claim_halves(4 * most);
    met *all = claim(rows * (long)sizeof(met));
    hand *hands[2] = {claim_hands(), claim_hands()};
    int failed = !panels || !all || !hands[0] || !hands[1];
#pragma omp parallel if (!failed)
    {
        float scores[BLOCK_OF * WORDS_APART] __attribute__((aligned(64)));
        uint16_t weights[BLOCK_OF * WORDS_APART] __attribute__((aligned(64)));
        long begin, end, turn = 0;
        take_share(failed ? 0 : rows, BLOCK_OF, &begin, &end);
        for (long row = begin; row < end; row++) all[row] = (met){-INFINITY, 0.0f, 0.0f};
        for (long word = 0; word < words && !failed; word += WORDS_AT_ONCE, turn = !turn) {
            long count = MIN(WORDS_AT_ONCE, words - word);
            /* two sets in turn, of hands too: who is done fills the next while others still use the last */
            uint16_t *ahead = panels + turn * 2 * most, *back = ahead + most;
            deal(hands[turn], rows / BLOCK_OF);
            lay_words(weight + word * width, count, width, ahead, d_hidden ? back : 0);
            for (long piece; (piece = take_piece(hands[turn])) >= 0;) {
                const long row = piece * BLOCK_OF;
                for (long column = 0; column < count; column += BLOCK_OF)
                    block_product(hidden + row * width, width, ahead + column * width, 2 * BLOCK_OF, width, scores + column, WORDS_APART, 0);
                for (long i = 0; i < BLOCK_OF; i++) {
                    float *own = scores + i * WORDS_APART;
                    if (softcap) cap_scores(own, count, scale, softcap);
                    meet(own, count, targets[row + i] - word, softcap ? 1.0f : scale * LOG2_E, softcap, all + row + i, weights + i * WORDS_APART,
                         d_hidden ? d_hidden + (row + i) * width : 0, width);
                }
                for (long column = 0; column < width && d_hidden; column += BLOCK_OF)
                    block_product(weights, WORDS_APART, back + column * count, 2 * BLOCK_OF, count, d_hidden + row * width + column, width,
                                  word > 0);
            }
        }
        release_units();
#pragma omp barrier
        for (long row = begin; row < end; row++) {
            const met m = all[row];
            losses[row] = logf(m.sum) + (m.most - m.wanted) * LOG_2;
            if (!d_hidden) continue;
            float capped = softcap ? m.wanted / (softcap * LOG2_E) : 0.0f, by = scale / m.sum;
            float of_target = scale * (1.0f - capped * capped) * (exp2f(m.wanted - m.most) / m.sum - 1.0f);
            const uint16_t *own = weight + targets[row] * width;
            float *to = d_hidden + row * width;
#pragma omp simd
            for (long i = 0; i < width; i++) to[i] = to[i] * by + of_target * widen(own[i]);
        }
    }
    give_back(panels);
    give_back(all);
    give_back(hands[0]);
    give_back(hands[1]);
    return failed;
}
#endif
