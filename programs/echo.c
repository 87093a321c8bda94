/* An echo server as the textbooks have it: a thread for each connection. It says where it listens, and ends with TERM. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void *serve(void *argument) {
    int connection = (int)(intptr_t)argument;
    char buffer[4096];
    ssize_t count;
    while ((count = read(connection, buffer, sizeof buffer)) > 0) {
        for (ssize_t done = 0, step; done < count; done += step) {
            step = write(connection, buffer + done, count - done);
            if (step < 0) goto end;
        }
    }
end:
    close(connection);
    return NULL;
}

static void ends(int number) {
    (void)number;
    _exit(3);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, ends);
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)
        || getsockname(listener, (struct sockaddr *)&address, &length)) {
        perror("echo");
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0) {
            /* No descriptor is left: until a client goes. */
            if (errno == EMFILE || errno == ENFILE) usleep(1000);
            continue;
        }
        setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        pthread_t thread;
        if (pthread_create(&thread, &detached, serve, (void *)(intptr_t)connection)) close(connection);
    }
}
