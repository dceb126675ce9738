/* Members of one group: SESSIONS connections to 127.0.0.1:PORT, each of which sends a packet of id 2
 * to join and waits for the answer. The last to join then sends packets of BYTES bytes and id 1, each
 * one when it has its own copy of the one before, for SECONDS, until everybody has everything.
 *
 * Prints "ready" when all have joined, begins when it is sent a line, prints one line of JSON, packets
 * delivered, published and seconds, and ends with its standard input: so whoever measures the server
 * can leave out what it takes to connect, to join and to close.
 *
 * usage: publish_load PORT SESSIONS BYTES SECONDS
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 18, JOIN_BYTES = 4, JOIN = 2, PUBLISH = 1 };

struct session {
    int fd;
    long long bytes;
};

static double now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void wait_for_line(void) {
    for (int c = getchar(); c != '\n' && c != EOF;) c = getchar();
}

static void send_packet(int fd, unsigned char *packet, size_t size, int id) {
    packet[0] = size & 255; packet[1] = size >> 8; packet[2] = id; packet[3] = 0;
    if (send(fd, packet, size, MSG_NOSIGNAL) != (ssize_t)size) fail("send");
}

int main(int argc, char **argv) {
    if (argc != 5) { fprintf(stderr, "usage: publish_load PORT SESSIONS BYTES SECONDS\n"); return 2; }
    int port = atoi(argv[1]), sessions = atoi(argv[2]), poller = epoll_create1(0), one = 1;
    size_t size = (size_t)atoi(argv[3]);
    double seconds = atof(argv[4]);
    struct session *all = calloc(sessions, sizeof *all), *last = &all[sessions - 1];
    unsigned char *packet = malloc(size), *buffer = malloc(BUFFER_BYTES);
    memset(packet, 'x', size);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < sessions; i++) {
        int fd = all[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        send_packet(fd, packet, JOIN_BYTES, JOIN);
        if (recv(fd, buffer, JOIN_BYTES, MSG_WAITALL) != JOIN_BYTES) fail("join");
        fcntl(fd, F_SETFL, O_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
    puts("ready");
    fflush(stdout);
    wait_for_line();
    double began = now();
    long long published = 1, received = 0;
    send_packet(last->fd, packet, size, PUBLISH);
    struct epoll_event events[1024];
    while (received < published * sessions * (long long)size) {
        int ready = epoll_wait(poller, events, 1024, 5000);
        if (ready == 0) { fprintf(stderr, "a publish did not reach everybody\n"); return 1; }
        for (int i = 0; i < ready; i++) {
            struct session *session = events[i].data.ptr;
            ssize_t got = recv(session->fd, buffer, BUFFER_BYTES, 0);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) { fprintf(stderr, "the server ended a connection\n"); return 1; }
            session->bytes += got;
            received += got;
        }
        if (last->bytes == published * (long long)size && now() - began < seconds) {
            published++;
            send_packet(last->fd, packet, size, PUBLISH);
        }
    }
    double elapsed = now() - began;
    for (int i = 0; i < sessions; i++) {
        if (all[i].bytes != published * (long long)size) { fprintf(stderr, "a member got too much\n"); return 1; }
    }
    printf("{\"packets\": %lld, \"published\": %lld, \"seconds\": %.6f}\n", published * sessions, published, elapsed);
    fflush(stdout);
    wait_for_line();
    return 0;
}
