// out = softmax(scale q kT + mask) v: a few rows at a time meet the keys in blocks, and keep a running softmax.
// Keys and values are rows of a cache, or of pages that a table names. What limits a row is nothing, a mask (boolean, or added to the scores), or the last key that it sees, and then perhaps
// a window: how many keys up to that one. With several parts, each takes every so manyth chunk of keys and leaves its sums, maximum and total for attention_merge.
#pragma once

#include <mkc/expr.cuh>
#include <mkc/fault.cuh>
#include <mkc/view.cuh>

namespace mkc::ops {

MKC_CONSTEXPR int common_divisor(long long a) { return static_cast<int>(a); }
template <class... Rest>
MKC_CONSTEXPR int common_divisor(long long a, long long b, Rest... rest) {
  while (b != 0) {
    const long long remainder = a % b;
    a = b, b = remainder;
  }
  return common_divisor(a, rest...);
}

template <class... Views>
inline constexpr int first_rank = 0;
template <class First, class... Others>
inline constexpr int first_rank<First, Others...> = First::kRank;

// Where a key is, and its value: a row of a page, in which so many rows are keys. There may be no such row.
struct Place {
  int64 page;
  int row, rows;
  MKC_DEVICE Place behind(int keys) const { return {page, row + keys, rows}; }
};
template <class K>
struct InRows {  // a sequence's own
  static constexpr bool kPaged = false;
  static constexpr int kKeys = K::extent(2), kSize = kKeys;
  MKC_DEVICE InRows(void* const*, const Fault&) {}
  MKC_DEVICE Place operator()(int, int key, int end) const { return {0, key, end}; }
};
// Of K's pages as many to a sequence as a row of the table has. A number below zero counts from the end; one outside of the pool
// is reported and moved to its edge.
template <class K, class Table>
struct InPages {
  static constexpr bool kPaged = true;
  static constexpr int kPages = K::extent(0), kSize = K::extent(2), kKeys = Table::extent(1) * kSize;
  Table table;
  const Fault& fault;
  MKC_DEVICE InPages(void* const* p, const Fault& fault) : table(p[0]), fault(fault) {}
  MKC_DEVICE Place operator()(int batch, int key, int end) const {
    if (key >= end) return {};
    const int64 number = table(batch, key / kSize), page = number < 0 ? number + kPages : number;
    if (page < 0 || page >= kPages) [[unlikely]] fault.outside(number, kPages);
    return {page < 0 ? 0 : page < kPages ? page : kPages - 1, key % kSize, key % kSize + (end - key)};
  }
};

// kRun elements are loaded at once. Rest: the limit if there is one, then the numbers of the parts if there are many.
template <int kRun, class Scale, int kParts, int kChunk, int kWindow, class Places, class Out, class Q, class K, class V, class... Rest>
struct AttentionBy {
  using T = typename K::Element;
  static constexpr int kHeads = Q::extent(1), kGroup = kHeads / K::extent(1);
  static constexpr int kDepth = Q::extent(3), kWidth = V::extent(3), kKeys = Places::kKeys;
  static constexpr bool kAcrossHeads = Q::extent(2) == 1;  // the rows that share keys are heads, else positions
  static constexpr int kLine = kAcrossHeads ? kGroup : Q::extent(2);
  static constexpr int kRows = kLine < 4 ? kLine : 4;
  static constexpr bool kLeavesOne = kAcrossHeads || kLine % kRows == 1;  // a task may end with a single row

  static constexpr int kWidest = kDepth > kWidth ? kDepth : kWidth;
  static constexpr int kLeast = kRows == 1 ? 32 : 8, kAhead = kRows > 2 ? 2 : 4;  // as far as registers go
  using KeyStrip = Strip<T, kDepth, kWidest, kRun, kLeast, kAhead>;
  using ValueStrip = Strip<T, kWidth, kWidest, kRun, kLeast, kAhead>;
  static constexpr int kDeep = KeyStrip::kDeep;    // keys that a lane looks at together
  static constexpr int kSlots = KeyStrip::kSlots;  // lanes that look at different keys
  static constexpr int kBlock = kDeep * kSlots;    // keys that a team looks at together
  static constexpr int kBlocks = kBlock < kChunk ? kChunk / kBlock : 1;  // of a chunk
  static constexpr bool kLimited = sizeof...(Rest) > (kParts > 1), kMasked = kLimited && first_rank<Rest...> == 4;
  static constexpr bool kHides = kMasked || kWindow > 0;  // keys among those that are looked at
  // Whether a block of keys is in one page: it is looked up once.
  static constexpr bool kTogether = !Places::kPaged || (Places::kSize % kBlock == 0 && !kMasked && (kParts > 1 || kWindow == 0));
  static constexpr int kEntry = kWidth + 2;  // floats of a row's softmax in scratch memory
  static constexpr int kEntries = kScratchFloats / kMaxTeams / kEntry;  // of each team
  static_assert(kEntries > 0, "the values of a head are too wide for scratch memory");
  static_assert(kParts == 1 || kChunk % kBlock == 0, "a chunk holds whole blocks");

