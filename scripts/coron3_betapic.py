"""beta Pictoris in L', VLT NaCo: 61 frames between which the field turns, subtracted from each other and put north up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import NDArray

from streamimg3 import Session, run

F8 = NDArray[np.float64]
SCALE = 0.02719  # arcsec in a pixel
NORTH = 104.84  # degrees off the parallactic angles
RA, DEC = 86.8212, -51.0665
COMPONENTS = 10
SEPARATION, ANGLE = (0.452, 0.010), (211.2, 1.3)  # arcsec and degrees: Absil et al. 2013
FWHM = 4.8  # pixels
ALLOWED = FWHM / 3  # pixels from the published place


def write_frame(path: Path, frames: F8, angle: float, number: int) -> None:
    """Write frames as a cube of integrations whose +y axis has a position angle in degrees."""
    turn, step = np.deg2rad(angle), SCALE / 3600
    head = fits.PrimaryHDU()
    head.header.update(
        {"DATAMODL": "CubeModel", "INSTRUME": "NACO", "DETECTOR": "L27", "EXP_TYPE": "CORON", "FILTER": "L"}
    )
    head.header.update({"NINTS": len(frames), "PROGRAM": "beta Pic", "EXPOSURE": f"{number:05d}"})
    image = fits.ImageHDU(frames.astype(np.float32), name="SCI")
    image.header.update({
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": RA, "CRVAL2": DEC, "CRPIX1": 51.0, "CRPIX2": 51.0,
        "CD1_1": -step * np.cos(turn), "CD1_2": step * np.sin(turn), "CD2_1": step * np.sin(turn),
        "CD2_2": step * np.cos(turn), "BUNIT": "adu",
    })  # fmt: skip
    fits.HDUList([head, image]).writeto(path, overwrite=True)


def write_case(data: Path, folder: Path) -> Path:
    """Write every frame as a science exposure, and all of them as references; returns the association."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = np.asarray(fits.getdata(data / "naco_betapic_cube.fits"), float)
    angles = np.asarray(fits.getdata(data / "naco_betapic_pa.fits"), float).ravel() - NORTH
    members = []
    for k, (frame, angle) in enumerate(zip(frames, angles, strict=True)):
        write_frame(folder / f"frame{k:02d}_calints.fits", frame[None], angle, k)
        members.append({"expname": f"frame{k:02d}_calints.fits", "exptype": "science"})
    write_frame(folder / "all_calints.fits", frames, 0.0, 99)
    members.append({"expname": "all_calints.fits", "exptype": "psf"})
    tree = {"asn_type": "coron3", "asn_id": "a3001", "products": [{"name": "betapic_naco", "members": members}]}
    (folder / "asn.json").write_text(json.dumps(tree))
    return folder / "asn.json"


def ring_snr(image: F8, at: tuple[float, float], star: tuple[float, float]) -> float:
    """Signal in an aperture over the scatter of apertures at the same distance from the star."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    radius = np.hypot(at[0] - star[0], at[1] - star[1])
    start = np.arctan2(at[0] - star[0], at[1] - star[1])
    count = int(2 * np.pi * radius / FWHM)
    turns = start + 2 * np.pi * np.arange(count) / count
    sums = [
        float(np.nansum(image[np.hypot(y - star[0] - radius * np.sin(t), x - star[1] - radius * np.cos(t)) < FWHM / 2]))
        for t in turns
    ]
    rest = np.array(sums[1:])
    return float((sums[0] - rest.mean()) / (rest.std(ddof=1) * np.sqrt(1 + 1 / len(rest))))


def check_betapic(data: Path, work: Path) -> bool:
    """Run coron3 on the frames and find the planet; returns whether it is where it was published."""
    association = write_case(data, work / "frames")
    folder = work / "out"
    session = Session(store=str(work / "betapic.zarr"), output_dir=str(folder), workers=1)
    run(
        "coron3", str(association), session=session, align_refs={"override_psfmask": "N/A"},
        klip={"truncate": COMPONENTS}, resample={"rotation": 0.0, "pixel_scale": SCALE, "weight_type": "none"},
    )  # fmt: skip
    path = next(folder.glob("*_i2d.fits"))
    image, wcs = np.asarray(fits.getdata(path, "SCI"), float), WCS(fits.getheader(path, "SCI"))
    x0, y0 = (float(v) for v in wcs.all_world2pix(RA, DEC, 0))
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    r = np.hypot(y - y0, x - x0)
    ring = np.where((r > 10) & (r < 30), image, -np.inf)
    top = np.unravel_index(int(np.nanargmax(ring)), image.shape)
    near = (np.hypot(y - top[0], x - top[1]) < 3) & (image > 0)
    at = tuple(float((image * p)[near].sum() / image[near].sum()) for p in (y, x))
    ra, dec = (float(v) for v in wcs.all_pix2world(at[1], at[0], 0))
    east, north = (ra - RA) * np.cos(np.deg2rad(DEC)) * 3600, (dec - DEC) * 3600
    separation, angle = float(np.hypot(east, north)), float(np.rad2deg(np.arctan2(east, north)) % 360)
    snr = ring_snr(image, (at[0], at[1]), (y0, x0))
    print(f"beta Pictoris b: {separation:.3f} arcsec, position angle {angle:.1f} deg, SNR {snr:.1f}"
          f" (published {SEPARATION[0]} +- {SEPARATION[1]} arcsec, {ANGLE[0]} +- {ANGLE[1]} deg)")  # fmt: skip
    curve = Table.read(next(folder.glob("*_contrast.ecsv")))
    print(curve[2:20:4])
    there = SEPARATION[0] * np.exp(1j * np.deg2rad(ANGLE[0]))
    apart = float(abs(separation * np.exp(1j * np.deg2rad(angle)) - there)) / SCALE
    print(f"{apart:.2f} pixels from the published place; a star has a width of {FWHM} pixels")
    return apart <= ALLOWED and snr > 5
