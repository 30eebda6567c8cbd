/*
 * sink: a cheap web server that measures what arrives. One thread, HTTP/1.1
 * with keep-alive on 127.0.0.1, bodies with Content-Length only.
 *
 *   sink -p PORT -n EXPECTED [-w WEBHOOKS] [-i IDLE_MS] [-d DELAY_MS] [-c]
 *        [-C CERT.pem -K KEY.pem]
 *     -w  each datagram is awaited so many times, at the paths /hook0, /hook1 ...
 *     -i  the measurement ends when nothing came for so long after the first
 *         request (2000), or shortly after EXPECTED different datagrams
 *     -d  answer each request only after so many milliseconds (0)
 *     -c  close the connection after each answer
 *     -C  speak TLS
 *
 * Every "seq=N t=NANOSECONDS" in a body is one datagram of the blaster. At the
 * end of the measurement it prints one JSON line, and goes on answering until
 * it is killed; SIGTERM before that ends the measurement too.
 *
 * SPDX-License-Identifier: MIT
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>

#include "common.h"
#include "stream.h"

#define CONNECTIONS_MAX 1024 /* file numbers stay below: far more than any sender opens */
#define REQUEST_ROOM 65536   /* head and body of one request */
#define GRACE_MS 200         /* wait so long after the last datagram for doubles */
#define EVENTS_MAX 64
#define HEAD "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
#define ANSWER HEAD "\r\n{}"
#define LAST_ANSWER HEAD "Connection: close\r\n\r\n{}"

struct connection {
    struct stream stream;
    bool open;
    long requests;
    int64_t due_ns; /* when the request in hand is to be answered, 0 = none in hand */
    size_t len;
    char in[REQUEST_ROOM];
};

/* What the measurement has seen. */
struct tally {
    long expected; /* datagrams at each webhook */
    long webhooks;
    bool *seen;          /* by webhook and seq */
    int64_t *latency_ns; /* of each different datagram, in the order of arrival */
    long distinct, doubles;
    long requests;   /* all of them */
    long unnumbered; /* requests without a datagram in them */
    long broken;     /* connections that were given up */
    long connections, open_now, open_max;
    long resumed; /* TLS connections that took up a session of an earlier one */
    int64_t first_send_ns, last_request_ns, last_new_ns;
};

struct sink {
    int epoll_fd, listen_fd;
    SSL_CTX *tls; /* NULL = plain http */
    int64_t delay_ns;
    bool closes;                    /* after each answer */
    struct connection *connections; /* by file number */
    struct tally tally;
};

static volatile sig_atomic_t stop_wanted;

static void
on_signal(int number)
{
    (void)number;
    stop_wanted = 1;
}

/* Digits at *at, which moves behind them. */
static int64_t
take_digits(const char **at)
{
    int64_t value = 0;

    while (**at >= '0' && **at <= '9' && value < INT64_MAX / 10 - 1)
        value = value * 10 + (*(*at)++ - '0');
    return value;
}

static void
tally_datagram(struct tally *t, int64_t place, int64_t sent_ns, int64_t now)
{
    if (t->seen[place]) {
        t->doubles++;
        return;
    }
    t->seen[place] = true;
    t->latency_ns[t->distinct++] = now - sent_ns;
    t->last_new_ns = now;
    if (t->first_send_ns == 0 || sent_ns < t->first_send_ns)
        t->first_send_ns = sent_ns;
}

/* Counts one request; its head and its body end with a NUL. */
static void
tally_request(struct tally *t, const char *head, const char *body)
{
    const char *path = strstr(head, " /hook");
    int64_t now = now_ns(), webhook = 0;
    bool numbered = false;

    t->requests++;
    t->last_request_ns = now;
    if (t->webhooks > 1 && path != NULL) {
        path += strlen(" /hook");
        webhook = take_digits(&path);
    }
    for (const char *p = body; (p = strstr(p, "seq=")) != NULL;) {
        p += strlen("seq=");
        int64_t seq = take_digits(&p);
        if (strncmp(p, " t=", 3) != 0)
            continue;
        p += 3;
        int64_t sent_ns = take_digits(&p);
        if (seq >= t->expected || webhook >= t->webhooks)
            continue;
        numbered = true;
        tally_datagram(t, webhook * t->expected + seq, sent_ns, now);
    }
    if (!numbered)
        t->unnumbered++;
}

static bool
tally_is_complete(const struct tally *t, int64_t idle_ns)
{
    int64_t quiet_ns = now_ns() - t->last_request_ns;

    if (t->last_request_ns == 0)
        return false;
    return quiet_ns > idle_ns ||
        (t->distinct == t->expected * t->webhooks && quiet_ns > (int64_t)GRACE_MS * NS_PER_MS);
}

