#include <algorithm>
#include <memory>
#include <string>

#include "check.hpp"
#include "core/json/vectors.hpp"

namespace pyfast::test {

namespace {

// From memory that ends where the text does, so that a sanitizer sees whoever reads on.
bool read(const std::string& text, JsonVectors& out) {
  const std::unique_ptr<char[]> exact(new char[text.size()]);
  std::copy(text.begin(), text.end(), exact.get());
  Work work;
  return read_vectors({exact.get(), text.size()}, "e", out, work);
}

}  // namespace

TEST(json_vectors_are_read_and_the_rest_is_kept) {
  JsonVectors found;
  CHECK(read("{\"a\": \"\\\"e\\\": [\", \"e\": [[1.5, -2e-3],[12345678.9012345678,4]]}\n{\"e\":[]}",
             found));
  CHECK((found.values == std::vector<float>{1.5F, -2e-3F, 12345678.9012345678F, 4.0F}));
  CHECK((found.counts == std::vector<pyfast::index>{2, 0}));
  CHECK(found.width == 2);
  CHECK(found.rest == "{\"a\": \"\\\"e\\\": [\", \"e\": null}\n{\"e\":null}\n");
}

TEST(json_cut_or_changed_anywhere_is_never_read_beyond_its_end) {
  const std::string whole =
      "{\"a\": [\"x\\\\\", {}], \"e\": [[0.12345678901234567, 2], [3, -4e1]], \"c\": 1}";
  JsonVectors found;
  CHECK(read(whole, found));
  for (std::size_t end = 1; end < whole.size(); ++end) {
    JsonVectors cut;
    CHECK(!read(whole.substr(0, end), cut));
    for (const char odd : {'"', '\\', '[', ']', '{', '}', ',', '9', '.', 'e', '-', '\n', '\0'}) {
      JsonVectors changed;
      std::string text = whole;
      text[end] = odd;
      if (read(text, changed)) CHECK(changed.values.size() % 2 == 0);
      JsonVectors both;
      read(text.substr(0, end + 1), both);
    }
  }
}

}  // namespace pyfast::test
