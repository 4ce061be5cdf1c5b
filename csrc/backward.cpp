// The backward pass, from the map, the gates and the argmax indices alone. With x1 = s x and y = t x1, g = dL/dy:
//   first pass (g, x)    dt_p = sum_c g s x;  G_c = sum_p g t x
//   between              dz = dt gate'(z), through the batch norm where there is one; the transposed convolution gives the
//                        gradients dm_p of the mean over channels and dM_p of the maximum; the kernel's gradient
//   second pass (x)      B_c = sum_p dm_p x / C;  the maximum's part, sum of dM_p x over the p whose maximum is c
//   between              ds = G + B + S, da = ds gate'(a), the MLP backwards: davg, dpeak and the weights
//   last pass (g)        dx = s (g t + dm / C + [c = argmax_p] dM_p) + davg / P + [p = argmax_c] dpeak
// With y = relu(t x1 + residual), g is the gradient behind the ReLU: the first pass computes it from (dL/dy, y) and stores it as
// the gradient of the residual, where the last pass reads it.
// A batch norm in front of the operator (x = alpha u + beta) takes its sums over dx and dx u from the same vectors.
#include "chunks.h"

namespace cbam {

namespace {

template <class T>
class Backward {
  using A = acc_t<T>;

 public:
  // `output` and `masked_gradient` are null unless a ReLU came last.
  Backward(const Problem<T>& problem, const Saved<A>& saved, const Argmax<T>& argmax_indices, const T* gradient, const T* output,
           T* masked_gradient, T* input_gradient, bool pre_training)
      : q(problem),
        kept(saved),
        argmax(argmax_indices),
        g(gradient),
        y(output),
        masked(masked_gradient),
        dx(input_gradient),
        through_statistics(q.pre && pre_training),
        dt(q.n * q.p),
        dmaps(q.spatial ? q.n * q.planes * q.p : 0),
        dmean(q.spatial && q.plane_of_average >= 0 ? 0 : q.p),
        dkernels(q.spatial ? q.n * q.planes * q.k * q.k : 0),
        flipped(q.planes * q.k * q.k),
        dnorm(q.spatial ? 2 * q.n : 0),
        gtx(q.n * q.c),
        gt(q.pre ? q.n * q.c : 0),
        usum(q.pre ? q.n * q.c : 0),
        da(q.n * q.c),
        dpre(q.n * q.pooled * q.hidden),
        dpooled(q.n * q.pooled * q.c),
        nothing(q.c),
        dx_sums(q.pre ? 2 * q.n * q.c : 0),
        k1(q.c),
        k0(q.c),
        no_argmax(std::max(q.p, q.c)),
        s_used(q.n, q.c, q.channel, kept.s),
        t_used(q.n, q.p, q.spatial, kept.t) {
    std::fill_n(dmean.get(), q.spatial && q.plane_of_average >= 0 ? 0 : q.p, A(0));
    std::fill_n(nothing.get(), q.c, A(0));
    std::fill_n(k1.get(), q.c, A(0));
    std::fill_n(k0.get(), q.c, A(0));
    std::fill_n(no_argmax.get(), std::max(q.p, q.c), -1);
    for (int64_t i = 0; i < q.planes; ++i)
      for (int64_t j = 0; j < q.k * q.k; ++j) flipped.get()[i * q.k * q.k + j] = q.kernel[(i + 1) * q.k * q.k - 1 - j];
  }

  // Batch statistics, in the spatial gate or in front, need a sum over all samples before the next phase.
  void run(A* dpre_weight, A* dpre_bias) {
    const bool stop_after_first = q.norm_training, stop_before_last = through_statistics;
    walk(kInOrder, [&](const Samples& samples, const Work& work) {
      round_gates(samples);
      first_pass(samples, work);
      if (q.spatial) spatial_logits_gradient(samples);
      if (!stop_after_first) gradients_between(samples, work);
      if (!stop_after_first && !stop_before_last) last_pass(samples);
    });
    if (stop_after_first) {
      through_spatial_statistics();
      walk(kReversed, [&](const Samples& samples, const Work& work) {
        gradients_between(samples, work);
        if (!stop_before_last) last_pass(samples);
      });
    }
    if (q.pre) sums_in_front(dpre_weight, dpre_bias);
    if (stop_before_last)
      walk(stop_after_first ? kInOrder : kReversed, [&](const Samples& samples, const Work&) { last_pass(samples); });
  }

