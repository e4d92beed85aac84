/* The load of the measurements.
   load closed PORT CONNECTIONS SECONDS BODYFILE     each connection sends again as soon as it has the response
   load rate   PORT PER_SECOND  SECONDS BODYFILE     a fixed rate over 64 connections; latency counts from the planned moment
   load stream PORT CONNECTIONS SECONDS BODYFILE     each connection reads streams to their end, again and again
   load hold   PORT CONNECTIONS SECONDS BODYFILE     open so many streams and keep reading them
   A further argument WARM_S spreads the first requests over so many seconds and counts only what comes after them: `begin` and `end`
   are printed as the SECONDS begin and end, and the load goes on for a moment after `end`, so that the caller can read clocks at both.
   Every response is checked: status 200, whole, and the marker in it. Prints one line of name=value pairs. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUF 262144
#define TAIL_S 0.3                                    /* how long the load goes on after `end` */
struct conn { int fd, len, busy, head_done, is_stream; long body_left; double asked, sent; char *in; long events; int first; };
static struct conn *cs; static int n_conn, epfd, port; static char *request; static int request_len;
static long done, bad, events; static double *lat; static long n_lat, cap_lat; static double *ttft; static long n_ttft;
static int is_stream_mode;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static int cmp(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return x < y ? -1 : x > y; }
static double pct(double *v, long n, double p) { if (!n) return 0; long i = (long)(p * (n - 1) + 0.5); return v[i]; }

