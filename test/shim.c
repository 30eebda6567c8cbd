/* SPDX-License-Identifier: MIT
 *
 * Faults for the test builds: a disk that is full, broken, slow or hangs, clocks that jump, no
 * descriptors, names that are not found. Linked with -Wl,--wrap=... (WRAPPED in test.mk). It does
 * nothing unless the environment variable BUTLER_SHIM names a file of at least SHIM_BYTES, which is
 * mapped shared and holds struct shim; the test writes it at any time. 0: no fault. A delay ends at
 * once when its field becomes 0, so a large one is a disk that hangs.
 *
 * Faults of the disk strike paths that contain ".state", and descriptors that were opened by such a
 * path; log_delay_ms those of paths that end in ".log".
 */

#define _GNU_SOURCE /* CLOCK_BOOTTIME */

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define SHIM_BYTES 4096
#define FDS_MAX 65536 /* descriptors that are told apart */

/* Shim.FIELDS of faults_base.py, in this order; what the shim counts is there to be read. */
struct shim {
    _Atomic int64_t write_errno;    /* write fails with this */
    _Atomic int64_t write_room;     /* > 0: so many more bytes, then ENOSPC; -1: ENOSPC now */
    _Atomic int64_t sync_errno;     /* fsync and fdatasync fail with this */
    _Atomic int64_t sync_delay_ms;  /* they take so much longer */
    _Atomic int64_t open_errno;     /* open fails with this */
    _Atomic int64_t rename_errno;   /* rename fails with this */
    _Atomic int64_t read_errno;     /* read and pread fail with this */
    _Atomic int64_t wall_offset_ms; /* added to CLOCK_REALTIME, whole seconds */
    _Atomic int64_t boot_offset_ms; /* added to CLOCK_BOOTTIME, whole seconds */
    _Atomic int64_t socket_errno;   /* socket fails with this */
    _Atomic int64_t truncate_errno; /* ftruncate fails with this */
    _Atomic int64_t resolve_fail;   /* getaddrinfo of a name fails: 1: EAI_AGAIN, else this errno */
    _Atomic int64_t hits;           /* how often a fault was made */
    _Atomic int64_t write_delay_ms; /* writes take so much longer */
    _Atomic int64_t letters_errno;  /* open of a file of dead letters fails with this */
    _Atomic int64_t read_from;      /* reading these bytes of a file fails with EIO ... */
    _Atomic int64_t read_to;        /* ... up to here: a part that the disk cannot read */
    _Atomic int64_t syncs;          /* files that were synced */
    _Atomic int64_t folder_syncs;   /* directories that were synced */
    _Atomic int64_t synced_len;     /* length of the file that was synced last, when that began */
    _Atomic int64_t renames;        /* files that were renamed */
    _Atomic int64_t log_delay_ms;   /* writes to a log file take so much longer */
    _Atomic int64_t send_errno;     /* send to another address fails with this */
    _Atomic int64_t resolve_delay_ms; /* getaddrinfo of a name takes so much longer */
};

enum kind { OTHER_FILE, STATE_FILE, LOG_FILE };

/* The function of the C library, and what is called in its place. */
#define WRAP(type, name, ...)                                                                      \
    type __real_##name(__VA_ARGS__);                                                               \
    type __wrap_##name(__VA_ARGS__)
WRAP(int, open, const char *path, int flags, ...);
WRAP(ssize_t, read, int fd, void *out, size_t len);
WRAP(ssize_t, pread, int fd, void *out, size_t len, off_t at);
WRAP(ssize_t, write, int fd, const void *data, size_t len);
WRAP(int, fdatasync, int fd);
WRAP(int, fsync, int fd);
WRAP(int, ftruncate, int fd, off_t len);
WRAP(int, rename, const char *from, const char *to);
WRAP(int, close, int fd);
WRAP(int, clock_gettime, clockid_t clock, struct timespec *t);
WRAP(int, socket, int family, int type, int protocol);
WRAP(ssize_t, send, int fd, const void *data, size_t len, int flags);
WRAP(int, getaddrinfo, const char *node, const char *service, const struct addrinfo *hints,
    struct addrinfo **list);

