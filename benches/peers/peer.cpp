// peer convert LIST OUT.trace  |  peer model LIST ENTRIES WAYS ROUNDS
// LIST: one access a line, `r 0x7f00` or `w 0x7f00`.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>
#include "memref.h"
#include "trace_entry.h"
#include "simulator/tlb.h"
#include "simulator/tlb_stats.h"
#include "simulator/create_cache_replacement_policy.h"
using namespace dynamorio::drmemtrace;
struct access_t { bool write; addr_t addr; };
static std::vector<access_t> load(const char *path)
{
    std::vector<access_t> all;
    FILE *in = fopen(path, "r");
    char kind; unsigned long long addr;
    while (fscanf(in, " %c %llx", &kind, &addr) == 2) all.push_back({kind == 'w', (addr_t)addr});
    fclose(in);
    return all;
}
static void put(FILE *out, int type, int size, addr_t addr)
{
    trace_entry_t e; e.type = (unsigned short)type; e.size = (unsigned short)size; e.addr = addr;
    fwrite(&e, sizeof(e), 1, out);
}
int main(int argc, char **argv)
{
    std::vector<access_t> all = load(argv[2]);
    if (!strcmp(argv[1], "convert")) {
        FILE *out = fopen(argv[3], "w");
        put(out, TRACE_TYPE_HEADER, 0, TRACE_ENTRY_VERSION);
        put(out, TRACE_TYPE_MARKER, TRACE_MARKER_TYPE_VERSION, TRACE_ENTRY_VERSION);
        put(out, TRACE_TYPE_MARKER, TRACE_MARKER_TYPE_FILETYPE, OFFLINE_FILE_TYPE_ARCH_X86_64 | OFFLINE_FILE_TYPE_FILTERED | OFFLINE_FILE_TYPE_IFILTERED);
        put(out, TRACE_TYPE_THREAD, 0, 1);
        put(out, TRACE_TYPE_PID, 0, 1);
        put(out, TRACE_TYPE_MARKER, TRACE_MARKER_TYPE_CACHE_LINE_SIZE, 64);
        put(out, TRACE_TYPE_MARKER, TRACE_MARKER_TYPE_PAGE_SIZE, 4096);
        put(out, TRACE_TYPE_MARKER, TRACE_MARKER_TYPE_TIMESTAMP, 1);
        put(out, TRACE_TYPE_MARKER, TRACE_MARKER_TYPE_CPU_ID, 0);
        for (auto &a : all) put(out, a.write ? TRACE_TYPE_WRITE : TRACE_TYPE_READ, 1, a.addr);
        put(out, TRACE_TYPE_THREAD_EXIT, 0, 1);
        put(out, TRACE_TYPE_FOOTER, 0, 0);
        fclose(out);
        return 0;
    }
    int entries = atoi(argv[3]), ways = atoi(argv[4]), rounds = atoi(argv[5]);
    for (int round = 0; round < rounds; round++) {
        tlb_t tlb("tlb");
        auto *stats = new tlb_stats_t(4096);
        tlb.init(ways, 4096, entries, nullptr, stats, create_cache_replacement_policy("LRU", entries / ways, ways));
        memref_t m; memset(&m, 0, sizeof(m));
        m.data.pid = 1; m.data.tid = 1; m.data.size = 1;
        clock_t t = clock();
        for (auto &a : all) {
            m.data.type = a.write ? TRACE_TYPE_WRITE : TRACE_TYPE_READ;
            m.data.addr = a.addr;
            tlb.request(m);
        }
        double s = (double)(clock() - t) / CLOCKS_PER_SEC;
        printf("%zu lookups %.3f s CPU %.1f M/s hits %lld misses %lld\n", all.size(), s, all.size() / s / 1e6,
               (long long)stats->get_metric(metric_name_t::HITS), (long long)stats->get_metric(metric_name_t::MISSES));
    }
}
