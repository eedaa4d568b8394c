// Positions that a worker knows: the first of its tasks to read one in a step keeps it in shared memory, for those who read it later.
#pragma once

#include <mkc/arch/stream.cuh>
#include <mkc/block.cuh>

namespace mkc {

// Those of neighbouring sequences have places of their own.
template <class Page>
MKC_DEVICE uint32 kept_at(uint32 base, const void* position) {
  return base + Block<Page>::kKept + static_cast<uint32>(reinterpret_cast<uint64>(position) / 8 % kPositions) * 16;
}
// `news` sees a position that is not kept.
template <class Page, class News>
MKC_DEVICE int64 known_position(uint32 base, const void* position, News news) {
  const Quad kept = load_shared(kept_at<Page>(base, position));
  if ((static_cast<uint64>(kept.y) << 32 | kept.x) == reinterpret_cast<uint64>(position)) return static_cast<int64>(kept.w) << 32 | kept.z;
  const int64 value = *static_cast<const volatile int64*>(position);
  news(value);
  return value;
}
template <class Page>
MKC_DEVICE int64 known_position(uint32 base, const void* position) {
  return known_position<Page>(base, position, [](int64) {});
}
template <class Page>
MKC_DEVICE void keep_position(uint32 base, const void* position, int64 value) {
  const uint64 at = reinterpret_cast<uint64>(position);
  const Quad known{static_cast<uint32>(at), static_cast<uint32>(at >> 32), static_cast<uint32>(value), static_cast<uint32>(value >> 32)};
  store_shared(kept_at<Page>(base, position), known);
}
template <class Page>
MKC_DEVICE void forget_position(uint32 base, int place) {
  store_shared(base + Block<Page>::kKept + 16 * place, Quad{});
}

}  // namespace mkc
