// y[n] = Expr(sum_k x'[k] w[n, k], extras[n]...): weights come through the ring, in the order in which they are multiplied
#pragma once

#include <mkc/best.cuh>
#include <mkc/expr.cuh>
#include <mkc/merge.cuh>
#include <mkc/rows.cuh>
#include <mkc/worker_stream.cuh>

namespace mkc::ops {

// How `Tiles` tiles of 8 rows pass through the registers. A tile's depth is `F` fragments for each compute warp: one
// fragment is 8 rows by 32 of k, the a operand of one mma, whose rows 8 to 15 are the same rows at another k.
// Where fewer warps share a depth, `Abreast` tiles pass side by side, each through as many warps, and count as one.
template <int Tiles, int F, int Abreast = 1, bool Two = false>
struct Passage {
  static constexpr int kSharers = kComputeWarps / Abreast;
  static constexpr int kSlots = (Tiles * F + 3) / 4;
  static constexpr int kMostAbreast = Two ? 32 : 64;  // a talking thread has four outputs, or two rows' threads share them
  static constexpr int kMostARound = kMaxTiles * Abreast < kMostAbreast ? kMaxTiles : kMostAbreast / Abreast;
  static constexpr bool kHeld = kSlots <= 6 && Tiles <= kMostARound;  // all weights are in registers before the input comes
  static constexpr int even_batch() {  // slots in registers at once: whole tiles, or a whole share of one
    if (kHeld) return kSlots;
    for (int slots = kRollingSlots; slots > 1; --slots)
      if (slots * 4 % F == 0 && slots * 4 / F <= kMostARound) return slots;
    for (int slots = kRollingSlots < 5 ? kRollingSlots : 5; slots > 1; --slots)
      if (F % (slots * 4) == 0) return slots;
    return F % 20 == 0 ? 5 : 0;
  }
  // Where no batch is even, batches take turns: those of a period, in which whole slots make whole tiles.
  static constexpr bool kTurns = even_batch() == 0;
  static constexpr int kPeriodTiles = F % 4 == 0 ? 1 : F % 2 == 0 ? 2 : 4, kPeriod = kPeriodTiles * F / 4;  // tiles, slots
  static constexpr int kMost = kRollingSlots - 1;  // slots of a batch; the first few may have one more than the others
  static constexpr int kTurn = (kPeriod + kMost - 1) / kMost;
  static_assert(!kTurns || kPeriod <= 20, "the compiler pads a depth so that batches fit it");
  static constexpr int kShort = kPeriod / kTurn, kLong = kPeriod % kTurn;  // slots of a short batch, and how many have one more
  static constexpr int turn_of(int slot) {
    return slot < kLong * (kShort + 1) ? slot / (kShort + 1) : kLong + (slot - kLong * (kShort + 1)) / kShort;
  }
  static constexpr int begin_of(int turn) { return turn * kShort + (turn < kLong ? turn : kLong); }
  static constexpr int kBatch = kTurns ? kShort + (kLong > 0) : even_batch(), kFragments = kBatch * 4;
  static constexpr bool kWhole = kHeld || (!kTurns && kFragments % F == 0);
  static constexpr int kTilesABatch = kTurns ? kPeriodTiles : kWhole ? kFragments / F : 1;
  static constexpr int kRound = kHeld ? Tiles : kMostARound / kTilesABatch * kTilesABatch;  // tiles between two meetings
  static constexpr int kRounds = (Tiles + kRound - 1) / kRound;
};

// b operands: both halves of the depth of a fragment, in columns 0 and 1, and of a second row in 2 and 3; the others hold copies.
template <int F, int Count, int Sharers>
struct Inputs {
  static constexpr int kStep = Sharers * 64;  // bytes from a fragment to the next
  uint32 b[Count][2];
  // fragments [first, first + Count) of the depth
  MKC_DEVICE void take(uint32 input, int first) {
    if constexpr (F % 2 == 0) {
      MKC_UNROLL
      for (int i = 0; i < Count; i += 2) {
        const Quad v = load_shared(input + (first + i) * kStep);
        b[i][0] = v.x, b[i][1] = v.y, b[i + 1][0] = v.z, b[i + 1][1] = v.w;
      }
    } else {
      MKC_UNROLL
      for (int i = 0; i < Count; ++i)
        asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(b[i][0]), "=r"(b[i][1]) : "r"(input + (first + i) * kStep) : "memory");
    }
  }
};

