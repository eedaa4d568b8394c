// Attention of one new token: all of it but how its new rows come into shared memory
#pragma once

#include <mkc/key_tiles.cuh>

namespace mkc {

// A cache [KV, T, D], or [B, KV, T, D] of B sequences, or a pool [P, KV, R, D] of pages, without gaps.
template <class V>
struct CacheOf;
template <int Kv, int Room, int D, long long Head, long long Row>
struct CacheOf<View<bf16, Shape<Kv, Room, D>, Stride<Head, Row, 1>>> {
  static_assert(Row == D && Head == Row * Room);
  static constexpr int kBatch = 1, kHeads = Kv, kRoom = Room, kDepth = D;
};
template <int Batch, int Kv, int Room, int D, long long Sequence, long long Head, long long Row>
struct CacheOf<View<bf16, Shape<Batch, Kv, Room, D>, Stride<Sequence, Head, Row, 1>>>
    : CacheOf<View<bf16, Shape<Kv, Room, D>, Stride<Head, Row, 1>>> {
  static_assert(Sequence == Kv * Head);
  static constexpr int kBatch = Batch;
};

// Operands: parts, lse, the caches; q, k, v, position, and what `Rows` knows. A task is a sequence, where there are several, a
// split and some heads of q, `Shares` such tasks to a head of keys: they are the rows of a tensor core's fragments. With a
// Window only so many keys are seen, up to the position. `Rows::bring(talk, operands, where)` lays the new rows into shared
// memory and appends them to the cache. Each of `Batch` sequences has so many `Pages`, of whole blocks; then a table follows the
// caches: row t is row t % R of page table[sequence, t / R]. 0 where there are none.
template <class Rows, class Scale, int Splits, int Window, int Shares, int Heads, int Pages, int Batch, class Parts, class Lse, class Cache>
struct Attend {
  using Of = CacheOf<Cache>;
  static constexpr bool kPaged = Pages > 0;
  static constexpr int kBatch = Batch, KvHeads = Of::kHeads, Room = Of::kRoom * (kPaged ? Pages : 1), D = Of::kDepth;
  static constexpr int kPageRows = Of::kRoom, kPages = Of::kBatch;  // of a pool
  static constexpr int kTables = 10 + kPaged;                       // where the operands of `Rows` begin
  static_assert(kPaged ? kPageRows % kKeyBlock == 0 : Of::kBatch == Batch);
  static_assert(D % 16 == 0 && D <= 256, "rows that a few lanes hold");
  static constexpr int kGroup = Heads / KvHeads / Shares, kTile = kKeyTile, kBlock = kKeyBlock;
  static constexpr int kSixties = (D + 63) / 64, kFours = (kGroup + 3) / 4;  // of dims; of heads
  static constexpr bool kAhead = D <= 128;  // values are in registers before the input comes, as keys are
  static constexpr int kPitch = kSixties * 128 + 16, kNewKey = 8, kNewValue = 9;  // rows in shared memory: q, then k and v
  // Then what the compute warps found: sums [warp, head, D], the highest score and the total [head, warp], and the new
  // key's weight [head].
  static constexpr int kResults = 10 * kPitch, kTops = kResults + kComputeWarps * kGroup * D * 4;
  static constexpr int kTotals = kTops + kComputeWarps * kGroup * 4, kNewWeight = kTotals + kComputeWarps * kGroup * 4;

