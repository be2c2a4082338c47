// Floating-point numbers of N 64-bit words, for what double cannot tell: a sum that loses all of
// a double's digits, or lies outside its range. Each operation rounds towards zero, with a relative
// error below 2^(4 - 64 N). The exponent has 64 bits: nothing here overflows or is flushed to zero.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/run/views.hpp"

namespace pyfast {

using Word = std::uint64_t;
__extension__ typedef unsigned __int128 TwoWords;

// +-mantissa 2^exponent, the mantissa below 2^53; zero is mantissa 0.
struct Digits {
  Word mantissa = 0;
  std::int64_t exponent = 0;
  bool negative = false;
};

inline Digits digits_of(double x) {
  Word bits;
  __builtin_memcpy(&bits, &x, sizeof bits);  // <cstring> declares an index() of its own
  const auto field = static_cast<std::int64_t>((bits >> 52) & 0x7ff);
  const Word fraction = bits & ((Word{1} << 52) - 1);
  return {field == 0 ? fraction : fraction | (Word{1} << 52),
          std::max<std::int64_t>(field, 1) - 1075, (bits >> 63) != 0};
}

template <int N>
class Wide {
 public:
  Wide() = default;
  explicit Wide(double x) {
    const Digits from = digits_of(x);
    words_[N - 1] = from.mantissa;
    exponent_ = from.exponent + 64;
    negative_ = from.negative;
    normalise();
  }

  bool is_zero() const { return words_[N - 1] == 0; }
  bool is_negative() const { return negative_; }
  // The power of two that it lies below: |x| < 2^exponent, and >= 2^(exponent - 1) but for zero.
  std::int64_t exponent() const { return exponent_; }
  Wide operator-() const {
    Wide out = *this;
    out.negative_ = !negative_;
    return out;
  }

  // The nearest double or its neighbour; infinite or zero beyond double's range.
  double value() const {
    if (is_zero()) return 0;
    const auto by = std::clamp<std::int64_t>(exponent_ - 64, -2000, 2000);
    const double size = std::ldexp(static_cast<double>(words_[N - 1]), static_cast<int>(by));
    return negative_ ? -size : size;
  }

  friend Wide operator*(const Wide& a, const Wide& b) {
    Wide out;
    if (a.is_zero() || b.is_zero()) return out;
    Word all[2 * N] = {};
    for (int i = 0; i < N; ++i) {
      Word carry = 0;
      for (int j = 0; j < N; ++j) {
        const TwoWords sum = static_cast<TwoWords>(a.words_[i]) * b.words_[j] + all[i + j] + carry;
        all[i + j] = static_cast<Word>(sum);
        carry = static_cast<Word>(sum >> 64);
      }
      all[i + N] = carry;
    }
    const int up = (all[2 * N - 1] >> 63) == 0 ? 1 : 0;  // both began with a one
    for (int i = 0; i < N; ++i) {
      out.words_[i] = up ? (all[i + N] << 1) | (all[i + N - 1] >> 63) : all[i + N];
    }
    out.exponent_ = a.exponent_ + b.exponent_ - up;
    out.negative_ = a.negative_ != b.negative_;
    return out;
  }

  friend Wide operator+(const Wide& a, const Wide& b) {
    if (a.is_zero()) return b;
    if (b.is_zero()) return a;
    return a.exponent_ >= b.exponent_ ? sum(a, b) : sum(b, a);
  }
  friend Wide operator-(const Wide& a, const Wide& b) { return a + -b; }

  // 1 / x by Newton's iteration, which doubles the digits each time.
  Wide inverse() const {
    Wide mantissa = *this;
    mantissa.exponent_ = 0;
    Wide guess(1 / mantissa.value());
    const Wide one(1.0);
    for (int bits = 50; bits < 64 * N; bits *= 2) guess = guess + guess * (one - mantissa * guess);
    guess.exponent_ -= exponent_;
    return guess;
  }

  // From an integer of `count` words, lowest first, times 2^exponent.
  static Wide from_words(const Word* words, int count, std::int64_t exponent, bool negative) {
    Wide out;
    while (count > 0 && words[count - 1] == 0) --count;
    for (int i = 0; i < N && i < count; ++i) out.words_[N - 1 - i] = words[count - 1 - i];
    out.exponent_ = exponent + 64 * static_cast<std::int64_t>(count);
    out.negative_ = negative;
    // The bits that the top word leaves open come from the first word that is left out.
    const Word below = count > N ? words[count - 1 - N] : 0;
    out.normalise(below);
    return out;
  }

