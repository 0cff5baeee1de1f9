"""A picture of contrast curves."""

from __future__ import annotations

import io
import math

import numpy as np

from streamimg3.errors import InputError
from streamimg3.store import Observation
from streamimg3.store.coron_documents import ContrastDocument
from streamimg3.store.documents import ResampleDocument


def contrast_picture(obs: Observation) -> bytes:
    """Return a PNG of the contrast curves of a store: noise against separation.

    Raises
    ------
    InputError
        If the store holds none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    document = obs.document(ContrastDocument)
    if document is None or not document.curves:
        raise InputError(f"{obs.url} holds no contrast curve: run coron3 with hlsp first")
    figure = Figure(figsize=(7.0, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in document.curves:
        mosaic = obs.document(ResampleDocument, curve.mosaic)
        scale = mosaic.pixel_scale if mosaic is not None else 1.0
        sigma = [math.nan if s is None else s for s in curve.sigma]
        name = curve.mosaic.removeprefix("resample-").replace("kl", "truncate ")
        axes.semilogy(np.array(curve.radius) * scale, sigma, label=None if curve.mosaic == "resample" else name)
    axes.set_xlabel("separation [arcsec]")
    axes.set_ylabel(f"noise in a ring [{obs.records()[0].bunit or 'pixel value'}]")
    axes.grid(alpha=0.3, which="both")
    if len(document.curves) > 1:
        axes.legend()
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
