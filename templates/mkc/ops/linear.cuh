// y[m, n] = Expr(sum_k x[m, k] w[n, k], extras[m, n]...): teams take rows of w, and a few rows of x at a time
#pragma once

#include <mkc/expr.cuh>
#include <mkc/view.cuh>

namespace mkc::ops {

template <class Expr, class Y, class X, class W, class... Extras>
struct Linear {
  static constexpr int kRows = 4;  // of x that share one pass over a row of w

  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Linear op{Y(p[0]), X(p[1]), W(p[2]), Each<Extras...>(p + 3)};
    const Range n = r[0], m = r[1];
    int row = m.begin;
    for (; row + kRows <= m.end; row += kRows) op.template rows<kRows>(n, row);
    for (; row < m.end; ++row) op.template rows<1>(n, row);
  }

  Y y;
  X x;
  W w;
  Each<Extras...> extras;

  // w stands as [k, n] in memory: lanes go along n, and each sums on its own
  static constexpr bool kColumns = W::step(1) != 1 && W::step(0) == 1;

  template <int M>
  MKC_DEVICE void rows(Range n, int row) const {
    if constexpr (kColumns) columns<M>(n, row);
    else dots_of<M>(n, row);
  }
  template <int M>
  MKC_DEVICE void columns(Range n, int row) const {
    for (int begin = n.begin + team() * kTeamColumns; begin < n.end; begin += teams() * kTeamColumns) {
      const int width = n.end - begin < kTeamColumns ? n.end - begin : kTeamColumns;
      column_reduce<fold::sum, M>(
          X::extent(1), width, [=, this](int i, int j, int k) { return float(load(x(row + i, k))) * float(load(w(begin + j, k))); },
          [=, this](int i, int j, float sum) {
            const auto at = [=](const auto& view) -> auto& { return view(row + i, begin + j); };
            store(at(y), extras.template of<Expr>(at, sum));
          });
    }
  }
  template <int M>
  MKC_DEVICE void dots_of(Range n, int row) const {
    for (int begin = n.begin + team() * kTeamDots; begin < n.end; begin += teams() * kTeamDots) {
      const int count = n.end - begin < kTeamDots ? n.end - begin : kTeamDots;
      dots<M, X::extent(1), X::step(1), W::step(1)>(
          &x(row, 0), X::step(0), &w(begin, 0), W::step(0), count, [=, this](int i, int j, float sum) {
            const auto at = [=](const auto& view) -> auto& { return view(row + i, begin + j); };
            store(at(y), extras.template of<Expr>(at, sum));
          });
    }
  }
};

}  // namespace mkc::ops
