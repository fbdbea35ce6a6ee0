// Stands in for NVIDIA's library: notes each range in the file NVTX_LOG, per thread what is open.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int depth;

static void note(char sign, const char *name) {
    const char *path = getenv("NVTX_LOG");
    if (!path) abort();
    pthread_mutex_lock(&lock);
    FILE *log = fopen(path, "a");
    if (!log) abort();
    fprintf(log, "%c%s\n", sign, name);
    fclose(log);
    pthread_mutex_unlock(&lock);
}

int nvtxRangePushA(const char *name) {
    note('+', name);
    return depth++;
}

int nvtxRangePop(void) {
    if (depth == 0) abort();
    note('-', "");
    return --depth;
}
