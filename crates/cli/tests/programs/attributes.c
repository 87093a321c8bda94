/* What each thread has of its own (pthreads(7), and what POSIX and glibc add): two threads that are there at once change it, switch
 * to and fro, and find what they have put there. One line for each; run as it is and under `sleave run`, it must say the
 * same. */
#define _GNU_SOURCE
#include <errno.h>
#include <fenv.h>
#include <locale.h>
#include <pthread.h>
#include <resolv.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROUNDS = 20 };

static pthread_barrier_t meeting;
static pthread_key_t key;
static pthread_t ids[2];
static _Thread_local int local;
static _Thread_local struct { int filled; char text[300]; } large;
static int *local_at[2], *errno_at[2];
static struct __res_state *resolver[2];
static int ok[32][2];

static const char *rows[] = {
    "id", "thread-local", "large thread-local", "place of a thread-local", "errno", "place of errno", "key", "signal mask",
    "cancellation state", "cancellation type", "name", "stack", "stack of attributes", "locale", "floating-point environment",
    "resolver state", "strerror", "scheduling", "owner of a mutex", "detach state",
};
enum { COUNT = sizeof rows / sizeof *rows };

/* All others have their turn, and the other thread changes its own. */
static void meet(void) {
    pthread_barrier_wait(&meeting);
    sched_yield();
}

static void *thread(void *argument) {
    int me = (int)(intptr_t)argument, good[COUNT];
    for (int row = 0; row < COUNT; row++) good[row] = 1;
    static pthread_mutex_t checked[2];
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&checked[me], &kind);
    ids[me] = pthread_self();
    local_at[me] = &local;
    errno_at[me] = &errno;
    resolver[me] = &_res;
    locale_t own = newlocale(LC_ALL_MASK, me ? "C" : "C.UTF-8", (locale_t)0);
    char name[16], expected[16];
    snprintf(expected, sizeof expected, "thread %d", me);
    meet();
    for (int round = 0; round < ROUNDS; round++) {
        sigset_t set, seen;
        sigemptyset(&set);
        sigaddset(&set, me ? SIGUSR1 : SIGUSR2);
        int state = me ? PTHREAD_CANCEL_DISABLE : PTHREAD_CANCEL_ENABLE, type = me ? PTHREAD_CANCEL_ASYNCHRONOUS : PTHREAD_CANCEL_DEFERRED;
        local = 100 * me + round;
        memset(large.text, 'a' + me, sizeof large.text);
        large.filled = me;
        pthread_setspecific(key, (void *)(intptr_t)(1000 * me + round + 1));
        pthread_sigmask(SIG_SETMASK, &set, NULL);
        pthread_setcancelstate(state, NULL);
        pthread_setcanceltype(type, NULL);
        pthread_setname_np(pthread_self(), expected);
        uselocale(own);
        fesetround(me ? FE_UPWARD : FE_DOWNWARD);
        const char *message = strerror(1000 + me);
        char kept[64];
        snprintf(kept, sizeof kept, "%s", message);
        pthread_mutex_lock(&checked[me]);
        errno = 10 + me;
        meet();
        good[4] &= errno == 10 + me;
        good[0] &= pthread_equal(pthread_self(), ids[me]) && !pthread_equal(ids[0], ids[1]);
        good[1] &= local == 100 * me + round;
        for (size_t i = 0; i < sizeof large.text; i++) good[2] &= large.text[i] == 'a' + me;
        good[2] &= large.filled == me;
        good[3] &= &local == local_at[me] && local_at[0] != local_at[1];
        good[5] &= &errno == errno_at[me] && errno_at[0] != errno_at[1];
        good[6] &= pthread_getspecific(key) == (void *)(intptr_t)(1000 * me + round + 1);
        pthread_sigmask(SIG_SETMASK, NULL, &seen);
        good[7] &= sigismember(&seen, SIGUSR1) == me && sigismember(&seen, SIGUSR2) == !me;
        int old = -1;
        pthread_setcancelstate(state, &old);
        good[8] &= old == state;
        pthread_setcanceltype(type, &old);
        good[9] &= old == type;
        pthread_getname_np(pthread_self(), name, sizeof name);
        good[10] &= strcmp(name, expected) == 0;
        pthread_getname_np(ids[!me], name, sizeof name);
        good[10] &= strcmp(name, expected) != 0;
        pthread_attr_t attributes;
        void *base;
        size_t size;
        int here, detached = -1;
        good[11] &= pthread_getattr_np(pthread_self(), &attributes) == 0;
        pthread_attr_getstack(&attributes, &base, &size);
        good[11] &= (char *)&here > (char *)base && (char *)&here < (char *)base + size;
        good[12] &= size == 1 << 20;
        pthread_attr_getdetachstate(&attributes, &detached);
        good[19] &= detached == PTHREAD_CREATE_JOINABLE;
        pthread_attr_destroy(&attributes);
        good[13] &= uselocale((locale_t)0) == own;
        volatile double one = 1, three = 3;
        double up = one / three;
        good[14] &= fegetround() == (me ? FE_UPWARD : FE_DOWNWARD) && (up * 3 > 1) == me;
        good[15] &= &_res == resolver[me] && resolver[0] != resolver[1];
        good[16] &= strcmp(message, kept) == 0;
        struct sched_param parameters;
        int policy;
        good[17] &= pthread_getschedparam(pthread_self(), &policy, &parameters) == 0 && policy == SCHED_OTHER && parameters.sched_priority == 0;
        good[18] &= pthread_mutex_lock(&checked[me]) == EDEADLK && pthread_mutex_unlock(&checked[!me]) == EPERM;
        meet();
        pthread_mutex_unlock(&checked[me]);
        meet();
    }
    uselocale(LC_GLOBAL_LOCALE);
    freelocale(own);
    for (int row = 0; row < COUNT; row++) ok[row][me] = good[row];
    return NULL;
}

int main(void) {
    pthread_barrier_init(&meeting, NULL, 2);
    pthread_key_create(&key, NULL);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    pthread_t threads[2];
    for (intptr_t i = 0; i < 2; i++) pthread_create(&threads[i], &attributes, thread, (void *)i);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    for (int row = 0; row < COUNT; row++) printf("%s: %s\n", rows[row], ok[row][0] && ok[row][1] ? "its own" : "NOT its own");
    return 0;
}
