"""Matching of star lists, linear fits and the alignment built on them; numbers of tweakwcs 0.9.3 where named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.sky.alignment import (
    FAILED,
    REFERENCE,
    SUCCESS,
    Linear,
    Member,
    Order,
    Place,
    ReferenceStars,
    Refused,
    align_absolute,
    align_relative,
    corner_moves,
    offset_on_sky,
)
from streamimg3.sky.fitting import FitOptions, NoFit, fit_linear
from streamimg3.sky.hulls import Footprints
from streamimg3.sky.matching import Search, SourceConfusion, distinct, initial_offset, match
from streamimg3.sky.tangent import TangentPlane, unit_vectors

CLOSE = 1e-11  # the same sums in another order


def lists() -> tuple[np.ndarray, np.ndarray]:
    """Two lists of 300 stars; 220 are common, scaled, shifted and blurred, five of them far off."""
    rng = np.random.default_rng(7)
    reference = rng.uniform(-60, 60, (300, 2))
    image = reference[:220] * 1.0003 + [0.83, -1.21] + rng.normal(0, 0.02, (220, 2))
    image = np.vstack([image, rng.uniform(-60, 60, (80, 2))])
    image[:5] += 0.4
    return reference, image


def test_matches_are_those_of_the_reference_software() -> None:
    r, i = match(*lists(), 0.031, Search())
    order = np.arange(len(r))
    assert (len(r), int((r * order).sum()), int((i * order).sum())) == (216, 2564507, 2566712)


@pytest.mark.parametrize(
    ("scale", "searchrad", "wanted"),
    [
        (0.031, 2.0, (0.854793925113738, -1.1944762990005002)),  # centre of mass of a sparse box
        (0.11, 2.0, (0.9265116279069767, -1.11846511627907)),  # a radius that is not a whole number of bins
        (0.5, 1.25, (1.19672131147541, -0.7069672131147542)),  # paraboloid
    ],
)
def test_initial_offsets_are_those_of_the_reference_software(scale: float, searchrad: float, wanted: tuple) -> None:
    np.testing.assert_allclose(initial_offset(*lists(), scale, searchrad), wanted, rtol=0, atol=CLOSE)


def test_an_initial_offset_needs_pairs() -> None:
    star = np.zeros((1, 2))
    assert initial_offset(star, star + 10.0, 0.1, 2.0).tolist() == [0.0, 0.0]
    np.testing.assert_allclose(initial_offset(star, star + [0.52, -0.31], 0.1, 2.0), [0.5, -0.3], atol=1e-12)
    np.testing.assert_allclose(initial_offset(star, star + [1.98, 0.0], 0.1, 2.0), [2.0, 0.0], atol=1e-12)  # at the rim


def test_crowded_lists_do_not_need_memory_for_all_pairs() -> None:
    """Blocks of stars give the same histogram as all at once."""
    rng = np.random.default_rng(1)
    reference = rng.uniform(0, 100, (5000, 2))
    image = reference + [0.31, 0.12]
    wanted = initial_offset(reference, image, 0.1, 1.0)
    np.testing.assert_allclose(wanted, [0.31, 0.12], rtol=0, atol=0.05)
    shuffled = rng.permutation(5000)
    assert (initial_offset(reference, image[shuffled], 0.1, 1.0) == wanted).all()


def test_stars_too_near_to_an_earlier_one_do_not_take_part() -> None:
    line = np.array([[1.0, 0.0], [0.5, 0.0], [0.0, 0.0]])
    assert distinct(line, 0.6).tolist() == [2, 0]  # in order of x; the middle one goes, the last is far from the first
    corner = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert distinct(corner, 1.0).tolist() == [0]  # as far as the separation is too near


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=40), st.integers(1, 5))
def test_distinct_stars_are_those_of_a_plain_scan(points: list[tuple[int, int]], separation: int) -> None:
    """On a grid every distance that equals the separation counts."""
    positions = np.array(points, np.float64)
    kept: list[int] = []
    for i in np.lexsort((positions[:, 0], positions[:, 1])):
        if all(((positions[i] - positions[k]) ** 2).sum() > separation**2 for k in kept):
            kept.append(int(i))
    assert distinct(positions, float(separation)).tolist() == kept


def test_the_nearest_star_and_of_two_the_later() -> None:
    search = Search(use2dhist=False, separation=0.1, tolerance=0.5)
    reference = np.array([[0.0, 0.0]])
    assert match(reference, np.array([[-0.5, 0.0], [0.5, 0.0]]), 1.0, search)[1].tolist() == [1]
    assert match(reference, np.array([[-0.4, 0.0], [0.5, 0.0]]), 1.0, search)[1].tolist() == [0]
    assert match(reference, np.array([[0.6, 0.0]]), 1.0, search)[1].tolist() == []


def test_one_star_may_match_twice_but_not_all() -> None:
    search = Search(use2dhist=False, separation=0.1, tolerance=1.0)
    reference = np.array([[0.0, -0.5], [0.0, 0.5]])
    r, i = match(reference, np.array([[0.0, 0.0], [50.0, 50.0]]), 1.0, search)
    assert r.tolist() == [0, 1] and i.tolist() == [0, 0]
    with pytest.raises(SourceConfusion, match="2 matches for 1 sources"):
        match(reference, np.zeros((1, 2)), 1.0, search)


def test_a_given_offset_is_taken_off() -> None:
    search = Search(use2dhist=False, xoffset=10.0, yoffset=20.0)
    assert match(np.zeros((1, 2)), np.array([[10.0, 20.0]]), 1.0, search)[0].tolist() == [0]
    assert search.largest_correction == pytest.approx(2 * 20.7)


FITS = {
    "shift": ([1.0, 0.0, 0.0, 1.0], [-0.8309834996645666, 1.2107366919405027], 0.031945549972516286),
    "rshift": (
        [0.9999999996343995, 2.7040729767614443e-05, -2.7040729767614443e-05, 0.9999999996343995],
        [-0.8310041310278204, 1.2107550746641034],
        0.031917485863825854,
    ),
    "rscale": (
        [0.9996672622151751, 2.7031732304974336e-05, -2.7031732304974336e-05, 0.9996672622151751],
        [-0.8307779273388729, 1.2110089414763323],
        0.027336096502463963,
    ),
    "general": (
        [0.999692563270815, 1.6233801691428458e-05, -4.026540349330577e-05, 0.9996390397833222],
        [-0.8307868885076171, 1.2110394710327854],
        0.02729763688621015,
    ),
}


@pytest.mark.parametrize("geometry", FITS)
def test_fits_are_those_of_the_reference_software(geometry: str) -> None:
    reference, image = lists()
    r, i = match(reference, image, 0.031, Search())
    fit = fit_linear(reference[r], image[i], FitOptions(geometry, sigma=2.0))
    matrix, shift, rmse = FITS[geometry]
    np.testing.assert_allclose(fit.matrix.ravel(), matrix, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(fit.shift, shift, rtol=0, atol=CLOSE)
    assert fit.rmse == pytest.approx(rmse, rel=1e-10) and int(fit.used.sum()) == 210


def test_a_weighted_fit_and_a_reflection() -> None:
    reference, image = lists()
    rng = np.random.default_rng(7)
    rng.uniform(size=600), rng.normal(size=440), rng.uniform(size=160)
    r, i = match(reference, image, 0.031, Search())
    mirrored = fit_linear(reference[r], image[i] * [1, -1], FitOptions("rscale", nclip=0))
    wanted = [0.99956471228963, 1.999947456199574e-05, 1.999947456199574e-05, -0.99956471228963]
    np.testing.assert_allclose(mirrored.matrix.ravel(), wanted, rtol=0, atol=CLOSE)
    assert mirrored.rmse == pytest.approx(0.09423101707515949, rel=1e-10)
    heavy = np.ones(len(r))
    heavy[:30] = 0.0
    some = fit_linear(reference[r], image[i], FitOptions("general", nclip=0), heavy)
    rest = fit_linear(reference[r][30:], image[i][30:], FitOptions("general", nclip=0))
    np.testing.assert_allclose(some.matrix, rest.matrix, rtol=0, atol=CLOSE)
    assert not some.used[:30].any()


@settings(max_examples=40, deadline=None)
@given(
    geometry=st.sampled_from(sorted(FITS)),
    angle=st.floats(-3.1, 3.1),
    scale=st.floats(0.5, 2.0),
    skew=st.floats(-0.3, 0.3),
    shift=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)),
    seed=st.integers(0, 10**6),
)
def test_an_exact_map_is_found_again(geometry, angle, scale, skew, shift, seed) -> None:  # type: ignore[no-untyped-def]
    c, s = np.cos(angle), np.sin(angle)
    matrix = {
        "shift": np.eye(2),
        "rshift": np.array([[c, s], [-s, c]]),
        "rscale": scale * np.array([[c, s], [-s, c]]),
        "general": scale * np.array([[c, s + skew], [-s, c]]),
    }[geometry]
    image = np.random.default_rng(seed).uniform(-100, 100, (12, 2)) + 500.0
    fit = fit_linear(image @ matrix.T + shift, image, FitOptions(geometry))
    np.testing.assert_allclose(fit.matrix, matrix, rtol=0, atol=1e-12)  # 1e3 in double over a field of 100
    np.testing.assert_allclose(fit.shift, shift, rtol=0, atol=1e-9)


def test_clipping_judges_the_stars_of_the_fit_before() -> None:
    """A star that was clipped comes back when the next iteration judges those that were used."""
    image = np.random.default_rng(0).uniform(-10, 10, (20, 2))
    reference = image.copy()
    reference[0] += 50.0
    reference[1] += 2.0
    options = FitOptions("shift", sigma=3.0)
    assert fit_linear(reference, image, replace(options, nclip=1)).used.tolist() == [False] + [True] * 19
    assert fit_linear(reference, image, replace(options, nclip=2)).used.tolist() == [True, False] + [True] * 18
    assert fit_linear(reference, image, replace(options, nclip=0)).used.all()


def test_stars_that_determine_no_map() -> None:
    one, line = np.zeros((1, 2)), np.arange(10.0)[:, None] * [1.0, 2.0]
    with pytest.raises(NoFit, match="1 stars do not determine"):
        fit_linear(one, one, FitOptions("rshift"))
    with pytest.raises(NoFit, match="on one line"):
        fit_linear(line, line, FitOptions("general"))
    with pytest.raises(NoFit, match="all in one place"):
        fit_linear(np.ones((3, 2)), np.ones((3, 2)), FitOptions("rscale"))


# ---------------------------------------------------------------- whole alignments
AT = (150.0, 2.0)
OFF = [Linear(), Linear((1.0, 2e-5, -2e-5, 1.0), (0.4, -0.3)), Linear((1.0, -4e-5, 4e-5, 1.0), (-0.2, 0.7))]
FIT, SEARCH = FitOptions(minobj=10), Search()


def silent(group: str, place: Place) -> None:
    """Tell nobody."""


def sky(count: int = 60, half: float = 30.0, east: float = 0.0, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """True positions of stars in a square of 2 x ``half`` arcsec."""
    rng = np.random.default_rng(seed)
    y, x = rng.uniform(-half, half, (2, count))
    return TangentPlane.at(*AT).deproject(y, x + east)


def member(
    group: str, stars: tuple[np.ndarray, np.ndarray], wrong: Linear, away: tuple[float, float] = (0.0, 0.0)
) -> Member:
    """An exposure whose WCS puts stars where the inverse of ``wrong`` takes them."""
    plane = TangentPlane.at(AT[0] + away[0], AT[1] + away[1])
    matrix, shift = wrong.arrays
    back = np.linalg.inv(matrix)
    ra, dec = Linear.of(back, -back @ shift).apply(plane, *stars)
    corners = np.array(plane.deproject(np.array([-30.0, 30, 30, -30]), np.array([-30.0, -30, 30, 30])))
    return Member(group, plane, 0.03, ra, dec, None, corners)


def assert_same(found: Linear, wanted: Linear) -> None:
    """A rotation by 4e-5 has a cosine that is 1 but for 8e-10; positions in degrees hold 2e-10 arcsec."""
    np.testing.assert_allclose(found.matrix, wanted.matrix, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.shift, wanted.shift, rtol=0, atol=2e-8)


def test_groups_are_aligned_to_the_first() -> None:
    told: list[tuple[str, str]] = []
    members = [member(f"g{i}", sky(), off) for i, off in enumerate(OFF)]
    places = align_relative(members, SEARCH, FIT, Order(), lambda group, place: told.append((group, place.status)))
    assert [p.status for p in places] == [REFERENCE, SUCCESS, SUCCESS]
    assert told == [("g0", REFERENCE), ("g1", SUCCESS), ("g2", SUCCESS)]
    for place, off in zip(places[1:], OFF[1:], strict=True):
        assert_same(place.linear, off)
        assert place.matched == 59 and place.rms == pytest.approx(0.0, abs=1e-6)


def test_detectors_of_a_group_move_together() -> None:
    """The fit is made in the first one's plane and carried over to the second one's, 1000 arcsec away."""
    away = (0.2, -0.25)
    second = member("g1", sky(), OFF[1], away)
    first = replace(second, plane=TangentPlane.at(*AT), ra=second.ra[:0], dec=second.dec[:0])
    places = align_relative([member("g0", sky(), Linear()), first, second], SEARCH, FIT, Order(), silent)
    assert [p.status for p in places] == [REFERENCE, SUCCESS, SUCCESS]
    corrected = places[2].linear.apply(second.plane, second.ra, second.dec)
    # The map between the planes is linear at the first one's point of contact: over 1000 arcsec it bends by
    # shift x (angle between the planes)^2 = 0.5 arcsec x 2e-5.
    assert np.abs(np.subtract(corrected, sky())).max() * 3600 < 2e-5


def test_a_group_without_enough_matches_says_so_and_stays() -> None:
    few = member("g1", tuple(v[:5] for v in sky()), OFF[1])
    none = replace(few, group="g2", ra=few.ra[:0], dec=few.dec[:0])
    members = [member("g0", sky(), Linear()), few, none, member("g3", sky(), OFF[2])]
    places = align_relative(members, SEARCH, FIT, Order(), silent)
    assert [p.status for p in places] == [REFERENCE, FAILED, FAILED, SUCCESS]
    assert places[1] == Place(FAILED, "not enough matches: 5, 10 are required", Linear(), 5)
    assert places[2].reason == "empty source catalog"


def test_the_first_group_with_stars_is_the_reference() -> None:
    empty = replace(member("g0", sky(), Linear()), ra=np.zeros(0), dec=np.zeros(0))
    members = [empty, member("g1", sky(), Linear()), member("g2", sky(), OFF[1])]
    assert [p.status for p in align_relative(members, SEARCH, FIT, Order(), silent)] == [FAILED, REFERENCE, SUCCESS]
    with pytest.raises(Refused, match="fewer than two exposures"):
        align_relative(members[:2], SEARCH, FIT, Order(), silent)


def test_a_separation_that_confuses_sources_is_refused() -> None:
    members = [member(f"g{i}", sky(), off) for i, off in enumerate(OFF)]
    with pytest.raises(Refused, match=r"separation = 0.98 must be larger than sqrt\(2\) x tolerance = 0.9899"):
        align_relative(members, replace(SEARCH, separation=0.98), FIT, Order(), silent)


def test_a_large_correction_is_refused_as_a_whole() -> None:
    """A shift of 4.5 arcsec is found only with a larger radius; then it passes up to twice that radius and tolerance."""
    members = [member("g0", sky(), Linear()), member("g1", sky(), Linear(shift=(4.5, 0.0)))]
    wide = replace(SEARCH, searchrad=5.0)
    assert align_relative(members, wide, FIT, Order(), silent)[1].status == SUCCESS
    given_offset = replace(SEARCH, use2dhist=False, xoffset=-4.5)
    turned = [members[0], replace(members[1], corners=np.array(sky(4, 1.2e5, 0.0)))]  # corners far away move further
    twisted = [
        turned[0],
        replace(member("g1", sky(), Linear((1.0, 1e-3, -1e-3, 1.0), (4.5, 0.0))), corners=turned[1].corners),
    ]
    with pytest.raises(Refused, match="a correction moves a corner by"):
        align_relative(twisted, given_offset, FIT, Order(), silent)


def islands() -> list[Member]:
    """Exposures in a row: each shares stars with the next only; the last is first in line."""
    parts = [sky(200, 30.0, 45.0 * i, seed=9) for i in range(3)]
    everything = tuple(np.concatenate([p[k] for p in parts]) for k in (0, 1))
    plane = TangentPlane.at(*AT)
    members = []
    for i in (0, 2, 1):
        _, x = plane.project(*everything)
        near = np.abs(x - 45.0 * i) < 30.0
        members.append(member(f"g{i}", (everything[0][near], everything[1][near]), OFF[i]))
    return members


def test_a_reference_that_grows_reaches_where_the_first_does_not() -> None:
    """g0 and g2 share no star: g1 goes first, as it overlaps with both, and the stars it brings let g2 match."""
    plain = align_relative(islands(), SEARCH, FIT, Order(), silent)
    assert [p.status for p in plain] == [REFERENCE, FAILED, SUCCESS]
    order: list[str] = []
    grown = align_relative(
        islands(), SEARCH, FIT, Order(expand_refcat=True), lambda group, place: order.append(f"{group} {place.status}")
    )
    assert order[0] == "g1 REFERENCE" and sorted(order[1:]) == ["g0 SUCCESS", "g2 SUCCESS"]
    assert [p.status for p in grown] == [SUCCESS, SUCCESS, REFERENCE]


def test_in_the_users_order_the_reference_may_grow_too() -> None:
    order: list[str] = []
    rule = Order(enforce_user_order=True, expand_refcat=True)
    members = [islands()[i] for i in (0, 2, 1)]
    align_relative(members, SEARCH, FIT, rule, lambda group, place: order.append(f"{group} {place.status}"))
    assert order == ["g0 REFERENCE", "g1 SUCCESS", "g2 SUCCESS"]


def test_a_failed_group_does_not_join_the_reference() -> None:
    """Its stars overlap the reference and are in the wrong place: who came to match them would be wrong as well."""
    lost = member("g1", sky(seed=3), Linear(shift=(8.0, 0.0)))  # beyond the search radius
    twin = replace(lost, group="g2")
    for rule in (Order(expand_refcat=True), Order(enforce_user_order=True, expand_refcat=True)):
        places = align_relative([member("g0", sky(), Linear()), lost, twin], SEARCH, FIT, rule, silent)
        assert sorted(p.status for p in places).count(FAILED) in (1, 2)
        if rule.enforce_user_order:
            assert [p.status for p in places] == [REFERENCE, FAILED, FAILED]


def test_outlines_overlap_where_stars_do() -> None:
    shares = Footprints([[unit_vectors(m.ra, m.dec)] for m in islands()])
    first, _ = shares.best_pair()
    assert first == 2  # the middle one overlaps more with all others
    shares.start(first)
    areas = shares.overlaps([0, 1])
    assert (areas > 0).all()
    shares.start(0)
    assert shares.overlaps([1])[0] == 0.0
    shares.grow(unit_vectors(islands()[2].ra, islands()[2].dec))
    assert shares.overlaps([1])[0] > 0.0
    single = Footprints([[unit_vectors(*AT)[:, None]], [unit_vectors(np.array([150.0, 150.01]), np.array([2.0, 2.0]))]])
    assert single.best_pair() == (0, 1)


def test_all_exposures_follow_a_reference_catalogue_together() -> None:
    members = [member(f"g{i}", sky(), off) for i, off in enumerate(OFF)]
    relative = [p.linear for p in align_relative(members, SEARCH, FIT, Order(), silent)]
    shifted = TangentPlane.at(*AT).deproject(*(v + 1.0 for v in TangentPlane.at(*AT).project(*sky())))
    places = align_absolute(members, relative, ReferenceStars.of(*shifted), replace(SEARCH, searchrad=6.0), FIT)
    assert {p.status for p in places} == {SUCCESS} and {p.matched for p in places} == {59}  # two stars are neighbours
    for place, exposure in zip(places, members, strict=True):
        found = place.linear.apply(exposure.plane, exposure.ra, exposure.dec)
        assert np.abs(np.subtract(found, shifted)).max() * 3600 < 1e-6  # the simulated offsets are no pure rotations
    north, east = offset_on_sky(members[0], places[0].linear)
    assert (north, east) == (pytest.approx(1.0, abs=1e-6), pytest.approx(1.0, abs=1e-6))
    assert corner_moves(members[0], places[0].linear) == pytest.approx(np.sqrt(2.0), abs=1e-6)


def test_a_reference_catalogue_that_cannot_serve() -> None:
    members = [member("g0", sky(), Linear())]
    few = ReferenceStars.of(*(v[:9] for v in sky()))
    with pytest.raises(Refused, match="has 9 sources, fewer than abs_minobj = 10"):
        align_absolute(members, [Linear()], few, SEARCH, FIT)
    elsewhere = ReferenceStars.of(*(v + 1.0 for v in sky()))
    assert (
        align_absolute(members, [Linear()], elsewhere, SEARCH, FIT)[0].reason
        == "not enough matches: 0, 10 are required"
    )
    empty = [replace(members[0], ra=np.zeros(0), dec=np.zeros(0))]
    with pytest.raises(Refused, match="no exposure has sources"):
        align_absolute(empty, [Linear()], elsewhere, SEARCH, FIT)
    with pytest.raises(Refused, match=r"abs_separation = 0\.5 must be larger"):
        align_absolute(members, [Linear()], elsewhere, replace(SEARCH, separation=0.5), FIT)


def test_weights_of_both_lists_add_as_variances() -> None:
    joined = ReferenceStars.of(*sky(5), np.full(5, 2.0)).joined(ReferenceStars.of(*sky(3)))
    assert joined.weight is not None and joined.weight.tolist() == [2.0] * 5 + [1.0] * 3
    members = [replace(member(f"g{i}", sky(), off), weight=np.linspace(0.0, 1.0, 60)) for i, off in enumerate(OFF)]
    places = align_relative(members, SEARCH, FIT, Order(), silent)
    assert [p.status for p in places] == [REFERENCE, SUCCESS, SUCCESS]
    assert_same(places[1].linear, OFF[1])
