/* Many connections that do nothing: opens COUNT of them to 127.0.0.1:PORT, says "connected", closes
 * them all at the end of a line on standard input, and says "closed".
 *
 * They are opened in waves, and the last one of each wave has a packet echoed before the next wave
 * begins: the server accepts in order, so it has then accepted the whole wave. With SPEAK every
 * connection has one echoed before it goes idle.
 *
 * usage: connections PORT COUNT SPEAK
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { WAVE = 256, PACKET_BYTES = 64 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void send_packet(int fd) {
    static const char packet[PACKET_BYTES] = {PACKET_BYTES, 0, 1, 0};
    if (send(fd, packet, PACKET_BYTES, MSG_NOSIGNAL) != PACKET_BYTES) fail("send");
}

static void recv_packet(int fd) {
    char packet[PACKET_BYTES];
    if (recv(fd, packet, PACKET_BYTES, MSG_WAITALL) != PACKET_BYTES) fail("recv");
}

int main(int argc, char **argv) {
    if (argc != 4) { fprintf(stderr, "usage: connections PORT COUNT SPEAK\n"); return 2; }
    int count = atoi(argv[2]), speak = atoi(argv[3]), one = 1;
    int *all = calloc(count, sizeof *all);
    struct timeval patience = {.tv_sec = 20};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int first = 0; first < count; first += WAVE) {
        int end = first + WAVE < count ? first + WAVE : count;
        for (int i = first; i < end; i++) {
            all[i] = socket(AF_INET, SOCK_STREAM, 0);
            if (all[i] < 0 || connect(all[i], (struct sockaddr *)&address, sizeof address)) fail("connect");
            setsockopt(all[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            setsockopt(all[i], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
            if (speak || i == end - 1) send_packet(all[i]);
        }
        for (int i = speak ? first : end - 1; i < end; i++) recv_packet(all[i]);
    }
    puts("connected");
    fflush(stdout);
    if (getchar() == EOF) return 1;
    for (int i = 0; i < count; i++) close(all[i]);
    puts("closed");
    return 0;
}
