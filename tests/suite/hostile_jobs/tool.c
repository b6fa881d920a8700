// What a hostile job is made of: the tests compile it and run it inside of jobs. `tool WHAT [NUMBER]`; what is in place when it
// says so prints "ready".

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void ready(void)
{
    puts("ready");
    fflush(stdout);
}

static void sleep_for_ever(void)
{
    for (;;)
        pause();
}

static void *thread(void *arg)
{
    (void)arg;
    sleep_for_ever();
    return NULL;
}

static void start_thread(void)
{
    pthread_t started;
    if (pthread_create(&started, NULL, thread, NULL))
        exit(1);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    long number = argc > 2 ? atol(argv[2]) : 0;

    if (!strcmp(what, "bomb")) {
        // As many processes as the user may have, all of which go on forking, also when others die.
        // Root may have any number.
        struct rlimit limit = {number, number};
        if (!getuid() || setrlimit(RLIMIT_NPROC, &limit))
            return 1;
        // Whoever is refused first says that they are as many: who came first would wait long for its turn.
        int *told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (told == MAP_FAILED)
            return 1;
        for (;;)
            if (fork() < 0 && !__atomic_exchange_n(told, 1, __ATOMIC_SEQ_CST))
                ready();
    } else if (!strcmp(what, "forkers")) {
        // Each is a line of processes that fork and end, so that none lives long enough to be asked anything. They come home to
        // this one, which need not wait for them: the machine's init would not keep up. A third argument makes each live longer.
        useconds_t pause_usec = argc > 3 ? atoi(argv[3]) : 0;
        void (*term)(int) = signal(SIGTERM, SIG_IGN);
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        signal(SIGCHLD, SIG_IGN);
        for (long i = 0; i < number; i++)
            if (!fork()) {
                signal(SIGTERM, term);
                for (;;) {
                    usleep(pause_usec);
                    if (fork() > 0)
                        _exit(0);
                }
            }
        ready();
        sleep_for_ever();
    } else if (!strcmp(what, "sleepers")) {
        // It leaves them.
        for (long i = 0; i < number; i++) {
            pid_t pid = fork();
            if (pid < 0)
                return 1;
            if (!pid)
                sleep_for_ever();
        }
        ready();
    } else if (!strcmp(what, "zombies")) {
        for (long i = 0; i < number; i++) {
            pid_t pid = fork();
            if (pid < 0)
                return 1;
            if (!pid)
                _exit(0);
            // Until it is one; and it stays one.
            siginfo_t info;
            waitid(P_PID, pid, &info, WEXITED | WNOWAIT);
        }
        ready();
        sleep_for_ever();
    } else if (!strcmp(what, "threads")) {
        for (long i = 0; i < number; i++)
            start_thread();
        ready();
        sleep_for_ever();
    } else if (!strcmp(what, "headless")) {
        // A process whose main thread has ended: a zombie, for whoever looks at that alone.
        start_thread();
        ready();
        syscall(SYS_exit, 0);
    } else if (!strcmp(what, "trace")) {
        // A tracer that never looks what became of the process.
        if (ptrace(PTRACE_SEIZE, (pid_t)number, 0, 0)) {
            fprintf(stderr, "ptrace: %s\n", strerror(errno));
            return 1;
        }
        ready();
        sleep_for_ever();
    } else if (!strcmp(what, "huge")) {
        // That many MiB, each page its own, and then the last exit.
        size_t size = (size_t)number << 20;
        char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return 1;
        madvise(memory, size, MADV_NOHUGEPAGE);
        memset(memory, 1, size);
        ready();
        if (argc > 3)
            sleep_for_ever();
    } else {
        return 2;
    }
    return 0;
}