// The inputs of a slot's four fragments, of which the first is number `first` of a tile; the others may be of the next.
template <int F, int Sharers>
MKC_DEVICE void take_slot(Inputs<F, 4, Sharers>& x, uint32 input, int first) {
  constexpr int kTogether = F % 4 == 0 ? 4 : F % 2 == 0 ? 2 : 1;
  MKC_UNROLL
  for (int i = 0; i < 4; i += kTogether) {
    Inputs<F, kTogether, Sharers> some;
    some.take(input, (first + i) % F);
    MKC_UNROLL
    for (int j = 0; j < kTogether; ++j) x.b[i + j][0] = some.b[j][0], x.b[i + j][1] = some.b[j][1];
  }
}

struct Sums {  // of a tile: two chains, so that one mma need not wait for the one before
  float even[4], odd[4];
  MKC_DEVICE void clear() {
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) even[i] = odd[i] = 0.0f;
  }
  MKC_DEVICE void add(int f, const Quad& w, const uint32 (&b)[2]) { multiply(f % 2 ? odd : even, w, b[0], b[1]); }
  // column 0 of rows 0 to 7 and column 1 of rows 8 to 15 are the two halves of the sum; the next lane has the second row's
  MKC_DEVICE void store(uint32 to, bool holder) const {
    if (holder) store_shared(to, (even[0] + even[3]) + (odd[0] + odd[3]));
  }
};

// Two rows of `F` fragments for each of those who share them, from a body's first byte of shared memory on: then the second's sums,
// and what norms need.
template <int F, int Sharers>
struct TwoRows {
  static constexpr int kSecond = F * Sharers * 64, kSums = 2 * kSecond, kParts = kSums + kSumsBytes;
};