  void weight_gradients(A* dw0, A* db0, A* dw1, A* db1, A* dkernel, A* dnorm_weight, A* dnorm_bias) const {
    const Algebra<A>& algebra = algebra_for<A>();
    if (q.channel) {
      Scratch<A> hidden_sums(q.n * q.hidden);
      sum_hidden(q, 0, q.n, kept.hidden, hidden_sums.get());
      in_parallel(q.c, q.hidden * q.n, [&](int64_t from, int64_t to) {
        algebra.outer(da.get(), hidden_sums.get(), dw1, from, to, q.c, q.hidden, q.n);
      });
      in_parallel(q.hidden, q.c * q.n, [&](int64_t from, int64_t to) {
        algebra.outer(dpre.get(), kept.pooled, dw0, from, to, q.hidden, q.c, q.n * q.pooled);
      });
      if (q.b0) add_rows(dpre.get(), q.n * q.pooled, q.hidden, A(1), db0);
      if (q.b1) add_rows(da.get(), q.n, q.c, static_cast<A>(q.pooled), db1);
    }
    if (q.spatial) {
      add_rows(dkernels.get(), q.n, q.planes * q.k * q.k, A(1), dkernel);
      if (q.norm) {
        A sums[2];
        add_rows(dnorm.get(), q.n, 2, A(1), sums);
        if (dnorm_weight) *dnorm_weight = sums[0];
        if (dnorm_bias) *dnorm_bias = sums[1];
      }
    }
  }

 private:
  // What a chunk of samples needs between its phases.
  struct Work {
    explicit Work(const Problem<T>& q)
        : size(q.chunk * q.blocks * q.c),
          partial(3 * size),
          dhidden(q.chunk * q.hidden),
          padded(q.chunk * q.planes * q.plane_size),
          dz(q.chunk * q.plane_size) {}
    int64_t size;
    Scratch<A> partial, dhidden, padded, dz;
  };
  template <class F>
  void walk(Order order, const F& f) {
    over_chunks(q, order, [&](const auto& each_chunk) {
      const Work work(q);
      each_chunk([&](const Samples& samples) { f(samples, work); });
    });
  }
  template <class F>
  static void each_sample(const Samples& samples, int64_t work, const F& f) {
    in_parallel(samples.to - samples.from, work, [&](int64_t from, int64_t to) {
      for (int64_t sample = samples.from + from; sample < samples.from + to; ++sample) f(sample);
    });
  }
  static void add_rows(const A* rows, int64_t count, int64_t size, A factor, A* out) {
    for (int64_t i = 0; i < size; ++i) {
      double sum = 0;
      for (int64_t row = 0; row < count; ++row) sum += rows[row * size + i];
      out[i] = static_cast<A>(factor * sum);
    }
  }

  void round_gates(const Samples& samples) {
    each_sample(samples, q.c + q.p, [&](int64_t sample) {
      if (q.channel) s_used.round(sample, 0, q.c);
      if (q.spatial) t_used.round(sample, 0, q.p);
    });
  }

  A* dt_of(int64_t sample) const { return dt.get() + sample * q.p; }

  void first_pass(const Samples& samples, const Work& work) {
    const int64_t size = work.size;
    for_each_block(q, samples, [&](int64_t sample, int64_t block) {
      A* out = work.partial.get() + ((sample - samples.from) * q.blocks + block) * q.c;
      const int64_t offset = sample * q.sample_size();
      q.kernels().gate_grads[y != nullptr](q.part(sample, block), g + offset, y ? y + offset : nullptr,
                                           y ? masked + offset : nullptr, s_used.of(sample), t_used.of(sample),
                                           dt_of(sample), out, out + size, out + 2 * size);
    });
    each_sample(samples, q.blocks * q.c, [&](int64_t sample) {
      const A* own = work.partial.get() + (sample - samples.from) * q.blocks * q.c;
      add_rows(own, q.blocks, q.c, A(1), gtx.get() + sample * q.c);
      if (!q.pre) return;
      add_rows(own + size, q.blocks, q.c, A(1), gt.get() + sample * q.c);
      add_rows(own + 2 * size, q.blocks, q.c, A(1), usum.get() + sample * q.c);
    });
  }

