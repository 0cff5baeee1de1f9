#!/usr/bin/env bash
# The main job on real data: eight 2MASS frames of the nebula M17, aligned, matched, cleaned, combined and catalogued;
# then the same on a small simulated JWST association.
# Usage: bash scripts/demo.sh [FOLDER]     default folder: demo-output
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$here/demo-output}
. "$here/scripts/environment.sh" ""

echo
echo "== image3 on 8 frames of M17 (2MASS K_s, 512 x 1024 pixels each, 1 arcsec/pixel), at most 1 GiB of memory"
# The frames share narrow rims: any of them may be the reference, and a few stars are enough for a shift
set -x
streamimg3 run image3 "$here/tests/data/2mass_m17" --output-dir "$out" --memory 1GiB --workers 2 \
    --set tweakreg.expand_refcat=true --set tweakreg.brightest=1000 --set tweakreg.minobj=6 --set tweakreg.fitgeometry=shift \
    --set skymatch.skystat=median --set source_catalog.bkg_boxsize=64
{ set +x; } 2>/dev/null
streamimg3 export "$out/aK_asky.zarr" --output-dir "$out" --preview-only

echo
echo "== what the store holds"
streamimg3 info "$out/aK_asky.zarr"

echo
echo "== the same in xarray"
python - "$out/aK_asky.zarr" <<'PY'
import sys
import xarray

tree = xarray.open_datatree(sys.argv[1], engine="zarr")
mosaic = tree["mosaic"].to_dataset()
print(mosaic)
print("median of the mosaic:", round(float(mosaic.sci.median()), 2))
print("sources in the catalogue:", tree["catalog"].sizes)
PY

echo
echo "== image3 on a simulated JWST association: 4 exposures, pointing errors, cosmic rays, backgrounds that differ"
streamimg3 simulate "$out/simulated" --preset a
streamimg3 run image3 "$out"/simulated/*_asn.json --output-dir "$out/simulated-products" --memory 1GiB --workers 2

echo
echo "Made in $out:"
echo "  aK_asky_report.html the report: open it in a browser"
echo "  aK_asky_i2d.fits    the mosaic for ds9 and friends"
echo "  aK_asky_i2d.png     a picture of it"
echo "  aK_asky_cat.ecsv    its sources; aK_asky_segm.fits tells which pixels belong to which"
echo "  *_crf.fits          the frames, aligned and with outliers flagged"
echo "  aK_asky.zarr        the store: exposures, mosaic, catalogue, what every step found"
echo "  simulated-products  the same for the simulated association"
echo "This publication makes use of data products from the Two Micron All Sky Survey, a joint project of the University of"
echo "Massachusetts and IPAC/Caltech, funded by NASA and the NSF."
