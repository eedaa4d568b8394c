// out = softmax(scale q kT + mask) v: a few rows at a time meet the keys in blocks, and keep a running softmax.
// What limits a row is nothing, a mask (boolean, or added to the scores), or the last key that it sees.
#pragma once

#include <mkc/expr.cuh>
#include <mkc/view.cuh>

namespace mkc::ops {

constexpr int common_divisor(long long a) { return static_cast<int>(a); }
template <class... Rest>
constexpr int common_divisor(long long a, long long b, Rest... rest) {
  while (b != 0) {
    const long long remainder = a % b;
    a = b, b = remainder;
  }
  return common_divisor(a, rest...);
}

template <class Scale, class Out, class Q, class K, class V, class... Limits>
struct Attention {
  using T = typename K::Element;
  static constexpr int kHeads = Q::extent(1), kGroup = kHeads / K::extent(1);
  static constexpr int kDepth = Q::extent(3), kWidth = V::extent(3), kKeys = K::extent(2);
  static constexpr bool kAcrossHeads = Q::extent(2) == 1;  // the rows that share keys are heads, else positions
  static constexpr int kLine = kAcrossHeads ? kGroup : Q::extent(2);
  static constexpr int kRows = kLine < 4 ? kLine : 4;
  static constexpr bool kLeavesOne = kAcrossHeads || kLine % kRows == 1;  // a task may end with a single row

  // elements that are loaded at once
  static constexpr int kRun = common_divisor(16 / sizeof(T), kDepth, kWidth, K::step(0), K::step(1), K::step(2),
                                             V::step(0), V::step(1), V::step(2));
  static constexpr int kWidest = kDepth > kWidth ? kDepth : kWidth;
  using KeyStrip = Strip<T, kDepth, kWidest, kRun>;
  using ValueStrip = Strip<T, kWidth, kWidest, kRun>;
  static constexpr int kDeep = KeyStrip::kDeep;                       // keys that a lane looks at together
  static constexpr int kSlots = KeyStrip::kSlots;                     // lanes that look at different keys
  static constexpr int kBlock = kDeep * kSlots;                       // keys that a team looks at together
  static constexpr int kPart = kWidth + 2;                            // floats of a row's softmax in scratch
  static_assert(kPart <= kScratchFloats / kMaxTeams, "the values of a head are too wide for scratch memory");

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
  Each<Limits...> limits;

  // Teams take rows of their own when there are enough, else they share out the keys.
  MKC_DEVICE static void run(void* const* p, const Range* r) {
    const Attention op{Out(p[0]), Q(p[1]), K(p[2]), V(p[3]), Each<Limits...>(p + 4)};
    const int lines = (r[0].end - r[0].begin) * (kAcrossHeads ? 1 : r[1].end - r[1].begin);
    const int length = kAcrossHeads ? r[1].end - r[1].begin : r[2].end - r[2].begin;
    const bool share = teams() > 1 && lines * ((length + kRows - 1) / kRows) < teams();
    int turn = 0;
    for (int batch = r[0].begin; batch < r[0].end; ++batch) {
      for (int head = r[1].begin, next; head < r[1].end; head = next) {
        next = kAcrossHeads ? (head / kGroup + 1) * kGroup : head + 1;
        const Range line = kAcrossHeads ? Range{head, next < r[1].end ? next : r[1].end} : r[2];
        for (int at = line.begin; at < line.end; at += kRows) {
          if (!share && turn++ % teams() != team()) continue;
          const int left = line.end - at, count = left < kRows ? left : kRows;
          const Rows rows{batch, kAcrossHeads ? at : head, kAcrossHeads ? r[2].begin : at, count};
          if (kLeavesOne && count == 1) op.attend<kLeavesOne ? 1 : kRows>(rows, share);
          else op.attend<kRows>(rows, share);
        }
      }
    }
  }

  template <int M>
  MKC_DEVICE void attend(const Rows& rows, bool share) const {
    const Range keys = seen<M>(rows, share);
    float query[M][KeyStrip::kHeld];
    Softmax<M> state;
    MKC_UNROLL
    for (int i = 0; i < M; ++i) {
      state.top[i] = -kInf, state.total[i] = 0.0f;
      ValueStrip::each([&](int held, int) { state.sum[i][held] = 0.0f; });
      const auto* row = &q(rows.batch, rows.head_of(i), rows.position_of(i), 0);
      KeyStrip::each([&](int held, int at) {
        query[i][held] = at < kDepth ? float(load(row[at])) * static_cast<float>(Scale::of()) : 0.0f;
      });
    }
    const int kv_head = rows.head / kGroup;
    const T* const key = &k(rows.batch, kv_head, 0, 0);
    const T* const value = &v(rows.batch, kv_head, 0, 0);
    const bool aligned = (reinterpret_cast<uint64>(key) | reinterpret_cast<uint64>(value)) % (kRun * sizeof(T)) == 0;
    const int step = kBlock * (share ? teams() : 1);
    for (int block = keys.begin + kBlock * (share ? team() : 0); block < keys.end; block += step)
      look<M>(rows, query, key, value, aligned, {block, keys.end}, state);
    join_slots<M>(state);
    if (share) join_teams<M>(rows, state);
    else store_rows<M>(rows, state);
  }

