// Memory for repacked weights: in 2 MiB pages, in the order it is asked for, each distinct constant once a process.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <tuple>
#include <utility>

namespace memory {

constexpr size_t PAGE = size_t{2} << 20, SLAB = size_t{64} << 20, LINE = 64;

// Address space that is given memory as it is written to, and returned when the last constant in it is gone.
class Slab {
public:
    explicit Slab(size_t size) : size_(size + PAGE) {
        base_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base_ == MAP_FAILED) throw std::bad_alloc();
        const auto start = reinterpret_cast<uintptr_t>(base_);
        next_ = reinterpret_cast<char*>((start + PAGE - 1) / PAGE * PAGE);
        end_ = next_ + size;
#ifdef MADV_HUGEPAGE
        madvise(next_, size, MADV_HUGEPAGE);
#endif
    }
    ~Slab() { munmap(base_, size_); }
    Slab(const Slab&) = delete;
    Slab& operator=(const Slab&) = delete;

    char* take(size_t size) {  // null where it is full
        size = (size + LINE - 1) / LINE * LINE;
        if (size > size_t(end_ - next_)) return nullptr;
        return std::exchange(next_, next_ + size);
    }

private:
    void* base_;
    char *next_, *end_;
    size_t size_;
};

struct Block {
    std::shared_ptr<Slab> slab;
    char* data;
    float factor;  // what all scales in it have been divided by
};

// Two independent hashes of the bytes, and what they are: enough to know a constant again.
using Key = std::tuple<uint64_t, uint64_t, int64_t, int64_t>;

inline uint64_t mixed(uint64_t x) {
    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15;
    return x ^ x >> 29;
}

inline void hash(const void* bytes, size_t size, uint64_t (&state)[2]) {
    uint64_t lanes[4] = {state[0] ^ size, state[1], ~state[0], ~state[1]}, words[4] = {};
    const char* from = static_cast<const char*>(bytes);
    for (size_t i = 0; i < size; i += sizeof words) {
        std::memcpy(words, from + i, size - i < sizeof words ? size - i : sizeof words);
        for (int lane = 0; lane < 4; lane++) lanes[lane] = mixed(lanes[lane] + words[lane]);
    }
    state[0] = mixed(lanes[0] * 3 + mixed(lanes[1]) * 5 + mixed(lanes[2] * 7 + mixed(lanes[3])));
    state[1] = mixed(lanes[3] * 11 + mixed(lanes[2]) * 13 + mixed(lanes[1] * 17 + mixed(lanes[0])));
}

class Registry {
public:
    // The block known by `key`, or one of `size` bytes that `fill` has written and whose factor it has returned.
    std::shared_ptr<const Block> get(const Key& key, size_t size, const std::function<float(char*)>& fill) {
        const std::lock_guard<std::mutex> guard(lock_);
        if (auto known = blocks_[key].lock()) return known;
        auto [slab, data] = room(size);
        auto block = std::make_shared<Block>(Block{std::move(slab), data, fill(data)});
        blocks_[key] = block;
        return block;
    }

    int64_t count() {  // of blocks that some kernel holds
        const std::lock_guard<std::mutex> guard(lock_);
        int64_t held = 0;
        for (const auto& [_, block] : blocks_) held += !block.expired();
        return held;
    }

private:
    std::pair<std::shared_ptr<Slab>, char*> room(size_t size) {
        auto slab = current_.lock();
        char* data = slab ? slab->take(size) : nullptr;
        if (!data) {
            slab = std::make_shared<Slab>(size > SLAB ? size : SLAB);
            current_ = slab;
            data = slab->take(size);
        }
        return {slab, data};
    }

    std::mutex lock_;
    std::map<Key, std::weak_ptr<const Block>> blocks_;
    std::weak_ptr<Slab> current_;
};

inline Registry& registry() {
    static Registry* const only = new Registry;  // outlives sessions that are closed while the process ends
    return *only;
}

// Lets go of pages of a file that have been read; where the bytes lie in no mapped file, nothing happens.
inline void give_back(const void* bytes, size_t size) {
#ifdef __linux__
    constexpr uintptr_t SMALL = 4096;
    const auto at = reinterpret_cast<uintptr_t>(bytes);
    const uintptr_t first = (at + SMALL - 1) / SMALL * SMALL, last = (at + size) / SMALL * SMALL;
    std::FILE* maps = last > first ? std::fopen("/proc/self/maps", "r") : nullptr;
    if (!maps) return;
    char line[4500];
    while (std::fgets(line, sizeof line, maps)) {
        unsigned long long start, end, inode;
        if (std::sscanf(line, "%llx-%llx %*s %*s %*s %llu", &start, &end, &inode) != 3) continue;
        if (inode && start <= first && last <= end) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
    }
    std::fclose(maps);
#endif
}

}  // namespace memory
