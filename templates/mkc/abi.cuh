// What the host writes and the device reads. Plain data; mkc/ir/program.py holds the same layouts for numpy.
#pragma once

#include <mkc/platform.cuh>

namespace mkc {

inline constexpr int kMaxAxes = 6;
inline constexpr int kMaxSections = 4;
inline constexpr int kEventStride = 16;  // counters, in uint32: one cache line each

struct Range {
  int32 begin, end;
};

struct Task {  // 64 bytes
  uint32 body : 16;
  uint32 waits : 16;   // how many events to await
  uint32 first_wait;   // index into Launch::waits
  int32 signal;        // event to signal, or -1
  uint32 operands;     // index into Launch::operands
  Range ranges[kMaxAxes];
};

struct Wait {  // until counter[event] >= fanin * (step + 1 - lag)
  uint32 event;
  uint32 fanin;
  uint32 lag;  // 0: of this step; 1: of the step before
};

struct Section {  // a plan and its queues, run for `Launch::steps` steps
  uint32 first_queue;  // queue of worker w: queue[bounds[first_queue + w] : bounds[first_queue + w + 1]]
  uint32 num_tasks;    // dynamic policy: how many tickets a step has, from queue[bounds[first_queue]] on; static: 0
  uint32 first_stop_wait, stop_waits;  // events after which `stop` is final for a step
  int32 stop;                          // operand index of a bool that ends the section when true, or -1
};

struct Report {  // the first failed wait
  uint32 failed;
  uint32 worker, section, step, task, event, have, need;
};

struct Stamp {  // one execution of a task; times in nanoseconds
  uint32 worker, task;
  uint64 taken, ready, done;
};

struct Launch {
  const Task* tasks;
  const Wait* waits;
  void* const* operands;
  const Section* sections;
  const uint32* bounds;
  const uint32* queue;
  uint32* counters;  // events, then one word each: per section ticket and verdict, barrier, leaving, aborted
  uint32* progress;  // per worker: tasks begun, for the report
  Report* report;
  Stamp* stamps;  // trace builds only
  uint64 deadline_ns;
  uint32 num_workers, num_sections, num_events;
  uint32 steps[kMaxSections];
};

}  // namespace mkc
