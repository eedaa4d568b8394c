// The streaming worker of Hopper: loaders fill a ring with weights, compute warps multiply, the others talk to the world.
#pragma once

#include <mkc/arch/sm90.cuh>
#include <mkc/worker.cuh>

namespace mkc {

constexpr int kSlotBytes = 16384, kWarpBytes = 2048;  // a slot of the ring, and each compute warp's share of it
constexpr int kComputeWarps = 8, kTalkWarps = 4, kLoadWarps = 4;
constexpr int kComputeThreads = kComputeWarps * 32, kTalkThreads = kTalkWarps * 32;
constexpr int kBothThreads = kComputeThreads + kTalkThreads;
constexpr int kBlockThreads = kBothThreads + kLoadWarps * 32;
// Registers of a thread: together as many as the launch was given, or setmaxnreg waits for ever.
constexpr int kComputeRegisters = 168, kTalkRegisters = 144, kLoadRegisters = 32;
static_assert(kComputeThreads * kComputeRegisters + kTalkThreads * kTalkRegisters + 32 * kLoadWarps * kLoadRegisters == 65536);
constexpr int kMaxTiles = 24;  // whose sums fit in shared memory at once
constexpr int kSumsBytes = kComputeWarps * kMaxTiles * 32;
constexpr int kEntries = 8;  // tasks held in shared memory: this one, two to come, and one on its way

// Named barriers. Compute warps wait where the talking warps arrive, and the other way round.
enum Meeting : int {
  kInputReady = 1,  // talk -> compute: the input lies in shared memory
  kSumsReady = 2,   // compute -> talk: so do the sums
  kSumsTaken = 3,   // talk -> compute: the next round of sums may be written
  kStepBegins = 4,  // talk -> compute: whether there is another step
  kAmongTalk = 5,
  kTaskBegins = 6,  // talk -> compute: what the task waited for has come
};

// Where things lie in dynamic shared memory.
template <class Page>
struct Block {
  static constexpr int kFull = Page::kRingSlots * kSlotBytes, kEmpty = kFull + 8 * Page::kRingSlots;
  static constexpr int kControl = kFull + 16 * Page::kRingSlots;  // 16 bytes for norms, then the words below
  static constexpr int kGo = kControl + 16, kLast = kControl + 20, kKnown = kControl + 24, kPosition = kControl + 32;
  static constexpr int kTasks = kControl + 64, kSums = kTasks + kEntries * int(sizeof(Entry));
  static constexpr int kInput = kSums + kSumsBytes, kBytes = kInput + Page::kInputBytes;
};

// A compute warp's place in the ring.
template <class Page>
struct Ring {
  uint32 address, full, end, parity;
  bool leader;
  MKC_DEVICE Ring(uint32 base, int warp, int lane)
      : address(opaque(base + warp * kWarpBytes + lane * 16)),
        full(opaque(base + Block<Page>::kFull)),
        end(address + Page::kRingSlots * kSlotBytes),
        parity(0),
        leader(lane == 0) {}
  MKC_DEVICE void fetch(Quad (&w)[4]) {
    barrier_wait(full, parity);
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) w[i] = load_shared(address + i * 512);
    __syncwarp();
    if (leader) barrier_arrive(full + 8 * Page::kRingSlots);
    address += kSlotBytes, full += 8;
    if (address == end) address -= Page::kRingSlots * kSlotBytes, full -= 8 * Page::kRingSlots, parity ^= 1;
  }
};

struct Fragment {  // where a thread stands among the compute warps, and in the tensor cores' fragments
  int warp, row, column;
};

// A position is read from memory once in a step: the first to read it leaves it in shared memory, with its address.
template <class Page>
MKC_DEVICE int64 known_position(uint32 base, const void* at) {
  const Quad known = load_shared(base + Block<Page>::kPosition);
  if ((static_cast<uint64>(known.y) << 32 | known.x) == reinterpret_cast<uint64>(at)) return static_cast<int64>(known.w) << 32 | known.z;
  return *static_cast<const volatile int64*>(at);
}

// What a body's compute part knows: where it stands among the compute warps, the ring, and shared memory.
template <class Page>
struct Compute {
  Ring<Page> ring;
  uint32 base, input, sums;  // shared addresses
  int warp, lane;
  uint32 number = 0, early = 0;  // of the task among all that this worker has run; whether it may begin before its input
  MKC_DEVICE Compute(uint32 base, int warp, int lane)
      : ring(base, warp, lane),
        base(base),
        input(opaque(base + Block<Page>::kInput)),
        sums(opaque(base + Block<Page>::kSums)),
        warp(warp),
        lane(lane) {}
  // Opaque, or the compiler would compute the addresses of all bodies before the first, and run out of registers.
  MKC_DEVICE Fragment place() const {
    const int thread = static_cast<int>(opaque(warp * 32 + lane));
    return {thread / 32, thread % 32 / 4, thread % 4};
  }
  // The task, once what it waits for has come.
  MKC_DEVICE const Entry& begin() const {
    if (!early) meet(kTaskBegins, kBothThreads);
    return *static_cast<const Entry*>(__cvta_shared_to_generic(base + Block<Page>::kTasks + number % kEntries * sizeof(Entry)));
  }
  MKC_DEVICE int64 position(const void* at) const { return known_position<Page>(base, at); }
};