  // dt becomes dL/dz-hat, or dL/dz where the norm has fixed statistics or there is none.
  void spatial_logits_gradient(const Samples& samples) {
    each_sample(samples, 8 * q.p, [&](int64_t sample) {
      A* d = dt_of(sample);
      double weight = 0, bias = 0;
      algebra_for<A>().through_activation(d, kept.t + sample * q.p, q.p, q.spatial_scale, q.hard);
      for (int64_t i = 0; i < q.p && q.logit_factor != A(1); ++i) d[i] *= q.logit_factor;
      if (!q.norm) return;
      const A invstd = q.norm_training ? kept.stats[1] : A(1) / std::sqrt(q.norm_var + q.norm_eps);
      Scratch<A> recomputed(q.norm_training ? 0 : q.p);
      if (!q.norm_training) convolve_maps(sample, recomputed.get());
      for (int64_t i = 0; i < q.p; ++i) {
        const A zhat = q.norm_training ? kept.zhat[sample * q.p + i] : (recomputed.get()[i] - q.norm_mean) * invstd;
        weight += static_cast<double>(d[i]) * zhat;
        bias += d[i];
        d[i] *= q.norm_weight * (q.norm_training ? A(1) : invstd);
      }
      dnorm.get()[2 * sample] = static_cast<A>(weight), dnorm.get()[2 * sample + 1] = static_cast<A>(bias);
    });
  }
  void convolve_maps(int64_t sample, A* out) const {
    Scratch<A> padded(q.planes * q.plane_size);
    padded_maps(sample, padded.get());
    algebra_for<A>().convolve(padded.get(), q.planes, q.height, q.pitch, q.kernel, q.k, q.width, 0, q.height, out);
  }
  void padded_maps(int64_t sample, A* padded) const {
    std::fill_n(padded, q.planes * q.plane_size, A(0));
    for (int64_t plane = 0; plane < q.planes; ++plane)
      pad_rows(q, kept.maps + (sample * q.planes + plane) * q.p, padded + plane * q.plane_size, 0, q.p);
  }

  // dz = invstd (dzhat - mean(dzhat) - zhat mean(dzhat zhat)), the means over the batch.
  void through_spatial_statistics() {
    const int64_t count = q.n * q.p;
    double sum = 0, product = 0;
    for (int64_t i = 0; i < count; ++i) sum += dt.get()[i], product += static_cast<double>(dt.get()[i]) * kept.zhat[i];
    const A mean = static_cast<A>(sum / count), slope = static_cast<A>(product / count), invstd = kept.stats[1];
    in_parallel(count, 1, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) dt.get()[i] = invstd * (dt.get()[i] - mean - kept.zhat[i] * slope);
    });
  }

  // Everything between the passes, for the samples of this chunk: fills dmaps, dpooled, da and the kernel's gradient.
  void gradients_between(const Samples& samples, const Work& work) {
    if (q.spatial) through_convolution(samples, work);
    const bool needs_mean = q.plane_of_average >= 0 && (q.channel || q.pre);
    if (needs_mean) {
      for_each_block(q, samples, [&](int64_t sample, int64_t block) {
        q.kernels().weighted(q.part(sample, block), dmean_of(sample),
                             work.partial.get() + ((sample - samples.from) * q.blocks + block) * q.c);
      });
    }
    if (!q.channel && !q.pre) return;
    each_sample(samples, q.blocks * q.c + 8 * q.p, [&](int64_t sample) {
      channel_gate_gradient(sample, needs_mean ? work.partial.get() + (sample - samples.from) * q.blocks * q.c : nullptr);
    });
    if (q.channel) through_mlp(samples, work);
    if (q.pre) each_sample(samples, 4 * q.c, [&](int64_t sample) { sums_of_input_gradient(sample); });
  }

  const A* dmean_of(int64_t sample) const {  // already divided by C
    return q.plane_of_average < 0 ? dmean.get() : dmaps.get() + (sample * q.planes + q.plane_of_average) * q.p;
  }
  const A* dmax_of(int64_t sample) const {
    return q.plane_of_maximum < 0 ? dmean.get() : dmaps.get() + (sample * q.planes + q.plane_of_maximum) * q.p;
  }

