// out[..., index[..., n], ...] = source[..., n, ...], in order of n; an index outside of `out` is reported and writes nothing
#pragma once

#include <mkc/fault.cuh>
#include <mkc/view.cuh>

namespace mkc::ops {

template <int Dim, bool Wraps, class Out, class Index, class Source, class Before>
struct Append {
  static constexpr int kRank = Out::kRank, kRows = Source::extent(Dim), kCapacity = Out::extent(Dim);
  static constexpr int kWidth = Dim == kRank - 1 ? 1 : Out::extent(kRank - 1);
  static constexpr int kDeep = kTeamLanes > 1 ? 8 : 1;  // rows that are read before they are written

  // Each element of `out` has one lane that writes it, so that of equal indices the last one stays.
  MKC_DEVICE static void run(void* const* p, const Range* r, const Fault& fault) {
    const Out out(p[0]);
    const Index index(p[1]);
    const Source source(p[2]);
    int extent[kRank], outer = 1;
    MKC_UNROLL
    for (int d = 0; d < kRank; ++d) {
      extent[d] = d < Dim ? r[d].end - r[d].begin : d == Dim ? 1 : Out::extent(d);
      outer *= d < kRank - 1 ? extent[d] : 1;
    }
    for (int first = 0; first < kRows; first += kDeep) {
      tile_loop(outer, kWidth, [=, &fault](int row, int column) {
        int at[kRank];
        at[kRank - 1] = column;
        MKC_UNROLL
        for (int d = kRank - 2; d >= 0; --d) {
          at[d] = (d < Dim ? r[d].begin : 0) + row % extent[d];
          row /= extent[d];
        }
        typename Source::Element values[kDeep];
        int64 to[kDeep];
        MKC_UNROLL
        for (int j = 0; j < kDeep; ++j) {
          at[Dim] = first + j < kRows ? first + j : kRows - 1;
          values[j] = source.at(at);
          if constexpr (Index::kRank == 1) to[j] = index(at[Dim]);
          else to[j] = index.at(at);
          if (Wraps && to[j] < 0) to[j] += kCapacity;
        }
        MKC_UNROLL
        for (int j = 0; j < kDeep; ++j) {
          if (first + j >= kRows) continue;
          at[Dim] = static_cast<int>(to[j]);
          if (0 <= to[j] && to[j] < kCapacity) out.at(at) = values[j];
          else fault.outside(to[j], kCapacity);
        }
      });
    }
  }
};

}  // namespace mkc::ops
