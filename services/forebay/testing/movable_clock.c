/* Moves the wall clock of the processes that preload this library; `movable_clock.py` says how.
 *
 * The offsets lie in a shared file: one 64-bit number of nanoseconds for each process group, by its id, and one for all
 * at index 0. Reading the clock reads two of them, so a test moves a running process's clock by writing a number.
 * The monotonic clocks stay as they are: no step of the wall clock moves them on a real machine.
 *
 * Nothing is included, so that it compiles where no headers are installed. The declarations suit 64-bit Linux.
 */

typedef long long i64;
struct timespec { i64 seconds; i64 nanoseconds; };
struct timeval { i64 seconds; i64 microseconds; };

extern char *getenv(const char *name);
extern int open(const char *path, int flags, ...);
extern int close(int file);
extern i64 lseek(int file, i64 offset, int whence);
extern void *mmap(void *address, unsigned long length, int protection, int flags, int file, i64 offset);
extern void *dlsym(void *handle, const char *symbol);
extern int getpgid(int process);

#define NEXT ((void *)-1l)
#define MAP_FAILED ((void *)-1)
#define CLOCK_REALTIME 0
#define CLOCK_REALTIME_COARSE 5
#define FUTEX_CLOCK_REALTIME 256
#define NS 1000000000ll
#if defined(__x86_64__)
#define SYS_FUTEX 202
#elif defined(__aarch64__)
#define SYS_FUTEX 98
#endif

static int (*next_clock_gettime)(int clock, struct timespec *now);
static long (*next_syscall)(long number, long a, long b, long c, long d, long e, long f);
static const i64 *volatile offsets;
static int group;

__attribute__((constructor)) static void begin(void)
{
    if (next_clock_gettime)
        return;
    next_syscall = dlsym(NEXT, "syscall");
    next_clock_gettime = dlsym(NEXT, "clock_gettime");
    group = getpgid(0);
    const char *path = getenv("FOREBAY_TEST_CLOCK");
    int file = path ? open(path, 0) : -1;
    if (file < 0)
        return;
    i64 length = lseek(file, 0, 2);
    void *table = length > 8ll * group ? mmap(0, length, 1, 1, file, 0) : MAP_FAILED;
    close(file);
    if (table != MAP_FAILED)
        offsets = table;
}

static void move(struct timespec *time, i64 by)
{
    i64 nanoseconds = time->seconds * NS + time->nanoseconds + by;
    time->seconds = nanoseconds / NS;
    time->nanoseconds = nanoseconds % NS;
}

static i64 offset(void)
{
    return offsets ? offsets[0] + offsets[group] : 0;
}

int clock_gettime(int clock, struct timespec *now)
{
    begin();
    int failed = next_clock_gettime(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        move(now, offset());
    return failed;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    if (now) {
        now->seconds = time.seconds;
        now->microseconds = time.nanoseconds / 1000;
    }
    return 0;
}

i64 time(i64 *now)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    if (now)
        *now = time.seconds;
    return time.seconds;
}

/* gRPC waits in the kernel until a wall-clock time, which has to be the kernel's own. */
long syscall(long number, long a, long b, long c, long d, long e, long f)
{
    begin();
    if (number != SYS_FUTEX || !(b & FUTEX_CLOCK_REALTIME) || !d)
        return next_syscall(number, a, b, c, d, e, f);
    struct timespec until = *(struct timespec *)d;
    move(&until, -offset());
    return next_syscall(number, a, b, c, (long)&until, e, f);
}
