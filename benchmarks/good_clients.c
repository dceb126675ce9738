/* SESSIONS clients at 127.0.0.1:PORT that log in, then ask each INTERVAL_MS and check every
 * answer, for SECONDS. Prints one line of JSON: packets, lost, differed, disconnected, and the
 * round trip's median, 99th percentile and maximum in microseconds.
 *
 * usage: good_clients PORT SESSIONS INTERVAL_MS SECONDS
 */
#define _GNU_SOURCE /* ppoll */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LOGIN = 1, ECHO = 2, PACKET = 64, SAMPLES_MAX = 1 << 20, PATIENCE_S = 5 };

struct client {
    int is_asking;
    size_t have;
    double next_at, asked_at;
    unsigned asked;
    char got[PACKET];
};

static struct client *all;
static struct pollfd *polled; /* an ended one has the descriptor -1 */
static int count;
static double interval;
static float *samples;
static long long packets, differed, disconnected, asking;

static double now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec * 1e-9;
}

static void make(char *packet, int id, unsigned client, unsigned number) {
    memset(packet, 'g', PACKET);
    packet[0] = PACKET; packet[1] = 0; packet[2] = id; packet[3] = 0;
    memcpy(packet + 8, &client, sizeof client);
    memcpy(packet + 16, &number, sizeof number);
}

static void cut_off(int i) {
    disconnected++;
    polled[i].fd = -1;
}

static void log_in(int port) {
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(port)};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    char packet[PACKET];
    int one = 1;
    for (int i = 0; i < count; i++) {
        int fd = polled[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        polled[i].events = POLLIN;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        make(packet, LOGIN, i, 0);
        if (connect(fd, (struct sockaddr *)&server, sizeof server)
            || send(fd, packet, PACKET, MSG_NOSIGNAL) != PACKET
            || recv(fd, packet, PACKET, MSG_WAITALL) != PACKET) {
            perror("log in");
            exit(1);
        }
    }
}

/* Let those ask whose time has come; return when the next one's comes, or `latest`. */
static double ask(double time, double latest) {
    char packet[PACKET];
    for (int i = 0; i < count; i++) {
        struct client *client = &all[i];
        if (polled[i].fd < 0 || client->is_asking) continue;
        if (client->next_at > time) {
            if (client->next_at < latest) latest = client->next_at;
            continue;
        }
        make(packet, ECHO, i, ++client->asked);
        client->asked_at = now();
        client->is_asking = 1;
        asking++;
        if (send(polled[i].fd, packet, PACKET, MSG_NOSIGNAL) != PACKET) cut_off(i);
    }
    return latest;
}

static void take_answer(int i) {
    struct client *client = &all[i];
    size_t left = PACKET - client->have;
    ssize_t got = recv(polled[i].fd, client->got + client->have, left, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) { cut_off(i); return; }
    client->have += got;
    if (client->have < PACKET) return;
    char expected[PACKET];
    make(expected, ECHO, i, client->asked);
    differed += !client->is_asking || memcmp(expected, client->got, PACKET) != 0;
    double time = now();
    if (packets < SAMPLES_MAX) samples[packets] = (time - client->asked_at) * 1e6;
    packets++;
    asking -= client->is_asking;
    client->have = client->is_asking = 0;
    client->next_at += interval;
    if (client->next_at < time) client->next_at = time;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: good_clients PORT SESSIONS INTERVAL_MS SECONDS\n");
        return 2;
    }
    count = atoi(argv[2]);
    interval = atof(argv[3]) / 1000;
    all = calloc(count, sizeof *all);
    polled = calloc(count, sizeof *polled);
    samples = malloc(SAMPLES_MAX * sizeof *samples);
    log_in(atoi(argv[1]));
    double began = now(), stop_at = began + atof(argv[4]);
    for (int i = 0; i < count; i++) all[i].next_at = began + interval * i / count;
    while (now() < stop_at || (asking && now() < stop_at + PATIENCE_S)) {
        double time = now(), next_at = time + 0.1;
        if (time < stop_at) next_at = ask(time, next_at);
        struct timespec wait = {.tv_nsec = (long)((next_at - time) * 1e9)};
        if (ppoll(polled, count, &wait, NULL) <= 0) continue;
        for (int i = 0; i < count; i++) if (polled[i].fd >= 0 && polled[i].revents) take_answer(i);
    }
    size_t n = packets < SAMPLES_MAX ? packets : SAMPLES_MAX;
    if (!n) { fprintf(stderr, "no answer, %lld cut off\n", disconnected); return 1; }
    qsort(samples, n, sizeof *samples, by_value);
    printf("{\"packets\": %lld, \"lost\": %lld, \"differed\": %lld, \"disconnected\": %lld, ",
           packets, asking, differed, disconnected);
    printf("\"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f}\n",
           samples[n / 2], samples[n * 99 / 100], samples[n - 1]);
    return 0;
}
