/* Weighted sums of neighbouring pixels, along the rows and then along the columns.

   This is the arithmetic of Pillow's Resample.c for 8-bit pictures: weights are whole numbers in
   units of 2^-22, sums have 32 bits, are rounded half up, and what lies beyond 0..255 is clipped.
   featx.resampling says which weights, and only the part of the picture that is asked for is
   computed. The loops are written for compilers that put four or more of such sums into one
   register; no result depends on whether they do. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BITS 22
#define HALF (1 << (BITS - 1))
#define STEP 4 /* the number of weights is a multiple of it, so that two loops do for most */

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
typedef int32_t Four __attribute__((vector_size(16)));
#define HAS_FOUR
#ifdef __x86_64__
#define HAS_AVX2 __builtin_cpu_supports("avx2")
#endif
#else
#define INLINE static inline
#define restrict __restrict /* Microsoft's compiler */
#endif

/* One axis: output pixel i is the sum of `taps` neighbours from low[i] on. A neighbour beyond the
   picture is 0. */
typedef struct {
    Py_ssize_t n, taps, first, end; /* first and end of the input pixels that any of them needs */
    const int32_t *low, *weights;
} Axis;

INLINE uint8_t rounded(int32_t sum) {
    sum >>= BITS;
    sum = sum < 0 ? 0 : sum;
    sum = sum > 255 ? 255 : sum;
    return (uint8_t)sum;
}

/* The sums of one pixel of c channels. For three, four are made of every four values in a row; the
   fourth belongs to the next pixel, and the next pixel overwrites it. */
INLINE void sums_of(const int32_t *restrict value, const int32_t *restrict weight, Py_ssize_t taps,
                    int c, int32_t *restrict sums) {
#ifdef HAS_FOUR
    if (c == 3) {
        Four sum = {HALF, HALF, HALF, HALF}, four;
        for (Py_ssize_t t = 0; t < taps; t++) {
            memcpy(&four, value + t * c, sizeof four);
            sum += four * weight[t];
        }
        memcpy(sums, &sum, sizeof sum);
        return;
    }
#endif
    for (int j = 0; j < c; j++) {
        int32_t sum = HALF;
        for (Py_ssize_t t = 0; t < taps; t++)
            sum += value[t * c + j] * weight[t];
        sums[j] = sum;
    }
}

INLINE void row_of_sums(const int32_t *restrict values, const Axis *axis, Py_ssize_t taps, int c,
                        int32_t *restrict sums) {
    for (Py_ssize_t i = 0; i < axis->n; i++)
        sums_of(values + c * (axis->low[i] - axis->first), axis->weights + i * taps, taps, c,
                sums + i * c);
}

/* Loops of a known length are faster. */
INLINE void across(const int32_t *restrict values, const Axis *axis, int c,
                   int32_t *restrict sums) {
    if (axis->taps == STEP)
        row_of_sums(values, axis, STEP, c, sums);
    else if (axis->taps == 2 * STEP)
        row_of_sums(values, axis, 2 * STEP, c, sums);
    else
        row_of_sums(values, axis, axis->taps, c, sums);
}

/* pixels (h, w, c) -> out (down->n, across->n, c). `between` has room for the rows that are needed
   after the first pass, `values` for a row before it, `sums` for one after it. */
INLINE void resample(const uint8_t *restrict pixels, Py_ssize_t h, Py_ssize_t w, int c,
                     const Axis *columns, const Axis *rows, uint8_t *restrict between,
                     int32_t *restrict values, int32_t *restrict sums, uint8_t *restrict out) {
    const Py_ssize_t length = columns->n * c;
    const Py_ssize_t n_values = c * ((columns->end < w ? columns->end : w) - columns->first);
    const Py_ssize_t last = rows->end < h ? rows->end : h;
    for (Py_ssize_t y = rows->first; y < last; y++) {
        const uint8_t *row = pixels + (y * w + columns->first) * c;
        uint8_t *resampled = between + (y - rows->first) * length;
        for (Py_ssize_t x = 0; x < n_values; x++)
            values[x] = row[x];
        if (c == 3)
            across(values, columns, 3, sums);
        else
            across(values, columns, 1, sums);
        for (Py_ssize_t x = 0; x < length; x++)
            resampled[x] = rounded(sums[x]);
    }
    for (Py_ssize_t i = 0; i < rows->n; i++, out += length) {
        for (Py_ssize_t x = 0; x < length; x++)
            sums[x] = HALF;
        for (Py_ssize_t t = 0; t < rows->taps && rows->low[i] + t < last; t++) {
            const uint8_t *row = between + (rows->low[i] + t - rows->first) * length;
            const int32_t weight = rows->weights[i * rows->taps + t];
            for (Py_ssize_t x = 0; x < length; x++)
                sums[x] += row[x] * weight;
        }
        for (Py_ssize_t x = 0; x < length; x++)
            out[x] = rounded(sums[x]);
    }
}

