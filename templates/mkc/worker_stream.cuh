// The streaming worker: weights come through a ring, compute warps multiply, others talk to the world, and a herald brings the
// tasks to come. The page says which ring.
#pragma once

#include <mkc/polls.cuh>
#include <mkc/positions.cuh>

namespace mkc {

struct Fragment {  // where a thread stands among the compute warps, and in the tensor cores' fragments
  int warp, row, column;
};

// What a body's compute part knows: where it stands among the compute warps, the ring, and shared memory.
template <class Page>
struct Compute : Polls<Page> {
  using Polls<Page>::base;
  using Polls<Page>::number;
  Ring<Page> ring;
  uint32 input, sums;  // shared addresses
  int warp, lane;
  uint32 early = 0;  // whether the task may begin before its input
  uint32 fragments = 0;  // of this warp's, that the task's stream has
  MKC_DEVICE Compute(const Launch& l, uint32 base, uint32 id, int warp, int lane)
      : Polls<Page>(l, base, id),
        ring(l, base, id, warp, lane),
        input(opaque(base + Block<Page>::kInput)),
        sums(opaque(base + Block<Page>::kSums)),
        warp(warp),
        lane(lane) {}
  // Opaque, or the compiler would compute the addresses of all bodies before the first, and run out of registers.
  MKC_DEVICE uint32 thread() const { return opaque(warp * 32 + lane); }
  MKC_DEVICE Fragment place() const {
    const uint32 t = thread();
    return {static_cast<int>(t / 32), static_cast<int>(t % 32 / 4), static_cast<int>(t % 4)};
  }
  MKC_DEVICE uint32 slot() const { return ring.address - thread() * (kWarpBytes / 32); }  // of the ring, from its first byte
  // The task, once what it waits for has come.
  MKC_DEVICE const Entry& begin() const {
    if (!early) meet(kTaskBegins, kBothThreads);
    return Tasks<Page>{base}.await(number);
  }
  // The task, once the talking warps are done with the one before. Its input these warps bring themselves.
  MKC_DEVICE const Entry& begin_alone() {
    meet(kInputReady, kBothThreads);
    const Entry& entry = Tasks<Page>{base}.await(number);
    this->hops = entry.hops;
    return entry;
  }
  MKC_DEVICE int64 position(const void* at) const { return known_position<Page>(base, at); }
  MKC_DEVICE void input_came() const {
    if (!Page::kTrace || warp + lane > 0) return;
    const uint64 now = clock_ns();
    store_shared(base + Block<Page>::kCame, Pair{static_cast<uint32>(now), static_cast<uint32>(now >> 32)});
  }
  MKC_DEVICE void sums_are_ready() {
    arrive(kSumsReady, kBothThreads);
    this->since = cycles();
  }
};

// What a body's talking part knows.
template <class Page>
struct Talk : Polls<Page> {
  using Polls<Page>::l;
  using Polls<Page>::base;
  using Polls<Page>::number;
  using Polls<Page>::since;
  using Polls<Page>::index;
  Worker<Page>& worker;
  uint32 input, sums;
  uint32 each;         // step: tasks in the worker's queue
  uint32 turn = 0;     // which of two places the parts of the next total go to
  uint64 ready = 0;
  bool early = false;

  MKC_DEVICE Talk(Worker<Page>& w, uint32 base)
      : Polls<Page>(w.l, base, w.id),
        worker(w),
        input(opaque(base + Block<Page>::kInput)),
        sums(opaque(base + Block<Page>::kSums)),
        each(w.l.bounds[w.id + 1] - w.l.bounds[w.id]) {}

