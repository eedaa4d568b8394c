// Attention of one new token, for all shapes: heads of any multiple of 16, rotations of some dims, windows, rows in memory
#pragma once

#include <mkc/worker_stream.cuh>

namespace mkc {

template <class... V>
struct LastElement {
  using Type = bf16;
};
template <class First, class... V>
struct LastElement<First, V...> : LastElement<V...> {};
template <class V>
struct LastElement<V> {
  using Type = typename V::Element;
};

template <class V>
constexpr long long kStep = 0;  // from row to row
template <class T, int N, int D, long long S, long long One>
constexpr long long kStep<View<T, Shape<N, D>, Stride<S, One>>> = S;
template <class T, int N, int D, long long S, long long One>
constexpr long long kStep<Words<T, Shape<N, D>, Stride<S, One>>> = S;
template <class T, int Batch, int N, int D, long long Apart, long long S, long long One>
constexpr long long kStep<Words<T, Shape<Batch, N, D>, Stride<Apart, S, One>>> = S;  // of each sequence
template <class V>
constexpr int kEach = kIsPublished<V> ? 4 : 1;  // elements of what its pointer points at

// Operands: parts, lse, the caches; q, k, v, position, the caches, the gains with Norm, cos and sin of the first `Turned`
// dims when there are some. A task is a split and some heads of q, `Shares` such tasks to a head of keys: they are the
// rows of a tensor core's fragments. With a Window only so many keys are seen, up to the position.
template <class Scale, class Eps, class Offset, bool Norm, int Turned, int Splits, int Window, int Shares, int Heads, int D, class Parts,
          class Lse, class Keys, class Values, class Q, class K, class V, class... Rest>
struct AnyAttention;

template <class Scale, class Eps, class Offset, bool Norm, int Turned, int Splits, int Window, int Shares, int Heads, int D, class Parts,
          class Lse, int KvHeads, int Room, long long Step0, long long Step1, class Values, class Q, class K, class V, class... Rest>
struct AnyAttention<Scale, Eps, Offset, Norm, Turned, Splits, Window, Shares, Heads, D, Parts, Lse,
                       View<bf16, Shape<KvHeads, Room, D>, Stride<Step0, Step1, 1>>, Values, Q, K, V, Rest...> {
  static_assert(D % 16 == 0 && D <= 256 && Turned % 16 == 0 && Turned <= D, "rows that a few lanes hold");
  using Cache = View<bf16, Shape<KvHeads, Room, D>, Stride<Step0, Step1, 1>>;
  using Angle = typename LastElement<Rest...>::Type;
  static constexpr int kGroup = Heads / KvHeads / Shares, kTile = kKeyTile, kBlock = kKeyBlock;
  static constexpr bool kAhead = D <= 128;  // values are fetched together with their keys, as registers allow
  static constexpr int kThirties = (D + 31) / 32, kSixties = (D + 63) / 64;  // fragments may reach beyond a row, where there are zeros
  static constexpr int kPitch = D * 2 + 16, kNewKey = 8, kNewValue = 9;  // rows in shared memory: q, then k and v
  static constexpr int kResults = 10 * kPitch, kTops = kResults + kComputeWarps * kGroup * D * 4;
  static constexpr int kTotals = kTops + kComputeWarps * kGroup * 4;

  struct Where {  // what this task sees: `cached` keys of memory, and the new one when there is room for it
    int part, head, split, position, cached;  // part: of the heads of q
    bool appends;
    MKC_DEVICE Where(const Range* r, int64 at) : part(r[0].begin), head(r[0].begin / Shares), split(r[1].begin) {
      position = static_cast<int>(at < 0 ? -1 : at < Room ? at : Room);
      appends = position >= 0 && position < Room;
      cached = position < 0 ? 0 : position;
    }
    MKC_DEVICE int keys() const { return cached + appends; }
    MKC_DEVICE int hidden() const { return Window > 0 && position >= Window ? position - Window + 1 : 0; }  // keys out of sight
    MKC_DEVICE int first(int tile) const {
      const int round = tile / (kBlock / kTile) + hidden() / (kBlock * Splits);
      return (round * Splits + split) * kBlock + tile % (kBlock / kTile) * kTile;
    }
    MKC_DEVICE bool is_empty() const { return first(0) >= keys(); }
    MKC_DEVICE bool owns_new() const { return appends && part % Shares == 0 && position / kBlock % Splits == split; }
  };

  // ---- the compute part: keys and values come from memory while q is still on its way
  template <class Page>
  MKC_DEVICE static void compute(Compute<Page>& c) {
    const Entry& entry = c.begin();
    const Where where(entry.task.ranges, c.position(entry.operands[7]));
    const bf16* const keys = Cache(entry.operands[2]).data + where.head * Step0;
    const bf16* const values = Cache(entry.operands[3]).data + where.head * Step0;
    const auto [warp, g, t] = c.place();
    const int count = where.keys();
    Quad k[2][kThirties], v[4][kSixties];
    const auto load_keys = [&](int first) {
      MKC_UNROLL
      for (int u = 0; u < 2; ++u) {
        const int row = first + u * 8 + g;
        MKC_UNROLL
        for (int j = 0; j < kThirties; ++j)
          k[u][j] = row < where.cached && j * 32 + t * 8 < D ? load_quad(keys + row * Step1 + j * 32 + t * 8) : Quad{};
      }
    };
    const auto load_values = [&](int first) {
      MKC_UNROLL
      for (int u = 0; u < 4; ++u) {
        const int row = first + u / 2 * 8 + 2 * t + u % 2;
        MKC_UNROLL
        for (int j = 0; j < kSixties; ++j)
          v[u][j] = row < where.cached && j * 64 + g * 8 < D ? load_quad(values + row * Step1 + j * 64 + g * 8) : Quad{};
      }
    };
    const auto append_value = [&](int first) {
      if (!where.appends || where.position < first || first + kTile <= where.position) return;
      MKC_UNROLL
      for (int j = 0; j < kSixties; ++j) {
        const Quad row = j * 64 + g * 8 < D ? load_shared(c.input + kNewValue * kPitch + (j * 64 + g * 8) * 2) : Quad{};
        MKC_UNROLL
        for (int u = 0; u < 4; ++u)
          if (first + u / 2 * 8 + 2 * t + u % 2 == where.position) v[u][j] = row;
      }
    };
    float out[kSixties * 8][2] = {}, top = kLeast, total = 0.0f;
    int tile = warp, first = where.first(tile);
    MKC_NO_UNROLL
    for (bool waited = false;; first = where.first(tile += kComputeWarps)) {
      if (first < count) load_keys(first);
      if (kAhead && first < count) load_values(first);
      if (!waited) meet(kInputReady, kBothThreads), waited = true;
      if (first >= count) break;
      if (where.appends && first <= where.position && where.position < first + kTile) {  // the new key
        MKC_UNROLL
        for (int j = 0; j < kThirties; ++j) {
          const Quad row = j * 32 + t * 8 < D ? load_shared(c.input + kNewKey * kPitch + (j * 32 + t * 8) * 2) : Quad{};
          MKC_UNROLL
          for (int u = 0; u < 2; ++u)
            if (first + u * 8 + g == where.position) k[u][j] = row;
        }
      }
      if (kAhead) append_value(first);
      float s[2][2] = {};
      MKC_UNROLL
      for (int j = 0; j < kThirties; ++j) {
        const Quad q = j * 32 + t * 8 < D ? load_shared(c.input + g * kPitch + (j * 32 + t * 8) * 2) : Quad{};
        MKC_UNROLL
        for (int u = 0; u < 2; ++u) {
          multiply_upper(s[u], q.x, q.y, k[u][j].x, k[u][j].y);
          multiply_upper(s[u], q.z, q.w, k[u][j].z, k[u][j].w);
        }
      }
      if (!kAhead) load_values(first), append_value(first);
      float highest = top;
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int key = first + i / 2 * 8 + 2 * t + i % 2;
        const bool seen = key < count && (Window == 0 || key >= where.hidden());
        s[i / 2][i % 2] = seen ? s[i / 2][i % 2] * (Scale::of() * 1.44269504088896341f) : kLeast;
        highest = max(highest, s[i / 2][i % 2]);
      }
      MKC_UNROLL
      for (int bit = 1; bit < 4; bit *= 2) highest = max(highest, __shfl_xor_sync(0xFFFFFFFFu, highest, bit));
      const float shrink = exp2(top - highest);
      top = highest, total *= shrink;
      uint32 p[2];
      MKC_UNROLL
      for (int u = 0; u < 2; ++u) {
        const float one = s[u][0] > kLeast ? exp2(s[u][0] - highest) : 0.0f, two = s[u][1] > kLeast ? exp2(s[u][1] - highest) : 0.0f;
        p[u] = pair_of(one, two);
        total += low(p[u]) + high(p[u]);
      }
      MKC_UNROLL
      for (int i = 0; i < kSixties * 8; ++i) out[i][0] *= shrink, out[i][1] *= shrink;
      MKC_UNROLL
      for (int j = 0; j < kSixties; ++j) {
        const uint32 rows[4][4] = {{v[0][j].x, v[0][j].y, v[0][j].z, v[0][j].w}, {v[1][j].x, v[1][j].y, v[1][j].z, v[1][j].w},
                                   {v[2][j].x, v[2][j].y, v[2][j].z, v[2][j].w}, {v[3][j].x, v[3][j].y, v[3][j].z, v[3][j].w}};
        MKC_UNROLL
        for (int e = 0; e < 4; ++e) {  // pairs of dims become pairs of keys
          multiply_upper(out[j * 8 + 2 * e], p[0], p[1], __byte_perm(rows[0][e], rows[1][e], 0x5410), __byte_perm(rows[2][e], rows[3][e], 0x5410));
          multiply_upper(out[j * 8 + 2 * e + 1], p[0], p[1], __byte_perm(rows[0][e], rows[1][e], 0x7632), __byte_perm(rows[2][e], rows[3][e], 0x7632));
        }
      }
    }
    MKC_UNROLL
    for (int bit = 1; bit < 4; bit *= 2) total += __shfl_xor_sync(0xFFFFFFFFu, total, bit);
    if (g < kGroup) {
      const uint32 row = warp * kGroup + g, to = c.input + kResults + row * D * 4;
      if (total > 0.0f || Window > 0) {  // a window may hide all of a warp's keys
        MKC_UNROLL
        for (int i = 0; i < kSixties * 8; ++i) {  // column 2t of mma i is dim i % 8 of the 8 that lane row 2t holds
          const int dim = i / 8 * 64 + 2 * t * 8 + i % 8;
          if (dim < D) store_shared(to + dim * 4, out[i][0]);
          if (dim + 8 < D) store_shared(to + (dim + 8) * 4, out[i][1]);
        }
      }
      if (t == 0) store_shared(c.input + kTops + row * 4, top), store_shared(c.input + kTotals + row * 4, total);
    }
    arrive(kSumsReady, kBothThreads);
  }

