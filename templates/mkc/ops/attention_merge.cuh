// out[d] = sum_p w[p] sums[p, d] / sum_p w[p] total[p], with w[p] = exp(top[p] - highest top)
// A part of a row is [sums, top, total].
#pragma once

#include <mkc/view.cuh>

namespace mkc::ops {

template <class Out, class Parts>
struct AttentionMerge {
  static constexpr int kParts = Parts::extent(3), kWidth = Out::extent(3);
  static constexpr int kTogether = kParts < 16 ? kParts : 16;  // parts that are loaded at once
  static constexpr int kColumns = (kWidth + kTeamLanes - 1) / kTeamLanes;  // of a lane

  // Teams take rows, and lanes columns of them.
  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Out out(p[0]);
    const Parts parts(p[1]);
    const int heads = r[1].end - r[1].begin, positions = r[2].end - r[2].begin;
    const int rows = (r[0].end - r[0].begin) * heads * positions;
    for (int row = team(); row < rows; row += teams()) {
      const int position = r[2].begin + row % positions, head = r[1].begin + row / positions % heads;
      const int batch = r[0].begin + row / positions / heads;
      const auto* const from = &parts(batch, head, position, 0, 0);
      float top = -kInf, total = 0.0f, sum[kColumns] = {};
      for (int first = 0; first < kParts; first += kTogether) add(from, first, top, total, sum);
      each_column([&](int c, int column) {
        if (column < kWidth) store(out(batch, head, position, column), total == 0.0f ? 0.0f : sum[c] / total);
      });
    }
  }
  // Some parts more: a new highest top, and the sums brought to it.
  MKC_DEVICE static void add(const float* from, int first, float& top, float& total, float (&sum)[kColumns]) {
    float weight[kTogether], totals[kTogether], highest = top;
    MKC_UNROLL
    for (int n = 0; n < kTogether; ++n) {
      const float* const part = from + (first + n < kParts ? first + n : 0) * Parts::step(3);
      weight[n] = first + n < kParts ? part[kWidth] : -kInf, totals[n] = part[kWidth + 1];
      highest = highest < weight[n] ? weight[n] : highest;
    }
    const float base = highest == -kInf ? 0.0f : highest, shrink = exp_below(top - base);
    top = highest, total *= shrink;
    each_column([&](int c, int) { sum[c] *= shrink; });
    MKC_UNROLL
    for (int n = 0; n < kTogether; ++n) {
      const float* const part = from + (first + n < kParts ? first + n : 0) * Parts::step(3);
      const float scale = exp_below(weight[n] - base);
      total += totals[n] * scale;
      each_column([&](int c, int column) { sum[c] += column < kWidth ? part[column] * scale : 0.0f; });
    }
  }
  template <class F>
  MKC_DEVICE static void each_column(F f) {
    MKC_UNROLL
    for (int c = 0; c < kColumns; ++c) f(c, c * kTeamLanes + team_lane());
  }
};

}  // namespace mkc::ops
