// A GPU for pages with streaming workers, as far as they can tell: every thread is a fiber of one thread of the host, and
// what PTX does in one instruction is a function here. `emulator.py` puts these in the places of the instructions.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#define __CUDACC__ 1
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __builtin_assume(what) ((void)(what))

namespace emulated {

constexpr int kBlock = 512, kWarp = 32;

struct Named {  // a barrier among the warps of a block
  int arrived = 0, expected = 0, votes = 0;
  bool found = false;
  unsigned generation = 0;
};
struct Counted {  // a barrier in shared memory, which copies complete
  int count = 0, pending = 0;
  long bytes = 0;
  unsigned phase = 0;
  void settle() {
    if (pending == 0 && bytes == 0) ++phase, pending = count;
  }
};
struct Warp {  // what its lanes tell each other; of two turns, for some lanes are still looking at the one before
  int arrived = 0;
  unsigned turn = 0;
  unsigned char told[2][kWarp][64];
};
struct Copy {  // on its way
  unsigned to;
  const void* from;
  int bytes;
  unsigned barrier;
};
struct Block {
  std::vector<unsigned char> shared;
  Named named[16];
  std::map<unsigned, Counted> counted;
  std::vector<Copy> copies;
  Warp warps[kBlock / kWarp];
  alignas(16) float scratch[4224];
  unsigned long long slot = 0;  // of `broadcast`
};
struct Fiber {
  ucontext_t context;
  std::function<bool()> ready;
  const char* awaits = "its first turn";
  int block = 0, thread = 0;
  bool polls = false, done = false;
  std::vector<Copy> copies;  // of 16 bytes, that it has yet to wait for
};

inline std::vector<Block> blocks;
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline Fiber* me = nullptr;
inline unsigned now = 0;  // clocks go on whenever they are looked at

inline Block& block() { return blocks[me->block]; }
inline int lane() { return me->thread % kWarp; }

[[noreturn]] inline void refuse(const char* what, long number = 0) {
  std::printf("block %d, thread %d: %s (%ld)\n", me->block, me->thread, what, number);
  std::fflush(stdout);
  std::_Exit(3);
}

// ---- waiting
inline void wait(std::function<bool()> ready, const char* what, bool polls = false) {
  me->ready = std::move(ready), me->awaits = what, me->polls = polls;
  swapcontext(&me->context, &scheduler);
}
inline void look_again_later() {
  wait([] { return true; }, "what it polls", true);
}

inline void arrive(int id, int threads) {
  Named& b = block().named[id];
  if (b.arrived == 0) b.expected = threads;
  if (b.expected != threads) refuse("a barrier is met by another number of threads", id);
  if (++b.arrived == threads) b.found = b.votes > 0, b.votes = b.arrived = 0, ++b.generation;
}
inline void meet(int id, int threads) {
  Named* const b = &block().named[id];
  const unsigned mine = b->generation;
  arrive(id, threads);
  static const char* const kNames[] = {"all", "kInputReady", "kSumsReady", "kSumsTaken", "kStepBegins", "kAmongTalk",
                                       "kTaskBegins", "sync", "8", "9", "kOddInputReady", "kInputTaken", "kOddInputTaken"};
  if (b->generation == mine) wait([=] { return b->generation != mine; }, kNames[id]);
}
inline bool meet_any(int id, int threads, bool mine) {
  Named& b = block().named[id];
  b.votes += mine;
  meet(id, threads);
  return b.found;  // until all have met again
}

inline void expect(unsigned b, int bytes) {
  Counted& c = block().counted[b];
  c.bytes += bytes, --c.pending;
  c.settle();
}
inline void count(unsigned b) {
  Counted& c = block().counted[b];
  if (--c.pending < 0) refuse("too many arrive at a barrier in shared memory", b);
  c.settle();
}
inline bool has_passed(unsigned b, unsigned parity) {
  if (!block().counted.count(b)) refuse("there is no such barrier in shared memory", b);
  return (block().counted[b].phase & 1) != parity;
}
inline void pass(unsigned b, unsigned parity) {
  Counted* const c = &block().counted[b];
  if ((c->phase & 1) == parity) wait([=] { return (c->phase & 1) != parity; }, "a slot of the ring");
}

// ---- memory
inline unsigned char* shared(unsigned at, size_t bytes) {
  if (at + bytes > block().shared.size()) refuse("outside of shared memory", at);
  if (at % bytes) refuse("misaligned in shared memory", at);
  return block().shared.data() + at;
}
template <class T>
T get(unsigned at) {
  T v;
  std::memcpy(&v, shared(at, sizeof v), sizeof v);
  return v;
}
template <class T>
void put(unsigned at, const T& v) {
  std::memcpy(shared(at, sizeof v), &v, sizeof v);
}
template <class T>
T read(const void* p) {
  if (reinterpret_cast<size_t>(p) % sizeof(T)) refuse("misaligned in global memory");
  return *static_cast<const T*>(p);
}
inline void copy(unsigned to, const void* from, int bytes, unsigned barrier) {
  if (to % 16 || reinterpret_cast<size_t>(from) % 16 || bytes % 16) refuse("a misaligned bulk copy", to);
  std::memset(block().shared.data() + to, 0xEE, bytes);  // nobody may read it any more
  block().copies.push_back({to, from, bytes, barrier});
}
inline void copy_quad(unsigned to, const void* from) {
  if (to % 16 || reinterpret_cast<size_t>(from) % 16) refuse("a misaligned copy", to);
  std::memset(shared(to, 16), 0xEE, 16);
  me->copies.push_back({to, from, 16, 0});
}
inline void copies_done() {  // not before: whoever does not wait finds nothing
  for (const Copy& c : me->copies) std::memcpy(shared(c.to, c.bytes), c.from, c.bytes);
  me->copies.clear();
}
inline bool a_copy_comes(Block& b) {  // in any order, whenever
  if (b.copies.empty() || std::rand() % 2) return false;
  std::swap(b.copies[std::rand() % b.copies.size()], b.copies.back());
  const Copy c = b.copies.back();
  b.copies.pop_back();
  std::memcpy(b.shared.data() + c.to, c.from, c.bytes);
  b.counted[c.barrier].bytes -= c.bytes;
  b.counted[c.barrier].settle();
  return true;
}

// ---- what the lanes of a warp do together
template <class T>
const T* of_all(const T& mine) {  // which must be looked at before anybody waits again
  static_assert(sizeof(T) <= 64);
  Warp* const w = &block().warps[me->thread / kWarp];
  const unsigned turn = w->turn;
  std::memcpy(w->told[turn % 2][lane()], &mine, sizeof mine);
  if (++w->arrived == kWarp) w->arrived = 0, ++w->turn;
  else wait([=] { return w->turn != turn; }, "the other lanes of its warp");
  static T all[kWarp];
  for (int i = 0; i < kWarp; ++i) std::memcpy(&all[i], w->told[turn % 2][i], sizeof mine);
  return all;
}
inline float widened(unsigned bits) {
  bits <<= 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline unsigned narrowed(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, 4);
  return v != v ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
inline unsigned products(unsigned a, unsigned b) {  // of each half
  return narrowed(widened(a >> 16) * widened(b >> 16)) << 16 | narrowed(widened(a & 0xFFFF) * widened(b & 0xFFFF));
}
// d = a b, by the fragments of mma.m16n8k16: lane 4 g + t has rows g and g + 8 of a, column g of b, columns 2 t and 2 t + 1 of d
struct Product {
  float d[4] = {};
  Product(unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    struct Fragments {
      unsigned a[4], b[2];
    };
    const Fragments* const all = of_all(Fragments{{a0, a1, a2, a3}, {b0, b1}});
    const auto element = [](unsigned pair, int k) { return widened(k % 2 ? pair >> 16 : pair & 0xFFFF); };
    for (int i = 0; i < 4; ++i) {
      const int row = lane() / 4, column = lane() % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k)
        d[i] += element(all[row * 4 + k % 8 / 2].a[i / 2 + k / 8 * 2], k) * element(all[column * 4 + k % 8 / 2].b[k / 8], k);
    }
  }
};

}  // namespace emulated