static void dial(struct conn *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(c->fd, (void *)&a, sizeof a)) { perror("connect"); exit(1); }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epfd, EPOLL_CTL_ADD, c->fd, &ev);
    c->len = c->busy = 0;
}
static void ask(struct conn *c, double planned) {
    c->busy = 1; c->head_done = 0; c->len = 0; c->sent = planned; c->asked = now(); c->first = 0; c->events = 0;
    if (send(c->fd, request, request_len, MSG_NOSIGNAL) != request_len) { bad++; close(c->fd); dial(c); }
}
static void keep(double s) { if (n_lat < cap_lat) lat[n_lat++] = s; }
static long count(const char *p, int len, const char *what) {
    long n = 0; int w = strlen(what);
    for (const char *end = p + len; (p = memmem(p, end - p, what, w)); p += w) n++;
    return n;
}
/* Read what came; 1 = the response is complete. */
static int take(struct conn *c) {
    int got = recv(c->fd, c->in + c->len, BUF - 1 - c->len, MSG_DONTWAIT);
    if (got <= 0) { if (got < 0 && errno == EAGAIN) return 0; if (c->busy) bad++; close(c->fd); dial(c); return -1; }
    c->len += got; c->in[c->len] = 0;
    if (!c->head_done) {
        char *end = memmem(c->in, c->len, "\r\n\r\n", 4);
        if (!end) return 0;
        if (memcmp(c->in + 9, "200", 3)) { bad++; fprintf(stderr, "%.200s\n", c->in); close(c->fd); dial(c); return -1; }
        c->head_done = 1;
        char *cl = strcasestr(c->in, "content-length:");
        c->is_stream = !(cl && cl < end);
        c->body_left = c->is_stream ? 0 : atoi(cl + 15);
        int head = end + 4 - c->in;
        memmove(c->in, c->in + head, c->len - head); c->len -= head;
    }
    if (!c->is_stream) {
        if (c->len < c->body_left) return 0;
        if (!memmem(c->in, c->len, "quick brown fox", 15)) bad++;
        return 1;
    }
    if (!c->first && c->len > 8) { c->first = 1; if (n_ttft < cap_lat) ttft[n_ttft++] = now() - c->asked; }
    int is_end = c->len >= 5 && memmem(c->in + (c->len > 16 ? c->len - 16 : 0), 16, "0\r\n\r\n", 5) != 0;
    long e = count(c->in, c->len, "\n\n");
    events += e; c->events += e;
    int kept = c->len > 4 && !is_end ? 4 : 0;          /* a chunk's end may straddle two reads */
    if (kept) { char *nn = memmem(c->in + c->len - 4, 4, "\n\n", 2); if (nn) kept = c->in + c->len - (nn + 2); }
    memmove(c->in, c->in + c->len - kept, kept); c->len = kept;
    return is_end;
}
int main(int argc, char **argv) {
    if (argc < 6) return 2;
    const char *mode = argv[1]; port = atoi(argv[2]); int number = atoi(argv[3]); double seconds = atof(argv[4]);
    char body[65536]; FILE *f = fopen(argv[5], "r"); int blen = fread(body, 1, sizeof body - 1, f); body[blen] = 0; fclose(f);
    request = malloc(blen + 512);
    request_len = sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer bench-client-key\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", port, blen, body);
    int is_rate = !strcmp(mode, "rate"); is_stream_mode = !strcmp(mode, "stream") || !strcmp(mode, "hold");
    n_conn = is_rate ? 64 : number;
    cs = calloc(n_conn, sizeof *cs); cap_lat = 4000000; lat = malloc(cap_lat * sizeof *lat); ttft = malloc(cap_lat * sizeof *ttft);
    epfd = epoll_create1(0);
    for (int i = 0; i < n_conn; i++) { cs[i].in = malloc(BUF); dial(&cs[i]); }
    double warm = argc > 6 ? atof(argv[6]) : 0, start = now(), begin = start + warm, end = begin + seconds, next = start;
    double stop = end + (warm > 0 ? TAIL_S : 0), took = 0;
    struct epoll_event evs[256];
    long planned = 0, late = 0, end_done = 0, end_bad = 0, end_events = 0, end_lat = 0, end_ttft = 0, end_late = 0; int rr = 0, started = 0;
    enum { WARM, COUNTING, TAIL } phase = warm > 0 ? WARM : COUNTING;
    for (;;) {
        double t = now();
        if (phase == WARM && t >= begin) {
            phase = COUNTING; begin = t; done = events = n_lat = n_ttft = late = 0;
            printf("begin\n"); fflush(stdout);
        }
        if (phase == COUNTING && t >= end) {
            phase = TAIL; took = t - begin;
            end_done = done; end_bad = bad; end_events = events; end_lat = n_lat; end_ttft = n_ttft; end_late = late;
            if (warm > 0) { printf("end\n"); fflush(stdout); }
        }
        if (t >= stop) break;
        if (!is_rate) for (; started < n_conn && t >= start + warm * started / n_conn; started++)
            if (!cs[started].busy) ask(&cs[started], now());
        if (is_rate) while (next <= t) {
            int k; for (k = 0; k < n_conn && cs[(rr + k) % n_conn].busy; k++);
            if (k == n_conn) { late++; break; }
            rr = (rr + k) % n_conn; ask(&cs[rr], next); planned++; next = start + planned / (double)number;
        }
        int wait = is_rate ? (next - now() > 0.002 ? 1 : 0) : started < n_conn ? 1 : warm > 0 ? 10 : 100;
        int n = epoll_wait(epfd, evs, 256, wait);
        for (int i = 0; i < n; i++) {
            struct conn *c = evs[i].data.ptr;
            int r = take(c);
            if (r == 1) { done++; keep(now() - c->sent); c->busy = 0; if (!is_rate) ask(c, now()); }
            else if (r < 0 && !is_rate) ask(c, now());
        }
    }
    qsort(lat, end_lat, sizeof *lat, cmp); qsort(ttft, end_ttft, sizeof *ttft, cmp);
    printf("done=%ld bad=%ld seconds=%.3f per_second=%.1f events=%ld events_per_second=%.1f p50_ms=%.3f p99_ms=%.3f ttft_p50_ms=%.3f ttft_p99_ms=%.3f late=%ld\n",
        end_done, end_bad, took, end_done / took, end_events, end_events / took, pct(lat, end_lat, .5) * 1e3, pct(lat, end_lat, .99) * 1e3,
        pct(ttft, end_ttft, .5) * 1e3, pct(ttft, end_ttft, .99) * 1e3, end_late);
    return 0;
}
