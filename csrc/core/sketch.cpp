#include "core/sketch.hpp"

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

  // Adds rows `first` .. `last` - 1 of v, on columns `at` .. `at` + `size` - 1 of y.
  void add(MatrixView<float> v, index dim, const StripeAddress& address, index at, index size,
           index first, index last, float* y, Token& token) {
    const index stripes = (v.cols + dim - 1) / dim;
    for (index start = 0; start < stripes; start += kChunkStripes) {
      find_pieces(v.cols, dim, address, at, size, start, std::min(stripes - start, kChunkStripes));
      if (pieces_.empty()) continue;
      draw_signs(address, at / kBlock, size / kBlock);
      for (index r = first; r < last; ++r) {
        token.spend(static_cast<index>(pieces_.size()) * size);
        float* to = y + r * dim + at;
        if (pieces_.size() == 1) {  // 0 + x is x, so that it need not be a sum of its own
          add_pieces(v.row(r), to);
          continue;
        }
        std::fill_n(sums_.begin(), size, 0.0f);
        add_pieces(v.row(r), sums_.data());
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

  void add_pieces(const float* row, float* to) {
    const std::uint32_t* words = words_.data();
    for (std::size_t i = 0; i < pieces_.size(); ++i, words += blocks_) {
      const Piece& piece = pieces_[i];
      const Piece& next = pieces_[std::min(i + 1, pieces_.size() - 1)];
      simd::kernels().add_stripe(
          {row + piece.from, row + next.from, piece.count, piece.x, words, plane_, to});
    }
  }

  std::vector<std::uint32_t> counters_, words_;
  std::vector<float> sums_;
  std::vector<Piece> pieces_;
  index plane_ = 0, blocks_ = 0;
};

}  // namespace

void add_sketch(MatrixView<float> v, index dim, const StripeAddress& address, float* y, int threads,
                Cancel& cancel) {
  const index size = std::min(dim, kSlab), slabs = dim / size;
  threads = worthwhile_threads(threads, static_cast<double>(v.rows) * static_cast<double>(v.cols));
  // Where there are few slabs, rows are shared out too; each share draws the signs for itself.
  const index shares =
      threads == 1 ? 1 : std::clamp<index>(4 * threads / slabs, 1, std::max<index>(v.rows, 1));
  std::vector<Slab> workers(static_cast<std::size_t>(threads));
  parallel_for(slabs * shares, threads, cancel, [&](index item, int worker, Token& token) {
    const index share = item / slabs;
    workers[static_cast<std::size_t>(worker)].add(v, dim, address, item % slabs * size, size,
                                                  v.rows * share / shares,
                                                  v.rows * (share + 1) / shares, y, token);
  });
}

}  // namespace pyfast
