/* A stand-in for libnvidia-ml.so.1: it answers NVML's calls from a scenario file instead of a driver.
 *
 * The file named by LLAMADECK_NVML_SCENARIO is read again at every call, so a test changes a reading by renaming
 * a new file over it. It knows no GPU: a reading that the file does not give is NOT_SUPPORTED.
 *
 *   key = value            about the system: driver, nvml, cuda, init_rc, count
 *   [gpu]                  begins one GPU; [mig] below it begins one MIG instance of that GPU
 *   key = 42               a reading; sizes in MiB (total, reserved, used), power in mW, clocks in MHz
 *   key = !15              that call returns NVML's code 15
 *   compute = 71:8192 72:? processes as pid:MiB, "?" where NVML gives no figure; graphics and mps alike
 */
#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };
enum { SYSTEM = -1, WHOLE = -1, MAX_MIG = 7, LINE = 4096 };

typedef unsigned long long u64;
typedef struct { int gpu, mig; } place;

static int started;

/* A handle is one number: the GPU in the low byte, the MIG instance (0 = the whole GPU) above it. */
static void *handle_of(int gpu, int mig) { return (void *)(uintptr_t)(1 + gpu + 256 * (mig + 1)); }
static place place_of(void *handle) {
    uintptr_t n = (uintptr_t)handle;
    return (place){(int)(n % 256) - 1, (int)(n / 256) - 1};
}

static char *trim(char *s) {
    while (isspace((unsigned char)*s)) s++;
    for (char *end = s + strlen(s); end > s && isspace((unsigned char)end[-1]);) *--end = 0;
    return s;
}

