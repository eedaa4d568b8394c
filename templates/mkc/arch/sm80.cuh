// What streaming workers do on Ampere and Ada where Hopper has better: wait at barriers in shared memory, copy past them.
#pragma once

#include <mkc/arch/stream.cuh>

namespace mkc {

MKC_DEVICE bool barrier_passed(uint32 b, uint32 parity) { return barrier_tested(b, parity); }
MKC_DEVICE void barrier_wait(uint32 b, uint32 parity) {
  while (!barrier_passed(b, parity)) {
  }
}
MKC_DEVICE void copy_async(uint32 to, const void* from) {  // 16 bytes
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
MKC_DEVICE void copies_arrive(uint32 b) {  // one arrival, once all copies that this thread has begun are there
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(b) : "memory");
}

MKC_DEVICE void show_to_copies() {}  // copies here are loads like others

}  // namespace mkc
