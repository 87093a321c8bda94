/* main ends by pthread_exit: the threads go on, and the process ends with the last of them, with exit code 0. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_key_t key;

static void destructor(void *name) { printf("destructor of %s\n", (char *)name); }
static void at_exit(void) { printf("at exit\n"); }
static void cleanup(void *text) { printf("%s\n", (char *)text); }

static void *second(void *unused) {
    (void)unused;
    usleep(50000);
    pthread_setspecific(key, "the last");
    printf("the last thread\n");
    return (void *)9;
}

static void *first(void *unused) {
    pthread_t thread;
    usleep(50000);
    pthread_create(&thread, NULL, second, unused);
    pthread_detach(thread);
    printf("the first thread\n");
    return unused;
}

int main(int arguments, char **argument) {
    (void)argument;
    setvbuf(stdout, NULL, _IOLBF, 0);
    atexit(at_exit);
    pthread_key_create(&key, destructor);
    pthread_setspecific(key, "main");
    if (arguments == 1) {
        pthread_t thread;
        pthread_create(&thread, NULL, first, NULL);
    }
    pthread_cleanup_push(cleanup, "main's cleanup");
    pthread_exit(NULL);
    pthread_cleanup_pop(0);
}
