// Weights as they pass through the registers of compute warps and meet 2 to 16 rows, which lie in shared memory whole or come in chunks
#pragma once

#include <mkc/worker_stream.cuh>

namespace mkc {

enum RowsMeeting : int {  // where rows come in chunks, two of which lie in shared memory; even ones are ready at kInputReady
  kOddInputReady = 10,
  kInputTaken = 11,  // compute -> talk: the chunk after the next may take its place
  kOddInputTaken = 12,
};

// b operands: column 2 b of an mma holds row b at one half of a fragment's depth, column 2 b + 1 at the other. So an mma
// takes four rows, and the weights' fragments are those of a single row.
template <int Batch, int Depth>
struct Rows {
  static constexpr int kFours = (Batch + 3) / 4, kPitch = Depth * 512;  // bytes of a row: `Depth` fragments
  static constexpr bool kPairs = Depth % 2 == 0;
  uint32 at[kFours];
  MKC_DEVICE Rows(const Fragment& place, uint32 input) {
    const int half = place.row % 2;
    const int k = kPairs ? place.warp * 64 + half * 32 + place.column * 8 : place.warp * 32 + half * 16 + place.column * 4;
    MKC_UNROLL
    for (int i = 0; i < kFours; ++i) {
      const int row = i * 4 + place.row / 2;
      at[i] = input + (row < Batch ? row : Batch - 1) * kPitch + 2 * k;
    }
  }
};
template <int Batch, int Depth>
struct RowsInputs {  // of two neighbouring fragments, or of one where a row has an odd number
  using R = Rows<Batch, Depth>;
  uint32 b[R::kFours][2][2];
  MKC_DEVICE void take(const R& rows, int fragment) {
    MKC_UNROLL
    for (int i = 0; i < R::kFours; ++i) {
      const uint32 from = rows.at[i] + fragment * 512;
      if constexpr (R::kPairs) {
        const Quad v = load_shared(from);
        b[i][0][0] = v.x, b[i][0][1] = v.y, b[i][1][0] = v.z, b[i][1][1] = v.w;
      } else {
        asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(b[i][0][0]), "=r"(b[i][0][1]) : "r"(from) : "memory");
      }
    }
  }
};

template <int Batch>
struct RowsSums {  // of a tile
  static constexpr int kFours = (Batch + 3) / 4;
  float v[kFours][4];
  MKC_DEVICE void clear() {
    MKC_UNROLL
    for (int i = 0; i < kFours * 4; ++i) v[i / 4][i % 4] = 0.0f;
  }
  template <class Inputs>
  MKC_DEVICE void add(const Quad& w, const Inputs& x, int which) {
    MKC_UNROLL
    for (int i = 0; i < kFours; ++i) multiply(v[i], w, x.b[i][which][0], x.b[i][which][1]);
  }
  // a lane has row `place.row` of the tile for every fourth row of the input; the two halves of its sums are c0 and c3
  MKC_DEVICE void store(uint32 to, const Fragment& place) const {
    MKC_UNROLL
    for (int i = 0; i < kFours; ++i)
      if (i * 4 + place.column < Batch) store_shared(to + (i * 4 + place.column) * 32 + place.row * 4, v[i][0] + v[i][3]);
  }
};

// How `Tiles` tiles of `F` fragments pass through the registers, or as many as the task's stream has, which are more than a batch; at most
// `Most` of them between two meetings.
template <int Tiles, int F, int Most>
struct RowsPassage {
  static constexpr int kSlots = (Tiles * F + 3) / 4;
  static constexpr int batch() {  // slots in registers at once: whole tiles, or a whole share of one
    for (int slots : {4, 3, 5, 2, 1})
      if (slots * 4 % F == 0 && slots * 4 / F <= Most) return slots;
    for (int slots : {4, 3, 5, 2})
      if (F % (slots * 4) == 0) return slots;
    return 0;
  }
  static_assert(batch() > 0, "the compiler pads a depth so that batches fit it");
  static constexpr bool kWhole = batch() * 4 % F == 0;
  static constexpr int kTilesABatch = kWhole ? batch() * 4 / F : 1;
  static constexpr int kBatch = Tiles && kSlots < batch() ? kSlots : batch(), kFragments = kBatch * 4;
  static constexpr int kRound = Most / kTilesABatch * kTilesABatch;
};

