// The threads behind the CPU target: one pool for all kernels of a process, asleep between launches.
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

using Worker = void (*)(const void* launch, unsigned id);

struct Pool {
  std::mutex launching;  // one launch at a time
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> threads;
  std::atomic<unsigned long> launches{0};  // release by run() pairs with acquire in serve()
  std::atomic<unsigned> busy{0};           // release by serve() pairs with acquire in run()
  Worker worker = nullptr;
  const void* launch = nullptr;
  unsigned workers = 0;

  void serve(unsigned id, unsigned long seen) {
    for (;; ) {
      for (int spin = 0; spin < 4000 && launches.load(std::memory_order_acquire) == seen; ++spin) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
      if (launches.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return launches.load(std::memory_order_acquire) != seen; });
      }
      ++seen;
      if (id < workers) worker(launch, id);
      busy.fetch_sub(1, std::memory_order_release);
    }
  }

  void run(Worker fn, const void* words, unsigned count) {
    std::lock_guard guard(launching);
    while (threads.size() + 1 < count)
      threads.emplace_back(&Pool::serve, this, static_cast<unsigned>(threads.size()) + 1, launches.load());
    worker = fn, launch = words, workers = count;
    busy.store(static_cast<unsigned>(threads.size()), std::memory_order_relaxed);
    {
      std::lock_guard lock(mutex);
      launches.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
    fn(words, 0);
    for (unsigned spin = 0; busy.load(std::memory_order_acquire) != 0; ++spin)
      if (spin > 1000) std::this_thread::yield();
  }
};

Pool* pool = nullptr;
std::mutex making;

// A fork waits until nobody makes the pool, and the child, which has none of the parent's threads, makes its own. That
// nobody is inside a launch either is for the caller to see to: mkc/forks.py.
void hold() { making.lock(); }
void release() { making.unlock(); }
void forget() {
  pool = nullptr;
  making.unlock();
}

}  // namespace

extern "C" void mkc_pool_run(Worker worker, const void* launch, unsigned workers) {
  static const int once = pthread_atfork(hold, release, forget);
  (void)once;
  making.lock();
  if (pool == nullptr) pool = new Pool;  // never freed: its threads live as long as the process
  Pool* const mine = pool;
  making.unlock();
  mine->run(worker, launch, workers);
}
