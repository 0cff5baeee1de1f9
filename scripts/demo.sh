#!/usr/bin/env bash
# The main job on real data: the mosaic of eight 2MASS frames of the nebula M17, with a store, a FITS file and a picture.
# Usage: bash scripts/demo.sh [FOLDER]     default folder: demo-output
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$here/demo-output}
. "$here/scripts/environment.sh" ""

echo
echo "== mosaic of 8 frames of M17 (2MASS K_s, 512 x 1024 pixels each, 1 arcsec/pixel), at most 1 GiB of memory"
streamimg3 run image3 "$here/tests/data/2mass_m17" --output-dir "$out" --memory 1GiB --workers 2 \
    --set tweakreg.skip=true --set skymatch.skip=true --set outlier_detection.skip=true --set source_catalog.skip=true
streamimg3 export "$out/aK_asky.zarr" --output-dir "$out" --preview-only

echo
echo "== what the store holds"
streamimg3 info "$out/aK_asky.zarr"

echo
echo "== the same in xarray"
python - "$out/aK_asky.zarr" <<'PY'
import sys
import xarray

mosaic = xarray.open_datatree(sys.argv[1], engine="zarr")["mosaic"].to_dataset()
print(mosaic)
print("median of the mosaic:", round(float(mosaic.sci.median()), 2))
PY

echo
echo "Made in $out:"
echo "  aK_asky_i2d.fits   the mosaic for ds9 and friends"
echo "  aK_asky_i2d.png    a picture of it"
echo "  aK_asky.zarr       the store: exposures, mosaic, parameters"
echo "This publication makes use of data products from the Two Micron All Sky Survey, a joint project of the University of"
echo "Massachusetts and IPAC/Caltech, funded by NASA and the NSF."
