"""Draw how much the code should say: the budget of the distance against the number of latents, from finished tests.

    python -m tests.benchmarks.latents --tests "{16: runs/A/metrics.json, 64: runs/B/metrics.json}" --figure FILE.png

Each file is the metrics.json of a `train.py test` of a stage 2. The bars are mean images and denoised draws by one
distance of one network. It prints the table of the denoised ones.
"""

import json
from pathlib import Path

from jsonargparse import auto_cli

from degrain.models.evaluation.figures import BUDGET_STYLES, INK, new, styled

PARTS = {
    "floor": "photographs themselves",
    "decoder": "codes of photographs: decoder, or decoder and stage 2",
    "prior": "codes drawn from the prior",
}
HEADS = ("latents", "draws", "from codes of photographs", "the prior adds", "the prior alone", "recall")
ROWS = ("mean", "denoised")


def value(found: dict[str, float], name: str) -> tuple[float, float]:
    """Return an estimate and half of its 95 % interval."""
    return found[name], (found[f"{name}_high"] - found[f"{name}_low"]) / 2


def main(tests: dict[int, Path], figure: Path, net: str = "efficientnet-lite0", metric: str = "frechet") -> None:
    """Draw and print the budgets.

    Args:
        tests: latents -> metrics.json of a test.
        figure: file to write.
        net: feature network.
        metric: distance: frechet, frechet_infinity or kernel.
    """
    found = {latents: json.loads(path.read_text()) for latents, path in sorted(tests.items())}
    draw(found, f"test/{net}/budget/{metric}", figure)
    print(f"| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|")
    for latents, values in found.items():
        budget = f"test/{net}/budget/{metric}/denoised"
        cells = [f"{budget}/total", f"test/{net}/reconstruction_denoised/{metric}", f"{budget}/prior"]
        cells += [f"{budget}/prior_alone", f"test/{net}/denoised/recall"]
        said = [shown(*value(values, cell), small=metric == "kernel" or cell.endswith("recall")) for cell in cells]
        print(f"| {latents} | {' | '.join(said)} |")


def shown(number: float, half: float, small: bool) -> str:
    """Return a value with half of its interval, with a digit after the point, or with four of a small one."""
    return f"{number:.4f} ± {half:.4f}" if small else f"{number:.1f} ± {half:.1f}"


@styled
def draw(found: dict[int, dict[str, float]], prefix: str, path: Path) -> None:
    """Draw stacked bars, a panel for each of ROWS."""
    figure, axes = new(9, 3.6, columns=len(ROWS), sharey=True)
    for ax, row in zip(axes, ROWS, strict=True):
        base = [0.0] * len(found)
        for part, words in PARTS.items():
            heights = [values[f"{prefix}/{row}/{part}"] for values in found.values()]
            ax.bar(range(len(found)), heights, 0.7, bottom=base, color=BUDGET_STYLES[part], label=words)
            base = [b + h for b, h in zip(base, heights, strict=True)]
        totals = [value(values, f"{prefix}/{row}/total") for values in found.values()]
        ax.errorbar(range(len(found)), base, [half for _, half in totals], fmt="none", ecolor=INK, lw=1)
        ax.set(xticks=range(len(found)), xticklabels=list(found), xlabel="latents", title=f"{row} images of draws")
    axes[0].set_ylabel("Frechet distance to photographs" if "frechet" in prefix else "kernel distance to photographs")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=1)
    figure.savefig(path)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
