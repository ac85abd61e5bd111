"""`convnets summary` itself: which network, and where the report goes."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console

from experiments.recipe import network_of_architecture, network_of_recipe
from experiments.summary.table import WIDTH, figures_of, print_table
from experiments.summary.trace import layers_of
from lightning_modules.files import replace


def run(options: argparse.Namespace) -> int:
    """Print and write the table of the network that the options name.

    Raises:
        ValueError: whatever the user can put right.
    """
    if options.config is not None:
        network = network_of_recipe(options.config, options.input_shape)
    else:
        network = network_of_architecture(options.architecture, options.input_shape)
    shape: Any = options.input_shape or network.input_shape
    rows = layers_of(network, tuple(shape))
    print_table(Console(width=None if sys.stdout.isatty() else WIDTH), type(network).__name__, rows)
    if options.json is not None:
        figures = figures_of(type(network).__name__, rows)
        replace(options.json, json.dumps(figures, indent=1) + "\n")
    return 0
