// The host as a GPU: a worker is one thread, a team is that thread, and SIMD comes from independent accumulators.
#pragma once

#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define MKC_DEVICE inline __attribute__((always_inline))
#define MKC_BODY inline __attribute__((noinline))  // one function each: a page in one function compiles badly
#define MKC_NOINLINE inline __attribute__((noinline))
#define MKC_CONSTEXPR constexpr  // computed by the compiler
#define MKC_UNROLL _Pragma("GCC unroll 16")

namespace mkc {

using int32 = int32_t;
using int64 = long long;
using uint8 = uint8_t;
using uint32 = uint32_t;
using uint64 = unsigned long long;

inline constexpr float kInf = __builtin_huge_valf();
inline constexpr float kNan = __builtin_nanf("");

// ---- who am I: `lanes` threads run a task together, in `teams` that each reduce on their own
inline constexpr int kTeamLanes = 1;
MKC_DEVICE int lane() { return 0; }
MKC_DEVICE int lanes() { return 1; }
MKC_DEVICE int team() { return 0; }
MKC_DEVICE int teams() { return 1; }
MKC_DEVICE int team_lane() { return 0; }
MKC_DEVICE bool team_leader() { return true; }
MKC_DEVICE void sync() {}
template <class T>
MKC_DEVICE T broadcast(T value) {
  return value;
}

// ---- atomics
MKC_DEVICE uint32 load_acquire(const uint32* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
MKC_DEVICE uint32 load_relaxed(const uint32* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
MKC_DEVICE void store_relaxed(uint32* p, uint32 v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
MKC_DEVICE void store_release(uint32* p, uint32 v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
MKC_DEVICE void add_release(uint32* p, uint32 v) { __atomic_fetch_add(p, v, __ATOMIC_RELEASE); }
MKC_DEVICE uint32 fetch_add(uint32* p, uint32 v) { return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL); }
MKC_DEVICE bool claim(uint32* p) {  // true for the first caller only
  uint32 none = 0;
  return __atomic_compare_exchange_n(p, &none, 1u, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

MKC_DEVICE void* in_global(void* p) { return p; }

// ---- time
MKC_DEVICE uint64 clock_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64>(now.tv_sec) * 1000000000ull + static_cast<uint64>(now.tv_nsec);
}
// Some 12 us of spinning, then let other threads have the core: the one we wait for may be among them. Sooner would lose
// the core for milliseconds to busy strangers, at waits that tasks of uneven length make.
MKC_DEVICE void pause(uint32 spins) {
  if (spins < 512) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  } else {
    sched_yield();
  }
}

// ---- 16-bit floats
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
MKC_DEVICE float bits_to_float(uint32 bits) { return __builtin_bit_cast(float, bits); }
MKC_DEVICE uint32 float_to_bits(float value) { return __builtin_bit_cast(uint32, value); }
MKC_DEVICE float widen(bf16 v) { return bits_to_float(static_cast<uint32>(v.bits) << 16); }
// The exponent is moved by a multiplication, which also makes subnormals right; loops over this become SIMD.
MKC_DEVICE float widen(f16 v) {
  const float moved = bits_to_float((v.bits & 0x7FFFu) << 13) * 0x1p112f;
  const uint32 special = moved >= 65536.0f ? 0x7F800000u : 0u;  // infinite or not a number
  return bits_to_float(float_to_bits(moved) | special | (v.bits & 0x8000u) << 16);
}
template <class T>
MKC_DEVICE T widen(T v) {
  return v;
}
MKC_DEVICE void narrow(float v, bf16& out) {
  const uint32 bits = float_to_bits(v);
  const uint32 rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(v != v ? 0x7FC0u : rounded);
}
// Rounded by hand, so that loops become SIMD; an addition rounds what will be subnormal. Clang before 15 has no _Float16.
MKC_DEVICE void narrow(float v, f16& out) {
  const uint32 bits = float_to_bits(v), magnitude = bits & 0x7FFFFFFFu;
  const uint32 normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32 tiny = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3F000000u;
  const uint32 huge = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;  // not a number, or infinite
  const uint32 rounded = magnitude < 0x38800000u ? tiny : (magnitude < 0x477FF000u ? normal : huge);
  out.bits = static_cast<uint16_t>(rounded | (bits >> 16 & 0x8000u));
}

// ---- mathematics, written so that loops over it become SIMD
MKC_DEVICE float sqrt(float x) { return __builtin_sqrtf(x); }
MKC_DEVICE float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
MKC_DEVICE float floor(float x) { return __builtin_floorf(x); }
MKC_DEVICE float ceil(float x) { return __builtin_ceilf(x); }
MKC_DEVICE float pow(float x, float y) { return __builtin_powf(x, y); }
MKC_DEVICE float log(float x) { return __builtin_logf(x); }
MKC_DEVICE float abs(float x) { return __builtin_fabsf(x); }
MKC_DEVICE double rint(double x) { return __builtin_rint(x); }
MKC_DEVICE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

// e^x = 2^n e^r with |r| <= ln2/2; a degree-6 minimax polynomial after Cephes expf
MKC_DEVICE float exp(float x) {
  const float clamped = x < -104.0f ? -104.0f : (x > 89.0f ? 89.0f : x);
  const float n = __builtin_rintf(clamped * 1.44269504088896341f);
  float r = __builtin_fmaf(n, -0.693359375f, clamped);
  r = __builtin_fmaf(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = __builtin_fmaf(p, r, 1.3981999507e-3f);
  p = __builtin_fmaf(p, r, 8.3334519073e-3f);
  p = __builtin_fmaf(p, r, 4.1665795894e-2f);
  p = __builtin_fmaf(p, r, 1.6666665459e-1f);
  p = __builtin_fmaf(p, r, 5.0000001201e-1f);
  p = __builtin_fmaf(p, r * r, r) + 1.0f;
  // two factors, so that results below the normal range are still rounded once and 2^128 is reached
  const int half = static_cast<int>(n) / 2, rest = static_cast<int>(n) - half;
  const float scaled = p * bits_to_float(static_cast<uint32>(half + 127) << 23) * bits_to_float(static_cast<uint32>(rest + 127) << 23);
  return x != x ? x : scaled;
}

// after Cephes tanhf: a polynomial near zero, exponentials elsewhere
MKC_DEVICE float inverse(float x) { return 1.0f / x; }
MKC_DEVICE float tanh(float x) {
  const float a = abs(x), z = x * x;
  float p = -5.70498872745e-3f;
  p = __builtin_fmaf(p, z, 2.06390887954e-2f);
  p = __builtin_fmaf(p, z, -5.37397155531e-2f);
  p = __builtin_fmaf(p, z, 1.33314422036e-1f);
  p = __builtin_fmaf(p, z, -3.33332819422e-1f);
  const float near = __builtin_fmaf(p * z, x, x);
  const float far = 1.0f - 2.0f / (exp(2.0f * a) + 1.0f);
  return a < 0.625f ? near : __builtin_copysignf(far, x);
}

// a rational approximation on [-4, 4], exact to a few units in the last place
MKC_DEVICE float erf(float value) {
  const float x = value < -4.0f ? -4.0f : (value > 4.0f ? 4.0f : value), z = x * x;
  float p = -2.72614225801306e-10f;
  p = __builtin_fmaf(p, z, 2.77068142495902e-08f);
  p = __builtin_fmaf(p, z, -2.10102402082508e-06f);
  p = __builtin_fmaf(p, z, -5.69250639462346e-05f);
  p = __builtin_fmaf(p, z, -7.34990630326855e-04f);
  p = __builtin_fmaf(p, z, -2.95459980854025e-03f);
  p = __builtin_fmaf(p, z, -1.60960333262415e-02f);
  float q = -1.45660718464996e-05f;
  q = __builtin_fmaf(q, z, -2.13374055278905e-04f);
  q = __builtin_fmaf(q, z, -1.68282697438203e-03f);
  q = __builtin_fmaf(q, z, -7.37332916720468e-03f);
  q = __builtin_fmaf(q, z, -1.42647390514189e-02f);
  return x * p / q;
}

// ---- loops
template <class F>
MKC_DEVICE void for_lanes(int begin, int end, F f) {
#pragma GCC ivdep
  for (int i = begin; i < end; ++i) f(i);
}

// R::of folded over f(0..n): 32 independent accumulators, in an order fixed by n alone
template <class R, class F>
MKC_DEVICE auto team_reduce(int n, F f) {
  using T = decltype(f(0));
  constexpr int kWays = 32;
  T acc[kWays];
  for (int j = 0; j < kWays; ++j) acc[j] = R::template identity<T>();
  int i = 0;
  for (; i + kWays <= n; i += kWays) {
#pragma GCC ivdep
    for (int j = 0; j < kWays; ++j) acc[j] = R::of(acc[j], f(i + j));
  }
  for (int j = 0; i + j < n; ++j) acc[j] = R::of(acc[j], f(i + j));
  for (int width = kWays / 2; width > 0; width /= 2)
    for (int j = 0; j < width; ++j) acc[j] = R::of(acc[j], acc[j + width]);
  return acc[0];
}
// Of the ascending places where(k), k < n <= Depth, the first whose value is the fold of all; not-a-number equals itself.
// A pass for the value and a pass for the place.
struct Least {
  template <class T>
  MKC_DEVICE static T identity() {
    return 0x7FFFFFFF;
  }
  MKC_DEVICE static int of(int a, int b) { return b < a ? b : a; }
};
template <class R, int Depth, class Where, class F>
MKC_DEVICE int team_first(int n, Where where, F value) {
  const auto best = team_reduce<R>(n, [=](int k) { return value(where(k)); });
  return team_reduce<Least>(n, [=](int k) {
    const int place = where(k);
    const auto v = value(place);
    return v == best || (best != best && v != v) ? place : 0x7FFFFFFF;
  });
}
template <class F>
MKC_DEVICE void for_team(int n, F f) {
  for_lanes(0, n, f);
}
template <class F>
MKC_DEVICE void tile_loop(int rows, int width, F f) {
  for (int row = 0; row < rows; ++row) {
#pragma GCC ivdep
    for (int column = 0; column < width; ++column) f(row, column);
  }
}
// put(i, get(i)): machines that wait for loads get ahead here
template <class Get, class Put>
MKC_DEVICE void for_team(int n, Get get, Put put) {
  for_team(n, [=](int i) { put(i, get(i)); });
}
template <class Get, class Put>
MKC_DEVICE void tile_loop(int rows, int width, Get get, Put put) {
  tile_loop(rows, width, [=](int row, int column) { put(row, column, get(row, column)); });
}
template <class T>
MKC_DEVICE void copy_row(T* to, const T* from, int n) {
  memcpy(to, from, n * sizeof(T));
}

// For M rows and `width` neighbouring columns: R::of folded over f(row, column, k), k < depth, then done(row, column, result).
// Blocks of k are folded on their own first, which keeps long sums accurate; the order is fixed by depth alone.
inline constexpr int kTeamColumns = 256;  // as many columns as are worth handing to a team at once
template <class R, int M, int Ways, class F, class Done>
MKC_DEVICE void column_block(int depth, int begin, F f, Done done) {
  using T = decltype(f(0, 0, 0));
  constexpr int kBlock = 16;
  T total[M][Ways], acc[M][Ways];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < Ways; ++j) total[i][j] = R::template identity<T>();
  for (int block = 0; block < depth; block += kBlock) {
    const int end = depth - block < kBlock ? depth : block + kBlock;
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < Ways; ++j) acc[i][j] = R::template identity<T>();
    for (int k = block; k < end; ++k)
      for (int i = 0; i < M; ++i) {
#pragma GCC ivdep
        for (int j = 0; j < Ways; ++j) acc[i][j] = R::of(acc[i][j], f(i, begin + j, k));
      }
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < Ways; ++j) total[i][j] = R::of(total[i][j], acc[i][j]);
  }
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < Ways; ++j) done(i, begin + j, total[i][j]);
}
template <class R, int M, class F, class Done>
MKC_DEVICE void column_reduce(int depth, int width, F f, Done done) {
  constexpr int kWays = M == 1 ? 64 : 32;
  int column = 0;
  for (; column + kWays <= width; column += kWays) column_block<R, M, kWays>(depth, column, f, done);
  for (; column + 8 <= width; column += 8) column_block<R, M, 8>(depth, column, f, done);
  for (; column < width; ++column) column_block<R, M, 1>(depth, column, f, done);
}

}  // namespace mkc

#include <mkc/arch/host_pack.cuh>

#include <mkc/arch/host_dots.cuh>
#include <mkc/arch/host_strip.cuh>
