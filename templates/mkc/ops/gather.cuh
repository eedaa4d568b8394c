// y[a, i, c] = Expr(x[a, index[a, i, c], c], extras[a, i, c]...). An index below zero counts from the end; one outside of x
// is reported and moved to its edge, so that nothing beside the tensor is ever read.
#pragma once

#include <mkc/expr.cuh>
#include <mkc/fault.cuh>
#include <mkc/rows.cuh>

namespace mkc::ops {

template <class Expr, class Y, class X, class Index, class... Extras>
struct Gather {
  static constexpr int kWidth = Y::extent(2), kBlock = 512;  // columns that a team takes at once
  static constexpr bool kWide = Index::step(2) == 0 && kWidth > 64;

  Y y;
  X x;
  Index index;
  Each<Extras...> extras;
  const Fault& fault;

  MKC_DEVICE static void run(void* const* p, const Range* r, const Fault& fault) {
    const Gather op{Y(p[0]), X(p[1]), Index(p[2]), Each<Extras...>(p + 3), fault};
    if constexpr (kWide) op.wide(r[0], r[1], r[2]);
    else op.narrow(r[0], r[1], r[2]);
  }
  // rows that share an index: teams take blocks of their columns
  MKC_DEVICE void wide(Range outer, Range rows, Range columns) const {
    const Range blocks[] = {outer, rows, {0, (columns.end - columns.begin + kBlock - 1) / kBlock}};
    for_rows<3>(blocks, [=, this](const int* at) {
      const int a = at[0], i = at[1], begin = columns.begin + at[2] * kBlock;
      const int width = columns.end - begin < kBlock ? columns.end - begin : kBlock;
      const int64 place = inside(index(a, i, 0));
      for_team(width, [=, this](int c) { move(a, i, begin + c, place); });
    });
  }
  // lanes take elements, across rows
  MKC_DEVICE void narrow(Range outer, Range rows, Range columns) const {
    const int width = kWidth <= 64 ? kWidth : columns.end - columns.begin;  // short rows are never split
    tile_loop(outer.end - outer.begin, (rows.end - rows.begin) * width, [=, this](int row, int at) {
      const int a = outer.begin + row, i = rows.begin + at / width, c = columns.begin + at % width;
      move(a, i, c, inside(index(a, i, c)));
    });
  }
  MKC_DEVICE int64 inside(int64 place) const {
    constexpr int64 kExtent = X::extent(1);
    const int64 wrapped = place < 0 ? place + kExtent : place;
    if (0 <= wrapped && wrapped < kExtent) return wrapped;
    fault.outside(place, kExtent);
    return wrapped < 0 ? 0 : kExtent - 1;
  }
  MKC_DEVICE void move(int a, int i, int c, int64 place) const {
    const auto at = [=](const auto& view) -> auto& { return view(a, i, c); };
    store(at(y), extras.template of<Expr>(at, load(x(a, place, c))));
  }
};

}  // namespace mkc::ops
