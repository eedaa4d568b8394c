// Further operands of a stream's epilogue, four neighbouring elements at a time
#pragma once

#include <mkc/worker_stream.cuh>

namespace mkc {

// Four neighbouring elements of an extra operand, [1, N], or of a row of one.
template <class V>
struct FourOf;
template <class T, int M, int N, long long S0, long long S1>
struct FourOf<View<T, Shape<M, N>, Stride<S0, S1>>> {
  Four v = {};
  template <class Talk>
  MKC_DEVICE void read(Talk&, void* p, int n, int row = 0) {
    const View<T, Shape<M, N>, Stride<S0, S1>> view(p);
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) v.at[i] = float(load(view(row, N % 4 == 0 || n + i < N ? n + i : N - 1)));
  }
};
template <class S, long long Step>
struct FourOf<Words<bf16, S, Stride<Step, 1>>> {
  Four v = {};
  template <class Talk>
  MKC_DEVICE void read(Talk& talk, void* p, int n, int row = 0) {
    const Words<bf16, S, Stride<Step, 1>> words(p);
    uint64 word;
    talk.poll([&] { return is_of(word = load_word(words.data + row * (Step / 4) + n / 4), use_bits(talk.use)); });
    const uint32 front = static_cast<uint32>(word) & ~kUseBits, back = static_cast<uint32>(word >> 32) & ~kUseBits;
    v = {low(front) * kUnscaled, high(front) * kUnscaled, low(back) * kUnscaled, high(back) * kUnscaled};
  }
};

// The extra operand that comes in pieces, one beside the other: the views after the first `Skip`.
template <int Skip, class... V>
struct Pieces {
  Four v = {};
  template <class Talk>
  MKC_DEVICE void read(Talk& talk, void* const* p, int n, int row = 0) {
    (read_piece<V>(talk, *p++, n, row), ...);
  }
  template <class Expr, class... Values>
  MKC_DEVICE float of(int i, Values... values) const {
    return float(Expr::of(values..., v.at[i]));
  }

 private:
  template <class Piece, class Talk>
  MKC_DEVICE void read_piece(Talk& talk, void* p, int& n, int row) {  // n counts from the piece's first
    FourOf<Piece> four;
    if (n >= 0 && n < Piece::extent(1)) four.read(talk, p, n, row), v = four.v;
    n -= Piece::extent(1);
  }
};
template <int Skip, class First, class... Rest>
  requires(Skip > 0)
struct Pieces<Skip, First, Rest...> : Pieces<Skip - 1, Rest...> {
  template <class Talk>
  MKC_DEVICE void read(Talk& talk, void* const* p, int n, int row = 0) {
    Pieces<Skip - 1, Rest...>::read(talk, p + 1, n, row);
  }
};

// The extra operands: the views after the first `Skip`.
template <int Skip, class... V>
struct Extras {
  template <class Talk>
  MKC_DEVICE void read(Talk&, void* const*, int, int = 0) {}
  template <class Expr, class... Values>
  MKC_DEVICE float of(int, Values... values) const {
    return float(Expr::of(values...));
  }
};
template <int Skip, class First, class... Rest>
  requires(Skip > 0)
struct Extras<Skip, First, Rest...> : Extras<Skip - 1, Rest...> {
  template <class Talk>
  MKC_DEVICE void read(Talk& talk, void* const* p, int n, int row = 0) {
    Extras<Skip - 1, Rest...>::read(talk, p + 1, n, row);
  }
};
template <class First, class... Rest>
struct Extras<0, First, Rest...> {
  FourOf<First> first;
  Extras<0, Rest...> rest;
  template <class Talk>
  MKC_DEVICE void read(Talk& talk, void* const* p, int n, int row = 0) {
    first.read(talk, p[0], n, row), rest.read(talk, p + 1, n, row);
  }
  template <class Expr, class... Values>
  MKC_DEVICE float of(int i, Values... values) const {
    return rest.template of<Expr>(i, values..., first.v.at[i]);
  }
};

template <bool InPieces, int Skip, class... V>
struct ExtrasOrPieces {
  using Type = Extras<Skip, V...>;
};
template <int Skip, class... V>
struct ExtrasOrPieces<true, Skip, V...> {
  using Type = Pieces<Skip, V...>;
};

}  // namespace mkc
