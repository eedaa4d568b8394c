// The portable GPU worker: a worker is one thread block, a team is a warp. Atomics and clocks are PTX: no library headers.
#pragma once

#define MKC_DEVICE __device__ __forceinline__
#define MKC_BODY __device__ __forceinline__
#define MKC_NOINLINE __device__ __noinline__  // for what is seldom run
#define MKC_CONSTEXPR __host__ __device__ constexpr  // computed by the compiler, for kernels and types alike
#define MKC_UNROLL _Pragma("unroll")
#define MKC_NO_UNROLL _Pragma("unroll 1")

namespace mkc {

using int32 = int;
using int64 = long long;
using uint8 = unsigned char;
using uint32 = unsigned int;
using uint64 = unsigned long long;

inline constexpr float kInf = __builtin_bit_cast(float, 0x7F800000u);  // NVRTC has no __builtin_huge_valf
inline constexpr float kNan = __builtin_bit_cast(float, 0x7FC00000u);

// ---- who am I: `lanes` threads run a task together, in `teams` that each reduce on their own
inline constexpr int kTeamLanes = 32;
#ifdef MKC_STREAMS  // a streaming worker runs portable bodies on the warps that talk: threads 256 to 383
MKC_DEVICE int lane() { return static_cast<int>(threadIdx.x) - 256; }
MKC_DEVICE int lanes() { return 128; }
MKC_DEVICE void sync() { asm volatile("bar.sync 7, 128;" ::: "memory"); }
MKC_DEVICE int team() {  // asked anew by each body: what it makes of it would be kept in registers for all of them
  uint32 thread;
  asm volatile("mov.u32 %0, %1;" : "=r"(thread) : "r"(threadIdx.x));
  return static_cast<int>(thread / kTeamLanes) - 8;
}
#else
MKC_DEVICE int lane() { return static_cast<int>(threadIdx.x); }
MKC_DEVICE int lanes() { return static_cast<int>(blockDim.x); }
MKC_DEVICE void sync() { __syncthreads(); }
MKC_DEVICE int team() { return lane() / kTeamLanes; }
#endif
MKC_DEVICE int teams() { return lanes() / kTeamLanes; }
MKC_DEVICE int team_lane() { return static_cast<int>(threadIdx.x) % kTeamLanes; }
MKC_DEVICE bool team_leader() { return team_lane() == 0; }
template <class T>
MKC_DEVICE T broadcast(T value) {  // lane 0's value, to all; a barrier on both sides
  __shared__ T slot;
  if (lane() == 0) slot = value;
  sync();
  value = slot;
  sync();
  return value;
}

// ---- atomics, at the scope of the GPU
// Lane 0 acquires and releases for its block, because bar.sync is part of PTX's causality order: writes of all lanes,
// bar.sync, lane 0's release; lane 0's acquire elsewhere, bar.sync, reads of all lanes. In SASS an acquire ends with
// CCTL.IVALL, which empties the SM's L1, so no lane hits an old line. Never read what was so written with ld.global.nc.
MKC_DEVICE uint32 load_acquire(const uint32* p) {
  uint32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
MKC_DEVICE uint32 load_relaxed(const uint32* p) {
  uint32 v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
MKC_DEVICE void store_relaxed(uint32* p, uint32 v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
MKC_DEVICE void store_release(uint32* p, uint32 v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
MKC_DEVICE void add_release(uint32* p, uint32 v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
MKC_DEVICE uint32 fetch_add(uint32* p, uint32 v) {
  uint32 old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
  return old;
}
MKC_DEVICE bool claim(uint32* p) {  // true for the first caller only
  uint32 old;
  asm volatile("atom.acq_rel.gpu.global.cas.b32 %0, [%1], 0, 1;" : "=r"(old) : "l"(p) : "memory");
  return old == 0;
}

MKC_DEVICE void* in_global(void* p) {  // so that loads through it are global ones
  __builtin_assume(__isGlobal(p));
  return p;
}

// ---- time
MKC_DEVICE uint64 clock_ns() {
  uint64 now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}
MKC_DEVICE void pause(uint32 spins) {
  if (spins > 64) __nanosleep(20);
}

// ---- 16-bit floats
struct alignas(2) bf16 {
  unsigned short bits;
};
struct alignas(2) f16 {
  unsigned short bits;
};
MKC_DEVICE float bits_to_float(uint32 bits) { return __uint_as_float(bits); }
MKC_DEVICE uint32 float_to_bits(float value) { return __float_as_uint(value); }
MKC_DEVICE float widen(bf16 v) { return bits_to_float(static_cast<uint32>(v.bits) << 16); }
MKC_DEVICE float widen(f16 v) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
  return out;
}
template <class T>
MKC_DEVICE T widen(T v) {
  return v;
}
MKC_DEVICE void narrow(float v, bf16& out) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }
MKC_DEVICE void narrow(float v, f16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }

// ---- mathematics
MKC_DEVICE double rint(double x) { return ::rint(x); }
MKC_DEVICE double fma(double a, double b, double c) { return ::fma(a, b, c); }
MKC_DEVICE float sqrt(float x) { return ::sqrtf(x); }
MKC_DEVICE float rsqrt(float x) { return ::rsqrtf(x); }
MKC_DEVICE float floor(float x) { return ::floorf(x); }
MKC_DEVICE float ceil(float x) { return ::ceilf(x); }
MKC_DEVICE float pow(float x, float y) { return ::powf(x, y); }
MKC_DEVICE float log(float x) { return ::logf(x); }
MKC_DEVICE float abs(float x) { return ::fabsf(x); }
MKC_DEVICE float exp(float x) { return ::expf(x); }
MKC_DEVICE float inverse(float x) {  // to one unit in the last place
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MKC_DEVICE float tanh(float x) { return ::tanhf(x); }
MKC_DEVICE float erf(float x) { return ::erff(x); }

// ---- loops
template <class F>
MKC_DEVICE void for_lanes(int begin, int end, F f) {
  for (int i = begin + lane(); i < end; i += lanes()) f(i);
}

// R::of folded over f(0..n) by the lanes of a team, in an order fixed by n alone; every lane gets the result
template <class R, class F>
MKC_DEVICE auto team_reduce(int n, F f) {
  using T = decltype(f(0));
  T acc = R::template identity<T>();
  for (int i = team_lane(); i < n; i += kTeamLanes) acc = R::of(acc, f(i));
  for (int width = kTeamLanes / 2; width > 0; width /= 2) acc = R::of(acc, __shfl_xor_sync(0xFFFFFFFFu, acc, width));
  return acc;
}
template <class F>
MKC_DEVICE void for_team(int n, F f) {
  for (int i = team_lane(); i < n; i += kTeamLanes) f(i);
}
// Of the ascending places where(k), k < n <= Depth, the first whose value is the fold of all; not-a-number equals itself.
template <class R, int Depth, class Where, class F>
MKC_DEVICE int team_first(int n, Where where, F value) {
  using T = decltype(value(0));
  constexpr int kAhead = Depth > 7 * kTeamLanes ? 8 : (Depth + kTeamLanes - 1) / kTeamLanes;
  const auto same = [](T a, T b) { return a == b || (a != a && b != b); };
  int best_place = 0x7FFFFFFF;  // nothing so far
  T best = R::template identity<T>();
  for (int begin = team_lane(); begin < n; begin += kAhead * kTeamLanes) {
    int place[kAhead];
    T held[kAhead];
    MKC_UNROLL
    for (int j = 0; j < kAhead; ++j) place[j] = where(begin + j * kTeamLanes < n ? begin + j * kTeamLanes : n - 1);
    asm volatile("" ::: "memory");  // all places are on their way before the first value is asked for
    MKC_UNROLL
    for (int j = 0; j < kAhead; ++j) held[j] = value(place[j]);
    MKC_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      const bool better = same(held[j], best) ? place[j] < best_place : same(R::of(held[j], best), held[j]);
      best = better ? held[j] : best, best_place = better ? place[j] : best_place;
    }
  }
  for (int width = kTeamLanes / 2; width > 0; width /= 2) {
    const T other = __shfl_xor_sync(0xFFFFFFFFu, best, width);
    const int place = __shfl_xor_sync(0xFFFFFFFFu, best_place, width);
    const bool better = same(other, best) ? place < best_place : same(R::of(other, best), other);
    best = better ? other : best, best_place = better ? place : best_place;
  }
  return best_place;
}
template <class F>
MKC_DEVICE void tile_loop(int rows, int width, F f) {
  for_lanes(0, rows * width, [&](int i) { f(i / width, i % width); });
}

// put(i, get(i)) for i = first, first + step, ... below n. What a lane gets for several i is on its way at once, which it
// would not be if a put, that may alias what is got next, stood between. Past the end the last is got again, and dropped.
template <class Get, class Put>
MKC_DEVICE void overlapped(int first, int step, int n, Get get, Put put) {
  constexpr int kAhead = 4;
  for (int begin = first; begin < n; begin += kAhead * step) {
    decltype(get(0)) held[kAhead];
    MKC_UNROLL
    for (int j = 0; j < kAhead; ++j) held[j] = get(begin + j * step < n ? begin + j * step : n - 1);
    MKC_NO_UNROLL  // expressions may be long: held values move up instead
    for (int i = begin; i < n && i < begin + kAhead * step; i += step) {
      put(i, held[0]);
      MKC_UNROLL
      for (int j = 1; j < kAhead; ++j) held[j - 1] = held[j];
    }
  }
}
template <class Get, class Put>
MKC_DEVICE void for_team(int n, Get get, Put put) {
  overlapped(team_lane(), kTeamLanes, n, get, put);
}
template <class Get, class Put>
MKC_DEVICE void tile_loop(int rows, int width, Get get, Put put) {
  const auto row = [=](int i) { return rows == 1 ? 0 : i / width; };
  overlapped(
      lane(), lanes(), rows * width, [&](int i) { return get(row(i), i - row(i) * width); },
      [&](int i, const auto& held) { put(row(i), i - row(i) * width, held); });
}

struct alignas(16) Quad {
  uint32 x, y, z, w;
};
// A team copies n elements; by 16 bytes where both rows begin at such a boundary.
template <class T>
MKC_DEVICE void copy_row(T* to, const T* from, int n) {
  constexpr int kElements = 16 / sizeof(T);
  int quads = 0;
  if ((reinterpret_cast<uint64>(to) | reinterpret_cast<uint64>(from)) % 16 == 0) quads = n / kElements;
  for_team(
      quads, [=](int i) { return reinterpret_cast<const Quad*>(from)[i]; },
      [=](int i, const Quad& held) { reinterpret_cast<Quad*>(to)[i] = held; });
  const int done = quads * kElements;
  for_team(n - done, [=](int i) { return from[done + i]; }, [=](int i, const T& held) { to[done + i] = held; });
}

// For M rows and `width` neighbouring columns: R::of folded over f(row, column, k), k < depth, then done(row, column, result).
// Blocks of k are folded on their own first, which keeps long sums accurate; the order is fixed by depth alone.
inline constexpr int kTeamColumns = kTeamLanes;  // as many columns as are worth handing to a team at once
template <class R, int M, class F, class Done>
MKC_DEVICE void column_reduce(int depth, int width, F f, Done done) {
  using T = decltype(f(0, 0, 0));
  constexpr int kBlock = 16;
  for (int column = team_lane(); column < width; column += kTeamLanes) {
    T total[M];
    MKC_UNROLL
    for (int i = 0; i < M; ++i) total[i] = R::template identity<T>();
    for (int block = 0; block < depth; block += kBlock) {
      const int end = depth - block < kBlock ? depth : block + kBlock;
      T acc[M];
      MKC_UNROLL
      for (int i = 0; i < M; ++i) acc[i] = R::template identity<T>();
      for (int k = block; k < end; ++k) {
        MKC_UNROLL
        for (int i = 0; i < M; ++i) acc[i] = R::of(acc[i], f(i, column, k));
      }
      MKC_UNROLL
      for (int i = 0; i < M; ++i) total[i] = R::of(total[i], acc[i]);
    }
    MKC_UNROLL
    for (int i = 0; i < M; ++i) done(i, column, total[i]);
  }
}

// a run of elements loaded at once
template <class T>
struct alignas(16) Chunk {
  static constexpr int kElements = 16 / sizeof(T);
  T element[kElements];
};

// M products that share the loads of a row of w: lanes take 16 bytes of it at a time, then fold in a fixed order
template <int M, int Depth, class X, class W>
MKC_DEVICE void row_dots(const X* x, long long row_step, const W* w, float (&sums)[M]) {
  constexpr int kElements = Chunk<W>::kElements;
  MKC_UNROLL
  for (int i = 0; i < M; ++i) sums[i] = 0.0f;
  int done = 0;
  if (reinterpret_cast<uint64>(w) % 16 == 0) {
    done = Depth / (kElements * kTeamLanes) * (kElements * kTeamLanes);
    for (int k = team_lane() * kElements; k < done; k += kTeamLanes * kElements) {
      const Chunk<W> chunk = *reinterpret_cast<const Chunk<W>*>(w + k);
      MKC_UNROLL
      for (int i = 0; i < M; ++i) {
        MKC_UNROLL
        for (int j = 0; j < kElements; ++j) sums[i] += float(widen(x[i * row_step + k + j])) * float(widen(chunk.element[j]));
      }
    }
  }
  for (int k = done + team_lane(); k < Depth; k += kTeamLanes) {
    MKC_UNROLL
    for (int i = 0; i < M; ++i) sums[i] += float(widen(x[i * row_step + k])) * float(widen(w[k]));
  }
  MKC_UNROLL
  for (int i = 0; i < M; ++i) {
    for (int width = kTeamLanes / 2; width > 0; width /= 2) sums[i] += __shfl_xor_sync(0xFFFFFFFFu, sums[i], width);
  }
}

// done(i, j, sum of x[i, :] w[j, :]) for M rows of x and `count` rows of w
inline constexpr int kTeamDots = 1;  // rows of w that are handed to a team at once
template <int M, int Depth, class X, class W, class Done>
MKC_DEVICE void wide_dots(const X* x, long long x_step, const W* w, long long w_step, int count, Done done) {
  for (int j = 0; j < count; ++j) {
    float sums[M];
    row_dots<M, Depth>(x, x_step, w + j * w_step, sums);
    if (!team_leader()) continue;
    MKC_UNROLL
    for (int i = 0; i < M; ++i) done(i, j, sums[i]);
  }
}

}  // namespace mkc

#include <mkc/arch/cuda_strip.cuh>