/* The same, compiled once for every processor of its kind and once for AVX2. */
#define PARAMETERS                                                                                 \
    const uint8_t *restrict pixels, Py_ssize_t h, Py_ssize_t w, int c, const Axis *columns,        \
        const Axis *rows, uint8_t *restrict between, int32_t *restrict values,                     \
        int32_t *restrict sums, uint8_t *restrict out
#define ARGUMENTS pixels, h, w, c, columns, rows, between, values, sums, out

static void resample_anywhere(PARAMETERS) { resample(ARGUMENTS); }

#ifdef HAS_AVX2
__attribute__((target("avx2"))) static void resample_avx2(PARAMETERS) { resample(ARGUMENTS); }
#endif

static int is_of(const Py_buffer *view, const char *format) {
    return view->format != NULL && !strcmp(view->format, format);
}

static int is_int32(const Py_buffer *view) {
    return view->itemsize == 4 && (is_of(view, "i") || is_of(view, "l")); /* the latter: Windows */
}

static int is_picture(const Py_buffer *view) {
    return view->ndim == 3 && is_of(view, "B") && (view->shape[2] == 3 || view->shape[2] == 1);
}

/* What two arrays say of an axis of `size` pixels; 0 where they are not (n) and (n, taps) int32,
   or name a pixel that does not exist. */
static int read_axis(const Py_buffer *low, const Py_buffer *weights, Py_ssize_t size, Axis *axis) {
    if (low->ndim != 1 || weights->ndim != 2 || !is_int32(low) || !is_int32(weights) ||
        low->shape[0] != weights->shape[0] || weights->shape[1] < STEP || weights->shape[1] % STEP)
        return 0;
    axis->n = weights->shape[0];
    axis->taps = weights->shape[1];
    axis->low = low->buf;
    axis->weights = weights->buf;
    axis->first = size;
    axis->end = 0;
    for (Py_ssize_t i = 0; i < axis->n; i++) {
        if (axis->low[i] < 0 || axis->low[i] >= size)
            return 0;
        if (axis->low[i] < axis->first)
            axis->first = axis->low[i];
        if (axis->low[i] + axis->taps > axis->end)
            axis->end = axis->low[i] + axis->taps;
    }
    return axis->n > 0;
}

static int run(const Py_buffer *pixels, const Py_buffer *out, const Axis *columns,
               const Axis *rows) {
    void (*chosen)(PARAMETERS) = resample_anywhere;
    const int c = (int)pixels->shape[2];
    const Py_ssize_t n_between = (rows->end - rows->first) * columns->n * c;
    const Py_ssize_t n_values = (columns->end - columns->first) * c + STEP;
    const Py_ssize_t n_sums = columns->n * c + STEP;
    /* Beyond the end of a row lie zeros. */
    int32_t *values = calloc(n_values + n_sums, sizeof(int32_t));
    uint8_t *between = malloc(n_between);
    const int enough = values != NULL && between != NULL;
#ifdef HAS_AVX2
    if (HAS_AVX2)
        chosen = resample_avx2;
#endif
    if (enough) {
        Py_BEGIN_ALLOW_THREADS
        chosen(pixels->buf, pixels->shape[0], pixels->shape[1], c, columns, rows, between, values,
               values + n_values, out->buf);
        Py_END_ALLOW_THREADS
    }
    free(values);
    free(between);
    return enough;
}

static PyObject *py_resample(PyObject *module, PyObject *args) {
    PyObject *given[6], *result = NULL;
    Py_buffer view[6];
    int n = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOOOO:resample", &given[0], &given[1], &given[2], &given[3],
                          &given[4], &given[5]))
        return NULL;
    for (; n < 6; n++) {
        const int written = n == 1 ? PyBUF_WRITABLE : 0;
        if (PyObject_GetBuffer(given[n], &view[n], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | written) < 0)
            break;
    }
    if (n == 6) {
        const Py_buffer *pixels = &view[0], *out = &view[1];
        Axis columns, rows;
        if (!is_picture(pixels) || !is_picture(out) || out->shape[2] != pixels->shape[2])
            PyErr_SetString(PyExc_ValueError, "pictures must be (h, w, 3) or (h, w, 1) uint8");
        else if (!read_axis(&view[2], &view[3], pixels->shape[1], &columns) ||
                 !read_axis(&view[4], &view[5], pixels->shape[0], &rows) ||
                 out->shape[0] != rows.n || out->shape[1] != columns.n)
            PyErr_SetString(PyExc_ValueError, "the weights do not belong to these pictures");
        else if (!run(pixels, out, &columns, &rows))
            PyErr_NoMemory();
        else
            result = Py_NewRef(Py_None);
    }
    while (n--)
        PyBuffer_Release(&view[n]);
    return result;
}

static PyMethodDef methods[] = {
    {"resample", py_resample, METH_VARARGS,
     "resample(pixels, out, low_across, weights_across, low_down, weights_down)"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "featx._resample", NULL, 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__resample(void) { return PyModuleDef_Init(&definition); }