  // ---- the talking part
  // Two tasks earlier: keys and values that memory has had since earlier steps. A position that is out of date does no harm.
  template <class Page>
  MKC_DEVICE static void ahead(const Herald<Page>& herald, void* const* p, const Range* r) {
    constexpr int kLines = kSixties;  // of a row
    const Where where(r, herald.position(p[7]));
    MKC_NO_UNROLL
    for (int i = herald.thread();; i += 32) {
      const int row = where.first(i / kLines / kTile) + i / kLines % kTile;
      if (row >= where.cached) break;
      const long long at = where.head * Step0 + row * Step1 + i % kLines * 64;
      fetch_ahead(Cache(p[2]).data + at), fetch_ahead(Cache(p[3]).data + at);
    }
  }
  template <class Page>
  MKC_DEVICE static void talk(Talk<Page>& talk, void* const* p, const Range* r) {
    const int64 position = talk.position(p[7]);
    const Where where(r, position);
    talk.keep_position(p[7], position);
    talk.compute_may_begin();
    if (!where.is_empty()) bring(talk, p, where);
    talk.input_is_ready();
    talk.await_sums();
    publish(talk, p, where);
    sync();  // what was found lies where the next task's input goes
  }

 private:
  // the new rows, 8 elements to a thread: normalised, rotated, into shared memory, and into the cache
  template <class Page>
  MKC_DEVICE static void bring(Talk<Page>& talk, void* const* p, const Where& where) {
    constexpr int kLanes = D > 128 ? 32 : D > 64 ? 16 : D > 32 ? 8 : D > 16 ? 4 : 2;  // some may have nothing to do
    constexpr int kRows = kTalkThreads / kLanes, kPasses = (kGroup + 2 + kRows - 1) / kRows;
    const int column = talk.thread() % kLanes * 8;
    Angles cos{}, sin{};
    if (column < Turned) cos.load(p[10 + 2 * Norm], column), sin.load(p[11 + 2 * Norm], column);
    Quad gains[Norm ? kPasses : 1];
    MKC_UNROLL
    for (int pass = 0; pass < kPasses && Norm; ++pass) {
      const bool of_q = pass * kRows + talk.thread() / kLanes < kGroup;
      gains[pass] = column < D ? *reinterpret_cast<const Quad*>(static_cast<const bf16*>(p[of_q ? 10 : 11]) + column) : Quad{};
    }
    talk.let_others_finish();
    MKC_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = pass * kRows + talk.thread() / kLanes;
      const bool mine = row < kGroup + 2 && column < D;
      float x[8] = {};
      take(talk, p, where, mine ? row : -1, column, x);
      __syncwarp();
      if constexpr (Norm) normalise<kLanes>(x, gains[pass], row <= kGroup);
      if constexpr (Turned > 0) rotate(x, cos, sin, column, row <= kGroup);
      const Quad made = eight(x);
      if (!mine) continue;
      store_shared(talk.input + (row < kGroup ? row : row - kGroup + kNewKey) * kPitch + column * 2, made);
      if (row >= kGroup && where.owns_new()) {
        bf16* const cache = Cache(p[row == kGroup ? 2 : 3]).data + where.head * Step0 + where.position * Step1;
        *reinterpret_cast<Quad*>(cache + column) = made;
      }
    }
  }
  // 8 elements of that row of q, of k or of v
  template <class Page>
  MKC_DEVICE static void take(Talk<Page>& talk, void* const* p, const Where& where, int row, int column, float (&x)[8]) {
    const int head = where.part * kGroup + row;
    if constexpr (kIsPublished<Q> && kIsPublished<K> && kIsPublished<V>) {
      const uint64* const from = row < kGroup ? Q(p[4]).data + (head * kStep<Q> + column) / 4
                               : row == kGroup ? K(p[5]).data + (where.head * kStep<K> + column) / 4
                                               : V(p[6]).data + (where.head * kStep<V> + column) / 4;
      if (row >= 0) take(talk, from, x);
    } else {
      if (row >= 0 && row < kGroup) take(talk, Q(p[4]).data + (head * kStep<Q> + column) / kEach<Q>, x);
      if (row == kGroup) take(talk, K(p[5]).data + (where.head * kStep<K> + column) / kEach<K>, x);
      if (row == kGroup + 1) take(talk, V(p[6]).data + (where.head * kStep<V> + column) / kEach<V>, x);
    }
  }
  template <class Page>
  MKC_DEVICE static void take(Talk<Page>& talk, const uint64* from, float (&x)[8]) {
    const uint32 bits = use_bits(talk.use);
    TwoWords words;
    talk.poll([&] { return is_of(words = load_words(from), bits); });
    eight(values(words), x);
    MKC_UNROLL
    for (int i = 0; i < 8; ++i) x[i] *= kUnscaled;
  }
  template <class Page>
  MKC_DEVICE static void take(Talk<Page>&, const bf16* from, float (&x)[8]) {
    eight(load_quad(from), x);
  }
  struct Angles {  // 8 cosines or sines
    Quad raw[sizeof(Angle) / 2];
    MKC_DEVICE void load(const void* line, int column) {
      MKC_UNROLL
      for (int i = 0; i < static_cast<int>(sizeof(Angle) / 2); ++i) raw[i] = load_quad(static_cast<const Angle*>(line) + column + 4 * i);
    }
    MKC_DEVICE float operator[](int i) const {
      const Quad& quad = raw[sizeof(Angle) == 2 ? 0 : i / 4];
      const uint32 words[4] = {quad.x, quad.y, quad.z, quad.w};
      if constexpr (sizeof(Angle) == 2) return i % 2 ? high(words[i / 2]) : low(words[i / 2]);
      else return __uint_as_float(words[i % 4]);
    }
  };
  template <int Lanes>
  MKC_DEVICE static void normalise(float (&x)[8], const Quad& gain, bool wanted) {
    float squares = 0.0f, by[8];
    MKC_UNROLL
    for (int i = 0; i < 8; ++i) squares += x[i] * x[i];
    MKC_UNROLL
    for (int bit = Lanes / 2; bit > 0; bit /= 2) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, bit);
    const float scale = rsqrt(squares * (1.0f / D) + Eps::of());
    eight(gain, by);
    MKC_UNROLL
    for (int i = 0; i < 8; ++i)
      if (wanted) x[i] = rounded((Offset::of() == 0.0f ? rounded(x[i] * scale) : x[i] * scale) * (by[i] + Offset::of()));
  }
  // x cos + (-second half, first half) sin
  MKC_DEVICE static void rotate(float (&x)[8], const Angles& cos, const Angles& sin, int column, bool wanted) {
    constexpr int kHalf = Turned / 16;  // in lanes
    const bool first_half = column < Turned / 2, turned = wanted && column < Turned;
    const int partner = lane() % 32 + (first_half ? kHalf : -kHalf);
    MKC_UNROLL
    for (int i = 0; i < 8; ++i) {
      const float other = __shfl_sync(0xFFFFFFFFu, x[i], partner);
      if (turned) x[i] = x[i] * cos[i] + (first_half ? -other : other) * sin[i];
    }
  }
  // what the compute warps found, weighed against each other
  template <class Page>
  MKC_DEVICE static void publish(Talk<Page>& talk, void* const* p, const Where& where) {
    const uint32 base = talk.input;
    uint32 misfit = 0;
    for (int word = talk.thread(); word < kGroup * D / 4; word += kTalkThreads) {
      const int row = word / (D / 4), dim = word % (D / 4) * 4, head = where.split * Heads + where.part * kGroup + row;
      Four sum = {};
      float top = kLeast, total = 0.0f;
      if (!where.is_empty()) {
        MKC_UNROLL
        for (int w = 0; w < kComputeWarps; ++w) top = max(top, load_shared_float(base + kTops + (w * kGroup + row) * 4));
        MKC_NO_UNROLL
        for (int w = 0; w < kComputeWarps && where.first(w) < where.keys(); ++w) {
          const uint32 at = w * kGroup + row;
          const float weight = exp2(load_shared_float(base + kTops + at * 4) - top);
          const Four part = load_shared_four(base + kResults + (at * D + dim) * 4);
          total += weight * load_shared_float(base + kTotals + at * 4);
          MKC_UNROLL
          for (int i = 0; i < 4; ++i) sum.at[i] += weight * part.at[i];
        }
        const float by = Window == 0 || total > 0.0f ? inverse(total) : 0.0f;
        MKC_UNROLL
        for (int i = 0; i < 4; ++i) sum.at[i] *= by;
      }
      store_word(Parts(p[0]).data + (head * D + dim) / 4, word_of(sum, use_bits(talk.use), misfit));
      const uint64 level = word_of(total > 0.0f ? top + log2(total) : kLeast, talk.use);
      for (int i = dim / 4; i < kLine; i += D / 4) store_word(Lse(p[1]).data + head * kLine + i, level);
    }
    talk.report(misfit);
  }
};

}  // namespace mkc
