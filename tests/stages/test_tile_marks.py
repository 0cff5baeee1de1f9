"""Which part of a tile must be made again: all that what has joined or left can touch, and no pixel that may stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamimg3.geometry import Box, TileGrid
from streamimg3.stages.tile_marks import TileMarks, changed_parts, unchanged

GRID = TileGrid((96, 128), 32)
BOXES = st.builds(
    lambda y, x, h, w: Box(y, x, y + h, x + w), *(st.integers(-20, 110), st.integers(-20, 110)),
    *(st.integers(1, 90), st.integers(1, 90)),
)  # fmt: skip
LAYERS = st.dictionaries(st.sampled_from([f"{n:016x}" for n in range(12)]), BOXES, max_size=8)


def _marks(layers: dict[str, Box], order: list[str]) -> TileMarks:
    tiles = {
        tile.key: " ".join(touching)
        for tile in GRID
        if (touching := [name for name in order if name in layers and layers[name].intersect(tile.box)])
    }
    return TileMarks("canvas", tiles, {name: list(box.as_tuple()) for name, box in layers.items()})


@given(st.data(), LAYERS, LAYERS)
def test_what_is_kept_was_made_from_the_same(data: st.DataObject, old: dict[str, Box], new: dict[str, Box]) -> None:
    """Every pixel outside the part lies on the same exposures, in the same order, before and after."""
    new |= {name: box for name, box in old.items() if name in new}  # a digest stands for where an exposure lies
    orders = [data.draw(st.permutations(sorted(old | new))) for _ in range(2)]
    before, now = _marks(old, orders[0]), _marks(new, orders[data.draw(st.integers(0, 1))])
    parts, kept = changed_parts(before, now, GRID), unchanged(before, now)
    assert not parts.keys() & kept
    for tile in GRID:
        if tile.key not in parts and tile.key not in kept:
            continue
        part = parts.get(tile.key)
        assert part is None or (part.union(tile.box) == tile.box and part != tile.box)
        names = [marks.tiles.get(tile.key, "").split() for marks in (before, now)]
        for y in range(tile.box.y0, tile.box.y1, 5):
            for x in range(tile.box.x0, tile.box.x1, 5):
                pixel = Box(y, x, y + 1, x + 1)
                if part is not None and part.intersect(pixel):
                    continue
                was = [name for name in names[0] if old[name].intersect(pixel)]
                assert was == [name for name in names[1] if new[name].intersect(pixel)]


def test_nearly_all_of_a_tile_is_all_of_it() -> None:
    less = _marks({"a": Box(0, 0, 40, 40)}, ["a"])
    small, large = (_marks({"a": Box(0, 0, 40, 40), "b": Box(0, 0, n, n)}, ["a", "b"]) for n in (20, 30))
    first = next(iter(GRID)).key
    assert changed_parts(small, less, GRID) == {first: Box(0, 0, 20, 20)}
    assert changed_parts(large, less, GRID) == {}
    assert unchanged(large, less) == set(less.tiles) - {first} != set()


def test_another_canvas_keeps_nothing() -> None:
    marks = _marks({"a": Box(0, 0, 40, 40), "b": Box(0, 0, 20, 20)}, ["a", "b"])
    other = TileMarks("another", dict.fromkeys(marks.tiles, "a"), marks.reach)
    assert not changed_parts(marks, other, GRID) and not unchanged(marks, other)
