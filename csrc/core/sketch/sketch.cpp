#include "core/sketch/sketch.hpp"

#include <algorithm>
#include <vector>

#include "simd/simd.hpp"

namespace pyfast {

namespace {

constexpr index kSlab = 4096;  // numbers: a slab's sums stay in the first-level cache
constexpr index kBlock = 128;  // numbers that share one Philox block
constexpr index kLanes = simd::kPhiloxLanes;
constexpr index kMostBlocks = kChunkStripes * (kSlab / kBlock);

static_assert(kChunkStripes % kLanes == 0 && kMostBlocks % kLanes == 0);

index rounded_up(index count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Numbers that lie in memory.
struct Stored {
  MatrixView<float> v;

  index rows() const { return v.rows; }
  index cols() const { return v.cols; }
  const float* ahead(index r, index from) const { return v.row(r) + from; }
  const float* take(index r, index from, index, Work&) const { return ahead(r, from); }
};

// Numbers that are made from factors when they are asked for; one worker's.
class Made {
 public:
  Made(const Factors& factors, const float* narrow, index narrow_stride)
      : f_(factors), narrow_(narrow), narrow_stride_(narrow_stride) {}

  index rows() const { return f_.responses; }
  index cols() const { return f_.size * f_.rank; }
  const float* ahead(index, index) const { return room_.data(); }

  // Of response r, `count` numbers from `from` on; they stay until the next call.
  const float* take(index r, index from, index count, Work& work) {
    const index first = from / f_.rank, rows = (from + count - 1) / f_.rank + 1 - first;
    room_.resize(static_cast<std::size_t>(rows * f_.rank));
    make(r, first, rows, room_.data(), work);
    return room_.data() + (from - first * f_.rank);
  }

  // Rows `first` .. `first` + `rows` - 1 of gradient r.
  void make(index r, index first, index rows, float* out, Work& work) const {
    if (f_.tokens == 0) std::fill_n(out, rows * f_.rank, 0.0f);
    for (index t = 0; t < f_.tokens; t += kTokens) {
      const index tokens = std::min(kTokens, f_.tokens - t), at = r * f_.tokens + t;
      work.spend(rows * narrow_stride_ * tokens);
      simd::kernels().add_products({f_.wide + at * f_.size + first, f_.size,
                                    narrow_ + at * narrow_stride_, narrow_stride_, tokens, rows,
                                    f_.rank, t == 0, out});
    }
  }

 private:
  static constexpr index kTokens = 256;  // a slab's share of `wide` stays in the second-level cache
  Factors f_;
  const float* narrow_;
  index narrow_stride_;
  std::vector<float> room_;
};

// `narrow` with its rows filled up with zeros to what the kernel reads, unless they fit.
class Filled {
 public:
  explicit Filled(const Factors& f)
      : stride_((f.rank + kColumns - 1) / kColumns * kColumns), narrow_(f.narrow) {
    if (stride_ == f.rank) return;
    const index rows = f.responses * f.tokens;
    room_.assign(static_cast<std::size_t>(rows * stride_), 0.0f);
    for (index i = 0; i < rows; ++i) {
      std::copy_n(f.narrow + i * f.rank, f.rank, room_.begin() + i * stride_);
    }
    narrow_ = room_.data();
  }
  Made source(const Factors& factors) const { return {factors, narrow_, stride_}; }

 private:
  static constexpr index kColumns = simd::kProductLanes;
  index stride_;
  const float* narrow_;
  std::vector<float> room_;
};

// What one stripe gives to a slab of y.
struct Piece {
  index from;            // column of v
  index count;           // numbers there, at most a slab; what is missing is zero
  std::uint32_t x;       // XOR inside the slab
  std::uint32_t stripe;  // g
};

// One worker's room.
class Slab {
 public:
  Slab()
      : counters_(2 * kMostBlocks), words_(4 * kMostBlocks), sums_(kSlab), pieces_(kChunkStripes) {}

  // Adds rows `first` .. `last` - 1 of v, on columns `at` .. `at` + `size` - 1 of y. Where norms
  // are asked for, adds to norms[r] the squares of row r's numbers that go there.
  template <class Numbers>
  void add(Numbers& v, index dim, const StripeAddress& address, index at, index size, index first,
           index last, float* y, double* norms, Work& work) {
    const index cols = v.cols(), stripes = (cols + dim - 1) / dim;
    for (index start = 0; start < stripes; start += kChunkStripes) {
      find_pieces(cols, dim, address, at, size, start, std::min(stripes - start, kChunkStripes));
      if (pieces_.empty()) continue;
      draw_signs(address, at / kBlock, size / kBlock);
      for (index r = first; r < last; ++r) {
        work.spend(static_cast<index>(pieces_.size()) * size);
        float* to = y + r * dim + at;
        double* norm = norms == nullptr ? nullptr : norms + r;
        if (pieces_.size() == 1) {  // 0 + x is x, so that it need not be a sum of its own
          add_pieces(v, r, to, norm, work);
          continue;
        }
        std::fill_n(sums_.begin(), size, 0.0f);
        add_pieces(v, r, sums_.data(), norm, work);
        for (index w = 0; w < size; ++w) to[w] += sums_[w];
      }
    }
  }

 private:
  // The chunk's stripes that have numbers for this slab: the padding has none.
  void find_pieces(index cols, index dim, const StripeAddress& address, index at, index size,
                   index start, index stripes) {
    const index first = address.first_stripe + start;
    for (index i = 0; i < rounded_up(stripes); ++i) {
      counters_[i] = static_cast<std::uint32_t>(first + i);
      counters_[kMostBlocks + i] = 0;
    }
    philox(rounded_up(stripes), address, 0);
    pieces_.clear();
    for (index i = 0; i < stripes; ++i) {
      const index x = words_[i] & (dim - 1);
      const index from = (start + i) * dim + (at ^ (x & ~(size - 1)));
      if (from >= cols) continue;
      pieces_.push_back({from, std::min(size, cols - from),
                         static_cast<std::uint32_t>(x & (size - 1)),
                         static_cast<std::uint32_t>(first + i)});
    }
  }

  void draw_signs(const StripeAddress& address, index first_block, index blocks) {
    index i = 0;
    for (const Piece& piece : pieces_) {
      for (index b = 0; b < blocks; ++b, ++i) {
        counters_[i] = piece.stripe;
        counters_[kMostBlocks + i] = static_cast<std::uint32_t>(first_block + b);
      }
    }
    philox(rounded_up(i), address, 1);
    blocks_ = blocks;
  }

  void philox(index count, const StripeAddress& address, std::uint32_t purpose) {
    simd::kernels().philox(counters_.data(), counters_.data() + kMostBlocks, address.module,
                           purpose, address.key.data(), count, words_.data());
    plane_ = count;
  }

  template <class Numbers>
  void add_pieces(Numbers& v, index r, float* to, double* norm, Work& work) {
    const std::uint32_t* words = words_.data();
    for (std::size_t i = 0; i < pieces_.size(); ++i, words += blocks_) {
      const Piece& piece = pieces_[i];
      const Piece& next = pieces_[std::min(i + 1, pieces_.size() - 1)];
      const float* from = v.take(r, piece.from, piece.count, work);
      simd::kernels().add_stripe(
          {from, v.ahead(r, next.from), piece.count, piece.x, words, plane_, to});
      if (norm == nullptr) continue;
      double squares = 0;
      simd::kernels().squared_norms_f32(from, 1, piece.count, piece.count, &squares);
      *norm += squares;
    }
  }

  std::vector<std::uint32_t> counters_, words_;
  std::vector<float> sums_;
  std::vector<Piece> pieces_;
  index plane_ = 0, blocks_ = 0;
};

// Slabs and, where there are few of them, shares of the rows; each share draws the signs for
// itself. Every worker has a copy of `source` to itself; the norms of slab s go to norms[s * rows],
// if they are asked for.
template <class Numbers>
void add_slabs(const Numbers& source, index dim, const StripeAddress& address, float* y,
               double* norms, double operations, Work& work) {
  const index size = std::min(dim, kSlab), slabs = dim / size, rows = source.rows();
  const index threads = work.worth(operations);
  std::vector<Numbers> sources(static_cast<std::size_t>(threads), source);
  const index shares =
      threads == 1 ? 1 : std::clamp<index>(4 * threads / slabs, 1, std::max<index>(rows, 1));
  std::vector<Slab> workers(sources.size());
  work.each(slabs * shares, operations, [&](index item, int worker, Work& own) {
    const index share = item / slabs, slab = item % slabs;
    const auto w = static_cast<std::size_t>(worker);
    workers[w].add(sources[w], dim, address, slab * size, size, rows * share / shares,
                   rows * (share + 1) / shares, y, norms == nullptr ? nullptr : norms + slab * rows,
                   own);
  });
}

// More threads beside torch's, which wait in a busy loop, cost more than they save on less than a
// few milliseconds of work.
constexpr double kCalm = 64;

double product_operations(const Factors& f) {
  return static_cast<double>(f.responses) * static_cast<double>(f.tokens) *
         static_cast<double>(f.size) * static_cast<double>(f.rank) / kCalm;
}

}  // namespace

void add_sketch(MatrixView<float> v, index dim, const StripeAddress& address, float* y,
                Work& work) {
  const double numbers = static_cast<double>(v.rows) * static_cast<double>(v.cols);
  add_slabs(Stored{v}, dim, address, y, nullptr, numbers, work);
}

void add_sketch(const Factors& factors, index dim, const StripeAddress& address, float* y,
                double* norms, Work& work) {
  std::fill_n(norms, factors.responses, 0.0);
  if (factors.tokens == 0) return;
  const Filled filled(factors);
  const index rows = factors.responses, slabs = dim / std::min(dim, kSlab);
  std::vector<double> shares(static_cast<std::size_t>(slabs * rows), 0.0);
  add_slabs(filled.source(factors), dim, address, y, shares.data(), product_operations(factors),
            work);
  for (index i = 0; i < slabs * rows; ++i) norms[i % rows] += shares[i];
}

void multiply(const Factors& factors, float* out, Work& work) {
  constexpr index kRows = 256;
  const Filled filled(factors);
  const Made source = filled.source(factors);
  const index blocks = (factors.size + kRows - 1) / kRows;
  const auto make = [&](index item, int, Work& own) {
    const index r = item / blocks, first = item % blocks * kRows;
    source.make(r, first, std::min(kRows, factors.size - first),
                out + (r * factors.size + first) * factors.rank, own);
  };
  work.each(factors.responses * blocks, product_operations(factors), make);
}

}  // namespace pyfast
