// Further operands of a stream's epilogue: of one output, or of four neighbouring ones
#pragma once

#include <mkc/worker_stream.cuh>

namespace mkc {

// Elements of an extra operand, [1, N], or of a row of one, from n on; n is a multiple of Each, 1 or 4. What has been asked for is on its
// way, and there once it is awaited.
template <int Each, class V>
struct SomeOf;
template <int Each, class T, int M, int N, long long S0, long long S1>
struct SomeOf<Each, View<T, Shape<M, N>, Stride<S0, S1>>> {
  float v[Each] = {};
  T found[Each];
  MKC_DEVICE void ask(void* p, int n, int row) {
    const View<T, Shape<M, N>, Stride<S0, S1>> view(p);
    MKC_UNROLL
    for (int i = 0; i < Each; ++i) found[i] = view(row, N % Each == 0 || n + i < N ? n + i : N - 1);
  }
  template <class Talk>
  MKC_DEVICE void await(Talk&, void*, int, int) {
    MKC_UNROLL
    for (int i = 0; i < Each; ++i) v[i] = float(load(found[i]));
  }
};
template <int Each, class S, long long Step>
struct SomeOf<Each, Words<bf16, S, Stride<Step, 1>>> {
  float v[Each] = {};
  uint64 word;
  MKC_DEVICE static const uint64* place(void* p, int n, int row) {
    return Words<bf16, S, Stride<Step, 1>>(p).data + row * (Step / 4) + n / 4;
  }
  MKC_DEVICE void ask(void* p, int n, int row) { word = load_word(place(p, n, row)); }
  template <class Talk>
  MKC_DEVICE void await(Talk& talk, void* p, int n, int row) {
    const uint32 bits = use_bits(talk.use);
    talk.poll([&] { return is_of(word, bits) || is_of(word = load_word(place(p, n, row)), bits); });
    const Pair two = values(word);
    if constexpr (Each == 1) {
      const uint32 pair = n & 2 ? two.y : two.x;
      v[0] = (n & 1 ? high(pair) : low(pair)) * kUnscaled;
    } else {
      const Four all = four(two);
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) v[i] = all.at[i] * kUnscaled;
    }
  }
};

// What is awaited as soon as it has been asked for.
template <class Some, class Talk, class Operands>
MKC_DEVICE void read_at_once(Some& some, Talk& talk, Operands p, int n, int row = 0) {
  some.ask(p, n, row), some.await(talk, p, n, row);
}

// The extra operand that comes in pieces, one beside the other: the views after the first `Skip`.
template <int Each, int Skip, class... V>
struct Pieces {
  float v[Each] = {};
  MKC_DEVICE void ask(void* const*, int, int = 0) {}
  template <class Talk>
  MKC_DEVICE void await(Talk& talk, void* const* p, int n, int row = 0) {
    (read_piece<V>(talk, *p++, n, row), ...);
  }
  template <class Expr, class... Values>
  MKC_DEVICE float of(int i, Values... values) const {
    return float(Expr::of(values..., v[i]));
  }

 private:
  template <class Piece, class Talk>
  MKC_DEVICE void read_piece(Talk& talk, void* p, int& n, int row) {  // n counts from the piece's first
    SomeOf<Each, Piece> some;
    if (n >= 0 && n < Piece::extent(1)) {
      read_at_once(some, talk, p, n, row);
      MKC_UNROLL
      for (int i = 0; i < Each; ++i) v[i] = some.v[i];
    }
    n -= Piece::extent(1);
  }
};
template <int Each, int Skip, class First, class... Rest>
  requires(Skip > 0)
struct Pieces<Each, Skip, First, Rest...> : Pieces<Each, Skip - 1, Rest...> {
  template <class Talk>
  MKC_DEVICE void await(Talk& talk, void* const* p, int n, int row = 0) {
    Pieces<Each, Skip - 1, Rest...>::await(talk, p + 1, n, row);
  }
};

// The extra operands: the views after the first `Skip`.
template <int Each, int Skip, class... V>
struct Extras {
  MKC_DEVICE void ask(void* const*, int, int = 0) {}
  template <class Talk>
  MKC_DEVICE void await(Talk&, void* const*, int, int = 0) {}
  template <class Expr, class... Values>
  MKC_DEVICE float of(int, Values... values) const {
    return float(Expr::of(values...));
  }
};
template <int Each, int Skip, class First, class... Rest>
  requires(Skip > 0)
struct Extras<Each, Skip, First, Rest...> : Extras<Each, Skip - 1, Rest...> {
  MKC_DEVICE void ask(void* const* p, int n, int row = 0) { Extras<Each, Skip - 1, Rest...>::ask(p + 1, n, row); }
  template <class Talk>
  MKC_DEVICE void await(Talk& talk, void* const* p, int n, int row = 0) {
    Extras<Each, Skip - 1, Rest...>::await(talk, p + 1, n, row);
  }
};
template <int Each, class First, class... Rest>
struct Extras<Each, 0, First, Rest...> {
  SomeOf<Each, First> first;
  Extras<Each, 0, Rest...> rest;
  MKC_DEVICE void ask(void* const* p, int n, int row = 0) { first.ask(p[0], n, row), rest.ask(p + 1, n, row); }
  template <class Talk>
  MKC_DEVICE void await(Talk& talk, void* const* p, int n, int row = 0) {
    first.await(talk, p[0], n, row), rest.await(talk, p + 1, n, row);
  }
  template <class Expr, class... Values>
  MKC_DEVICE float of(int i, Values... values) const {
    return rest.template of<Expr>(i, values..., first.v[i]);
  }
};

template <bool InPieces, int Each, int Skip, class... V>
struct ExtrasOrPieces {
  using Type = Extras<Each, Skip, V...>;
};
template <int Each, int Skip, class... V>
struct ExtrasOrPieces<true, Each, Skip, V...> {
  using Type = Pieces<Each, Skip, V...>;
};

}  // namespace mkc
