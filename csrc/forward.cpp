// The forward pass. Samples go through all phases in chunks that stay in the caches, so two of the three reads of the
// map do not reach memory:
//   pool -> MLP -> squeeze (reads s x) -> convolution, gate, y = s t x, or relu(s t x + residual).
// A batch norm in the spatial gate that uses batch statistics needs the logits of all samples before the last step.
#include "chunks.h"

namespace cbam {

namespace {

template <class T>
class Forward {
  using A = acc_t<T>;

 public:
  Forward(const Problem<T>& problem, const Saved<A>& saved, const Argmax<T>& argmax_indices, const T* residual_map, Epilogue ending,
          T* output)
      : q(problem),
        keep(saved),
        argmax(argmax_indices),
        residual(residual_map),
        epilogue(ending),
        y(output),
        s_used(q.n, q.c, q.channel, keep.s),
        t_used(q.n, q.p, q.spatial, keep.t) {}

  void run(A* batch_statistics) {
    over_chunks(q, kInOrder, [&](const auto& each_chunk) {
      const Work work(q, argmax.position != nullptr);
      each_chunk([&](const Samples& samples) {
        if (q.channel) channel_gate(samples, work);
        if (q.spatial) clear_padding(q, work.padded.get(), (samples.to - samples.from) * q.planes);
        if (q.spatial && !q.norm_training && samples.one_thread) return squeeze_and_apply(samples, work);
        if (q.spatial) squeeze(samples, work);
        if (!q.norm_training) gate_and_apply(samples, &work);
        else logits(samples, work, keep.zhat);
      });
    });
    if (!q.norm_training) return;
    normalise(batch_statistics);
    over_chunks(q, kReversed, [&](const auto& each_chunk) {
      each_chunk([&](const Samples& samples) { gate_and_apply(samples, nullptr); });
    });
  }

 private:
  // What a chunk of samples needs between its phases.
  struct Work {
    Work(const Problem<T>& q, bool argmax)
        : sums(q.channel ? q.chunk * q.blocks * q.c : 0),
          maxima(q.channel ? q.chunk * q.blocks * q.c : 0),
          firsts(q.channel && argmax ? q.chunk * q.blocks * q.c : 0),
          hidden_sums(q.chunk * q.hidden),
          unread(q.spatial && q.planes == 1 ? q.chunk * q.p : 0),
          padded(q.chunk * q.planes * q.plane_size) {}
    Scratch<A> sums, maxima;  // (chunk, blocks, C)
    Scratch<int32_t> firsts;
    Scratch<A> hidden_sums, unread, padded;
  };

  void channel_gate(const Samples& samples, const Work& work) {
    const int64_t n0 = samples.from, count = samples.to - n0;
    for_each_block(q, samples, [&](int64_t sample, int64_t block) {
      const int64_t offset = ((sample - n0) * q.blocks + block) * q.c;
      q.kernels().pool(q.part(sample, block), work.sums.get() + offset, work.maxima.get() + offset,
                       argmax.position ? work.firsts.get() + offset : nullptr);
    });
    for (int64_t sample = n0; sample < samples.to; ++sample)
      combine(sample, (sample - n0) * q.blocks * q.c, work.sums.get(), work.maxima.get(), work.firsts.get());
    const Algebra<A>& algebra = algebra_for<A>();
    const int64_t rows = count * q.pooled;
    A* in = keep.pooled + n0 * q.pooled * q.c;
    A* out = keep.hidden + n0 * q.pooled * q.hidden;
    in_parallel(q.hidden, q.c * rows, [&](int64_t from, int64_t to) {
      algebra.dense(q.w0, q.b0, in, out, from, to, q.hidden, q.c, rows);
    });
    sum_hidden(q, n0, samples.to, keep.hidden, work.hidden_sums.get());
    A* s = keep.s + n0 * q.c;
    in_parallel(q.c, q.hidden * count, [&](int64_t from, int64_t to) {
      algebra.dense(q.w1, nullptr, work.hidden_sums.get(), s, from, to, q.c, q.hidden, count);
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t c = from; c < to && q.b1; ++c) s[i * q.c + c] += q.b1[c] * static_cast<A>(q.pooled);
        algebra.activate(s + i * q.c + from, to - from, q.channel_scale, q.hard);
        s_used.round(n0 + i, from, to);
      }
    });
  }

