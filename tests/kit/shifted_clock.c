// A library that is loaded before all others: the time of day is what it is, and the seconds that a file holds. The
// monotonic clock is not touched. The file is looked at every few milliseconds.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

typedef int (*clock_function)(clockid_t, struct timespec *);

static clock_function real_clock(void) {
    static clock_function found;
    if (!found) found = (clock_function)dlsym(RTLD_NEXT, "clock_gettime");
    return found;
}

static long shift(void) {
    static long seconds, last_look = -1;
    const char *path = getenv("SHIFTED_CLOCK");
    struct timespec now;
    real_clock()(CLOCK_MONOTONIC, &now);
    long look = now.tv_sec * 100 + now.tv_nsec / 10000000;
    if (path && look != last_look) {
        last_look = look;
        char text[32] = {0};
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0) seconds = atol(text);
            close(file);
        }
    }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = real_clock()(clock, time);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += shift();
    return failed;
}

int gettimeofday(struct timeval *time, void *zone) {
    (void)zone;
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return failed;
}
