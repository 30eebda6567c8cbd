/* SPDX-License-Identifier: MIT
 *
 * butler_webhook calls webhooks when Qlik Sense reload tasks fail or are aborted.
 *
 * Qlik Sense's scheduler logs through log4net, whose UdpAppender sends a datagram
 * for each such event. This program receives them and makes one HTTP call for
 * each webhook that Butler's configuration file names. It takes the place of the
 * outgoing webhooks of Ptarmigan Labs' Butler.
 *
 * The path of an alert
 *
 *     UDP socket
 *         |  one listener thread empties the socket, does nothing else meanwhile
 *         v
 *       inbox (memory, at most INBOX_MAX_BYTES)
 *         |  the other one dispatches: decodes, parses, sorts out what is not
 *         |  ours, malformed, a duplicate or rate limited
 *         v
 *       journal (disk): from here on the alert is accepted, and logged as such
 *         |
 *         v
 *     one list of deliveries for each webhook of the alert's kind
 *         |  sender threads of that webhook, its own connections
 *         v
 *     one HTTP call -> verdict: delivered | later | webhook waits | webhook is
 *         |                     down | dead letter
 *         v
 *       journal: what became of it
 *
 * Threads
 *
 *     thread      starts in     owns                      may touch
 *     main        -             configuration, app        all, before start and after the end
 *     log         log_start     console, log file         the log's queue
 *     listener x2 listen_start  the socket, or the group  inbox, windows of time, journal's
 *                               that is accepted next     file, lists of all webhooks
 *     look-up     listen_start  -                         addresses of allowedSources, and as a
 *                                                         listener what it dispatches
 *     sender      send_kick     its HTTP client           its webhook's lists and state,
 *                                                         outcomes for the journal
 *     journal     keep_start    dead letters, the new     journal, lists of all webhooks,
 *                               file while it rewrites    windows of time
 *     console     the first     console (Windows only)    -
 *                 line of log
 *
 *     thread      ends when
 *     log         log_stop was called and its queue is written
 *     listener    listen_stop was called, socket and inbox are empty
 *     look-up     listen_stop was called; left behind inside the system's resolver
 *     sender      it had nothing to do for SENDER_IDLE_MS, or send_stop was called
 *                 and nothing is due; left behind inside the system's resolver
 *     journal     keep_stop was called and all is written and synced; left behind
 *                 if the disk hangs
 *     console     with the process
 *
 * As a Windows service main only waits for the service manager, and a thread of
 * the system's does what main does otherwise.
 *
 * Locks: the journal's file lock, a webhook's lock, the journal's other lock, the
 * log's, in this order. The listener's receive lock, then its lock, then the
 * log's. Those of the TLS store and the windows of time stand alone. None is held
 * across network I/O; the journal's file lock is held while it is written to.
 *
 * On disk: the state directory (see section 9), which may be deleted while the
 * program does not run, and then nothing waits any more; log files, if fileLogging
 * is true, which may be deleted at any time.
 *
 * What is promised
 *
 *     A webhook that is down, slow or broken delays no other, and never the
 *     reception. An accepted alert survives kill -9, and is tried again until the
 *     webhook takes it, refuses it for good, or maxAgeHours have passed; then it is
 *     a dead letter, which --replay sends again. After a crash an alert can be sent
 *     twice, with the same webhook-id. A power cut costs at most what arrived
 *     during the last sync and was not yet delivered. When the disk is full or
 *     fails alerts go on from memory. What must be dropped for want of room is
 *     logged whole, and datagrams that were never looked at are counted: no loss is
 *     silent.
 *
 * Contents
 *
 *     1. Build settings and limits    every number, with its reason
 *     2. Platform             plat_   all that the operating system gives: contracts,
 *                                     POSIX, Windows, what both share
 *     3. Base          err_ buf_ ...  error text, buffers, UTF-8
 *     4. Log                  log_    levels, lines, file, console
 *     5. Alert         alert_ json_   datagram -> alert -> JSON or query
 *     6. URL                  url_    as the WHATWG URL Standard reads them
 *     7. Configuration        cfg_    Butler's YAML -> struct config
 *     8. Windows of time      window_ rate limit, de-duplication
 *     9. Journal              journal_ what survives a crash
 *    10. HTTP client  tls_ conn_ http_  one call
 *    11. Delivery             send_   lists, verdicts, backoff, sender threads
 *    12. Upkeep               keep_   loading, journal thread, replay
 *    13. Listener             listen_ UDP socket, inbox, dispatching
 *    14. Program              app_    start, wait, stop
 *    15. Command line         cli_    options, --check, --test, --pending, --replay
 */

/* ==== 1. Build settings and limits ==========================================
 *
 * Every number that bounds something stands here once, with its reason. Those
 * in #ifndef are the ones that tests compile smaller.
 */

/* Each means something on one system only. */
#define _GNU_SOURCE              /* recvmmsg, getrandom, CLOCK_BOOTTIME */
#define WIN32_LEAN_AND_MEAN      /* windows.h without the older sockets */
#define __USE_MINGW_ANSI_STDIO 1 /* printf as C11 has it */

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <mbedtls/aes.h>
#include <mbedtls/base64.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/psa_util.h>
#include <mbedtls/sha256.h>
#include <mbedtls/ssl.h>
#include <mbedtls/x509_crt.h>
#include <psa/crypto.h>
#include <yaml.h>

#include <notices.h>
#include <roots.h>

#define VERSION "0.1.0"
#define USER_AGENT "butler_webhook/" VERSION

#ifndef TIMEOUT_UNIT_MS
#define TIMEOUT_UNIT_MS 1000 /* a second of timeoutSeconds */
#endif
#ifndef AGE_UNIT_MS
#define AGE_UNIT_MS INT64_C(3600000) /* an hour of maxAgeHours */
#endif
#ifndef QUEUE_MAX_ALERTS
#define QUEUE_MAX_ALERTS 10000 /* waiting for one webhook, in memory */
#endif
#ifndef SENDER_IDLE_MS
#define SENDER_IDLE_MS 60000 /* then a sender closes its connection and ends */
#endif
#ifndef JOURNAL_REWRITE_MIN
#define JOURNAL_REWRITE_MIN (1 << 20) /* bytes; a smaller journal is not worth rewriting */
#endif
#ifndef JOURNAL_HEAL_MS
#define JOURNAL_HEAL_MS 5000 /* a disk that failed is tried again after this */
#endif
#define QUEUE_MAX_BYTES (8u << 20) /* QUEUE_MAX_ALERTS for large alerts */
#define INBOX_MAX_BYTES                                                                            \
    (64u << 20) /* received, not yet dispatched: 190,000 datagrams of 300 bytes */

#define DATAGRAM_MAX 65507          /* most that one UDP datagram over IPv4 can carry */
#define DATAGRAM_ROOM 65536         /* a receive buffer that no datagram can fill */
#define LISTENERS 2                 /* threads: one receives while the other dispatches */
#define RECV_BATCH 32               /* datagrams for one system call; more gains nothing */
#define RECV_COST 640               /* of these bytes, taken by one datagram of 300 */
#define RECV_BUFFER (128 << 20)     /* asked of the kernel, which takes memory only as it fills */
#define RECV_BUFFER_GOOD (16 << 20) /* enough for a burst of 26,000 datagrams of 300 bytes */
#define CUT_NAME_MAX 1024           /* bytes of an app name that is looked for in a task name */
#define CUT_TOKENS_MAX 64           /* pieces between which names are looked for in every pair */

#define ADDRESSES_MAX 8        /* of one host name that are tried */
#define CONNECT_STAGGER_MS 250 /* RFC 8305, section 5: head start of each address */
#define BACKOFF_MIN_MS 1000    /* first wait after a failure, doubled each time ... */
#define BACKOFF_MAX_MS 300000  /* ... up to five minutes */
#define RETRY_AFTER_MAX_S 3600 /* longest wait that a webhook may ask for */
#define BROKEN_IN_A_ROW 3      /* different alerts without an HTTP answer: webhook is down */
#define EXPIRE_PARTS 720       /* of maxAgeHours: how closely it is kept */
#define EXPIRE_AT_ONCE 100     /* alerts given up for their age in one go */
#define REDIRECTS_MAX 5        /* followed for one call */
#define HEAD_MAX 65536         /* bytes of one response head; real ones stay under 20 KB */
#define HEADERS_MAX 256        /* header lines in it */
#define INTERIM_MAX 32         /* 1xx answers before the final one */
#define DRAIN_MAX 65536        /* bytes of a body read to keep the connection ... */
#define DRAIN_MS 2000          /* ... and time for it */
#define GET_TARGET_MAX 2000    /* IIS refuses queries over 2,048 bytes unless told otherwise */
#define URL_MAX 8192           /* bytes of a webhookURL or Location */

#define GROUP_MAX_ALERTS 64          /* accepted with one write to the journal ... */
#define GROUP_MAX_BYTES (256u << 10) /* ... or so many bytes of lines */
#define JOURNAL_LINE_MAX (1u << 20)  /* bytes; 65,507 control characters make 393,042 of JSON */
#define JOURNAL_READ 65536           /* bytes read from a file at a time */
#define JOURNAL_COPY (256u << 10)    /* bytes of lines rewritten in one go */
#define WINDOW_LINE 80               /* bytes, at most, of an open window in the journal */
#define SALVAGE_MAX 16               /* places in a damaged line where records may begin */
#define JOURNAL_SYNC_MS 5            /* least time between two syncs: in a burst one costs 0.1 ms */
#define JOURNAL_GATHER_MS 20         /* outcomes of this time are written together */
#define JOURNAL_ROOM_MS 2000         /* given to rewriting before an alert is kept in memory only */
#define KNOWN_MAX 4096               /* webhooks of earlier configurations in a journal */
#define KEEP_PROBE 65536 /* bytes that must find room before a disk that was full works again */
#define KEEP_TICK_MS (JOURNAL_HEAL_MS / 5) /* the journal thread looks around at least so often */
#define OUTCOMES_MAX (4u << 20)         /* bytes of outcomes that wait for a disk that has failed */
#define LETTERS_MAX (INT64_C(64) << 20) /* bytes of dead letters in one file */
#define LETTERS_WAIT_MAX (8u << 20) /* bytes of dead letters that wait for a disk that has failed */
#define CROWDED_PERCENT 80          /* of the room for waiting alerts: then it is told */
#define REPLAY_MS 10000             /* given to a running service for --replay */

#define WINDOW_MAX 100000       /* tasks or executions remembered, for each kind of event */
#define SENDERS_TOLD_MAX 64     /* addresses for which "once a minute" is kept */
#define TELL_MS 60000           /* the minute of "at most once a minute" */
#define LOOKUP_AGAIN_MS 10000   /* the same while one of them has never been found */
#define LOOKUP_MS 300000        /* names in allowedSources are looked up again after this */
#define SOURCES_MAX 256         /* entries of allowedSources */
#define SOURCE_ADDRESSES_MAX 16 /* addresses behind one name in it */

#define CONFIG_MAX (1u << 20)    /* bytes; Butler's own full sample has 60 KB */
#define CONFIG_DEPTH_MAX 64      /* nested collections */
#define CONFIG_NODES_MAX 20000   /* values, aliases counted each time; Butler's file has 600 */
#define CONFIG_WEBHOOKS_MAX 200  /* for one kind of event */
#define CERT_FILE_MAX (4u << 20) /* bytes; a bundle of all public roots has 220 KB */

#define LOG_QUEUE_MAX (1u << 20)    /* bytes of lines that wait for the console and the file */
#define LOG_QUEUE_KEEP (256u << 10) /* memory for lines that is kept between bursts */
#define LOG_GATHER_MS 20            /* lines of this time are written together */
#define LOG_KEEP_DAYS 30            /* log files older than that are deleted */
#define MALFORMED_MAX 4096          /* bytes of a malformed datagram shown in a log line */
#define LOG_NAME_MAX 200            /* bytes of a task or app name shown in a log line */

#define THREAD_STACK (256u << 10) /* a TLS handshake needs 40 KB, the resolver 12 */
#define WAIT_MAX_MS 30000         /* after sleep or hibernation the clocks are looked at by then */
#define SLICE_MS 100              /* longest wait that does not look at the stop flag */
#define STOP_CALLS_MS 4000        /* given to calls in flight when stopping */
#define STOP_RECEIVE_MS 1000 /* given to reading the socket empty: not without end in a flood */
#define STOP_SORT_MS 2000    /* given to sorting what is in the inbox */
#define STOP_SYNC_MS 300     /* given to the journal's last sync */
#define STOP_LOG_MS 400      /* given to a console that may not be read */

/* ==== 2. Platform ===========================================================
 *
 * Everything that depends on the operating system, and nothing that decides:
 * clocks, random bytes, threads, sockets, files, signals, services. First what
 * the two halves promise, then the half for POSIX, the half for Windows, and what
 * both share. Sockets are intptr_t, files int, -1 is none. Only this section
 * includes the system's own headers.
 *
 * Threads: all functions may be called from any thread, unless they say otherwise.
 */

#ifdef _WIN32

#include <winsock2.h>
#include <ws2tcpip.h>
#include <mswsock.h>
#include <windows.h>
#include <aclapi.h>
#include <fcntl.h>
#include <io.h>
#include <process.h>
#include <sddl.h>
#include <tlhelp32.h>
#include <wincrypt.h>
#include <ntsecapi.h>

#include <mbedtls/sha1.h>
#include <mbedtls/threading.h>

#define PLAT_EOL "\r\n" /* Notepad of Windows Server 2012 R2 knows no other end of a line */
#define PRINTF gnu_printf

struct plat_mutex {
    SRWLOCK m;
};

struct plat_cond {
    CONDITION_VARIABLE c;
};

struct plat_thread {
    HANDLE t;
    void (*entry)(void *);
    void *arg;
};

#else /* POSIX */

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PLAT_EOL "\n"
#define PRINTF printf
#define SK_MEMINFO_DROPS 8 /* as in the kernel's linux/sock_diag.h, which musl does not have */
#define SK_MEMINFO_VARS 9

struct plat_mutex {
    pthread_mutex_t m;
};

struct plat_cond {
    pthread_cond_t c;
};

struct plat_thread {
    pthread_t t;
    void (*entry)(void *);
    void *arg;
};

#endif

struct plat_addr {
    struct sockaddr_storage ss;
    socklen_t len;
};

/* What one plat_udp_receive brought: so many datagrams, sizes and senders beside them. */
struct plat_batch {
    struct plat_addr from[RECV_BATCH];
    char *data[RECV_BATCH];
    size_t len[RECV_BATCH];
};

#define PLAT_AGAIN (-2) /* a read or write that would have to wait */

enum plat_want { PLAT_READ = 1, PLAT_WRITE = 2 };

enum plat_state { PLAT_RUNNING, PLAT_STOPPING, PLAT_STOPPED, PLAT_FAILED };

/* What plat_service_install readies for the service. All borrowed. */
struct plat_service {
    const char *config;
    const char *folder[2]; /* made if need be, for the service alone */
    size_t folders;
    const char **file; /* which the service must be able to read */
    size_t files;
};

/*
 * First of all: readies what the system needs, and makes the command line UTF-8.
 * A write to a closed pipe becomes an error instead of a signal, and places of
 * standard streams that are closed are taken, so that no socket gets them and the
 * log with it.
 */
static void plat_init(int *argc, char ***argv);

/*
 * Runs run(file), as a service if the service manager has started the program;
 * gives its result, which is the exit code.
 */
static int plat_run(int (*run)(const char *), const char *file);

/* Whether somebody can see what goes to the console: no service, and no closed stream. */
static bool plat_has_console(void);

/* Tells the service manager and the machine's event log, where they are, how the program fares. */
static void plat_report(enum plat_state state, const char *text);

/*
 * Makes that wait for plat_wait_stop from now on, instead of ending the
 * program. Main, before any thread.
 */
static void plat_block_stop(void);

/*
 * Waits up to wait_ms for what stops the program (a signal, Ctrl-C, the
 * service manager); its name, or NULL. Main.
 */
static const char *plat_wait_stop(int wait_ms);

/* Milliseconds on a clock that never jumps and that counts the time asleep. */
static int64_t plat_now_ms(void);

/* Milliseconds since 1970 on the wall clock, which may be set at any time. */
static int64_t plat_wall_ms(void);

/* The date and time of day (UTC) of so many seconds since 1970. */
static void plat_date(time_t s, struct tm *out);

static void plat_sleep_ms(int ms);

/* Fills out with len bytes of the system's random numbers; -1 if it has none. */
static int plat_random(void *out, size_t len);

static void plat_mutex_init(struct plat_mutex *m);

static void plat_mutex_done(struct plat_mutex *m);

static void plat_lock(struct plat_mutex *m);

static void plat_unlock(struct plat_mutex *m);

/* Its waits count on a clock that never jumps. */
static void plat_cond_init(struct plat_cond *c);

static void plat_cond_done(struct plat_cond *c);

static void plat_cond_wake_one(struct plat_cond *c);

static void plat_cond_wake(struct plat_cond *c);

/*
 * Waits with m held until woken or wait_ms have passed; negative waits without
 * end. May return early, and does after WAIT_MAX_MS.
 */
static void plat_cond_wait(struct plat_cond *c, struct plat_mutex *m, int64_t wait_ms);

/* Starts entry(arg) in a thread; thread must stay until it was joined. 0, or -1: no thread. */
static int plat_thread_start(struct plat_thread *thread, void (*entry)(void *), void *arg);

static void plat_thread_join(struct plat_thread *thread);

/* Lets go of a thread that is stuck and cannot be joined. */
static void plat_thread_leave(struct plat_thread *thread);

/*
 * Ends the process at once, past everything that waits to be run at exit; a
 * service as one that has stopped.
 */
_Noreturn static void plat_exit_now(int code);

/* Text of the last failed system call. */
static const char *plat_error(void);

/* Whether standard output cannot be written because its reader has gone, as head does. */
static bool plat_reader_has_gone(void);

/* The value of an environment variable, NULL: it is not set. Main. */
static const char *plat_environment(const char *name);

/*
 * Binds a UDP socket to addr. Its receive buffer gets as large as the system
 * allows, *buffer_len says how large. Gives the socket, or -1 with errno set.
 */
static intptr_t plat_udp_open(const struct plat_addr *addr, int *buffer_len);

/* Makes an empty batch on the heap; its buffers cost memory only where they were used. */
static struct plat_batch *plat_batch_new(void);

/*
 * Takes what has arrived, at most RECV_BATCH datagrams; with wait it waits up
 * to SLICE_MS for the first. Gives their number, 0 for none, -1 on an error of
 * the socket (errno), which the caller may go on from.
 */
static int plat_udp_receive(intptr_t sock, struct plat_batch *b, bool wait);

/*
 * How many datagrams the system has thrown away because the socket's buffer
 * was full; 0 where it does not tell.
 */
static uint32_t plat_udp_drops(intptr_t sock);

/* Starts connecting to addr without waiting; the socket, or -1 with errno set. */
static intptr_t plat_tcp_connect(const struct plat_addr *addr);

/* Asks a socket that became writable whether it is connected; -1 with errno set if not. */
static int plat_tcp_connected(intptr_t sock);

/*
 * Waits up to wait_ms until one of n sockets (at most ADDRESSES_MAX, -1 is
 * passed over) can do what is wanted. Gives a bit for each that can or that
 * has failed, 0 after the time.
 */
static unsigned plat_wait(const intptr_t *socks, int n, int want, int wait_ms);

/* Sends up to len bytes: how many went, PLAT_AGAIN, or -1 with errno set. */
static int plat_send(intptr_t sock, const void *data, size_t len);

/* Reads up to len bytes: how many came, 0 at the end, PLAT_AGAIN, or -1 with errno set. */
static int plat_recv(intptr_t sock, void *data, size_t len);

static void plat_close(intptr_t sock);

/* Opens a file or pipe for reading; a handle, or -1 with errno set: EISDIR for a directory. */
static int plat_read_open(const char *path);

/* Reads up to len bytes from there; how many, 0 at the end, -1 with errno set. */
static int64_t plat_read(int handle, void *data, size_t len);

/*
 * Reads the whole file into *data (malloc, NUL-ended) and *len. -1 with errno
 * set: EISDIR for a directory, EFBIG over max bytes.
 */
static int plat_read_file(const char *path, size_t max, char **data, size_t *len);

/* Writes the machine's own name, "" if it has none. */
static void plat_host_name(char *out, size_t size);

static bool plat_path_is_absolute(const char *path);

/* What makes a path depend on more than the folder it counts from, for the user; NULL: nothing. */
static const char *plat_path_problem(const char *path);

/* Length of the folder part of path, with its last separator; 0 if it has none. */
static size_t plat_path_folder_len(const char *path);

/*
 * Makes a folder and those above it, unless they are there; for its own account
 * only (and the administrators) when is_private. -1 with errno set.
 */
static int plat_make_folder(const char *path, bool is_private);

/* Opens a file to be appended to, made if need be; a handle, or -1 with errno set. */
static int plat_append_open(const char *path);

/* Writes all of data to a handle; -1 with errno set if only a part went. */
static int plat_write(int handle, const char *data, size_t len);

static void plat_file_close(int handle);

/* Whether others than the owner may look into a folder. */
static bool plat_folder_is_open(const char *path);

/* What a service may do about an error (errno) with its folders, to be said behind plat_error; or "". */
static const char *plat_advice(void);

/*
 * Opens a file of the state directory for reading and, unless read_only, for
 * appending, made if need be; empty: emptied. What root makes (--replay) belongs
 * to the folder's owner, so that the service can go on with it. A handle, or -1
 * with errno set, EINVAL for what is no file.
 */
static int plat_state_open(const char *path, bool read_only, bool empty);

/*
 * Locks a file against other processes, for as long as it stays open. 0, or -1
 * with errno set, EWOULDBLOCK: another one has it.
 */
static int plat_file_lock(int handle);

/* Whether plat_file_lock failed because another process has the lock. */
static bool plat_is_locked_error(void);

/* Reads up to len bytes from an offset; how many, 0 at the end, -1 with errno set. */
static int64_t plat_read_at(int handle, void *data, size_t len, int64_t offset);

/* Length of an open file, -1 with errno set. */
static int64_t plat_file_len(int handle);

/* Length of the file at path, 0 if there is none. */
static int64_t plat_path_len(const char *path);

/* Whether an open file is still the one that path names; when that cannot be seen, it is. */
static bool plat_file_is_at(int handle, const char *path);

/* Whether path names a file, itself and not through a link. */
static bool plat_path_is_file(const char *path);

/* Cuts a file off at len bytes; -1 with errno set. */
static int plat_file_cut(int handle, int64_t len);

/* Returns when what was written to a file would survive a power cut; -1 with errno set. */
static int plat_file_sync(int handle);

/* The same for the names in a folder. */
static int plat_folder_sync(const char *path);

/* Puts one file in the place of another; -1 with errno set. */
static int plat_file_replace(const char *from, const char *to);

static int plat_process_id(void);

/* Calls each(name, arg) for every name in a folder; a folder that cannot be read has none. */
static void plat_folder_each(const char *path, void (*each)(const char *, void *), void *arg);

static void plat_remove(const char *path);

/*
 * Writes to the console without ever waiting longer than wait_ms for a reader.
 * Gives how many bytes went or are on their way; an error counts as written.
 */
static size_t plat_console_write(const char *data, size_t len, int wait_ms);

/* Adds the system's own trusted roots to chain, if it has any; what cannot be read is skipped. */
static void plat_add_system_roots(mbedtls_x509_crt *chain);

/*
 * Registers the program as a service of Windows, or brings the one that is there
 * up to date, and readies its folders and files. Each step is said, a line a
 * time. Gives the exit code.
 */
static int plat_service_install(const struct plat_service *service, void (*say)(const char *));

/* Stops and removes that service. Gives the exit code. */
static int plat_service_uninstall(void (*say)(const char *));

#ifndef _WIN32

/* ---- POSIX ---- */

static void
plat_init(int *argc, char ***argv)
{
    int fd;

    (void)argc;
    (void)argv;
    signal(SIGPIPE, SIG_IGN);
    do
        fd = open("/", O_RDONLY);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

static int
plat_run(int (*run)(const char *), const char *file)
{
    return run(file);
}

static bool
plat_has_console(void)
{
    return true; /* whoever starts a service takes its standard output (systemd's journal) */
}

static void
plat_report(enum plat_state state, const char *text)
{
    (void)state;
    (void)text;
}

/* The signals that stop the program: those that were not ignored when it started (nohup). */
static sigset_t
plat_stop_signals(void)
{
    static const int stops[] = {SIGTERM, SIGINT, SIGHUP};
    struct sigaction action;
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++)
        if (sigaction(stops[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN)
            sigaddset(&set, stops[i]);
    return set;
}

static void
plat_block_stop(void)
{
    sigset_t stop = plat_stop_signals();

    pthread_sigmask(SIG_BLOCK, &stop, NULL);
}

static const char *
plat_wait_stop(int wait_ms)
{
    struct timespec wait = {wait_ms / 1000, (long)(wait_ms % 1000) * 1000000};
    sigset_t stop = plat_stop_signals();

    switch (sigtimedwait(&stop, NULL, &wait)) {
    case SIGTERM:
        return "SIGTERM";
    case SIGINT:
        return "SIGINT";
    case SIGHUP:
        return "SIGHUP";
    default:
        return NULL;
    }
}

static int64_t
plat_now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_BOOTTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int64_t
plat_wall_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void
plat_date(time_t s, struct tm *out)
{
    gmtime_r(&s, out);
}

static void
plat_sleep_ms(int ms)
{
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};

    nanosleep(&t, NULL);
}

static int
plat_random(void *out, size_t len)
{
    char *p = out;

    while (len > 0) {
        ssize_t n = getrandom(p, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static void
plat_mutex_init(struct plat_mutex *m)
{
    pthread_mutex_init(&m->m, NULL);
}

static void
plat_mutex_done(struct plat_mutex *m)
{
    pthread_mutex_destroy(&m->m);
}

static void
plat_lock(struct plat_mutex *m)
{
    pthread_mutex_lock(&m->m);
}

static void
plat_unlock(struct plat_mutex *m)
{
    pthread_mutex_unlock(&m->m);
}

static void
plat_cond_init(struct plat_cond *c)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->c, &attr);
    pthread_condattr_destroy(&attr);
}

static void
plat_cond_done(struct plat_cond *c)
{
    pthread_cond_destroy(&c->c);
}

static void
plat_cond_wake_one(struct plat_cond *c)
{
    pthread_cond_signal(&c->c);
}

static void
plat_cond_wake(struct plat_cond *c)
{
    pthread_cond_broadcast(&c->c);
}

static void
plat_cond_wait(struct plat_cond *c, struct plat_mutex *m, int64_t wait_ms)
{
    struct timespec until;

    if (wait_ms < 0) {
        pthread_cond_wait(&c->c, &m->m);
        return;
    }
    wait_ms = wait_ms < WAIT_MAX_MS ? wait_ms : WAIT_MAX_MS;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)(wait_ms / 1000);
    until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&c->c, &m->m, &until);
}

/* What the thread library starts: calls the entry that plat_thread_start was given. */
static void *
plat_thread_run(void *arg)
{
    struct plat_thread *thread = arg;

    thread->entry(thread->arg);
    return NULL;
}

static int
plat_thread_start(struct plat_thread *thread, void (*entry)(void *), void *arg)
{
    pthread_attr_t attr;
    sigset_t all, own;
    int failed;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &own); /* signals are for main; threads inherit its mask */
    thread->entry = entry;
    thread->arg = arg;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, THREAD_STACK);
    failed = pthread_create(&thread->t, &attr, plat_thread_run, thread);
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &own, NULL);
    return failed ? -1 : 0;
}

static void
plat_thread_join(struct plat_thread *thread)
{
    pthread_join(thread->t, NULL);
}

static void
plat_thread_leave(struct plat_thread *thread)
{
    pthread_detach(thread->t);
}

_Noreturn static void
plat_exit_now(int code)
{
    _exit(code);
}

static const char *
plat_error(void)
{
    return strerror(errno);
}

static bool
plat_reader_has_gone(void)
{
    return errno == EPIPE;
}

static const char *
plat_environment(const char *name)
{
    return getenv(name);
}

static intptr_t
plat_udp_open(const struct plat_addr *addr, int *buffer_len)
{
    int fd = socket(addr->ss.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int want = RECV_BUFFER, off = 0, failed;
    socklen_t size = sizeof *buffer_len;
    struct timeval slice = {0, SLICE_MS * 1000};

    if (fd < 0)
        return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &want, sizeof want) != 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &want, sizeof want);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &slice, sizeof slice);
    if (addr->ss.ss_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    getsockopt(fd, SOL_SOCKET, SO_RCVBUF, buffer_len, &size);
    *buffer_len /= 2; /* socket(7): Linux doubles what was asked for */
    if (bind(fd, (const void *)&addr->ss, addr->len) == 0)
        return fd;
    failed = errno;
    close(fd);
    errno = failed;
    return -1;
}

static int
plat_udp_receive(intptr_t sock, struct plat_batch *b, bool wait)
{
    struct mmsghdr msg[RECV_BATCH];
    struct iovec room[RECV_BATCH];
    int n;

    for (int i = 0; i < RECV_BATCH; i++) {
        room[i] = (struct iovec){b->data[i], DATAGRAM_ROOM};
        msg[i].msg_hdr = (struct msghdr){.msg_name = &b->from[i].ss,
            .msg_namelen = sizeof b->from[i].ss,
            .msg_iov = &room[i],
            .msg_iovlen = 1};
    }
    n = recvmmsg((int)sock, msg, RECV_BATCH, wait ? MSG_WAITFORONE : MSG_DONTWAIT, NULL);
    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -1;
    for (int i = 0; i < n; i++) {
        b->len[i] = msg[i].msg_len;
        b->from[i].len = msg[i].msg_hdr.msg_namelen;
    }
    return n;
}

static uint32_t
plat_udp_drops(intptr_t sock)
{
    uint32_t info[SK_MEMINFO_VARS] = {0};
    socklen_t len = sizeof info;

    return getsockopt((int)sock, SOL_SOCKET, SO_MEMINFO, info, &len) == 0 ? info[SK_MEMINFO_DROPS]
                                                                          : 0;
}

static intptr_t
plat_tcp_connect(const struct plat_addr *addr)
{
    int on = 1, failed;
    int fd = socket(addr->ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (const void *)&addr->ss, addr->len) == 0 || errno == EINPROGRESS)
        return fd;
    failed = errno;
    close(fd);
    errno = failed;
    return -1;
}

static int
plat_tcp_connected(intptr_t sock)
{
    int failed = 0;
    socklen_t size = sizeof failed;

    if (getsockopt((int)sock, SOL_SOCKET, SO_ERROR, &failed, &size) != 0)
        return -1;
    errno = failed;
    return failed ? -1 : 0;
}

static unsigned
plat_wait(const intptr_t *socks, int n, int want, int wait_ms)
{
    struct pollfd p[ADDRESSES_MAX];
    short events = (short)((want & PLAT_READ ? POLLIN : 0) | (want & PLAT_WRITE ? POLLOUT : 0));
    unsigned ready = 0;

    for (int i = 0; i < n; i++)
        p[i] = (struct pollfd){(int)socks[i], events, 0};
    if (poll(p, (nfds_t)n, wait_ms) <= 0)
        return 0;
    for (int i = 0; i < n; i++)
        if (p[i].revents)
            ready |= 1u << i;
    return ready;
}

static int
plat_send(intptr_t sock, const void *data, size_t len)
{
    ssize_t n = send((int)sock, data, len > INT_MAX ? INT_MAX : len, MSG_NOSIGNAL);

    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? PLAT_AGAIN : -1;
    return (int)n;
}

static int
plat_recv(intptr_t sock, void *data, size_t len)
{
    ssize_t n = recv((int)sock, data, len > INT_MAX ? INT_MAX : len, 0);

    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? PLAT_AGAIN : -1;
    return (int)n;
}

static void
plat_close(intptr_t sock)
{
    if (sock >= 0)
        close((int)sock);
}

static int
plat_read_open(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISDIR(st.st_mode))
        return fd;
    close(fd);
    errno = EISDIR;
    return -1;
}

static int64_t
plat_read(int handle, void *data, size_t len)
{
    ssize_t n;

    do
        n = read(handle, data, len);
    while (n < 0 && errno == EINTR);
    return n;
}

static void
plat_host_name(char *out, size_t size)
{
    if (gethostname(out, size) != 0)
        out[0] = '\0';
    out[size - 1] = '\0';
}

static bool
plat_path_is_absolute(const char *path)
{
    return path[0] == '/';
}

static const char *
plat_path_problem(const char *path)
{
    (void)path;
    return NULL;
}

static size_t
plat_path_folder_len(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? (size_t)(slash - path) + 1 : 0;
}

static int
plat_make_folder(const char *path, bool is_private)
{
    char *part = strdup(path);
    struct stat st;
    int failed = part ? 0 : ENOMEM;

    for (size_t i = 1; part && !failed; i++) {
        if (part[i] != '/' && part[i] != '\0')
            continue;
        part[i] = '\0';
        if (mkdir(part, is_private ? 0700 : 0750) != 0 && errno != EEXIST)
            failed = errno;
        part[i] = path[i];
        if (path[i] == '\0')
            break;
    }
    free(part);
    if (!failed && stat(path, &st) == 0 && !S_ISDIR(st.st_mode))
        failed = ENOTDIR;
    errno = failed;
    return failed ? -1 : 0;
}

static int
plat_append_open(const char *path)
{
    return open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
}

static int
plat_write(int handle, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(handle, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

static void
plat_file_close(int handle)
{
    if (handle >= 0)
        close(handle);
}

static bool
plat_folder_is_open(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && (st.st_mode & 077) != 0;
}

static const char *
plat_advice(void)
{
    return ""; /* the system's service manager makes them */
}

/* Makes an open file the property of whom its folder belongs to; -1 with errno set. */
static int
plat_give_to_owner(int handle, const char *path)
{
    char *folder = strdup(path);
    struct stat st;
    int failed = folder ? 0 : -1;

    if (folder)
        folder[plat_path_folder_len(path)] = '\0';
    failed = failed ? failed : stat(folder, &st);
    if (!failed && st.st_uid != geteuid())
        failed = fchown(handle, st.st_uid, st.st_gid);
    free(folder);
    return failed;
}

static int
plat_state_open(const char *path, bool read_only, bool empty)
{
    int flags = read_only ? O_RDONLY : O_RDWR | O_APPEND | O_CREAT | (empty ? O_TRUNC : 0);
    int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK, 0600);
    struct stat st;

    if (fd >= 0 && !read_only && geteuid() == 0 && plat_give_to_owner(fd, path) != 0) {
        close(fd);
        return -1;
    }
    if (fd < 0 || (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)))
        return fd;
    close(fd);
    errno = EINVAL;
    return -1;
}

static int
plat_file_lock(int handle)
{
    return flock(handle, LOCK_EX | LOCK_NB);
}

static int64_t
plat_read_at(int handle, void *data, size_t len, int64_t offset)
{
    ssize_t n;

    do
        n = pread(handle, data, len, (off_t)offset);
    while (n < 0 && errno == EINTR);
    return n;
}

static int64_t
plat_file_len(int handle)
{
    struct stat st;

    return fstat(handle, &st) == 0 ? (int64_t)st.st_size : -1;
}

static int64_t
plat_path_len(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 ? (int64_t)st.st_size : 0;
}

static bool
plat_file_is_at(int handle, const char *path)
{
    struct stat mine, named;

    if (fstat(handle, &mine) != 0)
        return false;
    if (stat(path, &named) != 0)
        return errno != ENOENT && errno != ENOTDIR; /* it cannot be seen, which is something else */
    return mine.st_ino == named.st_ino && mine.st_dev == named.st_dev;
}

static bool
plat_path_is_file(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0 && S_ISREG(st.st_mode);
}

static int
plat_file_cut(int handle, int64_t len)
{
    return ftruncate(handle, (off_t)len);
}

static int
plat_file_sync(int handle)
{
    return fdatasync(handle);
}

static int
plat_folder_sync(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int failed = fd < 0 ? -1 : fsync(fd);

    plat_file_close(fd);
    return failed;
}

static int
plat_file_replace(const char *from, const char *to)
{
    return rename(from, to);
}

static int
plat_process_id(void)
{
    return (int)getpid();
}

static void
plat_folder_each(const char *path, void (*each)(const char *, void *), void *arg)
{
    DIR *dir = opendir(path);

    for (struct dirent *d; dir && (d = readdir(dir)) != NULL;)
        each(d->d_name, arg);
    if (dir)
        closedir(dir);
}

static void
plat_remove(const char *path)
{
    unlink(path);
}

/* A pipe that polls as writable takes 4096 bytes at once (POSIX, PIPE_BUF). */
static size_t
plat_console_write(const char *data, size_t len, int wait_ms)
{
    size_t done = 0;

    while (done < len) {
        struct pollfd p = {STDOUT_FILENO, POLLOUT, 0};
        size_t part = len - done < 4096 ? len - done : 4096;
        if (poll(&p, 1, wait_ms) <= 0)
            return done;
        ssize_t n = write(STDOUT_FILENO, data + done, part);
        if (n < 0)
            return len;
        done += (size_t)n;
    }
    return len;
}

/* Places where Unix systems keep the roots that their administrator trusts. */
static const char *const PLAT_ROOT_FILES[] = {
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
};

static void
plat_add_system_roots(mbedtls_x509_crt *chain)
{
    for (size_t i = 0; i < sizeof PLAT_ROOT_FILES / sizeof *PLAT_ROOT_FILES; i++) {
        char *pem;
        size_t len;
        if (plat_read_file(PLAT_ROOT_FILES[i], CERT_FILE_MAX, &pem, &len) != 0)
            continue;
        mbedtls_x509_crt_parse(chain, (const unsigned char *)pem, len + 1);
        free(pem);
        return;
    }
}

static int
plat_service_install(const struct plat_service *service, void (*say)(const char *))
{
    (void)service;
    say("--install is for Windows; with systemd, see samples/butler_webhook.service");
    return 2;
}

static int
plat_service_uninstall(void (*say)(const char *))
{
    say("--uninstall is for Windows; with systemd: systemctl disable --now butler_webhook");
    return 2;
}

/* A word for a failed look-up. */
static const char *
plat_resolver_error(int failed)
{
    return gai_strerror(failed);
}

#else

/* ---- Windows ---- */

#define SIO_UDP_NETRESET _WSAIOW(IOC_VENDOR, 15) /* mingw-w64 has no name for it */
#define PLAT_ERRNO 0x100000 /* errno is this plus the system's code where C has no number for it */
#define PLAT_SERVICE L"ButlerWebhook"
#define PLAT_CONSOLE_ROOM 16384 /* bytes that wait for the console beside the log's queue */
#define PLAT_ACCOUNT_MAX 600    /* bytes of DOMAIN\name */
/* Rights with which somebody can put something else in the place of a file, or into a folder. */
#define PLAT_CHANGE                                                                                \
    (FILE_WRITE_DATA | FILE_APPEND_DATA | WRITE_DAC | WRITE_OWNER | DELETE | FILE_DELETE_CHILD |   \
        GENERIC_WRITE | GENERIC_ALL)
#define PLAT_EVENT_KEY L"SYSTEM\\CurrentControlSet\\Services\\EventLog\\Application\\" PLAT_SERVICE

/* What the system's own threads (service control, Ctrl-C) and ours share. */
static struct {
    UINT code_page;                  /* set before start: the console's own; 0: there is none */
    HANDLE stop;                     /* set before start: an event, set when why is */
    const char *_Atomic why;         /* the first thing that asked for the end */
    bool is_service;                 /* set before start */
    SERVICE_STATUS_HANDLE status;    /* set before start */
    wchar_t name[256];               /* set before start: of the service */
    int (*run)(const char *);        /* set before start */
    const char *file;                /* set before start */
    int result;                      /* of run */
    struct plat_mutex state_lock;    /* guards state */
    DWORD state;                     /* of the service, as the manager knows it */
    struct plat_mutex message_lock;  /* guards messages */
    struct plat_message *messages;   /* texts of the system's errors so far */
    struct plat_mutex console_lock;  /* guards what follows */
    struct plat_cond console_change; /* of console_len */
    struct plat_thread console;      /* writes what waits, so that only it hangs with the console */
    bool console_started;
    size_t console_len; /* bytes that wait; 0: the thread is at rest */
    char console_data[PLAT_CONSOLE_ROOM];
} plat_windows = {
    .state_lock = {SRWLOCK_INIT}, .message_lock = {SRWLOCK_INIT}, .console_lock = {SRWLOCK_INIT}};

/*
 * Text of an error that the system was asked for once; kept, as threads use it
 * for as long as they like.
 */
struct plat_message {
    struct plat_message *next;
    int number;
    char text[256];
};

/* Errors that other systems have, too: with the number of C and the text that they give. */
static const struct {
    DWORD code;
    int number;
    const char *text;
} PLAT_ERRORS[] = {
    {ERROR_FILE_NOT_FOUND, ENOENT, "No such file or directory"},
    {ERROR_PATH_NOT_FOUND, ENOENT, "No such file or directory"},
    {ERROR_INVALID_NAME, ENOENT, "No such file or directory"},
    {ERROR_FILE_EXISTS, EEXIST, "File exists"},
    {ERROR_ALREADY_EXISTS, EEXIST, "File exists"},
    {ERROR_DIRECTORY, ENOTDIR, "Not a directory"},
    {ERROR_ACCESS_DENIED, EACCES, "Permission denied"},
    {ERROR_NOT_ENOUGH_MEMORY, ENOMEM, "Out of memory"},
    {ERROR_LOCK_VIOLATION, EWOULDBLOCK, "Resource temporarily unavailable"},
    {ERROR_IO_PENDING, EWOULDBLOCK, "Resource temporarily unavailable"},
    {ERROR_DISK_FULL, ENOSPC, "No space left on device"},
    {ERROR_HANDLE_DISK_FULL, ENOSPC, "No space left on device"},
    {ERROR_WRITE_PROTECT, EROFS, "Read-only file system"},
    {WSAEADDRINUSE, EADDRINUSE, "Address in use, or reserved by the system"},
    {WSAEADDRNOTAVAIL, EADDRNOTAVAIL, "Address not available"},
    {WSAEACCES, EPERM, "Not permitted, perhaps by a firewall"},
    {WSAECONNREFUSED, ECONNREFUSED, "Connection refused"},
    {WSAECONNRESET, ECONNRESET, "Connection reset by peer"},
    {WSAECONNABORTED, ECONNRESET, "Connection reset by peer"},
    {WSAETIMEDOUT, ETIMEDOUT, "Operation timed out"},
    {WSAENETUNREACH, ENETUNREACH, "Network unreachable"},
    {WSAEHOSTUNREACH, EHOSTUNREACH, "Host is unreachable"},
    {WSAEAFNOSUPPORT, EAFNOSUPPORT, "Address family not supported by protocol"},
    {ERROR_FILE_CORRUPT, EBADMSG, "Bad message"},
};

/* Makes a code of the system errno; always -1. */
static int
plat_fail(DWORD code)
{
    errno = PLAT_ERRNO + (int)code;
    for (size_t i = 0; i < sizeof PLAT_ERRORS / sizeof *PLAT_ERRORS; i++)
        if (PLAT_ERRORS[i].code == code) {
            errno = PLAT_ERRORS[i].number;
            break;
        }
    return -1;
}

/* The same for the code that the system just left. */
static int
plat_fail_last(void)
{
    return plat_fail(GetLastError());
}

/* Text as UTF-16, with room for so many more characters; malloc, NULL with errno. */
static wchar_t *
plat_wide(const char *text, size_t more)
{
    int n = MultiByteToWideChar(CP_UTF8, 0, text, -1, NULL, 0);
    wchar_t *wide = n > 0 ? malloc(((size_t)n + more) * sizeof *wide) : NULL;

    if (wide)
        MultiByteToWideChar(CP_UTF8, 0, text, -1, wide, n);
    else
        errno = ENOMEM;
    return wide;
}

/* Text of the system as UTF-8, cut to what fits. */
static void
plat_narrow(const wchar_t *wide, char *out, size_t size)
{
    int n = (int)wcslen(wide);

    while (n > 0 && WideCharToMultiByte(CP_UTF8, 0, wide, n, NULL, 0, NULL, NULL) >= (int)size)
        n--;
    n = n > 0 ? WideCharToMultiByte(CP_UTF8, 0, wide, n, out, (int)size, NULL, NULL) : 0;
    out[n] = '\0';
}

/* The same, whole; malloc, NULL without memory. */
static char *
plat_narrow_copy(const wchar_t *wide)
{
    int n = WideCharToMultiByte(CP_UTF8, 0, wide, -1, NULL, 0, NULL, NULL);
    char *text = n > 0 ? malloc((size_t)n) : NULL;

    if (text)
        WideCharToMultiByte(CP_UTF8, 0, wide, -1, text, n, NULL, NULL);
    return text;
}

/*
 * A path for the system's wide calls: whole, with backslashes, and in the form
 * that may be longer than 260 characters (\\?\C:\..., \\?\UNC\server\share\...).
 * malloc, NULL with errno.
 */
static wchar_t *
plat_wide_path(const char *path)
{
    static const wchar_t verbatim[] = L"\\\\?\\", unc[] = L"\\\\?\\UNC\\";
    wchar_t *wide = plat_wide(path, 1), *begin = wide, *full;
    DWORD room;

    if (!wide)
        return NULL;
    for (wchar_t *p = wide; *p; p++)
        *p = *p == L'/' ? L'\\' : *p;
    if (_wcsnicmp(begin, unc, 8) == 0) {
        begin += 6; /* \\server, its first backslash in the place of the C */
        begin[0] = L'\\';
    } else if (wcsncmp(begin, verbatim, 4) == 0 && begin[4] && begin[5] == L':' &&
        begin[6] == L'\\')
        begin += 4;
    else if (wcsncmp(begin, verbatim, 4) == 0 || wcsncmp(begin, L"\\\\.\\", 4) == 0)
        return wide; /* a volume or device: as it is */
    room = GetFullPathNameW(begin, 0, NULL, NULL);
    full = room ? malloc((room + 8) * sizeof *full) : NULL;
    if (!full) {
        errno = room ? ENOMEM : ENOENT;
        free(wide);
        return NULL;
    }
    if (begin[0] == L'\\' && begin[1] == L'\\') {
        memcpy(full, unc, sizeof unc);
        GetFullPathNameW(begin, room, full + 6, NULL);
        full[6] = L'C';
    } else {
        memcpy(full, verbatim, sizeof verbatim);
        GetFullPathNameW(begin, room, full + 4, NULL);
        if (wcsncmp(full + 4, L"\\\\.\\", 4) == 0) /* NUL and the like */
            memmove(full, full + 4, (wcslen(full + 4) + 1) * sizeof *full);
    }
    free(wide);
    return full;
}

/* The path as the user knows it: without the \\?\ that plat_wide_path has added. */
static const wchar_t *
plat_plain_path(wchar_t *full)
{
    if (wcsncmp(full, L"\\\\?\\UNC\\", 8) == 0) {
        full[6] = L'\\';
        return full + 6;
    }
    return wcsncmp(full, L"\\\\?\\", 4) == 0 && full[4] && full[5] == L':' ? full + 4 : full;
}

/* Whether a path made by plat_wide_path lies on another machine, where a service's account has no name of its own. */
static bool
plat_is_remote(const wchar_t *full)
{
    return _wcsnicmp(full, L"\\\\?\\UNC\\", 8) == 0;
}

/*
 * Opens a file, shared with everybody, also for renaming and deleting.
 * INVALID_HANDLE_VALUE with errno.
 */
static HANDLE
plat_open(const char *path, DWORD access, DWORD how, DWORD flags)
{
    wchar_t *wide = plat_wide_path(path);
    HANDLE h = INVALID_HANDLE_VALUE;

    if (!wide)
        return h;
    h = CreateFileW(wide, access, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL, how,
        FILE_ATTRIBUTE_NORMAL | flags, NULL);
    if (h == INVALID_HANDLE_VALUE)
        plat_fail_last();
    free(wide);
    return h;
}

/* A descriptor for a file. Takes h. -1 with errno. */
static int
plat_descriptor(HANDLE h)
{
    int fd = h == INVALID_HANDLE_VALUE ? -1 : _open_osfhandle((intptr_t)h, _O_BINARY);

    if (fd < 0 && h != INVALID_HANDLE_VALUE)
        CloseHandle(h);
    return fd;
}

static HANDLE
plat_handle(int fd)
{
    return fd < 0 ? INVALID_HANDLE_VALUE : (HANDLE)_get_osfhandle(fd);
}

/* Attributes of what path names, INVALID_FILE_ATTRIBUTES with errno. */
static DWORD
plat_attributes(const char *path)
{
    wchar_t *wide = plat_wide_path(path);
    DWORD a = wide ? GetFileAttributesW(wide) : INVALID_FILE_ATTRIBUTES;

    if (wide && a == INVALID_FILE_ATTRIBUTES)
        plat_fail_last();
    free(wide);
    return a;
}

static bool
plat_is_folder(const char *path)
{
    DWORD a = plat_attributes(path);

    return a != INVALID_FILE_ATTRIBUTES && (a & FILE_ATTRIBUTE_DIRECTORY);
}

/* Asks the program to end; the first reason counts. Threads of the system. */
static void
plat_ask_stop(const char *why)
{
    const char *none = NULL;

    atomic_compare_exchange_strong(&plat_windows.why, &none, why);
    SetEvent(plat_windows.stop);
}

/* The mutex of the TLS library. */
static void
plat_tls_mutex_init(mbedtls_threading_mutex_t *m)
{
    InitializeSRWLock((SRWLOCK *)&m->lock);
}

static void
plat_tls_mutex_free(mbedtls_threading_mutex_t *m)
{
    (void)m; /* it holds nothing */
}

static int
plat_tls_mutex_lock(mbedtls_threading_mutex_t *m)
{
    AcquireSRWLockExclusive((SRWLOCK *)&m->lock);
    return 0;
}

static int
plat_tls_mutex_unlock(mbedtls_threading_mutex_t *m)
{
    ReleaseSRWLockExclusive((SRWLOCK *)&m->lock);
    return 0;
}

/* Of the C library, which has taken the command line apart; mingw-w64 declares it in no header. */
extern int __wgetmainargs(int *, wchar_t ***, wchar_t ***, int, int *);

/* Gives it back, after all that is still to be shown in ours. */
static void
plat_restore_console(void)
{
    fflush(stdout);
    fflush(stderr);
    SetConsoleOutputCP(plat_windows.code_page);
}

/* The same when Ctrl-C or the like is about to end the process. A thread of the system. */
static BOOL WINAPI
plat_console_control_early(DWORD event)
{
    (void)event;
    SetConsoleOutputCP(plat_windows.code_page);
    return FALSE;
}

static void
plat_init(int *argc, char ***argv)
{
    WSADATA data;
    wchar_t **wide = NULL, **env;
    int mode = 0;

    __wgetmainargs(argc, &wide, &env, 0, &mode);
    SetErrorMode(SEM_FAILCRITICALERRORS | SEM_NOOPENFILEERRORBOX);
    SetDefaultDllDirectories(LOAD_LIBRARY_SEARCH_SYSTEM32);
    mbedtls_threading_set_alt(
        plat_tls_mutex_init, plat_tls_mutex_free, plat_tls_mutex_lock, plat_tls_mutex_unlock);
    WSAStartup(MAKEWORD(2, 2), &data);
    plat_windows.stop = CreateEventW(NULL, TRUE, FALSE, NULL);
    /* Unbuffered, which is what a console gets, would tear characters of several bytes apart. */
    setvbuf(stdout, NULL, _IOFBF, PLAT_CONSOLE_ROOM);
    setvbuf(stderr, NULL, _IOFBF, PLAT_CONSOLE_ROOM);
    plat_windows.code_page = GetConsoleOutputCP();
    if (plat_windows.code_page && SetConsoleOutputCP(CP_UTF8)) {
        atexit(plat_restore_console);
        SetConsoleCtrlHandler(plat_console_control_early, TRUE);
    }
    *argv = wide ? malloc(((size_t)*argc + 1) * sizeof **argv) : NULL;
    for (int i = 0; *argv && i < *argc; i++)
        if (!((*argv)[i] = plat_narrow_copy(wide[i])))
            *argv = NULL;
    if (!*argv) {
        fputs("butler_webhook: out of memory\n", stderr);
        exit(1);
    }
    (*argv)[*argc] = NULL;
}

/* Tells the service manager a state; code is the exit code of a service that has stopped. */
static void
plat_tell_manager(DWORD state, int code)
{
    SERVICE_STATUS s = {.dwServiceType = SERVICE_WIN32_OWN_PROCESS, .dwCurrentState = state};

    if (!plat_windows.status)
        return;
    plat_lock(&plat_windows.state_lock);
    if (plat_windows.state == SERVICE_STOPPED ||
        (plat_windows.state == SERVICE_STOP_PENDING && state == SERVICE_RUNNING)) {
        plat_unlock(&plat_windows.state_lock);
        return; /* a stop that came while it started */
    }
    plat_windows.state = state;
    if (state == SERVICE_RUNNING || state == SERVICE_START_PENDING)
        s.dwControlsAccepted = SERVICE_ACCEPT_STOP | SERVICE_ACCEPT_SHUTDOWN |
            SERVICE_ACCEPT_PRESHUTDOWN;
    if (state == SERVICE_START_PENDING || state == SERVICE_STOP_PENDING)
        s.dwWaitHint = 120000; /* a large journal takes its time */
    if (code != 0) {
        s.dwWin32ExitCode = ERROR_SERVICE_SPECIFIC_ERROR;
        s.dwServiceSpecificExitCode = (DWORD)code;
    }
    SetServiceStatus(plat_windows.status, &s);
    plat_unlock(&plat_windows.state_lock);
}

/* Writes to the event log of the machine, as a service only. */
static void
plat_add_event(WORD type, const char *text)
{
    HANDLE log = plat_windows.is_service ? RegisterEventSourceW(NULL, plat_windows.name) : NULL;
    wchar_t *wide = log ? plat_wide(text, 0) : NULL;
    const wchar_t *line = wide;

    if (wide && wcslen(wide) > 30000)
        wide[30000] = L'\0'; /* it takes 31,839 */
    if (wide)
        ReportEventW(log, type, 0, 1, NULL, 1, 0, &line, NULL);
    if (log)
        DeregisterEventSource(log);
    free(wide);
}

/* What the service manager asks of a service. A thread of the system. */
static DWORD WINAPI
plat_service_control(DWORD control, DWORD type, void *data, void *context)
{
    (void)type;
    (void)data;
    (void)context;
    switch (control) {
    case SERVICE_CONTROL_STOP:
    case SERVICE_CONTROL_SHUTDOWN:
    case SERVICE_CONTROL_PRESHUTDOWN:
        plat_tell_manager(SERVICE_STOP_PENDING, 0);
        plat_ask_stop(control == SERVICE_CONTROL_STOP ? "service stop" : "shutdown of the machine");
        return NO_ERROR;
    case SERVICE_CONTROL_INTERROGATE:
        return NO_ERROR;
    default:
        return ERROR_CALL_NOT_IMPLEMENTED;
    }
}

/*
 * The service's own main. Relative paths count from the folder of the exe, as the
 * system starts services in its own.
 */
static void WINAPI
plat_service_main(DWORD argc, wchar_t **argv)
{
    wchar_t folder[MAX_PATH];
    DWORD n = GetModuleFileNameW(NULL, folder, MAX_PATH);

    plat_windows.is_service = true;
    wcsncpy(plat_windows.name, argc > 0 && argv[0][0] ? argv[0] : PLAT_SERVICE, 255);
    plat_windows.status = RegisterServiceCtrlHandlerExW(
        plat_windows.name, plat_service_control, NULL);
    plat_tell_manager(SERVICE_START_PENDING, 0);
    while (n > 0 && n < MAX_PATH && folder[n - 1] != L'\\')
        folder[--n] = L'\0';
    if (n > 0 && n < MAX_PATH)
        SetCurrentDirectoryW(folder);
    plat_windows.result = plat_windows.run(plat_windows.file);
    plat_tell_manager(SERVICE_STOPPED, plat_windows.result);
}

/*
 * Whether the service manager has started this process: its parent is
 * services.exe. To ask the dispatcher itself would take wine ten seconds.
 */
static bool
plat_is_started_as_service(void)
{
    HANDLE all = CreateToolhelp32Snapshot(TH32CS_SNAPPROCESS, 0);
    PROCESSENTRY32W entry = {.dwSize = sizeof entry};
    DWORD parent = 0;
    bool found = false;

    if (all == INVALID_HANDLE_VALUE)
        return true; /* then let the dispatcher say */
    for (BOOL more = Process32FirstW(all, &entry); more; more = Process32NextW(all, &entry))
        if (entry.th32ProcessID == GetCurrentProcessId())
            parent = entry.th32ParentProcessID;
    for (BOOL more = Process32FirstW(all, &entry); more; more = Process32NextW(all, &entry))
        found = found ||
            (entry.th32ProcessID == parent && _wcsicmp(entry.szExeFile, L"services.exe") == 0);
    CloseHandle(all);
    return found;
}

static int
plat_run(int (*run)(const char *), const char *file)
{
    SERVICE_TABLE_ENTRYW table[] = {{plat_windows.name, plat_service_main}, {NULL, NULL}};

    plat_windows.run = run;
    plat_windows.file = file;
    if (plat_is_started_as_service() &&
        StartServiceCtrlDispatcherW(table)) /* it returns when the service has ended */
        return plat_windows.result;
    return run(file); /* nobody started it as a service */
}

static bool
plat_has_console(void)
{
    HANDLE out = GetStdHandle(STD_OUTPUT_HANDLE);

    return !plat_windows.is_service && out && out != INVALID_HANDLE_VALUE;
}

static void
plat_report(enum plat_state state, const char *text)
{
    if (state == PLAT_RUNNING)
        plat_tell_manager(SERVICE_RUNNING, 0);
    if (state == PLAT_STOPPING)
        plat_tell_manager(SERVICE_STOP_PENDING, 0);
    else
        plat_add_event(
            state == PLAT_FAILED ? EVENTLOG_ERROR_TYPE : EVENTLOG_INFORMATION_TYPE, text);
}

/*
 * Ctrl-C and its like. The system ends the process when this returns from the
 * last three, so it does not: the program has five seconds. A thread of the system.
 */
static BOOL WINAPI
plat_console_control(DWORD event)
{
    DWORD session = 1;

    if (event == CTRL_LOGOFF_EVENT && ProcessIdToSessionId(GetCurrentProcessId(), &session) &&
        session == 0)
        return TRUE; /* some user has left, not the one of this service or scheduled task */
    plat_ask_stop(event == CTRL_C_EVENT  ? "Ctrl-C"
            : event == CTRL_BREAK_EVENT  ? "Ctrl-Break"
            : event == CTRL_CLOSE_EVENT  ? "closing of the console"
            : event == CTRL_LOGOFF_EVENT ? "log-off"
                                         : "shutdown of the machine");
    if (event != CTRL_C_EVENT && event != CTRL_BREAK_EVENT)
        Sleep(INFINITE);
    return TRUE;
}

static void
plat_block_stop(void)
{
    SetConsoleCtrlHandler(plat_console_control, TRUE);
}

static const char *
plat_wait_stop(int wait_ms)
{
    return WaitForSingleObject(plat_windows.stop, (DWORD)wait_ms) == WAIT_OBJECT_0
        ? atomic_load(&plat_windows.why)
        : NULL;
}

static int64_t
plat_now_ms(void)
{
    return (int64_t)GetTickCount64();
}

static int64_t
plat_wall_ms(void)
{
    FILETIME t;

    GetSystemTimePreciseAsFileTime(&t);
    return (int64_t)((uint64_t)t.dwHighDateTime << 32 | t.dwLowDateTime) / 10000 -
        INT64_C(11644473600000); /* from 1601 to 1970 */
}

static void
plat_date(time_t s, struct tm *out)
{
    gmtime_s(out, &s);
}

static void
plat_sleep_ms(int ms)
{
    Sleep((DWORD)ms);
}

static int
plat_random(void *out, size_t len)
{
    return RtlGenRandom(out, (ULONG)len) ? 0 : -1;
}

static void
plat_mutex_init(struct plat_mutex *m)
{
    InitializeSRWLock(&m->m);
}

static void
plat_mutex_done(struct plat_mutex *m)
{
    (void)m; /* it holds nothing */
}

static void
plat_lock(struct plat_mutex *m)
{
    AcquireSRWLockExclusive(&m->m);
}

static void
plat_unlock(struct plat_mutex *m)
{
    ReleaseSRWLockExclusive(&m->m);
}

static void
plat_cond_init(struct plat_cond *c)
{
    InitializeConditionVariable(&c->c);
}

static void
plat_cond_done(struct plat_cond *c)
{
    (void)c; /* it holds nothing */
}

static void
plat_cond_wake_one(struct plat_cond *c)
{
    WakeConditionVariable(&c->c);
}

static void
plat_cond_wake(struct plat_cond *c)
{
    WakeAllConditionVariable(&c->c);
}

static void
plat_cond_wait(struct plat_cond *c, struct plat_mutex *m, int64_t wait_ms)
{
    SleepConditionVariableSRW(&c->c, &m->m,
        wait_ms < 0                 ? INFINITE
            : wait_ms > WAIT_MAX_MS ? WAIT_MAX_MS
                                    : (DWORD)wait_ms,
        0);
}

/* What the thread library starts: calls the entry that plat_thread_start was given. */
static unsigned __stdcall plat_thread_run(void *arg)
{
    struct plat_thread *thread = arg;

    thread->entry(thread->arg);
    return 0;
}

static int
plat_thread_start(struct plat_thread *thread, void (*entry)(void *), void *arg)
{
    thread->entry = entry;
    thread->arg = arg;
    /* Four times the room: network providers and virus scanners work in the threads of others. */
    thread->t = (HANDLE)_beginthreadex(
        NULL, 4 * THREAD_STACK, plat_thread_run, thread, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
    return thread->t ? 0 : -1;
}

static void
plat_thread_join(struct plat_thread *thread)
{
    WaitForSingleObject(thread->t, INFINITE);
    CloseHandle(thread->t);
}

static void
plat_thread_leave(struct plat_thread *thread)
{
    CloseHandle(thread->t);
}

_Noreturn static void
plat_exit_now(int code)
{
    if (plat_windows.code_page)
        SetConsoleOutputCP(plat_windows.code_page);
    plat_tell_manager(SERVICE_STOPPED, code);
    TerminateProcess(GetCurrentProcess(), (UINT)code);
    abort(); /* not reached */
}

static const char *
plat_error(void)
{
    int number = errno;
    struct plat_message *m;
    wchar_t text[200] = L"";
    DWORD n;

    for (size_t i = 0; i < sizeof PLAT_ERRORS / sizeof *PLAT_ERRORS; i++)
        if (PLAT_ERRORS[i].number == number)
            return PLAT_ERRORS[i].text;
    if (number < PLAT_ERRNO)
        return strerror(number);
    plat_lock(&plat_windows.message_lock);
    for (m = plat_windows.messages; m && m->number != number;)
        m = m->next;
    if (!m && (m = calloc(1, sizeof *m)) != NULL) {
        static const DWORD languages[] = {MAKELANGID(LANG_ENGLISH, SUBLANG_ENGLISH_US), 0};
        for (size_t i = 0, found = 0; i < 2 && !found; i++)
            found = FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS |
                    FORMAT_MESSAGE_MAX_WIDTH_MASK,
                NULL, (DWORD)(number - PLAT_ERRNO), languages[i], text, 200, NULL);
        for (n = (DWORD)wcslen(text); n > 0 && (text[n - 1] <= L' ' || text[n - 1] == L'.');)
            text[--n] = L'\0';
        plat_narrow(text, m->text, sizeof m->text - 24);
        snprintf(m->text + strlen(m->text), 24, "%serror %d", n ? " - " : "", number - PLAT_ERRNO);
        m->number = number;
        m->next = plat_windows.messages;
        plat_windows.messages = m;
    }
    plat_unlock(&plat_windows.message_lock);
    errno = number;
    return m ? m->text : "out of memory";
}

/* The C library knows errno for some of these codes only, and for a moment. */
static bool
plat_reader_has_gone(void)
{
    return _doserrno == ERROR_BROKEN_PIPE || _doserrno == ERROR_NO_DATA ||
        _doserrno == ERROR_PIPE_NOT_CONNECTED;
}

/* The C library's own getenv gives the ANSI code page. Each value is kept until the end. */
static const char *
plat_environment(const char *name)
{
    wchar_t *wide = plat_wide(name, 0), value[32768]; /* no variable is longer */
    DWORD n = wide ? GetEnvironmentVariableW(wide, value, 32768) : 0;

    free(wide);
    return n > 0 ? plat_narrow_copy(value) : NULL;
}

/* A word for a failed look-up. */
static const char *
plat_resolver_error(int failed)
{
    return failed == WSAHOST_NOT_FOUND || failed == WSANO_DATA ? "Name does not resolve"
        : failed == WSATRY_AGAIN                               ? "Try again"
        : failed == WSANO_RECOVERY                             ? "Non-recoverable error"
                                   : (plat_fail((DWORD)failed), plat_error());
}

static intptr_t
plat_udp_open(const struct plat_addr *addr, int *buffer_len)
{
    SOCKET s = socket(addr->ss.ss_family, SOCK_DGRAM, 0);
    int want = RECV_BUFFER, size = sizeof *buffer_len;
    DWORD off = 0, on = 1, none;
    u_long nonblocking = 1;

    if (s == INVALID_SOCKET)
        return plat_fail((DWORD)WSAGetLastError());
    SetHandleInformation((HANDLE)s, HANDLE_FLAG_INHERIT, 0);
    setsockopt(s, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, (const void *)&on, sizeof on);
    setsockopt(s, SOL_SOCKET, SO_RCVBUF, (const void *)&want, sizeof want);
    if (addr->ss.ss_family == AF_INET6)
        setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, (const void *)&off, sizeof off);
    /* Without these an ICMP answer to what we never sent would end a receive call with an error. */
    WSAIoctl(s, SIO_UDP_CONNRESET, &off, sizeof off, NULL, 0, &none, NULL, NULL);
    WSAIoctl(s, SIO_UDP_NETRESET, &off, sizeof off, NULL, 0, &none, NULL, NULL);
    getsockopt(s, SOL_SOCKET, SO_RCVBUF, (void *)buffer_len, &size);
    if (ioctlsocket(s, (long)FIONBIO, &nonblocking) == 0 &&
        bind(s, (const void *)&addr->ss, addr->len) == 0)
        return (intptr_t)s;
    /* WSAEACCES: in use by a program that shares it as little as we do, or of a reserved range */
    plat_fail(WSAGetLastError() == WSAEACCES ? WSAEADDRINUSE : (DWORD)WSAGetLastError());
    closesocket(s);
    return -1;
}

static int
plat_udp_receive(intptr_t sock, struct plat_batch *b, bool wait)
{
    int n = 0;

    if (wait)
        plat_wait(&sock, 1, PLAT_READ, SLICE_MS);
    while (n < RECV_BATCH) {
        int size = sizeof b->from[n].ss;
        int len = recvfrom(
            (SOCKET)sock, b->data[n], DATAGRAM_ROOM, 0, (void *)&b->from[n].ss, &size);
        int failed = len < 0 ? WSAGetLastError() : 0;
        if (failed == WSAECONNRESET || failed == WSAENETRESET)
            continue; /* about something else than what arrives */
        if (failed && failed != WSAEMSGSIZE) {
            plat_fail((DWORD)failed);
            return n > 0 || failed == WSAEWOULDBLOCK ? n : -1;
        }
        b->len[n] = failed ? DATAGRAM_ROOM : (size_t)len;
        b->from[n++].len = size;
    }
    return n;
}

static uint32_t
plat_udp_drops(intptr_t sock)
{
    (void)sock; /* the system counts them for the machine as a whole only */
    return 0;
}

static intptr_t
plat_tcp_connect(const struct plat_addr *addr)
{
    SOCKET s = socket(addr->ss.ss_family, SOCK_STREAM, 0);
    DWORD on = 1, off = 0;
    u_long nonblocking = 1;

    if (s == INVALID_SOCKET)
        return plat_fail((DWORD)WSAGetLastError());
    SetHandleInformation((HANDLE)s, HANDLE_FLAG_INHERIT, 0);
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, (const void *)&on, sizeof on);
    setsockopt(
        s, SOL_SOCKET, SO_OOBINLINE, (const void *)&on, sizeof on); /* or select would not rest */
    if (addr->ss.ss_family == AF_INET6) /* ::ffff:127.0.0.1 and the like */
        setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, (const void *)&off, sizeof off);
    if (ioctlsocket(s, (long)FIONBIO, &nonblocking) == 0 &&
        (connect(s, (const void *)&addr->ss, addr->len) == 0 ||
            WSAGetLastError() == WSAEWOULDBLOCK))
        return (intptr_t)s;
    plat_fail((DWORD)WSAGetLastError());
    closesocket(s);
    return -1;
}

static int
plat_tcp_connected(intptr_t sock)
{
    int failed = 0, size = sizeof failed;

    if (getsockopt((SOCKET)sock, SOL_SOCKET, SO_ERROR, (void *)&failed, &size) != 0)
        failed = WSAGetLastError();
    return failed ? plat_fail((DWORD)failed) : 0;
}

/* With select: WSAPoll keeps a failed connect to itself before Windows 10 2004. */
static unsigned
plat_wait(const intptr_t *socks, int n, int want, int wait_ms)
{
    struct timeval wait = {wait_ms / 1000, wait_ms % 1000 * 1000};
    fd_set in, out, failed;
    unsigned ready = 0, all = 0;
    int count;

    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_ZERO(&failed); /* what could not connect; any other failure counts as readable */
    for (int i = 0; i < n; i++) {
        if (socks[i] < 0)
            continue;
        all |= 1u << i;
        if (want & PLAT_READ)
            FD_SET((SOCKET)socks[i], &in);
        if (want & PLAT_WRITE) {
            FD_SET((SOCKET)socks[i], &out);
            FD_SET((SOCKET)socks[i], &failed);
        }
    }
    if (!all) { /* select wants at least one */
        Sleep((DWORD)wait_ms);
        return 0;
    }
    count = select(0, want & PLAT_READ ? &in : NULL, want & PLAT_WRITE ? &out : NULL,
        want & PLAT_WRITE ? &failed : NULL, &wait);
    if (count < 0)
        return all; /* the next call on a socket says why */
    for (int i = 0; count > 0 && i < n; i++)
        if (socks[i] >= 0 &&
            (FD_ISSET((SOCKET)socks[i], &in) || FD_ISSET((SOCKET)socks[i], &out) ||
                FD_ISSET((SOCKET)socks[i], &failed)))
            ready |= 1u << i;
    return ready;
}

static int
plat_send(intptr_t sock, const void *data, size_t len)
{
    int n = send((SOCKET)sock, data, len > INT_MAX ? INT_MAX : (int)len, 0);

    if (n < 0)
        return WSAGetLastError() == WSAEWOULDBLOCK ? PLAT_AGAIN
                                                   : plat_fail((DWORD)WSAGetLastError());
    return n;
}

static int
plat_recv(intptr_t sock, void *data, size_t len)
{
    int n = recv((SOCKET)sock, data, len > INT_MAX ? INT_MAX : (int)len, 0);

    if (n < 0)
        return WSAGetLastError() == WSAEWOULDBLOCK ? PLAT_AGAIN
                                                   : plat_fail((DWORD)WSAGetLastError());
    return n;
}

static void
plat_close(intptr_t sock)
{
    if (sock >= 0)
        closesocket((SOCKET)sock);
}

static int
plat_read_open(const char *path)
{
    if (!plat_is_folder(path))
        return plat_descriptor(plat_open(path, GENERIC_READ, OPEN_EXISTING, 0));
    errno = EISDIR;
    return -1;
}

static int64_t
plat_read(int handle, void *data, size_t len)
{
    DWORD n;

    if (!ReadFile(plat_handle(handle), data, (DWORD)len, &n, NULL))
        return GetLastError() == ERROR_BROKEN_PIPE ? 0 : plat_fail_last();
    return n;
}

static void
plat_host_name(char *out, size_t size)
{
    wchar_t name[256] = L"";
    DWORD n = 256;

    if (!GetComputerNameExW(ComputerNameDnsHostname, name, &n))
        name[0] = L'\0';
    plat_narrow(name, out, size);
}

static bool
plat_is_slash(char c)
{
    return c == '\\' || c == '/';
}

static bool
plat_has_drive(const char *path)
{
    return ((path[0] | 0x20) >= 'a' && (path[0] | 0x20) <= 'z') && path[1] == ':';
}

static bool
plat_path_is_absolute(const char *path)
{
    return (plat_has_drive(path) && plat_is_slash(path[2])) ||
        (plat_is_slash(path[0]) && plat_is_slash(path[1]));
}

static const char *
plat_path_problem(const char *path)
{
    if (plat_is_slash(path[0]) && plat_is_slash(path[1]) && path[2] == '?' &&
        plat_is_slash(path[3]) && plat_has_drive(path + 4) && !plat_is_slash(path[6]))
        path += 4;
    if (plat_path_is_absolute(path))
        return NULL;
    if (plat_has_drive(path))
        return "the path counts from wherever that drive's current folder is: write a backslash "
               "behind the colon, as in C:\\butler\\butler.yaml";
    if (plat_is_slash(path[0]))
        return "the path names no drive: write one before it, as in C:\\butler\\butler.yaml";
    return NULL;
}

static size_t
plat_path_folder_len(const char *path)
{
    size_t len = strlen(path);

    while (len > 0 && !plat_is_slash(path[len - 1]) && !(len == 2 && plat_has_drive(path)))
        len--;
    return len;
}

/*
 * The SID of the account that the program runs as, as text; to be freed with
 * LocalFree, NULL: none.
 */
static wchar_t *
plat_own_sid(void)
{
    union {
        TOKEN_USER user;
        char room[sizeof(TOKEN_USER) + SECURITY_MAX_SID_SIZE];
    } u;
    HANDLE token;
    DWORD n;
    wchar_t *text = NULL;

    if (!OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &token))
        return NULL;
    if (!GetTokenInformation(token, TokenUser, &u, sizeof u, &n) ||
        !ConvertSidToStringSidW(u.user.User.Sid, &text))
        text = NULL;
    CloseHandle(token);
    return text;
}

/*
 * Makes one folder, for its account (a SID) beside SYSTEM and the
 * administrators only, NULL: as its parent says.
 */
static int
plat_make_one_folder(const wchar_t *path, const wchar_t *sid)
{
    SECURITY_ATTRIBUTES sa = {.nLength = sizeof sa};
    wchar_t rules[400];
    int made;

    if (sid) {
        _snwprintf(rules, 399, L"D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;%ls)", sid);
        rules[399] = L'\0';
        if (!ConvertStringSecurityDescriptorToSecurityDescriptorW(
                rules, SDDL_REVISION_1, &sa.lpSecurityDescriptor, NULL))
            return plat_fail_last();
    }
    made = CreateDirectoryW(path, sid ? &sa : NULL) ? 0 : plat_fail_last();
    if (sid) {
        int failed = errno;
        LocalFree(sa.lpSecurityDescriptor);
        errno = failed;
    }
    return made;
}

/* The length of what nobody makes of a path from plat_wide_path: \\?\C:\ or \\?\UNC\server\share. */
static size_t
plat_root_len(const wchar_t *full)
{
    const wchar_t *share = full + 8;

    if (!plat_is_remote(full))
        return 7;
    share += wcscspn(share, L"\\");
    share += *share != L'\0';
    return (size_t)(share - full) + wcscspn(share, L"\\");
}

/*
 * Makes a folder and those above it; sid as above, for the last one. 0, 1: it
 * was there, -1 with errno.
 */
static int
plat_make_folders(wchar_t *path, const wchar_t *sid)
{
    wchar_t *slash = path + wcslen(path);
    DWORD a;
    int failed;

    while (slash > path + 7 && slash[-1] == L'\\') /* \\?\C:\ needs its own */
        *--slash = L'\0';
    failed = plat_make_one_folder(path, sid);
    if (failed && errno == ENOENT) { /* first those above */
        slash = wcsrchr(path, L'\\');
        if (slash && slash > path + plat_root_len(path)) {
            *slash = L'\0';
            failed = plat_make_folders(path, NULL) < 0;
            *slash = L'\\';
            failed = failed ? -1 : plat_make_one_folder(path, sid);
        }
    }
    if (!failed)
        return 0;
    a = GetFileAttributesW(path);
    if (a == INVALID_FILE_ATTRIBUTES)
        return -1;
    if (a & FILE_ATTRIBUTE_DIRECTORY)
        return 1;
    errno = ENOTDIR;
    return -1;
}

static int
plat_make_folder(const char *path, bool is_private)
{
    wchar_t *wide = plat_wide_path(path);
    wchar_t *sid = is_private && wide && !plat_is_remote(wide) ? plat_own_sid() : NULL;
    int made = wide ? plat_make_folders(wide, sid) : -1, failed = errno;

    LocalFree(sid);
    free(wide);
    errno = failed;
    return made < 0 ? -1 : 0;
}

static int
plat_append_open(const char *path)
{
    return plat_descriptor(plat_open(path, FILE_APPEND_DATA | SYNCHRONIZE, OPEN_ALWAYS, 0));
}

static int
plat_write(int handle, const char *data, size_t len)
{
    while (len > 0) {
        OVERLAPPED end = {.Offset = 0xffffffff, .OffsetHigh = 0xffffffff}; /* wherever that is */
        DWORD n = 0;
        if (!WriteFile(plat_handle(handle), data, len > 1u << 30 ? 1u << 30 : (DWORD)len, &n, &end))
            return plat_fail_last();
        data += n;
        len -= n;
    }
    return 0;
}

static void
plat_file_close(int handle)
{
    if (handle >= 0)
        _close(handle);
}

/*
 * Whether an account (a SID as text) may do everything anyway, or is none of a
 * person: the system, administrators, owners, services, whoever runs this (own).
 */
static bool
plat_is_trusted(const wchar_t *sid, const wchar_t *own)
{
    static const wchar_t *const known[] = {L"S-1-5-18", L"S-1-5-32-544", L"S-1-3-0", L"S-1-3-4"};
    const wchar_t *last = wcsrchr(sid, L'-');

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (wcscmp(sid, known[i]) == 0)
            return true;
    if (wcsncmp(sid, L"S-1-5-80-", 9) == 0 || (own && wcscmp(sid, own) == 0))
        return true;
    /* Of a domain or this machine: its Administrator, Domain and Enterprise Admins. */
    return wcsncmp(sid, L"S-1-5-21-", 9) == 0 &&
        (wcscmp(last, L"-500") == 0 || wcscmp(last, L"-512") == 0 || wcscmp(last, L"-519") == 0);
}

/* Writes DOMAIN\name of an account, or its SID if it has no name. */
static void
plat_account_name(PSID account, const wchar_t *sid, char *out, size_t size)
{
    wchar_t name[256], domain[256], full[520];
    DWORD name_len = 256, domain_len = 256;
    SID_NAME_USE use;

    if (!LookupAccountSidW(NULL, account, name, &name_len, domain, &domain_len, &use))
        plat_narrow(sid, out, size);
    else {
        swprintf(full, 520, L"%ls%ls%ls", domain, *domain ? L"\\" : L"", name);
        plat_narrow(full, out, size);
    }
}

/*
 * Whether a rule of a file or folder gives one of the rights to somebody who is
 * no administrator; who is written for a message. Rules that deny are not looked
 * at, so it can be more than is true.
 */
static bool
plat_others_may(const char *path, DWORD rights, char *who, size_t size)
{
    HANDLE h = plat_open(path, READ_CONTROL, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS);
    PSECURITY_DESCRIPTOR sd = NULL;
    ACL *acl = NULL;
    wchar_t *own = plat_own_sid(), *sid;
    bool may = false;

    if (h != INVALID_HANDLE_VALUE &&
        GetSecurityInfo(
            h, SE_FILE_OBJECT, DACL_SECURITY_INFORMATION, NULL, NULL, &acl, NULL, &sd) == 0) {
        may = !acl; /* no list of rules */
        snprintf(who, size, "everybody");
        for (DWORD i = 0; acl && !may && i < acl->AceCount; i++) {
            ACCESS_ALLOWED_ACE *ace;
            if (!GetAce(acl, i, (void **)&ace) || ace->Header.AceType != ACCESS_ALLOWED_ACE_TYPE ||
                (ace->Header.AceFlags & INHERIT_ONLY_ACE) || !(ace->Mask & rights) ||
                !ConvertSidToStringSidW(&ace->SidStart, &sid))
                continue;
            may = !plat_is_trusted(sid, own);
            if (may)
                plat_account_name(&ace->SidStart, sid, who, size);
            LocalFree(sid);
        }
        LocalFree(sd);
    }
    if (h != INVALID_HANDLE_VALUE)
        CloseHandle(h);
    LocalFree(own);
    return may;
}

static bool
plat_folder_is_open(const char *path)
{
    char who[PLAT_ACCOUNT_MAX];

    return plat_others_may(path, FILE_LIST_DIRECTORY | GENERIC_READ | GENERIC_ALL, who, sizeof who);
}

static const char *
plat_advice(void)
{
    return plat_windows.is_service && errno == EACCES
        ? "; as administrator, butler_webhook --install makes its folders and lets it write there"
        : "";
}

/* The name under which plat_file_replace puts a file away for a moment; malloc, NULL with errno. */
static wchar_t *
plat_aside(const wchar_t *path)
{
    wchar_t *aside = malloc((wcslen(path) + 5) * sizeof *aside);

    if (aside) {
        wcscpy(aside, path);
        wcscat(aside, L".old");
    } else
        errno = ENOMEM;
    return aside;
}

/*
 * The system can lose its power inside plat_file_replace, with a file put aside
 * and none in its place: then that one is the file.
 */
static int
plat_state_open(const char *path, bool read_only, bool empty)
{
    wchar_t *wide = plat_wide_path(path), *aside = wide ? plat_aside(wide) : NULL;
    DWORD access = GENERIC_READ | (read_only ? 0 : GENERIC_WRITE);
    DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    HANDLE h = INVALID_HANDLE_VALUE;
    DWORD a = wide ? GetFileAttributesW(wide) : INVALID_FILE_ATTRIBUTES;
    bool back = true;
    int fd, failed;

    if (aside && !read_only && a != INVALID_FILE_ATTRIBUTES)
        DeleteFileW(aside); /* it has been replaced */
    else if (aside && !read_only && GetFileAttributesW(aside) != INVALID_FILE_ATTRIBUTES)
        back = MoveFileExW(aside, wide, MOVEFILE_WRITE_THROUGH);
    if (!back)
        plat_fail_last(); /* without it all that waits would be forgotten */
    else if (a != INVALID_FILE_ATTRIBUTES && (a & FILE_ATTRIBUTE_DIRECTORY))
        errno = EINVAL;
    else if (aside) {
        h = CreateFileW(
            wide, access, share, NULL, read_only ? OPEN_EXISTING : OPEN_ALWAYS, 0, NULL);
        if (h == INVALID_HANDLE_VALUE)
            plat_fail_last();
        if (h == INVALID_HANDLE_VALUE && read_only && errno == ENOENT)
            h = CreateFileW(aside, access, share, NULL, OPEN_EXISTING, 0, NULL);
    }
    failed = errno;
    free(aside);
    free(wide);
    errno = failed;
    fd = plat_descriptor(h);
    if (fd >= 0 && empty && plat_file_cut(fd, 0) != 0) {
        failed = errno;
        _close(fd);
        errno = failed;
        fd = -1;
    }
    return fd;
}

/* The lock stands far behind the end, as it would keep others from reading what it covers. */
static int
plat_file_lock(int handle)
{
    OVERLAPPED where = {.OffsetHigh = 0x7fffffff};

    return LockFileEx(plat_handle(handle), LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0,
               1, 0, &where)
        ? 0
        : plat_fail_last();
}

static int64_t
plat_read_at(int handle, void *data, size_t len, int64_t offset)
{
    OVERLAPPED where = {
        .Offset = (DWORD)(uint64_t)offset, .OffsetHigh = (DWORD)((uint64_t)offset >> 32)};
    DWORD n = 0;

    if (ReadFile(plat_handle(handle), data, len > 1u << 30 ? 1u << 30 : (DWORD)len, &n, &where))
        return n;
    return GetLastError() == ERROR_HANDLE_EOF ? 0 : plat_fail_last();
}

static int64_t
plat_file_len(int handle)
{
    LARGE_INTEGER len;

    return GetFileSizeEx(plat_handle(handle), &len) ? len.QuadPart : plat_fail_last();
}

static int64_t
plat_path_len(const char *path)
{
    wchar_t *wide = plat_wide_path(path);
    WIN32_FILE_ATTRIBUTE_DATA data;
    int64_t len = 0;

    if (wide && GetFileAttributesExW(wide, GetFileExInfoStandard, &data))
        len = (int64_t)((uint64_t)data.nFileSizeHigh << 32 | data.nFileSizeLow);
    free(wide);
    return len;
}

static bool
plat_file_is_at(int handle, const char *path)
{
    BY_HANDLE_FILE_INFORMATION mine, named;
    FILE_STANDARD_INFO state;
    HANDLE h;
    bool same;

    if (!GetFileInformationByHandle(plat_handle(handle), &mine))
        return false;
    if (GetFileInformationByHandleEx(plat_handle(handle), FileStandardInfo, &state, sizeof state) &&
        state.DeletePending)
        return false; /* the name goes when the last handle is closed */
    h = plat_open(path, 0, OPEN_EXISTING, 0);
    if (h == INVALID_HANDLE_VALUE)
        return errno != ENOENT && errno != ENOTDIR; /* it cannot be seen, which is something else */
    same = !GetFileInformationByHandle(h, &named) ||
        (mine.nFileIndexLow == named.nFileIndexLow && mine.nFileIndexHigh == named.nFileIndexHigh);
    CloseHandle(h);
    return same;
}

static bool
plat_path_is_file(const char *path)
{
    DWORD a = plat_attributes(path);

    return a != INVALID_FILE_ATTRIBUTES &&
        !(a & (FILE_ATTRIBUTE_DIRECTORY | FILE_ATTRIBUTE_REPARSE_POINT));
}

static int
plat_file_cut(int handle, int64_t len)
{
    FILE_END_OF_FILE_INFO end = {.EndOfFile = {.QuadPart = len}};

    return SetFileInformationByHandle(plat_handle(handle), FileEndOfFileInfo, &end, sizeof end)
        ? 0
        : plat_fail_last();
}

/* Through a handle of its own: the system lets others on the same one wait for the disk, too. */
static int
plat_file_sync(int handle)
{
    HANDLE own = ReOpenFile(plat_handle(handle), GENERIC_WRITE,
        FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, 0);
    int failed = FlushFileBuffers(own == INVALID_HANDLE_VALUE ? plat_handle(handle) : own)
        ? 0
        : plat_fail_last();

    if (own != INVALID_HANDLE_VALUE)
        CloseHandle(own);
    return failed;
}

static int
plat_folder_sync(const char *path)
{
    (void)path; /* plat_file_replace writes names through, and NTFS has a journal of its own */
    return 0;
}

/* Renames a file, for good. 0, or errno. */
static int
plat_move(const wchar_t *from, const wchar_t *to, DWORD how)
{
    return MoveFileExW(from, to, how | MOVEFILE_WRITE_THROUGH) ? 0 : (plat_fail_last(), errno);
}

/*
 * In two steps where the system does not replace a file that is open: it puts
 * the old one aside, which plat_state_open finds if there is no second step.
 */
static int
plat_file_replace(const char *from, const char *to)
{
    wchar_t *wide_from = plat_wide_path(from), *wide_to = plat_wide_path(to);
    wchar_t *aside = wide_to ? plat_aside(wide_to) : NULL;
    int failed = ENOMEM;

    if (wide_from && aside) {
        failed = plat_move(wide_from, wide_to, MOVEFILE_REPLACE_EXISTING);
        if (failed == EACCES || failed == PLAT_ERRNO + ERROR_SHARING_VIOLATION) {
            bool taken = plat_move(wide_to, aside, MOVEFILE_REPLACE_EXISTING) == 0;
            failed = taken ? plat_move(wide_from, wide_to, 0) : failed;
            if (failed && taken)
                plat_move(aside, wide_to, 0);
        }
        if (!failed)
            DeleteFileW(aside); /* also one that could not be deleted before */
    }
    free(aside);
    free(wide_to);
    free(wide_from);
    errno = failed;
    return failed ? -1 : 0;
}

static int
plat_process_id(void)
{
    return (int)GetCurrentProcessId();
}

static void
plat_folder_each(const char *path, void (*each)(const char *, void *), void *arg)
{
    size_t len = strlen(path);
    char *pattern = malloc(len + 3);
    wchar_t *wide;
    WIN32_FIND_DATAW found;
    HANDLE h;

    if (!pattern)
        return;
    memcpy(pattern, path, len);
    memcpy(pattern + len, "\\*", 3);
    wide = plat_wide_path(pattern);
    h = wide ? FindFirstFileW(wide, &found) : INVALID_HANDLE_VALUE;
    if (h != INVALID_HANDLE_VALUE) {
        do {
            char *name = plat_narrow_copy(found.cFileName);
            if (name)
                each(name, arg);
            free(name);
        } while (FindNextFileW(h, &found));
        FindClose(h);
    }
    free(wide);
    free(pattern);
}

static void
plat_remove(const char *path)
{
    wchar_t *wide = plat_wide_path(path), *aside = wide ? plat_aside(wide) : NULL;

    if (aside)
        DeleteFileW(aside); /* first, or it would take the place of the file */
    if (wide)
        DeleteFileW(wide);
    free(aside);
    free(wide);
}

/* Writes text to a console in the system's characters, anything else as it is. */
static void
plat_put(const char *data, size_t len)
{
    HANDLE out = GetStdHandle(STD_OUTPUT_HANDLE);
    static wchar_t wide[PLAT_CONSOLE_ROOM]; /* console thread only */
    DWORD mode, n = 0;

    if (!out || out == INVALID_HANDLE_VALUE)
        return;
    if (GetConsoleMode(out, &mode)) {
        int count = MultiByteToWideChar(CP_UTF8, 0, data, (int)len, wide, PLAT_CONSOLE_ROOM);
        for (int at = 0;
             at < count && WriteConsoleW(out, wide + at, (DWORD)(count - at), &n, NULL);)
            at += (int)n;
        return;
    }
    for (size_t at = 0; at < len && WriteFile(out, data + at, (DWORD)(len - at), &n, NULL); at += n)
        if (n == 0)
            Sleep(SLICE_MS); /* a full pipe that does not wait */
}

/* The console thread: a console whose user selects text, or a full pipe, holds up it alone. */
static void
plat_console_thread(void *arg)
{
    (void)arg;
    plat_lock(&plat_windows.console_lock);
    for (;;) {
        while (plat_windows.console_len == 0)
            plat_cond_wait(&plat_windows.console_change, &plat_windows.console_lock, -1);
        plat_unlock(&plat_windows.console_lock);
        plat_put(plat_windows.console_data, plat_windows.console_len);
        plat_lock(&plat_windows.console_lock);
        plat_windows.console_len = 0;
        plat_cond_wake(&plat_windows.console_change);
    }
}

/* Waits up to wait_ms until what waits for the console is written; whether it is. */
static bool
plat_console_await_locked(int wait_ms)
{
    int64_t until_ms = plat_now_ms() + wait_ms, left;

    while (plat_windows.console_len > 0 && (left = until_ms - plat_now_ms()) > 0)
        plat_cond_wait(&plat_windows.console_change, &plat_windows.console_lock, left);
    return plat_windows.console_len == 0;
}

static size_t
plat_console_write(const char *data, size_t len, int wait_ms)
{
    size_t done = 0;

    if (plat_windows.is_service)
        return len; /* nobody sees what it would write */
    plat_lock(&plat_windows.console_lock);
    if (!plat_windows.console_started)
        plat_windows.console_started = plat_thread_start(
                                           &plat_windows.console, plat_console_thread, NULL) == 0;
    if (!plat_windows.console_started)
        done = len; /* an error counts as written */
    while (done < len && plat_console_await_locked(wait_ms)) {
        size_t part = len - done < PLAT_CONSOLE_ROOM ? len - done : PLAT_CONSOLE_ROOM;
        while (part < len - done && part > 1 && (data[done + part] & 0xc0) == 0x80)
            part--; /* not inside a character */
        memcpy(plat_windows.console_data, data + done, part);
        plat_windows.console_len = part;
        plat_cond_wake(&plat_windows.console_change);
        done += part;
    }
    plat_console_await_locked(wait_ms);
    plat_unlock(&plat_windows.console_lock);
    return done;
}

/*
 * What is used of crypt32.dll. Not linked: the system would first look for it
 * beside the exe, where somebody may have put another one.
 */
struct plat_crypt {
    __typeof__(&CertOpenStore) open_store;
    __typeof__(&CertCloseStore) close_store;
    __typeof__(&CertEnumCertificatesInStore) next;
    __typeof__(&CertFindCertificateInStore) find;
    __typeof__(&CertFreeCertificateContext) free;
    __typeof__(&CertGetEnhancedKeyUsage) usage;
    __typeof__(&CertGetCertificateContextProperty) property;
};

/* Loads it from the system's own folder; NULL: there is none. Once. */
static const struct plat_crypt *
plat_crypt_load(void)
{
    static const char *const names[] = {"CertOpenStore", "CertCloseStore",
        "CertEnumCertificatesInStore", "CertFindCertificateInStore", "CertFreeCertificateContext",
        "CertGetEnhancedKeyUsage", "CertGetCertificateContextProperty"};
    static struct plat_crypt crypt;
    HMODULE library = LoadLibraryExW(L"crypt32.dll", NULL, LOAD_LIBRARY_SEARCH_SYSTEM32);
    FARPROC found[sizeof names / sizeof *names];

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!library || !(found[i] = GetProcAddress(library, names[i])))
            return NULL;
    memcpy(&crypt, found, sizeof crypt); /* pointers to functions, all of one size */
    return &crypt;
}

/* Whether a certificate of the system's stores may speak for a server. */
static bool
plat_root_serves(const struct plat_crypt *crypt, const CERT_CONTEXT *cert, HCERTSTORE disallowed)
{
    union {
        CERT_ENHKEY_USAGE usage;
        char room[4096];
    } u;
    DWORD size = sizeof u;
    /* Roots that the system has come to distrust, wholly or for what they signed after a day. */
    static const DWORD distrust[] = {CERT_DISALLOWED_FILETIME_PROP_ID,
        CERT_DISALLOWED_ENHKEY_USAGE_PROP_ID, CERT_NOT_BEFORE_FILETIME_PROP_ID,
        CERT_NOT_BEFORE_ENHKEY_USAGE_PROP_ID};
    const CERT_CONTEXT *bad = disallowed
        ? crypt->find(disallowed, X509_ASN_ENCODING, 0, CERT_FIND_EXISTING, cert, NULL)
        : NULL;

    if (bad) {
        crypt->free(bad);
        return false;
    }
    for (size_t i = 0; i < sizeof distrust / sizeof *distrust; i++) {
        DWORD n = 0;
        if (crypt->property(cert, distrust[i], NULL, &n))
            return false;
    }
    if (!crypt->usage(cert, 0, &u.usage, &size))
        return GetLastError() == (DWORD)CRYPT_E_NOT_FOUND; /* no restriction */
    if (u.usage.cUsageIdentifier == 0)
        return GetLastError() == (DWORD)CRYPT_E_NOT_FOUND;
    for (DWORD i = 0; i < u.usage.cUsageIdentifier; i++)
        if (strcmp(u.usage.rgpszUsageIdentifier[i], szOID_PKIX_KP_SERVER_AUTH) == 0 ||
            strcmp(u.usage.rgpszUsageIdentifier[i], szOID_ANY_ENHANCED_KEY_USAGE) == 0)
            return true;
    return false;
}

/*
 * The machine's roots (store ROOT), and of its other authorities (store CA) those
 * that lead to a trusted root: they stand in for servers that do not send theirs.
 */
static void
plat_add_system_roots(mbedtls_x509_crt *chain)
{
    static const wchar_t *const names[] = {L"ROOT", L"CA"};
    DWORD where = CERT_SYSTEM_STORE_LOCAL_MACHINE | CERT_STORE_OPEN_EXISTING_FLAG |
        CERT_STORE_READONLY_FLAG;
    const struct plat_crypt *crypt = plat_crypt_load();
    HCERTSTORE disallowed;

    if (!crypt)
        return;
    disallowed = crypt->open_store(CERT_STORE_PROV_SYSTEM_W, 0, 0, where, L"Disallowed");

    for (int i = 0; i < 2; i++) {
        HCERTSTORE store = crypt->open_store(CERT_STORE_PROV_SYSTEM_W, 0, 0, where, names[i]);
        for (const CERT_CONTEXT *c = NULL; store && (c = crypt->next(store, c)) != NULL;) {
            mbedtls_x509_crt crt;
            uint32_t flags;
            mbedtls_x509_crt_init(&crt);
            if (plat_root_serves(crypt, c, disallowed) &&
                (i == 0 ||
                    (mbedtls_x509_crt_parse_der(&crt, c->pbCertEncoded, c->cbCertEncoded) == 0 &&
                        mbedtls_x509_crt_verify(&crt, chain, NULL, NULL, &flags, NULL, NULL) == 0)))
                mbedtls_x509_crt_parse_der(chain, c->pbCertEncoded, c->cbCertEncoded);
            mbedtls_x509_crt_free(&crt);
        }
        if (store)
            crypt->close_store(store, 0);
    }
    if (disallowed)
        crypt->close_store(disallowed, 0);
}

/*
 * The SID of the account NT SERVICE\ButlerWebhook, as text: S-1-5-80 and the
 * SHA-1 of the name in capitals ([MS-DTYP], service SIDs). It needs no service yet.
 */
static void
plat_service_sid(wchar_t out[80])
{
    wchar_t name[] = PLAT_SERVICE;
    uint8_t hash[20] = {0};
    uint32_t part[5];

    for (wchar_t *p = name; *p; p++)
        *p = (wchar_t)toupper(*p);
    mbedtls_sha1((const void *)name, sizeof name - sizeof *name, hash);
    memcpy(part, hash, sizeof hash);
    _snwprintf(out, 79, L"S-1-5-80-%lu-%lu-%lu-%lu-%lu", (unsigned long)part[0],
        (unsigned long)part[1], (unsigned long)part[2], (unsigned long)part[3],
        (unsigned long)part[4]);
    out[79] = L'\0';
}

/*
 * Adds a rule to a file or folder: the account (a SID) may do this, in a
 * folder also with what it holds.
 */
static int
plat_grant(const char *path, const wchar_t *sid, DWORD rights)
{
    HANDLE h = plat_open(path, READ_CONTROL | WRITE_DAC, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS);
    PSECURITY_DESCRIPTOR sd = NULL;
    ACL *old = NULL, *acl = NULL;
    PSID account = NULL;
    DWORD failed;
    EXPLICIT_ACCESSW rule = {.grfAccessPermissions = rights,
        .grfAccessMode = GRANT_ACCESS,
        .grfInheritance = plat_is_folder(path) ? SUB_CONTAINERS_AND_OBJECTS_INHERIT
                                               : NO_INHERITANCE};

    if (h == INVALID_HANDLE_VALUE)
        return -1;
    failed = ConvertStringSidToSidW(sid, &account) ? 0 : GetLastError();
    if (!failed)
        failed = GetSecurityInfo(
            h, SE_FILE_OBJECT, DACL_SECURITY_INFORMATION, NULL, NULL, &old, NULL, &sd);
    if (!failed && old) { /* without a list of rules everybody may do everything already */
        BuildTrusteeWithSidW(&rule.Trustee, account);
        failed = SetEntriesInAclW(1, &rule, old, &acl);
    }
    if (!failed && old)
        failed = SetSecurityInfo(
            h, SE_FILE_OBJECT, DACL_SECURITY_INFORMATION, NULL, NULL, acl, NULL);
    LocalFree(acl);
    LocalFree(sd);
    LocalFree(account);
    CloseHandle(h);
    return failed ? plat_fail(failed) : 0;
}

/* Says something with a path or an error in it. */
__attribute__((format(PRINTF, 2, 3))) static void
plat_say(void (*say)(const char *), const char *format, ...)
{
    char text[1400];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    say(text);
}

/* Writes the exe's own path. 0, or -1 with errno. */
static int
plat_own_path(wchar_t *out, DWORD size)
{
    DWORD n = GetModuleFileNameW(NULL, out, size);

    if (n > 0 && n < size)
        return 0;
    return plat_fail(n ? ERROR_INSUFFICIENT_BUFFER : GetLastError());
}

/*
 * Registers the source of our events, so that the event viewer shows their
 * text alone. 0, or -1 with errno.
 */
static int
plat_add_event_source(void)
{
    static const wchar_t file[] = L"%SystemRoot%\\System32\\EventCreate.exe"; /* 1 to 1000: "%1" */
    DWORD types = EVENTLOG_ERROR_TYPE | EVENTLOG_WARNING_TYPE | EVENTLOG_INFORMATION_TYPE;
    HKEY key;
    LONG failed = RegCreateKeyExW(
        HKEY_LOCAL_MACHINE, PLAT_EVENT_KEY, 0, NULL, 0, KEY_SET_VALUE, NULL, &key, NULL);

    if (failed)
        return plat_fail((DWORD)failed);
    failed = RegSetValueExW(
        key, L"EventMessageFile", 0, REG_EXPAND_SZ, (const BYTE *)file, sizeof file);
    if (!failed)
        failed = RegSetValueExW(
            key, L"TypesSupported", 0, REG_DWORD, (const BYTE *)&types, sizeof types);
    RegCloseKey(key);
    return failed ? plat_fail((DWORD)failed) : 0;
}

/* Gives the service its description, and has it started again after a failure; says how that went. */
static void
plat_configure(SC_HANDLE s, void (*say)(const char *))
{
    wchar_t about[] = L"Calls webhooks when Qlik Sense reload tasks fail or are aborted.";
    /* The network may come up late; the last one is repeated. */
    SC_ACTION again[] = {
        {SC_ACTION_RESTART, 5000}, {SC_ACTION_RESTART, 5000}, {SC_ACTION_RESTART, 30000}};
    SERVICE_DESCRIPTIONW description = {about};
    SERVICE_FAILURE_ACTIONSW failure = {
        .dwResetPeriod = 86400, .cActions = 3, .lpsaActions = again};
    SERVICE_FAILURE_ACTIONS_FLAG also_when_it_ends = {TRUE};

    if (!ChangeServiceConfig2W(s, SERVICE_CONFIG_DESCRIPTION, &description)) {
        plat_fail_last();
        plat_say(say, "warning: the service has no description: %s", plat_error());
    }
    if (ChangeServiceConfig2W(s, SERVICE_CONFIG_FAILURE_ACTIONS, &failure) &&
        ChangeServiceConfig2W(s, SERVICE_CONFIG_FAILURE_ACTIONS_FLAG, &also_when_it_ends))
        say("service ButlerWebhook: is started again after a failure");
    else {
        plat_fail_last();
        plat_say(
            say, "warning: the service is not started again after each failure: %s", plat_error());
    }
}

/*
 * Creates the service, or brings one that is there up to date: own process,
 * automatic start, its own account. *existed says which. 0, or -1 with errno.
 */
static int
plat_register(SC_HANDLE manager, const wchar_t *command, bool *existed, void (*say)(const char *))
{
    static const wchar_t account[] = L"NT SERVICE\\" PLAT_SERVICE, shown[] = L"butler_webhook";
    SC_HANDLE s = CreateServiceW(manager, PLAT_SERVICE, shown, SERVICE_ALL_ACCESS,
        SERVICE_WIN32_OWN_PROCESS, SERVICE_AUTO_START, SERVICE_ERROR_NORMAL, command, NULL, NULL,
        NULL, account, NULL);
    bool done = s != NULL;

    *existed = !s && GetLastError() == ERROR_SERVICE_EXISTS;
    if (*existed) {
        s = OpenServiceW(manager, PLAT_SERVICE, SERVICE_ALL_ACCESS);
        done = s &&
            ChangeServiceConfigW(s, SERVICE_WIN32_OWN_PROCESS, SERVICE_AUTO_START,
                SERVICE_ERROR_NORMAL, command, NULL, NULL, NULL, account, NULL, shown);
    }
    if (!done)
        plat_fail_last();
    else {
        plat_say(say,
            "service ButlerWebhook: %s, starts with the machine as NT SERVICE\\ButlerWebhook",
            *existed ? "brought up to date" : "registered");
        plat_configure(s, say);
    }
    if (s)
        CloseServiceHandle(s);
    return done ? 0 : -1;
}

/* The same for an exe and its configuration, in quotes as paths may have spaces. */
static int
plat_register_exe(SC_HANDLE manager, const wchar_t *exe, const wchar_t *config, bool *existed,
    void (*say)(const char *))
{
    size_t room = wcslen(exe) + wcslen(config) + 8;
    wchar_t *command = malloc(room * sizeof *command);
    int failed = -1;

    if (command) {
        swprintf(command, room, L"\"%ls\" \"%ls\"", exe, config);
        failed = plat_register(manager, command, existed, say);
    }
    free(command);
    return failed;
}

/*
 * Lets the service use a folder that is there (what: write in it) or a file (read
 * it), and says so. On another machine it is somebody else. -1, and this was said.
 */
static int
plat_install_right(
    const char *path, const wchar_t *sid, DWORD rights, const char *what, void (*say)(const char *))
{
    wchar_t *wide = plat_wide_path(path);
    bool remote = wide && plat_is_remote(wide);
    int failed = wide ? (remote ? 0 : plat_grant(path, sid, rights)) : -1;

    if (failed)
        plat_say(say, "%s: cannot let the service %s: %s", path, what, plat_error());
    else if (remote)
        plat_say(say,
            "warning: %s lies on another machine, where the service is this computer's account "
            "(DOMAIN\\COMPUTER$): let it %s there",
            path, what);
    else
        plat_say(say, "%s: the service may %s", path, what);
    free(wide);
    return failed;
}

/* Makes one folder of the service's, or lets it use one that is there; -1: this was said. */
static int
plat_install_folder(const char *path, const wchar_t *sid, void (*say)(const char *))
{
    wchar_t *wide = plat_wide_path(path);
    bool remote = wide && plat_is_remote(wide);
    int made = wide ? plat_make_folders(wide, remote ? NULL : sid) : -1;
    char who[PLAT_ACCOUNT_MAX];

    free(wide);
    if (made < 0) {
        plat_say(say, "folder %s: cannot be made: %s", path, plat_error());
        return -1;
    }
    if (made == 0 && !remote) {
        plat_say(say, "%s: made, for SYSTEM, Administrators and the service only", path);
        return 0;
    }
    if (plat_install_right(
            path, sid, FILE_GENERIC_READ | FILE_GENERIC_WRITE | DELETE, "write in it", say) != 0)
        return -1;
    if (!remote && plat_others_may(path, PLAT_CHANGE, who, sizeof who))
        plat_say(say, "warning: %s was there, and %s may change what lies in it", path, who);
    else if (!remote && plat_folder_is_open(path))
        plat_say(say, "warning: %s was there, and other users may look into it", path);
    return 0;
}

/* Warns of what ordinary users could do to a file that an administrator's service trusts. */
static void
plat_warn_writable(const wchar_t *path, const char *what, void (*say)(const char *))
{
    char who[PLAT_ACCOUNT_MAX];
    char *text = plat_narrow_copy(path);
    size_t len = text ? plat_path_folder_len(text) : 0;

    if (text && plat_others_may(text, PLAT_CHANGE, who, sizeof who))
        plat_say(
            say, "warning: not only administrators, also %s may change %s %s", who, what, text);
    if (text)
        text[len] = '\0';
    if (len > 0 && plat_others_may(text, PLAT_CHANGE, who, sizeof who))
        plat_say(
            say, "warning: not only administrators, also %s may change what lies in %s", who, text);
    free(text);
}

/*
 * Warns of a drive letter that only this log-on session knows (net use,
 * subst): a service has none of them.
 */
static void
plat_warn_drive(const char *path, void (*say)(const char *))
{
    wchar_t *full = path ? plat_wide_path(path) : NULL, target[512] = L"";
    wchar_t drive[] = L"X:\\";
    const wchar_t *plain = full ? plat_plain_path(full) : L"";
    bool own;

    if (plain[0] && plain[1] == L':') {
        drive[0] = plain[0];
        own = GetDriveTypeW(drive) == DRIVE_REMOTE;
        drive[2] = L'\0';
        own = own || (QueryDosDeviceW(drive, target, 512) && wcsncmp(target, L"\\??\\", 4) == 0);
        if (own)
            plat_say(say,
                "warning: %s lies on a drive that the service does not have: use a path on a drive "
                "of this machine",
                path);
    }
    free(full);
}

static int
plat_service_install(const struct plat_service *service, void (*say)(const char *))
{
    SC_HANDLE manager = OpenSCManagerW(NULL, NULL, SC_MANAGER_CONNECT | SC_MANAGER_CREATE_SERVICE);
    wchar_t *full = plat_wide_path(service->config), exe[2048], sid[80];
    const wchar_t *config = full ? plat_plain_path(full) : NULL;
    char *own = NULL;
    bool existed = false;
    int failed = manager ? 0 : plat_fail_last();

    if (failed)
        plat_say(say, "cannot reach the service manager: %s%s", plat_error(),
            errno == EACCES ? "; run this as administrator" : "");
    plat_service_sid(sid);
    for (size_t i = 0; !failed && i < service->folders; i++)
        failed = plat_install_folder(service->folder[i], sid, say);
    for (size_t i = 0; !failed && i < service->files; i++)
        plat_install_right(service->file[i], sid, FILE_GENERIC_READ, "read it", say);
    if (!failed) {
        failed = config ? plat_own_path(exe, 2048) : -1;
        failed = failed ? failed : plat_register_exe(manager, exe, config, &existed, say);
        if (failed)
            plat_say(say, "the service cannot be registered: %s%s", plat_error(),
                errno == PLAT_ERRNO + ERROR_SERVICE_MARKED_FOR_DELETE
                    ? "; close the window with the services, and try again"
                    : "");
    }
    if (!failed) {
        if (plat_add_event_source() == 0)
            say("event log, Application: source ButlerWebhook registered");
        else
            plat_say(say, "warning: the event log's source cannot be registered: %s", plat_error());
        own = plat_narrow_copy(exe);
        if (own)
            plat_install_right(own, sid, FILE_GENERIC_READ | FILE_GENERIC_EXECUTE, "run it", say);
        plat_warn_drive(own, say);
        for (size_t i = 0; i < service->folders + service->files; i++)
            plat_warn_drive(
                i < service->folders ? service->folder[i] : service->file[i - service->folders],
                say);
        plat_warn_writable(exe, "the program", say);
        plat_warn_writable(config, "the configuration", say);
        plat_say(say, "%s",
            existed ? "restart it: net stop ButlerWebhook, net start ButlerWebhook"
                    : "start it: net start ButlerWebhook");
    }
    free(own);
    free(full);
    if (manager)
        CloseServiceHandle(manager);
    return failed ? 1 : 0;
}

static int
plat_service_uninstall(void (*say)(const char *))
{
    SC_HANDLE manager = OpenSCManagerW(NULL, NULL, SC_MANAGER_CONNECT);
    SC_HANDLE s = manager
        ? OpenServiceW(manager, PLAT_SERVICE, SERVICE_STOP | SERVICE_QUERY_STATUS | DELETE)
        : NULL;
    SERVICE_STATUS status = {.dwCurrentState = SERVICE_STOPPED};
    bool removed;

    if (!s)
        plat_fail_last();
    if (!s) {
        bool none = errno == PLAT_ERRNO + ERROR_SERVICE_DOES_NOT_EXIST;
        plat_say(say, none ? "there is no service ButlerWebhook" : "cannot reach the service: %s%s",
            plat_error(), errno == EACCES ? "; run this as administrator" : "");
        if (manager)
            CloseServiceHandle(manager);
        return 1;
    }
    if (ControlService(s, SERVICE_CONTROL_STOP, &status))
        say("service ButlerWebhook: stopping");
    for (int i = 0;
         i < 100 && QueryServiceStatus(s, &status) && status.dwCurrentState != SERVICE_STOPPED; i++)
        Sleep(100);
    removed = DeleteService(s);
    if (!removed)
        plat_fail_last();
    plat_say(say,
        removed ? "service ButlerWebhook: removed%s" : "the service cannot be removed: %s",
        removed ? "; the state and log folders and the configuration stay" : plat_error());
    CloseServiceHandle(s);
    CloseServiceHandle(manager);
    if (removed)
        RegDeleteKeyW(HKEY_LOCAL_MACHINE, PLAT_EVENT_KEY);
    return removed ? 0 : 1;
}

#endif

/* ---- Both ---- */

/*
 * Looks host up (a name or an address, without brackets) and fills out with at
 * most max addresses of that port, IPv4 and IPv6 as the system orders them.
 * Gives their number, 0 for a name without addresses, -1 with the resolver's
 * word in *why. numeric_only asks no one. May block as long as the system's
 * resolver does. "localhost" needs no resolver, so that an empty chroot works.
 */
static int
plat_resolve(
    const char *host, int port, bool numeric_only, struct plat_addr *out, int max, const char **why)
{
    const char *names[2] = {host, NULL};
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    char service[8];
    int n = 0;

    if (numeric_only)
        hints.ai_flags |= AI_NUMERICHOST;
    else if (strcasecmp(host, "localhost") == 0) {
        names[0] = "127.0.0.1";
        names[1] = "::1";
    }
    snprintf(service, sizeof service, "%u", (unsigned)port & 0xffffu);
    for (int i = 0; i < 2 && names[i]; i++) {
        struct addrinfo *list;
        int failed = getaddrinfo(names[i], service, &hints, &list);
        if (failed) {
            *why = plat_resolver_error(failed);
            return -1;
        }
        for (struct addrinfo *a = list; a && n < max; a = a->ai_next)
            if (a->ai_family == AF_INET || a->ai_family == AF_INET6) {
                memcpy(&out[n].ss, a->ai_addr, a->ai_addrlen);
                out[n++].len = (socklen_t)a->ai_addrlen;
            }
        freeaddrinfo(list);
    }
    *why = "it has no addresses";
    return n;
}

/*
 * The address as 16 bytes, IPv4 in its IPv6 form (::ffff:a.b.c.d), so that one
 * comparison serves both.
 */
static void
plat_addr_bytes(const struct plat_addr *addr, uint8_t out[16])
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

    if (addr->ss.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const void *)&addr->ss;
        memcpy(out, &in6->sin6_addr, 16);
    } else {
        const struct sockaddr_in *in = (const void *)&addr->ss;
        memcpy(out, mapped, 12);
        memcpy(out + 12, &in->sin_addr, 4);
    }
}

/* Writes the address, "127.0.0.1" or "::1", with_port as "127.0.0.1:80" or "[::1]:80". */
static void
plat_addr_text(const struct plat_addr *addr, bool with_port, char out[64])
{
    char host[INET6_ADDRSTRLEN] = "?";
    bool is6 = addr->ss.ss_family == AF_INET6;
    const struct sockaddr_in6 *in6 = (const void *)&addr->ss;
    const struct sockaddr_in *in = (const void *)&addr->ss;
    int port = ntohs(is6 ? in6->sin6_port : in->sin_port);

    if (is6 && IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) {
        is6 = false;
        inet_ntop(AF_INET, in6->sin6_addr.s6_addr + 12, host, sizeof host);
    } else if (is6)
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
    else
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
    if (!with_port)
        snprintf(out, 64, "%s", host);
    else
        snprintf(out, 64, is6 ? "[%s]:%d" : "%s:%d", host, port);
}

static bool
plat_addr_is_ipv4(const struct plat_addr *addr)
{
    return addr->ss.ss_family == AF_INET;
}

/* Writes an address given as by plat_addr_bytes. */
static void
plat_bytes_text(const uint8_t bytes[16], char out[64])
{
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
    struct plat_addr addr = {.len = sizeof in6};

    memcpy(&in6.sin6_addr, bytes, 16);
    memcpy(&addr.ss, &in6, sizeof in6);
    plat_addr_text(&addr, false, out);
}

static int
plat_read_file(const char *path, size_t max, char **data, size_t *len)
{
    int handle = plat_read_open(path), failed = 0;
    char *room = handle < 0 ? NULL : malloc(max + 2);
    int64_t n = 1;

    if (handle < 0)
        return -1;
    if (!room)
        failed = ENOMEM;
    for (*len = 0; !failed && n != 0;) {
        n = plat_read(handle, room + *len, max + 1 - *len);
        if (n < 0)
            failed = errno;
        else if ((*len += (size_t)n) > max)
            failed = EFBIG;
    }
    plat_file_close(handle);
    if (failed || !room) {
        free(room);
        errno = failed;
        return -1;
    }
    room[*len] = '\0';
    *data = room;
    return 0;
}

static bool
plat_is_locked_error(void)
{
    return errno == EWOULDBLOCK;
}

static struct plat_batch *
plat_batch_new(void)
{
    struct plat_batch *b = calloc(1, sizeof *b);
    char *room = b ? malloc((size_t)RECV_BATCH * DATAGRAM_ROOM) : NULL;

    if (!room) {
        free(b);
        return NULL;
    }
    for (int i = 0; i < RECV_BATCH; i++)
        b->data[i] = room + (size_t)i * DATAGRAM_ROOM;
    return b;
}

static void
plat_batch_free(struct plat_batch *b)
{
    if (b)
        free(b->data[0]);
    free(b);
}

/*
 * Random bytes for the TLS library, which calls this by name (PSA external
 * random generator): works in a chroot without /dev, too.
 */
psa_status_t
mbedtls_psa_external_get_random(mbedtls_psa_external_random_context_t *context, uint8_t *output,
    size_t output_size, size_t *output_length)
{
    (void)context;
    if (plat_random(output, output_size) != 0)
        return PSA_ERROR_INSUFFICIENT_ENTROPY;
    *output_length = output_size;
    return PSA_SUCCESS;
}

/* ==== 3. Base ===============================================================
 *
 * What every section uses: error text, memory that cannot fail, growing
 * buffers, an arena, slices of text, UTF-8, numbers.
 */

/* Text of a failure: who, what, why. The callee writes it, callers may put words before it. */
struct err {
    char text[640];
};

/* Bytes that belong to somebody else; may hold NUL. */
struct slice {
    const char *data;
    size_t len;
};

/* Bytes of our own that grow; data is NUL-ended once anything was added. */
struct buf {
    char *data;
    size_t len;
    size_t cap;
    bool lent; /* data is the caller's, and is left behind when it is too small */
};

/* Memory that is given back all at once. */
struct arena {
    struct arena_block {
        struct arena_block *next;
        max_align_t data[];
    } * blocks;
};

/* Running out of memory ends the program: every size from outside is bounded before. */
static void *
x_check(void *p)
{
    if (p)
        return p;
    fputs("butler_webhook: out of memory\n", stderr);
    fflush(stderr); /* Windows' is buffered */
    plat_exit_now(1);
}

static void *
x_calloc(size_t count, size_t size)
{
    return x_check(calloc(count, size));
}

static void *
x_realloc(void *p, size_t size)
{
    return x_check(realloc(p, size));
}

static char *
x_strdup(const char *text)
{
    return x_check(strdup(text));
}

/* A buffer that starts in room of the caller's, for short texts without the heap. */
static struct buf
buf_in(char *room, size_t size)
{
    room[0] = '\0';
    return (struct buf){.data = room, .cap = size, .lent = true};
}

/* Makes room for more bytes and the NUL after them. */
static void
buf_reserve(struct buf *b, size_t more)
{
    size_t cap = b->cap ? b->cap : 64;

    if (more < b->cap - b->len)
        return;
    while (cap < b->len + more + 1)
        cap *= 2;
    if (b->lent) {
        char *grown = x_realloc(NULL, cap);
        memcpy(grown, b->data, b->len);
        b->data = grown;
        b->lent = false;
    } else
        b->data = x_realloc(b->data, cap);
    b->cap = cap;
}

/*
 * memcpy for the pieces of a text, most of them short, with which the C
 * library's is slow. The last step goes over bytes again that were copied before.
 */
static void
buf_copy(char *to, const char *from, size_t len)
{
    size_t at = 0;

    if (len > 128)
        memcpy(to, from, len);
    else if (len >= 16) {
        for (; at + 16 < len; at += 16)
            memcpy(to + at, from + at, 16); /* a fixed length: the compiler makes moves of it */
        memcpy(to + len - 16, from + len - 16, 16);
    } else if (len >= 8) {
        memcpy(to, from, 8);
        memcpy(to + len - 8, from + len - 8, 8);
    } else
        for (; at < len; at++)
            to[at] = from[at];
}

/* Adds len bytes, which may not lie in b itself. */
static void
buf_add(struct buf *b, const void *data, size_t len)
{
    buf_reserve(b, len);
    buf_copy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
}

static void
buf_add_text(struct buf *b, const char *text)
{
    buf_add(b, text, strlen(text));
}

static void
buf_add_char(struct buf *b, int c)
{
    buf_reserve(b, 1);
    b->data[b->len++] = (char)c;
    b->data[b->len] = '\0';
}

/* Adds a number in decimal. */
static void
buf_add_number(struct buf *b, unsigned long long n, bool negative)
{
    char text[24];
    size_t at = sizeof text;

    do
        text[--at] = (char)('0' + n % 10);
    while ((n /= 10) > 0);
    if (negative)
        text[--at] = '-';
    buf_add(b, text + at, sizeof text - at);
}

/* Adds what vprintf would print. */
__attribute__((format(PRINTF, 2, 0))) static void
buf_vprintf(struct buf *b, const char *format, va_list args)
{
    va_list again;
    int n;

    buf_reserve(b, 0);
    va_copy(again, args);
    n = vsnprintf(b->data + b->len, b->cap - b->len, format, again);
    va_end(again);
    if (n < 0)
        return;
    if ((size_t)n >= b->cap - b->len) {
        buf_reserve(b, (size_t)n);
        vsnprintf(b->data + b->len, (size_t)n + 1, format, args);
    }
    b->len += (size_t)n;
}

/*
 * As buf_format, with the arguments of a caller. The plain conversions, which
 * are nearly all, are done here, in a third of the time that printf takes; it
 * gets what is left from the first other one on.
 */
__attribute__((format(PRINTF, 2, 0))) static void
buf_vformat(struct buf *b, const char *format, va_list args)
{
    for (;;) {
        size_t plain = strcspn(format, "%");
        buf_add(b, format, plain);
        format += plain;
        if (strncmp(format, "%s", 2) == 0)
            buf_add_text(b, va_arg(args, const char *));
        else if (strncmp(format, "%zu", 3) == 0)
            buf_add_number(b, va_arg(args, size_t), false);
        else if (strncmp(format, "%llu", 4) == 0)
            buf_add_number(b, va_arg(args, unsigned long long), false);
        else if (strncmp(format, "%d", 2) == 0 || strncmp(format, "%lld", 4) == 0) {
            long long n = format[1] == 'd' ? va_arg(args, int) : va_arg(args, long long);
            buf_add_number(b, n < 0 ? 0 - (unsigned long long)n : (unsigned long long)n, n < 0);
        } else
            break;
        format += format[1] == 'l' ? 4 : format[1] == 'z' ? 3 : 2;
    }
    if (*format)
        buf_vprintf(b, format, args);
}

/* Adds what printf would print. */
__attribute__((format(PRINTF, 2, 3))) static void
buf_format(struct buf *b, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    buf_vformat(b, format, args);
    va_end(args);
}

static void
buf_free(struct buf *b)
{
    if (!b->lent)
        free(b->data);
    *b = (struct buf){0};
}

/* Makes b, cut to what fits, the text of e. Takes b. */
static void
err_take(struct err *e, struct buf *b)
{
    size_t len = b->len < sizeof e->text ? b->len : sizeof e->text - 1;

    memcpy(e->text, b->data, len);
    e->text[len] = '\0';
    buf_free(b);
}

/* Writes the text, cut to what fits. */
__attribute__((format(PRINTF, 2, 3))) static void
err_set(struct err *e, const char *format, ...)
{
    char room[sizeof e->text];
    struct buf b = buf_in(room, sizeof room);
    va_list args;

    va_start(args, format);
    buf_vformat(&b, format, args);
    va_end(args);
    err_take(e, &b);
}

/* Puts words before the text that a callee has left. */
__attribute__((format(PRINTF, 2, 3))) static void
err_prefix(struct err *e, const char *format, ...)
{
    char room[sizeof e->text];
    struct buf b = buf_in(room, sizeof room);
    va_list args;

    va_start(args, format);
    buf_vformat(&b, format, args);
    va_end(args);
    buf_add_text(&b, e->text);
    err_take(e, &b);
}

/* Zeroed memory that lives as long as the arena. */
static void *
arena_alloc(struct arena *a, size_t size)
{
    struct arena_block *block = x_calloc(1, sizeof *block + size);

    block->next = a->blocks;
    a->blocks = block;
    return block->data;
}

/* A copy of len bytes with a NUL behind them, as long-lived as the arena. */
static char *
arena_copy(struct arena *a, const char *data, size_t len)
{
    char *copy = arena_alloc(a, len + 1);

    if (len > 0)
        memcpy(copy, data, len);
    return copy;
}

/* Gives back all that was taken from the arena. */
static void
arena_done(struct arena *a)
{
    while (a->blocks) {
        struct arena_block *next = a->blocks->next;
        free(a->blocks);
        a->blocks = next;
    }
}

static struct slice
slice_of(const char *text)
{
    return (struct slice){text, strlen(text)};
}

/* Whether a holds exactly the letters of text; ASCII case does not count. */
static bool
slice_is(struct slice a, const char *text)
{
    return strlen(text) == a.len && strncasecmp(a.data, text, a.len) == 0;
}

/* Cuts blanks and tabs (and what else stands in blank) off both ends. */
static struct slice
slice_trim(struct slice s, const char *blank)
{
    while (s.len > 0 && s.data[0] && strchr(blank, s.data[0]))
        s.data++, s.len--;
    while (s.len > 0 && s.data[s.len - 1] && strchr(blank, s.data[s.len - 1]))
        s.len--;
    return s;
}

/* Takes what stands before the next separator off the front of *rest, the separator, too. */
static struct slice
slice_take(struct slice *rest, char separator)
{
    const char *end = rest->len ? memchr(rest->data, separator, rest->len) : NULL;
    struct slice part = {rest->data, end ? (size_t)(end - rest->data) : rest->len};

    rest->data += part.len + (end ? 1 : 0);
    rest->len -= part.len + (end ? 1 : 0);
    return part;
}

/* Reads a whole decimal number without sign; -1 if it is none or over max. */
static int64_t
slice_number(struct slice s, int64_t max)
{
    int64_t n = 0;

    if (s.len == 0)
        return -1;
    for (size_t i = 0; i < s.len; i++) {
        if (s.data[i] < '0' || s.data[i] > '9')
            return -1;
        n = n * 10 + (s.data[i] - '0');
        if (n > max)
            return -1;
    }
    return n;
}

static bool
ascii_is_digit(int c)
{
    return c >= '0' && c <= '9';
}

/* Value of a hexadecimal digit, -1 for anything else. */
static int
hex_value(int c)
{
    if (ascii_is_digit(c))
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Writes len bytes in hexadecimal; out has room for 2 * len + 1. */
static void
hex_write(const uint8_t *bytes, size_t len, char *out)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < len; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * len] = '\0';
}

/*
 * Reads len bytes from the 2 * len hexadecimal digits that s starts with; -1:
 * they are not there.
 */
static int
hex_read(struct slice s, uint8_t *bytes, size_t len)
{
    if (s.len < 2 * len)
        return -1;
    for (size_t i = 0; i < len; i++) {
        int high = hex_value((unsigned char)s.data[2 * i]);
        int low = hex_value((unsigned char)s.data[2 * i + 1]);
        if (high < 0 || low < 0)
            return -1;
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

/*
 * Reads one character of UTF-8 (RFC 3629: no surrogates, no overlong forms)
 * from at most len bytes. Gives its length and sets *point, or 0: not UTF-8.
 */
static size_t
utf8_read(const char *text, size_t len, uint32_t *point)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *p = (const unsigned char *)text;
    size_t n = p[0] < 0x80 ? 1 : p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    uint32_t c = n == 1 ? p[0] : p[0] & (0xffu >> (n + 1));

    if (n > len || (p[0] >= 0x80 && p[0] < 0xc2) || p[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3f);
    }
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
        return 0;
    *point = c;
    return n;
}

/* Whether all of it is UTF-8, by the rules of utf8_read. */
static bool
utf8_is_valid(const char *text, size_t len)
{
    uint32_t point;

    for (size_t i = 0, n; i < len; i += n) {
        for (n = 0; i + n < len && (unsigned char)text[i + n] < 0x80;)
            n++;
        if (n == 0 && (n = utf8_read(text + i, len - i, &point)) == 0)
            return false;
    }
    return true;
}

/* Adds one character as UTF-8; a surrogate becomes U+FFFD. */
static void
utf8_add(struct buf *b, uint32_t c)
{
    char out[4];
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;

    if (c >= 0xd800 && c <= 0xdfff)
        c = 0xfffd;
    if (n == 1)
        out[0] = (char)c;
    else {
        for (size_t i = n; i-- > 1; c >>= 6)
            out[i] = (char)(0x80 | (c & 0x3f));
        out[0] = (char)((0xf00u >> n & 0xf0u) | c);
    }
    buf_add(b, out, n);
}

/* Adds one byte as %XX. */
static void
percent_add(struct buf *b, unsigned char c)
{
    static const char digits[] = "0123456789ABCDEF";

    buf_add(b, (char[3]){'%', digits[c >> 4], digits[c & 15]}, 3);
}

/* Adds s with each %XX as the byte that it stands for; anything else stays. */
static void
percent_decode(struct buf *b, struct slice s)
{
    for (size_t i = 0; i < s.len; i++) {
        int high = i + 2 < s.len && s.data[i] == '%' ? hex_value(s.data[i + 1]) : -1;
        int low = high >= 0 ? hex_value(s.data[i + 2]) : -1;
        if (low >= 0) {
            buf_add_char(b, high << 4 | low);
            i += 2;
        } else
            buf_add_char(b, s.data[i]);
    }
}

/* Adds s in base64 (RFC 4648). */
static void
base64_add(struct buf *b, const void *data, size_t len)
{
    size_t n = 0;

    buf_reserve(b, len / 3 * 4 + 8);
    mbedtls_base64_encode((unsigned char *)b->data + b->len, b->cap - b->len, &n, data, len);
    b->len += n;
}

/* ==== 4. Log ================================================================
 *
 * Lines go into a bounded queue; the log thread writes them to the file, then
 * to the console. So neither a slow disk nor a console that nobody reads holds
 * anything up: lines that find no room are counted, and the count is told.
 *
 * Threads: log_line from any; the rest of the functions from main.
 */

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_VERBOSE, LOG_DEBUG, LOG_SILLY };

static const char *const LOG_LEVELS[] = {"error", "warn", "info", "verbose", "debug", "silly"};

struct log {
    struct plat_thread thread;
    enum log_level level; /* set before start */
    char *folder;         /* set before start; NULL: no file */
    struct plat_mutex lock;
    struct plat_cond wake;
    struct buf queue;       /* guarded by lock: whole lines */
    size_t dropped;         /* guarded by lock: lines without room */
    bool started;           /* main only */
    bool running, stopping; /* guarded by lock */
    bool resting;           /* guarded by lock: the log thread waits for a line */
    int file;               /* log thread only; -1: none open */
    bool file_failed;       /* log thread only: told once */
    size_t unshown;         /* log thread only: lines that the console did not take */
    bool console_cut;       /* log thread only: it has taken only a part of a line */
    char day[16];           /* log thread only: date of the open file */
};

static struct log the_log;

/*
 * Adds text so that it cannot be taken for anything else on a terminal or in a
 * log: control characters, line ends and marks of text direction as escapes,
 * bytes that are not UTF-8 as \xNN.
 */
static void
log_add_clean(struct buf *b, struct slice s)
{
    for (size_t i = 0, n; i < s.len; i += n ? n : 1) {
        uint32_t c = 0;
        for (n = 0; i + n < s.len && s.data[i + n] >= 0x20 && s.data[i + n] < 0x7f;)
            n++;
        if (n > 0) { /* plain text, as most is */
            buf_add(b, s.data + i, n);
            continue;
        }
        n = utf8_read(s.data + i, s.len - i, &c);
        if (n == 0 || c < 0x20)
            buf_format(b, "\\x%02x", (unsigned char)s.data[i]);
        else if ((c >= 0x7f && c < 0xa0) || (c >= 0x200b && c <= 0x200f) ||
            (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x2069) || c == 0x61c ||
            c == 0xfeff)
            buf_format(b, "\\u%04x", (unsigned)c);
        else
            buf_add(b, s.data + i, n);
    }
}

/* A short text for a log line, handed around by value. */
struct log_text {
    char text[LOG_NAME_MAX + 8];
};

/* A cleaned copy of s for a log line, cut at LOG_NAME_MAX bytes. */
static struct log_text
log_text(struct slice s)
{
    struct log_text out;
    struct buf b = buf_in(out.text, sizeof out.text);
    size_t keep = LOG_NAME_MAX;

    log_add_clean(&b, (struct slice){s.data, s.len < LOG_NAME_MAX + 4 ? s.len : LOG_NAME_MAX + 4});
    if (b.len <= LOG_NAME_MAX)
        return out;
    while (((unsigned char)b.data[keep] & 0xc0) == 0x80)
        keep--;
    memmove(out.text, b.data, keep); /* it has outgrown out, or is there */
    memcpy(out.text + keep, "...", sizeof "...");
    buf_free(&b);
    return out;
}

/*
 * Writes milliseconds since 1970 as 2026-11-22T09:30:00.123Z; the first 10
 * bytes are the date. Digit by digit: strftime would take most of the time that
 * a log line costs.
 */
static void
log_time(int64_t wall_ms, char out[32])
{
    static const char behind[] = "--T::.Z";
    wall_ms = wall_ms < 0 ? 0 : wall_ms;
    time_t s = (time_t)(wall_ms / 1000);
    struct tm t;

    plat_date(s, &t);
    int part[7] = {t.tm_year + 1900, t.tm_mon + 1, t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec,
        (int)(wall_ms % 1000)};
    for (int i = 0; i < 7; i++) {
        int digits = i == 0 ? 4 : i == 6 ? 3 : 2;
        for (int at = digits; at-- > 0; part[i] /= 10)
            out[at] = (char)('0' + part[i] % 10);
        out[digits] = behind[i];
        out += digits + 1;
    }
    *out = '\0';
}

/* Adds what printf would print, cleaned. */
__attribute__((format(PRINTF, 2, 0))) static void
log_add_message(struct buf *message, const char *format, va_list args)
{
    char room[1024];
    struct buf raw = buf_in(room, sizeof room);

    buf_vformat(&raw, format, args);
    log_add_clean(message, (struct slice){raw.data, raw.len});
    buf_free(&raw);
}

/* Adds one whole line of a cleaned message to lines. */
static void
log_add_line(struct buf *lines, enum log_level level, const struct buf *message)
{
    char when[32];

    log_time(plat_wall_ms(), when);
    buf_add_text(lines, when);
    buf_add_char(lines, ' ');
    buf_add_text(lines, LOG_LEVELS[level]);
    buf_add_text(lines, ": ");
    buf_add(lines, message->data, message->len);
    buf_add_text(lines, PLAT_EOL);
}

/*
 * Unlocks the log's lock and, if now, has queued lines written. The log thread is
 * woken only if it is at rest; it then gathers what comes in LOG_GATHER_MS, so
 * that a burst does not wake it for each line.
 */
static void
log_wake_unlock(bool now)
{
    bool rested = now && the_log.resting;

    if (rested)
        the_log.resting = false;
    plat_unlock(&the_log.lock);
    if (rested)
        plat_cond_wake(&the_log.wake);
}

/*
 * Queues one line, if its level is wanted; now says whether the log thread is to
 * hear of it. Many threads want the lock: all that can be done before it is.
 */
__attribute__((format(PRINTF, 3, 0))) static void
log_queue_line(bool now, enum log_level level, const char *format, va_list args)
{
    char room[1024];
    struct buf message = buf_in(room, sizeof room);
    size_t len;

    if (level > the_log.level)
        return;
    log_add_message(&message, format, args);
    plat_lock(&the_log.lock);
    len = the_log.queue.len;
    if (len < LOG_QUEUE_MAX)
        log_add_line(&the_log.queue, level, &message);
    if (len >= LOG_QUEUE_MAX || (the_log.queue.len > LOG_QUEUE_MAX && len > 0)) {
        the_log.queue.len = len;
        the_log.dropped++;
    }
    log_wake_unlock(now);
    buf_free(&message);
}

/* Logs one line, if its level is wanted. Never waits for anything but the queue's lock. */
__attribute__((format(PRINTF, 2, 3))) static void
log_line(enum log_level level, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    log_queue_line(true, level, format, args);
    va_end(args);
}

/* The same for a line that log_flush, called soon, or the next log_line will have written. */
__attribute__((format(PRINTF, 2, 3))) static void
log_line_later(enum log_level level, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    log_queue_line(false, level, format, args);
    va_end(args);
}

/* Has the lines of log_line_later written. */
static void
log_flush(void)
{
    plat_lock(&the_log.lock);
    log_wake_unlock(true);
}

/* Deletes a log file whose name holds a date before the_log's oldest day (arg). */
static void
log_remove_old(const char *name, void *arg)
{
    static const char prefix[] = "butler_webhook.";
    const char *oldest = arg;
    struct buf path = {0};

    if (strncmp(name, prefix, sizeof prefix - 1) != 0 || strlen(name) != sizeof prefix - 1 + 14 ||
        strcmp(name + sizeof prefix - 1 + 10, ".log") != 0 ||
        strncmp(name + sizeof prefix - 1, oldest, 10) >= 0)
        return;
    buf_format(&path, "%s/%s", the_log.folder, name);
    plat_remove(path.data);
    buf_free(&path);
}

/* Opens the file of the day wall_ms, deletes those that are too old. 0, or -1 with e. */
static int
log_open_file(int64_t wall_ms, struct err *e)
{
    char today[32], oldest[32];
    struct buf path = {0};

    log_time(wall_ms, today);
    log_time(wall_ms - LOG_KEEP_DAYS * INT64_C(86400000), oldest);
    if (the_log.file >= 0 && strncmp(today, the_log.day, 10) == 0)
        return 0;
    plat_file_close(the_log.file);
    buf_format(&path, "%s/butler_webhook.%.10s.log", the_log.folder, today);
    the_log.file = plat_append_open(path.data);
    if (the_log.file < 0)
        err_set(e, "cannot write the log file %s: %s%s", path.data, plat_error(), plat_advice());
    buf_free(&path);
    if (the_log.file < 0)
        return -1;
    snprintf(the_log.day, sizeof the_log.day, "%.10s", today);
    plat_folder_each(the_log.folder, log_remove_old, oldest);
    return 0;
}

/* Adds a line of the log's own to lines that are about to be written. */
__attribute__((format(PRINTF, 3, 4))) static void
log_own_line(struct buf *lines, enum log_level level, const char *format, ...)
{
    char room[1024];
    struct buf message = buf_in(room, sizeof room);
    va_list args;

    va_start(args, format);
    log_add_message(&message, format, args);
    va_end(args);
    log_add_line(lines, level, &message);
    buf_free(&message);
}

/*
 * Writes lines to the console. If nobody reads it for a second they are counted
 * instead, until it takes the line that tells how many are missing.
 */
static void
log_write_console(const struct buf *lines)
{
    struct buf note = {0};
    size_t went = 0;

    if (the_log.unshown > 0) {
        buf_add_text(&note, the_log.console_cut ? "\n" : "");
        log_own_line(
            &note, LOG_WARN, "%zu log lines are missing here: nobody read them", the_log.unshown);
        went = plat_console_write(note.data, note.len, 0);
        if (went == note.len)
            the_log.unshown = 0;
    }
    if (the_log.unshown == 0) {
        went = plat_console_write(lines->data, lines->len, 1000);
        the_log.console_cut = went > 0 && lines->data[went - 1] != '\n';
    } else {
        the_log.console_cut = the_log.console_cut || went > 0;
        went = 0;
    }
    for (; went < lines->len; went++)
        the_log.unshown += lines->data[went] == '\n';
    buf_free(&note);
}

/* Writes lines to the file and the console. Tells once when the file fails, once when it works. */
static void
log_write(struct buf *lines)
{
    struct err e;

    if (the_log.folder) {
        bool failed = log_open_file(plat_wall_ms(), &e) != 0;
        if (!failed && plat_write(the_log.file, lines->data, lines->len) != 0) {
            failed = true;
            err_set(&e, "cannot write to the log file: %s", plat_error());
            plat_file_close(the_log.file); /* a share that was away takes a new handle only */
            the_log.file = -1;
        }
        if (failed && !the_log.file_failed)
            log_own_line(lines, LOG_ERROR, "logDirectory: %s", e.text);
        if (!failed && the_log.file_failed)
            log_own_line(lines, LOG_INFO, "logDirectory: the log file can be written again");
        the_log.file_failed = failed;
    }
    log_write_console(lines);
}

/* Writes what is queued until log_stop, then what is left; main runs it if no thread could. */
static void
log_thread(void *arg)
{
    struct buf lines = {0}, other;
    size_t dropped;

    (void)arg;
    plat_lock(&the_log.lock);
    for (;;) {
        the_log.resting = the_log.queue.len == 0 && the_log.dropped == 0;
        if (the_log.resting && the_log.stopping)
            break;
        if (the_log.resting) {
            plat_cond_wait(&the_log.wake, &the_log.lock, -1);
            if (!the_log.stopping)
                plat_cond_wait(&the_log.wake, &the_log.lock, LOG_GATHER_MS);
            continue;
        }
        other = the_log.queue;
        the_log.queue = lines;
        lines = other;
        dropped = the_log.dropped;
        the_log.dropped = 0;
        plat_cond_wake(&the_log.wake); /* for log_await_room */
        plat_unlock(&the_log.lock);
        if (dropped > 0)
            log_own_line(
                &lines, LOG_WARN, "%zu log lines dropped: the log queue was full", dropped);
        log_write(&lines);
        lines.len = 0;
        if (lines.cap > LOG_QUEUE_KEEP)
            buf_free(&lines);
        plat_lock(&the_log.lock);
    }
    the_log.running = false;
    plat_cond_wake(&the_log.wake);
    plat_unlock(&the_log.lock);
    buf_free(&lines);
}

/* Waits until half of the queue is free, at most until until_ms: for lines not to be dropped. */
static void
log_await_room(int64_t until_ms)
{
    int64_t left;

    plat_lock(&the_log.lock);
    while (the_log.queue.len > LOG_QUEUE_MAX / 2 && (left = until_ms - plat_now_ms()) > 0)
        plat_cond_wait(&the_log.wake, &the_log.lock, left);
    plat_unlock(&the_log.lock);
}

/* Readies the log for log_line; until log_start lines only wait in the queue. */
static void
log_init(enum log_level level)
{
    the_log = (struct log){.level = level, .file = -1};
    plat_mutex_init(&the_log.lock);
    plat_cond_init(&the_log.wake);
}

/*
 * Starts the log thread. folder is where the file goes, made if need be; NULL:
 * console only. -1 with e: the folder or the file cannot be written.
 */
static int
log_start(const char *folder, struct err *e)
{
    if (folder) {
        the_log.folder = x_strdup(folder);
        if (plat_make_folder(folder, false) != 0) {
            err_set(e, "cannot make the folder %s: %s%s", folder, plat_error(), plat_advice());
            return -1;
        }
        if (log_open_file(plat_wall_ms(), e) != 0)
            return -1;
    }
    the_log.running = true;
    the_log.started = plat_thread_start(&the_log.thread, log_thread, NULL) == 0;
    if (the_log.started)
        return 0;
    the_log.running = false;
    err_set(e, "cannot start the log thread");
    return -1;
}

/*
 * Gives the log thread until until_ms to write what waits, or writes it here if
 * there is none. False: the thread is stuck, and the log must stay as it is.
 */
static bool
log_stop(int64_t until_ms)
{
    int64_t left;
    bool running;

    plat_lock(&the_log.lock);
    the_log.stopping = true;
    plat_cond_wake(&the_log.wake);
    while (the_log.running && (left = until_ms - plat_now_ms()) > 0)
        plat_cond_wait(&the_log.wake, &the_log.lock, left);
    running = the_log.running;
    plat_unlock(&the_log.lock);
    if (running) {
        plat_thread_leave(&the_log.thread);
        return false;
    }
    if (the_log.started)
        plat_thread_join(&the_log.thread);
    else
        log_thread(NULL);
    plat_file_close(the_log.file);
    free(the_log.folder);
    buf_free(&the_log.queue);
    plat_cond_done(&the_log.wake);
    plat_mutex_done(&the_log.lock);
    return true;
}

/* ==== 5. Alert ==============================================================
 *
 * A datagram, as log4net's PatternLayout printed it, becomes an alert; an alert
 * becomes a JSON body or a query string. Pure functions, no state.
 *
 *   id;host;taskName;appName;user;taskId;appId;date;level;executionId;message
 *
 * Nothing in it is escaped, so that a ";" may also belong to a name. Names and
 * order of the fields in a call are those of Butler's outgoing webhooks.
 */

enum alert_kind { ALERT_FAILURE, ALERT_ABORTED };
#define ALERT_KINDS 2

enum alert_field {
    FIELD_EVENT,
    FIELD_HOST_NAME,
    FIELD_USER,
    FIELD_TASK_NAME,
    FIELD_TASK_ID,
    FIELD_APP_NAME,
    FIELD_APP_ID,
    FIELD_TIME,
    FIELD_LEVEL,
    FIELD_EXECUTION_ID,
    FIELD_MESSAGE
};
#define ALERT_FIELDS 11

static const char *const FIELD_NAMES[ALERT_FIELDS] = {"event", "hostName", "user", "taskName",
    "taskId", "appName", "appId", "logTimeStamp", "logLevel", "executionId", "logMessage"};

static const struct {
    const char *name; /* in log lines and tables */
    const char *short_text;
    const char *event; /* what receivers get */
    const char *key;   /* in the configuration */
} KINDS[ALERT_KINDS] = {
    {"failure", "reload failed", "Qlik Sense reload failed", "reloadTaskFailure"},
    {"aborted", "reload aborted", "Qlik Sense reload aborted", "reloadTaskAborted"},
};

struct alert {
    enum alert_kind kind;
    struct slice field[ALERT_FIELDS]; /* into text, but for event */
    struct buf text;                  /* the datagram in UTF-8 */
};

enum alert_sort {
    ALERT_OURS,      /* *out is the alert */
    ALERT_IGNORED,   /* known, and not for us: e says what */
    ALERT_UNKNOWN,   /* e is the id, cleaned */
    ALERT_MALFORMED, /* e says what is wrong */
};

/* Every id that Qlik Sense's log appenders, or Butler's samples for them, are known to send. */
static const struct {
    const char *id;
    enum alert_sort sort;
    enum alert_kind kind;
} ALERT_IDS[] = {
    {"/scheduler-reload-failed/", ALERT_OURS, ALERT_FAILURE},
    {"/scheduler-task-failed/", ALERT_OURS, ALERT_FAILURE},
    {"/scheduler-reloadtask-failed/", ALERT_OURS, ALERT_FAILURE},
    {"/scheduler-reload-aborted/", ALERT_OURS, ALERT_ABORTED},
    {"/scheduler-task-aborted/", ALERT_OURS, ALERT_ABORTED},
    {"/scheduler-reload-success/", ALERT_IGNORED, ALERT_FAILURE},
    {"/scheduler-task-success/", ALERT_IGNORED, ALERT_FAILURE},
    {"/scheduler-task-success//", ALERT_IGNORED, ALERT_FAILURE},
    {"/scheduler-reloadtask-success/", ALERT_IGNORED, ALERT_FAILURE},
    {"/scheduler-reload-complete/", ALERT_IGNORED, ALERT_FAILURE},
    {"/scheduler-distribute/", ALERT_IGNORED, ALERT_FAILURE},
    {"/engine-reload-failed/", ALERT_IGNORED, ALERT_FAILURE},
};

/* log4net.Core.Level: all the names that %level can print. */
static const char *const LOG4NET_LEVELS[] = {"INFO", "WARN", "ERROR", "FATAL", "DEBUG", "OFF",
    "EMERGENCY", "ALERT", "CRITICAL", "SEVERE", "NOTICE", "TRACE", "FINE", "FINER", "FINEST",
    "VERBOSE", "ALL", "log4net:DEBUG"};

/* Windows-1252, 0x80 to 0x9f; its five undefined bytes stand for themselves. */
static const uint16_t CP1252[32] = {0x20ac, 0x81, 0x201a, 0x192, 0x201e, 0x2026, 0x2020, 0x2021,
    0x2c6, 0x2030, 0x160, 0x2039, 0x152, 0x8d, 0x17d, 0x8f, 0x90, 0x2018, 0x2019, 0x201c, 0x201d,
    0x2022, 0x2013, 0x2014, 0x2dc, 0x2122, 0x161, 0x203a, 0x153, 0x9d, 0x17e, 0x178};

/* UTF-16 to UTF-8; lone surrogates and an odd byte at the end become U+FFFD. */
static void
alert_decode_utf16(struct slice s, bool big_endian, struct buf *out)
{
    size_t high = big_endian ? 0 : 1, low = 1 - high;
    const unsigned char *p = (const unsigned char *)s.data;

    for (size_t i = 0; i + 1 < s.len; i += 2) {
        uint32_t c = (uint32_t)p[i + high] << 8 | p[i + low];
        if (c >= 0xd800 && c < 0xdc00 && i + 3 < s.len) {
            uint32_t next = (uint32_t)p[i + 2 + high] << 8 | p[i + 2 + low];
            if (next >= 0xdc00 && next < 0xe000) {
                c = 0x10000 + ((c - 0xd800) << 10) + (next - 0xdc00);
                i += 2;
            }
        }
        utf8_add(out, c);
    }
    if (s.len % 2)
        utf8_add(out, 0xfffd);
}

/*
 * Adds the datagram to out as UTF-8. Its encoding is told by how it starts (an
 * id starts with "/"), else by whether all of it is UTF-8.
 */
static void
alert_decode(struct slice s, struct buf *out)
{
    static const struct {
        const char *start;
        size_t len, skip;
        bool big_endian;
    } utf16[] = {
        {"\xff\xfe/\0", 4, 2, false},
        {"\xfe\xff\0/", 4, 2, true},
        {"/\0", 2, 0, false},
        {"\0/", 2, 0, true},
    };

    for (size_t i = 0; i < sizeof utf16 / sizeof *utf16; i++)
        if (s.len >= utf16[i].len && memcmp(s.data, utf16[i].start, utf16[i].len) == 0) {
            s.data += utf16[i].skip;
            s.len -= utf16[i].skip;
            alert_decode_utf16(s, utf16[i].big_endian, out);
            return;
        }
    if (utf8_is_valid(s.data, s.len)) {
        bool bom = s.len >= 3 && memcmp(s.data, "\xef\xbb\xbf", 3) == 0;
        buf_add(out, s.data + (bom ? 3 : 0), s.len - (bom ? 3 : 0));
        return;
    }
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.data[i];
        utf8_add(out, c >= 0x80 && c < 0xa0 ? CP1252[c - 0x80] : c);
    }
}

/* What log4net prints for a property that is not set, or nothing at all. */
static bool
alert_is_unset(struct slice s)
{
    return s.len == 0 || (s.len == 6 && memcmp(s.data, "(null)", 6) == 0);
}

/* The GUID without its braces; empty if s is not 8-4-4-4-12 hexadecimal digits. */
static struct slice
alert_guid(struct slice s)
{
    if (s.len == 38 && s.data[0] == '{' && s.data[37] == '}')
        s = (struct slice){s.data + 1, 36};
    for (size_t i = 0; i < s.len; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash ? s.data[i] != '-' : hex_value((unsigned char)s.data[i]) < 0)
            return (struct slice){0};
    }
    return s.len == 36 ? s : (struct slice){0};
}

static bool
alert_is_id(struct slice s)
{
    return alert_is_unset(s) || alert_guid(s).len > 0;
}

/* Whether it is the name of one of log4net's levels, in any case. */
static bool
alert_is_level(struct slice s)
{
    for (size_t i = 0; i < sizeof LOG4NET_LEVELS / sizeof *LOG4NET_LEVELS; i++)
        if (slice_is(s, LOG4NET_LEVELS[i]))
            return true;
    return false;
}

/* Takes what stands before the next ";" off the front of *rest; false: there is no ";" left. */
static bool
alert_take(struct slice *rest, struct slice *part)
{
    if (rest->len == 0 || !memchr(rest->data, ';', rest->len))
        return false;
    *part = slice_take(rest, ';');
    return true;
}

/*
 * Finds the first run of taskId;appId;date;level;executionId in rest that at
 * least three fields stand before. Sets those five fields, the message behind
 * them, and *names to all that stands before them. False: there is none.
 */
static bool
alert_find_ids(struct slice rest, struct slice *field, struct slice *names)
{
    struct slice last[5] = {0}, part, all = rest;

    for (size_t n = 0; rest.data; n++) {
        if (!alert_take(&rest, &part)) {
            part = rest;
            rest = (struct slice){0};
        }
        memmove(last, last + 1, 4 * sizeof *last);
        last[4] = part;
        if (n < 7 || !alert_is_level(last[3]) || !alert_is_id(last[0]) || !alert_is_id(last[1]))
            continue;
        field[FIELD_TASK_ID] = last[0];
        field[FIELD_APP_ID] = last[1];
        field[FIELD_TIME] = last[2];
        field[FIELD_LEVEL] = last[3];
        field[FIELD_EXECUTION_ID] = last[4];
        field[FIELD_MESSAGE] = rest.data ? rest : (struct slice){part.data + part.len, 0};
        *names = (struct slice){all.data, (size_t)(last[0].data - 1 - all.data)};
        return true;
    }
    return false;
}

/* One way to cut names into task name, app name and user. */
struct alert_cut {
    size_t task_end, user_begin; /* offsets of the two ";" */
    int rank;                    /* 2: task name ends with app name; 1: no "; " is cut */
};

/* How well a cut fits. */
static int
alert_rank_cut(struct slice names, size_t task_end, size_t user_begin)
{
    struct slice app = {names.data + task_end + 1, user_begin - task_end - 1};
    bool named = !alert_is_unset(app) && app.len <= task_end && app.len <= CUT_NAME_MAX &&
        memcmp(names.data + task_end - app.len, app.data, app.len) == 0;
    bool spaced = names.data[task_end + 1] == ' ' ||
        (user_begin + 1 < names.len && names.data[user_begin + 1] == ' ');

    return (named ? 2 : 0) + (spaced ? 0 : 1);
}

/*
 * Cuts names at two of its ";" into task name, app name and user. Preferred:
 * the task name ends with the app name (as Qlik's own default names do), no cut
 * at a ";" with a space behind it, the shortest task name, the shortest user.
 * Over CUT_TOKENS_MAX pieces only the first and the last ones are tried, so
 * that a hostile datagram costs no more than a real one. False: under two ";".
 */
static bool
alert_cut_names(struct slice names, struct slice *field)
{
    size_t at[CUT_TOKENS_MAX], n = 0;
    struct alert_cut best = {0, 0, -1};

    for (size_t i = 0; i < names.len; i++)
        if (names.data[i] == ';') {
            if (n == CUT_TOKENS_MAX) { /* keep the first half, slide the second */
                memmove(at + n / 2, at + n / 2 + 1, (n / 2 - 1) * sizeof *at);
                n--;
            }
            at[n++] = i;
        }
    for (size_t a = 0; a < n; a++)
        for (size_t b = n; b-- > a + 1;) {
            int rank = alert_rank_cut(names, at[a], at[b]);
            if (rank > best.rank)
                best = (struct alert_cut){at[a], at[b], rank};
        }
    if (best.rank < 0)
        return false;
    field[FIELD_TASK_NAME] = (struct slice){names.data, best.task_end};
    field[FIELD_APP_NAME] = (struct slice){
        names.data + best.task_end + 1, best.user_begin - best.task_end - 1};
    field[FIELD_USER] = (struct slice){
        names.data + best.user_begin + 1, names.len - best.user_begin - 1};
    return true;
}

/* In a failed event Butler makes one backslash of two in the user; receivers may count on it. */
static void
alert_join_backslashes(struct alert *alert)
{
    struct slice *user = &alert->field[FIELD_USER];
    char *start = user->len ? alert->text.data + (user->data - alert->text.data) : NULL;
    size_t n = 0;

    for (size_t i = 0; i < user->len; i++) {
        start[n++] = start[i];
        if (start[i] == '\\' && i + 1 < user->len && start[i + 1] == '\\')
            i++;
    }
    user->len = n;
}

/* Whether an app id names no app: not set, or only zeros. */
static bool
alert_is_no_app(struct slice id)
{
    struct slice guid = alert_guid(id);

    for (size_t i = 0; i < guid.len; i++)
        if (guid.data[i] != '0' && guid.data[i] != '-')
            return false;
    return true;
}

/* Sorts text by its id, then reads all fields into alert. */
static enum alert_sort
alert_read_fields(struct alert *alert, struct err *e)
{
    struct slice rest = {alert->text.data, alert->text.len}, id, names, *field = alert->field;
    enum alert_sort sort = ALERT_UNKNOWN;

    while (rest.len > 0 && (rest.data[rest.len - 1] == '\r' || rest.data[rest.len - 1] == '\n'))
        rest.len--;
    if (!alert_take(&rest, &id))
        id = rest, rest.len = 0;
    for (size_t i = 0; i < sizeof ALERT_IDS / sizeof *ALERT_IDS; i++)
        if (slice_is(id, ALERT_IDS[i].id)) {
            sort = ALERT_IDS[i].sort;
            alert->kind = ALERT_IDS[i].kind;
            break;
        }
    if (sort != ALERT_OURS) {
        err_set(e, "%s", log_text(id).text);
        return sort;
    }
    if (!alert_take(&rest, &field[FIELD_HOST_NAME]) || !alert_find_ids(rest, field, &names) ||
        !alert_cut_names(names, field)) {
        err_set(e, "no taskId;appId;date;level;executionId behind host, task, app and user");
        return ALERT_MALFORMED;
    }
    for (int i = 0; i < FIELD_MESSAGE; i++)
        if (alert_is_unset(field[i]))
            field[i].len = 0;
    field[FIELD_EVENT] = slice_of(KINDS[alert->kind].event);
    if (alert_is_no_app(field[FIELD_APP_ID])) {
        err_set(e, "task \"%s\" is not a reload: no appId", log_text(field[FIELD_TASK_NAME]).text);
        return ALERT_IGNORED;
    }
    if (alert->kind == ALERT_FAILURE)
        alert_join_backslashes(alert);
    return ALERT_OURS;
}

static void
alert_free(struct alert *alert)
{
    if (!alert)
        return;
    buf_free(&alert->text);
    free(alert);
}

/* Makes an alert of one datagram. *out is the caller's if it is ours, else NULL and e says why. */
static enum alert_sort
alert_parse(struct slice datagram, struct alert **out, struct err *e)
{
    size_t room = datagram.len + 1;
    struct alert *alert = x_calloc(1, sizeof *alert + room);
    enum alert_sort sort;

    alert->text = buf_in((char *)(alert + 1), room); /* one block for both, as nearly all fit */
    alert_decode(datagram, &alert->text);
    sort = alert_read_fields(alert, e);
    if (sort != ALERT_OURS) {
        alert_free(alert);
        alert = NULL;
    }
    *out = alert;
    return sort;
}

/* Adds text as a JSON string, with the very escapes of JavaScript's JSON.stringify. */
static void
json_add_string(struct buf *b, struct slice s)
{
    static const char shorts[] = "btn\0fr"; /* for 0x08 to 0x0d; 0x0b has none */
    size_t from = 0;

    buf_add_char(b, '"');
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.data[i];
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        buf_add(b, s.data + from, i - from);
        from = i + 1;
        buf_add_char(b, '\\');
        if (c >= 0x20)
            buf_add_char(b, c);
        else if (c >= 8 && c <= 13 && shorts[c - 8])
            buf_add_char(b, shorts[c - 8]);
        else
            buf_format(b, "u%04x", c);
    }
    buf_add(b, s.data + from, s.len - from);
    buf_add_char(b, '"');
}

/* Adds the alert as the JSON body of a POST or PUT. */
static void
alert_add_json(const struct alert *alert, struct buf *b)
{
    for (int i = 0; i < ALERT_FIELDS; i++) {
        buf_add_text(b, i ? ",\"" : "{\"");
        buf_add_text(b, FIELD_NAMES[i]);
        buf_add_text(b, "\":");
        json_add_string(b, alert->field[i]);
    }
    buf_add_char(b, '}');
}

/* Whitespace that may stand between JSON's tokens (RFC 8259, section 2). */
static void
json_skip_space(struct slice *s)
{
    while (s->len > 0 && strchr(" \t\r\n", *s->data) && *s->data)
        s->data++, s->len--;
}

/* Length of the string, quotes included, that s starts with; 0: it has no end. */
static size_t
json_string_len(struct slice s)
{
    for (size_t i = 1; i < s.len; i++) {
        if (s.data[i] == '"')
            return i + 1;
        i += s.data[i] == '\\';
    }
    return 0;
}

/* Length of the raw value that s starts with; 0: there is none, or it has no end. */
static size_t
json_value_len(struct slice s)
{
    size_t depth = 0, i = 0, n;

    if (s.len > 0 && *s.data == '"')
        return json_string_len(s);
    if (s.len == 0 || (*s.data != '{' && *s.data != '[')) {
        while (i < s.len && !strchr(",:}] \t\r\n", s.data[i]))
            i++;
        return i;
    }
    do {
        char c = s.data[i];
        n = c == '"' ? json_string_len((struct slice){s.data + i, s.len - i}) : 1;
        depth += c == '{' || c == '[';
        depth -= c == '}' || c == ']';
        i += n;
    } while (n > 0 && depth > 0 && i < s.len);
    return depth == 0 ? i : 0;
}

/*
 * Takes one value of any kind off the front of *rest and gives its raw text;
 * empty: there is none. What stands inside is looked at by those who read it.
 */
static struct slice
json_take(struct slice *rest)
{
    struct slice value = {rest->data, json_value_len(*rest)};

    rest->data += value.len, rest->len -= value.len;
    return value;
}

/* The raw value of a key of an object (a key without escapes); empty: it has none. */
static struct slice
json_get(struct slice object, const char *key)
{
    struct slice none = {"", 0}, name, value;

    json_skip_space(&object);
    if (object.len == 0 || *object.data != '{')
        return none;
    do {
        object.data++, object.len--;
        json_skip_space(&object);
        name = json_take(&object);
        json_skip_space(&object);
        if (name.len < 2 || object.len == 0 || *object.data != ':')
            return none;
        object.data++, object.len--;
        json_skip_space(&object);
        value = json_take(&object);
        json_skip_space(&object);
        if (name.len == strlen(key) + 2 && memcmp(name.data + 1, key, name.len - 2) == 0)
            return value;
    } while (object.len > 0 && *object.data == ',');
    return none;
}

/* Reads the four digits of a \u escape; -1 if they are not all there. */
static int
json_hex4(struct slice s, size_t at)
{
    uint8_t unit[2];

    if (at > s.len || hex_read((struct slice){s.data + at, s.len - at}, unit, sizeof unit) != 0)
        return -1;
    return unit[0] << 8 | unit[1];
}

/*
 * Adds what a raw string value stands for; a surrogate that stands alone
 * becomes U+FFFD. -1: it is not a string of JSON in UTF-8.
 */
static int
json_read_string(struct slice raw, struct buf *out)
{
    static const char escapes[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";

    if (raw.len < 2 || *raw.data != '"' || json_string_len(raw) != raw.len ||
        !utf8_is_valid(raw.data, raw.len))
        return -1;
    for (size_t i = 1; i + 1 < raw.len; i++) {
        const char *escape;
        int unit, low;
        if ((unsigned char)raw.data[i] < 0x20)
            return -1;
        if (raw.data[i] != '\\') {
            buf_add_char(out, raw.data[i]);
            continue;
        }
        escape = raw.data[++i] ? strchr(escapes, raw.data[i]) : NULL;
        if (escape) {
            buf_add_char(out, meant[escape - escapes]);
            continue;
        }
        if (raw.data[i] != 'u' || (unit = json_hex4(raw, i + 1)) < 0)
            return -1;
        i += 4;
        low = unit >= 0xd800 && unit < 0xdc00 && raw.data[i + 1] == '\\' && raw.data[i + 2] == 'u'
            ? json_hex4(raw, i + 3)
            : -1;
        if (low >= 0xdc00 && low < 0xe000) {
            utf8_add(out, 0x10000 + (((uint32_t)unit - 0xd800) << 10) + ((uint32_t)low - 0xdc00));
            i += 6;
        } else
            utf8_add(out, (uint32_t)unit);
    }
    return 0;
}

/*
 * Reads an alert from the JSON that alert_add_json made. The caller owns it;
 * NULL: it is not such JSON.
 */
static struct alert *
alert_read_json(struct slice json)
{
    struct alert *alert = x_calloc(1, sizeof *alert);
    size_t begin[ALERT_FIELDS + 1] = {0};
    bool whole = true;
    int kind = 0;

    for (int i = 0; i < ALERT_FIELDS; i++) {
        whole = whole && json_read_string(json_get(json, FIELD_NAMES[i]), &alert->text) == 0;
        begin[i + 1] = alert->text.len;
    }
    for (int i = 0; i < ALERT_FIELDS; i++)
        alert->field[i] = (struct slice){
            alert->text.data ? alert->text.data + begin[i] : "", begin[i + 1] - begin[i]};
    while (kind < ALERT_KINDS && !slice_is(alert->field[FIELD_EVENT], KINDS[kind].event))
        kind++;
    if (!whole || kind == ALERT_KINDS) {
        alert_free(alert);
        return NULL;
    }
    alert->kind = (enum alert_kind)kind;
    return alert;
}

/* URL Standard: what application/x-www-form-urlencoded leaves as it is. */
static bool
query_keeps(unsigned char c)
{
    return c < 0x80 && (isalnum(c) || c == '*' || c == '-' || c == '.' || c == '_');
}

/* Adds text as JavaScript's URLSearchParams would. */
static void
query_add_value(struct buf *b, struct slice s)
{
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.data[i];
        if (c == ' ')
            buf_add_char(b, '+');
        else if (query_keeps(c))
            buf_add_char(b, c);
        else
            percent_add(b, c);
    }
}

/* Whether a query string names a field already, in whatever encoding. */
static bool
query_has(struct slice query, const char *field)
{
    bool found = false;

    while (query.len > 0 && !found) {
        struct slice pair = slice_take(&query, '&');
        struct buf plain = {0};
        percent_decode(&plain, slice_take(&pair, '='));
        found = plain.len == strlen(field) && memcmp(plain.data, field, plain.len) == 0;
        buf_free(&plain);
    }
    return found;
}

/*
 * Adds the alert's fields to a request target, behind the query that it has. A
 * field that skip_known finds in that query already is left out. The target is
 * kept at max bytes by cutting the message at a whole character; 0: no limit.
 */
static void
alert_add_query(const struct alert *alert, struct buf *target, bool skip_known, size_t max)
{
    size_t begin = strcspn(target->data, "?") + 1;
    struct buf had = {0};

    if (begin > target->len)
        buf_add_char(target, '?');
    buf_add(&had, target->data + begin, target->len - begin);
    for (int i = 0; i < ALERT_FIELDS; i++) {
        struct slice value = alert->field[i];
        size_t from;
        if (skip_known && query_has((struct slice){had.data, had.len}, FIELD_NAMES[i]))
            continue;
        if (target->len > begin && target->data[target->len - 1] != '&')
            buf_add_char(target, '&');
        buf_format(target, "%s=", FIELD_NAMES[i]);
        from = target->len;
        query_add_value(target, value);
        while (max && i == FIELD_MESSAGE && target->len > max && value.len > 0) {
            size_t cut = 1 + (target->len - max) / 3; /* a byte gives at most three */
            value.len = cut < value.len ? value.len - cut : 0;
            while (value.len > 0 && ((unsigned char)value.data[value.len] & 0xc0) == 0x80)
                value.len--;
            target->len = from;
            query_add_value(target, value);
        }
    }
    buf_free(&had);
}

/* The alert that --test sends. The caller owns it. */
static struct alert *
alert_new_test(enum alert_kind kind, const char *host_name)
{
    static const char zeros[] = "00000000-0000-0000-0000-000000000000";
    struct alert *alert = x_calloc(1, sizeof *alert);
    char when[32];

    alert->kind = kind;
    log_time(plat_wall_ms(), when);
    buf_format(&alert->text, "%s%.10s %.8s,%.3s", host_name, when, when + 11, when + 20);
    alert->field[FIELD_EVENT] = slice_of(KINDS[kind].event);
    alert->field[FIELD_HOST_NAME] = (struct slice){alert->text.data, strlen(host_name)};
    alert->field[FIELD_USER] = slice_of("butler_webhook");
    alert->field[FIELD_TASK_NAME] = slice_of("butler_webhook test");
    alert->field[FIELD_APP_NAME] = slice_of("butler_webhook test");
    alert->field[FIELD_TASK_ID] = alert->field[FIELD_APP_ID] = slice_of(zeros);
    alert->field[FIELD_TIME] = slice_of(alert->text.data + strlen(host_name));
    alert->field[FIELD_LEVEL] = slice_of("INFO");
    alert->field[FIELD_EXECUTION_ID] = slice_of(zeros);
    alert->field[FIELD_MESSAGE] = slice_of("Test of this webhook by butler_webhook --test");
    return alert;
}
/* ==== 6. URL ================================================================
 *
 * Reads webhookURL, Location headers and proxy settings as the WHATWG URL
 * Standard does, for the two schemes that we call, because that is what Butler
 * does: letters that may not stand are encoded, 127.1 is 127.0.0.1, bücher.example
 * is xn--bcher-kva.example. Pure functions.
 *
 * Errors name the part that is wrong and never show it: it may hold a password.
 */

struct url {
    bool tls;
    int port;
    char *host;   /* lower case; IPv6 without brackets */
    char *target; /* path and query, percent-encoded, as it stands in a request */
    char *auth;   /* base64 of user:password, or NULL */
    char *origin; /* scheme://host:port, for comparison; behind "//" it is what Host holds */
    char *shown;  /* for people: without userinfo, query values and fragment */
};

/* Frees the parts of a URL, its password wiped; what was never read may be ended, too. */
static void
url_done(struct url *u)
{
    free(u->host);
    free(u->target);
    if (u->auth)
        mbedtls_platform_zeroize(u->auth, strlen(u->auth));
    free(u->auth);
    free(u->origin);
    free(u->shown);
    *u = (struct url){0};
}

/* URL Standard, path percent-encode set. */
static bool
url_path_keeps(unsigned char c)
{
    return c > 0x20 && c < 0x7f && !strchr("\"#<>?^`{}", c);
}

/* URL Standard, special-query percent-encode set. */
static bool
url_query_keeps(unsigned char c)
{
    return c > 0x20 && c < 0x7f && !strchr("\"#<>'", c);
}

/* Adds bytes percent-encoded but for those that keeps() lets stand. */
static void
url_add_encoded(struct buf *b, struct slice s, bool (*keeps)(unsigned char))
{
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.data[i];
        if (keeps(c))
            buf_add_char(b, c);
        else
            percent_add(b, c);
    }
}

/* Lower case of the letters that host names in Europe are written with; all others stay. */
static uint32_t
url_lower(uint32_t c)
{
    static const struct {
        uint32_t first, last, add;
    } upper[] = {{'A', 'Z', 32}, {0xc0, 0xd6, 32}, {0xd8, 0xde, 32}, {0x391, 0x3a1, 32},
        {0x3a3, 0x3ab, 32}, {0x400, 0x40f, 80}, {0x410, 0x42f, 32}};

    for (size_t i = 0; i < sizeof upper / sizeof *upper; i++)
        if (c >= upper[i].first && c <= upper[i].last)
            return c + upper[i].add;
    if (c == 0x178)
        return 0xff;
    if ((c >= 0x139 && c <= 0x148) || (c >= 0x179 && c <= 0x17e)) /* pairs, the upper one odd */
        return c + (c & 1);
    return c >= 0x100 && c <= 0x177 && c != 0x138 ? c | 1 : c; /* pairs, the upper one even */
}

/* RFC 3492, section 6.1: the bias after one delta. */
static uint32_t
punycode_adapt(uint32_t delta, uint32_t count, bool first)
{
    uint32_t k = 0;

    delta = first ? delta / 700 : delta / 2;
    for (delta += delta / count; delta > 455; k += 36)
        delta /= 35;
    return k + 36 * delta / (delta + 38);
}

/* Adds one number as RFC 3492's variable-length digits. */
static void
punycode_add_delta(struct buf *b, uint32_t q, uint32_t bias)
{
    for (uint32_t k = 36;; k += 36) {
        uint32_t t = k <= bias ? 1 : k >= bias + 26 ? 26 : k - bias;
        uint32_t digit = q < t ? q : t + (q - t) % (36 - t);
        buf_add_char(b, (int)(digit < 26 ? 'a' + digit : '0' + digit - 26));
        if (q < t)
            return;
        q = (q - t) / (36 - t);
    }
}

/*
 * Adds one label of a host name (UTF-8) in its ASCII form; for one that is too
 * long or not UTF-8 a blank, which no host name may hold.
 */
static void
punycode_add_label(struct buf *b, struct slice label)
{
    size_t start = b->len;
    uint32_t point[63], count = 0, done = 0, next = 0x80, delta = 0, bias = 72, basic;

    for (size_t i = 0, n; i < label.len; i += n, count++) {
        if (count == 63 || (n = utf8_read(label.data + i, label.len - i, &point[count])) == 0) {
            buf_add_char(b, ' ');
            return;
        }
        point[count] = url_lower(point[count]);
    }
    for (uint32_t i = 0; i < count; i++)
        done += point[i] < 0x80;
    if (done < count)
        buf_add_text(b, "xn--");
    for (uint32_t i = 0; i < count; i++)
        if (point[i] < 0x80)
            buf_add_char(b, (int)point[i]);
    if (done == count)
        return;
    if (done > 0)
        buf_add_char(b, '-');
    for (basic = done; done < count; delta++, next++) {
        uint32_t least = UINT32_MAX;
        for (uint32_t i = 0; i < count; i++)
            if (point[i] >= next && point[i] < least)
                least = point[i];
        delta += (least - next) * (done + 1);
        next = least;
        for (uint32_t i = 0; i < count; i++) {
            delta += point[i] < next;
            if (point[i] != next)
                continue;
            punycode_add_delta(b, delta, bias);
            if (b->len - start > 63)
                buf_add_char(b, ' ');
            done++;
            bias = punycode_adapt(delta, done, done == basic + 1);
            delta = 0;
        }
    }
}

/*
 * One part of an IPv4 address: decimal, octal with 0, hexadecimal with 0x.
 * -1: not a number.
 */
static int64_t
url_ipv4_part(struct slice s)
{
    int64_t n = 0;
    int base = 10;

    if (s.len == 0)
        return -1;
    if (s.len >= 2 && s.data[0] == '0' && (s.data[1] | 0x20) == 'x') {
        base = 16;
        s.data += 2, s.len -= 2;
    } else if (s.len >= 2 && s.data[0] == '0')
        base = 8;
    for (size_t i = 0; i < s.len; i++) {
        int digit = hex_value((unsigned char)s.data[i]);
        if (digit < 0 || digit >= base)
            return -1;
        if (n < INT64_C(1) << 40)
            n = n * base + digit;
    }
    return n;
}

/*
 * URL Standard, IPv4 parser. 1: *host was a number and is now a.b.c.d; 0: it is
 * a name; -1: it ends in a number and is no address.
 */
static int
url_read_ipv4(struct buf *host)
{
    struct slice part[5], last;
    int64_t number[5], all = 0;
    size_t n = 0, len = host->len;

    if (len > 1 && host->data[len - 1] == '.')
        len--;
    for (size_t i = 0, from = 0; i <= len; i++)
        if (i == len || host->data[i] == '.') {
            part[n < 4 ? n : 4] = (struct slice){host->data + from, i - from};
            n++;
            from = i + 1;
        }
    last = part[n < 5 ? n - 1 : 4];
    if (url_ipv4_part(last) < 0 && (last.len == 0 || slice_number(last, INT64_MAX / 16) < 0))
        return 0;
    if (n > 4)
        return -1;
    for (size_t i = 0; i < n; i++) {
        number[i] = url_ipv4_part(part[i]);
        if (number[i] < 0 || (i + 1 < n && number[i] > 255))
            return -1;
        if (i + 1 < n)
            all |= number[i] << (24 - 8 * i);
    }
    if (number[n - 1] >= INT64_C(1) << (8 * (5 - n)))
        return -1;
    all |= number[n - 1];
    host->len = 0;
    buf_format(host, "%d.%d.%d.%d", (int)(all >> 24), (int)(all >> 16 & 255), (int)(all >> 8 & 255),
        (int)(all & 255));
    return 1;
}

/* Adds an IPv6 address as the URL Standard writes it: the longest run of zeros becomes "::". */
static void
url_add_ipv6(struct buf *b, const uint8_t a[16])
{
    int at = -1, longest = 1;

    for (int i = 0, run = 0; i < 8; i++) {
        run = a[2 * i] || a[2 * i + 1] ? 0 : run + 1;
        if (run > longest) {
            longest = run;
            at = i - run + 1;
        }
    }
    for (int i = 0; i < 8; i++)
        if (i == at) {
            buf_add_text(b, i == 0 ? "::" : ":");
            i += longest - 1;
        } else
            buf_format(b, i < 7 ? "%x:" : "%x", (unsigned)(a[2 * i] << 8 | a[2 * i + 1]));
}

/* Reads what stands between userinfo and port into u->host. */
static int
url_read_host(struct url *u, struct slice s, struct err *e)
{
    struct buf plain = {0}, host = {0};
    struct plat_addr addr;
    uint8_t bytes[16];
    const char *why;
    int sort = 0;

    if (s.len > 2 && s.data[0] == '[' && s.data[s.len - 1] == ']') {
        buf_add(&host, s.data + 1, s.len - 2);
        if (!strchr(host.data, ':') || strchr(host.data, '%') ||
            plat_resolve(host.data, 0, true, &addr, 1, &why) != 1)
            sort = -1;
        else {
            plat_addr_bytes(&addr, bytes);
            host.len = 0;
            url_add_ipv6(&host, bytes);
        }
    } else { /* decoded first: what may not stand in a name could hide behind a % */
        buf_add(&plain, "", 0);
        percent_decode(&plain, s);
        for (size_t i = 0, from = 0; i <= plain.len; i++)
            if (i == plain.len || plain.data[i] == '.') {
                punycode_add_label(&host, (struct slice){plain.data + from, i - from});
                if (i < plain.len)
                    buf_add_char(&host, '.');
                from = i + 1;
            }
        if (host.len == 0 || host.len > 253 || !utf8_is_valid(plain.data, plain.len))
            sort = -1;
        for (size_t i = 0; sort == 0 && i < host.len; i++)
            if ((unsigned char)host.data[i] <= 0x20 || host.data[i] == 0x7f ||
                strchr("#%/:<>?@[\\]^|", host.data[i]))
                sort = -1;
        if (sort == 0)
            sort = url_read_ipv4(&host);
    }
    buf_free(&plain);
    if (sort >= 0) {
        u->host = host.data;
        return 0;
    }
    buf_free(&host);
    err_set(e, "the host name is missing or not valid");
    return -1;
}

/* Reads user:password@host:port. */
static int
url_read_authority(struct url *u, struct slice s, struct err *e)
{
    struct slice host, port = {0};
    size_t at = s.len, colon;

    while (at > 0 && s.data[at - 1] != '@')
        at--;
    if (at > 0) {
        struct slice password = {s.data, at - 1}, user = slice_take(&password, ':');
        struct buf plain = {0}, coded = {0};
        percent_decode(&plain, user);
        buf_add_char(&plain, ':');
        percent_decode(&plain, password);
        if (plain.len > 1) {
            base64_add(&coded, plain.data, plain.len);
            u->auth = coded.data;
        }
        mbedtls_platform_zeroize(plain.data, plain.len);
        buf_free(&plain);
    }
    host = (struct slice){s.data + at, s.len - at};
    for (colon = host.len; colon > 0 && !strchr("]:", host.data[colon - 1]);)
        colon--;
    if (colon > 0 && host.data[colon - 1] == ':') {
        port = (struct slice){host.data + colon, host.len - colon};
        host.len = colon - 1;
    }
    u->port = u->tls ? 443 : 80;
    if (port.len > 0) {
        u->port = (int)slice_number(port, 65535);
        if (u->port <= 0) {
            err_set(e, "the port is not a number from 1 to 65535");
            return -1;
        }
    }
    return url_read_host(u, host, e);
}

/* Number of dots that a path segment stands for: 1 for "." or "%2e", 2 for "..", else 0. */
static int
url_dots(struct slice s)
{
    int dots = 0;

    while (s.len > 0) {
        size_t n = s.data[0] == '.' ? 1 : s.len >= 3 && strncasecmp(s.data, "%2e", 3) == 0 ? 3 : 0;
        if (n == 0 || ++dots > 2)
            return 0;
        s.data += n;
        s.len -= n;
    }
    return dots;
}

/* Adds a path to out, which holds the folders of a base ("/a/b/") or is empty. */
static void
url_add_path(struct buf *out, struct slice path)
{
    if (out->len == 0)
        buf_add_char(out, '/');
    for (size_t i = 0, from = 0; i <= path.len; i++) {
        struct slice part = {path.data + from, i - from};
        bool last = i == path.len;
        int dots;
        if (!last && path.data[i] != '/' && path.data[i] != '\\')
            continue;
        dots = url_dots(part);
        from = i + 1;
        if (dots == 2 && out->len > 1)
            for (out->len--; out->data[out->len - 1] != '/';)
                out->len--;
        if (dots > 0)
            continue;
        url_add_encoded(out, part, url_path_keeps);
        if (!last)
            buf_add_char(out, '/');
    }
    out->data[out->len] = '\0';
}

/* Sets u->target from path and query; base gives what a relative reference leaves out. */
static void
url_read_target(struct url *u, struct slice s, const struct url *base)
{
    struct buf out = {0};
    struct slice whole = slice_take(&s, '#'), query = whole, path = slice_take(&query, '?');
    bool has_query = path.len < whole.len;
    size_t base_path = base ? strcspn(base->target, "?") : 0;

    if (base && path.len == 0)
        buf_add(&out, base->target, has_query ? base_path : strlen(base->target));
    else {
        if (path.len > 0 && (path.data[0] == '/' || path.data[0] == '\\'))
            path.data++, path.len--;
        else if (base) {
            while (base_path > 0 && base->target[base_path - 1] != '/')
                base_path--;
            buf_add(&out, base->target, base_path);
        }
        url_add_path(&out, path);
    }
    if (has_query) {
        buf_add_char(&out, '?');
        url_add_encoded(&out, query, url_query_keeps);
    }
    u->target = out.data;
}

/* Sets u->origin and u->shown from the rest of u. */
static void
url_describe(struct url *u)
{
    struct buf origin = {0}, shown = {0};
    const char *mark = strchr(u->target, '?');

    buf_format(&origin, strchr(u->host, ':') ? "%s://[%s]" : "%s://%s", u->tls ? "https" : "http",
        u->host);
    if (u->port != (u->tls ? 443 : 80))
        buf_format(&origin, ":%d", u->port);
    buf_add(&shown, origin.data, origin.len);
    buf_add(&shown, u->target, mark ? (size_t)(mark - u->target) : strlen(u->target));
    for (; mark && *mark; mark += 1 + strcspn(mark + 1, "&")) {
        size_t part = strcspn(mark + 1, "&"), name = strcspn(mark + 1, "=&");
        buf_add(&shown, mark, 1 + (name < part ? name + 1 : 0));
        if (part > 0)
            buf_add_text(&shown, "...");
    }
    u->origin = origin.data;
    u->shown = shown.data;
}

/* Length of the scheme before ":" in s, 0 if it starts with none. */
static size_t
url_scheme_len(struct slice s)
{
    size_t n = 0;

    while (n < s.len &&
        (isalpha((unsigned char)s.data[n]) ||
            (n > 0 && (ascii_is_digit(s.data[n]) || strchr("+-.", s.data[n])))))
        n++;
    return n < s.len && s.data[n] == ':' ? n : 0;
}

/* Reads text without tabs and line ends; see url_parse. */
static int
url_parse_clean(struct slice s, const struct url *base, struct url *u, struct err *e)
{
    size_t scheme = url_scheme_len(s), slashes = 0, end;
    bool relative = base && scheme == 0; /* scheme and, without "//", host are those of base */

    u->tls = base && base->tls;
    if (scheme > 0) {
        struct slice name = {s.data, scheme};
        u->tls = slice_is(name, "https");
        if (!u->tls && !slice_is(name, "http")) {
            err_set(e, "only http:// and https:// can be called");
            return -1;
        }
        relative = base && base->tls == u->tls; /* "http:name", an old way to say "name" */
        s.data += scheme + 1;
        s.len -= scheme + 1;
    } else if (!base) {
        err_set(e, "it must start with http:// or https://");
        return -1;
    }
    while (slashes < s.len && (s.data[slashes] == '/' || s.data[slashes] == '\\'))
        slashes++;
    if (!relative || slashes >= 2) {
        s.data += slashes;
        s.len -= slashes;
        for (end = 0; end < s.len && !strchr("/\\?#", s.data[end]);)
            end++;
        if (url_read_authority(u, (struct slice){s.data, end}, e) != 0)
            return -1;
        url_read_target(u, (struct slice){s.data + end, s.len - end}, NULL);
    } else {
        u->host = x_strdup(base->host);
        u->port = base->port;
        u->auth = base->auth ? x_strdup(base->auth) : NULL;
        url_read_target(u, s, base);
    }
    url_describe(u);
    return 0;
}

/*
 * Reads an absolute URL, or with base a reference relative to it. The caller
 * ends *u with url_done. -1 with e: it is not one that can be called.
 */
static int
url_parse(struct slice text, const struct url *base, struct url *u, struct err *e)
{
    struct buf clean = {0};
    int result;

    *u = (struct url){0};
    while (text.len > 0 && (unsigned char)text.data[0] <= 0x20)
        text.data++, text.len--;
    while (text.len > 0 && (unsigned char)text.data[text.len - 1] <= 0x20)
        text.len--;
    if (text.len > URL_MAX || (text.len > 0 && memchr(text.data, '\0', text.len))) {
        err_set(e, "it is longer than %d bytes or holds a NUL", URL_MAX);
        return -1;
    }
    for (size_t i = 0; i < text.len; i++)
        if (!strchr("\t\r\n", text.data[i]))
            buf_add_char(&clean, text.data[i]);
    if (clean.len == 0) {
        err_set(e, "it is empty");
        return -1;
    }
    result = url_parse_clean((struct slice){clean.data, clean.len}, base, u, e);
    if (result != 0)
        url_done(u);
    mbedtls_platform_zeroize(clean.data, clean.len);
    buf_free(&clean);
    return result;
}

/*
 * Whether a host is one that no_proxy (a list as in the environment variable
 * NO_PROXY) excepts. As Butler's HTTP client reads it: names stand for
 * themselves, ".name" and "*.name" for all that end so, "*" for all; a port
 * may follow.
 */
static bool
url_is_excepted(const struct url *u, const char *no_proxy)
{
    size_t host_len = strlen(u->host);

    for (const char *p = no_proxy; *p;) {
        bool brackets = *p == '[', ending;
        struct slice item = {p, strcspn(p, ", \t")}, port = item, name;
        int64_t number;
        p += item.len + strspn(p + item.len, ", \t");
        if (brackets) {
            slice_take(&port, '[');
            name = slice_take(&port, ']');
            slice_take(&port, ':');
        } else
            name = slice_take(&port, ':');
        number = slice_number(port, 65535);
        if (number < 0 && !brackets)
            name = item; /* no port, and maybe an IPv6 address */
        ending = name.len > 0 && strchr("*.", name.data[0]);
        if (ending && name.data[0] == '*')
            name.data++, name.len--;
        if ((number < 0 || number == u->port) &&
            (ending ? host_len >= name.len : host_len == name.len) &&
            strncasecmp(u->host + host_len - name.len, name.data, name.len) == 0)
            return true;
    }
    return false;
}
/* ==== 7. Configuration ======================================================
 *
 * Butler's YAML file becomes a struct config. One table of keys says what is
 * read, its type, its default and its bounds; everything else in the file is
 * Butler's own. Every problem is collected with its line and column, so that
 * one start tells all of them.
 *
 * libyaml gives events; they become a tree of nodes in which an alias is a
 * second pointer to the same node, so that aliases cost nothing to expand.
 *
 * Threads: main only; the result is frozen before the others start.
 */

enum http_method { METHOD_GET, METHOD_POST, METHOD_PUT };

static const char *const METHODS[] = {"GET", "POST", "PUT"};

enum trust { TRUST_NONE, TRUST_PUBLIC, TRUST_OWN_CA, TRUST_UNCHECKED };

struct webhook_config {
    const char *description;
    const char *url_text; /* webhookURL as it stands in the file; NULL: none */
    enum http_method method;
    bool cert_enable;
    bool reject_unauthorized;
    const char *cert_ca;     /* absolute or from the working directory; NULL: none, or not used */
    struct url url;          /* host NULL: it is not valid, and webhooks are off */
    const struct url *proxy; /* NULL: called directly */
    mbedtls_x509_crt *ca;    /* what cert_ca holds */
    int ca_count;
    enum trust trust;
    enum alert_kind kind;
    char name[LOG_NAME_MAX + 64]; /* failure 1 ("description") */
    size_t place;                 /* in its list, from 0 */
    char key[33];                 /* how the journal knows it, see cfg_make_key */
};

/* An entry of udpServerConfig.allowedSources. */
struct source {
    const char *name; /* host name that is looked up; NULL: an address or range */
    uint8_t address[SOURCE_ADDRESSES_MAX][16]; /* as plat_addr_bytes */
    size_t addresses;
    int bits; /* of an address that must be the same */
};

struct config {
    struct arena arena;
    int log_level;
    bool file_logging;
    const char *log_directory;
    bool udp_enable;
    const char *udp_host;
    int64_t udp_port;
    int64_t max_message_size;
    bool source_validation;
    struct source *source;
    size_t sources;
    bool udp_rate_enable;
    int64_t udp_rate;
    bool dedup_enable;
    int64_t dedup_minutes;
    bool webhook_enable;
    int64_t rate_limit_s[ALERT_KINDS];
    int own_enable; /* 1, -1: no; 0: not set */
    const char *own_host;
    int64_t own_port;            /* 0: not set */
    const char *state_directory; /* NULL: alerts are kept in memory only */
    int64_t max_state_mb;
    int64_t max_age_hours;
    int64_t timeout_s;
    int64_t max_concurrent;
    struct webhook_config *webhook[ALERT_KINDS];
    size_t webhooks[ALERT_KINDS];
    struct url proxy[2]; /* for http, for https; host NULL: none */
    const char *no_proxy;
    bool enabled; /* after every override */
};

enum cfg_type {
    CFG_MAP,      /* holds other rows of the table */
    CFG_LEFT,     /* Butler's own, left alone */
    CFG_BOOL,     /* bool */
    CFG_OVERRIDE, /* int: 1 true, -1 false, 0 not set */
    CFG_INT,      /* int64_t */
    CFG_TEXT,     /* const char *, NULL if empty */
    CFG_PATH,     /* the same, of a file or folder */
    CFG_STATE,    /* the same, where '' says that there is none */
    CFG_HOST,     /* the same, of an address or host name */
    CFG_CHOICE,   /* int, place in choices */
    CFG_SOURCES,  /* read by cfg_read_sources */
    CFG_WEBHOOKS, /* read by cfg_read_webhooks */
};

struct cfg_key {
    const char *path; /* under its root */
    enum cfg_type type;
    size_t offset;
    const char *standard; /* default, "": zero; NULL: must be there where its section is */
    int64_t min, max; /* of a number; CFG_CHOICE: first and last of choices; lists: most entries */
    const char *const *choices;
};

#define CFG_AT(field) offsetof(struct config, field)
#define CFG_ENTRY_AT(field) offsetof(struct webhook_config, field)

/* Every key that we read under "Butler:". */
static const struct cfg_key CFG_KEYS[] = {
    {"logLevel", CFG_CHOICE, CFG_AT(log_level), "info", LOG_ERROR, LOG_SILLY, LOG_LEVELS},
    {"fileLogging", CFG_BOOL, CFG_AT(file_logging), "false", 0, 0, NULL},
    {"logDirectory", CFG_PATH, CFG_AT(log_directory), "log", 0, 0, NULL},
    {"udpServerConfig", CFG_MAP, 0, NULL, 0, 0, NULL},
    {"udpServerConfig.enable", CFG_BOOL, CFG_AT(udp_enable), NULL, 0, 0, NULL},
    {"udpServerConfig.serverHost", CFG_HOST, CFG_AT(udp_host), "127.0.0.1", 0, 0, NULL},
    {"udpServerConfig.portTaskFailure", CFG_INT, CFG_AT(udp_port), "9998", 1, 65535, NULL},
    {"udpServerConfig.maxMessageSize", CFG_INT, CFG_AT(max_message_size), "65507", 1, DATAGRAM_MAX,
        NULL},
    {"udpServerConfig.enableSourceValidation", CFG_BOOL, CFG_AT(source_validation), "false", 0, 0,
        NULL},
    {"udpServerConfig.allowedSources", CFG_SOURCES, 0, "", 0, SOURCES_MAX, NULL},
    {"udpServerConfig.rateLimit", CFG_MAP, 0, NULL, 0, 0, NULL},
    {"udpServerConfig.rateLimit.enable", CFG_BOOL, CFG_AT(udp_rate_enable), "false", 0, 0, NULL},
    {"udpServerConfig.rateLimit.maxMessagesPerMinute", CFG_INT, CFG_AT(udp_rate), "600", 1,
        INT32_MAX, NULL},
    {"udpServerConfig.deduplication", CFG_MAP, 0, NULL, 0, 0, NULL},
    {"udpServerConfig.deduplication.enable", CFG_BOOL, CFG_AT(dedup_enable), "true", 0, 0, NULL},
    {"udpServerConfig.deduplication.ttlMinutes", CFG_INT, CFG_AT(dedup_minutes), "10", 1, 525600,
        NULL},
    {"udpServerConfig.messageQueue", CFG_LEFT, 0, "", 0, 0, NULL},
    {"udpServerConfig.queueMetrics", CFG_LEFT, 0, "", 0, 0, NULL},
    {"webhookNotification", CFG_MAP, 0, NULL, 0, 0, NULL},
    {"webhookNotification.enable", CFG_BOOL, CFG_AT(webhook_enable), NULL, 0, 0, NULL},
    {"webhookNotification.reloadTaskFailure", CFG_MAP, 0, NULL, 0, 0, NULL},
    {"webhookNotification.reloadTaskFailure.rateLimit", CFG_INT,
        CFG_AT(rate_limit_s[ALERT_FAILURE]), "300", 0, INT32_MAX, NULL},
    {"webhookNotification.reloadTaskFailure.webhooks", CFG_WEBHOOKS, ALERT_FAILURE, "", 0,
        CONFIG_WEBHOOKS_MAX, NULL},
    {"webhookNotification.reloadTaskAborted", CFG_MAP, 0, NULL, 0, 0, NULL},
    {"webhookNotification.reloadTaskAborted.rateLimit", CFG_INT,
        CFG_AT(rate_limit_s[ALERT_ABORTED]), "300", 0, INT32_MAX, NULL},
    {"webhookNotification.reloadTaskAborted.webhooks", CFG_WEBHOOKS, ALERT_ABORTED, "", 0,
        CONFIG_WEBHOOKS_MAX, NULL},
    {"webhookNotification.serviceMonitor", CFG_LEFT, 0, "", 0, 0, NULL},
    {"webhookNotification.qlikSenseServerLicenseMonitor", CFG_LEFT, 0, "", 0, 0, NULL},
    {"webhookNotification.qlikSenseServerLicenseExpiryAlert", CFG_LEFT, 0, "", 0, 0, NULL},
    {"butlerWebhook", CFG_MAP, 0, NULL, 0, 0, NULL},
    {"butlerWebhook.enable", CFG_OVERRIDE, CFG_AT(own_enable), "", 0, 0, NULL},
    {"butlerWebhook.serverHost", CFG_HOST, CFG_AT(own_host), "", 0, 0, NULL},
    {"butlerWebhook.port", CFG_INT, CFG_AT(own_port), "", 1, 65535, NULL},
    {"butlerWebhook.stateDirectory", CFG_STATE, CFG_AT(state_directory), "", 0, 0, NULL},
    {"butlerWebhook.maxStateMB", CFG_INT, CFG_AT(max_state_mb), "1024", 1, 1 << 20, NULL},
    {"butlerWebhook.maxAgeHours", CFG_INT, CFG_AT(max_age_hours), "72", 1, 8760, NULL},
    {"butlerWebhook.timeoutSeconds", CFG_INT, CFG_AT(timeout_s), "10", 1, 300, NULL},
    {"butlerWebhook.maxConcurrent", CFG_INT, CFG_AT(max_concurrent), "4", 1, 16, NULL},
    {NULL, CFG_LEFT, 0, NULL, 0, 0, NULL},
};

/* The keys of one entry of a webhooks list. */
static const struct cfg_key CFG_WEBHOOK_KEYS[] = {
    {"description", CFG_TEXT, CFG_ENTRY_AT(description), "", 0, 0, NULL},
    {"webhookURL", CFG_TEXT, CFG_ENTRY_AT(url_text), NULL, 0, 0, NULL},
    {"httpMethod", CFG_CHOICE, CFG_ENTRY_AT(method), NULL, METHOD_GET, METHOD_PUT, METHODS},
    {"cert", CFG_MAP, 0, NULL, 0, 0, NULL},
    {"cert.enable", CFG_BOOL, CFG_ENTRY_AT(cert_enable), "false", 0, 0, NULL},
    {"cert.rejectUnauthorized", CFG_BOOL, CFG_ENTRY_AT(reject_unauthorized), "true", 0, 0, NULL},
    {"cert.certCA", CFG_PATH, CFG_ENTRY_AT(cert_ca), "", 0, 0, NULL},
    {NULL, CFG_LEFT, 0, NULL, 0, 0, NULL},
};

enum node_kind { NODE_SCALAR, NODE_LIST, NODE_MAP };

struct node {
    enum node_kind kind;
    int line, column;    /* from 1 */
    bool quoted;         /* scalar: not plain */
    bool open;           /* still being read: an alias to it would have no end */
    const char *text;    /* scalar */
    struct node **child; /* list: items; map: key, value, key, value ... */
    size_t count, cap;
    size_t weight; /* values in it, aliases counted each time */
};

struct anchor {
    struct anchor *next;
    const char *name;
    struct node *node;
};

struct problem {
    struct problem *next;
    int line, column;
    bool is_error;
    const char *text;
};

struct cfg_reader {
    const char *file; /* as the user named it */
    struct config *config;
    yaml_parser_t yaml;
    struct anchor *anchors;
    struct problem *problems;
    int errors, warnings;
    bool strict;  /* mistakes are errors in any case */
    bool off;     /* webhooks are off: their mistakes are only warnings ... */
    bool lenient; /* ... which is what is being read now */
    size_t nodes;
};

/*
 * Notes a problem; problems are kept in the order of the file. What is read
 * leniently has no errors, only warnings.
 */
__attribute__((format(PRINTF, 5, 6))) static void
cfg_problem(struct cfg_reader *r, bool is_error, int line, int column, const char *format, ...)
{
    struct problem *p = arena_alloc(&r->config->arena, sizeof *p), **at = &r->problems;
    struct buf raw = {0}, clean = {0};
    va_list args;

    is_error = is_error && !r->lenient;
    va_start(args, format);
    buf_vformat(&raw, format, args);
    va_end(args);
    log_add_clean(&clean, (struct slice){raw.data, raw.len});
    while (*at && ((*at)->line < line || ((*at)->line == line && (*at)->column <= column)))
        at = &(*at)->next;
    *p = (struct problem){*at, line, column, is_error,
        arena_copy(&r->config->arena, clean.data ? clean.data : "", clean.len)};
    *at = p;
    *(is_error ? &r->errors : &r->warnings) += 1;
    buf_free(&raw);
    buf_free(&clean);
}

#define CFG_ERROR(r, node, ...) cfg_problem(r, true, (node)->line, (node)->column, __VA_ARGS__)
#define CFG_WARN(r, node, ...) cfg_problem(r, false, (node)->line, (node)->column, __VA_ARGS__)

/* Adds a node to a list or map. */
static void
cfg_add_child(struct cfg_reader *r, struct node *parent, struct node *child)
{
    if (parent->count == parent->cap) {
        size_t cap = parent->cap ? parent->cap * 2 : 8;
        struct node **grown = arena_alloc(&r->config->arena, cap * sizeof *grown);
        if (parent->count > 0)
            memcpy(grown, parent->child, parent->count * sizeof *grown);
        parent->child = grown;
        parent->cap = cap;
    }
    parent->child[parent->count++] = child;
    parent->weight += child->weight;
}

/* The value of a key in a map, or NULL; map may be NULL or of another kind, and holds none then. */
static struct node *
cfg_get(const struct node *map, const char *key)
{
    for (size_t i = 0; map && map->kind == NODE_MAP && i + 1 < map->count; i += 2)
        if (map->child[i]->kind == NODE_SCALAR && strcmp(map->child[i]->text, key) == 0)
            return map->child[i + 1];
    return NULL;
}

static bool
cfg_is_merge(const struct node *key)
{
    return key->kind == NODE_SCALAR && !key->quoted && strcmp(key->text, "<<") == 0;
}

/*
 * Puts the pairs of a merged map, or of each in a list ("<<"), behind a map's
 * own, where their keys are new. Lists nest no deeper than CONFIG_DEPTH_MAX.
 */
static void
cfg_merge(struct cfg_reader *r, struct node *map, const struct node *from)
{
    if (from->kind == NODE_SCALAR)
        CFG_ERROR(r, from, "\"<<\" merges maps: write an alias (*name) of one, or a list of such");
    r->nodes += from->count;
    if (r->nodes > CONFIG_NODES_MAX)
        return;
    for (size_t i = 0; from->kind == NODE_LIST && i < from->count; i++)
        cfg_merge(r, map, from->child[i]);
    for (size_t i = 0; from->kind == NODE_MAP && i + 1 < from->count; i += 2)
        if (from->child[i]->kind == NODE_SCALAR && !cfg_get(map, from->child[i]->text)) {
            cfg_add_child(r, map, from->child[i]);
            cfg_add_child(r, map, from->child[i + 1]);
        }
}

/*
 * Looks for a key that stands twice, then resolves the merge keys, of which
 * there may be several, of a map that was read whole.
 */
static void
cfg_finish_map(struct cfg_reader *r, struct node *map)
{
    size_t own = map->count;

    for (size_t k = 2; k + 1 < own; k += 2)
        for (size_t i = 0; i < k && map->child[k]->kind == NODE_SCALAR; i += 2) {
            const struct node *first = map->child[i], *again = map->child[k];
            if (first->kind != NODE_SCALAR || strcmp(first->text, again->text) != 0 ||
                cfg_is_merge(again))
                continue;
            CFG_ERROR(r, again, "the key \"%s\" stands twice, first in line %d; keep one",
                again->text, first->line);
            memmove(&map->child[k], &map->child[k + 2], (own - k - 2) * sizeof *map->child);
            map->count = own -= 2;
            k -= 2;
            break;
        }
    for (size_t i = 0; i + 1 < own; i += 2)
        if (cfg_is_merge(map->child[i]))
            cfg_merge(r, map, map->child[i + 1]);
}

/* Says what libyaml could not read, with a hint where the usual causes are known. */
static void
cfg_syntax_error(struct cfg_reader *r, const char *text, size_t len)
{
    const char *problem = r->yaml.problem ? r->yaml.problem : "not YAML", *hint = "", *line = text;
    const char *context = r->yaml.context ? r->yaml.context : "";
    bool scanning = strncmp(context, "while scanning", 14) == 0; /* the cause is where it began */
    const yaml_mark_t *mark = scanning ? &r->yaml.context_mark : &r->yaml.problem_mark;
    int row = (int)mark->line + 1, column = (int)mark->column + 1;

    if (r->yaml.error == YAML_READER_ERROR) {
        row = column = 1;
        for (size_t i = 0; i < r->yaml.problem_offset && i < len; i++) {
            column = text[i] == '\n' ? 1 : column + 1;
            row += text[i] == '\n';
        }
        hint = "; save the file as UTF-8";
    } else if (strstr(problem, "unknown escape"))
        hint = "; in double quotes \"\\\" starts an escape: write a Windows path in single quotes, "
               "'C:\\path'";
    else {
        for (int i = 1; i < row && line; i++)
            line = (line = memchr(line, '\n', len - (size_t)(line - text))) ? line + 1 : NULL;
        for (; line && (*line == ' ' || *line == '\t') && !*hint; line++)
            if (*line == '\t')
                hint = "; a tab stands at the start of the line: indent with spaces";
        if (!*hint && strstr(context, "block"))
            hint = "; look at the indentation of this line and the one before";
    }
    cfg_problem(r, true, row, column, "not valid YAML: %s%s%s%s", problem, *context ? " " : "",
        context, hint);
}

static struct node *cfg_read_node(struct cfg_reader *, yaml_event_t *, int); /* recursive */

/* Reads the children of a list or map up to its end. 0, or -1: a problem was noted. */
static int
cfg_read_children(struct cfg_reader *r, struct node *parent, int depth)
{
    yaml_event_t event;

    for (;;) {
        struct node *child;
        if (!yaml_parser_parse(&r->yaml, &event))
            return -1;
        if (event.type == YAML_SEQUENCE_END_EVENT || event.type == YAML_MAPPING_END_EVENT)
            break;
        child = cfg_read_node(r, &event, depth + 1);
        yaml_event_delete(&event);
        if (!child)
            return -1;
        cfg_add_child(r, parent, child);
    }
    yaml_event_delete(&event);
    if (parent->kind == NODE_MAP)
        cfg_finish_map(r, parent);
    return 0;
}

/* Finds what an alias stands for; NULL: a problem was noted. */
static struct node *
cfg_read_alias(struct cfg_reader *r, const char *name, const struct node *at)
{
    for (struct anchor *a = r->anchors; a; a = a->next) {
        if (strcmp(a->name, name) != 0)
            continue;
        if (!a->node->open)
            return a->node;
        CFG_ERROR(r, at, "the alias *%s stands inside its own anchor: it would have no end", name);
        return NULL;
    }
    CFG_ERROR(r, at, "the alias *%s has no anchor &%s before it", name, name);
    return NULL;
}

/*
 * Makes a node of an event and what follows it. NULL: the file cannot be read
 * further; either a problem was noted or libyaml has an error.
 */
static struct node *
cfg_read_node(struct cfg_reader *r, yaml_event_t *event, int depth)
{
    struct node *node = arena_alloc(&r->config->arena, sizeof *node);
    const char *anchor = NULL;

    node->line = (int)event->start_mark.line + 1;
    node->column = (int)event->start_mark.column + 1;
    node->weight = 1;
    if (event->type == YAML_ALIAS_EVENT)
        node = cfg_read_alias(r, (const char *)event->data.alias.anchor, node);
    else if (event->type == YAML_SCALAR_EVENT) {
        node->text = arena_copy(
            &r->config->arena, (const char *)event->data.scalar.value, event->data.scalar.length);
        node->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
        if (strlen(node->text) != event->data.scalar.length)
            CFG_ERROR(r, node, "a NUL character may not stand in a value");
        anchor = (const char *)event->data.scalar.anchor;
    } else if (event->type == YAML_SEQUENCE_START_EVENT) {
        node->kind = NODE_LIST;
        anchor = (const char *)event->data.sequence_start.anchor;
    } else {
        node->kind = NODE_MAP;
        anchor = (const char *)event->data.mapping_start.anchor;
    }
    if (!node)
        return NULL;
    if (anchor) {
        struct anchor *a = arena_alloc(&r->config->arena, sizeof *a);
        *a = (struct anchor){
            r->anchors, arena_copy(&r->config->arena, anchor, strlen(anchor)), node};
        r->anchors = a;
    }
    if (depth > CONFIG_DEPTH_MAX) {
        CFG_ERROR(r, node, "nested more than %d levels deep", CONFIG_DEPTH_MAX);
        return NULL;
    }
    if (event->type == YAML_SEQUENCE_START_EVENT || event->type == YAML_MAPPING_START_EVENT) {
        node->open = true;
        if (cfg_read_children(r, node, depth) != 0)
            return NULL;
        node->open = false;
    }
    if (++r->nodes > CONFIG_NODES_MAX || node->weight > CONFIG_NODES_MAX) {
        CFG_ERROR(
            r, node, "more than %d values, counting what aliases stand for", CONFIG_NODES_MAX);
        return NULL;
    }
    return node;
}

/* Reads the text's one document; NULL: a problem was noted. */
static struct node *
cfg_read_document(struct cfg_reader *r, const char *text, size_t len)
{
    struct node *root = NULL;
    int errors = r->errors, documents = 0;
    yaml_event_t event;

    yaml_parser_initialize(&r->yaml);
    if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        text += 3; /* a byte order mark, which libyaml would take for the first column */
        len -= 3;
    }
    yaml_parser_set_encoding(&r->yaml, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r->yaml, (const unsigned char *)text, len);
    for (bool more = true; more && yaml_parser_parse(&r->yaml, &event);) {
        if (event.type == YAML_STREAM_END_EVENT)
            more = false;
        else if (event.type == YAML_DOCUMENT_START_EVENT && ++documents > 1) {
            cfg_problem(r, true, (int)event.start_mark.line + 1, 1,
                "a second document starts here: keep one");
            more = false;
        } else if (event.type == YAML_SCALAR_EVENT || event.type == YAML_ALIAS_EVENT ||
            event.type == YAML_SEQUENCE_START_EVENT || event.type == YAML_MAPPING_START_EVENT)
            more = (root = cfg_read_node(r, &event, 0)) != NULL;
        yaml_event_delete(&event);
    }
    if (r->yaml.error != YAML_NO_ERROR) {
        cfg_syntax_error(r, text, len);
        root = NULL;
    } else if (!root && r->errors == errors)
        cfg_problem(r, true, 1, 1, "the file is empty: it should start with \"Butler:\"");
    yaml_parser_delete(&r->yaml);
    return root;
}

/*
 * Number of letters to change, add, drop or swap with the next one to make b of
 * a, at most 9; case counts. Three rows of the usual table are all it needs:
 * row i says what it costs to make each start of b of the first i letters of a.
 */
static int
cfg_distance(const char *a, const char *b)
{
    int row[3][48] = {{0}};
    size_t n = strlen(a), m = strlen(b);

    if (n > 46 || m > 46)
        return 9;
    for (size_t i = 0; i <= n; i++)
        for (size_t k = 0; k <= m; k++) {
            int *now = row[i % 3], *last = row[(i + 2) % 3], *before = row[(i + 1) % 3];
            int best = i == 0 ? (int)k : last[k] + 1;
            if (k > 0 && now[k - 1] + 1 < best)
                best = now[k - 1] + 1;
            if (i > 0 && k > 0 && last[k - 1] + (a[i - 1] != b[k - 1]) < best)
                best = last[k - 1] + (a[i - 1] != b[k - 1]);
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1] &&
                before[k - 2] + 1 < best)
                best = before[k - 2] + 1;
            now[k] = best;
        }
    return row[n % 3][m] < 9 ? row[n % 3][m] : 9;
}

/* Name of a row right under prefix ("" or "udpServerConfig."), or NULL if it stands elsewhere. */
static const char *
cfg_name_under(const struct cfg_key *key, const char *prefix)
{
    size_t len = strlen(prefix);

    if (strncmp(key->path, prefix, len) != 0 || strchr(key->path + len, '.'))
        return NULL;
    return key->path + len;
}

/*
 * Says that a key is not known, with the known one that it looks like. Among
 * Butler's own keys (quiet) only a likely slip is worth a word.
 */
static void
cfg_unknown_key(struct cfg_reader *r, const struct cfg_key *keys, const char *prefix,
    const struct node *key, bool quiet)
{
    const char *best = NULL;
    int nearest = quiet ? 3 : 4;

    for (const struct cfg_key *k = keys; k->path; k++) {
        const char *name = cfg_name_under(k, prefix);
        int distance = name ? cfg_distance(key->text, name) : 9;
        if (name && strcasecmp(key->text, name) == 0)
            distance = 0;
        if (distance < nearest) {
            nearest = distance;
            best = name;
        }
    }
    if (best)
        CFG_WARN(r, key, "unknown key \"%s\" is ignored; did you mean \"%s\"?", key->text, best);
    else if (!quiet)
        CFG_WARN(r, key, "unknown key \"%s\" is ignored", key->text);
}

/* YAML 1.2 as js-yaml reads it: these plain scalars are no value at all. */
static bool
cfg_is_null(const struct node *n)
{
    return n->kind == NODE_SCALAR && !n->quoted &&
        (!*n->text || strcmp(n->text, "~") == 0 || strcasecmp(n->text, "null") == 0);
}

/* 1 true, 0 false, -1 neither; n may be NULL. */
static int
cfg_bool_value(const struct node *n)
{
    static const char *const words[2][3] = {{"false", "False", "FALSE"}, {"true", "True", "TRUE"}};

    for (int value = 0; n && n->kind == NODE_SCALAR && !n->quoted && value < 2; value++)
        for (int i = 0; i < 3; i++)
            if (strcmp(n->text, words[value][i]) == 0)
                return value;
    return -1;
}

/* Whether text holds a control character, as "C:\temp" in double quotes does. */
static bool
cfg_has_control(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20)
            return true;
    return false;
}

/* Reads a whole number within the bounds of its key. */
static void
cfg_read_int(struct cfg_reader *r, const struct cfg_key *key, const struct node *n, int64_t *out)
{
    bool minus = n->text[0] == '-';
    int64_t value = slice_number(slice_of(n->text + (minus || n->text[0] == '+')), INT64_MAX / 16);

    if (n->quoted || value < 0) {
        bool digits = *n->text && strspn(n->text, "+-0123456789") == strlen(n->text);
        CFG_ERROR(r, n, "%s must be a whole number from %lld to %lld, %s", key->path,
            (long long)key->min, (long long)key->max,
            n->quoted && digits && value >= 0 ? "without quotes" : "as in the samples");
    } else if (minus || value < key->min || value > key->max)
        CFG_ERROR(r, n, "%s must be from %lld to %lld", key->path, (long long)key->min,
            (long long)key->max);
    else
        *out = value;
}

/* Reads one of a few words, in any case. */
static void
cfg_read_choice(struct cfg_reader *r, const struct cfg_key *key, const struct node *n, int *out)
{
    struct buf all = {0};

    for (int i = 0; i <= key->max; i++) {
        if (strcasecmp(n->text, key->choices[i]) == 0) {
            *out = i;
            buf_free(&all);
            return;
        }
        buf_format(&all, "%s%s", !i ? "" : i < key->max ? ", " : " or ", key->choices[i]);
    }
    CFG_ERROR(
        r, n, "%s must be %s, not \"%s\"", key->path, all.data, log_text(slice_of(n->text)).text);
    buf_free(&all);
}

/* 1: text is an IPv4 or IPv6 address, and *addr is it; 0: it may be a host name; -1: neither. */
static int
cfg_read_host(const char *text, struct plat_addr *addr)
{
    const char *why;
    int dots = 0;
    bool name = *text != '\0', digits = true;

    for (const char *p = text; *p; p++) {
        dots += *p == '.';
        digits = digits && (ascii_is_digit(*p) || *p == '.');
        name = name &&
            ((unsigned char)*p >= 0x80 || isalnum((unsigned char)*p) || strchr(".-_", *p));
    }
    if ((strchr(text, ':') || (digits && dots == 3)) &&
        plat_resolve(text, 0, true, addr, 1, &why) == 1)
        return 1;
    return name && !digits ? 0 : -1;
}

/* Reads an address, a range like 10.0.0.0/8, or a host name. -1: none of them. */
static int
cfg_read_source(const char *text, struct source *source)
{
    const char *slash = strchr(text, '/');
    struct buf host = {0};
    struct plat_addr addr;
    int64_t bits = 128;
    int sort;

    *source = (struct source){.name = text, .bits = 128};
    buf_add(&host, text, slash ? (size_t)(slash - text) : strlen(text));
    sort = cfg_read_host(host.data, &addr);
    buf_free(&host);
    if (sort <= 0)
        return slash ? -1 : sort;
    if (slash) {
        int width = strchr(text, ':') ? 128 : 32;
        bits = slice_number(slice_of(slash + 1), width);
        if (bits < 0)
            return -1;
        bits += 128 - width; /* IPv4 is compared as ::ffff:a.b.c.d */
    }
    source->name = NULL;
    source->bits = (int)bits;
    source->addresses = 1;
    plat_addr_bytes(&addr, source->address[0]);
    return 0;
}

/* Reads the list of allowed senders. */
static void
cfg_read_sources(struct cfg_reader *r, const struct cfg_key *key, const struct node *list)
{
    struct config *c = r->config;

    c->source = arena_alloc(&c->arena, list->count * sizeof *c->source);
    for (size_t i = 0; i < list->count; i++) {
        const struct node *n = list->child[i];
        if (n->kind != NODE_SCALAR || cfg_is_null(n) ||
            cfg_read_source(n->text, &c->source[c->sources]) != 0)
            CFG_ERROR(r, n,
                "%s: an entry must be an address (10.1.2.3), a range (10.1.0.0/16) or "
                "a host name",
                key->path);
        else
            c->sources++;
    }
}

static void cfg_read_map(struct cfg_reader *, const struct cfg_key *, const char *,
    const struct node *, void *); /* recursive */

static void cfg_read_webhooks(struct cfg_reader *, const struct cfg_key *, const struct node *);

/* Reads the value of one key into base + its offset, or says what it should be. */
static void
cfg_read_value(struct cfg_reader *r, const struct cfg_key *keys, const struct cfg_key *key,
    const struct node *n, void *base)
{
    void *at = (char *)base + key->offset;
    struct buf prefix = {0};
    struct plat_addr addr;

    if (key->type == CFG_MAP) {
        if (n->kind != NODE_MAP) {
            if (!cfg_is_null(n))
                CFG_ERROR(r, n, "%s must hold keys, one a line, indented under it", key->path);
            return;
        }
        buf_format(&prefix, "%s.", key->path);
        cfg_read_map(r, keys, prefix.data, n, base);
        buf_free(&prefix);
    } else if (key->type == CFG_SOURCES || key->type == CFG_WEBHOOKS) {
        if (cfg_is_null(n))
            return;
        if (n->kind != NODE_LIST)
            CFG_ERROR(r, n, "%s must be a list, each entry starting with \"- \"", key->path);
        else if (n->count > (size_t)key->max)
            CFG_ERROR(r, n, "%s has more than %lld entries", key->path, (long long)key->max);
        else if (key->type == CFG_SOURCES)
            cfg_read_sources(r, key, n);
        else
            cfg_read_webhooks(r, key, n);
    } else if (key->type == CFG_LEFT)
        return;
    else if (n->kind != NODE_SCALAR)
        CFG_ERROR(r, n, "%s must be a single value", key->path);
    /* '' is as good as no value, but for a host it is a mistake, and for CFG_STATE an answer. */
    else if (cfg_is_null(n) || (!*n->text && key->type != CFG_HOST && key->type != CFG_STATE)) {
        if (!key->standard)
            CFG_ERROR(r, n, "%s has no value", key->path);
    } else if (key->type == CFG_BOOL || key->type == CFG_OVERRIDE) {
        int value = cfg_bool_value(n);
        if (value < 0)
            CFG_ERROR(r, n, "%s must be true or false, without quotes", key->path);
        else if (key->type == CFG_BOOL)
            *(bool *)at = value;
        else
            *(int *)at = value ? 1 : -1;
    } else if (key->type == CFG_INT)
        cfg_read_int(r, key, n, at);
    else if (key->type == CFG_CHOICE)
        cfg_read_choice(r, key, n, at);
    else if (key->type == CFG_HOST && cfg_read_host(n->text, &addr) < 0)
        CFG_ERROR(r, n, "%s must be an address or a host name, without port", key->path);
    else if ((key->type == CFG_PATH || key->type == CFG_STATE) && cfg_has_control(n->text))
        CFG_ERROR(r, n,
            "%s holds a control character; in double quotes \"\\\" starts an escape: "
            "write a Windows path in single quotes, 'C:\\path'",
            key->path);
    else
        *(const char **)at = n->text;
}

/* Reads every default of a table as if it stood in the file; the rest of base is zero already. */
static void
cfg_set_defaults(struct cfg_reader *r, const struct cfg_key *keys, void *base)
{
    for (const struct cfg_key *k = keys; k->path; k++)
        if (k->standard && *k->standard)
            cfg_read_value(r, keys, k, &(struct node){.text = k->standard}, base);
}

/*
 * Reads a map by those rows of keys that stand right under prefix. Unknown keys
 * are told, among the many of Butler's own right under "Butler:" only likely
 * slips; keys without default must be there.
 */
static void
cfg_read_map(struct cfg_reader *r, const struct cfg_key *keys, const char *prefix,
    const struct node *map, void *base)
{
    for (size_t i = 0; i + 1 < map->count; i += 2) {
        const struct node *name = map->child[i];
        const struct cfg_key *k = keys;
        if (name->kind != NODE_SCALAR || cfg_is_merge(name))
            continue;
        while (k->path &&
            (!cfg_name_under(k, prefix) || strcmp(cfg_name_under(k, prefix), name->text) != 0))
            k++;
        if (k->path)
            cfg_read_value(r, keys, k, map->child[i + 1], base);
        else
            cfg_unknown_key(r, keys, prefix, name, keys == CFG_KEYS && !*prefix);
    }
    for (const struct cfg_key *k = keys; k->path; k++) {
        const char *name = cfg_name_under(k, prefix);
        if (name && !k->standard && k->type != CFG_MAP && !cfg_get(map, name))
            CFG_ERROR(r, map, "%s is missing", k->path);
    }
}

/*
 * A path from the file, made relative to the folder of the configuration. One
 * that plat_path_problem speaks of stays as it is; at is where to tell that, or
 * NULL. Arena memory.
 */
static char *
cfg_path(struct cfg_reader *r, const struct node *at, const char *path)
{
    const char *problem = plat_path_problem(path);
    struct buf full = {0};
    char *copy;

    if (at && problem)
        CFG_ERROR(r, at, "%s: %s", path, problem);
    if (!plat_path_is_absolute(path) && !problem)
        buf_add(&full, r->file, plat_path_folder_len(r->file));
    buf_add_text(&full, path);
    copy = arena_copy(&r->config->arena, full.data, full.len);
    buf_free(&full);
    return copy;
}

/*
 * Reads the PEM certificates of a webhook's CA file; *damaged is how many of
 * them cannot be read. -1 with e: there is nothing to trust in it.
 */
static int
cfg_load_ca(struct webhook_config *w, int *damaged, struct err *e)
{
    const char *problem = plat_path_problem(w->cert_ca);
    char *pem;
    size_t len;

    if (problem) {
        err_set(e, "%s: %s", w->cert_ca, problem);
        return -1;
    }
    if (plat_read_file(w->cert_ca, CERT_FILE_MAX, &pem, &len) != 0) {
        err_set(e, "cannot read %s: %s", w->cert_ca, plat_error());
        return -1;
    }
    if (!strstr(pem, "-----BEGIN CERTIFICATE-----")) {
        err_set(e, "%s holds no PEM certificate (-----BEGIN CERTIFICATE-----)%s", w->cert_ca,
            len > 1 && (unsigned char)pem[0] == 0x30 ? "; it looks like DER: convert it to PEM"
                                                     : "");
        free(pem);
        return -1;
    }
    w->ca = x_calloc(1, sizeof *w->ca);
    mbedtls_x509_crt_init(w->ca);
    *damaged = mbedtls_x509_crt_parse(w->ca, (const unsigned char *)pem, len + 1);
    free(pem);
    for (const mbedtls_x509_crt *c = w->ca; c && c->raw.len > 0; c = c->next)
        w->ca_count++;
    if (w->ca_count > 0)
        return 0;
    err_set(e, "%s holds no certificate that can be read", w->cert_ca);
    return -1;
}

/*
 * Decides whom a webhook trusts, and reads its CA file if cert.enable says so.
 * Whatever was read under cert proves that cert is a map.
 */
static void
cfg_read_trust(struct cfg_reader *r, const struct node *entry, struct webhook_config *w)
{
    const struct node *cert = cfg_get(entry, "cert"), *ca = cfg_get(cert, "certCA");
    const struct node *at = ca ? ca : cert;
    struct err e;
    int damaged = 0;

    w->trust = !w->url.tls        ? TRUST_NONE
        : !w->reject_unauthorized ? TRUST_UNCHECKED
        : w->cert_enable          ? TRUST_OWN_CA
                                  : TRUST_PUBLIC;
    if (w->trust == TRUST_UNCHECKED)
        CFG_WARN(r, cfg_get(cert, "rejectUnauthorized"),
            "%s: rejectUnauthorized is false: anybody can pose as this webhook's "
            "server",
            w->name);
    if (w->cert_ca && !cfg_get(cert, "enable"))
        CFG_ERROR(r, cert, "cert.enable is missing: true to trust only certCA, else false");
    if (!w->cert_enable)
        w->cert_ca = NULL;
    else if (!w->cert_ca) {
        if (w->trust != TRUST_UNCHECKED && at->kind != NODE_LIST)
            CFG_ERROR(r, at, "cert.enable is true, but cert.certCA names no file");
    } else {
        w->cert_ca = cfg_path(r, NULL, w->cert_ca);
        if (cfg_load_ca(w, &damaged, &e) != 0)
            cfg_problem(
                r, w->trust != TRUST_UNCHECKED, at->line, at->column, "cert.certCA: %s", e.text);
        else if (damaged > 0)
            CFG_WARN(r, at,
                "cert.certCA: %d of the certificates in %s cannot be read and "
                "will not be trusted",
                damaged, w->cert_ca);
    }
}

/* The proxy through which a URL is called, or NULL. */
static const struct url *
cfg_proxy_for(const struct config *c, const struct url *u)
{
    const struct url *proxy = &c->proxy[u->tls];

    return proxy->host && !url_is_excepted(u, c->no_proxy) ? proxy : NULL;
}

/*
 * Makes the name under which the journal knows a webhook, so that neither its
 * URL nor a secret in it comes to the disk: SHA-256 of kind, method, URL's text
 * and how many entries before it have the same.
 */
static void
cfg_make_key(const struct config *c, struct webhook_config *w)
{
    struct buf text = {0};
    uint8_t hash[32];
    int twins = 0;

    for (const struct webhook_config *v = c->webhook[w->kind]; v < w; v++)
        twins += v->method == w->method && v->url_text && w->url_text &&
            strcmp(v->url_text, w->url_text) == 0;
    buf_format(&text, "%s\n%s\n%s\n%d", KINDS[w->kind].name, METHODS[w->method],
        w->url_text ? w->url_text : "", twins);
    mbedtls_sha256((const unsigned char *)text.data, text.len, hash, 0);
    mbedtls_platform_zeroize(text.data, text.len);
    buf_free(&text);
    hex_write(hash, (sizeof w->key - 1) / 2, w->key);
}

/* Reads one entry of a webhooks list. */
static void
cfg_read_webhook(struct cfg_reader *r, enum alert_kind kind, size_t place, const struct node *entry)
{
    struct webhook_config *w = &r->config->webhook[kind][place];
    struct err e;

    w->kind = kind;
    w->place = place;
    snprintf(w->name, sizeof w->name, "%s %zu", KINDS[kind].name, place + 1);
    if (entry->kind != NODE_MAP) {
        CFG_ERROR(r, entry, "a webhook needs the keys description, webhookURL and httpMethod");
        return;
    }
    cfg_set_defaults(r, CFG_WEBHOOK_KEYS, w);
    w->method = METHOD_PUT; /* shown while webhooks are off, when the file says none */
    cfg_read_map(r, CFG_WEBHOOK_KEYS, "", entry, w);
    cfg_make_key(r->config, w);
    if (w->description)
        snprintf(w->name, sizeof w->name, "%s %zu (\"%s\")", KINDS[kind].name, place + 1,
            log_text(slice_of(w->description)).text);
    if (w->url_text && url_parse(slice_of(w->url_text), NULL, &w->url, &e) != 0)
        CFG_ERROR(r, cfg_get(entry, "webhookURL"),
            "webhookURL is not a URL: %s; write it as "
            "http://host/path or https://host:port/path",
            e.text);
    cfg_read_trust(r, entry, w);
    w->proxy = w->url.host ? cfg_proxy_for(r->config, &w->url) : NULL;
}

/* Reads a list of webhooks; while webhooks are off, its mistakes are only warnings. */
static void
cfg_read_webhooks(struct cfg_reader *r, const struct cfg_key *key, const struct node *list)
{
    enum alert_kind kind = (enum alert_kind)key->offset;

    r->config->webhooks[kind] = list->count;
    r->config->webhook[kind] = arena_alloc(
        &r->config->arena, list->count * sizeof *r->config->webhook[kind]);
    r->lenient = r->off;
    for (size_t i = 0; i < list->count; i++)
        cfg_read_webhook(r, kind, i, list->child[i]);
    r->lenient = false;
}

/* The first of these environment variables that is set and not empty, with its name. */
static const char *
cfg_environment(const char *const *names, const char **name)
{
    for (; *names; names++) {
        const char *value = plat_environment(*names);
        *name = *names;
        if (value && *value)
            return value;
    }
    return NULL;
}

/* Reads the proxies that the environment names, as Butler's HTTP client does. */
static void
cfg_read_proxies(struct cfg_reader *r)
{
    static const char *const names[2][5] = {
        {"http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", NULL},
        {"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", NULL}};
    static const char *const no_proxy[] = {"no_proxy", "NO_PROXY", NULL};
    const char *name;
    struct err e;

    r->config->no_proxy = cfg_environment(no_proxy, &name);
    if (!r->config->no_proxy)
        r->config->no_proxy = "";
    for (int tls = 0; tls < 2; tls++) {
        const char *value = cfg_environment(names[tls], &name);
        struct url *proxy = &r->config->proxy[tls];
        struct buf full = {0};
        if (!value)
            continue;
        buf_format(&full, "%s%s", strstr(value, "://") ? "" : "http://", value);
        if (url_parse((struct slice){full.data, full.len}, NULL, proxy, &e) != 0)
            cfg_problem(r, true, 1, 1,
                "the environment's %s is not a proxy: %s; write "
                "http://host:port",
                name, e.text);
        else if (proxy->tls)
            cfg_problem(r, true, 1, 1,
                "the environment's %s: a proxy is spoken to over http; "
                "write http://host:port",
                name);
        mbedtls_platform_zeroize(full.data, full.len);
        buf_free(&full);
    }
}

/* Whether an address is only reached from this machine. */
static bool
cfg_is_loopback(const struct plat_addr *addr)
{
    static const uint8_t one[16] = {[15] = 1}, v4[13] = {[10] = 0xff, [11] = 0xff, [12] = 127};
    uint8_t a[16];

    plat_addr_bytes(addr, a);
    return memcmp(a, one, sizeof one) == 0 || memcmp(a, v4, sizeof v4) == 0;
}

/* Whether senders beyond this machine are let in unchecked, if that is where addr listens. */
static bool
cfg_is_open(const struct config *c, const struct plat_addr *addr)
{
    return !cfg_is_loopback(addr) && (!c->source_validation || c->sources == 0);
}

/* Checks what depends on more than one key, and settles the overrides. */
static void
cfg_settle(struct cfg_reader *r, const struct node *butler)
{
    struct config *c = r->config;
    const struct node *own = cfg_get(butler, "butlerWebhook");
    const struct node *udp = cfg_get(butler, "udpServerConfig");
    const struct node *sources = cfg_get(udp, "allowedSources");
    const struct node *own_host = cfg_get(own, "serverHost"), *host = cfg_get(udp, "serverHost");
    struct plat_addr addr;

    if (!udp || udp->kind != NODE_MAP)
        c->udp_enable = true;
    c->enabled = c->own_enable ? c->own_enable > 0 : c->webhook_enable && c->udp_enable;
    if (c->own_host)
        c->udp_host = c->own_host;
    if (c->own_port)
        c->udp_port = c->own_port;
    if (c->source_validation && c->sources == 0 &&
        (!sources || cfg_is_null(sources) || (sources->kind == NODE_LIST && sources->count == 0)))
        CFG_WARN(r, sources ? sources : udp,
            "udpServerConfig.allowedSources is empty: every sender is accepted");
    if (c->enabled && cfg_read_host(c->udp_host, &addr) == 1 && cfg_is_open(c, &addr))
        CFG_WARN(r,
            own_host   ? own_host
                : host ? host
                       : butler,
            "listening on %s, beyond this machine, without a check of "
            "the senders: set udpServerConfig.enableSourceValidation and allowedSources",
            c->udp_host);
    if (!c->state_directory) /* systemd names the one that it has made for the service */
        c->state_directory = plat_environment("STATE_DIRECTORY");
    if (!c->state_directory)
        c->state_directory = "butler_webhook.state";
    c->state_directory = *c->state_directory
        ? cfg_path(r, cfg_get(own, "stateDirectory"), c->state_directory)
        : NULL;
}

/* Reads what stands under "Butler:". */
static void
cfg_read_root(struct cfg_reader *r, const struct node *root)
{
    const struct node *butler = cfg_get(root, "Butler");
    const struct node *section = cfg_get(butler, "webhookNotification");
    int on = cfg_bool_value(cfg_get(cfg_get(butler, "butlerWebhook"), "enable"));

    if (!butler || butler->kind != NODE_MAP) {
        CFG_ERROR(r, butler ? butler : root,
            "the file must start with \"Butler:\" and hold "
            "Butler's keys, indented under it");
        return;
    }
    if (!section || cfg_is_null(section))
        CFG_ERROR(r, section ? section : butler,
            "Butler.webhookNotification is missing: it holds the webhooks");
    if (on < 0)
        on = cfg_bool_value(cfg_get(section, "enable")) != 0 &&
            cfg_bool_value(cfg_get(cfg_get(butler, "udpServerConfig"), "enable")) != 0;
    r->off = !on && !r->strict;
    cfg_read_map(r, CFG_KEYS, "", butler, r->config);
    cfg_settle(r, butler);
}

/* Frees what a configuration holds. */
static void
cfg_done(struct config *c)
{
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        for (size_t i = 0; i < c->webhooks[kind]; i++) {
            struct webhook_config *w = &c->webhook[kind][i];
            url_done(&w->url);
            if (w->ca)
                mbedtls_x509_crt_free(w->ca);
            free(w->ca);
        }
    url_done(&c->proxy[0]);
    url_done(&c->proxy[1]);
    arena_done(&c->arena);
}

/*
 * Reads a configuration file into r->config, which the caller ends with
 * cfg_done. All problems are in r->problems; with errors the rest of the
 * result is not to be used, but for log_directory: where a service may write
 * them, NULL if there is no such file. Unless strict, a webhook with a mistake
 * is only a warning while webhooks are off; it then has no URL.
 */
static void
cfg_load(struct cfg_reader *r, const char *file, bool strict, struct config *config)
{
    char *text;
    size_t len;
    const struct node *root = NULL;

    *r = (struct cfg_reader){.file = file, .strict = strict, .config = config};
    *config = (struct config){0};
    cfg_set_defaults(r, CFG_KEYS, config);
    cfg_read_proxies(r);
    if (plat_read_file(file, CONFIG_MAX, &text, &len) != 0) {
        cfg_problem(r, true, 1, 1, "cannot read the configuration: %s",
            errno == EFBIG ? "it is over 1 MiB, which no Butler configuration is" : plat_error());
        config->log_directory = NULL;
        return;
    }
    if (len >= 2 &&
        (memcmp(text, "\xff\xfe", 2) == 0 || memcmp(text, "\xfe\xff", 2) == 0 ||
            (len >= 4 && (!text[0] || !text[1]))))
        cfg_problem(r, true, 1, 1, "the file is UTF-16: save it as UTF-8");
    else if ((root = cfg_read_document(r, text, len)) != NULL)
        cfg_read_root(r, root);
    config->log_directory = cfg_path(
        r, cfg_get(cfg_get(root, "Butler"), "logDirectory"), config->log_directory);
    free(text);
}

/* Adds all problems, a line each, as compilers tell them, so that editors can jump to them. */
static void
cfg_add_problems(struct buf *b, const struct cfg_reader *r)
{
    for (const struct problem *p = r->problems; p; p = p->next)
        buf_format(b, "%s:%d:%d: %s: %s\n", r->file, p->line, p->column,
            p->is_error ? "error" : "warning", p->text);
}

/* The key that turns the program off. */
static const char *
cfg_disabled_by(const struct config *c)
{
    return c->own_enable < 0 ? "butlerWebhook.enable: false"
        : !c->webhook_enable ? "webhookNotification.enable: false"
                             : "udpServerConfig.enable: false";
}

/* Address and port of the UDP socket, as people write it. */
static void
cfg_listen_text(const struct config *c, char *out, size_t size)
{
    snprintf(
        out, size, strchr(c->udp_host, ':') ? "[%s]:%d" : "%s:%d", c->udp_host, (int)c->udp_port);
}

/* ==== 8. Windows of time ====================================================
 *
 * Rate limit and de-duplication are the same thing: a key opens a window, and
 * what comes with that key before the window ends is held back. Pure functions;
 * the time comes as an argument.
 *
 * All windows of a table are equally long, so they end in the order in which
 * they began: a ring, with a hash index beside it. When the table is full the
 * one that ends soonest goes, so one alert too many may be sent, never one too
 * few.
 *
 * Threads: the listener that dispatches; the journal thread writes them down.
 */

struct window_entry {
    uint8_t key[16];
    int64_t begin_ms;
    uint32_t held; /* held back so far */
    uint32_t next; /* in its chain, place + 1; 0: last */
};

struct window_key {
    uint8_t bytes[16];
    bool none;
};

struct window_table {
    int64_t length_ms;          /* set before start; 0: nothing is ever held back */
    struct window_entry *entry; /* ring of cap places */
    uint32_t *chain;            /* heads, place + 1; as many as cap */
    uint32_t cap, first, count; /* cap is a power of two, or WINDOW_MAX rounded up to one */
};

enum window_use { WINDOW_RATE, WINDOW_SEEN };
#define WINDOW_USES 2

static const char *const WINDOW_NAMES[] = {"rate", "seen"}; /* in the journal */

/* All tables: the rate limit's by task, de-duplication's by execution. */
struct windows {
    struct plat_mutex lock;
    struct window_table table[ALERT_KINDS][WINDOW_USES]; /* guarded by lock */
};

/* Frees the table's memory; it is then as new. */
static void
window_done(struct window_table *t)
{
    free(t->entry);
    free(t->chain);
    t->entry = NULL;
    t->chain = NULL;
    t->cap = t->first = t->count = 0;
}

/* The chain that a key belongs to. */
static uint32_t *
window_chain(const struct window_table *t, const uint8_t *key)
{
    uint32_t hash;

    memcpy(&hash, key, sizeof hash);
    /* The analyzer takes a table that window_grow has replaced for the freed one. */
    return &t->chain[hash & (t->cap - 1)]; /* NOLINT(clang-analyzer-unix.Malloc) */
}

/* Forgets the oldest window. */
static void
window_drop_first(struct window_table *t)
{
    uint32_t *link = window_chain(t, t->entry[t->first].key);

    while (*link != t->first + 1)
        link = &t->entry[*link - 1].next;
    *link = t->entry[t->first].next;
    t->first = (t->first + 1) & (t->cap - 1);
    t->count--;
}

/* Puts an entry at the ring's end; there must be room. */
static void
window_append(struct window_table *t, const struct window_entry *entry)
{
    uint32_t place = (t->first + t->count++) & (t->cap - 1);
    uint32_t *chain = window_chain(t, entry->key);

    t->entry[place] = *entry;
    t->entry[place].next = *chain;
    *chain = place + 1;
}

/* Doubles the room. */
static void
window_grow(struct window_table *t)
{
    struct window_table bigger = {.length_ms = t->length_ms, .cap = t->cap ? t->cap * 2 : 64};

    bigger.entry = x_calloc(bigger.cap, sizeof *bigger.entry);
    bigger.chain = x_calloc(bigger.cap, sizeof *bigger.chain);
    for (uint32_t i = 0; i < t->count; i++)
        window_append(&bigger, &t->entry[(t->first + i) & (t->cap - 1)]);
    window_done(t);
    *t = bigger;
}

/*
 * The key of an id, so that GUIDs are the same in any case and with or without
 * braces. An empty id has none: it gets no window.
 */
static struct window_key
window_key(struct slice id)
{
    struct slice guid = alert_guid(id);
    struct window_key key = {.none = id.len == 0};
    struct buf lower = {0};
    uint8_t hash[32];

    buf_add(&lower, guid.len ? guid.data : id.data, guid.len ? guid.len : id.len);
    for (size_t i = 0; i < lower.len; i++)
        lower.data[i] = (char)tolower((unsigned char)lower.data[i]);
    mbedtls_sha256((const unsigned char *)lower.data, lower.len, hash, 0);
    memcpy(key.bytes, hash, sizeof key.bytes);
    buf_free(&lower);
    return key;
}

/* The open window of a key at now_ms, or NULL. */
static struct window_entry *
window_find(struct window_table *t, const struct window_key *key, int64_t now_ms)
{
    while (t->count > 0 && t->entry[t->first].begin_ms + t->length_ms <= now_ms)
        window_drop_first(t);
    if (t->count == 0 || key->none)
        return NULL;
    for (uint32_t i = *window_chain(t, key->bytes); i; i = t->entry[i - 1].next)
        if (memcmp(t->entry[i - 1].key, key->bytes, sizeof key->bytes) == 0 &&
            t->entry[i - 1].begin_ms + t->length_ms > now_ms)
            return &t->entry[i - 1];
    return NULL;
}

/* Opens a window at begin_ms; the caller has looked that the key has none. */
static void
window_open(struct window_table *t, const struct window_key *key, int64_t begin_ms)
{
    struct window_entry entry = {.begin_ms = begin_ms};

    if (t->length_ms == 0 || key->none)
        return;
    if (t->count == WINDOW_MAX)
        window_drop_first(t);
    else if (t->count == t->cap)
        window_grow(t);
    memcpy(entry.key, key->bytes, sizeof entry.key);
    window_append(t, &entry);
}

/* Readies the tables of all kinds. */
static void
windows_init(struct windows *w, const struct config *c)
{
    *w = (struct windows){0};
    plat_mutex_init(&w->lock);
    for (int kind = 0; kind < ALERT_KINDS; kind++) {
        w->table[kind][WINDOW_RATE].length_ms = c->rate_limit_s[kind] * 1000;
        w->table[kind][WINDOW_SEEN].length_ms = c->dedup_enable ? c->dedup_minutes * 60000 : 0;
    }
}

/* Frees them. */
static void
windows_done(struct windows *w)
{
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        for (int use = 0; use < WINDOW_USES; use++)
            window_done(&w->table[kind][use]);
    plat_mutex_done(&w->lock);
}

/* ==== 9. Journal ============================================================
 *
 * What survives kill -9 and a power cut: one append-only file of lines, each
 * with a CRC-32. An alert is written to it before any sender hears of it, and
 * leaves it only when its webhook has had it or it was given up.
 *
 *   CRC<TAB>accepted<TAB>wall ms<TAB>key:id,key:id...<TAB>{alert}
 *   CRC<TAB>waiting<TAB>wall ms<TAB>key:id<TAB>{alert}      one webhook's share
 *   CRC<TAB>retry<TAB>id<TAB>attempts<TAB>tried<TAB>next<TAB>"why"
 *   CRC<TAB>delivered | dead | dropped<TAB>id
 *   CRC<TAB>webhook<TAB>key<TAB>kind<TAB>place<TAB>count<TAB>"description"
 *   CRC<TAB>window<TAB>kind<TAB>rate | seen<TAB>wall ms<TAB>key
 *
 * id is the webhook-id, key what cfg_make_key made. JSON holds no raw TAB, so
 * that a good record is found again inside of a damaged line.
 *
 * Outcomes wait in memory until somebody writes: the dispatcher with its next
 * alerts, or the journal thread. Lost outcomes cost a second call, never an alert.
 *
 * Threads: the dispatcher appends alerts, senders note outcomes, the journal
 * thread (section 12) writes, syncs and rewrites. Writing needs the file lock;
 * what waits in memory is guarded by the other one.
 */

enum journal_word {
    JOURNAL_ACCEPTED,
    JOURNAL_WAITING,
    JOURNAL_RETRY,
    JOURNAL_DELIVERED,
    JOURNAL_DEAD,
    JOURNAL_DROPPED,
    JOURNAL_WEBHOOK,
    JOURNAL_WINDOW
};
#define JOURNAL_FIELDS 5

static const struct {
    const char *name;
    int fields;
} JOURNAL_WORDS[] = {
    [JOURNAL_ACCEPTED] = {"accepted", 3},
    [JOURNAL_WAITING] = {"waiting", 3},
    [JOURNAL_RETRY] = {"retry", 5},
    [JOURNAL_DELIVERED] = {"delivered", 1},
    [JOURNAL_DEAD] = {"dead", 1},
    [JOURNAL_DROPPED] = {"dropped", 1},
    [JOURNAL_WEBHOOK] = {"webhook", 5},
    [JOURNAL_WINDOW] = {"window", 4},
};
#define JOURNAL_WORDS_COUNT (sizeof JOURNAL_WORDS / sizeof *JOURNAL_WORDS)

/* One record; the fields point into the line. */
struct journal_line {
    enum journal_word word;
    struct slice field[JOURNAL_FIELDS];
};

struct journal {
    char *folder;        /* set before start, as all up to file_lock; NULL: none, nothing is kept */
    int64_t live_max;    /* bytes of waiting alerts */
    int64_t file_max;    /* bytes of the file: then it must be rewritten */
    int64_t letters_max; /* bytes of dead letters in one file */
    int lock_file;       /* -1: none, read only */
    bool taken;          /* another process has the lock */
    struct plat_mutex file_lock;
    int file[2];       /* guarded by file_lock; for reading also by any webhook's lock */
    int now;           /* guarded by file_lock, as all up to lock: which of file is in use */
    int64_t end;       /* its length */
    bool failed;       /* told; alerts are kept in memory only until it works again */
    bool uncut;        /* something half-written may stand behind end */
    bool unsafe;       /* what was written may not be on the disk: it must be rewritten */
    struct buf merged; /* what is being written */
    struct plat_mutex lock;
    struct plat_cond work;  /* for the journal thread; or it has done what others wait for */
    struct plat_cond hurry; /* alerts wait for a sync, or it must stop */
    struct buf outcomes;    /* guarded by lock, as all below: lines to be written */
    struct buf letters;     /* dead letters, lines of JSON that begin with the webhook-id */
    int64_t live_bytes;     /* of lines whose alerts wait */
    int64_t kept_bytes;     /* of lines in it that rewriting keeps besides */
    size_t live, unsaved;   /* deliveries that wait; those that are not in the journal */
    bool unsynced;          /* alerts were written since the last sync */
    bool crowded;           /* told: most of its room is used */
    bool letters_failed;    /* told */
    bool rewrite_failed;    /* told; rewriting is tried again later */
    bool rewrite;           /* wanted at once */
    bool no_room; /* told, until it is rewritten: alerts that find no room stay in memory */
    bool stopping, ended;
};

/* CRC-32 as zlib's (polynomial 0xedb88320), eight bytes at a time. */
static uint32_t crc_table[8][256]; /* set before start */

/* Fills the table. Main, first of all. */
static void
crc_init(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
        crc_table[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            crc_table[k][i] = crc_table[k - 1][i] >> 8 ^ crc_table[0][crc_table[k - 1][i] & 255];
}

/* The CRC-32 of some bytes. */
static uint32_t
crc_of(const void *data, size_t len)
{
    const unsigned char *p = data;
    uint32_t c = UINT32_MAX;

    for (; len >= 8; len -= 8, p += 8) {
        c ^= p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        c = crc_table[7][c & 255] ^ crc_table[6][c >> 8 & 255] ^ crc_table[5][c >> 16 & 255] ^
            crc_table[4][c >> 24] ^ crc_table[3][p[4]] ^ crc_table[2][p[5]] ^ crc_table[1][p[6]] ^
            crc_table[0][p[7]];
    }
    for (; len > 0; len--)
        c = c >> 8 ^ crc_table[0][(c ^ *p++) & 255];
    return ~c;
}

/* Starts a line; what it gives belongs to journal_end_line. */
static size_t
journal_begin_line(struct buf *b, enum journal_word word)
{
    size_t begin = b->len;

    buf_add_text(b, "00000000\t");
    buf_add_text(b, JOURNAL_WORDS[word].name);
    return begin;
}

/* Ends a line: its CRC and LF. */
static void
journal_end_line(struct buf *b, size_t begin)
{
    uint32_t crc = crc_of(b->data + begin + 9, b->len - begin - 9);
    uint8_t bytes[4] = {
        (uint8_t)(crc >> 24), (uint8_t)(crc >> 16), (uint8_t)(crc >> 8), (uint8_t)crc};
    char hex[2 * sizeof bytes + 1];

    hex_write(bytes, sizeof bytes, hex);
    memcpy(b->data + begin, hex, sizeof hex - 1);
    buf_add_char(b, '\n');
}

/* Adds an alert's line; targets are key:id,key:id... */
static void
journal_add_alert(struct buf *b, enum journal_word word, int64_t wall_ms, const struct buf *targets,
    struct slice json)
{
    size_t begin = journal_begin_line(b, word);

    buf_format(b, "\t%lld\t", (long long)wall_ms);
    buf_add(b, targets->data, targets->len);
    buf_add_char(b, '\t');
    buf_add(b, json.data, json.len);
    journal_end_line(b, begin);
}

/* Adds the line of an outcome. */
static void
journal_add_outcome(struct buf *b, enum journal_word word, const char *id)
{
    size_t begin = journal_begin_line(b, word);

    buf_add_char(b, '\t');
    buf_add_text(b, id);
    journal_end_line(b, begin);
}

/* Adds what is known of a webhook, so that it is found again after the configuration was edited. */
static void
journal_add_webhook(struct buf *b, const struct webhook_config *w, size_t count)
{
    size_t begin = journal_begin_line(b, JOURNAL_WEBHOOK);

    buf_format(b, "\t%s\t%s\t%zu\t%zu\t", w->key, KINDS[w->kind].name, w->place + 1, count);
    json_add_string(b, slice_of(w->description ? w->description : ""));
    journal_end_line(b, begin);
}

/* Which of JOURNAL_WORDS it is, or -1. */
static int
journal_find_word(struct slice word)
{
    for (size_t i = 0; i < JOURNAL_WORDS_COUNT; i++)
        if (slice_is(word, JOURNAL_WORDS[i].name))
            return (int)i;
    return -1;
}

/*
 * Reads one line, without its LF. -1: it is damaged, or no record of ours.
 * Pure; out points into line.
 */
static int
journal_read_line(struct slice line, struct journal_line *out)
{
    struct slice rest;
    uint8_t crc[4];
    int fields = 0, word;

    if (line.len < 10 || line.data[8] != '\t' || hex_read(line, crc, sizeof crc) != 0)
        return -1;
    rest = (struct slice){line.data + 9, line.len - 9};
    if (crc_of(rest.data, rest.len) !=
        ((uint32_t)crc[0] << 24 | (uint32_t)crc[1] << 16 | (uint32_t)crc[2] << 8 | crc[3]))
        return -1;
    if ((word = journal_find_word(slice_take(&rest, '\t'))) < 0)
        return -1;
    *out = (struct journal_line){.word = (enum journal_word)word};
    while (fields < JOURNAL_FIELDS && rest.len > 0)
        out->field[fields++] = slice_take(&rest, '\t');
    return fields == JOURNAL_WORDS[word].fields && rest.len == 0 ? 0 : -1;
}

/* Whether a record may begin there: eight hex digits, a TAB, one of the words, a TAB. */
static bool
journal_may_begin(struct slice s)
{
    uint8_t crc[4];

    if (s.len < 10 || s.data[8] != '\t' || hex_read(s, crc, sizeof crc) != 0)
        return false;
    s.data += 9, s.len -= 9;
    return journal_find_word(slice_take(&s, '\t')) >= 0;
}

/* Finds where records may begin at or behind from; gives how many, at most SALVAGE_MAX. */
static size_t
journal_find_starts(struct slice line, size_t from, size_t start[SALVAGE_MAX])
{
    size_t n = 0;
    const char *tab;

    for (size_t i = from + 8; i < line.len && n < SALVAGE_MAX; i++) {
        if (!(tab = memchr(line.data + i, '\t', line.len - i)))
            break;
        i = (size_t)(tab - line.data);
        if (journal_may_begin((struct slice){line.data + i - 8, line.len - i + 8}))
            start[n++] = i - 8;
    }
    return n;
}

/*
 * Finds the first good record at or behind from inside of a damaged line: one
 * that another was glued to, or that stands behind the damage. Gives its offset
 * and *len; SIZE_MAX: there is none. Pure.
 */
static size_t
journal_salvage(struct slice line, size_t from, size_t *len)
{
    size_t start[SALVAGE_MAX], n = journal_find_starts(line, from, start);
    struct journal_line record;

    for (size_t i = 0; i < n; i++)
        for (size_t k = i + 1; k <= n; k++)
            for (size_t lost = 0; lost < 2; lost++) { /* the LF between two: damaged, or gone */
                size_t end = k == n ? line.len : start[k] - 1 + lost;
                *len = end - start[i];
                if (journal_read_line((struct slice){line.data + start[i], *len}, &record) == 0)
                    return start[i];
            }
    return SIZE_MAX;
}

/* Reads a file line by line. */
struct line_reader {
    int file;
    struct buf in;
    size_t used;     /* of in, looked at */
    int64_t at;      /* offset of in's begin in the file */
    bool cut;        /* the last line had no LF, or was too long for one piece */
    int64_t line_at; /* offset of the last line */
};

/* Gives the next line, without its LF: 1, 0 at the end, -1: the file cannot be read (errno). */
static int
line_read(struct line_reader *r, struct slice *line)
{
    for (;;) {
        size_t have = r->in.len - r->used;
        char *begin, *end;
        buf_reserve(&r->in, JOURNAL_READ);
        begin = r->in.data + r->used;
        end = memchr(begin, '\n', have);
        if (!end && have <= JOURNAL_LINE_MAX) {
            int64_t n;
            begin = memmove(r->in.data, begin, have);
            r->at += (int64_t)r->used;
            r->in.len = have;
            r->used = 0;
            n = plat_read_at(r->file, begin + have, JOURNAL_READ, r->at + (int64_t)have);
            if (n < 0)
                return -1;
            r->in.len += (size_t)n;
            if (n > 0)
                continue;
            if (have == 0)
                return 0;
        }
        *line = (struct slice){begin, end ? (size_t)(end - begin) : have};
        r->cut = !end;
        r->line_at = r->at + (int64_t)r->used;
        r->used += line->len + (end ? 1 : 0);
        return 1;
    }
}

/* The path of a file in the state directory. The caller frees it. */
static char *
journal_path(const struct journal *j, const char *name)
{
    struct buf path = {0};

    buf_format(&path, "%s/%s", j->folder, name);
    return path.data;
}

/* Opens a file in the state directory; a handle, or -1 with errno set. */
static int
journal_open_file(const struct journal *j, const char *name, bool read_only, bool empty)
{
    char *path = journal_path(j, name);
    int file = plat_state_open(path, read_only, empty);
    int failed = errno;

    free(path);
    errno = failed;
    return file;
}

/* Removes a file of the state directory. */
static void
journal_remove_file(const struct journal *j, const char *name)
{
    char *path = journal_path(j, name);

    plat_remove(path);
    free(path);
}

/* Whether a name in the state directory still means an open file of ours. */
static bool
journal_is_there(const struct journal *j, int file, const char *name)
{
    char *path = journal_path(j, name);
    bool there = plat_file_is_at(file, path);

    free(path);
    return there;
}

/* Puts one file of the state directory in the place of another. -1 with errno set. */
static int
journal_replace_file(const struct journal *j, const char *from, const char *to)
{
    char *from_path = journal_path(j, from), *to_path = journal_path(j, to);
    int failed = plat_file_replace(from_path, to_path), why = errno;

    free(from_path);
    free(to_path);
    errno = why;
    return failed;
}

/* Makes the state directory its own. -1 with e. */
static int
journal_take_lock(struct journal *j, struct err *e)
{
    char owner[16] = "";

    j->lock_file = journal_open_file(j, "lock", false, false);
    if (j->lock_file < 0) {
        err_set(e, "cannot write in %s: %s%s", j->folder, plat_error(), plat_advice());
        return -1;
    }
    if (plat_file_lock(j->lock_file) == 0) {
        snprintf(owner, sizeof owner, "%d\n", plat_process_id());
        if (plat_file_cut(j->lock_file, 0) == 0)
            plat_write(j->lock_file, owner, strlen(owner)); /* only for the message below */
        return 0;
    }
    j->taken = plat_is_locked_error();
    err_set(e, "cannot lock %s/lock: %s", j->folder, plat_error());
    if (j->taken && plat_read_at(j->lock_file, owner, sizeof owner - 1, 0) >= 0) {
        owner[strcspn(owner, "\n")] = '\0';
        err_set(e, "%s is used by another butler_webhook (process %s)", j->folder,
            log_text(slice_of(owner)).text);
    }
    plat_file_close(j->lock_file);
    j->lock_file = -1;
    return -1;
}

/* Readies a journal that keeps nothing yet: what a program without a state directory has. */
static void
journal_init(struct journal *j, const struct config *c)
{
    int64_t room = c->max_state_mb << 20;

    *j = (struct journal){.lock_file = -1, .file = {-1, -1}};
    plat_mutex_init(&j->file_lock);
    plat_mutex_init(&j->lock);
    plat_cond_init(&j->work);
    plat_cond_init(&j->hurry);
    /* While it is rewritten there are two journals; beside them two files of dead letters. */
    j->live_max = room * 30 / 100;
    j->file_max = room * 40 / 100;
    j->letters_max = room / 16 < LETTERS_MAX ? room / 16 : LETTERS_MAX;
}

/*
 * Opens the state directory, made if need be, and locks it; read_only: as far as
 * it is there, without lock. -1 with e.
 */
static int
journal_open(struct journal *j, const struct config *c, bool read_only, struct err *e)
{
    if (!c->state_directory)
        return 0;
    j->folder = x_strdup(c->state_directory);
    if (!read_only) {
        if (plat_make_folder(j->folder, true) != 0) {
            err_set(e, "cannot make the folder %s: %s%s", j->folder, plat_error(), plat_advice());
            return -1;
        }
        if (journal_take_lock(j, e) != 0)
            return -1;
        journal_remove_file(j, "journal.new"); /* what a rewriting that was killed has left ... */
        journal_remove_file(j, "dead-letters.new"); /* ... and a replay */
        if (plat_folder_is_open(j->folder))
            log_line(LOG_WARN, "state directory %s: other users of this machine can look into it",
                j->folder);
    }
    j->file[0] = journal_open_file(j, "journal", read_only, false);
    if (j->file[0] >= 0 && (j->end = plat_file_len(j->file[0])) >= 0 &&
        (read_only || plat_folder_sync(j->folder) == 0))
        return 0;
    if (read_only && errno == ENOENT)
        return 0;
    err_set(e, "cannot open %s/journal: %s", j->folder,
        errno == EINVAL ? "it is not a file" : plat_error());
    return -1;
}

/* Closes it all. */
static void
journal_done(struct journal *j)
{
    plat_file_close(j->file[0]);
    plat_file_close(j->file[1]);
    plat_file_close(j->lock_file);
    free(j->folder);
    buf_free(&j->merged);
    buf_free(&j->outcomes);
    buf_free(&j->letters);
    plat_cond_done(&j->work);
    plat_cond_done(&j->hurry);
    plat_mutex_done(&j->lock);
    plat_mutex_done(&j->file_lock);
}

/* From here on alerts are kept in memory only, which is told once. The file lock is held. */
static void
journal_fail_locked(struct journal *j, const char *what)
{
    if (!j->failed)
        log_line(
            LOG_ERROR, "state directory: %s: %s; alerts go on from memory", what, plat_error());
    j->failed = true;
}

/* Whether the disk has failed, and alerts are kept in memory only. */
static bool
journal_has_failed(struct journal *j)
{
    bool failed;

    plat_lock(&j->file_lock);
    failed = j->failed;
    plat_unlock(&j->file_lock);
    return failed;
}

/* Cuts off what a failed write has left. 0, or -1: it is still there. The file lock is held. */
static int
journal_cut_locked(struct journal *j)
{
    if (j->uncut && plat_file_cut(j->file[j->now], j->end) != 0)
        return -1;
    j->uncut = false;
    return 0;
}

/* Takes bytes off the front of b, of which there are as many; gives memory for a burst back. */
static void
journal_cut_front(struct buf *b, size_t len)
{
    b->len -= len;
    if (b->len > 0)
        memmove(b->data, b->data + len, b->len);
    else if (b->cap > LOG_QUEUE_KEEP)
        buf_free(b);
}

/*
 * Writes lines, with_outcomes those that wait before them, all or nothing. Gives
 * the offset of lines, or -1: nothing was added, and journal_fail_locked was
 * told. Outcomes must stand before lines: a dead letter that is sent again has the
 * id of an alert whose end may be among them. The file lock is held, so that nobody
 * else takes outcomes away; more may come behind them meanwhile.
 */
static int64_t
journal_write_locked(struct journal *j, struct slice lines, bool with_outcomes)
{
    size_t outcomes;
    int failed;

    plat_lock(&j->lock);
    outcomes = with_outcomes ? j->outcomes.len : 0;
    buf_add(&j->merged, j->outcomes.data, outcomes);
    plat_unlock(&j->lock);
    buf_add(&j->merged, lines.data, lines.len);
    failed = journal_cut_locked(j);
    if (!failed && j->merged.len > 0) {
        j->uncut = true;
        failed = plat_write(j->file[j->now], j->merged.data, j->merged.len);
    }
    if (failed) {
        journal_fail_locked(j, "cannot write the journal");
        journal_cut_locked(j);
    } else {
        j->uncut = false;
        j->end += (int64_t)j->merged.len;
        plat_lock(&j->lock);
        journal_cut_front(&j->outcomes, outcomes);
        plat_unlock(&j->lock);
    }
    journal_cut_front(&j->merged, j->merged.len);
    return failed ? -1 : j->end - (int64_t)lines.len;
}

/*
 * Counts deliveries that begin (> 0) or cease (-1) to wait, with the length of
 * the line of each in the file in use, 0: it has none there. The other lock is held.
 */
static void
journal_count_locked(struct journal *j, int count, size_t len)
{
    j->live = (size_t)((int64_t)j->live + count);
    j->live_bytes += count * (int64_t)len;
    if (len == 0)
        j->unsaved = (size_t)((int64_t)j->unsaved + count);
}

/* The same for who does not hold the lock. */
static void
journal_count(struct journal *j, int count, size_t len)
{
    plat_lock(&j->lock);
    journal_count_locked(j, count, len);
    plat_unlock(&j->lock);
}

/* A delivery that ends, for the journal. */
struct journal_end {
    const char *id;
    size_t len;   /* of its line in the file in use, 0: it has none there */
    bool written; /* it has a line there, or in the file that is to take its place */
};

/* Notes that a delivery is over. Any thread. */
static void
journal_note_end(struct journal *j, enum journal_word word, const struct journal_end *end)
{
    if (!j->folder)
        return;
    plat_lock(&j->lock);
    journal_count_locked(j, -1, end->len);
    if (end->written && j->outcomes.len < OUTCOMES_MAX)
        journal_add_outcome(&j->outcomes, word, end->id);
    else if (end->written)
        j->rewrite = true; /* when the disk works again; until then it would be sent once more */
    plat_unlock(&j->lock);
    plat_cond_wake(&j->work);
}

/*
 * By how many bytes the alerts that wait would exceed their room with so many
 * more; a disk that fails needs no room. Dispatcher.
 */
static int64_t
journal_over(struct journal *j, int64_t bytes)
{
    int64_t over;

    plat_lock(&j->lock);
    over = j->live_bytes + bytes - j->live_max;
    plat_unlock(&j->lock);
    return over > 0 && journal_has_failed(j) ? 0 : over;
}

/*
 * Waits, for a short time, while the file is being rewritten and has no room
 * for len more bytes. False: it still has none. Dispatcher.
 */
static bool
journal_await_room(struct journal *j, size_t len)
{
    int64_t until_ms = plat_now_ms() + JOURNAL_ROOM_MS, left;
    bool room, told;

    do {
        plat_lock(&j->file_lock);
        room = j->failed || j->end + (int64_t)len <= j->file_max + j->file_max / 8;
        plat_unlock(&j->file_lock);
        left = until_ms - plat_now_ms();
        plat_lock(&j->lock);
        if (j->no_room || j->rewrite_failed || j->letters_failed)
            left = 0;
        if (!room && left > 0) {
            j->rewrite = true;
            plat_cond_wake(&j->work);
            plat_cond_wait(&j->work, &j->lock, left < SLICE_MS ? left : SLICE_MS);
        }
        told = j->no_room;
        j->no_room = told || (!room && left <= 0);
        plat_unlock(&j->lock);
    } while (!room && left > 0);
    if (!room && !told)
        log_line(LOG_ERROR,
            "state directory: the journal has no room, as it cannot be rewritten; "
            "alerts go on from memory");
    return room;
}

/* Has the alerts that were just written synced. Dispatcher. */
static void
journal_want_sync(struct journal *j)
{
    plat_lock(&j->lock);
    j->unsynced = true;
    plat_unlock(&j->lock);
    plat_cond_wake(&j->work);
    plat_cond_wake(&j->hurry);
}

/* What a failed attempt leaves in the journal, for --pending and for the time after a restart. */
struct journal_retry {
    const char *id;
    int attempts;
    int64_t tried_wall_ms, next_wall_ms;
    const char *why;
};

/* Adds the line of a failed attempt. */
static void
journal_add_retry(struct buf *b, const struct journal_retry *retry)
{
    size_t begin = journal_begin_line(b, JOURNAL_RETRY);

    buf_format(b, "\t%s\t%d\t%lld\t%lld\t", retry->id, retry->attempts,
        (long long)retry->tried_wall_ms, (long long)retry->next_wall_ms);
    json_add_string(b, slice_of(retry->why));
    journal_end_line(b, begin);
}

/* Notes a failed attempt. Any thread. */
static void
journal_note_retry(struct journal *j, const struct journal_retry *retry)
{
    plat_lock(&j->lock);
    if (j->outcomes.len < OUTCOMES_MAX)
        journal_add_retry(&j->outcomes, retry);
    plat_unlock(&j->lock);
    plat_cond_wake(&j->work);
}

/*
 * Hands over a dead letter (a line of JSON); the journal thread writes it, and
 * only then the line that ends the delivery. False: too many wait already. Any
 * thread.
 */
static bool
journal_note_letter(struct journal *j, const struct buf *letter, const struct journal_end *end)
{
    bool room;

    plat_lock(&j->lock);
    room = j->letters.len < LETTERS_WAIT_MAX;
    journal_count_locked(j, -1, end->len);
    if (room)
        buf_add(&j->letters, letter->data, letter->len);
    plat_unlock(&j->lock);
    plat_cond_wake(&j->work);
    return room;
}

/*
 * Reads the alert whose line stands at an offset into line; *json points into
 * it. -1 with errno set, 0: EBADMSG, the line is damaged. A webhook's lock or
 * the file lock is held.
 */
static int
journal_fetch(const struct journal *j, int which, int64_t at, size_t len, struct buf *line,
    struct slice *json)
{
    struct journal_line record;
    int64_t n;

    line->len = 0;
    buf_reserve(line, len);
    n = plat_read_at(j->file[which], line->data, len, at);
    if (n < 0)
        return -1;
    line->len = (size_t)n;
    errno = EBADMSG;
    if (line->len != len ||
        journal_read_line((struct slice){line->data, line->len}, &record) != 0 ||
        record.word > JOURNAL_WAITING)
        return -1;
    *json = record.field[2];
    return 0;
}

/* ==== 10. HTTP client ========================================================
 *
 * One call: look up, connect, TLS, one HTTP/1.1 request, one response head, the
 * redirects that may be followed. The body of the answer is drained afterwards,
 * when the verdict is already known. What a server sends is read by pure
 * functions and is bounded; every wait ends at the call's deadline.
 *
 * Plain and TLS connections differ in two functions that are chosen once.
 *
 * Threads: each sender has a client of its own; a peer is shared, frozen but
 * for what its lock guards.
 */

/* When all calls must have ended; 0 while the program is not stopping. */
static _Atomic int64_t stop_at_ms;

/* The trusted roots of all webhooks without a CA of their own. */
struct tls_store {
    struct plat_mutex lock;
    bool loaded;                   /* guarded by lock */
    mbedtls_x509_crt roots;        /* guarded by lock until loaded */
    mbedtls_ssl_config public_tls; /* guarded by lock until loaded */
    mbedtls_ssl_config unchecked;  /* set before start */
};

/* What one webhook's calls need; set before start. */
struct http_peer {
    const struct config *config;
    const struct webhook_config *webhook;
    struct tls_store *store;
    mbedtls_ssl_config own_tls;
    const mbedtls_ssl_config *tls; /* for webhookURL's own origin */
};

/* The first certificate of a server in which TLS found a fault; without one, the server's own. */
struct tls_fault {
    uint32_t flags; /* MBEDTLS_X509_BADCERT_..., 0: none */
    bool self_signed;
    char subject[200], issuer[200], from[16], until[16];
};

/*
 * A connection and all that waits in it. It is reused only for its origin: a
 * tunnel leads nowhere else, and a proxy for http is cheap to connect to again.
 */
struct conn {
    intptr_t sock;                                     /* -1: not connected */
    int (*read)(struct conn *, void *, size_t);        /* as plat_recv */
    int (*write)(struct conn *, const void *, size_t); /* how many were taken, or -1 */
    mbedtls_ssl_context *ssl;                          /* NULL: plain */
    int tls_failed;                                    /* last error of the TLS library, 0: none */
    char *origin;                                      /* whom it leads to, behind a proxy, too */
    bool used;                                         /* has brought an answer before */
    bool deaf;     /* TLS: the other end takes no more; it may have answered */
    struct buf in; /* read and not yet used, from in_at on */
    size_t in_at;
    struct buf out; /* written and not yet sent, from out_at on */
    size_t out_at;

    struct tls_fault fault;
    struct http_client *client;
};

enum http_body_kind { BODY_NONE, BODY_LENGTH, BODY_CHUNKED, BODY_TO_CLOSE };

/* What comes next in a chunked body (RFC 9112, 7.1). */
enum chunk_state {
    CHUNK_SIZE,        /* another digit, or what ends them */
    CHUNK_EXTENSION,   /* the rest of that line, which nobody reads */
    CHUNK_DATA,        /* bytes of the chunk */
    CHUNK_DATA_END,    /* the line end behind them */
    CHUNK_TRAILER,     /* a trailer, or the empty line that ends the body */
    CHUNK_TRAILER_LINE /* the rest of a trailer, which nobody reads */
};

struct http_body {
    enum http_body_kind kind;
    enum chunk_state state;
    uint64_t left;   /* bytes of the body, or of the chunk */
    unsigned digits; /* of the chunk's size so far */
};

/* A response head; slices point into what was parsed, and are good until more is read. */
struct http_head {
    int status;
    bool keep;           /* the connection may be used again */
    bool close;          /* the server says that it closes it */
    const char *framing; /* what is wrong with the body's length; NULL: nothing */
    struct http_body body;
    struct slice location; /* data NULL: none */
    int locations;
    struct slice retry_after;
    bool te_seen, chunked, length_seen;
    uint64_t length;
};

enum http_end {
    HTTP_ANSWERED, /* status is the answer's */
    HTTP_UNSENT,   /* failed before the request was written */
    HTTP_BROKEN,   /* failed after it */
};

/* What became of a call. */
struct http_result {
    enum http_end end;
    int status;
    bool refused;          /* a redirect that must not be followed: final */
    int64_t retry_after_s; /* -1: not asked for */
    struct err reason;     /* what happened */
    struct err hint;       /* what a person can change; empty: nothing */
    int64_t ms;
};

/* The other end's view of one webhook, for one thread. */
struct http_client {
    struct http_peer *peer;
    struct conn conn;
    struct http_head head;       /* of the last answer, for http_drain */
    mbedtls_ssl_session session; /* of webhookURL's own origin, for the next handshake ... */
    bool has_session;            /* ... if there is one */
    int64_t deadline_ms;         /* of the call, or of draining its answer */
    bool home_is_local;          /* webhookURL's own host is loopback or link-local */
    atomic_bool resolving;       /* inside the system's resolver: not to be joined */
};

/* One alert to be sent; borrowed for the call. */
struct http_request {
    struct slice json; /* the alert, as alert_add_json makes it */
    uint64_t number;   /* for the log */
    const char *id;    /* webhook-id */
    bool is_test;
};

/* Milliseconds until deadline_ms or until all calls must end, 0 if that has passed. */
static int
http_left_ms(int64_t deadline_ms)
{
    int64_t stop_at = atomic_load(&stop_at_ms), left;

    left = (stop_at && stop_at < deadline_ms ? stop_at : deadline_ms) - plat_now_ms();
    return left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

/* The same for what a client is doing. */
static int
http_time_left(const struct http_client *c)
{
    return http_left_ms(c->deadline_ms);
}

/* Whether an address can only be this machine or its own link. */
static bool
http_is_local(const struct plat_addr *addr)
{
    static const uint8_t mapped[12] = {[10] = 0xff, 0xff}, zeros[15];
    uint8_t a[16];

    plat_addr_bytes(addr, a);
    if (memcmp(a, mapped, sizeof mapped) == 0) /* IPv4 */
        return a[12] == 127 || a[12] == 0 || (a[12] == 169 && a[13] == 254);
    if (memcmp(a, zeros, sizeof zeros) == 0)
        return a[15] <= 1;
    return a[0] == 0xfe && (a[1] & 0xc0) == 0x80;
}

/* ---- TLS ---- */

/* Notes the first certificate with a fault; called by the TLS library from the root down. */
static int
tls_note_fault(void *arg, mbedtls_x509_crt *crt, int depth, uint32_t *flags)
{
    struct tls_fault *f = arg;
    const mbedtls_x509_time *from = &crt->valid_from, *until = &crt->valid_to;

    (void)depth;
    if (f->flags != 0)
        return 0;
    f->flags = *flags;
    if (mbedtls_x509_dn_gets(f->subject, sizeof f->subject, &crt->subject) < 0)
        strcpy(f->subject, "?");
    if (mbedtls_x509_dn_gets(f->issuer, sizeof f->issuer, &crt->issuer) < 0)
        strcpy(f->issuer, "?");
    f->self_signed = crt->subject_raw.len == crt->issuer_raw.len &&
        memcmp(crt->subject_raw.p, crt->issuer_raw.p, crt->issuer_raw.len) == 0;
    snprintf(f->from, sizeof f->from, "%04d-%02d-%02d", from->year, from->mon, from->day);
    snprintf(f->until, sizeof f->until, "%04d-%02d-%02d", until->year, until->mon, until->day);
    return 0;
}

/*
 * Whether a handshake failed for the server's certificates; some faults the
 * library finds only after tls_note_fault has seen them.
 */
static bool
tls_has_fault(struct conn *conn, int code)
{
    if (code != MBEDTLS_ERR_X509_CERT_VERIFY_FAILED && code != MBEDTLS_ERR_SSL_BAD_CERTIFICATE)
        return false;
    if (conn->fault.flags == 0 && conn->fault.subject[0])
        conn->fault.flags = mbedtls_ssl_get_verify_result(conn->ssl);
    return conn->fault.flags != 0;
}

/* What is wrong with a certificate, and what can be done about it; the first that fits counts. */
static const struct {
    uint32_t flags;
    const char *reason, *hint;
} TLS_FAULTS[] = {
    {MBEDTLS_X509_BADCERT_EXPIRED, "it has expired", "renew the server's certificate"},
    {MBEDTLS_X509_BADCERT_FUTURE, "it is not valid yet",
        "check this machine's clock, or wait until the certificate is valid"},
    {MBEDTLS_X509_BADCERT_BAD_MD | MBEDTLS_X509_BADCERT_BAD_PK | MBEDTLS_X509_BADCERT_BAD_KEY,
        "it is signed with an algorithm or key that is too weak",
        "give the server a certificate signed with SHA-256 and at least RSA 2048 or EC P-256"},
    {MBEDTLS_X509_BADCERT_KEY_USAGE | MBEDTLS_X509_BADCERT_EXT_KEY_USAGE |
            MBEDTLS_X509_BADCERT_NS_CERT_TYPE,
        "it is not meant for a server",
        "give the server a certificate with the extended key usage serverAuth"},
    {MBEDTLS_X509_BADCERT_NOT_TRUSTED, "nobody that is trusted has signed it",
        "set cert.enable true and cert.certCA to a file with the certificate of its issuer "
        "(and let the server send its intermediate certificates)"},
    {MBEDTLS_X509_BADCERT_CN_MISMATCH, "it is not for this host name",
        "use a host name that the certificate holds in webhookURL"},
    {UINT32_MAX, "it cannot be used", "look at the certificate with openssl s_client"},
};

/* Says why the server's certificate was refused and what to change. */
static void
tls_explain_fault(const struct tls_fault *f, const char *host, struct http_result *res)
{
    size_t i = 0;

    while (!(TLS_FAULTS[i].flags & f->flags))
        i++;
    err_set(&res->reason,
        "certificate not trusted: \"%s\", issued by %s%s%s, valid from %s until "
        "%s, shown by %s: %s",
        f->subject, f->self_signed ? "itself" : "\"", f->self_signed ? "" : f->issuer,
        f->self_signed ? "" : "\"", f->from, f->until, host, TLS_FAULTS[i].reason);
    err_set(&res->hint, "%s", TLS_FAULTS[i].hint);
}

/* The TLS library's commoner errors in words. */
static const struct {
    int code;
    const char *reason, *hint;
} TLS_ERRORS[] = {
    {MBEDTLS_ERR_SSL_CONN_EOF, "the connection was closed in the handshake",
        "check the port in webhookURL and the server's own log"},
    {MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY, "the connection was closed in the handshake",
        "check the port in webhookURL and the server's own log"},
    {MBEDTLS_ERR_NET_CONN_RESET, "the connection was reset in the handshake",
        "check the port in webhookURL and the server's own log"},
    {MBEDTLS_ERR_SSL_INVALID_RECORD, "what answers there does not speak TLS",
        "write http:// in webhookURL, or the port where the server speaks https"},
    {MBEDTLS_ERR_SSL_BAD_PROTOCOL_VERSION, "the server offers no TLS 1.2 or 1.3",
        "let the server offer TLS 1.2 or 1.3"},
    {MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE, "the server refused the handshake (TLS alert)",
        "look at the server's own log; it may ask for a client certificate or older settings"},
    {MBEDTLS_ERR_SSL_HANDSHAKE_FAILURE, "no common settings with the server",
        "let the server offer current cipher suites and curves"},
    {MBEDTLS_ERR_SSL_UNEXPECTED_MESSAGE, "the server breaks the rules of TLS", ""},
    {MBEDTLS_ERR_SSL_DECODE_ERROR, "the server breaks the rules of TLS", ""},
    {MBEDTLS_ERR_SSL_ILLEGAL_PARAMETER, "the server breaks the rules of TLS", ""},
    {MBEDTLS_ERR_SSL_BAD_CERTIFICATE, "the server's certificate cannot be read",
        "look at the certificate with openssl s_client"},
    {MBEDTLS_ERR_X509_FATAL_ERROR, "the server's chain of certificates is too long",
        "let the server send only its own and the intermediate certificates"},
};

/* Says why a handshake failed and what to change. */
static void
tls_explain_error(int code, struct http_result *res)
{
    err_set(&res->reason, "TLS failed: error -0x%04x of the TLS library", (unsigned)-code);
    for (size_t i = 0; i < sizeof TLS_ERRORS / sizeof *TLS_ERRORS; i++)
        if (TLS_ERRORS[i].code == code) {
            err_set(&res->reason, "TLS failed: %s", TLS_ERRORS[i].reason);
            err_set(&res->hint, "%s", TLS_ERRORS[i].hint);
        }
}

/* Readies a configuration: TLS 1.2 or 1.3, trust in chain, or no check of the certificate. */
static int
tls_config_init(mbedtls_ssl_config *tls, mbedtls_x509_crt *chain)
{
    mbedtls_ssl_config_init(tls);
    if (mbedtls_ssl_config_defaults(tls, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
            MBEDTLS_SSL_PRESET_DEFAULT) != 0)
        return -1;
    mbedtls_ssl_conf_rng(tls, mbedtls_psa_get_random, MBEDTLS_PSA_RANDOM_STATE);
    mbedtls_ssl_conf_min_tls_version(tls, MBEDTLS_SSL_VERSION_TLS1_2);
    /* OPTIONAL and not NONE: TLS 1.3 knows no NONE; the fault is then passed over */
    mbedtls_ssl_conf_authmode(
        tls, chain ? MBEDTLS_SSL_VERIFY_REQUIRED : MBEDTLS_SSL_VERIFY_OPTIONAL);
    if (chain)
        mbedtls_ssl_conf_ca_chain(tls, chain, NULL);
    mbedtls_ssl_conf_session_tickets(tls, MBEDTLS_SSL_SESSION_TICKETS_ENABLED);
    mbedtls_ssl_conf_tls13_enable_signal_new_session_tickets(
        tls, MBEDTLS_SSL_TLS1_3_SIGNAL_NEW_SESSION_TICKETS_ENABLED);
    return 0;
}

/* Readies a store; its roots are loaded when they are first needed. */
static int
tls_store_init(struct tls_store *s)
{
    plat_mutex_init(&s->lock);
    mbedtls_x509_crt_init(&s->roots);
    mbedtls_ssl_config_init(&s->public_tls);
    return tls_config_init(&s->unchecked, NULL);
}

/* Frees the store; no connection may use it any more. */
static void
tls_store_done(struct tls_store *s)
{
    mbedtls_ssl_config_free(&s->public_tls);
    mbedtls_ssl_config_free(&s->unchecked);
    mbedtls_x509_crt_free(&s->roots);
    plat_mutex_done(&s->lock);
}

/*
 * Trust in the public roots: those built in and the system's own. The built-in
 * ones are not copied. NULL if the TLS library cannot be set up.
 */
static const mbedtls_ssl_config *
tls_public(struct tls_store *s)
{
    const unsigned char *der = roots_der;
    bool loaded;

    plat_lock(&s->lock);
    if (!s->loaded) {
        for (size_t i = 0; i < ROOTS_COUNT; der += roots_len[i++])
            mbedtls_x509_crt_parse_der_nocopy(&s->roots, der, roots_len[i]);
        plat_add_system_roots(&s->roots);
        s->loaded = tls_config_init(&s->public_tls, &s->roots) == 0;
    }
    loaded = s->loaded;
    plat_unlock(&s->lock);
    return loaded ? &s->public_tls : NULL;
}

/* Keeps the connection's session, so that the next handshake is a short one. */
static void
tls_keep_session(struct conn *conn)
{
    struct http_client *c = conn->client;

    if (strcmp(conn->origin, c->peer->webhook->url.origin) != 0)
        return;
    mbedtls_ssl_session_free(&c->session);
    mbedtls_ssl_session_init(&c->session);
    c->has_session = mbedtls_ssl_get_session(conn->ssl, &c->session) == 0;
}

/* ---- Connection ---- */

/* Sends what waits in conn->out. 0: all of it went; PLAT_AGAIN; -1 with errno set. */
static int
conn_flush(struct conn *conn)
{
    while (conn->out_at < conn->out.len) {
        int n = plat_send(conn->sock, conn->out.data + conn->out_at, conn->out.len - conn->out_at);
        if (n < 0)
            return n;
        conn->out_at += (size_t)n;
    }
    if (conn->out.data)
        mbedtls_platform_zeroize(conn->out.data, conn->out.len);
    conn->out.len = conn->out_at = 0;
    return 0;
}

/*
 * Sends, and keeps what does not go at once in conn->out: the TLS library must
 * never see a write that has to wait, because reading in between would mix up
 * its records. What is written is bounded by the request. Gives len, or -1.
 */
static int
conn_send(struct conn *conn, const void *data, size_t len)
{
    int n = conn->out.len > 0 ? 0 : plat_send(conn->sock, data, len);
    size_t went = n > 0 ? (size_t)n : 0;

    if (n == -1)
        return -1;
    if (went < len)
        buf_add(&conn->out, (const char *)data + went, len - went);
    return (int)len;
}

static int
conn_plain_read(struct conn *conn, void *data, size_t len)
{
    return plat_recv(conn->sock, data, len);
}

/* What a result of the TLS library means, as plat_recv would say it. */
static int
conn_tls_result(struct conn *conn, int n)
{
    if (n >= 0)
        return n;
    if (n == MBEDTLS_ERR_SSL_WANT_READ)
        return PLAT_AGAIN;
    if (n == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY || n == MBEDTLS_ERR_SSL_CONN_EOF)
        return 0;
    conn->tls_failed = n;
    return -1;
}

/* As plat_recv; session tickets, which come between the data of TLS 1.3, are kept. */
static int
conn_tls_read(struct conn *conn, void *data, size_t len)
{
    int n;

    while (
        (n = mbedtls_ssl_read(conn->ssl, data, len)) == MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET)
        tls_keep_session(conn);
    return conn_tls_result(conn, n);
}

static int
conn_tls_write(struct conn *conn, const void *data, size_t len)
{
    return conn_tls_result(conn, mbedtls_ssl_write(conn->ssl, data, len));
}

/*
 * The TLS library's own way to the socket. Reading looks at the deadline, too:
 * a server may flood the library with records that make it read for ever.
 */
static int
conn_tls_send(void *arg, const unsigned char *data, size_t len)
{
    struct conn *conn = arg;

    if (conn->deaf) /* or the library would try again before each read, and fail */
        return (int)len;
    conn->deaf = conn_send(conn, data, len) < 0;
    return conn->deaf ? MBEDTLS_ERR_NET_CONN_RESET : (int)len;
}

static int
conn_tls_recv(void *arg, unsigned char *data, size_t len)
{
    const struct conn *conn = arg;
    int n;

    if (http_time_left(conn->client) == 0)
        return MBEDTLS_ERR_SSL_TIMEOUT;
    n = plat_recv(conn->sock, data, len);
    return n == PLAT_AGAIN ? MBEDTLS_ERR_SSL_WANT_READ : n < 0 ? MBEDTLS_ERR_NET_CONN_RESET : n;
}

/* Closes the connection, if there is one. */
static void
conn_close(struct conn *conn)
{
    struct http_client *client = conn->client;

    if (conn->ssl) {
        mbedtls_ssl_close_notify(conn->ssl);
        mbedtls_ssl_free(conn->ssl);
        free(conn->ssl);
    }
    plat_close(conn->sock);
    free(conn->origin);
    buf_free(&conn->in);
    conn->out.len = conn->out.cap; /* all that may have been in it is wiped */
    if (conn->out.data)
        mbedtls_platform_zeroize(conn->out.data, conn->out.len);
    buf_free(&conn->out);
    *conn = (struct conn){.sock = -1, .client = client};
}

/* Waits until something can be read, and sends what waits meanwhile. -1: the time is over. */
static int
conn_wait(struct conn *conn)
{
    int left;

    while ((left = http_time_left(conn->client)) > 0) {
        int want = PLAT_READ | (conn->out.len > 0 ? PLAT_WRITE : 0);
        if (plat_wait(&conn->sock, 1, want, left < SLICE_MS ? left : SLICE_MS)) {
            if (conn_flush(conn) == -1) /* reading will say why */
                conn->out.len = conn->out_at = 0;
            return 0;
        }
    }
    return -1;
}

/* Reads once into conn->in, without waiting; as plat_recv. */
static int
conn_read_once(struct conn *conn)
{
    int n;

    buf_reserve(&conn->in, 4096);
    n = conn->read(conn, conn->in.data + conn->in.len, conn->in.cap - conn->in.len - 1);
    if (n > 0)
        conn->in.len += (size_t)n;
    return n;
}

/*
 * Reads more into conn->in. Gives 1 if something came, 0 at the end of the
 * stream, -1 with e: the connection failed or the time is over.
 */
static int
conn_fill(struct conn *conn, struct err *e)
{
    if (conn->in_at > 0 && conn->in_at == conn->in.len)
        conn->in.len = conn->in_at = 0;
    for (;;) {
        int n = conn_read_once(conn);
        if (n >= 0)
            return n > 0;
        if (n == PLAT_AGAIN && conn_wait(conn) == 0)
            continue;
        if (n == PLAT_AGAIN)
            err_set(e, "no answer in time");
        else if (conn->tls_failed == MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE)
            /* In TLS 1.3 the server misses it only when our handshake is over. */
            err_set(e,
                "the server ended the TLS connection with an alert; "
                "it may ask for a client certificate");
        else if (conn->tls_failed)
            err_set(e, "the TLS connection broke: error -0x%04x", (unsigned)-conn->tls_failed);
        else
            err_set(e, "the connection broke: %s", plat_error());
        return -1;
    }
}

/* What was read and not yet used. */
static struct slice
conn_rest(const struct conn *conn)
{
    return conn->in.data ? (struct slice){conn->in.data + conn->in_at, conn->in.len - conn->in_at}
                         : (struct slice){"", 0};
}

/* Whether a connection that rests can carry another request: open, and nothing unasked came. */
static bool
conn_is_fresh(struct conn *conn)
{
    char byte;

    return conn->sock >= 0 && conn->in_at == conn->in.len &&
        conn->read(conn, &byte, 1) == PLAT_AGAIN;
}

/*
 * Says why the i-th address cannot be reached. Only the first one counts, which
 * the system holds to be the best: IPv6 that is not there explains nothing.
 */
static void
conn_blame(const struct plat_addr *addr, int i, const char *why, struct err *e)
{
    char text[64];

    if (i > 0)
        return;
    plat_addr_text(addr, true, text);
    err_set(e, "cannot connect to %s: %s", text, why);
}

/*
 * Connects to the first of n addresses that accepts; each gets a head start of
 * CONNECT_STAGGER_MS before the next is tried beside it (RFC 8305). Sets
 * conn->sock and gives the address's place, or -1 with e.
 */
static int
conn_dial(struct conn *conn, const struct plat_addr *addr, int n, struct err *e)
{
    intptr_t sock[ADDRESSES_MAX];
    int tried = 0, open = 0, won = -1, left;
    int64_t next_ms = 0;

    err_set(e, "no connection in time");
    while (won < 0 && (left = http_time_left(conn->client)) > 0 && (tried < n || open > 0)) {
        int64_t now = plat_now_ms();
        if (tried < n && (now >= next_ms || open == 0)) {
            next_ms = now + CONNECT_STAGGER_MS;
            sock[tried] = plat_tcp_connect(&addr[tried]);
            if (sock[tried] >= 0)
                open++;
            else
                conn_blame(addr, tried, plat_error(), e);
            tried++;
            continue;
        }
        if (tried < n && next_ms - now < left)
            left = (int)(next_ms - now);
        unsigned ready = plat_wait(sock, tried, PLAT_WRITE, left < SLICE_MS ? left : SLICE_MS);
        for (int i = 0; i < tried && won < 0; i++) {
            if (!(ready & 1u << i))
                continue;
            if (plat_tcp_connected(sock[i]) == 0)
                won = i;
            else {
                conn_blame(addr, i, plat_error(), e);
                plat_close(sock[i]);
                sock[i] = -1;
                open--;
            }
        }
    }
    for (int i = 0; i < tried; i++) {
        if (i == won || sock[i] < 0)
            continue;
        if (won < 0)
            conn_blame(addr, i, "no answer in time", e);
        plat_close(sock[i]);
    }
    if (won >= 0)
        conn->sock = sock[won];
    return won;
}

/* Makes the connection a TLS one. -1: res says why. */
static int
conn_start_tls(struct conn *conn, const struct url *u, const mbedtls_ssl_config *tls, bool home,
    struct http_result *res)
{
    struct http_client *c = conn->client;
    char name[256];
    int n = (int)strlen(u->host);

    /* SNI and certificates hold names without the dot that may end a full one (RFC 6066, 3). */
    snprintf(name, sizeof name, "%.*s", u->host[n - 1] == '.' ? n - 1 : n, u->host);
    conn->ssl = x_calloc(1, sizeof *conn->ssl);
    mbedtls_ssl_init(conn->ssl);
    if (!tls || mbedtls_ssl_setup(conn->ssl, tls) != 0 ||
        mbedtls_ssl_set_hostname(conn->ssl, name) != 0) {
        err_set(&res->reason, "TLS could not be set up");
        return -1;
    }
    mbedtls_ssl_set_bio(conn->ssl, conn, conn_tls_send, conn_tls_recv, NULL);
    mbedtls_ssl_set_verify(conn->ssl, tls_note_fault, &conn->fault);
    if (home && c->has_session) { /* TLS 1.3 tickets are good for one time */
        mbedtls_ssl_set_session(conn->ssl, &c->session);
        c->has_session = false;
    }
    while ((n = mbedtls_ssl_handshake(conn->ssl)) != 0) {
        if (conn_tls_result(conn, n) == PLAT_AGAIN && conn_wait(conn) == 0)
            continue;
        if (http_time_left(c) == 0)
            err_set(&res->reason, "TLS failed: the handshake did not end in time");
        else if (tls_has_fault(conn, n))
            tls_explain_fault(&conn->fault, u->host, res);
        else
            tls_explain_error(n, res);
        return -1;
    }
    conn->read = conn_tls_read;
    conn->write = conn_tls_write;
    if (mbedtls_ssl_get_version_number(conn->ssl) == MBEDTLS_SSL_VERSION_TLS1_2)
        tls_keep_session(conn);
    return 0;
}

/*
 * Writes a whole request. 0, or -1 if it was not all written: the connection
 * broke or the other end answered before it had read everything. *wrote tells
 * whether any of it was written.
 */
static int
conn_write_all(struct conn *conn, const struct buf *out, bool *wrote)
{
    int failed = 0;

    for (size_t at = 0; at < out->len && !failed;) {
        int n = conn->write(conn, out->data + at, out->len - at);
        failed = n > 0 ? 0 : -1;
        at += n > 0 ? (size_t)n : 0;
        *wrote = at > 0;
    }
    /* An answer before the end is one that expects no more: a server may close after it. */
    while (conn->out.len > 0 && !failed) {
        bool late = http_time_left(conn->client) == 0;
        if (!late && plat_wait(&conn->sock, 1, PLAT_WRITE, SLICE_MS))
            failed = conn_flush(conn) == -1 ? -1 : 0;
        else if (late ||
            (plat_wait(&conn->sock, 1, PLAT_READ, 0) && conn_read_once(conn) != PLAT_AGAIN))
            failed = -1;
    }
    return failed;
}

/* ---- Response ---- */

/* Seconds from 1970 to a date of the Gregorian calendar, UTC. */
static int64_t
http_seconds(int year, int month, int day)
{
    int64_t y = month <= 2 ? year - 1 : year, era = y / 400, of_era = y - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;

    return (era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468) * 86400;
}

/*
 * Reads Retry-After (RFC 9110, 10.2.3): seconds, or one of the three forms of a
 * date. Gives seconds from now on, at most RETRY_AFTER_MAX_S; -1: neither.
 */
static int64_t
http_read_retry_after(struct slice s, int64_t wall_s)
{
    static const char months[] = "janfebmaraprmayjunjulaugsepoctnovdec";
    char text[64], month[4] = "";
    int day = 0, year = 0, h = 0, m = 0, sec = 0, whole = -1;
    int64_t after;
    const char *at;

    if (s.len == 0 || s.len >= sizeof text)
        return -1;
    if (strspn(s.data, "0123456789") >= s.len) {
        after = slice_number(s, RETRY_AFTER_MAX_S);
        return after < 0 ? RETRY_AFTER_MAX_S : after;
    }
    snprintf(text, sizeof text, "%.*s", (int)s.len, s.data);
    sscanf(text, "%*[A-Za-z], %2d %3s %4d %2d:%2d:%2d GMT%n", &day, month, &year, &h, &m, &sec,
        &whole);
    if (whole != (int)s.len)
        sscanf(text, "%*[A-Za-z], %2d-%3s-%2d %2d:%2d:%2d GMT%n", &day, month, &year, &h, &m, &sec,
            &whole);
    if (whole != (int)s.len)
        sscanf(text, "%*3s %3s %2d %2d:%2d:%2d %4d%n", month, &day, &h, &m, &sec, &year, &whole);
    if (whole != (int)s.len)
        return -1;
    for (char *p = month; *p; p++)
        *p = (char)tolower((unsigned char)*p);
    at = strlen(month) == 3 ? strstr(months, month) : NULL;
    if (!at || (at - months) % 3 || day < 1 || day > 31 || h < 0 || h > 23 || m < 0 || m > 59 ||
        sec < 0 || sec > 60 || year < 0)
        return -1;
    if (year < 100) /* two digits, RFC 850: the nearest such year */
        year += year < 70 ? 2000 : 1900;
    after = http_seconds(year, (int)(at - months) / 3 + 1, day) + h * 3600 + m * 60 + sec - wall_s;
    return after < 0 ? 0 : after > RETRY_AFTER_MAX_S ? RETRY_AFTER_MAX_S : after;
}

/*
 * Where the head ends: offset behind its blank line, 0 if it is not there yet.
 * from: what was looked at before.
 */
static size_t
http_head_end(struct slice in, size_t from)
{
    for (size_t i = from > 3 ? from - 3 : 0; i < in.len; i++) {
        if (in.data[i] != '\n')
            continue;
        if (i + 1 < in.len && in.data[i + 1] == '\n')
            return i + 2;
        if (i + 2 < in.len && in.data[i + 1] == '\r' && in.data[i + 2] == '\n')
            return i + 3;
    }
    return 0;
}

/* Whether what has come so far can still become "HTTP/1.x NNN". */
static bool
http_may_be_status(struct slice in)
{
    static const char form[] = "HTTP/1.d ddd";

    for (size_t i = 0; i < in.len && i < sizeof form - 1; i++)
        if (form[i] == 'd' ? !ascii_is_digit(in.data[i]) : in.data[i] != form[i])
            return false;
    return true;
}

/* Takes one line, without its end, off the front of *rest. */
static struct slice
http_take_line(struct slice *rest)
{
    struct slice line = slice_take(rest, '\n');

    if (line.len > 0 && line.data[line.len - 1] == '\r')
        line.len--;
    return line;
}

/* Takes one header with the lines that continue it (RFC 9112, 5.2), line ends inside. */
static struct slice
http_take_header(struct slice *rest)
{
    struct slice header = http_take_line(rest);

    while (header.len > 0 && rest->len > 0 && (*rest->data == ' ' || *rest->data == '\t')) {
        struct slice more = http_take_line(rest);
        header.len = (size_t)(more.data + more.len - header.data);
    }
    return header;
}

/* Whether a CR stands anywhere but before LF, or a NUL anywhere. */
static bool
http_has_stray(struct slice head)
{
    for (size_t i = 0; i < head.len; i++)
        if (!head.data[i] ||
            (head.data[i] == '\r' && (i + 1 == head.len || head.data[i + 1] != '\n')))
            return true;
    return false;
}

/* Reads the length that a header promises; a wrong one is noted, not refused. */
static void
http_read_length(struct http_head *h, struct slice value)
{
    int64_t n = slice_number(value, INT64_MAX / 16);

    if (n < 0)
        h->framing = "Content-Length is not a length";
    else if (h->length_seen && h->length != (uint64_t)n)
        h->framing = "two different Content-Lengths";
    h->length_seen = true;
    h->length = n < 0 ? 0 : (uint64_t)n;
}

/* Takes in one header. */
static void
http_read_header(struct http_head *h, struct slice name, struct slice value)
{
    if (slice_is(name, "Content-Length"))
        http_read_length(h, value);
    else if (slice_is(name, "Transfer-Encoding")) {
        struct slice last = value;
        while (memchr(last.data, ',', last.len))
            slice_take(&last, ',');
        h->te_seen = true;
        h->chunked = slice_is(slice_trim(last, " \t\r\n"), "chunked");
    } else if (slice_is(name, "Connection")) {
        while (value.len > 0) {
            struct slice part = slice_trim(slice_take(&value, ','), " \t\r\n");
            if (slice_is(part, "close"))
                h->close = true;
            else if (slice_is(part, "keep-alive"))
                h->keep = true;
        }
    } else if (slice_is(name, "Location")) {
        h->location = value;
        h->locations++;
    } else if (slice_is(name, "Retry-After") && !h->retry_after.data)
        h->retry_after = value;
}

/* Settles how the body is delimited (RFC 9112, section 6.3). */
static void
http_settle_body(struct http_head *h)
{
    h->keep = h->keep && !h->close;
    if (h->status < 200 || h->status == 204 || h->status == 304) {
        h->body.kind = BODY_NONE;
        h->framing = NULL; /* there is no body for it */
        return;
    }
    if (h->chunked) {
        h->framing = NULL; /* Content-Length does not count beside it */
        h->body.kind = BODY_CHUNKED;
    } else if (h->te_seen || !h->length_seen)
        h->body.kind = BODY_TO_CLOSE;
    else {
        h->body.kind = BODY_LENGTH;
        h->body.left = h->length;
    }
    if (h->framing || h->body.kind == BODY_TO_CLOSE)
        h->keep = false;
}

/*
 * Reads a whole response head, blank line included. 0, or -1 with e: it is not
 * HTTP/1. Pure; h's slices point into head.
 */
static int
http_parse_head(struct slice head, struct http_head *h, struct err *e)
{
    bool stray = http_has_stray(head);
    struct slice line = http_take_line(&head);

    *h = (struct http_head){0};
    if (line.len < 12 || !http_may_be_status(line) || (line.len > 12 && line.data[12] != ' ')) {
        err_set(e, "the answer is not HTTP: it starts with \"%s\"", log_text(line).text);
        return -1;
    }
    h->keep = line.data[7] != '0';
    h->status = (int)slice_number((struct slice){line.data + 9, 3}, 999);
    if (h->status < 100 || stray) {
        err_set(e, "the answer is not HTTP: %s",
            stray ? "a NUL or a lone CR in its head" : "a status below 100");
        return -1;
    }
    while (head.len > 0 && (*head.data == ' ' || *head.data == '\t'))
        http_take_line(&head); /* continues the status line: nothing that we read */
    for (int headers = 0; (line = http_take_header(&head)).len > 0; headers++) {
        const char *colon = memchr(line.data, ':', line.len);
        if (headers == HEADERS_MAX || !colon || colon == line.data) {
            err_set(e, "the answer is not HTTP: %s",
                headers == HEADERS_MAX ? "too many headers" : "a header without name and colon");
            return -1;
        }
        http_read_header(h,
            slice_trim((struct slice){line.data, (size_t)(colon - line.data)}, " \t"),
            slice_trim(
                (struct slice){colon + 1, (size_t)(line.data + line.len - colon - 1)}, " \t\r\n"));
    }
    http_settle_body(h);
    return 0;
}

enum body_step { BODY_MORE, BODY_DONE, BODY_BAD };

/* Takes one character of a chunked body's framing; -1: it may not stand there. */
static int
http_chunk_char(struct http_body *b, int c)
{
    bool line_end = c == '\n';

    switch (b->state) {
    case CHUNK_SIZE:
        if (hex_value(c) >= 0) {
            if (++b->digits > 15)
                return -1;
            b->left = b->left * 16 + (uint64_t)hex_value(c);
            return 0;
        }
        if (b->digits == 0 || !strchr("\r\n; \t", c) || c == '\0')
            return -1;
        b->state = CHUNK_EXTENSION;
        /* fall through */
    case CHUNK_EXTENSION:
        if (line_end) {
            b->state = b->left > 0 ? CHUNK_DATA : CHUNK_TRAILER;
            b->digits = 0;
        }
        return 0;
    case CHUNK_DATA_END:
        if (line_end)
            b->state = CHUNK_SIZE;
        return line_end || c == '\r' ? 0 : -1;
    case CHUNK_TRAILER:
        if (c != '\r')
            b->state = CHUNK_TRAILER_LINE;
        return 0;
    case CHUNK_TRAILER_LINE:
        if (line_end)
            b->state = CHUNK_TRAILER;
        return 0;
    case CHUNK_DATA:
        break;
    }
    return -1;
}

/*
 * Takes body bytes; *used says how many belonged to it. Pure. BODY_DONE: the
 * body is whole; BODY_BAD: its chunks are broken.
 */
static enum body_step
http_feed_body(struct http_body *b, struct slice in, size_t *used)
{
    *used = 0;
    if (b->kind == BODY_NONE || (b->kind == BODY_LENGTH && b->left == 0))
        return BODY_DONE;
    if (b->kind == BODY_TO_CLOSE) {
        *used = in.len;
        return BODY_MORE;
    }
    while (*used < in.len) {
        if (b->kind == BODY_LENGTH || b->state == CHUNK_DATA) {
            uint64_t part = in.len - *used < b->left ? in.len - *used : b->left;
            *used += (size_t)part;
            b->left -= part;
            if (b->left == 0 && b->kind == BODY_LENGTH)
                return BODY_DONE;
            if (b->left == 0)
                b->state = CHUNK_DATA_END;
            continue;
        }
        int c = (unsigned char)in.data[(*used)++];
        if (b->state == CHUNK_TRAILER && c == '\n')
            return BODY_DONE;
        if (http_chunk_char(b, c) != 0)
            return BODY_BAD;
    }
    return BODY_MORE;
}

/*
 * Reads until a whole head is there, or what cannot be one. Gives its length, 0
 * with e: there will be none. *began tells whether anything came at all.
 */
static size_t
http_await_head(struct conn *conn, bool *began, struct err *e)
{
    for (size_t looked = 0;;) {
        struct slice in = conn_rest(conn);
        size_t end = in.len > 0 && !http_may_be_status(in) ? in.len : http_head_end(in, looked);
        int came;
        *began = *began || in.len > 0;
        if (end > HEAD_MAX || (end == 0 && in.len > HEAD_MAX)) {
            err_set(e, "the answer is not HTTP: its head is longer than %d bytes", HEAD_MAX);
            return 0;
        }
        if (end > 0)
            return end;
        looked = in.len;
        came = conn_fill(conn, e);
        if (came == 0)
            err_set(e, "connection closed before %s", *began ? "the whole answer" : "an answer");
        if (came <= 0)
            return 0;
    }
}

/* Reads one response head into h, 1xx answers passed over. 0, or -1 with e; began as above. */
static int
http_read_head(struct conn *conn, struct http_head *h, bool *began, struct err *e)
{
    for (int interim = 0; interim <= INTERIM_MAX; interim++) {
        size_t len = http_await_head(conn, began, e);
        if (len == 0 || http_parse_head((struct slice){conn_rest(conn).data, len}, h, e) != 0)
            return -1;
        conn->in_at += len;
        if (h->status >= 200)
            return 0;
        if (h->status == 101) {
            err_set(e, "the answer is not HTTP: it switches protocols unasked");
            return -1;
        }
    }
    err_set(e, "the answer is not HTTP: more than %d interim answers", INTERIM_MAX);
    return -1;
}

/*
 * Reads what is left of the last answer's body, so that the connection can be
 * used again; closes it if that takes too much or too long. 0, or -1 with e:
 * the body was broken. The verdict does not depend on it.
 */
static int
http_drain(struct http_client *c, struct err *e)
{
    int64_t call_deadline_ms = c->deadline_ms;
    struct conn *conn = &c->conn;
    size_t drained = 0, used = 0;
    enum body_step step = BODY_MORE;
    int came = 1;

    if (conn->sock < 0)
        return 0;
    e->text[0] = '\0';
    c->deadline_ms = plat_now_ms() + DRAIN_MS;
    while (came > 0 && drained <= DRAIN_MAX) {
        struct slice in = conn_rest(conn);
        step = http_feed_body(&c->head.body, in, &used);
        conn->in_at += used;
        drained += used;
        if (step != BODY_MORE)
            break;
        came = conn_fill(conn, e);
    }
    if (c->head.framing)
        err_set(e, "%s", c->head.framing);
    else if (step == BODY_BAD)
        err_set(e, "its chunks are broken");
    else if (step == BODY_MORE && drained > DRAIN_MAX)
        err_set(e, "its body is longer than %d bytes", DRAIN_MAX);
    else if (step == BODY_MORE && came == 0 && c->head.body.kind != BODY_TO_CLOSE)
        err_set(e, "its body ended early");
    if (step != BODY_DONE || !c->head.keep || e->text[0] || conn->in_at < conn->in.len)
        conn_close(conn);
    conn->used = conn->sock >= 0;
    c->deadline_ms = call_deadline_ms;
    return e->text[0] ? -1 : 0;
}

/* ---- Request ---- */

/*
 * Adds the request of one alert to out. redirected: fields that the new query
 * has are left out. Gives the length of the target, as the webhook sees it.
 */
static size_t
http_add_request(const struct http_client *c, const struct http_request *q, const struct url *u,
    bool redirected, size_t target_max, struct buf *out)
{
    const struct webhook_config *w = c->peer->webhook;
    const struct url *proxy = cfg_proxy_for(c->peer->config, u);
    char target_room[1024];
    struct buf target = buf_in(target_room, sizeof target_room);
    struct alert *alert = w->method == METHOD_GET ? alert_read_json(q->json) : NULL;
    size_t target_len;

    buf_add_text(&target, u->target);
    if (alert)
        alert_add_query(alert, &target, redirected, target_max);
    alert_free(alert);
    buf_add_text(out, METHODS[w->method]);
    buf_add_char(out, ' ');
    if (proxy && !u->tls)
        buf_add_text(out, u->origin);
    buf_add(out, target.data, target.len);
    buf_add_text(out, " HTTP/1.1\r\nHost: ");
    buf_add_text(out, strstr(u->origin, "//") + 2);
    buf_add_text(
        out, "\r\nUser-Agent: " USER_AGENT "\r\nAccept: application/json, text/plain, */*\r\n");
    if (u->auth)
        buf_format(out, "Authorization: Basic %s\r\n", u->auth);
    if (proxy && !u->tls && proxy->auth)
        buf_format(out, "Proxy-Authorization: Basic %s\r\n", proxy->auth);
    if (w->method != METHOD_GET)
        buf_format(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", q->json.len);
    buf_format(out, "webhook-id: %s\r\nwebhook-timestamp: %lld\r\n%s\r\n", q->id,
        (long long)(plat_wall_ms() / 1000), q->is_test ? "webhook-test: true\r\n" : "");
    if (w->method != METHOD_GET)
        buf_add(out, q->json.data, q->json.len);
    target_len = target.len;
    buf_free(&target);
    return target_len;
}

/* Asks a proxy for a tunnel to u. -1: res says why not. */
static int
http_open_tunnel(
    struct http_client *c, const struct url *proxy, const struct url *u, struct http_result *res)
{
    struct conn *conn = &c->conn;
    struct buf out = {0};
    struct http_head head;
    bool wrote = false, began = false;
    int failed;

    buf_format(&out,
        strchr(u->host, ':') ? "CONNECT [%s]:%d HTTP/1.1\r\nHost: [%s]:%d\r\n"
                             : "CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n",
        u->host, u->port, u->host, u->port);
    buf_add_text(&out, "User-Agent: " USER_AGENT "\r\n");
    if (proxy->auth)
        buf_format(&out, "Proxy-Authorization: Basic %s\r\n", proxy->auth);
    buf_add_text(&out, "\r\n");
    conn_write_all(conn, &out, &wrote);
    mbedtls_platform_zeroize(out.data, out.len);
    buf_free(&out);
    failed = http_read_head(conn, &head, &began, &res->reason);
    if (!failed && head.status / 100 != 2) {
        err_set(&res->reason, "it answered CONNECT with status %d", head.status);
        if (head.status == 407)
            err_set(&res->hint, "check the proxy's password");
        failed = -1;
    } else if (!failed && conn->in_at < conn->in.len) {
        err_set(&res->reason, "it sent data before it was asked");
        failed = -1;
    }
    if (failed)
        err_prefix(&res->reason, "proxy %s: ", proxy->shown);
    return failed;
}

/*
 * Finds the addresses to connect to for u, those of the proxy if it has one.
 * The deadline moves by the time that the system's resolver took. A redirect
 * may not lead to this machine, unless the webhook is on it anyway. Gives how
 * many there are, 0: res says why none may be used.
 */
static int
http_find_addresses(struct http_client *c, const struct url *u, const struct url *proxy, bool home,
    struct plat_addr *addr, struct http_result *res)
{
    const struct url *dial = proxy ? proxy : u;
    int64_t began_ms = plat_now_ms();
    bool anywhere = home || c->home_is_local;
    struct plat_addr named;
    const char *why = "";
    int n, kept = 0;

    atomic_store(&c->resolving, true);
    n = plat_resolve(dial->host, dial->port, false, addr, ADDRESSES_MAX, &why);
    atomic_store(&c->resolving, false);
    c->deadline_ms += plat_now_ms() - began_ms;
    if (n <= 0) {
        err_set(&res->reason, "host name %s not found: %s", dial->host, why);
        err_set(&res->hint, "check the host name in %s and this machine's DNS",
            proxy ? "the proxy's setting" : "webhookURL");
        return 0;
    }
    if (proxy) {
        /* It looks the name up; what that means can be told without asking, or not at all. */
        bool numeric = strcasecmp(u->host, "localhost") != 0;
        bool local = plat_resolve(u->host, 0, numeric, &named, 1, &why) == 1 &&
            http_is_local(&named);
        if (home)
            c->home_is_local = local;
        kept = local && !anywhere ? 0 : n;
    } else
        for (int i = 0; i < n; i++)
            if (anywhere || !http_is_local(&addr[i]))
                addr[kept++] = addr[i];
    if (kept == 0) {
        err_set(&res->reason, "redirected to this machine's own address, refused");
        res->refused = true;
    }
    return kept;
}

/* Connects to u, through the proxy if it has one, and starts TLS. -1: res says why. */
static int
http_connect(struct http_client *c, const struct url *u, struct http_result *res)
{
    const struct url *proxy = cfg_proxy_for(c->peer->config, u);
    bool home = strcmp(u->origin, c->peer->webhook->url.origin) == 0, offered;
    const mbedtls_ssl_config *tls = home ? c->peer->tls
        : u->tls                         ? tls_public(c->peer->store)
                                         : NULL;
    struct plat_addr addr[ADDRESSES_MAX];
    int n = http_find_addresses(c, u, proxy, home, addr, res);

    if (n == 0)
        return -1;
    do {
        int won;
        conn_close(&c->conn);
        won = conn_dial(&c->conn, addr, n, &res->reason);
        if (won < 0) {
            err_set(&res->hint,
                "check host and port in %s, that the server runs, and that no "
                "firewall is between",
                proxy ? "the proxy's setting" : "webhookURL");
            if (proxy)
                err_prefix(&res->reason, "proxy %s: ", proxy->shown);
            return -1;
        }
        c->conn.origin = x_strdup(u->origin);
        c->conn.read = conn_plain_read;
        c->conn.write = conn_send;
        if (home && !proxy)
            c->home_is_local = http_is_local(&addr[won]);
        if (!u->tls)
            return 0;
        if (proxy && http_open_tunnel(c, proxy, u, res) != 0)
            return -1;
        offered = home && c->has_session;
        if (conn_start_tls(&c->conn, u, tls, home, res) == 0)
            return 0;
        /* A server may have changed since it gave the session: once more without it. */
    } while (offered && http_time_left(c) > 0);
    return -1;
}

/* Says that the time was over, if that is why a call failed. */
static void
http_explain_timeout(const struct http_client *c, struct http_result *res)
{
    if (http_time_left(c) > 0)
        return;
    if (atomic_load(&stop_at_ms))
        err_set(&res->reason, "no answer before the program stopped");
    else if (res->end == HTTP_BROKEN) {
        err_set(&res->reason, "no answer within %lld s", (long long)c->peer->config->timeout_s);
        err_set(&res->hint, "look at the log of the webhook's server");
    }
}

/*
 * Sends one request to u and reads the head of its answer, on the connection at
 * hand if it leads there. One that turns out closed before any answer is tried
 * once more on a new one, at once.
 */
static void
http_exchange(
    struct http_client *c, const struct url *u, const struct buf *request, struct http_result *res)
{
    struct conn *conn = &c->conn;

    for (;;) {
        bool wrote = false, began = false, again, whole;
        res->end = HTTP_UNSENT;
        if (conn->sock >= 0 && (strcmp(conn->origin, u->origin) != 0 || !conn_is_fresh(conn)))
            conn_close(conn);
        if (conn->sock < 0 && http_connect(c, u, res) != 0)
            break;
        res->hint.text[0] = '\0'; /* of a first handshake that failed */
        again = conn->used;
        whole = conn_write_all(conn, request, &wrote) == 0;
        if (!whole && !wrote)
            err_set(&res->reason, "the connection broke before the request was written");
        else {
            res->end = HTTP_BROKEN;
            if (whole && conn_rest(conn).len == 0)
                conn_wait(conn); /* reading at once would find nothing yet */
            if (http_read_head(conn, &c->head, &began, &res->reason) == 0) {
                res->end = HTTP_ANSWERED;
                res->status = c->head.status;
                c->head.keep = c->head.keep && whole;
                return;
            }
        }
        if (!again || began || http_time_left(c) == 0)
            break;
        conn_close(conn);
    }
    http_explain_timeout(c, res);
    conn_close(conn);
}

/* What people can do about statuses that are final. */
static const struct {
    int status;
    const char *hint;
} HTTP_HINTS[] = {
    {400, "the webhook did not understand the request"},
    {401, "check the credentials (user:password@ in webhookURL)"},
    {403, "check the credentials (user:password@ in webhookURL) and the webhook's permissions"},
    {404, "check webhookURL"},
    {405, "check httpMethod"},
    {407, "check the proxy's password"},
    {410, "gone: remove or change webhookURL"},
    {413, "the webhook's server must allow larger requests"},
    {414, "the webhook's server must allow longer URLs, or use httpMethod POST"},
    {422, "the webhook refused the content"},
    {429, "the webhook asks for time: try again later"},
    {500, "look at the log of the webhook's server"},
    {502, "look at the log of the webhook's server and of the proxy before it"},
    {503, "look at the log of the webhook's server"},
    {504, "look at the log of the webhook's server and of the proxy before it"},
};

/*
 * Whether a status says that the same request should go to another URL. To a
 * POST 301 and 302 do not: a client that follows would make an empty GET of it.
 */
static bool
http_is_redirect(int status, enum http_method method)
{
    return status == 307 || status == 308 || (status == 303 && method == METHOD_GET) ||
        ((status == 301 || status == 302) && method != METHOD_POST);
}

/*
 * Finds out where a redirect leads. 0 and *to (the caller's), or -1: res says
 * why it is not followed.
 */
static int
http_read_redirect(
    const struct http_head *h, const struct url *from, struct url *to, struct http_result *res)
{
    struct err e;

    if (h->locations != 1 || h->location.len == 0)
        err_set(&res->reason, "status %d with %s Location", h->status,
            h->locations > 1 ? "more than one" : "no");
    else if (url_parse(h->location, from, to, &e) != 0)
        err_set(
            &res->reason, "status %d with a Location that cannot be called: %s", h->status, e.text);
    else if (from->tls && !to->tls) {
        err_set(&res->reason, "status %d leads from https to %s, refused", h->status, to->shown);
        url_done(to);
    } else
        return 0;
    return -1;
}

/* Says what a final status means; where it has moved to, if that is what it says. */
static void
http_explain_status(const struct http_client *c, const struct url *u, struct http_result *res)
{
    struct url to;
    struct err e;

    err_set(&res->reason, "status %d", res->status);
    for (size_t i = 0; i < sizeof HTTP_HINTS / sizeof *HTTP_HINTS; i++)
        if (HTTP_HINTS[i].status == res->status)
            err_set(&res->hint, "%s", HTTP_HINTS[i].hint);
    if (res->status < 301 || res->status > 303 || c->head.location.len == 0 ||
        url_parse(c->head.location, u, &to, &e) != 0)
        return;
    err_set(&res->hint, "moved to %s, change webhookURL", to.shown);
    url_done(&to);
}

/* Whether a status may be what a server says to a target that is too long for it. */
static bool
http_is_too_long(int status)
{
    return status == 400 || status == 404 || status == 414 || status == 431;
}

/*
 * Takes a redirect of u: *moved, whose old content may be u, becomes the URL
 * that the answer names. Where that is another origin no user and password go
 * along. False: it is not followed, and res says why.
 */
static bool
http_follow(const struct http_client *c, const struct url *u, int hops, struct url *moved,
    struct http_result *res)
{
    struct url to;

    if (hops == REDIRECTS_MAX)
        err_set(&res->reason, "status %d: more than %d redirects", res->status, REDIRECTS_MAX);
    else if (http_read_redirect(&c->head, u, &to, res) == 0) {
        if (strcmp(to.origin, u->origin) != 0) {
            free(to.auth);
            to.auth = NULL;
        } else if (!to.auth && u->auth)
            to.auth = x_strdup(u->auth);
        url_done(moved);
        *moved = to;
        return true;
    }
    res->refused = true;
    err_set(&res->hint, "change webhookURL");
    return false;
}

/*
 * Calls the webhook once with one alert, redirects included, within timeoutSeconds.
 * After an answer the caller must http_drain.
 */
static void
http_call(struct http_client *c, const struct http_request *q, struct http_result *res)
{
    int64_t began_ms = plat_now_ms();
    const struct webhook_config *w = c->peer->webhook;
    const struct url *at = &w->url;
    struct url moved = {0};
    struct err ignored;
    bool cut = false;

    c->deadline_ms = began_ms + c->peer->config->timeout_s * TIMEOUT_UNIT_MS;
    *res = (struct http_result){.retry_after_s = -1};
    for (int hops = 0;;) {
        char room[4096];
        struct buf request = buf_in(room, sizeof room);
        size_t target_len = http_add_request(
            c, q, at, hops > 0, cut ? GET_TARGET_MAX : 0, &request);
        http_exchange(c, at, &request, res);
        mbedtls_platform_zeroize(request.data, request.len);
        mbedtls_platform_zeroize(room, sizeof room);
        buf_free(&request);
        if (res->end != HTTP_ANSWERED)
            break;
        if (w->method == METHOD_GET && target_len > GET_TARGET_MAX && !cut &&
            http_is_too_long(res->status)) {
            log_line(LOG_WARN,
                "alert %llu to %s: status %d to a long GET; once more with "
                "logMessage cut",
                (unsigned long long)q->number, w->name, res->status);
            cut = true; /* the answer to that is final */
        } else if (!http_is_redirect(res->status, w->method)) {
            http_explain_status(c, at, res);
            break;
        } else if (http_follow(c, at, hops++, &moved, res))
            at = &moved;
        else
            break;
        http_drain(c, &ignored);
    }
    if (res->end == HTTP_ANSWERED && c->head.retry_after.data)
        res->retry_after_s = http_read_retry_after(c->head.retry_after, plat_wall_ms() / 1000);
    url_done(&moved);
    res->ms = plat_now_ms() - began_ms;
}

/* Readies a peer. -1 with e: the TLS library cannot be set up. Main, before start. */
static int
http_peer_init(struct http_peer *p, const struct config *config, const struct webhook_config *w,
    struct tls_store *store, struct err *e)
{
    *p = (struct http_peer){.config = config, .webhook = w, .store = store};
    mbedtls_ssl_config_init(&p->own_tls);
    switch (w->trust) {
    case TRUST_NONE:
        return 0;
    case TRUST_PUBLIC:
        p->tls = tls_public(store);
        break;
    case TRUST_UNCHECKED:
        p->tls = &store->unchecked;
        break;
    case TRUST_OWN_CA:
        p->tls = w->ca && tls_config_init(&p->own_tls, w->ca) == 0 ? &p->own_tls : NULL;
        break;
    }
    if (p->tls)
        return 0;
    err_set(e, "%s: TLS could not be set up", w->name);
    return -1;
}

static void
http_peer_done(struct http_peer *p)
{
    mbedtls_ssl_config_free(&p->own_tls);
}

/* Readies a client that is not connected yet. */
static void
http_client_init(struct http_client *c, struct http_peer *peer)
{
    c->peer = peer;
    c->conn = (struct conn){.sock = -1, .client = c};
    mbedtls_ssl_session_init(&c->session);
    c->has_session = c->home_is_local = false;
    atomic_init(&c->resolving, false);
}

static void
http_client_done(struct http_client *c)
{
    conn_close(&c->conn);
    mbedtls_ssl_session_free(&c->session);
}
/* ==== 11. Delivery ==========================================================
 *
 * Each webhook has a list of deliveries and up to maxConcurrent sender threads,
 * started when there is work for them. Nothing is shared between webhooks, so
 * none can delay another.
 *
 * Those that were never tried go out in the order of the list; a failed one
 * goes into a heap by due time, again after its own backoff. A webhook that
 * cannot be reached is down: then one probe at a time goes out, always with the
 * alert that was tried longest ago, until one is answered. One that asks for
 * time is left alone that long.
 *
 * At most QUEUE_MAX_ALERTS alerts or QUEUE_MAX_BYTES of one webhook are held in
 * memory; of the others there is only the place in the journal.
 *
 * Threads: the listeners add, senders take; the lock guards all that moves.
 */

enum verdict {
    VERDICT_DELIVERED,
    VERDICT_RETRY,  /* the webhook answered, but not for this alert: later */
    VERDICT_BROKEN, /* no HTTP answer after the request was written: later */
    VERDICT_WAIT,   /* the webhook as a whole asks for time */
    VERDICT_DOWN,   /* the webhook cannot be reached */
    VERDICT_DEAD,   /* will never be accepted */
};

enum webhook_state { WEBHOOK_UP, WEBHOOK_DOWN, WEBHOOK_PACED };

/* What is sent: an alert's JSON, shared by the deliveries to each webhook. */
struct payload {
    atomic_int refs;
    size_t len;
    char json[];
};

#define NOT_IN_HEAP UINT32_MAX

/* One alert on its way to one webhook. */
struct delivery {
    struct payload *payload;        /* one reference; NULL: it stands only in the journal */
    char id[40];                    /* webhook-id */
    struct delivery *older, *newer; /* of all that the webhook has, in flight or not */
    int64_t at[2];    /* where it stands in the journal's two files; -1: it does not */
    uint32_t len[2];  /* of that line */
    uint32_t heap_at; /* its place in the heap */
    bool in_flight;
    int attempts;
    uint64_t number; /* of the alert, since the start, for the log */
    uint64_t order;  /* in which it was added */
    int64_t accepted_ms;
    int64_t due_ms;
    int64_t tried_ms; /* 0: not yet, since the start */
    char *failure;    /* why the last attempt failed; NULL: there was none */
};

/* What has become of all alerts, for the last line of the log. */
struct counters {
    atomic_ullong received, accepted, delivered, dead, lost;
    atomic_ullong ignored, malformed, unknown, duplicates, held_back, refused, unsorted;
    atomic_ullong dropped; /* datagrams for which there was no room */
    atomic_ullong numbers; /* given to alerts */
};

enum sender_state { SENDER_NONE, SENDER_RUNNING, SENDER_ENDED };

struct sender {
    struct webhook *webhook; /* set before start */
    struct plat_thread thread;
    enum sender_state state;   /* guarded by the webhook's lock */
    struct http_client client; /* sender only, but for resolving */
};

struct webhook {
    struct http_peer peer; /* set before start, as all up to lock */
    const char *name;
    struct counters *counters;
    struct journal *journal;
    size_t listed; /* webhooks of its kind in the configuration */
    int64_t max_age_ms;
    int most; /* senders */
    struct sender *sender;
    struct plat_mutex lock;
    struct plat_cond wake;
    /* from here on guarded by lock */
    struct delivery *oldest, *newest;
    struct delivery *fresh;   /* the first that was never tried; so are all behind it */
    struct delivery *unsaved; /* the oldest that is not in the journal */
    size_t fresh_count;
    struct delivery **heap; /* tried, and waiting for their time */
    size_t heap_count, heap_cap;
    size_t held, held_bytes;  /* payloads of those that wait */
    bool holds_saved;         /* some of them stand in the journal, too */
    struct delivery *copying; /* the next that the journal thread writes down */
    int now;                  /* which of the journal's files they stand in */
    uint64_t next_order;
    enum webhook_state state;
    bool told_down;        /* the log says that it is down */
    bool told_unread;      /* the log says that the journal cannot be read */
    int64_t wait_until_ms; /* not UP: when the next probe may go */
    int failures;          /* not UP: probes that failed in a row */
    int limit;             /* calls that may be in flight, 1 to most */
    int in_flight;
    int running;                      /* senders ... */
    int idle;                         /* ... and those of them that wait for work */
    int64_t expire_ms;                /* when to look for alerts that are too old */
    uint64_t broken[BROKEN_IN_A_ROW]; /* alerts without an HTTP answer, in a row */
    int broken_count;
    bool stopping;
};

/* Makes a payload of some JSON, with one reference. */
static struct payload *
payload_new(struct slice json)
{
    struct payload *p = x_check(malloc(sizeof *p + json.len));

    atomic_init(&p->refs, 1);
    p->len = json.len;
    memcpy(p->json, json.data, json.len);
    return p;
}

/* Gives a reference back; the last one frees the payload. */
static void
payload_free(struct payload *p)
{
    if (p && atomic_fetch_sub(&p->refs, 1) == 1)
        free(p);
}

/* What the result of a call means for the alert and its webhook. Pure. */
static enum verdict
send_judge(const struct http_result *res)
{
    if (res->refused)
        return VERDICT_DEAD;
    switch (res->end) {
    case HTTP_UNSENT:
        return VERDICT_DOWN;
    case HTTP_BROKEN:
        return VERDICT_BROKEN;
    case HTTP_ANSWERED:
        break;
    }
    if (res->status / 100 == 2)
        return VERDICT_DELIVERED;
    if (res->status == 429 || (res->status == 503 && res->retry_after_s >= 0))
        return VERDICT_WAIT;
    if (res->status == 408 || res->status == 425 || res->status / 100 == 5)
        return VERDICT_RETRY;
    return VERDICT_DEAD;
}

/*
 * How long to wait after so many failures (from 1): anything up to
 * BACKOFF_MIN_MS doubled for each, so that many waiters do not come at once.
 */
static int64_t
send_backoff_ms(int failures, uint32_t random)
{
    int64_t most = failures > 9 ? BACKOFF_MAX_MS : (int64_t)BACKOFF_MIN_MS << (failures - 1);

    if (most > BACKOFF_MAX_MS)
        most = BACKOFF_MAX_MS;
    return random % (most + 1);
}

/* A random number for send_backoff_ms; without one the middle. */
static uint32_t
send_random(void)
{
    uint32_t random;

    return plat_random(&random, sizeof random) == 0 ? random : UINT32_MAX / 2;
}

/* Whether the journal holds it, so that memory need not. */
static bool
send_is_saved(const struct webhook *w, const struct delivery *d)
{
    return d->at[w->now] >= 0;
}

static size_t
send_size(const struct delivery *d)
{
    return sizeof *d + sizeof *d->payload + d->payload->len;
}

/* How many deliveries wait. */
static size_t
send_waiting_locked(const struct webhook *w)
{
    return w->fresh_count + w->heap_count;
}

/* Whether a is to be taken before b. */
static bool
send_before(const struct delivery *a, const struct delivery *b)
{
    return a->due_ms != b->due_ms ? a->due_ms < b->due_ms : a->order < b->order;
}

/* Puts a delivery at a place of the heap. */
static void
send_put_locked(struct webhook *w, size_t at, struct delivery *d)
{
    w->heap[at] = d;
    d->heap_at = (uint32_t)at;
}

/* Moves a delivery from a place of the heap towards its top as far as it belongs. */
static void
send_sift_up_locked(struct webhook *w, size_t i, struct delivery *d)
{
    for (; i > 0 && send_before(d, w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        send_put_locked(w, i, w->heap[(i - 1) / 2]);
    send_put_locked(w, i, d);
}

/* Puts a delivery into the heap. */
static void
send_push_locked(struct webhook *w, struct delivery *d)
{
    if (w->heap_count == w->heap_cap) {
        w->heap_cap = w->heap_cap ? w->heap_cap * 2 : 16;
        w->heap = x_realloc(w->heap, w->heap_cap * sizeof *w->heap);
    }
    send_sift_up_locked(w, w->heap_count++, d);
}

/* Takes a delivery out of the heap. */
static void
send_pop_locked(struct webhook *w, struct delivery *d)
{
    struct delivery *last = w->heap[--w->heap_count];
    size_t i = d->heap_at, child;

    d->heap_at = NOT_IN_HEAP;
    if (last == d)
        return;
    for (; (child = 2 * i + 1) < w->heap_count; i = child) {
        if (child + 1 < w->heap_count && send_before(w->heap[child + 1], w->heap[child]))
            child++;
        if (!send_before(w->heap[child], last))
            break;
        send_put_locked(w, i, w->heap[child]);
    }
    send_sift_up_locked(w, i, last);
}

/*
 * Takes a waiting delivery from where it waits. It stays in the list, in flight:
 * until it is put back, ended or buried, nobody else drops, expires or frees it.
 */
static struct delivery *
send_detach_locked(struct webhook *w, struct delivery *d)
{
    if (d->heap_at != NOT_IN_HEAP)
        send_pop_locked(w, d);
    else {
        w->fresh_count--;
        if (w->fresh == d)
            w->fresh = d->newer;
    }
    if (d->payload) {
        w->held--;
        w->held_bytes -= send_size(d);
    }
    d->in_flight = true;
    return d;
}

/* Counts the payload of one that begins to wait, if it has it. */
static void
send_hold_payload_locked(struct webhook *w, struct delivery *d)
{
    if (!d->payload)
        return;
    w->held++;
    w->held_bytes += send_size(d);
    w->holds_saved = w->holds_saved || send_is_saved(w, d);
}

/* Lets go of the payload of one that waits, which the journal holds as well. */
static void
send_release_locked(struct webhook *w, struct delivery *d)
{
    w->held--;
    w->held_bytes -= send_size(d);
    payload_free(d->payload);
    d->payload = NULL;
}

/* Forgets a delivery that was detached. The journal has been told. Takes d. */
static void
send_forget_locked(struct webhook *w, struct delivery *d)
{
    *(d->older ? &d->older->newer : &w->oldest) = d->newer;
    *(d->newer ? &d->newer->older : &w->newest) = d->older;
    if (w->unsaved == d)
        do
            w->unsaved = w->unsaved->newer;
        while (w->unsaved && send_is_saved(w, w->unsaved));
    if (w->copying == d)
        w->copying = d->newer;
    payload_free(d->payload);
    free(d->failure);
    free(d);
}

/* What the journal must know when a delivery ends. */
static struct journal_end
send_journal_end(const struct webhook *w, const struct delivery *d)
{
    return (struct journal_end){
        d->id, send_is_saved(w, d) ? d->len[w->now] : 0, d->at[0] >= 0 || d->at[1] >= 0};
}

/* Tells the journal that a detached delivery is over, and forgets it. Takes d. */
static void
send_end_locked(struct webhook *w, struct delivery *d, enum journal_word word)
{
    struct journal_end end = send_journal_end(w, d);

    journal_note_end(w->journal, word, &end);
    send_forget_locked(w, d);
}

/*
 * Sees that the payload of a detached delivery is in memory. -1 with errno: the
 * journal cannot be read (another try may help), or EBADMSG: the alert is lost.
 */
static int
send_fetch_locked(struct webhook *w, struct delivery *d)
{
    struct buf line = {0};
    struct slice json;
    int failed = 0;

    if (d->payload)
        return 0;
    errno = EBADMSG;
    if (!send_is_saved(w, d))
        return -1;
    failed = journal_fetch(w->journal, w->now, d->at[w->now], d->len[w->now], &line, &json);
    if (!failed)
        d->payload = payload_new(json);
    buf_free(&line);
    return failed;
}

/* The same for one that waits: what is in memory of those is counted. */
static int
send_fetch_waiting_locked(struct webhook *w, struct delivery *d)
{
    if (d->payload)
        return 0;
    if (send_fetch_locked(w, d) != 0)
        return -1;
    send_hold_payload_locked(w, d);
    return 0;
}

/* Logs the whole alert that will not reach its webhook, so that a person still has it. */
__attribute__((format(PRINTF, 3, 4))) static void
send_log_whole_locked(struct webhook *w, struct delivery *d, const char *format, ...)
{
    char room[1024];
    struct buf why = buf_in(room, sizeof room);
    va_list args;

    va_start(args, format);
    buf_vformat(&why, format, args);
    va_end(args);
    if (send_fetch_locked(w, d) == 0)
        log_line(LOG_ERROR, "alert %llu %s; alert: %.*s", (unsigned long long)d->number, why.data,
            (int)d->payload->len, d->payload->json);
    else
        log_line(LOG_ERROR, "alert %llu %s; webhook-id %s cannot be read from the journal: %s",
            (unsigned long long)d->number, why.data, d->id, plat_error());
    buf_free(&why);
}

/* Adds a key and a text of a JSON object, with the comma before it. */
static void
send_add_member(struct buf *b, const char *key, const char *text)
{
    buf_format(b, "%s\"%s\":", b->len > 0 && b->data[b->len - 1] == '{' ? "" : ",", key);
    json_add_string(b, slice_of(text));
}

/* The same with a time, given on the monotonic clock. */
static void
send_add_time(struct buf *b, const char *key, int64_t at_ms)
{
    char when[32];

    log_time(plat_wall_ms() - (plat_now_ms() - at_ms), when);
    send_add_member(b, key, when);
}

/* Adds the line of dead-letters.ndjson for a delivery, whose payload is in memory. */
static void
send_add_letter(
    struct buf *b, const struct webhook *w, const struct delivery *d, const char *reason)
{
    const struct webhook_config *wc = w->peer.webhook;

    buf_add_char(b, '{');
    send_add_member(b, "webhookId", d->id);
    send_add_member(b, "webhookKey", wc->key);
    send_add_member(b, "webhook", wc->name);
    send_add_member(b, "description", wc->description ? wc->description : "");
    buf_format(b, ",\"place\":%zu,\"count\":%zu", wc->place + 1, w->listed);
    send_add_member(b, "url", wc->url.shown ? wc->url.shown : "");
    send_add_member(b, "reason", reason);
    buf_format(b, ",\"attempts\":%d", d->attempts);
    send_add_time(b, "acceptedAt", d->accepted_ms);
    send_add_time(b, "deadAt", plat_now_ms());
    buf_add_text(b, ",\"alert\":");
    buf_add(b, d->payload->json, d->payload->len);
    buf_add_text(b, "}\n");
}

/*
 * Makes a detached delivery a dead letter. Without a state directory, or if the
 * alert cannot be read any more, the log is all that is left of it. Takes d.
 */
static void
send_bury_locked(struct webhook *w, struct delivery *d, const char *reason, const char *hint)
{
    struct buf letter = {0}, why = {0};
    struct journal_end end = send_journal_end(w, d);

    atomic_fetch_add(&w->counters->dead, 1);
    buf_format(&why, "%s%s%s", reason, *hint ? "; " : "", hint);
    send_log_whole_locked(w, d, "given up for %s after %d attempt%s: %s", w->name, d->attempts,
        d->attempts == 1 ? "" : "s", why.data);
    if (w->journal->folder && d->payload) {
        send_add_letter(&letter, w, d, why.data);
        if (!journal_note_letter(w->journal, &letter, &end))
            log_line(LOG_ERROR, "alert %llu has no dead letter: too many wait for the disk",
                (unsigned long long)d->number);
    } else
        journal_note_end(w->journal, JOURNAL_DROPPED, &end);
    buf_free(&letter);
    buf_free(&why);
    send_forget_locked(w, d);
}

/*
 * Gives up what has waited longer than maxAgeHours and was tried since the start:
 * after a long time off every alert has its chance. The list is in the order of
 * age, so the first young one ends the search, which is made EXPIRE_PARTS times
 * in maxAgeHours only.
 */
static void
send_expire_locked(struct webhook *w, int64_t now_ms)
{
    int buried = 0;

    if (now_ms < w->expire_ms)
        return;
    w->expire_ms = now_ms + w->max_age_ms / EXPIRE_PARTS + 1;
    for (struct delivery *d = w->oldest, *next; d; d = next) {
        next = d->newer;
        if (now_ms - d->accepted_ms < w->max_age_ms)
            break;
        if (d->tried_ms == 0 || d->in_flight)
            continue;
        if (++buried > EXPIRE_AT_ONCE) {
            w->expire_ms = now_ms + SLICE_MS; /* the log is bounded */
            break;
        }
        if (send_fetch_waiting_locked(w, d) != 0 && errno != EBADMSG) { /* the disk may heal */
            w->expire_ms = now_ms + JOURNAL_HEAL_MS;
            break;
        }
        send_detach_locked(w, d);
        send_bury_locked(
            w, d, "not delivered for as long as an alert is kept", d->failure ? d->failure : "");
    }
}

/* Which alert a probe takes: the one that was tried longest ago. */
static struct delivery *
send_longest_ago_locked(const struct webhook *w)
{
    struct delivery *best = w->fresh;

    for (size_t i = 0; i < w->heap_count && !w->fresh; i++)
        if (!best || w->heap[i]->tried_ms < best->tried_ms ||
            (w->heap[i]->tried_ms == best->tried_ms && w->heap[i]->order < best->order))
            best = w->heap[i];
    return best;
}

/*
 * Takes the delivery that may be sent now, or NULL and sets *wait_ms to how
 * long there is nothing to do (-1: until woken). Of a webhook that is up: what
 * is due first, new ones being due since they came, while fewer calls than limit
 * are in flight. Of another: a probe, when its time has come and no call is left
 * from before; none while stopping, as what waits is safe in the journal.
 */
static struct delivery *
send_take_locked(struct webhook *w, int64_t now_ms, int64_t *wait_ms)
{
    struct delivery *next = w->fresh;

    *wait_ms = -1;
    if (send_waiting_locked(w) == 0)
        return NULL;
    if (w->state == WEBHOOK_UP) {
        if (w->in_flight >= w->limit)
            return NULL;
        if (!next || (w->heap_count > 0 && send_before(w->heap[0], next)))
            next = w->heap[0];
        *wait_ms = next->due_ms - now_ms;
        return *wait_ms <= 0 ? send_detach_locked(w, next) : NULL;
    }
    if (w->in_flight > 0 || w->stopping)
        return NULL;
    *wait_ms = w->wait_until_ms - now_ms;
    return *wait_ms <= 0 ? send_detach_locked(w, send_longest_ago_locked(w)) : NULL;
}

/*
 * The webhook has answered: it is up, and what was held against it is
 * forgotten; but time that it has asked for is given to it all the same.
 */
static void
send_answered_locked(struct webhook *w, int64_t now_ms)
{
    if (w->told_down)
        log_line(LOG_INFO, "webhook %s is up again", w->name);
    w->told_down = false;
    w->broken_count = 0;
    if (w->state == WEBHOOK_PACED && now_ms < w->wait_until_ms)
        return;
    w->state = WEBHOOK_UP;
    w->failures = 0;
}

/*
 * Leaves the webhook alone: down, or paced as it asked. Afterwards one probe
 * goes out, then one call at a time, then one more with each that arrives.
 */
static void
send_hold_locked(
    struct webhook *w, enum webhook_state state, int64_t now_ms, const struct http_result *res)
{
    int64_t wait_ms;

    if (w->state != WEBHOOK_UP && now_ms < w->wait_until_ms) {
        /* One of several calls in flight has told already; the longest time asked for counts. */
        if (state == WEBHOOK_PACED && now_ms + res->retry_after_s * 1000 > w->wait_until_ms)
            w->wait_until_ms = now_ms + res->retry_after_s * 1000;
        return;
    }
    w->failures++;
    wait_ms = send_backoff_ms(w->failures, send_random());
    if (state == WEBHOOK_PACED && res->retry_after_s >= 0) /* 0 must not become a flood */
        wait_ms = res->retry_after_s > 0 ? res->retry_after_s * 1000 : BACKOFF_MIN_MS;
    if (state == WEBHOOK_PACED && w->state != WEBHOOK_PACED)
        log_line(LOG_WARN, "webhook %s asked to wait: %d, for %.1f s", w->name, res->status,
            (double)wait_ms / 1000);
    if (state == WEBHOOK_DOWN && !w->told_down)
        log_line(LOG_WARN, "webhook %s is down: %s%s%s", w->name, res->reason.text,
            res->hint.text[0] ? "; " : "", res->hint.text);
    w->told_down = w->told_down || state == WEBHOOK_DOWN;
    w->state = state;
    w->wait_until_ms = now_ms + wait_ms;
    w->limit = 1;
}

/* Counts an alert that got no HTTP answer; true: it makes BROKEN_IN_A_ROW different ones. */
static bool
send_count_broken_locked(struct webhook *w, uint64_t number)
{
    for (int i = 0; i < w->broken_count; i++)
        if (w->broken[i] == number)
            return false;
    if (w->broken_count < BROKEN_IN_A_ROW)
        w->broken[w->broken_count++] = number;
    return w->broken_count == BROKEN_IN_A_ROW;
}

/* Puts a failed delivery back, with the payload only where there is room for it. */
static void
send_put_back_locked(struct webhook *w, struct delivery *d)
{
    d->in_flight = false;
    send_push_locked(w, d);
    send_hold_payload_locked(w, d);
    if (d->payload && send_is_saved(w, d) &&
        (w->held > QUEUE_MAX_ALERTS || w->held_bytes > QUEUE_MAX_BYTES))
        send_release_locked(w, d);
}

/* Remembers why an attempt failed, and when the next one is; logs and journals both. */
static void
send_note_failure_locked(
    struct webhook *w, struct delivery *d, const struct http_result *res, int64_t now_ms)
{
    int64_t next_ms = w->state == WEBHOOK_UP ? d->due_ms : w->wait_until_ms;
    int64_t left_ms = next_ms > now_ms ? next_ms - now_ms : 0, wall_ms = plat_wall_ms();

    free(d->failure);
    d->failure = x_strdup(res->reason.text);
    log_line(w->state == WEBHOOK_UP ? LOG_WARN : LOG_VERBOSE,
        "alert %llu to %s: %s; attempt %d, next in %.1f s", (unsigned long long)d->number, w->name,
        res->reason.text, d->attempts, (double)left_ms / 1000);
    if (send_is_saved(w, d))
        journal_note_retry(w->journal,
            &(struct journal_retry){d->id, d->attempts, wall_ms, wall_ms + left_ms, d->failure});
}

/*
 * Acts on the result of a call: the delivery is done, or goes back to wait. What
 * the webhook itself is to blame for (WAIT, DOWN) leaves the alert's own due time
 * alone: it goes in its turn when the webhook is up again. limit grows by one
 * with each delivery, so that one that comes back is not run over. Takes d.
 */
static void
send_settle_locked(struct webhook *w, struct delivery *d, const struct http_result *res)
{
    int64_t now_ms = plat_now_ms();

    d->attempts++;
    d->tried_ms = now_ms;
    switch (send_judge(res)) {
    case VERDICT_DELIVERED:
        w->limit += w->limit < w->most && w->state == WEBHOOK_UP;
        send_answered_locked(w, now_ms);
        atomic_fetch_add(&w->counters->delivered, 1);
        log_line(LOG_INFO, "alert %llu delivered to %s: %d in %lld ms, attempt %d",
            (unsigned long long)d->number, w->name, res->status, (long long)res->ms, d->attempts);
        send_end_locked(w, d, JOURNAL_DELIVERED);
        return;
    case VERDICT_DEAD:
        send_answered_locked(w, now_ms);
        send_bury_locked(w, d, res->reason.text, res->hint.text);
        return;
    case VERDICT_RETRY:
        send_answered_locked(w, now_ms);
        d->due_ms = now_ms + send_backoff_ms(d->attempts, send_random());
        break;
    case VERDICT_BROKEN:
        d->due_ms = now_ms + send_backoff_ms(d->attempts, send_random());
        if (w->stopping) /* cut short by us: says nothing about the webhook */
            break;
        if (send_count_broken_locked(w, d->number) || w->state != WEBHOOK_UP)
            send_hold_locked(w, w->state == WEBHOOK_UP ? WEBHOOK_DOWN : w->state, now_ms, res);
        break;
    case VERDICT_WAIT:
        send_hold_locked(w, WEBHOOK_PACED, now_ms, res);
        break;
    case VERDICT_DOWN:
        if (!w->stopping || http_left_ms(INT64_MAX) > 0)
            send_hold_locked(w, WEBHOOK_DOWN, now_ms, res);
        break;
    }
    send_note_failure_locked(w, d, res, now_ms);
    send_put_back_locked(w, d);
}

/*
 * Waits for work. NULL: the sender should end, having had none for
 * SENDER_IDLE_MS; but one stays as long as something waits. When stopping it
 * waits for nothing: what is due goes out while there is time, the rest stays.
 */
static struct delivery *
send_wait_locked(struct webhook *w)
{
    int64_t since_ms = plat_now_ms(), now_ms, wait_ms;
    struct delivery *d;

    for (;;) {
        now_ms = plat_now_ms();
        if (w->stopping && http_left_ms(INT64_MAX) == 0)
            return NULL;
        send_expire_locked(w, now_ms);
        d = send_take_locked(w, now_ms, &wait_ms);
        if (d || w->stopping)
            return d;
        if (now_ms - since_ms >= SENDER_IDLE_MS && (send_waiting_locked(w) == 0 || w->idle > 0))
            return NULL;
        if (wait_ms < 0 || wait_ms > SENDER_IDLE_MS)
            wait_ms = SENDER_IDLE_MS;
        if (send_waiting_locked(w) > 0 && wait_ms > w->expire_ms - now_ms)
            wait_ms = w->expire_ms - now_ms;
        w->idle++;
        plat_cond_wait(&w->wake, &w->lock, wait_ms);
        w->idle--;
    }
}

static void send_thread(void *); /* recursive: a busy sender may start another */

/*
 * Wakes a sender that waits for work, or starts another one if none does and
 * there may be more. One at a time is enough: whoever takes a delivery does the
 * same for the next one (send_pass_on_locked).
 */
static void
send_kick_locked(struct webhook *w)
{
    struct sender *s = w->sender;

    if (w->idle > 0) {
        plat_cond_wake_one(&w->wake);
        return;
    }
    if (w->stopping || w->running >= w->limit)
        return;
    while (s->state == SENDER_RUNNING)
        s++;
    if (s->state == SENDER_ENDED)
        plat_thread_join(&s->thread);
    s->state = SENDER_NONE;
    if (plat_thread_start(&s->thread, send_thread, s) == 0) {
        s->state = SENDER_RUNNING;
        w->running++;
    } else if (w->running == 0)
        log_line(LOG_ERROR, "cannot start a thread for %s, trying again", w->name);
}

/* Finds another sender for what is due while this one is busy. */
static void
send_pass_on_locked(struct webhook *w)
{
    if (w->state == WEBHOOK_UP && w->in_flight < w->limit &&
        (w->fresh || (w->heap_count > 0 && w->heap[0]->due_ms <= plat_now_ms())))
        send_kick_locked(w);
}

/*
 * What stands in the journal cannot be read: a damaged line is lost, with a
 * failing disk it waits for another try. Takes d.
 */
static void
send_miss_locked(struct webhook *w, struct delivery *d)
{
    if (errno == EBADMSG) {
        atomic_fetch_add(&w->counters->lost, 1);
        send_log_whole_locked(w, d, "lost for %s", w->name);
        send_end_locked(w, d, JOURNAL_DROPPED);
        return;
    }
    if (!w->told_unread)
        log_line(
            LOG_ERROR, "state directory: cannot read the journal: %s; trying again", plat_error());
    w->told_unread = true;
    d->due_ms = plat_now_ms() + JOURNAL_HEAL_MS;
    if (w->state != WEBHOOK_UP)
        w->wait_until_ms = d->due_ms;
    send_put_back_locked(w, d);
}

/* Makes one call; after an answer drains its body. The lock is held at both ends only. Takes d. */
static void
send_one_locked(struct sender *s, struct delivery *d)
{
    struct webhook *w = s->webhook;
    uint64_t number = d->number;
    struct http_request request;
    struct http_result res;
    struct err e;

    if (!d->payload) {
        if (send_fetch_locked(w, d) != 0) {
            send_miss_locked(w, d);
            return;
        }
        if (w->told_unread)
            log_line(LOG_INFO, "state directory: works again: the journal can be read");
        w->told_unread = false;
    }
    request = (struct http_request){
        {d->payload->json, d->payload->len}, number, d->id, false}; /* d stays while in flight */
    w->in_flight++;
    send_pass_on_locked(w);
    plat_unlock(&w->lock);
    http_call(&s->client, &request, &res);
    plat_lock(&w->lock);
    w->in_flight--;
    send_settle_locked(w, d, &res);
    send_pass_on_locked(w); /* while this one drains, and if the limit has grown */
    plat_unlock(&w->lock);
    if (res.end == HTTP_ANSWERED && http_drain(&s->client, &e) != 0 && res.status / 100 == 2)
        log_line(LOG_WARN, "alert %llu delivered to %s, but its answer was broken: %s",
            (unsigned long long)number, w->name, e.text);
    plat_lock(&w->lock);
}

/*
 * A sender: takes deliveries of its webhook and makes the calls until there is
 * nothing to do. It closes its connection without the lock, as that may block.
 */
static void
send_thread(void *arg)
{
    struct sender *s = arg;
    struct webhook *w = s->webhook;
    struct delivery *d;

    http_client_init(&s->client, &w->peer);
    plat_lock(&w->lock);
    while ((d = send_wait_locked(w)) != NULL)
        send_one_locked(s, d);
    plat_unlock(&w->lock);
    http_client_done(&s->client);
    plat_lock(&w->lock);
    s->state = SENDER_ENDED;
    w->running--;
    plat_cond_wake(&w->wake);
    plat_unlock(&w->lock);
}

/*
 * Looks after deliveries for which no sender could be started, and after failed
 * ones that become due while all senders are busy with slow calls: these began
 * when nothing else was due, so nobody else waits. Main thread, once a second.
 */
static void
send_tick(struct webhook *w)
{
    plat_lock(&w->lock);
    if (w->running == 0 && send_waiting_locked(w) > 0)
        send_kick_locked(w);
    else if (w->in_flight == w->running) /* or one of them is about to look for itself */
        send_pass_on_locked(w);
    plat_unlock(&w->lock);
}

/* Gives up a waiting delivery for want of room. Takes d. */
static void
send_drop_locked(struct webhook *w, struct delivery *d, const struct err *why)
{
    atomic_fetch_add(&w->counters->lost, 1);
    send_detach_locked(w, d);
    send_log_whole_locked(w, d, "dropped for %s: %s", w->name, why->text);
    send_end_locked(w, d, JOURNAL_DROPPED);
}

/* The first delivery from d on that waits and stands in the journal (or not), or NULL. */
static struct delivery *
send_next_locked(const struct webhook *w, struct delivery *d, bool saved)
{
    while (d && (d->in_flight || send_is_saved(w, d) != saved))
        d = d->newer;
    return d;
}

/* Whether there is no room in memory for size more bytes of one that waits. */
static bool
send_is_full_locked(const struct webhook *w, size_t size)
{
    return w->held > 0 && (w->held >= QUEUE_MAX_ALERTS || w->held_bytes + size > QUEUE_MAX_BYTES);
}

/*
 * Makes room in memory for one that the journal does not hold: lets go of what
 * the journal holds, too; if that is not enough drops the oldest of the others.
 */
static void
send_make_room_locked(struct webhook *w, size_t size)
{
    struct delivery *d = w->holds_saved ? w->oldest : NULL;

    if (!send_is_full_locked(w, size))
        return;
    while ((d = send_next_locked(w, d, true)) != NULL) {
        if (d->payload)
            send_release_locked(w, d);
        d = d->newer;
    }
    w->holds_saved = false;
    while (send_is_full_locked(w, size) && (d = send_next_locked(w, w->unsaved, false)) != NULL) {
        bool by_count = w->held >= QUEUE_MAX_ALERTS;
        struct err why;
        err_set(&why, "its queue is full (%d %s)",
            by_count ? QUEUE_MAX_ALERTS : (int)(QUEUE_MAX_BYTES >> 20),
            by_count ? "alerts" : "MiB");
        send_drop_locked(w, d, &why);
    }
}

/*
 * Random bytes for webhook-ids, drawn many at a time: a system call for each
 * costs a microsecond.
 */
struct id_pool {
    uint8_t random[1024];
    size_t left;
};

/* Makes a webhook-id: msg_ and 128 random bits in hexadecimal. */
static void
send_make_id(struct id_pool *pool, char id[40])
{
    if (pool->left == 0) {
        pool->left = sizeof pool->random;
        if (plat_random(pool->random, pool->left) != 0) { /* still different for each alert */
            int64_t now[2] = {plat_wall_ms() ^ (int64_t)(intptr_t)id, plat_now_ms()};
            memcpy(pool->random, now, sizeof now);
            pool->left = sizeof now;
        }
    }
    pool->left -= 16;
    memcpy(id, "msg_", sizeof "msg_");
    hex_write(pool->random + pool->left, 16, id + 4);
}

/* Makes a delivery that waits for nothing yet. */
static struct delivery *
send_new(uint64_t number, int64_t accepted_ms)
{
    struct delivery *d = x_calloc(1, sizeof *d);

    d->number = number;
    d->accepted_ms = d->due_ms = accepted_ms;
    d->at[0] = d->at[1] = -1;
    d->heap_at = NOT_IN_HEAP;
    return d;
}

/* Where a new delivery's alert is. */
struct send_source {
    struct slice json;
    int64_t at; /* offset of its line in the journal, -1: it has none */
    size_t len; /* of that line */
};

/*
 * Adds a delivery as the webhook's newest, to wait for its first attempt; wakes
 * nobody. *payload is the alert's, made if it is NULL and there is room for it
 * in memory; the caller's reference stays. Takes d.
 */
static void
send_append_locked(struct webhook *w, struct delivery *d, const struct send_source *source,
    struct payload **payload)
{
    size_t size = sizeof *d + sizeof **payload + source->json.len;

    d->at[w->now] = source->at;
    d->len[w->now] = (uint32_t)source->len;
    if (source->at < 0)
        send_make_room_locked(w, size);
    if (source->at < 0 || !send_is_full_locked(w, size)) {
        if (!*payload)
            *payload = payload_new(source->json);
        atomic_fetch_add(&(*payload)->refs, 1);
        d->payload = *payload;
    }
    d->order = w->next_order++;
    d->older = w->newest;
    *(w->newest ? &w->newest->newer : &w->oldest) = d;
    w->newest = d;
    if (source->at < 0 && !w->unsaved)
        w->unsaved = d;
    if (!w->fresh)
        w->fresh = d;
    w->fresh_count++;
    send_hold_payload_locked(w, d);
}

/*
 * Queues a delivery; payload as in send_append_locked. The dispatcher or the
 * journal thread, with the journal's file lock, so that the place holds. Takes d.
 */
static void
send_add(struct webhook *w, struct delivery *d, const struct send_source *source,
    struct payload **payload)
{
    bool idle;

    plat_lock(&w->lock);
    send_append_locked(w, d, source, payload);
    idle = w->idle > 0;
    if (!idle)
        send_kick_locked(w);
    plat_unlock(&w->lock);
    if (idle) /* a sender that is woken under the lock would wait for it at once */
        plat_cond_wake_one(&w->wake);
}

/*
 * Drops the oldest waiting delivery of all webhooks, for room in the state
 * directory. False: none waits. True promises no more than that one did wait: a
 * sender may have taken it meanwhile, which the caller sees by asking again.
 */
static bool
send_drop_oldest(struct webhook *webhook, size_t count, int64_t max_mb)
{
    struct webhook *where = NULL;
    struct delivery *d;
    int64_t oldest_ms = 0;
    struct err why;

    err_set(&why, "the state directory is full (maxStateMB %lld)", (long long)max_mb);
    for (size_t i = 0; i < count; i++) {
        struct webhook *w = &webhook[i];
        plat_lock(&w->lock);
        d = send_next_locked(w, w->oldest, true);
        if (d && (!where || d->accepted_ms < oldest_ms)) {
            where = w;
            oldest_ms = d->accepted_ms;
        }
        plat_unlock(&w->lock);
    }
    if (!where)
        return false;
    plat_lock(&where->lock);
    d = send_next_locked(where, where->oldest, true);
    if (d)
        send_drop_locked(where, d, &why);
    plat_unlock(&where->lock);
    return true;
}

/*
 * Readies a webhook that nothing waits for; http_peer_init lets it make calls.
 * Main, before start.
 */
static void
send_init(struct webhook *w, const struct config *c, const struct webhook_config *wc,
    struct counters *counters, struct journal *journal)
{
    *w = (struct webhook){.name = wc->name,
        .counters = counters,
        .journal = journal,
        .listed = c->webhooks[wc->kind],
        .max_age_ms = c->max_age_hours * AGE_UNIT_MS,
        .most = (int)c->max_concurrent,
        .limit = (int)c->max_concurrent};
    w->peer.webhook = wc;
    w->peer.config = c;
    w->sender = x_calloc((size_t)w->most, sizeof *w->sender);
    plat_mutex_init(&w->lock);
    plat_cond_init(&w->wake);
    for (int i = 0; i < w->most; i++)
        w->sender[i].webhook = w;
}

/* What send_copy_locked writes down. */
struct send_copy {
    struct buf *lines;
    int which;         /* of the journal's files they go to */
    int64_t at;        /* offset at which lines will stand there */
    int64_t below;     /* rewriting: only what stands below this in the file in use, or in none */
    bool only_unsaved; /* only what stands in none */
    int64_t bytes;     /* of lines that were added ... */
    size_t count;      /* ... and how many */
};

/*
 * Writes down deliveries, from w->copying on, until lines holds JOURNAL_COPY
 * bytes. 1: there are more; 0: these were the last; -1 with errno: the journal
 * cannot be read.
 */
static int
send_copy_locked(struct webhook *w, struct send_copy *c)
{
    for (struct delivery *d; (d = w->copying) != NULL; w->copying = d->newer) {
        bool had = d->payload != NULL;
        size_t begin = c->lines->len;
        char room[80];
        struct buf target = buf_in(room, sizeof room);
        int64_t now_ms = plat_now_ms(), wall_ms = plat_wall_ms();
        if (begin >= JOURNAL_COPY)
            return 1;
        if (c->only_unsaved ? send_is_saved(w, d) || !had : d->at[w->now] >= c->below)
            continue;
        if (send_fetch_locked(w, d) != 0) {
            if (errno == EBADMSG)
                continue; /* lost, which is told when it is its turn */
            return -1;
        }
        buf_format(&target, "%s:%s", w->peer.webhook->key, d->id);
        journal_add_alert(c->lines, JOURNAL_WAITING, wall_ms - (now_ms - d->accepted_ms), &target,
            (struct slice){d->payload->json, d->payload->len});
        buf_free(&target);
        d->at[c->which] = c->at + (int64_t)begin;
        d->len[c->which] = (uint32_t)(c->lines->len - begin - 1);
        c->bytes += d->len[c->which];
        c->count++;
        if (d->attempts > 0)
            journal_add_retry(c->lines,
                &(struct journal_retry){d->id, d->attempts,
                    d->tried_ms ? wall_ms - (now_ms - d->tried_ms) : wall_ms,
                    wall_ms + (d->due_ms > now_ms ? d->due_ms - now_ms : 0),
                    d->failure ? d->failure : ""});
        if (!had) {
            payload_free(d->payload);
            d->payload = NULL;
        }
    }
    return 0;
}

/*
 * All deliveries now stand in the journal's other file, those that stood at
 * below or behind it at the same distance behind base. Gives by how much the
 * lines of those that wait have grown, and *unsaved how many more stand in none.
 */
static int64_t
send_move_locked(struct webhook *w, int64_t below, int64_t base, int64_t *unsaved)
{
    int old = w->now, new = 1 - old;
    int64_t grown = 0;

    w->unsaved = NULL;
    w->holds_saved = true;
    for (struct delivery *d = w->oldest; d; d = d->newer) {
        if (d->at[old] >= below) {
            d->at[new] = d->at[old] - below + base;
            d->len[new] = d->len[old];
        }
        grown += (d->at[new] >= 0 ? (int64_t)d->len[new] : 0) -
            (d->at[old] >= 0 ? (int64_t)d->len[old] : 0);
        *unsaved += (d->at[new] < 0) - (d->at[old] < 0);
        if (d->at[new] < 0 && !w->unsaved)
            w->unsaved = d;
        d->at[old] = -1;
    }
    w->now = new;
    return grown;
}

/* Tells the senders to end once nothing is due that a working webhook could take. */
static void
send_stop(struct webhook *w)
{
    plat_lock(&w->lock);
    w->stopping = true;
    plat_cond_wake(&w->wake);
    plat_unlock(&w->lock);
}

/*
 * Logs what the stop leaves undone and the journal does not hold (safe: what it
 * holds is on the disk), and gives how many of the others wait for the next
 * start. Main, after keep_stop.
 */
static size_t
send_log_lost(struct webhook *w, bool safe)
{
    int64_t until_ms = atomic_load(&stop_at_ms) + STOP_SYNC_MS + STOP_LOG_MS;
    size_t waiting = 0;

    plat_lock(&w->lock);
    for (struct delivery *d = w->oldest; d; d = d->newer) {
        if (safe && send_is_saved(w, d)) {
            waiting++;
            continue;
        }
        atomic_fetch_add(&w->counters->lost, 1);
        log_await_room(until_ms);
        if (plat_now_ms() < until_ms) /* past that they are only counted */
            send_log_whole_locked(w, d, "lost for %s: stopped before it was delivered", w->name);
    }
    plat_unlock(&w->lock);
    return waiting;
}

/*
 * Waits until the senders have ended, but for those that are still inside the
 * system's resolver when stop_at_ms is past. True: all have ended.
 */
static bool
send_await_end(struct webhook *w)
{
    bool stuck = false;

    plat_lock(&w->lock);
    for (int i = 0; i < w->most; i++) {
        struct sender *s = &w->sender[i];
        while (s->state == SENDER_RUNNING &&
            (http_left_ms(INT64_MAX) > 0 || !atomic_load(&s->client.resolving)))
            plat_cond_wait(&w->wake, &w->lock, SLICE_MS);
        if (s->state == SENDER_RUNNING) {
            stuck = true;
            plat_thread_leave(&s->thread);
        } else if (s->state == SENDER_ENDED)
            plat_thread_join(&s->thread);
    }
    plat_unlock(&w->lock);
    return !stuck;
}

/* Frees a webhook without senders, with all that waits. */
static void
send_done(struct webhook *w)
{
    plat_lock(&w->lock);
    for (struct delivery *d = w->oldest, *next; d; d = next) {
        next = d->newer;
        send_forget_locked(w, d);
    }
    plat_unlock(&w->lock);
    free(w->heap);
    free(w->sender);
    http_peer_done(&w->peer);
    plat_cond_done(&w->wake);
    plat_mutex_done(&w->lock);
}

/* ==== 12. Upkeep ============================================================
 *
 * Keeps the state directory in order: loads the journal at start, then syncs,
 * writes dead letters, rewrites the journal when it is mostly done, tries a disk
 * that has failed again, and sends dead letters again when --replay asks for it.
 *
 * A rewritten journal holds one line for each delivery that waits, and the
 * windows of time that are open. It is copied while the old one goes on, then
 * what came since (the tail) is added, and the new file takes the place of the
 * old one. None gets lost on the way: what was there at the begin is copied, or
 * was over before its turn came; what was accepted since stands in the tail, and
 * so do the ends of what was copied. What became a dead letter before its turn
 * stands in neither, so letters are on the disk before the files change places.
 *
 * Threads: main loads, before there are others; from then on the journal thread.
 */

/* A webhook that the journal has known, for when the configuration was edited. */
struct known_webhook {
    struct known_webhook *next;
    struct webhook_config was; /* key, kind, place, description; name is made of these */
    size_t listed;             /* webhooks of its kind in that configuration */
    struct webhook *now;       /* the one that it is now; NULL: not looked for */
    bool by_place;             /* only its place says so */
    size_t waiting;            /* deliveries that were meant for it */
    struct webhook gone;       /* what now is if there is none: holds its deliveries */
};

struct keeper {
    const struct config *config; /* set before start, as all */
    struct journal *journal;
    struct windows *windows;
    struct counters *counters;
    struct webhook *webhook; /* of all kinds */
    size_t webhooks;
    struct plat_thread thread;
    bool started;
    struct arena arena;          /* of known */
    struct known_webhook *known; /* main, then journal thread, as all below */
    size_t knows;                /* how many */
    int64_t rewrite_ms, heal_ms; /* not again before */
    int64_t looked_ms;           /* whether the directory is there, and what --replay asks */
    int64_t synced_ms;           /* when the last sync ended */
    bool gone;                   /* something still waits for webhooks that are gone */
    bool lock_told;              /* that the lock is gone, and cannot be had again */
    bool asked;                  /* replay.request was there, and could not be removed */
};

/* Whether text from a file is a webhook-id of ours, which goes into a header as it is. */
static bool
keep_is_id(struct slice id)
{
    if (id.len < 5 || id.len >= sizeof((struct delivery *)0)->id || memcmp(id.data, "msg_", 4) != 0)
        return false;
    for (size_t i = 4; i < id.len; i++)
        if (hex_value((unsigned char)id.data[i]) < 0)
            return false;
    return true;
}

/* Finds deliveries by their webhook-id; open addressing. */
struct keep_index {
    struct keep_slot {
        struct delivery *delivery; /* NULL: free, or was once used if webhook is set */
        struct webhook *webhook;
        struct known_webhook *known; /* whom it was meant for, if that has changed */
    } * slot;
    size_t cap, used; /* cap is a power of two */
};

/*
 * The place of an id, or the free one where it would stand. A place that was used
 * once does not end the search: what was added when it was taken stands behind it.
 */
static struct keep_slot *
keep_find(const struct keep_index *index, const char *id)
{
    size_t i = crc_of(id, strlen(id));
    struct keep_slot *slot, *reuse = NULL;

    for (;; i++) {
        slot = &index->slot[i & (index->cap - 1)];
        if (!slot->delivery && !slot->webhook)
            return reuse ? reuse : slot;
        if (slot->delivery && strcmp(slot->delivery->id, id) == 0)
            return slot;
        if (!slot->delivery && !reuse)
            reuse = slot;
    }
}

/* Adds a delivery whose id is not there yet. */
static void
keep_index_add(struct keep_index *index, struct keep_slot entry)
{
    struct keep_slot *slot;

    if (2 * (index->used + 1) > index->cap) {
        struct keep_index bigger = {.cap = index->cap ? index->cap * 2 : 64};
        bigger.slot = x_calloc(bigger.cap, sizeof *bigger.slot);
        for (size_t i = 0; i < index->cap; i++)
            if (index->slot[i].delivery) {
                *keep_find(&bigger, index->slot[i].delivery->id) = index->slot[i];
                bigger.used++;
            }
        free(index->slot);
        *index = bigger;
    }
    slot = keep_find(index, entry.delivery->id);
    index->used += !slot->webhook;
    *slot = entry;
}

/* What the state of loading is. */
struct keep_load {
    struct keeper *k;
    struct keep_index index;
    bool read_only;
    int64_t now_ms, wall_ms;
    uint64_t alerts; /* lines, done or not */
    int damaged;     /* lines */
    int file;        /* to which they are set aside; -1: none yet */
    char name[64];
};

/*
 * Finds the webhook that stood in an earlier configuration: by key, by a
 * description that is unique within its kind, or by its place in a list that is
 * as long as before. NULL: there is none any more. *by_place: only by that.
 */
static struct webhook *
keep_match(const struct keeper *k, const struct webhook_config *was, size_t listed, bool *by_place)
{
    struct webhook *named = NULL, *placed = NULL;
    size_t count = 0;

    *by_place = false;
    for (size_t i = 0; i < k->webhooks; i++) {
        struct webhook *w = &k->webhook[i];
        const struct webhook_config *is = w->peer.webhook;
        if (strcmp(is->key, was->key) == 0)
            return w;
        if (is->kind != was->kind)
            continue;
        if (is->description && was->description && *was->description &&
            strcmp(is->description, was->description) == 0) {
            named = w;
            count++;
        }
        if (is->place == was->place && w->listed == listed)
            placed = w;
    }
    *by_place = count != 1 && placed;
    return count == 1 ? named : placed;
}

/*
 * What is known of the webhook with a key, noted as unknown if it is new. A
 * journal with more than KNOWN_MAX is not ours: the rest counts as one.
 */
static struct known_webhook *
keep_known(struct keeper *k, struct slice key)
{
    struct known_webhook *known = k->known;

    while (known && !slice_is(key, known->was.key))
        known = known->next;
    if (!known && k->knows == KNOWN_MAX)
        known = k->known;
    if (known)
        return known;
    known = arena_alloc(&k->arena, sizeof *known);
    known->next = k->known;
    k->known = known;
    k->knows++;
    snprintf(known->was.key, sizeof known->was.key, "%.*s", (int)key.len, key.data);
    snprintf(known->was.name, sizeof known->was.name, "an unknown webhook");
    return known;
}

/*
 * The webhook that a key of the journal means; one that is gone gets a place for
 * its deliveries. *meant: what it was, if that has changed.
 */
static struct webhook *
keep_webhook(struct keeper *k, struct slice key, struct known_webhook **meant)
{
    struct known_webhook *known;

    *meant = NULL;
    for (size_t i = 0; i < k->webhooks; i++)
        if (slice_is(key, k->webhook[i].peer.webhook->key))
            return &k->webhook[i];
    *meant = known = keep_known(k, key);
    if (known->now)
        return known->now;
    known->now = keep_match(k, &known->was, known->listed, &known->by_place);
    if (!known->now) {
        known->now = &known->gone;
        send_init(&known->gone, k->config, &known->was, k->counters, k->journal);
        known->gone.listed = known->listed;
    }
    return known->now;
}

/* Takes in the line of a webhook. */
static void
keep_load_webhook(struct keep_load *l, const struct journal_line *line)
{
    struct keeper *k = l->k;
    struct known_webhook *known = keep_known(k, line->field[0]);
    struct webhook_config *was = &known->was;
    struct buf text = {0};

    if (known->now)
        return; /* it was needed before it was described */
    was->kind = slice_is(line->field[1], KINDS[ALERT_ABORTED].name) ? ALERT_ABORTED : ALERT_FAILURE;
    was->place = (size_t)slice_number(line->field[2], CONFIG_WEBHOOKS_MAX) - 1;
    known->listed = (size_t)slice_number(line->field[3], CONFIG_WEBHOOKS_MAX);
    snprintf(was->name, sizeof was->name, "%s %zu", KINDS[was->kind].name, was->place + 1);
    was->description = NULL;
    if (json_read_string(line->field[4], &text) == 0 && text.len > 0) {
        was->description = arena_copy(&k->arena, text.data, text.len);
        snprintf(was->name, sizeof was->name, "%s %zu (\"%s\")", KINDS[was->kind].name,
            was->place + 1, log_text(slice_of(was->description)).text);
    }
    buf_free(&text);
}

/* What plat_now_ms was, or would have been, at a time of the wall clock; never in the future. */
static int64_t
keep_when(const struct keep_load *l, int64_t wall_ms)
{
    return wall_ms < l->wall_ms ? l->now_ms - (l->wall_ms - wall_ms) : l->now_ms;
}

/* Opens a window that was open when the program ended, if it still is. */
static void
keep_open_window(struct keep_load *l, enum alert_kind kind, enum window_use use,
    const struct window_key *key, int64_t begin_ms)
{
    struct window_table *t = &l->k->windows->table[kind][use];

    if (begin_ms + t->length_ms > l->now_ms && !window_find(t, key, l->now_ms))
        window_open(t, key, begin_ms);
}

/* Opens the windows of an alert that was accepted before. */
static void
keep_open_windows(struct keep_load *l, enum alert_kind kind, struct slice json, int64_t begin_ms)
{
    static const enum alert_field ids[] = {
        [WINDOW_RATE] = FIELD_TASK_ID, [WINDOW_SEEN] = FIELD_EXECUTION_ID};

    for (int use = 0; use < WINDOW_USES; use++) {
        struct buf id = {0};
        struct window_key key;
        if (begin_ms + l->k->windows->table[kind][use].length_ms <= l->now_ms)
            continue;
        buf_add(&id, "", 0);
        if (json_read_string(json_get(json, FIELD_NAMES[ids[use]]), &id) == 0) {
            key = window_key((struct slice){id.data, id.len});
            keep_open_window(l, kind, (enum window_use)use, &key, begin_ms);
        }
        buf_free(&id);
    }
}

/* Takes in an alert's line, len bytes at an offset: what it is for waits. */
static void
keep_load_alert(struct keep_load *l, const struct journal_line *line, int64_t at, size_t len)
{
    int64_t wall_ms = slice_number(line->field[0], INT64_MAX / 16);
    int64_t accepted_ms = keep_when(l, wall_ms < 0 ? l->wall_ms : wall_ms);
    struct slice targets = line->field[1], json = line->field[2];
    struct payload *payload = NULL;
    struct webhook *w = NULL;

    l->alerts++;
    while (targets.len > 0) {
        struct slice id = slice_take(&targets, ','), key = slice_take(&id, ':');
        struct known_webhook *meant;
        struct delivery *d;
        if (!keep_is_id(id) || key.len >= sizeof w->peer.webhook->key)
            continue;
        w = keep_webhook(l->k, key, &meant);
        d = send_new(l->alerts, accepted_ms);
        memcpy(d->id, id.data, id.len);
        if (l->index.cap > 0 && keep_find(&l->index, d->id)->delivery) {
            free(d); /* it waits already: two journals were put together */
            continue;
        }
        plat_lock(&w->lock);
        send_append_locked(w, d, &(struct send_source){json, at, len}, &payload);
        plat_unlock(&w->lock);
        journal_count(l->k->journal, 1, len);
        keep_index_add(&l->index, (struct keep_slot){d, w, meant});
        if (meant)
            meant->waiting++;
    }
    payload_free(payload);
    if (w && line->word == JOURNAL_ACCEPTED)
        keep_open_windows(l, w->peer.webhook->kind, json, accepted_ms);
}

/* Takes in an outcome. */
static void
keep_load_outcome(struct keep_load *l, const struct journal_line *line)
{
    struct keep_slot *slot = NULL;
    struct delivery *d;
    char id[sizeof d->id];
    struct buf why = {0};

    snprintf(id, sizeof id, "%.*s", (int)line->field[0].len, line->field[0].data);
    if (l->index.cap > 0)
        slot = keep_find(&l->index, id);
    if (!slot || !slot->delivery)
        return; /* its alert was damaged, or is gone already */
    d = slot->delivery;
    plat_lock(&slot->webhook->lock);
    if (line->word != JOURNAL_RETRY) {
        journal_count(l->k->journal, -1, d->len[0]);
        send_detach_locked(slot->webhook, d);
        send_forget_locked(slot->webhook, d);
        slot->delivery = NULL;
        if (slot->known)
            slot->known->waiting--;
    } else {
        int64_t attempts = slice_number(line->field[1], 1000000);
        d->attempts = attempts < 0 ? 0 : (int)attempts;
        free(d->failure);
        d->failure = NULL;
        if (json_read_string(line->field[4], &why) == 0 && why.data)
            d->failure = x_strdup(why.data);
        if (l->read_only) { /* nothing is sent: --pending shows these */
            d->tried_ms = keep_when(l, slice_number(line->field[2], INT64_MAX / 16));
            d->due_ms = l->now_ms + slice_number(line->field[3], INT64_MAX / 16) - l->wall_ms;
        }
        buf_free(&why);
    }
    plat_unlock(&slot->webhook->lock);
}

/* Takes in the line of an open window. */
static void
keep_load_window(struct keep_load *l, const struct journal_line *line)
{
    int64_t wall_ms = slice_number(line->field[2], INT64_MAX / 16);
    struct window_key key = {.none = false};

    if (wall_ms < 0 || hex_read(line->field[3], key.bytes, sizeof key.bytes) != 0)
        return;
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        for (int use = 0; use < WINDOW_USES; use++)
            if (slice_is(line->field[0], KINDS[kind].name) &&
                slice_is(line->field[1], WINDOW_NAMES[use]))
                keep_open_window(
                    l, (enum alert_kind)kind, (enum window_use)use, &key, keep_when(l, wall_ms));
}

/* Takes in one record, len bytes at an offset. */
static void
keep_load_record(struct keep_load *l, const struct journal_line *line, int64_t at, size_t len)
{
    switch (line->word) {
    case JOURNAL_ACCEPTED:
    case JOURNAL_WAITING:
        keep_load_alert(l, line, at, len);
        break;
    case JOURNAL_RETRY:
    case JOURNAL_DELIVERED:
    case JOURNAL_DEAD:
    case JOURNAL_DROPPED:
        keep_load_outcome(l, line);
        break;
    case JOURNAL_WEBHOOK:
        keep_load_webhook(l, line);
        break;
    case JOURNAL_WINDOW:
        keep_load_window(l, line);
        break;
    }
}

/* What keep_see_damaged does with the files of damaged lines. */
struct keep_aside {
    const struct journal *journal;
    int64_t bytes; /* in them */
    bool remove;   /* they are removed */
};

/* Looks at one file of the state directory. */
static void
keep_see_damaged(const char *name, void *arg)
{
    struct keep_aside *aside = arg;
    char *path;

    if (strncmp(name, "journal.damaged-", 16) != 0)
        return;
    path = journal_path(aside->journal, name);
    aside->bytes += plat_path_len(path);
    if (aside->remove)
        plat_remove(path);
    free(path);
}

/* Opens the file for damaged lines; those of earlier starts go when they take too much room. */
static void
keep_open_damaged(struct keep_load *l)
{
    struct journal *j = l->k->journal;
    struct keep_aside aside = {.journal = j};
    char when[32];

    plat_folder_each(j->folder, keep_see_damaged, &aside);
    if (aside.bytes > j->letters_max) {
        log_line(LOG_WARN, "journal: the damaged lines set aside before are removed (%lld bytes)",
            (long long)aside.bytes);
        aside.remove = true;
        plat_folder_each(j->folder, keep_see_damaged, &aside);
    }
    log_time(l->wall_ms, when);
    snprintf(l->name, sizeof l->name, "journal.damaged-%.4s%.2s%.2sT%.2s%.2s%.2sZ", when, when + 5,
        when + 8, when + 11, when + 14, when + 17);
    l->file = journal_open_file(j, l->name, false, false);
    if (l->file < 0)
        log_line(LOG_ERROR, "journal: damaged lines cannot be set aside: %s", plat_error());
}

/* Sets a damaged line aside, after what is good inside of it was taken. */
static void
keep_load_damaged(struct keep_load *l, struct slice line, int64_t at)
{
    struct journal *j = l->k->journal;
    struct journal_line record;
    size_t from = 0, begin, len;

    l->damaged++;
    while ((begin = journal_salvage(line, from, &len)) != SIZE_MAX) {
        struct slice good = {line.data + begin, len};
        journal_read_line(good, &record);
        keep_load_record(l, &record, at + (int64_t)begin, len);
        from = begin + len;
    }
    if (l->read_only)
        return;
    if (l->damaged == 1)
        keep_open_damaged(l);
    if (l->file >= 0 && plat_file_len(l->file) < j->letters_max &&
        (plat_write(l->file, line.data, line.len) != 0 || plat_write(l->file, "\n", 1) != 0))
        log_line(LOG_ERROR, "journal: a damaged line cannot be set aside: %s", plat_error());
}

/*
 * Takes in the last line, which has no LF: a record that was written whole is
 * kept, any other was never accepted and is cut off.
 */
static void
keep_load_torn(struct keep_load *l, struct slice line, int64_t at)
{
    struct journal *j = l->k->journal;
    struct journal_line record;
    size_t len;

    if (journal_read_line(line, &record) == 0)
        keep_load_record(l, &record, at, line.len);
    else if (journal_salvage(line, 0, &len) != SIZE_MAX)
        keep_load_damaged(l, line, at);
    else if (!l->read_only) {
        log_line(LOG_WARN, "journal: a torn last line (%zu bytes) was cut off", line.len);
        if (plat_file_cut(j->file[0], at) == 0)
            j->end = at;
        return;
    }
    if (!l->read_only && plat_write(j->file[0], "\n", 1) == 0)
        j->end++;
}

/* Numbers what waits from 1 on, the deliveries of one alert alike. */
static void
keep_number(struct keep_load *l)
{
    uint64_t *number = x_calloc(l->alerts + 1, sizeof *number);

    for (size_t i = 0; i < l->k->webhooks; i++)
        for (struct delivery *d = l->k->webhook[i].oldest; d; d = d->newer) {
            if (!number[d->number])
                number[d->number] = atomic_fetch_add(&l->k->counters->numbers, 1) + 1;
            d->number = number[d->number];
        }
    free(number);
}

/* Says what waits for webhooks that are found again by their place only. */
static void
keep_tell_places(const struct keeper *k)
{
    for (const struct known_webhook *known = k->known; known; known = known->next)
        if (known->waiting > 0 && known->by_place)
            log_line(LOG_WARN,
                "journal: %zu alerts wait for %s, which has changed: they go to %s at the same "
                "place",
                known->waiting, known->was.name, known->now->name);
}

/* Adds what the journal always holds: the configuration's webhooks. */
static void
keep_add_head(const struct keeper *k, struct buf *lines)
{
    for (size_t i = 0; i < k->webhooks; i++)
        journal_add_webhook(lines, k->webhook[i].peer.webhook, k->webhook[i].listed);
}

/*
 * Reads the journal: what waits stands in the webhooks' lists afterwards, and
 * windows of time are open again. read_only: for --pending. Main, before the
 * senders. -1 with e: the journal cannot be read.
 */
static int
keep_load(struct keeper *k, bool read_only, struct err *e)
{
    struct keep_load l = {.k = k,
        .read_only = read_only,
        .now_ms = plat_now_ms(),
        .wall_ms = plat_wall_ms(),
        .file = -1};
    struct journal *j = k->journal;
    struct line_reader r = {.file = j->file[0]};
    struct journal_line record;
    struct slice line;
    struct buf head = {0};
    int got = 0;

    if (j->file[0] < 0)
        return 0;
    while ((got = line_read(&r, &line)) > 0)
        if (r.cut && r.line_at + (int64_t)line.len >= j->end) {
            keep_load_torn(&l, line, r.line_at);
            got = 0;
            break;
        } else if (r.cut || journal_read_line(line, &record) != 0)
            keep_load_damaged(&l, line, r.line_at);
        else
            keep_load_record(&l, &record, r.line_at, line.len);
    if (got < 0)
        err_set(e, "cannot read %s/journal: %s", j->folder, plat_error());
    buf_free(&r.in);
    free(l.index.slot);
    plat_file_close(l.file);
    keep_number(&l);
    if (got < 0 || read_only)
        return got;
    if (l.damaged > 0)
        log_line(LOG_ERROR, "journal: %d damaged line%s set aside in %s/%s", l.damaged,
            l.damaged == 1 ? "" : "s", j->folder, l.name);
    j->rewrite = l.damaged > 0;
    keep_tell_places(k);
    keep_add_head(k, &head);
    plat_lock(&j->file_lock);
    journal_write_locked(j, (struct slice){head.data ? head.data : "", head.len}, true);
    plat_unlock(&j->file_lock);
    buf_free(&head);
    return 0;
}

/* ---- Journal thread ---- */

/* Notes that a sync has failed: what was written before may not be on the disk, and never be. */
static void
keep_check_sync(struct keeper *k, bool failed)
{
    struct journal *j = k->journal;

    if (!failed)
        return;
    plat_lock(&j->file_lock);
    journal_fail_locked(j, "cannot sync the journal");
    j->unsafe = true;
    plat_unlock(&j->file_lock);
}

/* Has what was written put on the disk. */
static void
keep_sync(struct keeper *k)
{
    struct journal *j = k->journal;
    bool unsynced;

    plat_lock(&j->lock);
    unsynced = j->unsynced;
    j->unsynced = false;
    plat_unlock(&j->lock);
    keep_check_sync(k, unsynced && plat_file_sync(j->file[j->now]) != 0);
    k->synced_ms = unsynced ? plat_now_ms() : k->synced_ms;
}

/* Writes the outcomes that wait. */
static void
keep_write(struct keeper *k)
{
    struct journal *j = k->journal;

    plat_lock(&j->file_lock);
    if (!j->failed && j->folder)
        journal_write_locked(j, (struct slice){"", 0}, true);
    plat_unlock(&j->file_lock);
}

/* Adds lines to dead-letters.ndjson, for good. 0, or -1 with errno: nothing was added. */
static int
keep_append_letters(const struct journal *j, struct slice letters)
{
    int file = journal_open_file(j, "dead-letters.ndjson", false, false), why;
    int64_t len = file < 0 ? -1 : plat_file_len(file);
    char last = '\n';
    bool done;

    if (len > 0 && len + (int64_t)letters.len > j->letters_max) {
        plat_file_close(file);
        if (journal_replace_file(j, "dead-letters.ndjson", "dead-letters.1.ndjson") != 0)
            return -1;
        log_line(LOG_WARN,
            "dead letters: the file is full and is now dead-letters.1.ndjson; "
            "the one of that name before is gone");
        file = journal_open_file(j, "dead-letters.ndjson", false, false);
        len = file < 0 ? -1 : plat_file_len(file);
    }
    if (len > 0 && plat_read_at(file, &last, 1, len - 1) != 1)
        len = -1;
    /* A line that was torn before must not swallow the next. */
    done = len >= 0 && (last == '\n' || plat_write(file, "\n", 1) == 0) &&
        plat_write(file, letters.data, letters.len) == 0 && plat_file_sync(file) == 0 &&
        (len > 0 || plat_folder_sync(j->folder) == 0);
    why = errno;
    if (!done && len >= 0)
        plat_file_cut(file, len);
    plat_file_close(file);
    errno = why;
    return done ? 0 : -1;
}

/* The text of a member of a letter, "" if it has none; longer than size is none. */
static const char *
keep_letter_text(struct slice line, const char *key, char *out, size_t size)
{
    struct buf text = {0};

    out[0] = '\0';
    if (json_read_string(json_get(line, key), &text) == 0 && text.data && text.len < size &&
        strlen(text.data) == text.len)
        memcpy(out, text.data, text.len + 1);
    buf_free(&text);
    return out;
}

/* Length of the first lines of s, as many as have max bytes, but at least one. */
static size_t
keep_lines_len(struct slice s, size_t max)
{
    size_t len = 0;

    while (len < s.len) {
        const char *lf = memchr(s.data + len, '\n', s.len - len);
        size_t end = lf ? (size_t)(lf - s.data) + 1 : s.len;
        if (len > 0 && end > max)
            break;
        len = end;
    }
    return len;
}

/*
 * Writes the dead letters that wait, in parts for which the file has room, and
 * makes the lines that end their deliveries outcomes once they are on the disk.
 * What comes meanwhile waits for the next time, as new alerts must be synced. -1:
 * they cannot all be written, which was told.
 */
static int
keep_letters(struct keeper *k)
{
    struct journal *j = k->journal;
    struct buf part = {0};
    struct slice rest;
    size_t left;
    bool failed = false;

    plat_lock(&j->lock);
    left = j->letters.len;
    plat_unlock(&j->lock);
    if (left == 0)
        return 0;
    for (; left > 0; left -= part.len) {
        part.len = 0;
        plat_lock(&j->lock);
        rest = (struct slice){j->letters.data, left};
        buf_add(&part, rest.data, keep_lines_len(rest, (size_t)j->letters_max / 2));
        plat_unlock(&j->lock);
        rest = (struct slice){part.data, part.len};
        failed = keep_append_letters(j, rest) != 0;
        if (failed)
            break;
        plat_lock(&j->lock);
        journal_cut_front(&j->letters, part.len);
        while (rest.len > 0) {
            char id[40];
            keep_letter_text(slice_take(&rest, '\n'), "webhookId", id, sizeof id);
            journal_add_outcome(&j->outcomes, JOURNAL_DEAD, id);
        }
        plat_unlock(&j->lock);
    }
    if (failed && !j->letters_failed)
        log_line(LOG_ERROR, "state directory: cannot write dead-letters.ndjson: %s; trying again",
            plat_error());
    if (!failed && j->letters_failed)
        log_line(LOG_INFO, "state directory: dead-letters.ndjson can be written again");
    plat_lock(&j->lock);
    j->letters_failed = failed;
    plat_unlock(&j->lock);
    buf_free(&part);
    return failed ? -1 : 0;
}

/*
 * Makes dead letters of what waits for webhooks that are in the configuration no
 * more, as many as may wait to be written and can be read. Gives how many there
 * were; k->gone then says whether some are left.
 */
static size_t
keep_bury_gone(struct keeper *k)
{
    struct journal *j = k->journal;
    size_t buried = 0;
    bool room;

    k->gone = false;
    for (struct known_webhook *known = k->known; known; known = known->next) {
        struct webhook *w = &known->gone;
        if (known->now != w)
            continue;
        plat_lock(&w->lock);
        while (w->oldest) {
            plat_lock(&j->lock);
            room = j->letters.len < LETTERS_WAIT_MAX / 2 && !j->letters_failed;
            plat_unlock(&j->lock);
            if (!room || (send_fetch_waiting_locked(w, w->oldest) != 0 && errno != EBADMSG))
                break;
            log_await_room(plat_now_ms() + STOP_LOG_MS);
            w->oldest->number = atomic_fetch_add(&k->counters->numbers, 1) + 1;
            send_bury_locked(w, send_detach_locked(w, w->oldest),
                "its webhook is in the configuration no more", "");
            buried++;
        }
        k->gone = k->gone || w->oldest;
        plat_unlock(&w->lock);
    }
    return buried;
}

/* Adds the windows of time that are open. */
static void
keep_add_windows(struct keeper *k, struct buf *lines)
{
    int64_t now_ms = plat_now_ms(), wall_ms = plat_wall_ms();
    uint32_t most = (uint32_t)(k->journal->file_max / 4 / WINDOW_LINE /
        (ALERT_KINDS * WINDOW_USES));

    plat_lock(&k->windows->lock);
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        for (int use = 0; use < WINDOW_USES; use++) {
            const struct window_table *t = &k->windows->table[kind][use];
            uint32_t i = t->count > most ? t->count - most : 0; /* those that end last */
            for (; i < t->count; i++) {
                const struct window_entry *entry = &t->entry[(t->first + i) & (t->cap - 1)];
                char key[2 * sizeof entry->key + 1];
                size_t begin;
                if (entry->begin_ms + t->length_ms <= now_ms)
                    continue;
                hex_write(entry->key, sizeof entry->key, key);
                begin = journal_begin_line(lines, JOURNAL_WINDOW);
                buf_format(lines, "\t%s\t%s\t%lld\t%s", KINDS[kind].name, WINDOW_NAMES[use],
                    (long long)(wall_ms - (now_ms - entry->begin_ms)), key);
                journal_end_line(lines, begin);
            }
        }
    plat_unlock(&k->windows->lock);
}

/* A journal that is being rewritten. */
struct keep_rewrite {
    int which;        /* the new one's place in journal->file */
    int64_t below;    /* length of the old file when it began: what is behind is its tail */
    int64_t copied;   /* up to there the old file is in the new one */
    struct buf lines; /* what goes to the new file next */
    int64_t end;      /* of the new one, without lines */
    int64_t base;     /* where the tail begins in it */
    int64_t alerts;   /* bytes in it of lines of alerts that waited */
};

/* Writes out what is ready. -1 with errno. */
static int
keep_put_lines(struct journal *j, struct keep_rewrite *rw)
{
    int failed = plat_write(j->file[rw->which], rw->lines.data, rw->lines.len);

    rw->end += (int64_t)rw->lines.len;
    rw->lines.len = 0;
    return failed;
}

/* Whether the program is about to end, so that nothing long is begun. */
static bool
keep_is_stopping(struct keeper *k)
{
    bool stopping;

    plat_lock(&k->journal->lock);
    stopping = k->journal->stopping;
    plat_unlock(&k->journal->lock);
    return stopping;
}

/*
 * Writes every delivery to the new file, a piece at a time, so that senders wait
 * for none of it. -1 with errno, or the program is about to end.
 */
static int
keep_copy_waiting(struct keeper *k, struct keep_rewrite *rw)
{
    for (size_t i = 0; i < k->webhooks; i++) {
        struct webhook *w = &k->webhook[i];
        int more = 1;
        plat_lock(&w->lock);
        w->copying = w->oldest;
        plat_unlock(&w->lock);
        while (more > 0) {
            struct send_copy c = {&rw->lines, rw->which, rw->end, rw->below, false, 0, 0};
            plat_lock(&w->lock);
            more = send_copy_locked(w, &c);
            if (more < 0)
                w->copying = NULL;
            plat_unlock(&w->lock);
            if (more < 0 || keep_put_lines(k->journal, rw) != 0 ||
                (keep_is_stopping(k) && !k->journal->unsafe)) /* which is the last chance */
                return -1;
            rw->alerts += c.bytes;
            keep_sync(k); /* new alerts do not wait for the copy */
        }
    }
    return 0;
}

/* Copies what the old file has got since, up to its end. -1 with errno. */
static int
keep_copy_tail(struct journal *j, struct keep_rewrite *rw, int64_t end)
{
    while (rw->copied < end) {
        int64_t n = end - rw->copied;
        buf_reserve(&rw->lines, JOURNAL_COPY);
        n = plat_read_at(j->file[j->now], rw->lines.data,
            n < (int64_t)JOURNAL_COPY ? (size_t)n : JOURNAL_COPY, rw->copied);
        if (n <= 0)
            return -1;
        rw->lines.len = (size_t)n;
        rw->copied += n;
        if (keep_put_lines(j, rw) != 0)
            return -1;
    }
    return 0;
}

/*
 * Puts the new file in the place of the old one. The file lock is held, so
 * nothing is synced here: what came since the last sync is synced in neither.
 * -1 with errno.
 */
static int
keep_switch_locked(struct keeper *k, struct keep_rewrite *rw)
{
    struct journal *j = k->journal;
    int64_t grown = 0, unsaved = 0;
    int old = j->now;

    if (keep_copy_tail(j, rw, j->end) != 0 ||
        journal_replace_file(j, "journal.new", "journal") != 0)
        return -1;
    for (size_t i = 0; i < k->webhooks; i++) {
        plat_lock(&k->webhook[i].lock);
        grown += send_move_locked(&k->webhook[i], rw->below, rw->base, &unsaved);
        plat_unlock(&k->webhook[i].lock);
    }
    plat_file_close(j->file[old]);
    j->file[old] = -1;
    j->now = rw->which;
    j->end = rw->end;
    j->uncut = j->unsafe = false;
    plat_lock(&j->lock);
    j->live_bytes += grown;
    j->unsaved = (size_t)((int64_t)j->unsaved + unsaved);
    j->kept_bytes = rw->base - rw->alerts;
    j->rewrite = j->no_room = false;
    plat_cond_wake(&j->work); /* for journal_await_room */
    plat_unlock(&j->lock);
    return 0;
}

/* Forgets the places in a new file that did not come to be. */
static void
keep_abandon(struct keeper *k, int which)
{
    int why = errno;

    plat_file_close(k->journal->file[which]);
    k->journal->file[which] = -1;
    journal_remove_file(k->journal, "journal.new");
    for (size_t i = 0; i < k->webhooks; i++) {
        plat_lock(&k->webhook[i].lock);
        for (struct delivery *d = k->webhook[i].oldest; d; d = d->newer)
            d->at[which] = -1;
        plat_unlock(&k->webhook[i].lock);
    }
    errno = why;
}

/*
 * Copies all but what comes at the end under the lock, and syncs it, so that
 * little is left to be synced after the change. -1 with errno.
 */
static int
keep_copy(struct keeper *k, struct keep_rewrite *rw)
{
    struct journal *j = k->journal;
    size_t buried;
    int64_t end;
    int failed;

    keep_add_head(k, &rw->lines);
    keep_add_windows(k, &rw->lines);
    if (keep_put_lines(j, rw) != 0 || keep_copy_waiting(k, rw) != 0)
        return -1;
    rw->base = rw->end;
    do {
        buried = keep_bury_gone(k);
        failed = keep_letters(k); /* of what was not copied any more; later ones were */
    } while (k->gone && buried > 0 && !failed);
    plat_lock(&j->file_lock);
    end = j->end;
    plat_unlock(&j->file_lock);
    errno = EAGAIN; /* dead letters that cannot be written stand only in the old file */
    if (failed || k->gone || keep_copy_tail(j, rw, end) != 0)
        return -1;
    return plat_file_sync(j->file[rw->which]);
}

/* Writes a new journal with all that waits, in the place of the old one. -1 with errno. */
static int
keep_rewrite(struct keeper *k)
{
    struct journal *j = k->journal;
    struct keep_rewrite rw = {.which = 1 - j->now};
    int failed;

    plat_lock(&j->file_lock);
    rw.below = rw.copied = j->end;
    plat_unlock(&j->file_lock);
    j->file[rw.which] = journal_open_file(j, "journal.new", false, true);
    if (j->file[rw.which] < 0)
        return -1;
    failed = keep_copy(k, &rw);
    if (!failed) {
        plat_lock(&j->file_lock);
        failed = keep_switch_locked(k, &rw);
        plat_unlock(&j->file_lock);
    }
    buf_free(&rw.lines);
    if (failed) {
        keep_abandon(k, rw.which);
        return -1;
    }
    keep_check_sync(k, plat_file_sync(j->file[j->now]) != 0 || plat_folder_sync(j->folder) != 0);
    return 0;
}

/* Rewrites the journal if it is mostly done, damaged or has no room left. */
static void
keep_rewrite_if_due(struct keeper *k)
{
    struct journal *j = k->journal;
    int64_t now_ms = plat_now_ms();
    int64_t end;
    bool due, failed;

    plat_lock(&j->file_lock);
    end = j->failed ? 0 : j->end;
    plat_unlock(&j->file_lock);
    plat_lock(&j->lock);
    due = end > 0 && !j->letters_failed && !k->gone &&
        (j->rewrite ||
            (end > j->file_max && end - j->live_bytes - j->kept_bytes > j->file_max / 16) ||
            (end >= JOURNAL_REWRITE_MIN && end > 2 * (j->live_bytes + j->kept_bytes)));
    plat_unlock(&j->lock);
    if (!due || now_ms < k->rewrite_ms)
        return;
    failed = keep_rewrite(k) != 0;
    plat_lock(&j->lock);
    if (failed && !j->rewrite_failed && !j->stopping)
        log_line(LOG_ERROR, "state directory: cannot rewrite the journal: %s; trying again",
            plat_error());
    if (!failed && j->rewrite_failed)
        log_line(LOG_INFO, "state directory: works again: the journal can be rewritten");
    j->rewrite_failed = failed;
    plat_unlock(&j->lock);
    if (failed)
        k->rewrite_ms = plat_now_ms() + JOURNAL_HEAL_MS;
}

/*
 * Writes down the alerts of one webhook that are in memory only. -1: the disk
 * fails. The file lock is held; the webhook waits, as this is rare and short.
 * Outcomes are left where they are: each delivery is told its place before the
 * lines are written, and they would move them.
 */
static int
keep_save_locked(struct keeper *k, struct webhook *w)
{
    struct journal *j = k->journal;
    struct buf lines = {0};
    int more = 1;
    bool failed = false;

    plat_lock(&w->lock);
    w->copying = w->unsaved;
    while (more > 0) {
        struct send_copy c = {&lines, j->now, j->end, 0, true, 0, 0};
        more = send_copy_locked(w, &c); /* reads nothing, so it cannot fail */
        failed = journal_write_locked(j, (struct slice){lines.data, lines.len}, false) < 0;
        lines.len = 0;
        for (struct delivery *d = w->unsaved; d && failed; d = d->newer)
            if (d->at[j->now] >= j->end)
                d->at[j->now] = -1;
        if (failed)
            break;
        plat_lock(&j->lock);
        j->live_bytes += c.bytes;
        j->unsaved -= c.count;
        j->unsynced = true;
        plat_unlock(&j->lock);
    }
    while (w->unsaved && send_is_saved(w, w->unsaved))
        w->unsaved = w->unsaved->newer;
    w->holds_saved = true;
    plat_unlock(&w->lock);
    buf_free(&lines);
    return failed ? -1 : 0;
}

/*
 * Whether the journal can be written to: not only the next line, which may still
 * fit into its last block. The file lock is held.
 */
static bool
keep_probe_locked(struct journal *j)
{
    char *zeros = x_calloc(1, KEEP_PROBE);
    bool works = journal_cut_locked(j) == 0;

    j->uncut = true;
    works = works && plat_write(j->file[j->now], zeros, KEEP_PROBE) == 0;
    free(zeros);
    return journal_cut_locked(j) == 0 && works;
}

/*
 * Sees that the state directory is there and still ours: somebody may have
 * removed it, and another process may have taken it since.
 */
static bool
keep_has_folder(struct keeper *k)
{
    struct journal *j = k->journal;
    struct err e;

    if (journal_is_there(j, j->lock_file, "lock"))
        return true;
    plat_file_close(j->lock_file);
    j->lock_file = -1;
    if (plat_make_folder(j->folder, true) != 0)
        return false;
    if (journal_take_lock(j, &e) == 0) {
        k->lock_told = false;
        return true;
    }
    if (!k->lock_told)
        log_line(LOG_ERROR, "state directory: %s", e.text);
    k->lock_told = true;
    return false;
}

/* Tries a disk that has failed once more: whether it works. */
static bool
keep_try_disk(struct keeper *k)
{
    struct journal *j = k->journal;
    bool works;

    if (j->unsafe)
        return keep_has_folder(k) && keep_rewrite(k) == 0 && !j->unsafe;
    plat_lock(&j->file_lock);
    works = keep_probe_locked(j);
    plat_unlock(&j->file_lock);
    if (!works || plat_file_sync(j->file[j->now]) == 0)
        return works;
    keep_check_sync(k, true);
    return false;
}

/* Tries a disk that has failed once more, and writes down what is in memory only. */
static void
keep_heal(struct keeper *k)
{
    struct journal *j = k->journal;
    bool failed = journal_has_failed(j), full, saved = true;
    size_t unsaved;

    plat_lock(&j->lock);
    unsaved = j->unsaved;
    full = j->live_bytes >= j->live_max;
    plat_unlock(&j->lock);
    if ((!failed && (unsaved == 0 || full)) || plat_now_ms() < k->heal_ms)
        return;
    k->heal_ms = plat_now_ms() + JOURNAL_HEAL_MS;
    if (failed && !keep_try_disk(k))
        return;
    plat_lock(&j->file_lock);
    full = j->end > j->file_max + j->file_max / 8 && !keep_is_stopping(k);
    for (size_t i = 0; i < k->webhooks && saved && !full; i++)
        saved = keep_save_locked(k, &k->webhook[i]) == 0;
    if (failed && saved) {
        log_line(LOG_INFO, "state directory: works again");
        j->failed = false;
    }
    plat_unlock(&j->file_lock);
}

/* A line of dead-letters.ndjson that can be sent again. */
struct letter {
    char id[40];
    struct webhook *webhook; /* NULL: it is in the configuration no more */
    struct buf json;         /* the alert's */
};

/* Reads a letter. -1: it is damaged. The caller frees letter->json. */
static int
keep_read_letter(const struct keeper *k, struct slice line, struct letter *letter)
{
    struct alert *alert = alert_read_json(json_get(line, "alert"));
    struct webhook_config was = {0};
    char description[4096];
    bool by_place;

    *letter = (struct letter){0};
    if (!alert)
        return -1;
    keep_letter_text(line, "webhookId", letter->id, sizeof letter->id);
    keep_letter_text(line, "webhookKey", was.key, sizeof was.key);
    was.description = keep_letter_text(line, "description", description, sizeof description);
    was.kind = alert->kind;
    was.place = (size_t)slice_number(json_get(line, "place"), CONFIG_WEBHOOKS_MAX) - 1;
    letter->webhook = keep_match(
        k, &was, (size_t)slice_number(json_get(line, "count"), CONFIG_WEBHOOKS_MAX), &by_place);
    alert_add_json(alert, &letter->json);
    alert_free(alert);
    return keep_is_id(slice_of(letter->id)) ? 0 : -1;
}

/* A replay of dead letters. */
struct keep_replay {
    char (*waiting)[40]; /* webhook-ids of what waits already, sorted */
    size_t count;
    int stay;                        /* file for the letters that stay */
    uint64_t again, already, stayed; /* already: of again, those that waited anyway */
    bool failed;                     /* the journal takes no more: the rest stays, too */
    bool unread;                     /* a file failed: dead-letters.ndjson stays as it is */
};

static int
keep_compare_ids(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* Notes what waits already: a replay that was killed has journaled some of its letters. */
static void
keep_list_waiting(struct keeper *k, struct keep_replay *rp)
{
    size_t cap = 0;

    for (size_t i = 0; i < k->webhooks; i++) {
        struct webhook *w = &k->webhook[i];
        plat_lock(&w->lock);
        for (const struct delivery *d = w->oldest; d; d = d->newer) {
            if (rp->count == cap) {
                cap = cap ? 2 * cap : 64;
                rp->waiting = x_realloc(rp->waiting, cap * sizeof *rp->waiting);
            }
            memcpy(rp->waiting[rp->count++], d->id, sizeof d->id);
        }
        plat_unlock(&w->lock);
    }
    if (rp->count > 0)
        qsort(rp->waiting, rp->count, sizeof *rp->waiting, keep_compare_ids);
}

/*
 * Journals a letter's alert anew and queues it. -1: it cannot be journaled; nor
 * may it take the room of alerts that wait, as the oldest would be dropped for it.
 */
static int
keep_replay_letter(struct keeper *k, struct keep_replay *rp, const struct letter *letter)
{
    struct journal *j = k->journal;
    struct slice json = {letter->json.data, letter->json.len};
    struct buf target = {0}, line = {0};
    struct payload *payload = NULL;
    struct delivery *d;
    bool room;
    int64_t at = -1;

    if (rp->count > 0 &&
        bsearch(letter->id, rp->waiting, rp->count, sizeof *rp->waiting, keep_compare_ids)) {
        rp->already++;
        return 0;
    }
    buf_format(&target, "%s:%s", letter->webhook->peer.webhook->key, letter->id);
    journal_add_alert(&line, JOURNAL_WAITING, plat_wall_ms(), &target, json);
    d = send_new(atomic_fetch_add(&k->counters->numbers, 1) + 1, plat_now_ms());
    memcpy(d->id, letter->id, sizeof d->id);
    room = journal_over(j, (int64_t)line.len) <= 0;
    plat_lock(&j->file_lock);
    if (room && !j->failed)
        at = journal_write_locked(j, (struct slice){line.data, line.len}, true);
    if (at >= 0) {
        log_line(LOG_INFO, "alert %llu again from the dead letters, for %s",
            (unsigned long long)d->number, letter->webhook->name);
        journal_count(j, 1, line.len - 1);
        send_add(letter->webhook, d, &(struct send_source){json, at, line.len - 1}, &payload);
    } else
        free(d);
    plat_unlock(&j->file_lock);
    payload_free(payload);
    buf_free(&target);
    buf_free(&line);
    return at >= 0 ? 0 : -1;
}

/* Replays one file of dead letters; those that stay go to rp->stay. */
static void
keep_replay_file(struct keeper *k, struct keep_replay *rp, const char *name)
{
    struct line_reader r = {.file = journal_open_file(k->journal, name, true, false)};
    struct slice line;
    int got = 0;

    rp->unread = rp->unread || (r.file < 0 && errno != ENOENT);
    while (r.file >= 0 && (got = line_read(&r, &line)) > 0) {
        struct letter letter = {0};
        bool sent = false;
        if (line.len == 0)
            continue;
        keep_sync(k); /* new alerts do not wait for the last letter */
        if (!rp->failed && keep_read_letter(k, line, &letter) == 0 && letter.webhook) {
            sent = keep_replay_letter(k, rp, &letter) == 0;
            rp->failed = !sent;
        }
        buf_free(&letter.json);
        rp->again += sent;
        rp->stayed += !sent;
        if (sent)
            continue;
        rp->unread = rp->unread || plat_write(rp->stay, line.data, line.len) != 0 ||
            plat_write(rp->stay, "\n", 1) != 0;
    }
    rp->unread = rp->unread || got < 0;
    plat_file_close(r.file);
    buf_free(&r.in);
}

/*
 * Sends the dead letters again: each is journaled anew with its webhook-id, then
 * the file is replaced by one with those that stay. A kill in between costs a
 * second call at most. Journal thread, or main without any.
 */
static void
keep_replay(struct keeper *k, struct keep_replay *rp)
{
    struct journal *j = k->journal;
    bool done;

    *rp = (struct keep_replay){.stay = journal_open_file(j, "dead-letters.new", false, true)};
    rp->unread = rp->stay < 0;
    keep_list_waiting(k, rp);
    if (!rp->unread) {
        keep_replay_file(k, rp, "dead-letters.1.ndjson");
        keep_replay_file(k, rp, "dead-letters.ndjson");
    }
    keep_check_sync(k, plat_file_sync(j->file[j->now]) != 0);
    done = !rp->unread && !j->unsafe && plat_file_sync(rp->stay) == 0;
    plat_file_close(rp->stay);
    if (done && rp->stayed > 0)
        done = journal_replace_file(j, "dead-letters.new", "dead-letters.ndjson") == 0 &&
            plat_folder_sync(j->folder) == 0;
    else if (done)
        journal_remove_file(j, "dead-letters.ndjson");
    if (done)
        journal_remove_file(j, "dead-letters.1.ndjson");
    journal_remove_file(j, "dead-letters.new");
    rp->unread = !done;
    if (!done || rp->failed)
        log_line(LOG_ERROR, "dead letters: not all could be sent again, the others stay");
    log_line(LOG_INFO, "dead letters: %llu sent again, %llu stay", (unsigned long long)rp->again,
        (unsigned long long)rp->stayed);
    free(rp->waiting);
    rp->waiting = NULL;
}

/* Notices when somebody has removed the directory or what stands in it. */
static void
keep_look(struct keeper *k)
{
    struct journal *j = k->journal;

    if (journal_is_there(j, j->file[j->now], "journal") &&
        journal_is_there(j, j->lock_file, "lock"))
        return;
    plat_lock(&j->file_lock);
    errno = ENOENT;
    journal_fail_locked(j, "the journal or the lock is gone");
    j->unsafe = true;
    plat_unlock(&j->file_lock);
}

/* Does what --replay asks a running service for. */
static void
keep_heed_request(struct keeper *k)
{
    char *path = journal_path(k->journal, "replay.request");
    bool asked = plat_path_is_file(path);
    struct keep_replay rp;

    if (asked && !k->asked) {
        keep_replay(k, &rp);
        plat_remove(path);
        asked = plat_path_is_file(path);
        if (asked)
            log_line(LOG_ERROR, "state directory: cannot remove %s: %s", path, plat_error());
    }
    k->asked = asked; /* one that cannot be removed is heeded once */
    free(path);
}

/* Warns when most of the room for waiting alerts is used. */
static void
keep_tell_room(struct keeper *k)
{
    struct journal *j = k->journal;
    int64_t percent;

    plat_lock(&j->lock);
    percent = j->live_bytes * 100 / j->live_max;
    if (percent >= CROWDED_PERCENT && !j->crowded)
        log_line(LOG_WARN, "state directory: %lld %% of its room is used (%zu alerts wait)",
            (long long)percent, j->live);
    if (percent >= CROWDED_PERCENT || percent < CROWDED_PERCENT - 10)
        j->crowded = percent >= CROWDED_PERCENT;
    plat_unlock(&j->lock);
}

/*
 * Waits for work, KEEP_TICK_MS at most; outcomes alone wait JOURNAL_GATHER_MS for
 * others, and on a disk that fails nothing but alerts is urgent. False: stop.
 */
static bool
keep_wait(struct keeper *k)
{
    struct journal *j = k->journal;
    bool stopping, work, fails = journal_has_failed(j);

    plat_lock(&j->lock);
    work = j->outcomes.len > 0 || j->letters.len > 0 || j->rewrite;
    fails = fails || j->letters_failed || j->rewrite_failed;
    if (!j->stopping && !j->unsynced && (!work || fails))
        plat_cond_wait(&j->work, &j->lock, KEEP_TICK_MS);
    if (!j->stopping && !j->unsynced)
        plat_cond_wait(&j->hurry, &j->lock, JOURNAL_GATHER_MS);
    stopping = j->stopping;
    plat_unlock(&j->lock);
    if (!stopping && plat_now_ms() - k->synced_ms < JOURNAL_SYNC_MS) /* in a burst */
        plat_sleep_ms(JOURNAL_SYNC_MS);
    return !stopping;
}

/*
 * Does what the journal needs until keep_stop, then once more. Letters go before
 * outcomes, some of which they become; a disk that failed is tried before the
 * journal is rewritten on it. The last time that is done only if what was written
 * may not be on the disk.
 */
static void
keep_thread(void *arg)
{
    struct keeper *k = arg;
    struct journal *j = k->journal;
    bool more;

    do {
        more = keep_wait(k);
        keep_sync(k); /* first: alerts matter most */
        keep_bury_gone(k);
        keep_letters(k);
        keep_write(k);
        if (!more || plat_now_ms() - k->looked_ms >= KEEP_TICK_MS) {
            keep_look(k);
            k->looked_ms = plat_now_ms();
            if (more)
                keep_heed_request(k);
        }
        if (!more)
            k->heal_ms = 0; /* the last chance */
        keep_heal(k);
        if (more) {
            keep_rewrite_if_due(k);
            keep_tell_room(k);
        }
    } while (more);
    plat_lock(&j->lock);
    j->unsynced = true; /* the outcomes, too */
    plat_unlock(&j->lock);
    keep_sync(k);
    plat_lock(&j->lock);
    j->ended = true;
    plat_cond_wake(&j->work);
    plat_unlock(&j->lock);
}

/* Starts the journal thread, if there is a journal. -1 with e. */
static int
keep_start(struct keeper *k, struct err *e)
{
    if (!k->journal->folder)
        return 0;
    k->started = plat_thread_start(&k->thread, keep_thread, k) == 0;
    if (!k->started)
        err_set(e, "cannot start the journal thread");
    return k->started ? 0 : -1;
}

/*
 * Has everything written and synced, until until_ms. False: the disk hangs,
 * and the thread with it.
 */
static bool
keep_stop(struct keeper *k, int64_t until_ms)
{
    struct journal *j = k->journal;
    int64_t left;
    bool ended;

    if (!k->started)
        return true;
    plat_lock(&j->lock);
    j->stopping = true;
    plat_cond_wake(&j->work);
    plat_cond_wake(&j->hurry);
    while (!j->ended && (left = until_ms - plat_now_ms()) > 0)
        plat_cond_wait(&j->work, &j->lock, left);
    ended = j->ended;
    plat_unlock(&j->lock);
    if (ended)
        plat_thread_join(&k->thread);
    else
        plat_thread_leave(&k->thread);
    return ended;
}

/* Frees what loading has found. */
static void
keep_done(struct keeper *k)
{
    for (struct known_webhook *known = k->known; known; known = known->next)
        if (known->now == &known->gone)
            send_done(&known->gone);
    arena_done(&k->arena);
}

/* ==== 13. Listener ==========================================================
 *
 * Two threads take turns: one reads the socket into the inbox, and whoever has
 * read something dispatches it while the other one reads on. So nothing slow
 * makes the kernel drop datagrams, and a single datagram is dispatched by the
 * thread that is awake already. To dispatch is to sort the datagrams in their
 * order and to hand each accepted alert to every webhook of its kind; one
 * thread at a time does that.
 *
 * An alert is accepted when it stands in the journal; many that come at once are
 * journaled with one write.
 *
 * Threads: two listeners and, if allowedSources holds host names, one that
 * looks them up.
 */

/* Datagrams that were received together share a block of memory: malloc for each is too slow. */
struct inbox_block {
    size_t bytes; /* that it counts in the inbox, until it is freed */
    size_t items; /* that are not yet freed; who dispatches */
    max_align_t data[];
};

struct inbox_item {
    struct inbox_item *next;
    struct inbox_block *block;
    uint8_t from[16]; /* as plat_addr_bytes */
    size_t len;
    char data[];
};

/* Alerts that are accepted with one write to the journal. */
struct group {
    struct group_entry {
        enum alert_kind kind;
        struct delivery *first; /* one for each webhook of its kind, in their order */
        size_t targets;         /* how many */
        size_t at, len;         /* its line in lines, without LF */
        size_t json_len;        /* of the alert, at the end of that line */
    } entry[GROUP_MAX_ALERTS];
    size_t count;
    struct buf lines;
    struct buf told; /* what the log says of them, each with its NUL */
    int64_t bytes;   /* what they will take in the journal once it is rewritten */
    struct id_pool ids;
    bool dropping; /* others were dropped for the last group */
};

/* To whom something was told, so that it is told at most once in TELL_MS. */
struct teller {
    struct {
        uint8_t address[16];
        int64_t told_ms;
    } told[SENDERS_TOLD_MAX];
    int count;
};

struct listener {
    const struct config *config; /* set before start, as all up to journal */
    struct counters *counters;
    struct plat_thread thread[LISTENERS], lookup_thread;
    bool has_names;          /* allowedSources counts, and holds names */
    struct journal *journal; /* set before ready, as all up to receive */
    struct windows *windows;
    struct webhook *webhook; /* of all kinds, in the configuration's order */
    size_t webhooks;
    struct plat_mutex receive; /* held by the thread that reads the socket */
    intptr_t sock;             /* guarded by receive; -1: closed */
    struct plat_batch *batch;  /* guarded by receive */
    bool failed;               /* guarded by receive: told that it cannot be read */
    uint32_t drops;            /* guarded by receive: by the system, told already */
    uint64_t overflowed;       /* guarded by receive: found no room in the inbox, not told yet */
    int64_t drops_ms;          /* guarded by receive: when both were told, if there were any */
    int64_t empty_by_ms;       /* guarded by lock: when reading it ends, if stopping */
    struct plat_mutex lock;
    struct plat_cond wake;
    atomic_size_t bytes;                  /* of all that is not yet dispatched */
    struct inbox_item *first, **last;     /* guarded by lock, as all up to source */
    struct inbox_item *held, **held_last; /* until names have been looked up */
    bool ready;                           /* guarded by lock: the journal is loaded */
    bool dispatching;                     /* guarded by lock: a thread is at it */
    bool stopping, closed;                /* guarded by lock; closed: no more will come */
    bool looked_up;                       /* guarded by lock: names have been, once */
    bool lookup_ended;                    /* guarded by lock */
    struct source *source;                /* addresses guarded by lock */
    struct group group;                   /* who dispatches, as the rest */
    struct teller unknown, refused;
    int64_t minute_ms; /* when the minute of rateLimit began */
    int64_t minute_count, minute_dropped;
};

/*
 * Whether something may be told about a sender now: not within TELL_MS of the
 * last time, and not while all places are taken by others for whom that is so.
 */
static bool
listen_may_tell(struct teller *t, const uint8_t address[16], int64_t now_ms)
{
    int place = t->count;

    for (int i = 0; i < t->count; i++) {
        bool over = now_ms - t->told[i].told_ms >= TELL_MS;
        if (!over && memcmp(t->told[i].address, address, 16) == 0)
            return false;
        if (over)
            place = i;
    }
    if (place == SENDERS_TOLD_MAX)
        return false;
    t->count += place == t->count;
    memcpy(t->told[place].address, address, 16);
    t->told[place].told_ms = now_ms;
    return true;
}

/* Whether the first bits of two addresses are the same. */
static bool
listen_same_bits(const uint8_t *a, const uint8_t *b, int bits)
{
    int bytes = bits / 8, rest = bits % 8;

    return memcmp(a, b, (size_t)bytes) == 0 &&
        (rest == 0 || ((a[bytes] ^ b[bytes]) >> (8 - rest)) == 0);
}

/* Whether a datagram may come from there. */
static bool
listen_is_allowed(struct listener *l, const uint8_t address[16])
{
    bool allowed = !l->config->source_validation || l->config->sources == 0;

    if (allowed)
        return true;
    plat_lock(&l->lock);
    for (size_t i = 0; i < l->config->sources && !allowed; i++)
        for (size_t k = 0; k < l->source[i].addresses && !allowed; k++)
            allowed = listen_same_bits(address, l->source[i].address[k], l->source[i].bits);
    plat_unlock(&l->lock);
    return allowed;
}

/*
 * Counts a datagram against rateLimit. False: it is one too many in this minute,
 * which begins with the first datagram after the one before. Who dispatches.
 */
static bool
listen_is_within_rate(struct listener *l, int64_t now_ms)
{
    const struct config *c = l->config;

    if (!c->udp_rate_enable)
        return true;
    if (now_ms - l->minute_ms >= 60000) {
        l->minute_ms = now_ms;
        l->minute_count = 0;
    }
    if (l->minute_count++ < c->udp_rate)
        return true;
    if (l->minute_dropped++ == 0)
        log_line(LOG_ERROR,
            "udpServerConfig.rateLimit: over %lld datagrams in a minute, the "
            "others are dropped",
            (long long)c->udp_rate);
    return false;
}

/* Tells how many datagrams a minute's rateLimit has dropped, once that minute is over. */
static void
listen_tell_rate(struct listener *l, int64_t now_ms)
{
    if (l->minute_dropped == 0 || now_ms - l->minute_ms < 60000)
        return;
    log_line(LOG_ERROR, "udpServerConfig.rateLimit: %lld datagrams dropped in the last minute",
        (long long)l->minute_dropped);
    l->minute_dropped = 0;
}

/*
 * Whether an alert is a duplicate or comes too soon after another of its task;
 * told in the log. One that is neither opens both windows; one that is held back
 * opens none, as it is not sent.
 */
static bool
listen_is_held_back(struct listener *l, const struct alert *alert, int64_t now_ms)
{
    struct slice task = alert->field[FIELD_TASK_ID], run = alert->field[FIELD_EXECUTION_ID];
    struct window_table *rate = &l->windows->table[alert->kind][WINDOW_RATE];
    struct window_table *seen = &l->windows->table[alert->kind][WINDOW_SEEN];
    struct window_key none = {.none = true}; /* and no hash, which takes a microsecond */
    struct window_key task_key = rate->length_ms ? window_key(task) : none;
    struct window_key run_key = seen->length_ms ? window_key(run) : none;
    const char *what = KINDS[alert->kind].short_text;
    struct window_entry *open;
    uint32_t held; /* with this one, since the task's last alert; 0: it may go */
    bool twin;

    plat_lock(&l->windows->lock);
    twin = window_find(seen, &run_key, now_ms) != NULL;
    open = twin ? NULL : window_find(rate, &task_key, now_ms);
    held = open ? ++open->held : 0;
    if (!twin && !open) {
        window_open(seen, &run_key, now_ms);
        window_open(rate, &task_key, now_ms);
    }
    plat_unlock(&l->windows->lock);
    if (twin) {
        atomic_fetch_add(&l->counters->duplicates, 1);
        log_line(LOG_INFO, "duplicate ignored: %s, task \"%s\" (%s), execution %s", what,
            log_text(alert->field[FIELD_TASK_NAME]).text, log_text(task).text, log_text(run).text);
    } else if (held > 0) {
        atomic_fetch_add(&l->counters->held_back, 1);
        log_line(LOG_INFO,
            "held back by the rate limit: %s, task \"%s\" (%s), %u since the last alert", what,
            log_text(alert->field[FIELD_TASK_NAME]).text, log_text(task).text, held);
    }
    return twin || held > 0;
}

/*
 * Sees that the journal has room for the group: drops the oldest waiting alerts
 * for it, waits for rewriting. False: there is none, the group stays in memory.
 */
static bool
listen_make_room(struct listener *l)
{
    int64_t until_ms = plat_now_ms() + STOP_LOG_MS, over;

    if (l->group.bytes > l->journal->live_max)
        return false; /* it would drop all and still not fit */
    while ((over = journal_over(l->journal, l->group.bytes)) > 0) {
        log_await_room(until_ms); /* each is logged whole, and a slow log must not hold up */
        if (!send_drop_oldest(l->webhook, l->webhooks, l->config->max_state_mb))
            break;
    }
    return over <= 0 && journal_await_room(l->journal, l->group.lines.len);
}

/*
 * Hands an accepted alert to the webhooks of its kind; at: of its line in the
 * journal, -1: none. The file lock is held, so that the line stays there. The
 * journal counts it first: a sender may be done with it before this returns.
 */
static void
listen_hand_on(struct listener *l, const struct group_entry *entry, int64_t at)
{
    struct payload *payload = NULL;
    struct delivery *d = entry->first;
    struct slice json = {NULL, entry->json_len};

    if (!d)
        return; /* no webhook is for it */
    json.data = l->group.lines.data + entry->at + entry->len - json.len;
    if (l->journal->folder)
        journal_count(l->journal, (int)entry->targets, at < 0 ? 0 : entry->len);
    for (size_t i = 0; d && i < l->webhooks; i++)
        if (l->webhook[i].peer.webhook->kind == entry->kind) {
            struct delivery *next = d->newer;
            d->newer = NULL;
            send_add(&l->webhook[i], d, &(struct send_source){json, at, entry->len}, &payload);
            d = next;
        }
    payload_free(payload);
}

/*
 * Accepts the group: journals it, then logs it and hands it to the webhooks. The
 * file lock keeps the lines where they are until the webhooks know of them.
 */
static void
listen_commit(struct listener *l)
{
    struct group *g = &l->group;
    struct journal *j = l->journal;
    unsigned long long lost = atomic_load(&l->counters->lost);
    const char *told = g->told.data;
    int64_t at = -1;
    bool room;

    if (g->count == 0)
        return;
    if (g->dropping) /* each is logged whole, and the log is bounded; no lock is held here */
        log_await_room(plat_now_ms() + STOP_LOG_MS);
    room = j->folder && g->lines.len > 0 && listen_make_room(l);
    plat_lock(&j->file_lock);
    if (room && !j->failed)
        at = journal_write_locked(j, (struct slice){g->lines.data, g->lines.len}, true);
    for (size_t i = 0; i < g->count; i++) {
        const struct group_entry *entry = &g->entry[i];
        log_line_later(LOG_INFO, "%s", told);
        told += strlen(told) + 1;
        listen_hand_on(l, entry, at < 0 ? -1 : at + (int64_t)entry->at);
    }
    plat_unlock(&j->file_lock);
    if (at >= 0)
        journal_want_sync(j);
    log_flush(); /* the senders come first: waking other threads delays them */
    g->dropping = atomic_load(&l->counters->lost) > lost;
    g->count = 0;
    g->lines.len = g->told.len = 0;
    g->bytes = 0;
}

/* Adds what the log says of an accepted alert. */
static void
listen_add_told(struct buf *b, const struct alert *alert, uint64_t number, size_t webhooks)
{
    const struct slice *field = alert->field;

    buf_format(b,
        "alert %llu accepted: %s, task \"%s\" (%s), app \"%s\", execution %s, for %zu webhook%s",
        (unsigned long long)number, KINDS[alert->kind].short_text,
        log_text(field[FIELD_TASK_NAME]).text, log_text(field[FIELD_TASK_ID]).text,
        log_text(field[FIELD_APP_NAME]).text, log_text(field[FIELD_EXECUTION_ID]).text, webhooks,
        webhooks == 1 ? "" : "s");
    buf_add_char(b, '\0');
}

/*
 * Adds an alert to the group that is accepted next, with a delivery for each
 * webhook of its kind; commits the group when it is full. Who dispatches.
 */
static void
listen_accept(struct listener *l, const struct alert *alert, int64_t now_ms)
{
    struct group *g = &l->group;
    struct group_entry *entry = &g->entry[g->count++];
    uint64_t number = atomic_fetch_add(&l->counters->numbers, 1) + 1;
    char json_room[2048], target_room[512];
    struct buf json = buf_in(json_room, sizeof json_room);
    struct buf targets = buf_in(target_room, sizeof target_room);
    struct delivery **last = &entry->first;

    atomic_fetch_add(&l->counters->accepted, 1);
    *entry = (struct group_entry){.kind = alert->kind, .at = g->lines.len};
    for (size_t i = 0; i < l->webhooks; i++) {
        const struct webhook_config *w = l->webhook[i].peer.webhook;
        if (w->kind != alert->kind)
            continue;
        *last = send_new(number, now_ms);
        send_make_id(&g->ids, (*last)->id);
        buf_format(&targets, "%s%s:%s", entry->targets++ ? "," : "", w->key, (*last)->id);
        last = &(*last)->newer;
    }
    if (entry->targets > 0) {
        alert_add_json(alert, &json);
        journal_add_alert(&g->lines, JOURNAL_ACCEPTED, plat_wall_ms(), &targets,
            (struct slice){json.data, json.len});
        entry->len = g->lines.len - entry->at - 1;
        entry->json_len = json.len;
        g->bytes += (int64_t)(entry->targets * entry->len);
    }
    listen_add_told(&g->told, alert, number, entry->targets);
    buf_free(&json);
    buf_free(&targets);
    if (g->count == GROUP_MAX_ALERTS || g->lines.len > GROUP_MAX_BYTES ||
        g->bytes > l->journal->live_max / 4)
        listen_commit(l);
}

/* The sender of a datagram, for a log line. */
static struct log_text
listen_from(const struct inbox_item *item)
{
    struct log_text out;

    plat_bytes_text(item->from, out.text);
    return out;
}

/* Logs a malformed datagram, decoded and cleaned, so that a person can read what it meant. */
static void
listen_tell_malformed(const struct inbox_item *item, const char *why)
{
    struct buf text = {0}, clean = {0};

    buf_add(&text, "", 0);
    alert_decode((struct slice){item->data, item->len}, &text);
    log_add_clean(
        &clean, (struct slice){text.data, text.len < MALFORMED_MAX ? text.len : MALFORMED_MAX});
    log_line(LOG_WARN, "malformed datagram from %s: %s: \"%s%s\"", listen_from(item).text, why,
        clean.data ? clean.data : "", text.len > MALFORMED_MAX ? "..." : "");
    buf_free(&text);
    buf_free(&clean);
}

/*
 * Sorts one datagram: what is not wanted is counted and told, an alert goes to
 * the group. The cheap questions come first, for a flood from where nobody
 * should send; only what an allowed sender sends counts against rateLimit.
 */
static void
listen_handle(struct listener *l, const struct inbox_item *item, int64_t now_ms)
{
    struct slice datagram = {item->data, item->len};
    struct alert *alert;
    struct err e;

    if (!listen_is_allowed(l, item->from)) {
        atomic_fetch_add(&l->counters->refused, 1);
        if (listen_may_tell(&l->refused, item->from, now_ms))
            log_line(LOG_WARN, "datagram from %s ignored: not in allowedSources",
                listen_from(item).text);
        return;
    }
    if (!listen_is_within_rate(l, now_ms)) {
        atomic_fetch_add(&l->counters->refused, 1);
        return;
    }
    if (item->len > (size_t)l->config->max_message_size) {
        atomic_fetch_add(&l->counters->refused, 1);
        log_line(LOG_ERROR,
            "datagram of %zu bytes from %s dropped: larger than maxMessageSize "
            "(%lld)",
            item->len, listen_from(item).text, (long long)l->config->max_message_size);
        return;
    }
    switch (alert_parse(datagram, &alert, &e)) {
    case ALERT_OURS:
        if (!listen_is_held_back(l, alert, now_ms))
            listen_accept(l, alert, now_ms);
        break;
    case ALERT_IGNORED:
        atomic_fetch_add(&l->counters->ignored, 1);
        log_line(LOG_VERBOSE, "ignored: %s", e.text);
        break;
    case ALERT_UNKNOWN:
        atomic_fetch_add(&l->counters->unknown, 1);
        if (listen_may_tell(&l->unknown, item->from, now_ms))
            log_line(LOG_WARN, "unknown message id \"%s\" from %s", e.text, listen_from(item).text);
        break;
    case ALERT_MALFORMED:
        atomic_fetch_add(&l->counters->malformed, 1);
        listen_tell_malformed(item, e.text);
        break;
    }
    alert_free(alert);
}

/* Bytes that an item with len bytes of data takes in a block. */
static size_t
listen_item_size(size_t len)
{
    size_t align = _Alignof(max_align_t);

    return (sizeof(struct inbox_item) + len + align - 1) / align * align;
}

/* Frees an item, and its block with the last of it. Who dispatches. */
static void
listen_free_item(struct listener *l, struct inbox_item *item)
{
    struct inbox_block *block = item->block;

    if (--block->items > 0)
        return;
    atomic_fetch_sub(&l->bytes, block->bytes);
    free(block);
}

/*
 * Puts the batch's datagrams into the inbox; what finds no room is counted.
 * Who receives: nobody else adds, so the room cannot become less meanwhile.
 */
static void
listen_store(struct listener *l, const struct plat_batch *b, size_t n)
{
    struct inbox_item *first = NULL, **last = &first;
    struct inbox_block *block;
    size_t bytes = 0, fit = 0, room = INBOX_MAX_BYTES - atomic_load(&l->bytes);

    while (fit < n && bytes + listen_item_size(b->len[fit]) <= room)
        bytes += listen_item_size(b->len[fit++]);
    l->overflowed += n - fit;
    if (fit == 0)
        return;
    block = x_check(malloc(sizeof *block + bytes));
    block->bytes = bytes;
    block->items = fit;
    for (size_t i = 0, at = 0; i < fit; at += listen_item_size(b->len[i++])) {
        struct inbox_item *item = (void *)((char *)block->data + at);
        *item = (struct inbox_item){.block = block, .len = b->len[i]};
        plat_addr_bytes(&b->from[i], item->from);
        memcpy(item->data, b->data[i], b->len[i]);
        *last = item;
        last = &item->next;
    }
    atomic_fetch_add(&l->bytes, bytes);
    plat_lock(&l->lock);
    *l->last = first;
    l->last = last;
    plat_unlock(&l->lock);
}

/*
 * Tells, at most once a second, what the system and the inbox had no room for;
 * at_end: now. Who receives.
 */
static void
listen_tell_drops(struct listener *l, bool at_end)
{
    int64_t now_ms = plat_now_ms();
    uint32_t drops;

    if (!at_end && now_ms - l->drops_ms < 1000)
        return;
    l->drops_ms = now_ms;
    drops = plat_udp_drops(l->sock);
    if (drops != l->drops) {
        atomic_fetch_add(&l->counters->dropped, drops - l->drops);
        log_line(LOG_ERROR, "%u datagrams dropped by the system: its receive buffer was full",
            drops - l->drops);
    }
    l->drops = drops;
    if (l->overflowed > 0) {
        atomic_fetch_add(&l->counters->dropped, l->overflowed);
        log_line(LOG_ERROR, "%llu datagrams dropped: the inbox was full",
            (unsigned long long)l->overflowed);
    }
    l->overflowed = 0;
}

/*
 * Waits up to a second for datagrams and stores them; when stopping, reads the
 * socket empty and closes it. False: it is closed. Only one thread at a time
 * gets past the lock: the one that receives.
 */
static bool
listen_receive(struct listener *l)
{
    bool stopping, stored = false;

    plat_lock(&l->receive);
    for (int waits = 0; l->sock >= 0 && !stored && waits * SLICE_MS < 1000; waits++) {
        int n;
        plat_lock(&l->lock);
        stopping = l->stopping;
        plat_unlock(&l->lock);
        n = plat_udp_receive(l->sock, l->batch, !stopping);
        if (n > 0) {
            atomic_fetch_add(&l->counters->received, (unsigned)n);
            listen_store(l, l->batch, (size_t)n);
            stored = true;
        }
        if (n < 0 && !l->failed)
            log_line(LOG_ERROR, "cannot receive: %s", plat_error());
        l->failed = n < 0;
        listen_tell_drops(l, stopping);
        plat_lock(&l->lock);
        stored = stored || (l->ready && l->first && !l->dispatching);
        if (stopping && (n <= 0 || plat_now_ms() > l->empty_by_ms)) {
            plat_close(l->sock);
            l->sock = -1;
            l->closed = true;
        } else if (l->failed)
            plat_cond_wait(&l->wake, &l->lock, SLICE_MS);
        plat_unlock(&l->lock);
    }
    stored = l->sock >= 0;
    plat_unlock(&l->receive);
    return stored;
}

/* Takes all that can be dispatched now out of the inbox, or NULL. */
static struct inbox_item *
listen_take_locked(struct listener *l)
{
    struct inbox_item *items = NULL;

    if (l->held && (l->looked_up || l->closed)) {
        items = l->held;
        l->held = NULL;
        l->held_last = &l->held;
    } else if (l->first) {
        items = l->first;
        l->first = NULL;
        l->last = &l->first;
    }
    return items;
}

/*
 * Holds a datagram whose sender may yet turn out to be allowed, until every
 * name in allowedSources has been looked up once. Takes item if true.
 */
static bool
listen_hold(struct listener *l, struct inbox_item *item)
{
    bool hold;

    if (!l->has_names || listen_is_allowed(l, item->from))
        return false;
    plat_lock(&l->lock);
    hold = !l->looked_up && !l->closed;
    if (hold) {
        *l->held_last = item;
        l->held_last = &item->next;
        item->next = NULL;
    }
    plat_unlock(&l->lock);
    return hold;
}

/*
 * Sorts datagrams in their order, accepts those that are alerts, and frees all.
 * When the time for it is over, while stopping, the others are only counted.
 */
static void
listen_dispatch_items(struct listener *l, struct inbox_item *items)
{
    while (items) {
        struct inbox_item *next = items->next;
        int64_t now_ms = plat_now_ms();
        listen_tell_rate(l, now_ms);
        if (http_left_ms(INT64_MAX) <= STOP_CALLS_MS - STOP_SORT_MS) {
            atomic_fetch_add(&l->counters->unsorted, 1);
            listen_free_item(l, items);
        } else if (!listen_hold(l, items)) {
            listen_handle(l, items, now_ms);
            listen_free_item(l, items);
        }
        items = next;
    }
    listen_commit(l);
}

/*
 * Empties the inbox, unless another thread is at it, which then sees to all that
 * is there. The listeners come here at least once a second, so what rateLimit
 * has dropped is told in time also if nothing more arrives.
 */
static void
listen_dispatch(struct listener *l)
{
    struct inbox_item *items;

    plat_lock(&l->lock);
    if (l->ready && !l->dispatching) {
        l->dispatching = true;
        listen_tell_rate(l, plat_now_ms());
        while ((items = listen_take_locked(l)) != NULL) {
            plat_unlock(&l->lock);
            listen_dispatch_items(l, items);
            plat_lock(&l->lock);
        }
        l->dispatching = false;
        if (l->stopping)
            plat_cond_wake(&l->wake); /* for listen_stop */
    }
    plat_unlock(&l->lock);
}

/*
 * Receives, then dispatches what it has received while the other thread receives.
 * The last to see the socket closed dispatches once more, so nothing stays behind.
 */
static void
listen_thread(void *arg)
{
    struct listener *l = arg;
    bool open;

    do {
        open = listen_receive(l);
        listen_dispatch(l);
    } while (open);
}

/*
 * Looks one name of allowedSources up, without the lock meanwhile; an answer
 * replaces the old addresses, a failure does not.
 */
static void
listen_look_up_locked(struct listener *l, struct source *source)
{
    struct plat_addr addr[SOURCE_ADDRESSES_MAX];
    const char *why = "";
    int n;

    plat_unlock(&l->lock);
    n = plat_resolve(source->name, 0, false, addr, SOURCE_ADDRESSES_MAX, &why);
    if (n <= 0)
        log_line(LOG_WARN, "allowedSources: %s not found: %s", source->name, why);
    plat_lock(&l->lock);
    for (int i = 0; i < n; i++)
        plat_addr_bytes(&addr[i], source->address[i]);
    if (n > 0)
        source->addresses = (size_t)n;
}

/* Looks up the names in allowedSources at once and again every LOOKUP_MS, until told to stop. */
static void
listen_lookup_thread(void *arg)
{
    struct listener *l = arg;
    int64_t until_ms, left;

    plat_lock(&l->lock);
    while (!l->stopping) {
        bool all = true;
        for (size_t i = 0; i < l->config->sources && !l->stopping; i++) {
            if (l->source[i].name)
                listen_look_up_locked(l, &l->source[i]);
            all = all && l->source[i].addresses > 0;
        }
        l->looked_up = true;
        plat_unlock(&l->lock);
        listen_dispatch(l); /* what was held until now */
        plat_lock(&l->lock);
        for (until_ms = plat_now_ms() + (all ? LOOKUP_MS : LOOKUP_AGAIN_MS);
             !l->stopping && (left = until_ms - plat_now_ms()) > 0;)
            plat_cond_wait(&l->wake, &l->lock, left);
    }
    l->lookup_ended = true;
    plat_cond_wake(&l->wake);
    plat_unlock(&l->lock);
}

/* Binds the socket. -1 with e. Main, first of all, so that nothing that comes is missed. */
static int
listen_open(struct listener *l, const struct config *config, struct err *e)
{
    struct plat_addr all[SOURCE_ADDRESSES_MAX], *addr = all, same;
    const char *why = "";
    char text[300], found[64];
    int buffer_len = 0, n;
    bool named;

    *l = (struct listener){.config = config, .sock = -1};
    cfg_listen_text(config, text, sizeof text);
    n = plat_resolve(
        config->udp_host, (int)config->udp_port, false, all, SOURCE_ADDRESSES_MAX, &why);
    if (n < 1) {
        err_set(e, "cannot listen on %s (UDP): host not found: %s", text, why);
        return -1;
    }
    for (int i = n; i-- > 0;) /* IPv4 first, as Butler: Windows gives its own name's IPv6 first */
        addr = plat_addr_is_ipv4(&all[i]) ? &all[i] : addr;
    plat_addr_text(addr, true, found);
    named = cfg_read_host(config->udp_host, &same) != 1 &&
        strcasecmp(config->udp_host, "localhost") != 0;
    l->sock = plat_udp_open(addr, &buffer_len);
    if (l->sock < 0) {
        err_set(e,
            "cannot listen on %s (UDP): %s; if another program listens there, perhaps "
            "Butler itself, set butlerWebhook.port and the appender to another port",
            text, plat_error());
        return -1;
    }
    log_line(LOG_INFO, "listening on %s (UDP)%s%s, receive buffer %d bytes", text,
        named ? ", address " : "", named ? found : "", buffer_len);
    if (cfg_read_host(config->udp_host, &same) == 0 && cfg_is_open(config, addr))
        log_line(LOG_WARN, "listening on %s, beyond this machine, without a check of the senders",
            config->udp_host);
    if (buffer_len < RECV_BUFFER_GOOD)
        log_line(LOG_WARN,
            "the system allows only a small receive buffer: of a burst of over %d "
            "datagrams some may be lost; on Linux, sysctl -w net.core.rmem_max=%d",
            buffer_len / RECV_COST, RECV_BUFFER);
    return 0;
}

/*
 * Starts the threads, which only receive until listen_release. -1 with e: the
 * program must end, as one may run already.
 */
static int
listen_start(struct listener *l, struct counters *counters, struct err *e)
{
    const struct config *c = l->config;
    bool failed = false;

    l->counters = counters;
    l->last = &l->first;
    l->held_last = &l->held;
    l->source = c->source;
    l->batch = x_check(plat_batch_new());
    plat_mutex_init(&l->receive);
    plat_mutex_init(&l->lock);
    plat_cond_init(&l->wake);
    for (size_t i = 0; i < c->sources; i++)
        l->has_names = l->has_names || (c->source_validation && c->source[i].name);
    l->lookup_ended = !l->has_names;
    for (int i = 0; i < LISTENERS; i++)
        failed = failed || plat_thread_start(&l->thread[i], listen_thread, l) != 0;
    if (failed ||
        (l->has_names && plat_thread_start(&l->lookup_thread, listen_lookup_thread, l) != 0)) {
        err_set(e, "cannot start the listener's threads");
        return -1;
    }
    return 0;
}

/* Lets what was received be dispatched: the journal is loaded. Main. */
static void
listen_release(struct listener *l, struct webhook *webhook, size_t webhooks,
    struct windows *windows, struct journal *journal)
{
    l->webhook = webhook;
    l->webhooks = webhooks;
    l->windows = windows;
    l->journal = journal;
    plat_lock(&l->lock);
    l->ready = true; /* the listeners look each SLICE_MS */
    plat_unlock(&l->lock);
}

/*
 * Reads the socket empty, closes it and sees the inbox through. True: all
 * threads have ended and the memory is freed; false: one is stuck in a look-up.
 */
static bool
listen_stop(struct listener *l)
{
    bool ended;

    plat_lock(&l->lock);
    l->stopping = true;
    l->empty_by_ms = plat_now_ms() + STOP_RECEIVE_MS;
    plat_cond_wake(&l->wake);
    plat_unlock(&l->lock);
    for (int i = 0; i < LISTENERS; i++)
        plat_thread_join(&l->thread[i]);
    plat_lock(&l->lock);
    while (l->dispatching && http_left_ms(INT64_MAX) > STOP_CALLS_MS - STOP_SORT_MS)
        plat_cond_wait(&l->wake, &l->lock, SLICE_MS); /* the look-up thread may be at it */
    if (!l->lookup_ended)
        plat_cond_wait(&l->wake, &l->lock, SLICE_MS);
    ended = l->lookup_ended;
    plat_unlock(&l->lock);
    listen_tell_rate(l, INT64_MAX);
    if (atomic_load(&l->counters->unsorted) > 0)
        log_line(LOG_ERROR, "%llu datagrams lost: stopped before they were looked at",
            atomic_load(&l->counters->unsorted));
    if (!ended) {
        plat_thread_leave(&l->lookup_thread);
        return false;
    }
    if (l->has_names)
        plat_thread_join(&l->lookup_thread);
    buf_free(&l->group.lines);
    buf_free(&l->group.told);
    plat_batch_free(l->batch);
    plat_cond_done(&l->wake);
    plat_mutex_done(&l->lock);
    plat_mutex_done(&l->receive);
    return true;
}

/* ==== 14. Program ===========================================================
 *
 * Start: configuration, log, socket, TLS, threads. Then main only waits for the
 * signal to stop, and undoes it all in reverse.
 */

struct app {
    struct config config;
    struct cfg_reader reader;
    struct tls_store store;
    struct counters counters;
    struct journal journal;
    struct windows windows;
    struct keeper keeper;
    struct listener listener;
    struct webhook *webhook; /* of all kinds */
    size_t webhooks;
};

/*
 * Loads the configuration and prints its problems to stderr if asked or if it
 * cannot be used; then the event log has them, too. 0, or 2.
 */
static int
app_load(struct app *app, const char *file, bool strict, bool print)
{
    struct buf problems = {0};

    cfg_load(&app->reader, file, strict, &app->config);
    cfg_add_problems(&problems, &app->reader);
    if (problems.len > 0 && (print || app->reader.errors > 0))
        fwrite(problems.data, 1, problems.len, stderr);
    if (app->reader.errors > 0)
        plat_report(PLAT_FAILED, problems.data);
    buf_free(&problems);
    return app->reader.errors > 0 ? 2 : 0;
}

/* Frees what app_load and app_init have made. Takes app. */
static void
app_free(struct app *app)
{
    if (app->webhook) {
        for (size_t i = 0; i < app->webhooks; i++)
            send_done(&app->webhook[i]);
        keep_done(&app->keeper);
        windows_done(&app->windows);
        journal_done(&app->journal);
        free(app->webhook);
    }
    cfg_done(&app->config);
    free(app);
}

/*
 * Readies the TLS library: once, before any thread. The AES call is for its
 * detection of AES instructions, which is not safe between threads.
 */
static int
app_init_tls(struct app *app, struct err *e)
{
    static const unsigned char key[16];
    mbedtls_aes_context aes;

    mbedtls_aes_init(&aes);
    mbedtls_aes_setkey_enc(&aes, key, 128);
    mbedtls_aes_free(&aes);
    if (psa_crypto_init() == PSA_SUCCESS && tls_store_init(&app->store) == 0)
        return 0;
    err_set(e, "the TLS library could not be set up");
    return -1;
}

/* Makes the webhooks of the configuration, their journal and windows; nothing is opened yet. */
static void
app_init(struct app *app)
{
    struct config *c = &app->config;

    crc_init();
    journal_init(&app->journal, c);
    windows_init(&app->windows, c);
    app->webhook = x_calloc(
        c->webhooks[ALERT_FAILURE] + c->webhooks[ALERT_ABORTED] + 1, sizeof *app->webhook);
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        for (size_t i = 0; i < c->webhooks[kind]; i++)
            send_init(&app->webhook[app->webhooks++], c, &c->webhook[kind][i], &app->counters,
                &app->journal);
    app->keeper = (struct keeper){.config = c,
        .journal = &app->journal,
        .windows = &app->windows,
        .counters = &app->counters,
        .webhook = app->webhook,
        .webhooks = app->webhooks};
}

/* Lets every webhook make calls, and says which they are. */
static int
app_init_peers(struct app *app, struct err *e)
{
    for (size_t i = 0; i < app->webhooks; i++) {
        struct webhook *w = &app->webhook[i];
        const struct webhook_config *wc = w->peer.webhook;
        if (http_peer_init(&w->peer, &app->config, wc, &app->store, e) != 0)
            return -1;
        log_line(LOG_INFO, "webhook %s: %s %s%s%s", wc->name, METHODS[wc->method], wc->url.shown,
            wc->proxy ? " through " : "", wc->proxy ? wc->proxy->shown : "");
    }
    return 0;
}

/* Opens the state directory. -1 with e, which names the key. */
static int
app_open_state(struct app *app, bool read_only, struct err *e)
{
    if (journal_open(&app->journal, &app->config, read_only, e) == 0)
        return 0;
    err_prefix(e, "butlerWebhook.stateDirectory: ");
    return -1;
}

/* Loads what waited when the program ended, and has it sent. */
static int
app_load_state(struct app *app, struct err *e)
{
    struct journal *j = &app->journal;
    char *letters;

    if (!j->folder) {
        log_line(LOG_WARN,
            "butlerWebhook.stateDirectory is '': alerts are kept in memory only, "
            "and are lost when the program ends");
        return 0;
    }
    if (keep_load(&app->keeper, false, e) != 0)
        return -1;
    letters = journal_path(j, "dead-letters.ndjson");
    log_line(LOG_INFO, "state directory %s: %zu alert%s wait%s, %lld bytes of dead letters",
        j->folder, j->live, j->live == 1 ? "" : "s", j->live == 1 ? "s" : "",
        (long long)plat_path_len(letters));
    free(letters);
    for (size_t i = 0; i < app->webhooks; i++)
        send_tick(&app->webhook[i]);
    return 0;
}

/* Logs what is wrong with the configuration. */
static void
app_log_problems(const struct app *app)
{
    for (const struct problem *p = app->reader.problems; p; p = p->next)
        log_line(p->is_error ? LOG_ERROR : LOG_WARN, "%s:%d:%d: %s", app->reader.file, p->line,
            p->column, p->text);
}

/* Writes to the log file why there is no service, for who looks there. Nothing else was started. */
static void
app_log_refusal(const struct app *app)
{
    struct err ignored; /* the event log has the problems, too */

    log_init(LOG_WARN);
    if (app->config.log_directory && log_start(app->config.log_directory, &ignored) == 0)
        app_log_problems(app);
    log_stop(plat_now_ms() + STOP_LOG_MS);
}

/*
 * Brings everything up; -1 with e. Lock and port come first: a second process
 * must change nothing. The socket is read while the journal is loaded, but the
 * dispatching waits for it, because what it tells about duplicates and rate
 * limits counts for what has arrived meanwhile.
 */
static int
app_start(struct app *app, struct err *e)
{
    const struct config *c = &app->config;

    log_init((enum log_level)c->log_level);
    if (log_start(c->file_logging || !plat_has_console() ? c->log_directory : NULL, e) != 0) {
        err_prefix(e, "Butler.logDirectory: ");
        return -1;
    }
    log_line(LOG_INFO, "butler_webhook " VERSION " starting with %s", app->reader.file);
    app_log_problems(app);
    app_init(app);
    if (app_open_state(app, false, e) != 0 || listen_open(&app->listener, c, e) != 0)
        return -1;
    plat_block_stop(); /* from here on a stop is orderly; until here it just ends */
    if (app_init_tls(app, e) != 0 || listen_start(&app->listener, &app->counters, e) != 0 ||
        app_init_peers(app, e) != 0)
        return -1;
    if (app->webhooks == 0)
        log_line(LOG_WARN, "no webhook is configured: nothing will be called");
    if (app_load_state(app, e) != 0 || keep_start(&app->keeper, e) != 0)
        return -1;
    listen_release(&app->listener, app->webhook, app->webhooks, &app->windows, &app->journal);
    return 0;
}

/* Ends the program when stopping takes too long: a disk that hangs holds up whoever writes. */
static void
app_watchdog_thread(void *arg)
{
    (void)arg;
    plat_sleep_ms(STOP_CALLS_MS + STOP_SYNC_MS + STOP_LOG_MS + SLICE_MS);
    plat_exit_now(0);
}

/*
 * Takes everything down within five seconds, along the path of an alert: what
 * was received is journaled before the senders are told to end, and what they
 * have done is written before the journal ends. Whoever takes longer than its
 * part of the time is left behind, and then the process ends around it, with
 * nothing freed. Takes app.
 */
static void
app_stop(struct app *app)
{
    static struct plat_thread watchdog; /* it may begin when app is gone */
    struct counters *c = &app->counters;
    struct err told;
    size_t waiting = 0;
    bool ended, kept, safe;

    if (plat_thread_start(&watchdog, app_watchdog_thread, NULL) == 0)
        plat_thread_leave(&watchdog);
    atomic_store(&stop_at_ms, plat_now_ms() + STOP_CALLS_MS);
    ended = listen_stop(&app->listener);
    for (size_t i = 0; i < app->webhooks; i++)
        send_stop(&app->webhook[i]);
    for (size_t i = 0; i < app->webhooks; i++)
        ended = send_await_end(&app->webhook[i]) && ended;
    keep_write(&app->keeper); /* in case the journal thread is stuck in a sync */
    kept = keep_stop(&app->keeper, atomic_load(&stop_at_ms) + STOP_SYNC_MS);
    safe = !kept || !app->journal.unsafe; /* one that is stuck may have the lock: do not ask */
    for (size_t i = 0; i < app->webhooks; i++)
        waiting += send_log_lost(&app->webhook[i], safe);
    log_await_room(atomic_load(&stop_at_ms) + STOP_SYNC_MS + STOP_LOG_MS);
    err_set(&told,
        "stopped: %llu received, %llu accepted, %llu delivered, %llu given up, "
        "%llu lost, %zu waiting",
        atomic_load(&c->received), atomic_load(&c->accepted), atomic_load(&c->delivered),
        atomic_load(&c->dead), atomic_load(&c->lost), waiting);
    log_line(LOG_INFO,
        "no alerts: %llu ignored, %llu malformed, %llu unknown, %llu duplicates, "
        "%llu rate limited, %llu refused, %llu dropped",
        atomic_load(&c->ignored), atomic_load(&c->malformed), atomic_load(&c->unknown),
        atomic_load(&c->duplicates), atomic_load(&c->held_back), atomic_load(&c->refused),
        atomic_load(&c->dropped));
    log_line(LOG_INFO, "%s", told.text);
    plat_report(PLAT_STOPPED, told.text);
    if (!log_stop(atomic_load(&stop_at_ms) + STOP_SYNC_MS + STOP_LOG_MS) || !ended || !kept)
        plat_exit_now(0); /* a thread is stuck outside of us: leave it, and all that it may touch */
    tls_store_done(&app->store);
    app_free(app);
    mbedtls_psa_crypto_free();
}

/* Runs until told to stop. The exit code: 0, 1 if it cannot start, 2 for the configuration. */
static int
app_run(const char *file)
{
    struct app *app = x_calloc(1, sizeof *app);
    int result = app_load(app, file, false, false);
    const char *why = NULL;
    struct err e;

    if (result == 0 && !app->config.enabled) {
        err_set(&e, "disabled by %s in %s: nothing to do", cfg_disabled_by(&app->config), file);
        printf("butler_webhook: %s\n", e.text);
        plat_report(PLAT_STOPPED, e.text);
    }
    if (result != 0 && !plat_has_console())
        app_log_refusal(app);
    if (result != 0 || !app->config.enabled) {
        app_free(app);
        return result;
    }
    if (app_start(app, &e) != 0) {
        log_line(LOG_ERROR, "%s", e.text);
        log_stop(plat_now_ms() + STOP_LOG_MS);
        fprintf(stderr, "butler_webhook: %s\n", e.text);
        fflush(stderr);
        plat_report(PLAT_FAILED, e.text);
        plat_exit_now(1);
    }
    err_set(&e, "butler_webhook " VERSION " started with %s", file);
    plat_report(PLAT_RUNNING, e.text);
    while (!(why = plat_wait_stop(1000)))
        for (size_t i = 0; i < app->webhooks; i++)
            send_tick(&app->webhook[i]);
    log_line(LOG_INFO, "stopping: %s received", why);
    plat_report(PLAT_STOPPING, why);
    app_stop(app);
    return 0;
}

/* ==== 15. Command line ======================================================
 *
 * One table of commands, from which the help text is made; those that look at a
 * configuration or at the state directory without running the service.
 */

/* Says in a few words whom a webhook trusts; what is not constant is written into out. */
static const char *
cli_trust_text(const struct webhook_config *w, char *out, size_t size)
{
    switch (w->trust) {
    case TRUST_NONE:
        return "none (http)";
    case TRUST_PUBLIC:
        return "public roots";
    case TRUST_UNCHECKED:
        return "NOT CHECKED";
    case TRUST_OWN_CA:
        break;
    }
    snprintf(out, size, "CA file %s (%d certificate%s)", w->cert_ca, w->ca_count,
        w->ca_count == 1 ? "" : "s");
    return out;
}

/* Prints what the configuration would listen to and call. */
static void
cli_print_plan(const struct config *c)
{
    char text[1024];
    struct plat_addr addr;
    bool local;

    cfg_listen_text(c, text, sizeof text);
    if (!c->enabled)
        printf("disabled by %s: the program would end at once\n", cfg_disabled_by(c));
    local = cfg_read_host(c->udp_host, &addr) == 1 ? cfg_is_loopback(&addr)
                                                   : strcasecmp(c->udp_host, "localhost") == 0;
    printf("listens on %s (UDP)%s\n", text, local ? ", from this machine only" : "");
    printf("rate limit: failure %lld s, aborted %lld s; duplicates: ",
        (long long)c->rate_limit_s[ALERT_FAILURE], (long long)c->rate_limit_s[ALERT_ABORTED]);
    if (c->dedup_enable)
        printf("ignored for %lld min\n", (long long)c->dedup_minutes);
    else
        printf("sent\n");
    if (c->state_directory)
        printf("keeps alerts in %s, at most %lld MB, for %lld h\n", c->state_directory,
            (long long)c->max_state_mb, (long long)c->max_age_hours);
    else
        printf("keeps alerts in memory only: butlerWebhook.stateDirectory is ''\n");
    printf("a call may take %lld s; calls to one webhook at a time: %lld\n",
        (long long)c->timeout_s, (long long)c->max_concurrent);
    if (c->webhooks[ALERT_FAILURE] + c->webhooks[ALERT_ABORTED] == 0)
        printf("no webhook is configured: nothing would be called\n");
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        for (size_t i = 0; i < c->webhooks[kind]; i++) {
            const struct webhook_config *w = &c->webhook[kind][i];
            if (!w->url.host) {
                printf("%s %-3zu  not valid, see above\n", KINDS[kind].name, i + 1);
                continue;
            }
            printf("%s %-3zu  %-4s  %-40s  %-12s%s%s  %s\n", KINDS[kind].name, i + 1,
                METHODS[w->method], w->url.shown, cli_trust_text(w, text, sizeof text),
                w->proxy ? "  through " : "", w->proxy ? w->proxy->shown : "",
                w->description ? log_text(slice_of(w->description)).text : "");
        }
}

/* --check */
static int
cli_check(const char *file)
{
    struct app *app = x_calloc(1, sizeof *app);
    int result = app_load(app, file, false, true), errors = app->reader.errors;

    printf("configuration %s%s: %d error%s, %d warning%s\n", file, errors ? "" : " is valid",
        errors, errors == 1 ? "" : "s", app->reader.warnings, app->reader.warnings == 1 ? "" : "s");
    if (!errors)
        cli_print_plan(&app->config);
    app_free(app);
    return result;
}

/* Calls one webhook with a test alert and prints how it went; whether it said 2xx. */
static bool
cli_test_one(struct app *app, const struct webhook_config *w)
{
    struct http_peer peer;
    struct http_client client;
    struct http_result res = {.retry_after_s = -1};
    struct err ignored;
    struct id_pool ids = {.left = 0};
    char id[40], host[256];
    bool ok = false;

    plat_host_name(host, sizeof host);
    send_make_id(&ids, id);
    if (http_peer_init(&peer, &app->config, w, &app->store, &res.reason) == 0) {
        struct alert *alert = alert_new_test(w->kind, host);
        struct buf json = {0};
        alert_add_json(alert, &json);
        http_client_init(&client, &peer);
        http_call(&client, &(struct http_request){{json.data, json.len}, 0, id, true}, &res);
        ok = send_judge(&res) == VERDICT_DELIVERED;
        http_drain(&client, &ignored);
        http_client_done(&client);
        buf_free(&json);
        alert_free(alert);
    }
    http_peer_done(&peer);
    printf("%-30s  %-6s  ", w->name, ok ? "ok" : "FAILED");
    printf(res.end == HTTP_ANSWERED ? "%6d" : "     -", res.status);
    printf("  %6lld  %s\n", (long long)res.ms, w->url.shown);
    if (!ok)
        printf("    %s%s%s\n", res.reason.text, res.hint.text[0] ? "\n    " : "", res.hint.text);
    fflush(stdout);
    return ok;
}

/* --test */
static int
cli_test(const char *file)
{
    struct app *app = x_calloc(1, sizeof *app);
    const struct config *c = &app->config;
    bool all = true;
    struct err e;

    if (app_load(app, file, true, true) != 0) {
        app_free(app);
        return 2;
    }
    log_init(LOG_ERROR);
    if (app_init_tls(app, &e) != 0) {
        fprintf(stderr, "butler_webhook: %s\n", e.text);
        return 1;
    }
    if (c->webhooks[ALERT_FAILURE] + c->webhooks[ALERT_ABORTED] == 0)
        printf("no webhook is configured\n");
    printf("%-30s  %-6s  %6s  %6s  %s\n", "webhook", "result", "status", "ms", "URL");
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        for (size_t i = 0; i < c->webhooks[kind]; i++)
            all = cli_test_one(app, &c->webhook[kind][i]) && all;
    tls_store_done(&app->store);
    app_free(app);
    return all ? 0 : 1;
}

/* A time in the past or the future as a person says it: 12 s, 5 min, 3.5 h. */
static struct log_text
cli_span(int64_t ms)
{
    struct log_text out;
    double s = (double)(ms < 0 ? 0 : ms) / 1000;

    if (s < 120)
        snprintf(out.text, sizeof out.text, "%.0f s", s);
    else if (s < 7200)
        snprintf(out.text, sizeof out.text, "%.0f min", s / 60);
    else
        snprintf(out.text, sizeof out.text, "%.1f h", s / 3600);
    return out;
}

/* Prints one waiting delivery for people: its alert is in memory. */
static void
cli_print_waiting(const struct webhook *w, const struct delivery *d, const struct alert *alert)
{
    int64_t now_ms = plat_now_ms();

    printf("%-8s  %8d  %-8s  %s  %s", cli_span(now_ms - d->accepted_ms).text, d->attempts,
        !d->tried_ms || d->due_ms <= now_ms ? "its turn" : cli_span(d->due_ms - now_ms).text,
        w->name, alert ? log_text(alert->field[FIELD_TASK_NAME]).text : "?");
    printf("%s%s\n", d->failure ? ": " : "", d->failure ? log_text(slice_of(d->failure)).text : "");
}

/* Prints one waiting delivery for programs: its alert is in memory. */
static void
cli_print_waiting_json(const struct webhook *w, const struct delivery *d)
{
    struct buf b = {0};

    buf_add_char(&b, '{');
    send_add_member(&b, "webhookId", d->id);
    send_add_member(&b, "webhook", w->name);
    send_add_time(&b, "acceptedAt", d->accepted_ms);
    buf_format(&b, ",\"ageSeconds\":%lld,\"attempts\":%d",
        (long long)((plat_now_ms() - d->accepted_ms) / 1000), d->attempts);
    if (d->tried_ms) {
        send_add_time(&b, "lastAttemptAt", d->tried_ms);
        send_add_time(&b, "nextAttemptAt", d->due_ms);
    } else
        buf_add_text(&b, ",\"lastAttemptAt\":null,\"nextAttemptAt\":null");
    if (d->failure)
        send_add_member(&b, "lastError", d->failure);
    else
        buf_add_text(&b, ",\"lastError\":null");
    buf_add_text(&b, ",\"alert\":");
    buf_add(&b, d->payload->json, d->payload->len);
    buf_add_char(&b, '}');
    fwrite(b.data, 1, b.len, stdout);
    buf_free(&b);
}

/* Prints what waits for a webhook; *count is how many were printed before. */
static void
cli_print_webhook(struct webhook *w, bool json, size_t *count)
{
    plat_lock(&w->lock);
    for (struct delivery *d = w->oldest; d; d = d->newer) {
        bool had = d->payload != NULL;
        struct alert *alert;
        if (send_fetch_locked(w, d) != 0)
            continue; /* the service has rewritten the journal since */
        if (json) {
            fputs(*count ? ",\n" : "\n", stdout);
            cli_print_waiting_json(w, d);
        } else {
            alert = alert_read_json((struct slice){d->payload->json, d->payload->len});
            cli_print_waiting(w, d, alert);
            alert_free(alert);
        }
        *count += 1;
        if (!had) {
            payload_free(d->payload);
            d->payload = NULL;
        }
    }
    plat_unlock(&w->lock);
}

/* Prints the dead letters of one file; *count is how many were printed before. */
static void
cli_print_letters(const struct journal *j, const char *name, bool json, size_t *count)
{
    struct line_reader r = {.file = j->folder ? journal_open_file(j, name, true, false) : -1};
    struct slice line;

    while (r.file >= 0 && line_read(&r, &line) > 0) {
        struct alert *alert = alert_read_json(json_get(line, "alert"));
        char webhook[LOG_NAME_MAX + 64] = "", reason[1024] = "", when[64] = "";
        if (!alert && json)
            continue; /* a torn or damaged line is for people to look at */
        if (json)
            printf("%s%.*s", *count ? ",\n" : "\n", (int)line.len, line.data);
        else
            printf("%-24s  %s  %s: %s\n", keep_letter_text(line, "deadAt", when, sizeof when),
                log_text(slice_of(keep_letter_text(line, "webhook", webhook, sizeof webhook))).text,
                alert ? log_text(alert->field[FIELD_TASK_NAME]).text : "(damaged line)",
                log_text(slice_of(keep_letter_text(line, "reason", reason, sizeof reason))).text);
        alert_free(alert);
        *count += 1;
    }
    plat_file_close(r.file);
    buf_free(&r.in);
}

/* Lists what waits and what is dead. */
static int
cli_list(const char *file, bool json)
{
    struct app *app = x_calloc(1, sizeof *app);
    size_t waiting = 0, dead = 0;
    struct err e;

    if (app_load(app, file, false, false) != 0) {
        app_free(app);
        return 2;
    }
    log_init(LOG_ERROR);
    app_init(app);
    if (app_open_state(app, true, &e) != 0 || keep_load(&app->keeper, true, &e) != 0) {
        fprintf(stderr, "butler_webhook: %s\n", e.text);
        app_free(app);
        return 1;
    }
    printf(json ? "{\"waiting\":[" : "%zu waiting%s\n", app->journal.live,
        app->journal.live ? ": age, attempts, next attempt in, webhook, task, last error" : "");
    for (size_t i = 0; i < app->webhooks; i++)
        cli_print_webhook(&app->webhook[i], json, &waiting);
    for (struct known_webhook *known = app->keeper.known; known; known = known->next)
        if (known->now == &known->gone)
            cli_print_webhook(&known->gone, json, &waiting);
    fputs(json ? "],\n\"dead\":[" : "dead letters: when, webhook, task, reason\n", stdout);
    cli_print_letters(&app->journal, "dead-letters.1.ndjson", json, &dead);
    cli_print_letters(&app->journal, "dead-letters.ndjson", json, &dead);
    if (json)
        puts("]}");
    else if (dead == 0)
        puts("none");
    app_free(app);
    return 0;
}

/* --pending */
static int
cli_pending(const char *file)
{
    return cli_list(file, false);
}

/* --pending --json */
static int
cli_pending_json(const char *file)
{
    return cli_list(file, true);
}

/*
 * How many dead letters from before a time (as log_time writes it) have a webhook
 * in the configuration, and how many have none or are damaged.
 */
static void
cli_count_letters(struct app *app, const char *before, size_t *known, size_t *unknown)
{
    static const char *const names[] = {"dead-letters.1.ndjson", "dead-letters.ndjson"};

    *known = *unknown = 0;
    for (size_t i = 0; i < 2; i++) {
        struct line_reader r = {.file = journal_open_file(&app->journal, names[i], true, false)};
        struct slice line;
        while (r.file >= 0 && line_read(&r, &line) > 0) {
            struct letter letter;
            char when[64];
            bool whole = keep_read_letter(&app->keeper, line, &letter) == 0 && letter.webhook;
            if (line.len > 0 &&
                strcmp(keep_letter_text(line, "deadAt", when, sizeof when), before) < 0)
                *(whole ? known : unknown) += 1;
            buf_free(&letter.json);
        }
        plat_file_close(r.file);
        buf_free(&r.in);
    }
}

/*
 * Has the running service replay: it looks for a request in the state directory,
 * and removes it when done. It has no other way to answer, so the letters are
 * counted before and after.
 */
static int
cli_ask_service(struct app *app)
{
    char *request = journal_path(&app->journal, "replay.request");
    int64_t until_ms = plat_now_ms() + REPLAY_MS;
    size_t known, unknown, left;
    char before[32]; /* those that come back at once are new ones */
    int file;

    log_time(plat_wall_ms(), before);
    cli_count_letters(app, before, &known, &unknown);
    file = plat_state_open(request, false, false);
    if (file < 0)
        fprintf(stderr, "butler_webhook: cannot write %s: %s\n", request, plat_error());
    plat_file_close(file);
    while (file >= 0 && plat_path_is_file(request) && plat_now_ms() < until_ms)
        plat_sleep_ms(SLICE_MS);
    if (file >= 0 && plat_path_is_file(request)) {
        fputs("butler_webhook: the running service has not answered\n", stderr);
        plat_remove(request); /* or it would send them at some later time */
        file = -1;
    }
    free(request);
    if (file < 0)
        return 1;
    cli_count_letters(app, before, &left, &unknown);
    printf("%zu dead letter%s handed to the running service, %zu stay%s\n",
        known > left ? known - left : 0, known == left + 1 ? "" : "s", left + unknown,
        unknown ? ": their webhook is not in the configuration, or the line is damaged" : "");
    return left + unknown > 0;
}

/*
 * Makes one attempt for each delivery of a webhook that was replayed, until it
 * proves to be down.
 */
static void
cli_attempt(struct webhook *w, uint64_t first_order, size_t *delivered, size_t *waiting)
{
    struct sender *s = &w->sender[0];

    http_client_init(&s->client, &w->peer);
    plat_lock(&w->lock);
    for (struct delivery *d = w->oldest, *next; d; d = next) {
        uint64_t before = atomic_load(&w->counters->delivered);
        uint64_t dead = atomic_load(&w->counters->dead);
        next = d->newer;
        if (d->order < first_order)
            continue;
        if (w->state == WEBHOOK_UP)
            send_one_locked(s, send_detach_locked(w, d));
        *delivered += atomic_load(&w->counters->delivered) > before;
        *waiting += atomic_load(&w->counters->delivered) == before &&
            atomic_load(&w->counters->dead) == dead;
    }
    plat_unlock(&w->lock);
    http_client_done(&s->client);
}

/* Replays without a running service: journals all letters, then makes one attempt for each. */
static int
cli_replay_here(struct app *app, struct err *e)
{
    uint64_t *first = x_calloc(app->webhooks + 1, sizeof *first);
    size_t delivered = 0, waiting = 0;
    struct keep_replay rp;

    for (size_t i = 0; i < app->webhooks; i++) {
        struct webhook *w = &app->webhook[i];
        w->most = w->limit = w->running = 1; /* this thread: no other is started */
        first[i] = w->next_order;
    }
    keep_replay(&app->keeper, &rp);
    if (keep_start(&app->keeper, e) != 0) {
        free(first);
        return -1;
    }
    waiting = (size_t)rp.already;
    for (size_t i = 0; i < app->webhooks; i++)
        cli_attempt(&app->webhook[i], first[i], &delivered, &waiting);
    keep_stop(&app->keeper, INT64_MAX);
    log_stop(plat_now_ms() + STOP_CALLS_MS);
    free(first);
    printf(
        "%llu dead letter%s sent again: %zu delivered, %zu wait for the next start, %zu refused; "
        "%llu stay\n",
        (unsigned long long)rp.again, rp.again == 1 ? "" : "s", delivered, waiting,
        (size_t)rp.again > delivered + waiting ? (size_t)rp.again - delivered - waiting : 0,
        (unsigned long long)rp.stayed);
    return rp.stayed > 0 || rp.unread;
}

/* --replay: the service does it if one holds the lock, else this process. */
static int
cli_replay(const char *file)
{
    struct app *app = x_calloc(1, sizeof *app);
    int result = app_load(app, file, true, true); /* enable does not matter, so all must be right */
    struct err e;

    if (result == 0 && !app->config.state_directory) {
        fprintf(stderr, "butler_webhook: butlerWebhook.stateDirectory is '': nothing was kept\n");
        result = 1;
    }
    if (result != 0) {
        app_free(app);
        return result;
    }
    log_init(LOG_WARN);
    app_init(app);
    if (app_open_state(app, false, &e) != 0)
        result = app->journal.taken ? cli_ask_service(app) : -1;
    else if (app_init_tls(app, &e) != 0 || log_start(NULL, &e) != 0 ||
        app_init_peers(app, &e) != 0 || keep_load(&app->keeper, false, &e) != 0)
        result = -1;
    else {
        result = cli_replay_here(app, &e);
        tls_store_done(&app->store);
    }
    if (result < 0)
        fprintf(stderr, "butler_webhook: %s\n", e.text);
    app_free(app);
    return result < 0 ? 1 : result;
}

/* Runs the service, in the foreground unless a service manager has started it. */
static int
cli_run(const char *file)
{
    return plat_run(app_run, file);
}

/* Prints a line about a step of --install or --uninstall. */
static void
cli_say(const char *text)
{
    puts(text);
    fflush(stdout);
}

/*
 * --install. The service runs under an account of its own, which gets to read
 * the configuration and the CA files that it names, and to write the folders.
 */
static int
cli_install(const char *file)
{
    struct app *app = x_calloc(1, sizeof *app);
    const struct config *c = &app->config;
    struct plat_service service = {.config = file};
    int result = app_load(app, file, true, true);

    if (result == 0) {
        service.file = x_calloc(
            c->webhooks[ALERT_FAILURE] + c->webhooks[ALERT_ABORTED] + 1, sizeof *service.file);
        service.file[service.files++] = file;
        for (int kind = 0; kind < ALERT_KINDS; kind++)
            for (size_t i = 0; i < c->webhooks[kind]; i++)
                if (c->webhook[kind][i].cert_ca)
                    service.file[service.files++] = c->webhook[kind][i].cert_ca;
        if (c->state_directory)
            service.folder[service.folders++] = c->state_directory;
        service.folder[service.folders++] = c->log_directory;
        if (!c->enabled)
            printf("warning: disabled by %s: the service would end at once\n", cfg_disabled_by(c));
        result = plat_service_install(&service, cli_say);
        free(service.file);
    }
    app_free(app);
    return result;
}

/* --uninstall */
static int
cli_uninstall(const char *file)
{
    (void)file;
    return plat_service_uninstall(cli_say);
}

/* --version */
static int
cli_version(const char *file)
{
    (void)file;
    puts("butler_webhook " VERSION);
    return 0;
}

/* --licenses */
static int
cli_licenses(const char *file)
{
    (void)file;
    fwrite(notices_txt, 1, sizeof notices_txt, stdout);
    return 0;
}

static int cli_help(const char *); /* the table below names it, and it prints the table */

static const struct {
    const char *option; /* "": run */
    bool takes_file;
    int (*run)(const char *file);
    const char *help;
} CLI[] = {
    {"", true, cli_run, "run until told to stop (signal, Ctrl-C, service stop)"},
    {"--check", true, cli_check, "report every problem, show what would be called"},
    {"--test", true, cli_test, "call each webhook once with a test alert"},
    {"--pending", true, cli_pending, "list what waits and what is dead"},
    {"--pending --json", true, cli_pending_json, "the same for programs"},
    {"--replay", true, cli_replay, "send the dead letters again"},
    {"--install", true, cli_install, "Windows: register the service, ready its folders"},
    {"--uninstall", false, cli_uninstall, "Windows: stop and remove the service"},
    {"--version", false, cli_version, "print the version"},
    {"--help", false, cli_help, "print this"},
    {"--licenses", false, cli_licenses, "print the licences of everything inside"},
};

#define CLI_COUNT (sizeof CLI / sizeof *CLI)

/* Prints the commands from their table. */
static void
cli_print_usage(FILE *out)
{
    fputs(
        "butler_webhook calls webhooks when Qlik Sense reload tasks fail or are aborted\n\n", out);
    for (size_t i = 0; i < CLI_COUNT; i++)
        fprintf(out, "    butler_webhook %-16s %-6s  %s\n",
            *CLI[i].option          ? CLI[i].option
                : CLI[i].takes_file ? "CONFIG"
                                    : "",
            *CLI[i].option && CLI[i].takes_file ? "CONFIG" : "", CLI[i].help);
    fputs("\nCONFIG is Butler's YAML file. Exit codes: 0 done, 1 failed, 2 wrong usage or "
          "configuration.\n",
        out);
}

/* --help */
static int
cli_help(const char *file)
{
    (void)file;
    cli_print_usage(stdout);
    return 0;
}

/* The exit code of a command that ended so: what it printed must have got out, if it was read. */
static int
cli_end(int result)
{
    if ((fflush(stdout) == 0 && !ferror(stdout)) || plat_reader_has_gone())
        return result;
    fputs("butler_webhook: the output cannot be written\n", stderr);
    return result ? result : 1;
}

/* Picks the command by its options; the one argument besides is the configuration. */
int
main(int argc, char **argv)
{
    char option[64] = "";
    const char *problem;
    int files;

    plat_init(&argc, &argv);
    files = argc - 1;
    for (int i = 1; i < argc && argv[i][0] == '-'; i++, files--)
        snprintf(option + strlen(option), sizeof option - strlen(option), "%s%s", i > 1 ? " " : "",
            strcmp(argv[i], "-h") == 0 ? "--help" : argv[i]);
    if (files > 0 && (problem = plat_path_problem(argv[argc - 1])) != NULL) {
        fprintf(stderr, "butler_webhook: %s: %s\n", argv[argc - 1], problem);
        return 2;
    }
    for (size_t i = 0; i < CLI_COUNT; i++)
        if (strcmp(option, CLI[i].option) == 0 && files == CLI[i].takes_file)
            return cli_end(CLI[i].run(files ? argv[argc - 1] : NULL));
    fprintf(stderr, "butler_webhook: wrong usage%s%s\n\n", *option ? ": " : "", option);
    cli_print_usage(stderr);
    return 2;
}
