// Attention of one new token: rotates q and k, appends k and v to their cache, and sees every `Splits`-th block of keys
#pragma once

#include <mkc/any_attention.cuh>
#include <mkc/expr.cuh>

namespace mkc::ops {

// A cache [KV, T, D], or [B, KV, T, D] of B sequences, whose heads follow each other.
template <class V>
struct CacheOf;
template <int Kv, int Room, int D, long long Step0, long long Step1>
struct CacheOf<View<bf16, Shape<Kv, Room, D>, Stride<Step0, Step1, 1>>> {
  static constexpr int kBatch = 1, kHeads = Kv, kRoom = Room;
  static constexpr long long kStep0 = Step0, kStep1 = Step1;
};
template <int Batch, int Kv, int Room, int D, long long Step, long long Step0, long long Step1>
struct CacheOf<View<bf16, Shape<Batch, Kv, Room, D>, Stride<Step, Step0, Step1, 1>>>
    : CacheOf<View<bf16, Shape<Kv, Room, D>, Stride<Step0, Step1, 1>>> {
  static_assert(Step == Kv * Step0);
  static constexpr int kBatch = Batch;
};
// How far apart the rows of sequences are: 0 where there is one.
template <class... V>
constexpr int kApart = 0;
template <class T, int Batch, int N, int D, long long Step, long long S, long long One>
constexpr int kApart<Words<T, Shape<Batch, N, D>, Stride<Step, S, One>>> = Step;
template <class T, int Batch, int D, long long Step>
constexpr int kApart<View<T, Shape<Batch, D>, Stride<Step, 1>>> = Step;
template <class First, class Second, class... More>
constexpr int kApart<First, Second, More...> = kApart<Second, More...>;  // of the last

// For heads of 64 or 128 that are turned whole or not at all, and rows that are published one after the other.
// Operands: parts, lse, the caches; q, k, v, position, the caches, the gains with Norm, cos and sin with Rotary.
// A task is a sequence, where there are several, a head of keys and a split. Rows of a tensor core's fragments are the heads
// of q that share those keys.
template <class Scale, class Eps, bool Norm, bool Rotary, int Splits, int Heads, int D, class Parts, class Lse, class Keys,
          class Values, class Q, class K, class V, class... Rest>
struct SwiftAttention {
  using Of = CacheOf<Keys>;
  static constexpr int kBatch = Of::kBatch, KvHeads = Of::kHeads, Room = Of::kRoom;
  static constexpr long long Step0 = Of::kStep0, Step1 = Of::kStep1;
  static_assert(D == 64 || D == 128, "rows that a few lanes hold");
  using Cache = Keys;
  static constexpr int kGroup = Heads / KvHeads, kTile = kKeyTile, kBlock = kKeyBlock;
  static constexpr int kPitch = D * 2 + 16, kNewKey = 8, kNewValue = 9;  // rows in shared memory: q, then k and v
  // Then what the compute warps found: sums [warp, head, D], the highest score and the total [head, warp], and the new
  // key's weight [head].
  static constexpr int kResults = 10 * kPitch, kTops = kResults + kComputeWarps * kGroup * D * 4;
  static constexpr int kTotals = kTops + kComputeWarps * kGroup * 4, kNewWeight = kTotals + kComputeWarps * kGroup * 4;

  struct Where {  // what this task sees: `cached` keys of memory, and the new one when there is room for it
    int head, split, position, cached, sequence;  // heads of all sequences are numbered in turn
    bool appends;
    MKC_DEVICE Where(const Range* r, int64 at) : head(r[0].begin), split(r[1].begin), sequence(0) {
      if constexpr (kBatch > 1) sequence = r[0].begin, head = sequence * KvHeads + r[1].begin, split = r[2].begin;
      position = static_cast<int>(at < 0 ? -1 : at < Room ? at : Room);
      appends = position >= 0 && position < Room;
      cached = position < 0 ? 0 : position;
    }
    MKC_DEVICE int keys() const { return cached + appends; }
    MKC_DEVICE int first(int round) const { return (round * Splits + split) * kBlock; }  // key of a round of all warps
    MKC_DEVICE bool is_empty() const { return first(0) >= keys(); }
    MKC_DEVICE bool owns_new() const { return appends && position / kBlock % Splits == split; }
    MKC_DEVICE int owner() const { return position / kTile % kComputeWarps; }  // the warp that sees the new key
  };

