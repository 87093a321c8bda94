/* Threads that ask for what only the kernel has, and one that does not: what `--report` tells of them. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>

static void *body(void *argument) { return argument; }

static int make(pthread_attr_t *attributes) {
    pthread_t thread;
    return pthread_create(&thread, attributes, body, NULL) || pthread_join(thread, NULL);
}

int main(void) {
    const size_t size = 1 << 20;
    pthread_attr_t own_stack, own_cpus;
    pthread_attr_init(&own_stack);
    pthread_attr_setstack(
        &own_stack,
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), size);
    cpu_set_t cpus;
    sched_getaffinity(0, sizeof cpus, &cpus);
    pthread_attr_init(&own_cpus);
    pthread_attr_setaffinity_np(&own_cpus, sizeof cpus, &cpus);
    return make(&own_stack) || make(&own_stack) || make(&own_cpus) || make(NULL);
}
