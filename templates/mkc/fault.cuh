// Where a body says that an index it was given points outside of its tensor. It goes on with one inside, so that nothing
// beside the tensor is touched; the host raises what is reported here after the launch.
#pragma once

#include <mkc/abi.cuh>

namespace mkc {

struct Fault {
  Report* report;
  uint32 worker, section, step, task;

  MKC_DEVICE void outside(int64 index, uint32 extent) const {
    if (!claim(&report->failed)) return;
    report->reason = kOutside, report->worker = worker, report->section = section, report->step = step;
    report->task = task, report->index = index, report->extent = extent;
  }
};

}  // namespace mkc