  // A warp's tile of 16 keys, as b operands of the tensor cores. Rows that memory does not have are zero.
  struct KeyTile {
    Quad at[2][D / 32];
    MKC_DEVICE void load(const bf16* keys, int first, int cached, int g, int t) {
      MKC_UNROLL
      for (int u = 0; u < 2; ++u) {
        const int row = first + u * 8 + g;
        const bf16* const from = keys + row * Step1 + t * 8;
        MKC_UNROLL
        for (int j = 0; j < D / 32; ++j) at[u][j] = row < cached ? load_quad(from + j * 32) : Quad{};
      }
    }
    MKC_DEVICE void take_new(uint32 row, int place, int g, int t) {
      MKC_UNROLL
      for (int j = 0; j < D / 32; ++j) {
        const Quad key = load_shared(row + (j * 32 + t * 8) * 2);
        MKC_UNROLL
        for (int u = 0; u < 2; ++u)
          if (u * 8 + g == place) at[u][j] = key;
      }
    }
  };
  struct ValueTile {  // rows come in, pairs of keys leave
    Quad at[4][D / 64];
    MKC_DEVICE void load(const bf16* values, int first, int cached, int g, int t) {
      MKC_UNROLL
      for (int u = 0; u < 4; ++u) {
        const int row = first + u / 2 * 8 + 2 * t + u % 2;
        const bf16* const from = values + row * Step1 + g * 8;
        MKC_UNROLL
        for (int j = 0; j < D / 64; ++j) at[u][j] = row < cached ? load_quad(from + j * 64) : Quad{};
      }
    }
    MKC_DEVICE void pair_up() {  // pairs of dims become pairs of keys
      MKC_UNROLL
      for (int u = 0; u < 4; u += 2) {
        MKC_UNROLL
        for (int j = 0; j < D / 64; ++j) {
          const Quad one = at[u][j], two = at[u + 1][j];
          at[u][j] = {permuted<0x5410>(one.x, two.x), permuted<0x5410>(one.y, two.y), permuted<0x5410>(one.z, two.z), permuted<0x5410>(one.w, two.w)};
          at[u + 1][j] = {permuted<0x7632>(one.x, two.x), permuted<0x7632>(one.y, two.y), permuted<0x7632>(one.z, two.z), permuted<0x7632>(one.w, two.w)};
        }
      }
    }
  };

  MKC_DEVICE static int64* position_of(void* const* p, const Range* r) { return static_cast<int64*>(p[7]) + (kBatch > 1 ? r[0].begin : 0); }

