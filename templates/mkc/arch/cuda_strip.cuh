// Rows of keys and values, as attention reads them on the GPU: a lane's strip of a row, in registers
#pragma once

namespace mkc {

inline constexpr int kBytesAtOnce = 16;
inline constexpr int kMaxTeams = 8;
inline constexpr int kScratchFloats = 4224;  // four rows of 130 from each team, and a little
MKC_DEVICE float* scratch() {  // memory that the teams of a worker share for the time of a task
  __shared__ alignas(16) float memory[kScratchFloats];
  return memory;
}
MKC_DEVICE bool team_any(bool value) { return __any_sync(0xFFFFFFFFu, value); }
MKC_DEVICE float team_swap(float value, int bit) {  // with the lane whose number differs by this bit
  return __shfl_xor_sync(0xFFFFFFFFu, value, bit);
}

struct Add {
  MKC_DEVICE static float of(float a, float b) { return a + b; }
};
struct Highest {
  MKC_DEVICE static float of(float a, float b) { return a < b ? b : a; }
};
MKC_DEVICE float exp_below(float x) {  // of what is not positive; the smallest results are zero
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * 1.44269504088896341f));
  return power;
}

MKC_CONSTEXPR int lanes_across(int runs) {  // the power of two that holds them, at most a team
  int count = 1;
  while (count < runs && count < kTeamLanes) count *= 2;
  return count;
}
template <int Bytes>
struct WordOf {
  using Type = uint32;
};
template <>
struct WordOf<2> {
  using Type = unsigned short;
};
// Lanes beside each other take runs beside each other of one row, each `Run` elements at once; a team has rows in
// `kSlots` slots. A lane holds `Least` elements or more, for fewer lanes have less to tell each other, and reads about
// `Ahead` runs before it uses them. Rows of `Width` are spread as rows of `Widest` would be.
template <class T, int Width, int Widest, int Run, int Least, int Ahead>
struct Strip {
  static constexpr int kRuns = (Widest + Run - 1) / Run, kLeast = Least > Run ? Least / Run : 1;
  static constexpr int kLanes = lanes_across((kRuns + kLeast - 1) / kLeast), kSlots = kTeamLanes / kLanes;
  static constexpr int kTurns = (Width + kLanes * Run - 1) / (kLanes * Run), kHeld = kTurns * Run;
  static constexpr int kWidestTurns = (kRuns + kLanes - 1) / kLanes;
  static constexpr int kDeep = kWidestTurns < Ahead ? Ahead / kWidestTurns : 1;
  // Elements stay packed until they are used: two halves to a register.
  static constexpr int kPerWord = sizeof(T) == 2 && Run > 1 ? 2 : 1;
  using Word = typename WordOf<sizeof(T) * kPerWord>::Type;
  struct alignas(sizeof(T) * Run) Packed {
    Word word[Run / kPerWord];
  };
  Packed run[kTurns];

  MKC_DEVICE static int slot() { return team_lane() / kLanes; }
  MKC_DEVICE static int index(int held) { return (held / Run * kLanes + team_lane() % kLanes) * Run + held % Run; }
  template <class F>
  MKC_DEVICE static void each(F f) {  // f(place in the strip, place in the row), which may lie past the row's end
    MKC_UNROLL
    for (int held = 0; held < kHeld; ++held) f(held, index(held));
  }
  template <class F>
  MKC_DEVICE static void ahead(F f) {
    MKC_UNROLL
    for (int j = 0; j < kDeep; ++j) f(j);
  }
  // row `number` of `count`, or zeros
  MKC_DEVICE void read(const T* first, long long step, int number, int count) {
    const T* const row = first + number * step;
    MKC_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      const int at = index(turn * Run);
      run[turn] = number < count && at < Width ? *reinterpret_cast<const Packed*>(row + at) : Packed{};
    }
  }
  MKC_DEVICE float at(int held) const {
    const Word word = run[held / Run].word[held % Run / kPerWord];
    if constexpr (sizeof(T) == 4) return bits_to_float(word);
    else return widen(T{static_cast<unsigned short>(held % kPerWord ? word >> 16 : word)});
  }
  // products[i, j] = x[i] rows[j]
  template <int M>
  MKC_DEVICE static void dots(const float (&x)[M][kHeld], const Strip (&rows)[kDeep], float (&products)[M][kDeep]) {
    ahead([&](int j) {
      float sums[M] = {};
      MKC_UNROLL
      for (int held = 0; held < kHeld; ++held) {
        const float y = rows[j].at(held);
        MKC_UNROLL
        for (int i = 0; i < M; ++i) sums[i] += x[i][held] * y;
      }
      MKC_UNROLL
      for (int i = 0; i < M; ++i) {
        MKC_UNROLL
        for (int bit = 1; bit < kLanes; bit *= 2) sums[i] += team_swap(sums[i], bit);
        products[i][j] = sums[i];
      }
    });
  }
  template <class R>
  MKC_DEVICE static float folded(const float (&values)[kDeep]) {
    float all = values[0];
    MKC_UNROLL
    for (int j = 1; j < kDeep; ++j) all = R::of(all, values[j]);
    return all;
  }
  // sum = sum * shrink + weight rows
  template <int M>
  MKC_DEVICE static void add(float (&sum)[M][kHeld], const float (&shrink)[M], const float (&weight)[M][kDeep],
                             const Strip (&rows)[kDeep]) {
    MKC_UNROLL
    for (int held = 0; held < kHeld; ++held) {
      MKC_UNROLL
      for (int i = 0; i < M; ++i) sum[i][held] *= shrink[i];
      ahead([&](int j) {
        const float y = rows[j].at(held);
        MKC_UNROLL
        for (int i = 0; i < M; ++i) sum[i][held] += weight[i][j] * y;
      });
    }
  }
};

}  // namespace mkc
