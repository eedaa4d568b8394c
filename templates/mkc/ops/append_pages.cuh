// out[page[n], :, row[n]] = source[n], in order of n. An index below zero counts from the end; one outside of `out` is reported,
// and its row is not written.
#pragma once

#include <mkc/fault.cuh>
#include <mkc/view.cuh>

namespace mkc::ops {

template <class Out, class Page, class Row, class Source, class Before>
struct AppendPages {
  static constexpr int kPages = Out::extent(0), kRows = Out::extent(2), kWidth = Out::extent(3), kCount = Source::extent(0);
  static constexpr int kDeep = kTeamLanes > 1 ? 8 : 1;  // rows that are read before they are written

  // Each element of `out` has one lane that writes it, so that of rows for one place the last one stays.
  MKC_DEVICE static void run(void* const* p, const Range* r, const Fault& fault) {
    const Out out(p[0]);
    const Page page(p[1]);
    const Row row(p[2]);
    const Source source(p[3]);
    const Range heads = r[0];
    for (int first = 0; first < kCount; first += kDeep) {
      tile_loop(heads.end - heads.begin, kWidth, [=, &fault](int line, int column) {
        const int head = heads.begin + line;
        typename Source::Element values[kDeep];
        int64 to[kDeep], at[kDeep];
        MKC_UNROLL
        for (int j = 0; j < kDeep; ++j) {
          const int n = first + j < kCount ? first + j : kCount - 1;
          values[j] = source(n, head, column), to[j] = page(n), at[j] = row(n);
        }
        MKC_UNROLL
        for (int j = 0; j < kDeep; ++j) {
          if (first + j >= kCount) continue;
          if (!is_inside(to[j], kPages)) fault.outside(to[j], kPages);
          else if (!is_inside(at[j], kRows)) fault.outside(at[j], kRows);
          else out(wrapped(to[j], kPages), head, wrapped(at[j], kRows), column) = values[j];
        }
      });
    }
  }

 private:
  MKC_DEVICE static bool is_inside(int64 index, int64 extent) { return -extent <= index && index < extent; }
  MKC_DEVICE static int64 wrapped(int64 index, int64 extent) { return index < 0 ? index + extent : index; }
};

}  // namespace mkc::ops
