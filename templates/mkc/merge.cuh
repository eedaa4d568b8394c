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
  // Beside so many slots of weights in registers.
  template <int Held, class Page>
  MKC_DEVICE static void await(Compute<Page>& c) {
    bring<(Splits > kTogether && Held <= kRollingSlots / 2)>(c, c.begin_alone().operands);
  }

 private:
  struct Asked {  // splits [from, from + kTogether) of a column: words that have come, or have not yet
    TwoWords parts[kTogether];
    uint64 levels[kTogether];
  };
  // `Twice`: the next splits are asked for before those that come first are awaited, if there are registers for both.
  template <bool Twice, class Page>
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
      Asked asked = nothing(c, 0, splits);
      MKC_NO_UNROLL
      for (int from = 0; from < splits && column < Depth / 8; from += kTogether) {
        Asked next = nothing(c, from + kTogether, splits);
        if constexpr (Twice) ask(c, p, column, from + kTogether, next);
        c.poll([&] { return ask(c, p, column, from, asked), have_come(c, asked); });
        float highest = top;
        MKC_UNROLL
        for (int s = 0; s < kTogether; ++s) highest = max(highest, value_of(asked.levels[s]));
        const float shrink = exp2(top - highest);
        top = highest, weight *= shrink;
        MKC_UNROLL
        for (int i = 0; i < 8; ++i) sum[i] *= shrink;
        MKC_UNROLL
        for (int s = 0; s < kTogether; ++s) {
          const float part = from + s < splits ? exp2(value_of(asked.levels[s]) - highest) : 0.0f;
          float value[8];
          eight(values(asked.parts[s]), value);
          weight += part;
          MKC_UNROLL
          for (int i = 0; i < 8; ++i) sum[i] += part * value[i];
        }
        asked = next;
      }
      const float by = weight > 0.0f ? kUnscaled * inverse(weight) : 0.0f;
      MKC_UNROLL
      for (int i = 0; i < 8; ++i) sum[i] *= by;
      store_shared(c.input + column * 16, eight(sum));
    }
    c.input_came();
    __syncwarp();
  }
  // Nothing has come of those that exist, and the others, which count for nothing, are there.
  template <class Page>
  MKC_DEVICE static Asked nothing(const Compute<Page>& c, int from, int splits) {
    const uint32 bits = use_bits(c.use);
    const uint64 like = bits | static_cast<uint64>(bits) << 32;
    Asked made;
    MKC_UNROLL
    for (int s = 0; s < kTogether; ++s) {
      const bool wanted = from + s < splits;
      made.parts[s] = wanted ? TwoWords{~like, ~like} : TwoWords{like, like};
      made.levels[s] = word_of(kLeast, wanted ? ~c.use : c.use);
    }
    return made;
  }
  template <class Page>
  MKC_DEVICE static bool has_come(const Compute<Page>& c, const Asked& asked, int s) {
    return is_of(asked.parts[s], use_bits(c.use)) && static_cast<uint32>(asked.levels[s]) == c.use;
  }
  template <class Page>
  MKC_DEVICE static bool have_come(const Compute<Page>& c, const Asked& asked) {
    bool all = true;
    MKC_UNROLL
    for (int s = 0; s < kTogether; ++s) all &= has_come(c, asked, s);
    return all;
  }
  // For all that have not come.
  template <class Page>
  MKC_DEVICE static void ask(const Compute<Page>& c, void* const* p, int column, int from, Asked& asked) {
    const uint64* const parts = static_cast<const uint64*>(p[1]) + from * (Depth / 4) + 2 * column;
    const uint64* const lse = static_cast<const uint64*>(p[2]) + (from * Heads + column / (Depth / Heads / 8)) * kLine;
    MKC_UNROLL
    for (int s = 0; s < kTogether; ++s)
      if (!has_come(c, asked, s)) asked.parts[s] = load_words(parts + s * (Depth / 4)), asked.levels[s] = load_word(lse + s * Heads * kLine);
  }
};

}  // namespace mkc
