// y[b, n] = Expr(sum_k x'[b, k] w[n, k], extras[b, n]...) for 2 to 16 rows: a stream of weights meets them in the tensor cores
#pragma once

#include <mkc/best.cuh>
#include <mkc/columns.cuh>
#include <mkc/expr.cuh>
#include <mkc/extras.cuh>
#include <mkc/row_tiles.cuh>

namespace mkc::ops {

template <class V>
constexpr int kEntriesOf = 0;
template <class T, int Batch, int Entries, class D>
constexpr int kEntriesOf<Words<T, Shape<Batch, Entries, 2>, D>> = Entries;

// What compute warps do.
template <int Tiles, int Fragments, int Chunk, int Batch, int Most>
struct RowsProduct {
  template <class Page>
  MKC_DEVICE static void compute(Compute<Page>& c) {
    if constexpr (Chunk == Fragments) multiply_rows<Tiles, Fragments, Batch, Most>(c);
    else multiply_chunks<Tiles, Fragments, Chunk, Batch, Most>(c);
  }
};

// What talking warps do, of at most `Tiles` tiles. Operands as of StreamLinear, with a row for each of the batch: y and x [B, N] and
// [B, K]. `Chunk` fragments of the rows' depth are in shared memory at once, and behind them the sums of `Most` tiles.
template <class Expr, class Eps, class Offset, bool Norm, int Tiles, int Fragments, int Depth, bool InPieces, bool Gated, int Best, int Batch,
          int Chunk, int Most, class Y, class X, class... Rest>
struct StreamRows {
  static constexpr bool kNorm = Norm, kRaw = kIsPublished<X>;  // the input stays scaled
  static constexpr int kChunks = Fragments / Chunk, kPitch = Chunk * 512, kBuffer = Batch * kPitch;
  static constexpr int kColumns = Chunk * 32;  // of 8 elements, in a chunk
  static constexpr int kSums = kBuffer * (kChunks > 1 ? 2 : 1), kParts = kSums + kComputeWarps * Most * Batch * 32;
  static constexpr int round() {
    if constexpr (kChunks == 1) return RowsPassage<Tiles, Fragments, Most>::kRound;
    else return Most;
  }
  static constexpr int kRound = round(), kRounds = (Tiles + kRound - 1) / kRound;  // tiles between two meetings
  static constexpr int kOutputs = Gated ? 4 : 8, kWords = kRound * kOutputs / 4;   // of a tile; of a row in a round
  static constexpr int kFolded = Batch > 8 ? 16 : Batch > 4 ? 8 : Batch > 2 ? 4 : 2, kLanesARow = 32 / kFolded;
  static_assert(kWords * Batch <= kTalkThreads, "a talking thread has four outputs of one row");
  static_assert(Best == 0 || kIsPublished<Y>, "entries are published");

  // Two tasks earlier: what only this task reads is seldom near.
  template <class Page>
  MKC_DEVICE static void ahead(const Herald<Page>& herald, void* const* p, const Range*) {
    if constexpr (!Norm) return;
    MKC_NO_UNROLL
    for (int line = herald.thread(); line < Depth / 64; line += 32) fetch_ahead(static_cast<const bf16*>(p[2]) + line * 64);
  }

  template <class Page>
  MKC_DEVICE static void talk(Talk<Page>& talk, void* const* p, const Range* r) {
    mkc::Best best;
    float scale = kRaw ? kUnscaled : 1.0f, squares = 0.0f;
    MKC_NO_UNROLL
    for (int round = 0;; ++round) {
      if (round == 0 || kChunks > 1) input(talk, p, squares, round == 0);
      // From here on, for while an input comes it takes the registers.
      const int thread = talk.thread(), row = thread / kWords, word = thread % kWords;
      const int n = r[0].begin + round * (kRound * kOutputs) + word * 4;
      const bool mine = row < Batch && n < r[0].end;
      if (kNorm && round == 0) scale *= norm(talk, squares, row);
      typename ExtrasOrPieces<InPieces, 4, kNorm, Rest...>::Type extras;
      uint32 misfit = 0;
      if (mine) read_at_once(extras, talk, p + 2, n, row);
      talk.await_sums();
      if (mine) finish(talk, p[0], row, word, n, r, scale, extras, misfit, best);
      const bool last = kRounds == 1 || r[0].begin + (round + 1) * (kRound * kOutputs) >= r[0].end;
      if (!last) talk.sums_are_taken();
      talk.report(misfit);
      if (last) break;
    }
    if constexpr (Best > 0) tell(talk, p[0], r[0].begin / Best, best);
    sync();  // the sums lie where the next task's input goes
  }

