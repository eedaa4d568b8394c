// y[a, i, c] = Expr(x[a, index[a, i, c], c], extras[a, i, c]...). An index below zero counts from the end; one outside of x
// is reported and moved to its edge, so that nothing beside the tensor is ever read.
#pragma once

#include <mkc/expr.cuh>
#include <mkc/fault.cuh>
#include <mkc/rows.cuh>

namespace mkc::ops {

template <class X, class Y>
constexpr bool kAlike = false;  // whether their elements are of one type
template <class T, class XShape, class XSteps, class YShape, class YSteps>
constexpr bool kAlike<View<T, XShape, XSteps>, View<T, YShape, YSteps>> = true;

template <class Expr, class Y, class X, class Index, class... Extras>
struct Gather {
  static constexpr int kWidth = Y::extent(2), kBlock = 512;  // columns that a team takes at once
  static constexpr bool kWide = Index::step(2) == 0 && kWidth > 64;
  static constexpr bool kCopies = kIsFirst<Expr> && kAlike<X, Y> && X::step(2) == 1 && Y::step(2) == 1;

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
      const int64 place = index(a, i, 0);
      report(place);
      if constexpr (kCopies) {
        copy_row(&y(a, i, begin), &x(a, inside(place), begin), width);
      } else {
        for_team(
            width, [=, this](int c) { return read(a, i, begin + c, place); },
            [=, this](int c, const Held& held) { finish(a, i, begin + c, held); });
      }
    });
  }
  // lanes take elements, across rows
  MKC_DEVICE void narrow(Range outer, Range rows, Range columns) const {
    const int width = kWidth <= 64 ? kWidth : columns.end - columns.begin;  // short rows are never split
    const auto at = [=](int row, int n, auto f) {
      return f(outer.begin + row, rows.begin + n / width, columns.begin + n % width);
    };
    tile_loop(
        outer.end - outer.begin, (rows.end - rows.begin) * width,
        [=, this](int row, int n) {
          return at(row, n, [=, this](int a, int i, int c) { return read(a, i, c, index(a, i, c)); });
        },
        [=, this](int row, int n, const Held& held) {
          at(row, n, [=, this](int a, int i, int c) {
            report(held.place);
            finish(a, i, c, held);
          });
        });
  }
  MKC_DEVICE static int64 inside(int64 place) {
    constexpr int64 kExtent = X::extent(1);
    const int64 wrapped = place < 0 ? place + kExtent : place;
    return wrapped < 0 ? 0 : wrapped < kExtent ? wrapped : kExtent - 1;
  }
  MKC_DEVICE void report(int64 place) const {
    constexpr int64 kExtent = X::extent(1);
    if (place < -kExtent || place >= kExtent) fault.outside(place, kExtent);
  }
  struct Held {  // what has been read for an element
    int64 place;
    typename X::Element element;
    typename Each<Extras...>::Values extras;
  };
  MKC_DEVICE Held read(int a, int i, int c, int64 place) const {
    const auto at = [=](const auto& view) -> auto& { return view(a, i, c); };
    return {place, x(a, inside(place), c), extras.read(at)};
  }
  MKC_DEVICE void finish(int a, int i, int c, const Held& held) const {
    store(y(a, i, c), held.extras.template of<Expr>(load(held.element)));
  }
};

}  // namespace mkc::ops
