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

// Rows of q in shared memory are in the order in which a lane reads them: of two times 32 dims eight of one, and eight of the other. Dims
// from `dim` on, a multiple of 2, are at this byte.
MKC_DEVICE constexpr uint32 place_of_dims(uint32 dim) { return dim / 64 * 128 + dim % 32 / 8 * 32 + dim / 32 % 2 * 16 + dim % 8 * 2; }

// The keys of a tile, 8 at a time, as a operands of the tensor cores: rows 8 to 15 are the same keys at other dims. Columns of q are a head
// at the ones, and the same head at the others. Rows lie 128 bytes apart, or a multiple of that; so, where there are registers for it, odd
// keys are read, and stand, with two times 32 dims the other way round, and no two lanes want the same bank. The others are the second
// and fourth pairs of 8 dims elsewhere. Rows that the cache does not have may be anything.
template <int D>
struct KeyTile {
  static constexpr bool kTurned = D <= 128;
  static constexpr int kPairs = (D + 63) / 64;  // of 32 dims; the last may reach beyond a row, where there are zeros
  Quad at[2][2 * kPairs];
  template <class Tile>
  MKC_DEVICE void load(const Tile& tile, int g, int t) {
    const Tile first = tile.from(g, t * 8 + odd(g) * 32), second = kTurned ? tile.from(g, t * 8 - odd(g) * 32) : first;
    MKC_UNROLL
    for (int u = 0; u < 2; ++u) {
      MKC_UNROLL
      for (int j = 0; j < 2 * kPairs; ++j) at[u][j] = is_inside(j ^ odd(g), t) ? (j % 2 ? second : first).any(u * 8, j * 32) : Quad{};
    }
  }
  MKC_DEVICE void take_new(uint32 row, int place, int g, int t) {
    MKC_UNROLL
    for (int u = 0; u < 2; ++u) {
      if (u * 8 + g != place) continue;
      MKC_UNROLL
      for (int j = 0; j < 2 * kPairs; ++j) {
        const int thirty = j ^ odd(g);
        at[u][j] = is_inside(thirty, t) ? load_shared(row + (thirty * 32 + t * 8) * 2) : Quad{};
      }
    }
  }
  // Head t of the four that lie at q, against keys g and g + 8.
  MKC_DEVICE void score(float (&s)[2], uint32 q, int pitch, int g, int t) const {
    float sums[2][2][4] = {};  // two chains, so that one mma need not wait for the one before
    const uint32 mine = q + g / 2 * pitch + t * 32;
    MKC_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      if constexpr (kTurned) {
        const Quad b = columns(mine + i * 128 + g % 2 * 16, 2 * i + g % 2, t);
        MKC_UNROLL
        for (int u = 0; u < 2; ++u) {
          const Quad &one = at[u][2 * i], &other = at[u][2 * i + 1];
          multiply(sums[0][u], Quad{one.x, other.x, one.y, other.y}, b.x, b.y);
          multiply(sums[1][u], Quad{one.z, other.z, one.w, other.w}, b.z, b.w);
        }
      } else {
        MKC_UNROLL
        for (int j = 0; j < 2; ++j) {
          const Quad b = columns(mine + i * 128 + j * 16, 2 * i + j, t);
          MKC_UNROLL
          for (int u = 0; u < 2; ++u) multiply(sums[j][u], at[u][2 * i + j], g % 2 ? b.y : b.x, g % 2 ? b.w : b.z);
        }
      }
    }
    MKC_UNROLL
    for (int u = 0; u < 2; ++u) {
      float sum[4];
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) sum[i] = sums[0][u][i] + sums[1][u][i];
      s[u] = odd(g) ? sum[1] + sum[2] : sum[0] + sum[3];
    }
  }

 private:
  MKC_DEVICE static int odd(int g) { return kTurned ? g % 2 : 0; }
  MKC_DEVICE static bool is_inside(int thirty, int t) { return D % 64 == 0 || thirty * 32 + t * 8 < D; }
  MKC_DEVICE static Quad columns(uint32 from, int thirty, int t) { return is_inside(thirty, t) ? load_shared(from) : Quad{}; }
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

// Where the 8 dims of a lane row begin, of the 64 of number `group`. Where there are two times 64, they lie in different banks.
template <int D>
constexpr bool kTwins = D == 128;
template <int D>
MKC_DEVICE int eight_of(int group, int g) {
  return group * 64 + 8 * (kTwins<D> && group % 2 ? g ^ 4 : g);
}
// All values of a tile: two times 64 dims, which half of the lanes read the other way round, for the rows of all begin in the same bank.
template <int D, class Tile>
MKC_DEVICE void load_twins(ValueTile<D> (&v)[2], const Tile& tile, int g, int t) {
  const bool odd = t % 2;
  MKC_UNROLL
  for (int i = 0; i < 2; ++i) v[i].load(tile.from(2 * t, eight_of<D>(odd ? 1 - i : i, g)), 0, g);
  MKC_UNROLL
  for (int i = 0; i < 4; ++i) {
    const Quad first = v[0].at[i], second = v[1].at[i];
    v[0].at[i] = odd ? second : first, v[1].at[i] = odd ? first : second;
  }
}

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
