"""What the pictures of runs side by side show: a row's colour, and its name, in every panel."""

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex

from pyfast.train.reports import comparison_plots

CURVES = {
    "random": [{"score": {0: 1.0, 8: 2.0}, "round": {8: 1.0}}],
    "coreset": [{"score": {0: 1.0, 8: 3.0}, "logdet": {8: 4.0}, "round": {8: 1.0}}],
}


def part(mean):
    return {"mean": mean, "low": None, "high": None, "by_seed": {0: mean}}


def colours(ax):
    return {to_hex(line.get_color()) for line in ax.lines if line.get_color() != "0.6"}


def test_a_row_has_one_colour_and_a_name_though_some_panels_lack_it():
    figure = comparison_plots._curves(CURVES, ["logdet", "score"])
    logdet, score = figure.axes
    assert colours(logdet) == {to_hex("C1")}  # the second row's, though it is the panel's first
    assert colours(score) == {to_hex("C0"), to_hex("C1")}
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"random", "coreset"}
    plt.close(figure)


def test_points_and_curves_along_a_setting_too():
    values = [{"a.selector": name} for name in ("random", "coreset")]
    rows = [
        {"label": "random", "values": values[0], "metrics": {"score": part(1.0)}},
        {"label": "coreset", "values": values[1], "metrics": {"score": part(2.0), "m": part(1.0)}},
    ]
    figure = comparison_plots._metrics({"rows": rows}, ["m", "score"])
    assert [len(colours(ax)) for ax in figure.axes] == [1, 2]
    assert colours(figure.axes[0]) == {to_hex("C1")}
    plt.close(figure)
    along = [
        {"label": f"{name} {at}", "values": {"a.selector": name, "a.k": at},
         "metrics": {"score": part(at)} | ({"m": part(at)} if name == "coreset" else {})}
        for name in ("random", "coreset") for at in (1, 2, 3)
    ]  # fmt: skip
    figure = comparison_plots._metrics({"rows": along}, ["m", "score"])
    assert colours(figure.axes[0]) == {to_hex("C1")}
    assert len(figure.legends[0].get_texts()) == 2
    plt.close(figure)


def test_what_is_the_same_in_all_runs_is_not_drawn():
    assert comparison_plots._worth(CURVES, ["score"]) == ["score", "logdet"]
    assert comparison_plots._worth({"one": CURVES["random"]}, []) == ["round", "score"]
