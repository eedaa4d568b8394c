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

// A tile in shared memory. Rows beyond `rows` hold anything.
template <int D>
struct RingTile {
  uint32 at;
  int rows;
  MKC_DEVICE Quad any(int row, int column) const { return load_shared(at + (row * D + column) * 2); }
  MKC_DEVICE Quad operator()(int row, int column) const { return row < rows ? any(row, column) : Quad{}; }
};
// A tile in memory, which may end with it.
template <int D>
struct MemoryTile {
  const bf16* at;
  int rows;
  MKC_DEVICE Quad operator()(int row, int column) const { return row < rows ? load_quad(at + row * D + column) : Quad{}; }
  MKC_DEVICE Quad any(int row, int column) const { return (*this)(row, column); }
};

// The keys of a tile, as b operands of the tensor cores. Rows that the cache does not have may be anything.
template <int D>
struct KeyTile {
  static constexpr int kThirties = (D + 31) / 32;  // the last may reach beyond a row, where there are zeros
  Quad at[2][kThirties];
  template <class Tile>
  MKC_DEVICE void load(const Tile& tile, int g, int t) {
    MKC_UNROLL
    for (int u = 0; u < 2; ++u) {
      MKC_UNROLL
      for (int j = 0; j < kThirties; ++j) at[u][j] = is_inside(j, t) ? tile.any(u * 8 + g, j * 32 + t * 8) : Quad{};
    }
  }
  MKC_DEVICE void take_new(uint32 row, int place, int g, int t) {
    MKC_UNROLL
    for (int j = 0; j < kThirties; ++j) {
      const Quad key = is_inside(j, t) ? load_shared(row + (j * 32 + t * 8) * 2) : Quad{};
      MKC_UNROLL
      for (int u = 0; u < 2; ++u)
        if (u * 8 + g == place) at[u][j] = key;
    }
  }
  // What this lane has of the product of one head of q with two keys, and with the two that lie 8 later.
  MKC_DEVICE void score(float (&s)[2][2], uint32 q, int t) const {
    float more[2][2] = {};
    MKC_UNROLL
    for (int j = 0; j < kThirties; ++j) {
      const Quad part = is_inside(j, t) ? load_shared(q + (j * 32 + t * 8) * 2) : Quad{};
      MKC_UNROLL
      for (int u = 0; u < 2; ++u) {
        multiply_upper(s[u], part.x, part.y, at[u][j].x, at[u][j].y);
        multiply_upper(more[u], part.z, part.w, at[u][j].z, at[u][j].w);
      }
    }
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) s[i / 2][i % 2] += more[i / 2][i % 2];
  }

 private:
  MKC_DEVICE static bool is_inside(int j, int t) { return D % 32 == 0 || j * 32 + t * 8 < D; }
};

// 64 dims of the values of a tile. Rows come in, pairs of keys leave. Rows that the cache does not have are zero.
template <int D>
struct ValueTile {
  Quad at[4];
  template <class Tile>
  MKC_DEVICE void load(const Tile& tile, int j, int g, int t) {
    MKC_UNROLL
    for (int u = 0; u < 4; ++u) at[u] = D % 64 == 0 || j * 64 + g * 8 < D ? tile(u / 2 * 8 + 2 * t + u % 2, j * 64 + g * 8) : Quad{};
  }
  MKC_DEVICE void pair_up() {  // pairs of dims become pairs of keys
    MKC_UNROLL
    for (int u = 0; u < 4; u += 2) {
      const Quad one = at[u], two = at[u + 1];
      at[u] = {permuted<0x5410>(one.x, two.x), permuted<0x5410>(one.y, two.y), permuted<0x5410>(one.z, two.z), permuted<0x5410>(one.w, two.w)};
      at[u + 1] = {permuted<0x7632>(one.x, two.x), permuted<0x7632>(one.y, two.y), permuted<0x7632>(one.z, two.z), permuted<0x7632>(one.w, two.w)};
    }
  }
  // Column 2t of mma i is dim i of the 8 that lane row 2t holds.
  MKC_DEVICE void add(float (&out)[8][2], const uint32 (&p)[2]) const {
    const uint32 front[8] = {at[0].x, at[1].x, at[0].y, at[1].y, at[0].z, at[1].z, at[0].w, at[1].w};
    const uint32 back[8] = {at[2].x, at[3].x, at[2].y, at[3].y, at[2].z, at[3].z, at[2].w, at[3].w};
    MKC_UNROLL
    for (int i = 0; i < 8; ++i) multiply_upper(out[i], p[0], p[1], front[i], back[i]);
  }
};

// The tiles of this warp, one a block. `read` gets the tile of the block's keys or of its values; `cached` rows of the cache
// follow the block's first. Keys and values are to be read in turn, or the ring is out of step.
template <int D, class Page>
MKC_DEVICE void nothing_in_ring(Compute<Page>& c) {  // the loaders' slot for a task of whose cache they bring nothing
  if constexpr (Ring<Page>::kHasKeys) c.ring.await(), c.ring.release();
}
template <int D, class Page, class Read>
MKC_DEVICE void read_tile(Compute<Page>& c, const bf16* block, int cached, Read read) {
  const int rows = cached - c.warp * kKeyTile;
  if constexpr (Ring<Page>::kHasKeys) {
    using Slots = KeySlots<D>;
    const int slots = Slots::count(cached), mine = c.warp / Slots::kTiles;
    c.ring.pass(mine < slots ? mine : slots);
    if (mine < slots) c.ring.await();
    read(RingTile<D>{c.slot() + c.warp % Slots::kTiles * Slots::kTileBytes, rows});
    if (mine < slots) c.ring.release(), c.ring.pass(slots - mine - 1);
  } else {
    read(MemoryTile<D>{block + c.warp * kKeyTile * D, rows});
  }
}

}  // namespace mkc
