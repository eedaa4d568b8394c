// y[..., m, n] = Expr(sum_k x[..., m, k] w[..., n, k], extras[..., m, n]...): teams take columns n, a few rows m at a time
#pragma once

#include <mkc/expr.cuh>
#include <mkc/rows.cuh>

namespace mkc::ops {

template <class Expr, class Y, class X, class W, class... Extras>
struct Matmul {
  static constexpr int kBatch = Y::kRank - 2, kDepth = X::extent(kBatch + 1);
  static constexpr int kRows = 4;  // of x that share one pass over a row of w
  // w stands as [k, n] in memory: lanes go along n, and each sums on its own
  static constexpr bool kColumns = W::step(kBatch + 1) != 1 && W::step(kBatch) == 1;
  static constexpr int kBlock = kColumns ? kTeamColumns : kTeamDots;

  Y y;
  X x;
  W w;
  Each<Extras...> extras;

  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Matmul op{Y(p[0]), X(p[1]), W(p[2]), Each<Extras...>(p + 3)};
    const Range columns = r[kBatch], rows = r[kBatch + 1];
    Range blocks[kBatch + 1];
    MKC_UNROLL
    for (int d = 0; d < kBatch; ++d) blocks[d] = r[d];
    blocks[kBatch] = {0, (columns.end - columns.begin + kBlock - 1) / kBlock};
    for_rows<kBatch + 1>(blocks, [=](const int* at) {
      const int begin = columns.begin + at[kBatch] * kBlock;
      const int width = columns.end - begin < kBlock ? columns.end - begin : kBlock;
      int row = rows.begin;
      for (; row + kRows <= rows.end; row += kRows) op.template tile<kRows>(at, row, begin, width);
      for (; row < rows.end; ++row) op.template tile<1>(at, row, begin, width);
    });
  }

  template <int M>
  MKC_DEVICE void tile(const int* batch, int row, int begin, int width) const {
    constexpr long long kDown = X::step(kBatch), kAlong = X::step(kBatch + 1), kDeep = W::step(kBatch + 1);
    const auto* a = &at_row(x, batch, row, 0);
    const auto* b = &at_row(w, batch, begin, 0);
    const auto done = [=, this](int i, int j, float sum) { finish(batch, row + i, begin + j, sum); };
    if constexpr (kColumns) {
      const auto product = [=](int i, int j, int k) {
        return float(load(a[i * kDown + k * kAlong])) * float(load(b[j + k * kDeep]));
      };
      column_reduce<fold::sum, M>(kDepth, width, product, done);
    } else {
      dots<M, kDepth, kAlong, kDeep>(a, kDown, b, W::step(kBatch), width, done);
    }
  }
  MKC_DEVICE void finish(const int* batch, int row, int column, float sum) const {
    const auto at = [=](const auto& view) -> auto& { return at_row(view, batch, row, column); };
    store(at(y), extras.template of<Expr>(at, sum));
  }
};

}  // namespace mkc::ops
