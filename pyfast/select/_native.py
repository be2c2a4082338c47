"""The one door to the extension: typed calls, nothing else. Callers have checked the meaning."""

from pyfast._core import (
    bottom_k,
    build_info,
    coreset,
    first_asymmetric,
    first_invalid,
    kmedoids,
    kmedoids_plain,
    logdet_groups,
    logdet_one,
    logdet_pairs,
    mass_dpo,
    opt_select,
    philox,
    random_subsets,
    sketch_add,
    squared_norms,
)

__all__ = [
    "bottom_k",
    "build_info",
    "coreset",
    "first_asymmetric",
    "first_invalid",
    "kmedoids",
    "kmedoids_plain",
    "logdet_groups",
    "logdet_one",
    "logdet_pairs",
    "mass_dpo",
    "opt_select",
    "philox",
    "random_subsets",
    "sketch_add",
    "squared_norms",
]
