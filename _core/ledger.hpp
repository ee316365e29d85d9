// What the ledger is made of: entries, callers, and their containers. The rules are in ledgerrules.pyx.
#pragma once
#include "types.hpp"
#include <algorithm>
#include <vector>

enum EntryState : uint8_t { ENTRY_ACCEPTED = 1, ENTRY_DONE = 2 };

struct Caller;

struct Entry {               // a call that was accepted, and later its reply
    Entry *prev = nullptr, *next = nullptr;   // among the droppable ones
    Caller *caller = nullptr;                 // null: the call was named by a key
    Blob *reply = nullptr;                    // when it is done
    uint64_t digest = 0;
    uint64_t position = 0;                    // of its record in the journal
    Id16 call_id{};
    uint32_t n = 0;
    uint16_t retry = 0;
    uint8_t state = ENTRY_ACCEPTED;
    uint8_t status = 0;
    uint32_t droppable = 0;                   // is in that list; while a dump is made its place there, from 1
    uint32_t generation = 0;                  // of its caller, when an attempt of that last asked for it

    Entry() = default;
    Entry(const Entry &) = delete;
    Entry &operator=(const Entry &) = delete;
    ~Entry() { blob_drop(reply); }
    uint64_t order() const { return (uint64_t)n << 16 | retry; }
};

class EntryList {            // replies that may be dropped, those first that were acknowledged first
    Entry *head_ = nullptr, *tail_ = nullptr;

  public:
    Entry *front() const { return head_; }
    void append(Entry *e) {
        e->droppable = 1;
        e->prev = tail_;
        e->next = nullptr;
        (tail_ ? tail_->next : head_) = e;
        tail_ = e;
    }
    void remove(Entry *e) {
        (e->prev ? e->prev->next : head_) = e->next;
        (e->next ? e->next->prev : tail_) = e->prev;
        e->prev = e->next = nullptr;
        e->droppable = 0;
    }
    void clear() { head_ = tail_ = nullptr; }
};

class EntryRow {             // one caller's entries by (n, retry); they come at the end and go at the front
    struct Slot {
        uint64_t order;
        Entry *entry;
    };
    std::vector<Slot> slots_;
    size_t first_ = 0;       // the slots before it are free

    size_t seek(uint64_t order) const {
        auto less = [](const Slot &s, uint64_t o) { return s.order < o; };
        return (size_t)(std::lower_bound(slots_.begin() + (long)first_, slots_.end(), order, less) - slots_.begin());
    }

  public:
    size_t size() const { return slots_.size() - first_; }
    Entry *at(size_t i) const { return slots_[first_ + i].entry; }
    size_t rank(uint32_t n) const { return seek((uint64_t)n << 16) - first_; }   // how many come before call n
    Entry *find(uint64_t order) const {
        if (!size() || order > slots_.back().order) return nullptr;
        if (order == slots_.back().order) return slots_.back().entry;
        size_t i = seek(order);
        return slots_[i].order == order ? slots_[i].entry : nullptr;
    }
    void insert(Entry *e) {
        Slot s{e->order(), e};
        if (first_ > 32 && first_ > size()) {
            slots_.erase(slots_.begin(), slots_.begin() + (long)first_);
            first_ = 0;
        }
        if (!size() || s.order > slots_.back().order) slots_.push_back(s);
        else slots_.insert(slots_.begin() + (long)seek(s.order), s);
    }
    void remove(size_t rank) {   // moves what is fewer: those before it, or those behind
        size_t i = first_ + rank;
        if (rank < slots_.size() - i) {
            std::move_backward(slots_.begin() + (long)first_, slots_.begin() + (long)i, slots_.begin() + (long)i + 1);
            first_++;
        } else {
            slots_.erase(slots_.begin() + (long)i);
        }
        if (first_ == slots_.size()) {
            slots_.clear();
            first_ = 0;
        }
        if (slots_.empty() && slots_.capacity() > 1024) std::vector<Slot>().swap(slots_);
    }
    void remove(Entry *e) { remove(seek(e->order()) - first_); }
};

