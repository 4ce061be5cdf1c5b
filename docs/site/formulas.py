"""The formulas of the API reference: what a class or function computes, by its full name."""

CHANNEL = r"M_c(F) = \sigma\bigl(W_1 \, \mathrm{relu}(W_0 \, \mathrm{avg}(F)) + W_1 \, \mathrm{relu}(W_0 \max(F))\bigr)"
SPATIAL = r"M_s(F) = \sigma\bigl(f^{k \times k}([\mathrm{avg}_C(F); \max_C(F)])\bigr)"
BOTH = r"F' = M_c(F) \otimes F, \qquad F'' = M_s(F') \otimes F'"
EXCITATION = r"s = \sigma\bigl(W_1 \, \mathrm{relu}(W_0 \, \mathrm{avg}(F))\bigr), \qquad F' = s \otimes F"
ECA = r"s = \sigma\bigl(\mathrm{conv}^{k}(\mathrm{avg}(F))\bigr), \qquad F' = s \otimes F"
MACS = r"\mathrm{MACs} = \sum_{l} C_{out} \, \frac{C_{in}}{g} \, k^2 \, H \, W"

FORMULAS = {
    **dict.fromkeys(("cbam.CBAM", "cbam.nn.cbam.CBAM", "cbam.functional.cbam"), BOTH),
    **dict.fromkeys(
        ("cbam.ChannelAttention", "cbam.nn.channel.ChannelAttention", "cbam.functional.channel_attention"),
        CHANNEL,
    ),
    **dict.fromkeys(
        ("cbam.SpatialAttention", "cbam.nn.spatial.SpatialAttention", "cbam.functional.spatial_attention"),
        SPATIAL,
    ),
    **dict.fromkeys(
        ("cbam.SqueezeExcitation", "cbam.nn.channel.SqueezeExcitation", "cbam.functional.squeeze_excitation"),
        EXCITATION,
    ),
    "cbam.nn.eca.ECA": ECA,
    **dict.fromkeys(("cbam.cost", "cbam.evaluate.cost.cost"), MACS),
}
