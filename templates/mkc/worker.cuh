// The loop every worker runs: take a task, await its events, do it, signal; step after step, section after section.
#pragma once

#include <mkc/fault.cuh>

namespace mkc {

// What a report names when no event is at fault.
constexpr uint32 kRendezvous = 0xFFFFFFFEu, kVerdict = 0xFFFFFFFFu;

template <class Body>
MKC_BODY void run_body(void* const* operands, const Range* ranges, const Fault& fault) {
  if constexpr (requires { Body::run(operands, ranges, fault); }) Body::run(operands, ranges, fault);
  else Body::run(operands, ranges);
}

template <class Page>
struct Worker {
  const Launch& l;
  const uint32 id;
  uint32 section = 0, step = 0;

  MKC_DEVICE Worker(const Launch& launch, uint32 worker) : l(launch), id(worker) {}

  MKC_DEVICE uint32* counter(uint32 index) const { return l.counters + static_cast<uint64>(index) * kEventStride; }
  MKC_DEVICE uint32* ticket() const { return counter(l.num_events + 2 * section); }
  MKC_DEVICE uint32* verdict() const { return counter(l.num_events + 2 * section + 1); }
  MKC_DEVICE uint32* barrier() const { return counter(l.num_events + 2 * l.num_sections); }
  MKC_DEVICE uint32* leaving() const { return counter(l.num_events + 2 * l.num_sections + 1); }
  MKC_DEVICE uint32* aborted() const { return counter(l.num_events + 2 * l.num_sections + 2); }

  // ---- waiting. Everything below `until` runs on lane 0; false means that the launch is aborted.

  // The acquire here pairs with the release in `signal`, `permit` or `rendezvous`.
  MKC_DEVICE bool until(const uint32* word, uint32 need, uint32 task, uint32 event) {
    uint64 start = 0;
    for (uint32 spins = 0;; ++spins) {  // polls are relaxed: an acquire empties the SM's L1
      const uint32 have = load_relaxed(word);
      if (static_cast<int32>(have - need) >= 0) {
        load_acquire(word);
        return true;
      }
      if (spins % 256 == 255) {
        if (load_relaxed(aborted())) return false;
        const uint64 now = clock_ns();
        if (start == 0) start = now;
        if (now - start > l.deadline_ns) return fail(task, event, have, need);
      }
      pause(spins);
    }
  }
  MKC_DEVICE bool fail(uint32 task, uint32 event, uint32 have, uint32 need, uint32 reason = kLate) {
    if (claim(&l.report->failed)) {
      Report& r = *l.report;
      r.reason = reason, r.worker = id, r.section = section, r.step = step, r.task = task;
      r.event = event, r.have = have, r.need = need;
    }
    store_release(aborted(), 1);
    return false;
  }
  MKC_DEVICE bool await(uint32 first, uint32 count, uint32 steps_done, uint32 task) {
    for (uint32 i = first; i < first + count; ++i) {
      const Wait& w = l.waits[i];
      if (!until(counter(w.event), w.fanin * (steps_done - w.lag), task, w.event)) return false;
    }
    return true;
  }

  // ---- one task

  MKC_DEVICE void begin_task(uint32 index) { store_relaxed(&l.progress[id].task, index + 1); }

  MKC_DEVICE bool run(uint32 index) {
    const Task& task = l.tasks[index];
    uint64 taken = 0, ready = 0;
    bool go = true;
    if (lane() == 0) {
      begin_task(index);
      if (Page::kTrace) taken = clock_ns();
      if (Page::kDelay) dawdle(index, 0);
      go = await(task.first_wait, task.waits, step + 1, index);
      if (Page::kDelay) dawdle(index, 1);
      if (Page::kTrace) ready = clock_ns();
    }
    if (!broadcast(go)) return false;
    Page::run(task.body, l.operands + task.operands, task.ranges, Fault{l.report, id, section, step, index});
    sync();  // every lane's writes come before lane 0's release
    if (lane() == 0) {
      if (Page::kTrace) stamp(index, taken, ready);
      if (Page::kDelay) dawdle(index, 2);
      if (task.signal >= 0) add_release(counter(static_cast<uint32>(task.signal)), 1);
    }
    return true;
  }
  MKC_DEVICE void stamp(uint32 index, uint64 taken, uint64 ready) {
    if (l.stamps == nullptr) return;
    l.stamps[fetch_add(&l.progress[l.num_workers].task, 1)] = Stamp{id, index, taken, ready, clock_ns()};
  }
  // Test builds: now and then lose up to 32 us, in front of a wait, behind it, or in front of a signal. Who loses time
  // where is drawn from the launch's seed, so that a run can be repeated.
  MKC_DEVICE void dawdle(uint32 task, uint32 moment) {
    uint32 drawn = l.seed;
    const uint32 place[] = {id, section, step, task, moment};
    for (const uint32 word : place) {
      drawn = (drawn ^ word) * 0x9E3779B1u;
      drawn ^= drawn >> 15;
    }
    if (drawn % 4 != 0) return;
    const uint64 start = clock_ns(), loss = drawn / 4 % 8 != 0 ? drawn >> 21 : drawn >> 17;  // at most 2 us; or 32 us
    while (clock_ns() - start < loss) pause(4096);
  }

