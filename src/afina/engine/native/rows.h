/* What happens to each token by itself: norms, gates, rotations, the loss. Included by kernels.c for each number format. */

/* y = x · inverse · scale with inverse = 1 / √(mean(x²) + eps), which is written (given = 0) or read (given = 1). */
int NAME(norm)(const NUMBER *x, const float *scale, float *inverse, NUMBER *y, long rows, long width, float eps,
                int given) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (long row = 0; row < rows; row++) {
        const NUMBER *from = x + row * width;
        NUMBER *to = y + row * width;
        if (!given) {
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < width; i++) sum += GET(from[i]) * GET(from[i]);
            inverse[row] = 1.0f / sqrtf(sum / (float)width + eps);
        }
        float by = inverse[row];
#pragma omp simd
        for (long i = 0; i < width; i++) to[i] = PUT(GET(from[i]) * by * scale[i]);
    }
    return 0;
}

/* dx = (t - u · mean(t · u)) · inverse with u = x · inverse, t = dy · scale; plus `residual` where there is one. */
int NAME(norm_backward)(const NUMBER *dy, const NUMBER *x, const float *scale, const float *inverse,
                         const NUMBER *residual, NUMBER *dx, long rows, long width) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (long row = 0; row < rows; row++) {
        const NUMBER *d = dy + row * width, *from = x + row * width;
        NUMBER *to = dx + row * width;
        float by = inverse[row], sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < width; i++) sum += GET(d[i]) * scale[i] * GET(from[i]);
        float mean = sum * by * by * by / (float)width;
        if (residual) {
            const NUMBER *more = residual + row * width;
#pragma omp simd
            for (long i = 0; i < width; i++)
                to[i] = PUT(GET(d[i]) * scale[i] * by - GET(from[i]) * mean + GET(more[i]));
        } else {
#pragma omp simd
            for (long i = 0; i < width; i++) to[i] = PUT(GET(d[i]) * scale[i] * by - GET(from[i]) * mean);
        }
    }
    return 0;
}

/* The gradient of the scale: Σ dy · x · inverse over the rows, in the order of the rows whatever the threads. */
int NAME(norm_scale_gradient)(const NUMBER *dy, const NUMBER *x, const float *inverse, float *d_scale, long rows,
                              long width) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (long begin = 0; begin < width; begin += TILE) {
        long count = MIN(TILE, width - begin);
        float sum[TILE] = {0};
        for (long row = 0; row < rows; row++) {
            const NUMBER *d = dy + row * width + begin, *from = x + row * width + begin;
#pragma omp simd
            for (long i = 0; i < count; i++) sum[i] += GET(d[i]) * GET(from[i]) * inverse[row];
        }
        memcpy(d_scale + begin, sum, (size_t)count * 4);
    }
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

/* inner = act(gate) · up; each row of gate_up holds `width` gates, then as many ups. */
int NAME(gated)(const NUMBER *gate_up, NUMBER *inner, long rows, long width, int gelu) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (long row = 0; row < rows; row++) {
        const NUMBER *gate = gate_up + 2 * row * width, *up = gate + width;
        NUMBER *to = inner + row * width;
        if (gelu)
#pragma omp simd
            for (long i = 0; i < width; i++) to[i] = PUT(activation(GET(gate[i]), 1) * GET(up[i]));
        else
#pragma omp simd
            for (long i = 0; i < width; i++) to[i] = PUT(activation(GET(gate[i]), 0) * GET(up[i]));
    }
    return 0;
}

/* The gradient of gate_up from that of inner, and inner once more. */
int NAME(gated_backward)(const NUMBER *d_inner, const NUMBER *gate_up, NUMBER *d_gate_up, NUMBER *inner, long rows,
                         long width, int gelu) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (long row = 0; row < rows; row++) {
        const NUMBER *restrict gate = gate_up + 2 * row * width, *restrict up = gate + width;
        const NUMBER *restrict d = d_inner + row * width;
        NUMBER *restrict d_gate = d_gate_up + 2 * row * width, *restrict d_up = d_gate + width;
        NUMBER *restrict to = inner + row * width;
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
    return 0;
}

/* Rotary positions in place: `heads` heads of `size` from the start of each row; cos and sin (rows, size / 2). */
int NAME(rotate)(NUMBER *x, const NUMBER *cosine, const NUMBER *sine, long rows, long distance, long heads, long size,
                  int back) {
    long half = size / 2;
#pragma omp parallel for schedule(static) if (rows * heads * size > FEW)
    for (long row = 0; row < rows; row++) {
        const NUMBER *c = cosine + row * half, *s = sine + row * half;
        for (long head = 0; head < heads; head++) {
            NUMBER *first = x + row * distance + head * size, *second = first + half;
#pragma omp simd
            for (long i = 0; i < half; i++) {
                float a = GET(first[i]), b = GET(second[i]), turn = back ? -GET(s[i]) : GET(s[i]);
                first[i] = PUT(a * GET(c[i]) - b * turn);
                second[i] = PUT(b * GET(c[i]) + a * turn);
            }
        }
    }
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
