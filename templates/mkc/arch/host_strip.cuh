// Rows of keys and values, as attention reads them on the host: a lane takes whole rows and leaves them where they lie.
#pragma once

namespace mkc {

inline constexpr int kBytesAtOnce = 1;
inline constexpr int kMaxTeams = 1;
inline constexpr int kScratchFloats = 1024;
MKC_DEVICE float* scratch() {  // memory that the teams of a worker share for the time of a task
  static thread_local float memory[kScratchFloats];
  return memory;
}
MKC_DEVICE bool team_any(bool value) { return value; }
MKC_DEVICE float team_swap(float value, int) { return value; }  // with the lane whose number differs by this bit
MKC_DEVICE float exp_below(float x) { return exp(x); }  // of what is not positive

template <class T, int Width, int Widest, int Run, int Least, int Ahead>
struct Strip {
  static constexpr int kSlots = 1, kDeep = kPack, kHeld = Width, kPacked = Width / kPack * kPack;
  static constexpr T kNoRow[Width] = {};
  const T* row;

  MKC_DEVICE static int slot() { return 0; }
  template <class F>
  MKC_DEVICE static void each(F f) {  // f(place in the strip, place in the row)
#pragma GCC ivdep
    for (int i = 0; i < Width; ++i) f(i, i);
  }
  template <class F>
  MKC_DEVICE static void ahead(F f) {  // f(number of a row in hand)
#pragma GCC ivdep
    for (int j = 0; j < kDeep; ++j) f(j);
  }
  // row `number` of `count`, or zeros
  MKC_DEVICE void read(const T* first, long long step, int number, int count) {
    row = number < count ? first + number * step : kNoRow;
  }
  MKC_DEVICE float at(int held) const { return widen(row[held]); }

  // products[i, j] = x[i] rows[j]
  template <int M>
  MKC_DEVICE static void dots(const float (&x)[M][kHeld], const Strip (&rows)[kDeep], float (&products)[M][kDeep]) {
    constexpr int kTile = M == 1 ? 4 : 1;  // rows that are folded together
    for (int j = 0; j < kDeep; j += kTile) {
      Pack sums[4] = {};
      for (int k = 0; k < kPacked; k += kPack)
        for (int n = 0; n < M * kTile; ++n) sums[n] += pack(&x[n / kTile][k]) * pack(rows[j + n % kTile].row + k);
      const Pack folded = fold_four<Add>(sums[0], sums[1], sums[2], sums[3]);
      for (int n = 0; n < M * kTile; ++n) {
        float rest = folded[n];
        for (int k = kPacked; k < Width; ++k) rest += x[n / kTile][k] * float(widen(rows[j + n % kTile].row[k]));
        products[n / kTile][j + n % kTile] = rest;
      }
    }
  }
  template <class R>
  MKC_DEVICE static float folded(const float (&values)[kDeep]) {
    const Pack all = pack(values);
    return fold_four<R>(all, all, all, all)[0];
  }
  // sum = sum * shrink + weight rows
  template <int M>
  MKC_DEVICE static void add(float (&sum)[M][kHeld], const float (&shrink)[M], const float (&weight)[M][kDeep],
                             const Strip (&rows)[kDeep]) {
    int column = 0;
    for (; column + 2 * kPack <= Width; column += 2 * kPack) add_packs<2>(sum, shrink, weight, rows, column);
    for (; column + kPack <= Width; column += kPack) add_packs<1>(sum, shrink, weight, rows, column);
    for (; column < Width; ++column) {
      for (int i = 0; i < M; ++i) {
        sum[i][column] *= shrink[i];
        for (int j = 0; j < kDeep; ++j) sum[i][column] += weight[i][j] * float(widen(rows[j].row[column]));
      }
    }
  }
  template <int C, int M>
  MKC_DEVICE static void add_packs(float (&sum)[M][kHeld], const float (&shrink)[M], const float (&weight)[M][kDeep],
                                   const Strip (&rows)[kDeep], int column) {
    Pack sums[M][C];
    for (int i = 0; i < M; ++i)
      for (int c = 0; c < C; ++c) sums[i][c] = pack(&sum[i][column + c * kPack]) * shrink[i];
    for (int j = 0; j < kDeep; ++j) {
      for (int c = 0; c < C; ++c) {
        const Pack values = pack(rows[j].row + column + c * kPack);
        for (int i = 0; i < M; ++i) sums[i][c] += values * weight[i][j];
      }
    }
    for (int i = 0; i < M; ++i)
      for (int c = 0; c < C; ++c) unpack(sums[i][c], &sum[i][column + c * kPack]);
  }
};

}  // namespace mkc
