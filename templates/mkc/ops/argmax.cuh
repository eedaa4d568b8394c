// y[..., p] = Expr(where the best element of chunk p of x[..., :] stands, extras[..., p]...), from the chunk's begin; with
// candidates, y[..., 0] is of the best of x at the candidates of all chunks. The first of equals wins, and NaN is better than
// everything.
#pragma once

#include <mkc/expr.cuh>
#include <mkc/rows.cuh>

namespace mkc::ops {

MKC_DEVICE float comparable(float v) { return v; }
template <class T>
MKC_DEVICE int64 comparable(T v) {
  return static_cast<int64>(v);
}

// A place that the epilogue has made something of: it is one 64-bit integer, as torch has it.
template <class Expr, class Y, class Extras, class... P>
MKC_DEVICE void store_place(const Y& y, const Extras& extras, const int* row, int place, P... part) {
  const auto at = [=](const auto& view) -> auto& { return at_row(view, row, part...); };
  store(at(y), extras.template of<Expr>(at, static_cast<int64>(place)));
}

template <class Expr, class F, int Chunk, bool HasCandidates, class Y, class X, class... Extras>
struct ArgMax {
  static constexpr int kRows = Y::kRank - 1, kWidth = X::extent(kRows);

  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Y y(p[0]);
    const X x(p[1]);
    const Each<Extras...> extras(p + 2);
    Range parts[kRows + 1];
    MKC_UNROLL
    for (int d = 0; d < kRows; ++d) parts[d] = r[d];
    parts[kRows] = chunks<Chunk>(r[kRows]);
    for_rows<kRows + 1>(parts, [=](const int* row) {
      const int begin = row[kRows] * Chunk, left = kWidth - begin;
      const auto value = [=](int k) { return comparable(load(at_row(x, row, begin + k))); };
      const int best = team_first<F, Chunk>(left < Chunk ? left : Chunk, [](int k) { return k; }, value);
      if (team_leader()) store_place<Expr>(y, extras, row, best);
    });
  }
};

template <class Expr, class F, int Chunk, class Y, class X, class Candidates, class... Extras>
struct ArgMax<Expr, F, Chunk, true, Y, X, Candidates, Extras...> {
  static constexpr int kRows = Y::kRank - 1;

  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Y y(p[0]);
    const X x(p[1]);
    const Candidates candidates(p[2]);
    const Each<Extras...> extras(p + 3);
    for_rows<kRows>(r, [=](const int* row) {
      const auto place = [=](int part) { return part * Chunk + static_cast<int>(at_row(candidates, row, part)); };
      const auto value = [=](int at) { return comparable(load(at_row(x, row, at))); };
      constexpr int kParts = Candidates::extent(kRows);
      const int best = team_first<F, kParts>(kParts, place, value);
      if (team_leader()) store_place<Expr>(y, extras, row, best, 0);
    });
  }
};

}  // namespace mkc::ops