  void through_convolution(const Samples& samples, const Work& work) {
    const Algebra<A>& algebra = algebra_for<A>();
    each_sample(samples, q.p, [&](int64_t sample) {
      A* dz = work.dz.get() + (sample - samples.from) * q.plane_size;
      padded_maps(sample, work.padded.get() + (sample - samples.from) * q.planes * q.plane_size);
      std::fill_n(dz, q.plane_size, A(0));
      pad_rows(q, dt_of(sample), dz, 0, q.p);
    });
    const int64_t planes = (samples.to - samples.from) * q.planes;
    in_parallel(planes * q.k, q.p * q.k, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t plane = i / q.k;
        algebra.kernel_grad(work.padded.get() + plane * q.plane_size, q.height, q.width, q.pitch,
                            work.dz.get() + plane / q.planes * q.plane_size, q.k, i % q.k,
                            dkernels.get() + (samples.from * q.planes * q.k + i) * q.k);
      }
    });
    in_parallel(planes * q.height, q.width * q.k * q.k, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t plane = i / q.height, which = plane % q.planes, h = i % q.height;
        A* out = dmaps.get() + (samples.from * q.planes + plane) * q.p;
        algebra.convolve(work.dz.get() + plane / q.planes * q.plane_size, 1, q.height, q.pitch,
                         flipped.get() + which * q.k * q.k, q.k, q.width, h, h + 1, out);
        for (int64_t w = h * q.width; w < (h + 1) * q.width && which == q.plane_of_average; ++w)
          out[w] /= static_cast<A>(q.c);
      }
    });
  }

  int64_t offset(int64_t channel, int64_t position) const {
    return q.layout == kChannelsLast ? position * q.c + channel : channel * q.p + position;
  }

  // ds in gtx, then da. The sums are over u; x = alpha u + beta turns them into sums over x.
  void channel_gate_gradient(int64_t sample, const A* mean_part) {
    A *of_u = gtx.get() + sample * q.c, *of_one = q.pre ? gt.get() + sample * q.c : nullptr;
    if (mean_part) {
      for (int64_t block = 0; block < q.blocks; ++block)
        for (int64_t c = 0; c < q.c; ++c) of_u[c] += mean_part[block * q.c + c];
      if (of_one) {
        A total = 0;
        for (int64_t i = 0; i < q.p; ++i) total += dmean_of(sample)[i];
        for (int64_t c = 0; c < q.c; ++c) of_one[c] += total;
      }
    }
    if (q.spatial && q.plane_of_maximum >= 0) {
      const T* u = q.x + sample * q.sample_size();
      for (int64_t i = 0; i < q.p; ++i) {
        const int32_t c = argmax.channel[sample * q.p + i];
        of_u[c] += dmax_of(sample)[i] * read(u + offset(c, i));
        if (of_one) of_one[c] += dmax_of(sample)[i];
      }
    }
    if (!q.channel) return;
    A* gradient = da.get() + sample * q.c;
    for (int64_t c = 0; c < q.c; ++c) gradient[c] = q.pre ? q.alpha.get()[c] * of_u[c] + q.beta.get()[c] * of_one[c] : of_u[c];
    algebra_for<A>().through_activation(gradient, kept.s + sample * q.c, q.c, q.channel_scale, q.hard);
  }
  static A read(const T* p) {
    if constexpr (std::is_same_v<T, f16>) {
      return half_to_float(p->bits);
    } else if constexpr (std::is_same_v<T, bf16>) {
      const uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
      A value;
      std::memcpy(&value, &bits, sizeof(value));
      return value;
    } else {
      return *p;
    }
  }

  void through_mlp(const Samples& samples, const Work& work) {
    const Algebra<A>& algebra = algebra_for<A>();
    const int64_t n0 = samples.from, n1 = samples.to, count = n1 - n0, rows = count * q.pooled;
    in_parallel(q.hidden, q.c * count, [&](int64_t from, int64_t to) {
      algebra.transposed(q.w1, da.get() + n0 * q.c, work.dhidden.get(), from, to, q.c, q.hidden, count);
    });
    for (int64_t row = n0 * q.pooled; row < n1 * q.pooled; ++row)
      for (int64_t j = 0; j < q.hidden; ++j)
        dpre.get()[row * q.hidden + j] =
            kept.hidden[row * q.hidden + j] > 0 ? work.dhidden.get()[(row / q.pooled - n0) * q.hidden + j] : A(0);
    A* out = dpooled.get() + n0 * q.pooled * q.c;
    in_parallel(q.c, q.hidden * rows, [&](int64_t from, int64_t to) {
      algebra.transposed(q.w0, dpre.get() + n0 * q.pooled * q.hidden, out, from, to, q.hidden, q.c, rows);
    });
    if (q.row_of_average >= 0)
      for (int64_t sample = n0; sample < n1; ++sample)
        for (int64_t c = 0; c < q.c; ++c)
          dpooled.get()[(sample * q.pooled + q.row_of_average) * q.c + c] /= static_cast<A>(q.p);
  }
  const A* pooled_gradient(int64_t sample, int64_t row) const {
    return row < 0 ? nothing.get() : dpooled.get() + (sample * q.pooled + row) * q.c;
  }

  // sum_p dx and sum_p dx u of one sample, without reading g again.
  void sums_of_input_gradient(int64_t sample) {
    A *ones = dx_sums.get() + 2 * sample * q.c, *us = ones + q.c;
    const A *davg = pooled_gradient(sample, q.row_of_average), *dpeak = pooled_gradient(sample, q.row_of_maximum);
    const T* u = q.x + sample * q.sample_size();
    for (int64_t c = 0; c < q.c; ++c) {
      const A s = s_used.of(sample)[c];
      ones[c] = s * gt.get()[sample * q.c + c] + davg[c] * static_cast<A>(q.p) + dpeak[c];
      us[c] = s * gtx.get()[sample * q.c + c] + davg[c] * usum.get()[sample * q.c + c];
      if (q.row_of_maximum >= 0) us[c] += dpeak[c] * read(u + offset(c, argmax.position[sample * q.c + c]));
    }
  }

  void sums_in_front(A* dweight, A* dbias) {
    for (int64_t c = 0; c < q.c; ++c) {
      double ones = 0, us = 0;
      for (int64_t sample = 0; sample < q.n; ++sample) {
        ones += dx_sums.get()[2 * sample * q.c + c];
        us += dx_sums.get()[(2 * sample + 1) * q.c + c];
      }
      const double mean = q.pre_mean[c], invstd = q.pre_invstd.get()[c];
      const double slope = invstd * (us - mean * ones);  // sum of dx times the normalised input
      if (dweight) dweight[c] = static_cast<A>(slope);
      if (dbias) dbias[c] = static_cast<A>(ones);
      if (through_statistics) {
        const double count = static_cast<double>(q.n) * q.p, alpha = q.alpha.get()[c];
        k1.get()[c] = static_cast<A>(-alpha * invstd * slope / count);
        k0.get()[c] = static_cast<A>(alpha * (mean * invstd * slope - ones) / count);
      }
    }
  }

  void last_pass(const Samples& samples) {
    for_each_block(q, samples, [&](int64_t sample, int64_t block) {
      const bool maxima = q.spatial && q.plane_of_maximum >= 0, peaks = q.row_of_maximum >= 0;
      const typename Kernels<T>::Gradient f = {s_used.of(sample),
                                               pooled_gradient(sample, q.row_of_average),
                                               pooled_gradient(sample, q.row_of_maximum),
                                               peaks ? argmax.position + sample * q.c : no_argmax.get(),
                                               t_used.of(sample),
                                               dmean_of(sample),
                                               dmax_of(sample),
                                               maxima ? argmax.channel + sample * q.p : no_argmax.get(),
                                               k1.get(),
                                               k0.get()};
      const int64_t offset = sample * q.sample_size();
      q.kernels().input_grad(q.part(sample, block), (y ? masked : g) + offset, f, dx + offset);
    });
  }

  const Problem<T>& q;
  const Saved<A>& kept;
  const Argmax<T>& argmax;
  const T *g, *y;
  T *masked, *dx;
  const bool through_statistics;
  Scratch<A> dt;     // (N, P), then the gradient of the spatial logits
  Scratch<A> dmaps;  // (N, planes, P)
  Scratch<A> dmean;  // zeros (P) where a map is not read
  Scratch<A> dkernels, flipped, dnorm;
  Scratch<A> gtx, gt, usum, da;  // (N, C)
  Scratch<A> dpre, dpooled, nothing, dx_sums, k1, k0;
  Scratch<int32_t> no_argmax;
  UsedGate<T> s_used, t_used;
};

}  // namespace

