#include <atomic>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "check.hpp"
#include "core/run/work.hpp"

namespace pyfast::test {

namespace {

constexpr double kMuch = 1e12;  // operations: worth all threads

}  // namespace

TEST(every_item_is_done_once_by_any_number_of_threads) {
  for (const int threads : {1, 2, 3, 8}) {
    for (const index count : {0, 1, 2, 7, 100}) {
      Work work(threads);
      std::vector<std::atomic<int>> done(static_cast<std::size_t>(count));
      work.each(count, kMuch, [&](index item, int worker, Work&) {
        CHECK(worker >= 0 && worker < threads);
        ++done[static_cast<std::size_t>(item)];
      });
      for (const auto& times : done) CHECK(times == 1);
    }
  }
}

TEST(an_exception_in_a_worker_reaches_the_caller) {
  for (const int threads : {1, 4}) {
    Work work(threads);
    CHECK_THROWS(work.each(50, kMuch,
                           [](index item, int, Work&) {
                             if (item == 31) throw std::domain_error("31");
                           }),
                 std::domain_error);
  }
}

TEST(an_interrupt_stops_all_workers) {
  for (const int threads : {1, 4}) {
    std::atomic<index> finished{0};
    Work work(threads, [] { return true; });
    CHECK_THROWS(work.each(1'000'000'000'000, kMuch,
                           [&](index, int, Work& own) {
                             own.spend(1'000'000);
                             ++finished;
                           }),
                 Cancelled);
    CHECK(finished < 1'000'000'000'000);
  }
}

// The pool's one helper is held up inside another call, as a busy machine would hold it up.
TEST(a_call_waits_for_no_thread_that_has_not_begun) {
  std::atomic<int> inside{0};
  std::atomic<bool> let_go{false};
  std::thread other([&] {
    Work work(2);
    work.each(2, kMuch, [&](index, int, Work&) {
      ++inside;
      while (!let_go) std::this_thread::yield();
    });
  });
  while (inside < 2) std::this_thread::yield();
  for (int call = 0; call < 100; ++call) {
    std::atomic<int> done{0};
    Work work(2);
    work.each(5, kMuch, [&](index, int, Work&) { ++done; });
    CHECK(done == 5);
  }
  let_go = true;
  other.join();
}

TEST(work_inside_work_is_not_shared_again) {
  Work work(3);
  std::atomic<int> done{0};
  work.each(6, kMuch, [&](index, int, Work& own) {
    CHECK(own.threads() == 1);
    own.each(4, kMuch, [&](index, int worker, Work&) {
      CHECK(worker == 0);
      ++done;
    });
  });
  CHECK(done == 24 && work.threads() == 3);
  work.each(1, kMuch, [&](index, int, Work& own) { CHECK(own.threads() == 3); });
}

TEST(many_callers_share_the_pool) {
  std::vector<std::thread> callers;
  std::atomic<index> sum{0};
  for (int caller = 0; caller < 8; ++caller) {
    callers.emplace_back([&] {
      for (int call = 0; call < 200; ++call) {
        Work work(4);
        std::vector<index> own(50);
        work.each(50, kMuch, [&](index item, int, Work&) { own[std::size_t(item)] = item; });
        sum += std::accumulate(own.begin(), own.end(), index{0});
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(sum == 8 * 200 * (49 * 50 / 2));
}

TEST(little_work_stays_on_one_thread) {
  Work work(8);
  CHECK(work.worth(1e5) == 1 && work.worth(3e6) == 4 && work.worth(1e12) == 8);
  work.each(64, 1e5, [&](index, int worker, Work&) { CHECK(worker == 0); });
}

}  // namespace pyfast::test
