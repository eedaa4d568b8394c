// y[b] = Expr(where the best of `Entries` entries stands, each of which is the best of one share of row b, extras[b]...)
#pragma once

#include <mkc/best.cuh>
#include <mkc/expr.cuh>
#include <mkc/rows.cuh>

namespace mkc::ops {

template <class V>
constexpr bool kHasRows = false;
template <class T, int Batch, int Entries, class D>
constexpr bool kHasRows<Words<T, Shape<Batch, Entries, 2>, D>> = true;

// A task is one row, of one or of several.
template <class Expr, int Entries, class Y, class X, class... Extras>
struct StreamArgMax {
  template <class Page>
  MKC_DEVICE static void talk(Talk<Page>& talk, void* const* p, const Range* r) {
    constexpr int kEach = (Entries + kTalkThreads - 1) / kTalkThreads;
    const int row = kHasRows<X> ? r[0].begin : 0;
    const auto at = [=](const auto& view) -> auto& { return view.data[row * view.step(0)]; };
    const auto extras = Each<Extras...>(p + 2).read(at);  // while the entries are on their way
    const uint64* const entries = X(p[1]).data + 2 * Entries * row;
    Best best;
    talk.poll([&] {
      TwoWords entry[kEach];
      MKC_UNROLL
      for (int i = 0; i < kEach; ++i) {  // threads to spare look at the last one too
        const int at = talk.thread() + i * kTalkThreads;
        entry[i] = load_words(entries + 2 * (at < Entries ? at : Entries - 1));
      }
      bool all = true;
      best = {};
      MKC_UNROLL
      for (int i = 0; i < kEach; ++i) {
        all &= static_cast<uint32>(entry[i].first) == talk.use && static_cast<uint32>(entry[i].second) == talk.use;
        best.see(best_of(entry[i]));
      }
      return all;
    });
    best = best.of_all(talk);
    if (talk.thread() == 0) store(at(Y(p[0])), extras.template of<Expr>(static_cast<int64>(best.place)));
    sync();  // other warps may read it in their next task
  }
};

}  // namespace mkc::ops
