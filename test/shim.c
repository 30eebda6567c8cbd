/* SPDX-License-Identifier: MIT
 *
 * Faults for the test builds: a full or broken disk, clocks that jump, no more
 * descriptors, names that are not found. It is linked with
 *
 *     -Wl,--wrap=open,--wrap=read,--wrap=pread,--wrap=write,--wrap=fdatasync
 *     -Wl,--wrap=fsync,--wrap=ftruncate,--wrap=rename,--wrap=close
 *     -Wl,--wrap=clock_gettime,--wrap=socket,--wrap=getaddrinfo
 *
 * and does nothing unless the environment variable BUTLER_SHIM names a file of
 * at least SHIM_BYTES. That file is mapped shared; it holds struct shim, which
 * the test writes at any time. All fields are 0 at first: no fault.
 *
 * Faults of the disk strike paths that contain ".state", and descriptors that
 * were opened by such a path.
 */

#define _GNU_SOURCE /* CLOCK_BOOTTIME */

#include <arpa/inet.h>
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

/* The faults; the test writes all but hits. */
struct shim {
    _Atomic int64_t write_errno;    /* write fails with this */
    _Atomic int64_t write_room;     /* > 0: so many more bytes, then ENOSPC; -1: ENOSPC now */
    _Atomic int64_t sync_errno;     /* fsync and fdatasync fail with this */
    _Atomic int64_t sync_delay_ms;  /* they take so much longer */
    _Atomic int64_t open_errno;     /* open fails with this */
    _Atomic int64_t rename_errno;   /* rename fails with this */
    _Atomic int64_t read_errno;     /* read and pread fail with this */
    _Atomic int64_t wall_offset_ms; /* added to CLOCK_REALTIME */
    _Atomic int64_t boot_offset_ms; /* added to CLOCK_BOOTTIME */
    _Atomic int64_t socket_errno;   /* socket fails with this */
    _Atomic int64_t truncate_errno; /* ftruncate fails with this */
    _Atomic int64_t resolve_fail;   /* getaddrinfo of a name fails with EAI_AGAIN */
    _Atomic int64_t hits;           /* how often a fault was made */
    _Atomic int64_t write_delay_ms; /* writes take so much longer */
};

int __real_open(const char *path, int flags, ...);
ssize_t __real_read(int fd, void *out, size_t len);
ssize_t __real_pread(int fd, void *out, size_t len, off_t at);
ssize_t __real_write(int fd, const void *data, size_t len);
int __real_fdatasync(int fd);
int __real_fsync(int fd);
int __real_ftruncate(int fd, off_t len);
int __real_rename(const char *from, const char *to);
int __real_close(int fd);
int __real_clock_gettime(clockid_t clock, struct timespec *t);
int __real_socket(int family, int type, int protocol);
int __real_getaddrinfo(
    const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **list);

int __wrap_open(const char *path, int flags, ...);
ssize_t __wrap_read(int fd, void *out, size_t len);
ssize_t __wrap_pread(int fd, void *out, size_t len, off_t at);
ssize_t __wrap_write(int fd, const void *data, size_t len);
int __wrap_fdatasync(int fd);
int __wrap_fsync(int fd);
int __wrap_ftruncate(int fd, off_t len);
int __wrap_rename(const char *from, const char *to);
int __wrap_close(int fd);
int __wrap_clock_gettime(clockid_t clock, struct timespec *t);
int __wrap_socket(int family, int type, int protocol);
int __wrap_getaddrinfo(
    const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **list);

static struct shim *shim; /* NULL: no faults; set before main */
static atomic_bool of_state[FDS_MAX];

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

static bool
shim_is_state_fd(int fd)
{
    return shim && fd >= 0 && fd < FDS_MAX && atomic_load(&of_state[fd]);
}

