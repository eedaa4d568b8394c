// y[..., k] = Expr(softmax of x[..., :] at k, extras[..., k]...), or its logarithm: a team for each row
#pragma once

#include <mkc/expr.cuh>
#include <mkc/rows.cuh>

namespace mkc::ops {

template <class Expr, bool Log, class Y, class X, class... Extras>
struct Softmax {
  static constexpr int kRows = Y::kRank - 1;
  static constexpr int kWidth = Y::extent(kRows);

  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Y y(p[0]);
    const X x(p[1]);
    const Each<Extras...> extras(p + 2);
    for_rows<kRows>(r, [=](const int* row) {
      const auto in = [=](int k) { return load(at_row(x, row, k)); };
      const float top = team_reduce<fold::maximum>(kWidth, in);
      const float total = team_reduce<fold::sum>(kWidth, [=](int k) { return mkc::exp(in(k) - top); });
      const float scale = 1.0f / total, shift = top + mkc::log(total);
      for_team(kWidth, [=](int k) {
        const auto at = [=](const auto& view) -> auto& { return at_row(view, row, k); };
        if constexpr (Log) store(at(y), extras.template of<Expr>(at, in(k) - shift));
        else store(at(y), extras.template of<Expr>(at, mkc::exp(in(k) - top) * scale));
      });
    });
  }
};

}  // namespace mkc::ops