  // ---- the compute part: keys and values come from memory while q is still on its way
  template <class Page>
  MKC_DEVICE static void compute(Compute<Page>& c) {
    const Entry& entry = c.begin();
    const Where where(entry.task.ranges, c.position(position_of(entry.operands, entry.task.ranges)));
    if (where.is_empty()) return meet(kInputReady, kBothThreads);
    Found found;
    {
      KeyTile k;
      ValueTile v;
      load(c, entry, where, 0, k, v);
      meet(kInputReady, kBothThreads);
      see(c, where, 0, k, v, found);
    }
    MKC_NO_UNROLL
    for (int round = 1; where.first(round) < where.keys(); ++round) {
      KeyTile k;
      ValueTile v;
      load(c, entry, where, round, k, v);
      see(c, where, round, k, v, found);
    }
    const auto [warp, g, t] = c.place();
    MKC_UNROLL
    for (int bit = 1; bit < 4; bit *= 2) found.total += __shfl_xor_sync(0xFFFFFFFFu, found.total, bit);
    if (g < kGroup && t == 0) {
      store_shared(c.input + kTops + (g * kComputeWarps + warp) * 4, found.top);
      store_shared(c.input + kTotals + (g * kComputeWarps + warp) * 4, found.total);
    }
    arrive(kSumsReady, kBothThreads);
  }
  struct Found {  // in the rounds so far: the highest score, and this lane's part of the total
    float top = kLeast, total = 0.0f;
  };
  template <class Page>
  MKC_DEVICE static void load(const Compute<Page>& c, const Entry& entry, const Where& where, int round, KeyTile& k, ValueTile& v) {
    const auto [warp, g, t] = c.place();
    const int first = where.first(round) + warp * kTile;
    k.load(Cache(entry.operands[2]).data + where.head * Step0, first, where.cached, g, t);
    v.load(Cache(entry.operands[3]).data + where.head * Step0, first, where.cached, g, t);
    v.pair_up();
  }
  // A round of this warp: scores, their weights, and the weighted sums of values.
  template <class Page>
  MKC_DEVICE static void see(const Compute<Page>& c, const Where& where, int round, KeyTile& k, const ValueTile& v, Found& found) {
    const auto [warp, g, t] = c.place();
    const int first = where.first(round) + warp * kTile, seen = where.keys() - first;
    const int place = where.appends ? where.position - first : -1;  // the new key, in the tile
    float out[D / 8][2] = {}, shrink = 1.0f;
    if (seen > 0) {
      if (0 <= place && place < kTile) k.take_new(c.input + kNewKey * kPitch, place, g, t);
      float s[2][2] = {}, more[2][2] = {};
      MKC_UNROLL
      for (int j = 0; j < D / 32; ++j) {
        const Quad q = load_shared(c.input + g * kPitch + (j * 32 + t * 8) * 2);
        MKC_UNROLL
        for (int u = 0; u < 2; ++u) {
          multiply_upper(s[u], q.x, q.y, k.at[u][j].x, k.at[u][j].y);
          multiply_upper(more[u], q.z, q.w, k.at[u][j].z, k.at[u][j].w);
        }
      }
      float highest = found.top;
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) {
        float& score = s[i / 2][i % 2];
        score = i / 2 * 8 + 2 * t + i % 2 < seen ? (score + more[i / 2][i % 2]) * (Scale::of() * 1.44269504088896341f) : kLeast;
        highest = max(highest, score);
      }
      MKC_UNROLL
      for (int bit = 1; bit < 4; bit *= 2) highest = max(highest, __shfl_xor_sync(0xFFFFFFFFu, highest, bit));
      shrink = exp2(found.top - highest);
      found.top = highest, found.total *= shrink;
      uint32 p[2];
      MKC_UNROLL
      for (int u = 0; u < 2; ++u) {
        p[u] = pair_of(exp2(s[u][0] - highest), exp2(s[u][1] - highest));
        found.total += low(p[u]) + high(p[u]);
      }
      MKC_UNROLL
      for (int i = 0; i < 4; ++i)
        if (i / 2 * 8 + 2 * t + i % 2 == place && g < kGroup) store_shared(c.input + kNewWeight + g * 4, i % 2 ? high(p[i / 2]) : low(p[i / 2]));
      MKC_UNROLL
      for (int j = 0; j < D / 64; ++j) {
        const uint32 front[8] = {v.at[0][j].x, v.at[1][j].x, v.at[0][j].y, v.at[1][j].y, v.at[0][j].z, v.at[1][j].z, v.at[0][j].w, v.at[1][j].w};
        const uint32 back[8] = {v.at[2][j].x, v.at[3][j].x, v.at[2][j].y, v.at[3][j].y, v.at[2][j].z, v.at[3][j].z, v.at[2][j].w, v.at[3][j].w};
        MKC_UNROLL
        for (int i = 0; i < 8; ++i) multiply_upper(out[j * 8 + i], p[0], p[1], front[i], back[i]);
      }
    }
    if (g < kGroup) keep(c.input + kResults + ((warp * kGroup + g) * D + 16 * t) * 4, out, shrink, round > 0);
  }
  // A round's sums, added to those of the rounds before. Column 2t of mma i is dim i % 8 of the 8 that lane row 2t holds.
  MKC_DEVICE static void keep(uint32 results, const float (&out)[D / 8][2], float shrink, bool add) {
    MKC_UNROLL
    for (int i = 0; i < D / 8; i += 4) {
      MKC_UNROLL
      for (int column = 0; column < 2; ++column) {
        const uint32 to = results + (i / 8 * 64 + column * 8 + i % 8) * 4;
        Four sum = {out[i][column], out[i + 1][column], out[i + 2][column], out[i + 3][column]};
        if (add) {
          const Four before = load_shared_four(to);
          MKC_UNROLL
          for (int e = 0; e < 4; ++e) sum.at[e] += shrink * before.at[e];
        }
        store_shared(to, sum);
      }
    }
  }

