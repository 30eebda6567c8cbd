/* SPDX-License-Identifier: MIT
 *
 * butler_webhook calls webhooks when Qlik Sense reload tasks fail or are aborted.
 *
 * Qlik Sense's scheduler logs through log4net, whose UdpAppender sends a datagram for each such
 * event. In place of Ptarmigan Labs' Butler this program makes one HTTP call for each webhook
 * that Butler's configuration file names.
 *
 * The path of an alert
 *
 *     UDP socket -> inbox -> decode, parse, sort out -> alert
 *                                                         |  its record is written
 *                                                         v  to the journal: accepted
 *                                                  a delivery for each webhook
 *                                                         |
 *                                                         v
 *     delivered | later | dead letter   <- verdict <-  HTTP call
 *
 * One round of the loop (section 14)
 *
 *     Everything happens in one thread that never blocks. A round waits for sockets or
 *     the nearest due time, receives, sorts, takes the calls that are ready a step
 *     further, writes all records to the journal with one write, and begins the calls
 *     that are due. So an alert goes from datagram to request in one wake-up.
 *
 * Threads: three at rest
 *
 *     loop      everything else; as a Windows service in a thread of the service manager's
 *     disk      syncs the journal, writes dead letters                         (section 9)
 *     log       writes lines to console and file                               (section 4)
 *     look-up   only while a host name is looked up, one for each              (section 2)
 *
 *     Each helper shares one struct with the loop, guarded by a mutex or a flag.
 *
 * On disk
 *
 *     The state directory (section 9): journal, dead-letters(.1).ndjson, lock; at times
 *     journal.new, journal.damaged, replay(.1).ndjson. It may be deleted while the program
 *     does not run; then nothing waits any more. Log files may be deleted at any time.
 *
 * What is promised
 *
 *     crash        An accepted alert survives kill -9. It can be sent twice, with one webhook-id.
 *                  A power cut costs at most what arrived in the last 10 ms or during the last
 *                  sync, and was not delivered.
 *     dead webhook Delays no other webhook, and never the reception. Its alerts are tried until it
 *                  takes or refuses them, or maxAgeHours have passed; then they are dead letters,
 *                  which --replay sends again.
 *     full disk    Alerts go on from memory, and are written once there is room.
 *     no silence   What must be dropped is counted, or logged whole.
 *
 * Contents
 *
 *      1. Settings         numbers that bound something, with their reason
 *      2. Platform         all that the operating system gives: plat_
 *      3. Base             buffers, numbers, UTF-8: buf_ err_ hex_ percent_ slice_ utf8_ x_
 *      4. Log              levels, lines, file, console: log_
 *      5. Alert            datagram -> alert -> JSON or query: alert_ json_
 *      6. URL              parsing, what may be shown, proxy exceptions: url_
 *      7. Configuration    Butler's YAML -> struct config: cfg_
 *      8. Windows of time  rate limit, de-duplication: window_
 *      9. Journal          what survives a crash: journal_ line_ state_ disk_ crc_
 *     10. HTTP client      one call: http_ call_ conn_ peer_ tls_
 *     11. Delivery         what waits, verdicts: backlog_ webhook_ payload_ delivery_ list_
 *     12. Listener         UDP socket, inbox, sorting, throttle of log lines: listen_
 *     13. Metrics          a file for Prometheus: metrics_
 *     14. Loop             start, the round, stop: loop_
 *     15. Command line     --check, --test, --pending, --replay, --install: cli_
 */

/* ==== 1. Settings ===========================================================
 *
 * Every number that bounds something, with its reason, unless only one function needs it.
 */

/* Each means something on one system only. */
#define _GNU_SOURCE              /* getrandom, CLOCK_BOOTTIME, SO_MEMINFO */
#define WIN32_LEAN_AND_MEAN      /* windows.h without the older sockets */
#define __USE_MINGW_ANSI_STDIO 1 /* printf as C11 has it */
#define FD_SETSIZE 1024          /* sockets that select takes on Windows: POLL_MAX fits */

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

#include <mbedtls/base64.h>
#include <mbedtls/md.h>
#include <mbedtls/platform.h>
#include <mbedtls/psa_util.h>
#include <mbedtls/sha256.h>
#include <mbedtls/ssl.h>
#include <mbedtls/x509_crt.h>
#include <psa/crypto.h>
#include <cJSON.h>
#include <yaml.h>

#include <notices.h>
#include <roots.h>

#define VERSION "0.2.0"
#define USER_AGENT "butler_webhook/" VERSION

#ifndef TIMEOUT_UNIT_MS              /* the tests make all of these smaller */
#define TIMEOUT_UNIT_MS 1000         /* a second of timeoutSeconds */
#define AGE_UNIT_MS INT64_C(3600000) /* an hour of maxAgeHours */
#define STATE_UNIT (1 << 20)         /* a megabyte of maxStateMB */
#define IDLE_MS 60000                /* an idle connection is closed after this */
#define CALLS_MINUTE_MS 60000        /* the minute of maxCallsPerMinute */
#define REWRITE_MIN (8 << 20)        /* bytes of the journal beyond twice what waits: rewrite it */
#define HEAL_MS 5000                 /* a disk that failed is tried again after this */
#endif

#define DATAGRAM_MAX 65507      /* most that one UDP datagram over IPv4 can carry */
#define DATAGRAM_ROOM 65536     /* a receive buffer that no datagram can fill */
#define RECV_ROUND 1024         /* datagrams read in one round, before the next is sorted */
#define SORT_ROUND 32           /* alerts taken from the inbox in one round */
#define RECV_BUFFER (128 << 20) /* asked of the kernel, which takes memory only as it fills */
#define INBOX_MAX (64u << 20)   /* bytes received and not yet sorted: 200,000 datagrams of 300 */

#define CONNECTIONS_MAX 512    /* open at a time; the longest idle is closed first */
#define POLL_MAX 513           /* sockets in one wait: these and the listener */
#define STEPS_MS 5             /* of a round for the calls, then the others wait for the next */
#define ADDRESSES_MAX 8        /* of one host name that are tried */
#define SHORTAGE_MS 200        /* after a want of descriptors or memory of our own: again */
#define BACKOFF_MIN_MS 1000    /* first wait after a failure, doubled each time ... */
#define BACKOFF_MAX_MS 300000  /* ... up to five minutes */
#define RETRY_AFTER_MAX_S 3600 /* longest wait that a webhook may ask for */
#define SUSPECTS_MAX 3         /* different alerts that fail in a row: the webhook is down */
#define REDIRECTS_MAX 5        /* followed for one call */
#define HEAD_MAX 65536         /* bytes of one response head; real ones stay under 20 KB */
#define SKIP_MAX 65536         /* bytes of a body read to keep the connection */
#define REASON_MAX 2048        /* bytes of a refusal's body that are looked at */
#define BODY_MS 2000           /* for a body: what a new connection is worth */
#define READ_SIZE 4095         /* bytes read of a connection at a time; most answers fit */
#define READS_STEP 64          /* of a connection in one step: a flood must not hold the loop */
#define UNSENT_MAX (2 << 20)   /* bytes that wait for a socket; a template makes 1.8 MB at most */
#define GET_TARGET_MAX 2000    /* IIS refuses queries over 2,048 bytes unless told otherwise */
#define URL_MAX 8192           /* bytes of a webhookURL or Location */
#define HOST_MAX 253           /* bytes of a host name (RFC 1035) */

#define JOURNAL_LINE_MAX (1u << 20) /* bytes; 65,507 control characters make 393,042 of JSON */
#define JOURNAL_CHUNK (256u << 10)  /* bytes read or rewritten at a time */
#define UNREADABLE_STEP 4096        /* bytes passed over where the disk cannot read: a page */
#define SYNC_MS 10     /* an alert that waits longer is synced; longest round of a stop */
#define KNOWN_MAX 4096 /* webhooks of earlier configurations in a journal */
#define LETTERS_FILE_MAX (INT64_C(64) << 20) /* bytes of dead letters in one file */
#define LETTERS_WAIT_MAX (8u << 20) /* bytes of dead letters that wait for a disk that has failed */
#define CROWDED_PERCENT 80          /* of the room for waiting alerts: then a warning */
#define METRICS_MS 15000 /* between two writings of metricsFile: Prometheus comes about as often */
#define LOOK_MS 1000     /* longest wait of the loop: a replay, ages and names wake nobody */

#define WINDOW_MAX 10000      /* tasks or executions remembered, for each kind of event */
#define HELD_MAX 1000000000   /* held back that are counted: the journal takes that, too */
#define LOOKUP_AGAIN_MS 10000 /* names in allowedSources are looked up again while not found ... */
#define LOOKUP_MS 300000      /* ... and afterwards */
#define LOOKUP_FRESH_MS 2000  /* so long the answer to a look-up is used again */
#define SOURCE_ADDRESSES_MAX 16 /* addresses behind one name in it */

#define CONFIG_MAX (512u << 10)  /* bytes; Butler's own full sample has 60 KB */
#define CONFIG_DEPTH_MAX 64      /* nested collections */
#define CONFIG_ANCHORS_MAX 1000  /* and %TAG lines: libyaml compares each with all before it */
#define CONFIG_NODES_MAX 20000   /* values read, aliases counted each time; Butler's file has 600 */
#define CONFIG_WEBHOOKS_MAX 200  /* for one kind of event */
#define CERT_FILE_MAX (4u << 20) /* bytes; a bundle of all public roots has 220 KB */
#define PAIRS_MAX 64             /* keys in a map of ours, such as headers */
#define TEMPLATE_MAX (256u << 10) /* bytes of its texts, and of all fields put into one */
#define SECRET_MAX 64             /* bytes of a signingSecret, by Standard Webhooks */

#define CUT_PLACES_MAX 32 /* ";" in the names between which every cut is tried, 500 in all */

#define LOG_QUEUE_MAX (1u << 20) /* bytes of lines that wait for the console and the file */
#define LOG_GATHER_MS 50         /* lines of this time are written together */
#define LOG_KEEP_DAYS 30         /* log files older than that are deleted */
#define LOG_MINUTE_MAX 20        /* lines a minute about what others can cause at will */
#define MINUTE_MS 60000          /* that minute */
#define LOG_NAME_MAX 200         /* bytes of a task or app name shown in a log line */
#define PATH_ROOM 4160           /* for a path as the system takes it, and a name of ours */

#define WAIT_MAX_MS 30000  /* longest wait: the system's clock for it does not count sleep */
#define STOP_MS 5000       /* from the request to stop to the end of the process */
#define STOP_BEGIN_MS 3000 /* ... until the last call may begin */
#define STOP_CALLS_MS 4000 /* ... until calls in flight must have ended */
#define STOP_DISK_MS 4800  /* ... until the journal is synced, what is lost logged */
#define STOP_END_MS 4900   /* ... until the log must have ended */
#define STOP_LOG_MS 400    /* for the log's last lines */

/* ==== 2. Platform ===========================================================
 *
 * All that depends on the operating system: sockets, waiting, threads, clocks,
 * files, signals, services. It decides nothing. First types, then the POSIX
 * half and the Windows half (the same functions in the same order, their contracts in
 * the first), then what is the same on all systems. Only this section includes system
 * headers.
 *
 * Sockets are intptr_t, files are int, -1 is none. A function that returns -1 has
 * set errno. Any thread may call what is not marked "loop only" or "start only". All
 * lengths of data are below INT_MAX.
 */

#ifdef _WIN32

#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>
#include <aclapi.h>
#include <ntsecapi.h>
#include <process.h>
#include <sddl.h>
#include <wincrypt.h>

#define PLAT_EOL "\r\n" /* Notepad of Windows Server 2012 R2 knows no other end of a line */
#define PRINTF gnu_printf
#define PLAT_SEPARATORS "\\/:"                /* what may end the folder part of a path */
#define PLAT_RCVBUF_UNIT 1                    /* what SO_RCVBUF shows for a byte of room */
#define PLAT_LAST_ERROR ((int)GetLastError()) /* of sockets, too */

/* Names of POSIX for what is the same. */
#define pthread_mutex_t SRWLOCK
#define pthread_mutex_lock AcquireSRWLockExclusive
#define pthread_mutex_unlock ReleaseSRWLockExclusive
#define pthread_cond_t CONDITION_VARIABLE
#define pthread_cond_broadcast WakeAllConditionVariable
#define fdatasync _commit
#define timegm _mkgmtime
#define O_CLOEXEC 0
#define O_NONBLOCK 0
#define PLAT_SOCK 0          /* plat_socket knows what we want */
#define fchmod(file, mode) 0 /* a file has the rights of its folder */
#define O_NOFOLLOW 0x1000000 /* free in fcntl.h, for plat_file_open */
#define SO_MEMINFO 0         /* there is no such option: plat_udp_drops is 0 */
#define SO_RCVBUFFORCE SO_RCVBUF

typedef int plat_len;         /* what send and recv take as a length */
typedef unsigned plat_thread; /* what the function of a thread returns: 0 */

#else /* POSIX */

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define PLAT_EOL "\n"
#define PRINTF printf
#define PLAT_SEPARATORS "/"
#define PLAT_RCVBUF_UNIT 2 /* socket(7): Linux shows the double */
#define PLAT_LAST_ERROR errno
#define PLAT_SOCK (SOCK_CLOEXEC | SOCK_NONBLOCK)
#define closesocket close

typedef int SOCKET;
typedef size_t plat_len;
typedef void *plat_thread;

#endif

#include <fcntl.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include <mbedtls/platform_util.h>

#define PLAT_AGAIN (-2) /* returned instead of waiting */

/* A lock, and what wakes those that wait for a change of what it guards. */
struct plat_monitor {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
};

/* An IPv4 or IPv6 address with its port. */
struct plat_addr {
    struct sockaddr_storage ss;
    socklen_t len;
};

/* The sockets of one wait: set count to 0, then call plat_poll_add for each. */
struct plat_poll {
    size_t count;
    struct pollfd slot[POLL_MAX + 1]; /* and what plat_wake writes to */
};

/* What the system is told. Windows' event log has these numbers as ids: they may not change. */
enum plat_event {
    PLAT_RUNNING = 1,
    PLAT_STOPPED,
    PLAT_FAILED,
    PLAT_WEBHOOK_DOWN,
    PLAT_WEBHOOK_UP,
    PLAT_GIVEN_UP,
    PLAT_DISK_FAILED
};

/* What both halves, signal handlers, threads of the system and look-up threads share. */
static struct {
    SOCKET wake[2];              /* plat_init: the end to read, the end to write */
    const char *_Atomic reason;  /* of the first request to stop, as "SIGTERM"; NULL: none; ... */
    _Atomic int64_t stop_ms;     /* ... and when it came */
    struct plat_lookup *lookups; /* loop only */
} plat;

/* What both halves need of the rest; contracts there. */
static bool plat_ask_stop(const char *why);
static int plat_read_file(const char *path, size_t max, char **data, size_t *len);

/* Limits a time to wait for. */
static int
plat_wait_ms(int64_t ms)
{
    return ms < 0 ? 0 : ms < WAIT_MAX_MS ? (int)ms : WAIT_MAX_MS;
}

/* Closes it unless it is -1. */
static void
plat_file_close(int handle)
{
    if (handle >= 0)
        close(handle);
}

#ifndef _WIN32

/* ---- POSIX ---- */

/* What POSIX has itself. plat_error returns the text of an errno until the next call: loop only. */
#define plat_file_open open
#define plat_random getrandom
#define plat_socket socket
#define plat_read_at pread
#define plat_select poll
#define plat_remove unlink
#define plat_error strerror
#define plat_exit exit
#define plat_exit_now _exit
/* On Windows it fails while anybody, the caller too, has the old one open. */
#define plat_file_replace rename

/* Sets errno for an error code of the system. Returns -1. */
static int
plat_fail(int code)
{
    errno = code;
    return -1;
}

/*
 * Must be called first. Makes the command line UTF-8, takes the numbers of closed
 * standard streams (else a socket would get them, and the log with them), makes a
 * write to a closed pipe an error, raises the soft limit of descriptors to the hard
 * one, and creates what plat_wake needs. -1: it cannot.
 */
static int
plat_init(int *argc, char ***argv)
{
    struct rlimit files;
    int fd;

    (void)argc;
    (void)argv;
    signal(SIGPIPE, SIG_IGN);
    while ((fd = open("/", O_RDONLY | O_CLOEXEC)) >= 0 && fd <= STDERR_FILENO)
        continue;
    plat_file_close(fd);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    return socketpair(AF_UNIX, SOCK_STREAM | PLAT_SOCK, 0, plat.wake);
}

/* Handles a signal that stops the program. */
static void
plat_on_stop(int number)
{
    if (plat_ask_stop(number == SIGTERM ? "SIGTERM" : number == SIGINT ? "SIGINT" : "SIGHUP"))
        alarm(STOP_MS / 1000);
}

/* Returns run(file), called as a service if the service manager has started the program. */
static int
plat_run(int (*run)(const char *), const char *file)
{
    return run(file);
}

/*
 * Tells Windows' service manager that the program is running, and its event log any event, if
 * this is a service. Async-signal-safe. Any thread.
 */
static void
plat_report(enum plat_event event, const char *text)
{
    (void)event;
    (void)text;
}

/*
 * From now on a request to stop (SIGTERM, SIGINT, SIGHUP, unless ignored at the
 * start; Ctrl-C; service stop) does not end the process: it sets plat.reason
 * and ends plat_poll. If the process still runs STOP_MS later, hung is called with any
 * number, and ends it. hung must be async-signal-safe; on Windows it runs in a thread
 * of the system.
 */
static void
plat_catch_stop(void (*hung)(int))
{
    static const int stops[] = {SIGTERM, SIGINT, SIGHUP};
    struct sigaction stop = {.sa_handler = plat_on_stop, .sa_flags = SA_RESTART};
    struct sigaction late = {.sa_handler = hung}, old;

    sigaction(SIGALRM, &late, NULL);
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++)
        if (sigaction(stops[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(stops[i], &stop, NULL);
}

/* Returns milliseconds on a clock that never jumps and counts sleep. */
static int64_t
plat_now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_BOOTTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Returns milliseconds since 1970. */
static int64_t
plat_wall_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Waits will not depend on the wall clock, which may jump. */
static void
plat_monitor_init(struct plat_monitor *m)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&m->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&m->changed, &attr);
}

/* Waits, with m locked, at most wait_ms and WAIT_MAX_MS; may return early. */
static void
plat_monitor_wait(struct plat_monitor *m, int64_t wait_ms)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    wait_ms = plat_wait_ms(wait_ms) + until.tv_nsec / 1000000;
    until.tv_sec += (time_t)(wait_ms / 1000);
    until.tv_nsec = (long)(wait_ms % 1000) * 1000000;
    pthread_cond_timedwait(&m->changed, &m->mutex, &until);
}

/* Calls entry(arg) in a detached thread, in which all signals are blocked. -1: it cannot. */
static int
plat_thread_start(plat_thread (*entry)(void *), void *arg)
{
    pthread_t thread;
    sigset_t all, own;
    int failed;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &own);
    failed = pthread_create(&thread, NULL, entry, arg);
    pthread_sigmask(SIG_SETMASK, &own, NULL);
    if (!failed)
        pthread_detach(thread);
    return failed ? -1 : 0;
}

/*
 * Creates a folder unless it exists. A private one is for its owner only (Windows: and
 * administrators).
 */
static int
plat_make_folder(const char *path, bool is_private)
{
    return mkdir(path, is_private ? 0700 : 0750) == 0 || errno == EEXIST ? 0 : -1;
}

/* Locks a file until it is closed. EWOULDBLOCK: another process has locked it. */
static int
plat_file_lock(int handle)
{
    return flock(handle, LOCK_EX | LOCK_NB);
}

/* Returns when the names in the folder would survive a power cut. */
static int
plat_folder_sync(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool done = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL); /* it knows no such thing */

    plat_file_close(fd);
    return done ? 0 : -1;
}

/*
 * Writes to STDOUT_FILENO; or to STDERR_FILENO, which except on Windows must take it at
 * once. -1: it does not take all of it. Async-signal-safe.
 */
static int
plat_console_write(int handle, const char *data, size_t len)
{
    struct pollfd p = {handle, POLLOUT, 0};
    ssize_t n = 0;

    while (len > 0 && n >= 0 && poll(&p, 1, handle == STDERR_FILENO ? 0 : -1) > 0) {
        /* A pipe that polls as writable takes so much without blocking. */
        n = write(handle, data, len < PIPE_BUF ? len : PIPE_BUF);
        data += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return len > 0 ? -1 : 0;
}

/* Adds the roots that the system trusts for servers. Skips what cannot be read. */
static void
plat_add_system_roots(mbedtls_x509_crt *chain)
{
    /* Where Unix systems keep the roots that their administrator trusts. */
    static const char *const files[] = {"/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"};
    char *pem;
    size_t len;

    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (plat_read_file(files[i], CERT_FILE_MAX, &pem, &len) == 0) {
            mbedtls_x509_crt_parse(chain, (const unsigned char *)pem, len + 1);
            free(pem);
            return;
        }
}

/*
 * Registers the program as a service of Windows, or updates the registration, and gives
 * it its rights: to read so many files, the first of which is the configuration, and to
 * write in the folders whose paths follow theirs, up to a NULL. Makes folders that are
 * missing. Prints each step. Returns the exit code.
 */
static int
plat_service_install(const char *const *path, size_t files)
{
    (void)path;
    (void)files;
    puts("--install is for Windows; with systemd, see samples/butler_webhook.service");
    return 2;
}

/* Stops and removes the service. Returns the exit code. */
static int
plat_service_uninstall(void)
{
    puts("--uninstall is for Windows; with systemd: systemctl disable --now butler_webhook");
    return 2;
}

#else

/* ---- Windows ---- */

#define PLAT_ERRNO 0x100000 /* added to a code of the system for which C has no errno */
#define PLAT_PATH_MAX 2048  /* of UTF-16; most systems take 260 */
#define PLAT_OUTPUT 16384   /* bytes of output that are written together */
#define PLAT_SERVICE L"ButlerWebhook"
/* The account NT SERVICE\ButlerWebhook, as shown by `sc showsid ButlerWebhook`. */
#define PLAT_SERVICE_SID L"S-1-5-80-165433284-2971610891-1851183872-1709016765-1661247220"
#define PLAT_EVENT_KEY L"SYSTEM\\CurrentControlSet\\Services\\EventLog\\Application\\" PLAT_SERVICE

/* What only this half has. */
static struct {
    UINT code_page;               /* the console's own, 0: none; set by plat_init */
    SERVICE_STATUS_HANDLE status; /* of a service; set before the threads start, as the rest */
    int (*run)(const char *);
    const char *file;
    void (*_Atomic hung)(int); /* plat_catch_stop */
} plat_windows;

/* Errors that other systems have, too, with their text. */
static const struct {
    DWORD code;
    int number;
    const char *text;
} PLAT_ERRORS[] = {
    {ERROR_FILE_NOT_FOUND, ENOENT, "No such file or directory"},
    {ERROR_PATH_NOT_FOUND, ENOENT, "No such file or directory"},
    {ERROR_ACCESS_DENIED, EACCES, "Permission denied"},
    {ERROR_ALREADY_EXISTS, ENOTDIR, "Not a directory"}, /* of CreateDirectory */
    {ERROR_SHARING_VIOLATION, EBUSY, "In use by another program"},
    {ERROR_LOCK_VIOLATION, EWOULDBLOCK, "In use by another program"},
    {WSAEWOULDBLOCK, EWOULDBLOCK, "Resource temporarily unavailable"},
    {ERROR_DISK_FULL, ENOSPC, "No space left on device"},
    {ERROR_NOT_ENOUGH_MEMORY, ENOMEM, "Out of memory"},
    {WSAEMFILE, EMFILE, "Too many open files"},
    {WSAENOBUFS, ENOBUFS, "No buffer space available"},
    {WSAEADDRINUSE, EADDRINUSE, "Address in use"},
    {WSAEACCES, EPERM, "Address in use or reserved, or forbidden by a firewall"},
    {WSAEADDRNOTAVAIL, EADDRNOTAVAIL, "Address not available"},
    {WSAECONNREFUSED, ECONNREFUSED, "Connection refused"},
    {WSAECONNRESET, ECONNRESET, "Connection reset by peer"},
    {WSAENETRESET, ECONNRESET, "Connection reset by peer"},
    {WSAECONNABORTED, ECONNRESET, "Connection reset by peer"},
    {WSAETIMEDOUT, ETIMEDOUT, "Operation timed out"},
    {WSAENETUNREACH, ENETUNREACH, "Network unreachable"},
    {WSAEHOSTUNREACH, EHOSTUNREACH, "Host is unreachable"},
};

#define PLAT_ERROR_COUNT (sizeof PLAT_ERRORS / sizeof *PLAT_ERRORS)

static int
plat_fail(int code)
{
    errno = PLAT_ERRNO + code;
    for (size_t i = 0; i < PLAT_ERROR_COUNT; i++)
        if (PLAT_ERRORS[i].code == (DWORD)code)
            errno = PLAT_ERRORS[i].number;
    return -1;
}

static const char *
plat_error(int number)
{
    static char text[400];
    wchar_t wide[120] = L"";

    for (size_t i = 0; i < PLAT_ERROR_COUNT; i++)
        if (PLAT_ERRORS[i].number == number)
            return PLAT_ERRORS[i].text;
    if (number < PLAT_ERRNO)
        return strerror(number);
    FormatMessageW(
        FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS | FORMAT_MESSAGE_MAX_WIDTH_MASK,
        NULL, (DWORD)(number - PLAT_ERRNO), 0, wide, 120, NULL);
    WideCharToMultiByte(CP_UTF8, 0, wide, -1, text, 370, NULL, NULL);
    snprintf(text + strlen(text), 30, "(error %d)", number - PLAT_ERRNO);
    return text;
}

/* Reports the state of a service; code is the exit code of one that has stopped. */
static void
plat_tell_manager(DWORD state, int code)
{
    SERVICE_STATUS s = {.dwServiceType = SERVICE_WIN32_OWN_PROCESS,
        .dwCurrentState = state,
        .dwControlsAccepted = SERVICE_ACCEPT_STOP | SERVICE_ACCEPT_PRESHUTDOWN,
        .dwWin32ExitCode = code ? ERROR_SERVICE_SPECIFIC_ERROR : 0,
        .dwServiceSpecificExitCode = (DWORD)code,
        .dwWaitHint = 120000}; /* a large journal takes its time */

    if (plat_windows.status)
        SetServiceStatus(plat_windows.status, &s);
}

/* ExitProcess might wait for ever for a thread that hangs in a driver or a look-up. */
_Noreturn static void
plat_exit_now(int code)
{
    plat_tell_manager(SERVICE_STOPPED, code);
    TerminateProcess(GetCurrentProcess(), (UINT)code);
    abort(); /* not reached */
}

/* Gives the console its own code page back. */
_Noreturn static void
plat_exit(int code)
{
    fflush(stdout);
    fflush(stderr);
    SetConsoleOutputCP(plat_windows.code_page);
    plat_exit_now(code);
}

struct plat_wide {
    wchar_t text[PLAT_PATH_MAX];
};

/* Converts a path to UTF-16. One that is too long becomes "", which does not exist. */
static struct plat_wide
plat_wide(const char *text)
{
    struct plat_wide wide;

    if (!MultiByteToWideChar(CP_UTF8, 0, text, -1, wide.text, PLAT_PATH_MAX))
        wide.text[0] = L'\0';
    return wide;
}

/* Converts to UTF-8 (malloc). Ends the process if it is out of memory: start only. */
static char *
plat_narrow(const wchar_t *wide)
{
    size_t size = 3 * wcslen(wide) + 1;
    char *text = malloc(size);

    if (!text)
        plat_exit_now(1);
    WideCharToMultiByte(CP_UTF8, 0, wide, -1, text, (int)size, NULL, NULL);
    return text;
}

static bool
plat_is_folder(const wchar_t *path)
{
    DWORD a = GetFileAttributesW(path);

    return a != INVALID_FILE_ATTRIBUTES && (a & FILE_ATTRIBUTE_DIRECTORY);
}

/* Others may open, rename and delete the file. O_NOFOLLOW: EINVAL also for a second name. */
static int
plat_file_open(const char *path, int flags, int mode)
{
    struct plat_wide wide = plat_wide(path);
    DWORD how = flags & O_EXCL ? CREATE_NEW : flags & O_CREAT ? OPEN_ALWAYS : OPEN_EXISTING;
    bool writes = flags & (O_WRONLY | O_RDWR), strict = flags & O_NOFOLLOW;
    HANDLE h = CreateFileW(wide.text, GENERIC_READ | (writes ? GENERIC_WRITE : 0),
        FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL, how,
        strict ? FILE_FLAG_OPEN_REPARSE_POINT : 0, NULL);
    BY_HANDLE_FILE_INFORMATION info = {0};

    (void)mode;
    if (h == INVALID_HANDLE_VALUE) {
        plat_fail(PLAT_LAST_ERROR);
        errno = plat_is_folder(wide.text) ? EISDIR : errno;
        return -1;
    }
    if (strict &&
        (!GetFileInformationByHandle(h, &info) || info.nNumberOfLinks > 1 ||
            (info.dwFileAttributes & FILE_ATTRIBUTE_REPARSE_POINT))) {
        CloseHandle(h);
        errno = EINVAL;
        return -1;
    }
    return _open_osfhandle((intptr_t)h, O_BINARY | (flags & O_APPEND));
}

/* It never blocks. */
static intptr_t
plat_socket(int family, int type, int protocol)
{
    SOCKET s = socket(family, type, protocol);
    DWORD on = 1, off = 0;
    u_long nonblocking = 1;

    if (s == INVALID_SOCKET)
        return plat_fail(PLAT_LAST_ERROR);
    ioctlsocket(s, (long)FIONBIO, &nonblocking);
    if (family == AF_INET6)
        setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, (const void *)&off, sizeof off);
    if (type == SOCK_DGRAM)
        setsockopt(s, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, (const void *)&on, sizeof on);
    else /* without it select would return at once while urgent data waits */
        setsockopt(s, SOL_SOCKET, SO_OOBINLINE, (const void *)&on, sizeof on);
    return (intptr_t)s;
}

/* Of the C library, which has split the command line; mingw-w64 declares it in no header. */
extern int __wgetmainargs(int *, wchar_t ***, wchar_t ***, int, int *);

static int
plat_init(int *argc, char ***argv)
{
    struct sockaddr_in self = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int len = sizeof self, mode = 0;
    wchar_t **wide, **env;
    WSADATA data;
    SOCKET *wake = plat.wake;

    SetErrorMode(SEM_FAILCRITICALERRORS | SEM_NOOPENFILEERRORBOX);
    SetDefaultDllDirectories(LOAD_LIBRARY_SEARCH_SYSTEM32);
    /* Unbuffered, as on a console, characters of several bytes would be torn apart. */
    setvbuf(stdout, NULL, _IOFBF, PLAT_OUTPUT);
    setvbuf(stderr, NULL, _IOFBF, PLAT_OUTPUT);
    plat_windows.code_page = GetConsoleOutputCP();
    SetConsoleOutputCP(CP_UTF8);
    __wgetmainargs(argc, &wide, &env, 0, &mode);
    *argv = (char **)wide; /* each pointer is replaced by one of the same size */
    for (int i = 0; i < *argc; i++)
        (*argv)[i] = plat_narrow(wide[i]);
    WSAStartup(MAKEWORD(2, 2), &data);
    wake[0] = wake[1] = (SOCKET)plat_socket(AF_INET, SOCK_DGRAM, 0); /* connected to itself */
    if (bind(*wake, (const void *)&self, len) != 0 ||
        getsockname(*wake, (void *)&self, &len) != 0 ||
        connect(*wake, (const void *)&self, len) != 0)
        return plat_fail(PLAT_LAST_ERROR);
    return 0;
}

/*
 * Called by a timer: the program should have stopped. If hung blocks, as on a console
 * where text is selected, the timer's next call ends the process.
 */
static void CALLBACK
plat_on_late(void *arg, BOOLEAN fired)
{
    void (*hung)(int) = atomic_exchange(&plat_windows.hung, NULL);

    (void)arg;
    (void)fired;
    if (hung)
        hung(0);
    plat_exit_now(1);
}

/* Handles a request to stop. A thread of the system. */
static void
plat_on_stop(const char *why)
{
    HANDLE timer;

    if (plat_ask_stop(why))
        CreateTimerQueueTimer(
            &timer, NULL, plat_on_late, NULL, STOP_MS, STOP_LOG_MS, WT_EXECUTELONGFUNCTION);
}

/* Handles what the service manager asks for. A thread of the system. */
static DWORD WINAPI
plat_service_control(DWORD control, DWORD type, void *data, void *context)
{
    (void)type;
    (void)data;
    (void)context;
    if (control == SERVICE_CONTROL_STOP || control == SERVICE_CONTROL_PRESHUTDOWN) {
        plat_tell_manager(SERVICE_STOP_PENDING, 0);
        plat_on_stop(control == SERVICE_CONTROL_STOP ? "service stop" : "shutdown of the machine");
    }
    return NO_ERROR;
}

/* The service's main function. */
static void WINAPI
plat_service_main(DWORD argc, wchar_t **argv)
{
    plat_windows.status = RegisterServiceCtrlHandlerExW(
        argc > 0 ? argv[0] : PLAT_SERVICE, plat_service_control, NULL);
    plat_tell_manager(SERVICE_START_PENDING, 0);
    plat_exit_now(plat_windows.run(plat_windows.file));
}

/* Only a process without standard output can be a service: ask the service manager. */
static int
plat_run(int (*run)(const char *), const char *file)
{
    wchar_t name[] = PLAT_SERVICE;
    SERVICE_TABLE_ENTRYW table[] = {{name, plat_service_main}, {NULL, NULL}};

    plat_windows.run = run;
    plat_windows.file = file;
    if (fileno(stdout) < 0)
        StartServiceCtrlDispatcherW(table); /* returns if this is no service */
    return run(file);
}

/* The text is cut to what fits into an event. */
static void
plat_report(enum plat_event event, const char *text)
{
    bool is_good = event == PLAT_RUNNING || event == PLAT_STOPPED || event == PLAT_WEBHOOK_UP;
    WORD type = is_good              ? EVENTLOG_INFORMATION_TYPE
        : event == PLAT_WEBHOOK_DOWN ? EVENTLOG_WARNING_TYPE
                                     : EVENTLOG_ERROR_TYPE;
    wchar_t wide[8000] = L"";
    const wchar_t *line = wide;
    HANDLE log;

    if (!plat_windows.status)
        return;
    if (event == PLAT_RUNNING && !plat.reason)
        plat_tell_manager(SERVICE_RUNNING, 0);
    log = RegisterEventSourceW(NULL, PLAT_SERVICE);
    MultiByteToWideChar(CP_UTF8, 0, text, (int)strnlen(text, 7999), wide, 7999);
    ReportEventW(log, type, 0, event, NULL, 1, 0, &line, NULL);
    DeregisterEventSource(log);
}

/*
 * Handles Ctrl-C and its like. The system ends the process when this returns from
 * the others, so it does not return. A thread of the system.
 */
static BOOL WINAPI
plat_on_console_event(DWORD event)
{
    bool is_key = event == CTRL_C_EVENT || event == CTRL_BREAK_EVENT;

    if (event == CTRL_LOGOFF_EVENT)
        return TRUE; /* perhaps of somebody else: services and scheduled tasks get it, too */
    plat_on_stop(is_key ? "Ctrl-C" : "closing of the console or shutdown of the machine");
    if (!is_key)
        Sleep(INFINITE);
    return TRUE;
}

static void
plat_catch_stop(void (*hung)(int))
{
    plat_windows.hung = hung;
    SetConsoleCtrlHandler(plat_on_console_event, TRUE);
}

/*
 * WSAPoll hides a failed connect before Windows 10 2004. Here it is in the third set; any
 * other failure makes a socket readable. fd_array is filled without FD_SET, which looks
 * for doubles each time.
 */
static int
plat_select(struct pollfd *fds, unsigned count, int wait_ms)
{
    struct timeval wait = {wait_ms / 1000, wait_ms % 1000 * 1000};
    fd_set in = {0}, out = {0}, failed = {0};
    int n;

    for (unsigned i = 0; i < count; i++) {
        if (fds[i].events & POLLIN)
            in.fd_array[in.fd_count++] = fds[i].fd;
        if (fds[i].events & POLLOUT)
            out.fd_array[out.fd_count++] = failed.fd_array[failed.fd_count++] = fds[i].fd;
    }
    n = select(0, &in, &out, &failed, &wait); /* leaves those that are ready */
    for (unsigned i = 0; i < count; i++) /* if it fails, the next call on each socket says why */
        fds[i].revents = n < 0 || FD_ISSET(fds[i].fd, &in) || FD_ISSET(fds[i].fd, &out) ||
            FD_ISSET(fds[i].fd, &failed);
    return n;
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

static ssize_t
plat_random(void *out, size_t len, unsigned flags)
{
    (void)flags;
    return RtlGenRandom(out, (ULONG)len) ? (ssize_t)len : -1;
}

static void
plat_monitor_init(struct plat_monitor *m)
{
    *m = (struct plat_monitor){SRWLOCK_INIT, CONDITION_VARIABLE_INIT};
}

static void
plat_monitor_wait(struct plat_monitor *m, int64_t wait_ms)
{
    SleepConditionVariableSRW(&m->changed, &m->mutex, (DWORD)plat_wait_ms(wait_ms), 0);
}

static int
plat_thread_start(plat_thread (*entry)(void *), void *arg)
{
    uintptr_t thread = _beginthreadex(NULL, 0, entry, arg, 0, NULL);

    return thread && CloseHandle((HANDLE)thread) ? 0 : -1;
}

/* Private: for SYSTEM, administrators and the owner (S-1-3-4). On a share the server decides. */
static int
plat_make_folder(const char *path, bool is_private)
{
    static const wchar_t rules[] = L"D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;S-1-3-4)";
    struct plat_wide wide = plat_wide(path);
    SECURITY_ATTRIBUTES sa = {.nLength = sizeof sa};
    int failed;

    if (plat_is_folder(wide.text))
        return 0;
    if (is_private && strspn(path, "\\/") < 2)
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            rules, SDDL_REVISION_1, &sa.lpSecurityDescriptor, NULL);
    failed = CreateDirectoryW(wide.text, &sa) ? 0 : plat_fail(PLAT_LAST_ERROR);
    LocalFree(sa.lpSecurityDescriptor);
    return failed;
}

/* The lock is far behind the end, as others cannot read what it covers. */
static int
plat_file_lock(int handle)
{
    HANDLE h = (HANDLE)_get_osfhandle(handle);

    return LockFile(h, 0, INT_MAX, 1, 0) ? 0 : plat_fail(PLAT_LAST_ERROR);
}

static int64_t
plat_read_at(int file, void *to, size_t len, int64_t at)
{
    return lseek(file, at, SEEK_SET) < 0 ? -1 : read(file, to, (unsigned)len);
}

static int
plat_folder_sync(const char *path)
{
    (void)path; /* NTFS keeps a journal of names */
    return 0;
}

static int
plat_file_replace(const char *from, const char *to)
{
    if (MoveFileExW(plat_wide(from).text, plat_wide(to).text,
            MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH))
        return 0;
    return plat_fail(PLAT_LAST_ERROR);
}

static int
plat_remove(const char *path)
{
    return DeleteFileW(plat_wide(path).text) ? 0 : plat_fail(PLAT_LAST_ERROR);
}

static int
plat_console_write(int handle, const char *data, size_t len)
{
    DWORD n;

    return WriteFile((HANDLE)_get_osfhandle(handle), data, (DWORD)len, &n, NULL) ? 0 : -1;
}

/* A function of crypt32.dll. */
#define PLAT_CRYPT(name) ((__typeof__(&name))(void (*)(void))GetProcAddress(library, #name))

/*
 * From the machine's store ROOT. crypt32.dll is not linked: the system would look for it
 * beside the exe first, where somebody may have put another one.
 */
static void
plat_add_system_roots(mbedtls_x509_crt *chain)
{
    HMODULE library = LoadLibraryExW(L"crypt32.dll", NULL, LOAD_LIBRARY_SEARCH_SYSTEM32);
    __typeof__(&CertOpenStore) open_store = PLAT_CRYPT(CertOpenStore);
    __typeof__(&CertEnumCertificatesInStore) next = PLAT_CRYPT(CertEnumCertificatesInStore);
    __typeof__(&CertGetEnhancedKeyUsage) get_usage = PLAT_CRYPT(CertGetEnhancedKeyUsage);
    HCERTSTORE root = open_store(CERT_STORE_PROV_SYSTEM_W, 0, 0,
        CERT_SYSTEM_STORE_LOCAL_MACHINE | CERT_STORE_OPEN_EXISTING_FLAG | CERT_STORE_READONLY_FLAG,
        L"ROOT");
    CERT_ENHKEY_USAGE usage[256]; /* room for what the first points to */

    for (const CERT_CONTEXT *c = NULL; root && (c = next(root, c)) != NULL;) {
        DWORD size = sizeof usage;
        DWORD n = get_usage(c, 0, usage, &size) ? usage->cUsageIdentifier : 0;
        bool serves = n == 0 && GetLastError() == (DWORD)CRYPT_E_NOT_FOUND; /* no list: all uses */
        for (DWORD i = 0; i < n; i++)
            serves = serves ||
                strcmp(usage->rgpszUsageIdentifier[i], szOID_PKIX_KP_SERVER_AUTH) == 0 ||
                strcmp(usage->rgpszUsageIdentifier[i], szOID_ANY_ENHANCED_KEY_USAGE) == 0;
        if (serves)
            mbedtls_x509_crt_parse_der(chain, c->pbCertEncoded, c->cbCertEncoded);
    }
}

/* Gives the service's account its right to a file or folder, which it makes; prints the result. */
static bool
plat_grant(const char *path, bool is_folder)
{
    struct plat_wide wide = plat_wide(path);
    EXPLICIT_ACCESSW rule = {.grfAccessMode = GRANT_ACCESS,
        .grfAccessPermissions = FILE_GENERIC_READ |
            (is_folder ? FILE_GENERIC_WRITE | DELETE : FILE_GENERIC_EXECUTE),
        .grfInheritance = is_folder ? SUB_CONTAINERS_AND_OBJECTS_INHERIT : NO_INHERITANCE};
    DWORD failed, which = DACL_SECURITY_INFORMATION;
    SECURITY_DESCRIPTOR *descriptor;
    PSID account;
    ACL *old, *acl = NULL;
    bool done = !is_folder || plat_make_folder(path, true) == 0;

    ConvertStringSidToSidW(PLAT_SERVICE_SID, &account);
    BuildTrusteeWithSidW(&rule.Trustee, account);
    if (done) {
        failed = GetNamedSecurityInfoW(
            wide.text, SE_FILE_OBJECT, which, NULL, NULL, &old, NULL, (void **)&descriptor);
        if (!failed && old) /* without a list everybody may do everything */
            failed = SetEntriesInAclW(1, &rule, old, &acl);
        if (acl && (descriptor->Control & SE_DACL_PROTECTED)) /* stay without the parent's rules */
            which |= PROTECTED_DACL_SECURITY_INFORMATION;
        if (acl)
            failed = SetNamedSecurityInfoW(wide.text, SE_FILE_OBJECT, which, NULL, NULL, acl, NULL);
        done = !failed || plat_fail((int)failed) == 0;
    }
    printf("%s: %s %s%s%s\n", path, done ? "the service may" : "cannot let the service",
        is_folder ? "write in it" : "read it", done ? "" : ": ", done ? "" : plat_error(errno));
    return done;
}

/* Prints why the service could not be registered or removed. Returns the exit code. */
static int
plat_service_failed(const char *what)
{
    plat_fail(PLAT_LAST_ERROR);
    printf("service ButlerWebhook: cannot be %s: %s%s\n", what, plat_error(errno),
        errno == EACCES ? "; run this as administrator" : "");
    return 1;
}

/*
 * The service gets an account of its own; it starts with the machine, and again after a
 * failure. What this allocates is freed when the process ends, which is at once.
 */
static int
plat_service_install(const char *const *path, size_t files)
{
    static const wchar_t account[] = L"NT SERVICE\\" PLAT_SERVICE, shown[] = L"butler_webhook";
    static const wchar_t texts[] = L"%SystemRoot%\\System32\\EventCreate.exe"; /* "%1" for each */
    wchar_t about[] = L"Calls webhooks when Qlik Sense reload tasks fail or are aborted.";
    SERVICE_DESCRIPTIONW description = {about};
    SC_ACTION again = {SC_ACTION_RESTART, 5000};
    SERVICE_FAILURE_ACTIONSW failure = {.cActions = 1, .lpsaActions = &again};
    SERVICE_FAILURE_ACTIONS_FLAG also_exit_codes = {TRUE};
    wchar_t exe[PLAT_PATH_MAX] = L"", config[PLAT_PATH_MAX] = L"", command[2 * PLAT_PATH_MAX + 8];
    SC_HANDLE manager = OpenSCManagerW(NULL, NULL, SC_MANAGER_CONNECT | SC_MANAGER_CREATE_SERVICE);
    SC_HANDLE s = NULL;
    bool done;

    GetModuleFileNameW(NULL, exe, PLAT_PATH_MAX - 1);
    GetFullPathNameW(plat_wide(path[0]).text, PLAT_PATH_MAX, config, NULL);
    swprintf(command, 2 * PLAT_PATH_MAX + 8, L"\"%ls\" \"%ls\"", exe, config);
    if (manager)
        s = OpenServiceW(manager, PLAT_SERVICE, SERVICE_ALL_ACCESS);
    if (manager && !s && GetLastError() == ERROR_SERVICE_DOES_NOT_EXIST)
        s = CreateServiceW(manager, PLAT_SERVICE, shown, SERVICE_ALL_ACCESS,
            SERVICE_WIN32_OWN_PROCESS, SERVICE_AUTO_START, SERVICE_ERROR_NORMAL, command, NULL,
            NULL, NULL, account, NULL);
    if (!s ||
        !ChangeServiceConfigW(s, SERVICE_WIN32_OWN_PROCESS, SERVICE_AUTO_START,
            SERVICE_ERROR_NORMAL, command, NULL, NULL, NULL, account, NULL, shown) ||
        !ChangeServiceConfig2W(s, SERVICE_CONFIG_DESCRIPTION, &description) ||
        !ChangeServiceConfig2W(s, SERVICE_CONFIG_FAILURE_ACTIONS, &failure))
        return plat_service_failed("registered");
    ChangeServiceConfig2W(
        s, SERVICE_CONFIG_FAILURE_ACTIONS_FLAG, &also_exit_codes); /* not in wine */
    RegSetKeyValueW(HKEY_LOCAL_MACHINE, PLAT_EVENT_KEY, L"EventMessageFile", REG_EXPAND_SZ, texts,
        sizeof texts);
    puts("service ButlerWebhook: registered, starts with the machine as NT SERVICE\\ButlerWebhook");
    done = plat_grant(plat_narrow(exe), false);
    for (size_t i = 0; path[i]; i++)
        done = plat_grant(path[i], i >= files) && done;
    puts("to start it: net start ButlerWebhook; if it runs already, first: net stop ButlerWebhook");
    return done ? 0 : 1;
}

static int
plat_service_uninstall(void)
{
    SC_HANDLE manager = OpenSCManagerW(NULL, NULL, SC_MANAGER_CONNECT);
    SC_HANDLE s = manager ? OpenServiceW(manager, PLAT_SERVICE, SERVICE_STOP | DELETE) : NULL;
    SERVICE_STATUS now;

    if (s && ControlService(s, SERVICE_CONTROL_STOP, &now))
        puts("service ButlerWebhook: stopping");
    if (!s || !DeleteService(s)) /* it goes once it has stopped */
        return plat_service_failed("removed");
    RegDeleteKeyW(HKEY_LOCAL_MACHINE, PLAT_EVENT_KEY);
    puts("service ButlerWebhook: removed; its folders and the configuration stay");
    return 0;
}

#endif

/* ---- The same on all systems ---- */

/* -- Errors and random bytes -- */

/* True if errno says that this process or machine is out of descriptors or memory. */
static bool
plat_is_want_of_ours(void)
{
    return errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS;
}

/* Random bytes for the TLS library, which finds this by its name; also in an empty chroot. */
psa_status_t
mbedtls_psa_external_get_random(mbedtls_psa_external_random_context_t *context, uint8_t *output,
    size_t output_size, size_t *output_length)
{
    (void)context;
    *output_length = output_size;
    return plat_random(output, output_size, 0) == (ssize_t)output_size
        ? PSA_SUCCESS
        : PSA_ERROR_INSUFFICIENT_ENTROPY;
}

/* -- Sockets: none of these waits -- */

/* Closes it unless it is -1. Keeps errno, as this cannot fail. */
static void
plat_close(intptr_t sock)
{
    if (sock >= 0)
        closesocket((SOCKET)sock);
}

/* Turns what send or recv has returned into what plat_send and plat_recv return. */
static int
plat_transferred(int n)
{
    if (n >= 0)
        return n;
    plat_fail(PLAT_LAST_ERROR);
    return errno == EWOULDBLOCK || errno == ENOBUFS ? PLAT_AGAIN : -1;
}

/* Returns the number of bytes sent, PLAT_AGAIN or -1. Async-signal-safe. */
static int
plat_send(intptr_t sock, const void *data, size_t len)
{
    return plat_transferred((int)send((SOCKET)sock, data, (plat_len)len, 0));
}

/* Returns the number of bytes read, 0 at the end, PLAT_AGAIN or -1. */
static int
plat_recv(intptr_t sock, void *data, size_t len)
{
    return plat_transferred((int)recv((SOCKET)sock, data, (plat_len)len, 0));
}

/*
 * Binds a UDP socket to addr. Its receive buffer gets as large as the system allows:
 * *buffer_len bytes.
 */
static intptr_t
plat_udp_open(const struct plat_addr *addr, int *buffer_len)
{
    intptr_t sock = plat_socket(addr->ss.ss_family, SOCK_DGRAM | PLAT_SOCK, 0);
    socklen_t size = sizeof *buffer_len;

    if (sock < 0)
        return -1;
    *buffer_len = RECV_BUFFER;
    if (setsockopt((SOCKET)sock, SOL_SOCKET, SO_RCVBUFFORCE, (void *)buffer_len, size) != 0)
        setsockopt((SOCKET)sock, SOL_SOCKET, SO_RCVBUF, (void *)buffer_len, size);
    getsockopt((SOCKET)sock, SOL_SOCKET, SO_RCVBUF, (void *)buffer_len, &size);
    *buffer_len /= PLAT_RCVBUF_UNIT;
    if (bind((SOCKET)sock, (const void *)&addr->ss, addr->len) == 0)
        return sock;
    plat_fail(PLAT_LAST_ERROR);
    plat_close(sock);
    return -1;
}

/* Reads a datagram into DATAGRAM_ROOM bytes. Returns its length, PLAT_AGAIN or -1. */
static int
plat_udp_receive(intptr_t sock, struct plat_addr *from, char *data)
{
    int n;

    do {
        from->len = sizeof from->ss;
        n = plat_transferred(
            (int)recvfrom((SOCKET)sock, data, DATAGRAM_ROOM, 0, (void *)&from->ss, &from->len));
    } while (n == -1 && errno == ECONNRESET); /* Windows: ICMP about nothing of ours */
    return n;
}

/* Returns how many datagrams were lost as the receive buffer was full; Windows does not tell. */
static uint32_t
plat_udp_drops(intptr_t sock)
{
    uint32_t info[9] = {0}; /* the last is SK_MEMINFO_DROPS of linux/sock_diag.h */
    socklen_t len = sizeof info;

    getsockopt((SOCKET)sock, SOL_SOCKET, SO_MEMINFO, (void *)info, &len);
    return info[8];
}

/* Begins to connect. The socket becomes writable at the end. */
static intptr_t
plat_tcp_connect(const struct plat_addr *addr)
{
    intptr_t sock = plat_socket(addr->ss.ss_family, SOCK_STREAM | PLAT_SOCK, 0);
    int on = 1;

    if (sock < 0)
        return -1;
    setsockopt((SOCKET)sock, IPPROTO_TCP, TCP_NODELAY, (const void *)&on, sizeof on);
    if (connect((SOCKET)sock, (const void *)&addr->ss, addr->len) == 0)
        return sock;
    plat_fail(PLAT_LAST_ERROR);
    if (errno == EINPROGRESS || errno == EWOULDBLOCK) /* POSIX, Windows */
        return sock;
    plat_close(sock);
    return -1;
}

/* Returns 0 if a socket that became writable is connected, or -1. */
static int
plat_tcp_connected(intptr_t sock)
{
    int failed = 0;
    socklen_t size = sizeof failed;

    if (getsockopt((SOCKET)sock, SOL_SOCKET, SO_ERROR, (void *)&failed, &size) != 0)
        failed = PLAT_LAST_ERROR;
    return failed ? plat_fail(failed) : 0;
}

/* -- Waiting and stopping -- */

/* Returns the slot of a socket. The caller adds at most POLL_MAX. */
static size_t
plat_poll_add(struct plat_poll *p, intptr_t sock, int want)
{
    p->slot[p->count] = (struct pollfd){.fd = (SOCKET)sock, .events = (short)want};
    return p->count++;
}

/* Ends the current or the next plat_poll. Async-signal-safe. */
static void
plat_wake(void)
{
    int kept = errno; /* of what the signal has interrupted */

    plat_send((intptr_t)plat.wake[1], "", 1);
    errno = kept;
}

/*
 * Returns when a socket is ready, plat_wake was called, or after wait_ms. A slot whose
 * socket is ready, or has failed, then has revents. Loop only.
 */
static void
plat_poll(struct plat_poll *p, int64_t wait_ms)
{
    struct pollfd *wake = &p->slot[p->count];
    char room[64];

    *wake = (struct pollfd){.fd = plat.wake[0], .events = POLLIN};
    plat_select(p->slot, (unsigned)p->count + 1, plat_wait_ms(wait_ms));
    while (wake->revents && plat_recv((intptr_t)plat.wake[0], room, sizeof room) > 0)
        continue;
}

/* Notes a request to stop and wakes the loop. True if it is the first. */
static bool
plat_ask_stop(const char *why)
{
    int64_t never = 0;

    if (!atomic_compare_exchange_strong(&plat.stop_ms, &never, plat_now_ms()))
        return false;
    plat.reason = why;
    plat_wake();
    return true;
}

/* -- Addresses -- */

static const char PLAT_SHORT[] = "no descriptor, memory or thread is left for that";

/*
 * Asks getaddrinfo for at most max addresses, without a port, in the system's order; may
 * take long. Returns their number or -1; *why then is a constant text.
 */
static int
plat_getaddrinfo(const char *host, int flags, struct plat_addr *out, int max, const char **why)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags}, *list;
    int n = 0, failed;

    errno = 0;
    failed = getaddrinfo(host, NULL, &hints, &list);
    if (failed) {
        plat_fail(PLAT_LAST_ERROR);
        *why = plat_is_want_of_ours() ? PLAT_SHORT
            : failed == EAI_AGAIN     ? "no answer from a name server"
                                      : "Name does not resolve";
        return -1;
    }
    for (struct addrinfo *a = list; a && n < max; a = a->ai_next) {
        memcpy(&out[n].ss, a->ai_addr, a->ai_addrlen);
        out[n++].len = (socklen_t)a->ai_addrlen;
    }
    freeaddrinfo(list);
    return n;
}

/* Sets the port of n addresses; it is at the same place for IPv4 and IPv6. */
static void
plat_set_port(struct plat_addr *addr, int n, int port)
{
    for (int i = 0; i < n; i++)
        ((struct sockaddr_in *)&addr[i].ss)->sin_port = htons((uint16_t)port);
}

/*
 * Reads a numeric host or localhost, which no resolver of an empty chroot knows. Returns
 * the number of addresses, without a port; 0: it is a name.
 */
static int
plat_numeric(const char *host, struct plat_addr *out, int max)
{
    bool is_local = strcasecmp(host, "localhost") == 0;
    const char *why;
    int n = plat_getaddrinfo(is_local ? "127.0.0.1" : host, AI_NUMERICHOST, out, max, &why);

    if (is_local && n < max && plat_getaddrinfo("::1", AI_NUMERICHOST, out + n, 1, &why) == 1)
        n++;
    return n < 0 ? 0 : n;
}

/* A host name and what was found for it. Never freed: the configuration bounds their number. */
struct plat_lookup {
    struct plat_lookup *next; /* loop only */
    atomic_bool running;      /* the thread has the rest, but for host */
    int64_t until_ms;         /* so long count and why are as from plat_getaddrinfo just now */
    int count;
    const char *why;
    struct plat_addr addr[SOURCE_ADDRESSES_MAX]; /* more than ADDRESSES_MAX */
    char host[];
};

/* Fills in arg, a plat_lookup. */
static plat_thread
plat_lookup_thread(void *arg)
{
    struct plat_lookup *l = arg;

    l->count = plat_getaddrinfo(l->host, 0, l->addr, SOURCE_ADDRESSES_MAX, &l->why);
    l->until_ms = plat_now_ms() + LOOKUP_FRESH_MS;
    atomic_store(&l->running, false);
    plat_wake();
    return 0;
}

/*
 * Resolves host without waiting. Returns the number of addresses, at most max, without
 * a port. PLAT_AGAIN: a thread, shared by all that ask for this name, looks it up and
 * then calls plat_wake; call this again, within LOOKUP_FRESH_MS. -1: *why is a constant
 * text, errno is ENOMEM for a want of ours. Loop only.
 */
static int
plat_resolve(const char *host, struct plat_addr *out, int max, const char **why)
{
    struct plat_lookup *l = plat.lookups;
    int n;

    while (l && strcasecmp(l->host, host) != 0)
        l = l->next;
    n = l ? 0 : plat_numeric(host, out, max);
    if (n > 0)
        return n;
    if (!l && (l = calloc(1, sizeof *l + strlen(host) + 1)) != NULL) {
        memcpy(l->host, host, strlen(host) + 1);
        l->next = plat.lookups;
        plat.lookups = l;
    }
    if (l && !atomic_load(&l->running) && plat_now_ms() >= l->until_ms) {
        atomic_store(&l->running, true);
        if (plat_thread_start(plat_lookup_thread, l) != 0) {
            atomic_store(&l->running, false);
            l = NULL;
        }
    }
    if (l && atomic_load(&l->running))
        return PLAT_AGAIN;
    *why = l ? l->why : PLAT_SHORT;
    errno = *why == PLAT_SHORT ? ENOMEM : 0;
    n = !l ? -1 : l->count < max ? l->count : max;
    for (int i = 0; i < n; i++)
        out[i] = l->addr[i];
    return n;
}

static const uint8_t PLAT_MAPPED[12] = {[10] = 0xff, [11] = 0xff};

/* Writes IPv6, and IPv4 as ::ffff:a.b.c.d, so that one comparison fits both. */
static void
plat_addr_bytes(const struct plat_addr *addr, uint8_t out[16])
{
    if (addr->ss.ss_family == AF_INET) {
        memcpy(out, PLAT_MAPPED, 12);
        memcpy(out + 12, &((const struct sockaddr_in *)&addr->ss)->sin_addr, 4);
    } else
        memcpy(out, &((const struct sockaddr_in6 *)&addr->ss)->sin6_addr, 16);
}

/* Writes 16 bytes of plat_addr_bytes as 127.0.0.1 or ::1. */
static void
plat_bytes_text(const uint8_t bytes[16], char out[64])
{
    bool is_v4 = memcmp(bytes, PLAT_MAPPED, 12) == 0;

    inet_ntop(is_v4 ? AF_INET : AF_INET6, is_v4 ? bytes + 12 : bytes, out, 64);
}

/* Writes an address as 127.0.0.1:80 or [::1]:80. */
static void
plat_addr_text(const struct plat_addr *addr, char out[64])
{
    uint8_t bytes[16];
    char host[64];

    plat_addr_bytes(addr, bytes);
    plat_bytes_text(bytes, host);
    snprintf(out, 64, strchr(host, ':') ? "[%.48s]:%d" : "%.48s:%d", host,
        ntohs(((const struct sockaddr_in *)&addr->ss)->sin_port));
}

/* -- Files -- */

/* Returns the size of an open file; -1 with errno. */
static int64_t
plat_file_len(int handle)
{
    struct stat st;

    return fstat(handle, &st) == 0 ? (int64_t)st.st_size : -1;
}

/* Returns when what was written would survive a power cut. */
static int
plat_file_sync(int handle)
{
    return fdatasync(handle) == 0 ? 0 : plat_fail(PLAT_LAST_ERROR);
}

/* Appends all of data. After -1 a part of it may have been written. */
static int
plat_write(int handle, const char *data, size_t len)
{
    while (len > 0) {
        long n = (long)write(handle, data, (unsigned)len);
        if (n < 0)
            return plat_fail(PLAT_LAST_ERROR);
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

/* True if standard output is the journal of systemd, which says so (systemd.exec(5)). */
static bool
plat_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    struct stat st = {0};
    char own[48];

    if (!stream || fstat(STDOUT_FILENO, &st) != 0)
        return false;
    snprintf(own, sizeof own, "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    return strcmp(stream, own) == 0;
}

/*
 * Opens a file of the state directory, which an account with fewer rights may own. flags:
 * O_RDONLY or O_RDWR, O_CREAT, O_EXCL as for open; what is written is appended.
 * EINVAL: a link, a file with several names, a folder, device, FIFO or socket.
 * Never waits, never changes an owner.
 */
static int
plat_state_open(const char *path, int flags)
{
    int own = O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int handle = plat_file_open(path, flags | own, 0600);
    struct stat st;

    /* A file without any name is fine: it has just been replaced. */
    if (handle >= 0 && fstat(handle, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink <= 1)
        return handle;
    plat_file_close(handle);
    if (handle >= 0 || errno == ELOOP || errno == EISDIR || errno == ENXIO)
        errno = EINVAL;
    return -1;
}

/* Reads a whole file into *data (malloc, NUL-ended). EISDIR: a folder; EFBIG: over max bytes. */
static int
plat_read_file(const char *path, size_t max, char **data, size_t *len)
{
    int handle = plat_file_open(path, O_RDONLY | O_CLOEXEC, 0);
    char *room = handle < 0 ? NULL : malloc(max + 2);
    long n = -1;

    *len = 0;
    while (room && (n = (long)read(handle, room + *len, (unsigned)(max + 1 - *len))) > 0)
        *len += (size_t)n;
    if (*len > max)
        errno = EFBIG;
    plat_file_close(handle);
    if (n != 0 || *len > max) {
        free(room);
        *len = 0;
        return -1;
    }
    room[*len] = '\0';
    *data = room;
    return 0;
}

/*
 * Returns how much of file, its folder, goes before path: nothing if path begins with a
 * separator or a drive.
 */
static size_t
plat_path_folder_len(const char *file, const char *path)
{
    size_t n = strcspn(path, PLAT_SEPARATORS), len = strlen(file);

    if (path[n] && (n == 0 || path[n] == ':'))
        return 0;
    while (len > 0 && !strchr(PLAT_SEPARATORS, file[len - 1]))
        len--;
    return len;
}

/* ==== 3. Base ===============================================================
 *
 * What every section uses: error texts, memory that cannot run out unnoticed,
 * growing buffers, slices of text, numbers, UTF-8, percent-encoding.
 */

/* Why something failed: who, what, why. */
struct err {
    char text[640];
};

/* Bytes that belong to somebody else; may hold NUL. */
struct slice {
    const char *data;
    size_t len;
};

/* Bytes of our own that grow. data is NUL-ended once anything was added. */
struct buf {
    char *data;
    size_t len;
    size_t cap;
};

/* A number in decimal, by value. */
struct number {
    char text[21];
};

/* Ends the process at once, with a line on stderr. Async-signal-safe. */
_Noreturn static void
x_die(const char *text)
{
    plat_report(PLAT_FAILED, text);
    plat_console_write(STDERR_FILENO, text, strlen(text));
    plat_exit_now(1);
}

/* Returns p. Ends the program if it is NULL: every size from outside was bounded before. */
static void *
x_check(void *p)
{
    if (!p)
        x_die("butler_webhook: out of memory\n");
    return p;
}

/* As malloc, but never NULL. */
static void *
x_malloc(size_t size)
{
    return x_check(malloc(size));
}

/* As calloc, but never NULL. */
static void *
x_calloc(size_t count, size_t size)
{
    return x_check(calloc(count, size));
}

/* Makes room for more bytes and a NUL behind them. */
static void
buf_reserve(struct buf *b, size_t more)
{
    size_t cap = b->cap ? b->cap : 64;

    if (b->data && more < b->cap - b->len)
        return;
    while (cap < b->len + more + 1)
        cap *= 2;
    b->data = x_check(realloc(b->data, cap));
    b->cap = cap;
}

/* Adds len bytes, which must not lie in b itself. */
static void
buf_add(struct buf *b, const void *data, size_t len)
{
    buf_reserve(b, len);
    if (len > 0)
        memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
}

/* Adds a NUL-ended text. */
static void
buf_add_text(struct buf *b, const char *text)
{
    buf_add(b, text, strlen(text));
}

/* Adds several texts, up to a NULL: many times faster than buf_format. */
__attribute__((sentinel)) static void
buf_add_texts(struct buf *b, ...)
{
    const char *text;
    va_list args;

    va_start(args, b);
    while ((text = va_arg(args, const char *)))
        buf_add_text(b, text);
    va_end(args);
}

/* Returns a number as text. */
static struct number
number_text(uint64_t n)
{
    struct number out = {""};
    size_t at = 1;

    for (uint64_t rest = n; rest > 9; rest /= 10)
        at++;
    for (; at > 0; n /= 10)
        out.text[--at] = (char)('0' + n % 10);
    return out;
}

static void
buf_add_char(struct buf *b, int c)
{
    buf_add(b, &(char){(char)c}, 1);
}

/* Adds what vprintf would print. */
__attribute__((format(PRINTF, 2, 0))) static void
buf_vformat(struct buf *b, const char *format, va_list args)
{
    va_list again;
    int len;

    va_copy(again, args);
    len = vsnprintf(NULL, 0, format, again);
    va_end(again);
    buf_reserve(b, (size_t)len);
    b->len += (size_t)vsnprintf(b->data + b->len, (size_t)len + 1, format, args);
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

/* Removes len bytes from the front of b, which holds at least as many. */
static void
buf_drop(struct buf *b, size_t len)
{
    b->len -= len;
    if (b->data)
        memmove(b->data, b->data + len, b->len + 1);
}

/* Frees the memory; b is empty then, and can be used again. */
static void
buf_free(struct buf *b)
{
    free(b->data);
    *b = (struct buf){0};
}

/* Sets the text, cut to what fits. e's own text may be an argument, to put words around it. */
__attribute__((format(PRINTF, 2, 3))) static void
err_set(struct err *e, const char *format, ...)
{
    struct err made;
    va_list args;

    va_start(args, format);
    vsnprintf(made.text, sizeof made.text, format, args);
    va_end(args);
    *e = made;
}

/* Returns a NUL-ended text as a slice, without the NUL. */
static struct slice
slice_of(const char *text)
{
    return (struct slice){text, strlen(text)};
}

/* True if a is exactly text; ASCII case does not count. */
static bool
slice_is(struct slice a, const char *text)
{
    return strlen(text) == a.len && (a.len == 0 || strncasecmp(a.data, text, a.len) == 0);
}

/* Cuts the characters of blank off both ends. */
static struct slice
slice_trim(struct slice s, const char *blank)
{
    while (s.len > 0 && s.data[0] && strchr(blank, s.data[0]))
        s.data++, s.len--;
    while (s.len > 0 && s.data[s.len - 1] && strchr(blank, s.data[s.len - 1]))
        s.len--;
    return s;
}

/* Takes what stands before the next separator, and the separator, off the front of *rest. */
static struct slice
slice_take(struct slice *rest, char separator)
{
    const char *end = rest->len ? memchr(rest->data, separator, rest->len) : NULL;
    struct slice part = {rest->data, end ? (size_t)(end - rest->data) : rest->len};

    rest->data += part.len + (end ? 1 : 0);
    rest->len -= part.len + (end ? 1 : 0);
    return part;
}

/* Returns the value of a decimal number without sign, -1 if s is none or over max. */
static int64_t
slice_number(struct slice s, int64_t max)
{
    int64_t n = s.len > 0 ? 0 : -1;

    for (size_t i = 0; i < s.len && n >= 0; i++) {
        n = s.data[i] >= '0' && s.data[i] <= '9' ? n * 10 + (s.data[i] - '0') : -1;
        n = n <= max ? n : -1;
    }
    return n;
}

/* Returns the value of a hexadecimal digit, -1 for anything else. */
static int
hex_value(int c)
{
    if (c >= '0' && c <= '9')
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

/* Reads len bytes from the 2 * len hexadecimal digits that s must start with. 0, or -1. */
static int
hex_read(struct slice s, uint8_t *bytes, size_t len)
{
    if (s.len < 2 * len)
        return -1;
    for (size_t i = 0; i < len; i++) {
        int high = hex_value(s.data[2 * i]), low = hex_value(s.data[2 * i + 1]);
        if (high < 0 || low < 0)
            return -1;
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

/*
 * Reads one character of UTF-8 (RFC 3629: no surrogates, no overlong forms)
 * from at most len bytes, len > 0. Returns its length and sets *point, or
 * returns 0: it is not UTF-8.
 */
static size_t
utf8_read(const char *text, size_t len, uint32_t *point)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *p = (const unsigned char *)text;
    size_t n = p[0] < 0x80 ? 1 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
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

/* True if all of it is UTF-8, as utf8_read reads it. */
static bool
utf8_is_valid(const char *text, size_t len)
{
    uint32_t point;
    size_t n = 1;

    for (; len > 0 && n > 0; text += n, len -= n)
        n = (unsigned char)*text < 0x80 ? 1 : utf8_read(text, len, &point);
    return n > 0;
}

/* Adds one character as UTF-8; a surrogate, or NUL, which texts cannot hold, becomes U+FFFD. */
static void
utf8_add(struct buf *b, uint32_t c)
{
    size_t n;

    if (c == 0 || (c >= 0xd800 && c <= 0xdfff))
        c = 0xfffd;
    n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    /* The first byte begins with c0, e0 or f0, for n = 2, 3, 4; each other has six bits of c. */
    buf_add_char(b, (int)(n == 1 ? c : (0xf00u >> n & 0xf0u) | c >> 6 * (n - 1)));
    while (--n > 0)
        buf_add_char(b, (int)(0x80 | (c >> 6 * (n - 1) & 0x3f)));
}

/* Adds s; what is no letter, no digit and not in plain becomes %XX, a blank in plain "+". */
static void
percent_encode(struct buf *b, struct slice s, const char *plain)
{
    static const char digits[] = "0123456789ABCDEF";

    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.data[i];
        if (isalnum(c) || (c && strchr(plain, c)))
            buf_add_char(b, c == ' ' ? '+' : c);
        else
            buf_add(b, (char[3]){'%', digits[c >> 4], digits[c & 15]}, 3);
    }
}

/* ==== 4. Log ================================================================
 *
 * Lines go into a bounded queue. The log thread writes them to the file, then
 * to the console, so neither a slow disk nor a console that nobody reads holds
 * the loop up. Lines that find no room, or that cannot be written, are counted;
 * the count is logged when lines can be written again. A few lines are events: Windows'
 * event log gets them as well.
 *
 * Threads: the loop calls everything but log_thread; that one calls log_line, too.
 */

enum log_level { LOG_NONE = -1, LOG_ERROR, LOG_WARN, LOG_INFO, LOG_VERBOSE, LOG_DEBUG, LOG_SILLY };

static const char *const LOG_LEVELS[] = {"error", "warn", "info", "verbose", "debug", "silly"};

/* A short text for a log line, returned by value. */
struct log_text {
    char text[LOG_NAME_MAX + 8];
};

/* An event that can come again and again: the event log gets the last of a minute. */
struct log_event {
    enum plat_event number; /* of the last; 0: it has never come */
    unsigned count;         /* how many it has not told of ... */
    struct buf text;        /* ... and the last of them */
    int64_t next_ms;        /* not before */
    struct log_event *next; /* of those that have come */
};

static struct log {
    enum log_level level;    /* set before the thread starts, as folder */
    const char *folder;      /* NULL: no file */
    atomic_ullong unwritten; /* lines that wait or are missing; the signal handler reads it */
    struct plat_monitor lock;
    struct buf queue;       /* guarded by lock: whole lines ... */
    size_t lines;           /* guarded by lock: ... and how many */
    struct buf events;      /* guarded by lock: for each its number, a text and a NUL */
    bool running, stopping; /* guarded by lock */
    atomic_bool last;       /* the last lines come: there is room for them */
    struct log_event *came; /* loop only */
    int file;               /* log thread only; -1: none is open */
    int64_t day;            /* log thread only: that of the open file, since 1970 */
} the_log = {.level = LOG_NONE};

/*
 * Adds text so that it cannot be taken for anything else on a terminal or in a
 * log: control characters, line ends and marks of text direction as escapes,
 * bytes that are not UTF-8 as \xNN.
 */
static void
log_add_clean(struct buf *b, struct slice s)
{
    for (size_t i = 0, n; i < s.len; i += n) {
        uint32_t c = ' ';
        for (n = 0; i + n < s.len && s.data[i + n] >= ' ' && s.data[i + n] < 0x7f;)
            n++;
        if (n == 0) /* seldom */
            n = utf8_read(s.data + i, s.len - i, &c);
        if (n == 0 || c < 0x20)
            buf_format(b, "\\x%02x", (unsigned char)s.data[i]);
        else if ((c >= 0x7f && c < 0xa0) || (c >= 0x200b && c <= 0x200f) ||
            (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x2069) || c == 0x61c ||
            c == 0xfeff)
            buf_format(b, "\\u%04x", (unsigned)c);
        else
            buf_add(b, s.data + i, n);
        n = n ? n : 1;
    }
}

/* Returns a cleaned copy of s, cut at LOG_NAME_MAX bytes. */
static struct log_text
log_text(struct slice s)
{
    struct log_text out;
    char room[6 * (LOG_NAME_MAX + 4) + 1] = ""; /* \u007f for a byte is the most */
    struct buf b = {.data = room, .cap = sizeof room};
    size_t len;

    log_add_clean(&b, (struct slice){s.data, s.len < LOG_NAME_MAX + 4 ? s.len : LOG_NAME_MAX + 4});
    len = b.len < LOG_NAME_MAX ? b.len : LOG_NAME_MAX;
    while (len < b.len && ((unsigned char)b.data[len] & 0xc0) == 0x80)
        len--;
    memcpy(out.text, b.data, len);
    memcpy(out.text + len, len < b.len ? "..." : "", len < b.len ? 4 : 1);
    return out;
}

/* Writes milliseconds since 1970, up to the year 9999, as 2026-11-22T09:30:00.123Z. */
static void
log_time(int64_t wall_ms, char out[32])
{
    struct tm t = {0};

    wall_ms = wall_ms < 0 || wall_ms > INT64_C(253402300799999) ? 0 : wall_ms;
    mbedtls_platform_gmtime_r(&(mbedtls_time_t){wall_ms / 1000}, &t);
    const int part[][2] = {{4, t.tm_year + 1900}, {7, t.tm_mon + 1}, {10, t.tm_mday},
        {13, t.tm_hour}, {16, t.tm_min}, {19, t.tm_sec}, {23, (int)(wall_ms % 1000)}};
    memcpy(out, "0000-00-00T00:00:00.000Z", 25);
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) /* strftime takes ten times as long */
        for (int at = part[i][0], n = part[i][1]; n > 0; n /= 10)
            out[--at] = (char)('0' + n % 10);
}

/* Queues one line, cleaned. False: its level is not wanted, or it finds no room. */
static bool
log_add(enum log_level level, struct slice text)
{
    struct buf *queue = &the_log.queue;
    char when[32];
    size_t before;
    bool fits;

    if (level > the_log.level)
        return false;
    log_time(plat_wall_ms(), when);
    pthread_mutex_lock(&the_log.lock.mutex);
    before = queue->len;
    buf_add_texts(queue, when, " ", LOG_LEVELS[level], ": ", NULL);
    log_add_clean(queue, text);
    buf_add_text(queue, PLAT_EOL);
    fits = queue->len <= LOG_QUEUE_MAX || the_log.last;
    if (!fits)
        queue->len = before;
    the_log.lines += fits;
    the_log.unwritten++;
    if (before == 0)
        pthread_cond_broadcast(&the_log.lock.changed);
    pthread_mutex_unlock(&the_log.lock.mutex);
    return fits;
}

/* The same with a text as printf makes it, which takes ten times as long. */
__attribute__((format(PRINTF, 2, 3))) static bool
log_line(enum log_level level, const char *format, ...)
{
    struct buf text = {0};
    bool fits;
    va_list args;

    va_start(args, format);
    buf_vformat(&text, format, args);
    va_end(args);
    fits = log_add(level, (struct slice){text.data, text.len});
    buf_free(&text);
    return fits;
}

/* Logs a line that is an event; log_report tells Windows of it, whatever logLevel is. */
__attribute__((format(PRINTF, 4, 5))) static void
log_event(
    struct log_event *e, enum plat_event number, enum log_level level, const char *format, ...)
{
    va_list args;

    if (!e->number) {
        e->next = the_log.came;
        the_log.came = e;
    }
    e->number = number;
    e->count++;
    e->text.len = 0;
    va_start(args, format);
    buf_vformat(&e->text, format, args);
    va_end(args);
    log_add(level, (struct slice){e->text.data, e->text.len});
}

/*
 * Hands what has happened to the log thread, each at most once a minute: the event log may
 * keep who writes to it waiting, which must not be the loop.
 */
static void
log_report(int64_t now_ms)
{
    for (struct log_event *e = the_log.came; e; e = e->next) {
        if (e->count == 0 || now_ms < e->next_ms)
            continue;
        e->next_ms = now_ms + MINUTE_MS;
        pthread_mutex_lock(&the_log.lock.mutex);
        buf_add_char(&the_log.events, (char)e->number);
        log_add_clean(&the_log.events, (struct slice){e->text.data, e->text.len});
        if (e->count > 1)
            buf_format(&the_log.events, " (the last of %u within a minute)", e->count);
        buf_add_char(&the_log.events, '\0');
        if (the_log.events.len > LOG_QUEUE_MAX) /* nobody has taken them for long */
            the_log.events.len = 0;
        pthread_cond_broadcast(&the_log.lock.changed);
        pthread_mutex_unlock(&the_log.lock.mutex);
        e->count = 0;
    }
}

/*
 * Opens the file of the day, if it is not open, and deletes those of the year before
 * the days that are kept. 0, or -1 with errno.
 */
static int
log_open_file(int64_t wall_ms)
{
    const int64_t day_ms = 86400000;
    bool is_new = wall_ms / day_ms != the_log.day;
    char day[32], path[PATH_ROOM];

    if (the_log.file >= 0 && !is_new)
        return 0;
    plat_file_close(the_log.file);
    the_log.file = -1;
    the_log.day = wall_ms / day_ms;
    for (int days = 0; days <= (is_new ? LOG_KEEP_DAYS + 366 : 0); days++) {
        log_time(wall_ms - days * day_ms, day);
        snprintf(path, sizeof path, "%s/butler_webhook.%.10s.log", the_log.folder, day);
        if (days > LOG_KEEP_DAYS)
            plat_remove(path);
        else if (days == 0)
            the_log.file = plat_file_open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
        if (the_log.file < 0)
            return -1;
    }
    return 0;
}

/*
 * Writes lines to the console. systemd's journal takes a syslog priority in front of each
 * (sd-daemon(3)), which its level tells: it stands behind the time. 0, or -1.
 */
static int
log_write_console(struct slice lines)
{
    bool is_journal = plat_is_journal();
    struct buf marked = {0};
    int result;

    while (is_journal && lines.len > 0) {
        struct slice line = slice_take(&lines, '\n');
        char level = line.data[sizeof "2026-11-22T09:30:00.123Z"];
        buf_add_text(&marked, level == 'e' ? "<3>" : level == 'w' ? "<4>" : "<6>");
        buf_add(&marked, line.data, line.len);
        buf_add_char(&marked, '\n');
    }
    if (is_journal)
        lines = (struct slice){marked.data, marked.len};
    result = plat_console_write(STDOUT_FILENO, lines.data, lines.len);
    buf_free(&marked);
    return result;
}

/*
 * Writes what is queued until log_stop, then what is left. Woken, it first lets
 * lines gather for LOG_GATHER_MS, so that a burst does not wake it for each.
 */
static plat_thread
log_thread(void *arg)
{
    struct buf lines, events;
    size_t count, missing;

    (void)arg;
    for (;;) {
        pthread_mutex_lock(&the_log.lock.mutex);
        while (the_log.queue.len + the_log.events.len == 0 && !the_log.stopping)
            plat_monitor_wait(&the_log.lock, WAIT_MAX_MS);
        if (!the_log.stopping)
            plat_monitor_wait(&the_log.lock, LOG_GATHER_MS);
        if (the_log.queue.len + the_log.events.len == 0)
            break;
        lines = the_log.queue;
        events = the_log.events;
        the_log.events = (struct buf){0};
        count = the_log.lines;
        missing = the_log.unwritten - count; /* found no room, or were not written before */
        the_log.queue = (struct buf){0};
        the_log.lines = 0;
        pthread_mutex_unlock(&the_log.lock.mutex);
        if (the_log.folder &&
            (log_open_file(plat_wall_ms()) != 0 ||
                plat_write(the_log.file, lines.data, lines.len) != 0)) {
            plat_file_close(the_log.file); /* a share that was away takes a new handle only */
            the_log.file = -1;
            count = 0;
        }
        if (log_write_console((struct slice){lines.data, lines.len}) != 0 && !the_log.folder)
            count = 0;
        for (size_t i = 0; i < events.len; i += strlen(events.data + i) + 1)
            plat_report((enum plat_event)events.data[i], events.data + i + 1);
        buf_free(&lines);
        buf_free(&events);
        the_log.unwritten -= count;
        if (count > 0 && missing > 0 &&
            log_line(LOG_ERROR, "%zu log lines are missing: the console or the file took no more",
                missing))
            the_log.unwritten -= missing;
    }
    the_log.running = false;
    pthread_cond_broadcast(&the_log.lock.changed);
    pthread_mutex_unlock(&the_log.lock.mutex);
    return 0;
}

/*
 * Starts the log; before, log_line does nothing. The file goes into folder, which must
 * outlive the log and is made if need be; NULL: console only. -1 with e: there is no
 * file or no thread, and nothing will be written.
 */
static int
log_start(enum log_level level, const char *folder, struct err *e)
{
    the_log = (struct log){.level = level, .folder = folder, .file = -1};
    plat_monitor_init(&the_log.lock);
    if (folder && (plat_make_folder(folder, false) != 0 || log_open_file(plat_wall_ms()) != 0)) {
        err_set(e, "cannot write a log file in %s: %s", folder, plat_error(errno));
        return -1;
    }
    the_log.running = plat_thread_start(log_thread, NULL) == 0;
    if (!the_log.running)
        err_set(e, "cannot start the log thread");
    return the_log.running ? 0 : -1;
}

/*
 * Gives the log thread until until_ms to write what waits. False: it hangs, and the log
 * must stay as it is.
 */
static bool
log_stop(int64_t until_ms)
{
    bool hangs;

    pthread_mutex_lock(&the_log.lock.mutex);
    the_log.stopping = true;
    pthread_cond_broadcast(&the_log.lock.changed);
    while (the_log.running && plat_now_ms() < until_ms)
        plat_monitor_wait(&the_log.lock, until_ms - plat_now_ms());
    hangs = the_log.running;
    pthread_mutex_unlock(&the_log.lock.mutex);
    return !hangs;
}

/* ==== 5. Alert ==============================================================
 *
 * A datagram, as log4net's PatternLayout printed it, becomes an alert; an alert
 * becomes a JSON body or a query string. Pure functions, and those through which
 * all sections use cJSON.
 *
 *   id;host;taskName;appName;user;taskId;appId;date;level;executionId;message
 *
 * Nothing in it is escaped, so a ";" may also belong to a name. Names and order
 * of the fields in a call are those of Butler's outgoing webhooks.
 */

enum alert_kind { ALERT_FAILURE, ALERT_ABORTED, ALERT_KINDS };

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
    FIELD_MESSAGE,
    ALERT_FIELDS,
    FIELD_KIND = ALERT_FIELDS, /* from here on in templates only */
    FIELD_SUPPRESSED,
    FIELD_RECEIVED_AT,
    FIELD_WEBHOOK_ID,
    TEMPLATE_FIELDS
};

#define FIELD_LIST /* for people */                                                                \
    "event, hostName, user, taskName, taskId, appName, appId, logTimeStamp, logLevel, "            \
    "executionId, logMessage"

static const char *const FIELD_NAMES[TEMPLATE_FIELDS] = {"event", "hostName", "user", "taskName",
    "taskId", "appName", "appId", "logTimeStamp", "logLevel", "executionId", "logMessage", "kind",
    "suppressed", "receivedAt", "webhookId"};

static const struct {
    const char *name; /* in log lines and tables, and in the journal */
    const char *short_text;
    const char *event; /* what receivers get */
    const char *key;   /* in the configuration */
    const char *ids;   /* of its datagrams */
} KINDS[ALERT_KINDS] = {
    {"failure", "reload failed", "Qlik Sense reload failed", "reloadTaskFailure",
        "/scheduler-reload-failed/ /scheduler-task-failed/ /scheduler-reloadtask-failed/"},
    {"aborted", "reload aborted", "Qlik Sense reload aborted", "reloadTaskAborted",
        "/scheduler-reload-aborted/ /scheduler-task-aborted/"},
};

/* The other ids that Qlik Sense's log appenders, or Butler's samples for them, may send. */
static const char OTHER_IDS[] =
    "/scheduler-reload-success/ /scheduler-task-success/ /scheduler-task-success// "
    "/scheduler-reloadtask-success/ /scheduler-reload-complete/ /scheduler-distribute/ "
    "/engine-reload-failed/";

/* log4net.Core.Level: all the names that %level can print. */
static const char LOG4NET_LEVELS[] =
    "INFO WARN ERROR FATAL DEBUG OFF EMERGENCY ALERT CRITICAL SEVERE NOTICE TRACE FINE FINER "
    "FINEST VERBOSE ALL log4net:DEBUG";

#define ALERT_ABOUT_LEN 35  /* for alert_about */
#define QUERY_PLAIN "*-._ " /* what URLSearchParams does not encode, beside letters and digits */

/* The alert at hand; what waits is kept as JSON. Begins zeroed, and is reused. */
struct alert {
    enum alert_kind kind;
    const char *field[ALERT_FIELDS]; /* UTF-8; constant, in text, or in what it was read from */
    uint32_t suppressed; /* alerts of its task that the rate limit held back before it */
    struct buf text;     /* of a datagram */
};

/* What becomes of a datagram: alert_parse knows the first four, the listener the others. */
enum listen_fate {
    LISTEN_ACCEPTED,
    LISTEN_IGNORED, /* known, and not for us */
    LISTEN_MALFORMED,
    LISTEN_UNKNOWN,
    LISTEN_REFUSED,
    LISTEN_OVERSIZE,
    LISTEN_OVER_RATE,
    LISTEN_DUPLICATE,
    LISTEN_HELD_BACK,
    LISTEN_UNMATCHED, /* an alert that no webhook's match fits */
    LISTEN_FATES
};

/* Windows-1252, 0x80 to 0x9f; its five undefined bytes stand for themselves. */
static const uint16_t CP1252[32] = {0x20ac, 0x81, 0x201a, 0x192, 0x201e, 0x2026, 0x2020, 0x2021,
    0x2c6, 0x2030, 0x160, 0x2039, 0x152, 0x8d, 0x17d, 0x8f, 0x90, 0x2018, 0x2019, 0x201c, 0x201d,
    0x2022, 0x2013, 0x2014, 0x2dc, 0x2122, 0x161, 0x203a, 0x153, 0x9d, 0x17e, 0x178};

/* Returns what text holds; cJSON_Delete frees it. NULL: not JSON, not UTF-8, or more behind it. */
static cJSON *
json_read(struct slice text)
{
    const char *end = NULL;
    cJSON *value = NULL;

    text = slice_trim(text, " \t\r\n");
    if (utf8_is_valid(text.data, text.len)) /* cJSON does not look */
        value = cJSON_ParseWithLengthOpts(text.data, text.len, &end, false);
    if (end == text.data + text.len)
        return value;
    cJSON_Delete(value);
    return NULL;
}

/* Adds value as JSON.stringify would print it; nothing if value is NULL. */
static void
json_print(const cJSON *value, struct buf *b)
{
    size_t room = 512;

    if (!value)
        return;
    do
        buf_reserve(b, room *= 2);
    while (!cJSON_PrintPreallocated((cJSON *)value, b->data + b->len, (int)room, false));
    b->len += strlen(b->data + b->len);
}

/* Returns the text that object has under key, "" if there is none or it is no text. */
static const char *
json_text(const cJSON *object, const char *key)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));

    return text ? text : "";
}

/* Adds a text to object by reference: key and text must outlive it. */
static void
json_put(cJSON *object, const char *key, const char *text)
{
    cJSON_AddItemToObjectCS(object, key, cJSON_CreateStringReference(text));
}

/* Adds UTF-16 as UTF-8; lone surrogates and an odd byte at the end become U+FFFD. */
static void
alert_decode_utf16(struct slice s, bool big_endian, struct buf *out)
{
    size_t high = big_endian ? 0 : 1, low = 1 - high;
    const unsigned char *p = (const unsigned char *)s.data;

    for (size_t i = 0; i + 1 < s.len; i += 2) {
        uint32_t c = (uint32_t)p[i + high] << 8 | p[i + low];
        uint32_t next = i + 3 < s.len ? (uint32_t)p[i + 2 + high] << 8 | p[i + 2 + low] : 0;
        if (c >> 10 == 0xd800 >> 10 && next >> 10 == 0xdc00 >> 10) {
            c = 0x10000 + ((c - 0xd800) << 10) + (next - 0xdc00);
            i += 2;
        }
        utf8_add(out, c);
    }
    if (s.len % 2)
        utf8_add(out, 0xfffd);
}

/*
 * Adds the datagram to out as UTF-8, NUL as U+FFFD. Its encoding is told by how
 * it starts (an id starts with "/"), else by whether all of it is UTF-8.
 */
static void
alert_decode(struct slice s, struct buf *out)
{
    static const struct slice marks[] = {{"\xff\xfe", 2}, {"\xfe\xff", 2}, {"\xef\xbb\xbf", 3}};
    bool utf8;
    size_t n;

    for (const struct slice *m = marks; m < marks + 3; m++)
        if (s.len >= m->len && memcmp(s.data, m->data, m->len) == 0)
            s = (struct slice){s.data + m->len, s.len - m->len};
    if (s.len >= 2 && (memcmp(s.data, "/\0", 2) == 0 || memcmp(s.data, "\0/", 2) == 0)) {
        alert_decode_utf16(s, s.data[0] == '\0', out);
        return;
    }
    utf8 = utf8_is_valid(s.data, s.len);
    for (; s.len > 0; s.data += n, s.len -= n) {
        n = utf8 ? strnlen(s.data, s.len) : 0;
        buf_add(out, s.data, n);
        if (n < s.len) {
            unsigned char c = (unsigned char)s.data[n++];
            utf8_add(out, c >= 0x80 && c < 0xa0 ? CP1252[c - 0x80] : c);
        }
    }
}

/* True for what log4net prints for a property that is not set, and for nothing at all. */
static bool
alert_is_unset(struct slice s)
{
    return s.len == 0 || (s.len == 6 && memcmp(s.data, "(null)", 6) == 0);
}

/*
 * Reads an id: a GUID, with or without braces, in the order of its digits. True also
 * for one that is not set, with out as it was. False: neither.
 */
static bool
alert_read_id(struct slice id, uint8_t out[16])
{
    if (alert_is_unset(id))
        return true;
    if (id.len == 38 && id.data[0] == '{' && id.data[37] == '}')
        id = (struct slice){id.data + 1, 36};
    for (size_t i = 0; i < 36 && id.len == 36; i += 2) {
        i += i == 8 || i == 13 || i == 18 || i == 23;
        if (hex_read((struct slice){id.data + i, 2}, out++, 1) != 0)
            return false;
    }
    return id.len == 36 && id.data[8] == '-' && id.data[13] == '-' && id.data[18] == '-' &&
        id.data[23] == '-';
}

/* Makes a key of 16 bytes: the GUID in id unless it is all zeros, else a hash of hashed. */
static void
alert_key(const char *id, struct slice hashed, uint8_t out[16])
{
    uint8_t hash[32];

    if (id[strspn(id, "{0-}")] && !alert_is_unset(slice_of(id)) && alert_read_id(slice_of(id), out))
        return;
    mbedtls_sha256((const unsigned char *)hashed.data, hashed.len, hash, 0);
    memcpy(out, hash, 16);
}

/* True if s is one of the words of list, which stand behind each other with a blank between. */
static bool
alert_is_one_of(struct slice s, const char *list)
{
    for (struct slice rest = slice_of(list); s.len > 0 && rest.len > 0;) {
        struct slice word = slice_take(&rest, ' ');
        if (s.len == word.len && strncasecmp(s.data, word.data, s.len) == 0)
            return true;
    }
    return false;
}

/*
 * Cuts names at two of its ";" into task name, app name and user. Best is where the
 * task name ends with the app name, as Qlik's own default names do; then where no ";"
 * has a space behind it; then the shortest task name; then the shortest user: they
 * are tried first. Only CUT_PLACES_MAX are tried, and app names of up to 1,024 bytes
 * compared: a hostile datagram may cost no more.
 */
static void
alert_cut_names(struct slice names, struct slice *field)
{
    size_t at[CUT_PLACES_MAX], n = 0;
    int best = -1;

    for (size_t i = 0; i < names.len; i++)
        if (names.data[i] == ';')
            at[n < CUT_PLACES_MAX ? n++ : CUT_PLACES_MAX - 1] = i;
    for (size_t a = 0; a < n; a++)
        for (size_t b = n; b-- > a + 1;) {
            struct slice task = {names.data, at[a]};
            struct slice app = {names.data + at[a] + 1, at[b] - at[a] - 1};
            struct slice user = {names.data + at[b] + 1, names.len - at[b] - 1};
            bool named = !alert_is_unset(app) && app.len <= task.len && app.len <= 1024 &&
                memcmp(task.data + task.len - app.len, app.data, app.len) == 0;
            bool spaced = app.data[0] == ' ' || (user.len > 0 && user.data[0] == ' ');
            int rank = (named ? 2 : 0) + (spaced ? 0 : 1);
            if (rank > best) {
                best = rank;
                field[FIELD_TASK_NAME] = task;
                field[FIELD_APP_NAME] = app;
                field[FIELD_USER] = user;
            }
        }
}

/*
 * Finds the fields in rest, which is all behind the host, by the first run of
 * taskId;appId;date;level;executionId with at least three fields before it, so that
 * executionId is field 7 or later. The level may be any if the run stands where it does
 * in a datagram without a ";" too many.
 */
static bool
alert_find_fields(struct slice rest, struct slice *field)
{
    const char *begin = rest.data;
    uint8_t id[16];

    for (size_t n = 0; rest.len > 0; n++) {
        field[FIELD_TASK_ID] = field[FIELD_APP_ID];
        for (int i = FIELD_APP_ID; i < FIELD_EXECUTION_ID; i++)
            field[i] = field[i + 1];
        field[FIELD_EXECUTION_ID] = slice_take(&rest, ';');
        if (n < 7 || !alert_read_id(field[FIELD_TASK_ID], id) ||
            !alert_read_id(field[FIELD_APP_ID], id))
            continue;
        if (alert_is_one_of(field[FIELD_LEVEL], LOG4NET_LEVELS) ||
            (n == 7 && !memchr(rest.data, ';', rest.len))) {
            size_t names_len = (size_t)(field[FIELD_TASK_ID].data - 1 - begin);
            alert_cut_names((struct slice){begin, names_len}, field);
            field[FIELD_MESSAGE] = rest;
            return true;
        }
    }
    return false;
}

/*
 * Makes *out of one datagram and says what it is; e tells more if it is no alert. *out is
 * valid until it is used again.
 */
static enum listen_fate
alert_parse(struct slice datagram, struct alert *out, struct err *e)
{
    struct slice rest, id, field[ALERT_FIELDS] = {{0}};
    char *text, *user;

    out->text.len = 0;
    buf_add(&out->text, "", 0);
    alert_decode(datagram, &out->text);
    text = out->text.data;
    rest = (struct slice){text, out->text.len};
    while (rest.len > 0 && (text[rest.len - 1] == '\r' || text[rest.len - 1] == '\n'))
        rest.len--;
    id = slice_take(&rest, ';');
    out->kind = 0;
    while (out->kind < ALERT_KINDS && !alert_is_one_of(id, KINDS[out->kind].ids))
        out->kind++;
    if (out->kind == ALERT_KINDS) {
        err_set(e, "%s", log_text(id).text);
        return alert_is_one_of(id, OTHER_IDS) ? LISTEN_IGNORED : LISTEN_UNKNOWN;
    }
    field[FIELD_HOST_NAME] = slice_take(&rest, ';');
    if (!alert_find_fields(rest, field)) {
        err_set(e, "no taskId;appId;date;level;executionId behind host, task, app and user");
        return LISTEN_MALFORMED;
    }
    /* A NUL in place of what stands behind each field: a ";", or the line ends that were cut. */
    for (int i = FIELD_HOST_NAME; i < ALERT_FIELDS; i++) {
        text[field[i].data - text + (ptrdiff_t)field[i].len] = '\0';
        out->field[i] = i < FIELD_MESSAGE && alert_is_unset(field[i]) ? "" : field[i].data;
    }
    out->field[FIELD_EVENT] = KINDS[out->kind].event;
    if (out->field[FIELD_APP_ID][strspn(out->field[FIELD_APP_ID], "{0-}")] == '\0') {
        err_set(e, "task \"%s\" is not a reload: no appId",
            log_text(slice_of(out->field[FIELD_TASK_NAME])).text);
        return LISTEN_IGNORED;
    }
    /* In a failed event Butler makes one backslash of two in the user; receivers may rely on it. */
    user = text + (field[FIELD_USER].data - text);
    for (const char *from = user; *from; from++) {
        from += out->kind == ALERT_FAILURE && from[0] == '\\' && from[1] == '\\';
        *user++ = *from;
    }
    *user = '\0';
    return LISTEN_ACCEPTED;
}

/* Adds the JSON body of a POST or PUT; for a template its fields behind it, each after a NUL. */
static void
alert_add_json(const struct alert *alert, bool for_template, struct buf *b)
{
    cJSON item[ALERT_FIELDS + 1] = {{.type = cJSON_Object, .child = item + 1}};

    /* Not by cJSON's functions, which take memory for each. */
    for (int i = ALERT_FIELDS; i > 0; i--)
        item[i] = (cJSON){.type = cJSON_String,
            .next = i < ALERT_FIELDS ? item + i + 1 : NULL,
            .string = (char *)FIELD_NAMES[i - 1],
            .valuestring = (char *)alert->field[i - 1]};
    json_print(item, b);
    for (int i = 0; i < ALERT_FIELDS && for_template; i++) {
        buf_add_char(b, '\0');
        buf_add_text(b, alert->field[i]);
    }
}

/*
 * Reads an alert from the JSON that alert_add_json made, in which its fields stay. 0, or
 * -1: it is not such JSON, or NULL.
 */
static int
alert_read_json(const cJSON *json, struct alert *out)
{
    for (int i = 0; i < ALERT_FIELDS; i++)
        out->field[i] = json_text(json, FIELD_NAMES[i]);
    out->kind = 0;
    while (out->kind < ALERT_KINDS && strcmp(out->field[FIELD_EVENT], KINDS[out->kind].event) != 0)
        out->kind++;
    return out->kind < ALERT_KINDS ? 0 : -1;
}

/* Adds the alert that --test sends, as alert_add_json does. */
static void
alert_add_test(enum alert_kind kind, const char *host_name, struct buf *b)
{
    static const char zeros[] = "00000000-0000-0000-0000-000000000000";
    static const char name[] = "butler_webhook test";
    char now[32], when[32];
    const struct alert alert = {.kind = kind,
        .field = {KINDS[kind].event, host_name, "butler_webhook", name, zeros, name, zeros, when,
            "INFO", zeros, "Test of this webhook by butler_webhook --test"}};

    log_time(plat_wall_ms(), now);
    snprintf(when, sizeof when, "%.10s %.8s,%.3s", now, now + 11, now + 20);
    alert_add_json(&alert, true, b);
}

/*
 * Writes what a webhook-id says of an alert: the 32 hexadecimal digits of its
 * executionId or, if that is no GUID, of the SHA-256 of its JSON; then its kind.
 */
static void
alert_about(const struct alert *alert, struct slice json, char out[ALERT_ABOUT_LEN])
{
    uint8_t key[16] = {0};

    alert_key(alert->field[FIELD_EXECUTION_ID], json, key);
    hex_write(key, sizeof key, out);
    memcpy(out + 32, alert->kind == ALERT_FAILURE ? "_f" : "_a", 3);
}

/*
 * True if pattern stands for all of text: * for any characters, ? for one, an ASCII letter
 * for itself in either case. Only the last * is tried with more when the rest does not fit,
 * which suffices: the time is that of both lengths multiplied at most.
 */
static bool
alert_text_matches(const char *text, const char *pattern)
{
    const char *behind_star = NULL, *tried = NULL; /* with what begins there behind the last * */

    while (*text)
        if (*pattern == '*') {
            behind_star = ++pattern;
            tried = text;
        } else if (*pattern == '?' ||
            tolower((unsigned char)*pattern) == tolower((unsigned char)*text)) {
            text++;
            while (*pattern == '?' && (*text & 0xc0) == 0x80) /* the rest of a character of UTF-8 */
                text++;
            pattern++;
        } else if (behind_star) {
            pattern = behind_star;
            text = ++tried;
        } else
            return false;
    return pattern[strspn(pattern, "*")] == '\0';
}

/* True if each field matches one of the patterns for it, each with its NUL, or has none. */
static bool
alert_matches(const struct alert *alert, const struct buf patterns[ALERT_FIELDS])
{
    for (int i = 0; i < ALERT_FIELDS; i++) {
        const struct buf *b = &patterns[i];
        size_t at = 0;
        while (at < b->len && !alert_text_matches(alert->field[i], b->data + at))
            at += strlen(b->data + at) + 1;
        if (at == b->len && b->len > 0)
            return false;
    }
    return true;
}

/* ---- Templates: a body or a query of the user's own, with fields of the alert in it ---- */

/* What it is, and so how a field stands in it. */
enum template_form { TEMPLATE_TEXT, TEMPLATE_JSON, TEMPLATE_QUERY };

/* A text of a template, and the field behind it; a template is an array of these. */
struct template_piece {
    struct slice text;
    int field;  /* TEMPLATE_FIELDS: none, it is the last piece */
    size_t max; /* characters of the field that are sent */
};

/*
 * Reads a template, in which every {{ begins a field: {{NAME}} or {{NAME|MAX}}. Returns its
 * pieces, which point into text, and free frees them; NULL: one is no field.
 */
static struct template_piece *
template_read(const char *text)
{
    struct template_piece p;
    struct buf pieces = {0};

    for (const char *open, *end; (open = strstr(text, "{{")) != NULL; text = end + 2) {
        struct slice max = {open + 2, strcspn(open + 2, "}")}, name = slice_take(&max, '|');
        int64_t most = open[2 + name.len] == '|' ? slice_number(slice_trim(max, " "), DATAGRAM_MAX)
                                                 : DATAGRAM_MAX;
        end = open + strcspn(open, "}");
        name = slice_trim(name, " ");
        p = (struct template_piece){{text, (size_t)(open - text)}, 0, (size_t)most};
        while (p.field < TEMPLATE_FIELDS && !slice_is(name, FIELD_NAMES[p.field]))
            p.field++;
        if (p.field == TEMPLATE_FIELDS || most <= 0 || strncmp(end, "}}", 2) != 0) {
            buf_free(&pieces);
            return NULL;
        }
        buf_add(&pieces, &p, sizeof p);
    }
    p = (struct template_piece){slice_of(text), TEMPLATE_FIELDS, 0};
    buf_add(&pieces, &p, sizeof p);
    return (struct template_piece *)(void *)pieces.data;
}

/*
 * Returns how many bytes of value are sent: all, if it has at most max characters and room
 * bytes, else those before the character for which an ellipsis will stand.
 */
static size_t
template_cut(struct slice value, size_t max, size_t room)
{
    size_t kept = 0, next = value.len <= max && value.len <= room ? value.len : 0;

    for (; max > 0 && next < value.len && next <= room; max--) {
        kept = next++;
        while ((value.data[next] & 0xc0) == 0x80) /* the rest of a character of UTF-8 */
            next++;
    }
    return next == value.len && next <= room ? next : kept;
}

/*
 * Adds what a template makes of the values of all fields, each in the form that it needs
 * there. Those used, together, are cut at TEMPLATE_MAX bytes: each of them once always fits.
 */
static void
template_add(struct buf *b, enum template_form form, const struct template_piece *p,
    const struct slice values[TEMPLATE_FIELDS])
{
    size_t room = TEMPLATE_MAX;
    struct buf value = {0}, json = {0};

    for (; p->field < TEMPLATE_FIELDS; p++) {
        size_t len = template_cut(values[p->field], p->max, room);
        value.len = json.len = 0;
        buf_add(&value, values[p->field].data, len);
        buf_add_text(&value, len < values[p->field].len ? "\xe2\x80\xa6" : "");
        room -= value.len < room ? value.len : room;
        buf_add(b, p->text.data, p->text.len);
        if (form == TEMPLATE_QUERY)
            percent_encode(b, (struct slice){value.data, value.len}, QUERY_PLAIN);
        else if (form == TEMPLATE_JSON) {
            json_print(&(cJSON){.type = cJSON_String, .valuestring = value.data}, &json);
            buf_add(b, json.data + 1, json.len - 2); /* the template has the quotes */
        } else
            buf_add(b, value.data, value.len);
    }
    buf_add(b, p->text.data, p->text.len);
    buf_free(&value);
    buf_free(&json);
}

/*
 * Cuts a request target that ends with the standard query to max bytes, or if need be to where
 * its message begins: that is the last field, and a = inside it stands there as %3D.
 */
static void
template_cut_query(struct buf *target, size_t max)
{
    size_t begin = (size_t)(strrchr(target->data, '=') + 1 - target->data);
    char *end;

    if (target->len <= max)
        return;
    /* Not inside %XX, nor before a byte of UTF-8 that continues a character: %80 to %BF. */
    end = target->data + (max > begin ? max : begin);
    while (end[-1] == '%' || end[-2] == '%' || (end[0] == '%' && strchr("89AB", end[1])))
        end--;
    target->len = (size_t)(end - target->data);
    *end = '\0';
}

/* ==== 6. URL ================================================================
 *
 * Reads webhookURL, Location headers and proxy settings (RFC 3986, for http and
 * https). As in Butler, what may not stand in a path or query is encoded; what
 * only browsers understand (backslashes, tabs, 127.1, letters beyond ASCII in
 * the host) is an error. No error shows the URL: it may hold a password.
 */

struct url {
    bool tls;
    int port;
    char *host;       /* lower case; IPv6 without brackets */
    char *target;     /* path and query, percent-encoded, as it stands in a request */
    struct buf login; /* user:password; len 0: none */
    char *auth;       /* as in the header Authorization, of that; NULL: none */
    char *origin;     /* scheme://host:port, for comparison; behind "//" it is what Host holds */
    char *shown;      /* for people: without userinfo, query and long path segments */
};

/* Frees the parts of a URL. A zeroed URL is legal. */
static void
url_done(struct url *u)
{
    free(u->host);
    free(u->target);
    buf_free(&u->login);
    free(u->auth);
    free(u->origin);
    free(u->shown);
    *u = (struct url){0};
}

/* Reads an address, IPv4 as ::ffff:a.b.c.d. False: it is none. */
static bool
url_read_address(struct slice s, uint8_t out[16])
{
    char text[64] = "";

    if (s.len < sizeof text)
        memcpy(text, s.data, s.len);
    memcpy(out, PLAT_MAPPED, sizeof PLAT_MAPPED);
    return inet_pton(AF_INET, text, out + sizeof PLAT_MAPPED) == 1 ||
        inet_pton(AF_INET6, text, out) == 1;
}

/*
 * Reads a host name, an IPv4 address or [IPv6], part of a NUL-ended text, into u->host.
 * Returns NULL, or what is wrong. No name ends in a number: libraries take 0x7f.1 as an
 * address.
 */
static const char *
url_read_host(struct url *u, struct slice s)
{
    bool v6 = s.len > 2 && s.data[0] == '[' && s.data[s.len - 1] == ']', v4;
    struct slice label = {0};
    char text[HOST_MAX + 1] = "";
    uint8_t address[16];

    if (v6)
        s = (struct slice){s.data + 1, s.len - 2};
    if (s.len == 0 || s.len > HOST_MAX)
        return "the host name is missing or too long";
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.data[i];
        if (c >= 0x80)
            return "the host name has letters beyond ASCII: write it in its xn-- form";
        if (!isalnum(c) && !strchr(v6 ? ":." : "-._", c))
            return "the host name is not valid";
        text[i] = (char)tolower(c);
    }
    for (struct slice rest = s; rest.len > 0;)
        label = slice_take(&rest, '.');
    v4 = slice_number(label, INT64_MAX / 16) >= 0 || strncasecmp(label.data, "0x", 2) == 0;
    if ((v6 || v4) && inet_pton(v6 ? AF_INET6 : AF_INET, text, address) != 1)
        return "the host name is not a valid IP address";
    if (v6)
        inet_ntop(AF_INET6, address, text, sizeof text);
    u->host = x_check(strdup(text));
    return NULL;
}

/* Sets u->auth for u->login (RFC 7617). */
static void
url_set_auth(struct url *u)
{
    size_t n, room = u->login.len / 3 * 4 + 8;
    struct buf b = {0};

    buf_add_text(&b, "Basic ");
    buf_reserve(&b, room);
    mbedtls_base64_encode((unsigned char *)b.data + b.len, room, &n,
        (const unsigned char *)u->login.data, u->login.len);
    u->auth = b.data;
}

/* Reads user:password@host:port. Returns NULL, or what is wrong. */
static const char *
url_read_authority(struct url *u, struct slice s)
{
    size_t at = s.len, colon;

    /* The last @ counts, so that a password may hold one. */
    while (at > 0 && s.data[at - 1] != '@')
        at--;
    for (size_t i = 0; i + 1 < at; i++) {
        uint8_t c = (uint8_t)s.data[i];
        if (c == '%' && hex_read((struct slice){s.data + i + 1, at - i - 2}, &c, 1) == 0)
            i += 2;
        buf_add_char(&u->login, c);
    }
    if (u->login.len > 0 && !memchr(s.data, ':', at))
        buf_add_char(&u->login, ':');
    if (u->login.len > 1)
        url_set_auth(u);
    s = (struct slice){s.data + at, s.len - at};
    /* Behind the last colon stands the port, unless it is one inside an IPv6 address. */
    for (colon = s.len; colon > 0 && !strchr("]:", s.data[colon - 1]);)
        colon--;
    u->port = u->tls ? 443 : 80;
    if (colon > 0 && s.data[colon - 1] == ':') {
        if (colon < s.len)
            u->port = (int)slice_number((struct slice){s.data + colon, s.len - colon}, 65535);
        s.len = colon - 1;
    }
    return u->port > 0 ? url_read_host(u, s) : "the port is not a number from 1 to 65535";
}

/* Adds the part of base that a relative reference needs before it (RFC 3986, 5.2). */
static void
url_add_base(struct buf *b, const struct url *base, struct slice s)
{
    size_t keep = strcspn(base->target, s.data[0] == '#' ? "" : "?"), i = 0;

    while (i < s.len && !strchr(":/?#", s.data[i]))
        i++;
    if (i < s.len && s.data[i] == ':') /* it is not relative */
        return;
    if (s.len >= 2 && memcmp(s.data, "//", 2) == 0)
        buf_add_text(b, base->tls ? "https:" : "http:");
    else {
        while (!strchr("?#", s.data[0]) && base->target[keep - 1] != '/')
            keep--;
        buf_add_text(b, base->origin);
        buf_add(b, base->target, s.data[0] == '/' ? 0 : keep);
    }
}

/* Returns path and query as they stand in a request: without dot segments and fragment. */
static char *
url_make_target(const char *p)
{
    struct buf b = {0};

    for (size_t len; *p == '/'; p += 1 + len) {
        struct slice part = {p + 1, len = strcspn(p + 1, "/?#")};
        bool up = slice_is(part, ".."), dots = up || slice_is(part, ".");
        while (up && b.len > 0 && b.data[--b.len] != '/')
            continue;
        if (!dots || p[1 + len] != '/')
            buf_add_char(&b, '/');
        if (!dots)
            percent_encode(&b, part, "!$%&'()*+,-.:;=@[]_|~");
    }
    if (b.len == 0)
        buf_add_char(&b, '/');
    if (*p == '?')
        percent_encode(&b, (struct slice){p, strcspn(p, "#")}, "!$%&()*+,-./:;=?@[]^_`{|}~");
    return b.data;
}

/* Sets u->origin and u->shown, like https://h/services/T0AB…/x?…, from the rest of u. */
static void
url_describe(struct url *u)
{
    struct buf origin = {0}, shown = {0};
    const char *p = u->target;

    buf_format(&origin, strchr(u->host, ':') ? "%s://[%s]" : "%s://%s", u->tls ? "https" : "http",
        u->host);
    if (u->port != (u->tls ? 443 : 80))
        buf_format(&origin, ":%d", u->port);
    buf_add(&shown, origin.data, origin.len);
    for (size_t len; *p == '/'; p += 1 + len) {
        len = strcspn(p + 1, "/?");
        buf_add(&shown, p, 1 + (len < 16 ? len : 4));
        buf_add_text(&shown, len < 16 ? "" : "…");
    }
    buf_add_text(&shown, *p ? "?…" : "");
    u->origin = origin.data;
    u->shown = shown.data;
}

/*
 * Reads an absolute URL, or with base a reference relative to it. The caller ends *u
 * with url_done. Returns NULL, or what is wrong, with *u zeroed: it cannot be called.
 */
static const char *
url_parse(struct slice text, const struct url *base, struct url *u)
{
    struct slice s = slice_trim(text, " \t\r\n");
    const char *wrong = s.len == 0 ? "it is empty" : s.len > URL_MAX ? "it is too long" : NULL;
    struct buf full = {0};

    for (size_t i = 0; i < s.len && !wrong; i++)
        if ((unsigned char)s.data[i] < ' ' || s.data[i] == 0x7f || s.data[i] == '\\')
            wrong = "it holds a backslash or a control character";
    if (base && !wrong)
        url_add_base(&full, base, s);
    buf_add(&full, s.data, s.len);
    *u = (struct url){.tls = strncasecmp(full.data, "https://", 8) == 0};
    if (!wrong && !u->tls && strncasecmp(full.data, "http://", 7) != 0)
        wrong = "it must start with http:// or https://";
    if (!wrong) {
        const char *host = strstr(full.data, "//") + 2, *path = host + strcspn(host, "/?#");
        wrong = url_read_authority(u, (struct slice){host, (size_t)(path - host)});
        u->target = url_make_target(path);
    }
    buf_free(&full);
    if (wrong)
        url_done(u);
    else
        url_describe(u);
    return wrong;
}

/*
 * True if one item of NO_PROXY, without a port, excepts the host. As for curl: a name
 * with all its subdomains, ".suffix", an address, a range of addresses, "*".
 */
static bool
url_is_excepted_by(const struct url *u, struct slice item)
{
    struct slice host = slice_trim(slice_of(u->host), "."), range = slice_trim(item, "[]");
    struct slice address = slice_take(&range, '/');
    uint8_t a[16], b[16];
    const char *tail;

    if (slice_is(item, "*"))
        return true;
    if (url_read_address(slice_of(u->host), a)) {
        int64_t width = memchr(address.data, ':', address.len) ? 128 : 32;
        int64_t bits = range.len > 0 ? slice_number(range, width) : width;
        size_t whole = (size_t)(128 - width + bits) / 8, odd = (size_t)bits % 8;
        return url_read_address(address, b) && bits >= 0 && memcmp(a, b, whole) == 0 &&
            (odd == 0 || (a[whole] ^ b[whole]) >> (8 - odd) == 0);
    }
    item = slice_trim(item, "*.");
    tail = host.data + (item.len < host.len ? host.len - item.len : 0);
    return item.len > 0 && item.len <= host.len && strncasecmp(tail, item.data, item.len) == 0 &&
        (tail == host.data || tail[-1] == '.');
}

/* True if no_proxy, as in the environment variable NO_PROXY, excepts the host, or host:port. */
static bool
url_is_excepted(const struct url *u, const char *no_proxy)
{
    char port[8];
    size_t port_len = (size_t)snprintf(port, sizeof port, ":%d", u->port);

    while (*(no_proxy += strspn(no_proxy, ", \t"))) {
        struct slice item = {no_proxy, strcspn(no_proxy, ", \t")};
        no_proxy += item.len;
        if (url_is_excepted_by(u, item) ||
            (item.len > port_len && memcmp(no_proxy - port_len, port, port_len) == 0 &&
                url_is_excepted_by(u, (struct slice){item.data, item.len - port_len})))
            return true;
    }
    return false;
}

/* ==== 7. Configuration ======================================================
 *
 * Butler's YAML file becomes a struct config. One table of keys says what is
 * read, its type, its default and its bounds; everything else in the file is
 * Butler's own. Every problem is collected with its line and column, so that
 * one start reports all of them.
 */

enum http_method { METHOD_GET, METHOD_POST, METHOD_PUT };

static const char *const METHODS[] = {"GET", "POST", "PUT"};

/* A header line: a label such as "Host: ", and what follows it. value NULL: it is not sent. */
struct header {
    const char *label, *value;
};

struct webhook_config {
    const char *description;  /* "": none */
    int64_t method;           /* enum http_method */
    bool cert_enable;         /* only cert_ca is trusted, not the public roots */
    bool reject_unauthorized; /* false: whoever answers is trusted */
    const char *cert_ca;      /* path; NULL: none */
    struct url url;           /* host NULL: it is not valid, and webhooks are off */
    const char *url_text;     /* as it stands in the file, while that is read */
    const struct url *proxy;  /* NULL: called directly */
    bool has_proxy_key;       /* the environment does not count, but ... */
    struct url proxy_url;     /* ... proxyURL; host NULL: called directly */
    int64_t max_calls;        /* begun in any minute; 0: no limit */
    mbedtls_x509_crt *ca;     /* what cert_ca holds; NULL: none */
    int ca_count;
    const char *client_cert, *client_key; /* paths; NULL: none, or the key is in client_cert */
    const char *passphrase;               /* of the key; "": none */
    mbedtls_x509_crt *client_crt;         /* what they hold, with those above it; NULL: none */
    mbedtls_pk_context *client_pk;
    const char *server_name; /* what TLS expects in place of url.host; NULL: that */
    bool is_special;         /* uses a key that Butler does not know */
    struct buf hidden;       /* what is never shown: texts, each with its NUL */
    const yaml_node_t *header_map, *retry_list, *match_map; /* while the file is read ... */
    const yaml_node_t *body, *query, *signing;              /* ... as these */
    struct header *header;                 /* ends with one without a label; NULL: none */
    const char *user, *password, *bearer;  /* "": none; what is sent is in url.auth */
    bool retries[100];                     /* statuses from 400 that are not final */
    struct buf match[ALERT_FIELDS];        /* patterns of the alerts that it gets */
    char *template_text;                   /* of the body, of a GET the query; NULL: none */
    const struct template_piece *template; /* what that was read as */
    enum template_form form;               /* of that */
    bool has_own_query;                    /* it is not the standard one */
    struct {
        unsigned char bytes[SECRET_MAX];
        size_t len; /* 0: none */
    } secret[2];    /* what requests are signed with: two while one replaces the other */
    enum alert_kind kind;
    char name[LOG_NAME_MAX + 64]; /* failure 1 ("description") */
    size_t place, listed;         /* in its kind's list, from 0; how many stand there */
    char key[33];                 /* how the journal knows it, see cfg_read_webhook */
};

/* An entry of udpServerConfig.allowedSources. */
struct source {
    char *name; /* host name that is looked up; NULL: an address or range */
    uint8_t address[SOURCE_ADDRESSES_MAX][16]; /* as plat_addr_bytes */
    size_t addresses;
    int bits;         /* of an address that must be the same */
    int64_t again_ms; /* the listener's: when name is looked up again */
};

/* Lives as long as the process, with all that it points to. */
struct config {
    int64_t log_level;
    bool file_logging;
    const char *log_directory;
    bool udp_enable, webhook_enable, own_enable; /* settled in disabled_by */
    const char *udp_host;                        /* never NULL, unless the file cannot be read */
    int64_t udp_port, max_message_size;
    char listens_on[HOST_MAX + 16]; /* address and port of the UDP socket, for people */
    bool is_local;                  /* only this machine can send to it */
    bool source_validation;         /* never true without any source */
    struct source *source;
    size_t sources;
    bool udp_rate_enable;
    int64_t udp_rate;
    bool dedup_enable;
    int64_t dedup_minutes;
    int64_t rate_limit_s[ALERT_KINDS];
    char *state_directory; /* NULL: alerts are kept in memory only */
    int64_t max_state_mb, max_age_hours, timeout_s, max_concurrent;
    char *metrics_file; /* NULL: none */
    int64_t heartbeat_s;
    struct webhook_config heartbeat; /* url.host NULL: none */
    struct webhook_config *webhook;  /* failures first, each kind in the file's order */
    size_t webhooks;
    struct url proxy[2]; /* for http, for https; host NULL: none */
    const char *no_proxy;
    const yaml_node_t *source_list, *webhook_list[ALERT_KINDS]; /* while the file is read */
    const char *disabled_by; /* the key that turns the program off, for people; NULL: it is on */
};

/* Numbers come first; those up to CFG_INT are written without quotes. */
enum cfg_type {
    CFG_BOOL,   /* bool */
    CFG_INT,    /* int64_t from min to max */
    CFG_LEVEL,  /* int64_t, place in LOG_LEVELS */
    CFG_METHOD, /* int64_t, place in METHODS */
    CFG_TEXT,   /* const char * */
    CFG_PATH,   /* the same; a relative one starts at the configuration's folder */
    CFG_HOST,   /* const char *, an address or host name */
    CFG_URL,    /* struct url */
    CFG_LIST,   /* const yaml_node_t *, of at most max entries */
    CFG_PAIRS,  /* the same, a map from single values */
    CFG_NODE,   /* const yaml_node_t *, of any kind */
    CFG_MAP,    /* holds the rows that follow */
    CFG_LEFT,   /* Butler's own, left alone */
};

struct cfg_key {
    const char *section; /* as in front of the name: "udpServerConfig."; "" is the root */
    const char *name;
    enum cfg_type type;
    size_t offset;      /* of its field */
    const char *preset; /* what counts if it is not there; NULL: none */
    int64_t min, max;
    bool required; /* must be there where its section is */
    bool is_ours;  /* Butler refuses it */
};

/* What a value of each type must, and the words that it is one of, in any case. */
static const struct {
    const char *must;
    const char *const *words;
    int last; /* of words */
} CFG_RULES[] = {
    [CFG_BOOL] = {"be true or false", (const char *const[]){"false", "true"}, 1},
    [CFG_INT] = {.must = "be a whole number"},
    [CFG_LEVEL] = {"be error, warn, info, verbose, debug or silly", LOG_LEVELS, LOG_SILLY},
    [CFG_METHOD] = {"be GET, POST or PUT", METHODS, METHOD_PUT},
    [CFG_TEXT] = {.must = "be a single value"},
    [CFG_PATH] = {.must = "be a single value without control characters, in single quotes"},
    [CFG_HOST] = {.must = "be an address or a host name, without port"},
    [CFG_URL] = {.must = "be a single value"},
    [CFG_LIST] = {.must = "be a list, each entry starting with \"- \", their number"},
    [CFG_PAIRS] =
        {.must = "hold names with values, one a line, indented ({{...}} in quotes), their number"},
    [CFG_MAP] = {.must = "hold keys, one a line, indented under it"},
};

#define AT(field) offsetof(struct config, field)
#define UDP "udpServerConfig."
#define OWN "butlerWebhook."
#define NOTIFY "webhookNotification."
#define FAILURE NOTIFY "reloadTaskFailure."
#define ABORTED NOTIFY "reloadTaskAborted."

/* Every key that we read under "Butler:". Of two rows for one field the second overrides. */
static const struct cfg_key CFG_KEYS[] = {
    {"", "logLevel", CFG_LEVEL, AT(log_level), .preset = "info"},
    {"", "fileLogging", CFG_BOOL, AT(file_logging), .preset = "false"},
    {"", "logDirectory", CFG_PATH, AT(log_directory), .preset = "log"},
    {"", "udpServerConfig", .type = CFG_MAP},
    {UDP, "enable", CFG_BOOL, AT(udp_enable), "true", .required = true},
    {UDP, "serverHost", CFG_HOST, AT(udp_host), .preset = "127.0.0.1"},
    {UDP, "portTaskFailure", CFG_INT, AT(udp_port), "9998", 1, .max = 65535},
    {UDP, "maxMessageSize", CFG_INT, AT(max_message_size), "65507", 1, .max = DATAGRAM_MAX},
    {UDP, "enableSourceValidation", CFG_BOOL, AT(source_validation), .preset = "false"},
    {UDP, "allowedSources", CFG_LIST, AT(source_list), .max = 256},
    {UDP, "rateLimit", .type = CFG_MAP},
    {UDP "rateLimit.", "enable", CFG_BOOL, AT(udp_rate_enable), .preset = "false"},
    {UDP "rateLimit.", "maxMessagesPerMinute", CFG_INT, AT(udp_rate), "600", 1, .max = INT32_MAX},
    {UDP, "deduplication", .type = CFG_MAP},
    {UDP "deduplication.", "enable", CFG_BOOL, AT(dedup_enable), .preset = "true"},
    {UDP "deduplication.", "ttlMinutes", CFG_INT, AT(dedup_minutes), "10", 1, .max = 525600},
    {UDP, "messageQueue", .type = CFG_LEFT},
    {UDP, "queueMetrics", .type = CFG_LEFT},
    {"", "butlerWebhook", .type = CFG_MAP},
    {OWN, "enable", CFG_BOOL, .offset = AT(own_enable)},
    {OWN, "serverHost", CFG_HOST, .offset = AT(udp_host)},
    {OWN, "port", CFG_INT, AT(udp_port), NULL, 1, .max = 65535},
    {OWN, "stateDirectory", CFG_PATH, AT(state_directory), .preset = "butler_webhook.state"},
    {OWN, "maxStateMB", CFG_INT, AT(max_state_mb), "256", 16, .max = 4096},
    {OWN, "maxAgeHours", CFG_INT, AT(max_age_hours), "72", 1, .max = 8760},
    {OWN, "timeoutSeconds", CFG_INT, AT(timeout_s), "10", 1, .max = 300},
    {OWN, "maxConcurrent", CFG_INT, AT(max_concurrent), "4", 1, .max = 16},
    {OWN, "metricsFile", CFG_PATH, .offset = AT(metrics_file)},
    {OWN, "heartbeatURL", CFG_URL, .offset = AT(heartbeat.url)},
    {OWN, "heartbeatSeconds", CFG_INT, AT(heartbeat_s), "60", 1, .max = 86400},
    {"", "webhookNotification", CFG_MAP, .required = true},
    {NOTIFY, "enable", CFG_BOOL, AT(webhook_enable), "true", .required = true},
    {NOTIFY, "reloadTaskFailure", .type = CFG_MAP},
    {FAILURE, "rateLimit", CFG_INT, AT(rate_limit_s[ALERT_FAILURE]), "300", .max = INT32_MAX},
    {FAILURE, "webhooks", CFG_LIST, AT(webhook_list[ALERT_FAILURE]), .max = CONFIG_WEBHOOKS_MAX},
    {NOTIFY, "reloadTaskAborted", .type = CFG_MAP},
    {ABORTED, "rateLimit", CFG_INT, AT(rate_limit_s[ALERT_ABORTED]), "300", .max = INT32_MAX},
    {ABORTED, "webhooks", CFG_LIST, AT(webhook_list[ALERT_ABORTED]), .max = CONFIG_WEBHOOKS_MAX},
    {NOTIFY, "serviceMonitor", .type = CFG_LEFT},
    {NOTIFY, "qlikSenseServerLicenseMonitor", .type = CFG_LEFT},
    {NOTIFY, "qlikSenseServerLicenseExpiryAlert", .type = CFG_LEFT},
    {.name = NULL},
};

#undef AT
#define AT(field) offsetof(struct webhook_config, field)

/* The keys of one entry of a webhooks list. */
static const struct cfg_key CFG_WEBHOOK_KEYS[] = {
    {"", "description", CFG_TEXT, AT(description), .preset = ""},
    {"", "webhookURL", CFG_URL, AT(url), .required = true},
    {"", "httpMethod", CFG_METHOD, AT(method), "PUT", .required = true},
    {"", "cert", .type = CFG_MAP},
    {"cert.", "enable", CFG_BOOL, AT(cert_enable), .preset = "false"},
    {"cert.", "rejectUnauthorized", CFG_BOOL, AT(reject_unauthorized), .preset = "true"},
    {"cert.", "certCA", CFG_PATH, .offset = AT(cert_ca)},
    {"cert.", "clientCert", CFG_PATH, .offset = AT(client_cert), .is_ours = true},
    {"cert.", "clientKey", CFG_PATH, .offset = AT(client_key), .is_ours = true},
    {"cert.", "passphrase", CFG_TEXT, AT(passphrase), "", .is_ours = true},
    {"cert.", "serverName", CFG_HOST, .offset = AT(server_name), .is_ours = true},
    {"", "headers", CFG_PAIRS, AT(header_map), .max = PAIRS_MAX, .is_ours = true},
    {"", "auth", .type = CFG_MAP},
    {"auth.", "bearer", CFG_TEXT, AT(bearer), "", .is_ours = true},
    {"auth.", "basic", .type = CFG_MAP},
    {"auth.basic.", "user", CFG_TEXT, AT(user), "", .required = true, .is_ours = true},
    {"auth.basic.", "password", CFG_TEXT, AT(password), "", .is_ours = true},
    {"", "retryStatus", CFG_LIST, AT(retry_list), .max = 100, .is_ours = true},
    {"", "proxyURL", CFG_URL, .offset = AT(proxy_url), .is_ours = true},
    {"", "maxCallsPerMinute", CFG_INT, AT(max_calls), NULL, 1, .max = 6000, .is_ours = true},
    {"", "match", CFG_PAIRS, AT(match_map), .max = PAIRS_MAX, .is_ours = true},
    {"", "body", CFG_NODE, .offset = AT(body), .is_ours = true},
    {"", "query", CFG_PAIRS, AT(query), .max = PAIRS_MAX, .is_ours = true},
    {"", "signingSecret", CFG_NODE, .offset = AT(signing), .is_ours = true},
    {.name = NULL},
};

struct problem {
    struct problem *next;
    int line, column; /* from 1 */
    bool is_error;
    char *text;
};

struct cfg_reader {
    const char *file; /* as the user named it */
    struct config *config;
    struct problem *problems; /* in the file's order */
    int errors, warnings;
    bool strict;    /* mistakes in webhooks are errors in any case */
    bool only_warn; /* what is being read now has no errors, only warnings */
    int ours;       /* keys that Butler refuses ... */
    bool is_shared; /* ... in a file that has sections which only Butler reads */
    yaml_document_t yaml;
    size_t visited;     /* values of it, aliases counted each time */
    struct buf files;   /* paths of the other files that were read, each with its NUL */
    struct buf *hidden; /* of the entry that is read: where ${env:...} and ${file:...} are kept */
};

/* Adds a problem at a place of the file, once: a value may be read again through an alias. */
__attribute__((format(PRINTF, 4, 5))) static void
cfg_problem(struct cfg_reader *r, bool is_error, yaml_mark_t mark, const char *format, ...)
{
    struct problem *p, **at = &r->problems;
    int line = (int)mark.line + 1, column = (int)mark.column + 1;
    struct buf text = {0};
    va_list args;

    va_start(args, format);
    buf_vformat(&text, format, args);
    va_end(args);
    for (; (p = *at) && (p->line < line || (p->line == line && p->column <= column)); at = &p->next)
        if (p->line == line && p->column == column && strcmp(p->text, text.data) == 0) {
            buf_free(&text);
            return;
        }
    is_error = is_error && !r->only_warn;
    *(is_error ? &r->errors : &r->warnings) += 1;
    *at = x_malloc(sizeof **at);
    **at = (struct problem){p, line, column, is_error, text.data};
}

#define CFG_ERROR(r, node, ...) cfg_problem(r, true, (node)->start_mark, __VA_ARGS__)
#define CFG_WARN(r, node, ...) cfg_problem(r, false, (node)->start_mark, __VA_ARGS__)

/* Returns the number of a list's items, or twice that of a map's pairs. n may be NULL. */
static size_t
cfg_count(const yaml_node_t *n)
{
    if (n && n->type == YAML_SEQUENCE_NODE)
        return (size_t)(n->data.sequence.items.top - n->data.sequence.items.start);
    if (n && n->type == YAML_MAPPING_NODE)
        return 2 * (size_t)(n->data.mapping.pairs.top - n->data.mapping.pairs.start);
    return 0;
}

/* Returns an item of a list; of a map key, value, key, value ... */
static yaml_node_t *
cfg_child(struct cfg_reader *r, const yaml_node_t *n, size_t i)
{
    const yaml_node_pair_t *pairs = n->data.mapping.pairs.start;

    if (n->type == YAML_SEQUENCE_NODE)
        return yaml_document_get_node(&r->yaml, n->data.sequence.items.start[i]);
    return yaml_document_get_node(&r->yaml, i % 2 ? pairs[i / 2].value : pairs[i / 2].key);
}

/*
 * Returns an item of a list; what is no list counts as its only one. NULL: there are not so
 * many, or n is NULL.
 */
static const yaml_node_t *
cfg_item(struct cfg_reader *r, const yaml_node_t *n, size_t i)
{
    if (n && n->type == YAML_SEQUENCE_NODE)
        return i < cfg_count(n) ? cfg_child(r, n, i) : NULL;
    return i == 0 ? n : NULL;
}

/* Returns the text of a scalar; "" for NULL, a list, a map, and what js-yaml reads as no value. */
static const char *
cfg_text(const yaml_node_t *n)
{
    const char *text = n && n->type == YAML_SCALAR_NODE ? (const char *)n->data.scalar.value : "";
    bool is_null = strcmp(text, "~") == 0 || strcasecmp(text, "null") == 0;

    return is_null && n->data.scalar.style == YAML_PLAIN_SCALAR_STYLE ? "" : text;
}

/* True for NULL, and for a scalar without text: the default counts. */
static bool
cfg_is_empty(const yaml_node_t *n)
{
    return !n || (n->type == YAML_SCALAR_NODE && !*cfg_text(n));
}

/* Returns the value of a map's key, or NULL. n may be NULL, or no map. */
static const yaml_node_t *
cfg_get(struct cfg_reader *r, const yaml_node_t *n, const char *name)
{
    for (size_t i = 0; n && n->type == YAML_MAPPING_NODE && i < cfg_count(n); i += 2)
        if (strcmp(cfg_text(cfg_child(r, n, i)), name) == 0)
            return cfg_child(r, n, i + 1);
    return NULL;
}

/* Adds to a map what "<<" merges: the keys of a map, or of a list of maps, that it lacks. */
static void
cfg_merge(struct cfg_reader *r, const yaml_node_t *map, const yaml_node_t *from)
{
    int index = (int)(map - r->yaml.nodes.start) + 1;

    for (size_t i = 0; i < cfg_count(from); i++) {
        const yaml_node_pair_t *pair = from->data.mapping.pairs.start + i / 2;
        if (from->type == YAML_SEQUENCE_NODE)
            cfg_merge(r, map, cfg_child(r, from, i));
        else if (i % 2 == 0 && !cfg_get(r, map, cfg_text(cfg_child(r, from, i))) &&
            !yaml_document_append_mapping_pair(&r->yaml, index, pair->key, pair->value))
            x_check(NULL);
    }
}

/*
 * Checks what holds for any value, and for all that it holds or that aliases in it
 * stand for: no NUL, no key twice. In place of each "<<" a map gets what that merges,
 * behind its own keys, which win, as in js-yaml: nobody else needs to know of it.
 * Returns NULL, or the value that goes over the bound of levels or of values: then the
 * document must not be walked through.
 */
static yaml_node_t *
cfg_check_node(struct cfg_reader *r, yaml_node_t *n, int depth)
{
    yaml_node_t *beyond = NULL;

    r->visited += cfg_count(n);
    if (depth > CONFIG_DEPTH_MAX || r->visited > CONFIG_NODES_MAX)
        return n;
    if (n->type == YAML_SCALAR_NODE && memchr(n->data.scalar.value, 0, n->data.scalar.length))
        CFG_ERROR(r, n, "a NUL character may not stand in a value");
    for (size_t i = 0; i < cfg_count(n) && !beyond; i++) {
        bool is_key = n->type == YAML_MAPPING_NODE && i % 2 == 0;
        bool merges = is_key && strcmp(cfg_text(cfg_child(r, n, i)), "<<") == 0;
        yaml_node_t *child = cfg_child(r, n, merges ? i + 1 : i);
        size_t first = is_key && !merges ? 0 : i;
        while (first < i && strcmp(cfg_text(cfg_child(r, n, first)), cfg_text(child)) != 0)
            first += 2;
        if (first < i && *cfg_text(child))
            CFG_ERROR(r, child, "the key \"%s\" stands twice, first in line %zu; keep one",
                cfg_text(child), cfg_child(r, n, first)->start_mark.line + 1);
        beyond = cfg_check_node(r, child, depth + 1);
        if (merges && !beyond) {
            yaml_node_pair_t *pair = n->data.mapping.pairs.start + i / 2;
            n->data.mapping.pairs.top--;
            memmove(pair, pair + 1, (cfg_count(n) - i) / 2 * sizeof *pair);
            cfg_merge(r, n, child);
            i--; /* the next key stands here now */
        }
    }
    return beyond;
}

/*
 * Reads the text's one document into r->yaml. Returns its root, or NULL with an
 * error. Tokens are counted first, so that a hostile file costs little: libyaml's time is
 * quadratic in the depth and in the number of anchors and %TAG lines.
 */
static const yaml_node_t *
cfg_read_document(struct cfg_reader *r, struct slice text)
{
    yaml_node_t *root = NULL, *beyond = NULL;
    yaml_document_t second = {0};
    yaml_parser_t parser;
    yaml_token_t token;
    yaml_mark_t mark;
    int depth = 0, anchors = 0, values = 0;
    bool more = true;

    yaml_parser_initialize(&parser);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text.data, text.len);
    while (more && depth <= CONFIG_DEPTH_MAX + 1 && anchors <= CONFIG_ANCHORS_MAX &&
        values <= CONFIG_NODES_MAX) {
        more = yaml_parser_scan(&parser, &token) && token.type != YAML_STREAM_END_TOKEN;
        depth = parser.flow_level + (int)(parser.indents.top - parser.indents.start);
        anchors += token.type == YAML_ANCHOR_TOKEN || token.type == YAML_TAG_DIRECTIVE_TOKEN;
        values += token.type == YAML_SCALAR_TOKEN;
        yaml_token_delete(&token);
    }
    mark = parser.mark;
    yaml_parser_delete(&parser);
    yaml_parser_initialize(&parser);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text.data, text.len);
    if (!more && (!yaml_parser_load(&parser, &r->yaml) || !yaml_parser_load(&parser, &second))) {
        const char *problem = parser.problem ? parser.problem : "out of memory";
        const char *context = parser.context ? parser.context : "";
        /* What was begun and has no end is wrong where it began. */
        mark = strncmp(context, "while scanning", 14) == 0 ? parser.context_mark
                                                           : parser.problem_mark;
        for (size_t i = 0; parser.error == YAML_READER_ERROR && i < parser.problem_offset; i++) {
            mark.column = text.data[i] == '\n' ? 0 : mark.column + 1; /* it knows bytes only */
            mark.line += text.data[i] == '\n';
        }
        cfg_problem(r, true, mark,
            "not valid YAML: %s%s%s: indent with spaces, not tabs; put paths ('C:\\path') and what "
            "starts with *, {{, @, ` or %% in single quotes; save the file as UTF-8",
            problem, *context ? " " : "", context);
    } else if (yaml_document_get_root_node(&second))
        CFG_ERROR(r, &second, "a second document starts here: keep one");
    else if (!more && (root = yaml_document_get_root_node(&r->yaml)) == NULL)
        CFG_ERROR(r, &r->yaml, "the file is empty: it must start with \"Butler:\"");
    else if (more || (beyond = cfg_check_node(r, root, 0)) != NULL) {
        cfg_problem(r, true, beyond ? beyond->start_mark : mark,
            "nested more than %d levels deep, as by an alias inside its own anchor, or more than "
            "%d anchors, or more than %d values, counting what aliases stand for",
            CONFIG_DEPTH_MAX, CONFIG_ANCHORS_MAX, CONFIG_NODES_MAX);
        root = NULL;
    }
    yaml_document_delete(&second);
    yaml_parser_delete(&parser);
    return root;
}

/* Reads an address. Returns 1, or 0: text is a host name, or -1: neither. */
static int
cfg_read_host(struct slice text, uint8_t address[16])
{
    struct url u = {0};
    int result = -1;

    if (memchr(text.data, ':', text.len)) /* IPv6, or wrong */
        return url_read_address(text, address) ? 1 : -1;
    if (url_read_host(&u, text) == 0)
        result = url_read_address(text, address);
    url_done(&u);
    return result;
}

/* As plat_read_file, for a file that the configuration names. Remembers its path. */
static int
cfg_read_file(struct cfg_reader *r, const char *path, size_t max, char **data, size_t *len)
{
    size_t at = 0;

    if (plat_read_file(path, max, data, len) != 0)
        return -1;
    while (at < r->files.len && strcmp(r->files.data + at, path) != 0)
        at += strlen(r->files.data + at) + 1;
    if (at == r->files.len)
        buf_add(&r->files, path, strlen(path) + 1);
    return 0;
}

/*
 * Adds the text of a scalar. In it ${env:NAME} becomes what that variable holds, and
 * ${file:PATH} what that file holds, without byte order mark and last line end. It is a
 * problem if there is none, or no text.
 */
static void
cfg_expand(struct cfg_reader *r, const yaml_node_t *n, struct buf *out)
{
    const char *text = cfg_text(n);

    if (n->type != YAML_SCALAR_NODE)
        CFG_ERROR(r, n, "a single value must stand here; put {{...}} in quotes");
    buf_add(out, "", 0);
    while (*text && r->hidden->len <= CONFIG_MAX) {
        bool env = strncmp(text, "${env:", 6) == 0, file = strncmp(text, "${file:", 7) == 0;
        const char *begin = text + (env ? 6 : 7), *end = env || file ? strchr(text, '}') : NULL;
        struct buf name = {0}, value = {0};
        const char *held;
        if (!end) {
            buf_add_char(out, *text++);
            continue;
        }
        buf_add(&name, r->file, file ? plat_path_folder_len(r->file, begin) : 0);
        buf_add(&name, begin, (size_t)(end - begin));
        held = env ? getenv(name.data) : NULL;
        if (env)
            buf_add_text(&value, held ? held : "");
        else if (cfg_read_file(r, name.data, CONFIG_MAX, &value.data, &value.len) != 0)
            CFG_ERROR(r, n, "cannot read the file %s: %s", name.data, plat_error(errno));
        if (file && value.len >= 3 && memcmp(value.data, "\xef\xbb\xbf", 3) == 0)
            buf_drop(&value, 3);
        value.len -= file && value.len > 0 && value.data[value.len - 1] == '\n';
        value.len -= file && value.len > 0 && value.data[value.len - 1] == '\r';
        if (value.data &&
            (value.len == 0 || memchr(value.data, 0, value.len) ||
                !utf8_is_valid(value.data, value.len)))
            CFG_ERROR(r, n, "%s: no such variable, empty, or no text in UTF-8", name.data);
        buf_add(out, value.data, value.len);
        buf_add(r->hidden, value.data, value.len);
        buf_add_char(r->hidden, '\0');
        buf_free(&name);
        buf_free(&value);
        text = end + 1;
    }
    if (r->hidden->len > CONFIG_MAX)
        CFG_ERROR(r, n, "variables and files may put at most 512 KB into an entry");
}

/*
 * Stores a value at the field of its key. Returns false, with the field unchanged,
 * if it is not what CFG_RULES says. In quotes js-yaml reads neither bool nor number.
 */
static bool
cfg_store(struct cfg_reader *r, const struct cfg_key *key, const yaml_node_t *n, void *at)
{
    const char *const *words = CFG_RULES[key->type].words;
    bool ok = n->type == YAML_SCALAR_NODE;
    struct buf text = {0}, full = {0};
    const char *wrong;
    uint8_t address[16];
    int64_t number;

    if (key->type == CFG_MAP)
        return n->type == YAML_MAPPING_NODE;
    /* Of what holds more than one value the node is kept, which lives as long as the document. */
    if (key->type >= CFG_LIST) {
        bool is_list = key->type == CFG_LIST;
        size_t max = (size_t)(is_list ? key->max : 2 * key->max);
        ok = key->type == CFG_NODE ||
            (cfg_count(n) <= max && n->type == (is_list ? YAML_SEQUENCE_NODE : YAML_MAPPING_NODE));
        for (size_t i = 0; key->type == CFG_PAIRS && ok && i < cfg_count(n); i += 2)
            ok = cfg_child(r, n, i)->type == YAML_SCALAR_NODE; /* not so in query: {{event}} */
        *(const yaml_node_t **)at = ok ? n : NULL;
        return ok;
    }
    if (!ok)
        return false;
    cfg_expand(r, n, &text);
    number = words ? -1 : slice_number(slice_of(text.data), key->max);
    /* A word is stored as its place in the list, which is the value of its enum. */
    for (int i = 0; words && i <= CFG_RULES[key->type].last; i++)
        if (strcasecmp(text.data, words[i]) == 0)
            number = i;
    for (const char *p = text.data; *p && key->type == CFG_PATH; p++)
        ok = ok && (unsigned char)*p >= 0x20;
    ok = ok && (key->type > CFG_METHOD || number >= key->min) &&
        (key->type > CFG_INT || n->data.scalar.style <= YAML_PLAIN_SCALAR_STYLE) &&
        (key->type != CFG_HOST || cfg_read_host(slice_of(text.data), address) >= 0);
    if (ok && key->type == CFG_BOOL)
        *(bool *)at = number == 1;
    else if (ok && key->type <= CFG_METHOD)
        *(int64_t *)at = number;
    else if (key->type == CFG_URL && (wrong = url_parse(slice_of(text.data), NULL, at)) != NULL)
        CFG_ERROR(r, n,
            "%s%s is not a URL: %s; write it as http://host/path or https://host:port/path",
            key->section, key->name, wrong);
    else if (ok && key->type != CFG_URL) {
        if (key->type == CFG_PATH)
            buf_add(&full, r->file, plat_path_folder_len(r->file, text.data));
        buf_add_text(&full, text.data);
        free(*(char **)at); /* what this overrides */
        *(char **)at = full.data;
    }
    buf_free(&text);
    return ok;
}

/*
 * Reads the keys of a section of a table, and of the sections in it, from map, which
 * may be NULL, into base, which is zeroed. Before a value its default is stored. Keys
 * without a row are warned of, but not among Butler's own.
 */
static void
cfg_read_keys(struct cfg_reader *r, const struct cfg_key *keys, const char *section,
    const yaml_node_t *map, void *base)
{
    bool is_map = map && map->type == YAML_MAPPING_NODE;
    struct buf known = {0};

    /* A default is stored as if it stood in the file, so that it is checked in the same way. */
    for (const struct cfg_key *k = keys; k->name; k++) {
        const yaml_node_t *n = cfg_get(r, map, k->name);
        yaml_node_t preset = {.type = YAML_SCALAR_NODE};
        void *at = (char *)base + k->offset;
        char range[64] = "";
        if (strcmp(k->section, section) != 0)
            continue;
        buf_format(&known, "%s%s", known.len ? ", " : "", k->name);
        preset.data.scalar.value = (yaml_char_t *)k->preset;
        if (k->preset)
            cfg_store(r, k, &preset, at);
        if (map && k->required && cfg_is_empty(n))
            CFG_ERROR(r, n ? n : map, "%s%s is missing, or has no value", section, k->name);
        r->ours += n && k->is_ours;
        if (k->type == CFG_LEFT || cfg_is_empty(n))
            n = NULL;
        if (n && !cfg_store(r, k, n, at)) {
            /* Without fileLogging only a Windows service writes a log file: to the default then. */
            bool matters = at != &r->config->log_directory || r->config->file_logging;
            if (k->max > 0)
                snprintf(range, sizeof range, " from %d to %d", (int)k->min, (int)k->max);
            cfg_problem(r, matters, n->start_mark, "%s%s must %s%s%s", section, k->name,
                CFG_RULES[k->type].must, range, k->type <= CFG_INT ? ", without quotes" : "");
            n = NULL;
        }
        if (k->type == CFG_MAP)
            cfg_read_keys(r, keys, k[1].section, n, base);
    }
    for (size_t i = 0; is_map && i < cfg_count(map); i += 2) {
        const char *name = cfg_text(cfg_child(r, map, i));
        const struct cfg_key *k = keys;
        while (k->name && (strcmp(k->section, section) != 0 || strcmp(k->name, name) != 0))
            k++;
        if (!k->name && keys == CFG_KEYS && !*section)
            r->is_shared = true;
        else if (!k->name)
            CFG_WARN(r, cfg_child(r, map, i), "unknown key \"%s\" is ignored; known here: %s", name,
                known.data);
    }
    buf_free(&known);
}

/*
 * Reads the list of allowed senders: addresses, ranges like 10.0.0.0/8, host names.
 * IPv4 is compared as ::ffff:a.b.c.d; the bits of a range that is written so may be
 * those of IPv4 (0 to 32) or of IPv6 (96 to 128).
 */
static void
cfg_read_sources(struct cfg_reader *r)
{
    struct config *c = r->config;
    const yaml_node_t *list = c->source_list, *n;

    c->source = x_calloc(cfg_count(list) + 1, sizeof *c->source); /* never 0 */
    for (size_t i = 0; (n = cfg_item(r, list, i)) != NULL; i++) {
        const char *text = cfg_text(n);
        struct slice bits = slice_of(text), host = slice_take(&bits, '/');
        struct source *s = &c->source[c->sources];
        int kind = cfg_read_host(host, s->address[0]);
        bool is_range = text[host.len] == '/';
        int least = memcmp(s->address[0], PLAT_MAPPED, sizeof PLAT_MAPPED) == 0 ? 96 : 0;
        s->addresses = kind == 1;
        s->bits = is_range ? (int)slice_number(bits, strchr(text, ':') ? 128 : 32) : 128;
        if (is_range && s->bits >= 0 && s->bits <= 32)
            s->bits += least;
        if (kind == 1 ? s->bits >= least : kind == 0 && !is_range) {
            s->name = kind == 0 ? x_check(strdup(text)) : NULL;
            c->sources++;
        } else
            CFG_ERROR(
                r, n, "allowedSources must hold addresses, ranges (10.1.0.0/16) and host names");
    }
}

#define CFG_NOT_PEM                                                                                \
    "; make one of a .pfx: openssl pkcs12 -in A.pfx -out A.pem -aes256, of a .cer: openssl x509 "  \
    "-inform der -in A.cer -out A.pem"

/*
 * Adds the certificates of the PEM file that a key names to crt. Returns how many could
 * be read; why tells of the first that could not, or why there is none, and is else empty.
 */
static int
cfg_read_pem(
    struct cfg_reader *r, const char *key, const char *file, mbedtls_x509_crt *crt, struct err *why)
{
    static const char begin[] = "-----BEGIN CERTIFICATE-----";
    const int unknown = MBEDTLS_ERR_X509_INVALID_EXTENSIONS + MBEDTLS_ERR_ASN1_UNEXPECTED_TAG;
    char *pem = NULL, *next;
    int count = 0, good = 0, result;
    size_t len;

    if (cfg_read_file(r, file, CERT_FILE_MAX, &pem, &len) != 0)
        err_set(why, "%s: %s: %s", key, file, plat_error(errno));
    else if (strstr(pem, begin))
        *why = (struct err){""};
    else
        err_set(why, "%s: %s: no PEM certificate%s", key, file,
            *pem == '0' /* DER */ ? CFG_NOT_PEM : "");
    for (char *at = pem ? strstr(pem, begin) : NULL; at; at = next, count++) {
        if ((next = strstr(at + 1, begin)) != NULL)
            *next = '\0';
        result = mbedtls_x509_crt_parse(crt, (const unsigned char *)at, strlen(at) + 1);
        if (next)
            *next = *begin;
        if (result != 0 && good == count) /* the first */
            err_set(why, "%s: certificate %d of %s cannot be used: it %s", key, count + 1, file,
                result == unknown
                    ? "has a critical extension that is not supported, such as name constraints"
                    : "is damaged, or of a kind that is not supported");
        good += result == 0;
    }
    free(pem);
    return good;
}

/*
 * Warns of a webhook whose server is not checked, and reads its CA file if cert.enable
 * says so. What is wrong there is only a warning if no server is checked with it, or
 * if some of its certificates can be used.
 */
static void
cfg_read_cert(struct cfg_reader *r, const yaml_node_t *entry, struct webhook_config *w)
{
    const yaml_node_t *cert = cfg_get(r, entry, "cert"), *ca = cfg_get(r, cert, "certCA");
    bool checked = w->reject_unauthorized && (w->url.tls || !w->url.host);
    struct err why = {"cert.enable is true, but cert.certCA names no file"};

    if (!w->reject_unauthorized) /* of http, too: it may redirect to https */
        CFG_WARN(r, cfg_get(r, cert, "rejectUnauthorized"),
            "%s: rejectUnauthorized is false: anybody can pose as this webhook's server", w->name);
    if (w->cert_ca && !cfg_get(r, cert, "enable"))
        cfg_problem(r, checked, cert->start_mark,
            "cert.enable is missing: true to trust only certCA, else false");
    if (!w->cert_enable)
        return;
    w->ca = x_calloc(1, sizeof *w->ca);
    mbedtls_x509_crt_init(w->ca);
    if (w->cert_ca)
        w->ca_count = cfg_read_pem(r, "cert.certCA", w->cert_ca, w->ca, &why);
    if (*why.text)
        cfg_problem(r, checked && w->ca_count == 0, (ca ? ca : cert)->start_mark, "%s", why.text);
}

/* Reads the private key of a client certificate; at is where problems are shown. */
static void
cfg_read_key(struct cfg_reader *r, const yaml_node_t *at, struct webhook_config *w)
{
    const char *key = w->client_key ? "cert.clientKey" : "cert.clientCert";
    const char *file = w->client_key ? w->client_key : w->client_cert;
    const char *pass = w->passphrase, *fault = NULL;
    char *pem = NULL;
    size_t len;
    int result = 0;

    if (cfg_read_file(r, file, CERT_FILE_MAX, &pem, &len) != 0)
        fault = plat_error(errno);
    else if (!strstr(pem, "PRIVATE KEY-----"))
        fault = *pem == '0' ? "no PEM private key" CFG_NOT_PEM : "no PEM private key";
    else
        result = mbedtls_pk_parse_key(w->client_pk, (unsigned char *)pem, strlen(pem) + 1,
            (const unsigned char *)pass, strlen(pass), mbedtls_psa_get_random,
            MBEDTLS_PSA_RANDOM_STATE);
    /* Not by result: one of 256 wrong passphrases seems to fit, and makes a damaged key. */
    if (result != 0 && strstr(pem, "ENCRYPTED"))
        fault = "the private key is encrypted, and cert.passphrase is missing or wrong, or it is "
                "encrypted in an old way: do it anew with openssl pkcs8 -topk8 -in OLD -out NEW";
    else if (result != 0)
        fault = "the private key is damaged, or of a kind that is not supported";
    else if (!fault &&
        mbedtls_pk_check_pair(&w->client_crt->pk, w->client_pk, mbedtls_psa_get_random,
            MBEDTLS_PSA_RANDOM_STATE) != 0)
        fault = "the private key does not belong to the first certificate of cert.clientCert";
    if (fault)
        CFG_ERROR(r, at, "%s: %s: %s", key, file, fault);
    free(pem);
}

/* Reads the client certificate of a webhook and its key. */
static void
cfg_read_client(struct cfg_reader *r, const yaml_node_t *entry, struct webhook_config *w)
{
    const yaml_node_t *cert = cfg_get(r, entry, "cert"), *at = cfg_get(r, cert, "clientCert");
    struct err why;

    if ((w->client_key || *w->passphrase) && !w->client_cert)
        CFG_ERROR(r, cert,
            "cert.clientCert is missing: clientKey and passphrase are those of its private key");
    if (!w->client_cert)
        return;
    w->client_crt = x_calloc(1, sizeof *w->client_crt);
    w->client_pk = x_calloc(1, sizeof *w->client_pk);
    mbedtls_x509_crt_init(w->client_crt);
    mbedtls_pk_init(w->client_pk);
    cfg_read_pem(r, "cert.clientCert", w->client_cert, w->client_crt, &why);
    if (*why.text)
        CFG_ERROR(r, at, "%s", why.text);
    else
        cfg_read_key(r, at, w);
    if (!*why.text && mbedtls_x509_time_is_past(&w->client_crt->valid_to))
        CFG_WARN(r, at, "cert.clientCert: the certificate in %s has expired", w->client_cert);
}

/* Sets what people call a webhook. */
static void
cfg_set_name(struct webhook_config *w)
{
    snprintf(w->name, sizeof w->name, *w->description ? "%s %zu (\"%s\")" : "%s %zu",
        KINDS[w->kind].name, w->place + 1, log_text(slice_of(w->description)).text);
}

/* Returns what is wrong with a header (RFC 9110, 5.1 and 5.5), or NULL. */
static const char *
cfg_header_fault(const char *name, const char *value)
{
    if (alert_is_one_of(slice_of(name), "Host Content-Length Connection Transfer-Encoding") ||
        strncasecmp(name, "webhook-", 8) == 0)
        return "is ours to send: Host, Content-Length, Connection, Transfer-Encoding, webhook-*";
    for (const char *p = name; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("!#$%&'*+-.^_`|~", *p))
            return "is no name of a header: letters, digits and - may stand in one";
    for (const char *p = value; *p; p++)
        if (((unsigned char)*p < ' ' && *p != '\t') || *p == 0x7f || p - value > URL_MAX)
            return "may hold no control character, and at most 8 KB";
    for (const char *p = value; (p = strstr(p, "{{")) != NULL; p += 2)
        if (strncmp(p, "{{webhookId}}", 13) != 0)
            return "may hold no field but {{webhookId}}";
    return *name ? NULL : "has no name";
}

/* Reads what goes into the head of a request: headers and auth. Only one may say who we are. */
static void
cfg_read_headers(struct cfg_reader *r, const yaml_node_t *entry, struct webhook_config *w)
{
    const yaml_node_t *map = w->header_map, *auth = cfg_get(r, entry, "auth");
    int ways = (w->url.auth != NULL) + (*w->user != '\0') + (*w->bearer != '\0');
    const char *fault = NULL, *wrong;
    struct buf bearer = {0};

    w->header = map ? x_calloc(PAIRS_MAX + 1, sizeof *w->header) : NULL;
    for (size_t i = 0; i < cfg_count(map); i += 2) {
        const char *name = cfg_text(cfg_child(r, map, i));
        struct buf label = {0}, value = {0};
        buf_add_texts(&label, name, ": ", NULL);
        cfg_expand(r, cfg_child(r, map, i + 1), &value);
        w->header[i / 2] = (struct header){label.data, value.data};
        buf_add(&w->hidden, value.data, value.len + 1);
        ways += strcasecmp(name, "Authorization") == 0;
        if ((wrong = cfg_header_fault(name, value.data)) != NULL)
            CFG_ERROR(r, cfg_child(r, map, i + 1), "headers: %s%s", label.data, wrong);
    }
    if (ways > 1)
        fault = "two ways to authenticate: keep one of auth.basic, auth.bearer, a header "
                "Authorization and user:password@ in webhookURL";
    else if (!cfg_is_empty(auth) && !*w->user && !*w->bearer)
        fault = "auth must hold basic or bearer";
    else if (cfg_header_fault("user", w->user) || strchr(w->user, ':') ||
        cfg_header_fault("bearer", w->bearer))
        fault = "auth may hold no control character, and user no colon";
    if (fault)
        CFG_ERROR(r, auth ? auth : map ? map : entry, "%s", fault);
    else if (*w->bearer) {
        buf_add_texts(&bearer, "Bearer ", w->bearer, NULL);
        w->url.auth = bearer.data;
    } else if (*w->user) {
        w->url.login.len = 0; /* a lone ":" in webhookURL is nobody */
        buf_add_texts(&w->url.login, w->user, ":", w->password, NULL);
        buf_add(&w->hidden, w->password, strlen(w->password) + 1);
        url_set_auth(&w->url);
    }
}

/* Reads which alerts the webhook gets: fields, and for each a text or a list of texts. */
static void
cfg_read_match(struct cfg_reader *r, struct webhook_config *w)
{
    const yaml_node_t *map = w->match_map, *n;

    for (size_t i = 0; i < cfg_count(map); i += 2) {
        const yaml_node_t *key = cfg_child(r, map, i), *texts = cfg_child(r, map, i + 1);
        int field = 0;
        while (field < ALERT_FIELDS && strcmp(FIELD_NAMES[field], cfg_text(key)) != 0)
            field++;
        if (field == ALERT_FIELDS)
            CFG_ERROR(r, key, "match: unknown field; known here: " FIELD_LIST);
        if (!cfg_item(r, texts, 0))
            CFG_ERROR(r, texts, "match: the list must hold a text at least");
        for (size_t k = 0; field < ALERT_FIELDS && (n = cfg_item(r, texts, k)) != NULL; k++) {
            struct buf *b = &w->match[field];
            if (cfg_is_empty(n) && n->data.scalar.style == YAML_PLAIN_SCALAR_STYLE)
                CFG_ERROR(
                    r, n, "match: a text must stand here, or a list of such; '' is an empty field");
            cfg_expand(r, n, b);
            buf_add_char(b, '\0');
        }
    }
}

/* Returns the proxy for a URL of the webhook, its own or one that it has moved to; NULL: none. */
static const struct url *
cfg_proxy(const struct config *c, const struct webhook_config *w, const struct url *u)
{
    const struct url *p = w->has_proxy_key ? &w->proxy_url : &c->proxy[u->tls];

    return p->host && u->host && (w->has_proxy_key || !url_is_excepted(u, c->no_proxy)) ? p : NULL;
}

/* Reads proxyURL, and settles the webhook's proxy. '' is no proxy, but no value is no key. */
static void
cfg_read_proxy(struct cfg_reader *r, const yaml_node_t *entry, struct webhook_config *w)
{
    const yaml_node_t *n = cfg_get(r, entry, "proxyURL");

    w->has_proxy_key = n && (!cfg_is_empty(n) || n->data.scalar.style > YAML_PLAIN_SCALAR_STYLE);
    if (w->proxy_url.host && (w->proxy_url.tls || strcmp(w->proxy_url.target, "/") != 0))
        CFG_ERROR(r, n ? n : entry,
            "proxyURL must be http://host:port or http://user:password@host:port; https cannot be "
            "used, nor can a PAC file: write the proxy that it names");
    w->proxy = cfg_proxy(r->config, w, &w->url);
}

/* Adds a scalar of a template; of a query, with all but the fields percent-encoded. */
static void
cfg_add_template(struct cfg_reader *r, const yaml_node_t *n, bool is_query, struct buf *out)
{
    struct template_piece *pieces, *p;
    struct buf text = {0};

    cfg_expand(r, n, &text);
    pieces = template_read(text.data);
    if (!pieces)
        CFG_ERROR(r, n,
            "{{...}} here is no field: write {{NAME}}, or {{NAME|1000}} to cut it at so many "
            "characters; names: " FIELD_LIST ", kind, suppressed, receivedAt, webhookId");
    for (p = pieces; p && is_query; p = p->field < TEMPLATE_FIELDS ? p + 1 : NULL) {
        percent_encode(out, p->text, QUERY_PLAIN);
        if (p->field < TEMPLATE_FIELDS)
            buf_format(out, "{{%s|%zu}}", FIELD_NAMES[p->field], p->max);
    }
    buf_add(out, text.data, is_query ? 0 : text.len);
    free(pieces);
    buf_free(&text);
}

/*
 * Returns a value of a template as JSON, which the caller deletes. A plain number, true,
 * false and null stay what they are, other scalars become texts. Ends early beyond *room
 * bytes: aliases may repeat a long value many times.
 */
static cJSON *
cfg_read_json(struct cfg_reader *r, const yaml_node_t *n, size_t *room)
{
    bool is_map = n->type == YAML_MAPPING_NODE;
    const char *plain = cfg_text(n);
    struct buf text = {0};
    cJSON *value = NULL;

    if (n->type == YAML_SCALAR_NODE) {
        cfg_add_template(r, n, false, &text);
        if (n->data.scalar.style == YAML_PLAIN_SCALAR_STYLE)
            value = *plain ? json_read(slice_of(plain)) : cJSON_CreateNull();
        if (cJSON_IsNumber(value)) { /* all its digits, but not 01 nor 1., which cJSON takes */
            const char *digits = plain + (*plain == '-');
            size_t whole = strspn(digits, "0123456789");
            bool is_json = (digits[0] == '0' ? whole == 1 : whole > 0) &&
                (digits[whole] != '.' || isdigit((unsigned char)digits[whole + 1]));
            cJSON_Delete(value);
            value = is_json ? cJSON_CreateRaw(plain) : NULL;
        }
        value = value ? value : cJSON_CreateString(text.data);
    } else
        value = is_map ? cJSON_CreateObject() : cJSON_CreateArray();
    for (size_t i = 0; *room > 0 && i < cfg_count(n); i++) {
        size_t key = text.len;
        if (is_map)
            cfg_add_template(r, cfg_child(r, n, i++), false, &text);
        cJSON *item = cfg_read_json(r, cfg_child(r, n, i), room);
        if (is_map) /* the keys stand behind each other in text */
            cJSON_AddItemToObject(value, text.data + key, item);
        else
            cJSON_AddItemToArray(value, item);
    }
    *room -= text.len < *room ? text.len : *room;
    buf_free(&text);
    return value;
}

/*
 * Reads the template of what is sent in place of the standard fields: body or query. What
 * URLSearchParams of JavaScript makes of those is a template, too: a GET has it without one.
 */
static void
cfg_read_template(struct cfg_reader *r, struct webhook_config *w)
{
    bool is_get = w->method == METHOD_GET;
    const yaml_node_t *n = is_get ? w->query : w->body, *wrong = is_get ? w->body : w->query;
    size_t room = TEMPLATE_MAX;
    struct buf text = {0};
    cJSON *json;

    if (wrong)
        CFG_ERROR(r, wrong, "body is for POST and PUT, query for a GET");
    if (!n && !is_get)
        return;
    w->has_own_query = is_get && n;
    w->form = is_get ? TEMPLATE_QUERY : n->type == YAML_SCALAR_NODE ? TEMPLATE_TEXT : TEMPLATE_JSON;
    buf_add(&text, "", 0);
    for (int i = 0; i < ALERT_FIELDS && !n; i++)
        buf_format(&text, "%s%s={{%s}}", i > 0 ? "&" : "", FIELD_NAMES[i], FIELD_NAMES[i]);
    for (size_t i = 0; is_get && i < cfg_count(n); i += 2) {
        buf_add_text(&text, i > 0 ? "&" : "");
        percent_encode(&text, slice_of(cfg_text(cfg_child(r, n, i))), QUERY_PLAIN);
        buf_add_char(&text, '=');
        cfg_add_template(r, cfg_child(r, n, i + 1), true, &text);
    }
    if (w->form == TEMPLATE_TEXT)
        cfg_add_template(r, n, false, &text);
    else if (w->form == TEMPLATE_JSON) {
        json = cfg_read_json(r, n, &room);
        json_print(json, &text);
        cJSON_Delete(json);
    }
    for (const struct header *h = w->header; h && h->label && w->form == TEMPLATE_TEXT; h++)
        if (strcasecmp(h->label, "Content-Type: ") == 0 && alert_text_matches(h->value, "*json*"))
            CFG_ERROR(r, n, "body is a text, but headers call it JSON: write it as a YAML map");
    if (text.len > TEMPLATE_MAX || room == 0)
        CFG_ERROR(
            r, n, "%s is too long: at most %u bytes", is_get ? "query" : "body", TEMPLATE_MAX);
    w->template_text = text.data;
    w->template = template_read(text.data);
}

/* Reads signingSecret: a text, or a list of two. No error shows any of it. */
static void
cfg_read_secrets(struct cfg_reader *r, struct webhook_config *w)
{
    const yaml_node_t *n;
    size_t count = 0, good = 0;

    for (; (n = cfg_item(r, w->signing, count)) != NULL; count++) {
        struct buf text = {0};
        cfg_expand(r, n, &text);
        good += count < 2 && strncmp(text.data, "whsec_", 6) == 0 &&
            mbedtls_base64_decode(w->secret[count].bytes, SECRET_MAX, &w->secret[count].len,
                (unsigned char *)text.data + 6, text.len - 6) == 0 &&
            w->secret[count].len >= 24;
        buf_free(&text);
    }
    if (w->signing && (good != count || count == 0 || w->method == METHOD_GET))
        CFG_ERROR(r, w->signing,
            "signingSecret must be whsec_ and 24 to %d bytes in Base64, or a list of two such; a "
            "GET has no body to sign",
            SECRET_MAX);
}

/*
 * Reads an entry of a kind's webhooks list, and adds it to the configuration. Its
 * key brings neither URL nor secret to the disk: SHA-256 of kind, method, URL's
 * text and how many entries before it have the same; in place of that its description if it
 * has one and uses a key of ours: what waits for it must not go to another one.
 */
static void
cfg_read_webhook(struct cfg_reader *r, enum alert_kind kind, size_t place)
{
    struct config *c = r->config;
    struct webhook_config *w = &c->webhook[c->webhooks++];
    const yaml_node_t *entry = cfg_child(r, c->webhook_list[kind], place), *n;
    struct buf key = {0};
    uint8_t hash[32];
    int twins = 0, ours = r->ours;

    r->hidden = &w->hidden;
    cfg_read_keys(r, CFG_WEBHOOK_KEYS, "", entry, w);
    w->is_special = r->ours > ours;
    w->kind = kind;
    w->place = place;
    w->listed = cfg_count(c->webhook_list[kind]);
    w->url_text = cfg_text(cfg_get(r, entry, "webhookURL"));
    for (const struct webhook_config *v = c->webhook; v < w; v++) {
        bool is_twin = v->kind == kind && v->method == w->method &&
            strcmp(v->url_text, w->url_text) == 0;
        if (is_twin && v->is_special && w->is_special &&
            strcmp(v->description, w->description) == 0)
            CFG_ERROR(r, entry, "entry %zu has the same method, URL and description: change one",
                v->place + 1);
        twins += is_twin && !(v->is_special && *v->description);
    }
    buf_format(&key, "%s\n%s\n%s\n", KINDS[kind].name, METHODS[w->method], w->url_text);
    if (w->is_special && *w->description)
        buf_add_texts(&key, "-", w->description, NULL);
    else
        buf_add_text(&key, number_text((uint64_t)twins).text);
    mbedtls_sha256((const unsigned char *)key.data, key.len, hash, 0);
    buf_free(&key);
    hex_write(hash, (sizeof w->key - 1) / 2, w->key);
    cfg_set_name(w);
    cfg_read_cert(r, entry, w);
    cfg_read_client(r, entry, w);
    cfg_read_headers(r, entry, w);
    for (size_t i = 0; (n = cfg_item(r, w->retry_list, i)) != NULL; i++) {
        int64_t status = slice_number(slice_of(cfg_text(n)), 499);
        if (status >= 400)
            w->retries[status - 400] = true;
        else
            CFG_ERROR(r, n, "retryStatus: an entry must be a status from 400 to 499");
    }
    cfg_read_proxy(r, entry, w);
    cfg_read_match(r, w);
    cfg_read_template(r, w);
    cfg_read_secrets(r, w);
}

/*
 * Settles what depends on several keys, and warns of what is risky. stateDirectory ''
 * means in memory only; without it the first folder in the environment's STATE_DIRECTORY
 * counts, which systemd sets.
 */
static void
cfg_settle(struct cfg_reader *r, const yaml_node_t *butler)
{
    struct config *c = r->config;
    const yaml_node_t *udp = cfg_get(r, butler, "udpServerConfig");
    const yaml_node_t *own = cfg_get(r, butler, "butlerWebhook");
    const yaml_node_t *at = cfg_get(r, own, "stateDirectory");
    const char *folders = getenv("STATE_DIRECTORY"), *end;
    bool quoted = at && at->data.scalar.style > YAML_PLAIN_SCALAR_STYLE;
    struct buf folder = {0};
    struct plat_addr addr;
    char text[64] = "";
    size_t len;

    if (cfg_is_empty(at) && (quoted || (folders && *folders == '/'))) {
        if (!quoted)
            buf_add(&folder, folders, strcspn(folders, ":"));
        free(c->state_directory);
        c->state_directory = folder.data;
    }
    if (!cfg_is_empty(cfg_get(r, own, "enable")))
        c->disabled_by = c->own_enable ? NULL : "butlerWebhook.enable: false";
    else if (!c->webhook_enable || !c->udp_enable)
        c->disabled_by = c->webhook_enable ? "udpServerConfig.enable: false"
                                           : "webhookNotification.enable: false";

    at = cfg_get(r, own, "metricsFile");
    end = c->metrics_file ? strrchr(c->metrics_file, '.') : NULL;
    len = c->metrics_file ? plat_path_folder_len(c->metrics_file, ".") : 0;
    /* --install lets the service write in its folder: not in that of this file or the program. */
    if (c->metrics_file &&
        (!end || strcmp(end, ".prom") != 0 || !c->state_directory ||
            (len == plat_path_folder_len(r->file, ".") &&
                strncmp(c->metrics_file, r->file, len) == 0)))
        CFG_ERROR(r, at,
            "metricsFile must be NAME.prom outside this file's folder, and needs a stateDirectory");
    c->heartbeat.reject_unauthorized = true;
    c->heartbeat.proxy = cfg_proxy(c, &c->heartbeat, &c->heartbeat.url);

    cfg_read_sources(r);
    if (c->source_validation && c->sources == 0)
        CFG_WARN(r, udp, "udpServerConfig.allowedSources names nobody: every sender is accepted");
    c->source_validation = c->source_validation && c->sources > 0;

    snprintf(c->listens_on, sizeof c->listens_on, strchr(c->udp_host, ':') ? "[%s]:%d" : "%s:%d",
        c->udp_host, (int)c->udp_port);
    if (!c->disabled_by && cfg_is_empty(udp) && cfg_is_empty(cfg_get(r, own, "port")))
        CFG_WARN(r, butler, "udpServerConfig is missing: listening on %s", c->listens_on);
    if (plat_numeric(c->udp_host, &addr, 1) == 1)
        plat_addr_text(&addr, text);
    c->is_local = strncmp(text, "[::1]:", 6) == 0 || strncmp(text, "127.", 4) == 0;
    if (!c->disabled_by && !c->is_local && !c->source_validation)
        CFG_WARN(r, udp ? udp : butler,
            "listening on %s, beyond this machine, without a check of the senders: set "
            "udpServerConfig.enableSourceValidation and allowedSources",
            c->udp_host);
}

/* Reads the text of a configuration file. While the program is off, webhooks have only warnings. */
static void
cfg_read_text(struct cfg_reader *r, struct slice text)
{
    const yaml_node_t *root = cfg_read_document(r, text);
    const yaml_node_t *butler = cfg_get(r, root, "Butler");
    struct config *c = r->config;

    if (root && (!butler || butler->type != YAML_MAPPING_NODE)) {
        CFG_ERROR(r, butler ? butler : root,
            "the file must start with \"Butler:\" and hold Butler's keys, indented under it");
        butler = NULL;
    }
    r->hidden = &c->heartbeat.hidden;
    cfg_read_keys(r, CFG_KEYS, "", butler, c);
    if (butler)
        cfg_settle(r, butler);
    r->only_warn = !r->strict && c->disabled_by;
    c->webhook = x_calloc(ALERT_KINDS * CONFIG_WEBHOOKS_MAX, sizeof *c->webhook);
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        for (size_t i = 0; i < cfg_count(c->webhook_list[kind]); i++)
            cfg_read_webhook(r, (enum alert_kind)kind, i);
    yaml_document_delete(&r->yaml);
}

/*
 * Reads a configuration file, and the proxies that the environment names, into
 * config, which lives as long as the process. All problems are in r->problems; with
 * errors it is of no use. Unless strict, a webhook with a mistake is only a warning
 * while the program is off; it then has no URL. As for curl, the first variable that is
 * set and not empty names the proxy.
 */
static void
cfg_load(struct cfg_reader *r, const char *file, bool strict, struct config *config)
{
    static const char *const names[2][4] = {{"http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"},
        {"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"}};
    const char *lower = getenv("no_proxy"), *upper = getenv("NO_PROXY");
    char *text;
    size_t len;

    *r = (struct cfg_reader){.file = file, .strict = strict, .config = config};
    *config = (struct config){.no_proxy = lower && *lower ? lower : upper ? upper : ""};
    for (int tls = 0; tls < 2; tls++) {
        const char *value = NULL, *name = NULL;
        struct url *proxy = &config->proxy[tls];
        struct buf full = {0};
        for (int k = 0; k < 4 && (!value || !*value); k++)
            value = getenv(name = names[tls][k]);
        if (!value || !*value)
            continue;
        buf_format(&full, "%s%s", strstr(value, "://") ? "" : "http://", value);
        if (url_parse((struct slice){full.data, full.len}, NULL, proxy) || proxy->tls) {
            cfg_problem(r, false, (yaml_mark_t){0},
                "the environment's %s is not a proxy like http://host:port: it is ignored", name);
            url_done(proxy);
        }
        buf_free(&full);
    }
    if (plat_read_file(file, CONFIG_MAX, &text, &len) == 0) {
        cfg_read_text(r, (struct slice){text, len});
        free(text);
    } else
        cfg_problem(r, true, (yaml_mark_t){0}, "cannot read the configuration (at most 512 KB): %s",
            plat_error(errno));
}

/* Adds all problems, a line each, in the form that compilers use and editors can jump to. */
static void
cfg_add_problems(struct buf *b, const struct cfg_reader *r)
{
    for (const struct problem *p = r->problems; p; p = p->next) {
        buf_format(
            b, "%s:%d:%d: %s: ", r->file, p->line, p->column, p->is_error ? "error" : "warning");
        log_add_clean(b, slice_of(p->text));
        buf_add_char(b, '\n');
    }
}

/* ==== 8. Windows of time ====================================================
 *
 * Rate limit and de-duplication are the same thing: a key opens a window, and what
 * comes with that key before the window ends is held back. Pure functions; the time
 * comes as an argument. All windows of a table are equally long, so they end in the
 * order in which they began. When a table is full the one that ends soonest goes: one
 * alert too many may be sent, never one too few.
 */

struct window_key {
    uint8_t bytes[16];
    bool none; /* of an id that is empty or all zeros, which gets no window */
};

struct window_entry {
    struct window_key key;
    int64_t begin_ms;
    uint64_t older; /* the number of the next one in its chain */
    uint32_t held;  /* held back so far */
};

/* Windows are numbered from 1 as they begin; number n stands at n % WINDOW_MAX. */
struct window_table {
    int64_t length_ms; /* 0: nothing is ever held back */
    uint64_t last;     /* the newest's number */
    struct window_entry entry[WINDOW_MAX];
    uint64_t chain[WINDOW_MAX]; /* by key: the newest's number; 0: none */
};

enum window_use { WINDOW_RATE, WINDOW_SEEN, WINDOW_USES };

/* All tables: the rate limit's by taskId, de-duplication's by executionId. */
struct windows {
    struct window_table table[ALERT_KINDS][WINDOW_USES];
};

/* Returns an alert's key, which is the same for a GUID in any case, with or without braces. */
static struct window_key
window_key(const struct alert *alert, enum window_use use)
{
    const char *id = alert->field[use == WINDOW_RATE ? FIELD_TASK_ID : FIELD_EXECUTION_ID];
    struct window_key key = {.none = id[strspn(id, "{0-}")] == '\0'};

    alert_key(id, slice_of(id), key.bytes);
    return key;
}

/* Returns the head of the chain that a key belongs to. */
static uint64_t *
window_chain(struct window_table *t, const struct window_key *key)
{
    uint32_t word[4];

    memcpy(word, key->bytes, sizeof word);
    return &t->chain[(word[0] ^ word[1] ^ word[2] ^ word[3]) % WINDOW_MAX];
}

/*
 * Returns the key's newest window if it ends after at_ms, or NULL. A chain ends at a number
 * whose place was needed again: all that are older have lost theirs, too.
 */
static struct window_entry *
window_find(struct window_table *t, const struct window_key *key, int64_t at_ms)
{
    for (uint64_t n = *window_chain(t, key); n > 0 && n + WINDOW_MAX > t->last;) {
        struct window_entry *entry = &t->entry[n % WINDOW_MAX];
        if (memcmp(entry->key.bytes, key->bytes, sizeof key->bytes) == 0)
            return entry->begin_ms + t->length_ms > at_ms ? entry : NULL;
        n = entry->older;
    }
    return NULL;
}

/*
 * Opens a window at begin_ms. Returns how much the one before, which may have ended, has
 * held back; 0 if its place was needed again.
 */
static uint32_t
window_open(struct window_table *t, const struct window_key *key, int64_t begin_ms)
{
    uint64_t *chain = window_chain(t, key);
    const struct window_entry *before = window_find(t, key, INT64_MIN);
    uint32_t held = before ? before->held : 0;

    if (t->length_ms == 0 || key->none)
        return 0;
    t->entry[++t->last % WINDOW_MAX] = (struct window_entry){*key, begin_ms, *chain, 0};
    *chain = t->last;
    return held;
}

/* ==== 9. Journal ============================================================
 *
 * What survives a crash: one file of lines that is appended to once a round, and read
 * at a start. It is rewritten from memory then, and when most of it is done with, or
 * a disk has failed. A line is a record of eight fields, with TABs between:
 *
 *   CRC-32, word, number, kind, time, count, keys, JSON
 *
 * JSON holds no raw TAB and no LF. What a word does not need is 0 or "".
 *
 * Rewriting: everything that waits is written to journal.new; from then on records
 * go to both files, until the disk thread has synced the new one and it is renamed
 * over the journal. A crash at any point leaves a journal that is whole.
 *
 * Threads: the loop owns everything. The disk thread does what the loop has asked for,
 * syncs and dead letters, through handles of its own, and then wakes the loop.
 */

enum journal_word {
    JOURNAL_WEBHOOK,  /* number: its place in its list, from 1; count: how many stand there */
    JOURNAL_ACCEPTED, /* a new alert, which opened its windows; count: held back before it */
    JOURNAL_WAITING,  /* an alert that was rewritten or replayed: opens none; count: the same */
    JOURNAL_ATTEMPT,  /* that failed; count: attempts so far */
    JOURNAL_END,      /* count: 1 a dead letter, 0 delivered */
    JOURNAL_WINDOW    /* open; count: its enum window_use */
};
static const char *const JOURNAL_WORDS[] = {
    "webhook", "accepted", "waiting", "attempt", "end", "window"};
#define JOURNAL_FIELDS 7 /* behind the CRC */

/* One record, read or to be written, in the order of its line; everything in it is borrowed. */
struct journal_record {
    enum journal_word word;
    uint64_t number;      /* of the alert: ascending in the file */
    enum alert_kind kind; /* not of ATTEMPT, END */
    int64_t wall_ms;      /* accepted, tried, or the window's begin */
    size_t count;         /* as above */
    struct slice key;     /* ACCEPTED, WAITING: ',' between them; WINDOW: 32 hexadecimal digits */
    struct slice text;    /* ACCEPTED, WAITING: JSON; ATTEMPT: why; WEBHOOK: description */
};

static const char *const LETTER_FILES[] = {"dead-letters.1.ndjson", "dead-letters.ndjson"};
static const char *const REPLAY_FILES[] = {"replay.1.ndjson", "replay.ndjson"};

/* A path in the state directory, by value. */
struct state_path {
    char text[PATH_ROOM];
};

/* Reads a file line by line, and passes over what the disk cannot read. */
struct line_reader {
    int file; /* -1: none */
    struct buf in;
    size_t used;    /* of in: lines that were given */
    int64_t offset; /* of the end of in, in the file */
    int64_t unread; /* bytes passed over */
};

/* What the loop shares with the disk thread, which owns all but busy as long as it is busy. */
struct disk {
    struct plat_monitor lock;
    atomic_bool busy; /* true is set, and waited for, with the lock */
    const struct config *config;
    int sync;                   /* the loop's handle; -1: not to be synced; ... */
    bool sync_new, sync_folder; /* ... journal.new and the folder to be synced ... */
    const struct buf *letters;  /* ... lines for the dead letters; NULL: none ... */
    const struct buf *metrics;  /* ... and a text for the file of metrics; NULL: none */
    int sync_error, new_error, letters_error, metrics_error; /* errno; 0: done */
};

/* Lives as long as the process: nothing is closed or freed before its end. */
struct journal {
    const char *folder; /* NULL: alerts are kept in memory only */
    struct disk *disk;  /* NULL: no folder, or opened read only */
    int lock;           /* handles, as all below, -1: not open */
    int file;           /* the journal */
    int new_file;       /* journal.new, which is appended to, too */
    struct buf out;     /* records of this round, or a piece of journal.new */
    int64_t len;        /* of the journal */
    int64_t max;        /* bytes that it and journal.new may have together */

    /* Each was logged when it became true. */
    bool failed; /* alerts go on from memory until a rewriting has succeeded */
    bool rewrite_failed, letters_failed, replay_failed, metrics_failed, metrics_again;
    bool wants_rewrite; /* however small the journal is: from the start until it is done */
    int64_t retry_ms;   /* what has failed is tried no sooner */
    struct log_event event;

    bool asked;             /* the disk thread has a job, or its results are not yet taken */
    uint64_t synced_number; /* what waits up to this alert is on the disk, or will be by that job */
    int64_t sync_ms;        /* when what still waits must be synced; INT64_MAX: never */
    bool sync_all;          /* at once, and the folder, too */

    struct line_reader reader;
    struct buf text; /* of the last record that was read */
    int damaged;     /* lines */
    int aside;       /* journal.damaged; -1: not open */

    struct buf letters; /* lines for the dead letters; the disk thread's while asked ... */
    struct buf metrics; /* ... as this is: a text for the file of metrics */
    struct line_reader replay;
    struct state_path replay_path;
    bool replay_is_read; /* to its end; it is deleted once all is safe */
    int64_t look_ms;     /* when to look for such a file next */
};

/* ---- Records ---- */

/*
 * Writes the CRC-32 of some bytes (polynomial 0xedb88320, as in zlib) as eight
 * hexadecimal digits and a NUL. Called by the loop only.
 */
static void
crc_write(const void *data, size_t len, char out[9])
{
    static uint32_t table[4 * 256]; /* of bytes with 0, 1, 2, 3 others behind them */
    const unsigned char *p = data;
    uint32_t c = UINT32_MAX;

    for (uint32_t i = 0; i < 1024 && !table[1023]; i++) {
        uint32_t row = i < 256 ? i : table[i - 256];
        for (int bit = 0; bit < 8; bit++)
            row = row >> 1 ^ (row & 1 ? 0xedb88320u : 0);
        table[i] = row;
    }
    /* Four bytes at a time ("slicing"): one at a time is a tenth of what an alert costs. */
    for (; len >= 4; len -= 4, p += 4)
        c = table[768 + ((c ^ p[0]) & 255)] ^ table[512 + ((c >> 8 ^ p[1]) & 255)] ^
            table[256 + ((c >> 16 ^ p[2]) & 255)] ^ table[c >> 24 ^ p[3]];
    for (; len > 0; len--)
        c = c >> 8 ^ table[(c ^ *p++) & 255];
    for (int i = 0; i < 4; i++)
        hex_write(&(uint8_t){(uint8_t)(~c >> (24 - 8 * i))}, 1, out + 2 * i);
}

/* Adds a record as a line. A text that is no JSON is UTF-8, and ends with a NUL. */
static void
journal_add_record(struct buf *b, const struct journal_record *r)
{
    size_t begin = b->len;
    char crc[9];

    buf_add_texts(b, "00000000\t", JOURNAL_WORDS[r->word], "\t", number_text(r->number).text, "\t",
        KINDS[r->kind].name, "\t", number_text((uint64_t)r->wall_ms).text, "\t",
        number_text(r->count).text, "\t", NULL);
    buf_add(b, r->key.data, r->key.len);
    buf_add_char(b, '\t');
    if (r->word == JOURNAL_ACCEPTED || r->word == JOURNAL_WAITING)
        buf_add(b, r->text.data, r->text.len);
    else
        json_print(&(cJSON){.type = cJSON_String, .valuestring = (char *)r->text.data}, b);
    crc_write(b->data + begin + 9, b->len - begin - 9, crc);
    memcpy(b->data + begin, crc, 8);
    buf_add_char(b, '\n');
}

/*
 * Reads a line, without its LF. *out points into line, and into text for what was a
 * JSON string. -1: it is damaged, or no record of ours. Pure.
 */
static int
journal_read_record(struct slice line, struct journal_record *out, struct buf *text)
{
    struct slice rest, field[JOURNAL_FIELDS];
    int64_t n[JOURNAL_FIELDS];
    char crc[9];
    cJSON *string;
    bool is_text;

    if (line.len < 10 || line.len > JOURNAL_LINE_MAX || line.data[8] != '\t')
        return -1;
    rest = (struct slice){line.data + 9, line.len - 9};
    crc_write(rest.data, rest.len, crc);
    for (int i = 0; i < JOURNAL_FIELDS; i++) {
        field[i] = slice_take(&rest, '\t');
        n[i] = slice_number(field[i], INT64_MAX / 32);
    }
    *out = (struct journal_record){
        JOURNAL_WINDOW, (uint64_t)n[1], 0, n[3], (size_t)n[4], field[5], field[6]};
    out->kind = slice_is(field[2], KINDS[ALERT_ABORTED].name) ? ALERT_ABORTED : ALERT_FAILURE;
    while (out->word > 0 && !slice_is(field[0], JOURNAL_WORDS[out->word]))
        out->word--;
    if (memcmp(line.data, crc, 8) != 0 || !slice_is(field[0], JOURNAL_WORDS[out->word]) ||
        !slice_is(field[2], KINDS[out->kind].name) || n[1] < 0 || n[3] < 0 || n[4] < 0 ||
        n[4] > INT_MAX / 2 || out->key.len == 0 || rest.len > 0)
        return -1;
    if (out->word == JOURNAL_ACCEPTED || out->word == JOURNAL_WAITING)
        return 0;
    string = json_read(out->text);
    is_text = cJSON_IsString(string);
    text->len = 0;
    buf_add_text(text, is_text ? string->valuestring : "");
    out->text = (struct slice){text->data, text->len};
    cJSON_Delete(string);
    return is_text ? 0 : -1;
}

/*
 * Reads a line of dead letters: what it says of its webhook (kind, key, description,
 * place), and the alert. Returns its document, which the caller deletes and which holds
 * both their texts. NULL: it is damaged, or no alert of ours.
 */
static cJSON *
journal_read_letter(struct slice line, struct webhook_config *was, struct alert *alert)
{
    cJSON *o = line.len <= JOURNAL_LINE_MAX ? json_read(line) : NULL;
    const cJSON *place = cJSON_GetObjectItemCaseSensitive(o, "place");
    const cJSON *listed = cJSON_GetObjectItemCaseSensitive(o, "count");
    bool is_alert = alert_read_json(cJSON_GetObjectItemCaseSensitive(o, "alert"), alert) == 0;

    *was = (struct webhook_config){.kind = alert->kind,
        .place = place ? (size_t)place->valueint - 1 : SIZE_MAX,
        .listed = listed ? (size_t)listed->valueint : 0,
        .description = json_text(o, "description")};
    snprintf(was->key, sizeof was->key, "%s", json_text(o, "webhookKey"));
    if (is_alert)
        return o;
    cJSON_Delete(o);
    return NULL;
}

/* ---- Files ---- */

/* Returns the path of a file of the state directory. */
static struct state_path
state_path(const char *folder, const char *name)
{
    struct state_path path;

    snprintf(path.text, sizeof path.text, "%s/%s", folder, name);
    return path;
}

/* Returns why a file of the state directory could not be used, from an errno. */
static const char *
state_why(int number)
{
    return number == EINVAL ? "it is a link, or no plain file" : plat_error(number);
}

/*
 * Reads the next line, without its LF: 1, or 0 at the end. A line that is too long
 * comes in pieces, each longer than JOURNAL_LINE_MAX but the last.
 */
static int
line_read(struct line_reader *r, struct slice *line)
{
    while (r->file >= 0) {
        size_t have = r->in.len - r->used;
        char *begin = r->in.data ? r->in.data + r->used : "", *end = memchr(begin, '\n', have);
        int64_t n, step = UNREADABLE_STEP - r->offset % UNREADABLE_STEP;
        if (end || have > JOURNAL_LINE_MAX) {
            *line = (struct slice){begin, end ? (size_t)(end - begin) : have};
            r->used += line->len + (end ? 1 : 0);
            return 1;
        }
        buf_drop(&r->in, r->used);
        r->used = 0;
        buf_reserve(&r->in, JOURNAL_CHUNK);
        n = plat_read_at(r->file, r->in.data + have, JOURNAL_CHUNK, r->offset);
        if (n < 0)
            n = plat_read_at(r->file, r->in.data + have, (size_t)step, r->offset);
        if (n > 0)
            r->in.len += (size_t)n;
        else if (n < 0 && r->offset < plat_file_len(r->file))
            r->unread += n = step;
        else {
            *line = (struct slice){r->in.data, have};
            r->used = have;
            return have > 0;
        }
        r->offset += n;
    }
    return 0;
}

/* Closes the file, and frees what was read. */
static void
line_reader_done(struct line_reader *r)
{
    plat_file_close(r->file);
    buf_free(&r->in);
    *r = (struct line_reader){.file = -1};
}

/* ---- Disk thread ---- */

/*
 * Appends the letters to dead-letters.ndjson and syncs it; a full file then becomes
 * dead-letters.1.ndjson. Returns 0, or an errno: nothing was added.
 */
static int
disk_write_letters(const struct disk *d)
{
    struct state_path path = state_path(d->config->state_directory, LETTER_FILES[1]);
    int why, file = plat_state_open(path.text, O_RDWR | O_CREAT);
    char last = '\n';
    int64_t len;

    if (file < 0)
        return errno;
    len = plat_file_len(file);
    if (len > 0 && plat_read_at(file, &last, 1, len - 1) != 1)
        last = '\0';
    /* A line that a crash has torn must not swallow the next one. */
    why = (last == '\n' || plat_write(file, "\n", 1) == 0) &&
            plat_write(file, d->letters->data, d->letters->len) == 0 && plat_file_sync(file) == 0 &&
            (len > 0 || plat_folder_sync(d->config->state_directory) == 0)
        ? 0
        : errno;
    if (why)
        ftruncate(file, (long)len);
    plat_file_close(file);
    if (len + (int64_t)d->letters->len > LETTERS_FILE_MAX) /* if that is refused it grows on */
        plat_file_replace(path.text, state_path(d->config->state_directory, LETTER_FILES[0]).text);
    return why;
}

/*
 * Syncs a file through a handle of its own: on Windows a write waits for a sync through
 * the same. If there is no descriptor for that, it takes the loop's, unless that is -1.
 * Returns 0 or an errno.
 */
static int
disk_sync(const struct disk *d, const char *name, int loops)
{
    int own = plat_state_open(state_path(d->config->state_directory, name).text, O_RDWR);
    int file = own >= 0 ? own : loops;
    int why = file >= 0 && plat_file_sync(file) == 0 ? 0 : errno;

    plat_file_close(own);
    return why;
}

/* Writes the file of metrics whole: a reader sees the old one or the new one. 0, or an errno. */
static int
disk_write_metrics(const struct disk *d)
{
    struct buf path = {0};
    int why = 0, file;

    buf_add_texts(&path, d->config->metrics_file, ".new", NULL);
    plat_remove(path.data);
    file = plat_file_open(path.data, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file < 0 || fchmod(file, 0644) != 0 ||
        plat_write(file, d->metrics->data, d->metrics->len) != 0)
        why = errno;
    plat_file_close(file);
    if (!why && plat_file_replace(path.data, d->config->metrics_file) != 0)
        why = errno;
    buf_free(&path);
    return why;
}

/* Runs as long as the process, so what it shares is never freed. */
static plat_thread
disk_thread(void *arg)
{
    struct disk *d = arg;

    for (;;) {
        pthread_mutex_lock(&d->lock.mutex);
        while (!d->busy)
            plat_monitor_wait(&d->lock, WAIT_MAX_MS);
        pthread_mutex_unlock(&d->lock.mutex);
        d->sync_error = d->sync >= 0 ? disk_sync(d, "journal", d->sync) : 0;
        if (d->sync_folder && plat_folder_sync(d->config->state_directory) != 0)
            d->sync_error = errno;
        d->letters_error = d->letters ? disk_write_letters(d) : 0;
        d->new_error = d->sync_new ? disk_sync(d, "journal.new", -1) : 0;
        d->metrics_error = d->metrics ? disk_write_metrics(d) : 0;
        d->busy = false;
        plat_wake();
    }
    return 0;
}

/* ---- Failures ---- */

/*
 * Notes in *flag, one of j's, that something has failed, with that errno, or works again, 0;
 * logs it when that changes. What has failed is tried again after HEAL_MS.
 */
static void
journal_fail(struct journal *j, bool *flag, const char *what, int number)
{
    if (number && !*flag && (!j->failed || flag != &j->rewrite_failed))
        log_event(&j->event, PLAT_DISK_FAILED, LOG_ERROR, "disk: %s: %s; %s", what,
            state_why(number), flag == &j->failed ? "alerts go on from memory" : "trying again");
    if (!number && *flag)
        log_line(LOG_INFO, "disk: %s: works again", what);
    *flag = number != 0;
    if (number && flag != &j->metrics_failed) /* they are written again anyway */
        j->retry_ms = plat_now_ms() + HEAL_MS;
}

/* Gives journal.new up, to begin another later. */
static void
journal_fail_rewrite(struct journal *j, int number)
{
    plat_file_close(j->new_file);
    j->new_file = -1;
    plat_remove(state_path(j->folder, "journal.new").text);
    journal_fail(j, &j->rewrite_failed, "cannot rewrite the journal", number);
}

/* ---- Start ---- */

/*
 * Makes the state directory, takes its lock, deletes a journal.new that a crash has
 * left, and starts the disk thread. -1 with e.
 */
static int
journal_take_folder(struct journal *j, const struct config *c, struct err *e)
{
    if (plat_make_folder(j->folder, true) == 0)
        j->lock = plat_state_open(state_path(j->folder, "lock").text, O_RDWR | O_CREAT);
    if (j->lock < 0 || plat_file_lock(j->lock) != 0) {
        err_set(e, "cannot make or lock %s/lock: %s", j->folder,
            errno == EWOULDBLOCK ? "it is used by another butler_webhook" : state_why(errno));
        return -1;
    }
    plat_remove(state_path(j->folder, "journal.new").text);
    j->disk = x_calloc(1, sizeof *j->disk);
    j->disk->config = c;
    plat_monitor_init(&j->disk->lock);
    if (plat_thread_start(disk_thread, j->disk) == 0)
        return 0;
    err_set(e, "cannot start the disk thread");
    return -1;
}

/*
 * Opens the state directory; the caller reads the journal to its end next. Without a
 * directory in the configuration, which must stay as long as j, neither this nor any
 * other function here does anything. read_only: nothing is made, locked or started, and
 * a journal that is not there counts as empty. -1 with e.
 */
static int
journal_open(struct journal *j, const struct config *c, bool read_only, struct err *e)
{
    *j = (struct journal){.folder = c->state_directory,
        .max = c->max_state_mb * STATE_UNIT,
        .sync_ms = INT64_MAX,
        .sync_all = true,
        .wants_rewrite = true};
    j->lock = j->file = j->new_file = j->aside = j->reader.file = j->replay.file = -1;
    if (!j->folder)
        return 0;
    if (read_only || journal_take_folder(j, c, e) == 0) {
        j->file = plat_state_open(
            state_path(j->folder, "journal").text, read_only ? O_RDONLY : O_RDWR | O_CREAT);
        j->reader.file = j->file;
        if (j->file >= 0 || (read_only && errno == ENOENT))
            return 0;
        err_set(e, "cannot open %s/journal: %s", j->folder, state_why(errno));
    }
    err_set(e, "butlerWebhook.stateDirectory: %s", e->text);
    return -1;
}

/*
 * Reads the journal from its beginning: 1 and the next record, valid until the next
 * call, or 0 at the end. What is damaged or unreadable is passed over, and logged at
 * the end.
 */
static int
journal_read_next(struct journal *j, struct journal_record *out)
{
    struct line_reader *r = &j->reader;
    struct slice line;

    while (line_read(r, &line) > 0) {
        if (line.len == 0)
            continue; /* the LF of an earlier start */
        if (journal_read_record(line, out, &j->text) == 0)
            return 1;
        if (j->damaged++ == 0 && j->disk)
            j->aside = plat_state_open(
                state_path(j->folder, "journal.damaged").text, O_RDWR | O_CREAT);
        if (j->aside >= 0 && plat_file_len(j->aside) + (int64_t)line.len < (1 << 20)) {
            plat_write(j->aside, line.data, line.len);
            plat_write(j->aside, "\n", 1);
        }
    }
    if (j->disk && j->damaged > 0)
        log_line(LOG_ERROR, "journal: %d damaged line%s %s %s/journal.damaged", j->damaged,
            j->damaged == 1 ? "" : "s", j->aside < 0 ? "skipped; cannot open" : "set aside in",
            j->folder);
    if (j->disk && r->unread > 0)
        log_line(LOG_ERROR, "journal: %lld bytes that cannot be read were passed over",
            (long long)r->unread);
    /* The last line may be torn: what is appended must not become a part of it. */
    if (j->disk && plat_write(j->file, "\n", 1) != 0)
        journal_fail(j, &j->failed, "cannot write the journal", errno);
    j->len = plat_file_len(j->file);
    r->file = -1; /* it is the journal's own */
    line_reader_done(r);
    buf_free(&j->text);
    plat_file_close(j->aside);
    return 0;
}

/* ---- Writing ---- */

/*
 * Adds a record to what journal_write will write. Not without a folder, nor while the
 * journal is read, which holds it, nor after a failure unless journal.new can take it.
 */
static void
journal_note(struct journal *j, struct journal_record r)
{
    if (j->disk && j->reader.file < 0 && (!j->failed || j->new_file >= 0))
        journal_add_record(&j->out, &r);
}

/*
 * Writes what was noted in this round. 0: it stands in the journal; -1: in memory
 * only, as there is no folder or it has failed, which was logged.
 */
static int
journal_write(struct journal *j)
{
    bool full = j->rewrite_failed && j->len > j->max / 5 * 2;
    int64_t took_ms = plat_now_ms();

    if (!j->disk || j->out.len == 0)
        return j->disk && !j->failed ? 0 : -1;
    if (!j->failed && (full || plat_write(j->file, j->out.data, j->out.len) != 0))
        journal_fail(j, &j->failed, "cannot write the journal", full ? ENOSPC : errno);
    if (j->new_file >= 0 && plat_write(j->new_file, j->out.data, j->out.len) != 0)
        journal_fail_rewrite(j, errno);
    took_ms = plat_now_ms() - took_ms;
    if (took_ms > 1000) /* a sync on a slow disk holds it up, and the loop */
        log_line(LOG_WARN, "state directory: writing the journal took %lld ms", (long long)took_ms);
    j->len += (int64_t)j->out.len;
    j->out.len = 0; /* its memory is used again */
    return j->failed ? -1 : 0;
}

/*
 * True: the caller writes all that waits (live_bytes of it) and the open windows anew,
 * now: journal_rewrite_begin, journal_rewrite_add for each record, journal_rewrite_flush.
 * The last condition keeps journal and journal.new below max together: what waits has at
 * most 3/10 of it (backlog_init), so at 8/10 there is time left for what comes meanwhile.
 */
static bool
journal_wants_rewrite(const struct journal *j, int64_t live_bytes, int64_t now_ms)
{
    return j->disk && j->new_file < 0 && !j->asked && now_ms >= j->retry_ms &&
        (j->failed || j->rewrite_failed || j->wants_rewrite ||
            j->len > 2 * live_bytes + REWRITE_MIN ||
            (j->len + live_bytes > j->max / 10 * 8 && j->len > live_bytes / 4 * 5));
}

/* Begins journal.new; none may be under way, nor anything noted since journal_write. */
static void
journal_rewrite_begin(struct journal *j)
{
    plat_make_folder(j->folder, true); /* somebody may have deleted it */
    j->new_file = plat_state_open(
        state_path(j->folder, "journal.new").text, O_RDWR | O_CREAT | O_EXCL);
    if (j->new_file < 0)
        journal_fail_rewrite(j, errno);
}

/* Writes what was added; from here on records go to both files. */
static void
journal_rewrite_flush(struct journal *j)
{
    if (j->new_file >= 0 && plat_write(j->new_file, j->out.data, j->out.len) != 0)
        journal_fail_rewrite(j, errno);
    buf_free(&j->out);
}

/* Adds a record to journal.new, which is written a piece at a time. */
static void
journal_rewrite_add(struct journal *j, struct journal_record r)
{
    journal_add_record(&j->out, &r);
    if (j->out.len >= JOURNAL_CHUNK)
        journal_rewrite_flush(j);
}

/* Renames journal.new, which is synced, over the journal. If that is refused it is given up. */
static void
journal_place(struct journal *j)
{
    struct state_path from = state_path(j->folder, "journal.new");
    struct state_path to = state_path(j->folder, "journal");

    plat_file_close(j->file); /* Windows replaces nothing that is open */
    if (plat_file_replace(from.text, to.text) != 0) {
        journal_fail_rewrite(j, errno);
        j->file = plat_state_open(to.text, O_RDWR);
        if (j->file < 0)
            journal_fail(j, &j->failed, "cannot open the journal", errno);
        return;
    }
    j->file = j->new_file;
    j->new_file = -1;
    j->len = plat_file_len(j->file);
    j->sync_all = true;
    if (j->failed || j->rewrite_failed)
        log_line(LOG_INFO, "disk: journal: works again");
    j->failed = j->rewrite_failed = j->wants_rewrite = false;
}

/* ---- Upkeep ---- */

/* Once a round, first: takes what the disk thread has done, if it is no longer busy. */
static void
journal_take_results(struct journal *j)
{
    struct disk *d = j->disk;
    bool is_new = j->new_file >= 0 && d->sync_new; /* unless it was given up meanwhile */

    if (!j->asked || d->busy)
        return;
    j->asked = false;
    if (d->sync_error)
        journal_fail(j, &j->failed, "cannot sync the journal", d->sync_error);
    if (d->letters)
        journal_fail(j, &j->letters_failed, LETTER_FILES[1], d->letters_error);
    if (d->letters && !d->letters_error)
        buf_free(&j->letters);
    if (d->metrics) {
        if (!d->metrics_error || j->metrics_again) /* Windows refuses while somebody reads it */
            journal_fail(j, &j->metrics_failed, d->config->metrics_file, d->metrics_error);
        j->metrics_again = d->metrics_error != 0;
        j->metrics.len = 0;
    }
    if (is_new && d->new_error)
        journal_fail_rewrite(j, d->new_error);
    else if (is_new)
        journal_place(j);
}

/*
 * Once a round, last: asks the disk thread for what there is to do. waiting: number of
 * the newest alert that waits, 0: none; it is synced after SYNC_MS. Lowers *until_ms to
 * when this must be called again.
 */
static void
journal_upkeep(struct journal *j, uint64_t waiting, int64_t now_ms, int64_t *until_ms)
{
    struct disk *d = j->disk;

    if (!d)
        return;
    if (j->failed || waiting <= j->synced_number)
        j->sync_ms = INT64_MAX;
    else if (j->sync_ms == INT64_MAX)
        j->sync_ms = now_ms + SYNC_MS;
    if (j->asked)
        return; /* it wakes the loop */
    d->sync_folder = j->sync_all && !j->failed;
    d->sync = d->sync_folder || now_ms >= j->sync_ms ? j->file : -1;
    /* At the end of a stop retry_ms is never: a journal that is whole needs no new one. */
    d->sync_new = j->new_file >= 0 && now_ms >= j->retry_ms;
    d->letters = j->letters.len > 0 && (!j->letters_failed || now_ms >= j->retry_ms) ? &j->letters
                                                                                     : NULL;
    d->metrics = j->metrics.len > 0 ? &j->metrics : NULL;
    j->asked = d->sync >= 0 || d->sync_new || d->letters || d->metrics;
    if (!j->asked) {
        *until_ms = j->sync_ms < *until_ms ? j->sync_ms : *until_ms;
        return;
    }
    if (d->sync >= 0) {
        j->synced_number = waiting;
        j->sync_all = false;
        j->sync_ms = INT64_MAX;
    }
    pthread_mutex_lock(&d->lock.mutex);
    d->busy = true;
    pthread_cond_broadcast(&d->lock.changed);
    pthread_mutex_unlock(&d->lock.mutex);
}

/* ---- Replay ---- */

/*
 * Reads the next line of a file that --replay has left: 1, and the line is valid until
 * the next call; 0: there is none, or replay_is_read. The disk thread must not be busy,
 * as it may have the letters open that --replay has just renamed.
 */
static int
journal_replay_next(struct journal *j, int64_t now_ms, struct slice *line)
{
    struct line_reader *r = &j->replay;

    if (j->replay_is_read || (r->file < 0 && now_ms < j->look_ms))
        return 0;
    j->look_ms = now_ms + LOOK_MS;
    for (size_t i = 0; i < 2 && r->file < 0; i++) {
        j->replay_path = state_path(j->folder, REPLAY_FILES[i]);
        r->file = plat_state_open(j->replay_path.text, O_RDONLY);
        if (r->file < 0 && errno != ENOENT && !plat_is_want_of_ours() && !j->replay_failed)
            journal_fail(j, &j->replay_failed, j->replay_path.text, errno);
    }
    while (line_read(r, line) > 0)
        if (line->len > 0)
            return 1;
    j->replay_is_read = r->file >= 0;
    j->sync_all = j->sync_all || j->replay_is_read;
    return 0;
}

/*
 * Deletes the file that was read, and returns true. As long as that is refused it
 * stays; if a part could not be read, too, until a later start can read it.
 */
static bool
journal_replay_end(struct journal *j)
{
    struct line_reader *r = &j->replay;
    int why = 0;

    plat_file_close(r->file); /* Windows deletes nothing that is open */
    r->file = -1;
    if (r->unread > 0)
        why = EIO;
    else if (plat_remove(j->replay_path.text) != 0 && errno != ENOENT)
        why = errno;
    if (!why)
        line_reader_done(r);
    j->replay_is_read = why != 0;
    if (!why || !j->replay_failed) /* not again and again: that would put off all other tries */
        journal_fail(j, &j->replay_failed, j->replay_path.text, why);
    return !why;
}

/*
 * Calls each, unless it is NULL, for every line of both LETTER_FILES or REPLAY_FILES.
 * Returns their number; -1 with e: a file cannot be read.
 */
static int
journal_each_letter(const struct journal *j, const char *const files[2],
    void (*each)(struct slice line, void *arg), void *arg, struct err *e)
{
    int count = 0;

    for (size_t i = 0; i < 2 && j->folder; i++) {
        struct state_path path = state_path(j->folder, files[i]);
        struct line_reader r = {.file = plat_state_open(path.text, O_RDONLY)};
        struct slice line;
        if (r.file < 0 && errno != ENOENT) {
            err_set(e, "cannot read %s: %s", path.text, state_why(errno));
            return -1;
        }
        for (; line_read(&r, &line) > 0; count += line.len > 0)
            if (each)
                each(line, arg);
        line_reader_done(&r);
    }
    return count;
}

/*
 * --replay, with j read only: renames the dead letters to the files that the service
 * replays. Returns their number; -1 with e, also if it has not taken all of those before.
 */
static int
journal_hand_over(const struct journal *j, struct err *e)
{
    int count = journal_each_letter(j, LETTER_FILES, NULL, NULL, e);

    for (int i = 2; i-- > 0 && count >= 0;) { /* the service ends with the last */
        struct state_path from = state_path(j->folder, LETTER_FILES[i]);
        struct state_path to = state_path(j->folder, REPLAY_FILES[i]);
        if (plat_state_open(to.text, O_RDONLY) >= 0 || errno != ENOENT)
            err_set(e, "a replay is under way: %s is not taken back yet", to.text);
        else if (count == 0 || plat_file_replace(from.text, to.text) == 0 || errno == ENOENT)
            continue;
        else
            err_set(e, "cannot hand over %s: %s", from.text, plat_error(errno));
        return -1;
    }
    return count;
}

/* ==== 10. HTTP client =======================================================
 *
 * A call carries one alert to one webhook: look the name up, connect, ask a
 * proxy for a tunnel, TLS, send, read the head of the answer, follow where it
 * redirects to. Each of these is a state with a function; none of them waits,
 * and the proxy's answer is read as the webhook's is. The head gives the result.
 * Then the body is skipped, and the connection rests until the same webhook is
 * called again.
 *
 *     webhook 1-1 peer   what all calls of the webhook share
 *     peer    1-n call   a request, its state and result; without an owner its
 *                        result was given, and only its connection is left
 *     call    1-1 conn   the connection, plain or TLS: two pairs of functions
 *
 * What a server sends is bounded and read by pure functions; every wait ends
 * at a deadline.
 */

enum { BODY_MORE = -1, BODY_BAD = -2 };

/* The head of an answer. Slices point into what was parsed. */
struct http_head {
    size_t len; /* of the head, blank line included */
    int status;
    bool keep;                /* the connection can be used again after the body ... */
    bool chunked;             /* ... which has a Transfer-Encoding; without, it has a length */
    int64_t length;           /* Content-Length; -1: none, BODY_BAD: no number, or two */
    struct slice location;    /* data NULL: none; empty: several */
    struct slice retry_after; /* the first; empty: none */
};

enum http_end {
    HTTP_UNSENT,   /* failed before the request was written */
    HTTP_OURS,     /* the same, as no descriptor or thread was left: not the webhook's fault */
    HTTP_BROKEN,   /* failed after it */
    HTTP_ANSWERED, /* status and retry_after_s are the answer's */
};

/* What became of a call. */
struct http_result {
    enum http_end end;
    int status;
    int64_t retry_after_s; /* -1: not asked for */
    struct err reason;     /* why it is no 2xx */
    struct err hint;       /* what a person can change; empty: nothing */
    int64_t ms;
};

/* One alert to be sent. */
struct http_request {
    struct slice json; /* borrowed until the result; with fields behind it for a template */
    char id[64];       /* webhook-id */
    bool is_test;
    uint32_t suppressed; /* for templates, as the next: as in struct alert */
    int64_t accepted_ms;
};

/* What belongs to one webhook. */
struct peer {
    struct http *http;
    const struct webhook_config *webhook;
    mbedtls_ssl_config tls;
    bool has_tls;                /* tls is ready */
    mbedtls_ssl_session session; /* of webhookURL's own origin, for one handshake ... */
    bool has_session;            /* ... if there is one */
    struct plat_addr worked;     /* the address that was connected to last */
    int64_t expires_s;           /* the server's certificate, since 1970; 0: none was seen */
};

/* A connection and all that waits in it. */
struct conn {
    struct peer *peer;
    intptr_t sock;                              /* -1: none */
    int (*read)(struct conn *, void *, size_t); /* as plat_recv; -1 with broken */
    int (*write)(void *conn, const unsigned char *, size_t);
    bool to_origin;           /* to webhookURL's own, perhaps through a proxy */
    bool may_be_stale;        /* it has rested, or its handshake goes on with an old session */
    mbedtls_ssl_context *ssl; /* NULL: plain */
    uint8_t address[16];      /* of the server, if the URL has one in place of a name */
    size_t address_len;
    uint32_t faults;   /* MBEDTLS_X509_BADCERT_... of the first certificate with a fault */
    struct err about;  /* that certificate in words; without a fault the server's own */
    struct err broken; /* why nothing more can be read */
    int reads_left;    /* in this step */
    struct buf in;     /* read and not yet used */
    struct buf out;    /* written and not yet sent */
};

/* What a call waits for, in the order in which it happens. */
enum call_state {
    CALL_RESOLVE,
    CALL_CONNECT,
    CALL_TUNNEL,
    CALL_HANDSHAKE,
    CALL_RECEIVE,
    CALL_BODY, /* from here on it has its result, unless that waits for a reason */
    CALL_IDLE,
    CALL_CLOSED /* http_step is to free it, unless the webhook is called again before */
};

/* What a state's function says. */
enum call_next { CALL_WAIT, CALL_GO_ON, CALL_FAILED };

/*
 * A request and its answer. It outlives its result as long as its connection does; the
 * next call of the webhook then takes both over.
 */
struct call {
    struct conn conn;
    void *owner; /* to whom a result is owed; NULL: it was given */
    struct http_request request;
    int64_t began_ms, deadline_ms;
    const struct url *url;   /* webhookURL, or where it has moved to */
    const struct url *proxy; /* for that; NULL: none */
    struct url moved;        /* where the last redirect led */
    int hops;                /* redirects followed */
    bool cut;                /* a GET without the end of logMessage */
    size_t target_len;       /* as the webhook sees it */
    struct http_head head;
    struct http_result res;
    enum call_state state;
    bool ready;       /* the socket can do what the state waits for */
    int64_t until_ms; /* when the state's function must be called at the latest */
    size_t slot;      /* in this round's plat_poll, POLL_MAX: none */
    struct plat_addr addr[ADDRESSES_MAX];
    int addresses, at;
};

/* All calls and connections; what they share. */
struct http {
    const struct config *config;
    mbedtls_x509_crt roots; /* loaded when the first webhook needs them */
    struct call **call;     /* in any order */
    size_t calls;
    size_t next;        /* the call to be looked at next */
    size_t left;        /* calls that the last round had no time for */
    size_t busy;        /* calls whose result was not given yet */
    struct buf request; /* the last one; its memory is used again */
};

/* ---- TLS ---- */

/* Returns a time of a certificate as seconds since 1970. */
static int64_t
tls_time(const mbedtls_x509_time *t)
{
    struct tm day = {.tm_year = t->year - 1900, .tm_mon = t->mon - 1, .tm_mday = t->day};

    return timegm(&day) + t->hour * 3600 + t->min * 60 + t->sec;
}

/*
 * Called by the TLS library for each certificate, from the root down to the server's
 * own (depth 0), with what is wrong with it. For an address only an iPAddress counts
 * (RFC 6125, 1.7.2). Notes the first certificate with a fault.
 */
static int
tls_check_certificate(void *arg, mbedtls_x509_crt *crt, int depth, uint32_t *flags)
{
    const mbedtls_x509_time *from = &crt->valid_from, *until = &crt->valid_to;
    char subject[200] = "?", issuer[200] = "?";
    struct conn *conn = arg;
    bool is_named = conn->address_len == 0;
    const mbedtls_x509_sequence *name = &crt->subject_alt_names;

    if (depth == 0)
        conn->peer->expires_s = tls_time(until);
    if (conn->faults != 0)
        return 0;
    do
        if ((name->buf.tag & MBEDTLS_ASN1_TAG_VALUE_MASK) == MBEDTLS_X509_SAN_IP_ADDRESS &&
            name->buf.len == conn->address_len)
            is_named = is_named || memcmp(name->buf.p, conn->address, name->buf.len) == 0;
    while ((name = name->next) != NULL);
    if (depth == 0 && !is_named)
        *flags |= MBEDTLS_X509_BADCERT_CN_MISMATCH;
    conn->faults = *flags;
    mbedtls_x509_dn_gets(subject, sizeof subject, &crt->subject);
    mbedtls_x509_dn_gets(issuer, sizeof issuer, &crt->issuer);
    err_set(&conn->about, "\"%s\", issued by %s, valid from %04d-%02d-%02d until %04d-%02d-%02d",
        subject, strcmp(subject, issuer) == 0 ? "itself" : issuer, from->year, from->mon, from->day,
        until->year, until->mon, until->day);
    return 0;
}

/* Why handshakes fail: flags of a certificate (the first row that fits counts), or an error. */
static const struct {
    uint32_t flags;
    int code;
    const char *reason, *hint;
} TLS_FAULTS[] = {
    {MBEDTLS_X509_BADCERT_EXPIRED, 0, "it has expired", "renew the server's certificate"},
    {MBEDTLS_X509_BADCERT_FUTURE, 0, "it is not valid yet", "check this machine's clock"},
    {MBEDTLS_X509_BADCERT_NOT_TRUSTED, 0, "nobody that is trusted has signed it",
        "set cert.enable true and cert.certCA to a file with the certificate of its issuer "
        "(and let the server send its intermediate certificates)"},
    {MBEDTLS_X509_BADCERT_CN_MISMATCH, 0, "it is not for this host name",
        "use a host name that the certificate holds in webhookURL or cert.serverName"},
    {UINT32_MAX, 0, "it is too weak, or not meant for a server",
        "give the server a certificate for server authentication, signed with SHA-256, with at "
        "least RSA 2048 or EC P-256"},
    {0, MBEDTLS_ERR_SSL_CONN_EOF, "the server closed the connection in the handshake",
        "check the port in webhookURL and the server's own log"},
    {0, MBEDTLS_ERR_SSL_WANT_READ, "the handshake did not end in time", ""},
    {0, MBEDTLS_ERR_SSL_INVALID_RECORD, "what answers there does not speak TLS",
        "write http:// in webhookURL, or the port where the server speaks https"},
    {0, MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE, "the server refused the handshake (TLS alert)",
        "look at the server's own log; it may want a client certificate (cert.clientCert), another "
        "one, or older settings"},
    {0, MBEDTLS_ERR_SSL_BAD_PROTOCOL_VERSION, "the server offers no TLS 1.2 or 1.3", ""},
    {0, MBEDTLS_ERR_PK_INVALID_PUBKEY,
        "a key of the server is broken, or RSA with more than 4096 bits",
        "give the server a certificate with RSA 2048 to 4096 or EC P-256"},
};

/*
 * Says why a handshake with host failed, and what to change. all_flags are the
 * library's own: some faults it finds only after tls_check_certificate.
 */
static void
tls_explain(const struct conn *conn, int code, uint32_t all_flags, const char *host,
    struct http_result *res)
{
    bool is_refused = conn->about.text[0] &&
        (code == MBEDTLS_ERR_X509_CERT_VERIFY_FAILED || code == MBEDTLS_ERR_SSL_BAD_CERTIFICATE);
    uint32_t flags = !is_refused ? 0 : conn->faults ? conn->faults : all_flags;

    err_set(&res->reason, "TLS failed: error -0x%04x of the TLS library", (unsigned)-code);
    for (size_t i = 0; i < sizeof TLS_FAULTS / sizeof *TLS_FAULTS; i++) {
        if (flags ? !(TLS_FAULTS[i].flags & flags) : TLS_FAULTS[i].code != code)
            continue;
        if (flags)
            err_set(&res->reason, "certificate not trusted: %s, shown by %s: %s", conn->about.text,
                host, TLS_FAULTS[i].reason);
        else
            err_set(&res->reason, "TLS failed: %s", TLS_FAULTS[i].reason);
        err_set(&res->hint, "%s", TLS_FAULTS[i].hint);
        return;
    }
}

/*
 * Readies TLS 1.2 and 1.3 for a webhook. Trusted are its own CA or the public
 * roots: those built in, which are not copied, and the system's own.
 */
static void
tls_init(struct peer *p)
{
    mbedtls_x509_crt *roots = &p->http->roots;
    bool checked = p->webhook->reject_unauthorized;
    const unsigned char *der = roots_der;

    if (checked && !p->webhook->ca && !roots->version) {
        for (size_t i = 0; i < ROOTS_COUNT; der += roots_len[i++])
            mbedtls_x509_crt_parse_der_nocopy(roots, der, roots_len[i]);
        plat_add_system_roots(roots);
    }
    mbedtls_ssl_config_init(&p->tls);
    mbedtls_ssl_config_defaults(&p->tls, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
        MBEDTLS_SSL_PRESET_DEFAULT); /* can fail for a server only */
    mbedtls_ssl_conf_rng(&p->tls, mbedtls_psa_get_random, MBEDTLS_PSA_RANDOM_STATE);
    if (checked)
        mbedtls_ssl_conf_ca_chain(&p->tls, p->webhook->ca ? p->webhook->ca : roots, NULL);
    else /* TLS 1.3 knows no NONE; the faults that are found are ignored */
        mbedtls_ssl_conf_authmode(&p->tls, MBEDTLS_SSL_VERIFY_OPTIONAL);
    if (p->webhook->client_crt)
        mbedtls_ssl_conf_own_cert(&p->tls, p->webhook->client_crt, p->webhook->client_pk);
    mbedtls_ssl_conf_tls13_enable_signal_new_session_tickets(
        &p->tls, MBEDTLS_SSL_TLS1_3_SIGNAL_NEW_SESSION_TICKETS_ENABLED);
    p->has_tls = true;
}

/* ---- Connection ---- */

/*
 * Sends, and keeps what the socket does not take: the TLS library, which sends with
 * this, too, cannot read before a write that has to wait is repeated. If sending fails
 * reading says why. Returns len, or an error of that library if a flood of its answers
 * to the other end waits.
 */
static int
conn_plain_write(void *arg, const unsigned char *data, size_t len)
{
    struct conn *conn = arg;
    int n = conn->out.len > 0 ? PLAT_AGAIN : plat_send(conn->sock, data, len);
    size_t sent = n == PLAT_AGAIN ? 0 : n < 0 ? len : (size_t)n;

    if (sent < len)
        buf_add(&conn->out, data + sent, len - sent);
    return conn->out.len <= UNSENT_MAX ? (int)len : MBEDTLS_ERR_SSL_BUFFER_TOO_SMALL;
}

/* Reads what there is; a flood must not hold the loop. */
static int
conn_plain_read(struct conn *conn, void *data, size_t len)
{
    int n = conn->reads_left-- > 0 ? plat_recv(conn->sock, data, len) : PLAT_AGAIN;

    if (n == -1)
        err_set(&conn->broken, "the connection broke: %s", plat_error(errno));
    return n;
}

/* For the TLS library, which reads until it is told to wait. */
static int
conn_tls_recv(void *arg, unsigned char *data, size_t len)
{
    int n = conn_plain_read(arg, data, len);

    return n == PLAT_AGAIN ? MBEDTLS_ERR_SSL_WANT_READ : n < 0 ? MBEDTLS_ERR_SSL_CONN_EOF : n;
}

/* Writes all, into conn->out if need be. If that fails reading says why. */
static int
conn_tls_write(void *arg, const unsigned char *data, size_t len)
{
    struct conn *conn = arg;
    size_t at = 0;
    int n;

    while (at < len && (n = mbedtls_ssl_write(conn->ssl, data + at, len - at)) > 0)
        at += (size_t)n;
    return (int)at;
}

/*
 * Reads the data between TLS 1.3's session tickets, which are kept. None may be left in
 * the library, which then says "wait": the next write would fail for it.
 */
static int
conn_tls_read(struct conn *conn, void *data, size_t len)
{
    struct peer *p = conn->peer;
    int n;

    do {
        n = mbedtls_ssl_read(conn->ssl, data, len);
        if (n == MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET && conn->to_origin)
            p->has_session = mbedtls_ssl_get_session(conn->ssl, &p->session) == 0;
    } while (n == MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET ||
        (n == MBEDTLS_ERR_SSL_WANT_READ && mbedtls_ssl_check_pending(conn->ssl)));
    if (n == MBEDTLS_ERR_SSL_WANT_READ)
        return PLAT_AGAIN;
    if (n == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY || n == MBEDTLS_ERR_SSL_CONN_EOF)
        return 0;
    if (n >= 0)
        return n;
    /* TLS 1.3 misses a client certificate only after our handshake. */
    err_set(&conn->broken,
        "the TLS connection broke: error -0x%04x; perhaps the server wants a cert.clientCert",
        (unsigned)-n);
    return -1;
}

/* Closes the connection if there is one; without TLS the library has nothing to do. */
static void
conn_close(struct conn *conn)
{
    mbedtls_ssl_close_notify(conn->ssl);
    mbedtls_ssl_free(conn->ssl);
    free(conn->ssl);
    plat_close(conn->sock);
    buf_free(&conn->in);
    buf_free(&conn->out);
    *conn = (struct conn){.sock = -1, .peer = conn->peer};
}

/* Puts the call into a state, which may last until then. */
static enum call_next
call_enter(struct call *call, enum call_state state, int64_t until_ms)
{
    call->state = state;
    call->until_ms = until_ms;
    return CALL_GO_ON;
}

/* Closes the connection. http_step frees the call once its result was given. */
static enum call_next
call_close(struct call *call)
{
    conn_close(&call->conn);
    return call_enter(call, CALL_CLOSED, 0);
}

/*
 * Starts to connect. Where there are too many connections, or no descriptor is
 * free, the one that has been idle longest is closed. -1 with errno set.
 */
static int
conn_open(struct conn *conn, const struct plat_addr *addr)
{
    struct http *h = conn->peer->http;

    conn->read = conn_plain_read;
    conn->write = conn_plain_write;
    for (;;) {
        struct call *idle = NULL;
        size_t open = 0;
        for (size_t i = 0; i < h->calls; i++) {
            struct call *c = h->call[i];
            open += c->conn.sock >= 0;
            if (c->state == CALL_IDLE && (!idle || c->until_ms < idle->until_ms))
                idle = c;
        }
        errno = EMFILE; /* what too many of ours are, too */
        if (open < CONNECTIONS_MAX && (conn->sock = plat_tcp_connect(addr)) >= 0)
            return 0;
        if (!idle || !plat_is_want_of_ours())
            return -1;
        call_close(idle);
    }
}

/* Reads once into conn->in. Returns what conn->read does. */
static int
conn_fill(struct conn *conn)
{
    int n;

    buf_reserve(&conn->in, READ_SIZE);
    n = conn->read(conn, conn->in.data + conn->in.len, READ_SIZE);
    if (n > 0)
        conn->in.len += (size_t)n;
    return n;
}

/* ---- Answer: pure functions, for any split of the input ---- */

/*
 * Reads Retry-After (RFC 9110, 10.2.3): seconds, or an IMF-fixdate. Returns
 * seconds from now on, at most RETRY_AFTER_MAX_S; -1: neither.
 */
static int64_t
http_read_retry_after(struct slice s, int64_t wall_s)
{
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    char text[64], name[4] = "";
    mbedtls_x509_time t = {0};
    int64_t after;
    int end = -1;
    const char *at;

    if (s.len == 0)
        return -1;
    if (strspn(s.data, "0123456789") >= s.len) {
        after = slice_number(s, RETRY_AFTER_MAX_S);
        return after < 0 ? RETRY_AFTER_MAX_S : after;
    }
    snprintf(text, sizeof text, "%.*s", (int)s.len, s.data);
    sscanf(text, "%*3[A-Za-z], %2d %3s %4d %2d:%2d:%2d GMT%n", &t.day, name, &t.year, &t.hour,
        &t.min, &t.sec, &end);
    at = strlen(name) == 3 ? strstr(months, name) : NULL;
    if (end != (int)s.len || !at)
        return -1;
    t.mon = (int)(at - months) / 3 + 1;
    after = tls_time(&t) - wall_s;
    return after < 0 ? 0 : after > RETRY_AFTER_MAX_S ? RETRY_AFTER_MAX_S : after;
}

/* Returns the length of a head or trailer up to and with its blank line; 0: not all has come. */
static size_t
http_head_len(struct slice in)
{
    struct slice rest = in;

    while (memchr(rest.data, '\n', rest.len))
        if (slice_trim(slice_take(&rest, '\n'), "\r").len == 0)
            return in.len - rest.len;
    return 0;
}

/* Takes in one header. */
static void
http_read_header(struct http_head *h, struct slice name, struct slice value)
{
    if (slice_is(name, "Content-Length")) {
        int64_t n = slice_number(value, INT64_MAX / 16);
        h->length = n >= 0 && (h->length == -1 || h->length == n) ? n : BODY_BAD;
    } else if (slice_is(name, "Transfer-Encoding")) {
        h->chunked = slice_is(value, "chunked"); /* we ask for no other */
        h->keep = h->keep && h->chunked;
    } else if (slice_is(name, "Connection"))
        while (value.len > 0)
            h->keep = !slice_is(slice_trim(slice_take(&value, ','), " \t"), "close") && h->keep;
    else if (slice_is(name, "Location"))
        h->location = (struct slice){value.data, h->location.data ? 0 : value.len};
    else if (slice_is(name, "Retry-After") && !h->retry_after.data)
        h->retry_after = value;
}

/*
 * Reads a whole head, blank line included. 0, or -1 with e: it is not HTTP/1.
 * h's slices point into head.
 */
static int
http_parse_head(struct slice head, struct http_head *h, struct err *e)
{
    struct slice rest = head, line = slice_trim(slice_take(&rest, '\n'), "\r"), first = line;
    bool valid = head.len <= HEAD_MAX && line.len >= 12 && memcmp(line.data, "HTTP/1.", 7) == 0 &&
        isdigit((unsigned char)line.data[7]) && line.data[8] == ' ' &&
        (line.len == 12 || line.data[12] == ' ');

    *h = (struct http_head){.len = head.len, .length = -1, .keep = valid && line.data[7] != '0'};
    if (valid)
        h->status = (int)slice_number((struct slice){line.data + 9, 3}, 999);
    valid = h->status >= 100 && h->status != 101; /* nobody has asked for another protocol */
    for (size_t i = 0; i < head.len && valid; i++)
        valid = head.data[i] && (head.data[i] != '\r' || head.data[i + 1] == '\n');
    while (valid && (line = slice_trim(slice_take(&rest, '\n'), "\r")).len > 0) {
        struct slice name;
        if (*line.data == ' ' || *line.data == '\t')
            continue; /* more of the header before: long out of use (RFC 9112, 5.2) */
        name = slice_take(&line, ':');
        valid = name.len > 0 && name.data + name.len < line.data; /* there is a colon */
        http_read_header(h, slice_trim(name, " \t"), slice_trim(line, " \t"));
    }
    if (!valid) {
        err_set(e,
            "the answer is not HTTP: it starts with \"%s\", not with a valid head of at most "
            "64 KiB",
            log_text(first).text);
        return -1;
    }
    if (h->status == 204 || h->status == 304) { /* no body: RFC 9112, 6.3 */
        h->chunked = false;
        h->length = 0;
    }
    h->keep = h->keep && (h->chunked || h->length != -1);
    return 0;
}

/* Reads the line before a chunk (RFC 9112, 7.1). Returns the chunk's size, BODY_BAD: it is none. */
static int64_t
http_chunk_size(struct slice line)
{
    int64_t size = 0;
    size_t digits = 0;

    line = slice_trim(line, "\r");
    /* 15 digits fit into an int64_t, and no chunk that would be read to its end has more. */
    for (; digits < line.len && digits < 15 && hex_value(line.data[digits]) >= 0; digits++)
        size = size * 16 + hex_value(line.data[digits]);
    return digits > 0 && (digits == line.len || strchr("; \t", line.data[digits])) ? size
                                                                                   : BODY_BAD;
}

/*
 * Returns the length of the body at the front of in, chunk sizes (RFC 9112, 7.1)
 * included; BODY_MORE if not all of it has come, or it ends with the connection,
 * BODY_BAD if its length is broken.
 */
static int64_t
http_body_len(const struct http_head *h, struct slice in)
{
    struct slice rest = in;

    if (!h->chunked)
        return (int64_t)in.len >= h->length ? h->length : BODY_MORE;
    while (memchr(rest.data, '\n', rest.len)) {
        int64_t read = http_chunk_size(slice_take(&rest, '\n'));
        size_t size = (size_t)read, trailer;
        if (read < 0)
            return BODY_BAD;
        if (size == 0) {
            trailer = http_head_len(rest);
            return trailer > 0 ? (int64_t)(in.len - rest.len + trailer) : BODY_MORE;
        }
        if (size >= rest.len || !memchr(rest.data + size, '\n', rest.len - size))
            return BODY_MORE;
        rest = (struct slice){rest.data + size, rest.len - size};
        if (slice_trim(slice_take(&rest, '\n'), "\r").len > 0)
            return BODY_BAD;
    }
    return BODY_MORE;
}

/* ---- The states of a call, in the order in which they happen ---- */

/*
 * Begins on a new connection: looks up the host to connect to, which is the proxy's if
 * there is one. The address that was connected to last comes first.
 */
static enum call_next
call_resolve(struct call *call, int64_t now_ms)
{
    const struct url *dial = call->proxy ? call->proxy : call->url;
    const struct plat_addr *worked = &call->conn.peer->worked;
    const char *why = "no answer in time";
    int n = plat_resolve(dial->host, call->addr, ADDRESSES_MAX, &why);

    call->res = (struct http_result){0};
    if (n == -1 && plat_is_want_of_ours())
        call->res.end = HTTP_OURS;
    conn_close(&call->conn);
    if (n == PLAT_AGAIN && now_ms < call->until_ms)
        return CALL_WAIT;
    plat_set_port(call->addr, n, dial->port);
    call->addresses = n;
    call->at = 0;
    for (int i = 1; i < n; i++)
        if (memcmp(&call->addr[i].ss, &worked->ss, (size_t)call->addr[i].len) == 0) {
            call->addr[i] = call->addr[0];
            call->addr[0] = *worked;
        }
    if (n > 0)
        return call_enter(call, CALL_CONNECT, call->deadline_ms);
    err_set(&call->res.reason, "host name %s not found: %s", dial->host, why);
    return CALL_FAILED;
}

/*
 * Writes a request to the connection. headers end with one without a label, as own, which
 * may be NULL: with {{webhookId}} filled in they replace those of the same name.
 */
static void
call_write(struct call *call, const char *method, const char *target, const struct header *headers,
    const struct header *own, struct slice body)
{
    struct buf *out = &call->conn.peer->http->request;

    out->len = 0;
    buf_add_texts(out, method, " ", target, " HTTP/1.1\r\n", NULL);
    for (const struct header *h = headers; h->label; h++) {
        const struct header *same = own;
        while (same && same->label && strcasecmp(same->label, h->label) != 0)
            same++;
        if (h->value && !(same && same->label))
            buf_add_texts(out, h->label, h->value, "\r\n", NULL);
    }
    for (const struct header *h = own; h && h->label; h++) {
        const char *value = h->value, *id;
        buf_add_text(out, h->label);
        for (; (id = strstr(value, "{{webhookId}}")) != NULL; value = id + 13) {
            buf_add(out, value, (size_t)(id - value));
            buf_add_text(out, call->request.id);
        }
        buf_add_texts(out, value, "\r\n", NULL);
    }
    buf_add_text(out, "\r\n");
    buf_add(out, body.data, body.len);
    call->conn.write(&call->conn, (const unsigned char *)out->data, out->len);
}

/*
 * Returns the body of the alert's request, of a GET its query: what the webhook's template
 * makes of the alert, which stands in own; without a template the alert's JSON.
 */
static struct slice
call_content(const struct call *call, struct buf *own)
{
    const struct http_request *q = &call->request;
    const struct webhook_config *w = call->conn.peer->webhook;
    struct number suppressed = number_text(q->suppressed);
    struct slice values[TEMPLATE_FIELDS];
    const char *text = q->json.data;
    char received_at[32];

    if (!w->template)
        return q->json;
    log_time(plat_wall_ms() - (plat_now_ms() - q->accepted_ms), received_at);
    for (int i = 0; i < ALERT_FIELDS; i++)
        values[i] = slice_of(text += strlen(text) + 1);
    values[FIELD_KIND] = slice_of(KINDS[w->kind].name);
    values[FIELD_SUPPRESSED] = slice_of(suppressed.text);
    values[FIELD_RECEIVED_AT] = slice_of(received_at);
    values[FIELD_WEBHOOK_ID] = slice_of(q->id);
    template_add(own, w->form, w->template, values);
    return (struct slice){own->data, own->len};
}

/*
 * Adds the header webhook-signature (Standard Webhooks, v1) for a body; nothing if the
 * webhook has no secret. A secret more, and a signature more behind a blank.
 */
static void
call_sign(const struct call *call, const char *timestamp, struct slice body, struct buf *out)
{
    const mbedtls_md_info_t *sha256 = mbedtls_md_info_from_type(MBEDTLS_MD_SHA256);
    const struct webhook_config *w = call->conn.peer->webhook;
    struct buf text = {0};
    unsigned char mac[32], base64[48];
    size_t n;

    for (int i = 0; i < 2 && w->secret[i].len > 0; i++) {
        text.len = 0;
        buf_add_texts(&text, call->request.id, ".", timestamp, ".", NULL);
        buf_add(&text, body.data, body.len);
        mbedtls_md_hmac(sha256, w->secret[i].bytes, w->secret[i].len, (unsigned char *)text.data,
            text.len, mac);
        mbedtls_base64_encode(base64, sizeof base64, &n, mac, sizeof mac);
        buf_add_texts(out, i > 0 ? " v1," : "v1,", (char *)base64, NULL);
    }
    buf_free(&text);
}

/* Writes the alert's request. Then the answer is waited for. */
static enum call_next
call_send(struct call *call)
{
    const struct http_request *q = &call->request;
    const struct webhook_config *w = call->conn.peer->webhook;
    const struct url *u = call->url, *proxy = u->tls ? NULL : call->proxy;
    const char *query = strchr(u->target, '?');
    bool has_body = w->method != METHOD_GET;
    const char *type = w->template && w->form == TEMPLATE_TEXT ? "text/plain; charset=utf-8"
                                                               : "application/json";
    struct buf target = {0}, own = {0}, signature = {0};
    struct slice content = call_content(call, &own), body = has_body ? content : slice_of("");
    struct number length = number_text(body.len);
    struct number timestamp = number_text((uint64_t)(plat_wall_ms() / 1000));
    size_t origin_len = proxy ? strlen(u->origin) : 0;
    call_sign(call, timestamp.text, body, &signature);
    const struct header headers[] = {
        {"Host: ", strstr(u->origin, "//") + 2},
        {"User-Agent: ", USER_AGENT},
        {"Accept: ", "application/json, text/plain, */*"},
        {"Authorization: ", u->auth ? u->auth : w->url.auth},
        {"Proxy-Authorization: ", proxy ? proxy->auth : NULL},
        {"Content-Type: ", has_body ? type : NULL},
        {"Content-Length: ", has_body ? length.text : NULL},
        {"webhook-id: ", q->id},
        {"webhook-timestamp: ", timestamp.text},
        {"webhook-signature: ", signature.data},
        {"webhook-test: ", q->is_test ? "true" : NULL},
        {NULL, NULL},
    };

    buf_add(&target, u->origin, origin_len); /* to a proxy for http */
    buf_add_text(&target, u->target);
    /* Most redirects repeat the query that they were asked with. */
    if (!has_body && content.len > 0 &&
        !(call->hops > 0 && strstr(u->target, w->has_own_query ? content.data : "executionId="))) {
        buf_add_texts(&target, !query ? "?" : query[1] ? "&" : "", content.data, NULL);
        if (call->cut)
            template_cut_query(&target, origin_len + GET_TARGET_MAX);
    }
    call->target_len = target.len - origin_len;
    call_write(call, METHODS[w->method], target.data, headers, w->header, body);
    buf_free(&target);
    buf_free(&own);
    buf_free(&signature);
    call->res.end = HTTP_BROKEN;
    call_enter(call, CALL_RECEIVE, call->deadline_ms);
    return CALL_WAIT; /* reading at once would find nothing yet */
}

/* Asks the proxy for a tunnel to the webhook's server (RFC 9110, 9.3.6). */
static enum call_next
call_ask_proxy(struct call *call)
{
    const struct url *u = call->url;
    char host[HOST_MAX + 16];
    const struct header headers[] = {{"Host: ", host}, {"User-Agent: ", USER_AGENT},
        {"Proxy-Authorization: ", call->proxy->auth}, {NULL, NULL}};

    snprintf(host, sizeof host, strchr(u->host, ':') ? "[%s]:%d" : "%s:%d", u->host, u->port);
    call_write(call, "CONNECT", host, headers, NULL, slice_of(""));
    call_enter(call, CALL_TUNNEL, call->deadline_ms);
    return CALL_WAIT;
}

/*
 * Tries one address after the other, each with its share of the time left. If all
 * fail, the first one's failure is reported: that is the best address.
 */
static enum call_next
call_connect(struct call *call, int64_t now_ms)
{
    const struct url *u = call->url;
    struct conn *conn = &call->conn;

    for (; call->at < call->addresses && call->res.end != HTTP_OURS; call->at++) {
        const char *why = "no answer in time";
        char addr[64];
        if (conn->sock < 0) {
            if (conn_open(conn, &call->addr[call->at]) == 0) {
                call->until_ms = now_ms +
                    (call->deadline_ms - now_ms) / (call->addresses - call->at);
                return CALL_WAIT;
            }
            call->res.end = plat_is_want_of_ours() ? HTTP_OURS : HTTP_UNSENT;
            why = plat_error(errno);
        } else if (call->ready && plat_tcp_connected(conn->sock) == 0) {
            call->conn.peer->worked = call->addr[call->at];
            conn->to_origin = strcmp(u->origin, call->conn.peer->webhook->url.origin) == 0;
            return !u->tls    ? call_send(call)
                : call->proxy ? call_ask_proxy(call)
                              : call_enter(call, CALL_HANDSHAKE, call->deadline_ms);
        } else if (call->ready)
            why = plat_error(errno);
        else if (now_ms < call->until_ms)
            return CALL_WAIT;
        plat_addr_text(&call->addr[call->at], addr);
        if (call->at == 0)
            err_set(&call->res.reason, "cannot connect to %s: %s", addr, why);
        conn_close(conn);
    }
    return CALL_FAILED;
}

/*
 * Reads the next head, which stays in conn.in; 1xx answers are passed over.
 * CALL_FAILED with the reason.
 */
static enum call_next
call_read_head(struct call *call, int64_t now_ms)
{
    struct conn *conn = &call->conn;
    struct err *e = &call->res.reason;
    int n = 1;

    while (n > 0) {
        struct slice in = {conn->in.data ? conn->in.data : "", conn->in.len};
        bool is_http = memcmp(in.data, "HTTP/1.", in.len < 7 ? in.len : 7) == 0;
        size_t len = is_http ? http_head_len(in) : in.len;
        if (len == 0 && in.len <= HEAD_MAX) {
            n = conn_fill(conn);
            continue;
        }
        in.len = len > 0 ? len : in.len;
        if (http_parse_head(in, &call->head, e) != 0)
            return CALL_FAILED;
        if (call->head.status >= 200)
            return CALL_GO_ON;
        buf_drop(&conn->in, len);
    }
    if (n == PLAT_AGAIN && now_ms < call->until_ms)
        return CALL_WAIT;
    if (n == PLAT_AGAIN)
        err_set(e, "no answer within %lld s", (long long)call->conn.peer->http->config->timeout_s);
    else if (n == 0)
        err_set(e, "connection closed before the whole answer");
    else
        *e = conn->broken;
    return CALL_FAILED;
}

/* Makes the connection a TLS one. */
static enum call_next
call_handshake(struct call *call, int64_t now_ms)
{
    struct conn *conn = &call->conn;
    struct peer *p = call->conn.peer;
    const char *host = p->webhook->server_name ? p->webhook->server_name : call->url->host;
    int n;

    if (!conn->ssl) {
        /* SNI and certificates hold names without the dot that may end a full one (RFC 6066, 3). */
        char name[HOST_MAX + 1];
        snprintf(name, sizeof name, "%.*s", (int)slice_trim(slice_of(host), ".").len, host);
        if (!p->has_tls) /* after a redirect from http */
            tls_init(p);
        conn->ssl = x_calloc(1, sizeof *conn->ssl);
        mbedtls_ssl_init(conn->ssl);
        mbedtls_ssl_set_bio(conn->ssl, conn, conn_plain_write, conn_tls_recv, NULL);
        mbedtls_ssl_set_verify(conn->ssl, tls_check_certificate, conn);
        conn->address_len = mbedtls_x509_crt_parse_cn_inet_pton(host, conn->address);
        /* Without a name the library checks none, and sends no SNI. Where one of these two has
         * failed the handshake fails, too. */
        mbedtls_ssl_setup(conn->ssl, &p->tls);
        mbedtls_ssl_set_hostname(conn->ssl, conn->address_len ? NULL : name);
        if (conn->to_origin && p->has_session) {
            mbedtls_ssl_set_session(conn->ssl, &p->session);
            conn->may_be_stale = true;
            p->has_session = false; /* a ticket is good for one time */
        }
    }
    n = mbedtls_ssl_handshake(conn->ssl);
    if (n == MBEDTLS_ERR_SSL_WANT_READ && now_ms < call->until_ms)
        return CALL_WAIT;
    if (n != 0) {
        tls_explain(conn, n, mbedtls_ssl_get_verify_result(conn->ssl), host, &call->res);
        return CALL_FAILED;
    }
    conn->may_be_stale = false;
    conn->read = conn_tls_read;
    conn->write = conn_tls_write;
    /* TLS 1.3 sends its tickets later: conn_tls_read. The library frees the session before. */
    if (mbedtls_ssl_get_version_number(conn->ssl) == MBEDTLS_SSL_VERSION_TLS1_2 && conn->to_origin)
        p->has_session = mbedtls_ssl_get_session(conn->ssl, &p->session) == 0;
    return call_send(call);
}

/*
 * Follows a redirect (RFC 9110, 15.4), but only to the webhook's own host, never from
 * https to http, and with a password or a client certificate to the same port: what we
 * send goes where the configuration says. 301 and 302 to a POST, 303 to a PUT ask for an
 * empty GET, which is not ours to send. Returns false if the result says why not.
 */
static bool
call_follow(struct call *call)
{
    const struct webhook_config *w = call->conn.peer->webhook;
    const struct url *home = &w->url, *from = call->url;
    const struct http_head *h = &call->head;
    int method = (int)w->method, status = h->status;
    bool has_secret = home->auth || w->header || w->client_crt;
    struct url to = {0};

    /* 307 and 308 keep the method; the others must not change what we send. */
    if (h->location.data && !url_parse(h->location, from, &to) && call->hops < REDIRECTS_MAX &&
        (status >= 307 || (status == 303 ? method == METHOD_GET : method != METHOD_POST)) &&
        strcmp(to.host, home->host) == 0 && (to.tls || !from->tls) &&
        (to.port == home->port || !has_secret)) {
        url_done(&call->moved);
        call->moved = to;
        call->url = &call->moved;
        call->proxy = cfg_proxy(call->conn.peer->http->config, w, &to);
        call->hops++;
        return true;
    }
    err_set(&call->res.reason,
        "status %d, not followed: no URL, another host, port or method, no https, or too often",
        status);
    err_set(&call->res.hint, to.host ? "moved to %s, change webhookURL" : "change webhookURL",
        to.shown);
    url_done(&to);
    return false;
}

/* What people can do about a status. */
static const struct {
    int status;
    const char *hint;
} HTTP_HINTS[] = {
    {401, "check the credentials (auth, headers, or user:password@ in webhookURL)"},
    {403, "check the credentials (auth, headers, user:password@) and the webhook's permissions"},
    {404, "check webhookURL"},
    {405, "check httpMethod"},
    {410, "gone: remove or change webhookURL"},
};

/* Acts on the status. Returns true if another request is to be sent, else the result is set. */
static bool
call_judge(struct call *call)
{
    const struct webhook_config *w = call->conn.peer->webhook;
    const struct http_head *h = &call->head;
    int status = h->status;

    call->res.status = status;
    if ((status >= 301 && status <= 303) || status == 307 || status == 308)
        return call_follow(call);
    if (w->method == METHOD_GET && !w->has_own_query && call->target_len > GET_TARGET_MAX &&
        !call->cut && (status == 400 || status == 404 || status == 414 || status == 431)) {
        log_line(LOG_WARN, "webhook %s: status %d to a long GET; once more with logMessage cut",
            w->name, status);
        return call->cut = true;
    }
    if (status / 100 != 2)
        err_set(&call->res.reason, "status %d", status);
    for (size_t i = 0; i < sizeof HTTP_HINTS / sizeof *HTTP_HINTS; i++)
        if (HTTP_HINTS[i].status == status)
            err_set(&call->res.hint, "%s", HTTP_HINTS[i].hint);
    call->res.retry_after_s = http_read_retry_after(h->retry_after, plat_wall_ms() / 1000);
    return false;
}

/*
 * Reads the head of the answer, also while the request is still being written: a
 * server may refuse it early. Behind a proxy's 2xx to CONNECT begins the tunnel.
 */
static enum call_next
call_receive(struct call *call, int64_t now_ms)
{
    enum call_next next = call_read_head(call, now_ms);
    const struct http_head *h = &call->head;
    struct conn *conn = &call->conn;

    if (next != CALL_GO_ON)
        return next;
    if (h->status == 407)
        err_set(&call->res.hint,
            "check the proxy's password; a proxy that takes NTLM or Negotiate only cannot be used");
    if (call->state == CALL_TUNNEL && h->status / 100 == 2) {
        conn->in.len = 0; /* in TLS the server does not speak first */
        return call_enter(call, CALL_HANDSHAKE, call->deadline_ms);
    }
    if (call->state == CALL_TUNNEL) {
        err_set(&call->res.reason, "it answered CONNECT with status %d", h->status);
        return CALL_FAILED;
    }
    if (call_judge(call))
        return call_enter(call, CALL_RESOLVE, call->deadline_ms);
    call->res.end = HTTP_ANSWERED;
    buf_drop(&conn->in, h->len);
    return call_enter(call, CALL_BODY,
        now_ms + BODY_MS < call->deadline_ms ? now_ms + BODY_MS : call->deadline_ms);
}

/*
 * Overwrites in shown, a copy of text, what text echoes of secrets: of all parts that have
 * one of the characters of between before or behind them, and at least min bytes.
 */
static void
call_hide(struct slice text, const char *parts, const char *between, size_t min, char *shown)
{
    for (size_t len; *parts; parts += len + (parts[len] != '\0')) {
        len = strcspn(parts, between);
        for (size_t i = 0, n = 0; len >= min && i < text.len; i++, n = 0) {
            size_t at = i;
            for (; n < len && at < text.len; n++, at++) { /* JSON of PHP has "\/" for "/" */
                at += parts[n] == '/' && text.data[at] == '\\' && at + 1 < text.len;
                if (text.data[at] != parts[n])
                    break;
            }
            memset(shown + i, '*', n == len ? at - i : 0);
        }
    }
}

/*
 * Puts the start of a refusal's body behind the reason, unless it is a page, without what
 * only the webhook should know: credentials, own headers, what ${env:...} and ${file:...}
 * held, the URL's query and the parts of its path that url_describe hides.
 */
static void
call_add_reason(struct call *call)
{
    const struct webhook_config *w = call->conn.peer->webhook;
    struct slice in = {call->conn.in.data, call->conn.in.len};
    char shown[REASON_MAX];
    int64_t size;

    in.len = in.len < REASON_MAX ? in.len : REASON_MAX;
    size = call->head.chunked ? http_chunk_size(slice_take(&in, '\n')) : call->head.length;
    if (size != BODY_MORE && size < (int64_t)in.len) /* of chunks the first says enough */
        in.len = size == BODY_BAD ? 0 : (size_t)size;
    in = slice_trim(in, " \t\r\n");
    if (in.len == 0 || *in.data == '<')
        return;
    memcpy(shown, in.data, in.len);
    /* Basic sends user and password as Base64; a receiver may say either, and so may a proxy. */
    for (int i = 0; i < 2; i++) {
        const struct url *u = i > 0 && call->proxy ? call->proxy : &w->url;
        call_hide(in, u->auth ? strchr(u->auth, ' ') + 1 : "", "", 4, shown);
        call_hide(in, u->login.len > 0 ? u->login.data : "", ":", 4, shown);
    }
    for (size_t at = 0; at < w->hidden.len; at += strlen(w->hidden.data + at) + 1)
        call_hide(in, w->hidden.data + at, "", 4, shown);
    for (const struct header *h = w->header; h && h->label; h++)
        call_hide(in, h->value, " =;,", 4, shown);
    call_hide(in, w->url.target, "/?&=", 16, shown);
    call_hide(in, w->url.target + strcspn(w->url.target, "?"), "?&=", 4, shown);
    in.data = shown;
    err_set(&call->res.reason, "%s: %s", call->res.reason.text, log_text(in).text);
}

/*
 * Reads the body, so that the connection can be used again, and for why the webhook has
 * refused an alert, if it says so. For that the result waits; see http_step.
 */
static enum call_next
call_read_body(struct call *call, int64_t now_ms)
{
    const struct http_head *h = &call->head;
    struct conn *conn = &call->conn;
    bool keep = h->keep && conn->to_origin && conn->out.len == 0 && h->length <= SKIP_MAX;
    int64_t len = BODY_MORE;
    /* A connection that cannot be used again is read for the reason alone. */
    size_t most = keep ? SKIP_MAX : REASON_MAX;
    int n = keep || h->status >= 400 ? 1 : 0;

    while (n > 0 && conn->in.len <= most &&
        (len = http_body_len(h, (struct slice){conn->in.data, conn->in.len})) == BODY_MORE)
        n = conn_fill(conn);
    if (n == PLAT_AGAIN && now_ms < call->until_ms)
        return CALL_WAIT;
    if (h->status >= 400)
        call_add_reason(call);
    if (!keep || len < 0 || (size_t)len < conn->in.len)
        return call_close(call);
    conn->may_be_stale = true;
    conn->in.len = 0;
    call_enter(call, CALL_IDLE, now_ms + IDLE_MS);
    return conn->ssl ? CALL_GO_ON : CALL_WAIT; /* poll does not see what the TLS library holds */
}

/*
 * Closes an idle connection after IDLE_MS, or when the server closes it or sends
 * anything but session tickets. If it just missed that, call_fail repeats the request.
 */
static enum call_next
call_idle(struct call *call, int64_t now_ms)
{
    struct conn *conn = &call->conn;
    char byte;

    if (now_ms < call->until_ms && conn->read(conn, &byte, 1) == PLAT_AGAIN && conn->out.len == 0)
        return CALL_WAIT;
    return call_close(call);
}

/*
 * Tries a failed call again at once if that may be due to what was used again: a session
 * that the server has forgotten, or a connection that it closed before an answer. Else
 * completes the result.
 */
static enum call_next
call_fail(struct call *call, int64_t now_ms)
{
    struct http_result *res = &call->res;

    if (call->conn.may_be_stale && call->conn.in.len == 0 && now_ms < call->deadline_ms)
        return call_enter(call, CALL_RESOLVE, call->deadline_ms);
    if (call->state <= CALL_CONNECT && res->end != HTTP_OURS)
        err_set(&res->hint,
            "check host and port in %s, this machine's DNS, that the server runs, and that no "
            "firewall is between",
            call->proxy ? "the proxy's setting" : "webhookURL");
    if (call->proxy && call->state <= CALL_TUNNEL)
        err_set(&res->reason, "proxy %s: %s", call->proxy->shown, res->reason.text);
    return call_close(call);
}

/*
 * Sends what waits to be sent, and takes a call as far as it goes without waiting. If
 * sending fails that is dropped: reading says why.
 */
static void
call_step(struct call *call, int64_t now_ms)
{
    static enum call_next (*const states[])(struct call *, int64_t) = {call_resolve, call_connect,
        call_receive, call_handshake, call_receive, call_read_body, call_idle};
    enum call_next next = CALL_GO_ON;
    struct buf *out = &call->conn.out;
    int n = PLAT_AGAIN;

    while (out->len > 0 && (n = plat_send(call->conn.sock, out->data, out->len)) > 0)
        buf_drop(out, (size_t)n);
    if (n != PLAT_AGAIN)
        buf_free(out);
    call->conn.reads_left = READS_STEP;
    while (next != CALL_WAIT && call->state != CALL_CLOSED) {
        next = states[call->state](call, now_ms);
        if (next == CALL_FAILED)
            next = call_fail(call, now_ms);
    }
}

/* ---- For other sections ---- */

/*
 * Begins a call for owner and takes it as far as it goes: on an idle connection, or one
 * whose body has come to its end, the request is sent before this returns (if the server
 * has closed it since we looked, call_fail repeats that). One for which http_step had no
 * time is looked at first, as what came is no answer to this. http_step gives the result.
 */
static void
call_begin(struct peer *p, const struct http_request *q, void *owner, int64_t now_ms)
{
    struct http *h = p->http;
    struct call *call = NULL;

    for (size_t i = 0; i < h->calls && !(call && call->state == CALL_IDLE); i++) {
        struct call *c = h->call[i];
        if (c->conn.peer == p && !c->owner)
            call = c;
    }
    if (!call) {
        h->call = x_check(realloc(h->call, (h->calls + 1) * sizeof(struct call *)));
        call = h->call[h->calls++] = x_calloc(1, sizeof *call);
        call->conn = (struct conn){.sock = -1, .peer = p};
    } else if (call->state != CALL_IDLE || call->slot < POLL_MAX) {
        call_step(call, now_ms);
        if (call->state != CALL_IDLE)
            conn_close(&call->conn);
    }
    url_done(&call->moved);
    *call = (struct call){.conn = call->conn,
        .owner = owner,
        .request = *q,
        .began_ms = now_ms,
        .deadline_ms = now_ms + h->config->timeout_s * TIMEOUT_UNIT_MS,
        .url = &p->webhook->url,
        .proxy = p->webhook->proxy,
        .slot = POLL_MAX};
    h->busy++;
    call->until_ms = call->deadline_ms; /* of the first state */
    if (call->conn.sock >= 0)
        call_send(call);
    else
        call_step(call, now_ms);
}

/*
 * Adds the sockets of all calls and idle connections, and lowers *until_ms to when
 * http_step must be called at the latest.
 */
static void
http_poll_add(struct http *h, struct plat_poll *p, int64_t now_ms, int64_t *until_ms)
{
    if (h->left > 0)
        *until_ms = now_ms;
    for (size_t i = 0; i < h->calls; i++) {
        struct call *call = h->call[i];
        int want = (call->state == CALL_CONNECT ? POLLOUT : POLLIN) |
            (call->conn.out.len > 0 ? POLLOUT : 0);
        call->slot = call->conn.sock >= 0 ? plat_poll_add(p, call->conn.sock, want) : POLL_MAX;
        if (call->until_ms < *until_ms)
            *until_ms = call->until_ms;
    }
}

/*
 * Takes steps of the calls that are ready or late, from where the last round ended,
 * for at most STEPS_MS. Calls done with the owner of each call that has its result.
 */
static void
http_step(
    struct http *h, const struct plat_poll *p, void (*done)(void *, const struct http_result *))
{
    int64_t began_ms = plat_now_ms(), now_ms = began_ms;

    for (h->left = h->calls; h->left > 0 && now_ms - began_ms < STEPS_MS; h->left--) {
        struct call *call = h->call[h->next %= h->calls];
        call->ready = call->slot < POLL_MAX && p->slot[call->slot].revents;
        call->slot = POLL_MAX; /* what poll said counts once */
        if (call->ready || call->state == CALL_RESOLVE || now_ms >= call->until_ms) {
            call_step(call, now_ms);
            now_ms = plat_now_ms();
        }
        if (call->owner && call->state >= (call->head.status >= 400 ? CALL_IDLE : CALL_BODY)) {
            call->res.ms = now_ms - call->began_ms;
            h->busy--;
            done(call->owner, &call->res);
            call->owner = NULL;
        }
        if (call->state == CALL_CLOSED) {
            url_done(&call->moved);
            free(call);
            h->call[h->next] = h->call[--h->calls];
        } else
            h->next++;
    }
}

/* ==== 11. Delivery ==========================================================
 *
 * What waits, and when each of it is sent. An alert that waits is a payload: its
 * JSON once, and a delivery for each webhook that it is for. A webhook has its
 * deliveries in a list by acceptance: the oldest that is due is sent first, and the
 * oldest of all is given up first. A webhook's trouble changes that webhook's struct
 * and nothing else, so none delays another.
 *
 * A webhook that cannot be reached is down: one probe at a time goes out, with
 * the alert that was tried longest ago, until one is answered. One that asks for
 * time is paced: it is left alone that long. One with maxCallsPerMinute gets no more
 * calls than that, and what is over waits, in order. The end of a delivery is recorded
 * once, and for a dead letter only when the letter is on the disk.
 */

/* What a result means for the alert and for the webhook; webhook_settle acts on it. */
enum verdict {
    VERDICT_DELIVERED, /* the alert ends; the webhook is up */
    VERDICT_DEAD,      /* the alert is a dead letter; the webhook is up */
    VERDICT_RETRY,     /* the alert waits for a backoff; the webhook is up, if it has answered */
    VERDICT_SICK,      /* the same; but three alerts in a row, or a broken probe: DOWN */
    VERDICT_WAIT,      /* the alert is due at once; the webhook is paced, as long as it asks */
    VERDICT_DOWN,      /* the alert is due at once; the webhook is down, for a backoff */
};

enum webhook_state { WEBHOOK_UP, WEBHOOK_DOWN, WEBHOOK_PACED };

enum delivery_state { DELIVERY_WAITS, DELIVERY_IN_CALL, DELIVERY_DEAD, DELIVERY_ENDED };

/* One alert on its way to one webhook; stands in its payload. */
struct delivery {
    struct payload *payload;
    struct webhook *webhook;
    struct delivery *older, *newer; /* in the webhook's list; DEAD: in the backlog's */
    enum delivery_state state;
    int attempts;
    int64_t due_ms;
    int64_t tried_ms; /* 0: not yet */
    char *why;        /* why the last attempt failed, or why it is dead; NULL: neither */
};

struct delivery_list {
    struct delivery *oldest, *newest;
    size_t count;
};

/* An alert that waits. Behind the deliveries stands its JSON, with fields for a template. */
struct payload {
    struct payload *older, *newer; /* of all that wait, by number */
    uint64_t number;
    enum alert_kind kind;
    char about[ALERT_ABOUT_LEN]; /* its part of webhook-id */
    uint32_t suppressed, size;   /* as in struct alert; bytes of all this */
    int64_t accepted_ms;
    size_t targets; /* deliveries ... */
    size_t left;    /* ... that have not ended */
    struct slice json;
    struct delivery delivery[];
};

struct webhook {
    const struct webhook_config *config; /* of one that is gone: what the journal says of it */
    struct backlog *backlog;
    struct peer peer;
    struct delivery_list list; /* what waits or is in a call */
    size_t calls;              /* how many of them are in a call */
    int64_t quiet_until_ms;    /* no call begins before */
    int64_t *begun_ms;         /* of the last maxCallsPerMinute calls, a ring; NULL: no limit */
    uint64_t begun;            /* how many were put into it since the start */
    enum webhook_state state;
    int64_t wait_until_ms;          /* the least of that; not UP: when the next probe may go */
    int failures;                   /* not UP: probes that failed in a row */
    uint64_t suspect[SUSPECTS_MAX]; /* numbers of different alerts that failed in a row */
    struct log_event event_state, event_given_up;
    unsigned long long delivered, given_up, attempts; /* since the start ... */
    int64_t spent_ms;                                 /* ... and how long those attempts took */
    struct webhook *today; /* itself, as soon as a key in the journal means it; */
                           /* of one that is gone: which it has become; NULL: none */
};

/* All that waits. Everything from journal to known is set before the first alert. */
struct backlog {
    const struct config *config;
    struct journal *journal;
    struct windows *windows; /* what the listener asks, and the journal keeps */
    struct webhook *webhook; /* of all kinds, in the configuration's order; behind them ... */
    size_t webhooks, known;  /* ... the unknown one, and those that only the journal knows */
    struct payload *oldest, *newest;
    uint64_t last_number, safe_number;      /* of the alerts; of those that stand in the journal */
    size_t waiting;                         /* deliveries that have not ended */
    unsigned long long delivered, given_up; /* those that have, since the start */
    size_t bytes, room;                     /* what payloads take; what those not dead may take */
    size_t loaded;                          /* bytes at the start: more than room if that was cut */
    bool crowded;                           /* logged: most of the room is used */
    int64_t grace_until_ms;                 /* no alert expires before */
    struct delivery_list dead;              /* whose letters are not yet on the disk ... */
    size_t dead_bytes;                      /* ... what they take ... */
    size_t batch;                   /* ... and how many of them stand in the journal's letters */
    struct buf text;                /* of one function at a time, which begins with len 0 */
    unsigned long long again, stay; /* of the replay under way: taken, returned */
    size_t turn;                    /* which webhook may begin first in the next round */
    bool stopping;                  /* no probe is begun any more ... */
    bool ended;                     /* ... and no call and no letter at all */
};

/* What the result of a call means for the alert and its webhook. Pure. */
static enum verdict
webhook_judge(const struct webhook_config *w, const struct http_result *res)
{
    if (res->end == HTTP_OURS)
        return VERDICT_RETRY;
    if (res->end != HTTP_ANSWERED)
        return res->end == HTTP_UNSENT ? VERDICT_DOWN : VERDICT_SICK;
    if (res->status / 100 == 2)
        return VERDICT_DELIVERED;
    if (res->status == 429 || (res->status == 503 && res->retry_after_s >= 0))
        return VERDICT_WAIT;
    if (res->status / 100 == 5)
        return VERDICT_SICK;
    if (res->status / 100 == 4 && w->retries[res->status - 400])
        return VERDICT_RETRY;
    return res->status == 408 || res->status == 425 ? VERDICT_RETRY : VERDICT_DEAD;
}

/*
 * Returns how long to wait after so many failures (from 1): anything from 0 to
 * BACKOFF_MIN_MS doubled for each, so that many waiters do not come at once.
 */
static int64_t
webhook_backoff_ms(int failures)
{
    int64_t most = failures > 9 ? BACKOFF_MAX_MS : (int64_t)BACKOFF_MIN_MS << (failures - 1);
    uint32_t random = UINT32_MAX / 2; /* if the system gives none */

    psa_generate_random((void *)&random, sizeof random);
    return random % (most + 1);
}

/* ---- Lists ---- */

/* Adds a delivery as the newest of a list. */
static void
list_add(struct delivery_list *l, struct delivery *d)
{
    d->older = l->newest;
    d->newer = NULL;
    *(l->newest ? &l->newest->newer : &l->oldest) = d;
    l->newest = d;
    l->count++;
}

/* Takes a delivery out of the list that it is in. */
static void
list_remove(struct delivery_list *l, struct delivery *d)
{
    *(d->older ? &d->older->newer : &l->oldest) = d->newer;
    *(d->newer ? &d->newer->older : &l->newest) = d->older;
    l->count--;
}

/* Records that a delivery has ended; with its last one the alert goes. */
static void
delivery_end(struct delivery *d)
{
    struct payload *p = d->payload;
    struct backlog *b = d->webhook->backlog;
    bool is_dead = d->state == DELIVERY_DEAD;

    journal_note(b->journal,
        (struct journal_record){
            JOURNAL_END, p->number, 0, 0, is_dead, slice_of(d->webhook->config->key), {"", 0}});
    list_remove(is_dead ? &b->dead : &d->webhook->list, d);
    b->dead_bytes -= is_dead ? p->size : 0;
    d->state = DELIVERY_ENDED;
    b->waiting--;
    free(d->why);
    d->why = NULL;
    if (--p->left > 0)
        return;
    b->bytes -= p->size;
    *(p->older ? &p->older->newer : &b->oldest) = p->newer;
    *(p->newer ? &p->newer->older : &b->newest) = p->older;
    free(p);
}

/* Keeps why a delivery has failed, cleaned, as a text may end inside a character. */
static void
delivery_set_why(struct delivery *d, const char *text)
{
    struct buf why = {0};

    log_add_clean(&why, slice_of(text));
    buf_add_char(&why, '\0');
    free(d->why);
    d->why = why.data;
}

/* Writes a delivery's webhook-id: the same over retries, restarts, and on a second server. */
static void
delivery_id(const struct delivery *d, char *out, size_t size)
{
    struct buf id = {.data = out, .cap = size};

    buf_add_texts(&id, "msg_", d->payload->about, "_", NULL);
    buf_add(&id, d->webhook->config->key, 8);
}

/* ---- Records ---- */

/* Converts a time of the monotonic clock to the wall clock. */
static int64_t
backlog_wall_ms(int64_t at_ms)
{
    return plat_wall_ms() - (plat_now_ms() - at_ms);
}

/* The other way round; what the wall clock says to lie in the future is now. */
static int64_t
backlog_from_wall(int64_t wall_ms)
{
    int64_t age_ms = plat_wall_ms() - wall_ms;

    return plat_now_ms() - (age_ms > 0 ? age_ms : 0);
}

/* Returns the record of an alert with its deliveries that have not ended; b->text has its keys. */
static struct journal_record
payload_record(struct backlog *b, const struct payload *p, enum journal_word word)
{
    b->text.len = 0;
    for (size_t i = 0; i < p->targets; i++)
        if (p->delivery[i].state != DELIVERY_ENDED)
            buf_add_texts(
                &b->text, b->text.len ? "," : "", p->delivery[i].webhook->config->key, NULL);
    return (struct journal_record){word, p->number, p->kind, backlog_wall_ms(p->accepted_ms),
        p->suppressed, {b->text.data, b->text.len}, p->json};
}

/* Returns the record of a delivery's failed attempts. */
static struct journal_record
delivery_record(const struct delivery *d)
{
    return (struct journal_record){JOURNAL_ATTEMPT, d->payload->number, 0,
        backlog_wall_ms(d->tried_ms), (size_t)d->attempts, slice_of(d->webhook->config->key),
        slice_of(d->why ? d->why : "")};
}

/*
 * Adds an alert that waits for n webhooks, accepted now and due at once, with the number
 * behind the last one, and notes its record. Returns it; it belongs to the backlog.
 */
static struct payload *
backlog_add(struct backlog *b, const struct alert *alert, struct webhook **to, size_t n,
    enum journal_word word)
{
    struct payload *p;
    bool for_template = false;
    size_t size;

    for (size_t i = 0; i < n; i++)
        for_template |= to[i]->config->template != NULL;
    b->text.len = 0;
    alert_add_json(alert, for_template, &b->text);
    size = sizeof *p + n * sizeof *p->delivery + b->text.len + 1;
    p = x_malloc(size);
    *p = (struct payload){.older = b->newest,
        .number = ++b->last_number,
        .kind = alert->kind,
        .suppressed = alert->suppressed,
        .size = (uint32_t)size,
        .accepted_ms = plat_now_ms(),
        .targets = n,
        .left = n,
        .json = slice_of(memcpy(&p->delivery[n], b->text.data, b->text.len + 1))};
    alert_about(alert, p->json, p->about);
    *(b->newest ? &b->newest->newer : &b->oldest) = p;
    b->newest = p;
    b->bytes += p->size;
    b->waiting += n;
    for (size_t i = 0; i < n; i++) {
        struct delivery *d = &p->delivery[i];
        *d = (struct delivery){.payload = p, .webhook = to[i], .due_ms = p->accepted_ms};
        list_add(&to[i]->list, d);
        to[i]->quiet_until_ms = 0;
    }
    journal_note(b->journal, payload_record(b, p, word));
    return p;
}

/* ---- Dead letters ---- */

/* Adds a time of the monotonic clock to an object, or null if it is 0. */
static void
delivery_put_time(cJSON *object, const char *key, int64_t at_ms)
{
    char when[32];

    log_time(backlog_wall_ms(at_ms), when);
    cJSON_AddItemToObject(object, key, at_ms ? cJSON_CreateString(when) : cJSON_CreateNull());
}

/* Adds a delivery as JSON: a dead letter, or what --pending tells of what waits. */
static void
delivery_print(const struct delivery *d, struct buf *out)
{
    const struct webhook_config *c = d->webhook->config;
    int64_t age_s = (plat_now_ms() - d->payload->accepted_ms) / 1000;
    cJSON *o = cJSON_CreateObject();
    char id[64];

    delivery_id(d, id, sizeof id);
    json_put(o, "webhookId", id);
    json_put(o, "webhook", c->name);
    delivery_put_time(o, "acceptedAt", d->payload->accepted_ms);
    cJSON_AddNumberToObject(o, "attempts", d->attempts);
    if (d->state == DELIVERY_DEAD) {
        delivery_put_time(o, "deadAt", plat_now_ms());
        json_put(o, "reason", d->why);
        json_put(o, "webhookKey", c->key);
        json_put(o, "description", c->description);
        cJSON_AddNumberToObject(o, "place", (double)(c->place + 1));
        cJSON_AddNumberToObject(o, "count", (double)c->listed);
        json_put(o, "url", c->url.shown ? c->url.shown : ""); /* one that is gone has none */
    } else {
        cJSON_AddNumberToObject(o, "ageSeconds", (double)age_s);
        delivery_put_time(o, "lastAttemptAt", d->tried_ms);
        cJSON_AddItemToObject(
            o, "lastError", d->why ? cJSON_CreateString(d->why) : cJSON_CreateNull());
    }
    cJSON_AddRawToObject(o, "alert", d->payload->json.data);
    json_print(o, out);
    cJSON_Delete(o);
}

/*
 * Makes a delivery a dead letter; reason and hint say why. It stays in the backlog
 * until the letter is on the disk. Without a state directory, or if too many letters
 * wait for the disk, the alert is only logged, whole.
 */
static void
delivery_bury(struct delivery *d, const char *reason, const char *hint)
{
    struct backlog *b = d->webhook->backlog;
    const struct journal *j = b->journal;
    size_t size = d->payload->size;
    size_t more = j->letters_failed ? 0 : b->room + b->loaded;
    bool is_kept = j->folder && b->dead_bytes + size <= LETTERS_WAIT_MAX + more;

    b->text.len = 0;
    buf_add_texts(&b->text, reason, *hint ? "; " : "", hint, NULL);
    log_event(&d->webhook->event_given_up, PLAT_GIVEN_UP, LOG_ERROR,
        "alert %llu given up for %s after %d attempt%s: %s%s%s%s",
        (unsigned long long)d->payload->number, d->webhook->config->name, d->attempts,
        d->attempts == 1 ? "" : "s", b->text.data,
        j->folder && !is_kept ? "; too many dead letters wait for the disk" : "",
        is_kept ? "" : "; alert: ", is_kept ? "" : d->payload->json.data);
    b->given_up++;
    d->webhook->given_up++;
    delivery_set_why(d, b->text.data);
    list_remove(&d->webhook->list, d);
    list_add(&b->dead, d);
    d->state = DELIVERY_DEAD;
    b->dead_bytes += size;
    if (!is_kept)
        delivery_end(d);
}

/*
 * Once a round: ends the deliveries whose letters the disk thread has written, and gives
 * it the next ones, as lines of JSON that journal_read_letter reads. At the end of a stop
 * it gets no more: what is no letter yet still waits in the journal.
 */
static void
backlog_write_letters(struct backlog *b)
{
    struct buf *lines = &b->journal->letters;

    if (b->journal->asked || lines->len > 0) /* what could not be written is tried again */
        return;
    for (; b->batch > 0; b->batch--)
        delivery_end(b->dead.oldest);
    for (struct delivery *d = b->ended ? NULL : b->dead.oldest; d && lines->len < JOURNAL_CHUNK;
         d = d->newer) {
        delivery_print(d, lines);
        buf_add_char(lines, '\n');
        b->batch++;
    }
}

/* ---- Room and age ---- */

/*
 * Once a round: as long as what waits takes too much room, the oldest alert of the webhook
 * with most waiting becomes a dead letter; alerts in a call are left alone. Warns once
 * when most of the room is used.
 */
static void
backlog_make_room(struct backlog *b)
{
    size_t percent;

    while (b->bytes > b->room + b->dead_bytes) {
        struct webhook *most = NULL;
        struct delivery *d;
        for (size_t i = 0; i < b->webhooks; i++)
            if (b->webhook[i].list.count > b->webhook[i].calls &&
                (!most || b->webhook[i].list.count > most->list.count))
                most = &b->webhook[i];
        if (!most)
            break;
        for (d = most->list.oldest; d->state == DELIVERY_IN_CALL;)
            d = d->newer;
        delivery_bury(d, "no room: too many alerts wait", "see butlerWebhook.maxStateMB");
    }
    percent = b->bytes * 100 / b->room;
    if (percent >= CROWDED_PERCENT && !b->crowded)
        log_line(LOG_WARN, "state directory: %zu %% of its room is used (%zu alerts wait)", percent,
            b->waiting);
    b->crowded = percent >= (b->crowded ? CROWDED_PERCENT - 10 : CROWDED_PERCENT);
}

/* Gives up what has waited for maxAgeHours. The list is by age: the first young one ends it. */
static void
webhook_expire(struct webhook *w, int64_t now_ms)
{
    const struct backlog *b = w->backlog;

    for (struct delivery *d = w->list.oldest, *next; d && now_ms >= b->grace_until_ms; d = next) {
        next = d->newer;
        if (now_ms - d->payload->accepted_ms < b->config->max_age_hours * AGE_UNIT_MS)
            return;
        if (d->state == DELIVERY_WAITS)
            delivery_bury(d, "not delivered for as long as an alert is kept", d->why ? d->why : "");
    }
}

/* ---- Results ---- */

/*
 * Notes the state that a call has found the webhook in. If that is not UP it is left alone
 * for a while, down or paced as it asked. As long as that lasts the first call that has
 * brought it counts, and the longest time asked for; only a webhook that is down may
 * be up again at once.
 */
static void
webhook_turn(
    struct webhook *w, enum webhook_state state, int64_t now_ms, const struct http_result *res)
{
    int64_t wait_ms = state == WEBHOOK_PACED ? res->retry_after_s * 1000 : -1;
    bool is_held = w->state != WEBHOOK_UP && now_ms < w->wait_until_ms;
    bool is_up_again = w->state == WEBHOOK_DOWN && state != WEBHOOK_DOWN;

    /* Another call that began before: it brings nothing new, but perhaps a longer wait. */
    if (is_held && (state != WEBHOOK_UP || w->state == WEBHOOK_PACED)) {
        if (now_ms + wait_ms > w->wait_until_ms)
            w->wait_until_ms = now_ms + wait_ms;
        return;
    }
    if (wait_ms <= 0) /* 0 must not become a flood */
        wait_ms = wait_ms == 0 ? BACKOFF_MIN_MS : webhook_backoff_ms(w->failures + 1);
    w->failures = state == WEBHOOK_UP || is_up_again ? 0 : w->failures + 1;
    w->wait_until_ms = state == WEBHOOK_UP ? 0 : now_ms + wait_ms;
    if (is_up_again)
        log_event(
            &w->event_state, PLAT_WEBHOOK_UP, LOG_INFO, "webhook %s is up again", w->config->name);
    if (state == WEBHOOK_PACED && w->state != state)
        log_line(LOG_WARN, "webhook %s asked to wait: %d, for %.1f s", w->config->name, res->status,
            (double)wait_ms / 1000);
    if (state == WEBHOOK_DOWN && w->state != state)
        log_event(&w->event_state, PLAT_WEBHOOK_DOWN, LOG_WARN, "webhook %s is down: %s%s%s",
            w->config->name, res->reason.text, res->hint.text[0] ? "; " : "", res->hint.text);
    for (struct delivery *d = w->list.oldest; d && w->state == WEBHOOK_UP; d = d->newer)
        if (d->tried_ms && state == WEBHOOK_DOWN) /* no backoff of its own any more */
            d->due_ms = d->tried_ms;
    w->state = state;
}

/*
 * Acts on the result of a call: the delivery ends, or waits again. One that is due at
 * once is now the one tried last, so that the next probe takes another one.
 */
static void
webhook_settle(void *owner, const struct http_result *res)
{
    struct delivery *d = owner;
    struct webhook *w = d->webhook;
    struct backlog *b = w->backlog;
    enum verdict verdict = webhook_judge(w->config, res);
    int64_t now_ms = plat_now_ms(), next_ms;
    int i = 0;

    w->calls--;
    w->quiet_until_ms = 0;
    d->state = DELIVERY_WAITS;
    d->attempts += res->end != HTTP_OURS;
    w->attempts += res->end != HTTP_OURS;
    w->spent_ms += res->end != HTTP_OURS ? res->ms : 0;
    d->tried_ms = d->due_ms = now_ms;
    if (verdict == VERDICT_SICK) { /* an alert that fails again and again is one suspect */
        while (i < SUSPECTS_MAX && w->suspect[i] && w->suspect[i] != d->payload->number)
            i++;
        if (i < SUSPECTS_MAX)
            w->suspect[i] = d->payload->number;
        if (w->suspect[SUSPECTS_MAX - 1] || (res->end == HTTP_BROKEN && w->state != WEBHOOK_UP))
            verdict = VERDICT_DOWN;
    } else if (res->end == HTTP_ANSWERED && verdict != VERDICT_WAIT)
        memset(w->suspect, 0, sizeof w->suspect);
    if (verdict == VERDICT_DOWN || verdict == VERDICT_WAIT)
        webhook_turn(w, verdict == VERDICT_WAIT ? WEBHOOK_PACED : WEBHOOK_DOWN, now_ms, res);
    else if (res->end == HTTP_ANSWERED && w->state != WEBHOOK_UP)
        webhook_turn(w, WEBHOOK_UP, now_ms, res);
    if (verdict == VERDICT_DELIVERED) {
        b->delivered++;
        w->delivered++;
        b->text.len = 0;
        buf_add_texts(&b->text, "alert ", number_text(d->payload->number).text, " delivered to ",
            w->config->name, ": ", number_text((uint64_t)res->status).text, " in ",
            number_text((uint64_t)res->ms).text, " ms, attempt ",
            number_text((uint64_t)d->attempts).text, NULL);
        log_add(LOG_INFO, (struct slice){b->text.data, b->text.len});
        delivery_end(d);
        return;
    }
    if (verdict == VERDICT_DEAD) {
        delivery_bury(d, res->reason.text, res->hint.text);
        return;
    }
    if (res->end == HTTP_OURS && w->wait_until_ms < now_ms + SHORTAGE_MS)
        w->wait_until_ms = now_ms + SHORTAGE_MS;
    if (w->state == WEBHOOK_UP)
        d->due_ms += webhook_backoff_ms(d->attempts > 0 ? d->attempts : 1);
    next_ms = d->due_ms > w->wait_until_ms ? d->due_ms : w->wait_until_ms;
    delivery_set_why(d, res->reason.text);
    log_line(w->state == WEBHOOK_UP ? LOG_WARN : LOG_VERBOSE,
        "alert %llu to %s: %s; attempt %d, next in %.1f s", (unsigned long long)d->payload->number,
        w->config->name, res->reason.text, d->attempts, (double)(next_ms - now_ms) / 1000);
    if (res->end != HTTP_OURS)
        journal_note(b->journal, delivery_record(d));
}

/*
 * Returns what is to be sent next, NULL: nothing waits. Of a webhook that is up the
 * oldest alert that is due, else the one that will be first; of others the one that was
 * tried longest ago, so that one that breaks every call is not the only probe.
 */
static struct delivery *
webhook_next(const struct webhook *w, int64_t now_ms)
{
    struct delivery *first = NULL;

    for (struct delivery *d = w->list.oldest; d; d = d->newer)
        if (d->state == DELIVERY_WAITS && (!first || d->due_ms < first->due_ms)) {
            first = d;
            if (w->state == WEBHOOK_UP && d->due_ms <= now_ms)
                break;
        }
    return first;
}

/* Puts off the next call to when the webhook takes one, and maxCallsPerMinute allows it. */
static void
webhook_put_off(struct webhook *w)
{
    uint64_t max = (uint64_t)w->config->max_calls;
    int64_t until_ms = w->wait_until_ms;

    /* The next place in the ring holds the call that leaves the minute first. */
    if (w->begun_ms && w->begun >= max && w->begun_ms[w->begun % max] + CALLS_MINUTE_MS > until_ms)
        until_ms = w->begun_ms[w->begun % max] + CALLS_MINUTE_MS;
    if (w->quiet_until_ms < until_ms)
        w->quiet_until_ms = until_ms;
}

/*
 * Begins calls with what is due, while fewer than maxConcurrent are in flight; of a
 * webhook that is not up a probe, when its time has come and no call is left from
 * before. None of those while stopping: what waits is safe in the journal. Lowers
 * *until_ms to when there is more to do.
 */
static void
webhook_begin(struct webhook *w, int64_t now_ms, int64_t *until_ms)
{
    struct backlog *b = w->backlog;
    bool up = w->state == WEBHOOK_UP;
    size_t calls_max = up ? (size_t)b->config->max_concurrent : 1;
    struct delivery *d;

    webhook_put_off(w);
    while (w->calls < calls_max && !(b->ended || (b->stopping && !up)) &&
        w->peer.http->busy < CONNECTIONS_MAX && now_ms >= w->quiet_until_ms &&
        (d = webhook_next(w, now_ms)) != NULL) {
        struct http_request request = {.json = d->payload->json,
            .suppressed = d->payload->suppressed,
            .accepted_ms = d->payload->accepted_ms};
        /* Until the next one is due no round needs to search the list again. */
        w->quiet_until_ms = up ? d->due_ms : 0;
        if (w->quiet_until_ms > now_ms)
            break;
        d->state = DELIVERY_IN_CALL;
        w->calls++;
        if (w->begun_ms)
            w->begun_ms[w->begun++ % (uint64_t)w->config->max_calls] = now_ms;
        webhook_put_off(w);
        delivery_id(d, request.id, sizeof request.id);
        call_begin(&w->peer, &request, d, now_ms);
    }
    if (w->quiet_until_ms > now_ms && w->quiet_until_ms < *until_ms)
        *until_ms = w->quiet_until_ms;
}

/* ---- Loading, rewriting, replay ---- */

/*
 * Finds the webhook of today that an earlier one has become: by its key, else by a
 * description that is unique within its kind, else by its place in a list that is as
 * long as before, if it uses no key of ours. NULL: none. For what waits in the journal
 * only one that no key there means: what was meant for one webhook must not go to another
 * that stood beside it.
 */
static struct webhook *
backlog_match(struct backlog *b, const struct webhook_config *was, bool waiting)
{
    struct webhook *named = NULL, *placed = NULL;
    size_t count = 0;

    for (size_t i = 0; i < b->webhooks; i++) {
        struct webhook *w = &b->webhook[i];
        const struct webhook_config *c = w->config;
        bool is_free = !waiting || !w->today;
        if (strcmp(c->key, was->key) == 0)
            return w;
        if (c->kind != was->kind)
            continue;
        if (*was->description && strcmp(c->description, was->description) == 0) {
            named = is_free ? w : NULL;
            count++;
        }
        if (is_free && !c->is_special && c->place == was->place && c->listed == was->listed)
            placed = w;
    }
    return count == 1 && named ? named : placed;
}

/* Finds the webhook that a key of the journal means: of today, gone, or unknown. */
static struct webhook *
backlog_find(struct backlog *b, struct slice key)
{
    for (size_t i = 0; i < b->known; i++) {
        struct webhook *w = &b->webhook[i];
        if (!slice_is(key, w->config->key))
            continue;
        if (!w->today && (w->today = backlog_match(b, w->config, true)) != NULL)
            w->today->today = w->today;
        return w->today ? w->today : w;
    }
    return &b->webhook[b->webhooks]; /* the unknown one */
}

/*
 * Takes in a webhook from the journal, where all stand before the first alert. One that
 * is not in the configuration gets a struct of its own, so that what waits for it goes to
 * the one that it has become, or else can become dead letters.
 */
static void
backlog_know(struct backlog *b, const struct journal_record *r)
{
    struct webhook_config *c;

    for (size_t i = 0; i < b->known; i++)
        if (slice_is(r->key, b->webhook[i].config->key)) {
            b->webhook[i].today = &b->webhook[i];
            return;
        }
    if (b->known == b->webhooks + 1 + KNOWN_MAX)
        return;
    c = x_calloc(1, sizeof *c);
    c->kind = r->kind;
    c->place = (size_t)r->number - 1;
    c->listed = r->count;
    c->description = x_check(strdup(r->text.data));
    snprintf(c->key, sizeof c->key, "%.*s", (int)r->key.len, r->key.data);
    cfg_set_name(c);
    b->webhook[b->known++] = (struct webhook){.config = c, .backlog = b};
}

/* Where a loading finds the alert of a record: an array of these, by number. */
struct backlog_entry {
    uint64_t number;
    struct payload *payload; /* NULL: it has ended */
};

/* Adds an alert from the journal. */
static void
backlog_load_alert(struct backlog *b, struct buf *index, const struct journal_record *r)
{
    struct webhook *to[CONFIG_WEBHOOKS_MAX];
    struct slice keys = r->key;
    struct alert alert = {.suppressed = (uint32_t)r->count};
    cJSON *json = json_read(r->text);
    size_t n = 0;

    while (keys.len > 0 && n < CONFIG_WEBHOOKS_MAX)
        to[n++] = backlog_find(b, slice_take(&keys, ','));
    if (r->number > b->last_number && alert_read_json(json, &alert) == 0) {
        struct backlog_entry entry = {.number = r->number};
        b->last_number = r->number - 1;
        entry.payload = backlog_add(b, &alert, to, n, r->word);
        entry.payload->accepted_ms = backlog_from_wall(r->wall_ms);
        buf_add(index, &entry, sizeof entry);
        for (enum window_use use = 0; use < WINDOW_USES && r->word == JOURNAL_ACCEPTED; use++) {
            struct window_key key = window_key(&alert, use);
            window_open(&b->windows->table[alert.kind][use], &key, entry.payload->accepted_ms);
        }
    }
    cJSON_Delete(json);
}

/* Takes in an attempt that failed, or an end, from the journal. */
static void
backlog_load_outcome(struct backlog *b, const struct buf *index, const struct journal_record *r)
{
    struct backlog_entry *entry = (void *)index->data;
    struct webhook *w = backlog_find(b, r->key);
    size_t low = 0, high = index->len / sizeof *entry;
    struct payload *p;

    while (low < high) {
        size_t middle = (low + high) / 2;
        if (entry[middle].number < r->number)
            low = middle + 1;
        else
            high = middle;
    }
    p = low < index->len / sizeof *entry ? entry[low].payload : NULL;
    if (!p || p->number != r->number)
        return; /* it has ended, or was damaged */
    for (size_t i = 0; i < p->targets; i++) {
        struct delivery *d = &p->delivery[i];
        if (d->webhook != w || d->state != DELIVERY_WAITS)
            continue;
        if (r->word == JOURNAL_END) {
            entry[low].payload = p->left > 1 ? p : NULL;
            delivery_end(d);
            return;
        }
        delivery_set_why(d, r->text.data);
        d->attempts = (int)r->count;
        d->tried_ms = backlog_from_wall(r->wall_ms);
        return;
    }
}

/*
 * Reads the journal: what waited when the program ended waits again, due at once,
 * and windows of time are open again. What waits for webhooks that are gone becomes
 * dead letters, unless read_only (--pending).
 */
static void
backlog_load(struct backlog *b, bool read_only)
{
    struct buf index = {0};
    struct window_key key = {.none = false};
    struct journal_record r;

    while (journal_read_next(b->journal, &r) > 0)
        if (r.word == JOURNAL_WEBHOOK)
            backlog_know(b, &r);
        else if (r.word == JOURNAL_ACCEPTED || r.word == JOURNAL_WAITING)
            backlog_load_alert(b, &index, &r);
        else if (r.word != JOURNAL_WINDOW)
            backlog_load_outcome(b, &index, &r);
        else if (hex_read(r.key, key.bytes, sizeof key.bytes) == 0)
            window_open(&b->windows->table[r.kind][r.count == WINDOW_SEEN], &key,
                backlog_from_wall(r.wall_ms));
    buf_free(&index);
    b->loaded = b->bytes;
    for (size_t i = b->webhooks; i < b->known && !read_only; i++)
        for (struct delivery *d; (d = b->webhook[i].list.oldest) != NULL;)
            delivery_bury(d, "its webhook is not in the configuration any more", "");
}

/* Writes all that waits, and the open windows, into a new journal. */
static void
backlog_rewrite(struct backlog *b, int64_t now_ms)
{
    journal_rewrite_begin(b->journal);
    if (b->journal->new_file < 0)
        return; /* that was logged */
    /* Letters that are not yet written may be for webhooks that are gone. */
    for (size_t i = 0; i < (b->dead.count > 0 ? b->known : b->webhooks); i++) {
        const struct webhook_config *c = b->webhook[i].config;
        journal_rewrite_add(b->journal,
            (struct journal_record){JOURNAL_WEBHOOK, c->place + 1, c->kind, 0, c->listed,
                slice_of(c->key), slice_of(c->description)});
    }
    for (const struct payload *p = b->oldest; p; p = p->newer) {
        journal_rewrite_add(b->journal, payload_record(b, p, JOURNAL_WAITING));
        for (size_t i = 0; i < p->targets; i++) {
            const struct delivery *d = &p->delivery[i];
            if (d->state != DELIVERY_ENDED && d->attempts > 0)
                journal_rewrite_add(b->journal, delivery_record(d));
        }
    }
    for (enum alert_kind kind = 0; kind < ALERT_KINDS; kind++)
        for (enum window_use use = 0; use < WINDOW_USES; use++) {
            const struct window_table *t = &b->windows->table[kind][use];
            uint64_t n = t->last > WINDOW_MAX ? t->last - WINDOW_MAX : 0;
            while (n++ < t->last) {
                const struct window_entry *entry = &t->entry[n % WINDOW_MAX];
                char key[33];
                if (entry->begin_ms + t->length_ms <= now_ms)
                    continue; /* it has ended */
                hex_write(entry->key.bytes, sizeof entry->key.bytes, key);
                journal_rewrite_add(b->journal,
                    (struct journal_record){JOURNAL_WINDOW, 0, kind,
                        backlog_wall_ms(entry->begin_ms), use, slice_of(key), {"", 0}});
            }
        }
    journal_rewrite_flush(b->journal);
}

/*
 * Once a round: takes back dead letters that --replay has handed over; one whose webhook
 * is gone, or without room, is a letter again. The files are deleted once all is safe:
 * in the journal and synced, or among the dead letters.
 */
static void
backlog_replay(struct backlog *b, int64_t now_ms, int64_t *until_ms)
{
    struct journal *j = b->journal;
    struct webhook_config was;
    struct alert alert = {0};
    struct slice line;

    if (!j->disk || j->asked || j->failed)
        return;
    for (int i = 0; i < 64 && j->letters.len < JOURNAL_CHUNK && !b->stopping; i++) {
        if (journal_replay_next(j, now_ms, &line) == 0)
            break;
        cJSON *letter = journal_read_letter(line, &was, &alert);
        struct webhook *w = letter ? backlog_match(b, &was, false) : NULL;
        /* Twice: a template needs the fields beside the JSON. */
        if (w && b->bytes + 2 * line.len + sizeof(struct payload) <= b->room) {
            backlog_add(b, &alert, &w, 1, JOURNAL_WAITING);
            log_line(LOG_INFO, "alert %llu again from the dead letters, for %s",
                (unsigned long long)b->last_number, w->config->name);
            b->again++;
        } else {
            buf_add(&j->letters, line.data, line.len);
            buf_add_char(&j->letters, '\n');
            b->stay++;
        }
        cJSON_Delete(letter);
        *until_ms = now_ms;
    }
    if (j->replay_is_read && !j->sync_all && j->letters.len == 0 && journal_replay_end(j)) {
        log_line(LOG_INFO, "dead letters: %llu taken back to be sent again, %llu stay%s", b->again,
            b->stay, b->stay > 0 ? ": without a webhook or room, or damaged" : "");
        b->again = b->stay = 0;
    }
}

/* Readies the backlog, and its windows, for the configuration. http NULL: it makes no calls. */
static void
backlog_init(struct backlog *b, const struct config *c, struct journal *journal, struct http *http)
{
    static const struct webhook_config unknown = {
        .key = "unknown", .description = "", .name = "an unknown webhook"};

    *b = (struct backlog){.config = c,
        .journal = journal,
        .windows = x_calloc(1, sizeof *b->windows),
        .webhook = x_calloc(c->webhooks + 1 + KNOWN_MAX, sizeof *b->webhook),
        .webhooks = c->webhooks,
        .known = c->webhooks + 1,
        .room = (size_t)c->max_state_mb * STATE_UNIT / 10 * 3, /* see journal_wants_rewrite */
        .grace_until_ms = plat_now_ms() + AGE_UNIT_MS};
    for (int kind = 0; kind < ALERT_KINDS; kind++) {
        struct window_table *t = b->windows->table[kind];
        t[WINDOW_RATE].length_ms = c->rate_limit_s[kind] * 1000;
        t[WINDOW_SEEN].length_ms = c->dedup_enable ? c->dedup_minutes * 60000 : 0;
    }
    b->webhook[c->webhooks] = (struct webhook){.config = &unknown, .backlog = b};
    for (size_t i = 0; i < c->webhooks; i++) {
        struct webhook *w = &b->webhook[i];
        const struct webhook_config *wc = &c->webhook[i];
        *w = (struct webhook){.config = wc, .backlog = b, .peer = {.http = http, .webhook = wc}};
        if (!http)
            continue;
        if (wc->max_calls > 0)
            w->begun_ms = x_calloc((size_t)wc->max_calls, sizeof *w->begun_ms);
        if (wc->url.tls)
            tls_init(&w->peer);
        log_line(LOG_INFO, "webhook %s: %s %s%s%s", wc->name, METHODS[wc->method], wc->url.shown,
            wc->proxy ? " through " : "", wc->proxy ? wc->proxy->shown : "");
    }
}

/* ==== 12. Listener ==========================================================
 *
 * From the UDP socket to alerts that wait. Datagrams are read into the inbox as
 * soon as they are there, at most RECV_ROUND in a round, so that the kernel drops
 * none; from there SORT_ROUND are sorted in a round: what is not ours is counted,
 * an alert gets its number and its record and waits for each webhook of its kind that
 * it matches. It is accepted, and logged as such, when that record is written.
 */

/* What stands before each datagram in the inbox. */
struct inbox_head {
    uint8_t from[16]; /* as plat_addr_bytes */
    uint32_t len;
};

/*
 * How what becomes of a datagram is called in the metrics, and how it is logged: so many
 * lines a minute at most, as others can cause some of them at will.
 */
static const struct {
    const char *name;
    enum log_level level;
    unsigned lines;
    const char *what;
} FATES[LISTEN_FATES] = {
    [LISTEN_ACCEPTED] = {"accepted", LOG_INFO, UINT_MAX, NULL}, /* has a line of its own */
    [LISTEN_IGNORED] = {"ignored", LOG_VERBOSE, UINT_MAX, "ignored"},
    [LISTEN_MALFORMED] = {"malformed", LOG_WARN, LOG_MINUTE_MAX, "malformed datagram"},
    [LISTEN_UNKNOWN] = {"unknown", LOG_WARN, LOG_MINUTE_MAX, "unknown message id"},
    [LISTEN_REFUSED] = {"refused", LOG_WARN, LOG_MINUTE_MAX,
        "datagram ignored, its sender is not in allowedSources"},
    [LISTEN_OVERSIZE] = {"oversize", LOG_ERROR, LOG_MINUTE_MAX,
        "datagram dropped, larger than maxMessageSize"},
    [LISTEN_OVER_RATE] = {"over_rate", LOG_ERROR, LOG_MINUTE_MAX,
        "datagram dropped, over udpServerConfig.rateLimit"},
    [LISTEN_DUPLICATE] = {"duplicate", LOG_INFO, LOG_MINUTE_MAX, "duplicate ignored"},
    [LISTEN_HELD_BACK] = {"held_back", LOG_INFO, LOG_MINUTE_MAX, "held back by the rate limit"},
    [LISTEN_UNMATCHED] = {"unmatched", LOG_WARN, 1, "not sent, as no webhook's match fits"},
};

struct listener {
    struct backlog *backlog;
    intptr_t sock;       /* -1: closed */
    bool more;           /* the socket may hold more than the last round has read */
    bool failed;         /* logged: it cannot be read */
    uint32_t drops;      /* by the system, logged already */
    int64_t drops_ms;    /* when they were looked at */
    struct buf inbox;    /* datagrams behind each other: inbox_head, bytes ... */
    size_t sorted;       /* ... and how many bytes of it are done with */
    struct alert alert;  /* the one at hand; its memory is used again */
    struct buf accepted; /* what the log says of this round's alerts, each with its NUL */
    int64_t minute_ms;   /* when the minute of udpServerConfig.rateLimit began */
    int64_t minute_count;
    unsigned long long received, unsorted, count[LISTEN_FATES];
    int64_t log_ms;                        /* when the minute of what follows began */
    unsigned long long told[LISTEN_FATES]; /* but only the first FATES.lines have a line */
};

/* True if a datagram may come from there. */
static bool
listen_is_allowed(const struct config *c, const uint8_t address[16])
{
    if (!c->source_validation)
        return true;
    for (const struct source *s = c->source; s < c->source + c->sources; s++)
        for (size_t k = 0; k < s->addresses; k++) {
            int bytes = s->bits / 8, rest = s->bits % 8;
            if (s->bits < 96 && memcmp(address, PLAT_MAPPED, sizeof PLAT_MAPPED) == 0)
                continue; /* a range of IPv6, and IPv4 is none */
            if (memcmp(address, s->address[k], (size_t)bytes) == 0 &&
                (rest == 0 || ((address[bytes] ^ s->address[k][bytes]) >> (8 - rest)) == 0))
                return true;
        }
    return false;
}

/*
 * Decides what becomes of a datagram; why tells more, for the log. The cheap questions
 * come first, for a flood from where nobody should send; only what an allowed sender
 * sends counts against rateLimit. An alert opens its two windows of time; one that is
 * held back opens none, as it is not sent.
 */
static enum listen_fate
listen_judge(struct listener *l, const uint8_t from[16], struct slice datagram, int64_t now_ms,
    struct err *why)
{
    const struct config *c = l->backlog->config;
    struct alert *a = &l->alert;
    enum listen_fate fate;
    struct window_table *t;
    struct window_key task, run;
    struct window_entry *open;

    if (!listen_is_allowed(c, from))
        return LISTEN_REFUSED;
    if (now_ms - l->minute_ms >= MINUTE_MS) { /* rateLimit's minute begins with a datagram */
        l->minute_ms = now_ms;
        l->minute_count = 0;
    }
    if (c->udp_rate_enable && ++l->minute_count > c->udp_rate)
        return LISTEN_OVER_RATE;
    if ((int64_t)datagram.len > c->max_message_size) {
        err_set(why, "%zu bytes", datagram.len);
        return LISTEN_OVERSIZE;
    }
    fate = alert_parse(datagram, &l->alert, why);
    if (fate != LISTEN_ACCEPTED)
        return fate;
    t = l->backlog->windows->table[a->kind];
    task = window_key(a, WINDOW_RATE);
    run = window_key(a, WINDOW_SEEN);
    if (window_find(&t[WINDOW_SEEN], &run, now_ms))
        return LISTEN_DUPLICATE;
    open = window_find(&t[WINDOW_RATE], &task, now_ms);
    if (open) {
        open->held += open->held < HELD_MAX;
        err_set(why, ", %u since the last alert", open->held);
        return LISTEN_HELD_BACK;
    }
    window_open(&t[WINDOW_SEEN], &run, now_ms);
    a->suppressed = window_open(&t[WINDOW_RATE], &task, now_ms);
    return LISTEN_ACCEPTED;
}

/* Adds what the log says of an alert. */
static void
listen_add_alert(struct buf *b, const struct alert *a)
{
    buf_add_texts(b, KINDS[a->kind].short_text, ", task \"",
        log_text(slice_of(a->field[FIELD_TASK_NAME])).text, "\" (", a->field[FIELD_TASK_ID],
        "), app \"", log_text(slice_of(a->field[FIELD_APP_NAME])).text, "\", execution ",
        log_text(slice_of(a->field[FIELD_EXECUTION_ID])).text, NULL); /* it may be anything */
}

/*
 * Takes in the alert at hand: it waits for the webhooks that it matches, and has its record.
 * LISTEN_UNMATCHED: there are webhooks of its kind, but it matches none.
 */
static enum listen_fate
listen_accept(struct listener *l)
{
    struct backlog *b = l->backlog;
    const struct alert *a = &l->alert;
    struct webhook *to[CONFIG_WEBHOOKS_MAX];
    size_t n = 0, of_kind = 0;

    for (size_t i = 0; i < b->webhooks; i++)
        if (b->webhook[i].config->kind == a->kind) {
            of_kind++;
            if (alert_matches(a, b->webhook[i].config->match))
                to[n++] = &b->webhook[i];
        }
    if (n == 0 && of_kind > 0)
        return LISTEN_UNMATCHED;
    if (n > 0)
        backlog_add(b, a, to, n, JOURNAL_ACCEPTED);
    else
        b->last_number++;
    buf_add_texts(&l->accepted, "alert ", number_text(b->last_number).text, " accepted: ", NULL);
    listen_add_alert(&l->accepted, a);
    buf_add_texts(
        &l->accepted, ", for ", number_text(n).text, n == 1 ? " webhook" : " webhooks", NULL);
    buf_add_char(&l->accepted, '\0');
    return LISTEN_ACCEPTED;
}

/*
 * Logs what became of a datagram that was not accepted. What others can cause at will
 * is not logged line by line for ever.
 */
static void
listen_log(struct listener *l, enum listen_fate fate, const uint8_t from[16], const char *why)
{
    struct slice datagram = {l->alert.text.data, l->alert.text.len};
    struct buf text = {0};
    char sender[64];
    uint32_t point;
    size_t len = 0;

    if (FATES[fate].level > the_log.level || ++l->told[fate] > FATES[fate].lines)
        return;
    if (fate >= LISTEN_DUPLICATE) /* these are alerts */
        listen_add_alert(&text, &l->alert);
    buf_add_text(&text, why);
    if (fate == LISTEN_MALFORMED) { /* as it was decoded, so that a person can read what it meant */
        for (int i = 0; i < LOG_NAME_MAX && len < datagram.len; i++)
            len += utf8_read(datagram.data + len, datagram.len - len, &point);
        buf_format(&text, ": \"%.*s%s\"", (int)len, datagram.data, len < datagram.len ? "..." : "");
    }
    plat_bytes_text(from, sender);
    log_line(FATES[fate].level, "%s%s%s, from %s", FATES[fate].what, text.len > 0 ? ": " : "",
        text.data, sender);
    buf_free(&text);
}

/*
 * Takes datagrams out of the inbox, in their order, and sorts them: at most
 * SORT_ROUND alerts, or RECV_ROUND that are none, which cost far less.
 */
static void
listen_sort(struct listener *l, int64_t now_ms)
{
    unsigned long long most = l->count[LISTEN_ACCEPTED] + SORT_ROUND;

    for (int n = 0; n < RECV_ROUND && l->unsorted > 0 && l->count[LISTEN_ACCEPTED] < most; n++) {
        struct inbox_head head;
        struct err why = {""};
        const char *data = l->inbox.data + l->sorted + sizeof head;
        enum listen_fate fate;
        memcpy(&head, l->inbox.data + l->sorted, sizeof head);
        l->sorted += sizeof head + head.len;
        l->unsorted--;
        fate = listen_judge(l, head.from, (struct slice){data, head.len}, now_ms, &why);
        if (fate == LISTEN_ACCEPTED)
            fate = listen_accept(l);
        l->count[fate]++;
        if (fate != LISTEN_ACCEPTED)
            listen_log(l, fate, head.from, why.text);
    }
    if (l->sorted > l->inbox.len / 2) {
        buf_drop(&l->inbox, l->sorted);
        l->inbox.cap = l->inbox.len + 1; /* the alerts need the memory */
        l->inbox.data = x_check(realloc(l->inbox.data, l->inbox.cap));
        l->sorted = 0;
    }
}

/* Logs which alerts were accepted, once it is known whether the journal holds them. */
static void
listen_log_accepted(struct listener *l, bool written)
{
    for (size_t at = 0; at < l->accepted.len; at += strlen(l->accepted.data + at) + 1)
        if (written)
            log_add(LOG_INFO, slice_of(l->accepted.data + at));
        else
            log_line(LOG_INFO, "%s, in memory only", l->accepted.data + at);
    l->accepted.len = 0;
}

/*
 * Reads at most RECV_ROUND datagrams into the inbox. What a full inbox has no room for
 * stays in the system's buffer. Once a second, and at_end, logs how many datagrams the
 * system has dropped.
 */
static void
listen_receive(struct listener *l, int64_t now_ms, bool at_end)
{
    char data[DATAGRAM_ROOM];
    struct plat_addr from;
    uint32_t drops;
    int n = 0;

    for (int got = 0; got < RECV_ROUND && n >= 0 && l->inbox.len < INBOX_MAX; got++) {
        n = plat_udp_receive(l->sock, &from, data);
        if (n >= 0) {
            struct inbox_head head = {.len = (uint32_t)n};
            plat_addr_bytes(&from, head.from);
            buf_add(&l->inbox, &head, sizeof head);
            buf_add(&l->inbox, data, head.len);
            l->received++;
            l->unsorted++;
        }
    }
    if (n == -1 && !l->failed)
        log_line(LOG_ERROR, "cannot receive: %s", plat_error(errno));
    l->failed = n == -1;
    l->more = n >= 0;
    if (at_end || now_ms - l->drops_ms >= 1000) {
        l->drops_ms = now_ms;
        drops = plat_udp_drops(l->sock) - l->drops;
        l->drops += drops;
        if (drops > 0)
            log_line(LOG_ERROR, "%u datagrams dropped by the system: its receive buffer was full",
                (unsigned)drops);
    }
}

/*
 * Begins and ends the look-ups of names in allowedSources. An answer replaces the
 * old addresses, a failure does not.
 */
static void
listen_look_up(const struct config *c, int64_t now_ms)
{
    struct plat_addr addr[SOURCE_ADDRESSES_MAX];
    const char *why = "";

    for (struct source *s = c->source; s < c->source + c->sources && c->source_validation; s++) {
        int n;
        if (!s->name || now_ms < s->again_ms)
            continue;
        n = plat_resolve(s->name, addr, SOURCE_ADDRESSES_MAX, &why);
        if (n == PLAT_AGAIN)
            continue;
        if (n <= 0)
            log_line(LOG_WARN, "allowedSources: %s not found: %s", s->name, why);
        for (int k = 0; k < n; k++)
            plat_addr_bytes(&addr[k], s->address[k]);
        s->addresses = n > 0 ? (size_t)n : s->addresses;
        s->again_ms = now_ms + (s->addresses > 0 ? LOOKUP_MS : LOOKUP_AGAIN_MS);
    }
}

/* Once a minute, and at_end: logs how many had no line of their own. */
static void
listen_log_counts(struct listener *l, int64_t now_ms, bool at_end)
{
    if (!at_end && now_ms - l->log_ms < MINUTE_MS)
        return;
    l->log_ms = now_ms;
    for (int i = 0; i < LISTEN_FATES; i++) {
        if (l->told[i] > FATES[i].lines)
            log_line(FATES[i].level, "%llu more in the last minute: %s",
                l->told[i] - FATES[i].lines, FATES[i].what);
        l->told[i] = 0;
    }
}

/*
 * Binds the socket, first of all, so that nothing that comes is missed. The look-up of
 * a name may take long. -1 with e.
 */
static int
listen_open(struct listener *l, const struct config *c, struct err *e)
{
    struct plat_addr all[SOURCE_ADDRESSES_MAX], *addr = all;
    const char *why = "";
    char where[64];
    int buffer_len, n = plat_numeric(c->udp_host, all, SOURCE_ADDRESSES_MAX);

    if (n == 0)
        n = plat_getaddrinfo(c->udp_host, 0, all, SOURCE_ADDRESSES_MAX, &why);
    plat_set_port(all, n, (int)c->udp_port);
    if (n < 1) {
        err_set(e, "cannot listen on %s (UDP): host not found: %s", c->listens_on, why);
        return -1;
    }
    for (int i = n; i-- > 0;) /* IPv4 first, as Butler: Windows gives its own name's IPv6 first */
        addr = all[i].ss.ss_family == AF_INET ? &all[i] : addr;
    l->log_ms = plat_now_ms();
    if ((l->sock = plat_udp_open(addr, &buffer_len)) < 0) {
        err_set(e,
            "cannot listen on %s (UDP): %s; if another program listens there, perhaps Butler "
            "itself, set butlerWebhook.port and the appender to another port",
            c->listens_on, plat_error(errno));
        return -1;
    }
    plat_addr_text(addr, where);
    log_line(LOG_INFO, "listening on %s (UDP), receive buffer %d bytes", where, buffer_len);
    if (buffer_len < RECV_BUFFER / 8)
        log_line(LOG_WARN,
            "the system allows only a small receive buffer: of a burst of over %d datagrams some "
            "may be lost; on Linux, sysctl -w net.core.rmem_max=%d",
            buffer_len / 640, RECV_BUFFER); /* what a datagram of 300 bytes takes */
    return 0;
}

/* ==== 13. Metrics ===========================================================
 *
 * What Prometheus' textfile collector (of node_exporter or windows_exporter) reads:
 * the state of everything as text, which the disk thread writes to metricsFile.
 */

/*
 * What is told of each webhook; rows of one name stand together. "butler_webhook_" stands
 * before each name. help NULL: it goes on with the row before.
 */
static const struct {
    const char *name, *suffix, *labels;
    const char *type, *help;
} METRICS[] = {
    {"deliveries_total", "", ",outcome=\"delivered\"", "counter",
        "Alerts that a webhook has taken, or that became dead letters."},
    {"deliveries_total", "", ",outcome=\"dead_letter\"", NULL, NULL},
    {"attempt_seconds", "_sum", "", "summary", "Attempts, and their time."},
    {"attempt_seconds", "_count", "", NULL, NULL},
    {"up", "", "", "gauge", "1: the webhook takes alerts; 0: it is down."},
    {"waiting_alerts", "", "", "gauge", "Alerts that wait for a webhook."},
    {"oldest_waiting_seconds", "", "", "gauge", "Age of the oldest of them."},
    {"certificate_expiry_timestamp_seconds", "", ",of=\"server\"", "gauge",
        "When a certificate ends; the server's as the last full TLS handshake has shown it."},
    {"certificate_expiry_timestamp_seconds", "", ",of=\"client\"", NULL, NULL},
};
#define METRICS_ROWS (sizeof METRICS / sizeof *METRICS)

/* Begins a metric. */
static void
metrics_begin(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_add_texts(b, "# HELP butler_webhook_", name, " ", help, "\n# TYPE butler_webhook_", name,
        " ", type, "\n", NULL);
}

/*
 * Adds a row of METRICS for a webhook, unless its value is negative. A name holds no
 * control character, but maybe a quote or a backslash.
 */
static void
metrics_add_row(struct buf *b, size_t row, const struct webhook *w, int64_t now_ms)
{
    const struct delivery *oldest = w->list.oldest;
    const double value[METRICS_ROWS] = {(double)w->delivered, (double)w->given_up,
        (double)w->spent_ms / 1000, (double)w->attempts, w->state != WEBHOOK_DOWN,
        (double)w->list.count, oldest ? (double)(now_ms - oldest->payload->accepted_ms) / 1000 : 0,
        w->peer.expires_s > 0 ? (double)w->peer.expires_s : -1,
        w->config->client_crt ? (double)tls_time(&w->config->client_crt->valid_to) : -1};

    if (value[row] < 0)
        return;
    buf_format(b, "butler_webhook_%s%s{webhook=\"", METRICS[row].name, METRICS[row].suffix);
    for (const char *p = w->config->name; *p; p++)
        buf_format(b, *p == '"' || *p == '\\' ? "\\%c" : "%c", *p);
    buf_format(b, "\"%s} %.15g\n", METRICS[row].labels, value[row]);
}

/* Makes the whole text. */
static void
metrics_make(const struct listener *l, int64_t now_ms, struct buf *b)
{
    b->len = 0;
    metrics_begin(b, "datagrams_total", "counter", "Datagrams, by what became of them.");
    for (int i = 0; i < LISTEN_FATES; i++)
        buf_format(
            b, "butler_webhook_datagrams_total{outcome=\"%s\"} %llu\n", FATES[i].name, l->count[i]);
    buf_format(b, "butler_webhook_datagrams_total{outcome=\"dropped\"} %u\n", (unsigned)l->drops);
    for (size_t row = 0; row < METRICS_ROWS; row++) {
        if (METRICS[row].help)
            metrics_begin(b, METRICS[row].name, METRICS[row].type, METRICS[row].help);
        for (size_t i = 0; i < l->backlog->webhooks; i++)
            metrics_add_row(b, row, &l->backlog->webhook[i], now_ms);
    }
    metrics_begin(b, "build_info", "gauge", "The version.");
    buf_add_text(b, "butler_webhook_build_info{version=\"" VERSION "\"} 1\n");
    metrics_begin(b, "written_timestamp_seconds", "gauge", "When this was written.");
    buf_format(
        b, "butler_webhook_written_timestamp_seconds %lld\n", (long long)(plat_wall_ms() / 1000));
}

/* ==== 14. Loop ==============================================================
 *
 * Start, the round, stop. The round is the whole program: everything that happens
 * between two waits stands in loop_round, in its order. No alert is sent, or logged
 * as accepted, before the round's journal_write.
 */

struct app {
    struct config config;
    struct cfg_reader reader;
    struct http http;
    struct journal journal;
    struct backlog backlog;
    struct listener listener;
    struct plat_poll poll; /* this round's sockets, the listener's first */
    size_t lost;           /* of what waits, at the end: it stands on no disk */
    struct peer heartbeat;
    size_t beats;       /* heartbeats under way: 0 or 1; a stop does not wait for one */
    int64_t beat_ms;    /* when the next is due */
    int64_t metrics_ms; /* when the metrics are written next */
    bool beat_failed;
    bool json;        /* --pending is for a program */
    struct err error; /* of a command; it is printed at its end */
};

static struct app *the_app; /* what loop_load made; loop_hung needs it */

/* Returns what became of everything. Async-signal-safe: numbers need no lock and no heap. */
static struct err
loop_counts(const struct app *app)
{
    const struct backlog *b = &app->backlog;
    struct err text;

    snprintf(text.text, sizeof text.text,
        "%llu received, %llu accepted, %llu delivered, %llu given up, %zu lost, %zu waiting",
        app->listener.received, app->listener.count[LISTEN_ACCEPTED], b->delivered, b->given_up,
        app->lost, b->waiting - app->lost);
    return text;
}

/* Ends the process when a stop takes too long, with the counts. Handles a signal, too. */
_Noreturn static void
loop_hung(int number)
{
    struct err text;

    (void)number;
    err_set(&text,
        "butler_webhook: a disk or the log hangs, ended after 5 s: %s, %llu lines of log lost\n",
        loop_counts(the_app).text, (unsigned long long)the_log.unwritten);
    x_die(text.text);
}

/* Calls heartbeatURL when it is due, so that somebody notices when this program is dead. */
static void
loop_beat(struct app *app, int64_t now_ms)
{
    const struct http_request request = {.id = "heartbeat", .json = {"", 0}};

    if (!app->config.heartbeat.url.host || app->beats > 0 || now_ms < app->beat_ms)
        return;
    app->beats = 1;
    app->beat_ms = now_ms + app->config.heartbeat_s * 1000;
    call_begin(&app->heartbeat, &request, app, now_ms);
}

/* Takes the result of a call: of a delivery, or a heartbeat, of which only changes are logged. */
static void
loop_settle(void *owner, const struct http_result *res)
{
    struct app *app = the_app;
    bool failed = res->end != HTTP_ANSWERED || res->status / 100 != 2;

    if (owner != app) {
        webhook_settle(owner, res);
        return;
    }
    if (failed != app->beat_failed)
        log_line(failed ? LOG_WARN : LOG_INFO, "heartbeat %s%s",
            failed ? "failed: " : "works again", failed ? res->reason.text : "");
    app->beats = 0;
    app->beat_failed = failed;
}

/*
 * One round: waits until something happens or until_ms, and does all that is due.
 * Returns when the next round must begin, if nothing happens before.
 */
static int64_t
loop_round(struct app *app, int64_t until_ms)
{
    struct backlog *b = &app->backlog;
    struct journal *j = &app->journal;
    struct listener *l = &app->listener;
    int64_t now_ms = plat_now_ms();

    app->poll.count = 0;
    if (l->sock >= 0)
        plat_poll_add(&app->poll, l->sock, POLLIN);
    http_poll_add(&app->http, &app->poll, now_ms, &until_ms);
    plat_poll(&app->poll, until_ms - now_ms);

    now_ms = plat_now_ms();
    until_ms = now_ms + (b->stopping ? SYNC_MS : LOOK_MS);
    journal_take_results(j);
    l->more = false;
    if (l->sock >= 0 && app->poll.slot[0].revents)
        listen_receive(l, now_ms, false); /* first, as the system's buffer may overflow */
    /* Before this round notes its records: a new journal would hold them twice. */
    if ((!b->stopping || (b->ended && j->failed)) &&
        journal_wants_rewrite(j, (int64_t)b->bytes, now_ms))
        backlog_rewrite(b, now_ms);
    listen_look_up(&app->config, now_ms);
    listen_sort(l, now_ms);
    listen_log_counts(l, now_ms, false);
    http_step(&app->http, &app->poll, loop_settle);
    now_ms = plat_now_ms();
    if (!b->stopping)
        loop_beat(app, now_ms);
    /* The text is the disk thread's from then until its results are taken. */
    if (app->config.metrics_file && now_ms >= app->metrics_ms && !j->asked) {
        app->metrics_ms = now_ms + METRICS_MS;
        metrics_make(l, now_ms, &j->metrics);
    }
    log_report(now_ms);
    for (size_t i = 0; i < b->webhooks; i++)
        webhook_expire(&b->webhook[i], now_ms);
    backlog_make_room(b);
    backlog_write_letters(b); /* with the letters just made */
    backlog_replay(b, now_ms, &until_ms);

    if (journal_write(j) == 0)
        b->safe_number = b->last_number;
    for (size_t i = 0; i < b->webhooks; i++)
        webhook_begin(&b->webhook[(b->turn + i) % b->webhooks], now_ms, &until_ms);
    b->turn++;
    listen_log_accepted(l,
        b->safe_number == b->last_number); /* wakes the log thread: after the requests were sent */
    journal_upkeep(j, b->newest ? b->newest->number : 0, now_ms, &until_ms);
    return l->unsorted > 0 ? now_ms : until_ms;
}

/*
 * Loads a configuration into a new app, which lives as long as the process: nothing
 * is freed before its end. Prints the problems to stderr if asked or if there are
 * errors; then the event log has them, too.
 */
static struct app *
loop_load(const char *file, bool strict, bool print)
{
    struct app *app = x_calloc(1, sizeof *app);
    struct buf problems = {0};

    the_app = app;
    app->http.config = &app->config;
    cfg_load(&app->reader, file, strict, &app->config);
    cfg_add_problems(&problems, &app->reader);
    if (problems.len > 0 && (print || app->reader.errors > 0))
        fwrite(problems.data, 1, problems.len, stderr);
    if (app->reader.errors > 0)
        plat_report(PLAT_FAILED, problems.data);
    buf_free(&problems);
    return app;
}

/*
 * Brings everything up; -1 with e. Lock and port come first: a second process must
 * change nothing. What arrives while the journal is loaded waits in the socket.
 */
static int
loop_start(struct app *app, struct err *e)
{
    const struct config *c = &app->config;
    struct backlog *b = &app->backlog;
    struct journal *j = &app->journal;
    int dead;

    /* A service of Windows has no standard output, and must leave its lines somewhere. */
    if (log_start((enum log_level)c->log_level,
            c->file_logging || fileno(stdout) < 0 ? c->log_directory : NULL, e) != 0) {
        err_set(e, "Butler.logDirectory: %s", e->text);
        return -1;
    }
    log_line(LOG_INFO, "butler_webhook " VERSION " starting with %s", app->reader.file);
    for (const struct problem *p = app->reader.problems; p; p = p->next)
        log_line(LOG_WARN, "%s:%d:%d: %s", app->reader.file, p->line, p->column, p->text);
    if (journal_open(j, c, false, e) != 0 || listen_open(&app->listener, c, e) != 0)
        return -1;
    plat_catch_stop(loop_hung); /* until here, also in a look-up that hangs, a stop just ends */
    backlog_init(b, c, j, &app->http);
    app->listener.backlog = b;
    app->heartbeat = (struct peer){.http = &app->http, .webhook = &c->heartbeat};
    if (c->heartbeat.url.tls)
        tls_init(&app->heartbeat);
    if (b->webhooks == 0)
        log_line(LOG_WARN, "no webhook is configured: nothing will be called");
    if (!j->folder) {
        log_line(LOG_WARN,
            "butlerWebhook.stateDirectory is '': alerts that wait are lost when the program ends");
        return 0;
    }
    backlog_load(b, false);
    dead = plat_state_open(state_path(j->folder, LETTER_FILES[1]).text, O_RDONLY);
    log_line(LOG_INFO, "state directory %s: %zu alert%s wait%s, %lld bytes of dead letters",
        j->folder, b->waiting, b->waiting == 1 ? "" : "s", b->waiting == 1 ? "s" : "",
        dead < 0 ? 0 : (long long)plat_file_len(dead));
    plat_file_close(dead);
    return 0;
}

/*
 * Logs what the stop leaves undone and no journal holds: whole, as long as there is
 * time; the others are only counted.
 */
static void
loop_log_lost(struct app *app, int64_t until_ms)
{
    for (struct payload *p = app->backlog.oldest; p; p = p->newer)
        for (size_t i = 0; i < p->targets; i++) {
            if (p->delivery[i].state == DELIVERY_ENDED || p->number <= app->backlog.safe_number)
                continue;
            app->lost++;
            if (plat_now_ms() < until_ms)
                log_line(LOG_ERROR,
                    "alert %llu lost for %s: stopped before it was delivered; alert: %s",
                    (unsigned long long)p->number, p->delivery[i].webhook->config->name,
                    p->json.data);
        }
}

/*
 * Ends well within five seconds of began_ms: reads the socket empty, journals what came,
 * begins what is due until STOP_BEGIN_MS, gives calls until STOP_CALLS_MS, and syncs
 * meanwhile. Returns 0; if a disk or the log hangs the process ends with 1.
 */
static int
loop_stop(struct app *app, int64_t began_ms)
{
    struct backlog *b = &app->backlog;
    struct listener *l = &app->listener;
    struct journal *j = &app->journal;
    int64_t end_ms = began_ms + STOP_DISK_MS, until_ms = 0, now_ms;
    const unsigned long long *n = l->count;
    struct err text;

    b->stopping = true;
    do
        loop_round(app, 0);
    while (l->more && plat_now_ms() < began_ms + 1000);
    listen_receive(l, plat_now_ms(), true);
    plat_close(l->sock);
    l->sock = -1;
    while (plat_now_ms() < began_ms + STOP_BEGIN_MS && /* what is due is still sent */
        (l->unsorted > 0 || app->http.busy > app->beats ||
            (b->dead.count > 0 && !j->letters_failed)))
        until_ms = loop_round(app, until_ms);
    b->ended = true; /* nothing begins any more; what is under way may end */
    if (l->unsorted > 0)
        log_line(LOG_ERROR, "%llu datagrams lost: stopped before they were looked at", l->unsorted);
    l->unsorted = 0;
    j->retry_ms = j->failed ? 0 : INT64_MAX; /* a journal.new counts only if the journal failed */
    j->sync_all = true;
    do { /* until all is synced, after a last try to write what has failed, and calls have ended */
        until_ms = loop_round(app, until_ms);
        now_ms = plat_now_ms();
    } while ((now_ms < end_ms && j->asked) ||
        (now_ms < began_ms + STOP_CALLS_MS &&
            (app->http.busy > app->beats || (b->batch > 0 && !j->letters_failed))));
    app->metrics_ms = 0; /* once more */
    do
        until_ms = loop_round(app, until_ms);
    while (j->asked && plat_now_ms() < end_ms);
    loop_log_lost(app, end_ms);
    listen_log_counts(l, began_ms, true);
    log_report(plat_now_ms() + MINUTE_MS); /* what was held back, too */
    the_log.last = true;
    log_line(LOG_INFO,
        "no alerts: %llu ignored, %llu malformed, %llu unknown, %llu duplicates, %llu rate "
        "limited, %llu refused, %u dropped, %llu unmatched",
        n[LISTEN_IGNORED], n[LISTEN_MALFORMED], n[LISTEN_UNKNOWN], n[LISTEN_DUPLICATE],
        n[LISTEN_HELD_BACK], n[LISTEN_REFUSED] + n[LISTEN_OVERSIZE] + n[LISTEN_OVER_RATE],
        (unsigned)l->drops, n[LISTEN_UNMATCHED]);
    err_set(&text, "stopped: %s", loop_counts(app).text);
    log_line(LOG_INFO, "%s", text.text);
    plat_report(PLAT_STOPPED, text.text);
    if (!log_stop(began_ms + STOP_END_MS) || j->asked)
        loop_hung(0);
    return 0;
}

/* Runs until told to stop. Returns the exit code: 0, 1 (cannot start), 2 (configuration). */
static int
loop_run(const char *file)
{
    struct app *app = loop_load(file, false, false);
    int64_t until_ms = 0;
    struct err e;

    if (app->reader.errors > 0)
        return 2; /* loop_load has told why */
    if (app->config.disabled_by) {
        err_set(&e, "disabled by %s in %s: nothing to do", app->config.disabled_by, file);
        printf("butler_webhook: %s\n", e.text);
        plat_report(PLAT_STOPPED, e.text);
        return 0;
    }
    if (loop_start(app, &e) != 0) {
        log_line(LOG_ERROR, "%s", e.text);
        log_stop(plat_now_ms() + STOP_LOG_MS);
        fprintf(stderr, "butler_webhook: %s\n", e.text);
        fflush(stderr);
        plat_report(PLAT_FAILED, e.text);
        plat_exit_now(1);
    }
    err_set(&e, "butler_webhook " VERSION " started with %s", file);
    plat_report(PLAT_RUNNING, e.text);
    while (!plat.reason)
        until_ms = loop_round(app, until_ms);
    log_line(LOG_INFO, "stopping: %s received", plat.reason);
    return loop_stop(app, plat.stop_ms);
}

/* ==== 15. Command line ======================================================
 *
 * The commands that look at a configuration or at the state directory without running
 * the service, their table, and main.
 */

/* --check: reports every problem, prints what would be listened to and called. */
static int
cli_check(struct app *app)
{
    const struct config *c = &app->config;
    int errors = app->reader.errors, warnings = app->reader.warnings;
    char ca_file[1024], subject[200] = "?";

    printf("configuration %s%s: %d error%s, %d warning%s\n", app->reader.file,
        errors ? "" : " is valid", errors, errors == 1 ? "" : "s", warnings,
        warnings == 1 ? "" : "s");
    if (errors > 0)
        return 2;
    if (c->disabled_by)
        printf("disabled by %s: the program would end at once\n", c->disabled_by);
    printf("listens on %s (UDP)%s\n", c->listens_on, c->is_local ? ", from this machine only" : "");
    printf("rate limit: failure %lld s, aborted %lld s; duplicates: ",
        (long long)c->rate_limit_s[ALERT_FAILURE], (long long)c->rate_limit_s[ALERT_ABORTED]);
    printf(c->dedup_enable ? "ignored for %lld min\n" : "sent\n", (long long)c->dedup_minutes);
    if (c->state_directory)
        printf("keeps alerts in %s, at most %lld MB, for %lld h\n", c->state_directory,
            (long long)c->max_state_mb, (long long)c->max_age_hours);
    else
        printf("keeps alerts in memory only: butlerWebhook.stateDirectory is ''\n");
    printf("a call may take %lld s; calls to one webhook at a time: %lld\n",
        (long long)c->timeout_s, (long long)c->max_concurrent);
    if (c->heartbeat.url.host)
        printf("heartbeat: %s every %lld s\n", c->heartbeat.url.shown, (long long)c->heartbeat_s);
    if (app->reader.ours > 0 && app->reader.is_shared)
        printf("%d keys here are refused by Butler itself: give Butler a file of its own\n",
            app->reader.ours);
    if (c->webhooks == 0)
        printf("no webhook is configured: nothing would be called\n");
    for (const struct webhook_config *w = c->webhook; w < c->webhook + c->webhooks; w++) {
        printf("%s %-3zu  ", KINDS[w->kind].name, w->place + 1);
        if (!w->url.host) { /* a mistake while the program is disabled */
            printf("not valid, see above\n");
            continue;
        }
        snprintf(ca_file, sizeof ca_file, "CA file %s (%d certificate%s)",
            w->cert_ca ? w->cert_ca : "", w->ca_count, w->ca_count == 1 ? "" : "s");
        printf("%-4s  %-40s  %-12s%s%s  %s\n", METHODS[w->method], w->url.shown,
            !w->url.tls                   ? "none (http)"
                : !w->reject_unauthorized ? "NOT CHECKED"
                : w->cert_enable          ? ca_file
                                          : "public roots",
            w->proxy ? "  through " : "", w->proxy ? w->proxy->shown : "",
            log_text(slice_of(w->description)).text);
        if (w->client_crt) {
            const mbedtls_x509_time *until = &w->client_crt->valid_to;
            mbedtls_x509_dn_gets(subject, sizeof subject, &w->client_crt->subject);
            printf("             shows \"%s\", valid until %04d-%02d-%02d\n",
                log_text(slice_of(subject)).text, until->year, until->mon, until->day);
        }
    }
    return 0;
}

/* Prints how the test call of owner, a webhook, went, and counts it if it said 2xx. */
static void
cli_print_result(void *owner, const struct http_result *res)
{
    struct webhook *w = owner;
    bool ok = webhook_judge(w->config, res) == VERDICT_DELIVERED;

    w->backlog->delivered += ok;
    printf("%-30s  %-6s  ", w->config->name, ok ? "ok" : "FAILED");
    printf(res->end == HTTP_ANSWERED ? "%6d" : "     -", res->status);
    printf("  %6lld  %s\n", (long long)res->ms, w->config->url.shown);
    if (!ok)
        printf("    %s%s%s\n", res->reason.text, res->hint.text[0] ? "\n    " : "", res->hint.text);
    fflush(stdout);
}

/* --test: calls each webhook once, side by side; prints a line as each ends. */
static int
cli_test(struct app *app)
{
    struct backlog *b = &app->backlog;
    static struct buf json[ALERT_KINDS]; /* as long as the calls */
    char host[256] = "";

    backlog_init(b, &app->config, &app->journal, &app->http);
    gethostname(host, sizeof host - 1);
    for (char *p = host; *p; p++)
        *p = (char)(*p & 0x80 ? '?' : *p); /* Windows: of a code page that nobody knows */
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        alert_add_test((enum alert_kind)kind, host, &json[kind]);
    printf("%-30s  %-6s  %6s  %6s  %s\n", "webhook", "result", "status", "ms", "URL");
    for (size_t i = 0; i < b->webhooks; i++) {
        struct webhook *w = &b->webhook[i];
        enum alert_kind kind = w->config->kind;
        struct http_request request = {
            .json = slice_of(json[kind].data), .is_test = true, .accepted_ms = plat_now_ms()};
        snprintf(request.id, sizeof request.id, "msg_%032llx_%c_%.8s",
            (unsigned long long)plat_wall_ms(), kind == ALERT_FAILURE ? 'f' : 'a', w->config->key);
        call_begin(&w->peer, &request, w, plat_now_ms());
    }
    while (app->http.busy > 0) {
        int64_t now_ms = plat_now_ms(), until_ms = now_ms + WAIT_MAX_MS;
        app->poll.count = 0;
        http_poll_add(&app->http, &app->poll, now_ms, &until_ms);
        plat_poll(&app->poll, until_ms > now_ms ? until_ms - now_ms : 0);
        http_step(&app->http, &app->poll, cli_print_result);
    }
    return b->delivered == b->webhooks ? 0 : 1;
}

/*
 * Prints a line of JSON about what waits or is dead, if it is whole: as a row of a table,
 * or for a program, as it is; then arg is the count of those before.
 */
static void
cli_print_entry(struct slice line, void *arg)
{
    size_t *count = arg;
    struct webhook_config webhook;
    struct alert alert = {0};
    cJSON *entry = journal_read_letter(line, &webhook, &alert);
    const cJSON *attempts = cJSON_GetObjectItemCaseSensitive(entry, "attempts");
    bool is_dead = *json_text(entry, "deadAt");
    struct buf row = {0}, text = {0};

    if (the_app->json && entry) {
        buf_add_text(&text, (*count)++ > 0 ? ",\n" : "\n");
        json_print(entry, &text);
    } else if (entry) {
        buf_format(&row, "%s  %3d  %s  %s: %s", json_text(entry, is_dead ? "deadAt" : "acceptedAt"),
            attempts ? attempts->valueint : 0, json_text(entry, "webhook"),
            alert.field[FIELD_TASK_NAME], json_text(entry, is_dead ? "reason" : "lastError"));
        log_add_clean(&text, (struct slice){row.data, row.len});
        buf_add_char(&text, '\n');
    }
    fwrite(text.data ? text.data : "", 1, text.len, stdout);
    cJSON_Delete(entry);
    buf_free(&row);
    buf_free(&text);
}

/* --pending: lists what waits, what is dead, and what --replay has handed over. */
static int
cli_pending(struct app *app)
{
    bool json = app->json;
    struct backlog *b = &app->backlog;
    size_t printed[3] = {0};
    struct buf line = {0};

    if (journal_open(&app->journal, &app->config, true, &app->error) != 0)
        return 1;
    backlog_init(b, &app->config, &app->journal, NULL);
    backlog_load(b, true);
    printf(json ? "{\"waiting\":[" : "%zu waiting: accepted, attempts, webhook, task, last error\n",
        b->waiting);
    for (const struct payload *p = b->oldest; p; p = p->newer)
        for (size_t i = 0; i < p->targets; i++)
            if (p->delivery[i].state != DELIVERY_ENDED) {
                line.len = 0;
                delivery_print(&p->delivery[i], &line);
                cli_print_entry((struct slice){line.data, line.len}, &printed[0]);
            }
    fputs(
        json ? "],\n\"dead\":[" : "dead letters: when, attempts, webhook, task, reason\n", stdout);
    journal_each_letter(&app->journal, LETTER_FILES, cli_print_entry, &printed[1], &app->error);
    fputs(json ? "],\n\"handedOver\":[" : "handed over by --replay, to be sent again:\n", stdout);
    journal_each_letter(&app->journal, REPLAY_FILES, cli_print_entry, &printed[2], &app->error);
    fputs(json ? "]}\n" : "", stdout);
    buf_free(&line);
    return *app->error.text != '\0'; /* a file of dead letters cannot be read */
}

/* --replay: hands the dead letters to the service, which sends them again. */
static int
cli_replay(struct app *app)
{
    struct journal *j = &app->journal;
    int count = -1;

    if (!app->config.state_directory)
        err_set(&app->error, "butlerWebhook.stateDirectory is '': nothing was kept");
    else if (journal_open(j, &app->config, true, &app->error) == 0)
        count = journal_hand_over(j, &app->error);
    if (count == 0)
        puts("no dead letters");
    else if (count > 0)
        printf("%d dead letter%s handed over: the service sends them within seconds if it runs, "
               "else at its next start\n",
            count, count == 1 ? "" : "s");
    return count < 0;
}

/*
 * --install. The service runs under an account of its own, which gets to read the
 * configuration and the files that were read for it, and to write the folders.
 */
static int
cli_install(struct app *app)
{
    const struct config *c = &app->config;
    const struct buf *files = &app->reader.files;
    static struct buf metrics; /* as long as the process, as the next */
    static const char **path;
    size_t n = 1, readable;

    path = x_calloc(files->len + 5, sizeof *path); /* more than enough */
    path[0] = app->reader.file;
    for (size_t at = 0; at < files->len; at += strlen(files->data + at) + 1)
        path[n++] = files->data + at;
    readable = n;
    if (c->state_directory)
        path[n++] = c->state_directory;
    path[n++] = c->log_directory;
    if (c->metrics_file) {
        buf_add(&metrics, c->metrics_file, plat_path_folder_len(c->metrics_file, "."));
        buf_add_text(&metrics, ".");
        path[n] = metrics.data;
    }
    return plat_service_install(path, readable);
}

static const char CLI_HELP[] =
    "butler_webhook calls webhooks when Qlik Sense reload tasks fail or are aborted\n\n"
    "  butler_webhook CONFIG                   run until a signal, Ctrl-C or service stop\n"
    "  butler_webhook --check CONFIG           report every problem, show what would be called\n"
    "  butler_webhook --test CONFIG            call each webhook once with a test alert\n"
    "  butler_webhook --pending CONFIG         list what waits and what is dead\n"
    "  butler_webhook --pending --json CONFIG  the same for programs\n"
    "  butler_webhook --replay CONFIG          send the dead letters again\n"
    "  butler_webhook --install CONFIG         Windows: register the service, ready its folders\n"
    "  butler_webhook --uninstall              Windows: stop and remove the service\n"
    "  butler_webhook --version                print the version\n"
    "  butler_webhook --help                   print this\n"
    "  butler_webhook --licenses               print the licences of everything inside\n\n"
    "CONFIG is Butler's YAML file. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.\n";

static const struct {
    const char *options;
    bool is_strict;              /* a mistake counts although the program is disabled */
    int (*run)(struct app *app); /* NULL: without CONFIG, it prints text */
    const char *text;
} CLI[] = {
    {"--check", false, cli_check, NULL},
    {"--test", true, cli_test, NULL},
    {"--pending", false, cli_pending, NULL},
    {"--pending --json", false, cli_pending, NULL},
    {"--replay", true, cli_replay, NULL},
    {"--install", true, cli_install, NULL},
    {"--version", false, NULL, "butler_webhook " VERSION ", root certificates of " ROOTS_DATE "\n"},
    {"--help", false, NULL, CLI_HELP},
    {"--licenses", false, NULL, notices_txt},
};

/* Runs the command that options names, with what else was given: one file, or none. */
static int
cli_run(const char *options, int files, const char *file)
{
    if (files == 1 && !*options)
        return plat_run(loop_run, file);
    if (files == 0 && strcmp(options, "--uninstall") == 0)
        return plat_service_uninstall();
    for (size_t i = 0; i < sizeof CLI / sizeof *CLI; i++) {
        if (strcmp(options, CLI[i].options) != 0 || files != (CLI[i].run != NULL))
            continue;
        if (CLI[i].run) {
            struct app *app = loop_load(file, CLI[i].is_strict, true);
            app->json = strstr(options, "--json") != NULL;
            if (app->reader.errors > 0 && CLI[i].run != cli_check)
                return 2;
            int result = CLI[i].run(app);
            if (*app->error.text)
                fprintf(stderr, "butler_webhook: %s\n", app->error.text);
            return result;
        }
        fputs(CLI[i].text, stdout);
        return 0;
    }
    fprintf(stderr, "butler_webhook: wrong usage%s%s; see butler_webhook --help\n",
        *options ? ": " : "", options);
    return 2;
}

/* Options come first; what follows them is the configuration. */
int
main(int argc, char **argv)
{
    char options[64] = "";
    int i, result;

    if (plat_init(&argc, &argv) != 0)
        x_die("butler_webhook: cannot create a socket on this machine\n");
    cJSON_InitHooks(&(cJSON_Hooks){x_malloc, free}); /* so that none of its functions fails */
    mbedtls_platform_set_calloc_free(x_calloc, free);
    psa_crypto_init(); /* of the TLS library: if it fails each handshake does, and says so */
    for (i = 1; i < argc && argv[i][0] == '-'; i++)
        snprintf(options + strlen(options), sizeof options - strlen(options), "%s%s",
            i > 1 ? " " : "", argv[i]);
    result = cli_run(options, argc - i, argv[argc - 1]);
    /* Windows sets EINVAL where nobody reads the output any more, as with `| head`. */
    if ((fflush(stdout) == 0 && !ferror(stdout)) || errno == EPIPE || errno == EINVAL)
        plat_exit(result);
    fputs("butler_webhook: the output cannot be written\n", stderr);
    plat_exit(result ? result : 1);
}