static int
compare_times(const void *a, const void *b)
{
    const int64_t *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* The latency in ms that this part (0 to 1) of the datagrams did not exceed; -1 = there is none. */
static double
tally_quantile_ms(const struct tally *t, double part)
{
    if (t->distinct == 0)
        return -1;
    return (double)t->latency_ns[(long)(part * (double)(t->distinct - 1) + 0.5)] / NS_PER_MS;
}

static void
tally_print(const struct tally *t)
{
    qsort(t->latency_ns, (size_t)t->distinct, sizeof *t->latency_ns, compare_times);
    printf("{\"arrived\":%ld,\"doubles\":%ld,\"requests\":%ld,\"unnumbered\":%ld,\"broken\":%ld,"
           "\"connections\":%ld,\"open_max\":%ld,\"resumed\":%ld,\"p50_ms\":%.3f,\"p90_ms\":%.3f,"
           "\"p99_ms\":%.3f,\"max_ms\":%.3f,\"last_ms\":%.3f,\"last_at_s\":%.6f}\n",
        t->distinct, t->doubles, t->requests, t->unnumbered, t->broken, t->connections, t->open_max,
        t->resumed, tally_quantile_ms(t, 0.5), tally_quantile_ms(t, 0.9),
        tally_quantile_ms(t, 0.99), tally_quantile_ms(t, 1),
        t->distinct > 0 ? (double)(t->last_new_ns - t->first_send_ns) / NS_PER_MS : -1,
        (double)t->last_new_ns / NS_PER_S);
    fflush(stdout);
}

static void
connection_close(struct sink *s, struct connection *c)
{
    SSL_free(c->stream.ssl);
    c->stream.ssl = NULL;
    close(c->stream.fd);
    c->open = false;
    c->due_ns = 0;
    s->tally.open_now--;
}

/* Closes a connection that did what the sink cannot or will not handle. */
static void
connection_give_up(struct sink *s, struct connection *c)
{
    s->tally.broken++;
    connection_close(s, c);
}

static void
connection_answer(struct sink *s, struct connection *c)
{
    c->due_ns = 0;
    if (stream_write(&c->stream, s->closes ? LAST_ANSWER : ANSWER,
            strlen(s->closes ? LAST_ANSWER : ANSWER)) != 0) {
        connection_give_up(s, c);
    } else if (s->closes) {
        if (c->stream.ssl != NULL)
            SSL_shutdown(c->stream.ssl);
        connection_close(s, c);
    }
}

/*
 * Takes one whole request out of the connection's bytes, counts it, and answers
 * it or notes when to. False if none is complete yet or the connection is gone.
 */
static bool
connection_take_request(struct sink *s, struct connection *c)
{
    char *head_end = strstr(c->in, "\r\n\r\n"), *field;
    size_t body_len, whole_len;

    if (head_end == NULL)
        return false;
    *head_end = '\0';
    field = strcasestr(c->in, "\r\nContent-Length:");
    *head_end = '\r';
    body_len = field == NULL ? 0 : strtoul(strchr(field, ':') + 1, NULL, 10);
    whole_len = (size_t)(head_end + 4 - c->in) + body_len;
    if (body_len >= REQUEST_ROOM || whole_len >= REQUEST_ROOM) {
        connection_give_up(s, c);
        return false;
    }
    if (c->len < whole_len)
        return false;

    char after = c->in[whole_len];
    c->in[whole_len] = '\0';
    *head_end = '\0';
    if (c->stream.ssl != NULL && c->requests++ == 0)
        s->tally.resumed += SSL_session_reused(c->stream.ssl);
    tally_request(&s->tally, c->in, head_end + 4);
    c->in[whole_len] = after;
    c->len -= whole_len;
    memmove(c->in, c->in + whole_len, c->len + 1);
    if (s->delay_ns > 0)
        c->due_ns = now_ns() + s->delay_ns;
    else
        connection_answer(s, c);
    return c->open && c->due_ns == 0;
}

/* Reads what is there. TLS keeps bytes of its own, so until nothing is left. */
static void
connection_read(struct sink *s, struct connection *c)
{
    while (c->open) {
        size_t room = sizeof c->in - 1 - c->len;
        ssize_t n = room > 0 ? stream_read(&c->stream, c->in + c->len, room) : -1;

        if (n == 0)
            return;
        if (n < 0) {
            connection_close(s, c);
            return;
        }
        c->len += (size_t)n;
        c->in[c->len] = '\0';
        while (c->due_ns == 0 && connection_take_request(s, c))
            continue;
        if (c->stream.ssl == NULL && (size_t)n < room)
            return; /* saves a call that would find nothing */
    }
}

static void
sink_accept(struct sink *s)
{
    int fd, one = 1;

    while ((fd = accept4(s->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = &s->connections[fd];
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

        if (fd >= CONNECTIONS_MAX)
            die("more than %d connections", CONNECTIONS_MAX);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->stream.fd = fd;
        c->open = true;
        c->len = 0;
        c->requests = 0;
        if (s->tls != NULL) {
            c->stream.ssl = SSL_new(s->tls);
            SSL_set_fd(c->stream.ssl, fd);
            SSL_set_accept_state(c->stream.ssl);
        }
        s->tally.connections++;
        if (++s->tally.open_now > s->tally.open_max)
            s->tally.open_max = s->tally.open_now;
        epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

/* Answers what is due, and takes up what those connections sent meanwhile. */
static void
sink_answer_due(struct sink *s)
{
    int64_t now = now_ns();

    for (int fd = 0; fd < CONNECTIONS_MAX; fd++) {
        struct connection *c = &s->connections[fd];

        if (!c->open || c->due_ns == 0 || c->due_ns > now)
            continue;
        connection_answer(s, c);
        while (c->open && c->due_ns == 0 && connection_take_request(s, c))
            continue;
    }
}

static void
sink_turn(struct sink *s)
{
    struct epoll_event events[EVENTS_MAX];
    int n = epoll_wait(s->epoll_fd, events, EVENTS_MAX, s->delay_ns > 0 ? 1 : 50);

    for (int i = 0; i < n; i++) {
        if (events[i].data.fd == s->listen_fd)
            sink_accept(s);
        else if (s->connections[events[i].data.fd].open)
            connection_read(s, &s->connections[events[i].data.fd]);
    }
    if (s->delay_ns > 0)
        sink_answer_due(s);
}

static SSL_CTX *
tls_new(const char *cert, const char *key)
{
    SSL_CTX *tls = SSL_CTX_new(TLS_server_method());

    errno = 0;
    if (tls == NULL || SSL_CTX_use_certificate_chain_file(tls, cert) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls, key, SSL_FILETYPE_PEM) != 1)
        die("cannot use certificate %s with key %s", cert, key);
    return tls;
}

static void
sink_listen(struct sink *s, uint16_t port)
{
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN};
    int one = 1;

    s->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(s->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (s->listen_fd < 0 || bind(s->listen_fd, (struct sockaddr *)&at, sizeof at) != 0 ||
        listen(s->listen_fd, CONNECTIONS_MAX) != 0)
        die("listen on 127.0.0.1:%u", port);
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    event.data.fd = s->listen_fd;
    epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->listen_fd, &event);
}

int
main(int argc, char **argv)
{
    static struct sink sink;
    struct sigaction action = {.sa_handler = on_signal};
    const char *cert = NULL, *key = NULL;
    int64_t idle_ns = 2 * (int64_t)NS_PER_S;
    uint16_t port = 0;
    bool printed = false;
    int option;

    sink.tally.webhooks = 1;
    while ((option = getopt(argc, argv, "p:n:w:i:d:cC:K:")) != -1)
        switch (option) {
        case 'p':
            port = parse_port(optarg);
            break;
        case 'n':
            sink.tally.expected = parse_number(optarg);
            break;
        case 'w':
            sink.tally.webhooks = parse_number(optarg);
            break;
        case 'i':
            idle_ns = parse_number(optarg) * NS_PER_MS;
            break;
        case 'd':
            sink.delay_ns = parse_number(optarg) * NS_PER_MS;
            break;
        case 'c':
            sink.closes = true;
            break;
        case 'C':
            cert = optarg;
            break;
        case 'K':
            key = optarg;
            break;
        default:
            return 2;
        }
    if (port == 0 || sink.tally.expected == 0 || sink.tally.webhooks == 0 || optind != argc ||
        !cert != !key)
        die("usage: sink -p PORT -n EXPECTED [-w WEBHOOKS] [-i IDLE_MS] [-d DELAY_MS] [-c] "
            "[-C CERT.pem -K KEY.pem]");
    end_with_parent();
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    size_t arrivals = (size_t)(sink.tally.expected * sink.tally.webhooks);
    sink.tally.seen = new_array(arrivals, sizeof(bool));
    sink.tally.latency_ns = new_array(arrivals, sizeof(int64_t));
    sink.connections = new_array(CONNECTIONS_MAX, sizeof *sink.connections);
    if (cert != NULL)
        sink.tls = tls_new(cert, key);
    sink_listen(&sink, port);
    printf("{\"ready\":true}\n");
    fflush(stdout);

    while (!stop_wanted) {
        sink_turn(&sink);
        if (!printed && tally_is_complete(&sink.tally, idle_ns)) {
            tally_print(&sink.tally);
            printed = true;
        }
    }
    if (!printed)
        tally_print(&sink.tally);
    return 0;
}
