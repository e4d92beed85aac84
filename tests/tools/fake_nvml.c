/* A libnvidia-ml.so.1 for machines without a GPU: as many devices as FAKE_NVML_GPUS says (default 1), or the error of FAKE_NVML_ERROR.
   Only what the appliance asks for.  gcc -shared -fPIC -o libnvidia-ml.so.1 fake_nvml.c */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;

static int number(const char *name, int otherwise) { const char *v = getenv(name); return v ? atoi(v) : otherwise; }
static int failing(void) { return number("FAKE_NVML_ERROR", 0); }

int nvmlInit_v2(void) { return failing(); }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return failing(); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : code == 12 ? "NVML Shared Library Not Found" : "Unknown Error"; }
int nvmlSystemGetDriverVersion(char *out, unsigned length) { snprintf(out, length, "590.48.01"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = number("FAKE_NVML_GPUS", 1); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(long)(index + 1); return 0; }
int nvmlDeviceGetName(void *device, char *out, unsigned length) { (void)device; snprintf(out, length, "NVIDIA H200"); return 0; }
int nvmlDeviceGetUUID(void *device, char *out, unsigned length) { snprintf(out, length, "GPU-00000000-0000-0000-0000-%012ld", (long)device); return 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory_t *m) { (void)device; m->total = 143771ULL << 20; m->used = 1ULL << 20; m->free = m->total - m->used; return 0; }
int nvmlDeviceGetPciInfo_v3(void *device, pci_t *p) { memset(p, 0, sizeof *p); snprintf(p->bus_id, 32, "00000000:%02lX:00.0", (long)device); return 0; }
