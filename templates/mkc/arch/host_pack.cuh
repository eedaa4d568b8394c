// Sixteen values at a time: how bodies on the host widen, multiply and fold.
#pragma once

namespace mkc {

// sixteen values in a register, or in as many as this machine needs
using Pack = float __attribute__((vector_size(64)));
using Words = uint16_t __attribute__((vector_size(32)));
using WideWords = uint32 __attribute__((vector_size(64)));
// the same where they lie in memory, aligned as their elements are; clang takes this only before the `=`
using LoosePack __attribute__((aligned(4), may_alias)) = Pack;
using LooseWords __attribute__((aligned(2), may_alias)) = Words;
using LooseWideWords __attribute__((aligned(2), may_alias)) = WideWords;
inline constexpr int kPack = 16;

template <class T>
MKC_DEVICE Pack pack(const T* p) {
  Pack values;
  for (int j = 0; j < kPack; ++j) values[j] = static_cast<float>(p[j]);
  return values;
}
MKC_DEVICE Pack pack(const float* p) { return *reinterpret_cast<const LoosePack*>(p); }
MKC_DEVICE WideWords wide_words(const void* p) {
  return __builtin_convertvector(*static_cast<const LooseWords*>(p), WideWords);
}
MKC_DEVICE Pack pack(const bf16* p) { return reinterpret_cast<Pack>(wide_words(p) << 16); }
MKC_DEVICE Pack pack(const f16* p) {  // not by the compiler's own conversion, which takes one element at a time
#if defined(__AVX512F__)
  Pack values;
  asm("vcvtph2ps %1, %0" : "=v"(values) : "vm"(*reinterpret_cast<const LooseWords*>(p)));
  return values;
#else
  const WideWords bits = wide_words(p), magnitude = (bits & 0x7FFF) << 13;
  const WideWords finite = reinterpret_cast<WideWords>(reinterpret_cast<Pack>(magnitude) * 0x1p112f);
  const WideWords all = magnitude < (0x7C00u << 13) ? finite : magnitude | 0x7F800000;
  return reinterpret_cast<Pack>(all | (bits & 0x8000) << 16);
#endif
}
MKC_DEVICE void unpack(Pack values, float* p) { *reinterpret_cast<LoosePack*>(p) = values; }

// A pack of sums takes in the products of kElements elements, two to a sum where 16 bits lie side by side.
template <class X, class W>
struct Products {
  static constexpr int kElements = kPack;
  MKC_DEVICE static void add(Pack& sums, const X* x, const W* w) { sums += pack(x) * pack(w); }
};
template <>
struct Products<bf16, bf16> {
  static constexpr int kElements = 2 * kPack;
  MKC_DEVICE static void add(Pack& sums, const bf16* x, const bf16* w) {
    const WideWords a = *reinterpret_cast<const LooseWideWords*>(x);
#if defined(__AVX512BF16__)
    Pack held = sums;  // g++ keeps in memory what assembly takes by reference
    asm("vdpbf16ps %2, %1, %0" : "+v"(held) : "v"(a), "vm"(*reinterpret_cast<const LooseWideWords*>(w)));
    sums = held;
#else
    const WideWords b = *reinterpret_cast<const LooseWideWords*>(w);
    sums += reinterpret_cast<Pack>(a << 16) * reinterpret_cast<Pack>(b << 16);
    sums += reinterpret_cast<Pack>(a & 0xFFFF0000u) * reinterpret_cast<Pack>(b & 0xFFFF0000u);
#endif
  }
};

struct Add {
  template <class T>
  MKC_DEVICE static T of(T a, T b) {
    return a + b;
  }
};
struct Highest {
  template <class T>
  MKC_DEVICE static T of(T a, T b) {
    return a < b ? b : a;
  }
};
// Runs of 2 N elements are folded to N: those of `a`, then those of `b`.
template <class R, int N>
MKC_DEVICE Pack fold_runs(Pack a, Pack b) {
#define MKC_RUN(i) ((i) / N * 2 * N + (i) % N)
#define MKC_RUNS(half)                                                                                          \
  half + MKC_RUN(0), half + MKC_RUN(1), half + MKC_RUN(2), half + MKC_RUN(3), half + MKC_RUN(4),                \
      half + MKC_RUN(5), half + MKC_RUN(6), half + MKC_RUN(7), half + MKC_RUN(8), half + MKC_RUN(9),            \
      half + MKC_RUN(10), half + MKC_RUN(11), half + MKC_RUN(12), half + MKC_RUN(13), half + MKC_RUN(14),       \
      half + MKC_RUN(15)
  return R::of(__builtin_shufflevector(a, b, MKC_RUNS(0)), __builtin_shufflevector(a, b, MKC_RUNS(N)));
#undef MKC_RUNS
#undef MKC_RUN
}
// Four folds at once, and sixteen: element n is that of the nth.
template <class R>
MKC_DEVICE Pack fold_four(Pack a, Pack b, Pack c, Pack d) {
  const Pack fours = fold_runs<R, 4>(fold_runs<R, 8>(a, b), fold_runs<R, 8>(c, d)), twos = fold_runs<R, 2>(fours, fours);
  return fold_runs<R, 1>(twos, twos);
}
template <class R>
MKC_DEVICE Pack fold_sixteen(const Pack (&p)[kPack]) {
  Pack fours[4];
  for (int n = 0; n < 4; ++n)
    fours[n] = fold_runs<R, 4>(fold_runs<R, 8>(p[4 * n], p[4 * n + 1]), fold_runs<R, 8>(p[4 * n + 2], p[4 * n + 3]));
  return fold_runs<R, 1>(fold_runs<R, 2>(fours[0], fours[1]), fold_runs<R, 2>(fours[2], fours[3]));
}

}  // namespace mkc
