// Samples in chunks, and what forward and backward share between their passes over the map: rounded gates, hidden sums,
// padded planes.
#pragma once

#include <algorithm>

#include "problem.h"

namespace cbam {

// Samples [from, to) that go through the phases together.
struct Samples {
  int64_t from, to;
  bool one_thread;  // the others are busy with samples of their own
};
enum Order { kInOrder, kReversed };

// walk(each_chunk) where each_chunk(f) calls f(Samples) for each chunk in turn. With enough samples every thread has its
// own and waits for no other; few samples are split into blocks, with a barrier after each phase. The second of two walks
// is reversed, to begin with what is still in the caches.
template <class T, class F>
void over_chunks(const Problem<T>& q, Order order, const F& walk) {
  const int64_t threads = torch::stable::get_num_threads();
  const bool apart = threads == 1 || q.n % threads == 0 || q.n >= 4 * threads;
  const auto over = [&](int64_t from, int64_t to) {
    walk([&](const auto& f) {
      const int64_t count = (to - from + q.chunk - 1) / q.chunk;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t start = from + (order == kInOrder ? i : count - 1 - i) * q.chunk;
        f(Samples{start, std::min(to, start + q.chunk), apart});
      }
    });
  };
  if (apart && threads > 1 && q.n * q.sample_size() > kGrain) torch::stable::parallel_for(0, q.n, 1, over);
  else over(0, q.n);
}

// f(sample, block) for every block of the samples, on torch's threads unless this is one of them.
template <class T, class F>
void for_each_block(const Problem<T>& q, const Samples& samples, const F& f) {
  in_parallel((samples.to - samples.from) * q.blocks, q.sample_size() / q.blocks, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) f(samples.from + i / q.blocks, i % q.blocks);
  });
}

// A gate as it multiplies the map: rounded to the map's type. An absent gate is one everywhere.
template <class T>
class UsedGate {
  using A = acc_t<T>;
  static constexpr bool kRounds = sizeof(T) < sizeof(A);

 public:
  UsedGate(int64_t samples, int64_t size, bool present, const A* exact)
      : exact_(exact), size_(size), present_(present), own_(!present ? size : kRounds ? samples * size : 0) {
    if (!present) std::fill_n(own_.get(), size, A(1));
  }
  const A* of(int64_t sample) const {
    if (!present_) return own_.get();
    return (kRounds ? own_.get() : exact_) + sample * size_;
  }
  void round(int64_t sample, int64_t from, int64_t to) const {
    if constexpr (kRounds)
      for (int64_t i = sample * size_ + from; i < sample * size_ + to; ++i) own_.get()[i] = stored(exact_[i]);
  }

 private:
  static A stored(A value) {
    if constexpr (std::is_same_v<T, f16>) return half_to_float(float_to_half(value));
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if (value != value) return value;
    bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    A result = value;
    std::memcpy(&result, &bits, sizeof(bits));
    return result;
  }

  const A* exact_;
  int64_t size_;
  bool present_;
  Scratch<A> own_;
};

// relu in place, and the sum over a sample's pooled rows: the second layer is linear, so it is applied to that.
template <class T>
void sum_hidden(const Problem<T>& q, int64_t n0, int64_t n1, acc_t<T>* hidden, acc_t<T>* sums) {
  using A = acc_t<T>;
  for (int64_t sample = n0; sample < n1; ++sample)
    for (int64_t j = 0; j < q.hidden; ++j) {
      A sum = 0;
      for (int64_t row = 0; row < q.pooled; ++row) {
        A& value = hidden[(sample * q.pooled + row) * q.hidden + j];
        value = value < 0 ? A(0) : value;  // NaN stays
        sum += value;
      }
      sums[(sample - n0) * q.hidden + j] = sum;
    }
}

// Padded planes are (H + k - 1, pitch) with the map in the middle and zeros around it.
template <class T>
void clear_padding(const Problem<T>& q, acc_t<T>* planes, int64_t count) {
  in_parallel(count, q.plane_size, [&](int64_t from, int64_t to) {
    std::fill_n(planes + from * q.plane_size, (to - from) * q.plane_size, acc_t<T>(0));
  });
}
template <class T>
void pad_rows(const Problem<T>& q, const acc_t<T>* map, acc_t<T>* plane, int64_t p0, int64_t p1) {
  for (int64_t h = p0 / q.width; h < p1 / q.width; ++h)
    std::copy_n(map + h * q.width, q.width, plane + (h + q.k / 2) * q.pitch + q.k / 2);
}

}  // namespace cbam
