#include "core/json/vectors.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace pyfast {

namespace {

constexpr int kMostDigits = 19;  // that a word of 64 bits holds, whatever they are
constexpr int kExactPower = 22;  // 10^22 is the last that double holds exactly
constexpr double kPowers[kExactPower + 1] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                             1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                             1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

// digits * 10^exponent, rounded to the nearest float. In double it takes at most three roundings
// (the digits, and a power in two steps), each off by 2^-53 of the value; the two by the margins
// add one each. So the value lies between x less and x more 2^-50 of it, and where both are the
// same float, so is the value.
bool nearest_float(std::uint64_t digits, int exponent, bool negative, float& out) {
  double x = static_cast<double>(digits);
  if (digits != 0) {
    if (exponent < -2 * kExactPower || exponent > 2 * kExactPower) return false;
    const int size = std::abs(exponent), step = std::min(size, kExactPower);
    if (exponent < 0) {
      x = x / kPowers[step] / kPowers[size - step];
    } else {
      x = x * kPowers[step] * kPowers[size - step];
    }
    if (!(x > 0x1p-125 && x < 0x1p127)) return false;
  }
  constexpr double kMargin = 0x1p-50;
  const float low = static_cast<float>(x * (1 - kMargin));
  const float high = static_cast<float>(x * (1 + kMargin));
  out = negative ? -low : low;
  return low == high;
}

// The number that eight digits are, or -1: neighbours are put together side by side, three times.
std::int64_t eight_digits(const char* at) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  std::uint64_t v;
  std::memcpy(&v, at, sizeof v);
  constexpr std::uint64_t kHigh = 0xF0F0F0F0F0F0F0F0, kDigits = 0x3030303030303030;
  if ((v & kHigh) != kDigits || ((v + 0x0606060606060606) & kHigh) != kDigits) return -1;
  v -= kDigits;
  v = (v * 10 + (v >> 8)) & 0x00FF00FF00FF00FF;
  v = (v * 100 + (v >> 16)) & 0x0000FFFF0000FFFF;
  v = (v * 10000 + (v >> 32)) & 0xFFFFFFFF;
  return static_cast<std::int64_t>(v);
#else
  static_cast<void>(at);
  return -1;
#endif
}

// One line, from `at` to `end`. Every function stands at the first character of what it reads, ends
// behind it, and returns false if it is not that.
struct Line {
  const char* at;
  const char* end;

  void space() {
    while (at != end && (*at == ' ' || *at == '\t' || *at == '\r')) ++at;
  }

  bool sign(char wanted) {
    space();
    if (at == end || *at != wanted) return false;
    ++at;
    return true;
  }

  bool is_digit() const { return at != end && static_cast<unsigned char>(*at - '0') < 10; }

  // Skips a text; `plain` if there is no escape in it.
  bool text(bool& plain) {
    plain = true;
    for (++at; at != end; ++at) {
      if (*at == '"') {
        ++at;
        return true;
      }
      if (*at == '\\') {
        plain = false;
        if (++at == end) return false;
      }
    }
    return false;
  }

  // Skips a value: to the comma or bracket that ends it. Whether it is JSON the other reader says.
  bool skip() {
    index depth = 0;
    while (at != end) {
      if (*at == '"') {
        bool plain;
        if (!text(plain)) return false;
        continue;
      }
      if (*at == '[' || *at == '{') ++depth;
      if (*at == ']' || *at == '}') {
        if (depth == 0) return true;
        --depth;
      }
      if (*at == ',' && depth == 0) return true;
      ++at;
    }
    return false;
  }

  bool number(float& out) {
    const bool negative = at != end && *at == '-';
    if (negative) ++at;
    if (!is_digit()) return false;
    std::uint64_t digits = 0;
    int used = 0, exponent = 0;
    const auto take = [&] {  // zeros in front do not count
      digits = digits * 10 + static_cast<std::uint64_t>(*at - '0');
      used += digits != 0;
      ++at;
    };
    const bool zero = *at == '0';
    take();
    if (zero && is_digit()) return false;
    while (is_digit() && used <= kMostDigits) take();
    if (at != end && *at == '.') {
      ++at;
      if (!is_digit()) return false;
      const char* first = at;
      while (is_digit() && used <= kMostDigits && at - first < 60) {
        take();
        while (used > 0 && used + 8 <= kMostDigits && end - at >= 8) {
          const std::int64_t more = eight_digits(at);
          if (more < 0) break;
          digits = digits * 100'000'000 + static_cast<std::uint64_t>(more);
          used += 8;
          at += 8;
        }
      }
      exponent = static_cast<int>(first - at);
    }
    if (used > kMostDigits || is_digit()) return false;
    if (at != end && (*at == 'e' || *at == 'E')) {
      ++at;
      const bool down = at != end && *at == '-';
      if (at != end && (*at == '-' || *at == '+')) ++at;
      if (!is_digit()) return false;
      int power = 0;
      while (is_digit() && power < 1000) power = power * 10 + (*at++ - '0');
      if (is_digit()) return false;
      exponent += down ? -power : power;
    }
    return nearest_float(digits, exponent, negative, out);
  }

  bool vector(JsonVectors& out) {
    if (!sign('[')) return false;
    const std::size_t before = out.values.size();
    do {
      space();
      float value;
      if (!number(value)) return false;
      out.values.push_back(value);
      space();
    } while (at != end && *at == ',' && ++at);
    const index width = static_cast<index>(out.values.size() - before);
    if (out.width == 0) out.width = width;
    return width == out.width && sign(']');
  }

  bool vectors(JsonVectors& out) {
    if (!sign('[')) return false;
    space();
    index count = 0;
    if (at != end && *at != ']') {
      do {
        if (!vector(out)) return false;
        ++count;
        space();
      } while (at != end && *at == ',' && ++at);
    }
    out.counts.push_back(count);
    return sign(']');
  }

  bool object(std::string_view name, JsonVectors& out) {
    const char* kept = at;
    bool found = false;
    if (!sign('{')) return false;
    do {
      space();
      if (at == end || *at != '"') return false;
      const char* first = at + 1;
      bool plain;
      if (!text(plain) || !plain) return false;
      const std::string_view field(first, static_cast<std::size_t>(at - first - 1));
      if (!sign(':')) return false;
      space();
      if (field != name) {
        if (!skip()) return false;
        continue;
      }
      if (found) return false;
      found = true;
      out.rest.append(kept, at).append("null");
      if (!vectors(out)) return false;
      space();
      kept = at;
    } while (at != end && *at == ',' && ++at);
    if (!found || !sign('}')) return false;
    space();
    out.rest.append(kept, at).push_back('\n');
    return at == end;
  }
};

}  // namespace

bool read_vectors(std::string_view lines, std::string_view name, JsonVectors& out, Work& work) {
  const char* at = lines.data();
  const char* const end = at + lines.size();
  out.values.reserve(lines.size() / 16);
  while (at < end) {
    const void* newline = std::memchr(at, '\n', static_cast<std::size_t>(end - at));
    const char* last = newline != nullptr ? static_cast<const char*>(newline) : end;
    work.spend(last - at);
    if (!Line{at, last}.object(name, out)) return false;
    at = last + 1;
  }
  return true;
}

}  // namespace pyfast
