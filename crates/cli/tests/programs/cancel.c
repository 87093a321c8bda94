/* Cancellation: where a thread ends, what has run by then, and where it does not end. One line for each; run as it is
 * and under `sleave run`, it must say the same. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int ends[2], pair[2], listener, epoll, locked;
static sem_t semaphore;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER, held = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_key_t key;
static pthread_t victim_of_join;
static atomic_int ready, cleaned, destroyed, mutex_was_ours, came_back;

static void cleanup(void *unused) { (void)unused; atomic_fetch_add(&cleaned, 1); }
static void destroy(void *unused) { (void)unused; atomic_fetch_add(&destroyed, 1); }
static void unlock(void *unused) {
    (void)unused;
    /* The waiter has its mutex again, or this is not its to unlock. */
    atomic_store(&mutex_was_ours, pthread_mutex_trylock(&mutex) == EBUSY);
    pthread_mutex_unlock(&mutex);
}

static void reads(void) { char c; (void)!read(ends[0], &c, 1); }
static void receives(void) { char c; recv(pair[0], &c, 1, 0); }
static void accepts(void) { accept(listener, NULL, NULL); }
static void polls(void) { struct pollfd one = {ends[0], POLLIN, 0}; poll(&one, 1, -1); }
static void selects(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    select(ends[0] + 1, &set, NULL, NULL, NULL);
}
static void epolls(void) { struct epoll_event event; epoll_wait(epoll, &event, 1, -1); }
static void sleeps(void) { struct timespec time = {600, 0}; nanosleep(&time, NULL); }
static void sleeps_long(void) { sleep(600); }
static void waits_semaphore(void) { sem_wait(&semaphore); }
static void waits_condition(void) {
    pthread_mutex_lock(&mutex);
    pthread_cleanup_push(unlock, NULL);
    for (;;) pthread_cond_wait(&condition, &mutex);
    pthread_cleanup_pop(1);
}
static void waits_condition_long(void) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    time.tv_sec += 600;
    pthread_mutex_lock(&mutex);
    pthread_cleanup_push(unlock, NULL);
    for (;;) pthread_cond_timedwait(&condition, &mutex, &time);
    pthread_cleanup_pop(1);
}
static void pauses(void) { pause(); }
static void waits_signal(void) {
    sigset_t set;
    int number;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    sigwait(&set, &number);
}
static void joins(void) { pthread_join(victim_of_join, NULL); }
static void waits_child(void) { waitpid(-1, NULL, 0); }
static void tests(void) { for (;;) { pthread_testcancel(); sched_yield(); } }
static volatile unsigned long work;
static void computes(void) {
    int before;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &before);
    for (;;) work++;
}
static void changes_its_mind(void) {
    int before = -1;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    atomic_store(&came_back, before == PTHREAD_CANCEL_ENABLE);
    atomic_store(&ready, 2);
    while (atomic_load(&ready) != 3) {
        struct timespec moment = {0, 100000};
        nanosleep(&moment, NULL);
    }
    pthread_testcancel();
    atomic_fetch_add(&came_back, 10);
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &before);
    atomic_fetch_add(&came_back, before == PTHREAD_CANCEL_DISABLE ? 100 : 0);
    reads();
}
static void locks(void) {
    pthread_mutex_lock(&held);
    atomic_fetch_add(&came_back, 1);
    pthread_mutex_unlock(&held);
    reads();
}
static pthread_once_t once = PTHREAD_ONCE_INIT;
static atomic_int begun_once;
static void routine(void) { if (atomic_fetch_add(&begun_once, 1) == 0) reads(); }
static void does_once(void) { pthread_once(&once, routine); }

static __attribute__((noinline)) void deep(void (*body)(void), volatile int depth) {
    pthread_cleanup_push(cleanup, NULL);
    if (depth > 0) deep(body, depth - 1); else { atomic_store(&ready, 1); body(); }
    pthread_cleanup_pop(0);
}

static void *runs(void *body) {
    pthread_setspecific(key, &key);
    deep((void (*)(void))body, 3);
    return NULL;
}

static void begin(pthread_t *thread, void (*body)(void)) {
    atomic_store(&ready, 0);
    atomic_store(&cleaned, 0);
    atomic_store(&destroyed, 0);
    pthread_create(thread, NULL, runs, (void *)body);
    while (!atomic_load(&ready)) usleep(100);
}

static void end(const char *name, pthread_t thread) {
    void *result = NULL;
    int code = pthread_join(thread, &result);
    printf("%s: joined %d, %s, %d cleanups, %d destructors\n", name, code,
        result == PTHREAD_CANCELED ? "cancelled" : "returned", atomic_load(&cleaned), atomic_load(&destroyed));
}

