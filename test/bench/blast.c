/*
 * blast: sends log datagrams of failed reloads to 127.0.0.1, at a fixed rate or
 * as fast as it can.
 *
 *   blast -p PORT -n COUNT [-r PER_SECOND] [-t TASKS]
 *     -r  0 (default): full speed
 *     -t  they tell of so many tasks in turn; 0 (default): of a new one each
 *
 * Each datagram has an execution id of its own. Its message ends in "seq=N t=NANOSECONDS",
 * the clock read just before the send, so that the sink on the same machine
 * knows what is lost, what came twice, and how long each took. All datagrams
 * are made before the first is sent.
 *
 * Prints one JSON line: sent, send_errors, send_s, send_per_s, datagram_bytes.
 *
 * SPDX-License-Identifier: MIT
 */
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "common.h"

#define DATAGRAM_ROOM 512 /* the longest made here has about 330 bytes */
#define CLOCK_DIGITS 20   /* width of t=, padded with zeros: patched in place */

struct datagram {
    size_t len;
    char text[DATAGRAM_ROOM];
};

/* Numbers that look random; xorshift64*. */
static uint64_t
random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state * 0x2545F4914F6CDD1Dull;
}

static void
guid_print(char out[37], uint64_t *random)
{
    uint64_t a = random_next(random);
    uint64_t b = random_next(random);

    snprintf(out, 37, "%08x-%04x-4%03x-8%03x-%012llx", (unsigned)(a >> 32),
        (unsigned)(a >> 16) & 0xffff, (unsigned)a & 0xfff, (unsigned)(b >> 52),
        (unsigned long long)b & 0xffffffffffffull);
}

static void
datagram_make(struct datagram *d, long seq, long tasks, uint64_t *random)
{
    char task_id[37], app_id[37], execution_id[37];
    uint64_t of_task = (uint64_t)(tasks > 0 ? seq % tasks : seq) + 1;

    guid_print(task_id, &of_task);
    guid_print(app_id, random);
    guid_print(execution_id, random);
    d->len = (size_t)snprintf(d->text, sizeof d->text,
        "/scheduler-reload-failed/;pro2-win1;Task %ld;App %ld;LAB\\goran;%s;%s;"
        "2021-02-16 09:24:59,099;INFO;%s;Max retries reached seq=%ld t=%0*d",
        seq, seq % 97, task_id, app_id, execution_id, seq, CLOCK_DIGITS, 0);
}

/* Writes the time over the last digits of the datagram. */
static void
datagram_stamp(struct datagram *d, int64_t time_ns)
{
    for (size_t i = 1; i <= CLOCK_DIGITS; i++, time_ns /= 10)
        d->text[d->len - i] = (char)('0' + time_ns % 10);
}

static void
sleep_until(int64_t time_ns)
{
    struct timespec ts = {time_ns / NS_PER_S, time_ns % NS_PER_S};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
        continue;
}

static int
open_socket(uint16_t port)
{
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
        die("UDP to 127.0.0.1:%u", port);
    return fd;
}

int
main(int argc, char **argv)
{
    uint16_t port = 0;
    long count = 0, per_second = 0, tasks = 0, sent = 0;
    uint64_t random = (uint64_t)now_ns() | 1, bytes = 0;
    int option;

    while ((option = getopt(argc, argv, "p:n:r:t:")) != -1)
        switch (option) {
        case 'p':
            port = parse_port(optarg);
            break;
        case 'n':
            count = parse_number(optarg);
            break;
        case 'r':
            per_second = parse_number(optarg);
            break;
        case 't':
            tasks = parse_number(optarg);
            break;
        default:
            return 2;
        }
    if (port == 0 || count == 0 || optind != argc)
        die("usage: blast -p PORT -n COUNT [-r PER_SECOND] [-t TASKS]");

    struct datagram *datagrams = new_array((size_t)count, sizeof *datagrams);
    for (long i = 0; i < count; i++)
        datagram_make(&datagrams[i], i, tasks, &random);

    int fd = open_socket(port);
    int64_t start_ns = now_ns();
    for (long i = 0; i < count; i++) {
        struct datagram *d = &datagrams[i];

        if (per_second > 0)
            sleep_until(start_ns + i * NS_PER_S / per_second);
        datagram_stamp(d, now_ns());
        bytes += d->len;
        if (send(fd, d->text, d->len, 0) == (ssize_t)d->len)
            sent++;
    }
    double seconds = (double)(now_ns() - start_ns) / NS_PER_S;

    printf("{\"sent\":%ld,\"send_errors\":%ld,\"send_s\":%.6f,\"send_per_s\":%.0f,"
           "\"datagram_bytes\":%.0f}\n",
        sent, count - sent, seconds, (double)count / seconds, (double)bytes / (double)count);
    return 0;
}
