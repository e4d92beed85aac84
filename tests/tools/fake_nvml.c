/* A stand-in for libnvidia-ml.so.1, for machines without a GPU: its devices say so in their names. Only what the appliance asks for.
   gcc -shared -fPIC -o libnvidia-ml.so.1 fake_nvml.c

   Without a file: as many devices as FAKE_NVML_GPUS says (default 1), or the error of FAKE_NVML_ERROR.
   With FAKE_NVML_FILE: read anew at every call, so that a test can change it meanwhile (tests/tools/fake_nvml.py writes it):
       error CODE                                            every call fails with that code
       gpu INDEX TOTAL_MIB USED_MIB PERCENT CELSIUS WATTS    one a device; a negative one of the last three is "not supported"
       lost INDEX                                            calls about that device fail: it fell off the bus
       compute INDEX PID MIB                                 a process on a device; a negative MIB is "not available"
       graphics INDEX PID MIB */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, TOO_SMALL = 7, LOST = 15, MOST = 64 };

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;

typedef struct { long total, used, percent, celsius, watts; int lost; } gpu_t;
typedef struct { int gpu; long pid, mib; char kind; } taker_t;
typedef struct { int error, gpus, takers; gpu_t gpu[MOST]; taker_t taker[MOST]; } state_t;

static int number(const char *name, int otherwise) { const char *v = getenv(name); return v ? atoi(v) : otherwise; }

static void read_line(state_t *s, const char *line) {
    int i; char kind[16]; gpu_t g = {0}; taker_t t = {0};
    if (sscanf(line, "error %d", &s->error) == 1) return;
    if (sscanf(line, "lost %d", &i) == 1 && i >= 0 && i < MOST) { s->gpu[i].lost = 1; return; }
    if (sscanf(line, "gpu %d %ld %ld %ld %ld %ld", &i, &g.total, &g.used, &g.percent, &g.celsius, &g.watts) == 6 && i >= 0 && i < MOST) {
        g.lost = s->gpu[i].lost; s->gpu[i] = g;
        if (i >= s->gpus) s->gpus = i + 1;
        return;
    }
    if (sscanf(line, "%15s %d %ld %ld", kind, &t.gpu, &t.pid, &t.mib) == 4 && s->takers < MOST) { t.kind = kind[0]; s->taker[s->takers++] = t; }
}

static state_t state(void) {
    state_t s; char line[256]; const char *path = getenv("FAKE_NVML_FILE");
    memset(&s, 0, sizeof s);
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file) {
        while (fgets(line, sizeof line, file)) read_line(&s, line);
        fclose(file);
    } else {
        s.error = number("FAKE_NVML_ERROR", 0);
        s.gpus = number("FAKE_NVML_GPUS", 1);
        for (int i = 0; i < s.gpus && i < MOST; i++) { gpu_t g = {143771, 1, 0, 40, 75, 0}; s.gpu[i] = g; }
    }
    return s;
}

/* The device of a handle (index + 1), or the error that a call about it gives. */
static int device_of(void *handle, gpu_t *out) {
    state_t s = state(); long i = (long)handle - 1;
    if (s.error) return s.error;
    if (i < 0 || i >= s.gpus || s.gpu[i].lost) return LOST;
    *out = s.gpu[i];
    return OK;
}

static int measured(void *handle, long value, unsigned *out) {
    (void)handle;
    if (value < 0) return NOT_SUPPORTED;
    *out = (unsigned)value;
    return OK;
}

static int processes(void *handle, char kind, unsigned *count, process_t *out) {
    state_t s = state(); gpu_t g; unsigned found = 0; int failed = device_of(handle, &g);
    if (failed) return failed;
    for (int i = 0; i < s.takers; i++) {
        if (s.taker[i].kind != kind || s.taker[i].gpu != (long)handle - 1) continue;
        if (out && found < *count) {
            process_t p = {(unsigned)s.taker[i].pid, s.taker[i].mib < 0 ? ~0ULL : (unsigned long long)s.taker[i].mib << 20, ~0U, ~0U};
            out[found] = p;
        }
        found++;
    }
    failed = found > (out ? *count : 0) ? TOO_SMALL : OK;
    *count = found;
    return failed;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return state().error; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) {
    return code == 3 ? "Not Supported" : code == 9 ? "Driver Not Loaded" : code == 12 ? "NVML Shared Library Not Found"
         : code == LOST ? "GPU is lost" : "Unknown Error";
}
int nvmlSystemGetDriverVersion(char *out, unsigned length) { snprintf(out, length, "590.48.01"); return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { state_t s = state(); *count = (unsigned)s.gpus; return s.error; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) { gpu_t g; *out = (void *)(long)(index + 1); return device_of(*out, &g); }
int nvmlDeviceGetName(void *h, char *out, unsigned length) { gpu_t g; snprintf(out, length, "NVIDIA H200 (stand-in)"); return device_of(h, &g); }
int nvmlDeviceGetUUID(void *h, char *out, unsigned length) { snprintf(out, length, "GPU-00000000-0000-0000-0000-%012ld", (long)h); return OK; }
int nvmlDeviceGetPciInfo_v3(void *h, pci_t *p) { memset(p, 0, sizeof *p); snprintf(p->bus_id, 32, "00000000:%02lX:00.0", (long)h); return OK; }
int nvmlDeviceGetMemoryInfo(void *h, memory_t *m) {
    gpu_t g; int failed = device_of(h, &g);
    if (failed) return failed;
    m->total = (unsigned long long)g.total << 20; m->used = (unsigned long long)g.used << 20; m->free = m->total - m->used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *h, utilization_t *u) { gpu_t g; u->memory = 0; int e = device_of(h, &g); return e ? e : measured(h, g.percent, &u->gpu); }
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *out) { (void)sensor; gpu_t g; int e = device_of(h, &g); return e ? e : measured(h, g.celsius, out); }
int nvmlDeviceGetPowerUsage(void *h, unsigned *out) { gpu_t g; int e = device_of(h, &g); return e ? e : measured(h, g.watts < 0 ? -1 : g.watts * 1000, out); }
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *count, process_t *out) { return processes(h, 'c', count, out); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned *count, process_t *out) { return processes(h, 'g', count, out); }
