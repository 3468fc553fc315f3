// The only place that starts threads. None outlives the call, so a fork between calls is safe.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <limits>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace hybridrec {

// Runs work(begin, end) over [0, n) in blocks of `grain`, on up to `threads` threads.
//
// `make_work` is called once in every thread and returns that thread's `work`, which may own
// scratch memory. Blocks are the same for any thread count, so results are too as long as `work`
// writes only what belongs to its block. If blocks throw, the exception of the lowest one is
// rethrown: blocks are handed out in order, so whatever stands before a failed block still runs,
// and the error is the same for any thread count.
template <class MakeWork>
void parallel_for(int64_t n, int64_t grain, int threads, const MakeWork& make_work) {
    if (n <= 0) return;
    const int64_t blocks = (n + grain - 1) / grain;
    std::atomic<int64_t> next{0};
    std::mutex guard;
    std::exception_ptr error;
    int64_t failed = std::numeric_limits<int64_t>::max();

    const auto run = [&] {
        int64_t block = -1;  // below every block: failing to get scratch memory comes first
        try {
            auto work = make_work();
            while ((block = next.fetch_add(1)) < blocks)
                work(block * grain, std::min(n, (block + 1) * grain));
        } catch (...) {
            next.store(blocks);
            const std::lock_guard<std::mutex> lock(guard);
            if (block < failed) {
                failed = block;
                error = std::current_exception();
            }
        }
    };

    std::vector<std::thread> others;
    const int64_t wanted = std::min<int64_t>(threads, blocks) - 1;
    others.reserve(static_cast<size_t>(wanted));
    try {
        while (static_cast<int64_t>(others.size()) < wanted) others.emplace_back(run);
    } catch (const std::system_error&) {
        // The system has no more threads to give: fewer do the same work, with the same result.
    }
    run();
    for (auto& thread : others) thread.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace hybridrec
