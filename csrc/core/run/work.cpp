#include "core/run/work.hpp"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <limits>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#define PYFAST_POSIX
#include <unistd.h>

#include <csignal>
#endif

#if !defined(PYFAST_THREADS_STD)
#include <omp.h>
#endif

namespace pyfast {

int runtime_threads() {
#if defined(PYFAST_THREADS_STD)
  return 0;
#else
  return omp_get_max_threads();
#endif
}

namespace {

// The items of one call. Who comes late may hold on to it after the call has returned, and then
// finds no item left: only who has got one may touch what is the caller's.
class Job {
 public:
  Job(index count, int wanted, std::atomic<bool>& stopped,
      std::function<void(index item, int worker)> run)
      : helpers(wanted), run_(std::move(run)), stopped_(stopped), claimed_(count), count_(count) {}

  // Takes items until none is left.
  void take_part(bool is_caller) {
    int worker = is_caller ? 0 : -1;
    for (index item; (item = next_.fetch_add(1)) < count_;) {
      if (worker < 0) worker = workers_.fetch_add(1);
      try {
        if (stopped_) throw Cancelled();
        run_(item, worker);
      } catch (...) {
        close(std::current_exception());
        stopped_ = true;
      }
      if (done_.fetch_add(1) + 1 >= claimed_) {
        const std::lock_guard<std::mutex> lock(mutex_);
        finished_.notify_one();
      }
    }
  }

  // No item is handed out from now on.
  void close(const std::exception_ptr& error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error && !error_) error_ = error;
    const index taken = next_.exchange(std::numeric_limits<index>::max() / 2);
    if (taken < count_) claimed_ = taken;
  }

  // Until all items handed out are done, with a look at poll() every now and then.
  template <class Poll>
  void wait(Poll&& poll) {
    const auto all_done = [this] { return done_ >= claimed_; };
    std::unique_lock<std::mutex> lock(mutex_);
    while (!finished_.wait_for(lock, std::chrono::milliseconds(20), all_done)) {
      lock.unlock();
      poll();
      if (stopped_) close(nullptr);
      lock.lock();
    }
    if (error_) std::rethrow_exception(error_);
  }

  int helpers;  // that are still wanted; the pool's to count

 private:
  std::function<void(index item, int worker)> run_;
  std::atomic<bool>& stopped_;  // the caller's
  std::atomic<index> next_{0}, done_{0}, claimed_;
  std::atomic<int> workers_{1};  // that have got an item; the first is the caller
  const index count_;
  std::mutex mutex_;
  std::condition_variable finished_;
  std::exception_ptr error_;  // guarded by mutex_
};

#if defined(PYFAST_POSIX)
// Signals are for the threads that were there before us: Python's main one, for instance.
class NoSignals {
 public:
  NoSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~NoSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};
long process() { return getpid(); }
#else
struct NoSignals {
  NoSignals() {}
};
long process() { return 0; }
#endif

// Threads that wait for jobs. It is never destroyed, since they end with the process.
class Pool {
 public:
  // Of this process: a forked child has none of its parent's threads.
  static Pool& instance() {
    static std::atomic<Pool*> current{nullptr};
    Pool* pool = current;
    if (pool != nullptr && pool->process_ == process()) return *pool;
    auto fresh = std::make_unique<Pool>();
    if (current.compare_exchange_strong(pool, fresh.get())) return *fresh.release();
    return *pool;
  }

  void offer(const std::shared_ptr<Job>& job) {
    const std::lock_guard<std::mutex> lock(mutex_);
    grow(job->helpers);
    jobs_.push_back(job);
    for (int helper = 0; helper < job->helpers; ++helper) offered_.notify_one();
  }

  void withdraw(const std::shared_ptr<Job>& job) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto at = std::find(jobs_.begin(), jobs_.end(), job);
    if (at != jobs_.end()) jobs_.erase(at);
  }

 private:
  // If the system gives no thread, there are fewer.
  void grow(int size) {
    const NoSignals blocked;
    try {
      for (; size_ < size; ++size_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  [[noreturn]] void serve() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      offered_.wait(lock, [this] { return !jobs_.empty(); });
      const std::shared_ptr<Job> job = jobs_.front();
      if (--job->helpers == 0) jobs_.pop_front();
      lock.unlock();
      job->take_part(false);
    }
  }

  const long process_ = process();
  std::mutex mutex_;
  std::condition_variable offered_;
  std::deque<std::shared_ptr<Job>> jobs_;  // that want more helpers
  int size_ = 0;
};

}  // namespace

void Work::share(index count, int threads, const std::function<void(index, int, Work&)>& body) {
  std::vector<std::unique_ptr<Work>> own;  // of the helpers
  for (int helper = 1; helper < threads; ++helper) own.emplace_back(new Work(stopped_));
  struct Alone {  // nothing inside shares again
    int& threads;
    int all = std::exchange(threads, 1);
    ~Alone() { threads = all; }
  } const alone{threads_};
  const auto job = std::make_shared<Job>(count, threads - 1, stopped_, [&](index item, int worker) {
    body(item, worker, worker == 0 ? *this : *own[static_cast<std::size_t>(worker - 1)]);
  });
  Pool& pool = Pool::instance();
  pool.offer(job);
  job->take_part(true);
  pool.withdraw(job);
  job->wait([this] { poll(); });
  if (stopped_) throw Cancelled();
}

}  // namespace pyfast