  // ---- the talking part
  // Two tasks earlier: keys and values that memory has had since earlier steps. A position that is out of date does no harm.
  template <class Page>
  MKC_DEVICE static void ahead(const Herald<Page>& herald, void* const* p, const Range* r) {
    constexpr int kLines = D * 2 / 128;  // of a row
    const Where where(r, herald.position(position_of(p, r)));
    MKC_NO_UNROLL
    for (int i = herald.thread();; i += 32) {
      const int row = where.first(i / kLines / kBlock) + i / kLines % kBlock;
      if (row >= where.cached) break;
      const long long at = where.head * Step0 + row * Step1 + i % kLines * 64;
      fetch_ahead(Cache(p[2]).data + at), fetch_ahead(Cache(p[3]).data + at);
    }
  }
  template <class Page>
  MKC_DEVICE static void talk(Talk<Page>& talk, void* const* p, const Range* r) {
    const int64 position = talk.position(position_of(p, r));
    const Where where(r, position);
    talk.keep_position(position_of(p, r), position);
    talk.compute_may_begin();
    if (where.is_empty()) {
      talk.pass_by();  // and publish when everyone has read the position
      return publish_nothing(talk, p, where);
    }
    bring(talk, p, where);
    talk.input_is_ready();
    talk.await_sums();
    publish(talk, p, where);
    sync();  // what was found lies where the next task's input goes
  }

