// y[..., k] = Expr((x[..., k] - mean) / sqrt(var + Eps), extras[..., k]...), statistics along k: a team for each row
#pragma once

#include <mkc/expr.cuh>
#include <mkc/rows.cuh>

namespace mkc::ops {

template <class Expr, class Eps, class Y, class X, class... Extras>
struct LayerNorm {
  static constexpr int kRows = Y::kRank - 1;
  static constexpr int kWidth = Y::extent(kRows);

  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Y y(p[0]);
    const X x(p[1]);
    const Each<Extras...> extras(p + 2);
    for_rows<kRows>(r, [=](const int* row) {
      const auto in = [=](int k) -> float { return load(at_row(x, row, k)); };
      const float mean = team_reduce<fold::sum>(kWidth, in) / kWidth;
      const auto centred = [=](int k) { return in(k) - mean; };
      const float squares = team_reduce<fold::sum>(kWidth, [=](int k) { return centred(k) * centred(k); });
      const float scale = 1.0f / mkc::sqrt(squares / kWidth + Eps::of());
      for_team(kWidth, [=](int k) {
        const auto at = [=](const auto& view) -> auto& { return at_row(view, row, k); };
        store(at(y), extras.template of<Expr>(at, centred(k) * scale));
      });
    });
  }
};

}  // namespace mkc::ops
