// y[..., k] = Expr(x[..., k] / sqrt(mean of x^2 along k + Eps), extras[..., k]...): a team for each row
#pragma once

#include <mkc/expr.cuh>
#include <mkc/rows.cuh>

namespace mkc::ops {

template <class Expr, class Eps, class... Views>
struct RmsNorm {
  MKC_DEVICE static void run(void* const* p, const Range* r) {
    map_rows<Expr, Views...>(p, r, [](auto in, int width) {
      const float squares = team_reduce<fold::sum>(width, [=](int k) { return in(k) * in(k); });
      const float scale = 1.0f / mkc::sqrt(squares / width + Eps::of());
      return [=](int k) { return in(k) * scale; };
    });
  }
};

}  // namespace mkc::ops
