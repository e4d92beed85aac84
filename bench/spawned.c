/* A wrapper of llama-server: notes the time of its start, waits to simulate a long load, and executes llama-server.
   Built with -DSERVER="…" -DNOTES="…" -DDELAY_MS=n. One line of NOTES per start: seconds of CLOCK_MONOTONIC, port, process id.
   Without --port (as with --help) it notes nothing and does not wait. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    for (int i = 1; i + 1 < argc; i++)
        if (!strcmp(argv[i], "--port")) {
            int notes = open(NOTES, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
            dprintf(notes, "%ld.%09ld %s %d\n", (long)t.tv_sec, t.tv_nsec, argv[i + 1], (int)getpid());
            close(notes);
            usleep(DELAY_MS * 1000);
        }
    execv(SERVER, argv);
    perror(SERVER);
    return 127;
}