  // ---- what bodies ask for
  MKC_DEVICE static int thread() { return static_cast<int>(opaque(lane())); }
  MKC_DEVICE void compute_may_begin() {
    if (!early) arrive(kTaskBegins, kBothThreads);
  }
  // Kept, and told to the loaders, where it is news: a release waits for all that this thread has stored, the words of the task before among it.
  MKC_DEVICE int64 position(const void* at) const {
    return known_position<Page>(base, at, [&](int64 value) {
      if (lane() == 0) keep_position<Page>(base, at, value), store_release_shared(base + Block<Page>::kReached, number + 1);
    });
  }
  MKC_DEVICE void input_is_ready() {
    dawdle(1);
    arrive(kInputReady, kBothThreads);
    if (Page::kTrace) ready = clock_ns();
  }
  MKC_DEVICE void await_sums() {
    meet(kSumsReady, kBothThreads);
    since = cycles();
    dawdle(2);
  }
  MKC_DEVICE void input_came() {  // to the compute warps, who brought it
    if (!Page::kTrace) return;
    const Pair when = load_shared_pair(base + Block<Page>::kCame);
    ready = static_cast<uint64>(when.y) << 32 | when.x;
  }
  MKC_DEVICE void sums_are_taken() { arrive(kSumsTaken, kBothThreads); }
  MKC_DEVICE void report(uint32 misfit) {
    if (misfit && !this->aborted) [[unlikely]] this->give_up(kMisfit), this->aborted = true;
  }
  MKC_DEVICE void outside(int64 place, uint32 extent) const {
    Fault{l.report, this->id, 0, worker.step, index()}.outside(place, extent);
  }
  // The sum of a value over the talking threads, in two halves: everyone gives its part, and the sum is there for all once
  // the sums of the compute warps are. Two places take turns, so that nobody overwrites what another has yet to read.
  MKC_DEVICE void add_up(float v) {
    MKC_UNROLL
    for (int bit = 16; bit > 0; bit /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, bit);
    if (team_leader()) store_shared(base + Block<Page>::kControl + turn + 4 * team(), v);
  }
  MKC_DEVICE float added_up() {
    const Four part = load_shared_four(base + Block<Page>::kControl + turn);
    turn ^= 16;
    return (part.at[0] + part.at[1]) + (part.at[2] + part.at[3]);
  }
  // The same, at once.
  MKC_DEVICE float total(float v) {
    add_up(v);
    meet(kAmongTalk, kTalkThreads);
    return added_up();
  }
  MKC_DEVICE void dawdle(uint32 moment) const {  // test builds: each warp for itself
    if (Page::kDelay && team_leader()) worker.dawdle(index(), moment * kTalkWarps + team());
  }
};

// Brings tasks, up to kEntries ahead. Two tasks early it asks for what a task will read from memory itself.
template <class Page>
struct Herald {
  const Launch& l;
  Tasks<Page> tasks;
  uint32 begin, end, coming;

  MKC_DEVICE Herald(const Launch& l, uint32 base, uint32 id)
      : l(l), tasks{base}, begin(l.bounds[id]), end(l.bounds[id + 1]), coming(begin) {}
  MKC_DEVICE static int thread() { return static_cast<int>(threadIdx.x) % 32; }  // of 32
  MKC_DEVICE int64 position(const void* at) const { return known_position<Page>(tasks.base, at); }

  MKC_DEVICE void bring(uint32 number) {
    copy_entry(tasks.place(number), l.entries + coming, tasks.brought(number), thread());
    if (++coming == end) coming = begin;
  }
  MKC_DEVICE void first() {
    MKC_NO_UNROLL
    for (uint32 number = 0; number < kEntries; ++number) bring(number);
  }
  // Where no warp does nothing else: when this talking warp is done with a task, and the others are with the one before.
  MKC_DEVICE void after(uint32 number) {
    if (number > 0) {
      barrier_wait(tasks.done(number - 1), Tasks<Page>::parity(number - 1));
      bring(number - 1 + kEntries);
    }
    const Entry& entry = tasks.await(number + 2);
    Page::ahead(entry.task.body, *this, entry.operands, entry.task.ranges);
  }
  MKC_DEVICE void run() {
    if (begin == end) return;
    first();
    uint32 number = 0;
    for (;; ++number) {
      const Entry& entry = tasks.await(number + 2);
      Page::ahead(entry.task.body, *this, entry.operands, entry.task.ranges);
      if (!is_done(number)) break;
      bring(number + kEntries);
    }
    MKC_NO_UNROLL
    for (uint32 i = 0; i < kEntries; ++i) tasks.await(number + i);  // shared memory must outlive every copy into it
  }
  MKC_DEVICE bool is_done(uint32 number) const {
    bool done = true;
    if (thread() == 0)
      while (!(done = barrier_passed(tasks.done(number), Tasks<Page>::parity(number))))
        if (load_acquire_shared(tasks.base + Block<Page>::kClosed)) break;
    return __shfl_sync(0xFFFFFFFFu, done, 0);
  }
};

// A portable body. What it reads may be from talking warps that are a task behind, and what it writes for those ahead.
template <class Body>
MKC_DEVICE void run_together(void* const* operands, const Range* ranges, const Fault& fault) {
  sync();
  run_body<Body>(operands, ranges, fault);
  sync();
}

template <class Page>
MKC_DEVICE void compute_streams(const Launch& l, uint32 base, uint32 id, int warp, int lane) {
  Compute<Page> c(l, base, id, warp, lane);
  // Looked up again and again, or all bodies would keep them.
  const auto streams = [&] { return load_shared_pair(base + Block<Page>::kStreams); };  // begin and end
  Stream following = l.streams[streams().x < streams().y ? streams().x : 0];
  uint32 first = 0;  // task of a step, counted from the launch's
  c.use = *l.uses;
  // Whether there is another step comes with the meeting itself: talking warps that need no others in a step may be at the next.
  while (meet_any(kStepBegins, kBothThreads, false)) {
    ++c.use;
    for (uint32 i = streams().x; i < streams().y;) {
      const Stream stream = following;
      following = l.streams[++i < streams().y ? i : streams().x];
      c.number = first + stream.place, c.early = stream.early(), c.fragments = stream.fragments;
      Page::compute(stream.body(), c);
    }
    first += l.bounds[id + 1] - l.bounds[id];
  }
  c.ring.close();
}

// The tasks of a worker, step after step. A streaming kernel has one section: the ring is filled for the steps to come.
template <class Page>
struct Talker {
  Worker<Page>& worker;
  Talk<Page> talk;
  Tasks<Page> tasks;
  Herald<Page> herald;

