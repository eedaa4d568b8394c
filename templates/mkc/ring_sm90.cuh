// The ring on Hopper and later GPUs: warps of their own fill it with weights, keys and values, far ahead of those who multiply.
#pragma once

#include <mkc/arch/sm90.cuh>
#include <mkc/positions.cuh>

namespace mkc {

constexpr int kLoadWarps = 2, kSideWarps = 4;  // loaders, the herald and one at rest
constexpr int kBlockThreads = kBothThreads + kSideWarps * 32;
// Registers of a thread: together as many as the launch was given, or setmaxnreg waits for ever; and those that are to get more do not get
// less, which is an illegal instruction.
constexpr int kComputeRegisters = 168, kLaunchRegisters = 65536 / kBlockThreads;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kTalkRegisters = 136, kSideRegisters = 40;
#else
constexpr int kTalkRegisters = 128, kSideRegisters = 48;
#endif
static_assert(kLoadWarps <= kMostLoadWarps);
static_assert(kComputeRegisters >= kLaunchRegisters && kTalkRegisters >= kLaunchRegisters && kSideRegisters <= kLaunchRegisters);
static_assert(kComputeThreads * kComputeRegisters + kTalkThreads * kTalkRegisters + 32 * kSideWarps * kSideRegisters == 65536);
constexpr int kRollingSlots = 6;  // whose weights a compute warp holds while it multiplies those of more
constexpr int kStarving = 4;      // slots that a worker has before it, or fewer, when a pace does not count
constexpr int kBringers = 1;      // arrivals that say that an entry has come
MKC_DEVICE void take_compute_registers() { more_registers<kComputeRegisters>(); }
MKC_DEVICE void take_talk_registers() { more_registers<kTalkRegisters>(); }
MKC_DEVICE void take_side_registers() { fewer_registers<kSideRegisters>(); }

template <class Page>
MKC_DEVICE void init_ring(uint32 base) {
  MKC_NO_UNROLL
  for (int slot = 0; slot < Page::kRingSlots; ++slot) {
    barrier_init(base + Block<Page>::kFull + 8 * slot, kLoadWarps);
    barrier_init(base + Block<Page>::kEmpty + 8 * slot, kComputeWarps);
  }
  for (int loader = 0; loader < kLoadWarps; ++loader) barrier_init(base + Block<Page>::kAnswered + 8 * loader, 1);
}
MKC_DEVICE void barriers_are_set() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
MKC_DEVICE void copy_entry(uint32 to, const Entry* from, uint32 barrier, int thread) {
  if (thread != 0) return;
  barrier_expect(barrier, sizeof(Entry));
  bulk_copy(to, from, sizeof(Entry), barrier);
}

// A compute warp's place in the ring.
template <class Page>
struct Ring {
  static constexpr bool kHasKeys = true;  // and values
  uint32 address, full, end, parity;
  bool leader;
  MKC_DEVICE Ring(const Launch&, uint32 base, uint32, int warp, int lane)
      : address(opaque(base + warp * kWarpBytes + lane * 16)),
        full(opaque(base + Block<Page>::kFull)),
        end(address + Page::kRingSlots * kSlotBytes),
        parity(0),
        leader(lane == 0) {}
  MKC_DEVICE void fetch(Quad (&w)[4]) {
    await();
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) w[i] = load_shared(address + i * kFragmentBytes);
    release();
  }
  MKC_DEVICE void close() const {}  // loaders wait for what they have copied

  // ---- slot by slot
  MKC_DEVICE void await() const { barrier_wait(full, parity); }
  MKC_DEVICE void release() {
    __syncwarp();
    if (leader) barrier_arrive(empty());
    advance();
  }
  // Slots that only other warps read are awaited all the same: a warp that ran a lap ahead would take what was there before for
  // what it waits for, and its arrival would count for theirs.
  MKC_DEVICE void pass(int count) {
    MKC_NO_UNROLL
    for (; count > 0; --count) await(), release();
  }

 private:
  MKC_DEVICE uint32 empty() const { return full + 8 * Page::kRingSlots; }
  MKC_DEVICE void advance() {
    address += kSlotBytes, full += 8;
    if (address == end) address -= Page::kRingSlots * kSlotBytes, full -= 8 * Page::kRingSlots, parity ^= 1;
  }
};

// One of those who fill the ring: a lane of a warp of its own, which fills every other slot of it. The way from one slot to the next must
// be short, for a worker that has many is as fast as that: what is looked up has been asked for long before.
template <class Page>
struct Loader {
  const Launch& l;
  const uint32 base, me;
  // Parities that barriers are awaited at; the first lap is over; all have seen the task's first slot; and from there on, records so far.
  enum Phase : uint32 { kEmptyOdd = 1, kAnswerOdd = 2, kLapped = 4, kShown = 8, kRecord = 16 };
  uint32 slot = 0, phases = kEmptyOdd | kAnswerOdd;  // slot: of the ring, the next to pass
  uint32 next, pace = 0;                             // when it may be issued; cycles from a slot to the next, once a step has been timed
  uint32 slots = 0;                                  // of this step, so far

