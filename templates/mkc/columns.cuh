// A row as talking warps bring it, by columns of 8: multiplied by a norm's gain, and laid into shared memory. Published values stay scaled, and
// what a norm divides by waits for the sums.
#pragma once

#include <mkc/worker_stream.cuh>

namespace mkc {

// Of 8 elements of a row: their squares, to the sum, and what they are times a gain, each rounded once.
template <bool Scaled>
MKC_DEVICE void add_squares(float& squares, const Quad& v) {
  float value[8];
  eight(v, value);
  MKC_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (Scaled) value[i] *= kUnscaled;
    squares += value[i] * value[i];
  }
}
template <class Offset>
MKC_DEVICE Quad times_gain(const Quad& v, const Quad& gain) {
  if (Offset::of() == 0.0f) return product(v, gain);
  float value[8], by[8];
  eight(v, value), eight(gain, by);
  MKC_UNROLL
  for (int i = 0; i < 8; ++i) value[i] *= by[i] + Offset::of();
  return eight(value);
}

// Of `Depth` elements, with zeros behind them up to `Padded`; or its halves, one behind the other, each with zeros behind it. Operands: the row
// second, then the gain, then the shift.
template <int Depth, int Padded, bool Halves>
struct Columns {
  static constexpr int kAll = (Halves ? 2 : 1) * Padded / 8, kEach = (kAll + kTalkThreads - 1) / kTalkThreads;  // kEach: of a thread

  // Its squares are added up, with a Norm.
  template <class X, class Offset, bool Norm, class Page>
  MKC_DEVICE static void lay(Talk<Page>& talk, void* const* p) {
    constexpr int kBatch = kEach <= 6 ? kEach : kEach % 6 == 0 ? 6 : 4;
    const X x(p[1]);
    float squares = 0.0f;
    MKC_NO_UNROLL
    for (int first = talk.thread(); first < kEach * kTalkThreads; first += kBatch * kTalkThreads) {
      Quad gain[Norm ? kBatch : 1], v[kBatch];
      MKC_UNROLL
      for (int j = 0; j < kBatch && Norm; ++j) {
        const int column = first + j * kTalkThreads;
        gain[j] = column < Depth / 8 ? *(static_cast<const Quad*>(p[2]) + column) : Quad{};
      }
      if constexpr (kIsPublished<X>) talk.let_others_finish();
      bring<kBatch>(talk, x, first, v);
      MKC_UNROLL
      for (int j = 0; j < kBatch; ++j) {
        const int column = first + j * kTalkThreads;
        if (column < kAll) store_shared(talk.input + column * 16, Norm ? times_gain<Offset>(v[j], gain[j]) : v[j]);
      }
      if (first + kBatch * kTalkThreads >= kEach * kTalkThreads) talk.input_is_ready();
      MKC_UNROLL
      for (int j = 0; j < kBatch && Norm; ++j) add_squares<kIsPublished<X>>(squares, v[j]);
    }
    if constexpr (Norm) talk.add_up(squares);
  }
  // The same for a norm that takes away the mean: the whole row is held until that is known, and what is laid down is the norm.
  template <class X, class Eps, class Offset, bool Shifted, class Page>
  MKC_DEVICE static void lay_centred(Talk<Page>& talk, void* const* p) {
    const int first = talk.thread();
    Quad v[kEach];
    if constexpr (kIsPublished<X>) talk.let_others_finish();
    bring<kEach>(talk, X(p[1]), first, v);
    float sum = 0.0f, squares = 0.0f;
    each<X>(first, v, [&](float one) { sum += one; });
    const float mean = talk.total(sum) * (1.0f / Depth);
    each<X>(first, v, [&](float one) { squares += (one - mean) * (one - mean); });
    const float scale = rsqrt(talk.total(squares) * (1.0f / Depth) + Eps::of());
    MKC_UNROLL
    for (int j = 0; j < kEach; ++j) {
      const int column = first + j * kTalkThreads;
      float value[8] = {}, by[8], plus[8] = {};
      if (column < Depth / 8) {
        eight(v[j], value), eight(*(static_cast<const Quad*>(p[2]) + column), by);
        if constexpr (Shifted) eight(*(static_cast<const Quad*>(p[3]) + column), plus);
        MKC_UNROLL
        for (int i = 0; i < 8; ++i) value[i] = (value[i] * (kIsPublished<X> ? kUnscaled : 1.0f) - mean) * scale * (by[i] + Offset::of()) + plus[i];
      }
      if (column < Padded / 8) store_shared(talk.input + column * 16, eight(value));
    }
    talk.input_is_ready();
  }

 private:
  template <class X, class Visit>
  MKC_DEVICE static void each(int first, const Quad (&v)[kEach], Visit visit) {
    MKC_UNROLL
    for (int j = 0; j < kEach; ++j) {
      float value[8];
      eight(v[j], value);
      MKC_UNROLL
      for (int i = 0; i < 8; ++i)
        if (first + j * kTalkThreads < Depth / 8) visit(value[i] * (kIsPublished<X> ? kUnscaled : 1.0f));
    }
  }
  MKC_DEVICE static bool is_of_x(int column) {
    return column < Depth / 8 || (Halves && Padded / 8 <= column && column < (Padded + Depth) / 8);
  }
  MKC_DEVICE static int of_x(int column) { return Halves && column >= Padded / 8 ? column - (Padded - Depth) / 8 : column; }
  template <int Count, class Page, class S, class D>
  MKC_DEVICE static void bring(Talk<Page>& talk, Words<bf16, S, D> x, int first, Quad (&v)[Count]) {
    const uint32 bits = use_bits(talk.use);
    TwoWords words[Count];
    MKC_UNROLL
    for (int j = 0; j < Count; ++j) words[j] = is_of_x(first + j * kTalkThreads) ? TwoWords{~bits, ~bits} : TwoWords{bits, bits};
    talk.poll([&] {
      bool all = true;
      MKC_UNROLL
      for (int j = 0; j < Count; ++j)
        if (!is_of(words[j], bits)) words[j] = load_words(x.data + 2 * of_x(first + j * kTalkThreads));
      MKC_UNROLL
      for (int j = 0; j < Count; ++j) all &= is_of(words[j], bits);
      return all;
    });
    MKC_UNROLL
    for (int j = 0; j < Count; ++j) v[j] = values(words[j]);
  }
  template <int Count, class Page, class S, class D>
  MKC_DEVICE static void bring(Talk<Page>&, View<bf16, S, D> x, int first, Quad (&v)[Count]) {
    MKC_UNROLL
    for (int j = 0; j < Count; ++j) {
      const int column = first + j * kTalkThreads;
      v[j] = is_of_x(column) ? load_quad(x.data + of_x(column) * 8) : Quad{};
    }
  }
};

}  // namespace mkc
