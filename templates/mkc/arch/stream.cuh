// What streaming workers have on every GPU: shared memory by address, barriers of some warps, tensor cores, published words.
#pragma once

#include <mkc/view.cuh>

namespace mkc {

// ---- shared memory, by its 32-bit address
struct alignas(16) Four {
  float at[4];
};
MKC_DEVICE uint32 opaque(uint32 v) {  // kept in a register: the compiler would rather compute it again and again
  uint32 r;
  asm volatile("mov.u32 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}
MKC_DEVICE uint32 shared_address(const void* p) { return static_cast<uint32>(__cvta_generic_to_shared(p)); }
MKC_DEVICE Quad load_shared(uint32 a) {
  Quad v;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(a) : "memory");
  return v;
}
MKC_DEVICE Four load_shared_four(uint32 a) {
  Four v;
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.at[0]), "=f"(v.at[1]), "=f"(v.at[2]), "=f"(v.at[3])
               : "r"(a)
               : "memory");
  return v;
}
MKC_DEVICE float load_shared_float(uint32 a) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(a) : "memory");
  return v;
}
MKC_DEVICE uint32 load_shared_word(uint32 a) {
  uint32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(a) : "memory");
  return v;
}
MKC_DEVICE uint32 load_acquire_shared(uint32 a) {  // pairs with `store_release_shared`
  uint32 v;
  asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(v) : "r"(a) : "memory");
  return v;
}
MKC_DEVICE void store_release_shared(uint32 a, uint32 v) { asm volatile("st.release.cta.shared.u32 [%0], %1;" ::"r"(a), "r"(v) : "memory"); }
MKC_DEVICE void store_shared(uint32 a, Quad v) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
MKC_DEVICE void store_shared(uint32 a, float v) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(a), "f"(v) : "memory"); }
MKC_DEVICE void store_shared(uint32 a, uint32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(a), "r"(v) : "memory"); }

struct alignas(8) Pair {
  uint32 x, y;
};
MKC_DEVICE Pair load_shared_pair(uint32 a) {
  Pair v;
  asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(a) : "memory");
  return v;
}
MKC_DEVICE void store_shared(uint32 a, Pair v) { asm volatile("st.shared.v2.b32 [%0], {%1,%2};" ::"r"(a), "r"(v.x), "r"(v.y) : "memory"); }
MKC_DEVICE void store_shared(uint32 a, const Four& v) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(a), "f"(v.at[0]), "f"(v.at[1]), "f"(v.at[2]), "f"(v.at[3]) : "memory");
}

// ---- barriers among the warps of a block: `id` from 1 to 15, `threads` of those who arrive and those who wait together
MKC_DEVICE void meet(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
MKC_DEVICE bool meet_any(int id, int threads, bool mine) {  // true for all of them when it is for one
  uint32 found;
  asm volatile("{\n.reg .pred p, q;\nsetp.ne.u32 p, %3, 0;\nbar.red.or.pred q, %1, %2, p;\nselp.u32 %0, 1, 0, q;\n}"
               : "=r"(found)
               : "r"(id), "r"(threads), "r"(static_cast<uint32>(mine))
               : "memory");
  return found;
}
MKC_DEVICE void arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---- barriers in shared memory; arch/sm80.cuh and arch/sm90.cuh wait at them
MKC_DEVICE void barrier_init(uint32 b, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(b), "r"(count)); }
MKC_DEVICE void barrier_arrive(uint32 b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(b) : "memory"); }
MKC_DEVICE bool barrier_tested(uint32 b, uint32 parity) {  // a look, without waiting
  uint32 done;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(b), "r"(parity)
               : "memory");
  return done;
}

