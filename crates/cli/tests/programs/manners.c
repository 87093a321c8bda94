/* What pthreads promise, one line for each. Run as it is and under `sleave run`, it must say the same. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

static const char *word(int code) {
    switch (code) {
    case 0: return "0";
    case EAGAIN: return "EAGAIN";
    case EBUSY: return "EBUSY";
    case EDEADLK: return "EDEADLK";
    case EINVAL: return "EINVAL";
    case ERANGE: return "ERANGE";
    case ETIMEDOUT: return "ETIMEDOUT";
    default: return strerror(code);
    }
}
#define SAY(call) printf("%s: %s\n", #call, word(call))

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int stage;

static void reach(int next) {
    pthread_mutex_lock(&mutex);
    stage = next;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static void await(int wanted) {
    pthread_mutex_lock(&mutex);
    while (stage < wanted) pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
}

static void *gives_back(void *value) { return value; }
static void *waits(void *value) { await(1); return value; }

static pthread_t id_inside;
static void *tells_id(void *value) { id_inside = pthread_self(); return value; }

static void *joins_itself(void *unused) {
    (void)unused;
    return (void *)(intptr_t)pthread_join(pthread_self(), NULL);
}

static void cleanup(void *text) { printf("cleanup %s\n", (char *)text); }

static __attribute__((noinline)) void exits_deeply(volatile int depth) {
    if (depth == 0) pthread_exit((void *)77);
    exits_deeply(depth - 1);
    printf("never printed\n");
}

static void *exits(void *unused) {
    (void)unused;
    pthread_cleanup_push(cleanup, "outer");
    pthread_cleanup_push(cleanup, "inner");
    exits_deeply(10);
    pthread_cleanup_pop(0);
    pthread_cleanup_pop(0);
    return NULL;
}

static void *pops(void *unused) {
    (void)unused;
    pthread_cleanup_push(cleanup, "popped");
    pthread_cleanup_pop(1);
    return (void *)5;
}

static pthread_key_t key;
static int rounds;
static void destructor(void *value) {
    if (++rounds < 3) pthread_setspecific(key, value);
    else printf("destroyed %s in round %d\n", (char *)value, rounds);
}
static void *has_a_key(void *exit) {
    pthread_setspecific(key, "a value");
    if (exit) pthread_exit((void *)3);
    return (void *)2;
}

static __thread int own = 5;
static void *changes_own(void *unused) {
    (void)unused;
    own += 1;
    errno = own;
    return (void *)(intptr_t)own;
}

static void *looks_at_itself(void *wanted) {
    pthread_attr_t attr;
    void *base;
    size_t size, guard;
    int state, here;
    SAY(pthread_getattr_np(pthread_self(), &attr));
    SAY(pthread_attr_getstack(&attr, &base, &size));
    pthread_attr_getguardsize(&attr, &guard);
    pthread_attr_getdetachstate(&attr, &state);
    printf("as much stack as asked for: %d, this frame in it: %d, whole pages: %d, guard: %d, joinable: %d\n",
        size >= (size_t)wanted, (char *)&here >= (char *)base && (char *)&here < (char *)base + size,
        (size_t)base % 4096 == 0, guard > 0, state == PTHREAD_CREATE_JOINABLE);
    pthread_attr_destroy(&attr);
    return NULL;
}

static void *uses_stack(void *bytes) {
    size_t size = (size_t)bytes;
    volatile char *all = __builtin_alloca(size);
    long sum = 0;
    for (size_t i = 0; i < size; i += 1024) all[i] = 1;
    for (size_t i = 0; i < size; i += 1024) sum += all[i];
    return (void *)sum;
}

static void *has_a_name(void *unused) {
    (void)unused;
    char name[16];
    pthread_getname_np(pthread_self(), name, sizeof name);
    printf("inherited name: %s\n", name);
    SAY(pthread_setname_np(pthread_self(), "fifteen letters"));
    SAY(pthread_setname_np(pthread_self(), "sixteen letters!"));
    SAY(pthread_getname_np(pthread_self(), name, 15));
    SAY(pthread_getname_np(pthread_self(), name, 16));
    printf("name: %s\n", name);
    reach(1);
    await(2);
    return NULL;
}

static int c11(void *value) { return *(int *)value + 1; }
static int c11_exits(void *value) { thrd_exit(*(int *)value + 2); }

static void *raises(void *unused) {
    (void)unused;
    struct sched_param parameters = {7};
    int policy = -1;
    SAY(pthread_getschedparam(pthread_self(), &policy, &parameters));
    printf("policy %d, priority %d\n", policy, parameters.sched_priority);
    SAY(pthread_setschedparam(pthread_self(), policy, &parameters));
    SAY(pthread_setschedparam(pthread_self(), 99, &parameters));
    SAY(pthread_kill(pthread_self(), 0));
    SAY(raise(SIGUSR1));
    SAY(pthread_kill(pthread_self(), SIGUSR1));
    return NULL;
}
static volatile sig_atomic_t raised;
static void handler(int signal) { (void)signal; raised++; }

/* The child of a fork is its caller alone, may wait and make threads, and ends with the last of them. */
static void *forks(void *how) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        pthread_t thread;
        void *value = NULL;
        usleep(1000);
        pthread_mutex_lock(&mutex);
        pthread_mutex_unlock(&mutex);
        if (pthread_create(&thread, NULL, gives_back, (void *)4) || pthread_join(thread, &value)) _exit(1);
        if (value != (void *)4) _exit(2);
        if (how) pthread_exit(how);
        return how;
    }
    waitpid(child, &status, 0);
    printf("child: exited %d, code %d\n", WIFEXITED(status), WEXITSTATUS(status));
    return NULL;
}

