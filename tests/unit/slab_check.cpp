// Random use of a slab against a model: addresses are distinct, contents stay, memory goes back. Prints what it saw.
#include "slab.hpp"
#include <cassert>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

struct Record {
    uint64_t stamp = 0;
    uint64_t rest[14] = {};
};

static void require(bool holds, const char *what) {
    if (!holds) {
        printf("violated: %s\n", what);
        exit(1);
    }
}

static long mapped_kb() {
    std::ifstream status("/proc/self/status");
    std::string word;
    while (status >> word)
        if (word == "VmSize:") {
            long kb;
            status >> kb;
            return kb;
        }
    return -1;
}

static void fill(Slab<Record> &slab, std::vector<Record *> &out, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) {
        Record *r = slab.make();
        require(r->stamp == 0 && r->rest[13] == 0, "a record is made anew");
        r->stamp = r->rest[13] = seed + i + 1;
        out.push_back(r);
    }
}

static void random_use(unsigned seed) {
    std::mt19937_64 random(seed);
    Slab<Record> slab;
    std::vector<Record *> live;
    std::set<Record *> addresses;
    uint64_t stamp = 0;
    for (int step = 0; step < 400; step++) {
        size_t n = random() % 4000;
        if (random() % 2) {
            size_t before = live.size();
            fill(slab, live, n, stamp);
            stamp += n;
            for (size_t i = before; i < live.size(); i++)
                require(addresses.insert(live[i]).second, "no address is given out twice");
        } else {
            for (size_t i = 0; i < n && !live.empty(); i++) {
                size_t at = random() % live.size();
                Record *r = live[at];
                require(r->stamp == r->rest[13] && r->stamp != 0, "nobody else wrote to a record");
                live[at] = live.back();
                live.pop_back();
                addresses.erase(r);
                slab.drop(r);
            }
        }
        if (random() % 50 == 0) slab.trim();
    }
    for (Record *r : live) slab.drop(r);
}

static void memory_goes_back() {
    Slab<Record> slab;
    std::vector<Record *> live;
    live.reserve(500000);
    fill(slab, live, 1000, 0);
    long before = mapped_kb();
    fill(slab, live, 499000, 1000);
    long full = mapped_kb();
    require(full - before >= 50 << 10, "half a million records of 120 bytes need at least 50 MiB");
    while (live.size() > 1000) {
        slab.drop(live.back());
        live.pop_back();
    }
    require(mapped_kb() - before <= 20 << 10, "a bounded reserve stays");
    slab.trim();
    slab.trim();
    require(mapped_kb() - before <= 2 << 10, "the reserve goes when nobody needed it");
    for (Record *r : live) slab.drop(r);
}

static void two_threads() {
    Slab<Record> slab;
    std::vector<Record *> passed(200000, nullptr);
    std::thread freeing([&] {
        for (auto &place : passed) {
            Record *r;
            while (!(r = __atomic_load_n(&place, __ATOMIC_ACQUIRE))) std::this_thread::yield();
            require(r->stamp == r->rest[13] && r->stamp != 0, "what was passed on is whole");
            slab.drop(r);
        }
    });
    for (size_t i = 0; i < passed.size(); i++) {
        Record *r = slab.make();
        r->stamp = r->rest[13] = i + 1;
        __atomic_store_n(&passed[i], r, __ATOMIC_RELEASE);
    }
    freeing.join();
}

int main() {
    for (unsigned seed = 0; seed < 5; seed++) random_use(seed);
    memory_goes_back();
    two_threads();
    printf("as modelled\n");
}
