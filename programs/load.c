/* Load for echo.c: PORT CONNECTIONS SECONDS. All connections are made first; then each sends 64 bytes, waits for them to
 * come back unchanged, and does so again, until the time is over. Prints requests, errors, seconds, and waits for a byte on
 * its standard input while all are connected, so that the server can be looked at. One thread, epoll. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, BATCH = 256 };

struct connection {
    int fd, got;
    unsigned number;
    char back[SIZE];
};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void fill(const struct connection *c, char *message) {
    for (int i = 0; i < SIZE; i++) message[i] = (char)(c->number + i * 7 + c->fd);
}

static int ask(struct connection *c) {
    char message[SIZE];
    c->number++;
    c->got = 0;
    fill(c, message);
    return send(c->fd, message, SIZE, MSG_NOSIGNAL) == SIZE ? 0 : -1;
}

int main(int count, char **words) {
    if (count != 4) return 2;
    int port = atoi(words[1]), many = atoi(words[2]), yes = 1;
    double seconds = atof(words[3]);
    int epoll = epoll_create1(0);
    struct connection *all = calloc(many, sizeof *all);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    long requests = 0, errors = 0;
    for (int i = 0; i < many; i++) {
        all[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (all[i].fd < 0 || connect(all[i].fd, (struct sockaddr *)&address, sizeof address)) {
            fprintf(stderr, "load: connection %d: %s\n", i, strerror(errno));
            return 1;
        }
        setsockopt(all[i].fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &event);
    }
    double begin = now(), end = begin + seconds;
    for (int i = 0; i < many; i++) errors += ask(&all[i]) != 0;
    int open = many;
    struct epoll_event events[BATCH];
    while (open > 0) {
        int ready = epoll_wait(epoll, events, BATCH, 10000);
        if (ready <= 0) { errors += open; break; }
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            ssize_t got = recv(c->fd, c->back + c->got, SIZE - c->got, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN) continue;
            char message[SIZE];
            if (got <= 0) {
                errors++, open--;
                epoll_ctl(epoll, EPOLL_CTL_DEL, c->fd, NULL);
                continue;
            }
            if ((c->got += got) < SIZE) continue;
            fill(c, message);
            errors += memcmp(message, c->back, SIZE) != 0;
            requests++;
            if (now() >= end) open--; else errors += ask(c) != 0;
        }
    }
    printf("%ld %ld %.3f\n", requests, errors, now() - begin);
    fflush(stdout);
    char byte;
    (void)!read(0, &byte, 1);
    return errors != 0;
}