  struct Where {  // what this task sees: `cached` keys of memory, and the new one when there is room for it
    int part, split, position, cached, sequence;  // part: of the heads of q
    bool appends;
    MKC_DEVICE Where(const Range* r, int64 at) : part(r[0].begin), split(r[1].begin), sequence(0) {
      if constexpr (kBatch > 1) sequence = r[0].begin, part = r[1].begin, split = r[2].begin;
      position = static_cast<int>(at < 0 ? -1 : at < Room ? at : Room);
      appends = position >= 0 && position < Room;
      cached = position < 0 ? 0 : position;
    }
    MKC_DEVICE int head() const { return part / Shares; }  // of the sequence's keys
    MKC_DEVICE long long rows() const {  // where the head's begin, in a page where there are some
      return 1LL * ((kPaged ? 0 : sequence * KvHeads) + head()) * kPageRows * D;
    }
    // Where a row is from there on, and with it the rest of its block. Of a page outside of the pool, in that at the edge.
    MKC_DEVICE long long at(void* const* p, int row) const {
      if constexpr (!kPaged) return 1LL * row * D;
      const int64 page = page_of(p, row);
      return ((page < 0 ? 0 : page < kPages ? page : kPages - 1) * (KvHeads * kPageRows) + row % kPageRows) * D;
    }
    // A number below zero counts from the end.
    MKC_DEVICE int64 page_of(void* const* p, int row) const {
      const int64 number = static_cast<const int64*>(p[10])[sequence * Pages + row / kPageRows];
      return number < 0 ? number + kPages : number;
    }
    // Where the new row goes, of whoever owns it: looked up early where there are pages, and below zero where there is no such page.
    MKC_DEVICE long long looked_up(void* const* p) const {
      if (!kPaged || !owns_new()) return 0;
      const int64 page = page_of(p, position);
      return 0 <= page && page < kPages ? at(p, position) : -1;
    }
    MKC_DEVICE long long new_row(long long found) const { return rows() + (kPaged ? found : position * D); }
    MKC_DEVICE int first_of_q(int split) const { return (split * kBatch + sequence) * Heads + part * kGroup; }
    MKC_DEVICE int keys() const { return cached + appends; }
    MKC_DEVICE uint32 hidden() const { return Window > 0 && position >= Window ? position - Window + 1 : 0; }  // keys out of sight
    MKC_DEVICE int begin() const {  // the first block that is not hidden, of those that are dealt to this split
      if constexpr (Window == 0) return split * kBlock;
      const uint32 block = hidden() / kBlock;
      return static_cast<int>((block + (split + Splits - block % Splits) % Splits) * kBlock);
    }
    MKC_DEVICE static int then(int first) { return first + Splits * kBlock; }
    MKC_DEVICE bool is_empty() const { return begin() >= keys(); }
    MKC_DEVICE bool sees_new() const { return appends && static_cast<uint32>(position) / kBlock % Splits == static_cast<uint32>(split); }
    MKC_DEVICE bool owns_new() const { return sees_new() && part % Shares == 0; }
    MKC_DEVICE uint32 owner() const { return static_cast<uint32>(position) / kTile % kComputeWarps; }  // the warp that sees the new key
  };
  MKC_DEVICE static int64* position_of(void* const* p, const Range* r) { return static_cast<int64*>(p[7]) + (kBatch > 1 ? r[0].begin : 0); }
  MKC_DEVICE static const bf16* cache_of(void* const* p, const Where& where, bool of_values) {
    return Cache(p[2 + of_values]).data + where.rows();
  }

  // ---- the loaders' part: the slots of each block, its keys and then its values. One slot at least, though there may be
  // nothing in it: a task that waits for it is over, and the position free to change, only when the loaders have looked.
  template <class Loader>
  MKC_DEVICE static bool keys(Loader& loader, void* const* p, const Range* r) {
    constexpr int kKeys = KeySlots<D>::kKeys;
    const Where where(r, loader.position(position_of(p, r)));
    int first = where.begin();
    const bool none = first >= where.cached;
    do {
      const int end = where.cached < first + kBlock ? where.cached : first + kBlock;
      const long long moved = kPaged && !none ? where.at(p, first) - 1LL * first * D : 0;  // from where rows side by side would be
      MKC_NO_UNROLL
      for (int tensor = 0; tensor < 2; ++tensor) {
        int row = first;
        do {
          const int count = none ? 0 : end - row < kKeys ? end - row : kKeys;
          if (!loader.issue(cache_of(p, where, tensor) + moved + 1LL * row * D, count * D * 2)) return false;
          if (none) return true;
        } while ((row += kKeys) < end);
      }
    } while ((first = where.then(first)) < where.cached);
    return true;
  }
  // Where there are no loaders, two tasks earlier: what memory has had since earlier steps. A position that is out of date
  // does no harm.
  template <class Page>
  MKC_DEVICE static void ahead(const Herald<Page>& herald, void* const* p, const Range* r) {
    if constexpr (Ring<Page>::kHasKeys) return;
    const Where where(r, herald.position(position_of(p, r)));
    MKC_NO_UNROLL
    for (int first = where.begin(); first < where.cached; first = where.then(first)) {
      const long long block = where.at(p, first);
      MKC_NO_UNROLL
      for (int i = herald.thread(); i < kBlock * kSixties; i += 32) {
        const int row = i / kSixties;
        const long long at = block + row * D + i % kSixties * 64;
        if (first + row >= where.cached) break;
        fetch_ahead(cache_of(p, where, false) + at), fetch_ahead(cache_of(p, where, true) + at);
      }
    }
  }

