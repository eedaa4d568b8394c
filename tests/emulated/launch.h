// Runs a page, its blocks side by side. `seed` draws who is held up: every time another order that a GPU might have. A warp that is
// `late`, counted over all blocks, moves only when all others are done or do no more than poll.
namespace emulated {

static const mkc::Launch* launched;
static void begin() {
  megakernel(*launched);
  me->done = true;
  swapcontext(&me->context, &scheduler);
}

static void make_fibers(int shared_bytes, unsigned char* stacks, size_t stack) {
  blocks = std::vector<Block>(launched->num_workers);
  for (Block& b : blocks) b.shared.assign(shared_bytes, 0xFF);
  fibers = std::vector<Fiber>(launched->num_workers * kBlock);
  for (size_t i = 0; i < fibers.size(); ++i) {
    Fiber& f = fibers[i];
    f.block = static_cast<int>(i) / kBlock, f.thread = static_cast<int>(i) % kBlock;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks + i * stack, f.context.uc_stack.ss_size = stack;
    makecontext(&f.context, begin, 0);
  }
}

static bool run(Fiber& f) {  // until it waits; true when that was more than another look at what it polls
  if (f.done || (f.ready && !f.ready())) return false;
  const bool polled = f.polls;
  me = &f, threadIdx.x = f.thread, blockIdx.x = f.block;
  swapcontext(&scheduler, &f.context);
  return !polled || f.done || !f.polls;
}

static int stuck() {
  std::map<std::string, int> where;
  for (const Fiber& f : fibers)
    if (!f.done) ++where["block " + std::to_string(f.block) + " waits for " + f.awaits];
  for (const auto& [what, count] : where) std::printf("%d threads of %s\n", count, what.c_str());
  std::fflush(stdout);
  return 2;
}

static int run_all(int late) {
  constexpr int kPatience = 20000, kOthersPoll = 16;  // turns in which everybody only polled
  int left = static_cast<int>(fibers.size());
  for (int idle = 0; left; ++idle) {
    const bool backwards = std::rand() & 1;
    const int held = std::rand() % 64;  // a warp, or none
    for (size_t i = 0; i < fibers.size(); ++i) {
      Fiber& f = fibers[backwards ? fibers.size() - 1 - i : i];
      if (f.done || f.thread / kWarp == held || std::rand() % 4 == 0) continue;
      if (f.block * (kBlock / kWarp) + f.thread / kWarp == late && idle < kOthersPoll) continue;
      if (run(f)) idle = 0;
      left -= f.done;
    }
    for (Block& b : blocks)
      if (a_copy_comes(b)) idle = 0;
    if (idle == kPatience) return stuck();
  }
  for (const Block& b : blocks)
    if (!b.copies.empty()) return std::puts("a block is gone before a copy into its shared memory"), 2;
  return 0;
}

}  // namespace emulated

extern "C" void set_clock(unsigned now) { emulated::now = now; }
extern "C" unsigned clock_cycles() { return emulated::now; }

extern "C" int launch(const mkc::Launch* words, int shared_bytes, unsigned seed, int late) {
  constexpr size_t kStack = 64 << 10;
  emulated::launched = words;
  std::srand(seed);
  const size_t bytes = kStack * words->num_workers * emulated::kBlock;
  void* const stacks = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  emulated::make_fibers(shared_bytes, static_cast<unsigned char*>(stacks), kStack);
  const int status = emulated::run_all(late);
  munmap(stacks, bytes);
  return status;
}