// `await_input` returns when the input lies in shared memory.
template <int Tiles, int F, int Abreast, bool Two, class Page, class Await>
MKC_DEVICE void multiply_tiles(Compute<Page>& c, Await await_input) {
  using P = Passage<Tiles, F, Abreast, Two>;
  using Rows = TwoRows<F, P::kSharers>;
  constexpr bool kPairs = F % 2 == 0;
  constexpr int kStep = Abreast * 32;  // bytes from the sums of a tile to those of the next that this warp multiplies
  const Fragment at = c.place();
  const int half = at.row % 2, part = Abreast == 1 ? at.warp : at.warp % P::kSharers;  // of the depth
  const uint32 begin = Two ? opaque(c.input) : c.input, row = begin + (Two && at.row / 2 % 2 ? Rows::kSecond : 0);
  const uint32 input = row + 2 * (kPairs ? part * 64 + half * 32 + at.column * 8 : part * 32 + half * 16 + at.column * 4);
  const uint32 of_row = Two && at.column ? begin + Rows::kSums : c.sums;
  const uint32 sums = of_row + part * kMaxTiles * kStep + (Abreast == 1 ? 0 : at.warp / P::kSharers * 32) + at.row * 4;
  const bool holder = at.column == 0 || (Two && at.column == 1);
  Quad w[P::kBatch][4];
  MKC_UNROLL
  for (int i = 0; i < P::kBatch; ++i) c.ring.fetch(w[i]);
  await_input();
  if constexpr (P::kHeld) {
    Inputs<F, F, P::kSharers> x;
    x.take(input, 0);
    Sums s[Tiles];
    MKC_UNROLL
    for (int t = 0; t < Tiles; ++t) s[t].clear();
    MKC_UNROLL
    for (int f = 0; f < F; ++f) {
      MKC_UNROLL
      for (int t = 0; t < Tiles; ++t) s[t].add(Tiles > 4 ? 0 : f, w[(t * F + f) / 4][(t * F + f) % 4], x.b[f]);
    }
    MKC_UNROLL
    for (int t = 0; t < Tiles; ++t) s[t].store(sums + t * kStep, holder);
  } else if constexpr (P::kTurns) {
    constexpr bool kKept = F <= 16;  // in registers for all tiles
    Inputs<F, kKept ? F : 4, P::kSharers> x;
    if (kKept) x.take(input, 0);
    Sums s;
    int tile = 0;
    MKC_NO_UNROLL
    for (int slot = 0; slot < P::kSlots; slot += P::kPeriod, tile += P::kPeriodTiles) {
      if (tile && tile % P::kRound == 0) arrive(kSumsReady, kBothThreads), meet(kSumsTaken, kBothThreads);
      MKC_UNROLL
      for (int i = 0; i < P::kPeriod * 4; ++i) {
        const int f = i % F, here = i / 4, turn = P::turn_of(here), held = here - P::begin_of(turn);
        if (f == 0) s.clear();
        if constexpr (!kKept)
          if (i % 4 == 0) take_slot(x, input, f);
        s.add(f, w[held][i % 4], x.b[kKept ? f : i % 4]);
        if (i % 4 == 3) {  // the slot that takes this one's place, if the next turn has one, in the order of the ring
          const int next = P::begin_of(turn + 1) + held;
          if (next < P::begin_of(turn + 2) || turn + 1 == P::kTurn)
            if (slot + next < P::kSlots) c.ring.fetch(w[held]);
          if (here == P::kPeriod - 1 && held + 1 < P::kBatch && slot + next + 1 < P::kSlots) c.ring.fetch(w[P::kBatch - 1]);
        }
        if (f == F - 1 && tile + i / F < Tiles) s.store(sums + (tile + i / F) % P::kRound * kStep, holder);
      }
    }
  } else if constexpr (P::kWhole) {
    constexpr bool kKept = F <= 16;  // in registers for all tiles
    Inputs<F, F, P::kSharers> x;
    if (kKept) x.take(input, 0);
    int tile = 0;
    MKC_NO_UNROLL
    for (int slot = 0; slot < P::kSlots; slot += P::kBatch, tile += P::kTilesABatch) {
      if (tile && tile % P::kRound == 0) arrive(kSumsReady, kBothThreads), meet(kSumsTaken, kBothThreads);
      Sums s;
      MKC_UNROLL
      for (int i = 0; i < P::kFragments; ++i) {
        const int f = i % F;
        if (f == 0) s.clear();
        if (f == 0 && !kKept) x.take(input, 0);
        s.add(f, w[i / 4][i % 4], x.b[f]);
        if (i % 4 == 3 && slot + P::kBatch + i / 4 < P::kSlots) c.ring.fetch(w[i / 4]);
        if (f == F - 1 && tile + i / F < Tiles) s.store(sums + (tile + i / F) % P::kRound * kStep, holder);
      }
    }
  } else {
    Sums s;
    s.clear();
    int tile = 0, first = 0;
    MKC_NO_UNROLL
    for (int slot = 0; slot < P::kSlots; slot += P::kBatch) {
      Inputs<F, P::kFragments, P::kSharers> x;
      x.take(input, first);
      MKC_UNROLL
      for (int i = 0; i < P::kFragments; ++i) {
        s.add(i, w[i / 4][i % 4], x.b[i]);
        if (i % 4 == 3 && slot + P::kBatch + i / 4 < P::kSlots) c.ring.fetch(w[i / 4]);
      }
      first += P::kFragments;
      if (first < F) continue;
      s.store(sums + tile % P::kRound * kStep, holder);
      s.clear();
      first = 0;
      if (++tile < Tiles && tile % P::kRound == 0) arrive(kSumsReady, kBothThreads), meet(kSumsTaken, kBothThreads);
    }
  }
  c.sums_are_ready();
}

