"""Make streamimg3/formats/jwst_keywords.json; run this with an interpreter that has stdatamodels.

    python jwst_keywords_recipe.py > ../../streamimg3/formats/jwst_keywords.json

One row per keyword of the reference's ImageModel, in the order in which it writes them: keyword, HDU, place in the
metadata tree, blending rule (empty: the first exposure's value), and 1 if the keyword is a column of HDRTAB. SIP
coefficients are left out: no mosaic has them.
"""

import importlib
import json
import re
from typing import Any

RULES = {"mindate": "min", "mintime": "min", "mindatetime": "min", "maxdatetime": "max", "first": ""}
SIP = re.compile(r"[AB]P?_(\d_\d|ORDER)")


def rows(schema: dict[str, Any], path: tuple[str, ...] = ()) -> list[list[str | int]]:
    """Return the rows of a schema whose branches have been merged, depth first."""
    found: list[list[str | int]] = []
    keyword = schema.get("fits_keyword", "")
    if keyword and not SIP.fullmatch(keyword):
        rule, listed = schema.get("blend_rule", ""), bool(schema.get("blend_table"))
        found.append([keyword, schema.get("fits_hdu", "PRIMARY"), ".".join(path), RULES.get(rule, rule), int(listed)])
    for key, branch in schema.get("properties", {}).items():
        found += rows(branch, (*path, key))
    return found


def text() -> str:
    """Return the whole file."""
    models = importlib.import_module("stdatamodels.jwst.datamodels")
    lines = ",\n".join(json.dumps(row) for row in rows(models.ImageModel().schema))
    return f"[\n{lines}\n]\n"


if __name__ == "__main__":
    print(text(), end="")
