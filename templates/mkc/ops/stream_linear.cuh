// y[n] = Expr(sum_k x'[k] w[n, k], extras[n]...): weights come through the ring, in the order in which they are multiplied
#pragma once

#include <mkc/best.cuh>
#include <mkc/expr.cuh>
#include <mkc/extras.cuh>
#include <mkc/merge.cuh>
#include <mkc/rows.cuh>
#include <mkc/tiles.cuh>
#include <mkc/worker_stream.cuh>

namespace mkc::ops {

// What meets the weights: x
struct NoPostNorm {
  static constexpr bool kIs = false, kHalves = false;
};
// its two halves, each the rows of weights that are its own, 4 of a tile's 8: outputs are sums of both
struct Halves {
  static constexpr bool kIs = false, kHalves = true;
};
// or a residual, and x by its norm.
template <class PostEps, class PostOffset>
struct PostNorm {
  static constexpr bool kIs = true, kHalves = false;
  using Eps = PostEps;
  using Offset = PostOffset;
};
template <class First, class Second, class...>
struct SecondOf {
  using Type = Second;
};

// Of 8 elements of a row: their squares, to the sum, and what they are times a gain, each rounded once.
template <bool Scaled>
MKC_DEVICE void add_squares(float& squares, const Quad& v) {
  float value[8];
  eight(v, value);
  MKC_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (Scaled) value[i] *= kUnscaled;
    squares += value[i] * value[i];
  }
}
template <class Offset>
MKC_DEVICE Quad times_gain(const Quad& v, const Quad& gain) {
  if (Offset::of() == 0.0f) return product(v, gain);
  float value[8], by[8];
  eight(v, value), eight(gain, by);
  MKC_UNROLL
  for (int i = 0; i < 8; ++i) value[i] *= by[i] + Offset::of();
  return eight(value);
}

// What compute warps do: `Tiles` tiles, or as many as the task has, meet a row that others bring, or they themselves.
struct LaidRow {
  template <int Held, class Page>
  MKC_DEVICE static void await(Compute<Page>&) {
    meet(kInputReady, kBothThreads);
  }
};
template <int Tiles, int Fragments, int Abreast, bool Two = false, class Row = LaidRow>
struct TilesProduct {
  template <class Page>
  MKC_DEVICE static void compute(Compute<Page>& c) {
    multiply_tiles<Tiles, Fragments, Abreast, Two>(c, [&] { Row::template await<Passage<Tiles, Fragments, Abreast, Two>::kBatch>(c); });
  }
};

// What talking warps do, of at most `Most` tiles. Operands: y, x, then gain [K] with Norm, shift [K] when Shifted, residual [1, K] and its
// gain [K] with a PostNorm, lse [S, H, kLine] and position when Merge > 0, then extras, or the pieces of one. When Best > 0, y has an entry
// for every so many outputs, a task's, which says which of them is the best.
template <class Expr, class Eps, class Offset, bool Norm, int Most, int Fragments, int Abreast, int Depth, bool Centred, bool Shifted,
          bool InPieces, bool Gated, int Merge, int Heads, int Best, class Post, class Y, class X, class... Rest>
struct StreamLinear {
  static constexpr bool kNorm = Norm, kHalves = Post::kHalves, kTwo = Post::kIs || kHalves;
  using P = Passage<Most, Fragments, Abreast, kTwo>;
  static constexpr int kPadded = Fragments * 32 * P::kSharers, kAll = (kHalves ? 2 : 1) * kPadded / 8;  // columns of 8, of x
  static constexpr int kColumns = (kAll + kTalkThreads - 1) / kTalkThreads;
  static constexpr int kOutputs = (Gated || kHalves ? 4 : 8) * Abreast;  // of a tile, and those beside it
  static constexpr int kBefore = Norm + Shifted + 2 * Post::kIs + 2 * (Merge > 0);  // operands before the extras
  using Two = TwoRows<Fragments, P::kSharers>;
  static constexpr int kWords = (kPadded / 4 + kTalkThreads - 1) / kTalkThreads;  // of a row, for a thread
  // of a talking thread: one, for then the way from the sums to the words is short; or four, where there are more
  static constexpr int kEach = Best == 0 && !kTwo && P::kRound * kOutputs <= kTalkThreads ? 1 : 4;
  static constexpr int kLanes = Post::kIs ? (Gated ? 4 : 2) : 1;  // that share four outputs: one for each row, or for each of both weights
  static_assert(!Centred || kColumns <= 8, "a row that is held in registers");
  static_assert(!Post::kIs || (Norm && !Centred && !Shifted && Merge == 0 && kWords <= 8), "two rows that are held in registers");
  static_assert(!kHalves || !(Norm || Centred || Shifted || InPieces || Gated || Merge || Best), "halves of a row as it is");
  static_assert(P::kRound * kOutputs / kEach * kLanes <= kTalkThreads, "a talking thread has outputs, or shares them");
  static_assert(Best == 0 || kIsPublished<Y>, "entries are published");

