// The ring of weights on Ampere and Ada: each lane that multiplies copies what it will read, a whole ring ahead.
#pragma once

#include <mkc/arch/sm80.cuh>
#include <mkc/block.cuh>

namespace mkc {

// Registers cannot change hands, so no warps load, or bring tasks, and do nothing else: 12 have 168 registers each, 16 would have 128.
constexpr int kLoadWarps = 0, kSideWarps = 0;
constexpr int kBlockThreads = kBothThreads;
constexpr int kRollingSlots = 4;  // whose weights a compute warp holds while it multiplies those of more
constexpr int kBringers = sizeof(Entry) / 16;  // arrivals that say that an entry has come
MKC_DEVICE void take_compute_registers() {}
MKC_DEVICE void take_talk_registers() {}
MKC_DEVICE void take_side_registers() {}
template <class Page>
MKC_DEVICE void init_ring(uint32) {}
MKC_DEVICE void barriers_are_set() {}  // the block meets
template <class Page>
MKC_DEVICE void load_weights(const Launch&, uint32, uint32, int) {}
MKC_DEVICE void copy_entry(uint32 to, const Entry* from, uint32 barrier, int thread) {
  if (thread >= kBringers) return;
  copy_async(to + 16 * thread, reinterpret_cast<const Quad*>(from) + thread);
  copies_arrive(barrier);
}

// What a compute warp copies next. In shared memory: bodies need the registers.
struct alignas(16) Source {
  uint32 slot, left;  // of packed memory, and how many fragments are still to come for the same task
  uint32 at, step;    // the stream after these, and the step in which it is used
};

// A compute lane's place in the ring. What it reads it has copied itself, so it waits for nobody's copies but its own.
template <class Page>
struct Ring {
  static constexpr bool kHasKeys = false;  // attention reads them from memory
  const Launch& l;
  const uint32 base, id;
  uint32 address;  // of what to read next

  MKC_DEVICE Ring(const Launch& launch, uint32 memory, uint32 worker, int warp, int lane)
      : l(launch), base(memory), id(worker), address(opaque(base + warp * kWarpBytes + lane * 16)) {
    Source first{0, 0, l.stream_bounds[id], 0};
    turn(first);
    keep(first);
    MKC_NO_UNROLL
    for (int slot = 0; slot < Page::kRingSlots; ++slot) refill();
  }
  MKC_DEVICE void fetch(Quad (&w)[4]) {
    await_copies<Page::kRingSlots - 1>();
    MKC_UNROLL
    for (int i = 0; i < 4; ++i) w[i] = load_shared(address + i * kFragmentBytes);
    refill();
  }
  MKC_DEVICE void close() const { copies_done(); }  // shared memory must outlive every copy into it

 private:
  // What was just read makes room for what comes a whole ring later. Copies are awaited by their number, so past the end,
  // where there is nothing to copy, that is counted as well.
  MKC_DEVICE void refill() {
    Source source = *place();
    if (source.left) {
      const uint8* const from = l.packed + static_cast<uint64>(source.slot) * kSlotBytes + share();
      MKC_UNROLL
      for (uint32 i = 0; i < kSlotFragments; ++i)
        if (i < source.left) copy_weights(address + i * kFragmentBytes, from + i * kFragmentBytes);
      ++source.slot;
      source.left -= source.left < kSlotFragments ? source.left : kSlotFragments;
      if (source.left == 0) turn(source);
    }
    keep(source);
    end_copies();
    address += kSlotBytes;
    if (address - base >= Page::kRingSlots * kSlotBytes) address -= Page::kRingSlots * kSlotBytes;
  }
  MKC_DEVICE uint32 share() const { return (address - base) % kSlotBytes; }  // where the lane's lies in a slot
  // On to the next task that has weights.
  MKC_DEVICE void turn(Source& source) const {
    const uint32 begin = l.stream_bounds[id], end = l.stream_bounds[id + 1];
    MKC_NO_UNROLL
    for (uint32 tried = begin; source.left == 0 && tried < end && source.step < l.steps[0]; ++tried) {
      const Stream& stream = l.streams[source.at];
      source.slot = stream.first, source.left = stream.fragments;
      if (++source.at == end) source.at = begin, ++source.step;
    }
  }
  MKC_DEVICE Source* place() const {  // each warp's own
    __shared__ Source sources[kComputeWarps];
    return sources + share() / kWarpBytes;
  }
  MKC_DEVICE void keep(const Source& source) const {
    __syncwarp();
    if (share() % kWarpBytes == 0) *place() = source;
    __syncwarp();
  }
};

}  // namespace mkc