 private:
  // |a| >= |b| / 2. One more word holds what a shift by less than 64 pushes out: so a sum that
  // cancels is exact, and any other loses less than its last bit.
  static Wide sum(const Wide& a, const Wide& b) {
    const std::int64_t apart = a.exponent_ - b.exponent_;
    if (apart > 64 * N) return a;
    const int jump = static_cast<int>(apart / 64), shift = static_cast<int>(apart % 64);
    Word left[N + 2], right[N + 2];
    left[0] = left[N + 1] = right[N + 1] = 0;
    for (int i = 0; i < N; ++i) left[i + 1] = a.words_[i];
    for (int i = 0; i <= N; ++i) {  // right[i + 1] pairs with left's; right[0] is the spare word
      const int at = i + jump - 1;
      const Word low = at >= 0 && at < N ? b.words_[at] : 0;
      const Word high = at + 1 < N ? b.words_[at + 1] : 0;  // at + 1 >= 0
      right[i] = shift == 0 ? low : (low >> shift) | (high << (64 - shift));
    }
    bool negative = a.negative_;
    if (a.negative_ == b.negative_) {
      Word carry = 0;
      for (int i = 0; i < N + 2; ++i) {
        const TwoWords total = static_cast<TwoWords>(left[i]) + right[i] + carry;
        left[i] = static_cast<Word>(total);
        carry = static_cast<Word>(total >> 64);
      }
    } else {
      int top = N;
      while (top >= 0 && left[top] == right[top]) --top;
      if (top < 0) return Wide();
      const bool less = left[top] < right[top];
      negative = less ? b.negative_ : a.negative_;
      Word borrow = 0;
      for (int i = 0; i < N + 2; ++i) {
        const Word from = less ? right[i] : left[i], what = less ? left[i] : right[i];
        const TwoWords rest = static_cast<TwoWords>(from) - what - borrow;
        left[i] = static_cast<Word>(rest);
        borrow = static_cast<Word>(rest >> 64) & 1;
      }
    }
    return from_words(left, N + 2, a.exponent_ - 64 * (N + 1), negative);
  }

  // Brings the first one to the top; `below` follows the last word.
  void normalise(Word below = 0) {
    int empty = 0;
    while (empty < N && words_[N - 1 - empty] == 0) ++empty;
    if (empty == N) {
      *this = Wide();
      return;
    }
    if (empty > 0) {
      for (int i = N - 1; i >= 0; --i) words_[i] = i >= empty ? words_[i - empty] : 0;
      exponent_ -= 64 * empty;
    }
    const int shift = __builtin_clzll(words_[N - 1]);
    if (shift == 0) return;
    for (int i = N - 1; i > 0; --i) {
      words_[i] = (words_[i] << shift) | (words_[i - 1] >> (64 - shift));
    }
    words_[0] = (words_[0] << shift) | (empty == 0 ? below >> (64 - shift) : 0);
    exponent_ -= shift;
  }

  Word words_[N] = {};  // 0.words x 2^exponent, the lowest first; the top bit is set but for zero
  std::int64_t exponent_ = 0;
  bool negative_ = false;
};

// A vector of doubles, every one of them below 2^top.
struct Doubles {
  const double* x;
  index d;
  bool zero;
  std::int64_t top;

  Doubles(const double* from, index count) : x(from), d(count), zero(true), top(0) {
    double largest = 0;
    for (index t = 0; t < d; ++t) largest = std::max(largest, std::abs(x[t]));
    if (largest == 0) return;
    const Digits digits = digits_of(largest);
    zero = false;
    top = digits.exponent + 64 - __builtin_clzll(digits.mantissa);
  }
};

// x^T y with an error below d 2^(-64 N - 60) max|x| max|y|: products are added in fixed point, and
// what lies below the last word is cut off. The word at the top is for carries.
template <int N>
Wide<N> dot(const Doubles& x, const Doubles& y) {
  if (x.zero || y.zero) return Wide<N>();
  constexpr int kWords = N + 2;
  const std::int64_t bottom = x.top + y.top + 64 - 64 * kWords;  // the lowest bit's exponent
  Word sums[2][kWords + 3] = {};  // of the positive and of the negative products
  for (index t = 0; t < x.d; ++t) {
    const Digits a = digits_of(x.x[t]), b = digits_of(y.x[t]);
    TwoWords product = static_cast<TwoWords>(a.mantissa) * b.mantissa;
    std::int64_t at = a.exponent + b.exponent - bottom;
    if (at < 0) {
      if (at <= -106) continue;
      product >>= -at;
      at = 0;
    }
    if (product == 0) continue;
    Word* to = sums[a.negative != b.negative ? 1 : 0] + at / 64;
    const int shift = static_cast<int>(at % 64);
    const auto low = static_cast<Word>(product), high = static_cast<Word>(product >> 64);
    const Word parts[3] = {low << shift,
                           shift == 0 ? high : (high << shift) | (low >> (64 - shift)),
                           shift == 0 ? 0 : high >> (64 - shift)};
    Word carry = 0;
    for (int i = 0; i < 3; ++i) {
      const TwoWords total = static_cast<TwoWords>(to[i]) + parts[i] + carry;
      to[i] = static_cast<Word>(total);
      carry = static_cast<Word>(total >> 64);
    }
    for (int i = 3; carry != 0; ++i) carry = ++to[i] == 0 ? 1 : 0;
  }
  return Wide<N>::from_words(sums[0], kWords, bottom, false) -
         Wide<N>::from_words(sums[1], kWords, bottom, false);
}

// A vector as a sum of doubles: `rest` lies below the digits of `main`, and may be absent.
struct DoubleDoubles {
  Doubles main, rest;

  DoubleDoubles(const double* from, const double* low, index d)
      : main(from, d), rest(low == nullptr ? from : low, low == nullptr ? 0 : d) {}
};

template <int N>
Wide<N> dot(const DoubleDoubles& x, const DoubleDoubles& y) {
  const Wide<N> sum = dot<N>(x.main, y.main);
  if (x.rest.zero && y.rest.zero) return sum;
  return sum + (dot<N>(x.main, y.rest) + dot<N>(x.rest, y.main)) + dot<N>(x.rest, y.rest);
}

}  // namespace pyfast
