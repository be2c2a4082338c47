// Threads, and the way out of them. The only file that knows OpenMP; -DPYFAST_THREADS=std swaps it
// for std::thread, which thread sanitizers understand.
//
// parallel_for(count, threads, cancel, body) calls body(item, worker, token) once for every item.
// Items are handed out one by one, in order, to whichever worker is free. An exception in any
// worker stops the others and leaves through the caller. The calling thread works too, and keeps
// polling for interrupts while it waits for the others.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#if defined(PYFAST_THREADS_STD)
#include <thread>
#else
#include <omp.h>
#endif

#include "core/run/views.hpp"

namespace pyfast {

struct Cancelled : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

// Shared by all workers of one call. `poll` returns true when the user wants out; it is only ever
// called on the thread that made the call.
class Cancel {
 public:
  Cancel() = default;
  explicit Cancel(std::function<bool()> poll) : poll_(std::move(poll)) {}

  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  void stop() { stopped_.store(true, std::memory_order_relaxed); }
  void poll() {
    if (poll_ && poll_()) stop();
  }

 private:
  std::function<bool()> poll_;
  std::atomic<bool> stopped_{false};
};

// One worker's handle on a Cancel. Long loops report the operations they are about to do; once in
// a few million of them the flag is looked at and, on the calling thread, the user is asked.
class Token {
 public:
  Token(Cancel& cancel, bool is_caller) : cancel_(cancel), is_caller_(is_caller) {}

  Cancel& cancel() const { return cancel_; }

  // How many items of so many operations to do between two reports; at least one.
  static index fitting(index operations) {
    return std::max<index>(1, kOperationsBetweenChecks / (operations + 1));
  }

  void spend(index operations) {
    budget_ -= operations;
    if (budget_ <= 0) check();
  }

 private:
  static constexpr index kOperationsBetweenChecks = 4'000'000;

  void check() {
    budget_ = kOperationsBetweenChecks;
    if (is_caller_) cancel_.poll();
    if (cancel_.stopped()) throw Cancelled();
  }

  Cancel& cancel_;
  bool is_caller_;
  index budget_ = kOperationsBetweenChecks;
};

namespace detail {

// Runs worker(0 .. threads-1), each on its own thread; worker 0 is the calling thread.
template <class Worker>
void run_team(int threads, Worker&& worker) {
#if defined(PYFAST_THREADS_STD)
  std::vector<std::thread> team;
  for (int id = 1; id < threads; ++id) team.emplace_back([&worker, id] { worker(id); });
  worker(0);
  for (std::thread& member : team) member.join();
#else
  // A dynamic claim instead of omp_get_thread_num keeps this right when the runtime grants fewer
  // threads than were asked for. Worker 0 must be the caller, which `master` names.
  std::atomic<int> next_id{1};
#pragma omp parallel num_threads(threads)
  {
    int id = -1;
#pragma omp master
    id = 0;
    worker(id == 0 ? 0 : next_id.fetch_add(1));
  }
#endif
}

}  // namespace detail

// How many threads OpenMP would take now if it were not told, which threadpoolctl and
// omp_set_num_threads change; 0 for std::thread, which has no such setting.
inline int runtime_threads() {
#if defined(PYFAST_THREADS_STD)
  return 0;
#else
  return omp_get_max_threads();
#endif
}

// Waking a thread takes as long as tens of thousands of operations, longer on a busy machine.
inline int worthwhile_threads(int threads, double operations) {
  return static_cast<int>(std::min(static_cast<double>(threads), 1 + operations / 1e6));
}

template <class Body>
void parallel_for(index count, int threads, Cancel& cancel, Body&& body) {
  if (count <= 0) return;
  threads = static_cast<int>(std::min<index>(std::max(threads, 1), count));
  if (threads == 1) {
    Token token(cancel, true);
    for (index item = 0; item < count; ++item) body(item, 0, token);
    return;
  }

  std::atomic<index> next{0};
  std::mutex mutex;
  std::condition_variable finished;
  index open_items = count;  // guarded by mutex, as is error
  std::exception_ptr error;

  const auto work = [&](int id) {
    Token token(cancel, id == 0);
    index done = 0;
    try {
      for (index item; !cancel.stopped() && (item = next.fetch_add(1)) < count; ++done) {
        body(item, id, token);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
      cancel.stop();
    }
    std::unique_lock<std::mutex> lock(mutex);
    open_items -= done;
    finished.notify_one();
    // The caller stays reachable for Ctrl-C while the others finish their last items.
    while (id == 0 && open_items > 0 && !cancel.stopped()) {
      finished.wait_for(lock, std::chrono::milliseconds(20));
      lock.unlock();
      cancel.poll();
      lock.lock();
    }
  };
  detail::run_team(threads, work);
  if (error) std::rethrow_exception(error);
  if (cancel.stopped()) throw Cancelled();
}

}  // namespace pyfast