/* How many of len bytes the disk still takes: takes them off the room. 0: none. */
static size_t
shim_take_room(size_t len)
{
    int64_t room = atomic_load(&shim->write_room), left;
    size_t n;

    do {
        if (room == 0)
            return len;
        if (room < 0) {
            atomic_fetch_add(&shim->hits, 1);
            return 0;
        }
        n = (uint64_t)room < len ? (size_t)room : len;
        left = room - (int64_t)n;
    } while (!atomic_compare_exchange_weak(&shim->write_room, &room, left > 0 ? left : -1));
    if (n < len)
        atomic_fetch_add(&shim->hits, 1);
    return n;
}

/* Waits as long as a field says. */
static void
shim_delay(const _Atomic int64_t *field)
{
    int64_t ms = atomic_load(field);
    struct timespec delay = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};

    if (ms <= 0)
        return;
    atomic_fetch_add(&shim->hits, 1);
    nanosleep(&delay, NULL);
}

/* What fsync and fdatasync suffer; true: they fail. */
static bool
shim_sync(int fd)
{
    if (!shim_is_state_fd(fd))
        return false;
    shim_delay(&shim->sync_delay_ms);
    return shim_fails(&shim->sync_errno);
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
    if (state && shim_fails(&shim->open_errno))
        return -1;
    fd = __real_open(path, flags, mode);
    if (fd >= 0 && fd < FDS_MAX)
        atomic_store(&of_state[fd], state);
    return fd;
}

int
__wrap_close(int fd)
{
    if (fd >= 0 && fd < FDS_MAX)
        atomic_store(&of_state[fd], false);
    return __real_close(fd);
}

ssize_t
__wrap_read(int fd, void *out, size_t len)
{
    if (shim_is_state_fd(fd) && shim_fails(&shim->read_errno))
        return -1;
    return __real_read(fd, out, len);
}

ssize_t
__wrap_pread(int fd, void *out, size_t len, off_t at)
{
    if (shim_is_state_fd(fd) && shim_fails(&shim->read_errno))
        return -1;
    return __real_pread(fd, out, len, at);
}

ssize_t
__wrap_write(int fd, const void *data, size_t len)
{
    size_t n = len;

    if (shim_is_state_fd(fd)) {
        shim_delay(&shim->write_delay_ms);
        if (shim_fails(&shim->write_errno))
            return -1;
        n = shim_take_room(len);
        if (n == 0 && len > 0) {
            errno = ENOSPC;
            return -1;
        }
    }
    return __real_write(fd, data, n);
}

int
__wrap_fdatasync(int fd)
{
    return shim_sync(fd) ? -1 : __real_fdatasync(fd);
}

int
__wrap_fsync(int fd)
{
    return shim_sync(fd) ? -1 : __real_fsync(fd);
}

int
__wrap_ftruncate(int fd, off_t len)
{
    if (shim_is_state_fd(fd) && shim_fails(&shim->truncate_errno))
        return -1;
    return __real_ftruncate(fd, len);
}

int
__wrap_rename(const char *from, const char *to)
{
    if ((shim_is_state(from) || shim_is_state(to)) && shim_fails(&shim->rename_errno))
        return -1;
    return __real_rename(from, to);
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
    t->tv_sec += (time_t)(ms / 1000);
    t->tv_nsec += (long)(ms % 1000) * 1000000;
    if (t->tv_nsec < 0) {
        t->tv_sec--;
        t->tv_nsec += 1000000000;
    } else if (t->tv_nsec >= 1000000000) {
        t->tv_sec++;
        t->tv_nsec -= 1000000000;
    }
    return 0;
}

int
__wrap_socket(int family, int type, int protocol)
{
    if (shim && shim_fails(&shim->socket_errno))
        return -1;
    return __real_socket(family, type, protocol);
}

int
__wrap_getaddrinfo(
    const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **list)
{
    struct in6_addr address;
    bool name = node && inet_pton(AF_INET, node, &address) != 1 &&
        inet_pton(AF_INET6, node, &address) != 1;

    if (shim && name && atomic_load(&shim->resolve_fail)) {
        atomic_fetch_add(&shim->hits, 1);
        return EAI_AGAIN;
    }
    return __real_getaddrinfo(node, service, hints, list);
}