  struct Rows {  // `count` of them, one below the other along heads or along positions
    int batch, head, position, count;
    // Past the end, the last row again: what is computed twice is stored once.
    MKC_DEVICE int past(int i) const { return i < count ? i : count - 1; }
    MKC_DEVICE int head_of(int i) const { return kAcrossHeads ? head + past(i) : head; }
    MKC_DEVICE int position_of(int i) const { return kAcrossHeads ? position : position + past(i); }
  };
  template <int M>
  struct Softmax {  // of the keys that a lane has seen so far
    float top[M], total[M], sum[M][ValueStrip::kHeld];
  };

  Out out;
  Q q;
  K k;
  V v;
  Places places;
  Each<Rest...> rest;

  // Teams take rows of their own when there are enough, else they share out the keys.
  MKC_DEVICE static void run(void* const* p, const Range* r, const Fault& fault) {
    const AttentionBy op{Out(p[0]), Q(p[1]), K(p[2]), V(p[3]), Places(p + 4, fault), Each<Rest...>(p + 4 + Places::kPaged)};
    const int lines = (r[0].end - r[0].begin) * (kAcrossHeads ? 1 : r[1].end - r[1].begin);
    const int length = kAcrossHeads ? r[1].end - r[1].begin : r[2].end - r[2].begin;
    const bool share = lines * ((length + kRows - 1) / kRows) < teams();
    const Range parts = kParts == 1 ? Range{0, 1} : r[3];
    int turn = 0;
    for (int batch = r[0].begin; batch < r[0].end; ++batch) {
      for (int head = r[1].begin, next; head < r[1].end; head = next) {
        next = kAcrossHeads ? (head / kGroup + 1) * kGroup : head + 1;
        const Range line = kAcrossHeads ? Range{head, next < r[1].end ? next : r[1].end} : r[2];
        for (int at = line.begin; at < line.end; at += kRows) {
          if (!share && turn++ % teams() != team()) continue;
          const int left = line.end - at, count = left < kRows ? left : kRows;
          const Rows rows{batch, kAcrossHeads ? at : head, kAcrossHeads ? r[2].begin : at, count};
          if (kLeavesOne && count == 1) op.attend<kLeavesOne ? 1 : kRows>(rows, parts, share);
          else op.attend<kRows>(rows, parts, share);
        }
      }
    }
  }

  template <int M>
  MKC_DEVICE void attend(const Rows& rows, Range parts, bool share) const {
    const Range keys = seen<M>(rows, share);
    float query[M][KeyStrip::kHeld];
    MKC_UNROLL
    for (int i = 0; i < M; ++i) {
      KeyStrip row;
      const T* const from = &q(rows.batch, rows.head_of(i), rows.position_of(i), 0);
      row.read(from, 0, 0, 1);
      KeyStrip::each([&](int held, int) { query[i][held] = row.at(held) * static_cast<float>(Scale::of()); });
    }
    for (int part = parts.begin; part < parts.end; ++part) {
      Softmax<M> state;
      MKC_UNROLL
      for (int i = 0; i < M; ++i) {
        state.top[i] = -kInf, state.total[i] = 0.0f;
        ValueStrip::each([&](int held, int) { state.sum[i][held] = 0.0f; });
      }
      pass<M>(rows, query, keys, part, share, state);
      join_slots<M>(state);
      if (kMaxTeams > 1 && share) join_teams<M>(rows, part, state);
      else store_rows<M>(rows, part, state);
    }
  }
  // The team's share of a part's blocks, in order.
  template <int M>
  MKC_DEVICE void pass(const Rows& rows, const float (&query)[M][KeyStrip::kHeld], Range keys, int part, bool share,
                       Softmax<M>& state) const {
    const int kv_head = rows.head / kGroup, of = Places::kPaged ? 0 : rows.batch;
    const T* const key = &k(of, kv_head, 0, 0);
    const T* const value = &v(of, kv_head, 0, 0);
    const int chunks = keys.begin / kChunk;  // that nobody needs
    const int first = kParts > 1 && chunks > part ? (chunks - part + kParts - 1) / kParts * kBlocks : 0;
    for (int block = first + (share ? team() : 0);; block += share ? teams() : 1) {
      const int at = kParts > 1 ? (block / kBlocks * kParts + part) * kChunk + block % kBlocks * kBlock
                                : keys.begin + block * kBlock;
      if (at >= keys.end) return;
      look<M>(rows, query, key, value, {at, keys.end}, state);
    }
  }

