// y[..., k] = Expr(softmax of x[..., :] at k, extras[..., k]...), or its logarithm: a team for each row
#pragma once

#include <mkc/expr.cuh>
#include <mkc/rows.cuh>

namespace mkc::ops {

template <class Expr, bool Log, class... Views>
struct Softmax {
  MKC_DEVICE static void run(void* const* p, const Range* r) {
    map_rows<Expr, Views...>(p, r, [](auto in, int width) {
      const float top = team_reduce<fold::maximum>(width, in);
      const float total = team_reduce<fold::sum>(width, [=](int k) { return mkc::exp(in(k) - top); });
      const float scale = 1.0f / total, shift = top + mkc::log(total);
      return [=](int k) { return Log ? in(k) - shift : mkc::exp(in(k) - top) * scale; };
    });
  }
};

}  // namespace mkc::ops
