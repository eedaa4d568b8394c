// out = Expr(x cos + rotated(x) sin, extras...), where rotated(x) is [-second half, first half] of each row
#pragma once

#include <mkc/expr.cuh>
#include <mkc/view.cuh>

namespace mkc::ops {

template <class Expr, class Out, class X, class Cos, class Sin, class... Extras>
struct Rotary {
  static constexpr int kLast = Out::kRank - 1, kHalf = Out::extent(kLast) / 2;

  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Out out(p[0]);
    const X x(p[1]);
    const Cos cos(p[2]);
    const Sin sin(p[3]);
    const Each<Extras...> extras(p + 4);
    int begin[kLast], extent[kLast], rows = 1;
    MKC_UNROLL
    for (int d = 0; d < kLast; ++d) {
      begin[d] = r[d].begin, extent[d] = r[d].end - r[d].begin;
      rows *= extent[d];
    }
    tile_loop(rows, kHalf, [=](int row, int column) {
      int low[kLast + 1], high[kLast + 1];
      MKC_UNROLL
      for (int d = kLast - 1; d >= 0; --d) {
        low[d] = high[d] = begin[d] + row % extent[d];
        row /= extent[d];
      }
      low[kLast] = column, high[kLast] = column + kHalf;
      const float first = load(x.at(low)), second = load(x.at(high));
      const auto at_low = [&](const auto& view) -> auto& { return view.at(low); };
      const auto at_high = [&](const auto& view) -> auto& { return view.at(high); };
      store(out.at(low), extras.template of<Expr>(at_low, first * load(cos.at(low)) - second * load(sin.at(low))));
      store(out.at(high), extras.template of<Expr>(at_high, second * load(cos.at(high)) + first * load(sin.at(high))));
    });
  }
};

}  // namespace mkc::ops