  MKC_DEVICE Talker(Worker<Page>& w, uint32 base)
      : worker(w), talk(w, base), tasks{base}, herald(w.l, base, w.id) {
    if (is_herald() && talk.each > 0) herald.first();
  }
  MKC_DEVICE static bool is_herald() { return kSideWarps == 0 && team() == kTalkWarps - 1; }

  MKC_DEVICE void run() {
    const Entry& entry = tasks.await(talk.number);
    const uint32 at = tasks.place(talk.number);
    const Quad task = load_shared(at), rest = load_shared(at + sizeof(Task) + kMaxOperands * sizeof(void*));
    uint64 taken = 0;
    if (Page::kTrace) taken = talk.ready = clock_ns();
    talk.hops = rest.x, talk.early = rest.y;
    if (lane() == 0) worker.begin_task(rest.z);
    talk.dawdle(0);
    if (task.x >> 16) await(task.y, task.x >> 16);
    Page::talk(task.x & 0xFFFFu, talk, entry.operands, entry.task.ranges, Fault{worker.l.report, worker.id, 0, worker.step, rest.z});
    if (const int32 event = entry.task.signal; event >= 0) {
      sync();  // every thread's writes come before lane 0's release
      talk.dawdle(3);
      if (lane() == 0) add_release(worker.counter(static_cast<uint32>(event)), 1);
    }
    if (Page::kTrace && lane() == 0) stamp(taken);
    __syncwarp();
    if (team_leader()) barrier_arrive(tasks.done(talk.number));
    if (is_herald()) herald.after(talk.number);
    ++talk.number;
  }
  MKC_DEVICE void await(uint32 first, uint32 count) {
    if (lane() == 0 && !talk.aborted) talk.aborted = !worker.await(first, count, worker.step + 1, talk.index());
    talk.aborted = broadcast(talk.aborted);
    if (Page::kTrace) talk.ready = clock_ns();
  }
  MKC_DEVICE void stamp(uint64 taken) {  // each run has a place of its own
    if (worker.l.stamps == nullptr) return;
    worker.l.stamps[worker.l.bounds[worker.id] * worker.l.steps[0] + talk.number] = Stamp{worker.id, talk.index(), taken, talk.ready, clock_ns()};
  }
  MKC_DEVICE void steps() {
    talk.use = *worker.l.uses;
    for (worker.step = 0;; ++worker.step) {
      const bool go = broadcast(lane() == 0 && !talk.aborted && worker.permitted());
      if (lane() < kPositions) forget_position<Page>(talk.base, lane());
      if (lane() == 0 && !go) store_release_shared(talk.base + Block<Page>::kClosed, 1);
      meet_any(kStepBegins, kBothThreads, go);  // and tell them, who may take a whole step to look
      if (!go) break;
      ++talk.use;
      while (talk.number < (worker.step + 1) * talk.each) run();
      talk.aborted = meet_any(kAmongTalk, kTalkThreads, talk.aborted);
    }
    if (is_herald()) copies_done();
    worker.leave(talk.use);
  }
};

template <class Page>
MKC_DEVICE void work_streaming(const Launch& launch, uint32 id, void* memory) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(opaque(threadIdx.x % 32));
  const uint32 base = opaque(shared_address(memory));
  if (threadIdx.x == 0) {
    init_ring<Page>(base);
    MKC_NO_UNROLL
    for (int entry = 0; entry < kEntries; ++entry) {
      barrier_init(base + Block<Page>::kBrought + 8 * entry, kBringers);
      barrier_init(base + Block<Page>::kDone + 8 * entry, kTalkWarps);
    }
    store_shared(base + Block<Page>::kClosed, 0u), store_shared(base + Block<Page>::kReached, 0u);
    store_shared(base + Block<Page>::kStreams, Pair{launch.stream_bounds[id], launch.stream_bounds[id + 1]});
    barriers_are_set();
  }
  __syncthreads();
  if (warp < kComputeWarps) {
    take_compute_registers();
    compute_streams<Page>(launch, base, id, warp, lane);
  } else if (warp < kComputeWarps + kTalkWarps) {
    take_talk_registers();
    Worker<Page> worker(launch, id);
    Talker<Page>(worker, base).steps();
  } else if constexpr (kSideWarps > 0) {
    take_side_registers();
    const int side = warp - kComputeWarps - kTalkWarps;
    if (side < kLoadWarps && lane == 0) load_weights<Page>(launch, base, id, side);
    if (side == kLoadWarps) Herald<Page>(launch, base, id).run();
  }
}

}  // namespace mkc
