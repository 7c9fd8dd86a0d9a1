"""Names of samples' files."""

from __future__ import annotations

import pytest

from vq3dcli.pipelines.sampling.record import file_names


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["ant", "Bee Hive"], ["ant", "bee-hive"]),
        (["car", "car", "car-1"], ["car-0", "car-1-1", "car-1"]),
        (["car", "Car", "car-1", "car-1-1"], ["car-0", "car-1-1-1", "car-1", "car-1-1"]),
        (["sample", "?", "!"], ["sample-0", "sample-1", "sample-2"]),
        (["x" * 60, "x" * 50], ["x" * 48 + "-0", "x" * 48 + "-1"]),
    ],
)
def test_no_two_classes_have_files_of_one_name(names: list[str], wanted: list[str]) -> None:
    found = file_names({-1: "", **dict(enumerate(names))})
    assert [found[index] for index in range(len(names))] == wanted
    assert found[-1] == "sample"
    assert len(set(found.values())) == len(found)