static struct timespec in_ms(clockid_t clock, long ms) {
    struct timespec t;
    clock_gettime(clock, &t);
    t.tv_nsec += ms * 1000000;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

static void joining(void) {
    pthread_t t;
    void *value;
    SAY(pthread_create(&t, NULL, gives_back, (void *)42));
    SAY(pthread_join(t, &value));
    printf("value %ld\n", (long)value);

    pthread_create(&t, NULL, tells_id, NULL);
    pthread_join(t, NULL);
    printf("the same id inside: %d, not this thread's: %d\n",
        pthread_equal(t, id_inside), pthread_equal(t, pthread_self()));

    stage = 0;
    pthread_create(&t, NULL, waits, (void *)9);
    SAY(pthread_tryjoin_np(t, &value));
    struct timespec at = in_ms(CLOCK_REALTIME, 20);
    SAY(pthread_timedjoin_np(t, &value, &at));
    at = in_ms(CLOCK_MONOTONIC, 20);
    SAY(pthread_clockjoin_np(t, &value, CLOCK_MONOTONIC, &at));
    SAY(pthread_clockjoin_np(t, &value, CLOCK_PROCESS_CPUTIME_ID, &at));
    reach(1);
    at = in_ms(CLOCK_REALTIME, 60000);
    SAY(pthread_timedjoin_np(t, &value, &at));
    printf("value %ld\n", (long)value);

    stage = 0;
    pthread_create(&t, NULL, waits, NULL);
    SAY(pthread_detach(t));
    SAY(pthread_join(t, NULL));
    SAY(pthread_tryjoin_np(t, NULL));
    SAY(pthread_detach(t));
    reach(1);

    pthread_create(&t, NULL, joins_itself, NULL);
    pthread_join(t, &value);
    printf("joins itself: %s\n", word((int)(intptr_t)value));
    SAY(pthread_join(pthread_self(), NULL));

    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    stage = 0;
    SAY(pthread_create(&t, &attr, waits, NULL));
    SAY(pthread_join(t, NULL));
    reach(1);
    pthread_attr_destroy(&attr);
}

static void ending(void) {
    pthread_t t;
    void *value;
    pthread_create(&t, NULL, exits, NULL);
    SAY(pthread_join(t, &value));
    printf("value %ld\n", (long)value);
    pthread_create(&t, NULL, pops, NULL);
    pthread_join(t, &value);
    printf("value %ld\n", (long)value);
    pthread_key_create(&key, destructor);
    for (intptr_t exit = 0; exit < 2; exit++) {
        rounds = 0;
        pthread_create(&t, NULL, has_a_key, (void *)exit);
        pthread_join(t, &value);
        printf("value %ld\n", (long)value);
    }
    for (int i = 0; i < 3; i++) {
        pthread_create(&t, NULL, changes_own, NULL);
        pthread_join(t, &value);
        printf("a thread-local: %ld, this thread's: %d\n", (long)value, own);
    }
}

static void attributes(void) {
    pthread_t t;
    void *value;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    for (size_t size = 64 << 10; size <= 64 << 20; size <<= 5) {
        SAY(pthread_attr_setstacksize(&attr, size));
        pthread_create(&t, &attr, looks_at_itself, (void *)size);
        pthread_join(t, NULL);
        SAY(pthread_create(&t, &attr, uses_stack, (void *)(size - (size >> 2))));
        pthread_join(t, &value);
        printf("%ld kilobytes of stack used\n", (long)value);
    }
    pthread_attr_destroy(&attr);
    SAY(pthread_create(&t, NULL, uses_stack, (void *)(6 << 20)));
    pthread_join(t, &value);
    printf("%ld kilobytes of the usual stack used\n", (long)value);

    /* A stack of the program's own, and CPUs: whatever makes the thread, it works. */
    void *stack = aligned_alloc(4096, 256 << 10);
    pthread_attr_init(&attr);
    pthread_attr_setstack(&attr, stack, 256 << 10);
    SAY(pthread_create(&t, &attr, gives_back, (void *)8));
    SAY(pthread_join(t, &value));
    printf("value %ld\n", (long)value);
    pthread_attr_destroy(&attr);
    free(stack);

    stage = 0;
    pthread_create(&t, NULL, has_a_name, NULL);
    await(1);
    char name[16];
    SAY(pthread_getname_np(t, name, sizeof name));
    printf("seen from outside: %s\n", name);
    SAY(pthread_setname_np(t, "renamed"));
    pthread_getname_np(t, name, sizeof name);
    printf("and now: %s\n", name);
    reach(2);
    pthread_join(t, NULL);
    pthread_getname_np(pthread_self(), name, sizeof name);
    printf("this thread: %s\n", name);
}

static void others(void) {
    thrd_t t;
    int value = 1, result = 0;
    printf("thrd_create %d\n", thrd_create(&t, c11, &value));
    printf("thrd_join %d, %d\n", thrd_join(t, &result), result);
    value = -9;
    thrd_create(&t, c11_exits, &value);
    int joined = thrd_join(t, &result);
    printf("thrd_join %d, %d\n", joined, result);
    thrd_create(&t, c11, &value);
    printf("thrd_detach %d\n", thrd_detach(t));

    pthread_t u;
    signal(SIGUSR1, handler);
    pthread_create(&u, NULL, raises, NULL);
    pthread_join(u, NULL);
    printf("raised %d times\n", (int)raised);
    stage = 0;
    pthread_create(&u, NULL, waits, NULL);
    SAY(pthread_kill(u, 0));
    SAY(pthread_kill(u, 12345));
    reach(1);
    pthread_join(u, NULL);
    for (intptr_t how = 0; how < 2; how++) {
        pthread_create(&u, NULL, forks, (void *)how);
        pthread_join(u, NULL);
    }
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    joining();
    ending();
    attributes();
    others();
    return 0;
}
