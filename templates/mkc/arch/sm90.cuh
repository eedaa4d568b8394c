// What Hopper and later GPUs add for streaming workers: barriers in shared memory, bulk copies, registers that change hands.
#pragma once

#include <mkc/arch/stream.cuh>

namespace mkc {

// ---- barriers in shared memory, which bulk copies complete
MKC_DEVICE void barrier_expect(uint32 b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(bytes) : "memory");
}
MKC_DEVICE bool barrier_passed(uint32 b, uint32 parity) {
  uint32 done;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(b), "r"(parity)
               : "memory");
  return done;
}
MKC_DEVICE void barrier_wait(uint32 b, uint32 parity) {
  asm volatile(
      "{\n.reg .pred p;\nL1_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra L2_%=;\nbra L1_%=;\nL2_%=:\n}" ::"r"(b),
      "r"(parity)
      : "memory");
}
MKC_DEVICE void bulk_copy(uint32 to, const void* from, int bytes, uint32 barrier, uint64 policy) {
  asm volatile(
      "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}
MKC_DEVICE void bulk_copy(uint32 to, const void* from, int bytes, uint32 barrier) {
  asm volatile("cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
               "r"(barrier)
               : "memory");
}
// Between what this thread has written to memory, or knows to be written, and bulk copies of it.
MKC_DEVICE void show_to_copies() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// ---- registers, of all threads of a warp group
template <int Count>
MKC_DEVICE void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
MKC_DEVICE void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

}  // namespace mkc