  // One block of keys: scores, a new maximum, and the sums brought to it.
  template <int M>
  MKC_DEVICE void look(const Rows& rows, const float (&query)[M][KeyStrip::kHeld], const T* key, const T* value,
                       Range keys, Softmax<M>& state) const {
    float weight[M][kDeep], shrink[M];  // weights are scores first
    bool any = false, wanted[kDeep];    // by some row: what no row sees is not read, since zero times NaN is NaN
    KeyStrip::ahead([&](int j) {
      const int at = keys.begin + j * kSlots + KeyStrip::slot();
      wanted[j] = false;
      MKC_UNROLL
      for (int i = 0; i < M; ++i) {
        weight[i][j] = at < keys.end ? limits_of(rows, i, at) : -kInf;
        wanted[j] |= weight[i][j] != -kInf;
      }
      any |= wanted[j];
    });
    if (kHides && !team_any(any)) return;
    const Place block = places(rows.batch, keys.begin, keys.end);
    KeyStrip key_strip[kDeep];
    ValueStrip value_strip[kDeep];
    KeyStrip::ahead([&](int j) {
      const int at = !kHides || wanted[j] ? keys.begin + j * kSlots + KeyStrip::slot() : keys.end;
      const Place place = kTogether ? block.behind(at - keys.begin) : places(rows.batch, at, keys.end);
      key_strip[j].read(key + place.page * K::step(0), K::step(2), place.row, place.rows);
      value_strip[j].read(value + place.page * V::step(0), V::step(2), place.row, place.rows);
    });
    float scores[M][kDeep];
    KeyStrip::template dots<M>(query, key_strip, scores);
    MKC_UNROLL
    for (int i = 0; i < M; ++i) {
      KeyStrip::ahead([&](int j) { weight[i][j] = weight[i][j] == -kInf ? -kInf : weight[i][j] + scores[i][j]; });
      const float highest = KeyStrip::template folded<Highest>(weight[i]);
      const float top = state.top[i] < highest ? highest : state.top[i], base = top == -kInf ? 0.0f : top;
      KeyStrip::ahead([&](int j) { weight[i][j] = exp_below(weight[i][j] - base); });
      shrink[i] = exp_below(state.top[i] - base);
      state.total[i] = state.total[i] * shrink[i] + KeyStrip::template folded<Add>(weight[i]);
      state.top[i] = top;
    }
    ValueStrip::template add<M>(state.sum, shrink, weight, value_strip);
  }

  // ---- what a row may see

  // what is added to the score of a key: -inf when the row does not see it
  MKC_DEVICE float limits_of(const Rows& rows, int i, int key) const {
    if constexpr (!kLimited) return 0.0f;
    else return limit_of(rest.first, rows, i, key);
  }
  template <class Limit>
  MKC_DEVICE static float limit_of(const Limit& limit, const Rows& rows, int i, int key) {
    const int head = rows.head_of(i), position = rows.position_of(i);
    if constexpr (Limit::kRank == 3) {
      const int64 last = limit(rows.batch, head, position);
      return penalty(key <= last && (kWindow == 0 || key > last - kWindow));
    } else return penalty(load(limit(rows.batch, head, position, key)));
  }
  MKC_DEVICE static float penalty(bool sees) { return sees ? 0.0f : -kInf; }
  MKC_DEVICE static float penalty(float added) { return added; }