 private:
  // The new rows: normalised, rotated, into shared memory, and into the cache. A lane holds four elements of each half of a
  // row, so that those which are rotated together are at hand.
  template <class Page>
  MKC_DEVICE static void bring(Talk<Page>& talk, void* const* p, const Where& where) {
    constexpr int kLanes = D / 8, kRows = kTalkThreads / kLanes, kPasses = (kGroup + 2 + kRows - 1) / kRows;
    const int column = talk.thread() % kLanes * 4, first_row = talk.thread() / kLanes;
    const uint32 bits = use_bits(talk.use);
    Pair cos[2], sin[2], gains[kPasses][2];
    MKC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int at = half * (D / 2) + column;
      if constexpr (Rotary) cos[half] = load_pair(static_cast<const bf16*>(p[10 + 2 * Norm]) + where.sequence * kApart<Rest...> + at);
      if constexpr (Rotary) sin[half] = load_pair(static_cast<const bf16*>(p[11 + 2 * Norm]) + where.sequence * kApart<Rest...> + at);
      MKC_UNROLL
      for (int pass = 0; pass < kPasses && Norm; ++pass)
        gains[pass][half] = *reinterpret_cast<const Pair*>(static_cast<const bf16*>(p[pass * kRows + first_row < kGroup ? 10 : 11]) + at);
    }
    talk.let_others_finish();
    uint64 words[kPasses][2];
    talk.poll([&] {
      bool all = true;
      MKC_UNROLL
      for (int i = 0; i < 2 * kPasses; ++i) {
        const int row = i / 2 * kRows + first_row;
        const int head = where.head - where.sequence * KvHeads;
        const uint64* const from = row < kGroup ? Q(p[4]).data + where.sequence * (kApart<Q> / 4) + (head * kGroup + row) * (D / 4)
                                                : (row == kGroup ? K(p[5]).data : V(p[6]).data) + where.sequence * (kApart<K> / 4) + head * (D / 4);
        words[i / 2][i % 2] = row < kGroup + 2 ? load_word(from + (i % 2 * (D / 2) + column) / 4) : bits | static_cast<uint64>(bits) << 32;
      }
      MKC_UNROLL
      for (int i = 0; i < 2 * kPasses; ++i) all &= is_of(words[i / 2][i % 2], bits);
      return all;
    });
    __syncwarp();
    MKC_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = pass * kRows + first_row;
      Four x[2] = {four(values(words[pass][0])), four(values(words[pass][1]))};
      MKC_UNROLL
      for (int i = 0; i < 8; ++i) x[i / 4].at[i % 4] *= kUnscaled;
      if constexpr (Norm) normalise(x, gains[pass], row <= kGroup);
      if (Rotary && row <= kGroup) rotate(x, cos, sin);
      if (row >= kGroup + 2) continue;
      MKC_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int at = half * (D / 2) + column;
        const Pair made = four(x[half]);
        store_shared(talk.input + (row < kGroup ? row : row - kGroup + kNewKey) * kPitch + at * 2, made);
        if (row >= kGroup && where.owns_new())
          *reinterpret_cast<Pair*>(Cache(p[row == kGroup ? 2 : 3]).data + where.head * Step0 + where.position * Step1 + at) = made;
      }
    }
  }
  MKC_DEVICE static Pair load_pair(const bf16* p) {
    Pair v;
    asm volatile("ld.global.v2.b32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
    return v;
  }
  MKC_DEVICE static void normalise(Four (&x)[2], const Pair (&gain)[2], bool wanted) {
    float squares = 0.0f;
    MKC_UNROLL
    for (int i = 0; i < 8; ++i) squares += x[i / 4].at[i % 4] * x[i / 4].at[i % 4];
    MKC_UNROLL
    for (int bit = D / 16; bit > 0; bit /= 2) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, bit);
    const float scale = rsqrt(squares * (1.0f / D) + Eps::of());
    if (!wanted) return;
    MKC_UNROLL
    for (int half = 0; half < 2; ++half) {
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) x[half].at[i] *= scale;
      const Pair made = four(x[half]);
      x[half] = four(Pair{product(made.x, gain[half].x), product(made.y, gain[half].y)});
    }
  }
  MKC_DEVICE static void rotate(Four (&x)[2], const Pair (&cosines)[2], const Pair (&sines)[2]) {
    const Four cos[2] = {four(cosines[0]), four(cosines[1])}, sin[2] = {four(sines[0]), four(sines[1])};
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float one = x[0].at[i], two = x[1].at[i];
      x[0].at[i] = one * cos[0].at[i] - two * sin[0].at[i];
      x[1].at[i] = two * cos[1].at[i] + one * sin[1].at[i];
    }
  }
  // what the compute warps found, weighed against each other
  template <class Page>
  MKC_DEVICE static void publish(Talk<Page>& talk, void* const* p, const Where& where) {
    const uint32 base = talk.input;
    uint32 misfit = 0;
    for (int word = talk.thread(); word < kGroup * D / 4; word += kTalkThreads) {
      const int row = word / (D / 4), dim = word % (D / 4) * 4;
      const uint32 tops = base + kTops + row * kComputeWarps * 4;
      float weight[kComputeWarps], top = kLeast, total = 0.0f;
      Four sum = {};
      MKC_UNROLL
      for (int w = 0; w < kComputeWarps; w += 4) {
        const Four found = load_shared_four(tops + w * 4);
        MKC_UNROLL
        for (int i = 0; i < 4; ++i) weight[w + i] = found.at[i], top = max(top, found.at[i]);
      }
      MKC_UNROLL
      for (int w = 0; w < kComputeWarps; ++w) {
        if (w % 4 == 0) add_totals(weight, w, top, load_shared_four(base + kTotals + (row * kComputeWarps + w) * 4), total);
        const Four part = load_shared_four(base + kResults + ((w * kGroup + row) * D + dim) * 4);
        MKC_UNROLL
        for (int i = 0; i < 4; ++i) sum.at[i] += weight[w] * part.at[i];
      }
      if (where.owns_new()) {  // whose value came too late for the tensor cores
        const float by = exp2(load_shared_float(tops + where.owner() * 4) - top) * load_shared_float(base + kNewWeight + row * 4);
        const Four value = four(load_shared_pair(base + kNewValue * kPitch + dim * 2));
        MKC_UNROLL
        for (int i = 0; i < 4; ++i) sum.at[i] += by * value.at[i];
      }
      const float by = inverse(total);
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) sum.at[i] *= by;
      const int head = where.split * kBatch * Heads + where.head * kGroup + row;
      store_word(Parts(p[0]).data + (head * D + dim) / 4, word_of(sum, use_bits(talk.use), misfit));
      if (dim / 4 < kLine) store_word(Lse(p[1]).data + head * kLine + dim / 4, word_of(top + log2(total), talk.use));
    }
    talk.report(misfit);
  }
  MKC_DEVICE static void add_totals(float (&weight)[kComputeWarps], int from, float top, const Four& totals, float& total) {
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) {
      weight[from + i] = exp2(weight[from + i] - top);
      total += weight[from + i] * totals.at[i];
    }
  }
  // No keys for this split yet. Its words are of this use all the same, or a later use would take them for its own.
  template <class Page>
  MKC_DEVICE static void publish_nothing(const Talk<Page>& talk, void* const* p, const Where& where) {
    uint32 misfit = 0;
    const int head = where.split * kBatch * Heads + where.head * kGroup;
    for (int word = talk.thread(); word < kGroup * D / 4; word += kTalkThreads)
      store_word(Parts(p[0]).data + head * (D / 4) + word, word_of(Four{}, use_bits(talk.use), misfit));
    for (int word = talk.thread(); word < kGroup * kLine; word += kTalkThreads) store_word(Lse(p[1]).data + head * kLine + word, word_of(kLeast, talk.use));
  }
};