 private:
  template <class Page>
  MKC_DEVICE static Four total(const Talk<Page>& talk, int tile, int row, int half, float scale) {
    const uint32 at = talk.input + kSums + (tile * Batch + row) * 32 + half * 16;
    Four v[kComputeWarps];
    MKC_UNROLL
    for (int w = 0; w < kComputeWarps; ++w) v[w] = load_shared_four(at + w * Most * Batch * 32);
    MKC_UNROLL
    for (int count = kComputeWarps / 2; count > 0; count /= 2) {
      MKC_UNROLL
      for (int w = 0; w < count; ++w) {
        MKC_UNROLL
        for (int i = 0; i < 4; ++i) v[w].at[i] += v[w + count].at[i];
      }
    }
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) v[0].at[i] *= scale;
    return v[0];
  }
  template <class Page, class E>
  MKC_DEVICE static void finish(Talk<Page>& talk, void* y, int row, int word, int n, const Range* r, float scale, const E& extras, uint32& misfit,
                                mkc::Best& best) {
    Four v = total(talk, Gated ? word : word / 2, row, Gated ? 0 : word % 2, scale);
    if constexpr (Gated) {
      const Four other = total(talk, word, row, 1, scale);
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) v.at[i] = extras.template of<Expr>(i, v.at[i], other.at[i]);
    } else {
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) v.at[i] = extras.template of<Expr>(i, v.at[i]);
    }
    if constexpr (Best > 0) {
      MKC_UNROLL
      for (int i = 0; i < 4; ++i)
        if (n + i < r[0].end) best.see(v.at[i], n + i);
    } else {
      write(Y(y), row, n, r, v, use_bits(talk.use), misfit);
    }
  }
  template <class S, long long Step>
  MKC_DEVICE static void write(Words<bf16, S, Stride<Step, 1>> y, int row, int n, const Range*, const Four& v, uint32 bits, uint32& misfit) {
    store_word(y.data + (row * Step + n) / 4, word_of(v, bits, misfit));
  }
  template <class T, class S, class D>
  MKC_DEVICE static void write(View<T, S, D> y, int row, int n, const Range* r, const Four& v, uint32, uint32&) {
    MKC_UNROLL
    for (int i = 0; i < 4; ++i)
      if (n + i < r[0].end) store(y(row, n + i), v.at[i]);
  }
  // The best of each row passes through the input's memory, as in `Best::of_all`.
  template <class Page>
  MKC_DEVICE static void tell(const Talk<Page>& talk, void* y, int entry, const mkc::Best& mine) {
    store_shared(talk.input + 8 * talk.thread(), mine.rank), store_shared(talk.input + 8 * talk.thread() + 4, mine.place);
    meet(kAmongTalk, kTalkThreads);
    if (const int row = talk.thread(); row < Batch) {
      mkc::Best best;
      MKC_NO_UNROLL
      for (int i = row * kWords; i < (row + 1) * kWords; ++i)
        best.see(mkc::Best{load_shared_word(talk.input + 8 * i), load_shared_word(talk.input + 8 * i + 4)});
      store_entry(Y(y).data + 2 * (row * kEntriesOf<Y> + entry), best, talk.use);
    }
    meet(kAmongTalk, kTalkThreads);
  }

  // ---- the input, chunk by chunk
  template <class Page>
  MKC_DEVICE static void input(Talk<Page>& talk, void* const* p, float& squares, bool is_first) {
    MKC_NO_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const bool odd = chunk % 2;
      if (chunk > 1) meet(odd ? kOddInputTaken : kInputTaken, kBothThreads);
      const uint32 to = talk.input + odd * kBuffer;
      float of_rows[kNorm ? kFolded : 1] = {};
      const auto ready = [&] {
        if (chunk == 0 && is_first) talk.input_is_ready();
        else arrive(odd ? kOddInputReady : kInputReady, kBothThreads);
      };
      bring(talk, p, to, chunk * kColumns, of_rows, is_first, ready);
      if constexpr (kNorm)
        if (is_first) squares += folded(of_rows, talk.thread());
    }
  }
  // By columns of 8, a few of all rows at a time, or of half of them: brought, multiplied by the norm's gain, and laid into shared memory.
  // Published values stay scaled, and what a norm divides by waits for the sums.
  template <class Page, int N, class Ready>
  MKC_DEVICE static void bring(Talk<Page>& talk, void* const* p, uint32 to, int begin, float (&squares)[N], bool is_first, Ready ready) {
    constexpr int kRows = Norm && Batch > 8 ? (Batch + 1) / 2 : Batch, kQuads = Norm ? 8 : 16, kMost = kRows < kQuads ? kQuads / kRows : 1;
    constexpr int kNeeded = (kColumns + kTalkThreads - 1) / kTalkThreads, kAtOnce = kMost < kNeeded ? kMost : kNeeded;  // on their way at once
    const X x(p[1]);
    MKC_NO_UNROLL
    for (int turn = 0; turn < kNeeded; turn += kAtOnce) {
      const int first = talk.thread() + turn * kTalkThreads;
      Quad gain[Norm ? kAtOnce : 1];
      MKC_UNROLL
      for (int j = 0; j < kAtOnce && Norm; ++j) {
        const int column = begin + first + j * kTalkThreads;
        gain[j] = column < Depth / 8 ? *(static_cast<const Quad*>(p[2]) + column) : Quad{};
      }
      if constexpr (kIsPublished<X>) talk.let_others_finish();
      MKC_UNROLL
      for (int from = 0; from < Batch; from += kRows) {
        Quad v[kAtOnce * kRows];
        load<kRows>(talk, x, begin, first, from, v);
        MKC_UNROLL
        for (int i = 0; i < kAtOnce * kRows; ++i) {
          const int row = from + i % kRows, column = first + i / kRows * kTalkThreads;
          const Quad q = Norm ? times_gain<Offset>(v[i], gain[i / kRows]) : v[i];
          if (row < Batch && column < kColumns) store_shared(to + row * kPitch + column * 16, q);
        }
        if (from + kRows >= Batch && turn + kAtOnce >= kNeeded) ready();
        MKC_UNROLL
        for (int i = 0; i < kAtOnce * kRows && Norm; ++i)
          if (is_first && from + i % kRows < Batch) add_squares<kIsPublished<X>>(squares[from + i % kRows], v[i]);
      }
    }
  }
  // `Rows` rows of each column; zeros where there are none.
  template <int Rows, int N, class Page, class S, long long Step>
  MKC_DEVICE static void load(Talk<Page>& talk, Words<bf16, S, Stride<Step, 1>> x, int begin, int first, int from, Quad (&v)[N]) {
    const uint32 bits = use_bits(talk.use);
    TwoWords words[N];
    const auto column = [&](int i) { return first + i / Rows * kTalkThreads; };
    MKC_UNROLL
    for (int i = 0; i < N; ++i) {
      const bool wanted = from + i % Rows < Batch && column(i) < kColumns && begin + column(i) < Depth / 8;
      words[i] = wanted ? TwoWords{~bits, ~bits} : TwoWords{bits, bits};
    }
    talk.poll([&] {
      bool all = true;
      MKC_UNROLL
      for (int i = 0; i < N; ++i)
        if (!is_of(words[i], bits)) words[i] = load_words(x.data + (from + i % Rows) * (Step / 4) + 2 * (begin + column(i)));
      MKC_UNROLL
      for (int i = 0; i < N; ++i) all &= is_of(words[i], bits);
      return all;
    });
    MKC_UNROLL
    for (int i = 0; i < N; ++i) v[i] = values(words[i]);
  }
  template <int Rows, int N, class Page, class S, long long Step>
  MKC_DEVICE static void load(Talk<Page>&, View<bf16, S, Stride<Step, 1>> x, int begin, int first, int from, Quad (&v)[N]) {
    MKC_UNROLL
    for (int i = 0; i < N; ++i) {
      const int row = from + i % Rows, column = first + i / Rows * kTalkThreads;
      const bool wanted = row < Batch && column < kColumns && begin + column < Depth / 8;
      v[i] = wanted ? load_quad(x.data + row * Step + (begin + column) * 8) : Quad{};
    }
  }
  // Sums over the lanes of a warp: half of the rows go to half of the lanes, until a few neighbours have parts of the same row's.
  template <int Rows = kFolded / 2, int Bit = 16>
  MKC_DEVICE static float folded(float (&of_rows)[kFolded], uint32 lane) {
    if constexpr (Rows == 0) return of_rows[0];
    MKC_UNROLL
    for (int i = 0; i < Rows; ++i) {
      const float mine = lane & Bit ? of_rows[i + Rows] : of_rows[i], other = lane & Bit ? of_rows[i] : of_rows[i + Rows];
      of_rows[i] = mine + __shfl_xor_sync(0xFFFFFFFFu, other, Bit);
    }
    if constexpr (Rows > 0) return folded<Rows / 2, Bit / 2>(of_rows, lane);
  }
  // what the sums of a row are to be multiplied with
  template <class Page>
  MKC_DEVICE static float norm(const Talk<Page>& talk, float squares, int row) {
    const uint32 lane = talk.thread() % 32, warp = talk.thread() / 32, of = lane / kLanesARow;
    MKC_UNROLL
    for (int bit = kLanesARow / 2; bit > 0; bit /= 2) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, bit);
    if (lane % kLanesARow == 0 && of < Batch) store_shared(talk.input + kParts + (warp * Batch + of) * 4, squares);
    meet(kAmongTalk, kTalkThreads);
    float sum = 0.0f;
    MKC_UNROLL
    for (int w = 0; w < kTalkWarps; ++w) sum += load_shared_float(talk.input + kParts + (w * Batch + (row < Batch ? row : 0)) * 4);
    return rsqrt(sum * (1.0f / Depth) + Eps::of());
  }
};

}  // namespace mkc::ops
