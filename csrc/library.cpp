// Registration of torch.ops.cbam: the schemas, as in cbam/ops/signature.py, and the implementations for the CPU.
#include "problem.h"

namespace cbam {

namespace {

// Call the function template for the map's type.
#define CBAM_BY_TYPE(x, call)                                                                              \
  switch (x.scalar_type()) {                                                                               \
    case ScalarType::Float: { using T = float; return call; }                                              \
    case ScalarType::Double: { using T = double; return call; }                                            \
    case ScalarType::BFloat16: { using T = bf16; return call; }                                            \
    case ScalarType::Half: { using T = f16; return call; }                                                 \
    default: STD_TORCH_CHECK(false, "cbam expects a map in float32, float64, bfloat16 or float16");        \
  }

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& x, const Weight& w0, const Weight& b0, const Weight& w1, const Weight& b1, const Weight& channel_scale,
    const Weight& kernel, const Weight& norm_weight, const Weight& norm_bias, const Weight& norm_var,
    const Weight& norm_mean, const Weight& spatial_scale, const Weight& pre_weight, const Weight& pre_bias,
    const Weight& pre_mean, const Weight& pre_var, const Weight& residual, int64_t pooling, int64_t descriptor,
    int64_t activation, bool norm_training, double norm_eps, bool pre_training, double pre_eps, bool relu, bool keep) {
  const Weights weights{w0, b0, w1, b1, channel_scale, kernel, norm_weight, norm_bias, norm_var, norm_mean,
                        spatial_scale, pre_weight, pre_bias, pre_mean, pre_var};
  const Config config{pooling, descriptor, activation, norm_training, norm_eps, pre_training, pre_eps, relu};
  CBAM_BY_TYPE(x, (run_forward<T>(x, weights, residual, config, keep)))
}

using ElevenTensors =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

std::vector<Tensor> backward_of_type(const Tensor& grad, const Tensor& x, const Weights& weights,
                                     const Weight& out, const Tensor& saved, const Tensor& argmax,
                                     const Config& config) {
  CBAM_BY_TYPE(x, (run_backward<T>(grad, x, weights, out, saved, argmax, config)))
}

ElevenTensors backward(const Tensor& grad, const Tensor& x, const Weight& w0, const Weight& b0, const Weight& w1,
                       const Weight& b1, const Weight& channel_scale, const Weight& kernel, const Weight& norm_weight,
                       const Weight& norm_bias, const Weight& norm_var, const Weight& norm_mean,
                       const Weight& spatial_scale, const Weight& pre_weight, const Weight& pre_bias,
                       const Weight& pre_mean, const Weight& pre_var, const Weight& out, const Tensor& saved,
                       const Tensor& argmax, int64_t pooling, int64_t descriptor, int64_t activation, bool norm_training,
                       double norm_eps, bool pre_training, double pre_eps) {
  const Weights weights{w0, b0, w1, b1, channel_scale, kernel, norm_weight, norm_bias, norm_var, norm_mean,
                        spatial_scale, pre_weight, pre_bias, pre_mean, pre_var};
  const Config config{pooling, descriptor, activation, norm_training, norm_eps, pre_training, pre_eps, out.has_value()};
  const auto g = backward_of_type(grad, x, weights, out, saved, argmax, config);
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10]};
}

int64_t isa_number() { return static_cast<int64_t>(isa()); }

}  // namespace

STABLE_TORCH_LIBRARY(cbam, library) {
  library.def(
      "forward(Tensor x, Tensor? w0, Tensor? b0, Tensor? w1, Tensor? b1, Tensor? channel_scale, Tensor? kernel, "
      "Tensor? norm_weight, Tensor? norm_bias, Tensor? norm_var, Tensor? norm_mean, Tensor? spatial_scale, "
      "Tensor? pre_weight, Tensor? pre_bias, Tensor? pre_mean, Tensor? pre_var, Tensor? residual, int pooling, "
      "int descriptor, int activation, bool norm_training, float norm_eps, bool pre_training, float pre_eps, bool relu, bool keep) "
      "-> (Tensor y, Tensor saved, Tensor argmax, Tensor stats)");
  library.def(
      "backward(Tensor grad, Tensor x, Tensor? w0, Tensor? b0, Tensor? w1, Tensor? b1, Tensor? channel_scale, "
      "Tensor? kernel, Tensor? norm_weight, Tensor? norm_bias, Tensor? norm_var, Tensor? norm_mean, "
      "Tensor? spatial_scale, Tensor? pre_weight, Tensor? pre_bias, Tensor? pre_mean, Tensor? pre_var, "
      "Tensor? out, Tensor saved, Tensor argmax, int pooling, int descriptor, int activation, bool norm_training, "
      "float norm_eps, bool pre_training, float pre_eps) -> (Tensor dx, Tensor dw0, Tensor db0, Tensor dw1, Tensor db1, Tensor dkernel, "
      "Tensor dnorm_weight, Tensor dnorm_bias, Tensor dpre_weight, Tensor dpre_bias, Tensor dresidual)");
  library.def("isa() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(cbam, CPU, library) {
  library.impl("forward", TORCH_BOX(&forward));
  library.impl("backward", TORCH_BOX(&backward));
}

STABLE_TORCH_LIBRARY_IMPL(cbam, CompositeExplicitAutograd, library) { library.impl("isa", TORCH_BOX(&isa_number)); }

}  // namespace cbam
