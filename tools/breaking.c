/* A disk that fails, or a process that dies, at the n-th change of a file below a folder.

   Preloaded into a process, it counts the calls that change files, and does nothing until it is
   armed. Calls on files elsewhere are not counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096], where[4096];
static int told = -1;
static long counted, at = -1;
/* 0: only count; an errno; -1: killed; -2: half of a write is done, then killed; below that
   the signal of that number, 1002 and so on, is sent and the call made. */
static int how;

/* Where each call is told from now on: its number, its name and its file, a line each. */
void breaking_tell(int file) { told = file; }

void breaking_arm(const char *below, long place, int kind) {
    strncpy(folder, below, sizeof folder - 1);
    counted = 0;
    at = place;
    how = kind;
}

long breaking_counted(void) { return counted; }

static int inside(const char *path) {
    size_t size = strlen(folder);
    if (!size || !path || strncmp(path, folder, size)) return 0;
    if (path != where) strncpy(where, path, sizeof where - 1);
    return 1;
}

static int inside_file(int file) {
    char link[64], path[4096];
    if (!folder[0] || file < 3) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return inside(path);
}

/* Whether this call is to fail: errno is set then. A disk that is full stays full. */
static int breaks_in(const char *call) {
    long now = counted++;
    if (told >= 0) dprintf(told, "%ld %s %s\n", now, call, where);
    if (at < 0 || !how) return 0;
    if (how < 0) {
        if (now == at && how == -1) kill(getpid(), SIGKILL);
        if (now == at && how < -1000) {
            kill(getpid(), -how - 1000);
            return 0;
        }
        return now == at;
    }
    if (now < at) return 0;
    errno = how;
    return 1;
}

#define breaks() breaks_in(__func__)

#define REAL(kind, name, ...) \
    static kind (*real)(__VA_ARGS__); \
    if (!real) real = (kind (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t write(int file, const void *bytes, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (inside_file(file) && breaks()) {
        if (how > 0) return -1;
        real(file, bytes, size / 2);
        kill(getpid(), SIGKILL);
    }
    return real(file, bytes, size);
}

ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t place) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    if (inside_file(file) && breaks()) {
        if (how > 0) return -1;
        real(file, bytes, size / 2, place);
        kill(getpid(), SIGKILL);
    }
    return real(file, bytes, size, place);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (inside_file(file) && breaks()) {
        if (how > 0) return -1;
        kill(getpid(), SIGKILL);
    }
    return real(file, parts, count);
}

static int makes(int flags) { return (flags & (O_CREAT | O_TRUNC)) != 0; }

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        mode_t mode = 0; \
        if (flags & O_CREAT) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
        if (makes(flags) && inside(path) && breaks()) { \
            if (how > 0) return -1; \
            kill(getpid(), SIGKILL); \
        } \
        return real(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

#define ON_PATHS(name) \
    int name(const char *old, const char *new) { \
        REAL(int, #name, const char *, const char *); \
        if (inside(new) && breaks()) { \
            if (how > 0) return -1; \
            kill(getpid(), SIGKILL); \
        } \
        return real(old, new); \
    }
ON_PATHS(rename)
ON_PATHS(link)

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    if (inside(path) && breaks()) {
        if (how > 0) return -1;
        kill(getpid(), SIGKILL);
    }
    return real(path, mode);
}

int fsync(int file) {
    REAL(int, "fsync", int);
    if (inside_file(file) && breaks()) {
        if (how > 0) return -1;
        kill(getpid(), SIGKILL);
    }
    return real(file);
}

int ftruncate64(int file, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    if (inside_file(file) && breaks()) {
        if (how > 0) return -1;
        kill(getpid(), SIGKILL);
    }
    return real(file, size);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    if (how < 0 && inside(path) && breaks()) kill(getpid(), SIGKILL);
    return real(path);
}