template <bool Is, class First, class Then>
struct Either {
  using Type = First;
};
template <class First, class Then>
struct Either<false, First, Then> {
  using Type = Then;
};
template <class First, class Then>
constexpr bool kSame = false;
template <class Type>
constexpr bool kSame<Type, Type> = true;
template <class Rows, int D>
constexpr bool kFollow = kIsPublished<Rows> && kStep<Rows> == D;

template <class Scale, class Eps, class Offset, bool Norm, int Turned, int Splits, int Window, int Shares, int Heads, int D, class Parts,
          class Lse, class Keys, class Values, class Q, class K, class V, class... Rest>
struct DecodeAttention
    : Either<(D == 64 || D == 128) && (Turned == 0 || Turned == D) && kSame<Offset, Const<0.0f>> && Window == 0 && Shares == 1 && kFollow<Q, D> &&
                 kFollow<K, D> && kFollow<V, D> && sizeof(typename LastElement<Rest...>::Type) == 2,
             SwiftAttention<Scale, Eps, Norm, (Turned > 0), Splits, Heads, D, Parts, Lse, Keys, Values, Q, K, V, Rest...>,
             AnyAttention<Scale, Eps, Offset, Norm, Turned, Splits, Window, Shares, Heads, D, Parts, Lse, Keys, Values, Q, K, V, Rest...>>::Type {};

}  // namespace mkc::ops
