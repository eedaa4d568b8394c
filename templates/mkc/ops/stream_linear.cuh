// y[n] = Expr(sum_k x'[k] w[n, k], extras[n]...): weights come through the ring, in the order in which they are multiplied
#pragma once

#include <mkc/best.cuh>
#include <mkc/columns.cuh>
#include <mkc/expr.cuh>
#include <mkc/extras.cuh>
#include <mkc/merge.cuh>
#include <mkc/residual_row.cuh>

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
  using Row = Columns<Depth, Fragments * 32 * P::kSharers, kHalves>;
  using Both = ResidualRow<Depth, Fragments, P::kSharers, Eps, Offset, Post>;
  static constexpr int kOutputs = (Gated || kHalves ? 4 : 8) * Abreast;  // of a tile, and those beside it
  static constexpr int kBefore = Norm + Shifted + 2 * Post::kIs + 2 * (Merge > 0);  // operands before the extras
  using Two = TwoRows<Fragments, P::kSharers>;
  // of a talking thread: one, for then the way from the sums to the words is short; or four, where there are more
  static constexpr int kEach = Best == 0 && !kTwo && P::kRound * kOutputs <= kTalkThreads ? 1 : 4;
  static constexpr int kLanes = Post::kIs ? (Gated ? 4 : 2) : 1;  // that share four outputs: one for each row, or for each of both weights
  static_assert(!Centred || Row::kEach <= 8, "a row that is held in registers");
  static_assert(!Post::kIs || (Norm && !Centred && !Shifted && Merge == 0), "a residual and a norm, and nothing else");
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
    else if constexpr (Centred) Row::template lay_centred<X, Eps, Offset, Shifted>(talk, p), scale = 1.0f;
    else if constexpr (Post::kIs) Both::template lay<X, typename SecondOf<Rest...>::Type>(talk, p);
    else Row::template lay<X, Offset, kNorm>(talk, p);
    MKC_NO_UNROLL
    for (int round = 0, first = r[0].begin;; ++round) {
      const int n = first + place * kEach;
      const bool mine = is_mine(n);
      if (mine && (round > 0 || !kAsksBefore)) extras.ask(p + 2, n);
      if (mine) extras.await(talk, p + 2, n);
      talk.await_sums();
      if (Merge > 0 && round == 0) talk.input_came();
      if constexpr (Post::kIs) {
        if (round == 0) Both::scales(talk, scale, second);
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

};

}  // namespace mkc::ops