// The rows lie in shared memory whole.
template <int Tiles, int F, int Batch, int Most, class Page>
MKC_DEVICE void multiply_rows(Compute<Page>& c) {
  using P = RowsPassage<Tiles, F, Most>;
  using R = Rows<Batch, F>;
  const Fragment at = c.place();
  const R rows(at, c.input);
  const uint32 sums = c.input + Batch * R::kPitch + at.warp * Most * Batch * 32;
  const int slots = Tiles ? P::kSlots : (c.fragments + 3) / 4, tiles = Tiles ? Tiles : c.fragments / F;
  Quad w[P::kBatch][4];
  MKC_UNROLL
  for (int i = 0; i < P::kBatch; ++i) c.ring.fetch(w[i]);
  meet(kInputReady, kBothThreads);
  RowsSums<Batch> even, odd;  // two chains, so that one mma need not wait for the one before
  RowsInputs<Batch, F> x;
  int tile = 0, first = 0;  // of the tile's fragments, where a batch is a share of it
  even.clear(), odd.clear();
  const auto store = [&](int of) {
    MKC_UNROLL
    for (int i = 0; i < R::kFours * 4; ++i) even.v[i / 4][i % 4] += odd.v[i / 4][i % 4];
    even.store(sums + of % P::kRound * Batch * 32, at);
    even.clear(), odd.clear();
  };
  MKC_NO_UNROLL
  for (int slot = 0; slot < slots; slot += P::kBatch) {
    if (P::kWhole && tile && tile % P::kRound == 0) arrive(kSumsReady, kBothThreads), meet(kSumsTaken, kBothThreads);
    MKC_UNROLL
    for (int i = 0; i < P::kFragments; ++i) {
      const int f = P::kWhole ? i % F : i;
      if (!R::kPairs || f % 2 == 0) x.take(rows, first + f);
      (f / (R::kPairs ? 2 : 1) % 2 ? odd : even).add(w[i / 4][i % 4], x, R::kPairs ? f % 2 : 0);
      if (i % 4 == 3 && slot + P::kBatch + i / 4 < slots) c.ring.fetch(w[i / 4]);
      if (P::kWhole && f == F - 1 && tile + i / F < tiles) store(tile + i / F);
    }
    if constexpr (P::kWhole) {
      tile += P::kTilesABatch;
    } else {
      first += P::kFragments;
      if (first < F) continue;
      first = 0;
      store(tile);
      if (++tile < tiles && tile % P::kRound == 0) arrive(kSumsReady, kBothThreads), meet(kSumsTaken, kBothThreads);
    }
  }
  arrive(kSumsReady, kBothThreads);
}

// The rows come in chunks, each of which meets its share of `Group` tiles, whose sums stay in registers meanwhile.
template <int F, int Chunk, int Batch, int Group, class Page>
struct Chunks {
  using R = Rows<Batch, Chunk>;
  static constexpr int kCount = F / Chunk, kBuffer = Batch * R::kPitch;
  static_assert(F % Chunk == 0 && Chunk % 4 == 0);
  Compute<Page>& c;
  Fragment at;
  uint32 sums;
  int left;  // slots that are still to come
  Quad w[Chunk / 4][4];

  MKC_DEVICE Chunks(Compute<Page>& c, int tiles)
      : c(c), at(c.place()), sums(c.input + 2 * kBuffer + at.warp * Group * Batch * 32), left((tiles * F - Chunk) / 4) {
    MKC_UNROLL
    for (int i = 0; i < Chunk / 4; ++i) c.ring.fetch(w[i]);
  }
  template <int Tiles>
  MKC_DEVICE void multiply() {
    RowsSums<Batch> s[Tiles];
    MKC_UNROLL
    for (int t = 0; t < Tiles; ++t) s[t].clear();
    MKC_NO_UNROLL
    for (int chunk = 0; chunk < kCount; ++chunk) {
      const bool odd = chunk % 2;
      meet(odd ? kOddInputReady : kInputReady, kBothThreads);
      const R rows(at, c.input + odd * kBuffer);
      MKC_UNROLL
      for (int t = 0; t < Tiles; ++t) {
        RowsInputs<Batch, Chunk> x;
        MKC_UNROLL
        for (int f = 0; f < Chunk; ++f) {
          if (f % 2 == 0) x.take(rows, f);
          s[t].add(w[f / 4][f % 4], x, f % 2);
          if (f % 4 == 3 && left > 0) c.ring.fetch(w[f / 4]), --left;
        }
      }
      if (chunk + 2 < kCount) arrive(odd ? kOddInputTaken : kInputTaken, kBothThreads);
    }
    MKC_UNROLL
    for (int t = 0; t < Tiles; ++t) s[t].store(sums + t * Batch * 32, at);
    arrive(kSumsReady, kBothThreads);
  }
};
template <int Tiles, int F, int Chunk, int Batch, int Group, class Page>
MKC_DEVICE void multiply_chunks(Compute<Page>& c) {
  constexpr int kLast = (Tiles - 1) % Group + 1;
  Chunks<F, Chunk, Batch, Group, Page> chunks(c, Tiles);
  MKC_NO_UNROLL
  for (int tile = 0; tile < Tiles - kLast; tile += Group) {
    chunks.template multiply<Group>();
    meet(kSumsTaken, kBothThreads);
  }
  chunks.template multiply<kLast>();
}

}  // namespace mkc
