// A libcuda.so that keeps "device" memory on the host: shows that crosstune makes the driver calls
// it must, in an order and with arguments that a driver accepts. Work is queued and done as late as
// the API allows, so memory that is used again too early shows. FAKE_CUDA picks a machine: none,
// old (driver), volta. A broken rule prints a line and aborts.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NOT_FOUND = 500 };
#define MEMORY (1ull << 30)
#define CHECK(rule) \
    do { \
        if (!(rule)) { fprintf(stderr, "%s: broken: %s\n", __func__, #rule); abort(); } \
    } while (0)

typedef struct {
    char kind;  // 'c' copy, 's' set, 'k' kernel
    char *to, *from;
    size_t bytes;
    int value;
    float number;
} Op;
typedef struct { Op ops[4096]; int n; } List;

static List queue, captured;
static int retained, live, capturing, max_shared = 49152, stream_made, recorded;
static char *current, *pinned;
static size_t pinned_bytes, taken;
static char context, stream, module, function, graph_made;

static int machine(const char *name) {
    const char *set = getenv("FAKE_CUDA");
    return set && !strcmp(set, name);
}
static void push(Op op) {
    List *list = capturing ? &captured : &queue;
    CHECK(list->n < 4096);
    list->ops[list->n++] = op;
}
static void run_all(void) {
    for (int i = 0; i < queue.n; i++) {
        Op *op = &queue.ops[i];
        if (op->kind == 'c') memcpy(op->to, op->from, op->bytes);
        if (op->kind == 's') memset(op->to, op->value, op->bytes);
        if (op->kind == 'k')
            for (int j = 0; j < op->value; j++) ((float *)op->to)[j] = op->number;
    }
    queue.n = 0;
}
static void need(void) { CHECK(retained == 1 && current == &context); }

int cuInit(unsigned flags) { return machine("none") ? NO_DEVICE : flags; }
int cuDriverGetVersion(int *v) { *v = machine("old") ? 12040 : 13000; return OK; }
int cuDeviceGetCount(int *n) { *n = 1; return OK; }
int cuDeviceGet(int *d, int i) { *d = 7; return i ? INVALID_VALUE : OK; }
int cuDeviceGetName(char *s, int n, int d) { CHECK(d == 7); snprintf(s, n, "Fake"); return OK; }
int cuDeviceTotalMem_v2(size_t *n, int d) { CHECK(d == 7); *n = MEMORY; return OK; }
int cuDeviceGetAttribute(int *v, int what, int d) {
    CHECK(d == 7);
    *v = what == 75 ? (machine("volta") ? 7 : 9) : what == 76 ? 0 : what == 97 ? 232448 : -1;
    CHECK(*v >= 0);
    return OK;
}
int cuDevicePrimaryCtxRetain(void **c, int d) { CHECK(d == 7); retained++; *c = &context; return OK; }
int cuDevicePrimaryCtxRelease_v2(int d) {
    need();
    retained--;
    printf("released with %d live\n", live);
    fflush(stdout);
    return d == 7 ? OK : INVALID_VALUE;
}
int cuCtxSetCurrent(void *c) { CHECK(retained && c == &context); current = c; return OK; }
int cuGetErrorName(int e, const char **s) {
    *s = e == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : e == NOT_FOUND ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR";
    return OK;
}
int cuGetErrorString(int e, const char **s) { *s = e == NO_DEVICE ? "no device" : "words"; return OK; }

int cuStreamCreate(void **s, unsigned flags) {
    need(); CHECK(flags == 1); live++; stream_made++; *s = &stream; return OK;
}
int cuStreamDestroy_v2(void *s) { need(); CHECK(s == &stream && !queue.n); live--; return OK; }
int cuStreamSynchronize(void *s) { need(); CHECK(s == &stream && !capturing); run_all(); return OK; }

int cuMemHostAlloc(void **p, size_t n, unsigned flags) {
    need(); CHECK(!pinned && flags == 0); live++; *p = pinned = malloc(n); pinned_bytes = n; return OK;
}
int cuMemFreeHost(void *p) { need(); CHECK(p == pinned && !queue.n); live--; free(p); return OK; }
// The size lies in the 256 bytes before what is given away.
int cuMemAlloc_v2(uint64_t *p, size_t n) {
    need(); CHECK(n > 0 && !capturing);
    if (n > MEMORY - taken) return OUT_OF_MEMORY;
    live++;
    taken += n;
    char *start = aligned_alloc(256, (n + 255) / 256 * 256 + 256);
    *(size_t *)start = n;
    *p = (uint64_t)(start + 256);
    return OK;
}
int cuMemFree_v2(uint64_t p) {
    need(); CHECK(!capturing);
    run_all();
    live--;
    taken -= *(size_t *)(p - 256);
    free((void *)(p - 256));
    return OK;
}
int cuMemGetInfo_v2(size_t *n_free, size_t *total) {
    need(); CHECK(!capturing);
    *n_free = MEMORY - taken;
    *total = MEMORY;
    return OK;
}
int cuMemsetD8Async(uint64_t p, unsigned char v, size_t n, void *s) {
    need(); CHECK(n > 0 && s == &stream);
    push((Op){'s', (char *)p, 0, n, v, 0});
    return OK;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, char *from, size_t n, void *s) {
    need(); CHECK(s == &stream && !capturing);
    if (from >= pinned && from < pinned + pinned_bytes) {
        CHECK(from + n <= pinned + pinned_bytes);
        push((Op){'c', (char *)to, from, n, 0, 0});
    } else {
        run_all();
        memcpy((char *)to, from, n);
    }
    return OK;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *s) {
    need(); CHECK(n > 0 && s == &stream);
    push((Op){'c', (char *)to, (char *)from, n, 0, 0});
    return OK;
}
int cuMemcpyDtoHAsync_v2(char *to, uint64_t from, size_t n, void *s) {
    need(); CHECK(s == &stream && !capturing);
    push((Op){'c', to, (char *)from, n, 0, 0});
    return OK;
}

int cuModuleLoadData(void **m, const uint32_t *image) {
    need(); CHECK((uintptr_t)image % 8 == 0 && *image == 0xBA55ED50); live++; *m = &module; return OK;
}
int cuModuleUnload(void *m) { need(); CHECK(m == &module); live--; return OK; }
int cuModuleGetFunction(void **f, void *m, const char *name) {
    need(); CHECK(m == &module); *f = &function; return strcmp(name, "absent") ? OK : NOT_FOUND;
}
int cuFuncLoad(void *f) { need(); CHECK(f == &function); return OK; }
int cuFuncGetAttribute(int *v, int what, void *f) { CHECK(what == 8 && f == &function); *v = max_shared; return OK; }
int cuFuncSetAttribute(void *f, int what, int v) {
    need(); CHECK(what == 8 && f == &function && v <= 232448); max_shared = v; return OK;
}
// Every function is: float *out, float value, int n.
int cuFuncGetParamInfo(void *f, size_t i, size_t *offset, size_t *bytes) {
    CHECK(f == &function && offset && bytes);
    if (i > 2) return INVALID_VALUE;
    *bytes = i ? 4 : 8;
    *offset = i == 0 ? 0 : i == 1 ? 8 : 12;
    return OK;
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *s, void **params, void **extra) {
    need(); CHECK(f == &function && s == &stream && !extra && (int)shared <= max_shared);
    if (!gx || !gy || !gz || !bx || !by || !bz || bx * by * bz > 1024) return INVALID_VALUE;
    push((Op){'k', *(char **)params[0], 0, 0, *(int *)params[2], *(float *)params[1]});
    return OK;
}

int cuEventCreate(void **e, unsigned flags) { need(); CHECK(flags == 0); live++; *e = malloc(1); return OK; }
int cuEventRecord(void *e, void *s) { need(); CHECK(e && s == &stream && !capturing); recorded++; return OK; }
int cuEventSynchronize(void *e) { need(); CHECK(e); run_all(); return OK; }
int cuEventElapsedTime_v2(float *ms, void *a, void *b) { need(); CHECK(a && b && !queue.n); *ms = 1.5f; return OK; }
int cuEventDestroy_v2(void *e) { need(); live--; free(e); return OK; }

int cuStreamBeginCapture_v2(void *s, int mode) {
    need(); CHECK(s == &stream && mode == 2 && !capturing); capturing = 1; captured.n = 0; return OK;
}
int cuStreamEndCapture(void *s, void **g) {
    need(); CHECK(s == &stream && capturing); capturing = 0; live++; *g = &graph_made; return OK;
}
int cuGraphInstantiateWithFlags(void **exec, void *g, unsigned long long flags) {
    need(); CHECK(g == &graph_made && flags == 0);
    if (captured.n > 64) return OUT_OF_MEMORY;
    live++;
    *exec = malloc(sizeof captured);
    memcpy(*exec, &captured, sizeof captured);
    return OK;
}
int cuGraphDestroy(void *g) { need(); CHECK(g == &graph_made); live--; return OK; }
int cuGraphExecDestroy(void *exec) {
    need(); CHECK(!queue.n && !capturing);
    live--;
    free(exec);
    return OK;
}
int cuGraphLaunch(List *exec, void *s) {
    need(); CHECK(s == &stream && !capturing);
    for (int i = 0; i < exec->n; i++) push(exec->ops[i]);
    return OK;
}
