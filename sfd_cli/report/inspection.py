"""What `sfd schedule inspect` found, drawn and in words."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfd_cli.report.pictures import SEMANTIC, TEXTURE, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STREAMS = {"texture": ("textures", TEXTURE), "semantic": ("semantics", SEMANTIC)}
LAW, PARITY = "#3f9d63", "#555555"
SHOWN = 4.0  # logit times up to which there is something to see
FURTHEST_LEAD = 4.0
WIDTH = 54  # of the words in the picture


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """A short table of the contents of `inspect.json`."""
    half, law, accuracy, oracle = found["levels"]["0.5"], found["law"], found["accuracy"], found.get("oracle")
    told: dict[str, Any] = {
        "images": f"{found['images']:,} in {found['classes']} classes, {found['clusters']:,} that are not alike",
        "half resolved at logit time": {name: _estimate(half, key) for key, (name, _) in STREAMS.items()},
        "lead at which both draw level": _estimate(half, "lead"),
        "law": _law(law),
    }
    if accuracy is None:
        told["class accuracy"] = "none: there is one class"
    else:
        told["class accuracy"] = {
            f"{name}, without noise": f"{accuracy['whole'][key]:.1%}" for key, (name, _) in STREAMS.items()
        }
        told["class accuracy"] |= {
            f"{name}, half resolved": f"{accuracy['half_resolved'][key]:.1%}" for key, (name, _) in STREAMS.items()
        }
        told["class accuracy"]["chance"] = f"{accuracy['chance']:.1%}"
    if oracle is not None:
        told[f"Fréchet distance of {oracle['images']:,} images"] = {
            "with real semantics": f"{oracle['real_semantics']:.4g}",
            "with sampled semantics": f"{oracle['sampled_semantics']:.4g}",
            "worth of real semantics": f"{oracle['gain']:.4g} +- {oracle['gain_standard_error']:.2g}",
        }
    return told | {"warning": dict(enumerate(found["warnings"], 1)) or "none"}


def draw_inspection(path: Path, found: dict[str, Any]) -> None:
    """Write spectra, information, resolved variance, class accuracy and leads as one PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    spectra, information, resolved, accuracy, leads, key = figure.subplots(2, 3).flat
    for name, (label, colour) in STREAMS.items():
        values = np.array(found["spectra"][name])
        spectra.loglog(np.arange(1, len(values) + 1), values, color=colour, label=label, linewidth=1.8)
        for axes, what in ((information, "information"), (resolved, "resolved")):
            axes.plot(found["logit_times"], found[what][name], color=colour, linewidth=1.8)
            axes.axvline(found["levels"]["0.5"][name], color=colour, linewidth=1, linestyle=":")
    information.set_yscale("log")
    resolved.axhline(0.5, color=PARITY, linewidth=0.6)
    _name(spectra, "Spectra", "direction", f"variance ({found['covariance_of']})")
    _name(information, "Information of a Gaussian", "logit time", "nats")
    _name(resolved, "Resolved share of the variance", "logit time", "")
    _draw_accuracy(accuracy, found)
    _draw_leads(leads, found)
    for axes in (information, resolved, accuracy):
        axes.set_xlim(-SHOWN, SHOWN)
    handles = [*spectra.get_legend_handles_labels()[0], *leads.get_legend_handles_labels()[0]]
    key.axis("off")
    key.legend(handles=handles, frameon=False, fontsize=9, loc="upper left")
    key.text(0.02, 0.02, _words(found), fontsize=8.5, va="bottom", transform=key.transAxes, color="#333333")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_figure(figure, path)


def _draw_accuracy(axes: Axes, found: dict[str, Any]) -> None:
    accuracy = found["accuracy"]
    _name(axes, "Linear class accuracy", "logit time", "of held-out images")
    if accuracy is None:
        axes.text(0.5, 0.5, "one class", ha="center", transform=axes.transAxes, color=PARITY)
        return
    for name, (_, colour) in STREAMS.items():
        axes.plot(accuracy["logit_times"], accuracy[name], color=colour, linewidth=1.8)
        axes.axvline(found["levels"]["0.5"][name], color=colour, linewidth=1, linestyle=":")
    axes.axhline(accuracy["chance"], color=PARITY, linewidth=0.6)
    axes.text(SHOWN, accuracy["chance"], "chance ", ha="right", va="bottom", fontsize=7, color=PARITY)
    axes.set_ylim(bottom=0)


def _draw_leads(axes: Axes, found: dict[str, Any]) -> None:
    law, parity = found["law"], found["parity"]
    axes.plot(law["mean_logit_time"], law["lead"], color=LAW, linewidth=1.8, label="lead of the law")
    axes.plot(
        parity["mean_logit_time"], parity["lead"], color=PARITY, linewidth=1.4, linestyle="--", label="both draw level"
    )
    half = found["levels"]["0.5"]
    axes.errorbar(
        (half["texture"] + half["semantic"]) / 2,
        half["lead"],
        2 * half["lead_standard_error"],
        fmt="o",
        color=PARITY,
        markersize=4,
        capsize=3,
        label="at half, with two standard errors",
    )
    axes.set_xlim(-SHOWN, SHOWN)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -FURTHEST_LEAD), min(high, FURTHEST_LEAD))
    _name(axes, "Lead of semantics", "mean logit time of both streams", "in logit time")


def _words(found: dict[str, Any]) -> str:
    lead = _estimate(found["levels"]["0.5"], "lead")
    sentences = [f"Both draw level at a lead of {lead}.", f"The law is {_law(found['law'])}."]
    return "\n".join("\n".join(textwrap.wrap(sentence, WIDTH)) for sentence in sentences)


def _law(law: dict[str, Any]) -> str:
    """`offset, delta_t 0.3 (models/dit): semantics ahead of level by 1.23`."""
    name, *numbers = law["settings"].values()
    keys = list(law["settings"])[1:]
    told = ", ".join([name, *(f"{key} {value}" for key, value in zip(keys, numbers, strict=True))])
    ahead = law["ahead"]
    if ahead is None:
        where = "the streams never are at half together"
    else:
        where = f"semantics are {abs(ahead):.2f} {'ahead of' if ahead >= 0 else 'behind'} where both draw level"
    return f"{told} ({law['of']}): {where}"


def _estimate(level: dict[str, float], key: str) -> str:
    return f"{level[key]:.3f} +- {level[f'{key}_standard_error']:.3f}"


def _name(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
