"""The figures of the lecture, one experiment a file, in the order in which they are told; see experiments/gallery.

A file has a docstring (its first line is the title, the rest what to notice), SOURCE (the figure, section or equation),
SHOWS (the functions whose lines are shown beside the picture), BACKEND (who computes: "triton", interpreted where there
is no GPU, or "torch" where that takes too long), and draw(), which returns a `gallery.example.Example`.
"""

NAMES = (
    "zero-padding",
    "connectivity",
    "channel-connectivity",
    "tiled-convolution",
    "recurrent-labelling",
    "grids",
    "architectures",
)
