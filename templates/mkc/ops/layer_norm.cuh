// y[..., k] = Expr((x[..., k] - mean) / sqrt(var + Eps), extras[..., k]...), statistics along k: a team for each row
#pragma once

#include <mkc/expr.cuh>
#include <mkc/rows.cuh>

namespace mkc::ops {

template <class Expr, class Eps, class... Views>
struct LayerNorm {
  MKC_DEVICE static void run(void* const* p, const Range* r) {
    map_rows<Expr, Views...>(p, r, [](auto in, int width) {
      const float mean = team_reduce<fold::sum>(width, in) / width;
      const auto centred = [=](int k) { return in(k) - mean; };
      const float squares = team_reduce<fold::sum>(width, [=](int k) { return centred(k) * centred(k); });
      const float scale = 1.0f / mkc::sqrt(squares / width + Eps::of());
      return [=](int k) { return centred(k) * scale; };
    });
  }
};

}  // namespace mkc::ops
