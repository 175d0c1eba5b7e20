/* What happens to each token by itself: norms, gates, rotations, the loss. Included by kernels.c for each number format. */

/* 1 / √(mean(x²) + eps) of a row. */
static inline float NAME(inverse_of)(const NUMBER *x, long width, float eps) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < width; i++) sum += GET(x[i]) * GET(x[i]);
    return 1.0f / sqrtf(sum / (float)width + eps);
}

/* y = x · inverse · scale of a row. */
static inline void NAME(norm_row)(const NUMBER *x, const float *scale, float inverse, NUMBER *y, long width) {
#pragma omp simd
    for (long i = 0; i < width; i++) y[i] = PUT(GET(x[i]) * inverse * scale[i]);
}

/* dx = (t - u · mean(t · u)) · inverse of a row, with u = x · inverse, t = dy · scale; plus `residual` where there is one. */
static inline void NAME(norm_backward_row)(const NUMBER *dy, const NUMBER *x, const float *scale, float inverse, const NUMBER *residual,
                                           NUMBER *dx, long width) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < width; i++) sum += GET(dy[i]) * scale[i] * GET(x[i]);
    float mean = sum * inverse * inverse * inverse / (float)width;
    if (residual) {
#pragma omp simd
        for (long i = 0; i < width; i++)
            dx[i] = PUT(GET(dy[i]) * scale[i] * inverse - GET(x[i]) * mean + GET(residual[i]));
    } else {
#pragma omp simd
        for (long i = 0; i < width; i++) dx[i] = PUT(GET(dy[i]) * scale[i] * inverse - GET(x[i]) * mean);
    }
}

/* y = x · inverse · scale with inverse = 1 / √(mean(x²) + eps), which is written (given = 0) or read (given = 1). */
int NAME(norm)(const NUMBER *x, const float *scale, float *inverse, NUMBER *y, long rows, long width, float eps,
                int given) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (long row = 0; row < rows; row++) {
        if (!given) inverse[row] = NAME(inverse_of)(x + row * width, width, eps);
        NAME(norm_row)(x + row * width, scale, inverse[row], y + row * width, width);
    }
    return 0;
}

/* The same of many rows. */
int NAME(norm_backward)(const NUMBER *dy, const NUMBER *x, const float *scale, const float *inverse,
                         const NUMBER *residual, NUMBER *dx, long rows, long width) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (long row = 0; row < rows; row++) {
        const NUMBER *more = residual ? residual + row * width : 0;
        NAME(norm_backward_row)(dy + row * width, x + row * width, scale, inverse[row], more, dx + row * width, width);
    }
    return 0;
}

/* The gradient of the scale: Σ dy · x · inverse over the rows. */
int NAME(norm_scale_gradient)(const NUMBER *dy, const NUMBER *x, const float *inverse, float *d_scale, long rows,
                              long width) {
    /* sums of so many rows each, however many threads there are */
    long together = MAX(64, (rows + 15) / 16), parts = (rows + together - 1) / together;
    float *sums = calloc((size_t)(parts * width), sizeof(float));
    if (!sums) return 1;
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (long part = 0; part < parts; part++) {
        float *sum = sums + part * width;
        for (long row = part * together; row < MIN(rows, (part + 1) * together); row++) {
            const NUMBER *d = dy + row * width, *from = x + row * width;
#pragma omp simd
            for (long i = 0; i < width; i++) sum[i] += GET(d[i]) * GET(from[i]) * inverse[row];
        }
    }
    memset(d_scale, 0, (size_t)width * 4);
    for (long part = 0; part < parts; part++)
#pragma omp simd
        for (long i = 0; i < width; i++) d_scale[i] += sums[part * width + i];
    free(sums);
    return 0;
}

static inline float NAME(slope)(float gate, int gelu) {
    if (gelu) {
        float t = hyperbolic_tangent(0.7978845608f * (gate + 0.044715f * gate * gate * gate));
        return 0.5f * (1.0f + t) + 0.5f * gate * (1.0f - t * t) * 0.7978845608f * (1.0f + 0.134145f * gate * gate);
    }
    float s = 1.0f / (1.0f + exponential(-gate));
    return s * (1.0f + gate * (1.0f - s));
}

/* act(gate) · up of a row. */
static inline void NAME(gated_row)(const NUMBER *gate, const NUMBER *up, NUMBER *to, long width, int gelu) {
    if (gelu)
#pragma omp simd
        for (long i = 0; i < width; i++) to[i] = PUT(activation(GET(gate[i]), 1) * GET(up[i]));
    else
#pragma omp simd
        for (long i = 0; i < width; i++) to[i] = PUT(activation(GET(gate[i]), 0) * GET(up[i]));
}