/* What glibc makes of these with _FILE_OFFSET_BITS 64. */
#define SAME_AS(name) __attribute__((alias("__wrap_" #name)))
int __wrap_open64(const char *path, int flags, ...) SAME_AS(open);
ssize_t __wrap_pread64(int fd, void *out, size_t len, off_t at) SAME_AS(pread);
int __wrap_ftruncate64(int fd, off_t len) SAME_AS(ftruncate);

static struct shim *shim;           /* NULL: no faults; set before main */
static atomic_uchar kinds[FDS_MAX]; /* enum kind of each descriptor */

/* Maps the file that BUTLER_SHIM names. Without it the test could not tell what it tests: end then. */
__attribute__((constructor)) static void
shim_start(void)
{
    static const char text[] = "BUTLER_SHIM: cannot map that file\n";
    const char *path = getenv("BUTLER_SHIM");
    struct stat st;
    void *at = MAP_FAILED;
    int fd;

    if (!path)
        return;
    fd = __real_open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size >= SHIM_BYTES)
        at = mmap(NULL, SHIM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        (void)!__real_write(STDERR_FILENO, text, sizeof text - 1);
        _exit(1);
    }
    __real_close(fd);
    shim = at;
}

/* Fails with the number in field, if there is one. */
static bool
shim_fails(_Atomic int64_t *field)
{
    int64_t number = atomic_load(field);

    if (number == 0)
        return false;
    atomic_fetch_add(&shim->hits, 1);
    errno = (int)number;
    return true;
}

static bool
shim_is_state(const char *path)
{
    return shim && strstr(path, ".state");
}

static enum kind
shim_kind(const char *path)
{
    size_t len = strlen(path);

    if (shim_is_state(path))
        return STATE_FILE;
    return len >= 4 && strcmp(path + len - 4, ".log") == 0 ? LOG_FILE : OTHER_FILE;
}

static bool
shim_is_fd(int fd, enum kind kind)
{
    return shim && fd >= 0 && fd < FDS_MAX && atomic_load(&kinds[fd]) == kind;
}

