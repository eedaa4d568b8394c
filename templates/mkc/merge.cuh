// An attention's output, merged from the splits of its keys by those who multiply it: a compute warp brings those columns of 8
// that it will read itself, a lane one at a time, a few splits at a time.
#pragma once

#include <mkc/worker_stream.cuh>

namespace mkc {

// Operands: the parts [Splits, Depth] second, their levels [Splits, Heads, kLine] third, then the position. `Sharers` warps share the
// depth; those that multiply other tiles of the same depth bring the same.
template <int Depth, int Fragments, int Sharers, int Heads, int Splits>
struct MergedRow {
  static constexpr int kTogether = Splits < 4 ? Splits : 4;
  template <class Page>
  MKC_DEVICE static void await(Compute<Page>& c) {
    bring(c, c.begin_alone().operands);
  }

 private:
  template <class Page>
  MKC_DEVICE static void bring(Compute<Page>& c, void* const* p) {
    constexpr int kRun = Fragments % 2 == 0 ? 8 : 4;  // neighbouring columns of a warp
    const int64 blocks = c.position(p[3]) / kKeyBlock + 1;
    const int splits = static_cast<int>(blocks < Splits ? blocks : Splits);
    const uint32 thread = c.thread(), share = thread / 32 % Sharers;
    c.let_others_finish();
    MKC_NO_UNROLL
    for (uint32 own = thread % 32; own < Fragments * 4; own += 32) {
      const int column = (own / kRun * Sharers + share) * kRun + own % kRun;
      float sum[8] = {}, top = kLeast, weight = 0.0f;
      MKC_NO_UNROLL
      for (int from = 0; from < splits && column < Depth / 8; from += kTogether) {
        TwoWords v[kTogether];
        uint64 level[kTogether];
        await_parts(c, p, column, from, splits, v, level);
        float highest = top;
        MKC_UNROLL
        for (int s = 0; s < kTogether; ++s) highest = max(highest, value_of(level[s]));
        const float shrink = exp2(top - highest);
        top = highest, weight *= shrink;
        MKC_UNROLL
        for (int i = 0; i < 8; ++i) sum[i] *= shrink;
        MKC_UNROLL
        for (int s = 0; s < kTogether; ++s) {
          const float part = from + s < splits ? exp2(value_of(level[s]) - highest) : 0.0f;
          float value[8];
          eight(values(v[s]), value);
          weight += part;
          MKC_UNROLL
          for (int i = 0; i < 8; ++i) sum[i] += part * value[i];
        }
      }
      const float by = weight > 0.0f ? kUnscaled * inverse(weight) : 0.0f;
      MKC_UNROLL
      for (int i = 0; i < 8; ++i) sum[i] *= by;
      store_shared(c.input + column * 16, eight(sum));
    }
    c.input_came();
    __syncwarp();
  }
  // Splits [from, from + kTogether) of a column: those that exist, each asked for until it is there.
  template <class Page>
  MKC_DEVICE static void await_parts(Compute<Page>& c, void* const* p, int column, int from, int splits, TwoWords (&v)[kTogether],
                                     uint64 (&level)[kTogether]) {
    const uint64* const parts = static_cast<const uint64*>(p[1]) + from * (Depth / 4) + 2 * column;
    const uint64* const lse = static_cast<const uint64*>(p[2]) + (from * Heads + column / (Depth / Heads / 8)) * kLine;
    const uint32 bits = use_bits(c.use), use = c.use;
    const uint64 like = bits | static_cast<uint64>(bits) << 32;
    MKC_UNROLL
    for (int s = 0; s < kTogether; ++s) {
      const bool wanted = from + s < splits;
      v[s] = wanted ? TwoWords{~like, ~like} : TwoWords{like, like};
      level[s] = word_of(kLeast, wanted ? ~use : use);
    }
    c.poll([&] {
      const auto is_there = [&](int s) { return is_of(v[s], bits) && static_cast<uint32>(level[s]) == use; };
      MKC_UNROLL
      for (int s = 0; s < kTogether; ++s)
        if (!is_there(s)) v[s] = load_words(parts + s * (Depth / 4)), level[s] = load_word(lse + s * Heads * kLine);
      bool all = true;
      MKC_UNROLL
      for (int s = 0; s < kTogether; ++s) all &= is_there(s);
      return all;
    });
  }
};

}  // namespace mkc
