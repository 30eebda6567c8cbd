/* SPDX-License-Identifier: MIT
 *
 * Faults for the test builds: a disk that is full, broken, slow or hangs, clocks that jump, no
 * descriptors, names that are not found. Linked with -Wl,--wrap=... (WRAPPED in test.mk). It does
 * nothing unless the environment variable BUTLER_SHIM names a file, which is mapped shared and
 * holds struct shim; the test writes it at any time. 0: no fault. A delay ends at once when its
 * field becomes 0, so a large one is a disk that hangs.
 *
 * Faults of the disk strike paths that contain ".state", and descriptors that were opened by such a
 * path; log_delay_ms those of paths that contain ".log".
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
#include <time.h>
#include <unistd.h>

#define FDS_MAX 65536 /* descriptors that are told apart */

/* faults_base.py reads the names here. */
struct shim {
    _Atomic int64_t write_errno;    /* write fails with this */
    _Atomic int64_t write_room;     /* > 0: so many more bytes, then ENOSPC; -1: ENOSPC now */
    _Atomic int64_t write_delay_ms; /* writes take so much longer */
    _Atomic int64_t log_delay_ms;   /* those to a log file, too */
    _Atomic int64_t sync_errno;     /* fsync and fdatasync fail with this */
    _Atomic int64_t sync_delay_ms;  /* they take so much longer */
    _Atomic int64_t open_errno;     /* open fails with this */
    _Atomic int64_t rename_errno;   /* rename fails with this */
    _Atomic int64_t truncate_errno; /* ftruncate fails with this */
    _Atomic int64_t read_errno;     /* read and pread fail with this */
    _Atomic int64_t read_from;      /* reading these bytes of a file fails with EIO ... */
    _Atomic int64_t read_to;        /* ... up to here: a part that the disk cannot read */
    _Atomic int64_t wall_offset_ms; /* added to CLOCK_REALTIME, whole seconds */
    _Atomic int64_t boot_offset_ms; /* added to CLOCK_BOOTTIME, whole seconds */
    _Atomic int64_t socket_errno;   /* socket fails with this */
    _Atomic int64_t send_errno;     /* send to another address fails with this */
    _Atomic int64_t resolve_fail;   /* getaddrinfo of a name fails: 1: EAI_AGAIN, else this errno */
    _Atomic int64_t resolve_delay_ms; /* it takes so much longer */
    /* What is counted, to be read. */
    _Atomic int64_t hits;         /* how often a fault was made */
    _Atomic int64_t syncs;        /* files that were synced */
    _Atomic int64_t folder_syncs; /* directories that were synced */
    _Atomic int64_t synced_len;   /* length of the file that was synced last, when that began */
    _Atomic int64_t renames;      /* files that were renamed */
};

static struct shim no_faults;
static struct shim *shim = &no_faults; /* set before main */
static atomic_uchar kinds[FDS_MAX];    /* of each descriptor; enum kind */
enum kind { OTHER_FILE, STATE_FILE, LOG_FILE };

/* Maps the file that BUTLER_SHIM names. Without it the test could not tell what it tests: end then. */
__attribute__((constructor)) static void
shim_start(void)
{
    const char *path = getenv("BUTLER_SHIM");
    int fd;

    if (!path)
        return;
    fd = open(path, O_RDWR | O_CLOEXEC);
    shim = mmap(NULL, sizeof *shim, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shim == MAP_FAILED)
        abort();
    close(fd);
}

/* Fails with the number in field, if there is one. */
static bool
shim_fails(const _Atomic int64_t *field)
{
    int number = (int)*field;

    if (number == 0)
        return false;
    shim->hits++;
    errno = number;
    return true;
}

int __real_clock_gettime(clockid_t clock, struct timespec *t);

/* Waits as long as a field says. */
static void
shim_delay(const _Atomic int64_t *field)
{
    static const struct timespec tick = {0, 1000000};
    struct timespec begin, now;

    if (*field == 0)
        return;
    shim->hits++;
    __real_clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        nanosleep(&tick, NULL);
        __real_clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 < *field);
}

static bool
shim_is_state(const char *path)
{
    return strstr(path, ".state") != NULL;
}

static bool
shim_is_fd(int fd, enum kind kind)
{
    return fd >= 0 && fd < FDS_MAX && kinds[fd] == kind;
}

static void
shim_note_fd(int fd, enum kind kind)
{
    if (fd >= 0 && fd < FDS_MAX)
        kinds[fd] = (unsigned char)kind;
}

/* How many of len bytes the disk still takes: takes them off the room. 0: none (errno). */
static size_t
shim_take_room(size_t len)
{
    int64_t room = shim->write_room;
    size_t n = room < 0 ? 0 : (uint64_t)room < len ? (size_t)room : len;

    if (room == 0)
        return len;
    /* Unless the test has changed it meanwhile. */
    atomic_compare_exchange_strong(
        &shim->write_room, &room, room > (int64_t)n ? room - (int64_t)n : -1);
    shim->hits += n < len;
    errno = ENOSPC;
    return n;
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
        shim->folder_syncs++;
        return 0;
    }
    shim->synced_len = st.st_size;
    shim->syncs++;
    return 0;
}