  MKC_DEVICE Loader(const Launch& launch, uint32 memory, int loader)
      : l(launch), base(memory), me(loader), next(cycles()) {}
  MKC_DEVICE void run(uint32 id) {
    const uint32 queue = l.bounds[id], begin = l.stream_bounds[id], end = l.stream_bounds[id + 1];
    if (begin == end) return;
    keep(kQueue, Quad{queue, l.bounds[id + 1] - queue, begin, end});
    keep(kStep, Quad{0, l.steps[0], next, begin});
    look_up(begin, 0), look_up(then(begin), 1);
    copies_done();
    ask(looked_up(0));
    MKC_NO_UNROLL
    while (kept(kStep).y && load()) go_on();
    MKC_NO_UNROLL
    for (uint32 distance = 1; distance <= Page::kRingSlots; ++distance) follow(distance);
    copies_done(), answer();  // shared memory must outlive every copy into it
  }

  // ---- what bodies ask for
  MKC_DEVICE int64 position(const void* at) const { return known_position<Page>(base, at); }
  // The next slot, of keys or values: so many bytes from there. False when nobody will read it. The first slot of a task is awaited
  // from all loaders, who have seen the position then.
  MKC_DEVICE bool issue(const void* from, uint32 bytes) {
    const bool all = !(phases & kShown);
    phases |= kShown;
    return pass(from, bytes, all);
  }

 private:
  // What a loader has no registers for, in shared memory: the worker's first task, how many it has, and where its records begin and end;
  // the number of the step's first task, how many steps are left, when this one began, and its record; records, this and those that follow.
  enum Kept : uint32 { kQueue, kStep, kRecords };
  static constexpr uint32 kLookedUp = 4;
  MKC_DEVICE uint32 place(uint32 what) const { return place() + sizeof(Entry) + 16 * what; }
  MKC_DEVICE Quad kept(Kept what) const { return load_shared(place(what)); }
  MKC_DEVICE void keep(Kept what, const Quad& v) const { store_shared(place(what), v); }
  MKC_DEVICE void look_up(uint32 record, uint32 number) const { copy_quad(place(kRecords + number % kLookedUp), l.streams + record); }
  MKC_DEVICE Stream looked_up(uint32 number) const {
    const Quad v = load_shared(place(kRecords + number % kLookedUp));
    return {v.x, v.y, v.z, v.w};
  }
  MKC_DEVICE uint32 then(uint32 record) const {
    const Quad queue = kept(kQueue);
    return record + 1 < queue.w ? record + 1 : queue.z;
  }
  // To the next record. Workers with keys have more slots than others in the same time, and all have more time with longer contexts.
  MKC_DEVICE void go_on() {
    const Quad queue = kept(kQueue);
    Quad step = kept(kStep);
    if (++step.w == queue.w) {
      const uint32 now = cycles();
      if (slots) pace = (now - step.z) / slots * l.pace / 100;
      step = Quad{step.x + queue.y, step.y - 1, now, queue.z}, slots = 0;
    }
    keep(kStep, step), phases += kRecord;
  }

  MKC_DEVICE bool load() {
    const uint32 number = phases / kRecord;
    copies_done();
    const Stream stream = looked_up(number), following = looked_up(number + 1);
    look_up(then(then(kept(kStep).w)), number + 2);
    if (stream.fragments) {
      ask(following);
      return bring_weights(stream);
    }
    const bool open = bring_keys(stream);
    ask(following);
    return open;
  }
  MKC_DEVICE bool bring_weights(const Stream& stream) {
    const uint8* from = l.packed + static_cast<uint64>(stream.first) * kSlotBytes;
    MKC_NO_UNROLL
    for (uint32 left = stream.fragments, some; left > 0; left -= some, from += kSlotBytes) {
      some = left < kSlotFragments ? left : kSlotFragments;
      const bool stays = stream.fragments >= Page::kResidentFrom && stream.fragments - left < Page::kResidentSlots * kSlotFragments;
      if (!pass(from, some * kFragmentBytes, false, stays)) return false;
    }
    return true;
  }
  // How many rows a cache has is known once the first task of the step that asks has got there. It has shown the position
  // to this thread, and with it what earlier steps appended; `show_to_copies` shows that to the copies.
  MKC_DEVICE bool bring_keys(const Stream& stream) {
    answer();
    if (stream.awaits()) {
      const uint32 number = kept(kStep).x + stream.place;
      if (!comes([&] { return static_cast<int32>(load_acquire_shared(base + Block<Page>::kReached) - number) > 0; })) return false;
      show_to_copies();
    }
    phases &= ~kShown;
    const Entry& entry = *static_cast<const Entry*>(__cvta_shared_to_generic(place()));
    return Page::keys(stream.body(), *this, entry.operands, entry.task.ranges);
  }
  // Where the next task's keys lie is brought while the slots before them are issued.
  MKC_DEVICE void ask(const Stream& of) {
    if (of.fragments) return;
    copy_entry(place(), l.entries + kept(kQueue).x + of.place, answered(), 0);
    phases ^= kAnswerOdd;
  }
  MKC_DEVICE void answer() const { barrier_wait(answered(), phases / kAnswerOdd & 1); }  // to the last question, or to none
  MKC_DEVICE uint32 place() const { return base + Block<Page>::kAsked + me * Block<Page>::kAskedBytes; }
  MKC_DEVICE uint32 answered() const { return base + Block<Page>::kAnswered + 8 * me; }