class NumberSet {            // numbers of calls whose replies have expired, as ranges: a caller's calls expire in order
  public:
    struct Range {
        uint32_t low, high;
    };

  private:
    std::vector<Range> ranges_;

    size_t seek(uint32_t n) const {   // the first range that ends at or behind n
        auto less = [](const Range &r, uint32_t n) { return r.high < n; };
        return (size_t)(std::lower_bound(ranges_.begin(), ranges_.end(), n, less) - ranges_.begin());
    }

  public:
    size_t size() const { return ranges_.size(); }
    const Range &at(size_t i) const { return ranges_[i]; }
    void append(uint32_t low, uint32_t high) { ranges_.push_back(Range{low, high}); }
    void clear() { std::vector<Range>().swap(ranges_); }
    uint64_t total() const {
        uint64_t sum = 0;
        for (const Range &r : ranges_) sum += (uint64_t)r.high - r.low + 1;
        return sum;
    }
    bool contains(uint32_t n) const {
        size_t i = seek(n);
        return i < ranges_.size() && ranges_[i].low <= n;
    }
    bool add(uint32_t n) {   // false: it was there
        size_t i = seek(n);
        if (i < ranges_.size() && ranges_[i].low <= n) return false;
        bool joins_left = i > 0 && ranges_[i - 1].high + 1 == n, joins_right = i < ranges_.size() && ranges_[i].low == n + 1;
        if (joins_left && joins_right) {
            ranges_[i - 1].high = ranges_[i].high;
            ranges_.erase(ranges_.begin() + (long)i);
        } else if (joins_left) {
            ranges_[i - 1].high = n;
        } else if (joins_right) {
            ranges_[i].low = n;
        } else {
            ranges_.insert(ranges_.begin() + (long)i, Range{n, n});
        }
        return true;
    }
};

class KeyedSet {             // identities of calls named by keys whose replies have expired: 24 bytes each, open addressing
  public:
    struct Slot {
        Id16 id;             // all zeros: free
        uint64_t digest;
    };

  private:
    std::vector<Slot> slots_;
    size_t count_ = 0;

    size_t probe(const Id16 &id) const {
        size_t mask = slots_.size() - 1, i = IdHash()(id) & mask;
        while (!(slots_[i].id == Id16{}) && !(slots_[i].id == id)) i = (i + 1) & mask;
        return i;
    }
    void grow() {
        std::vector<Slot> old(slots_.empty() ? 16 : slots_.size() * 2, Slot{});
        old.swap(slots_);
        for (const Slot &s : old)
            if (!(s.id == Id16{})) slots_[probe(s.id)] = s;
    }

  public:
    size_t size() const { return count_; }
    const Slot *find(const Id16 &id) const {
        if (!count_) return nullptr;
        const Slot *s = &slots_[probe(id)];
        return s->id == id ? s : nullptr;
    }
    void add(const Id16 &id, uint64_t digest) {
        if ((count_ + 1) * 4 > slots_.size() * 3) grow();
        Slot &s = slots_[probe(id)];
        count_ += s.id == Id16{};
        s = Slot{id, digest};
    }
    void clear() {
        std::vector<Slot>().swap(slots_);
        count_ = 0;
    }
    void sorted(std::vector<Slot> *out) const {
        for (const Slot &s : slots_)
            if (!(s.id == Id16{})) out->push_back(s);
        std::sort(out->begin(), out->end(), [](const Slot &a, const Slot &b) { return memcmp(a.id.b, b.id.b, 16) < 0; });
    }
};

struct Caller {
    Id16 id{}, root{};
    uint8_t root_kind = 0;
    bool forgets = false;    // acknowledged replies go at once: nobody makes these calls again
    bool released = false;   // goes when the calls under way have ended
    bool inside = false;     // called in a method of an exactly-once actor, which may outlive the root's driver
    uint32_t generation = 0; // how often an attempt came that was newer than all before
    uint32_t acked = 0;
    uint32_t accepted = 0;   // calls under way
    std::vector<uint32_t> attempts;
    EntryRow row;
    NumberSet expired;
};