/* How many of len bytes of a file can be read from an offset; -1: the first cannot. */
static ssize_t
shim_readable(int fd, size_t len, off_t at)
{
    int64_t from = shim->read_from, to = shim->read_to;

    if (!shim_is_fd(fd, STATE_FILE))
        return (ssize_t)len;
    if (shim_fails(&shim->read_errno))
        return -1;
    if (at >= to || at + (int64_t)len <= from)
        return (ssize_t)len;
    shim->hits++;
    errno = EIO;
    return at >= from ? -1 : (ssize_t)(from - at);
}

/* Begins what is called in place of a function of the C library, which is __real_... here. */
#define WRAP(type, name, ...)                                                                      \
    type __real_##name(__VA_ARGS__);                                                               \
    type __wrap_##name(__VA_ARGS__);                                                               \
    type __wrap_##name(__VA_ARGS__)

WRAP(int, open, const char *path, int flags, ...)
{
    enum kind kind = shim_is_state(path) ? STATE_FILE
        : strstr(path, ".log")           ? LOG_FILE
                                         : OTHER_FILE;
    unsigned mode = 0;
    va_list args;
    int fd;

    va_start(args, flags);
    if (flags & O_CREAT)
        mode = va_arg(args, unsigned);
    va_end(args);
    if (kind == STATE_FILE && shim_fails(&shim->open_errno))
        return -1;
    fd = __real_open(path, flags, mode);
    shim_note_fd(fd, kind);
    return fd;
}

WRAP(int, close, int fd)
{
    shim_note_fd(fd, OTHER_FILE);
    return __real_close(fd);
}

WRAP(ssize_t, read, int fd, void *out, size_t len)
{
    ssize_t n = shim_readable(fd, len, lseek(fd, 0, SEEK_CUR));

    return n < 0 ? -1 : __real_read(fd, out, (size_t)n);
}

WRAP(ssize_t, pread, int fd, void *out, size_t len, off_t at)
{
    ssize_t n = shim_readable(fd, len, at);

    return n < 0 ? -1 : __real_pread(fd, out, (size_t)n, at);
}

WRAP(ssize_t, write, int fd, const void *data, size_t len)
{
    if (shim_is_fd(fd, LOG_FILE))
        shim_delay(&shim->log_delay_ms);
    if (shim_is_fd(fd, STATE_FILE)) {
        shim_delay(&shim->write_delay_ms);
        if (shim_fails(&shim->write_errno))
            return -1;
        len = shim_take_room(len);
        if (len == 0)
            return -1;
    }
    return __real_write(fd, data, len);
}

WRAP(int, fdatasync, int fd)
{
    return shim_sync(fd, __real_fdatasync);
}

WRAP(int, fsync, int fd)
{
    return shim_sync(fd, __real_fsync);
}

WRAP(int, ftruncate, int fd, off_t len)
{
    if (shim_is_fd(fd, STATE_FILE) && shim_fails(&shim->truncate_errno))
        return -1;
    return __real_ftruncate(fd, len);
}

WRAP(int, rename, const char *from, const char *to)
{
    if (shim_is_state(to) && shim_fails(&shim->rename_errno))
        return -1;
    if (__real_rename(from, to) != 0)
        return -1;
    shim->renames += shim_is_state(to);
    return 0;
}

WRAP(int, clock_gettime, clockid_t clock, struct timespec *t)
{
    int failed = __real_clock_gettime(clock, t);

    if (clock == CLOCK_REALTIME)
        t->tv_sec += shim->wall_offset_ms / 1000;
    if (clock == CLOCK_BOOTTIME)
        t->tv_sec += shim->boot_offset_ms / 1000;
    return failed;
}

WRAP(int, socket, int family, int type, int protocol)
{
    return shim_fails(&shim->socket_errno) ? -1 : __real_socket(family, type, protocol);
}

WRAP(ssize_t, send, int fd, const void *data, size_t len, int flags)
{
    int family = 0;
    socklen_t size = sizeof family;

    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size);
    return family == AF_INET && shim_fails(&shim->send_errno) ? -1
                                                              : __real_send(fd, data, len, flags);
}

WRAP(int, getaddrinfo, const char *node, const char *service, const struct addrinfo *hints,
    struct addrinfo **list)
{
    if (node && !(hints && hints->ai_flags & AI_NUMERICHOST)) { /* the rest asks nobody */
        shim_delay(&shim->resolve_delay_ms);
        if (shim_fails(&shim->resolve_fail))
            return errno == 1 ? EAI_AGAIN : EAI_SYSTEM;
    }
    return __real_getaddrinfo(node, service, hints, list);
}

/* What glibc makes of these with _FILE_OFFSET_BITS 64. */
#define SAME_AS(name) __attribute__((alias("__wrap_" #name)))
int __wrap_open64(const char *path, int flags, ...) SAME_AS(open);
ssize_t __wrap_pread64(int fd, void *out, size_t len, off_t at) SAME_AS(pread);
int __wrap_ftruncate64(int fd, off_t len) SAME_AS(ftruncate);
