#include <atomic>
#include <numeric>
#include <stdexcept>

#include "check.hpp"
#include "core/run/work.hpp"

using namespace pyfast;

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
