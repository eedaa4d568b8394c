// Tensors as the bodies see them: a pointer whose type knows shape and strides.
#pragma once

#include <mkc/abi.cuh>
#include <mkc/functions.cuh>

namespace mkc {

template <int... Extents>
struct Shape {};
template <long long... Steps>
struct Stride {};

// loads widen 16-bit floats to float, stores round to nearest even
template <class T>
MKC_DEVICE auto load(const T& v) {
  return widen(v);
}
template <class V>
MKC_DEVICE void store(bf16& out, V v) {
  narrow(static_cast<float>(v), out);
}
template <class V>
MKC_DEVICE void store(f16& out, V v) {
  narrow(static_cast<float>(v), out);
}
template <class T, class V>
MKC_DEVICE void store(T& out, V v) {
  out = static_cast<T>(v);
}

// The value of that number. A fold, since device code cannot look into an array that belongs to a type.
template <class... Values>
MKC_CONSTEXPR long long nth(int number, Values... values) {
  long long found = 0;
  ((number-- == 0 ? void(found = values) : void()), ...);
  return found;
}

template <class T, class S, class D>
struct View;

template <class T, int... Extents, long long... Steps>
struct View<T, Shape<Extents...>, Stride<Steps...>> {
  using Element = T;
  static constexpr int kRank = sizeof...(Extents);
  T* data;

  MKC_DEVICE explicit View(void* pointer) : data(static_cast<T*>(in_global(pointer))) {}
  static MKC_CONSTEXPR int extent(int dim) { return static_cast<int>(nth(dim, Extents...)); }
  static MKC_CONSTEXPR long long step(int dim) { return nth(dim, Steps...); }
  template <class... I>
  MKC_DEVICE T& operator()(I... index) const {
    return data[(0ll + ... + (static_cast<long long>(index) * Steps))];
  }
  MKC_DEVICE T& at(const int* index) const {
    long long offset = 0;
    ((offset += *index++ * Steps), ...);
    return data[offset];
  }
};

// Several tensors read at the same place: the operands of an expression, or the further operands of an epilogue.
template <class... Views>
struct Each;
template <>
struct Each<> {
  struct Values {
    template <class Expr, class... Others>
    MKC_DEVICE auto of(Others... others) const {
      return Expr::of(others...);
    }
  };
  MKC_DEVICE explicit Each(void* const*) {}
  template <class At>
  MKC_DEVICE Values read(At) const {
    return {};
  }
  template <class Expr, class At, class... Values>
  MKC_DEVICE auto of(At, Values... values) const {
    return Expr::of(values...);
  }
};
template <class First, class... Rest>
struct Each<First, Rest...> {
  struct Values {  // elements that have been read, to be used later
    typename First::Element first;
    typename Each<Rest...>::Values rest;
    template <class Expr, class... Others>
    MKC_DEVICE auto of(Others... others) const {
      return rest.template of<Expr>(others..., load(first));
    }
  };
  First first;
  Each<Rest...> rest;
  MKC_DEVICE explicit Each(void* const* p) : first(p[0]), rest(p + 1) {}
  template <class At>
  MKC_DEVICE Values read(At at) const {
    return {at(first), rest.read(at)};
  }
  // Expr over `values` and then this pack's elements, each found by `at(view)`
  template <class Expr, class At, class... Values>
  MKC_DEVICE auto of(At at, Values... values) const {
    return rest.template of<Expr>(at, values..., load(at(first)));
  }
};

// done(i, j, sum_k x[i, k] w[j, k]) for M rows of x and `count` rows of w that lie so many steps apart, once by each team.
// Contiguous depths go through `wide_dots`, which each machine writes for its own loads.
template <int M, int Depth, long long XStep, long long WStep, class X, class W, class Done>
MKC_DEVICE void dots(const X* x, long long x_step, const W* w, long long w_step, int count, Done done) {
  if constexpr (XStep == 1 && WStep == 1) {
    wide_dots<M, Depth>(x, x_step, w, w_step, count, done);
  } else {
    for (int j = 0; j < count; ++j) {
      MKC_UNROLL
      for (int i = 0; i < M; ++i) {
        const auto product = [=](int k) {
          return float(load(x[i * x_step + k * XStep])) * float(load(w[j * w_step + k * WStep]));
        };
        const float sum = team_reduce<fold::sum>(Depth, product);
        if (team_leader()) done(i, j, sum);
      }
    }
  }
}

}  // namespace mkc
