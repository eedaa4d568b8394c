// Products of rows on the host: rows of w are read one after another, as they lie, and folded sixteen at a time.
#pragma once

namespace mkc {

inline constexpr int kTeamDots = 256;  // rows of w that are handed to a team at once

// sums[i][row] = products of row i of x and a row of w, which are still to be folded. The order is fixed by Depth alone.
template <int M, int Depth, class X, class W>
MKC_DEVICE void row_products(const X* x, long long x_step, const W* w, int row, Pack (&sums)[M][kPack]) {
  using By = Products<X, W>;
  constexpr int kChains = M == 1 ? 4 : 2, kRound = kChains * By::kElements;  // as many as hide how long one takes
  constexpr int kWhole = Depth / By::kElements * By::kElements;
  Pack chains[M][kChains] = {};
  int k = 0;
  for (; k + kRound <= Depth; k += kRound) {
    MKC_UNROLL  // or g++ leaves the sums in memory
    for (int c = 0; c < kChains; ++c) {
      MKC_UNROLL
      for (int i = 0; i < M; ++i) By::add(chains[i][c], x + i * x_step + k + c * By::kElements, w + k + c * By::kElements);
    }
  }
  for (; k < kWhole; k += By::kElements) {
    MKC_UNROLL
    for (int i = 0; i < M; ++i) By::add(chains[i][0], x + i * x_step + k, w + k);
  }
  MKC_UNROLL
  for (int i = 0; i < M; ++i) {
    MKC_UNROLL
    for (int c = 1; c < kChains; ++c) chains[i][0] += chains[i][c];
    for (int j = kWhole; j < Depth; ++j) chains[i][0][0] += float(widen(x[i * x_step + j])) * float(widen(w[j]));
    sums[i][row] = chains[i][0];
  }
}

// done(i, j, sum of x[i, :] w[j, :]) for M rows of x and `count` rows of w
template <int M, int Depth, class X, class W, class Done>
MKC_DEVICE void wide_dots(const X* x, long long x_step, const W* w, long long w_step, int count, Done done) {
  for (int first = 0; first < count; first += kPack) {
    const int left = count - first < kPack ? count - first : kPack;
    Pack sums[M][kPack] = {};
    for (int j = 0; j < left; ++j) row_products<M, Depth>(x, x_step, w + (first + j) * w_step, j, sums);
    for (int i = 0; i < M; ++i) {
      float folded[kPack];
      unpack(fold_sixteen<Add>(sums[i]), folded);
      for_lanes(0, left, [&](int j) { done(i, first + j, folded[j]); });
    }
  }
}

}  // namespace mkc