template <class T>
void compute_backward(const Problem<T>& problem, const BackwardMaps<T>& maps, bool pre_training) {
  if (problem.n == 0) return;
  const Saved<acc_t<T>> kept(problem, maps.saved);
  const Argmax<T> indices(problem, maps.argmax);
  const auto [dw0, db0, dw1, db1, dkernel, dnorm_weight, dnorm_bias, dpre_weight, dpre_bias] = maps.weights;
  Backward<T> backward(problem, kept, indices, maps.grad, maps.out, maps.masked, maps.dx, pre_training);
  backward.run(dpre_weight, dpre_bias);
  backward.weight_gradients(dw0, db0, dw1, db1, dkernel, dnorm_weight, dnorm_bias);
}

template <class T>
std::vector<Tensor> run_backward(const Tensor& grad, const Tensor& x, const Weights& weights, const Weight& output,
                                 const Tensor& saved, const Tensor& argmax, const Config& config) {
  using A = acc_t<T>;
  const Shape shape = shape_of(x, weights);
  const Problem<T> problem(static_cast<const T*>(x.const_data_ptr()), shape, pointers_of<A>(weights, shape, config),
                           config);
  const ScalarType type = scalar_type_of<A>();
  STD_TORCH_CHECK(saved.numel() == Saved<A>(problem, nullptr).size &&
                      argmax.numel() == Argmax<T>(problem, nullptr).size && saved.scalar_type() == type &&
                      argmax.scalar_type() == ScalarType::Int && saved.is_contiguous() && argmax.is_contiguous(),
                  "cbam: saved and argmax are not those of this map's forward");
  check_like(grad, x, "the gradient");
  if (output) check_like(*output, x, "the output");
  auto gradient_of = [&](const Weight& weight, bool wanted) {
    Tensor out = new_vector(weight && wanted ? weight->numel() : 0, type);
    if (problem.n == 0 && out.numel()) std::memset(out.mutable_data_ptr(), 0, out.numel() * sizeof(A));
    return out;
  };
  std::vector<Tensor> out = {new_like(x),
                             gradient_of(weights.w0, true),
                             gradient_of(weights.b0, true),
                             gradient_of(weights.w1, true),
                             gradient_of(weights.b1, true),
                             gradient_of(weights.kernel, true),
                             gradient_of(weights.norm_weight, problem.norm),
                             gradient_of(weights.norm_bias, problem.norm),
                             gradient_of(weights.pre_weight, problem.pre),
                             gradient_of(weights.pre_bias, problem.pre),
                             output ? new_like(x) : new_vector(0, x.scalar_type())};
  BackwardMaps<T> maps = {static_cast<const T*>(grad.const_data_ptr()),
                          output ? static_cast<const T*>(output->const_data_ptr()) : nullptr,
                          static_cast<A*>(saved.data_ptr()),
                          static_cast<int32_t*>(argmax.data_ptr()),
                          static_cast<T*>(out[0].mutable_data_ptr()),
                          output ? static_cast<T*>(out[10].mutable_data_ptr()) : nullptr,
                          {}};
  for (int i = 0; i < kGradients; ++i)
    maps.weights[i] = out[i + 1].numel() ? static_cast<A*>(out[i + 1].mutable_data_ptr()) : nullptr;
  compute_backward(problem, maps, config.pre_training);
  return out;
}

#define CBAM_INSTANTIATE(T)                                                                                     \
  template void compute_backward<T>(const Problem<T>&, const BackwardMaps<T>&, bool);                           \
  template std::vector<Tensor> run_backward<T>(const Tensor&, const Tensor&, const Weights&, const Weight&,   \
                                               const Tensor&, const Tensor&, const Config&);
CBAM_FOR_EACH_TYPE(CBAM_INSTANTIATE)
#undef CBAM_INSTANTIATE

}  // namespace cbam