// What a body's talking part knows.
template <class Page>
struct Talk {
  Worker<Page>& worker;
  uint32 base, input, sums;
  uint32 begin, end, coming;  // the worker's queue, and the place in it of the next task to bring
  uint32 number = 0;          // of this task among all that this worker has run
  uint32 use = 0;             // of every published word that is written or read in this step
  uint32 since = 0;           // cycles when the last sums were ready
  uint64 ready = 0;
  uint32 hops = 1;
  bool early = false, aborted = false, prepared = false;

  MKC_DEVICE Talk(Worker<Page>& w, uint32 base, uint32 begin, uint32 end)
      : worker(w),
        base(base),
        input(opaque(base + Block<Page>::kInput)),
        sums(opaque(base + Block<Page>::kSums)),
        begin(begin),
        end(end),
        coming(begin) {
    bring(0), bring(1), bring(2);
    copies_done();
    meet(kAmongTalk, kTalkThreads);
  }

  // ---- tasks
  MKC_DEVICE uint32 place(uint32 of) const { return base + Block<Page>::kTasks + of % kEntries * sizeof(Entry); }
  MKC_DEVICE void bring(uint32 as) {  // a few threads, 16 bytes each
    if (begin == end) return;
    if (lane() < static_cast<int>(sizeof(Entry) / 16))
      copy_async(place(as) + 16 * lane(), reinterpret_cast<const Quad*>(worker.l.entries + coming) + lane());
    if (++coming == end) coming = begin;
  }
  MKC_DEVICE Quad task() const { return load_shared(place(number)); }  // body and waits, first wait, signal, operands
  MKC_DEVICE Quad rest() const {                                       // hops, early, index
    return load_shared(place(number) + sizeof(Task) + kMaxOperands * sizeof(void*));
  }
  MKC_DEVICE uint32 index() const { return rest().z; }
  // While the compute warps are busy: bring the tasks to come.
  MKC_DEVICE void prepare() {
    copies_done();
    meet(kAmongTalk, kTalkThreads);
    bring(number + 3);
    ahead(entry(number + 2));
    if (lane() == 0) worker.begin_task(index());
    prepared = true;
  }
  MKC_DEVICE const Entry& entry(uint32 of) const { return *static_cast<const Entry*>(__cvta_shared_to_generic(place(of))); }
  MKC_DEVICE void ahead(const Entry& entry) { Page::ahead(entry.task.body, *this, entry.operands, entry.task.ranges); }

  // ---- what bodies ask for
  MKC_DEVICE static int thread() { return static_cast<int>(opaque(lane())); }
  MKC_DEVICE void compute_may_begin() {
    if (!early) arrive(kTaskBegins, kBothThreads);
  }
  MKC_DEVICE int64 position(const void* at) const { return known_position<Page>(base, at); }
  MKC_DEVICE void keep_position(const void* at, int64 value) const {
    const uint64 place = reinterpret_cast<uint64>(at);
    const Quad known{static_cast<uint32>(place), static_cast<uint32>(place >> 32), static_cast<uint32>(value), static_cast<uint32>(value >> 32)};
    if (lane() == 0) store_shared(base + Block<Page>::kPosition, known);
  }
  MKC_DEVICE void input_is_ready() {
    copies_done();  // of the next task, which compute warps may look at now
    arrive(kInputReady, kBothThreads);
    if (Page::kTrace) ready = clock_ns();
    prepare();
  }
  MKC_DEVICE void await_sums() {
    meet(kSumsReady, kBothThreads);
    since = cycles();
  }
  MKC_DEVICE void sums_are_taken() { arrive(kSumsTaken, kBothThreads); }
  MKC_DEVICE void let_others_finish() const {  // looking too early takes bandwidth from the weights
    const int32 delay = static_cast<int32>(worker.l.delay * hops);
    while (static_cast<int32>(cycles() - since) < delay) {
    }
  }
  // Try until it works. An aborted launch goes on without waiting, on whatever it has, to the end of its step.
  template <class Try>
  MKC_DEVICE void poll(Try attempt) {
    uint64 start = 0;
    for (uint32 spins = 0; !attempt() && !aborted; ++spins)
      if (spins % 1024 == 1023) aborted = gives_up(start);
  }
  MKC_DEVICE bool gives_up(uint64& start) {
    if (load_relaxed(worker.aborted())) return true;
    const uint64 now_ns = clock_ns();
    if (start == 0) start = now_ns;
    if (now_ns - start <= worker.l.deadline_ns) return false;
    give_up(kUnpublished);
    return true;
  }
  MKC_DEVICE void report(uint32 misfit) {
    if (misfit && !aborted) give_up(kMisfit), aborted = true;
  }
  MKC_DEVICE void give_up(uint32 reason) const {
    seldom(worker.l, worker.id, worker.step, index(), use, reason);
  }
  // Out of the way of what is run at every task.
  MKC_NOINLINE static void seldom(const Launch& l, uint32 id, uint32 step, uint32 task, uint32 use, uint32 reason) {
    Worker<Page> worker(l, id);
    worker.step = step;
    worker.fail(task, 0, use - 1, use, reason);
  }
  // the sum of a value over the talking threads, to all of them
  MKC_DEVICE float total(float v) const {
    MKC_UNROLL
    for (int bit = 16; bit > 0; bit /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, bit);
    if (team_leader()) store_shared(base + Block<Page>::kControl + 4 * team(), v);
    meet(kAmongTalk, kTalkThreads);
    const Four part = load_shared_four(base + Block<Page>::kControl);
    return (part.at[0] + part.at[1]) + (part.at[2] + part.at[3]);
  }
};

