// What a call may use, and the way out of it: Work. It is handed down to whatever takes long.
//
//   work.each(count, operations, body)   body(item, worker, own) once for every item, on as many
//                                        threads as so many operations in all are worth
//   work.spend(operations)               about to do so many: Ctrl-C is looked for now and then
//
// Items are handed out one by one, in order, to whichever worker is free; `worker` numbers those
// that got one, from 0, which is the calling thread. `own` is the worker's Work: of one thread, if
// several share the items, so that nothing inside shares again. An exception in any worker stops
// the others and leaves through the caller, who works too and keeps polling for interrupts while it
// waits for the others' last items.
//
// The threads are a pool of our own (work.cpp) and not OpenMP's, for one reason: a call never waits
// for a thread that has not begun. On a busy machine that takes many times as long as small work;
// here who comes late finds nothing left to do. OpenMP is asked for its setting alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

#include "core/run/views.hpp"

namespace pyfast {

struct Cancelled : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

// How many threads OpenMP would take now if it were not told, which threadpoolctl and
// omp_set_num_threads change; 0 if this build knows no OpenMP.
int runtime_threads();

class Work {
 public:
  // `poll` returns true when the user wants out; it is only ever called on the calling thread.
  explicit Work(int threads = 1, std::function<bool()> poll = {})
      : threads_(std::max(threads, 1)), poll_(std::move(poll)) {}
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  // Never do more workers than this take part.
  int threads() const { return threads_; }

  // How many items of so many operations to do between two reports; at least one.
  static index fitting(index operations) {
    return std::max<index>(1, kOperationsBetweenChecks / (operations + 1));
  }

  // Long loops report the operations they are about to do; once in a few million of them the user
  // is asked, on the calling thread, or what the user has said looked up. Throws Cancelled.
  void spend(index operations) {
    budget_ -= operations;
    if (budget_ <= 0) check();
  }

  // How many threads so many operations are worth. Handing work over takes as long as tens of
  // thousands of them. One operation is what a core does in about a nanosecond: of those that fill
  // vector registers, 8 or 16 are one.
  int worth(double operations) const {
    return static_cast<int>(std::min(static_cast<double>(threads_), 1 + operations / 1e6));
  }

  template <class Body>
  void each(index count, double operations, Body&& body) {
    const int threads = static_cast<int>(std::min<index>(worth(operations), count));
    if (threads > 1) {
      share(count, threads, [&](index item, int worker, Work& own) { body(item, worker, own); });
    } else {
      for (index item = 0; item < count; ++item) body(item, 0, *this);
    }
  }

 private:
  static constexpr index kOperationsBetweenChecks = 4'000'000;

  explicit Work(std::atomic<bool>& stopped) : threads_(1), stopped_(stopped) {}

  void share(index count, int threads, const std::function<void(index, int, Work&)>& body);
  void poll() {
    if (poll_ && poll_()) stopped_ = true;
  }
  void check() {
    budget_ = kOperationsBetweenChecks;
    poll();
    if (stopped_) throw Cancelled();
  }

  int threads_;
  std::function<bool()> poll_;  // the calling thread's alone
  std::atomic<bool> told_{false};
  std::atomic<bool>& stopped_ = told_;  // of all workers of the call
  index budget_ = kOperationsBetweenChecks;
};

}  // namespace pyfast
