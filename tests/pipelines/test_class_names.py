"""Which classes a text means."""

from __future__ import annotations

import pytest

from vq3dcli.data.imagenet import imagenet_names
from vq3dcli.errors import UsageError
from vq3dcli.pipelines.class_names import NO_CLASS, pick_classes, shown_name

NAMES = ["Torus", "snow_man", "box", "salt, and pepper", "7"]
WNIDS = ["n01443537", "n02099601", "n03126707", "n02012849"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, [0, 1, 2, 3, 4]),
        ("torus", [0]),
        ("TORUS, 2", [0, 2]),
        ("Snow Man", [1]),
        ("snow-man,snow_man,1", [1]),
        ("salt, and pepper", [3]),
        ("4", [4]),
        ("box,,torus", [2, 0]),
    ],
)
def test_names_and_numbers(text: str | None, wanted: list[int]) -> None:
    assert pick_classes(text, NAMES) == wanted


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tours", r"no class is called 'tours'; try: torus"),
        ("snow", r"no class is called 'snow'; try: snow man"),
        ("zebra", r"no class is called 'zebra'; try: Torus, snow_man"),
        ("9", r"no class of the number 9; try: 0 to 4"),
        ("-1", r"no class of the number -1"),
        ("7", r"no class of the number 7"),
        (" , ", "no class is named"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        pick_classes(text, NAMES)


def test_weights_without_classes() -> None:
    assert pick_classes(None, []) == [NO_CLASS]
    with pytest.raises(UsageError, match="these weights know no classes"):
        pick_classes("torus", [])


def test_imagenet_goes_by_names_and_by_wordnet_ids() -> None:
    assert pick_classes("goldfish,Golden Retriever,n03126707", WNIDS) == [0, 1, 2]
    assert pick_classes("Carassius auratus", WNIDS) == [0]
    assert pick_classes("crane", WNIDS) == [2]  # of two cranes the first of these weights
    with pytest.raises(UsageError, match="golden retriever"):
        pick_classes("golden retreiver", WNIDS)
    assert shown_name("n01443537") == "goldfish"
    assert shown_name("n99999999") == "n99999999"
    assert shown_name("torus") == "torus"


def test_imagenet_has_a_thousand_classes_in_order() -> None:
    names = imagenet_names()
    assert len(names) == 1000
    assert list(names) == sorted(names)
    assert names["n01440764"][0] == "tench"
    assert all(name.strip() == name and name for row in names.values() for name in row)
