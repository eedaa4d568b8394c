// Attention of one new token: rotates q and k, appends k and v to their cache, and sees every `Splits`-th block of keys
#pragma once

#include <mkc/any_attention.cuh>
#include <mkc/expr.cuh>

namespace mkc::ops {

// For heads of 64 or 128 that are turned whole or not at all, and rows that are published one after the other.
// Operands after the caches: the gains with Norm, cos and sin with Rotary.
template <class Scale, class Eps, bool Norm, bool Rotary, int Splits, int Window, int Heads, int D, int Pages, int Batch, class Parts, class Lse,
          class Keys, class Values, class Q, class K, class V, class... Rest>
struct SwiftAttention
    : Attend<SwiftAttention<Scale, Eps, Norm, Rotary, Splits, Window, Heads, D, Pages, Batch, Parts, Lse, Keys, Values, Q, K, V, Rest...>, Scale,
             Splits, Window, 1, Heads, Pages, Batch, Parts, Lse, Keys> {
  static_assert(D == 64 || D == 128, "rows that a few lanes hold");
  static constexpr int kGroup = SwiftAttention::Attend::kGroup, kPitch = SwiftAttention::Attend::kPitch;
  static constexpr int kNewKey = SwiftAttention::Attend::kNewKey, kTables = SwiftAttention::Attend::kTables;

  // The new rows: normalised, rotated, into shared memory, and into the cache. A lane holds four elements of each half of a
  // row, so that those which are rotated together are at hand.
  template <class Page, class Where>
  MKC_DEVICE static void bring(Talk<Page>& talk, void* const* p, const Where& where) {
    constexpr int kLanes = D / 8, kRows = kTalkThreads / kLanes, kPasses = (kGroup + 2 + kRows - 1) / kRows;
    const uint32 thread = talk.thread(), column = thread % kLanes * 4, first_row = thread / kLanes;
    const uint32 bits = use_bits(talk.use);
    Pair cos[2], sin[2], gains[kPasses][2];
    MKC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int at = half * (D / 2) + column;
      if constexpr (Rotary) cos[half] = load_pair(static_cast<const bf16*>(p[kTables + 2 * Norm]) + where.sequence * kApart<Rest...> + at);
      if constexpr (Rotary) sin[half] = load_pair(static_cast<const bf16*>(p[kTables + 1 + 2 * Norm]) + where.sequence * kApart<Rest...> + at);
      MKC_UNROLL
      for (int pass = 0; pass < kPasses && Norm; ++pass)
        gains[pass][half] = *reinterpret_cast<const Pair*>(static_cast<const bf16*>(p[pass * kRows + first_row < kGroup ? kTables : kTables + 1]) + at);
    }
    const long long found = where.looked_up(p);
    const uint64* from[kPasses];  // both halves are found, and laid down, from the first
    uint32 to[kPasses];
    MKC_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      const uint32 row = pass * kRows + first_row;
      from[pass] = (row < kGroup ? Q(p[4]).data + where.sequence * (kApart<Q> / 4) + (where.head() * kGroup + row) * (D / 4)
                                 : (row == kGroup ? K(p[5]).data : V(p[6]).data) + where.sequence * (kApart<K> / 4) + where.head() * (D / 4)) +
                   column / 4;
      to[pass] = opaque(talk.input + (row < kGroup ? row * kPitch + place_of_dims(column) : (row - kGroup + kNewKey) * kPitch + column * 2));
    }
    talk.let_others_finish();
    uint64 words[kPasses][2];
    talk.poll([&] {
      bool all = true;
      MKC_UNROLL
      for (int i = 0; i < 2 * kPasses; ++i)
        words[i / 2][i % 2] = i / 2 * kRows + first_row < kGroup + 2 ? load_word(from[i / 2] + i % 2 * (D / 8)) : bits | static_cast<uint64>(bits) << 32;
      MKC_UNROLL
      for (int i = 0; i < 2 * kPasses; ++i) all &= is_of(words[i / 2][i % 2], bits);
      return all;
    });
    __syncwarp();
    MKC_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      const uint32 row = pass * kRows + first_row;
      Four x[2] = {four(values(words[pass][0])), four(values(words[pass][1]))};
      MKC_UNROLL
      for (int i = 0; i < 8; ++i) x[i / 4].at[i % 4] *= kUnscaled;
      if constexpr (Norm) normalise(x, gains[pass], row <= kGroup);
      if (Rotary && row <= kGroup) rotate(x, cos, sin);
      if (row >= kGroup + 2) continue;
      MKC_UNROLL
      for (int half = 0; half < 2; ++half) {
        const Pair made = four(x[half]);
        store_shared(to[pass] + half * (row < kGroup ? place_of_dims(D / 2) : D), made);
        if (row >= kGroup && where.owns_new() && found >= 0)
          *reinterpret_cast<Pair*>(Keys(p[row == kGroup ? 2 : 3]).data + where.new_row(found) + half * (D / 2) + column) = made;
      }
    }
  }

 private:
  MKC_DEVICE static Pair load_pair(const bf16* p) {
    Pair v;
    asm volatile("ld.global.v2.b32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
    return v;
  }
  MKC_DEVICE static void normalise(Four (&x)[2], const Pair (&gain)[2], bool wanted) {
    float squares = 0.0f;
    MKC_UNROLL
    for (int i = 0; i < 8; ++i) squares += x[i / 4].at[i % 4] * x[i / 4].at[i % 4];
    MKC_UNROLL
    for (int bit = D / 16; bit > 0; bit /= 2) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, bit);
    const float scale = rsqrt(squares * (1.0f / D) + Eps::of());
    if (!wanted) return;
    MKC_UNROLL
    for (int half = 0; half < 2; ++half) {
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) x[half].at[i] *= scale;
      const Pair made = four(x[half]);
      x[half] = four(Pair{product(made.x, gain[half].x), product(made.y, gain[half].y)});
    }
  }
  MKC_DEVICE static void rotate(Four (&x)[2], const Pair (&cosines)[2], const Pair (&sines)[2]) {
    const Four cos[2] = {four(cosines[0]), four(cosines[1])}, sin[2] = {four(sines[0]), four(sines[1])};
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float one = x[0].at[i], two = x[1].at[i];
      x[0].at[i] = one * cos[0].at[i] - two * sin[0].at[i];
      x[1].at[i] = two * cos[1].at[i] + one * sin[1].at[i];
    }
  }
};

