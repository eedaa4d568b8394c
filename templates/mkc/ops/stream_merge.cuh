// y[i] = sum_s weight[s] part[s, i] / sum_s weight[s], with weight[s] = 2^(lse[s] - the highest): what an attention found in the parts of its keys
#pragma once

#include <mkc/worker_stream.cuh>

namespace mkc::ops {

// Operands: y [Heads * Depth], parts [Splits, Heads * Depth], lse [Splits, Heads, kLine]. Each word of y is made by neighbouring lanes, of which each has that word of
// one part: all that a task reads comes in one trip.
template <int Splits, int Heads, int Depth, class Y, class Parts, class Lse>
struct StreamMerge {
  static_assert(Splits <= 32 && Depth % 4 == 0 && kIsPublished<Parts> && kIsPublished<Lse>);
  static constexpr int lanes() {
    int count = 1;
    while (count < Splits) count *= 2;
    return count;
  }
  static constexpr int kLanes = lanes(), kAtOnce = kTalkThreads / kLanes;  // of a word; words

  template <class Page>
  MKC_DEVICE static void talk(Talk<Page>& talk, void* const* p, const Range* r) {
    const int split = talk.thread() % kLanes, mine = talk.thread() / kLanes, end = r[0].end / 4;
    const uint64* const parts = static_cast<const uint64*>(p[1]) + split * (Heads * Depth / 4);
    const uint64* const lse = static_cast<const uint64*>(p[2]) + split * (Heads * kLine);
    uint32 misfit = 0;
    talk.let_others_finish();
    MKC_NO_UNROLL
    for (int first = r[0].begin / 4; first < end; first += kAtOnce) {
      const int word = first + mine;
      const bool there = word < end && split < Splits;
      float level;
      Four v = part(talk, parts + word, lse + word / (Depth / 4) * kLine, there, level);
      float weight = level;
      MKC_UNROLL
      for (int bit = kLanes / 2; bit > 0; bit /= 2) weight = max(weight, __shfl_xor_sync(0xFFFFFFFFu, weight, bit));
      weight = exp2(level - weight);
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) v.at[i] *= weight;
      MKC_UNROLL
      for (int bit = kLanes / 2; bit > 0; bit /= 2) {
        weight += __shfl_xor_sync(0xFFFFFFFFu, weight, bit);
        MKC_UNROLL
        for (int i = 0; i < 4; ++i) v.at[i] += __shfl_xor_sync(0xFFFFFFFFu, v.at[i], bit);
      }
      const float by = kUnscaled * inverse(weight);
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) v.at[i] *= by;
      if (!there || split > 0) continue;
      if constexpr (kIsPublished<Y>) {
        store_word(Y(p[0]).data + word, word_of(v, use_bits(talk.use), misfit));
      } else {
        MKC_UNROLL
        for (int i = 0; i < 4; ++i) store(Y(p[0])(word * 4 + i), v.at[i]);
      }
    }
    talk.report(misfit);
    if constexpr (!kIsPublished<Y>) sync();  // other warps may read it in their next task
  }

 private:
  // A word of one part, still scaled, and its level; zeros and the least level where there is none.
  template <class Page>
  MKC_DEVICE static Four part(Talk<Page>& talk, const uint64* from, const uint64* lse, bool there, float& level) {
    const uint32 bits = use_bits(talk.use);
    uint64 word = there ? ~bits : bits, of = word_of(kLeast, there ? ~talk.use : talk.use);
    const auto has_come = [&] { return is_of(word, bits) && static_cast<uint32>(of) == talk.use; };
    talk.poll([&] {
      if (!has_come()) word = load_word(from), of = load_word(lse);
      return has_come();
    });
    __syncwarp();
    level = value_of(of);
    return four(values(word));
  }
};

}  // namespace mkc::ops
