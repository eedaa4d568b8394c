// The ring of weights on Hopper and later GPUs: warps of their own fill it with bulk copies, far ahead of those who multiply.
#pragma once

#include <mkc/arch/sm90.cuh>
#include <mkc/block.cuh>

namespace mkc {

constexpr int kLoadWarps = 2, kSideWarps = 4;  // loaders, the herald and one at rest
constexpr int kBlockThreads = kBothThreads + kSideWarps * 32;
// Registers of a thread: together as many as the launch was given, or setmaxnreg waits for ever.
constexpr int kComputeRegisters = 168, kTalkRegisters = 136, kSideRegisters = 40;
static_assert(kComputeThreads * kComputeRegisters + kTalkThreads * kTalkRegisters + 32 * kSideWarps * kSideRegisters == 65536);
constexpr int kRollingSlots = 6;  // whose weights a compute warp holds while it multiplies those of more
constexpr int kBringers = 1;      // arrivals that say that an entry has come
MKC_DEVICE void take_compute_registers() { more_registers<kComputeRegisters>(); }
MKC_DEVICE void take_talk_registers() { more_registers<kTalkRegisters>(); }
MKC_DEVICE void take_side_registers() { fewer_registers<kSideRegisters>(); }

template <class Page>
MKC_DEVICE void init_ring(uint32 base) {
  for (int slot = 0; slot < Page::kRingSlots; ++slot) {
    barrier_init(base + Block<Page>::kFull + 8 * slot, kLoadWarps);
    barrier_init(base + Block<Page>::kEmpty + 8 * slot, kComputeWarps);
  }
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
  uint32 address, full, end, parity;
  bool leader;
  MKC_DEVICE Ring(const Launch&, uint32 base, uint32, int warp, int lane)
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
  MKC_DEVICE void close() const {}  // loaders wait for what they have copied
};

template <class Page>
MKC_DEVICE void load_weights(const Launch& l, uint32 base, uint32 id, int loader) {
  constexpr int kShare = kSlotBytes / kLoadWarps;
  const uint32 full = base + Block<Page>::kFull, empty = base + Block<Page>::kEmpty;
  const uint64 policy = evict_first();
  uint32 slot = 0, parity = 1, behind = 0, behind_parity = 0, issued = 0, next = cycles() + l.pace / kLoadWarps * loader;
  bool open = true;
  uint32 last = kUnknown;  // slots to issue in all, once that is known: those of the steps run, and a full ring
  const auto issue = [&](const uint8* from) {
    while (!barrier_passed(empty + 8 * slot, parity)) {
      if (last == kUnknown) last = load_shared_word(base + Block<Page>::kLast);
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

}  // namespace mkc
