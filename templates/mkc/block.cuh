// The thread block of a streaming worker: the roles of its warps, where they meet, and where things lie in shared memory.
#pragma once

#include <mkc/abi.cuh>

namespace mkc {

constexpr int kComputeWarps = 8, kTalkWarps = 4;
constexpr int kWarpBytes = 512, kFragmentBytes = kComputeWarps * kWarpBytes;  // a fragment of one compute warp, and of each
constexpr int kSlotFragments = 4, kSlotBytes = kSlotFragments * kFragmentBytes;  // of the ring
constexpr int kComputeThreads = kComputeWarps * 32, kTalkThreads = kTalkWarps * 32;
constexpr int kBothThreads = kComputeThreads + kTalkThreads;
constexpr int kKeyTile = 16, kKeyBlock = kKeyTile * kComputeWarps;  // keys that a warp, and all of them, see at once
constexpr int kLine = 16;  // words of a line of memory
constexpr int kMaxTiles = 24;  // whose sums fit in shared memory at once
constexpr int kSumsBytes = kComputeWarps * kMaxTiles * 32;
constexpr int kEntries = 8;  // tasks held in shared memory: this one and those to come
constexpr int kMostLoadWarps = 2, kPositions = 16;  // that there is room for: entries of loaders, positions of a step

// Named barriers. Compute warps wait where the talking warps arrive, and the other way round.
enum Meeting : int {
  kInputReady = 1,  // talk -> compute: the input lies in shared memory, or may be laid there
  kSumsReady = 2,   // compute -> talk: so do the sums
  kSumsTaken = 3,   // talk -> compute: the next round of sums may be written
  kStepBegins = 4,  // talk -> compute: whether there is another step, which the meeting tells
  kAmongTalk = 5,
  kTaskBegins = 6,  // talk -> compute: what the task waited for has come
};

// Where things lie in dynamic shared memory.
template <class Page>
struct Block {
  static constexpr int kFull = Page::kRingSlots * kSlotBytes, kEmpty = kFull + 8 * Page::kRingSlots;
  static constexpr int kControl = kFull + 16 * Page::kRingSlots;  // 32 bytes for norms, then the words below
  static constexpr int kClosed = kControl + 36;                       // whether there is no further step
  static constexpr int kReached = kControl + 40;                      // the last task that kept a position: its number, plus one
  static constexpr int kCame = kControl + 48;                         // when compute warps had their input, in 8 bytes
  static constexpr int kStreams = kControl + 56;                      // where the worker's begin and end, two words
  static constexpr int kKept = kControl + 64;                         // positions, each with its address
  static constexpr int kBrought = kKept + 16 * kPositions, kDone = kBrought + 8 * kEntries;  // barriers of the tasks
  static constexpr int kTasks = kDone + 8 * kEntries, kAsked = kTasks + kEntries * int(sizeof(Entry));
  static constexpr int kAskedBytes = int(sizeof(Entry)) + 96;              // of a loader: an entry, and what it has no registers for
  static constexpr int kAnswered = kAsked + kMostLoadWarps * kAskedBytes;  // barriers of the loaders' entries
  static constexpr int kSums = kAnswered + 8 * kMostLoadWarps;
  static constexpr int kInput = kSums + kSumsBytes, kBytes = kInput + Page::kInputBytes;
};

}  // namespace mkc
