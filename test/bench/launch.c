/*
 * launch: starts a command and tells how long it takes until a UDP port of
 * 127.0.0.1 is bound; then waits for its end.
 *
 *   launch -p UDP_PORT -w MAX_MS -o OUTPUT -- COMMAND [ARGUMENT...]
 *
 * What the command prints goes to the file OUTPUT. Prints two JSON lines:
 *   {"pid":N,"start_ms":N}     once the port is bound; start_ms is counted from
 *                              just before fork and exec, and is -1 if the
 *                              command ended before, or was not there by MAX_MS
 *   {"exit":N}                 after its end; 128 + N after signal N
 * Whoever started launch ends the command by its pid. It dies with launch.
 *
 * SPDX-License-Identifier: MIT
 */
#include <fcntl.h>
#include <getopt.h>
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

static void
run_command(char **command, const char *output)
{
    int fd = open(output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

    if (fd < 0)
        die("%s", output);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    end_with_parent();
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
    bool ended = false, bound = false;

    while ((option = getopt(argc, argv, "+p:w:o:")) != -1)
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
        default:
            return 2;
        }
    if (port == 0 || max_ms == 0 || output == NULL || optind == argc)
        die("usage: launch -p UDP_PORT -w MAX_MS -o OUTPUT -- COMMAND [ARGUMENT...]");
    if (port_is_bound(port))
        die("UDP port %u is in use", port);
    end_with_parent();

    int64_t start_ns = now_ns();
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0)
        run_command(argv + optind, output);
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
    printf("{\"exit\":%d}\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return 0;
}
