// Elementwise expressions as types: Call<fn::mul, Call<fn::silu, Arg<0>>, Const<2.0f>>::of(a, ...).
#pragma once

#include <mkc/functions.cuh>

namespace mkc {

template <int I>
struct Arg {
  template <class First, class... Rest>
  MKC_DEVICE static auto of(First first, Rest... rest) {
    if constexpr (I == 0) return first;
    else return Arg<I - 1>::of(rest...);
  }
};

template <class Expr>
constexpr bool kIsFirst = false;  // whether it is its first operand, unchanged
template <>
constexpr bool kIsFirst<Arg<0>> = true;

// A number as a template argument: by its bits, for clang before 18 takes no float there.
struct Number {
  enum Type { kBool, kInt64, kFloat } type;
  int64 bits;
  MKC_CONSTEXPR Number(Type t, int64 b) : type(t), bits(b) {}  // nvcc writes numbers out like this
  MKC_CONSTEXPR Number(bool v) : Number(kBool, v) {}
  MKC_CONSTEXPR Number(int64 v) : Number(kInt64, v) {}
  MKC_CONSTEXPR Number(float v) : Number(kFloat, __builtin_bit_cast(uint32, v)) {}
};
template <Number N>
struct Const {
  template <class... A>
  MKC_DEVICE static auto of(A...) {
    if constexpr (N.type == Number::kFloat) return __builtin_bit_cast(float, static_cast<uint32>(N.bits));
    else if constexpr (N.type == Number::kInt64) return N.bits;
    else return N.bits != 0;
  }
};

template <class F, class... Args>
struct Call {
  template <class... A>
  MKC_DEVICE static auto of(A... a) {
    return F::of(Args::of(a...)...);
  }
};

}  // namespace mkc