  // ---- the compute part: the first keys and values come while q is still on its way
  template <class Page>
  MKC_DEVICE static void compute(Compute<Page>& c) {
    const Entry& entry = c.begin();
    const Where where(entry.task.ranges, c.position(position_of(entry.operands, entry.task.ranges)));
    const Fragment at = c.place();
    Tiles<D, Page> tiles{c, at.warp};
    int first = where.begin();
    if (first >= where.cached) tiles.nothing();
    if (where.is_empty()) return c.pass_by();
    const bf16* const keys = cache_of(entry.operands, where, false);
    const bf16* const values = cache_of(entry.operands, where, true);
    Found found;
    MKC_NO_UNROLL
    for (bool waited = false;; waited = true) {
      const int cached = where.cached - first, mine = first + at.warp * kTile;
      const long long block = where.at(entry.operands, first);
      KeyTile<D> k;
      ValueTile<D> v[kAhead ? kSixties : 1];
      uint32 p[2] = {};
      tiles.begin(cached);
      tiles.keys(keys + block, cached, [&](const auto& tile) { k.load(tile, at.row, at.column); });
      if constexpr (kAhead)
        tiles.values(values + block, cached, [&](const auto& tile) {
          if constexpr (kTwins<D>) return load_twins(v, tile, at.row, at.column);
          const auto mine = tile.from(2 * at.column, 8 * at.row);
          MKC_UNROLL
          for (int j = 0; j < kSixties; ++j) v[j].load(mine, j, at.row);
        });
      if (!waited) meet(kInputReady, kBothThreads);
      if (mine < where.keys()) weigh(c.input, where, at, mine, waited, k, found, p);
      if constexpr (!kAhead)
        tiles.values(values + block, cached, [&](const auto& tile) {
          const auto mine = tile.from(2 * at.column, 8 * at.row);
          MKC_UNROLL
          for (int j = 0; j < kSixties; ++j) v[0].load(mine, j, at.row), v[0].add(found.out[j], p);
        });
      MKC_UNROLL
      for (int j = 0; j < kSixties && kAhead; ++j) v[j].add(found.out[j], p);
      if ((first = where.then(first)) >= where.keys()) break;
    }
    keep(c.input, at, found);
    c.sums_are_ready();
  }
  // What a lane knows of heads t and t + 4: the highest score; and of heads 2t and 2t + 1, in its first two rows: the total, and
  // sums of 64 dims at a time.
  struct Found {
    float top[kFours], total[4] = {}, out[kSixties][4][4] = {};
    MKC_DEVICE Found() {
      MKC_UNROLL
      for (int h = 0; h < kFours; ++h) top[h] = kLeast;
    }
  };
  // The keys of a tile, from `first` on: p, their weights against the highest score so far, as a b operand. What was found
  // before shrinks to that. Of a tile that a window hides all scores are the least there is, and what is found there weighs
  // nothing in the end.
  MKC_DEVICE static void weigh(uint32 input, const Where& where, const Fragment& at, int first, bool again, KeyTile<D>& k, Found& found,
                               uint32 (&p)[2]) {
    const int g = at.row, t = at.column, seen = where.keys() - first, hidden = static_cast<int>(where.hidden()) - first;
    const int place = where.appends ? where.position - first : -1;  // the new key, in the tile
    if (0 <= place && place < kTile) k.take_new(input + kNewKey * kPitch, place, g, t);
    uint32 weights[kFours];  // of keys g and g + 8
    float shrink[kFours];
    MKC_UNROLL
    for (int h = 0; h < kFours; ++h) {
      float s[2], &top = found.top[h], highest = top;
      k.score(s, input + 4 * h * kPitch, kPitch, g, t);
      MKC_UNROLL
      for (int u = 0; u < 2; ++u) {
        const int key = u * 8 + g;
        s[u] = key < seen && (Window == 0 || key >= hidden) ? s[u] * (Scale::of() * 1.44269504088896341f) : kLeast;
        highest = max(highest, s[u]);
      }
      MKC_UNROLL
      for (int bit = 4; bit < 32; bit *= 2) highest = max(highest, __shfl_xor_sync(0xFFFFFFFFu, highest, bit));
      shrink[h] = exp2(top - highest), top = highest;
      weights[h] = pair_of(exp2(s[0] - highest), exp2(s[1] - highest));
      if (place >= 0 && place % 8 == g && place < kTile && 4 * h + t < kGroup)
        store_shared(input + kNewWeight + (4 * h + t) * 4, place < 8 ? low(weights[h]) : high(weights[h]));
    }
    const uint32 even = of_head(weights, g / 4, 2 * t * 4 + g % 4), odd = of_head(weights, g / 4, (2 * t + 1) * 4 + g % 4);
    p[0] = permuted<0x5410>(even, odd), p[1] = permuted<0x7632>(even, odd);
    if (again) {
      const float one = of_head(shrink, t / 2, 2 * t % 4), two = of_head(shrink, t / 2, 2 * t % 4 + 1);
      found.total[0] *= one, found.total[1] *= two;
      MKC_UNROLL
      for (int i = 0; i < kSixties * 16; ++i) found.out[i / 16][i / 4 % 4][i % 4] *= i % 2 ? two : one;
    }
    constexpr uint32 kOnes = 0x3F803F80u;
    multiply(found.total, Quad{kOnes, kOnes, kOnes, kOnes}, p[0], p[1]);
  }
  // What a lane holds of the heads from 4 `four` on. Columns for which there is no head get any.
  template <class T>
  MKC_DEVICE static T of_head(const T (&values)[kFours], int four, int lane) {
    T found = __shfl_sync(0xFFFFFFFFu, values[0], lane);
    if constexpr (kFours > 1) {
      const T other = __shfl_sync(0xFFFFFFFFu, values[1], lane);
      if (four) found = other;
    }
    return found;
  }
  MKC_DEVICE static void keep(uint32 input, const Fragment& at, Found& found) {
    const int warp = at.warp, g = at.row, t = at.column;
    MKC_UNROLL
    for (int h = 0; h < kFours; ++h)
      if (g == 0 && 4 * h + t < kGroup) store_shared(input + kTops + ((4 * h + t) * kComputeWarps + warp) * 4, found.top[h]);
    MKC_UNROLL
    for (int of = 0; of < 2; ++of) {
      if (2 * t + of >= kGroup) continue;
      if (g == 0) store_shared(input + kTotals + ((2 * t + of) * kComputeWarps + warp) * 4, found.total[of]);
      const uint32 sums = input + kResults + (warp * kGroup + 2 * t + of) * D * 4;
      MKC_UNROLL
      for (int i = 0; i < kSixties * 2; ++i) {
        const auto& two = found.out[i / 2];
        const int from = i % 2 * 2, eight = eight_of<D>(i / 2, g);
        if (D % 64 == 0 || eight < D)
          store_shared(sums + (eight + i % 2 * 4) * 4, Four{two[from][of], two[from][2 + of], two[from + 1][of], two[from + 1][2 + of]});
      }
    }
  }