  // Combine the blocks' sums and maxima in order: the first maximum wins, and NaN stays.
  void combine(int64_t sample, int64_t base, const A* sums, const A* maxima, const int32_t* firsts) {
    A* rows = keep.pooled + sample * q.pooled * q.c;
    for (int64_t c = 0; c < q.c && q.row_of_average >= 0; ++c) {
      A sum = sums[base + c];
      for (int64_t b = 1; b < q.blocks; ++b) sum += sums[base + b * q.c + c];
      rows[q.row_of_average * q.c + c] = sum / static_cast<A>(q.p);
    }
    for (int64_t c = 0; c < q.c && q.row_of_maximum >= 0; ++c) {
      int64_t best = base + c;
      for (int64_t b = 1; b < q.blocks; ++b) {
        const int64_t other = base + b * q.c + c;
        if (maxima[best] == maxima[best] && !(maxima[other] <= maxima[best])) best = other;
      }
      rows[q.row_of_maximum * q.c + c] = maxima[best];
      if (argmax.position) argmax.position[sample * q.c + c] = firsts[best];
    }
    if (argmax.position && q.row_of_maximum < 0)
      for (int64_t c = 0; c < q.c; ++c) argmax.position[sample * q.c + c] = -1;
  }

  void squeeze(const Samples& samples, const Work& work) {
    for_each_block(q, samples, [&](int64_t sample, int64_t block) { squeeze(sample, sample - samples.from, block, work); });
  }
  void squeeze(int64_t sample, int64_t index, int64_t block, const Work& work) {
    const Part<T> part = q.part(sample, block);
    A* maps = keep.maps + sample * q.planes * q.p;
    A* scratch = work.unread.get() + (q.planes == 1 ? index * q.p : 0);
    A* average = q.plane_of_average >= 0 ? maps + q.plane_of_average * q.p : scratch;
    A* maximum = q.plane_of_maximum >= 0 ? maps + q.plane_of_maximum * q.p : scratch;
    int32_t* channels = argmax.channel ? argmax.channel + sample * q.p : nullptr;
    q.kernels().squeeze(part, s_used.of(sample), average, maximum, channels);
    if (channels && q.plane_of_maximum < 0)
      for (int64_t i = part.p0; i < part.p1; ++i) channels[i] = -1;
    if (q.plane_of_average >= 0)
      for (int64_t i = part.p0; i < part.p1; ++i) average[i] /= static_cast<A>(q.c);
    for (int64_t plane = 0; plane < q.planes; ++plane)
      pad_rows(q, maps + plane * q.p, work.padded.get() + (index * q.planes + plane) * q.plane_size, part.p0, part.p1);
  }

  // Within one thread the convolution runs just behind the squeeze, so that the rows of the map that are read again are
  // still in the second-level cache.
  void squeeze_and_apply(const Samples& samples, const Work& work) {
    for (int64_t sample = samples.from; sample < samples.to; ++sample) {
      int64_t next = 0;
      for (int64_t block = 0; block < q.blocks; ++block) {
        squeeze(sample, sample - samples.from, block, work);
        const bool last = block + 1 == q.blocks;
        while (next < q.blocks && (last || (next + 1) * q.block_rows + q.k / 2 <= (block + 1) * q.block_rows))
          gate_and_apply(sample, sample - samples.from, next++, &work);
      }
    }
  }

  void convolve(const Work& work, int64_t index, const Part<T>& part, A* out) const {
    algebra_for<A>().convolve(work.padded.get() + index * q.planes * q.plane_size, q.planes, q.height, q.pitch,
                              q.kernel, q.k, q.width, part.p0 / q.width, part.p1 / q.width, out);
  }

  void logits(const Samples& samples, const Work& work, A* out) const {
    for_each_block(q, samples, [&](int64_t sample, int64_t block) {
      convolve(work, sample - samples.from, q.part(sample, block), out + sample * q.p);
    });
  }

