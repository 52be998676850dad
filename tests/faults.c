/* Make calls on some paths fail, for LD_PRELOAD. Environment variables:
   FAULT_PATH   pattern of the paths, as in a shell; "*" matches slashes too
   FAULT_CALLS  some of "open", "read", "flock" and "fsync"
   FAULT_ERRNO  error number
   FAULT_TIMES  number of failing calls per path and process; unset: all
   FAULT_WHILE  calls fail only while this file exists
   FAULT_HANG   pattern of the paths whose open() never returns
   FAULT_HUNG   a file that such a call creates first
   FAULT_FORKS, FAULT_THREADS, FAULT_ACCEPTS
                number of calls of fork, pthread_create and accept that succeed; later ones fail as with a limit
   FAULT_CLOCK  seconds by which the time of day is set back at each reading of it */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PATHS 4096
static struct { char path[1024]; long count; } seen[PATHS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int over(const char *path, long times) {
    int over = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < PATHS; i++) {
        if (!seen[i].path[0]) strncpy(seen[i].path, path, sizeof seen[i].path - 1);
        if (strcmp(seen[i].path, path)) continue;
        over = seen[i].count++ >= times;
        break;
    }
    pthread_mutex_unlock(&lock);
    return over;
}

static void hang(const char *path) {
    const char *pattern = getenv("FAULT_HANG");
    if (!pattern || !path || fnmatch(pattern, path, 0)) return;
    if (getenv("FAULT_HUNG")) close(creat(getenv("FAULT_HUNG"), 0600));
    for (;;) sleep(1000);
}

static int exceeds(const char *name, long *count) {
    const char *limit = getenv(name);
    return limit && __atomic_fetch_add(count, 1, __ATOMIC_SEQ_CST) >= atol(limit);
}

static int fails(const char *call, const char *path) {
    const char *pattern = getenv("FAULT_PATH"), *calls = getenv("FAULT_CALLS"), *number = getenv("FAULT_ERRNO");
    const char *times = getenv("FAULT_TIMES"), *file = getenv("FAULT_WHILE");
    int before = errno;
    if (!pattern || !calls || !number || !path || fnmatch(pattern, path, 0) || !strstr(calls, call)) return 0;
    if (file && access(file, F_OK)) return errno = before, 0;
    if (times && over(path, atol(times))) return errno = before, 0;
    errno = atoi(number);
    return 1;
}

static int fails_on(const char *call, int fd) {
    char link[64], path[1024];
    ssize_t length;
    int before = errno;
    if (!getenv("FAULT_PATH")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MODE(flags, last) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list args; va_start(args, last); mode = va_arg(args, mode_t); va_end(args); }

int open(const char *path, int flags, ...) {
    MODE(flags, flags)
    hang(path);
    return fails("open", path) ? -1 : NEXT(open)(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags, flags)
    hang(path);
    return fails("open", path) ? -1 : NEXT(open64)(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    MODE(flags, flags)
    return fails("open", path) ? -1 : NEXT(openat)(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    MODE(flags, flags)
    return fails("open", path) ? -1 : NEXT(openat64)(folder, path, flags, mode);
}
ssize_t read(int fd, void *data, size_t size) {
    return fails_on("read", fd) ? -1 : NEXT(read)(fd, data, size);
}
ssize_t pread(int fd, void *data, size_t size, off_t at) {
    return fails_on("read", fd) ? -1 : NEXT(pread)(fd, data, size, at);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
    return fails_on("read", fd) ? -1 : NEXT(pread64)(fd, data, size, at);
}
int flock(int fd, int operation) {
    return fails_on("flock", fd) ? -1 : NEXT(flock)(fd, operation);
}
int fsync(int fd) {
    return fails_on("fsync", fd) ? -1 : NEXT(fsync)(fd);
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    static long readings;
    const char *seconds = clock == CLOCK_REALTIME ? getenv("FAULT_CLOCK") : NULL;
    int result = NEXT(clock_gettime)(clock, time);
    if (seconds) time->tv_sec -= atol(seconds) * __sync_add_and_fetch(&readings, 1);
    return result;
}
pid_t fork(void) {
    static long calls;
    return exceeds("FAULT_FORKS", &calls) ? (errno = EAGAIN, -1) : NEXT(fork)();
}
int pthread_create(pthread_t *thread, const pthread_attr_t *settings, void *(*start)(void *), void *value) {
    static long calls;
    return exceeds("FAULT_THREADS", &calls) ? EAGAIN : NEXT(pthread_create)(thread, settings, start, value);
}
int accept4(int socket, struct sockaddr *address, socklen_t *size, int flags) {
    static long calls;
    return exceeds("FAULT_ACCEPTS", &calls) ? (errno = EMFILE, -1) : NEXT(accept4)(socket, address, size, flags);
}