/* Copies the value of `key` at `at` into `out`; returns 1 where the file gives it. */
static int find(place at, const char *key, char *out) {
    const char *path = getenv("LLAMADECK_NVML_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    place here = {SYSTEM, WHOLE};
    char line[LINE];
    int found = 0;
    if (!file) return 0;
    while (!found && fgets(line, sizeof line, file)) {
        char *text = trim(line), *equals;
        if (!strcmp(text, "[gpu]")) here = (place){here.gpu + 1, WHOLE};
        else if (!strcmp(text, "[mig]")) here.mig++;
        else if (*text != '#' && (equals = strchr(text, '=')) && here.gpu == at.gpu && here.mig == at.mig) {
            *equals = 0;
            if (!strcmp(trim(text), key)) { strcpy(out, trim(equals + 1)); found = 1; }
        }
    }
    fclose(file);
    return found;
}

static int count_of(const char *section, int gpu) {
    const char *path = getenv("LLAMADECK_NVML_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[LINE];
    int seen = -1, count = 0;
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        char *text = trim(line);
        if (!strcmp(text, "[gpu]")) seen++;
        if (!strcmp(text, section) && (gpu == SYSTEM || seen == gpu)) count++;
    }
    fclose(file);
    return count;
}

static int text(place at, const char *key, char *out) {
    char lost[LINE];
    if (!started) return UNINITIALIZED;
    if (at.gpu != SYSTEM && find((place){at.gpu, WHOLE}, "lost", lost)) return GPU_IS_LOST;
    if (!find(at, key, out)) return NOT_SUPPORTED;
    return *out == '!' ? atoi(out + 1) : OK;
}

static int number(place at, const char *key, u64 *out) {
    char value[LINE];
    int rc = text(at, key, value);
    if (rc == OK) *out = strtoull(value, NULL, 0);
    return rc;
}

static int string(place at, const char *key, char *out, unsigned size) {
    char value[LINE];
    int rc = text(at, key, value);
    if (rc == OK) snprintf(out, size, "%s", value);
    return rc;
}

static int reading(void *handle, const char *key, unsigned *out) {
    u64 value;
    int rc = number(place_of(handle), key, &value);
    if (rc == OK) *out = (unsigned)value;
    return rc;
}

/* Two numbers in one reading, "current pending" or "gpu memory". */
static int pair(void *handle, const char *key, unsigned *first, unsigned *second) {
    char value[LINE];
    int rc = text(place_of(handle), key, value);
    if (rc == OK && sscanf(value, "%u %u", first, second) == 1) *second = *first;
    return rc;
}

/* --- the system --- */

int nvmlInitWithFlags(unsigned flags) {
    char value[LINE];
    place system = {SYSTEM, WHOLE};
    (void)flags;
    if (!getenv("LLAMADECK_NVML_SCENARIO")) return DRIVER_NOT_LOADED;
    if (find(system, "init_rc", value) && atoi(value)) return atoi(value);
    started++;
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return started ? (started--, OK) : UNINITIALIZED; }

const char *nvmlErrorString(int rc) {
    switch (rc) {
        case OK: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case NOT_SUPPORTED: return "Not Supported";
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case GPU_IS_LOST: return "GPU is lost";
        default: return "Unknown Error";
    }
}

#define SYSTEM_PLACE (place){SYSTEM, WHOLE}
int nvmlSystemGetDriverVersion(char *out, unsigned size) { return string(SYSTEM_PLACE, "driver", out, size); }
int nvmlSystemGetNVMLVersion(char *out, unsigned size) { return string(SYSTEM_PLACE, "nvml", out, size); }
int nvmlSystemGetCudaDriverVersion(int *out) {
    u64 value;
    int rc = number(SYSTEM_PLACE, "cuda", &value);
    if (rc == OK) *out = (int)value;
    return rc;
}
int nvmlSystemGetCudaDriverVersion_v2(int *out) { return nvmlSystemGetCudaDriverVersion(out); }

int nvmlDeviceGetCount_v2(unsigned *out) {
    u64 value;
    int rc = number(SYSTEM_PLACE, "count", &value);
    if (rc != OK && rc != NOT_SUPPORTED) return rc;
    *out = rc == OK ? (unsigned)value : (unsigned)count_of("[gpu]", SYSTEM);
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    char value[LINE];
    if (!started) return UNINITIALIZED;
    if ((int)index >= count_of("[gpu]", SYSTEM)) return INVALID_ARGUMENT;
    if (find((place){(int)index, WHOLE}, "handle", value) && *value == '!') return atoi(value + 1);
    *out = handle_of((int)index, WHOLE);
    return OK;
}

/* --- one GPU, or one MIG instance --- */

int nvmlDeviceGetName(void *d, char *out, unsigned size) { return string(place_of(d), "name", out, size); }
int nvmlDeviceGetUUID(void *d, char *out, unsigned size) { return string(place_of(d), "uuid", out, size); }
int nvmlDeviceGetIndex(void *d, unsigned *out) { *out = (unsigned)place_of(d).gpu; return OK; }

typedef struct { u64 total, free, used; } memory_v1;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2;

static int memory(void *d, memory_v2 *m) {
    int rc = number(place_of(d), "total", &m->total);
    m->reserved = m->used = 0;
    if (rc == OK) number(place_of(d), "reserved", &m->reserved);
    if (rc == OK) number(place_of(d), "used", &m->used);
    m->total <<= 20, m->reserved <<= 20, m->used <<= 20;
    m->free = m->total - m->reserved - m->used;
    return rc;
}
int nvmlDeviceGetMemoryInfo(void *d, memory_v1 *out) {
    memory_v2 m = {0};
    int rc = memory(d, &m);
    if (rc == OK) *out = (memory_v1){m.total, m.free, m.used + m.reserved};
    return rc;
}
int nvmlDeviceGetMemoryInfo_v2(void *d, memory_v2 *out) {
    char value[LINE];
    int rc = text(place_of(d), "memory_v2", value); /* only ever an error: drivers before 510 have no second version */
    return rc == NOT_SUPPORTED ? memory(d, out) : rc;
}

int nvmlDeviceGetUtilizationRates(void *d, unsigned out[2]) { return pair(d, "utilization", &out[0], &out[1]); }
int nvmlDeviceGetTemperature(void *d, unsigned sensor, unsigned *out) {
    (void)sensor;
    return reading(d, "temperature", out);
}
typedef struct { unsigned version, sensor; int celsius; } temperature_v1;
int nvmlDeviceGetTemperatureV(void *d, temperature_v1 *out) {
    return reading(d, "temperature", (unsigned *)&out->celsius);
}
int nvmlDeviceGetPowerUsage(void *d, unsigned *out) { return reading(d, "power", out); }
int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *out) { return reading(d, "power_limit", out); }
int nvmlDeviceGetPowerManagementLimit(void *d, unsigned *out) { return reading(d, "power_limit", out); }
int nvmlDeviceGetTotalEnergyConsumption(void *d, u64 *out) { return number(place_of(d), "energy", out); }
int nvmlDeviceGetFanSpeed(void *d, unsigned *out) { return reading(d, "fan", out); }
int nvmlDeviceGetPerformanceState(void *d, unsigned *out) { return reading(d, "performance_state", out); }
int nvmlDeviceGetClockInfo(void *d, unsigned clock, unsigned *out) {
    return reading(d, clock == 2 ? "memory_clock" : "sm_clock", out);
}
int nvmlDeviceGetMaxClockInfo(void *d, unsigned clock, unsigned *out) {
    return reading(d, clock == 2 ? "max_memory_clock" : "max_sm_clock", out);
}
int nvmlDeviceGetCurrPcieLinkGeneration(void *d, unsigned *out) { return reading(d, "pcie_generation", out); }
int nvmlDeviceGetCurrPcieLinkWidth(void *d, unsigned *out) { return reading(d, "pcie_width", out); }
int nvmlDeviceGetMaxPcieLinkGeneration(void *d, unsigned *out) { return reading(d, "max_pcie_generation", out); }
int nvmlDeviceGetMaxPcieLinkWidth(void *d, unsigned *out) { return reading(d, "max_pcie_width", out); }
int nvmlDeviceGetPcieThroughput(void *d, unsigned counter, unsigned *out) {
    return reading(d, counter ? "pcie_rx" : "pcie_tx", out);
}
int nvmlDeviceGetEccMode(void *d, unsigned *now, unsigned *pending) { return pair(d, "ecc", now, pending); }
int nvmlDeviceGetTotalEccErrors(void *d, unsigned type, unsigned counter, u64 *out) {
    (void)counter;
    return number(place_of(d), type ? "ecc_uncorrected" : "ecc_corrected", out);
}
int nvmlDeviceGetCurrentClocksEventReasons(void *d, u64 *out) { return number(place_of(d), "clock_reasons", out); }
int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) {
    return pair(d, "capability", (unsigned *)major, (unsigned *)minor);
}

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} pci_info;
int nvmlDeviceGetPciInfo_v3(void *d, pci_info *out) {
    int rc;
    memset(out, 0, sizeof *out);
    rc = string(place_of(d), "pci", out->bus_id, sizeof out->bus_id);
    if (rc == OK) sscanf(out->bus_id, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    return rc;
}

/* --- processes --- */

typedef struct { unsigned pid; u64 bytes; unsigned gpu_instance, compute_instance; } process_info;

static int processes(void *d, const char *key, unsigned *count, process_info *out) {
    char value[LINE], *rest = value;
    unsigned room = *count, seen = 0;
    int rc = text(place_of(d), key, value);
    if (rc != OK) return rc;
    for (char *item; (item = strtok_r(rest, " ,", &rest)); seen++) {
        char *mib = strchr(item, ':');
        if (!out || seen >= room) continue;
        out[seen] = (process_info){(unsigned)atoi(item), ~0ull, ~0u, ~0u};
        if (mib && mib[1] != '?') out[seen].bytes = strtoull(mib + 1, NULL, 10) << 20;
    }
    *count = seen;
    return seen > room || (seen && !out) ? INSUFFICIENT_SIZE : OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *count, process_info *out) {
    return processes(d, "compute", count, out);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, unsigned *count, process_info *out) {
    return processes(d, "graphics", count, out);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *d, unsigned *count, process_info *out) {
    return processes(d, "mps", count, out);
}

/* --- MIG --- */

int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *pending) { return pair(d, "mig", now, pending); }
int nvmlDeviceIsMigDeviceHandle(void *d, unsigned *out) { *out = place_of(d).mig != WHOLE; return OK; }
int nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *out) {
    *out = count_of("[mig]", place_of(d).gpu) ? MAX_MIG : 0;
    return OK;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned index, void **out) {
    if ((int)index >= count_of("[mig]", place_of(d).gpu)) return NOT_FOUND;
    *out = handle_of(place_of(d).gpu, (int)index);
    return OK;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *d, void **out) {
    *out = handle_of(place_of(d).gpu, WHOLE);
    return OK;
}
