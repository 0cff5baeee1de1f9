# Sourced by the other scripts: a Python of at least 3.11 in a virtual environment of its own, unless one is active.
# Usage: . scripts/environment.sh EXTRAS   (for example "" or "[test]")

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extras=${1:-}

if [ -z "${VIRTUAL_ENV:-}" ]; then
    home=${STREAMIMG3_VENV:-$root/.venv}
    if [ ! -x "$home/bin/python" ]; then
        found=
        for candidate in python3 python3.13 python3.12 python3.11; do
            if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
                found=$candidate
                break
            fi
        done
        if [ -z "$found" ]; then
            echo "streamimg3 needs Python 3.11 or newer; none was found (python3 --version: $(python3 --version 2>&1))" >&2
            exit 1
        fi
        echo "making a virtual environment in $home with $($found --version)"
        if ! "$found" -m venv "$home"; then
            echo "cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv" >&2
            exit 1
        fi
    fi
    # shellcheck disable=SC1091
    . "$home/bin/activate"
fi

stamp="$VIRTUAL_ENV/.streamimg3$extras"
if [ ! -e "$stamp" ] || [ "$root/pyproject.toml" -nt "$stamp" ]; then
    echo "installing streamimg3$extras into $VIRTUAL_ENV"
    python -m pip install --quiet --disable-pip-version-check --editable "$root$extras" 2>&1 | grep -v "^WARNING: Location" || true
    python -c 'import streamimg3' || { echo "the installation failed; see the messages above" >&2; exit 1; }
    touch "$stamp"
fi