  // An interval that holds every key that some row sees, so that time goes with the keys in use, not with capacity.
  template <int M>
  MKC_DEVICE Range seen(const Rows& rows, bool share) const {
    if constexpr (!kLimited) return {0, kKeys};
    else return interval<M>(rest.first, rows, share);
  }
  template <int M, class Limit>
  MKC_DEVICE static Range interval(const Limit& limit, const Rows& rows, bool share) {
    if constexpr (Limit::kRank == 3) {
      int64 begin = kWindow > 0 ? kKeys : 0, end = 0;
      MKC_UNROLL
      for (int i = 0; i < M; ++i) {
        const int64 last = limit(rows.batch, rows.head_of(i), rows.position_of(i));
        end = last < end ? end : (last < kKeys ? last + 1 : kKeys);
        const int64 first = last < kWindow ? 0 : last - kWindow + 1;
        begin = first < begin ? first : begin;
      }
      return {static_cast<int>(begin), static_cast<int>(end)};
    } else {
      const int stride = kTeamLanes * (share ? teams() : 1), first = kTeamLanes * (share ? team() : 0);
      int begin = kKeys, end = 0, grain = first;
      for (; grain < kGrains && begin == kKeys; grain += stride) {
        const bool any = sees<M>(limit, rows, grain + team_lane());
        if (team_any(any)) begin = any ? (grain + team_lane()) * kGrain : kKeys - 1;
      }
      for (grain = first + (kGrains - 1 - first) / stride * stride; grain >= first && end == 0; grain -= stride) {
        const bool any = sees<M>(limit, rows, grain + team_lane());
        if (team_any(any)) end = any ? (grain + team_lane() + 1) * kGrain : 1;
      }
      begin = team_reduce<fold::minimum>(kTeamLanes, [=](int) { return begin; });
      end = team_reduce<fold::maximum>(kTeamLanes, [=](int) { return end; });
      return share ? joined({begin, end}) : Range{begin, end};
    }
  }
  static constexpr int kGrain = common_divisor(16, kKeys), kGrains = kKeys / kGrain;
  // true when some row sees some key of a grain
  template <int M, class Limit>
  MKC_DEVICE static bool sees(const Limit& limit, const Rows& rows, int grain) {
    bool any = false;
    if (grain >= kGrains) return any;
    MKC_UNROLL
    for (int i = 0; i < M; ++i) {  // rows that share a mask share its loads
      MKC_UNROLL
      for (int j = 0; j < kGrain; ++j) any |= limit_of(limit, rows, i, grain * kGrain + j) != -kInf;
    }
    return any;
  }
  MKC_DEVICE static Range joined(Range mine) {
    Range* const all = reinterpret_cast<Range*>(scratch());
    if (team_leader()) all[team()] = mine;
    sync();
    for (int t = 0; t < teams(); ++t) {
      mine.begin = all[t].begin < mine.begin ? all[t].begin : mine.begin;
      mine.end = mine.end < all[t].end ? all[t].end : mine.end;
    }
    sync();
    return mine;
  }

  // ---- putting partial softmaxes together

  template <int M>
  MKC_DEVICE static void join_slots(Softmax<M>& state) {
    MKC_UNROLL
    for (int width = kTeamLanes / kSlots; width < kTeamLanes; width *= 2) {
      MKC_UNROLL
      for (int i = 0; i < M; ++i) {
        const float other = team_swap(state.top[i], width), top = state.top[i] < other ? other : state.top[i];
        const float base = top == -kInf ? 0.0f : top;
        const float mine = exp_below(state.top[i] - base), theirs = exp_below(other - base);
        state.top[i] = top;
        state.total[i] = state.total[i] * mine + team_swap(state.total[i], width) * theirs;
        ValueStrip::each([&](int held, int) {
          state.sum[i][held] = state.sum[i][held] * mine + team_swap(state.sum[i][held], width) * theirs;
        });
      }
    }
  }
  // where the results of a row go
  MKC_DEVICE auto* row_of(const Rows& rows, int i, int part) const {
    if constexpr (kParts == 1) return &out(rows.batch, rows.head_of(i), rows.position_of(i), 0);
    else return &out(rows.batch, rows.head_of(i), rows.position_of(i), part, 0);
  }
  // a row that saw no key is zero
  template <class Row>
  MKC_DEVICE static void put(Row* row, int at, float sum, float total) {
    if constexpr (kParts == 1) store(row[at * Out::step(3)], total == 0.0f ? 0.0f : sum / total);
    else row[at] = sum;
  }
  template <class Row>
  MKC_DEVICE static void put_weight(Row* row, float top, float total) {
    if constexpr (kParts > 1) row[kWidth] = top, row[kWidth + 1] = total;
  }

