// Tiles of 16 keys or values as a compute warp holds them, and where they come from: from memory, or through the ring
#pragma once

#include <mkc/worker_stream.cuh>

namespace mkc {

// How keys pass through the ring: the slots of a block's keys, then those of its values, each with whole tiles.
template <int D>
struct KeySlots {
  static constexpr int kTileBytes = kKeyTile * D * 2;
  static constexpr int kTiles = kSlotBytes / kTileBytes < kComputeWarps ? kSlotBytes / kTileBytes : kComputeWarps;  // of a slot
  static constexpr int kKeys = kTiles * kKeyTile;
  MKC_DEVICE static int count(int keys) { return keys <= 0 ? 0 : ((keys < kKeyBlock ? keys : kKeyBlock) + kKeys - 1) / kKeys; }
};

// A tile in shared memory. Rows beyond `rows` hold anything. What a lane reads is counted `from` its first element, so that all else
// about it is known to the compiler.
template <int D>
struct RingTile {
  uint32 at;
  int rows;
  MKC_DEVICE RingTile from(int row, int column) const { return {opaque(at + (row * D + column) * 2), rows - row}; }
  MKC_DEVICE Quad any(int row, int column) const { return load_shared(at + (row * D + column) * 2); }
  MKC_DEVICE Quad operator()(int row, int column) const { return row < rows ? any(row, column) : Quad{}; }
};
// A tile in memory, which may end with it.
template <int D>
struct MemoryTile {
  const bf16* at;
  int rows;
  MKC_DEVICE MemoryTile from(int row, int column) const { return {at + row * D + column, rows - row}; }
  MKC_DEVICE Quad operator()(int row, int column) const { return row < rows ? load_quad(at + row * D + column) : Quad{}; }
  MKC_DEVICE Quad any(int row, int column) const { return (*this)(row, column); }
};

// Rows of q in shared memory are in the order in which a lane reads them: of two times 32 dims, each in eights for a lane, the
// first and third pairs, and behind these the second and fourth. Dims `pair`, a multiple of 2, are at this byte.
MKC_DEVICE constexpr uint32 place_of_pair(uint32 pair) {
  return pair / 64 * 128 + pair / 32 % 2 * 8 + pair % 32 / 8 * 32 + pair / 2 % 2 * 16 + pair / 4 % 2 * 4;
}

// The keys of a tile, 8 at a time, as a operands of the tensor cores: rows 8 to 15 are the same keys at other dims. Columns of
// q are a head at the ones, and the same head at the others. Rows that the cache does not have may be anything.
template <int D>
struct KeyTile {
  static constexpr int kThirties = (D + 31) / 32;  // the last may reach beyond a row, where there are zeros
  Quad at[2][kThirties];
  template <class Tile>
  MKC_DEVICE void load(const Tile& tile, int g, int t) {
    const Tile mine = tile.from(g, t * 8);
    MKC_UNROLL
    for (int u = 0; u < 2; ++u) {
      MKC_UNROLL
      for (int j = 0; j < kThirties; ++j) at[u][j] = is_inside(j, t) ? mine.any(u * 8, j * 32) : Quad{};
    }
  }
  MKC_DEVICE void take_new(uint32 row, int place, int g, int t) {
    MKC_UNROLL
    for (int u = 0; u < 2; ++u) {
      if (u * 8 + g != place) continue;
      MKC_UNROLL
      for (int j = 0; j < kThirties; ++j) at[u][j] = is_inside(j, t) ? load_shared(row + (j * 32 + t * 8) * 2) : Quad{};
    }
  }
  // Head t of the four that lie at q, against keys g and g + 8.
  MKC_DEVICE void score(float (&s)[2], uint32 q, int pitch, int g, int t) const {
    float sums[2][2][4] = {};  // two chains, so that one mma need not wait for the one before
    const uint32 mine = q + g / 2 * pitch + t * 32 + g % 2 * 16;
    MKC_UNROLL
    for (int j = 0; j < kThirties; j += 2) {
      const Quad two = load_shared(mine + j * 64);
      add(sums[0], j, t, two.x, two.y);
      if (j + 1 < kThirties) add(sums[1], j + 1, t, two.z, two.w);
    }
    MKC_UNROLL
    for (int u = 0; u < 2; ++u) s[u] = (sums[0][u][0] + sums[0][u][3]) + (sums[1][u][0] + sums[1][u][3]);
  }

