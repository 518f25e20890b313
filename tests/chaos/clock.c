/* The wall clock of one program, so many seconds before or behind the host's; see clock.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t right = 0;
static const volatile int64_t *moved_s = &right;

__attribute__((constructor)) static void find(void)
{
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *moved_s, PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED)
        moved_s = page;
    if (file >= 0)
        close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *moved_s;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now)
        *now = found.tv_sec;
    return found.tv_sec;
}

/* Who waits until a time of the wall clock waits longer when it is set back, and is woken when it is set forward: waits of a
   second at most, each of which may end for no reason. One that is not of this century is of another clock. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict lock,
                           const struct timespec *restrict until)
{
    static int (*wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec now, soon;
    int ended;
    if (!wait)
        wait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    if (until->tv_sec < 946684800)
        return wait(condition, lock, until);
    soon = *until;
    soon.tv_sec -= *moved_s;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    if (soon.tv_sec > now.tv_sec + 1) {
        soon = now;
        soon.tv_sec += 1;
        ended = wait(condition, lock, &soon);
        return ended == ETIMEDOUT ? 0 : ended;
    }
    return wait(condition, lock, &soon);
}
