// The best of many values, as torch.argmax has it: NaN, then the highest; of equals, the one that stands first.
#pragma once

#include <mkc/worker_stream.cuh>

namespace mkc {

struct Best {
  uint32 rank = 0;  // in the order of the values; nothing yet is under all of them
  uint32 place = 0xFFFFFFFFu;

  MKC_DEVICE static uint32 rank_of(float v) {
    const uint32 bits = __float_as_uint(v + 0.0f);  // -0 becomes 0
    return v != v ? 0xFFFFFFFFu : bits >> 31 ? ~bits : bits | 0x80000000u;
  }
  MKC_DEVICE float value() const { return __uint_as_float(rank >> 31 ? rank ^ 0x80000000u : ~rank); }
  MKC_DEVICE void see(const Best& other) {
    if (other.rank > rank || (other.rank == rank && other.place < place)) *this = other;
  }
  MKC_DEVICE void see(float v, uint32 at) { see(Best{rank_of(v), at}); }

  MKC_DEVICE Best of_warp() const {
    const uint32 highest = __reduce_max_sync(0xFFFFFFFFu, rank);
    return {highest, __reduce_min_sync(0xFFFFFFFFu, rank == highest ? place : 0xFFFFFFFFu)};
  }
  // Of the talking threads, to all of them. It passes through the input's memory, which nobody reads once the sums are
  // ready, and nobody fills before the second meeting.
  static constexpr int kBytes = 8 * kTalkWarps;
  template <class Page>
  MKC_DEVICE Best of_all(const Talk<Page>& talk) const {
    const Best mine = of_warp();
    if (team_leader()) store_shared(talk.input + 8 * team(), mine.rank), store_shared(talk.input + 8 * team() + 4, mine.place);
    meet(kAmongTalk, kTalkThreads);
    Best best;
    MKC_UNROLL
    for (int pair = 0; pair < kTalkWarps / 2; ++pair) {
      const Quad two = load_shared(talk.input + 16 * pair);
      best.see(Best{two.x, two.y}), best.see(Best{two.z, two.w});
    }
    meet(kAmongTalk, kTalkThreads);
    return best;
  }
};

// An entry is two published words: the value's bits, and those of its place.
MKC_DEVICE void store_entry(uint64* to, const Best& best, uint32 use) {
  store_word(to, word_of(best.value(), use)), store_word(to + 1, word_of(__uint_as_float(best.place), use));
}
MKC_DEVICE Best best_of(const TwoWords& entry) {
  return {Best::rank_of(value_of(entry.first)), static_cast<uint32>(entry.second >> 32)};
}

}  // namespace mkc