template <bool Is, class First, class Then>
struct Either {
  using Type = First;
};
template <class First, class Then>
struct Either<false, First, Then> {
  using Type = Then;
};
template <class First, class Then>
constexpr bool kSame = false;
template <class Type>
constexpr bool kSame<Type, Type> = true;
template <class Rows, int D>
constexpr bool kFollow = kIsPublished<Rows> && kStep<Rows> == D;

template <class Scale, class Eps, class Offset, bool Norm, int Turned, int Splits, int Window, int Shares, int Heads, int D, int Pages, int Batch,
          class Parts, class Lse, class Keys, class Values, class Q, class K, class V, class... Rest>
struct DecodeAttention
    : Either<(D == 64 || D == 128) && (Turned == 0 || Turned == D) && kSame<Offset, Const<0.0f>> && Shares == 1 && kFollow<Q, D> &&
                 kFollow<K, D> && kFollow<V, D> && sizeof(typename LastElement<Rest...>::Type) == 2,
             SwiftAttention<Scale, Eps, Norm, (Turned > 0), Splits, Window, Heads, D, Pages, Batch, Parts, Lse, Keys, Values, Q, K, V, Rest...>,
             AnyAttention<Scale, Eps, Offset, Norm, Turned, Splits, Window, Shares, Heads, D, Pages, Batch, Parts, Lse, Keys, Values, Q, K, V,
                          Rest...>>::Type {};

}  // namespace mkc::ops