  void normalise(A* batch_statistics) {
    const int64_t count = q.n * q.p;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < count; ++i) sum += keep.zhat[i];
    const double mean = sum / count;
    for (int64_t i = 0; i < count; ++i) squares += (keep.zhat[i] - mean) * (keep.zhat[i] - mean);
    const double variance = squares / count, invstd = 1 / std::sqrt(variance + q.norm_eps);
    keep.stats[0] = static_cast<A>(mean), keep.stats[1] = static_cast<A>(invstd);
    batch_statistics[0] = static_cast<A>(mean), batch_statistics[1] = static_cast<A>(variance);
    in_parallel(count, 1, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) keep.zhat[i] = (keep.zhat[i] - keep.stats[0]) * keep.stats[1];
    });
  }

  // The logits come from the padded maps in `work`, or with batch statistics from what is kept.
  void gate_and_apply(const Samples& samples, const Work* work) {
    for_each_block(q, samples, [&](int64_t sample, int64_t block) {
      gate_and_apply(sample, sample - samples.from, block, work);
    });
  }
  void gate_and_apply(int64_t sample, int64_t index, int64_t block, const Work* work) {
    const Part<T> part = q.part(sample, block);
    A* t = keep.t + sample * q.p;
    if (q.spatial) {
      const A invstd = A(1) / std::sqrt(q.norm_var + q.norm_eps);
      if (work) convolve(*work, index, part, t);
      for (int64_t i = part.p0; i < part.p1 && q.logit_factor != A(1); ++i) t[i] *= q.logit_factor;
      for (int64_t i = part.p0; i < part.p1 && q.norm; ++i) {
        const A zhat = work ? (t[i] - q.norm_mean) * invstd : keep.zhat[sample * q.p + i];
        t[i] = zhat * q.norm_weight + q.norm_bias;
      }
      algebra_for<A>().activate(t + part.p0, part.p1 - part.p0, q.spatial_scale, q.hard);
      t_used.round(sample, part.p0, part.p1);
    }
    const int64_t offset = sample * q.sample_size();
    q.kernels().apply[epilogue](part, s_used.of(sample), t_used.of(sample), residual ? residual + offset : nullptr,
                            y + offset);
  }

  const Problem<T>& q;
  const Saved<A>& keep;
  const Argmax<T>& argmax;
  const T* residual;  // null without an epilogue
  const Epilogue epilogue;
  T* y;
  UsedGate<T> s_used, t_used;
};

}  // namespace

template <class T>
void compute_forward(const Problem<T>& problem, const ForwardMaps<T>& maps, bool relu) {
  using A = acc_t<T>;
  if (problem.n == 0) return;
  const int64_t floats = Saved<A>(problem, nullptr).size;
  const Scratch<A> unkept(maps.saved ? 0 : floats);
  const Saved<A> saved(problem, maps.saved ? maps.saved : unkept.get());
  // Not all of it is used.
  if (maps.saved && (problem.pooled == 1 || problem.planes == 1)) std::fill_n(saved.s, floats, A(0));
  const Argmax<T> indices(problem, maps.argmax);
  Forward<T>(problem, saved, indices, maps.residual, relu ? kAddRelu : maps.residual ? kAdd : kNoEpilogue, maps.y)
      .run(maps.stats);
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> run_forward(const Tensor& x, const Weights& weights,
                                                       const Weight& residual, const Config& config,
                                                       bool keep) {
  using A = acc_t<T>;
  const Shape shape = shape_of(x, weights);
  const Problem<T> problem(static_cast<const T*>(x.const_data_ptr()), shape, pointers_of<A>(weights, shape, config),
                           config);
  STD_TORCH_CHECK(residual || !config.relu, "cbam: a ReLU comes after a residual only");
  if (residual) check_like(*residual, x, "the residual");
  const ScalarType type = scalar_type_of<A>();
  Tensor y = new_like(x), kept = new_vector(keep ? Saved<A>(problem, nullptr).size : 0, type);
  Tensor argmax = new_vector(keep ? Argmax<T>(problem, nullptr).size : 0, ScalarType::Int);
  Tensor stats = new_vector(problem.norm_training ? 2 : 0, type);
  const ForwardMaps<T> maps = {residual ? static_cast<const T*>(residual->const_data_ptr()) : nullptr,
                               static_cast<T*>(y.mutable_data_ptr()),
                               keep ? static_cast<A*>(kept.mutable_data_ptr()) : nullptr,
                               keep ? static_cast<int32_t*>(argmax.mutable_data_ptr()) : nullptr,
                               static_cast<A*>(stats.mutable_data_ptr())};
  compute_forward(problem, maps, config.relu);
  return {y, kept, argmax, stats};
}

#define CBAM_INSTANTIATE(T)                                                                            \
  template void compute_forward<T>(const Problem<T>&, const ForwardMaps<T>&, bool);                  \
  template std::tuple<Tensor, Tensor, Tensor, Tensor> run_forward<T>(const Tensor&, const Weights&,  \
                                                                     const Weight&, const Config&, bool);
CBAM_FOR_EACH_TYPE(CBAM_INSTANTIATE)
#undef CBAM_INSTANTIATE

}  // namespace cbam