/* Cancelled when it has begun to wait, as far as can be, and before. */
static void cancels(const char *name, void (*body)(void)) {
    for (int late = 0; late < 2; late++) {
        pthread_t thread;
        begin(&thread, body);
        if (late) usleep(3000);
        pthread_cancel(thread);
        end(name, thread);
    }
}

static void *returns(void *value) { return value; }
static void *cancels_itself(void *unused) {
    pthread_cancel(pthread_self());
    atomic_fetch_add(&came_back, 1);
    pthread_testcancel();
    atomic_fetch_add(&came_back, 100);
    return unused;
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (pipe(ends) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 1;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    bind(listener, (struct sockaddr *)&address, sizeof address);
    listen(listener, 8);
    epoll = epoll_create1(0);
    sem_init(&semaphore, 0, 0);
    pthread_key_create(&key, destroy);
    (void)locked;

    cancels("read", reads);
    cancels("recv", receives);
    cancels("accept", accepts);
    cancels("poll", polls);
    cancels("select", selects);
    cancels("epoll_wait", epolls);
    cancels("nanosleep", sleeps);
    cancels("sleep", sleeps_long);
    cancels("sem_wait", waits_semaphore);
    cancels("pthread_cond_wait", waits_condition);
    printf("with its mutex: %d\n", atomic_load(&mutex_was_ours));
    cancels("pthread_cond_timedwait", waits_condition_long);
    printf("with its mutex: %d\n", atomic_load(&mutex_was_ours));
    cancels("pause", pauses);
    cancels("sigwait", waits_signal);
    cancels("pthread_testcancel", tests);
    cancels("a thread that computes", computes);

    pid_t child = fork();
    if (child == 0) { pause(); _exit(0); }
    cancels("waitpid", waits_child);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);

    pthread_t thread;
    begin(&victim_of_join, reads);
    atomic_store(&cleaned, 0);
    pthread_create(&thread, NULL, runs, (void *)joins);
    usleep(3000);
    pthread_cancel(thread);
    void *result;
    pthread_join(thread, &result);
    printf("pthread_join: %s, and its target can still be joined: ", result == PTHREAD_CANCELED ? "cancelled" : "returned");
    pthread_cancel(victim_of_join);
    pthread_join(victim_of_join, &result);
    printf("%s\n", result == PTHREAD_CANCELED ? "cancelled" : "returned");

    begin(&thread, changes_its_mind);
    while (atomic_load(&ready) != 2) usleep(100);
    pthread_cancel(thread);
    atomic_store(&ready, 3);
    end("disabled, then enabled", thread);
    printf("came back %d\n", atomic_load(&came_back));

    atomic_store(&came_back, 0);
    pthread_mutex_lock(&held);
    begin(&thread, locks);
    pthread_cancel(thread);
    usleep(3000);
    pthread_mutex_unlock(&held);
    end("pthread_mutex_lock is no such point", thread);
    printf("came back %d\n", atomic_load(&came_back));

    begin(&thread, does_once);
    while (!atomic_load(&begun_once)) usleep(100);
    pthread_cancel(thread);
    end("pthread_once", thread);
    pthread_once(&once, routine);
    pthread_once(&once, routine);
    printf("begun %d times\n", atomic_load(&begun_once));

    atomic_store(&came_back, 0);
    pthread_create(&thread, NULL, cancels_itself, NULL);
    pthread_join(thread, &result);
    printf("itself: %s, came back %d\n", result == PTHREAD_CANCELED ? "cancelled" : "returned", atomic_load(&came_back));

    int state = -1, type = -1;
    printf("nonsense: %d %d\n", pthread_setcancelstate(7, &state) == EINVAL, pthread_setcanceltype(7, &type) == EINVAL);
    pthread_create(&thread, NULL, returns, &key);
    pthread_join(thread, &result);
    printf("not cancelled: %d\n", result == &key);

    /* Many at once, in every kind of wait. */
    void (*bodies[])(void) = {reads, receives, accepts, polls, sleeps, waits_semaphore, waits_condition, epolls};
    enum { MANY = 400 };
    static pthread_t many[MANY];
    atomic_store(&cleaned, 0);
    for (int i = 0; i < MANY; i++) pthread_create(&many[i], NULL, runs, (void *)bodies[i % 8]);
    for (int i = MANY; i-- > 0;) pthread_cancel(many[i]);
    int cancelled = 0;
    for (int i = 0; i < MANY; i++) {
        pthread_join(many[i], &result);
        cancelled += result == PTHREAD_CANCELED;
    }
    printf("of %d: %d cancelled\n", MANY, cancelled);
    return 0;
}
