/*
 * floor: the physical limit. UDP in, one POST for each datagram out, nothing
 * else: no configuration, no log, no parsing, no retry, one thread. It ends when
 * the web server closes, but for -c. Not a design, a yardstick for one.
 *
 *   floor -l UDP_PORT -u TCP_PORT [-k CONNECTIONS] [-T CA.pem] [-c]
 *     -k  keep-alive connections to 127.0.0.1:TCP_PORT, one request in flight
 *         on each (1)
 *     -T  TLS, checked against this CA and the name "localhost"; '' = plain http
 *     -c  the web server closes after each answer: a new connection for each
 *         request, with the TLS session of the one before
 *
 * The socket is read empty before every write. What waits is kept in memory;
 * the body of a request is {"text":"the datagram"}.
 *
 * SPDX-License-Identifier: MIT
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "common.h"
#include "stream.h"

#define DATAGRAM_ROOM 1024     /* the blaster's have about 330 bytes */
#define BATCH 64               /* datagrams read by one system call */
#define WAITING_ROOM 67108864  /* bytes of datagrams that can wait: 150,000 and more */
#define RECEIVE_BUFFER 4194304 /* asked of the kernel, which may grant less */
#define CONNECTIONS_MAX 64
#define ANSWER_ROOM 4096
#define UDP_MARK UINT32_MAX /* marks the UDP socket among epoll's events */

/* Datagrams that wait, each behind its length. Starts over when it runs empty. */
struct waiting {
    char *bytes;
    size_t begin, end;
};

struct connection {
    struct stream stream;
    bool open;
    bool busy; /* a request is in flight */
    size_t len;
    char in[ANSWER_ROOM];
};

struct floor {
    int epoll_fd, udp_fd;
    uint16_t tcp_port;
    SSL_CTX *tls;         /* NULL = plain http */
    SSL_SESSION *session; /* of the last TLS connection that ended */
    bool closes;          /* the web server, after each answer */
    struct waiting waiting;
    long count;
    struct connection connections[CONNECTIONS_MAX];
    struct mmsghdr messages[BATCH];
    struct iovec vectors[BATCH];
    char datagrams[BATCH][DATAGRAM_ROOM];
};

static void
on_signal(int number)
{
    (void)number;
    _exit(0);
}

static void
waiting_add(struct waiting *w, const char *datagram, uint32_t len)
{
    if (w->end + sizeof len + len > WAITING_ROOM)
        die("more than %d bytes wait", WAITING_ROOM);
    memcpy(w->bytes + w->end, &len, sizeof len);
    memcpy(w->bytes + w->end + sizeof len, datagram, len);
    w->end += sizeof len + len;
}

/* The oldest datagram, or NULL; it stays valid until the next one is added. */
static const char *
waiting_take(struct waiting *w, uint32_t *len)
{
    const char *datagram;

    if (w->begin == w->end) {
        w->begin = w->end = 0;
        return NULL;
    }
    memcpy(len, w->bytes + w->begin, sizeof *len);
    datagram = w->bytes + w->begin + sizeof *len;
    w->begin += sizeof *len + *len;
    return datagram;
}

static void
floor_receive(struct floor *f)
{
    int n;

    do {
        n = recvmmsg(f->udp_fd, f->messages, BATCH, MSG_DONTWAIT, NULL);
        for (int i = 0; i < n; i++)
            waiting_add(&f->waiting, f->datagrams[i], f->messages[i].msg_len);
    } while (n == BATCH);
}

/*
 * Reads the answer; when it is whole the connection is free again. Without a
 * request in flight this takes what TLS sends on its own account.
 */
static void
connection_read(struct connection *c)
{
    do {
        ssize_t n = stream_read(&c->stream, c->in + c->len, ANSWER_ROOM - 1 - c->len);
        char *head_end, *field;

        errno = 0;
        if (n < 0)
            die("the web server closed the connection");
        if (n == 0)
            return;
        c->len += (size_t)n;
        c->in[c->len] = '\0';
        head_end = strstr(c->in, "\r\n\r\n");
        field = head_end == NULL ? NULL : strcasestr(c->in, "\r\nContent-Length:");
        if (field == NULL)
            continue;
        if (c->len >= (size_t)(head_end + 4 - c->in) + strtoul(strchr(field, ':') + 1, NULL, 10)) {
            c->len = 0;
            c->busy = false;
        }
    } while (c->busy);
}

static void
connection_post(struct connection *c, const char *datagram, uint32_t len)
{
    char body[2 * DATAGRAM_ROOM + 16], request[sizeof body + 256], *end = body;

    end = stpcpy(end, "{\"text\":\"");
    for (uint32_t i = 0; i < len; i++) {
        if (datagram[i] == '\\' || datagram[i] == '"')
            *end++ = '\\';
        *end++ = datagram[i];
    }
    end = stpcpy(end, "\"}");
    int n = snprintf(request, sizeof request,
        "POST /hook HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: %td\r\n\r\n%s",
        end - body, body);
    errno = 0;
    if (stream_write(&c->stream, request, (size_t)n) != 0)
        die("the web server takes no more");
    c->busy = true;
}