  // ---- the talking part
  template <class Page>
  MKC_DEVICE static void talk(Talk<Page>& talk, void* const* p, const Range* r) {
    const Where where(r, talk.position(position_of(p, r)));
    talk.compute_may_begin();
    if (where.is_empty()) {
      talk.pass_by();  // and publish when everyone has read the position
      return publish_nothing(talk, p, where);
    }
    Rows::bring(talk, p, where);
    talk.input_is_ready();
    if constexpr (kPaged) look_for_strangers(talk, p, where);
    if (where.owns_new()) show_to_copies();  // the loaders bring what was appended in later steps
    talk.await_sums();
    publish(talk, p, where);
    sync();  // what was found lies where the next task's input goes
  }

 private:
  // Pages outside of the pool, among those whose keys are seen.
  template <class Page>
  MKC_DEVICE static void look_for_strangers(const Talk<Page>& talk, void* const* p, const Where& where) {
    constexpr int kStep = Splits * kBlock;
    MKC_NO_UNROLL
    for (int first = where.begin() + talk.thread() * kStep; first < where.keys(); first += kTalkThreads * kStep) {
      const int64 page = where.page_of(p, first);
      if (page < 0 || page >= kPages) [[unlikely]] talk.outside(page < 0 ? page - kPages : page, kPages);
    }
  }
  // what the compute warps found, weighed against each other
  template <class Page>
  MKC_DEVICE static void publish(Talk<Page>& talk, void* const* p, const Where& where) {
    const uint32 base = talk.input;
    uint32 misfit = 0;
    MKC_NO_UNROLL
    for (uint32 word = talk.thread(); word < kGroup * D / 4; word += kTalkThreads) {
      const uint32 row = word / (D / 4), dim = word % (D / 4) * 4;
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
      if (where.sees_new()) {  // whose value came too late for the tensor cores
        const float by = exp2(load_shared_float(tops + where.owner() * 4) - top) * load_shared_float(base + kNewWeight + row * 4);
        const Four value = four(load_shared_pair(base + kNewValue * kPitch + dim * 2));
        MKC_UNROLL
        for (int i = 0; i < 4; ++i) sum.at[i] += by * value.at[i];
      }
      const float by = inverse(total);
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) sum.at[i] *= by;
      const int head = where.first_of_q(where.split) + row;
      store_word(Parts(p[0]).data + (head * D + dim) / 4, word_of(sum, use_bits(talk.use), misfit));
      const uint64 level = word_of(top + log2(total), talk.use);
      for (uint32 i = dim / 4; i < kLine; i += D / 4) store_word(Lse(p[1]).data + head * kLine + i, level);
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
    const int head = where.first_of_q(where.split);
    MKC_NO_UNROLL
    for (int word = talk.thread(); word < kGroup * D / 4; word += kTalkThreads)
      store_word(Parts(p[0]).data + head * (D / 4) + word, word_of(Four{}, use_bits(talk.use), misfit));
    MKC_NO_UNROLL
    for (int word = talk.thread(); word < kGroup * kLine; word += kTalkThreads) store_word(Lse(p[1]).data + head * kLine + word, word_of(kLeast, talk.use));
  }
};

}  // namespace mkc