// ---- copies
MKC_DEVICE uint64 evict_last() {
  uint64 policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
MKC_DEVICE uint64 evict_first() {
  uint64 policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
MKC_DEVICE void copy_weights(uint32 to, const void* from) {  // 16 bytes that nobody else reads, awaited by `await_copies`
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "l"(evict_first()) : "memory");
}
MKC_DEVICE void copy_quad(uint32 to, const void* from) {  // 16 bytes that others read, too
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
MKC_DEVICE void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }  // of a group
template <int Groups>
MKC_DEVICE void await_copies() {  // of this thread, but for so many groups that were begun last
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}
MKC_DEVICE void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }  // of this thread
MKC_DEVICE void fetch_ahead(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }  // a hint

MKC_DEVICE uint32 cycles() {
  uint32 now;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(now));
  return now;
}

// ---- tensor cores: c += a b for bf16 a [16, 16] and b [16, 8], in the order of mma.m16n8k16
MKC_DEVICE void multiply(float (&c)[4], const Quad& a, uint32 b0, uint32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
// the same for rows 0 to 7 of a; the others are zero
MKC_DEVICE void multiply_upper(float (&c)[2], uint32 a0, uint32 a2, uint32 b0, uint32 b1) {
  float none0, none1;
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%9,%5,%9}, {%6,%7}, {%0,%1,%8,%8};"
      : "+f"(c[0]), "+f"(c[1]), "=f"(none0), "=f"(none1)
      : "r"(a0), "r"(a2), "r"(b0), "r"(b1), "f"(0.0f), "r"(0));
}