static SSL_CTX *
tls_new(const char *ca)
{
    SSL_CTX *tls = SSL_CTX_new(TLS_client_method());

    errno = 0;
    if (tls == NULL || SSL_CTX_load_verify_locations(tls, ca, NULL) != 1)
        die("cannot use CA %s", ca);
    SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
    return tls;
}

static void
floor_watch(struct floor *f, int fd, uint32_t mark)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = mark};

    if (epoll_ctl(f->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        die("epoll");
}

static void
floor_connect(struct floor *f, struct connection *c)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
        .sin_port = htons(f->tcp_port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;

    c->stream.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->stream.fd < 0 || connect(c->stream.fd, (struct sockaddr *)&to, sizeof to) != 0)
        die("connect to 127.0.0.1:%u", f->tcp_port);
    setsockopt(c->stream.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (f->tls != NULL) {
        c->stream.ssl = SSL_new(f->tls);
        SSL_set1_host(c->stream.ssl, "localhost");
        SSL_set_tlsext_host_name(c->stream.ssl, "localhost");
        SSL_set_fd(c->stream.ssl, c->stream.fd);
        if (f->session != NULL)
            SSL_set_session(c->stream.ssl, f->session);
        errno = 0;
        if (SSL_connect(c->stream.ssl) != 1)
            die("TLS with 127.0.0.1:%u failed", f->tcp_port);
    }
    fcntl(c->stream.fd, F_SETFL, O_NONBLOCK);
    floor_watch(f, c->stream.fd, (uint32_t)(c - f->connections));
    c->open = true;
}

/* Ends a connection that has its answer, and keeps its TLS session. */
static void
floor_disconnect(struct floor *f, struct connection *c)
{
    if (c->stream.ssl != NULL) {
        SSL_SESSION_free(f->session);
        f->session = SSL_get1_session(c->stream.ssl);
        SSL_shutdown(c->stream.ssl);
        SSL_free(c->stream.ssl);
        c->stream.ssl = NULL;
    }
    close(c->stream.fd);
    c->open = false;
}

static void
floor_listen(struct floor *f, uint16_t port)
{
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int bytes = RECEIVE_BUFFER;

    for (int i = 0; i < BATCH; i++) {
        f->vectors[i] = (struct iovec){f->datagrams[i], DATAGRAM_ROOM};
        f->messages[i].msg_hdr.msg_iov = &f->vectors[i];
        f->messages[i].msg_hdr.msg_iovlen = 1;
    }
    f->udp_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    setsockopt(f->udp_fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    if (f->udp_fd < 0 || bind(f->udp_fd, (struct sockaddr *)&at, sizeof at) != 0)
        die("bind UDP 127.0.0.1:%u", port);
    floor_watch(f, f->udp_fd, UDP_MARK);
}

static void
floor_take_answer(struct floor *f, struct connection *c)
{
    bool was_busy = c->busy;

    connection_read(c);
    if (f->closes && was_busy && !c->busy)
        floor_disconnect(f, c);
}

static void
floor_turn(struct floor *f)
{
    struct epoll_event events[CONNECTIONS_MAX + 1];
    int n = epoll_wait(f->epoll_fd, events, CONNECTIONS_MAX + 1, -1);

    for (int i = 0; i < n; i++) {
        if (events[i].data.u32 == UDP_MARK)
            floor_receive(f);
        else
            floor_take_answer(f, &f->connections[events[i].data.u32]);
    }
    for (long i = 0; i < f->count; i++) {
        const char *datagram;
        uint32_t len;

        if (f->connections[i].busy)
            continue;
        if ((datagram = waiting_take(&f->waiting, &len)) == NULL)
            break;
        if (!f->connections[i].open)
            floor_connect(f, &f->connections[i]);
        connection_post(&f->connections[i], datagram, len);
    }
}

int
main(int argc, char **argv)
{
    static struct floor floor;
    uint16_t udp_port = 0;
    int option;

    floor.count = 1;
    while ((option = getopt(argc, argv, "l:u:k:T:c")) != -1)
        switch (option) {
        case 'l':
            udp_port = parse_port(optarg);
            break;
        case 'u':
            floor.tcp_port = parse_port(optarg);
            break;
        case 'k':
            floor.count = parse_number(optarg);
            break;
        case 'T':
            floor.tls = *optarg == '\0' ? NULL : tls_new(optarg);
            break;
        case 'c':
            floor.closes = true;
            break;
        default:
            return 2;
        }
    if (udp_port == 0 || floor.tcp_port == 0 || floor.count < 1 || floor.count > CONNECTIONS_MAX ||
        optind != argc)
        die("usage: floor -l UDP_PORT -u TCP_PORT [-k CONNECTIONS] [-T CA.pem] [-c]");
    signal(SIGTERM, on_signal);
    signal(SIGPIPE, SIG_IGN);
    floor.waiting.bytes = mmap(NULL, WAITING_ROOM, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (floor.waiting.bytes == MAP_FAILED)
        die("memory");
    floor.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (long i = 0; i < floor.count && !floor.closes; i++)
        floor_connect(&floor, &floor.connections[i]);
    floor_listen(&floor, udp_port);
    for (;;)
        floor_turn(&floor);
}
