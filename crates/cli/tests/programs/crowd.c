/* As many threads as asked for, alive at once: they sleep, count under a mutex, wait for a condition, and are joined.
   Prints two sums, and on standard error how many OS threads the process has when all are there. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t all_there = PTHREAD_COND_INITIALIZER, may_go = PTHREAD_COND_INITIALIZER;
static long count, there, go, sum;

static void *body(void *number) {
    usleep(1000);
    pthread_mutex_lock(&mutex);
    if (++there == count) pthread_cond_signal(&all_there);
    while (!go) pthread_cond_wait(&may_go, &mutex);
    sum += (long)number;
    pthread_mutex_unlock(&mutex);
    return (void *)((long)number * 2);
}

static int os_threads(void) {
    char line[256];
    int threads = -1;
    FILE *status = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, status))
        if (sscanf(line, "Threads: %d", &threads) == 1) break;
    fclose(status);
    return threads;
}

int main(int arguments, char **argument) {
    count = arguments > 1 ? atol(argument[1]) : 100;
    pthread_t *threads = calloc(count, sizeof *threads);
    for (long i = 0; i < count; i++) {
        int failed = pthread_create(&threads[i], NULL, body, (void *)i);
        if (failed) {
            fprintf(stderr, "thread %ld: %s\n", i, strerror(failed));
            return 1;
        }
    }
    pthread_mutex_lock(&mutex);
    while (there < count) pthread_cond_wait(&all_there, &mutex);
    fprintf(stderr, "%d\n", os_threads());
    go = 1;
    pthread_cond_broadcast(&may_go);
    pthread_mutex_unlock(&mutex);
    long results = 0;
    for (long i = 0; i < count; i++) {
        void *result;
        if (pthread_join(threads[i], &result)) return 2;
        results += (long)result;
    }
    printf("%ld %ld\n", sum, results);
    return 0;
}
