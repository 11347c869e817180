"""The interface of the evaluators: shares of several processes are joined, findings of several evaluators too."""

import pytest
import torch

from degrain.models.evaluation.report import EvaluationReport, Findings, Subject


def subject(rank: int, world: int, gathered: list[torch.Tensor] | None = None) -> Subject:
    """Return one of `world` processes without networks; what it gathers is kept, or is given."""
    values = dict.fromkeys(Subject.__dataclass_fields__)
    values |= {"rank": rank, "world": world, "progress": lambda items, *_: items}
    return Subject(**values | {"all_gather": lambda mine: torch.stack(gathered) if gathered else mine[None]})


@pytest.mark.parametrize(("count", "world"), [(7, 1), (7, 2), (7, 3), (1, 2)])
def test_values_of_all_processes_come_in_the_order_of_the_images(count, world):
    shares = [[torch.tensor(numbers) for numbers in subject(rank, world).numbers(count, 2)] for rank in range(world)]
    assert all(shares) and max(len(batch) for share in shares for batch in share) <= 2
    most = -(-count // world)
    padded = [torch.cat([*share, torch.zeros(most, dtype=torch.int64)])[:most] for share in shares]
    for rank, share in enumerate(shares):
        found = subject(rank, world, padded).collect("squares", [{"number": batch} for batch in share], count)
        assert found["number"].tolist() == list(range(count))


def test_findings_of_several_evaluators_are_one_report():
    one = Findings({"about/crop": "c148", "mean/kernel": 0.1}, ["row", "mean"], {"spectra": None})
    report = EvaluationReport([one, Findings({"mean/modes": 30.0}, ["modes"])])
    assert report.values() == {"test/about/crop": "c148", "test/mean/kernel": 0.1, "test/mean/modes": 30.0}
    assert report.table() == "row\nmean\n\nmodes" and list(report.figures()) == ["spectra"]
