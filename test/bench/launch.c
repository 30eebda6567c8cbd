/*
 * launch: starts a command and tells how long it takes until a UDP port of
 * 127.0.0.1 is bound; then waits for its end.
 *
 *   launch -p UDP_PORT -w MAX_MS -o OUTPUT [-b] -- COMMAND [ARGUMENT...]
 *     -b  the command cannot change the size of a receive buffer (setsockopt does
 *         nothing then, and says that it did)
 *
 * What the command prints goes to the file OUTPUT. Prints two JSON lines:
 *   {"pid":N,"start_ms":N}     once the port is bound; start_ms is counted from
 *                              just before fork and exec, and is -1 if the
 *                              command ended before, or was not there by MAX_MS
 *   {"exit":N}                 after its end; 128 + N after signal N
 * Whoever started launch ends the command by its pid. It dies with launch. It is
 * the head of a process group, whose rest is killed after its end.
 *
 * SPDX-License-Identifier: MIT
 */
#include <fcntl.h>
#include <getopt.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "common.h"

#define POLL_US 100 /* between two looks at the port: the error of start_ms */

/* Has somebody bound this UDP port? Reads the kernel's table, as `ss` would. */
static bool
port_is_bound(uint16_t port)
{
    static const char *const tables[] = {"/proc/net/udp", "/proc/net/udp6"};
    char line[512];
    bool found = false;

    for (size_t i = 0; i < sizeof tables / sizeof *tables && !found; i++) {
        FILE *f = fopen(tables[i], "r");
        unsigned local;

        if (f == NULL)
            continue; /* no IPv6 here */
        while (!found && fgets(line, sizeof line, f) != NULL)
            found = sscanf(line, " %*d: %*[0-9A-F]:%x", &local) == 1 && local == port;
        fclose(f);
    }
    return found;
}

/* Lets setsockopt with SO_RCVBUF and SO_RCVBUFFORCE do nothing in this process and its children. */
static void
keep_receive_buffers(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setsockopt, 0, 6),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SOL_SOCKET, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SO_RCVBUF, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SO_RCVBUFFORCE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        die("seccomp");
}

static void
run_command(char **command, const char *output, bool keep_buffers)
{
    int fd = open(output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

    if (fd < 0)
        die("%s", output);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    end_with_parent();
    setpgid(0, 0);
    if (keep_buffers)
        keep_receive_buffers();
    execvp(command[0], command);
    die("%s", command[0]);
}

int
main(int argc, char **argv)
{
    uint16_t port = 0;
    long max_ms = 0;
    const char *output = NULL;
    int option, status = 0;
    bool ended = false, bound = false, keep_buffers = false;

    while ((option = getopt(argc, argv, "+p:w:o:b")) != -1)
        switch (option) {
        case 'p':
            port = parse_port(optarg);
            break;
        case 'w':
            max_ms = parse_number(optarg);
            break;
        case 'o':
            output = optarg;
            break;
        case 'b':
            keep_buffers = true;
            break;
        default:
            return 2;
        }
    if (port == 0 || max_ms == 0 || output == NULL || optind == argc)
        die("usage: launch -p UDP_PORT -w MAX_MS -o OUTPUT [-b] -- COMMAND [ARGUMENT...]");
    if (port_is_bound(port))
        die("UDP port %u is in use", port);
    end_with_parent();

    int64_t start_ns = now_ns();
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0)
        run_command(argv + optind, output, keep_buffers);
    while (!bound && !ended && now_ns() - start_ns < max_ms * NS_PER_MS) {
        bound = port_is_bound(port);
        if (!bound) {
            ended = waitpid(pid, &status, WNOHANG) == pid;
            usleep(POLL_US);
        }
    }
    double start_ms = bound ? (double)(now_ns() - start_ns) / NS_PER_MS : -1;
    printf("{\"pid\":%d,\"start_ms\":%.2f}\n", pid, start_ms);
    fflush(stdout);

    if (!ended && waitpid(pid, &status, 0) != pid)
        die("wait");
    kill(-pid, SIGKILL); /* children that are left */
    printf("{\"exit\":%d}\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return 0;
}
