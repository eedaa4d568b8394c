// y[..., p] = where the best element of chunk p of x[..., :] stands, from the chunk's begin; with candidates, y[..., 0] is
// the best of x at the candidates of all chunks. The first of equals wins, and NaN is better than everything.
#pragma once

#include <mkc/rows.cuh>

namespace mkc::ops {

MKC_DEVICE float comparable(float v) { return v; }
template <class T>
MKC_DEVICE int64 comparable(T v) {
  return static_cast<int64>(v);
}

template <class F, int Chunk, class Y, class X, class... Candidates>
struct ArgMax;

template <class F, int Chunk, class Y, class X>
struct ArgMax<F, Chunk, Y, X> {
  static constexpr int kRows = Y::kRank - 1, kWidth = X::extent(kRows);

  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Y y(p[0]);
    const X x(p[1]);
    Range parts[kRows + 1];
    MKC_UNROLL
    for (int d = 0; d < kRows; ++d) parts[d] = r[d];
    parts[kRows] = chunks<Chunk>(r[kRows]);
    for_rows<kRows + 1>(parts, [=](const int* row) {
      const int begin = row[kRows] * Chunk, left = kWidth - begin;
      const auto value = [=](int k) { return comparable(load(at_row(x, row, begin + k))); };
      const int best = team_first<F, Chunk>(left < Chunk ? left : Chunk, [](int k) { return k; }, value);
      if (team_leader()) store(at_row(y, row), best);
    });
  }
};

template <class F, int Chunk, class Y, class X, class Candidates>
struct ArgMax<F, Chunk, Y, X, Candidates> {
  static constexpr int kRows = Y::kRank - 1;

  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Y y(p[0]);
    const X x(p[1]);
    const Candidates candidates(p[2]);
    for_rows<kRows>(r, [=](const int* row) {
      const auto place = [=](int part) { return part * Chunk + static_cast<int>(at_row(candidates, row, part)); };
      const auto value = [=](int at) { return comparable(load(at_row(x, row, at))); };
      constexpr int kParts = Candidates::extent(kRows);
      const int best = team_first<F, kParts>(kParts, place, value);
      if (team_leader()) store(at_row(y, row, 0), best);
    });
  }
};

}  // namespace mkc::ops
