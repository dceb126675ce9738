/* CLIENTS clients that abuse a server at 127.0.0.1:PORT in one way, for SECONDS. They come all at
 * once, and then each keeps its own time. Whoever is cut off comes back after PAUSE_MS. Their address
 * is 127.0.0.9, to be told from good ones. They run when nobody else wants their core: on machines of
 * their own they would take none from the server and the good ones. Prints one line of JSON: connections made, and how many
 * of them the server has ended.
 *
 * drip     a login, then one byte of a packet each 500 ms, which is never whole
 * connect  nothing: connects and leaves
 * flood    a login, then packets as fast as they are taken
 * deaf     a login, then requests for 40,000 bytes each 500 ms, which are never read
 * garbage  a login, then each 500 ms a payload that does not decode
 *
 * usage: abusers PORT MODE CLIENTS SECONDS PAUSE_MS
 */
#define _GNU_SOURCE /* SCHED_IDLE */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LOGIN = 1, ECHO = 2, FILL = 3, MOVE = 4, STEP_MS = 500, BLOCK = 64, PACKET = 64, PORTION = 8 };
enum mode { DRIP, CONNECT, FLOOD, DEAF, GARBAGE, MODES };

static const char *const names[MODES] = {"drip", "connect", "flood", "deaf", "garbage"};

struct client { int fd; int is_connected; double next_at; };

static struct sockaddr_in server, own;
static int poller;
static long long made, ended, worked;
static enum mode mode;
static double pause_s;

static double now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec * 1e-9;
}

/* After a portion of work, let others have the core: they wake on it and are not preferred there. */
static void pause_at_times(void) {
    static const struct timespec moment = {.tv_nsec = 20000};
    if (++worked % PORTION == 0) nanosleep(&moment, NULL);
}

static void leave(struct client *client) {
    close(client->fd);
    client->fd = -1;
    client->next_at = now() + pause_s;
}

static void cut_off(struct client *client) {
    ended++;
    leave(client);
}

static void come(struct client *client) {
    int fd = client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    int small = 4096, far = 1400;
    if (fd < 0) { perror("socket"); exit(1); }
    client->is_connected = 0;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (mode == DEAF) { /* or the server's system takes megabytes for each before it is felt */
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &far, sizeof far);
    }
    if (bind(fd, (struct sockaddr *)&own, sizeof own)) { perror("bind"); exit(1); }
    if (connect(fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) {
        leave(client);
        return;
    }
    struct epoll_event event = {.events = EPOLLOUT | EPOLLIN, .data.ptr = client};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static size_t put(char *to, int size, int id) {
    memset(to, 'x', size);
    to[0] = size & 255; to[1] = size >> 8; to[2] = id; to[3] = 0;
    return size;
}

/* What a connected client does in its turn; 0 when the server has ended it. */
static int act(struct client *client, int is_first) {
    static char data[PACKET * BLOCK];
    size_t size = 0;
    client->next_at = now() + STEP_MS / 1000.0;
    if (is_first) size = put(data, 4, LOGIN);
    else if (mode == FLOOD) while (size < sizeof data) size += put(data + size, PACKET, ECHO);
    else if (mode == DEAF) size = put(data, 4, FILL);
    else if (mode == GARBAGE) memset(data + 4, 0xc1, (size = put(data, 12, MOVE)) - 4);
    if (mode == DRIP) data[size++] = 100; /* of a size of 25,700 bytes, and then of the rest */
    ssize_t sent = send(client->fd, data, size, MSG_NOSIGNAL);
    return sent >= 0 || errno == EAGAIN;
}

/* Whether the server has ended the connection; what it has sent is thrown away, or left. */
static int has_ended(struct client *client, unsigned events) {
    static char thrown_away[1 << 16];
    if (!(events & (EPOLLHUP | EPOLLERR)) && (mode == DEAF || !(events & EPOLLIN))) return 0;
    ssize_t got = recv(client->fd, thrown_away, sizeof thrown_away, 0);
    return got == 0 || (got < 0 && errno != EAGAIN);
}

static void established(struct client *client) {
    client->is_connected = 1;
    made++;
    if (mode == CONNECT) { leave(client); return; }
    if (!act(client, 1)) { cut_off(client); return; }
    client->next_at -= rand() / (RAND_MAX + 1.0) * STEP_MS / 1000;
    struct epoll_event event = {.events = mode == DEAF ? 0 : EPOLLIN, .data.ptr = client};
    if (mode == FLOOD) event.events |= EPOLLOUT;
    epoll_ctl(poller, EPOLL_CTL_MOD, client->fd, &event);
}

static void ready(struct client *client, unsigned events) {
    if (!client->is_connected) {
        if (events & (EPOLLERR | EPOLLHUP)) cut_off(client);
        else established(client);
    } else if (has_ended(client, events) || (events & EPOLLOUT && !act(client, 0))) {
        cut_off(client);
    }
}

/* Take what the others leave. Where sessions share the cores (autogroup), so does one of their own. */
static void stand_back(void) {
    struct sched_param none = {0};
    setsid();
    int group = open("/proc/self/autogroup", O_WRONLY);
    if (group >= 0) {
        if (write(group, "19", 2) != 2) perror("autogroup");
        close(group);
    }
    if (sched_setscheduler(0, SCHED_IDLE, &none)) perror("SCHED_IDLE");
}

static void set_up(char **argv) {
    stand_back();
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    while (mode < MODES && strcmp(argv[2], names[mode])) mode++;
    if (mode == MODES) { fprintf(stderr, "no mode %s\n", argv[2]); exit(2); }
    pause_s = atof(argv[5]) / 1000;
    server = own = (struct sockaddr_in){.sin_family = AF_INET};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server.sin_port = htons(atoi(argv[1]));
    inet_pton(AF_INET, "127.0.0.9", &own.sin_addr);
    poller = epoll_create1(0);
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: abusers PORT MODE CLIENTS SECONDS PAUSE_MS\n");
        return 2;
    }
    set_up(argv);
    int count = atoi(argv[3]);
    struct client *all = calloc(count, sizeof *all);
    for (int i = 0; i < count; i++) all[i].fd = -1;
    double stop_at = now() + atof(argv[4]), looked_at = 0;
    struct epoll_event events[512];
    while (now() < stop_at) {
        int ready_count = epoll_wait(poller, events, 512, 10);
        for (int i = 0; i < ready_count; i++) {
            ready(events[i].data.ptr, events[i].events);
            pause_at_times();
        }
        double time = now();
        if (time < looked_at + 0.01) continue;
        looked_at = time;
        for (int i = 0; i < count; i++) {
            struct client *client = &all[i];
            if (client->next_at > time) continue;
            pause_at_times();
            if (client->fd < 0) come(client);
            else if (client->is_connected && mode != FLOOD && !act(client, 0)) cut_off(client);
        }
    }
    printf("{\"made\": %lld, \"ended\": %lld}\n", made, ended);
    return 0;
}
