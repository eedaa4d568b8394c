// out[i, j, ...] = Expr(a[i, j, ...], b[i, j, ...], ...), every tensor seen in the same merged dimensions
#pragma once

#include <mkc/expr.cuh>
#include <mkc/view.cuh>

namespace mkc::ops {

template <class Expr, class Out, class... Ins>
struct Elementwise {
  static constexpr int kRank = Out::kRank;

  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Out out(p[0]);
    const Each<Ins...> ins(p + 1);
    int begin[kRank], extent[kRank], rows = 1;
    MKC_UNROLL
    for (int d = 0; d < kRank; ++d) begin[d] = r[d].begin, extent[d] = r[d].end - r[d].begin;
    MKC_UNROLL
    for (int d = 0; d + 1 < kRank; ++d) rows *= extent[d];
    const auto place = [=](int row, int column, int (&index)[kRank]) {
      MKC_UNROLL
      for (int d = kRank - 2; d >= 0; --d) {
        index[d] = begin[d] + row % extent[d];
        row /= extent[d];
      }
      index[kRank - 1] = begin[kRank - 1] + column;
    };
    const auto get = [=](int row, int column) {
      int index[kRank];
      place(row, column, index);
      return ins.read([&](const auto& view) -> auto& { return view.at(index); });
    };
    const auto put = [=](int row, int column, const auto& values) {
      int index[kRank];
      place(row, column, index);
      store(out.at(index), values.template of<Expr>());
    };
    tile_loop(rows, extent[kRank - 1], get, put);
  }
};

}  // namespace mkc::ops
