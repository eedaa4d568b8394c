// Waiting for words that other workers publish: when to look, and when to give up.
#pragma once

#include <mkc/arch/stream.cuh>
#include <mkc/block.cuh>
#include <mkc/worker.cuh>

namespace mkc {

// Tasks by their number among all that this worker has run. They are brought in the order of its queue.
template <class Page>
struct Tasks {
  uint32 base;
  MKC_DEVICE uint32 place(uint32 of) const { return base + Block<Page>::kTasks + of % kEntries * sizeof(Entry); }
  MKC_DEVICE const Entry& entry(uint32 of) const { return *static_cast<const Entry*>(__cvta_shared_to_generic(place(of))); }
  MKC_DEVICE uint32 brought(uint32 of) const { return base + Block<Page>::kBrought + 8 * (of % kEntries); }
  MKC_DEVICE uint32 done(uint32 of) const { return base + Block<Page>::kDone + 8 * (of % kEntries); }
  MKC_DEVICE static uint32 parity(uint32 of) { return of / kEntries & 1; }
  MKC_DEVICE const Entry& await(uint32 of) const {
    barrier_wait(brought(of), parity(of));
    return entry(of);
  }
};

constexpr uint32 kMostCycles = 1 << 20;  // of a delay

// What a warp knows of the task whose input it waits for.
template <class Page>
struct Polls {
  const Launch& l;
  const uint32 id;           // of the worker
  const uint32 base;         // of shared memory
  uint32 number = 0;         // of the task among all that this worker has run
  uint32 use = 0;            // of every published word that is written or read in this step
  uint32 since = 0;          // cycles when the last sums were ready
  uint32 hops = 1;
  bool aborted = false;

  MKC_DEVICE Polls(const Launch& launch, uint32 base, uint32 worker) : l(launch), id(worker), base(base) {}

  MKC_DEVICE void pass_by() {  // nothing to do: only meet the other warps, who have found the same
    meet(kInputReady, kBothThreads);
    since += l.delay;
  }
  // Looking too early takes bandwidth from the weights. Sums may be older than the clock can tell, or there were none: then what seems
  // to be left is longer than any delay.
  MKC_DEVICE void let_others_finish() const {
    const uint32 end = since + l.delay * hops;
    while (end - cycles() - 1 < kMostCycles) {
    }
  }
  // Try until it works. An aborted launch goes on without waiting, on whatever it has, to the end of its step.
  template <class Try>
  MKC_DEVICE void poll(Try attempt) {
    uint64 start = 0;
    for (uint32 spins = 0; !attempt() && !aborted; ++spins)
      if (spins % 1024 == 1023) aborted = gives_up(start);
  }
  MKC_DEVICE bool gives_up(uint64& start) const {
    if (load_relaxed(Worker<Page>(l, id).aborted())) return true;
    const uint64 now_ns = clock_ns();
    if (start == 0) start = now_ns;
    if (now_ns - start <= l.deadline_ns) return false;
    give_up(kUnpublished);
    return true;
  }
  MKC_DEVICE void give_up(uint32 reason) const { seldom(l, id, index(), use, reason); }
  // Into Launch::tasks. Looked up again: whoever keeps it has a register less for all that waits.
  MKC_DEVICE uint32 index() const { return Tasks<Page>{base}.entry(number).index; }
  // Out of the way of what is run at every task.
  MKC_NOINLINE static void seldom(const Launch& l, uint32 id, uint32 task, uint32 use, uint32 reason) {
    Worker<Page> worker(l, id);
    worker.step = use - 1 - *l.uses;
    worker.fail(task, 0, use - 1, use, reason);
  }
};

}  // namespace mkc
