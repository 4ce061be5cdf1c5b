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
template <class A>
A scalar(const Weight& weight, A otherwise, const char* name) {
  const A* p = pointer<A>(weight, 1, name);
  return p ? *p : otherwise;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A block takes about half of a thread's share of the second-level cache, so that a few stay there between phases.
constexpr int64_t kBlockBytes = 128 << 10;
// Rows of a contiguous map are read in pieces of a block's positions: shorter pieces than this defeat the prefetcher.
constexpr int64_t kShortestPiece = 800;
constexpr int64_t kChunkBytes = 2 << 20;

// A result of this size or more is written past the caches: by the time it is complete its beginning has left them.
constexpr int64_t kStreamingBytes = 8 << 20;

}  // namespace

template <class T>
Problem<T>::Problem(const Tensor& map, const Weights& weights, const Config& config) {
  STD_TORCH_CHECK(map.dim() == 4 && map.is_cpu(), "cbam expects a map (N, C, H, W) on the CPU");
  n = map.size(0), c = map.size(1), height = map.size(2), width = map.size(3), p = height * width;
  STD_TORCH_CHECK(c > 0 && p > 0 && c < INT32_MAX && p < INT32_MAX, "cbam expects C, H and W of at least 1");
  layout = layout_of(map);
  x = static_cast<const T*>(map.const_data_ptr());

  channel = weights.w0.has_value();
  hidden = pooled = 0;
  row_of_average = row_of_maximum = -1;
  w0 = b0 = w1 = b1 = nullptr;
  if (channel) {
    STD_TORCH_CHECK(config.pooling >= kPoolAverage && config.pooling <= kPoolBoth, "cbam: pooling is 1, 2 or 3");
    hidden = weights.w0->numel() / c;
    STD_TORCH_CHECK(hidden > 0, "cbam expects w0 of shape (h, C)");
    w0 = pointer<A>(weights.w0, hidden * c, "w0"), w1 = pointer<A>(weights.w1, c * hidden, "w1");
    b0 = pointer<A>(weights.b0, hidden, "b0"), b1 = pointer<A>(weights.b1, c, "b1");
    STD_TORCH_CHECK(w1, "cbam expects w1 together with w0");
    if (config.pooling & kPoolAverage) row_of_average = pooled++;
    if (config.pooling & kPoolMaximum) row_of_maximum = pooled++;
  }
  channel_scale = scalar<A>(weights.channel_scale, A(1), "channel_scale");

  spatial = weights.kernel.has_value();
  k = planes = 0;
  plane_of_average = plane_of_maximum = -1;
  kernel = nullptr;
  if (spatial) {
    const int64_t d = config.descriptor;
    STD_TORCH_CHECK(d >= kAverage && d <= kMaximumAverage, "cbam: descriptor is 1, 2, 3 or 4");
    planes = d >= kAverageMaximum ? 2 : 1;
    if (d != kMaximum) plane_of_average = d == kMaximumAverage ? 1 : 0;
    if (d != kAverage) plane_of_maximum = d == kAverageMaximum ? 1 : 0;
    k = weights.kernel->size(weights.kernel->dim() - 1);
    STD_TORCH_CHECK(k % 2 == 1, "cbam expects an odd kernel");
    kernel = pointer<A>(weights.kernel, planes * k * k, "kernel");
  }
  spatial_scale = scalar<A>(weights.spatial_scale, A(1), "spatial_scale");
  norm_training = spatial && config.norm_training;
  norm = spatial && (norm_training || weights.norm_mean.has_value());
  norm_weight = scalar<A>(weights.norm_weight, A(1), "norm_weight");
  norm_bias = scalar<A>(weights.norm_bias, A(0), "norm_bias");
  norm_mean = scalar<A>(weights.norm_mean, A(0), "norm_mean");
  norm_var = scalar<A>(weights.norm_var, A(1), "norm_var");
  norm_eps = static_cast<A>(config.norm_eps);
  hard = config.activation == kHardSigmoid;

  pre = weights.pre_mean.has_value();
  pre_mean = pointer<A>(weights.pre_mean, c, "pre_mean");
  const A* pre_var = pointer<A>(weights.pre_var, c, "pre_var");
  if (pre) {
    STD_TORCH_CHECK(pre_var, "cbam expects pre_var together with pre_mean");
    const A *gain = pointer<A>(weights.pre_weight, c, "pre_weight"), *shift = pointer<A>(weights.pre_bias, c, "pre_bias");
    alpha.resize(c), beta.resize(c), pre_invstd.resize(c);
    // torch's own batch norm compiles to a fused multiply-add where the processor has one: the same bits are wanted.
    const bool fused = isa() != Isa::plain;
    for (int64_t i = 0; i < c; ++i) {
      // In the type in which torch takes it.
      pre_invstd[i] = config.pre_training ? static_cast<A>(1 / std::sqrt(static_cast<double>(pre_var[i]) + config.pre_eps))
                                          : 1 / std::sqrt(pre_var[i] + static_cast<A>(config.pre_eps));
      alpha[i] = gain ? pre_invstd[i] * gain[i] : pre_invstd[i];
      const A bias = shift ? shift[i] : A(0);
      beta[i] = fused ? std::fma(-pre_mean[i], alpha[i], bias) : bias - pre_mean[i] * alpha[i];
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

}  // namespace cbam
