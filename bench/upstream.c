/* The upstream of the measurements: responds to every POST over keep-alive with a fixed chat completion, or, when the body asks for
   a stream, with N server-sent events of about 200 bytes. Much faster than what is measured.

   upstream PORT EVENTS PACE_MS     PACE_MS 0 = as fast as the socket takes them, one write per 16 events */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAXFD 65536
#define IN 65536
struct conn { char in[IN]; int len; int left; long next_ms; int open; };
static struct conn *conns[MAXFD];
static int epfd, events_n, pace_ms;
static char reply[2048], event_chunk[512], first_head[512], burst[16 * 512];
static int reply_len, chunk_len, head_len, burst_len;
static int streaming[MAXFD], streaming_n;

static long now_ms(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000L + t.tv_nsec / 1000000; }

static void make(void) {
    const char *body = "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"meta-llama/llama-3.2-3b-instruct\","
        "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over the lazy dog, and then it sits down "
        "for a while to think about what it has done today, which is quite a lot for such a small and quick animal.\",\"refusal\":null},"
        "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":21,\"completion_tokens\":43,\"total_tokens\":64},\"system_fingerprint\":\"fp_bench\"}";
    reply_len = sprintf(reply, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
    char ev[400];
    int n = sprintf(ev, "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"meta-llama/llama-3.2-3b-instruct\","
        "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n");
    chunk_len = sprintf(event_chunk, "%x\r\n%s\r\n", n, ev);
    head_len = sprintf(first_head, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 16; i++) { memcpy(burst + burst_len, event_chunk, chunk_len); burst_len += chunk_len; }
}

static void drop(int fd) { if (conns[fd]) conns[fd]->open = 0; close(fd); }

static int put(int fd, const char *data, int len) {
    int at = 0;
    while (at < len) {
        int n = send(fd, data + at, len - at, MSG_NOSIGNAL);
        if (n > 0) { at += n; continue; }
        if (n < 0 && errno == EAGAIN && at > 0) { struct timespec t = {0, 50000}; nanosleep(&t, 0); continue; }   /* never half an event */
        return n < 0 && errno == EAGAIN ? 0 : -1;
    }
    return 1;
}

/* Continue a stream; 1 = more follows. */
static int pump(int fd, long now) {
    struct conn *c = conns[fd];
    while (c->left > 0) {
        if (pace_ms) {
            if (now < c->next_ms) return 1;
            int r = put(fd, event_chunk, chunk_len);
            if (r < 0) { drop(fd); return 0; }
            if (r == 0) return 1;
            c->left--; c->next_ms += pace_ms;
        } else {
            int many = c->left >= 16;
            int r = put(fd, many ? burst : event_chunk, many ? burst_len : chunk_len);
            if (r < 0) { drop(fd); return 0; }
            if (r == 0) return 1;
            c->left -= many ? 16 : 1;
            if (many) return 1;         /* other streams are served */
        }
    }
    char tail[400];
    const char *last = "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"model\":\"meta-llama/llama-3.2-3b-instruct\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    int n = sprintf(tail, "%zx\r\n%s\r\n0\r\n\r\n", strlen(last), last);
    if (put(fd, tail, n) < 0) drop(fd);
    return 0;
}

static void handle(int fd) {
    struct conn *c = conns[fd];
    for (;;) {
        c->in[c->len] = 0;
        char *end = memmem(c->in, c->len, "\r\n\r\n", 4);
        if (!end) return;
        char *cl = strcasestr(c->in, "content-length:");
        int body = cl && cl < end ? atoi(cl + 15) : 0, total = (int)(end + 4 - c->in) + body;
        if (c->len < total) return;
        int wants = memmem(end, body + 4, "\"stream\":true", 13) || memmem(end, body + 4, "\"stream\": true", 14);
        memmove(c->in, c->in + total, c->len - total);
        c->len -= total;
        if (wants) {
            if (put(fd, first_head, head_len) < 0) { drop(fd); return; }
            c->left = events_n; c->next_ms = now_ms();
            if (pump(fd, now_ms()) && c->open) streaming[streaming_n++] = fd;
        } else if (put(fd, reply, reply_len) < 0) { drop(fd); return; }
    }
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    events_n = atoi(argv[2]); pace_ms = atoi(argv[3]);
    make();
    int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(s, (void *)&a, sizeof a) || listen(s, 4096)) { perror("upstream"); return 1; }
    epfd = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = s}, evs[512];
    epoll_ctl(epfd, EPOLL_CTL_ADD, s, &ev);
    printf("ready\n"); fflush(stdout);
    for (;;) {
        int n = epoll_wait(epfd, evs, 512, streaming_n ? (pace_ms ? 1 : 0) : 1000);
        for (int i = 0; i < n; i++) {
            int fd = evs[i].data.fd;
            if (fd == s) {
                int c;
                while ((c = accept4(s, 0, 0, SOCK_NONBLOCK)) >= 0) {
                    if (c >= MAXFD) { close(c); continue; }
                    setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    if (!conns[c]) conns[c] = calloc(1, sizeof(struct conn));
                    conns[c]->len = conns[c]->left = 0; conns[c]->open = 1;
                    ev.events = EPOLLIN; ev.data.fd = c;
                    epoll_ctl(epfd, EPOLL_CTL_ADD, c, &ev);
                }
                continue;
            }
            struct conn *c = conns[fd];
            int got = recv(fd, c->in + c->len, IN - 1 - c->len, 0);
            if (got <= 0) { if (got == 0 || errno != EAGAIN) drop(fd); continue; }
            c->len += got;
            handle(fd);
        }
        long now = now_ms();
        for (int i = 0; i < streaming_n;) {
            int fd = streaming[i];
            if (!conns[fd]->open || !pump(fd, now)) streaming[i] = streaming[--streaming_n];
            else i++;
        }
    }
}
