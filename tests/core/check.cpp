#include "check.hpp"

#include <exception>

namespace pyfast::test {

namespace {
int failures_in_case = 0;
}

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

void fail(const char* file, int line, const char* what) {
  ++failures_in_case;
  std::printf("  %s:%d: %s\n", file, line, what);
}

}  // namespace pyfast::test

int main() {
  int passed = 0, failed = 0;
  for (const auto& test : pyfast::test::cases()) {
    pyfast::test::failures_in_case = 0;
    try {
      test.run();
    } catch (const std::exception& error) {
      pyfast::test::fail(test.name, 0, error.what());
    }
    const bool ok = pyfast::test::failures_in_case == 0;
    std::printf("%s %s\n", ok ? "ok    " : "FAILED", test.name);
    ++(ok ? passed : failed);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed;
}