/* The gradients of gate and up of a row from that of act(gate) · up, and this once more. */
static inline void NAME(gated_backward_row)(const NUMBER *restrict d, const NUMBER *restrict gate, const NUMBER *restrict up,
                                            NUMBER *restrict d_gate, NUMBER *restrict d_up, NUMBER *restrict to, long width, int gelu) {
    if (gelu) {
#pragma omp simd
        for (long i = 0; i < width; i++) {
            float g = GET(gate[i]), u = GET(up[i]), by = GET(d[i]), active = activation(g, 1);
            to[i] = PUT(active * u);
            d_up[i] = PUT(active * by);
            d_gate[i] = PUT(by * u * NAME(slope)(g, 1));
        }
    } else {
#pragma omp simd
        for (long i = 0; i < width; i++) {
            float g = GET(gate[i]), u = GET(up[i]), by = GET(d[i]);
            float s = 1.0f / (1.0f + exponential(-g)), active = g * s;
            to[i] = PUT(active * u);
            d_up[i] = PUT(active * by);
            d_gate[i] = PUT(by * u * (s + active * (1.0f - s)));
        }
    }
}

/* inner = act(gate) · up; each row of gate_up holds `width` gates, then as many ups. */
int NAME(gated)(const NUMBER *gate_up, NUMBER *inner, long rows, long width, int gelu) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (long row = 0; row < rows; row++) {
        const NUMBER *gate = gate_up + 2 * row * width;
        NAME(gated_row)(gate, gate + width, inner + row * width, width, gelu);
    }
    return 0;
}

/* The gradient of gate_up from that of inner, and inner once more. */
int NAME(gated_backward)(const NUMBER *d_inner, const NUMBER *gate_up, NUMBER *d_gate_up, NUMBER *inner, long rows,
                         long width, int gelu) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (long row = 0; row < rows; row++) {
        const NUMBER *gate = gate_up + 2 * row * width;
        NUMBER *d_gate = d_gate_up + 2 * row * width;
        NAME(gated_backward_row)(d_inner + row * width, gate, gate + width, d_gate, d_gate + width, inner + row * width, width, gelu);
    }
    return 0;
}

/* Rotary positions of a row in place: `heads` heads of `size`; cos and sin (size / 2). */
static inline void NAME(rotate_row)(NUMBER *x, const NUMBER *cosine, const NUMBER *sine, long heads, long size, int back) {
    long half = size / 2;
    for (long head = 0; head < heads; head++) {
        NUMBER *first = x + head * size, *second = first + half;
#pragma omp simd
        for (long i = 0; i < half; i++) {
            float a = GET(first[i]), b = GET(second[i]), turn = back ? -GET(sine[i]) : GET(sine[i]);
            first[i] = PUT(a * GET(cosine[i]) - b * turn);
            second[i] = PUT(b * GET(cosine[i]) + a * turn);
        }
    }
}

/* Rotary positions in place: `heads` heads of `size` from the start of each row; cos and sin (rows, size / 2). */
int NAME(rotate)(NUMBER *x, const NUMBER *cosine, const NUMBER *sine, long rows, long distance, long heads, long size,
                  int back) {
#pragma omp parallel for schedule(static) if (rows * heads * size > FEW)
    for (long row = 0; row < rows; row++)
        NAME(rotate_row)(x + row * distance, cosine + row * (size / 2), sine + row * (size / 2), heads, size, back);
    return 0;
}

/* -log softmax(cap(scale · scores))[target] of each row; where `gradient`, the scores become its gradient.
 * cap(x) = softcap · tanh(x / softcap), nothing where softcap is 0. */
int NAME(cross_entropy)(NUMBER *scores, const int64_t *targets, float *losses, long rows, long width, float scale,
                         float softcap, int gradient) {
    int failed = 0;
#pragma omp parallel if (rows * width > FEW)
    {
        float *weights = malloc((size_t)width * 4), *slopes = softcap ? malloc((size_t)width * 4) : 0;
        int able = weights && (!softcap || slopes);
        if (!able) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++) {
            NUMBER *own = scores + row * width;
            if (!able) continue;
            if (softcap) {
#pragma omp simd
                for (long i = 0; i < width; i++) {
                    float t = hyperbolic_tangent(GET(own[i]) * scale / softcap);
                    weights[i] = softcap * t;
                    slopes[i] = 1.0f - t * t;
                }
            } else {
#pragma omp simd
                for (long i = 0; i < width; i++) weights[i] = GET(own[i]) * scale;
            }
            float most = highest(weights, width), wanted = weights[targets[row]], sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < width; i++) {
                weights[i] = exponential(weights[i] - most);
                sum += weights[i];
            }
            losses[row] = logf(sum) + most - wanted;
            if (!gradient) continue;
            float by = scale / sum;
            weights[targets[row]] -= sum;
            if (softcap)
#pragma omp simd
                for (long i = 0; i < width; i++) own[i] = PUT(weights[i] * by * slopes[i]);
            else
#pragma omp simd
                for (long i = 0; i < width; i++) own[i] = PUT(weights[i] * by);
        }
        free(weights);
        free(slopes);
    }
    return failed;
}