struct Tombs {               // released callers of one root of whose calls copies may still arrive
    std::unordered_map<Id16, bool, IdHash> ids;
    bool over = false;       // nothing of the root runs any more: what is under way is read by this process or by none
};

struct LedgerState {
    Id16 key{};              // of the actor itself
    uint64_t history = 0, bound_bytes = 0, bound_calls = 0;
    std::unordered_map<Id16, Caller, IdHash> callers;
    Caller *last = nullptr;  // found last
    std::unordered_map<Id16, Entry *, IdHash> keyed;
    KeyedSet keyed_expired;
    EntryList droppable;
    uint64_t calls = 0, reply_bytes = 0, expired = 0, accepted = 0, keyed_accepted = 0;
    uint64_t duplicates = 0, mismatches = 0, refused = 0, held_back = 0;   // since the process began
    std::unordered_map<Id16, Tombs, IdHash> tombs;                         // by root
    uint64_t ntombs = 0;
    bool newer = false;      // the call admitted last came from a newer attempt of a known caller, of which nothing tells

    ~LedgerState() { clear(); }
    Caller *caller(const Id16 &id) {
        if (last && last->id == id) return last;
        auto it = callers.find(id);
        return it == callers.end() ? nullptr : last = &it->second;
    }
    Caller *caller_new(const Id16 &id) {
        last = &callers[id];
        last->id = id;
        return last;
    }
    void caller_erase(Caller *c) {
        if (last == c) last = nullptr;
        callers.erase(Id16(c->id));
    }
    bool buried(const Id16 &root, const Id16 &id) const {
        if (tombs.empty()) return false;
        auto it = tombs.find(root);
        return it != tombs.end() && it->second.ids.count(id);
    }
    void bury(const Id16 &root, const Id16 &id) { ntombs += tombs[root].ids.emplace(id, true).second; }
    void root_over(const Id16 &root) {
        auto it = tombs.find(root);
        if (it != tombs.end()) it->second.over = true;
    }
    struct Buried {
        Id16 root, id;
    };
    void buried_sorted(std::vector<Buried> *out) const {
        for (auto &i : tombs)
            if (!i.second.over)
                for (auto &id : i.second.ids) out->push_back(Buried{i.first, id.first});
        std::sort(out->begin(), out->end(), [](const Buried &a, const Buried &b) { return memcmp(&a, &b, 32) < 0; });
    }
    Entry *keyed_find(const Id16 &id) const {
        auto it = keyed.find(id);
        return it == keyed.end() ? nullptr : it->second;
    }
    void callers_of(const Id16 &root, std::vector<Caller *> *out) {
        for (auto &i : callers)
            if (i.second.root == root) out->push_back(&i.second);
    }
    void callers_sorted(std::vector<Caller *> *out) {
        for (auto &i : callers) out->push_back(&i.second);
        std::sort(out->begin(), out->end(), [](Caller *a, Caller *b) { return memcmp(a->id.b, b->id.b, 16) < 0; });
    }
    void keyed_sorted(std::vector<Entry *> *out) {
        for (auto &i : keyed) out->push_back(i.second);
        std::sort(out->begin(), out->end(), [](Entry *a, Entry *b) { return memcmp(a->call_id.b, b->call_id.b, 16) < 0; });
    }
    void clear() {
        for (auto &i : callers)
            for (size_t k = 0; k < i.second.row.size(); k++) delete i.second.row.at(k);
        for (auto &i : keyed) delete i.second;
        std::unordered_map<Id16, Caller, IdHash>().swap(callers);
        std::unordered_map<Id16, Entry *, IdHash>().swap(keyed);
        last = nullptr;
        keyed_expired.clear();
        droppable.clear();
        tombs.clear();
        ntombs = 0;
        newer = false;
        calls = reply_bytes = expired = accepted = keyed_accepted = 0;
    }
};
