"""Spectra of a time series out of the store, row by row: ``<product>_x1dints.fits`` (spec others §2.1, §2.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.formats.asdf_tree import asdf_unit, put, reference
from streamimg3.formats.blend import Column, Metadata, blend, exposure_metadata, jwst_keywords, jwst_table, packed
from streamimg3.formats.cal_file import times_table
from streamimg3.formats.fits_stream import Rows, Unit, Whole, primary, table, write_units
from streamimg3.formats.i2d_header import arranged, make_card, own_card, placed, present
from streamimg3.formats.publish import open_product
from streamimg3.formats.step_facts import Changes
from streamimg3.store import Exposure, Observation
from streamimg3.store.layout import TIMES
from streamimg3.store.rows import read_rows
from streamimg3.store.series_documents import SpectrumSegment, SpectrumSeries

# Vector columns in the reference's order, with the store's name of those that are in it
_FLUX = {
    "FLUX": "flux", "FLUX_ERROR": "flux_error", "FLUX_VAR_POISSON": "flux_var_poisson",
    "FLUX_VAR_RNOISE": "flux_var_rnoise", "FLUX_VAR_FLAT": "flux_var_flat",
}  # fmt: skip
_BRIGHTNESS = {
    "SURF_BRIGHT": "flux", "SB_ERROR": "flux_error", "SB_VAR_POISSON": "flux_var_poisson",
    "SB_VAR_RNOISE": "flux_var_rnoise", "SB_VAR_FLAT": "flux_var_flat",
}  # fmt: skip
_BACKGROUND = {
    "BACKGROUND": "background", "BKGD_ERROR": "background_error", "BKGD_VAR_POISSON": "background_var_poisson",
    "BKGD_VAR_RNOISE": "background_var_rnoise", "BKGD_VAR_FLAT": "background_var_flat",
}  # fmt: skip
_VECTORS = ("WAVELENGTH", *_FLUX, *_BRIGHTNESS, "DQ", *_BACKGROUND, "NPIXELS")
_TIMES = dict(zip(("MJD-BEG", "MJD-AVG", "MJD-END", "TDB-BEG", "TDB-MID", "TDB-END"), TIMES, strict=True))
_SQUARES = {"Jy": "Jy^2", "MJy": "MJy^2", "DN/s": "DN^2 / s^2", "MJy/sr": "MJy^2 / sr^2"}
_UNSIGNED = 2**31
_BAND_BYTES = 4 * 2**20
_MODEL = "TSOMultiSpecModel"


@dataclass(frozen=True)
class Extension:
    """One EXTRACT1D table: a segment of the spectra of one order."""

    spectrum: SpectrumSeries
    segment: SpectrumSegment


@dataclass(frozen=True)
class SpectraFile:
    """What an x1dints file is made of.

    Parameters
    ----------
    obs : Observation
        The store.
    name : str
        FILENAME.
    extensions : tuple of Extension
        In the order of the file.
    changes : mapping
        Keywords of PRIMARY by exposure that the steps decide.
    made : str
        UTC time of the spectra.
    """

    obs: Observation
    name: str
    extensions: tuple[Extension, ...]
    changes: Mapping[int, Changes]
    made: str

    @property
    def exposures(self) -> list[Exposure]:
        """The segments, each once."""
        wanted = dict.fromkeys(e.segment.index for e in self.extensions)
        everything = self.obs.exposures(aligned=False)
        return [everything[i] for i in wanted]


def in_file_order(spectra: Sequence[SpectrumSeries]) -> tuple[Extension, ...]:
    """Return the tables as the reference has them: segment after segment, of each all orders."""
    found = [Extension(one, segment) for one in spectra for segment in one.segments]
    return tuple(sorted(found, key=lambda e: (e.segment.index, e.spectrum.order)))


def row_bytes(points: int) -> int:
    """Return the bytes of a row with so many wavelengths."""
    return int(_kind(points).itemsize)


def write_spectra(file: SpectraFile, url: str, options: Mapping[str, str]) -> str:
    """Write spectra as a FITS file, a band of rows at a time; returns its URL.

    Raises
    ------
    StoreError
        If spectra cannot be read or the product cannot be written; nothing is left under its name.
    """
    with open_product(url, options) as sink:
        write_units(sink, _units(file))
    return url


def _units(file: SpectraFile) -> list[Unit]:
    rows = [_metadata(e, file.changes[e.record.index]) for e in file.exposures]
    merged = {p: v for p, v in blend(rows).items() if _of_primary(p)} | {"meta.filename": file.name}
    cards = arranged(merged, *(file.exposures[0].cards(h) for h in ("primary", "sci")))["PRIMARY"]
    units: list[Unit] = [primary([*cards, own_card()])]
    times = _int_times(file)
    units += [times] if times is not None else []
    spectra = [_table(file, extension, number) for number, extension in enumerate(file.extensions, 1)]
    columns = [c for c in jwst_table(rows) if c.name in {k.name for k in jwst_keywords() if k.hdu == "PRIMARY"}]
    units += [*spectra, _hdrtab(columns, len(rows))]
    return [*units, asdf_unit(_tree(file, merged, times), units, columns)]


def _of_primary(path: str) -> bool:
    return path in {k.path for k in jwst_keywords() if k.hdu == "PRIMARY"}


def _metadata(exposure: Exposure, changes: Changes) -> Metadata:
    """Return what PRIMARY says of a segment, as the steps left it."""
    found = {p: v for p, v in exposure_metadata(exposure).items() if _of_primary(p)}
    return present({**found, **placed("PRIMARY", {**changes, "DATAMODL": _MODEL})})


def _hdrtab(columns: Sequence[Column], rows: int) -> Whole:
    made = table("HDRTAB", [(c.name, c.form) for c in columns], packed(columns), rows)
    return Whole(fits.Header([*made.header.cards, fits.Card("EXTVER", 1, "extension value")]), made.data)


def _int_times(file: SpectraFile) -> Whole | None:
    """Return the times of all integrations; those that no segment has are zeros, as in the reference."""
    numbers, times = [], []
    for exposure in file.exposures:
        numbers.append(np.asarray(exposure.column("integration_number"), np.int32))
        times.append(np.stack([np.asarray(exposure.column(n), np.float64) for n in TIMES], axis=1))
    given = exposure_metadata(file.exposures[0]).get("meta.exposure.nints")
    number, known = np.concatenate(numbers), np.concatenate(times)
    count = max(int(given) if isinstance(given, int) else 0, int(number.max()))
    all_numbers, all_times = np.zeros(count, np.int32), np.zeros((count, len(TIMES)))
    all_numbers[number - 1], all_times[number - 1] = number, known
    return times_table(all_numbers, all_times) if not np.isnan(known).all() else None


# ---------------------------------------------------------------- tables of spectra
def _kind(points: int) -> np.dtype[np.void]:
    vectors = [(name, ">i4" if name == "DQ" else ">f8", (points,)) for name in _VECTORS]
    tail = [("N_ALONGDISP", ">i4"), ("SEGMENT", ">i4"), *((name, ">f8") for name in _TIMES)]
    return np.dtype([("INT_NUM", ">i4"), *vectors, *tail])


def _unit(name: str, spectrum: SpectrumSeries) -> str | None:
    if name == "WAVELENGTH":
        return "um"
    if name in _TIMES:
        return "d"
    if name not in (*_FLUX, *_BRIGHTNESS, *_BACKGROUND):
        return None
    unit = spectrum.flux_unit if name in _FLUX else spectrum.brightness_unit
    return _SQUARES.get(unit, f"({unit})^2") if "_VAR_" in name else unit


def _table(file: SpectraFile, extension: Extension, number: int) -> Rows:
    spectrum, segment = extension.spectrum, extension.segment
    kind = _kind(spectrum.points)
    cards = [
        fits.Card("XTENSION", "BINTABLE", "binary table extension"),
        fits.Card("BITPIX", 8, "array data type"),
        fits.Card("NAXIS", 2, "number of array dimensions"),
        fits.Card("NAXIS1", kind.itemsize, "length of dimension 1"),
        fits.Card("NAXIS2", segment.last - segment.first, "length of dimension 2"),
        fits.Card("PCOUNT", 0, "number of group parameters"),
        fits.Card("GCOUNT", 1, "number of groups"),
        fits.Card("TFIELDS", len(kind.names or ()), "number of table fields"),
    ]
    for place, name in enumerate(kind.names or (), 1):
        cards += _column_cards(place, name, spectrum)
    cards += [fits.Card("EXTNAME", "EXTRACT1D", "extension name"), fits.Card("EXTVER", number, "extension value")]
    cards += _facts(file, extension, number)
    read = partial(_rows, file.obs, extension, kind)
    band = max(1, _BAND_BYTES // kind.itemsize)
    return Rows(fits.Header(cards), segment.last - segment.first, kind.itemsize, read, band)


def _column_cards(place: int, name: str, spectrum: SpectrumSeries) -> list[fits.Card]:
    vector = name in _VECTORS
    whole = name in ("DQ", "INT_NUM", "N_ALONGDISP", "SEGMENT")
    form = f"{spectrum.points if vector else ''}{'J' if whole else 'D'}"
    found = [fits.Card(f"TTYPE{place}", name), fits.Card(f"TFORM{place}", form)]
    unit = _unit(name, spectrum)
    found += [fits.Card(f"TUNIT{place}", unit)] if unit else []
    found += [fits.Card(f"TZERO{place}", _UNSIGNED)] if name in ("DQ", "N_ALONGDISP") else []
    return found + ([fits.Card(f"TDIM{place}", f"({spectrum.points})")] if vector else [])


def _facts(file: SpectraFile, extension: Extension, number: int) -> list[fits.Card]:
    """Cards that tell where the spectrum was."""
    spectrum, segment = extension.spectrum, extension.segment
    y0, x0, y1, x1 = (limit + 1 for limit in segment.limits)
    if spectrum.dispaxis == 1:
        x0, x1 = int(x0), int(x1)
    else:
        y0, y1 = int(y0), int(y1)
    cards = [fits.Card("SLTNAME", spectrum.slit, "Slit name")] if spectrum.slit and spectrum.slit != "ANY" else []
    cards += [
        fits.Card("EXTRXSTR", x0, "first column of the box, from 1"),
        fits.Card("EXTRXSTP", x1, "last column of the box, from 1"),
        fits.Card("EXTRYSTR", y0, "first row of the box, from 1"),
        fits.Card("EXTRYSTP", y1, "last row of the box, from 1"),
    ]
    if segment.position is not None:
        cards += [
            fits.Card("SLIT_RA", segment.position[0], "[deg] right ascension at the middle of the box"),
            fits.Card("SLIT_DEC", segment.position[1], "[deg] declination at the middle of the box"),
        ]
    cards += [
        fits.Card("SPORDER", spectrum.order, "spectral order"),
        fits.Card("DISPAXIS", spectrum.dispaxis, "direction of dispersion"),
    ]
    cards += [fits.Card("DETECTOR", spectrum.detector, "detector")] if spectrum.detector else []
    region = file.exposures[0].record.s_region if number == 1 else ""
    return cards + ([make_card("S_REGION", region, {})] if region else [])


def _rows(obs: Observation, extension: Extension, kind: np.dtype[np.void], first: int, last: int) -> NDArray[np.void]:
    """Return some rows of a segment as FITS stores them."""
    spectrum, segment = extension.spectrum, extension.segment
    span = segment.first + first, segment.first + last
    rows = np.zeros(last - first, kind)
    values = {name: read_rows(obs, f"{spectrum.path}/{name}", *span) for name in (*_FLUX.values(), "npixels")}
    for title, name in _FLUX.items():
        rows[title] = values[name]
    pixels = values["npixels"]
    share = segment.brightness / np.where(pixels > 0.0, pixels, 1.0)
    for title, name in _BRIGHTNESS.items() if segment.brightness else ():
        rows[title] = values[name] * (share * share if "_VAR_" in title else share)
    for title, name in _BACKGROUND.items():
        rows[title] = read_rows(obs, f"{spectrum.path}/{name}", *span)
    rows["WAVELENGTH"] = read_rows(obs, f"{spectrum.path}/wavelength")
    flags = np.isnan(values["flux"]).astype(np.uint32)
    rows["DQ"] = (flags ^ np.uint32(_UNSIGNED)).view(np.int32)
    rows["NPIXELS"] = pixels
    rows["INT_NUM"] = obs.column(f"{spectrum.path}/integration_number", *span)
    rows["N_ALONGDISP"] = np.array(spectrum.points ^ _UNSIGNED, np.uint32).view(np.int32)
    rows["SEGMENT"] = 0 if segment.segment is None else segment.segment
    for title, name in _TIMES.items():
        rows[title] = obs.column(f"{spectrum.path}/{name}", *span)
    return rows


# ---------------------------------------------------------------- metadata tree
def _tree(file: SpectraFile, merged: Metadata, times: Whole | None) -> dict[str, object]:
    """Return the metadata of the file, with references to its tables."""
    tree: dict[str, object] = {}
    for path, value in merged.items():
        put(tree, path, value)
    if times is not None:
        names = list(times.header["TTYPE*"].values())
        kinds = ["int32", *["float64"] * (len(names) - 1)]
        described = [{"name": n, "byteorder": "big", "datatype": k} for n, k in zip(names, kinds, strict=True)]
        tree["int_times"] = reference("INT_TIMES", described, (int(times.header["NAXIS2"]),))
    tree["spec"] = [_spectrum_tree(file, e, n) for n, e in enumerate(file.extensions, 1)]
    return tree


def _spectrum_tree(file: SpectraFile, extension: Extension, number: int) -> dict[str, object]:
    spectrum, segment = extension.spectrum, extension.segment
    described = []
    kind = _kind(spectrum.points)
    for name in kind.names or ():
        whole = "uint32" if name in ("DQ", "N_ALONGDISP") else "int32"
        datatype = whole if name in ("DQ", "INT_NUM", "N_ALONGDISP", "SEGMENT") else "float64"
        shape = {"shape": [spectrum.points]} if name in _VECTORS else {}
        described.append({"byteorder": "big", "datatype": datatype, "name": name, **shape})
    names = {
        "SLTNAME": "name", "EXTRXSTR": "extraction_xstart", "EXTRXSTP": "extraction_xstop", "EXTRYSTR": "extraction_ystart",
        "EXTRYSTP": "extraction_ystop", "SLIT_RA": "slit_ra", "SLIT_DEC": "slit_dec", "SPORDER": "spectral_order",
        "DISPAXIS": "dispersion_direction", "DETECTOR": "detector", "S_REGION": "s_region",
    }  # fmt: skip
    found: dict[str, object] = {names[c.keyword]: c.value for c in _facts(file, extension, number)}
    found["meta"] = {"date": file.made, "model_type": "TSOSpecModel"}
    found["time_scale"] = "UTC"
    found["spec_table"] = reference("EXTRACT1D", described, (segment.last - segment.first,), number)
    return found
