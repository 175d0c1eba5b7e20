/* One more token through all layers, its keys and values kept: at batch 1 reading the weights is what takes the time, so each
 * is read once, by whichever thread needs it, and nothing but barriers lies between the products. Included by kernels.c for
 * each number format of what is kept. Activations are float32. */

/* The same numbers in this format, which holds them exactly. */
int NAME(unpack)(const int8_t *from, NUMBER *to, long count) {
#pragma omp parallel for simd schedule(static) if (count > FEW)
    for (long i = 0; i < count; i++) to[i] = PUT((float)from[i]);
    return 0;
}

/* A head's query or key, normed and turned to its position. */
static void NAME(turn)(const float *from, const float *scale, const NUMBER *cosine, const NUMBER *sine, float *to, long size,
                       float eps) {
    long half = size / 2;
    if (scale)
        norm_one(from, scale, to, size, eps);
    else
        memcpy(to, from, (size_t)size * 4);
    for (long i = 0; i < half; i++) {
        float a = to[i], b = to[i + half], c = GET(cosine[i]), s = GET(sine[i]);
        to[i] = a * c - b * s;
        to[i + half] = b * c + a * s;
    }
}

/* What the query of head `own` finds at all keys up to `position`; the new key and value go to their place. */
static void NAME(find)(const network *net, const layer *at, const float *qkv, long own, long position, float *scores,
                       float *found) {
    long size = net->size, group = net->queries / net->heads, head = own / group;
    const NUMBER *cosine = (const NUMBER *)at->cosine + position * size / 2;
    const NUMBER *sine = (const NUMBER *)at->sine + position * size / 2;
    NUMBER *keys = (NUMBER *)at->keys + head * net->room * size, *values = (NUMBER *)at->values + head * net->room * size;
    float *q = scores + net->room, *k = q + size;
    const float *v = qkv + (net->queries + net->heads + head) * size;
    NAME(turn)(qkv + own * size, at->query_norm, cosine, sine, q, size, net->eps);
    NAME(turn)(qkv + (net->queries + head) * size, at->key_norm, cosine, sine, k, size, net->eps);
    if (own % group == 0)
        for (long i = 0; i < size; i++) {
            keys[position * size + i] = PUT(k[i]);
            values[position * size + i] = PUT(v[i]);
        }
    long first = at->window ? MAX(0, position + 1 - at->window) : 0;
    for (long key = first; key < position; key += TOGETHER)
        DOTS_OF_NUMBERS(keys + key * size, q, size, MIN(TOGETHER, position - key), scores + key);
    dots_of_floats(k, q, size, 1, scores + position);
    float most = NOTHING, sum = 0.0f;
    for (long key = first; key <= position; key++) {
        scores[key] *= at->scaling;
        if (at->softcap) scores[key] = at->softcap * hyperbolic_tangent(scores[key] / at->softcap);
        most = MAX(most, scores[key]);
    }
#pragma omp simd reduction(+ : sum)
    for (long key = first; key <= position; key++) {
        scores[key] = exponential(scores[key] - most);
        sum += scores[key];
    }
    long i = 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES) {
        lanes part[4] = {{0}};
        for (long key = first; key < position; key++)
            for (int j = 0; j < 4; j++) part[j] += scores[key] * LANES_OF_NUMBERS(values + key * size + i + j * LANES);
        memcpy(found + i, part, sizeof part);
    }
    for (; i < size; i++) {
        found[i] = 0.0f;
        for (long key = first; key < position; key++) found[i] += scores[key] * GET(values[key * size + i]);
    }
#pragma omp simd
    for (long j = 0; j < size; j++) found[j] = (found[j] + scores[position] * v[j]) / sum;
}

/* x += [post](result). */
static void NAME(take_in)(float *x, const float *result, const float *post, float *h, long width, float eps) {
    if (post) {
        norm_one(result, post, h, width, eps);
        result = h;
    }
#pragma omp simd
    for (long i = 0; i < width; i++) x[i] += result[i];
}

/* x (width), the token at `position`, becomes the hidden state after the last layer. */
int NAME(speak)(const network *net, const layer *layers, float *x, long position) {
    long width = net->width, size = net->size, inner = net->inner, all = (net->queries + 2 * net->heads) * size;
    long found = net->queries * size, own = 2 * width + net->room + 2 * size;
    long threads = omp_get_max_threads();
    float *shared = malloc((size_t)(all + found + width + inner + threads * own) * 4);
    if (!shared) return 1;
    float *qkv = shared, *out = qkv + all, *result = out + found, *between = result + width;
#pragma omp parallel num_threads(threads)
    {
        /* every thread holds the token's state itself: adding to it is quicker than waiting for it */
        float *mine = between + inner + omp_get_thread_num() * own, *h = mine + width, *scores = h + width;
        memcpy(mine, x, (size_t)width * 4);
#pragma omp barrier
        for (long index = 0; index < net->layers; index++) {
            const layer *at = layers + index;
            norm_one(mine, at->norm, h, width, net->eps);
            share_outputs(&at->qkv, h, width, all, qkv);
#pragma omp for schedule(static)
            for (long head = 0; head < net->queries; head++)
                NAME(find)(net, at, qkv, head, position, scores, out + head * size);
            share_outputs(&at->output, out, found, width, result);
            NAME(take_in)(mine, result, at->post, h, width, net->eps);
            norm_one(mine, at->after_norm, h, width, net->eps);
#pragma omp for schedule(static)
            for (long first = 0; first < inner; first += GATES) {
                long rows = MIN(GATES, inner - first);
                float gate[GATES], *up = between + first;
                for (long r = 0; r < rows; r += TOGETHER) {
                    some_outputs(&at->gate_up, h, width, first + r, MIN(TOGETHER, rows - r), gate + r);
                    some_outputs(&at->gate_up, h, width, inner + first + r, MIN(TOGETHER, rows - r), up + r);
                }
                if (net->gelu)
#pragma omp simd
                    for (long r = 0; r < rows; r++) up[r] *= activation(gate[r], 1);
                else
#pragma omp simd
                    for (long r = 0; r < rows; r++) up[r] *= activation(gate[r], 0);
            }
            share_outputs(&at->down, between, inner, width, result);
            NAME(take_in)(mine, result, at->after_post, h, width, net->eps);
        }
#pragma omp master
        memcpy(x, mine, (size_t)width * 4);
    }
    free(shared);
    return 0;
}
