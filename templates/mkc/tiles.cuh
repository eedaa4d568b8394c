// Weights as they pass through the registers of compute warps: which slots are held at once, the rows that they meet, and the sums
#pragma once

#include <mkc/worker_stream.cuh>

namespace mkc {

// How `Tiles` tiles of 8 rows pass through the registers, or, where that is 0, as many as the task's stream has: more than six slots of
// them, so that one loop serves all tasks of that depth. A tile's depth is `F` fragments for each compute warp: one
// fragment is 8 rows by 32 of k, the a operand of one mma, whose rows 8 to 15 are the same rows at another k.
// Where fewer warps share a depth, `Abreast` tiles pass side by side, each through as many warps, and count as one.
template <int Tiles, int F, int Abreast = 1, bool Two = false>
struct Passage {
  static constexpr int kSharers = kComputeWarps / Abreast;
  static constexpr int kSlots = (Tiles * F + 3) / 4;
  static constexpr int kMostAbreast = Two ? 32 : 64;  // a talking thread has four outputs, or two rows' threads share them
  static constexpr int kMostARound = kMaxTiles * Abreast < kMostAbreast ? kMaxTiles : kMostAbreast / Abreast;
  static constexpr int even_batch() {  // slots in registers at once: whole tiles, or a whole share of one
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
  static constexpr int kFragments = even_batch() * 4;  // of an even batch
  static constexpr bool kWhole = !kTurns && kFragments % F == 0;
  static constexpr int kTilesABatch = kTurns ? kPeriodTiles : kWhole ? kFragments / F : 1;
  // Tiles between two meetings. However many a task has, for those who talk know the most that any has.
  static constexpr int kRound = kMostARound / kTilesABatch * kTilesABatch;
  static constexpr int kRounds = (Tiles + kRound - 1) / kRound;
  static constexpr bool kHeld = Tiles > 0 && kSlots <= 6 && Tiles <= kRound;  // all weights are in registers before the input comes
  static constexpr int kBatch = kHeld ? kSlots : kTurns ? kShort + (kLong > 0) : even_batch();
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
  const int slots = Tiles ? P::kSlots : (c.fragments + 3) / 4, tiles = Tiles ? Tiles : c.fragments / F;
  Quad w[P::kBatch][4];
  MKC_UNROLL
  for (int i = 0; i < P::kBatch; ++i) c.ring.fetch(w[i]);
  if constexpr (!P::kHeld) await_input();
  if constexpr (P::kHeld) {
    // Rehearsed while the input is on its way, for code that a worker runs once a layer is not at hand. Two rows leave no registers for it.
    MKC_NO_UNROLL
    for (bool real = Two || opaque(0);; real = opaque(1)) {
      Inputs<F, F, P::kSharers> x = {};
      if (real) await_input(), x.take(input, 0);
      Sums s[Tiles];
      MKC_UNROLL
      for (int t = 0; t < Tiles; ++t) s[t].clear();
      MKC_UNROLL
      for (int f = 0; f < F; ++f) {
        MKC_UNROLL
        for (int t = 0; t < Tiles; ++t) s[t].add(Tiles > 4 ? 0 : f, w[(t * F + f) / 4][(t * F + f) % 4], x.b[f]);
      }
      MKC_UNROLL
      for (int t = 0; t < Tiles; ++t) s[t].store(sums + t * kStep, holder && real);
      if (real) break;
    }
  } else if constexpr (P::kTurns) {
    constexpr bool kKept = F <= 16;  // in registers for all tiles
    Inputs<F, kKept ? F : 4, P::kSharers> x;
    if (kKept) x.take(input, 0);
    Sums s;
    int tile = 0, left = Tiles ? Tiles * F : c.fragments;  // fragments, from this period on
    MKC_NO_UNROLL
    for (; left > 0; left -= P::kPeriod * 4, tile += P::kPeriodTiles) {
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
            if (next * 4 < left) c.ring.fetch(w[held]);
          if (here == P::kPeriod - 1 && held + 1 < P::kBatch && (next + 1) * 4 < left) c.ring.fetch(w[P::kBatch - 1]);
        }
        if (f == F - 1 && i < left) s.store(sums + (tile + i / F) % P::kRound * kStep, holder);
      }
    }
  } else if constexpr (P::kWhole) {
    constexpr bool kKept = F <= 16;  // in registers for all tiles
    Inputs<F, F, P::kSharers> x;
    if (kKept) x.take(input, 0);
    int tile = 0, left = Tiles ? Tiles * F : c.fragments;  // fragments, from this batch on
    MKC_NO_UNROLL
    for (; left > 0; left -= P::kFragments, tile += P::kTilesABatch) {
      if (tile && tile % P::kRound == 0) arrive(kSumsReady, kBothThreads), meet(kSumsTaken, kBothThreads);
      Sums s;
      MKC_UNROLL
      for (int i = 0; i < P::kFragments; ++i) {
        const int f = i % F;
        if (f == 0) s.clear();
        if (f == 0 && !kKept) x.take(input, 0);
        s.add(f, w[i / 4][i % 4], x.b[f]);
        if (i % 4 == 3 && P::kFragments + i - 3 < left) c.ring.fetch(w[i / 4]);
        if (f == F - 1 && (P::kTilesABatch == 1 || i < left)) s.store(sums + (tile + i / F) % P::kRound * kStep, holder);
      }
    }
  } else {
    Sums s;
    s.clear();
    int tile = 0, first = 0;
    MKC_NO_UNROLL
    for (int slot = 0; slot < slots; slot += P::kBatch) {
      Inputs<F, P::kFragments, P::kSharers> x;
      x.take(input, first);
      MKC_UNROLL
      for (int i = 0; i < P::kFragments; ++i) {
        s.add(i, w[i / 4][i % 4], x.b[i]);
        if (i % 4 == 3 && slot + P::kBatch + i / 4 < slots) c.ring.fetch(w[i / 4]);
      }
      first += P::kFragments;
      if (first < F) continue;
      s.store(sums + tile % P::kRound * kStep, holder);
      s.clear();
      first = 0;
      if (++tile < tiles && tile % P::kRound == 0) arrive(kSumsReady, kBothThreads), meet(kSumsTaken, kBothThreads);
    }
  }
  c.sums_are_ready();
}

}  // namespace mkc
