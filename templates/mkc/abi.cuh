// What the host writes and the device reads. Plain data; mkc/ir/program.py holds the same layouts for numpy.
#pragma once

#include <mkc/platform.cuh>

namespace mkc {

inline constexpr int kMaxAxes = 6;
inline constexpr int kMaxSections = 4;
inline constexpr int kEventStride = 16;  // counters, in uint32: one cache line each
inline constexpr int kMaxOperands = 16;  // of a task, where tasks carry their addresses

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

// Why a report was written: a wait that took too long; an index outside; published values that never came, or cannot go.
constexpr uint32 kLate = 0, kOutside = 1, kUnpublished = 2, kMisfit = 3;

struct Report {  // the first thing that went wrong
  uint32 failed;  // nobody writes a second report
  uint32 reason, worker, section, step, task;
  uint32 event, have, need;  // kLate
  uint32 extent;             // kOutside: of the dimension that `index` points beyond
  int64 index;
};

struct Place {  // where a worker stands, for the report
  uint32 task;  // the last one it took up, plus one; 0: none so far
  uint32 step;
};

struct Stamp {  // one execution of a task; times in nanoseconds
  uint32 worker, task;
  uint64 taken, ready, done;
};

// ---- for workers that stream their weights: plans with a ring of shared memory

struct Entry {  // a task as a streaming worker meets it, its addresses resolved
  Task task;
  void* operands[kMaxOperands];
  uint32 hops;   // exchanges between workers from the sums of this one's last stream to the input of this task
  uint32 early;  // nothing but the order of the queue holds this stream back: compute warps may begin before the input
  uint32 index;  // into Launch::tasks
  uint32 padding;
};

struct alignas(16) Stream {  // the weights of one task, packed in the order in which they are multiplied; without any, its keys and values
  uint32 first;  // slot of Launch::packed
  uint32 fragments;  // of each compute warp: of the last slot, only those of which there are any are brought
  uint32 place;  // of the task in its worker's queue
  uint32 words;  // from the lowest bit: body, 16 bits; early, 8; awaits, 8
  MKC_DEVICE uint32 body() const { return words & 0xFFFFu; }
  MKC_DEVICE uint32 early() const { return words >> 16 & 0xFFu; }
  MKC_DEVICE uint32 awaits() const { return words >> 24; }  // a position that no earlier record of a step reads: loaders wait for it
};

struct Launch {
  const Task* tasks;
  const Wait* waits;
  void* const* operands;
  const Section* sections;
  const uint32* bounds;
  const uint32* queue;
  uint32* counters;  // events, then one word each: per section ticket and verdict, barrier, leaving, aborted
  Place* progress;   // per worker, and one more whose `task` counts stamps
  Report* report;
  Stamp* stamps;  // trace builds only
  uint64 deadline_ns;
  const Entry* entries;  // as `queue` lists tasks
  const Stream* streams;
  const uint32* stream_bounds;  // as `bounds`: the streams of each queue
  const uint8* packed;
  uint32* uses;  // how many steps earlier launches ran: published words count on from there
  uint32 num_workers, num_sections, num_events;
  uint32 steps[kMaxSections];
  uint32 window;  // slots that may be on their way at once
  uint32 pace;    // cycles from one slot to the next, at least
  uint32 delay;   // cycles from a worker's own sums to its first look for the others'
  uint32 seed;  // delay builds only: another launch is held up elsewhere
  uint32 padding;
};

}  // namespace mkc
