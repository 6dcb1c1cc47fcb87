/* The product of a few rows with the weights of a linear layer, float32: out[r][o] = sum_i states[r][i] weight[o][i].

   It should cost what reading the weights once costs, so all rows of the states are multiplied with rows of the weight
   while these are in the nearest cache. Reading itself is hastened: each thread reads WIDTH runs of its weights side by
   side, each of which the processor's prefetcher follows, and asks for what it needs DISTANCE floats later, since that
   prefetcher stops at the end of a page. Every output is summed in the same order, whatever the number of rows and
   threads. benchmarks/linear_products.py measures it beside torch's product.

   Vectors are an extension of GCC and Clang; they are as wide as those of the machine that this is compiled for. */

#if defined(__AVX512F__)
#define LANES 16
#define GROUP 8 /* rows of the states at a time: their sums, WIDTH for each, stay in registers */
#elif defined(__aarch64__)
#define LANES 4
#define GROUP 8
#else
#define LANES 8
#define GROUP 4
#endif
#define WIDTH 3
#define DISTANCE 1024

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

struct product {
    const float *states, *weight, *bias; /* (rows, inputs), (outputs, inputs), and (outputs) or null */
    float *out;                          /* (rows, outputs) */
    long rows, outputs, inputs;
};

/* OpenMP's, of the library that is in the process already (torch's), so that its threads are shared; null without. */
extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

/* `rows` rows of the states with `width` rows of the weight, `apart` from each other; inlined for each number of both. */
static inline __attribute__((always_inline)) void tile(
    const struct product *p, long row, const int rows, long output, const int width, long apart, const int ahead) {
    const long inputs = p->inputs;
    const float *states = p->states + row * inputs, *weight = p->weight + output * inputs;
    vector sums[GROUP][WIDTH];
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < width; w++) sums[r][w] = (vector){0};
    long i = 0;
    for (; i + LANES <= inputs; i += LANES) {
        vector weights[WIDTH];
        for (int w = 0; w < width; w++) {
            weights[w] = *(const vector *)(weight + w * apart * inputs + i);
            if (ahead) __builtin_prefetch(weight + w * apart * inputs + i + DISTANCE);
        }
        for (int r = 0; r < rows; r++) {
            const vector state = *(const vector *)(states + r * inputs + i);
            for (int w = 0; w < width; w++) sums[r][w] += state * weights[w];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < width; w++) {
            float sum = 0;
            for (int lane = 0; lane < LANES; lane++) sum += sums[r][w][lane];
            for (long j = i; j < inputs; j++) sum += states[r * inputs + j] * weight[w * apart * inputs + j];
            if (p->bias) sum += p->bias[output + w * apart];
            p->out[(row + r) * p->outputs + output + w * apart] = sum;
        }
}

/* All rows of the states; only the first of them ask for what comes. */
static inline __attribute__((always_inline)) void all_rows(
    const struct product *p, long output, const int width, long apart) {
    long row = 0;
    for (; row + GROUP <= p->rows; row += GROUP) tile(p, row, GROUP, output, width, apart, row == 0);
    switch (p->rows - row) {
        case 1: tile(p, row, 1, output, width, apart, row == 0); break;
        case 2: tile(p, row, 2, output, width, apart, row == 0); break;
        case 3: tile(p, row, 3, output, width, apart, row == 0); break;
#if GROUP == 8
        case 4: tile(p, row, 4, output, width, apart, row == 0); break;
        case 5: tile(p, row, 5, output, width, apart, row == 0); break;
        case 6: tile(p, row, 6, output, width, apart, row == 0); break;
        case 7: tile(p, row, 7, output, width, apart, row == 0); break;
#endif
    }
}

/* The share of one thread: neighbouring outputs, in WIDTH runs, and those that are left. */
static void share(void *data) {
    const struct product *p = data;
    const long threads = omp_get_num_threads ? omp_get_num_threads() : 1;
    const long thread = omp_get_thread_num ? omp_get_thread_num() : 0;
    long output = p->outputs * thread / threads;
    const long end = p->outputs * (thread + 1) / threads, run = (end - output) / WIDTH;
    for (const long first = output; output < first + run; output++) all_rows(p, output, WIDTH, run);
    for (output += (WIDTH - 1) * run; output < end; output++) all_rows(p, output, 1, 0);
}

void few_rows_product(const float *states, const float *weight, const float *bias, float *out, long rows, long outputs,
                      long inputs, int threads) {
    struct product p = {states, weight, bias, out, rows, outputs, inputs};
    if (threads > 1 && GOMP_parallel) GOMP_parallel(share, &p, (unsigned)threads, 0);
    else share(&p);
}
