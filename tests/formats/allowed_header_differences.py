"""Where headers of our mosaics differ from the reference's on purpose: keyword -> reason."""

ALLOWED_DIFFERENCES: dict[str, str] = {
    "DATE": "time of writing",
    "CAL_VCS": "the reference stamps its own release, also into the exposures of HDRTAB; ours keep what they came with",
    "S3VER": "version of this package: CAL_VER stays the exposures' own, which were calibrated by something else",
    "HISTORY": "what the resample step had to assume (no ERR, no VAR_RNOISE ...) is said in the product",
    "TFIELDS": "number of columns: without CAL_VCS where no exposure has it",
    "NAXIS1": "bytes in a row of HDRTAB (without CAL_VCS) and in the metadata tree (without the reference's log)",
    "TTYPE": "columns after CAL_VCS have a number less",
    "TFORM": "columns after CAL_VCS have a number less; length of the metadata tree",
}