// Four neighbouring elements of an extra operand, [1, N], or of a row of one.
template <class V>
struct FourOf;
template <class T, int M, int N, long long S0, long long S1>
struct FourOf<View<T, Shape<M, N>, Stride<S0, S1>>> {
  Four v;
  template <class Talk>
  MKC_DEVICE void read(Talk&, void* p, int n, int row = 0) {
    const View<T, Shape<M, N>, Stride<S0, S1>> view(p);
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) v.at[i] = float(load(view(row, N % 4 == 0 || n + i < N ? n + i : N - 1)));
  }
};
template <class S, long long Step>
struct FourOf<Words<bf16, S, Stride<Step, 1>>> {
  Four v;
  template <class Talk>
  MKC_DEVICE void read(Talk& talk, void* p, int n, int row = 0) {
    const Words<bf16, S, Stride<Step, 1>> words(p);
    uint64 word;
    talk.poll([&] { return is_of(word = load_word(words.data + row * (Step / 4) + n / 4), use_bits(talk.use)); });
    const uint32 front = static_cast<uint32>(word) & ~kUseBits, back = static_cast<uint32>(word >> 32) & ~kUseBits;
    v = {low(front) * kUnscaled, high(front) * kUnscaled, low(back) * kUnscaled, high(back) * kUnscaled};
  }
};

// The extra operand that comes in pieces, one beside the other: the views after the first `Skip`.
template <int Skip, class... V>
struct Pieces {
  Four v;
  template <class Talk>
  MKC_DEVICE void read(Talk& talk, void* const* p, int n) {
    (read_piece<V>(talk, *p++, n), ...);
  }
  template <class Expr, class... Values>
  MKC_DEVICE float of(int i, Values... values) const {
    return float(Expr::of(values..., v.at[i]));
  }

 private:
  template <class Piece, class Talk>
  MKC_DEVICE void read_piece(Talk& talk, void* p, int& n) {  // n counts from the piece's first
    FourOf<Piece> four;
    if (n >= 0 && n < Piece::extent(1)) four.read(talk, p, n), v = four.v;
    n -= Piece::extent(1);
  }
};
template <int Skip, class First, class... Rest>
  requires(Skip > 0)
struct Pieces<Skip, First, Rest...> : Pieces<Skip - 1, Rest...> {
  template <class Talk>
  MKC_DEVICE void read(Talk& talk, void* const* p, int n) {
    Pieces<Skip - 1, Rest...>::read(talk, p + 1, n);
  }
};

// The extra operands: the views after the first `Skip`.
template <int Skip, class... V>
struct Extras {
  template <class Talk>
  MKC_DEVICE void read(Talk&, void* const*, int, int = 0) {}
  template <class Expr, class... Values>
  MKC_DEVICE float of(int, Values... values) const {
    return float(Expr::of(values...));
  }
};
template <int Skip, class First, class... Rest>
  requires(Skip > 0)
struct Extras<Skip, First, Rest...> : Extras<Skip - 1, Rest...> {
  template <class Talk>
  MKC_DEVICE void read(Talk& talk, void* const* p, int n, int row = 0) {
    Extras<Skip - 1, Rest...>::read(talk, p + 1, n, row);
  }
};
template <class First, class... Rest>
struct Extras<0, First, Rest...> {
  FourOf<First> first;
  Extras<0, Rest...> rest;
  template <class Talk>
  MKC_DEVICE void read(Talk& talk, void* const* p, int n, int row = 0) {
    first.read(talk, p[0], n, row), rest.read(talk, p + 1, n, row);
  }
  template <class Expr, class... Values>
  MKC_DEVICE float of(int i, Values... values) const {
    return rest.template of<Expr>(i, values..., first.v.at[i]);
  }
};

template <bool InPieces, int Skip, class... V>
struct ExtrasOrPieces {
  using Type = Extras<Skip, V...>;
};
template <int Skip, class... V>
struct ExtrasOrPieces<true, Skip, V...> {
  using Type = Pieces<Skip, V...>;
};

struct NoPostNorm {
  static constexpr bool kIs = false;
};
template <class PostEps, class PostOffset>
struct PostNorm {
  static constexpr bool kIs = true;
  using Eps = PostEps;
  using Offset = PostOffset;
};
template <class First, class Second, class...>
struct SecondOf {
  using Type = Second;
};