template <class Page>
MKC_DEVICE void load_weights(const Launch& l, uint32 base, uint32 id, int loader) {
  constexpr int kShare = kSlotBytes / kLoadWarps;
  const uint32 full = base + Block<Page>::kFull, empty = base + Block<Page>::kEmpty;
  const uint64 policy = evict_first();
  uint32 slot = 0, parity = 1, behind = 0, behind_parity = 0, issued = 0, next = cycles() + l.pace / kLoadWarps * loader;
  bool open = true;
  uint32 last = 0xFFFFFFFFu;  // slots to issue in all, once that is known: those of the steps run, and a full ring
  const auto issue = [&](const uint8* from) {
    while (!barrier_passed(empty + 8 * slot, parity)) {
      if (last == 0xFFFFFFFFu) last = load_shared_word(base + Block<Page>::kLast);
      if (issued >= last) return false;
    }
    if (issued >= l.window) {
      barrier_wait(full + 8 * behind, behind_parity);
      if (++behind == Page::kRingSlots) behind = 0, behind_parity ^= 1;
    }
    if (l.pace) {
      uint32 now;
      while (static_cast<int32>((now = cycles()) - next) < 0) {
      }
      next = (static_cast<int32>(now - next) > 0 ? now : next) + l.pace;
    }
    barrier_expect(full + 8 * slot, kShare);
    bulk_copy(base + slot * kSlotBytes + loader * kShare, from + loader * kShare, kShare, full + 8 * slot, policy);
    ++issued;
    if (++slot == Page::kRingSlots) slot = 0, parity ^= 1;
    return true;
  };
  const uint32 begin = l.stream_bounds[id], end = l.stream_bounds[id + 1];
  if (begin == end) return;
  Stream following = l.streams[begin];
  for (uint32 step = 0; open && step < l.steps[0]; ++step)
    for (uint32 i = begin; open && i < end; ++i) {
      const Stream stream = following;
      following = l.streams[i + 1 < end ? i + 1 : begin];
      const uint8* from = l.packed + stream.offset;
      for (uint32 n = 0; open && n < stream.slots; ++n, from += kSlotBytes) open = issue(from);
    }
  while (behind != slot || behind_parity == parity) {  // shared memory must outlive every copy into it
    barrier_wait(full + 8 * behind, behind_parity);
    if (++behind == Page::kRingSlots) behind = 0, behind_parity ^= 1;
  }
}

template <class Page>
MKC_DEVICE void compute_streams(const Launch& l, uint32 base, uint32 id, int warp, int lane) {
  Compute<Page> c(base, warp, lane);
  const uint32 begin = l.stream_bounds[id], end = l.stream_bounds[id + 1];
  Stream following = l.streams[begin < end ? begin : 0];
  for (uint32 first = 0;; first += l.bounds[id + 1] - l.bounds[id]) {
    meet(kStepBegins, kBothThreads);
    if (!load_shared_word(base + Block<Page>::kGo)) break;
    for (uint32 i = begin; i < end; ++i) {
      const Stream stream = following;
      following = l.streams[i + 1 < end ? i + 1 : begin];
      c.number = first + stream.place, c.early = stream.early;
      Page::compute(stream.body, c);
    }
  }
}

