// A residual r and the norm of x, which weights meet as two rows: x' = (r + s g x) s' g', where g is the gain of the one norm and g' that of the
// other. Both are laid into shared memory, r g' and g x g'; s and s' wait for the sums. Operands: x second, then g', r and g.
#pragma once

#include <mkc/tiles.cuh>

namespace mkc {

template <int Depth, int Fragments, int Sharers, class Eps, class Offset, class Post>
struct ResidualRow {
  using Two = TwoRows<Fragments, Sharers>;
  static constexpr int kPadded = Fragments * 32 * Sharers, kWords = (kPadded / 4 + kTalkThreads - 1) / kTalkThreads;  // of a row, for a thread
  static_assert(kWords <= 8, "two rows that are held in registers");

  // The residual has been there for a while.
  template <class X, class R, class Page>
  MKC_DEVICE static void lay(Talk<Page>& talk, void* const* p) {
    const int first = talk.thread();
    Pair gain[kWords], post[kWords], v[kWords];
    MKC_UNROLL
    for (int j = 0; j < kWords; ++j) {
      const int word = first + j * kTalkThreads;
      gain[j] = is_there(j, word) ? *(static_cast<const Pair*>(p[2]) + word) : Pair{};
      post[j] = is_there(j, word) ? *(static_cast<const Pair*>(p[4]) + word) : Pair{};
    }
    Four residual[kWords], x[kWords];
    float of_x = 0.0f, of_r = 0.0f, of_both = 0.0f, of_scaled = 0.0f;
    bring(talk, R(p[3]), first, v);
    MKC_UNROLL
    for (int j = 0; j < kWords; ++j) {
      residual[j] = four(v[j]);
      of_r = squares(residual[j], of_r);
      lay_down(talk.input, first + j * kTalkThreads, times<Offset>(residual[j], gain[j]));
    }
    if constexpr (kIsPublished<X>) talk.let_others_finish();
    bring(talk, X(p[1]), first, v);
    MKC_UNROLL
    for (int j = 0; j < kWords; ++j) {
      x[j] = times<typename Post::Offset>(four(v[j]), post[j]);
      lay_down(talk.input + Two::kSecond, first + j * kTalkThreads, times<Offset>(x[j], gain[j]));
    }
    talk.input_is_ready();
    MKC_UNROLL
    for (int j = 0; j < kWords; ++j) {
      of_x = squares(four(v[j]), of_x), of_scaled = squares(x[j], of_scaled);
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) of_both += residual[j].at[i] * x[j].at[i];
    }
    add_up(talk, of_x, of_r, of_both, of_scaled);
  }
  // What the sums of x, and then those of both, are to be multiplied with: over the talking warps, |r + s g x|^2 = |r|^2 + 2 s r g x + s^2 |g x|^2.
  template <class Page>
  MKC_DEVICE static void scales(const Talk<Page>& talk, float& scale, float& second) {
    float sum[4];
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Four part = load_shared_four(talk.input + Two::kParts + 16 * i);
      sum[i] = (part.at[0] + part.at[1]) + (part.at[2] + part.at[3]);
    }
    second = rsqrt(sum[0] * (1.0f / Depth) + Post::Eps::of());
    scale = rsqrt(max(sum[1] + second * (2.0f * sum[2] + second * sum[3]), 0.0f) * (1.0f / Depth) + Eps::of());
  }

 private:
  // Whether there is such a word, a thread's number j.
  MKC_DEVICE static bool is_there(int j, int word) { return (j + 1) * kTalkThreads <= Depth / 4 || word < Depth / 4; }
  template <class Plus>
  MKC_DEVICE static Four times(Four v, const Pair& gain) {
    const Four by = four(gain);
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) v.at[i] = Plus::of() == 0.0f ? v.at[i] * by.at[i] : v.at[i] * by.at[i] + v.at[i] * Plus::of();
    return v;
  }
  MKC_DEVICE static float squares(const Four& v, float more) {
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) more += v.at[i] * v.at[i];
    return more;
  }
  MKC_DEVICE static void lay_down(uint32 row, int word, const Four& v) {
    if (word < kPadded / 4) store_shared(row + word * 8, four(v));
  }
  template <class Page, class S, class D>
  MKC_DEVICE static void bring(Talk<Page>& talk, Words<bf16, S, D> x, int first, Pair (&v)[kWords]) {
    constexpr uint32 kBy = 0x5F005F00u;  // kUnscaled, twice
    const uint32 bits = use_bits(talk.use);
    uint64 words[kWords];
    MKC_UNROLL
    for (int j = 0; j < kWords; ++j) words[j] = is_there(j, first + j * kTalkThreads) ? ~bits : bits;
    talk.poll([&] {
      bool all = true;
      MKC_UNROLL
      for (int j = 0; j < kWords; ++j)
        if (!is_of(words[j], bits)) words[j] = load_word(x.data + first + j * kTalkThreads);
      MKC_UNROLL
      for (int j = 0; j < kWords; ++j) all &= is_of(words[j], bits);
      return all;
    });
    MKC_UNROLL
    for (int j = 0; j < kWords; ++j) {
      v[j] = values(words[j]);
      v[j] = {product(v[j].x, kBy), product(v[j].y, kBy)};
    }
  }
  template <class Page, class S, class D>
  MKC_DEVICE static void bring(Talk<Page>&, View<bf16, S, D> x, int first, Pair (&v)[kWords]) {
    MKC_UNROLL
    for (int j = 0; j < kWords; ++j) {
      const int word = first + j * kTalkThreads;
      const uint64 both = is_there(j, word) ? load_word(reinterpret_cast<const uint64*>(x.data) + word) : 0;
      v[j] = {static_cast<uint32>(both), static_cast<uint32>(both >> 32)};
    }
  }
  // Sums of four values over a warp's lanes, each in one of them: x^2, r^2, r g x and (g x)^2.
  template <class Page>
  MKC_DEVICE static void add_up(const Talk<Page>& talk, float a, float b, float c, float d) {
    const int thread = talk.thread();
    const auto fold = [](bool upper, float one, float other, int bit) {
      return (upper ? other : one) + __shfl_xor_sync(0xFFFFFFFFu, upper ? one : other, bit);
    };
    float sum = fold(thread & 8, fold(thread & 16, a, c, 16), fold(thread & 16, b, d, 16), 8);
    MKC_UNROLL
    for (int bit = 4; bit > 0; bit /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, bit);
    if (thread % 8 == 0) store_shared(talk.input + Two::kParts + thread % 32 * 2 + thread / 32 * 4, sum);
  }
};

}  // namespace mkc
