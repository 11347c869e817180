"""Values of a config that look like something else: read as they are meant, and the same after their own dump."""

import pytest
import yaml

from degrain.models.core.yaml_text import dump, load

TEXTS = [
    "1e-4",
    "null",
    "~",
    "12:30",
    "007",
    "0x10",
    "1_000",
    "2024",
    "2024-01-01",
    "yes",
    "off",
    "",
    "a: b",
    "x\ny",
    "é",
]


def test_text_survives_its_dump_for_every_reader():
    values = {"texts": TEXTS, "name": "1e-4", "numbers": [1, -2, 1e-5, 1e16, float("inf")], "none": None, "on": True}
    for read in (load, yaml.safe_load):
        assert read(dump(values)) == values


@pytest.mark.parametrize("text", ["off", "007", "0x10", "1_000", "2024-01-01", "12:30", "1e-4", "No"])
def test_what_json_would_not_write_as_a_number_or_a_switch_is_text(text):
    assert load(f"a: {text}\nb: [{text}]") == {"a": text, "b": [text]}


def test_the_rest_is_what_it_looks_like():
    text = "a: 12\nb: -1.5\nc: true\nd: null\ne:\nf: 1.0e-05\ng: '12'\nh: {<<: {i: 1}}"
    assert load(text) == {"a": 12, "b": -1.5, "c": True, "d": None, "e": None, "f": 1e-5, "g": "12", "h": {"i": 1}}
