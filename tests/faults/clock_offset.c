/* Shifts CLOCK_REALTIME, and nothing else, of the process it is preloaded into. If CLOCK_OFFSET_BOOTTIME is set, it
 * shifts CLOCK_BOOTTIME too, as if the whole machine ran at another rate.
 *
 * The file named by CLOCK_OFFSET_FILE holds one native double, the offset in seconds. It is mapped, so that each
 * call sees the present value at no cost. Built with: cc -shared -fPIC -O2 -o clock_offset.so clock_offset.c
 *
 * The real clock is read by system call: looking up libc's function with dlsym may itself ask for the time.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile double *offset_seconds;
static int with_boottime;

__attribute__((constructor)) static void map_the_offset(void)
{
    const char *path = getenv("CLOCK_OFFSET_FILE");
    with_boottime = getenv("CLOCK_OFFSET_BOOTTIME") != NULL;
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED)
        offset_seconds = mapped;
}

static int shifted(clockid_t clock, struct timespec *now)
{
    int answer = syscall(SYS_clock_gettime, clock, now);
    if (answer == 0 && offset_seconds) {
        double offset = *offset_seconds;
        long long whole = (long long)offset;
        now->tv_sec += whole;
        now->tv_nsec += (long)((offset - (double)whole) * 1e9);
        if (now->tv_nsec >= 1000000000L) {
            now->tv_nsec -= 1000000000L;
            now->tv_sec++;
        } else if (now->tv_nsec < 0) {
            now->tv_nsec += 1000000000L;
            now->tv_sec--;
        }
    }
    return answer;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        return shifted(CLOCK_REALTIME, now);
    if (clock == CLOCK_BOOTTIME && with_boottime)
        return shifted(CLOCK_BOOTTIME, now);
    return syscall(SYS_clock_gettime, clock, now);
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;
    (void)zone;
    int answer = shifted(CLOCK_REALTIME, &precise);
    if (answer == 0 && now) {
        now->tv_sec = precise.tv_sec;
        now->tv_usec = precise.tv_nsec / 1000;
    }
    return answer;
}

time_t time(time_t *result)
{
    struct timespec precise;
    shifted(CLOCK_REALTIME, &precise);
    if (result)
        *result = precise.tv_sec;
    return precise.tv_sec;
}
