#!/bin/sh
# Prints the path of a Python that has everything fewstep's demo and tests need; progress goes to stderr.
#
#   1. FEWSTEP_PYTHON, if set: used as it is when complete, else as the base of .venv;
#   2. the active virtual environment (VIRTUAL_ENV), when complete: it is reused, never changed;
#   3. .venv beside this checkout, made from the first of python3, python3.13, python3.12, python3.11 that is
#      3.11 to 3.13 and into which the pinned dependencies (constraints.txt) install.
#
# Where torch comes from is pip's configuration, not ours: set PIP_INDEX_URL or PIP_FIND_LINKS to prefer other builds.
set -u
cd "$(dirname "$0")/.." || exit 1

say() { printf 'fewstep: %s\n' "$*" >&2; }

supported() { # is this a Python 3.11-3.13 that can make virtual environments?
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
        >/dev/null 2>&1 </dev/null
}

complete() { # does it hold every dependency, at a version pyproject.toml accepts?
    "$1" tools/check_env.py >/dev/null 2>&1 </dev/null
}

real() { "$1" -c 'import sys; print(sys.executable)' </dev/null; }

digest() { cat pyproject.toml constraints.txt | cksum | tr -d ' \n'; }

fresh() { # is there a .venv made from these very files?
    [ -x .venv/bin/python ] && [ "$(cat .venv/stamp 2>/dev/null)" = "$(digest)" ]
}

build() { # make .venv from the given Python
    say "creating .venv with $("$1" --version 2>&1) ($(real "$1")); the first time takes some minutes"
    rm -rf .venv
    "$1" -m venv .venv >&2 </dev/null || return 1
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt setuptools \
        >&2 </dev/null || return 1
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
        --no-build-isolation -e '.[dev]' >&2 </dev/null || return 1
    digest >.venv/stamp
}

if [ -n "${FEWSTEP_PYTHON:-}" ]; then
    if ! supported "$FEWSTEP_PYTHON"; then
        say "FEWSTEP_PYTHON=$FEWSTEP_PYTHON is not a Python 3.11 to 3.13 with the venv module; point it at one or unset it"
        exit 2
    fi
    if complete "$FEWSTEP_PYTHON"; then
        real "$FEWSTEP_PYTHON"
        exit 0
    fi
elif [ -n "${VIRTUAL_ENV:-}" ] && complete "$VIRTUAL_ENV/bin/python"; then
    echo "$VIRTUAL_ENV/bin/python"
    exit 0
fi

if fresh; then
    echo "$PWD/.venv/bin/python"
    exit 0
fi

# Two at once must not build the same .venv; whoever comes second finds it made.
until mkdir .venv.lock 2>/dev/null; do
    [ -n "${told:-}" ] || say "another make is building .venv; waiting (if none is, remove $PWD/.venv.lock)"
    told=1
    sleep 1
done
trap 'rmdir .venv.lock' EXIT
trap 'exit 130' INT TERM
if fresh; then
    echo "$PWD/.venv/bin/python"
    exit 0
fi

for candidate in ${FEWSTEP_PYTHON:-python3 python3.13 python3.12 python3.11}; do
    supported "$candidate" || continue
    if build "$candidate"; then
        echo "$PWD/.venv/bin/python"
        exit 0
    fi
    say "could not install the dependencies with $candidate; see pip's message above"
done
say "no usable Python found: install Python 3.11, 3.12 or 3.13 (with venv), or set FEWSTEP_PYTHON to one"
exit 2
