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

  // The new rows: normalised, rotated, into shared memory, and into the cache. A lane holds some elements of each half of a row, four or,
  // where there are threads for it, two, so that those which are rotated together are at hand.
  static constexpr int kEach = (kGroup + 2) * (D / 4) <= kTalkThreads ? 2 : 4;
  static constexpr int kLanes = D / 2 / kEach, kRows = kTalkThreads / kLanes, kPasses = (kGroup + 2 + kRows - 1) / kRows;
  struct alignas(2 * kEach) Some {  // of a half: as pairs, and as floats
    uint32 pair[kEach / 2];
    MKC_DEVICE float operator[](int i) const { return i % 2 ? high(pair[i / 2]) : low(pair[i / 2]); }
    MKC_DEVICE void take(const float (&v)[kEach]) {
      MKC_UNROLL
      for (int i = 0; i < kEach; i += 2) pair[i / 2] = pair_of(v[i], v[i + 1]);
    }
  };
  template <class Page, class Where>
  MKC_DEVICE static void bring(Talk<Page>& talk, void* const* p, const Where& where) {
    const uint32 thread = talk.thread(), column = thread % kLanes * kEach, first_row = thread / kLanes;
    const uint32 bits = use_bits(talk.use);
    Some cos[2], sin[2], gains[kPasses][2];
    MKC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int at = half * (D / 2) + column;
      if constexpr (Rotary) cos[half] = some_of(static_cast<const bf16*>(p[kTables + 2 * Norm]) + where.sequence * kApart<Rest...> + at);
      if constexpr (Rotary) sin[half] = some_of(static_cast<const bf16*>(p[kTables + 1 + 2 * Norm]) + where.sequence * kApart<Rest...> + at);
      MKC_UNROLL
      for (int pass = 0; pass < kPasses && Norm; ++pass)
        gains[pass][half] = *reinterpret_cast<const Some*>(static_cast<const bf16*>(p[pass * kRows + first_row < kGroup ? kTables : kTables + 1]) + at);
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
      float x[2][kEach];
      MKC_UNROLL
      for (int half = 0; half < 2; ++half) unscaled(values(words[pass][half]), column, x[half]);
      if constexpr (Norm) normalise(x, gains[pass], row <= kGroup);
      if (Rotary && row <= kGroup) rotate(x, cos, sin);
      if (row >= kGroup + 2) continue;
      MKC_UNROLL
      for (int half = 0; half < 2; ++half) {
        Some made;
        made.take(x[half]);
        lay_down(to[pass] + half * (row < kGroup ? place_of_dims(D / 2) : D), made);
        if (row >= kGroup && where.owns_new() && found >= 0)
          *reinterpret_cast<Some*>(Keys(p[row == kGroup ? 2 : 3]).data + where.new_row(found) + half * (D / 2) + column) = made;
      }
    }
  }

 private:
  MKC_DEVICE static Some some_of(const bf16* p) {
    if constexpr (kEach == 2) return {load_single(p)};
    else return some_of(load_pair(p));
  }
  MKC_DEVICE static Some some_of(const Pair& two) {
    Some v;
    v.pair[0] = two.x, v.pair[kEach / 2 - 1] = two.y;
    return v;
  }
  MKC_DEVICE static void lay_down(uint32 to, const Some& v) {
    if constexpr (kEach == 2) store_shared(to, v.pair[0]);
    else store_shared(to, Pair{v.pair[0], v.pair[kEach / 2 - 1]});
  }
  // A word has four elements: this lane's, and those of its neighbour where it has two.
  MKC_DEVICE static void unscaled(const Pair& word, uint32 column, float (&x)[kEach]) {
    const Some v = kEach == 2 ? Some{column % 4 ? word.y : word.x} : some_of(word);
    MKC_UNROLL
    for (int i = 0; i < kEach; ++i) x[i] = v[i] * kUnscaled;
  }
  MKC_DEVICE static void normalise(float (&x)[2][kEach], const Some (&gain)[2], bool wanted) {
    float squares = 0.0f;
    MKC_UNROLL
    for (int i = 0; i < 2 * kEach; ++i) squares += x[i / kEach][i % kEach] * x[i / kEach][i % kEach];
    MKC_UNROLL
    for (int bit = kLanes / 2; bit > 0; bit /= 2) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, bit);
    const float scale = rsqrt(squares * (1.0f / D) + Eps::of());
    if (!wanted) return;
    MKC_UNROLL
    for (int half = 0; half < 2; ++half) {
      MKC_UNROLL
      for (int i = 0; i < kEach; ++i) x[half][i] *= scale;
      Some made;
      made.take(x[half]);
      MKC_UNROLL
      for (int i = 0; i < kEach / 2; ++i) made.pair[i] = product(made.pair[i], gain[half].pair[i]);
      MKC_UNROLL
      for (int i = 0; i < kEach; ++i) x[half][i] = made[i];
    }
  }
  MKC_DEVICE static void rotate(float (&x)[2][kEach], const Some (&cos)[2], const Some (&sin)[2]) {
    MKC_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const float one = x[0][i], two = x[1][i];
      x[0][i] = one * cos[0][i] - two * sin[0][i];
      x[1][i] = two * cos[1][i] + one * sin[1][i];
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
