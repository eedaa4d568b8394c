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

template <auto Value>
struct Const {
  template <class... A>
  MKC_DEVICE static auto of(A...) {
    return Value;
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
