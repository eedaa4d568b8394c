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

  template <int M>
  MKC_DEVICE void rows(Range n, int row) const {
    for (int column = n.begin + team(); column < n.end; column += teams()) {
      float sums[M];
      dots<M, X::extent(1), X::step(1), W::step(1)>(&x(row, 0), X::step(0), &w(column, 0), sums);
      if (team_leader()) {
        MKC_UNROLL
        for (int i = 0; i < M; ++i) {
          const auto at = [=](const auto& view) -> auto& { return view(row + i, column); };
          store(at(y), extras.template of<Expr>(at, sums[i]));
        }
      }
    }
  }
};

}  // namespace mkc::ops
