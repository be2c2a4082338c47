#include <atomic>
#include <numeric>
#include <stdexcept>

#include "check.hpp"
#include "core/run/work.hpp"

using namespace pyfast;

TEST(every_item_is_done_once_by_any_number_of_threads) {
  for (const int threads : {1, 2, 3, 8}) {
    for (const index count : {0, 1, 2, 7, 100}) {
      Cancel cancel;
      std::vector<std::atomic<int>> done(static_cast<std::size_t>(count));
      parallel_for(count, threads, cancel, [&](index item, int worker, Token&) {
        CHECK(worker >= 0 && worker < threads);
        ++done[static_cast<std::size_t>(item)];
      });
      for (const auto& times : done) CHECK(times == 1);
    }
  }
}

TEST(an_exception_in_a_worker_reaches_the_caller) {
  for (const int threads : {1, 4}) {
    Cancel cancel;
    CHECK_THROWS(parallel_for(50, threads, cancel,
                              [](index item, int, Token&) {
                                if (item == 31) throw std::domain_error("31");
                              }),
                 std::domain_error);
  }
}

TEST(an_interrupt_stops_all_workers) {
  for (const int threads : {1, 4}) {
    std::atomic<index> finished{0};
    Cancel cancel([] { return true; });
    CHECK_THROWS(parallel_for(1'000'000'000'000, threads, cancel,
                              [&](index, int, Token& token) {
                                token.spend(1'000'000);
                                ++finished;
                              }),
                 Cancelled);
    CHECK(finished < 1'000'000'000'000);
  }
}
