// Reads a buffer far larger than the caches with N threads and prints GB/s of the fastest pass.
//
//   bandwidth THREADS MEGABYTES HUGE PASSES      HUGE: 0 for 4 KiB pages, 1 for transparent huge pages

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

typedef struct {
    const uint64_t * data;
    size_t words;
    uint64_t sum;
} Part;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

static void * add(void * argument) {
    Part * part = argument;
    uint64_t sum = 0;
    for (size_t i = 0; i < part->words; i++) sum += part->data[i];
    part->sum = sum;
    return NULL;
}

int main(int count, char ** words) {
    if (count != 5) return 2;
    const size_t threads = (size_t) atoi(words[1]), bytes = (size_t) atoi(words[2]) << 20;
    const int huge = atoi(words[3]), passes = atoi(words[4]);
    uint64_t * data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED || threads < 1 || threads > 256) return 1;
#ifdef MADV_HUGEPAGE
    madvise(data, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
    memset(data, 1, bytes);
    double best = 0;
    uint64_t sum = 0;
    for (int pass = 0; pass < passes; pass++) {
        pthread_t ids[256];
        Part parts[256];
        const size_t words_each = bytes / sizeof(uint64_t) / threads;
        const double start = now();
        for (size_t i = 0; i < threads; i++) {
            parts[i] = (Part) {data + i * words_each, words_each, 0};
            if (pthread_create(&ids[i], NULL, add, &parts[i])) return 1;
        }
        for (size_t i = 0; i < threads; i++) {
            pthread_join(ids[i], NULL);
            sum += parts[i].sum;
        }
        const double speed = (double) (words_each * threads * sizeof(uint64_t)) / (now() - start) / 1e9;
        if (speed > best) best = speed;
    }
    printf("{\"gb_per_s\": %.3f, \"sum\": %llu}\n", best, (unsigned long long) sum);
    return 0;
}