static int64_t
shim_now_ms(void)
{
    struct timespec t;

    __real_clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* How many of len bytes the disk still takes: takes them off the room. 0: none (errno). */
static size_t
shim_take_room(size_t len)
{
    int64_t room = atomic_load(&shim->write_room), left;
    size_t n;

    do {
        if (room == 0)
            return len;
        n = room < 0 ? 0 : (uint64_t)room < len ? (size_t)room : len;
        left = room - (int64_t)n;
    } while (!atomic_compare_exchange_weak(&shim->write_room, &room, left > 0 ? left : -1));
    if (n < len)
        atomic_fetch_add(&shim->hits, 1);
    errno = ENOSPC;
    return n;
}

/* Waits as long as a field says, whatever signals come. */
static void
shim_delay(const _Atomic int64_t *field)
{
    static const struct timespec tick = {0, 1000000};
    int64_t begin_ms = shim_now_ms();

    if (atomic_load(field) <= 0)
        return;
    atomic_fetch_add(&shim->hits, 1);
    while (shim_now_ms() - begin_ms < atomic_load(field))
        nanosleep(&tick, NULL);
}

/* What fsync and fdatasync suffer and do, by one of them. */
static int
shim_sync(int fd, int (*sync)(int))
{
    struct stat st;

    if (!shim_is_fd(fd, STATE_FILE) || fstat(fd, &st) != 0)
        return sync(fd);
    shim_delay(&shim->sync_delay_ms);
    if (shim_fails(&shim->sync_errno) || sync(fd) != 0)
        return -1;
    if (S_ISDIR(st.st_mode)) {
        atomic_fetch_add(&shim->folder_syncs, 1);
        return 0;
    }
    atomic_store(&shim->synced_len, st.st_size);
    atomic_fetch_add(&shim->syncs, 1);
    return 0;
}

/* How many of len bytes at an offset can be read; -1: the first cannot. */
static ssize_t
shim_readable(size_t len, off_t at)
{
    int64_t from = atomic_load(&shim->read_from), to = atomic_load(&shim->read_to);

    if (shim_fails(&shim->read_errno))
        return -1;
    if (at >= to || at + (int64_t)len <= from)
        return (ssize_t)len;
    atomic_fetch_add(&shim->hits, 1);
    errno = EIO;
    return at >= from ? -1 : (ssize_t)(from - at);
}

int
__wrap_open(const char *path, int flags, ...)
{
    bool state = shim_is_state(path);
    unsigned mode = 0;
    va_list args;
    int fd;

    va_start(args, flags);
    if (flags & O_CREAT)
        mode = va_arg(args, unsigned);
    va_end(args);
    if (state &&
        (shim_fails(&shim->open_errno) ||
            (strstr(path, "/dead-letters") && shim_fails(&shim->letters_errno))))
        return -1;
    fd = __real_open(path, flags, mode);
    if (fd >= 0 && fd < FDS_MAX)
        atomic_store(&kinds[fd], shim_kind(path));
    return fd;
}

int
__wrap_close(int fd)
{
    if (fd >= 0 && fd < FDS_MAX)
        atomic_store(&kinds[fd], OTHER_FILE);
    return __real_close(fd);
}

ssize_t
__wrap_read(int fd, void *out, size_t len)
{
    ssize_t n = (ssize_t)len;

    if (shim_is_fd(fd, STATE_FILE))
        n = shim_readable(len, lseek(fd, 0, SEEK_CUR));
    return n < 0 ? -1 : __real_read(fd, out, (size_t)n);
}

ssize_t
__wrap_pread(int fd, void *out, size_t len, off_t at)
{
    ssize_t n = (ssize_t)len;

    if (shim_is_fd(fd, STATE_FILE))
        n = shim_readable(len, at);
    return n < 0 ? -1 : __real_pread(fd, out, (size_t)n, at);
}

ssize_t
__wrap_write(int fd, const void *data, size_t len)
{
    size_t n = len;

    if (shim_is_fd(fd, LOG_FILE))
        shim_delay(&shim->log_delay_ms);
    if (shim_is_fd(fd, STATE_FILE)) {
        shim_delay(&shim->write_delay_ms);
        if (shim_fails(&shim->write_errno))
            return -1;
        n = shim_take_room(len);
        if (n == 0 && len > 0)
            return -1;
    }
    return __real_write(fd, data, n);
}

int
__wrap_fdatasync(int fd)
{
    return shim_sync(fd, __real_fdatasync);
}

int
__wrap_fsync(int fd)
{
    return shim_sync(fd, __real_fsync);
}

int
__wrap_ftruncate(int fd, off_t len)
{
    if (shim_is_fd(fd, STATE_FILE) && shim_fails(&shim->truncate_errno))
        return -1;
    return __real_ftruncate(fd, len);
}

int
__wrap_rename(const char *from, const char *to)
{
    if ((shim_is_state(from) || shim_is_state(to)) && shim_fails(&shim->rename_errno))
        return -1;
    if (__real_rename(from, to) != 0)
        return -1;
    if (shim_is_state(to))
        atomic_fetch_add(&shim->renames, 1);
    return 0;
}

int
__wrap_clock_gettime(clockid_t clock, struct timespec *t)
{
    int failed = __real_clock_gettime(clock, t);
    int64_t ms = 0;

    if (shim && clock == CLOCK_REALTIME)
        ms = atomic_load(&shim->wall_offset_ms);
    if (shim && clock == CLOCK_BOOTTIME)
        ms = atomic_load(&shim->boot_offset_ms);
    if (failed || ms == 0)
        return failed;
    atomic_fetch_add(&shim->hits, 1);
    t->tv_sec += (time_t)(ms / 1000); /* tests set whole seconds */
    return 0;
}

int
__wrap_socket(int family, int type, int protocol)
{
    if (shim && shim_fails(&shim->socket_errno))
        return -1;
    return __real_socket(family, type, protocol);
}

ssize_t
__wrap_send(int fd, const void *data, size_t len, int flags)
{
    int family = 0;
    socklen_t size = sizeof family;

    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size);
    if (shim && family == AF_INET && shim_fails(&shim->send_errno))
        return -1;
    return __real_send(fd, data, len, flags);
}

int
__wrap_getaddrinfo(
    const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **list)
{
    bool name = node && !(hints && hints->ai_flags & AI_NUMERICHOST); /* the rest asks nobody */

    if (shim && name)
        shim_delay(&shim->resolve_delay_ms);
    if (shim && name && shim_fails(&shim->resolve_fail))
        return errno == 1 ? EAI_AGAIN : EAI_SYSTEM;
    return __real_getaddrinfo(node, service, hints, list);
}