  // ---- one step after another

  // Worker 0 reads the stop flag once the step before has settled it and tells everyone. The verdict counts permitted
  // steps, twice, plus one when there will be no more; no worker can change the flag before it is permitted to go on.
  MKC_DEVICE bool permitted() {
    const Section& s = l.sections[section];
    if (step >= l.steps[section]) return false;
    store_relaxed(&l.progress[id].step, step);
    if (s.stop < 0) return true;
    if (Page::kDelay) dawdle(0xFFFFFFFFu, 0);
    if (id == 0) {
      if (!await(s.first_stop_wait, s.stop_waits, step, kVerdict)) return false;
      const bool stop = *static_cast<const volatile uint8*>(l.operands[s.stop]) != 0;
      store_release(verdict(), 2 * step + (stop ? 1 : 2));
    }
    if (!until(verdict(), 2 * step + 1, kVerdict, kVerdict)) return false;
    return load_acquire(verdict()) != 2 * step + 1;
  }
  MKC_DEVICE bool own_queue() {
    const Section& s = l.sections[section];
    const uint32 begin = l.bounds[s.first_queue + id], end = l.bounds[s.first_queue + id + 1];
    for (step = 0; broadcast(lane() == 0 && permitted()); ++step)
      for (uint32 i = begin; i < end; ++i)
        if (!run(l.queue[i])) return false;
    return true;
  }
  // Tickets are drawn in an order that respects every dependency, so the oldest unfinished task can always run.
  MKC_DEVICE bool shared_queue() {
    const Section& s = l.sections[section];
    if (s.num_tasks == 0) return true;
    const uint32 begin = l.bounds[s.first_queue];
    bool open = broadcast(lane() == 0 && permitted());
    while (open) {
      const uint32 drawn = broadcast(lane() == 0 ? fetch_add(ticket(), 1) : 0u);
      while (open && step != drawn / s.num_tasks) {
        ++step;
        open = broadcast(lane() == 0 && permitted());
      }
      if (open && !run(l.queue[begin + drawn % s.num_tasks])) return false;
    }
    return true;
  }
  MKC_DEVICE bool queue() {
    if constexpr (Page::kDynamic) return shared_queue();
    else return own_queue();
  }
  // All workers finish a section before any begins the next. Release pairs with acquire in `until`.
  MKC_DEVICE bool rendezvous() {
    bool go = true;
    sync();
    if (lane() == 0) {
      if (Page::kDelay) dawdle(0xFFFFFFFEu, 0);
      fetch_add(barrier(), 1);
      go = until(barrier(), l.num_workers * (section + 1), kRendezvous, kRendezvous);
    }
    return broadcast(go);
  }
  MKC_DEVICE bool sections() {
    for (section = 0; section < l.num_sections; ++section) {
      step = 0;
      if (!queue()) return false;
      if (section + 1 < l.num_sections && !rendezvous()) return false;
    }
    return true;
  }
  // The last worker to leave clears the counters for the next launch, and hands on how often words have been published.
  MKC_DEVICE void leave(uint32 uses = 0) {
    sync();
    const bool last = broadcast(lane() == 0 && fetch_add(leaving(), 1) == l.num_workers - 1);
    if (!last) return;
    if (lane() == 0 && l.uses != nullptr) *l.uses = uses;
    const int words = static_cast<int>((l.num_events + 2 * l.num_sections + 3) * kEventStride);
    for_lanes(0, words, [&](int i) { store_relaxed(&l.counters[i], 0); });
  }
};

template <class Page>
MKC_DEVICE void work(const Launch& launch, uint32 id) {
  Worker<Page> worker(launch, id);
  worker.sections();
  worker.leave();
}

}  // namespace mkc