// Operands: y, x, then gain [K] with Norm, shift [K] when Shifted, residual [1, K] and its gain [K] with a PostNorm, lse [S, H, kLine]
// and position when Merge > 0, then extras, or the pieces of one. When Best > 0, y has an entry for every so many outputs, a task's,
// which says which of them is the best.
template <class Expr, class Eps, class Offset, bool Norm, int Tiles, int Fragments, int Abreast, int Depth, bool Centred, bool Shifted,
          bool InPieces, bool Gated, int Merge, int Heads, int Best, class Post, class Y, class X, class... Rest>
struct StreamLinear {
  using P = Passage<Tiles, Fragments, Abreast, Post::kIs>;
  static constexpr bool kNorm = Norm;
  static constexpr int kPadded = Fragments * 32 * P::kSharers, kColumns = (kPadded / 8 + kTalkThreads - 1) / kTalkThreads;
  static constexpr int kOutputs = (Gated ? 4 : 8) * Abreast;  // of a tile, and those beside it
  static constexpr int kBefore = Norm + Shifted + 2 * Post::kIs + 2 * (Merge > 0);  // operands before the extras
  using Two = TwoRows<Fragments, P::kSharers>;
  static constexpr int kWords = (kPadded / 4 + kTalkThreads - 1) / kTalkThreads;  // of a row, for a thread
  static constexpr int kLanes = Post::kIs ? (Gated ? 4 : 2) : 1;  // that share four outputs: one for each row, or for each of both weights
  static_assert(!Centred || kColumns <= 8, "a row that is held in registers");
  static_assert(!Post::kIs || (Norm && !Centred && !Shifted && Merge == 0 && kWords <= 8), "two rows that are held in registers");
  static_assert(P::kRound * kOutputs / 4 * kLanes <= kTalkThreads, "a talking thread has four outputs, or shares them");
  static_assert(Best == 0 || kIsPublished<Y>, "entries are published");

  struct Products {  // four of a weight, and of the one beside it
    Four one, other;
  };

  template <class Page>
  MKC_DEVICE static void compute(Compute<Page>& c) {
    multiply_tiles<Tiles, Fragments, Abreast, Post::kIs>(c, [&] {
      if constexpr (Merge > 0) MergedRow<Depth, Fragments, P::kSharers, Heads, Merge>::bring(c, c.begin_alone().operands);
      else meet(kInputReady, kBothThreads);
    });
  }

  // Two tasks earlier: what only this task reads is seldom near.
  template <class Page>
  MKC_DEVICE static void ahead(const Herald<Page>& herald, void* const* p, const Range*) {
    if (Norm)
      for (int line = herald.thread(); line < Depth / 64; line += 32) {
        fetch_ahead(static_cast<const bf16*>(p[2]) + line * 64);
        if (Post::kIs) fetch_ahead(static_cast<const bf16*>(p[4]) + line * 64);
      }
  }

