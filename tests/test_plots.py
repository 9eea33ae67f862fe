"""Figures: what is drawn, in which axes; nothing is shown."""

import numpy as np
import pytest

plt = pytest.importorskip("matplotlib.pyplot")

from pyro_align import plots  # noqa: E402
from pyro_align.barrier.curve import Curve  # noqa: E402
from pyro_align.barrier.result import Barrier  # noqa: E402

LOSSES = ("expected_nll", "elbo", "error_rate")


def make(height=1.0, seed=0):
    rng, taus = np.random.default_rng(seed), np.linspace(0, 1, 7)
    bump = height * np.sin(np.pi * taus)[:, None]
    curves = {
        (e, loss): Curve(e, loss, taus, bump + 0.05 * rng.standard_normal((7, 8)))
        for e in ("train", "test")
        for loss in LOSSES
    }
    stats = np.zeros((7, 8))
    two = {"train": stats, "test": stats}
    return Barrier(
        curves, taus, stats, stats, two, dict.fromkeys(two, stats[:, 0]), dict.fromkeys(two, 5), 1.0, 0, True
    )


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("a figure was shown"))
    yield
    plt.close("all")


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_a_curve_with_chord_band_and_ends():
    curve = make()["elbo"]
    _, ax = plt.subplots()
    assert plots.plot_curve(curve, ax=ax, label="here") is ax
    assert np.array_equal(lines(ax)["here"].get_ydata(), curve.value)
    drawn = [line.get_ydata() for line in ax.get_lines()]
    assert any(np.array_equal(y, curve.chord) for y in drawn)
    assert any(np.array_equal(y, curve.value[[0, -1]]) for y in drawn)
    band, (area,) = curve.band(), ax.collections
    heights = area.get_paths()[0].vertices[:, 1]
    assert np.isclose(heights.max(), (curve.chord + band.upper).max())
    assert ax.get_ylabel() == "nats per datum"
    assert "τ" in ax.get_xlabel()


def test_panels_of_one_barrier():
    axes = make().plot()
    assert axes.shape == (2, 3)
    assert [ax.get_title() for ax in axes[0]] == ["expected NLL", "negative ELBO", "error rate"]
    assert axes[0, 2].get_ylabel() == "fraction of data"
    assert make().plot(losses="elbo", evaluation="test").shape == (1, 1)


def test_one_axes_for_one_loss_and_for_several():
    _, (left, right) = plt.subplots(1, 2)
    barrier = make()
    assert barrier.plot(left, losses="elbo") is left
    assert any(np.array_equal(line.get_ydata(), barrier["elbo"].value) for line in left.get_lines())
    assert barrier.plot(right) is right
    assert np.array_equal(lines(right)["negative ELBO"].get_ydata(), barrier["elbo"].excess)
    assert "error rate" in right.get_ylabel()


def test_before_and_after():
    before, after = make(2.0), make(0.1, seed=1)
    axes = plots.plot_before_after({"before": before, "after": after}, losses=["elbo", "error_rate"])
    assert axes.shape == (2, 2)
    (low, high), found = axes[0, 0].get_ylim(), lines(axes[0, 0])
    labels = [text.get_text() for text in axes[0, 0].get_legend().get_texts()]
    peak = before["elbo"].barrier
    assert labels[0] == f"before: {peak.height:.{_digits(peak.se)}f} ± {peak.se:.{_digits(peak.se)}f}"
    assert low <= after["elbo"].value.min()
    assert high >= before["elbo"].value.max()
    colours = {found[label].get_color() for label in labels}
    styles = {found[label].get_linestyle() for label in labels}
    assert len(colours) == len(styles) == 2, "told apart without colour as well"
    given = plt.subplots(2, 2)[1]
    assert plots.plot_before_after({"b": before}, losses=["elbo", "error_rate"], axes=given)[1, 1] is given[1, 1]


def _digits(se):
    return int(1 - np.floor(np.log10(se)))


def test_figures_can_be_rendered(tmp_path):
    axes = plots.plot_before_after({"before": make(2.0), "after": make(0.1)})
    axes[0, 0].figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_wrong_names():
    with pytest.raises(ValueError, match=r"no loss \['nll'\]"):
        make().plot(losses="nll")
    with pytest.raises(ValueError, match=r"no data set \['valid'\]"):
        make().plot(evaluation="valid")
    with pytest.raises(ValueError, match="got no barrier"):
        plots.plot_before_after({})
    with pytest.raises(ValueError, match="need as many axes"):
        plots.plot_before_after({"a": make()}, axes=plt.subplots(1, 2)[1])