 private:
  MKC_DEVICE static bool is_inside(int j, int t) { return D % 32 == 0 || j * 32 + t * 8 < D; }
  MKC_DEVICE void add(float (&sums)[2][4], int j, int t, uint32 b0, uint32 b1) const {
    MKC_UNROLL
    for (int u = 0; u < 2; ++u) multiply(sums[u], at[u][j], is_inside(j, t) ? b0 : 0, is_inside(j, t) ? b1 : 0);
  }
};

// 64 dims of the values of a tile, as a operands: dims by keys. Rows that the cache does not have are zero.
template <int D>
struct ValueTile {
  Quad at[4];
  template <class Tile>
  MKC_DEVICE void load(const Tile& mine, int j, int g) {  // from row 2 t on, and dim 8 g
    Quad row[4];
    MKC_UNROLL
    for (int u = 0; u < 4; ++u) row[u] = D % 64 == 0 || j * 64 + g * 8 < D ? mine(u / 2 * 8 + u % 2, j * 64) : Quad{};
    at[0] = paired(row[0].x, row[1].x, row[2].x, row[3].x), at[1] = paired(row[0].y, row[1].y, row[2].y, row[3].y);
    at[2] = paired(row[0].z, row[1].z, row[2].z, row[3].z), at[3] = paired(row[0].w, row[1].w, row[2].w, row[3].w);
  }
  // Rows g and g + 8 of product i are dims 2 i and 2 i + 1 of the 8 that lane row g holds; columns are heads.
  MKC_DEVICE void add(float (&out)[4][4], const uint32 (&p)[2]) const {
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) multiply(out[i], at[i], p[0], p[1]);
  }

 private:
  MKC_DEVICE static Quad paired(uint32 one, uint32 two, uint32 ninth, uint32 tenth) {  // pairs of dims become pairs of keys
    return {permuted<0x5410>(one, two), permuted<0x7632>(one, two), permuted<0x5410>(ninth, tenth), permuted<0x7632>(ninth, tenth)};
  }
};

// The tiles of a warp, one of each block: first that of its keys, then that of its values. From the ring, or from memory.
template <int D, class Page>
struct Tiles {
  static constexpr bool kFromRing = Ring<Page>::kHasKeys;
  using Slots = KeySlots<D>;
  Compute<Page>& c;
  int warp;
  int slots = 0, mine = 0;  // of the block's keys, or its values; the one with this warp's tile

  MKC_DEVICE void nothing() {  // the loaders' slot for a task of whose cache they bring nothing
    if constexpr (kFromRing) c.ring.await(), c.ring.release();
  }
  // `cached` rows of the cache follow the block's first.
  MKC_DEVICE void begin(int cached) {
    if constexpr (kFromRing) slots = Slots::count(cached), mine = warp / Slots::kTiles;
  }
  template <class Read>
  MKC_DEVICE void keys(const bf16* block, int cached, Read read) {
    one(mine < slots ? mine : slots, block, cached, read);
  }
  template <class Read>
  MKC_DEVICE void values(const bf16* block, int cached, Read read) {
    one(mine < slots ? slots - 1 : slots, block, cached, read);
    if constexpr (kFromRing) c.ring.pass(slots - 1 - mine);
  }

 private:
  template <class Read>
  MKC_DEVICE void one(int others, const bf16* block, int cached, Read read) {
    const int rows = cached - warp * kKeyTile;
    if constexpr (kFromRing) {
      c.ring.pass(others);
      if (mine < slots) c.ring.await();
      read(RingTile<D>{c.slot() + warp % Slots::kTiles * Slots::kTileBytes, rows});
      if (mine < slots) c.ring.release();
    } else {
      read(MemoryTile<D>{block + warp * kKeyTile * D, rows});
    }
  }
};

}  // namespace mkc