  // The next slot, which is one loader's, and says that it is full for the others, unless they do. What `stays` in the cache from step to
  // step does not come from memory again.
  MKC_DEVICE bool pass(const void* from, uint32 bytes, bool all, bool stays = false) {
    const uint32 cost = pace * bytes / kSlotBytes;
    const bool mine = is_mine(slot);
    if (mine || all) {
      const uint32 full = base + Block<Page>::kFull + 8 * slot, empty = full + 8 * Page::kRingSlots;
      if (!comes([&] { return barrier_passed(empty, phases & kEmptyOdd); })) return false;
      if (mine) {
        follow(window());
        keep_pace();
        MKC_UNROLL
        for (int other = 1; other < kLoadWarps && !all; ++other) barrier_arrive(full);
        fill(full, from, bytes, stays);
      } else {
        barrier_arrive(full);
      }
    }
    next += cost, slots += bytes > 0;
    if (++slot == Page::kRingSlots) slot = 0, phases = (phases ^ kEmptyOdd) | kLapped;
    return true;
  }
  MKC_DEVICE void fill(uint32 full, const void* from, uint32 bytes, bool stays) const {
    if (bytes == 0) return barrier_arrive(full);
    barrier_expect(full, bytes);
    bulk_copy(base + slot * kSlotBytes, from, bytes, full, stays ? evict_last() : evict_first());
  }

  // Waits for room, or for a position; false when it never comes. Both are there for good once they are there, and when
  // the talking warps close the ring, all that compute warps read has been read, and the last position kept: what is not
  // there at a look after that never will be. So all loaders find the same, whenever they look, and stop at the same slot, or at the
  // next, when that is another's. What they issue depends on positions besides, and none changes before: the task waits for all of them.
  template <class Ready>
  MKC_DEVICE bool comes(Ready ready) const {
    while (!ready())
      if (load_acquire_shared(base + Block<Page>::kClosed)) return ready();
    return true;
  }
  MKC_DEVICE uint32 window() const { return l.window < Page::kRingSlots ? l.window : Page::kRingSlots; }
  MKC_DEVICE bool is_mine(uint32 of) const { return of % kLoadWarps == me; }
  // What this loader issued so many slots before the next, or last before that, has come, if there was any. Another's may have come twice.
  MKC_DEVICE void follow(uint32 distance) const {
    uint32 at = slot - distance;
    bool before = slot < distance;  // in the lap before
    if (before) at += Page::kRingSlots;
    for (; !is_mine(at); ++distance, --at) {
      if (distance == Page::kRingSlots) return;
      if (at == 0) before = true, at = Page::kRingSlots;
    }
    if (before && !(phases & kLapped)) return;
    barrier_wait(base + Block<Page>::kFull + 8 * at, (phases + 1 + before) & 1);
  }
  // All but a few of the slots that were issued have been read: a worker whose share is larger, such as one with keys, must not
  // be held back to the pace of the others, for they will wait for it.
  MKC_DEVICE bool starves() const {
    constexpr uint32 kFew = Page::kRingSlots < 2 * kStarving ? Page::kRingSlots / 2 : kStarving;
    const bool before = slot < kFew;  // in the lap before
    if (before && !(phases & kLapped)) return false;
    const uint32 empty = base + Block<Page>::kEmpty + 8 * (slot - kFew + (before ? Page::kRingSlots : 0));
    return barrier_tested(empty, (phases & kEmptyOdd) ^ 1 ^ before);
  }
  MKC_DEVICE void keep_pace() {
    if (!pace) return;
    uint32 now;
    while (static_cast<int32>((now = cycles()) - next) < 0 && !starves()) {
    }
    next = now;
  }
};

template <class Page>
MKC_DEVICE void load_weights(const Launch& l, uint32 base, uint32 id, int loader) {
  Loader<Page>(l, base, loader).run(id);
}

}  // namespace mkc
