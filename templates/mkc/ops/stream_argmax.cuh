// y[0] = where the best of `Entries` entries stands, each of which is the best of one share of a row
#pragma once

#include <mkc/best.cuh>

namespace mkc::ops {

template <int Entries, class Y, class X>
struct StreamArgMax {
  template <class Page>
  MKC_DEVICE static void talk(Talk<Page>& talk, void* const* p, const Range*) {
    constexpr int kEach = (Entries + kTalkThreads - 1) / kTalkThreads;
    const uint64* const entries = X(p[1]).data;
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
    if (talk.thread() == 0) *Y(p[0]).data = best.place;
    sync();  // other warps may read it in their next task
  }
};

}  // namespace mkc::ops