  struct Products {  // four of a weight, and of the one beside it
    Four one, other;
  };

  // Two tasks earlier: what only this task reads is seldom near.
  template <class Page>
  MKC_DEVICE static void ahead(const Herald<Page>& herald, void* const* p, const Range*) {
    if constexpr (!Norm) return;
    MKC_NO_UNROLL
    for (int line = herald.thread(); line < Depth / 64; line += 32) {
      fetch_ahead(static_cast<const bf16*>(p[2]) + line * 64);
      if (Post::kIs) fetch_ahead(static_cast<const bf16*>(p[4]) + line * 64);
    }
  }

  template <class Page>
  MKC_DEVICE static void talk(Talk<Page>& talk, void* const* p, const Range* r) {
    const int thread = talk.thread(), place = thread / kLanes;  // among those who have outputs of a round
    const auto is_mine = [&](int n) { return place < P::kRound * kOutputs / kEach && n < r[0].end && thread % kLanes == 0; };
    typename ExtrasOrPieces<InPieces, kEach, kBefore, Rest...>::Type extras;
    uint32 misfit = 0;
    mkc::Best best;
    float scale = kIsPublished<X> && Merge == 0 ? kUnscaled : 1.0f, second = 0.0f;  // of the sums; of the second row's before that
    constexpr bool kAsksBefore = kEach == 1;  // those of four outputs would leave too few registers to the input
    if (kAsksBefore && is_mine(r[0].begin + place)) extras.ask(p + 2, r[0].begin + place);
    if constexpr (Merge > 0) talk.input_is_ready();  // compute warps merge it
    else if constexpr (Centred) scale = centred(talk, p);
    else if constexpr (Post::kIs) two_rows(talk, p);
    else input(talk, p);
    MKC_NO_UNROLL
    for (int round = 0, first = r[0].begin;; ++round) {
      const int n = first + place * kEach;
      const bool mine = is_mine(n);
      if (mine && (round > 0 || !kAsksBefore)) extras.ask(p + 2, n);
      if (mine) extras.await(talk, p + 2, n);
      talk.await_sums();
      if (Merge > 0 && round == 0) talk.input_came();
      if constexpr (Post::kIs) {
        if (round == 0) scales(talk, scale, second);
        const Products v = products(talk, place, scale, second);  // of which each thread has a part
        if (mine) finish(talk, p[0], n, r[0].end, v, extras, misfit, best);
      } else {
        if (kNorm && !Centred && round == 0) scale *= rsqrt(talk.added_up() * (1.0f / Depth) + Eps::of());
        if constexpr (kEach == 1) finish(talk, p[0], n, mine, place, scale, extras, misfit);
        else if (mine) finish(talk, p[0], n, r[0].end, products(talk, place, scale), extras, misfit, best);
      }
      first += P::kRound * kOutputs;
      if (P::kRounds == 1 || first >= r[0].end) break;
      talk.sums_are_taken();
    }
    if constexpr (Best > 0) {
      best = best.of_all(talk);
      if (thread == 0) store_entry(Y(p[0]).data + 2 * (r[0].begin / Best), best, talk.use);
    }
    talk.report(misfit);
    // Other warps of this worker may read it in their next task; a second row's sums lie where the next task's input goes.
    if constexpr (!kIsPublished<Y> || kTwo) sync();
  }

