/* Signals between threads: who gets them, on whose stack, and what becomes of the call that they interrupt. One line
 * for each; run as it is and under `sleave run`, it must say the same. Nobody sleeps until something has
 * surely happened: a thread is signalled again and again until it says that it has been. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *word(int code) {
    switch (code) {
    case 0: return "0";
    case EAGAIN: return "EAGAIN";
    case EINTR: return "EINTR";
    case EINVAL: return "EINVAL";
    case ESRCH: return "ESRCH";
    default: return strerror(code);
    }
}

/* What a handler has seen. */
static _Thread_local int mine;
static _Thread_local volatile int handled;
static atomic_int handled_by_any, last_signal, last_code;
static pthread_t handled_on;

static void handler(int number) {
    (void)number;
    handled++;
    handled_on = pthread_self();
    atomic_fetch_add(&handled_by_any, 1);
    errno = EXDEV; /* Nobody may see this. */
}

static void informed(int number, siginfo_t *info, void *context) {
    (void)context;
    atomic_store(&last_signal, info->si_signo == number ? number : -1);
    atomic_store(&last_code, info->si_pid == getpid() && info->si_uid == getuid() ? info->si_code : 1);
    handler(number);
}

static void install(int number, int flags) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_flags = flags;
    if (flags & SA_SIGINFO) action.sa_sigaction = informed; else action.sa_handler = handler;
    sigaction(number, &action, NULL);
}

/* A thread in a call, and what came of it. */
struct call {
    const char *name;
    int (*body)(void);
    int result, error, handled, self;
    atomic_int done;
};

static int ends[2], pair[2], listener, epoll, nobody[2];
static sem_t semaphore;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static atomic_int condition_met;

