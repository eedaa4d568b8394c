// What operators that work along rows share: handing rows to teams, and finding a row in a view.
#pragma once

#include <mkc/abi.cuh>
#include <mkc/view.cuh>

namespace mkc {

// f(index) for every place of the first N axes of a task; each team takes every teams()-th.
template <int N, class F>
MKC_DEVICE void for_rows(const Range* r, F f) {
  int extent[N], rows = 1;
  MKC_UNROLL
  for (int d = 0; d < N; ++d) extent[d] = r[d].end - r[d].begin, rows *= extent[d];
  for (int row = team(); row < rows; row += teams()) {
    int index[N], rest = row;
    MKC_UNROLL
    for (int d = N - 1; d > 0; --d) index[d] = r[d].begin + rest % extent[d], rest /= extent[d];
    index[0] = r[0].begin + rest;
    f(index);
  }
}

// The element at `index` along the first dimensions of a view and at `rest` along its last.
template <class View, class... I>
MKC_DEVICE auto& at_row(const View& view, const int* index, I... rest) {
  constexpr int kRows = View::kRank - static_cast<int>(sizeof...(I));
  int full[View::kRank + 1] = {};
  MKC_UNROLL
  for (int d = 0; d < kRows; ++d) full[d] = index[d];
  int d = kRows;
  ((full[d++] = rest), ...);
  return view.at(full);
}

// y[..., k] = Expr(value(k), extras[..., k]...), a team for each row of x; `of_row(in, width)` looks at a row through
// in(k), k < width, and gives its `value`.
template <class Expr, class Y, class X, class... Extras, class F>
MKC_DEVICE void map_rows(void* const* p, const Range* r, F of_row) {
  constexpr int kRows = Y::kRank - 1, kWidth = Y::extent(kRows);
  const Y y(p[0]);
  const X x(p[1]);
  const Each<Extras...> extras(p + 2);
  for_rows<kRows>(r, [=](const int* row) {
    const auto value = of_row([=](int k) -> float { return load(at_row(x, row, k)); }, kWidth);
    for_team(kWidth, [=](int k) {
      const auto at = [=](const auto& view) -> auto& { return at_row(view, row, k); };
      store(at(y), extras.template of<Expr>(at, value(k)));
    });
  });
}

// The slice [begin : end) of an axis, in chunks: which of them it touches.
template <int Chunk>
MKC_DEVICE Range chunks(Range elements) {
  return {elements.begin / Chunk, (elements.end + Chunk - 1) / Chunk};
}

// The first N views of a pack, and those after them.
template <int N, class Taken, class... Rest>
struct Cut {
  using First = Taken;
  using Others = Each<Rest...>;
};
template <int N, class... Taken, class Next, class... Rest>
  requires(N > 0)
struct Cut<N, Each<Taken...>, Next, Rest...> : Cut<N - 1, Each<Taken..., Next>, Rest...> {};

}  // namespace mkc