// ---- pairs of bf16 in a register
MKC_DEVICE float low(uint32 pair) { return __uint_as_float(pair << 16); }
MKC_DEVICE float high(uint32 pair) { return __uint_as_float(pair & 0xFFFF0000u); }
MKC_DEVICE uint32 pair_of(float low, float high) {
  uint32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
MKC_DEVICE uint32 product(uint32 a, uint32 b) {  // of each half, rounded once
  uint32 pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(0x80008000u));  // plus -0: only Hopper can multiply alone
  return pair;
}
MKC_DEVICE Quad product(const Quad& a, const Quad& b) { return {product(a.x, b.x), product(a.y, b.y), product(a.z, b.z), product(a.w, b.w)}; }
MKC_DEVICE float rounded(float v) { return low(pair_of(v, 0.0f)); }
MKC_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MKC_DEVICE float log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MKC_DEVICE void eight(const Quad& q, float (&v)[8]) {
  const uint32 pair[4] = {q.x, q.y, q.z, q.w};
  MKC_UNROLL
  for (int i = 0; i < 4; ++i) v[2 * i] = low(pair[i]), v[2 * i + 1] = high(pair[i]);
}
MKC_DEVICE Quad eight(const float (&v)[8]) {
  return {pair_of(v[0], v[1]), pair_of(v[2], v[3]), pair_of(v[4], v[5]), pair_of(v[6], v[7])};
}
MKC_DEVICE Four four(const Pair& p) { return {low(p.x), high(p.x), low(p.y), high(p.y)}; }
MKC_DEVICE Pair four(const Four& v) { return {pair_of(v.at[0], v.at[1]), pair_of(v.at[2], v.at[3])}; }
template <uint32 Selector>
MKC_DEVICE uint32 permuted(uint32 a, uint32 b) {  // bytes of a and b; where it stands is when it is done
  uint32 r;
  asm volatile("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "n"(Selector));
  return r;
}
// Memory that other workers may write: never through .nc.
MKC_DEVICE Quad load_quad(const void* p) {
  Quad v;
  asm volatile("ld.global.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
MKC_DEVICE Pair load_pair(const void* p) {
  Pair v;
  asm volatile("ld.global.v2.b32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
  return v;
}
MKC_DEVICE uint32 load_single(const void* p) {
  uint32 v;
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

// ---- published words: 8 bytes that are written and read as one, and say themselves which use they belong to.
// Four bf16 travel scaled by 2^-63. Then |v| < 2^64 leaves bit 14 of each clear, and the use count takes the place of
// that bit in two of them: two bits, for a word is only ever of this use or of the one before. A float travels beside
// the full count. Stores and loads are relaxed: a word validates itself, and nothing else is ordered by it.
constexpr float kScaled = 1.0842021724855044e-19f, kUnscaled = 9.223372036854775808e18f;  // 2^-63, 2^63
constexpr uint32 kUseBits = 0x40004000u;
constexpr float kLeast = -1e30f;  // a score that counts for nothing, and that words can carry

MKC_DEVICE uint32 use_bits(uint32 use) { return (use & 1) << 14 | (use & 2) << 29; }
struct alignas(16) TwoWords {
  uint64 first, second;
};
MKC_DEVICE TwoWords load_words(const uint64* p) {
  TwoWords v;
  asm volatile("ld.relaxed.gpu.global.v2.b64 {%0,%1}, [%2];" : "=l"(v.first), "=l"(v.second) : "l"(p) : "memory");
  return v;
}
MKC_DEVICE uint64 load_word(const uint64* p) {
  uint64 v;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
MKC_DEVICE void store_word(uint64* p, uint64 v) { asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(p), "l"(v) : "memory"); }
MKC_DEVICE bool is_of(uint64 word, uint32 bits) { return ((static_cast<uint32>(word) ^ bits) & kUseBits) == 0; }
MKC_DEVICE bool is_of(const TwoWords& w, uint32 bits) { return is_of(w.first, bits) && is_of(w.second, bits); }
MKC_DEVICE Quad values(const TwoWords& w) {  // still scaled
  return {static_cast<uint32>(w.first) & ~kUseBits, static_cast<uint32>(w.first >> 32) & ~kUseBits,
          static_cast<uint32>(w.second) & ~kUseBits, static_cast<uint32>(w.second >> 32) & ~kUseBits};
}
// Values that do not fit set a bit that must be clear; the caller looks at `misfit`.
MKC_DEVICE uint64 word_of(const Four& v, uint32 bits, uint32& misfit) {
  const uint32 front = pair_of(v.at[0] * kScaled, v.at[1] * kScaled), back = pair_of(v.at[2] * kScaled, v.at[3] * kScaled);
  misfit |= (front | back) & kUseBits;
  return static_cast<uint64>((back & ~kUseBits) | bits) << 32 | ((front & ~kUseBits) | bits);
}
// The same of the values of four neighbouring lanes, for the first of them. Called by a whole warp.
MKC_DEVICE uint64 word_of_four(float v, uint32 bits, bool counts, uint32& misfit) {
  v *= kScaled;
  const uint32 two = pair_of(v, __shfl_down_sync(0xFFFFFFFFu, v, 1));
  if (counts) misfit |= (two & 0xFFFFu) & kUseBits;
  const uint32 front = (two & ~kUseBits) | bits, back = __shfl_down_sync(0xFFFFFFFFu, front, 2);
  return static_cast<uint64>(back) << 32 | front;
}
MKC_DEVICE Pair values(uint64 word) { return {static_cast<uint32>(word) & ~kUseBits, static_cast<uint32>(word >> 32) & ~kUseBits}; }
MKC_DEVICE uint64 word_of(float v, uint32 use) { return static_cast<uint64>(__float_as_uint(v)) << 32 | use; }
MKC_DEVICE float value_of(uint64 word) { return __uint_as_float(static_cast<uint32>(word >> 32)); }  // of a float beside its use

// A tensor of published words, as the bodies see it: its elements are only ever read and written by the word.
template <class T, class S, class D>
struct Words;
template <class T, int... Extents, long long... Steps>
struct Words<T, Shape<Extents...>, Stride<Steps...>> {
  using Element = T;
  uint64* data;
  MKC_DEVICE explicit Words(void* pointer) : data(static_cast<uint64*>(in_global(pointer))) {}
};
template <class V>
constexpr bool kIsPublished = false;
template <class T, class S, class D>
constexpr bool kIsPublished<Words<T, S, D>> = true;

}  // namespace mkc
