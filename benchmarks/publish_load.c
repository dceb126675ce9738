/* Members of one group: SESSIONS connections to 127.0.0.1, spread over the PORTS (7777,7778), each of
 * which sends a packet of id 2 to join and waits for the answer. The last to join then sends packets of
 * BYTES bytes and id 1, each one when it has its own copy of the one before, for SECONDS, until
 * everybody has everything. A packet holds the time at which it was sent.
 *
 * Prints "ready" when all have joined, begins when it is sent a line, prints one line of JSON, packets
 * delivered, published, seconds, and the median and 99th percentile of the time from a publish to each
 * delivery, and ends with its standard input: so whoever measures the server can leave out what it
 * takes to connect, to join and to close.
 *
 * usage: publish_load PORTS SESSIONS BYTES SECONDS
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

enum { BUFFER_BYTES = 1 << 18, SAMPLES_MAX = 1 << 22, PORTS_MAX = 64, HEADER_BYTES = 4, JOIN = 2, PUBLISH = 1 };

struct session {
    int fd;
    long long bytes;
    unsigned char *rest; /* the beginning of a packet that is not complete yet */
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

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void send_packet(int fd, unsigned char *packet, size_t size, int id) {
    packet[0] = size & 255; packet[1] = size >> 8; packet[2] = id; packet[3] = 0;
    double time = now();
    if (size >= HEADER_BYTES + sizeof time) memcpy(packet + HEADER_BYTES, &time, sizeof time);
    if (send(fd, packet, size, MSG_NOSIGNAL) != (ssize_t)size) fail("send");
}

int main(int argc, char **argv) {
    if (argc != 5) { fprintf(stderr, "usage: publish_load PORTS SESSIONS BYTES SECONDS\n"); return 2; }
    int ports[PORTS_MAX], port_count = 0, sessions = atoi(argv[2]), poller = epoll_create1(0), one = 1;
    for (char *port = strtok(argv[1], ","); port && port_count < PORTS_MAX; port = strtok(NULL, ",")) ports[port_count++] = atoi(port);
    size_t size = (size_t)atoi(argv[3]);
    double seconds = atof(argv[4]), sent_at;
    if (size < HEADER_BYTES + sizeof sent_at) { fprintf(stderr, "BYTES is at least 12\n"); return 2; }
    float *samples = malloc(SAMPLES_MAX * sizeof *samples);
    size_t sample_count = 0;
    struct session *all = calloc(sessions, sizeof *all), *last = &all[sessions - 1];
    unsigned char *packet = malloc(size), *buffer = malloc(BUFFER_BYTES);
    memset(packet, 'x', size);
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < sessions; i++) {
        address.sin_port = htons(ports[i % port_count]);
        all[i].rest = malloc(size);
        int fd = all[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        send_packet(fd, packet, HEADER_BYTES, JOIN);
        if (recv(fd, buffer, HEADER_BYTES, MSG_WAITALL) != HEADER_BYTES) fail("join");
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
            double time = now();
            for (ssize_t offset = 0; offset < got;) {
                size_t have = session->bytes % size, part = size - have;
                if (part > (size_t)(got - offset)) part = got - offset;
                memcpy(session->rest + have, buffer + offset, part);
                session->bytes += part;
                offset += part;
                if (have + part == size && sample_count < SAMPLES_MAX) {
                    memcpy(&sent_at, session->rest + HEADER_BYTES, sizeof sent_at);
                    samples[sample_count++] = (time - sent_at) * 1e6;
                }
            }
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
    qsort(samples, sample_count, sizeof *samples, by_value);
    printf("{\"packets\": %lld, \"published\": %lld, \"seconds\": %.6f, ", published * sessions, published, elapsed);
    printf("\"p50_us\": %.1f, \"p99_us\": %.1f}\n", samples[sample_count / 2], samples[sample_count * 99 / 100]);
    fflush(stdout);
    wait_for_line();
    return 0;
}