  // One block of keys: scores, a new maximum, and the sums brought to it.
  template <int M>
  MKC_DEVICE void look(const Rows& rows, const float (&query)[M][KeyStrip::kHeld], const T* key, const T* value,
                       bool aligned, Range keys, Softmax<M>& state) const {
    float weight[M][kDeep], shrink[M];  // weights are scores first
    bool any = false;
    KeyStrip::ahead([&](int j) {
      const int at = keys.begin + j * kSlots + KeyStrip::slot();
      MKC_UNROLL
      for (int i = 0; i < M; ++i) {
        weight[i][j] = at < keys.end ? limits_of(rows, i, at) : -kInf;
        any |= weight[i][j] != -kInf;
      }
    });
    if (sizeof...(Limits) > 0 && !team_any(any)) return;
    KeyStrip key_strip[kDeep];
    ValueStrip value_strip[kDeep];
    KeyStrip::ahead([&](int j) {
      const int wanted = keys.begin + j * kSlots + KeyStrip::slot(), at = wanted < keys.end ? wanted : keys.end - 1;
      key_strip[j].read(key + at * K::step(2), aligned);
      value_strip[j].read(value + at * V::step(2), aligned);
    });
    float scores[M][kDeep];
    KeyStrip::template dots<M>(query, key_strip, scores);
    MKC_UNROLL
    for (int i = 0; i < M; ++i) {
      KeyStrip::ahead([&](int j) { weight[i][j] = weight[i][j] == -kInf ? -kInf : weight[i][j] + scores[i][j]; });
      const float highest = KeyStrip::template folded<Highest>(weight[i]);
      const float top = state.top[i] < highest ? highest : state.top[i], base = top == -kInf ? 0.0f : top;
      KeyStrip::ahead([&](int j) { weight[i][j] = mkc::exp(weight[i][j] - base); });
      shrink[i] = mkc::exp(state.top[i] - base);
      state.total[i] = state.total[i] * shrink[i] + KeyStrip::template folded<Add>(weight[i]);
      state.top[i] = top;
    }
    ValueStrip::template add<M>(state.sum, shrink, weight, value_strip);
  }

  // ---- what a row may see

  // what is added to the score of a key: -inf when the row does not see it
  MKC_DEVICE float limits_of(const Rows& rows, int i, int key) const {
    if constexpr (sizeof...(Limits) == 0) return 0.0f;
    else return limit_of(limits.first, rows, i, key);
  }
  template <class Limit>
  MKC_DEVICE static float limit_of(const Limit& limit, const Rows& rows, int i, int key) {
    if constexpr (Limit::kRank == 3) return key <= limit(rows.batch, rows.head_of(i), rows.position_of(i)) ? 0.0f : -kInf;
    else return penalty(load(limit(rows.batch, rows.head_of(i), rows.position_of(i), key)));
  }
  MKC_DEVICE static float penalty(bool sees) { return sees ? 0.0f : -kInf; }
  MKC_DEVICE static float penalty(float added) { return added; }

  // An interval that holds every key that some row sees, so that time goes with the keys in use, not with capacity.
  template <int M>
  MKC_DEVICE Range seen(const Rows& rows, bool share) const {
    if constexpr (sizeof...(Limits) == 0) return {0, kKeys};
    else return interval<M>(limits.first, rows, share);
  }
  template <int M, class Limit>
  MKC_DEVICE static Range interval(const Limit& limit, const Rows& rows, bool share) {
    if constexpr (Limit::kRank == 3) {
      int64 end = 0;
      for (int i = 0; i < M; ++i) {
        const int64 last = limit(rows.batch, rows.head_of(i), rows.position_of(i));
        end = last < end ? end : last + 1;
      }
      return {0, end < kKeys ? static_cast<int>(end) : kKeys};
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
        const float mine = mkc::exp(state.top[i] - base), theirs = mkc::exp(other - base);
        state.top[i] = top;
        state.total[i] = state.total[i] * mine + team_swap(state.total[i], width) * theirs;
        ValueStrip::each([&](int held, int) {
          state.sum[i][held] = state.sum[i][held] * mine + team_swap(state.sum[i][held], width) * theirs;
        });
      }
    }
  }
  // a row's output; one that saw no key is zero
  MKC_DEVICE static float normalised(float sum, float total) { return total == 0.0f ? 0.0f : sum / total; }

  template <int M>
  MKC_DEVICE void store_rows(const Rows& rows, const Softmax<M>& state) const {
    if (KeyStrip::slot() != 0) return;
    MKC_UNROLL
    for (int i = 0; i < M; ++i) {
      auto* const row = &out(rows.batch, rows.head_of(i), rows.position_of(i), 0);
      ValueStrip::each([&](int held, int at) {
        if (at < kWidth) store(row[at * Out::step(3)], normalised(state.sum[i][held], state.total[i]));
      });
    }
  }
  // Teams leave a row at a time in scratch memory, and together put it in order.
  template <int M>
  MKC_DEVICE void join_teams(const Rows& rows, const Softmax<M>& state) const {
    MKC_UNROLL
    for (int i = 0; i < M; ++i) {
      float* const part = scratch() + team() * kPart;
      if (KeyStrip::slot() == 0) {
        part[0] = state.top[i], part[1] = state.total[i];
        ValueStrip::each([&](int held, int at) {
          if (at < kWidth) part[2 + at] = state.sum[i][held];
        });
      }
      sync();
      auto* const row = &out(rows.batch, rows.head_of(i), rows.position_of(i), 0);
      for_lanes(0, kWidth, [&](int at) { store(row[at * Out::step(3)], joined_at(at)); });
      sync();
    }
  }
  MKC_DEVICE static float joined_at(int at) {
    const float* const parts = scratch();
    float top = -kInf, total = 0.0f, sum = 0.0f;
    for (int t = 0; t < teams(); ++t) top = top < parts[t * kPart] ? parts[t * kPart] : top;
    const float base = top == -kInf ? 0.0f : top;
    for (int t = 0; t < teams(); ++t) {
      const float weight = mkc::exp(parts[t * kPart] - base);
      total += parts[t * kPart + 1] * weight;
      sum += parts[t * kPart + 2 + at] * weight;
    }
    return normalised(sum, total);
  }
};

}  // namespace mkc::ops
