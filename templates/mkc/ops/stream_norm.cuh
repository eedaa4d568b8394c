// y = Expr(x / sqrt(mean(x^2) + eps), extras...) for one row of `Depth`, of x less its mean when Centred
#pragma once

#include <mkc/expr.cuh>
#include <mkc/extras.cuh>

namespace mkc::ops {

template <class Expr, class Eps, bool Centred, int Depth, class Y, class X, class... Rest>
struct StreamNorm {
  static constexpr int kWords = Depth / 4, kEach = (kWords + kTalkThreads - 1) / kTalkThreads;
  static_assert(Depth % 4 == 0, "a row of whole words");

  template <class Page>
  MKC_DEVICE static void talk(Talk<Page>& talk, void* const* p, const Range*) {
    const int first = talk.thread();
    Extras<4, 0, Rest...> extras[kEach];  // which have been there for a while; threads to spare look at the last word too
    MKC_UNROLL
    for (int j = 0; j < kEach; ++j) {
      const int word = first + j * kTalkThreads;
      read_at_once(extras[j], talk, p + 2, (word < kWords ? word : kWords - 1) * 4);
    }
    Four x[kEach];
    bring(talk, X(p[1]), first, x);
    float mean = 0.0f;
    if constexpr (Centred) {
      mean = talk.total(sum(first, x, [](float v) { return v; })) * (1.0f / Depth);
    }
    const float squares = talk.total(sum(first, x, [=](float v) { return (v - mean) * (v - mean); }));
    const float scale = rsqrt(squares * (1.0f / Depth) + Eps::of());
    uint32 misfit = 0;
    MKC_UNROLL
    for (int j = 0; j < kEach; ++j) {
      const int word = first + j * kTalkThreads;
      if (word >= kWords) break;
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) x[j].at[i] = extras[j].template of<Expr>(i, (x[j].at[i] - mean) * scale);
      if constexpr (kIsPublished<Y>) {
        store_word(Y(p[0]).data + word, word_of(x[j], use_bits(talk.use), misfit));
      } else {
        MKC_UNROLL
        for (int i = 0; i < 4; ++i) store(Y(p[0])(0, word * 4 + i), x[j].at[i]);
      }
    }
    if constexpr (!kIsPublished<Y>) sync();  // other warps may read it in their next task
    talk.report(misfit);
  }

 private:
  template <class Of>
  MKC_DEVICE static float sum(int first, const Four (&x)[kEach], Of of) {
    float all = 0.0f;
    MKC_UNROLL
    for (int j = 0; j < kEach; ++j) {
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) all += first + j * kTalkThreads < kWords ? of(x[j].at[i]) : 0.0f;
    }
    return all;
  }
  template <class Page, class S, class D>
  MKC_DEVICE static void bring(Talk<Page>& talk, Words<bf16, S, D> x, int first, Four (&v)[kEach]) {
    const uint32 bits = use_bits(talk.use);
    uint64 words[kEach];
    talk.let_others_finish();
    talk.poll([&] {
      bool all = true;
      MKC_UNROLL
      for (int j = 0; j < kEach; ++j) {  // threads to spare look at the last one too
        const int word = first + j * kTalkThreads;
        words[j] = load_word(x.data + (word < kWords ? word : kWords - 1));
      }
      MKC_UNROLL
      for (int j = 0; j < kEach; ++j) all &= is_of(words[j], bits);
      return all;
    });
    MKC_UNROLL
    for (int j = 0; j < kEach; ++j) {
      const uint32 front = static_cast<uint32>(words[j]) & ~kUseBits, back = static_cast<uint32>(words[j] >> 32) & ~kUseBits;
      v[j] = {low(front) * kUnscaled, high(front) * kUnscaled, low(back) * kUnscaled, high(back) * kUnscaled};
    }
  }
  template <class Page, class S, class D>
  MKC_DEVICE static void bring(Talk<Page>& talk, View<bf16, S, D> x, int first, Four (&v)[kEach]) {
    MKC_UNROLL
    for (int j = 0; j < kEach; ++j) {
      const int word = first + j * kTalkThreads;
      SomeOf<4, View<bf16, S, D>> some;
      if (word < kWords) read_at_once(some, talk, x.data, word * 4);
      MKC_UNROLL
      for (int i = 0; i < 4; ++i) v[j].at[i] = some.v[i];
    }
  }
};

}  // namespace mkc::ops