  template <int M>
  MKC_DEVICE void store_rows(const Rows& rows, int part, const Softmax<M>& state) const {
    if (KeyStrip::slot() != 0) return;
    MKC_UNROLL
    for (int i = 0; i < M; ++i) {
      auto* const row = row_of(rows, i, part);
      ValueStrip::each([&](int held, int at) {
        if (at < kWidth) put(row, at, state.sum[i][held], state.total[i]);
      });
      if (team_leader()) put_weight(row, state.top[i], state.total[i]);
    }
  }
  // Teams leave some rows at a time in scratch memory, and together put them in order.
  template <int M>
  MKC_DEVICE void join_teams(const Rows& rows, int part, const Softmax<M>& state) const {
    constexpr int kTogether = kEntries < M ? kEntries : M, kStep = kTogether * kEntry;
    MKC_UNROLL
    for (int first = 0; first < M; first += kTogether) {
      if (KeyStrip::slot() == 0) {
        MKC_UNROLL
        for (int n = 0; n < kTogether; ++n) {
          const int i = first + n < M ? first + n : M - 1;
          float* const entry = scratch() + team() * kStep + n * kEntry;
          entry[kWidth] = state.top[i], entry[kWidth + 1] = state.total[i];
          ValueStrip::each([&](int held, int at) {
            if (at < kWidth) entry[at] = state.sum[i][held];
          });
        }
      }
      sync();
      const int left = rows.count - first, count = left < kTogether ? left : kTogether;
      for_lanes(0, count * kWidth, [&](int n) {
        const int i = n / kWidth, at = n % kWidth;
        const float* const entries = scratch() + i * kEntry;
        float top = -kInf, total = 0.0f, sum = 0.0f;
        MKC_UNROLL
        for (int t = 0; t < kMaxTeams; ++t) top = t < teams() ? Highest::of(top, entries[t * kStep + kWidth]) : top;
        const float base = top == -kInf ? 0.0f : top;
        MKC_UNROLL
        for (int t = 0; t < kMaxTeams; ++t) {
          if (t >= teams()) continue;
          const float weight = exp_below(entries[t * kStep + kWidth] - base);
          total += entries[t * kStep + kWidth + 1] * weight;
          sum += entries[t * kStep + at] * weight;
        }
        auto* const row = row_of(rows, first + i, part);
        put(row, at, sum, total);
        if (at == 0) put_weight(row, top, total);
      });
      sync();
    }
  }
};

// What follows V: a table where a sequence has so many pages, 0 where it has rows of its own.
template <int kPages, template <class...> class By, class Out, class Q, class K, class V, class... Rest>
struct Placed {
  using Type = By<InRows<K>, Out, Q, K, V, Rest...>;
};
template <int kPages, template <class...> class By, class Out, class Q, class K, class V, class Table, class... Rest>
requires(kPages > 0)
struct Placed<kPages, By, Out, Q, K, V, Table, Rest...> {
  static_assert(Table::extent(1) == kPages);
  using Type = By<InPages<K, Table>, Out, Q, K, V, Rest...>;
};

template <class Scale, int kParts, int kChunk, int kWindow, int kPages, class Out, class Q, class K, class V, class... Rest>
struct Attention {
  using T = typename K::Element;
  static constexpr int kMost = kBytesAtOnce < sizeof(T) ? 1 : kBytesAtOnce / sizeof(T);
  static constexpr int kRun = common_divisor(kMost, K::extent(3), V::extent(3), Q::step(0), Q::step(1), Q::step(2),
                                             K::step(0), K::step(1), K::step(2), V::step(0), V::step(1), V::step(2));
  template <class... Of>
  using Fast = AttentionBy<kRun, Scale, kParts, kChunk, kWindow, Of...>;
  template <class... Of>
  using Slow = AttentionBy<1, Scale, kParts, kChunk, kWindow, Of...>;

  MKC_DEVICE static void run(void* const* p, const Range* r, const Fault& fault) {
    const auto aligned = [=](int n) { return reinterpret_cast<uint64>(p[n]) % (kRun * sizeof(T)) == 0; };
    if (kRun == 1 || (aligned(1) && aligned(2) && aligned(3))) Placed<kPages, Fast, Out, Q, K, V, Rest...>::Type::run(p, r, fault);
    else unaligned(p, r, fault);
  }
  MKC_NOINLINE static void unaligned(void* const* p, const Range* r, const Fault& fault) {
    Placed<kPages, Slow, Out, Q, K, V, Rest...>::Type::run(p, r, fault);
  }
};

}  // namespace mkc::ops
