/* System calls that fail when told to, in a program that preloads this library.
 *
 * FAILING names a file with a struct rule for each call below, in this order. The
 * rules may be changed at any time by writing to the file.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum call {
    ACCEPT4, CONNECT, RECV, SEND, SPLICE, EPOLL_ADD, EPOLL_MOD, EPOLL_DEL,
    EPOLL_WAIT, EPOLL_CREATE1, SHUTDOWN, GETSOCKOPT, SETSOCKOPT, GETSOCKNAME, PIPE2,
    FCNTL, IOCTL, SOCKET, CALLS
};

struct rule {
    int32_t code;  /* errno */
    int32_t left;  /* how often; -1: always; 0: not at all */
    int32_t port;  /* only of a TCP socket whose peer has this port; 0: of any */
                   /* file; -1: of any TCP socket that has a peer */
    int32_t hits;  /* how often it failed */
};

static volatile struct rule *rules;

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAILING");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *file = mmap(NULL, CALLS * sizeof(struct rule), PROT_READ | PROT_WRITE,
                      MAP_SHARED, fd, 0);
    close(fd);
    if (file != MAP_FAILED) rules = file;
}

static int peers_port(int fd) {
    struct sockaddr_in peer;
    socklen_t size = sizeof peer;
    if (getpeername(fd, (struct sockaddr *)&peer, &size) || peer.sin_family != AF_INET)
        return 0;
    return ntohs(peer.sin_port);
}

static int fails(enum call call, int fd) {
    int before = errno;
    if (!rules || !rules[call].left) return 0;
    if (rules[call].port) {
        int port = peers_port(fd);
        errno = before;
        if (rules[call].port < 0 ? !port : port != rules[call].port) return 0;
    }
    if (rules[call].left > 0) rules[call].left--;
    rules[call].hits++;
    errno = rules[call].code;
    return 1;
}

#define CALL(CALL, FD, RESULT, NAME, PARAMETERS, ARGUMENTS)                         \
    RESULT NAME PARAMETERS {                                                        \
        static RESULT(*below) PARAMETERS;                                           \
        if (!below) below = next(#NAME);                                            \
        return fails(CALL, FD) ? -1 : below ARGUMENTS;                              \
    }

CALL(ACCEPT4, fd, int, accept4,
     (int fd, struct sockaddr *name, socklen_t *size, int flags),
     (fd, name, size, flags))
CALL(CONNECT, fd, int, connect, (int fd, const struct sockaddr *name, socklen_t size),
     (fd, name, size))
CALL(RECV, fd, ssize_t, recv, (int fd, void *data, size_t size, int flags),
     (fd, data, size, flags))
CALL(SEND, fd, ssize_t, send, (int fd, const void *data, size_t size, int flags),
     (fd, data, size, flags))
CALL(SPLICE, in, ssize_t, splice,
     (int in, off64_t *at, int out, off64_t *to, size_t size, unsigned flags),
     (in, at, out, to, size, flags))
CALL(EPOLL_WAIT, fd, int, epoll_wait,
     (int fd, struct epoll_event *events, int most, int timeout),
     (fd, events, most, timeout))
CALL(EPOLL_CREATE1, -1, int, epoll_create1, (int flags), (flags))
CALL(SHUTDOWN, fd, int, shutdown, (int fd, int how), (fd, how))
CALL(GETSOCKOPT, fd, int, getsockopt,
     (int fd, int level, int name, void *value, socklen_t *size),
     (fd, level, name, value, size))
CALL(SETSOCKOPT, fd, int, setsockopt,
     (int fd, int level, int name, const void *value, socklen_t size),
     (fd, level, name, value, size))
CALL(GETSOCKNAME, fd, int, getsockname,
     (int fd, struct sockaddr *name, socklen_t *size), (fd, name, size))
CALL(PIPE2, -1, int, pipe2, (int fds[2], int flags), (fds, flags))
CALL(SOCKET, -1, int, socket, (int family, int kind, int protocol),
     (family, kind, protocol))

int epoll_ctl(int epoll, int what, int fd, struct epoll_event *event) {
    static int (*below)(int, int, int, struct epoll_event *);
    enum call call = what == EPOLL_CTL_ADD ? EPOLL_ADD
                   : what == EPOLL_CTL_MOD ? EPOLL_MOD
                                           : EPOLL_DEL;
    if (!below) below = next("epoll_ctl");
    return fails(call, fd) ? -1 : below(epoll, what, fd, event);
}

int ioctl(int fd, unsigned long what, ...) {
    static int (*below)(int, unsigned long, void *);
    va_list more;
    va_start(more, what);
    void *argument = va_arg(more, void *);
    va_end(more);
    if (!below) below = next("ioctl");
    return fails(IOCTL, fd) ? -1 : below(fd, what, argument);
}

static int any_fcntl(int fd, int what, void *argument) {
    static int (*below)(int, int, void *);
    if (!below) below = next("fcntl64");
    if (!below) below = next("fcntl");
    int of_a_pipe = what == F_SETPIPE_SZ || what == F_GETPIPE_SZ;
    return of_a_pipe && fails(FCNTL, fd) ? -1 : below(fd, what, argument);
}

int fcntl(int fd, int what, ...) {
    va_list more;
    va_start(more, what);
    void *argument = va_arg(more, void *);
    va_end(more);
    return any_fcntl(fd, what, argument);
}

int fcntl64(int fd, int what, ...) __attribute__((alias("fcntl")));
