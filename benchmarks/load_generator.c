/* A closed-loop load: SESSIONS connections to 127.0.0.1:PORT, each with DEPTH framed packets of
 * BYTES bytes outstanding, for SECONDS. With PAYLOAD, in hexadecimal, that is what they hold behind
 * the header. Each is answered by one of the same size, whatever that holds. Prints one line of JSON: packets, seconds, and, at depth
 * 1, the median and 99th percentile of the round trip. In C, so that on a machine with two cores
 * the servers that are compared have most of them.
 *
 * usage: load_generator PORT SESSIONS DEPTH BYTES SECONDS [PAYLOAD]
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

enum { BUFFER_BYTES = 1 << 18, SAMPLES_MAX = 1 << 22 };

struct session {
    int fd;
    size_t rest;     /* bytes of a packet that is not complete yet */
    double sent_at;
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

static void send_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) fail("send");
        if (sent > 0) { data += sent; size -= sent; }
    }
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 6 && argc != 7) { fprintf(stderr, "usage: load_generator PORT SESSIONS DEPTH BYTES SECONDS [PAYLOAD]\n"); return 2; }
    int port = atoi(argv[1]), sessions = atoi(argv[2]), depth = atoi(argv[3]);
    size_t bytes = (size_t)atoi(argv[4]);
    double seconds = atof(argv[5]);
    const char *payload = argc == 7 ? argv[6] : NULL;
    if (payload && strlen(payload) != 2 * (bytes - 4)) { fprintf(stderr, "PAYLOAD is not of BYTES - 4 bytes\n"); return 2; }
    struct session *all = calloc(sessions, sizeof *all);
    char *packets = malloc(bytes * depth), *buffer = malloc(BUFFER_BYTES);
    float *samples = malloc(SAMPLES_MAX * sizeof *samples);
    size_t sample_count = 0;
    memset(packets, 'x', bytes * depth);
    for (int i = 0; i < depth; i++) {
        unsigned char *header = (unsigned char *)packets + bytes * i;
        header[0] = bytes & 255; header[1] = bytes >> 8; header[2] = 1; header[3] = 0;
        for (size_t j = 0; payload && j < bytes - 4; j++) {
            char digits[] = {payload[2 * j], payload[2 * j + 1], 0};
            header[4 + j] = (unsigned char)strtoul(digits, NULL, 16);
        }
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int poller = epoll_create1(0), one = 1;
    for (int i = 0; i < sessions; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        all[i].fd = fd;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
    double began = now(), stop_at = began + seconds;
    long long packets_back = 0, outstanding = (long long)sessions * depth;
    for (int i = 0; i < sessions; i++) { all[i].sent_at = now(); send_all(all[i].fd, packets, bytes * depth); }
    struct epoll_event events[256];
    while (outstanding) {
        int ready = epoll_wait(poller, events, 256, 5000);
        if (ready == 0) { fprintf(stderr, "%lld packets did not come back\n", outstanding); return 1; }
        for (int i = 0; i < ready; i++) {
            struct session *session = events[i].data.ptr;
            ssize_t got = recv(session->fd, buffer, BUFFER_BYTES, 0);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) { fprintf(stderr, "the server ended a connection\n"); return 1; }
            size_t have = session->rest + (size_t)got, count = have / bytes;
            session->rest = have % bytes;
            packets_back += count;
            double time = now();
            if (depth == 1 && count && sample_count < SAMPLES_MAX) samples[sample_count++] = (time - session->sent_at) * 1e6;
            if (time < stop_at) { session->sent_at = time; send_all(session->fd, packets, bytes * count); }
            else outstanding -= count;
        }
    }
    double elapsed = now() - began;
    printf("{\"packets\": %lld, \"seconds\": %.6f", packets_back, elapsed);
    if (sample_count) {
        qsort(samples, sample_count, sizeof *samples, by_value);
        printf(", \"p50_us\": %.1f, \"p99_us\": %.1f", samples[sample_count / 2], samples[sample_count * 99 / 100]);
    }
    printf("}\n");
    return 0;
}
