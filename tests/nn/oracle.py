"""CBAM from the paper's equations, in float64 NumPy with plain loops: shares no code with the library."""

import numpy as np


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def hardsigmoid(z):
    return np.clip(z / 6.0 + 0.5, 0.0, 1.0)


def channel_logits(x, w0, w1, b0=None, b1=None, pooling="both"):
    """Mc before its sigmoid, for x (N, C, H, W), w0 (h, C), w1 (C, h) -> (N, C)."""
    n, c = x.shape[:2]
    out = np.zeros((n, c))
    for sample in range(n):
        descriptors = []
        if pooling != "max":
            descriptors.append([x[sample, k].sum() / x[sample, k].size for k in range(c)])
        if pooling != "avg":
            descriptors.append([x[sample, k].max() for k in range(c)])
        for d in descriptors:
            hidden = w0 @ np.array(d) + (0 if b0 is None else b0)
            out[sample] += w1 @ np.maximum(hidden, 0) + (0 if b1 is None else b1)
    return out


def spatial_logits(x, kernel, maps):
    """Ms before norm and sigmoid: `maps` lists "avg"/"max" in the kernel's order -> (N, H, W)."""
    n, c, height, width = x.shape
    d = np.zeros((n, len(maps), height, width))
    for i, name in enumerate(maps):
        d[:, i] = x.sum(1) / c if name == "avg" else x.max(1)
    return convolve(d, kernel)


def convolve(d, kernel):
    """A k x k convolution with zero padding to one output map, term by term -> (N, H, W)."""
    n, _, height, width = d.shape
    k = kernel.shape[-1]
    out = np.zeros((n, height, width))
    for row in range(height):
        for column in range(width):
            for i in range(k):
                for j in range(k):
                    y, z = row + i - k // 2, column + j - k // 2
                    if 0 <= y < height and 0 <= z < width:
                        out[:, row, column] += d[:, :, y, z] @ kernel[0, :, i, j]
    return out


def batch_norm(z, weight, bias, mean, var, eps=1e-5):
    """Batch norm of one map with given statistics."""
    return (z - mean) / np.sqrt(var + eps) * weight + bias


class Oracle:
    """The whole module in one dialect, with weights read from a state dict in this library's keys."""

    def __init__(
        self,
        state,
        arrangement="channel-spatial",
        pooling="both",
        maps=("avg", "max"),
        gate=sigmoid,
        scale=1.0,
    ):
        self.w = {key: value.detach().double().numpy() for key, value in state.items()}
        self.arrangement, self.pooling, self.maps, self.gate, self.scale = (
            arrangement,
            pooling,
            maps,
            gate,
            scale,
        )

    def channel(self, x):
        w = self.w
        w0, w1 = (w[f"channel_attention.mlp.{i}.weight"][:, :, 0, 0] for i in (0, 2))
        b0, b1 = (w.get(f"channel_attention.mlp.{i}.bias") for i in (0, 2))
        return channel_logits(x, w0, w1, b0, b1, self.pooling)[:, :, None, None]

    def spatial(self, x, training=False):
        w, kernel = self.w, self.w["spatial_attention.conv.weight"]
        if "spatial_attention.descriptor.weight" in w:
            projected = np.einsum("nchw,c->nhw", x, w["spatial_attention.descriptor.weight"][0, :, 0, 0])
            z = convolve(projected[:, None], kernel)
        else:
            z = spatial_logits(x, kernel, self.maps)
        if "spatial_attention.norm.weight" in w:
            norm = {
                k: w[f"spatial_attention.norm.{k}"] for k in ("weight", "bias", "running_mean", "running_var")
            }
            mean, var = (z.mean(), z.var()) if training else (norm["running_mean"], norm["running_var"])
            z = batch_norm(z, norm["weight"], norm["bias"], mean, var)
        return z[:, None] / np.sqrt(w.get("spatial_attention.variance", 1.0))

    def __call__(self, x, training=False):
        def gate(z):
            return self.scale * self.gate(z)

        if self.arrangement == "parallel":
            return x * gate(self.channel(x) + self.spatial(x, training))
        for letter in {"channel-spatial": "cs", "spatial-channel": "sc", "channel": "c", "spatial": "s"}[
            self.arrangement
        ]:
            x = x * gate(self.channel(x) if letter == "c" else self.spatial(x, training))
        return x