  template <class Page>
  MKC_DEVICE static void talk(Talk<Page>& talk, void* const* p, const Range* r) {
    const int thread = talk.thread(), word = thread / kLanes;  // has four outputs of a round
    const auto is_mine = [&](int n) { return word < P::kRound * kOutputs / 4 && n < r[0].end && thread % kLanes == 0; };
    const bool mine = is_mine(r[0].begin + word * 4);
    typename ExtrasOrPieces<InPieces, kBefore, Rest...>::Type extras;
    uint32 misfit = 0;
    mkc::Best best;
    float scale = kIsPublished<X> && Merge == 0 ? kUnscaled : 1.0f, second = 0.0f;  // of the sums; of the second row's before that
    if constexpr (Merge > 0) talk.input_is_ready();  // compute warps merge it
    else if constexpr (Centred) scale = centred(talk, p);
    else if constexpr (Post::kIs) two_rows(talk, p);
    else input(talk, p);
    if (mine) extras.read(talk, p + 2, r[0].begin + word * 4);
    MKC_NO_UNROLL
    for (int round = 0, first = r[0].begin; round < P::kRounds; ++round, first += P::kRound * kOutputs) {
      const int n = first + word * 4;
      if (round && is_mine(n)) extras.read(talk, p + 2, n);
      talk.await_sums();
      if (Merge > 0 && round == 0) talk.input_came();
      if constexpr (Post::kIs) {
        if (round == 0) scales(talk, scale, second);
        const Products v = products(talk, word, scale, second);  // of which each thread has a part
        if (is_mine(n)) finish(talk, p[0], n, r[0].end, v, extras, misfit, best);
      } else {
        if (kNorm && !Centred && round == 0) scale *= rsqrt(talk.added_up() * (1.0f / Depth) + Eps::of());
        if (is_mine(n)) finish(talk, p[0], n, r[0].end, products(talk, word, scale), extras, misfit, best);
      }
      if (round + 1 < P::kRounds) talk.sums_are_taken();
    }
    if constexpr (Best > 0) {
      best = best.of_all(talk);
      if (thread == 0) store_entry(Y(p[0]).data + 2 * (r[0].begin / Best), best, talk.use);
    }
    talk.report(misfit);
    // Other warps of this worker may read it in their next task; a second row's sums lie where the next task's input goes.
    if constexpr (!kIsPublished<Y> || Post::kIs) sync();
  }

 private:
  MKC_DEVICE static Four total(uint32 at, float scale) {
    Four v[P::kSharers];
    MKC_UNROLL
    for (int w = 0; w < P::kSharers; ++w) v[w] = load_shared_four(at + w * kMaxTiles * Abreast * 32);
    MKC_UNROLL
    for (int half = P::kSharers / 2; half > 0; half /= 2) {
      MKC_UNROLL
      for (int w = 0; w < half; ++w) {
        MKC_UNROLL
        for (int i = 0; i < 4; ++i) v[w].at[i] += v[w + half].at[i];
      }
    }
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) v[0].at[i] *= scale;
    return v[0];
  }
  template <class Page>
  MKC_DEVICE static Products products(const Talk<Page>& talk, int word, float scale) {
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
        if (column < kPadded / 8) store_shared(talk.input + column * 16, kNorm ? scaled(v[j], gain[j]) : v[j]);
      }
      if (first + kBatch * kTalkThreads >= kColumns * kTalkThreads) talk.input_is_ready();
      MKC_UNROLL
      for (int j = 0; j < kBatch && kNorm; ++j) squares += squares_of(v[j]);
    }
    if constexpr (kNorm) talk.add_up(squares);
  }
  MKC_DEVICE static Quad scaled(const Quad& v, const Quad& gain) {
    if (Offset::of() == 0.0f) return product(v, gain);
    float value[8], by[8];
    eight(v, value), eight(gain, by);
    MKC_UNROLL
    for (int i = 0; i < 8; ++i) value[i] *= by[i] + Offset::of();
    return eight(value);
  }
  MKC_DEVICE static float squares_of(const Quad& v) {
    float value[8], squares = 0.0f;
    eight(v, value);
    MKC_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (kIsPublished<X>) value[i] *= kUnscaled;
      squares += value[i] * value[i];
    }
    return squares;
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
  template <int Count, class Page, class S, class D>
  MKC_DEVICE static void bring(Talk<Page>& talk, Words<bf16, S, D> x, int first, Quad (&v)[Count]) {
    const uint32 bits = use_bits(talk.use);
    TwoWords words[Count];
    MKC_UNROLL
    for (int j = 0; j < Count; ++j) words[j] = first + j * kTalkThreads < Depth / 8 ? TwoWords{~bits, ~bits} : TwoWords{bits, bits};
    talk.poll([&] {
      bool all = true;
      MKC_UNROLL
      for (int j = 0; j < Count; ++j)
        if (!is_of(words[j], bits)) words[j] = load_words(x.data + 2 * (first + j * kTalkThreads));
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
      v[j] = column < Depth / 8 ? load_quad(x.data + column * 8) : Quad{};
    }
  }
};

}  // namespace mkc::ops