static int reads(void) { char c; return read(ends[0], &c, 1); }
static int receives(void) { char c; return recv(pair[0], &c, 1, 0); }
static int receives_in_time(void) {
    int own[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, own);
    struct timeval limit = {30, 0};
    setsockopt(own[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    char c;
    int result = recv(own[0], &c, 1, 0), error = errno;
    close(own[0]), close(own[1]);
    errno = error;
    return result;
}
static int accepts(void) { return accept(listener, NULL, NULL); }
static int polls(void) { struct pollfd one = {nobody[0], POLLIN, 0}; return poll(&one, 1, 60000); }
static int selects(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(nobody[0], &set);
    return select(nobody[0] + 1, &set, NULL, NULL, NULL);
}
static int epolls(void) { struct epoll_event event; return epoll_wait(epoll, &event, 1, -1); }
static int sleeps(void) {
    struct timespec time = {60, 0}, left = {0, 0};
    int result = nanosleep(&time, &left);
    return result == -1 && left.tv_sec < 60 && left.tv_sec > 30 ? -1 : 100;
}
static int sleeps_until(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_sec += 60;
    int code = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
    errno = code;
    return code ? -1 : 0;
}
static int sleeps_old(void) { unsigned left = sleep(60); errno = 0; return left > 30 && left <= 60; }
static int waits_semaphore(void) { return sem_wait(&semaphore); }
static int pauses(void) { return pause(); }
static int suspends(void) { sigset_t none; sigemptyset(&none); return sigsuspend(&none); }
static int waits_child(void) { return waitpid(-1, NULL, 0) > 0 ? 1 : -1; }

static void *runs(void *argument) {
    struct call *call = argument;
    mine = 1;
    handled = 0;
    errno = 0;
    call->result = call->body();
    call->error = call->result == -1 ? errno : 0;
    call->handled = handled > 0;
    call->self = pthread_equal(handled_on, pthread_self());
    atomic_store(&call->done, 1);
    return NULL;
}

/* Signals a thread in a call until the call has ended. */
static void interrupts(const char *name, int (*body)(void), int number) {
    struct call call = {.name = name, .body = body};
    pthread_t thread;
    pthread_create(&thread, NULL, runs, &call);
    while (!atomic_load(&call.done)) {
        pthread_kill(thread, number);
        usleep(500);
    }
    pthread_join(thread, NULL);
    printf("%s: %d %s, handler %s\n", name, call.result, word(call.error),
        call.handled && call.self && !mine ? "on that thread" : "elsewhere");
}

/* Signals a thread in a call until its handler has run some times, and then ends the call. */
static void goes_on(const char *name, int (*body)(void), void (*end)(void)) {
    struct call call = {.name = name, .body = body};
    pthread_t thread;
    atomic_store(&handled_by_any, 0);
    pthread_create(&thread, NULL, runs, &call);
    while (atomic_load(&handled_by_any) < 3) {
        pthread_kill(thread, SIGUSR2);
        usleep(500);
    }
    int early = atomic_load(&call.done);
    end();
    pthread_join(thread, NULL);
    printf("%s: %s, then %d, handler %s\n", name, early ? "ended" : "goes on", call.result,
        call.handled && call.self ? "on that thread" : "elsewhere");
}

static void writes(void) { if (write(ends[1], "x", 1) != 1) abort(); }
static void sends(void) { if (send(pair[1], "x", 1, 0) != 1) abort(); }
static void posts(void) { sem_post(&semaphore); }
static void unlocks(void) { pthread_mutex_unlock(&mutex); }
static void meets(void) {
    pthread_mutex_lock(&mutex);
    atomic_store(&condition_met, 1);
    pthread_cond_broadcast(&condition);
    pthread_mutex_unlock(&mutex);
}
static int locks(void) { int code = pthread_mutex_lock(&mutex); pthread_mutex_unlock(&mutex); return code; }
static int waits_condition(void) {
    int code = 0;
    pthread_mutex_lock(&mutex);
    while (!atomic_load(&condition_met)) code |= pthread_cond_wait(&condition, &mutex);
    pthread_mutex_unlock(&mutex);
    return code;
}
static int joins(void) {
    pthread_t thread;
    static struct call call = {.body = reads};
    pthread_create(&thread, NULL, runs, &call);
    return pthread_join(thread, NULL);
}

/* One that never waits. */
static atomic_int spinning;
static void *spins(void *unused) {
    (void)unused;
    handled = 0;
    atomic_store(&spinning, 1);
    while (!handled) {}
    return NULL;
}

/* Masks. */
static void *blocks(void *unused) {
    (void)unused;
    sigset_t set, old, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    printf("blocked before: %d\n", sigismember(&old, SIGUSR1));
    handled = 0;
    atomic_store(&spinning, 1);
    do {
        sched_yield();
        sigpending(&pending);
    } while (!sigismember(&pending, SIGUSR1));
    printf("blocked: handled %d, pending 1\n", handled);
    raise(SIGUSR1);
    printf("raised: handled %d\n", handled);
    struct timespec moment = {0, 1000000};
    nanosleep(&moment, NULL);
    printf("slept: handled %d\n", handled);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    printf("unblocked: handled %d\n", handled);
    sigpending(&pending);
    printf("pending %d\n", sigismember(&pending, SIGUSR1));
    printf("nonsense: %s\n", word(pthread_sigmask(99, &set, NULL)));
    sigfillset(&set);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
    pthread_sigmask(SIG_SETMASK, NULL, &old);
    printf("all: TERM %d KILL %d STOP %d\n", sigismember(&old, SIGTERM), sigismember(&old, SIGKILL), sigismember(&old, SIGSTOP));
    return NULL;
}

static void *tells_mask(void *unused) {
    (void)unused;
    sigset_t set;
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    return (void *)(intptr_t)sigismember(&set, SIGUSR1);
}

static void *inherits(void *unused) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_t thread;
    void *result;
    pthread_create(&thread, NULL, tells_mask, unused);
    pthread_join(thread, &result);
    printf("inherited: %d\n", (int)(intptr_t)result);
    return NULL;
}

/* Waits for signals. */
static int waits_which;
static void *waits_signal(void *argument) {
    sigset_t set;
    siginfo_t info;
    memset(&info, 0, sizeof info);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    atomic_store(&spinning, 1);
    int which = *(int *)argument, number = -1;
    struct timespec time = {60, 0};
    switch (which) {
    case 0: sigwait(&set, &number); break;
    case 1: number = sigwaitinfo(&set, &info); break;
    default: number = sigtimedwait(&set, &info, &time);
    }
    if (which)
        printf("told of signal %d, code %s, %s\n", info.si_signo == number, info.si_code == SI_USER ? "USER" : "?",
            info.si_pid == getpid() && info.si_uid == getuid() ? "from this process" : "from elsewhere");
    return (void *)(intptr_t)number;
}

static void *reads_signalfd(void *unused) {
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    int fd = signalfd(-1, &set, 0);
    struct signalfd_siginfo info;
    ssize_t got = read(fd, &info, sizeof info);
    close(fd);
    return (void *)(intptr_t)(got == sizeof info ? (int)info.ssi_signo : -1);
}

/* Values: a real-time signal is queued, each with its own; another is pending once, with the first. */
static int values[16];
static atomic_int values_seen;
static void valued(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    int at = atomic_fetch_add(&values_seen, 1);
    if (at < 16) values[at] = info->si_code == SI_QUEUE && info->si_pid == getpid() ? info->si_value.sival_int : -1;
}
static atomic_int values_sent;
static void *is_sent_values(void *unused) {
    sigset_t set;
    siginfo_t info;
    struct timespec none = {0, 0};
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    atomic_store(&values_sent, 1);
    while (atomic_load(&values_sent) != 2) sched_yield();
    int number = sigtimedwait(&set, &info, &none);
    printf("first USR1 %d, value %d, queued %d\n", number == SIGUSR1, info.si_value.sival_int, info.si_code == SI_QUEUE);
    number = sigtimedwait(&set, &info, &none);
    printf("then the real-time one %d, value %d\n", number == SIGRTMIN + 1, info.si_value.sival_int);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    printf("then");
    for (int i = 0; i < atomic_load(&values_seen); i++) printf(" %d", values[i]);
    union sigval own = {.sival_int = 77};
    printf(", by itself %d", pthread_sigqueue(pthread_self(), SIGRTMIN + 1, own));
    printf(", value %d\n", values[atomic_load(&values_seen) - 1]);
    return unused;
}
static void sends_values(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_flags = SA_SIGINFO;
    action.sa_sigaction = valued;
    sigaction(SIGRTMIN + 1, &action, NULL);
    pthread_t thread;
    pthread_create(&thread, NULL, is_sent_values, NULL);
    while (!atomic_load(&values_sent)) usleep(100);
    for (int i = 1; i <= 5; i++) {
        union sigval value = {.sival_int = i};
        pthread_sigqueue(thread, SIGRTMIN + 1, value);
        pthread_sigqueue(thread, SIGUSR1, value);
    }
    union sigval nothing = {.sival_int = 0};
    printf("nonsense: %s\n", word(pthread_sigqueue(thread, 9999, nothing)));
    atomic_store(&values_sent, 2);
    pthread_join(thread, NULL);
}

/* Jumps. */
static sigjmp_buf place;
static void jumps(int number) { (void)number; siglongjmp(place, 7); }
static void *jumps_out(void *unused) {
    (void)unused;
    volatile int times = 0;
    int value = sigsetjmp(place, 1);
    sigset_t set;
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    if (value) times++;
    atomic_store(&spinning, 1);
    if (times < 3) reads();
    printf("jumped %d times, %d, blocked after: %d\n", times, value, sigismember(&set, SIGALRM));
    return NULL;
}

static void *dies(void *unused) {
    for (;;) pause();
    return unused;
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (pipe(ends) || pipe(nobody) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 1;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    bind(listener, (struct sockaddr *)&address, sizeof address);
    listen(listener, 8);
    epoll = epoll_create1(0);
    sem_init(&semaphore, 0, 0);
    install(SIGUSR1, 0);
    install(SIGUSR2, SA_RESTART);

    interrupts("read", reads, SIGUSR1);
    interrupts("recv", receives, SIGUSR1);
    interrupts("recv with a timeout", receives_in_time, SIGUSR2);
    interrupts("accept", accepts, SIGUSR1);
    interrupts("poll", polls, SIGUSR2);
    interrupts("select", selects, SIGUSR2);
    interrupts("epoll_wait", epolls, SIGUSR2);
    interrupts("nanosleep", sleeps, SIGUSR2);
    interrupts("clock_nanosleep", sleeps_until, SIGUSR2);
    interrupts("sleep", sleeps_old, SIGUSR2);
    interrupts("sem_wait", waits_semaphore, SIGUSR1);
    interrupts("pause", pauses, SIGUSR2);
    interrupts("sigsuspend", suspends, SIGUSR2);

    goes_on("read", reads, writes);
    goes_on("recv", receives, sends);
    goes_on("sem_wait", waits_semaphore, posts);
    pthread_mutex_lock(&mutex);
    goes_on("pthread_mutex_lock", locks, unlocks);
    goes_on("pthread_cond_wait", waits_condition, meets);
    goes_on("pthread_join", joins, writes);
    pid_t other, child = fork();
    if (child == 0) { char c; close(nobody[1]); if (read(nobody[0], &c, 1) < 0) _exit(1); _exit(0); }
    interrupts("waitpid", waits_child, SIGUSR1);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);

    pthread_t thread;
    void *result;
    pthread_create(&thread, NULL, spins, NULL);
    while (!atomic_load(&spinning)) usleep(100);
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, NULL);
    printf("a thread that never waits has been reached\n");

    install(SIGUSR1, SA_SIGINFO);
    interrupts("read, with information", reads, SIGUSR1);
    printf("signal %s, code %s\n", atomic_load(&last_signal) == SIGUSR1 ? "USR1" : "?",
        atomic_load(&last_code) == SI_TKILL ? "TKILL" : "?");
    install(SIGUSR1, 0);

    atomic_store(&spinning, 0);
    pthread_create(&thread, NULL, blocks, NULL);
    while (!atomic_load(&spinning)) usleep(100);
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, NULL);
    pthread_create(&thread, NULL, tells_mask, NULL);
    pthread_join(thread, &result);
    printf("another's mask: %d\n", (int)(intptr_t)result);
    pthread_create(&thread, NULL, inherits, NULL);
    pthread_join(thread, NULL);

    for (waits_which = 0; waits_which < 3; waits_which++) {
        atomic_store(&spinning, 0);
        pthread_create(&thread, NULL, waits_signal, &waits_which);
        while (!atomic_load(&spinning)) usleep(100);
        pthread_kill(thread, SIGUSR1);
        pthread_join(thread, &result);
        printf("waited for %s\n", (intptr_t)result == SIGUSR1 ? "USR1" : "?");
    }
    sends_values();
    /* For the process: all threads block it, which begins here. */
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_create(&thread, NULL, reads_signalfd, NULL);
    usleep(1000);
    pthread_kill(thread, 0);
    printf("nobody has it: %s\n", word(pthread_kill(thread, 9999)));
    pthread_kill(pthread_self(), 0);

    kill(getpid(), SIGTERM);
    pthread_join(thread, &result);
    printf("signalfd: %s\n", (intptr_t)result == SIGTERM ? "TERM" : "?");

    signal(SIGALRM, jumps);
    atomic_store(&spinning, 0);
    pthread_create(&thread, NULL, jumps_out, NULL);
    for (int i = 0; i < 3; i++) {
        while (!atomic_load(&spinning)) usleep(100);
        atomic_store(&spinning, 0);
        pthread_kill(thread, SIGALRM);
    }
    pthread_join(thread, NULL);

    fflush(stdout);
    other = fork();
    if (other == 0) {
        execl("/proc/self/exe", "signals", "dies", (char *)NULL);
        _exit(127);
    }
    int status;
    waitpid(other, &status, 0);
    printf("ended: %s\n", WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1 ? "by USR1" : "otherwise");
    return 0;
}

/* The program once more, whose thread has no handler for what it is sent. */
static __attribute__((constructor)) void perhaps_dies(int count, char **words) {
    if (count < 2 || strcmp(words[1], "dies")) return;
    signal(SIGUSR1, SIG_DFL);
    pthread_t thread;
    pthread_create(&thread, NULL, dies, NULL);
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, NULL);
    _exit(3);
}
