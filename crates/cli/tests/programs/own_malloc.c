/* A program with an allocator of its own, as jemalloc's and tcmalloc's users have: it gives and never takes back. */
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char heap[256 << 20] __attribute__((aligned(16)));
static size_t used;

void *malloc(size_t size) {
    size_t whole = (size + 31) & ~(size_t)15;
    size_t at = __atomic_fetch_add(&used, whole, __ATOMIC_RELAXED);
    if (at + whole > sizeof heap) return NULL;
    *(size_t *)(heap + at) = size;
    return heap + at + 16;
}
void free(void *block) { (void)block; }
void *calloc(size_t count, size_t size) { return malloc(count * size); }
void *realloc(void *block, size_t size) {
    void *other = malloc(size);
    if (block && other) {
        size_t before = *(size_t *)((char *)block - 16);
        memcpy(other, block, before < size ? before : size);
    }
    return other;
}
void *memalign(size_t alignment, size_t size) {
    char *block = malloc(size + alignment);
    if (!block || alignment <= 16) return block;
    block = (char *)(((size_t)block + alignment - 1) & ~(alignment - 1));
    *(size_t *)(block - 16) = size;
    return block;
}
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void **block, size_t alignment, size_t size) {
    *block = memalign(alignment, size);
    return 0;
}

static void *body(void *number) {
    usleep(100);
    char *text = malloc(1000);
    memset(text, 1, 1000);
    free(text);
    return number;
}

int main(void) {
    pthread_t threads[100];
    long sum = 0;
    for (long i = 0; i < 100; i++)
        if (pthread_create(&threads[i], NULL, body, (void *)i)) return 1;
    for (int i = 0; i < 100; i++) {
        void *result;
        if (pthread_join(threads[i], &result)) return 2;
        sum += (long)result;
    }
    printf("%ld\n", sum);
    return 0;
}
