// The new rows of attention, for all shapes: heads of any multiple of 16, rotations of some dims, windows, rows in memory
#pragma once

#include <mkc/attend.cuh>

namespace mkc {

template <class... V>
struct LastElement {
  using Type = bf16;
};
template <class First, class... V>
struct LastElement<First, V...> : LastElement<V...> {};
template <class V>
struct LastElement<V> {
  using Type = typename V::Element;
};

template <class V>
constexpr long long kStep = 0;  // from row to row
template <class T, int N, int D, long long S, long long One>
constexpr long long kStep<View<T, Shape<N, D>, Stride<S, One>>> = S;
template <class T, int N, int D, long long S, long long One>
constexpr long long kStep<Words<T, Shape<N, D>, Stride<S, One>>> = S;
template <class T, int Batch, int N, int D, long long Apart, long long S, long long One>
constexpr long long kStep<Words<T, Shape<Batch, N, D>, Stride<Apart, S, One>>> = S;  // of each sequence

// How far apart the rows of sequences are, of the last of these: 0 where there is one sequence.
template <class... V>
constexpr long long kApart = 0;
template <class T, int Batch, int N, int D, long long Step, long long S, long long One>
constexpr long long kApart<Words<T, Shape<Batch, N, D>, Stride<Step, S, One>>> = Step;
template <class T, int Batch, int D, long long Step>
constexpr long long kApart<View<T, Shape<Batch, D>, Stride<Step, 1>>> = Step;
template <class First, class Second, class... More>
constexpr long long kApart<First, Second, More...> = kApart<Second, More...>;

template <class V>
constexpr int kEach = kIsPublished<V> ? 4 : 1;  // elements of what its pointer points at

// Operands after the caches: the gains with Norm, cos and sin of the first `Turned` dims when there are some.
template <class Scale, class Eps, class Offset, bool Norm, int Turned, int Splits, int Window, int Shares, int Heads, int D, int Pages, int Batch,
          class Parts, class Lse, class Keys, class Values, class Q, class K, class V, class... Rest>
struct AnyAttention : Attend<AnyAttention<Scale, Eps, Offset, Norm, Turned, Splits, Window, Shares, Heads, D, Pages, Batch, Parts, Lse, Keys, Values,
                                          Q, K, V, Rest...>,
                             Scale, Splits, Window, Shares, Heads, Pages, Batch, Parts, Lse, Keys> {
  static_assert(Turned % 16 == 0 && Turned <= D, "rows that a few lanes hold");
  using Angle = typename LastElement<Rest...>::Type;
  static constexpr int kGroup = AnyAttention::Attend::kGroup, kPitch = AnyAttention::Attend::kPitch;
  static constexpr int kNewKey = AnyAttention::Attend::kNewKey, kTables = AnyAttention::Attend::kTables;

  // the new rows, 8 elements to a thread: normalised, rotated, into shared memory, and into the cache
  template <class Page, class Where>
  MKC_DEVICE static void bring(Talk<Page>& talk, void* const* p, const Where& where) {
    constexpr int kLanes = D > 128 ? 32 : D > 64 ? 16 : D > 32 ? 8 : D > 16 ? 4 : 2;  // some may have nothing to do
    constexpr int kRows = kTalkThreads / kLanes, kPasses = (kGroup + 2 + kRows - 1) / kRows;
    const uint32 thread = talk.thread(), column = thread % kLanes * 8, first_row = thread / kLanes;
    Angles cos{}, sin{};
    const int angle = where.sequence * kApart<Rest...> + column;
    if (column < Turned) cos.load(p[kTables + 2 * Norm], angle), sin.load(p[kTables + 1 + 2 * Norm], angle);
    Quad gains[Norm ? kPasses : 1];
    MKC_UNROLL
    for (int pass = 0; pass < kPasses && Norm; ++pass) {
      const bool of_q = pass * kRows + first_row < kGroup;
      gains[pass] = column < D ? *reinterpret_cast<const Quad*>(static_cast<const bf16*>(p[kTables + !of_q]) + column) : Quad{};
    }
    const long long found = where.looked_up(p);
    uint32 to[kPasses];
    MKC_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      const uint32 row = pass * kRows + first_row;
      to[pass] = opaque(talk.input + (row < kGroup ? row * kPitch + place_of_dims(column) : (row - kGroup + kNewKey) * kPitch + column * 2));
    }
    float x[kPasses][8] = {};
    take<kRows>(talk, p, where, first_row, column, x);
    __syncwarp();
    MKC_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      const uint32 row = pass * kRows + first_row;
      if constexpr (Norm) normalise<kLanes>(x[pass], gains[pass], row <= kGroup);
      if constexpr (Turned > 0) rotate(x[pass], cos, sin, column, row <= kGroup);
      const Quad made = eight(x[pass]);
      if (row >= kGroup + 2 || column >= D) continue;
      store_shared(to[pass], made);
      if (row >= kGroup && where.owns_new() && found >= 0)
        *reinterpret_cast<Quad*>(Keys(p[row == kGroup ? 2 : 3]).data + where.new_row(found) + column) = made;
    }
  }

 private:
  // 8 elements of this thread's rows of q, of k and of v: published ones all at once
  template <int Rows, int Passes, class Page, class Where>
  MKC_DEVICE static void take(Talk<Page>& talk, void* const* p, const Where& where, uint32 first_row, uint32 column, float (&x)[Passes][8]) {
    const uint32 q = where.sequence * kApart<Q> + where.part * kGroup * kStep<Q> + column;
    const uint32 k = where.sequence * kApart<K> + where.head() * kStep<K> + column, v = where.sequence * kApart<V> + where.head() * kStep<V> + column;
    if constexpr (kIsPublished<Q> && kIsPublished<K> && kIsPublished<V>) {
      const uint32 bits = use_bits(talk.use);
      const uint64 old = bits | static_cast<uint64>(bits) << 32;
      const uint64* from[Passes];
      TwoWords words[Passes];
      MKC_UNROLL
      for (int pass = 0; pass < Passes; ++pass) {
        const uint32 row = pass * Rows + first_row;
        from[pass] = row < kGroup ? Q(p[4]).data + (q + row * kStep<Q>) / 4 : row == kGroup ? K(p[5]).data + k / 4 : V(p[6]).data + v / 4;
      }
      talk.let_others_finish();
      talk.poll([&] {
        bool all = true;
        MKC_UNROLL
        for (int pass = 0; pass < Passes; ++pass)
          words[pass] = column < D && pass * Rows + first_row < kGroup + 2 ? load_words(from[pass]) : TwoWords{old, old};
        MKC_UNROLL
        for (int pass = 0; pass < Passes; ++pass) all &= is_of(words[pass], bits);
        return all;
      });
      MKC_UNROLL
      for (int i = 0; i < Passes * 8; ++i) {
        if (i % 8 == 0) eight(values(words[i / 8]), x[i / 8]);
        x[i / 8][i % 8] *= kUnscaled;
      }
    } else {
      talk.let_others_finish();
      MKC_UNROLL
      for (int pass = 0; pass < Passes; ++pass) {
        const uint32 row = column < D ? pass * Rows + first_row : kGroup + 2;
        if (row < kGroup) take(talk, Q(p[4]).data + (q + row * kStep<Q>) / kEach<Q>, x[pass]);
        if (row == kGroup) take(talk, K(p[5]).data + k / kEach<K>, x[pass]);
        if (row == kGroup + 1) take(talk, V(p[6]).data + v / kEach<V>, x[pass]);
      }
    }
  }
  template <class Page>
  MKC_DEVICE static void take(Talk<Page>& talk, const uint64* from, float (&x)[8]) {
    const uint32 bits = use_bits(talk.use);
    TwoWords words;
    talk.poll([&] { return is_of(words = load_words(from), bits); });
    eight(values(words), x);
    MKC_UNROLL
    for (int i = 0; i < 8; ++i) x[i] *= kUnscaled;
  }
  template <class Page>
  MKC_DEVICE static void take(Talk<Page>&, const bf16* from, float (&x)[8]) {
    eight(load_quad(from), x);
  }
  struct Angles {  // 8 cosines or sines
    Quad raw[sizeof(Angle) / 2];
    MKC_DEVICE void load(const void* line, int column) {
      MKC_UNROLL
      for (int i = 0; i < static_cast<int>(sizeof(Angle) / 2); ++i) raw[i] = load_quad(static_cast<const Angle*>(line) + column + 4 * i);
    }
    MKC_DEVICE float operator[](int i) const {
      const Quad& quad = raw[sizeof(Angle) == 2 ? 0 : i / 4];
      const uint32 words[4] = {quad.x, quad.y, quad.z, quad.w};
      if constexpr (sizeof(Angle) == 2) return i % 2 ? high(words[i / 2]) : low(words[i / 2]);
      else return __uint_as_float(words[i % 4]);
    }
  };
  template <int Lanes>
  MKC_DEVICE static void normalise(float (&x)[8], const Quad& gain, bool wanted) {
    float squares = 0.0f, by[8];
    MKC_UNROLL
    for (int i = 0; i < 8; ++i) squares += x[i] * x[i];
    MKC_UNROLL
    for (int bit = Lanes / 2; bit > 0; bit /= 2) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, bit);
    const float scale = rsqrt(squares * (1.0f / D) + Eps::of());
    eight(gain, by);
    MKC_UNROLL
    for (int i = 0; i < 8; ++i)
      if (wanted) x[i] = rounded((Offset::of() == 0.0f ? rounded(x[i] * scale) : x[i] * scale) * (by[i] + Offset::of()));
  }
  // x cos + (-second half, first half) sin
  MKC_DEVICE static void rotate(float (&x)[8], const Angles& cos, const Angles& sin, uint32 column, bool wanted) {
    constexpr int kHalf = Turned / 16;  // in lanes
    const bool first_half = column < Turned / 2, turned = wanted && column < Turned;
    const int partner = lane() % 32 + (first_half ? kHalf : -kHalf);
    MKC_UNROLL
    for (int i = 0; i < 8; ++i) {
      const float other = __shfl_sync(0xFFFFFFFFu, x[i], partner);
      if (turned) x[i] = x[i] * cos[i] + (first_half ? -other : other) * sin[i];
    }
  }
};

}  // namespace mkc
