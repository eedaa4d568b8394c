// y[...] = Expr(F folded over Prologue(ins[..., k]...), extras[...]...), k running over the last dimensions
#pragma once

#include <mkc/expr.cuh>
#include <mkc/rows.cuh>

namespace mkc::ops {

// What elements of a type are folded in: floats in float, everything else in 64-bit integers.
MKC_DEVICE float folded(float v) { return v; }
template <class T>
MKC_DEVICE int64 folded(T v) {
  return static_cast<int64>(v);
}

template <class Expr, class F, class Prologue, int Count, class Y, class... Views>
struct Reduce {
  using Ins = typename Cut<Count, Each<>, Views...>::First;
  using Extras = typename Cut<Count, Each<>, Views...>::Others;
  using In = decltype(Ins::first);
  static constexpr int kRows = Y::kRank, kRank = In::kRank;
  static constexpr int kDepth = [] {
    int elements = 1;
    for (int d = kRows; d < kRank; ++d) elements *= In::extent(d);
    return elements;
  }();
  static constexpr int kPart = 2048;  // elements folded at once: long sums stay accurate
  // neighbouring results read neighbouring elements: lanes go along the results, and each folds on its own
  static constexpr bool kColumns = In::step(kRows - 1) == 1 && In::step(kRank - 1) != 1 && In::extent(kRows - 1) >= 16;

  Y y;
  Ins ins;
  Extras extras;

  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Reduce op{Y(p[0]), Ins(p + 1), Extras(p + 1 + Count)};
    if constexpr (kColumns) op.columns(r);
    else op.rows(r);
  }
  MKC_DEVICE void rows(const Range* r) const {
    for_rows<kRows>(r, [=, this](const int* row) {
      auto result = part(row, 0);
      for (int begin = kPart; begin < kDepth; begin += kPart) result = F::of(result, part(row, begin));
      if (team_leader()) finish(row, result);
    });
  }
  MKC_DEVICE auto part(const int* row, int begin) const {
    return team_reduce<F>(kDepth - begin < kPart ? kDepth - begin : kPart, [=, this](int k) { return value(row, begin + k); });
  }
  MKC_DEVICE void columns(const Range* r) const {
    Range blocks[kRows];
    MKC_UNROLL
    for (int d = 0; d < kRows; ++d) blocks[d] = r[d];
    const Range last = r[kRows - 1];
    blocks[kRows - 1] = {0, (last.end - last.begin + kTeamColumns - 1) / kTeamColumns};
    for_rows<kRows>(blocks, [=, this](const int* block) {
      const int begin = last.begin + block[kRows - 1] * kTeamColumns;
      const int width = last.end - begin < kTeamColumns ? last.end - begin : kTeamColumns;
      const auto place = [=](int column, int (&row)[kRows]) {
        MKC_UNROLL
        for (int d = 0; d < kRows; ++d) row[d] = d + 1 < kRows ? block[d] : begin + column;
      };
      column_reduce<F, 1>(
          kDepth, width,
          [=, this](int, int column, int k) {
            int row[kRows];
            place(column, row);
            return value(row, k);
          },
          [=, this](int, int column, auto result) {
            int row[kRows];
            place(column, row);
            finish(row, result);
          });
    });
  }
  MKC_DEVICE auto value(const int* row, int k) const {
    int index[kRank];
    MKC_UNROLL
    for (int d = 0; d < kRows; ++d) index[d] = row[d];
    MKC_UNROLL
    for (int d = kRank - 1; d > kRows; --d) index[d] = k % In::extent(d), k /= In::extent(d);
    index[kRows] = k;
    const auto at = [&](const auto& view) -> auto& { return view.at(index); };
    return folded(ins.template of<Prologue>(at));
  }
  template <class V>
  MKC_DEVICE void finish(const int* row, V result) const {
    const auto at = [=](const auto& view) -> auto& { return at_row(view, row); };
    store(at(y), extras.template of<Expr>(at, result));
  }
};

}  // namespace mkc::ops
