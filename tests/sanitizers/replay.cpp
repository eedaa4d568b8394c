// Runs a program from a file on the pool: replay IN OUT. The page is linked in; IN holds blobs (a 64-bit size, then the
// bytes): the counts, the tables of mkc/ir/program.py, the memory of each slot. OUT receives the memory as it was left.
#include <mkc/abi.cuh>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

using namespace mkc;

extern "C" void mkc_worker(const Launch* launch, unsigned worker);
extern "C" void mkc_pool_run(void (*worker)(const void*, unsigned), const void* launch, unsigned workers);

struct Counts {
  uint32 workers, events, counters, launches, steps[kMaxSections];
};

struct __attribute__((packed)) Operand {
  uint32 slot;
  uint64_t offset;
};

// Memory of its own for each, exactly as large as it says, so that a step outside is seen.
struct Blob {
  uint64_t size = 0;
  std::unique_ptr<char[]> bytes;

  bool read(std::ifstream& file) {
    if (!file.read(reinterpret_cast<char*>(&size), sizeof size)) return false;
    bytes.reset(new char[size]);
    return static_cast<bool>(file.read(bytes.get(), static_cast<std::streamsize>(size)));
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(bytes.get());
  }
};

static void run_worker(const void* launch, unsigned worker) { mkc_worker(static_cast<const Launch*>(launch), worker); }

int main(int, char** arguments) {
  std::ifstream in(arguments[1], std::ios::binary);
  Blob head, tasks, waits, sections, bounds, queue, operands;
  for (Blob* table : {&head, &tasks, &waits, &sections, &bounds, &queue, &operands}) table->read(in);
  std::vector<Blob> slots;
  for (Blob slot; slot.read(in); slot = Blob()) slots.push_back(std::move(slot));

  const Counts& counts = *head.as<Counts>();
  std::vector<void*> pointers;
  for (size_t i = 0; i < operands.size / sizeof(Operand); ++i) {
    const Operand& operand = operands.as<Operand>()[i];
    pointers.push_back(slots[operand.slot].bytes.get() + operand.offset);
  }
  std::vector<uint32> counters(counts.counters * kEventStride);
  std::vector<Place> progress(counts.workers + 1);
  Report report{};
  Launch launch{};
  launch.tasks = tasks.as<Task>();
  launch.waits = waits.as<Wait>();
  launch.operands = pointers.data();
  launch.sections = sections.as<Section>();
  launch.bounds = bounds.as<uint32>();
  launch.queue = queue.as<uint32>();
  launch.counters = counters.data();
  launch.progress = progress.data();
  launch.report = &report;
  launch.deadline_ns = 100ull * 1000 * 1000 * 1000;
  launch.num_workers = counts.workers;
  launch.num_sections = static_cast<uint32>(sections.size / sizeof(Section));
  launch.num_events = counts.events;
  for (int i = 0; i < kMaxSections; ++i) launch.steps[i] = counts.steps[i];

  std::atomic<int> left{static_cast<int>(counts.launches)};
  const auto run = [&] {
    while (left.fetch_sub(1, std::memory_order_relaxed) > 0) mkc_pool_run(run_worker, &launch, counts.workers);
  };
  std::thread other(run);  // the pool lets in one at a time
  run();
  other.join();
  if (report.failed) {
    std::fprintf(stderr, "task %u hangs on event %u: %u of %u\n", report.task, report.event, report.have, report.need);
    return 3;
  }
  std::ofstream out(arguments[2], std::ios::binary);
  for (const Blob& slot : slots) out.write(slot.bytes.get(), static_cast<std::streamsize>(slot.size));
  return 0;
}
