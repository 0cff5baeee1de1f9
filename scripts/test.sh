#!/usr/bin/env bash
# Set up and run the tests.
# Usage: bash scripts/test.sh            the quick suite (minutes)
#        bash scripts/test.sh --long     the long ones: real S3 server, kills, memory, the reference beside
#        bash scripts/test.sh --lint     ruff and mypy
#        bash scripts/test.sh -m s3      one kind of the long ones: parity, scale, s3, faults, browser
#        anything else goes to pytest
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
long="parity or scale or s3 or faults or browser"
cd "$here"
case "${1:-}" in
--lint)
    . scripts/environment.sh "[dev]"
    ruff check .
    ruff format --check .
    mypy
    ;;
--long)
    . scripts/environment.sh "[test]"
    shift
    failed=0
    python -m pytest -n auto --maxprocesses 4 -m "parity or s3 or browser" "$@" || failed=1
    python -m pytest -m "(scale or faults) and not s3" "$@" || failed=1  # one by one: they measure memory, and kill
    exit $failed
    ;;
-m)
    . scripts/environment.sh "[test]"
    python -m pytest "$@"
    ;;
*)
    . scripts/environment.sh "[test]"
    python -m pytest -n auto --maxprocesses 4 -m "not ($long)" "$@"
    ;;
esac
