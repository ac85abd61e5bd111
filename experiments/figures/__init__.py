"""The figures of the lecture, one experiment a file, in the order in which they are told; see experiments/gallery.

A file has a docstring (its first line is the title, the rest what to notice), SOURCE (the figure, section or equation),
SHOWS (the functions whose lines are shown beside the picture), BACKEND (who computes: "triton", interpreted, or "torch"
where that takes too long), and draw(), which returns a `gallery.example.Example`.
"""

NAMES = (
    "matrix-product",
    "convolution",
    "three-operations",
    "sparse-connectivity",
    "receptive-field",
    "parameter-sharing",
    "edge-detection",
    "layer-components",
    "volumes",
    "learned-kernels",
    "max-pool-translation",
    "cross-channel-invariance",
    "pooling-downsampling",
    "classification-heads",
    "convnet",
    "stride",
    "zero-padding",
    "connectivity",
    "channel-connectivity",
    "tiled-convolution",
    "recurrent-labelling",
    "grids",
    "equivariance",
    "gabor-functions",
    "gabor-learned",
    "architectures",
)
