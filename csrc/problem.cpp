#include "problem.h"

#include <algorithm>

namespace cbam {

Tensor new_tensor(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                  ScalarType type) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor new_vector(int64_t size, ScalarType type) { return new_tensor({size}, {1}, type); }

Tensor new_like(const Tensor& like) {
  const auto sizes = like.sizes(), strides = like.strides();
  return new_tensor({sizes.begin(), sizes.end()}, {strides.begin(), strides.end()}, like.scalar_type());
}

void check_like(const Tensor& tensor, const Tensor& map, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == map.scalar_type() && tensor.dim() == 4, "cbam: ", name,
                  " is not of the map's type");
  for (int axis = 0; axis < 4; ++axis)
    STD_TORCH_CHECK(tensor.size(axis) == map.size(axis) && (map.numel() == 0 || tensor.size(axis) == 1 ||
                                                            tensor.stride(axis) == map.stride(axis)),
                    "cbam: ", name, " is not of the map's shape, or not in its memory format");
}

namespace {

bool dense(const Tensor& x, const int (&order)[4]) {
  int64_t stride = 1;
  for (int axis : order) {
    if (x.size(axis) != 1 && x.stride(axis) != stride) return false;
    stride *= x.size(axis);
  }
  return true;
}

Layout layout_of(const Tensor& x) {
  const bool contiguous = dense(x, {3, 2, 1, 0}), last = dense(x, {1, 3, 2, 0});
  STD_TORCH_CHECK(contiguous || last || x.numel() == 0,
                  "cbam expects a map that is dense in contiguous or channels_last memory format");
  // A map of one position is a row of channels either way: long rows are the fast ones.
  return last && (!contiguous || x.size(2) * x.size(3) == 1) ? kChannelsLast : kContiguous;
}

template <class A>
const A* pointer(const Weight& weight, int64_t count, const char* name) {
  if (!weight) return nullptr;
  STD_TORCH_CHECK(weight->is_cpu() && weight->is_contiguous() && weight->scalar_type() == scalar_type_of<A>(),
                  "cbam expects ", name, " contiguous on the CPU, in the map's accumulation type");
  STD_TORCH_CHECK(weight->numel() == count, "cbam expects ", name, " with ", count, " elements, got ", weight->numel());
  return static_cast<const A*>(weight->const_data_ptr());
}
int64_t planes_of(int64_t descriptor) { return descriptor >= kAverageMaximum ? 2 : 1; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A block takes about half of a thread's share of the second-level cache, so that a few stay there between phases.
constexpr int64_t kBlockBytes = 128 << 10;
// Rows of a contiguous map are read in pieces of a block's positions: shorter pieces than this defeat the prefetcher.
constexpr int64_t kShortestPiece = 800;
constexpr int64_t kChunkBytes = 2 << 20;

// A result of this size or more is written past the caches: by the time it is complete its beginning has left them.
constexpr int64_t kStreamingBytes = 8 << 20;

}  // namespace

Shape shape_of(const Tensor& map, const Weights& weights) {
  STD_TORCH_CHECK(map.dim() == 4 && map.is_cpu(), "cbam expects a map (N, C, H, W) on the CPU");
  Shape shape = {map.size(0), map.size(1), map.size(2), map.size(3), layout_of(map), 0, 0};
  STD_TORCH_CHECK(shape.c > 0 && shape.height * shape.width > 0, "cbam expects C, H and W of at least 1");
  if (weights.w0) {
    shape.hidden = weights.w0->numel() / shape.c;
    STD_TORCH_CHECK(shape.hidden > 0, "cbam expects w0 of shape (h, C)");
  }
  if (weights.kernel) shape.k = weights.kernel->size(weights.kernel->dim() - 1);
  return shape;
}

template <class A>
Pointers<A> pointers_of(const Weights& w, const Shape& shape, const Config& config) {
  const int64_t c = shape.c, hidden = shape.hidden, taps = planes_of(config.descriptor) * shape.k * shape.k;
  return {
      pointer<A>(w.w0, hidden * c, "w0"),
      pointer<A>(w.b0, hidden, "b0"),
      pointer<A>(w.w1, c * hidden, "w1"),
      pointer<A>(w.b1, c, "b1"),
      pointer<A>(w.channel_scale, 1, "channel_scale"),
      pointer<A>(w.kernel, taps, "kernel"),
      pointer<A>(w.norm_weight, 1, "norm_weight"),
      pointer<A>(w.norm_bias, 1, "norm_bias"),
      pointer<A>(w.norm_var, 1, "norm_var"),
      pointer<A>(w.norm_mean, 1, "norm_mean"),
      pointer<A>(w.spatial_scale, 1, "spatial_scale"),
      pointer<A>(w.pre_weight, c, "pre_weight"),
      pointer<A>(w.pre_bias, c, "pre_bias"),
      pointer<A>(w.pre_mean, c, "pre_mean"),
      pointer<A>(w.pre_var, c, "pre_var"),
  };
}

template <class T>
Problem<T>::Problem(const T* map, const Shape& shape, const Pointers<A>& weights, const Config& config)
    : n(shape.n),
      c(shape.c),
      height(shape.height),
      width(shape.width),
      p(shape.height * shape.width),
      layout(shape.layout),
      x(map),
      pre(weights[13] != nullptr),
      alpha(pre ? c : 0),
      beta(pre ? c : 0),
      pre_invstd(pre ? c : 0) {
  STD_TORCH_CHECK(c < INT32_MAX && p < INT32_MAX, "cbam: a sample has too many channels or positions");
  const auto [w0_, b0_, w1_, b1_, scale_of_channels, kernel_, weight_of_norm, bias_of_norm, var_of_norm, mean_of_norm,
              scale_of_positions, gain, shift, mean, var] = weights;
  const auto number = [](const A* given, A otherwise) { return given ? *given : otherwise; };

  channel = w0_ != nullptr;
  w0 = w0_, b0 = b0_, w1 = w1_, b1 = b1_;
  hidden = channel ? shape.hidden : 0;
  pooled = 0;
  row_of_average = row_of_maximum = -1;
  if (channel) {
    STD_TORCH_CHECK(config.pooling >= kPoolAverage && config.pooling <= kPoolBoth, "cbam: pooling is 1, 2 or 3");
    STD_TORCH_CHECK(w1, "cbam expects w1 together with w0");
    if (config.pooling & kPoolAverage) row_of_average = pooled++;
    if (config.pooling & kPoolMaximum) row_of_maximum = pooled++;
  }
  channel_scale = number(scale_of_channels, A(1));

  spatial = kernel_ != nullptr;
  kernel = kernel_;
  k = planes = 0;
  plane_of_average = plane_of_maximum = -1;
  if (spatial) {
    const int64_t d = config.descriptor;
    STD_TORCH_CHECK(d >= kAverage && d <= kMaximumAverage, "cbam: descriptor is 1, 2, 3 or 4");
    planes = planes_of(d);
    if (d != kMaximum) plane_of_average = d == kMaximumAverage ? 1 : 0;
    if (d != kAverage) plane_of_maximum = d == kAverageMaximum ? 1 : 0;
    k = shape.k;
    STD_TORCH_CHECK(k % 2 == 1, "cbam expects an odd kernel");
  }
  spatial_scale = number(scale_of_positions, A(1));
  norm_training = spatial && config.norm_training;
  norm = spatial && (norm_training || mean_of_norm);
  norm_weight = number(weight_of_norm, A(1));
  norm_bias = number(bias_of_norm, A(0));
  norm_mean = number(mean_of_norm, A(0));
  norm_var = number(var_of_norm, A(1));
  norm_eps = static_cast<A>(config.norm_eps);
  logit_factor = var_of_norm && !norm ? A(1) / std::sqrt(norm_var + norm_eps) : A(1);
  hard = config.activation == kHardSigmoid;

  pre_mean = mean;
  if (pre) {
    STD_TORCH_CHECK(var, "cbam expects pre_var together with pre_mean");
    // torch's own batch norm compiles to a fused multiply-add where the processor has one: the same bits are wanted.
    const bool fused = isa() != Isa::plain;
    for (int64_t i = 0; i < c; ++i) {
      // In the type in which torch takes it.
      const A invstd = config.pre_training ? static_cast<A>(1 / std::sqrt(static_cast<double>(var[i]) + config.pre_eps))
                                           : 1 / std::sqrt(var[i] + static_cast<A>(config.pre_eps));
      const A slope = gain ? invstd * gain[i] : invstd, bias = shift ? shift[i] : A(0);
      pre_invstd.get()[i] = invstd;
      alpha.get()[i] = slope;
      beta.get()[i] = fused ? std::fma(-mean[i], slope, bias) : bias - mean[i] * slope;
    }
  }

  const int64_t row_bytes = width * c * static_cast<int64_t>(sizeof(T));
  block_rows = ceil_div(kBlockBytes, row_bytes);
  if (layout == kContiguous) block_rows = std::max(block_rows, ceil_div(kShortestPiece, width));
  blocks = ceil_div(height, block_rows);
  block_rows = ceil_div(height, blocks);  // of equal size
  blocks = ceil_div(height, block_rows);
  chunk = std::max<int64_t>(1, std::min(n, kChunkBytes / (c * p * static_cast<int64_t>(sizeof(T)))));
  streaming = n * c * p * static_cast<int64_t>(sizeof(T)) >= kStreamingBytes;
  pitch = width + k - 1 + algebra_for<A>().lanes;
  plane_size = spatial ? (height + k - 1) * pitch : 0;
}

#define CBAM_INSTANTIATE(T) template struct Problem<T>;
CBAM_FOR_EACH_TYPE(CBAM_INSTANTIATE)
#undef CBAM_INSTANTIATE
template Pointers<float> pointers_of<float>(const Weights&, const Shape&, const Config&);
template Pointers<double> pointers_of<double>(const Weights&, const Shape&, const Config&);

}  // namespace cbam