// The tasks of a worker, step after step. A streaming kernel has one section: the ring is filled for the steps to come.
template <class Page>
struct Talker {
  Worker<Page>& worker;
  Talk<Page> talk;

  MKC_DEVICE Talker(Worker<Page>& w, uint32 base)
      : worker(w), talk(w, base, w.l.bounds[w.id], w.l.bounds[w.id + 1]) {}

  MKC_DEVICE void run(uint32 place) {
    const Quad task = talk.task(), rest = talk.rest();
    uint64 taken = 0;
    if (Page::kTrace) taken = talk.ready = clock_ns();
    if (task.x >> 16) await(task.y, task.x >> 16);
    talk.hops = rest.x, talk.early = rest.y, talk.prepared = false;
    const Entry& entry = talk.entry(talk.number);
    Page::talk(task.x & 0xFFFFu, talk, entry.operands, entry.task.ranges, Fault{worker.l.report, worker.id, 0, worker.step, rest.z});
    if (const int32 event = entry.task.signal; event >= 0) {
      sync();  // every thread's writes come before lane 0's release
      if (lane() == 0) add_release(worker.counter(static_cast<uint32>(event)), 1);
    }
    if (Page::kTrace && lane() == 0) stamp(place, taken);
    if (!talk.prepared) talk.prepare();
    ++talk.number;
  }
  MKC_DEVICE void await(uint32 first, uint32 count) {
    if (lane() == 0 && !talk.aborted) talk.aborted = !worker.await(first, count, worker.step + 1, talk.index());
    talk.aborted = broadcast(talk.aborted);
    if (Page::kTrace) talk.ready = clock_ns();
  }
  MKC_DEVICE void stamp(uint32 place, uint64 taken) {  // each run has a place of its own
    if (worker.l.stamps == nullptr) return;
    const uint32 each = talk.end - talk.begin;
    worker.l.stamps[talk.begin * worker.l.steps[0] + worker.step * each + place] = Stamp{worker.id, talk.index(), taken, talk.ready, clock_ns()};
  }
  MKC_DEVICE void steps() {
    const Launch& l = worker.l;
    const uint32 id = worker.id, used = *l.uses;
    uint32 slots = 0;  // of the ring, in a step
    for (uint32 i = l.stream_bounds[id]; i < l.stream_bounds[id + 1]; ++i) slots += l.streams[i].slots;
    for (worker.step = 0;; ++worker.step) {
      const bool go = broadcast(lane() == 0 && !talk.aborted && worker.permitted());
      if (lane() == 0) {
        store_shared(talk.base + Block<Page>::kPosition, Quad{});
        store_shared(talk.base + Block<Page>::kGo, static_cast<uint32>(go));
        if (!go) store_shared(talk.base + Block<Page>::kLast, worker.step * slots + Page::kRingSlots);
      }
      meet(kStepBegins, kBothThreads);
      if (!go) break;
      talk.use = used + worker.step + 1;
      for (uint32 place = 0; place < talk.end - talk.begin; ++place) run(place);
      talk.aborted = any(talk.aborted);
    }
    copies_done();
    worker.leave(used + worker.step);
  }
  MKC_DEVICE static bool any(bool value) {  // true for all talking threads when it is for one
    uint32 found;
    asm volatile("{\n.reg .pred p, q;\nsetp.ne.u32 p, %1, 0;\nbar.red.or.pred q, 5, 128, p;\nselp.u32 %0, 1, 0, q;\n}"
                 : "=r"(found)
                 : "r"(static_cast<uint32>(value))
                 : "memory");
    return found;
  }
};

template <class Page>
MKC_DEVICE void work_streaming(const Launch& launch, uint32 id, void* memory) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(opaque(threadIdx.x % 32));
  const uint32 base = opaque(shared_address(memory));
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < Page::kRingSlots; ++slot) {
      barrier_init(base + Block<Page>::kFull + 8 * slot, kLoadWarps);
      barrier_init(base + Block<Page>::kEmpty + 8 * slot, kComputeWarps);
    }
    store_shared(base + Block<Page>::kLast, 0xFFFFFFFFu);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (warp < kComputeWarps) {
    more_registers<kComputeRegisters>();
    compute_streams<Page>(launch, base, id, warp, lane);
  } else if (warp < kComputeWarps + kTalkWarps) {
    more_registers<kTalkRegisters>();
    Worker<Page> worker(launch, id);
    Talker<Page>(worker, base).steps();
  } else {
    fewer_registers<kLoadRegisters>();
    if (lane == 0) load_weights<Page>(launch, base, id, warp - kComputeWarps - kTalkWarps);
  }
}

}  // namespace mkc
