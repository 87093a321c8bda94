/* Threads that make threads, which end at the very moment when they are joined, detached or asked for. Every result must
   come to whoever joins, every cleanup must run, and nobody may be lost. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MAKERS 8

static long rounds, wrong, cleaned, detached, expected_detached;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void check(int holds, const char *what, long got) {
    if (holds) return;
    __atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
    fprintf(stderr, "%s: %ld\n", what, got);
}

static void cleanup(void *unused) {
    (void)unused;
    __atomic_fetch_add(&cleaned, 1, __ATOMIC_RELAXED);
}

static void *returns(void *value) { return value; }

static void *yields(void *value) {
    for (long i = 0; i < (long)value % 7; i++) sched_yield();
    return value;
}

static void *exits(void *value) {
    pthread_cleanup_push(cleanup, NULL);
    if ((long)value % 2) sched_yield();
    pthread_exit(value);
    pthread_cleanup_pop(0);
}

static void *is_detached(void *unused) {
    (void)unused;
    sched_yield();
    pthread_mutex_lock(&mutex);
    detached++;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&mutex);
    return NULL;
}

static void *detaches_itself(void *unused) {
    check(pthread_detach(pthread_self()) == 0, "detaches itself", 0);
    return is_detached(unused);
}

static void *maker(void *seed) {
    unsigned state = (unsigned)(long)seed;
    for (long i = 0; i < rounds; i++) {
        pthread_t thread;
        void *value = NULL;
        long choice = rand_r(&state) % 6;
        void *(*body[])(void *) = {returns, yields, exits, yields, is_detached, detaches_itself};
        int failed = pthread_create(&thread, NULL, body[choice], (void *)i);
        if (failed) {
            check(0, "pthread_create", failed);
            continue;
        }
        if (choice >= 4) {
            __atomic_fetch_add(&expected_detached, 1, __ATOMIC_RELAXED);
            if (choice == 4) failed = pthread_detach(thread);
            check(failed == 0, "pthread_detach", failed);
            continue;
        }
        if (rand_r(&state) % 2) sched_yield();
        if (choice == 3) {
            failed = pthread_kill(thread, 0);
            check(failed == 0, "pthread_kill", failed);
            while ((failed = pthread_tryjoin_np(thread, &value)) == EBUSY) {
                struct timespec at;
                clock_gettime(CLOCK_MONOTONIC, &at);
                if ((at.tv_nsec += 1000) >= 1000000000) continue;
                failed = pthread_clockjoin_np(thread, &value, CLOCK_MONOTONIC, &at);
                if (failed != ETIMEDOUT) break;
            }
        } else {
            failed = pthread_join(thread, &value);
        }
        check(failed == 0, "joined", failed);
        check(value == (void *)i, "value", (long)value);
    }
    return NULL;
}

int main(int arguments, char **argument) {
    rounds = arguments > 1 ? atol(argument[1]) : 1000;
    pthread_t makers[MAKERS];
    for (long i = 0; i < MAKERS; i++)
        if (pthread_create(&makers[i], NULL, maker, (void *)(i + 1))) return 1;
    for (int i = 0; i < MAKERS; i++) pthread_join(makers[i], NULL);
    pthread_mutex_lock(&mutex);
    while (detached < expected_detached) pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    printf("wrong %ld, cleaned up %ld, detached %ld\n", wrong, cleaned, detached);
    return wrong != 0;
}
