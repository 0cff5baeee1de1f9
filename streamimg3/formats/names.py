"""Names of files and URLs: base names, product suffixes, companions."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from urllib.parse import parse_qs, unquote, urlsplit

_FITS_NAME = re.compile(r"\.(fits|fit|fts)(\.gz|\.fz)?$", re.IGNORECASE)
_ANY_EXTENSION = re.compile(r"(\.(fits|fit|fts|asdf|json|ya?ml))?(\.gz|\.fz)?$", re.IGNORECASE)

# Product kinds and step names that end the name of a JWST file.
_SUFFIX = re.compile(
    r"[_-]("
    r"uncal|ramp|rate|rateints|cal|calints|crf|crfints|i2d|s2d|s3d|x1d|x1dints|c1d|bsub|bsubints|mbsub"
    r"|psfstack|psfalign|psfsub|phot|whtlt|cat|median|blot|dark|snr|wfscmb|ami|aminorm|ami-oi|aminorm-oi"
    r"|adaptive_trace_model|align_refs|ami_analyze|ami_normalize|assign_mtwcs|assign_wcs|bkg_subtract"
    r"|clean_flicker_noise|combine_1d|cube_build|dark_current|dq_init|emicorr|extract_1d|extract_2d|firstframe"
    r"|flat_field|fringe|gain_scale|group_scale|guider_cds|hlsp|imprint|ipc|jump|klip|lastframe|linearity"
    r"|master_background|outlier_detection|pathloss|persistence|photom|picture_frame|ramp_fit|refpix|resample"
    r"|resample_spec|reset|residual_fringe|rscd|saturation|skymatch|source_catalog|spectral_leak|srctype"
    r"|stackrefs|straylight|superbias|targ_centroid|tweakreg|wfscombine|white_light"
    r")$"
)


def is_remote(url: str) -> bool:
    """Return whether `url` names something that is not on the local disk."""
    return "://" in url and not url.startswith(("file://", "local://"))


def absolute(name: str) -> str:
    """Return a remote URL as it is, and a local path (or ``file://`` URL) as an absolute path."""
    if is_remote(name):
        return name
    return os.path.abspath(os.path.expanduser(re.sub(r"^(file|local)://", "", name)))


def relative_to(table: str, name: str) -> str:
    """Return the URL of `name` as written in the file `table`: relative names start from the table's own folder.

    Parameters
    ----------
    table : str
        Path or URL of the file that mentions `name`.
    name : str
        Path or URL, absolute or relative.
    """
    if "://" in name or os.path.isabs(name):
        return absolute(name)
    if not is_remote(table):
        return os.path.normpath(os.path.join(os.path.dirname(absolute(table)), name))
    scheme, _, path = table.partition("?")[0].partition("://")
    return scheme + "://" + posixpath.normpath(posixpath.join(posixpath.dirname(path), name))


def file_name(url: str) -> str:
    """Return the file name in a path or URL; archive links that name the file in ``?uri=`` are understood."""
    if not url.startswith(("http://", "https://")):
        return url.rstrip("/").rsplit("/", 1)[-1]
    parts = urlsplit(url)
    queried = parse_qs(parts.query).get("uri", [""])[0].rsplit("/", 1)[-1]
    return queried or unquote(parts.path.rstrip("/").rsplit("/", 1)[-1])


def looks_like_fits(url: str) -> bool:
    """Return whether the file name ends like a FITS file (``.fits .fit .fts``, also ``.gz`` and ``.fz``)."""
    return _FITS_NAME.search(file_name(url)) is not None


def root_name(url: str) -> str:
    """Return the file name without folder, extensions and known JWST suffix.

    Examples
    --------
    >>> root_name("s3://bucket/jw01_nrcb1_cal.fits.gz")
    'jw01_nrcb1'
    """
    stem = _ANY_EXTENSION.sub("", file_name(url))
    return _SUFFIX.sub("", stem) or stem


def common_root(urls: Sequence[str]) -> str:
    """Return a product name for a set of files: the root of a single one, what the roots begin with, or ``mosaic``.

    Examples
    --------
    >>> common_root(["jw01_00001_cal.fits", "jw01_00002_cal.fits"])
    'jw01'
    """
    roots = [root_name(url) for url in urls]
    if len(roots) == 1:
        return roots[0]
    columns = enumerate(zip(*roots, strict=False))
    shared = roots[0][: next((i for i, letters in columns if len(set(letters)) > 1), min(map(len, roots)))]
    if shared not in roots:
        # Cut back to a whole word, so that "..._00001" and "..._00002" do not share "..._0000".
        shared = shared[: max((shared.rfind(mark) + 1 for mark in "_-. "), default=0)]
    shared = shared.strip("_-. ")
    return shared if len(shared) >= 3 else "mosaic"


def weight_names(name: str) -> tuple[str, ...]:
    """Return the file names under which the weight map of the image file `name` may lie next to it."""
    return _renamed(name, (("_ooi_", "_oow_"), (r"_sci(?=\.)", "_wht"), (r"(?i)(?=\.(?:fits|fit|fts)\b)", ".weight")))


def dq_names(name: str) -> tuple[str, ...]:
    """Return the file names under which the data-quality map of the image file `name` may lie next to it."""
    return _renamed(name, (("_ooi_", "_ood_"),))


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    made = (re.sub(pattern, new, name, count=1) for pattern, new in rules)
    return tuple(candidate for candidate in made if candidate != name)


def without_companions(urls: Sequence[str]) -> list[str]:
    """Return `urls` without those that are, by their name, the weight or data-quality map of another one."""
    maps = {
        relative_to(url, name) for url in urls for name in (*weight_names(file_name(url)), *dq_names(file_name(url)))
    }
    return [url for url in urls if url not in maps]