// ---- what CUDA C++ has by itself
struct Dimension {
  unsigned x;
};
inline Dimension threadIdx, blockIdx, blockDim{emulated::kBlock};
inline unsigned __float_as_uint(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long both = static_cast<unsigned long long>(b) << 32 | a;
  unsigned found = 0;
  for (int i = 0; i < 4; ++i) found |= static_cast<unsigned>(both >> (selector >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
  return found;
}
template <class T>
T __shfl_xor_sync(unsigned, T v, int bit) {
  return emulated::of_all(v)[emulated::lane() ^ bit];
}
template <class T>
T __shfl_down_sync(unsigned, T v, int by) {
  const int lane = emulated::lane();
  return emulated::of_all(v)[lane + by < emulated::kWarp ? lane + by : lane];
}
template <class T>
T __shfl_sync(unsigned, T v, int from) {
  return emulated::of_all(v)[from];
}
inline bool __any_sync(unsigned, bool v) {
  const int* const all = emulated::of_all<int>(v);
  return std::any_of(all, all + emulated::kWarp, [](int other) { return other != 0; });
}
inline unsigned __reduce_max_sync(unsigned, unsigned v) {
  const unsigned* const all = emulated::of_all(v);
  return *std::max_element(all, all + emulated::kWarp);
}
inline unsigned __reduce_min_sync(unsigned, unsigned v) {
  const unsigned* const all = emulated::of_all(v);
  return *std::min_element(all, all + emulated::kWarp);
}
inline void __syncwarp() { emulated::of_all(0); }
inline void __syncthreads() { emulated::meet(0, emulated::kBlock); }
inline void __nanosleep(int) {}
inline size_t __cvta_generic_to_shared(const void* p) { return static_cast<const unsigned char*>(p) - emulated::block().shared.data(); }
inline void* __cvta_shared_to_generic(size_t at) { return emulated::block().shared.data() + at; }
inline float max(float a, float b) { return a > b ? a : b; }
inline float min(float a, float b) { return a < b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