 private:
  struct One {
    float at[1];
  };
  MKC_DEVICE static void load(uint32 from, One& v) { v.at[0] = load_shared_float(from); }
  MKC_DEVICE static void load(uint32 from, Four& v) { v = load_shared_four(from); }
  // The sum of one output, or of four, over the warps that share a depth.
  template <class Outputs = Four>
  MKC_DEVICE static Outputs total(uint32 at, float scale) {
    constexpr int kCount = sizeof(Outputs) / sizeof(float);
    Outputs v[P::kSharers];
    MKC_UNROLL
    for (int w = 0; w < P::kSharers; ++w) load(at + w * kMaxTiles * Abreast * 32, v[w]);
    MKC_UNROLL
    for (int half = P::kSharers / 2; half > 0; half /= 2) {
      MKC_UNROLL
      for (int w = 0; w < half; ++w) {
        MKC_UNROLL
        for (int i = 0; i < kCount; ++i) v[w].at[i] += v[w + half].at[i];
      }
    }
    MKC_UNROLL
    for (int i = 0; i < kCount; ++i) v[0].at[i] *= scale;
    return v[0];
  }
  MKC_DEVICE static Four both(uint32 first, uint32 second, float scale) {
    Four v = total(first, scale);
    const Four other = total(second, scale);
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) v.at[i] += other.at[i];
    return v;
  }
  template <class Page>
  MKC_DEVICE static Products products(const Talk<Page>& talk, int word, float scale) {
    if constexpr (kHalves) return {both(talk.sums + word * 32, talk.input + Two::kSums + word * 32 + 16, scale), {}};
    const uint32 at = talk.sums + word * (Gated ? 32 : 16);
    return {total(at, scale), Gated ? total(at + 16, scale) : Four{}};
  }
  // The same of two rows: neighbours have a row each, and those beside them the other weight. The first has all in the end.
  template <class Page>
  MKC_DEVICE static Products products(const Talk<Page>& talk, int word, float scale, float second) {
    const int row = talk.thread() % 2, weight = talk.thread() % kLanes / 2, last = P::kRound * kOutputs / 4 - 1;
    const uint32 at = (row ? talk.input + Two::kSums : talk.sums) + (word < last ? word : last) * (Gated ? 32 : 16) + weight * 16;
    Products v = {total(at, row ? scale * second : scale), {}};
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) {
      v.one.at[i] += __shfl_xor_sync(0xFFFFFFFFu, v.one.at[i], 1);
      if (Gated) v.other.at[i] = __shfl_xor_sync(0xFFFFFFFFu, v.one.at[i], 2);
    }
    return v;
  }
  template <class Page, class E>
  MKC_DEVICE static void finish(Talk<Page>& talk, void* y, int n, int end, Products products, const E& extras, uint32& misfit,
                                mkc::Best& best) {
    Four& v = products.one;
    if constexpr (Gated) {
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) v.at[i] = extras.template of<Expr>(i, v.at[i], products.other.at[i]);
    } else {
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) v.at[i] = extras.template of<Expr>(i, v.at[i]);
    }
    if constexpr (Best > 0) {
      MKC_UNROLL
      for (int i = 0; i < 4; ++i)
        if (n + i < end) best.see(v.at[i], n + i);
    } else if constexpr (kIsPublished<Y>) {
      store_word(Y(y).data + n / 4, word_of(v, use_bits(talk.use), misfit));
    } else {
      const Y out(y);
      MKC_UNROLL
      for (int i = 0; i < 4; ++i)
        if (n + i < end) store(out(0, n + i), v.at[i]);
    }
  }

  // The same of one output. Four neighbours make a word.
  template <class Page, class E>
  MKC_DEVICE static void finish(Talk<Page>& talk, void* y, int n, bool mine, int place, float scale, const E& extras, uint32& misfit) {
    if (place / 32 * 32 >= P::kRound * kOutputs) return;  // none of this warp's threads has one
    const uint32 at = talk.sums + place * 4 + (Gated ? place / 4 * 16 : 0);
    float v = total<One>(at, scale).at[0];
    if constexpr (Gated) v = extras.template of<Expr>(0, v, total<One>(at + 16, scale).at[0]);
    else v = extras.template of<Expr>(0, v);
    if constexpr (kIsPublished<Y>) {
      const uint64 word = word_of_four(v, use_bits(talk.use), mine, misfit);
      if (mine && n % 4 == 0) store_word(Y(y).data + n / 4, word);
    } else if (mine) {
      store(Y(y)(0, n), v);
    }
  }

  // ---- the input, by columns of 8: brought, multiplied by the gain, and laid into shared memory. Published values stay
  // scaled, and what a norm divides by waits for the sums.
  template <class Page>
  MKC_DEVICE static void input(Talk<Page>& talk, void* const* p) {
    constexpr int kBatch = kColumns <= 6 ? kColumns : kColumns % 6 == 0 ? 6 : 4;
    const X x(p[1]);
    float squares = 0.0f;
    MKC_NO_UNROLL
    for (int first = talk.thread(); first < kColumns * kTalkThreads; first += kBatch * kTalkThreads) {
      Quad gain[kNorm ? kBatch : 1], v[kBatch];
      MKC_UNROLL
      for (int j = 0; j < kBatch && kNorm; ++j) {
        const int column = first + j * kTalkThreads;
        gain[j] = column < Depth / 8 ? *(static_cast<const Quad*>(p[2]) + column) : Quad{};
      }
      if constexpr (kIsPublished<X>) talk.let_others_finish();
      bring<kBatch>(talk, x, first, v);
      MKC_UNROLL
      for (int j = 0; j < kBatch; ++j) {
        const int column = first + j * kTalkThreads;
        if (column < kAll) store_shared(talk.input + column * 16, kNorm ? times_gain<Offset>(v[j], gain[j]) : v[j]);
      }
      if (first + kBatch * kTalkThreads >= kColumns * kTalkThreads) talk.input_is_ready();
      MKC_UNROLL
      for (int j = 0; j < kBatch && kNorm; ++j) add_squares<kIsPublished<X>>(squares, v[j]);
    }
    if constexpr (kNorm) talk.add_up(squares);
  }
  // The same for the sum of a residual r and the norm of x, by words: x' = (r + s g x) s' g', where g is the gain of the one norm
  // and g' that of the other. Both rows are laid into shared memory, r g' and g x g'; s and s' wait for the sums. The residual
  // has been there for a while.
  template <class Page>
  MKC_DEVICE static void two_rows(Talk<Page>& talk, void* const* p) {
    using R = typename SecondOf<Rest...>::Type;
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
  // And over the talking warps: |r + s g x|^2 = |r|^2 + 2 s r g x + s^2 |g x|^2.
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
  // The same for a norm that takes away the mean: the whole row is held until that is known. What is laid into shared
  // memory is the norm; returns the scale of the sums.
  template <class Page>
  MKC_DEVICE static float centred(Talk<Page>& talk, void* const* p) {
    const int first = talk.thread();
    Quad v[kColumns];
    if constexpr (kIsPublished<X>) talk.let_others_finish();
    bring<kColumns>(talk, X(p[1]), first, v);
    float sum = 0.0f, squares = 0.0f;
    each(first, v, [&](float x) { sum += x; });
    const float mean = talk.total(sum) * (1.0f / Depth);
    each(first, v, [&](float x) { squares += (x - mean) * (x - mean); });
    const float scale = rsqrt(talk.total(squares) * (1.0f / Depth) + Eps::of());
    MKC_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const int column = first + j * kTalkThreads;
      float value[8] = {}, by[8], plus[8] = {};
      if (column < Depth / 8) {
        eight(v[j], value), eight(*(static_cast<const Quad*>(p[2]) + column), by);
        if constexpr (Shifted) eight(*(static_cast<const Quad*>(p[3]) + column), plus);
        MKC_UNROLL
        for (int i = 0; i < 8; ++i) value[i] = (value[i] * (kIsPublished<X> ? kUnscaled : 1.0f) - mean) * scale * (by[i] + Offset::of()) + plus[i];
      }
      if (column < kPadded / 8) store_shared(talk.input + column * 16, eight(value));
    }
    talk.input_is_ready();
    return 1.0f;
  }
  template <class Visit>
  MKC_DEVICE static void each(int first, const Quad (&v)[kColumns], Visit visit) {
    MKC_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      float value[8];
      eight(v[j], value);
      MKC_UNROLL
      for (int i = 0; i < 8; ++i)
        if (first + j * kTalkThreads < Depth / 8) visit(value[i] * (kIsPublished<X> ? kUnscaled : 1.0f));
    }
  }
  // Halves lie one behind the other, each with zeros behind it.
  MKC_DEVICE static bool is_of_x(int column) {
    return column < Depth / 8 || (kHalves && kPadded / 8 <= column && column < (kPadded + Depth) / 8);
  }
  MKC_DEVICE static int of_x(int column) { return kHalves && column >= kPadded / 8 ? column - (kPadded - Depth) / 8 : column; }
  template <int Count, class Page, class S, class D>
  MKC_DEVICE static void bring(Talk<Page>& talk, Words<bf16, S, D> x, int first, Quad (&v)[Count]) {
    const uint32 bits = use_bits(talk.use);
    TwoWords words[Count];
    MKC_UNROLL
    for (int j = 0; j < Count; ++j) words[j] = is_of_x(first + j * kTalkThreads) ? TwoWords{~bits, ~bits} : TwoWords{bits, bits};
    talk.poll([&] {
      bool all = true;
      MKC_UNROLL
      for (int j = 0; j < Count; ++j)
        if (!is_of(words[j], bits)) words[j] = load_words(x.data + 2 * of_x(first + j * kTalkThreads));
      MKC_UNROLL
      for (int j = 0; j < Count; ++j) all &= is_of(words[j], bits);
      return all;
    });
    MKC_UNROLL
    for (int j = 0; j < Count; ++j) v[j] = values(words[j]);
  }
  template <int Count, class Page, class S, class D>
  MKC_DEVICE static void bring(Talk<Page>&, View<bf16, S, D> x, int first, Quad (&v)[Count]) {
    MKC_UNROLL
    for (int j = 0; j < Count; ++j) {
      const int column = first + j * kTalkThreads;
      v[j] = is_of_x(column) ? load_quad(x.data + of_x(column) * 8) : Quad{};
    }
  }
};

}  // namespace mkc::ops
